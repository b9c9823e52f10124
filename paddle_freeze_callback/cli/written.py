"""A schedule as YAML, moment by moment, to edit."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

from paddle import nn

from ..schedule import FreezeSchedule
from ..session.plan import Plan
from ..session.plan import plan as plan_of
from ..session.timeline import Timeline
from ..stages.partition import Stages, Survey, covering
from ..stages.selectors import select
from ..strategies.base import Strategy
from ..strategies.explicit import Explicit
from ..strategies.moments import Moment
from ..strategies.rates import LearningRates
from ..strategies.run import Run
from .mistake import MistakeError


def _asked(schedule: FreezeSchedule) -> tuple[Stages, Strategy, LearningRates, dict[str, Any]]:
    """All that is read of a schedule here: stages, rule, rates, and the options that were given."""
    rates = schedule._manners["learning_rates"]
    return schedule._options.stages, schedule._strategy, rates, schedule._options.given()


# Options that moments and rates express, and options that belong to one run.
_EXPRESSED = (
    "stages", "strategy", "every", "start", "unfreeze_at", "lr", "lr_decay", "train_norm",
    "phase_lr", "phase_decay",
)  # fmt: skip
_OF_A_RUN = ("resume_at", "resume_from")


def written_out(
    schedule: FreezeSchedule,
    network: nn.Layer,
    *,
    epochs: float,
    steps_per_epoch: int,
    model: str,
    file: str,
) -> str:
    """A schedule as YAML that lists for each moment which layers open and freeze, to edit.

    Moments are in epochs, so that they stay right for another number of steps in an epoch,
    unless the schedule itself counts steps.

    ``model`` and ``file``, as on the command line, are for the comments.
    """
    stages, rule, rates, options = _asked(schedule)
    if rule.decides or rule.measures:
        raise MistakeError(
            f"--yaml: {rule!r} decides while it runs, so its moments are not known before; after a "
            "run, schedule.run.as_explicit() gives them"
        )
    run = Run.of(epochs=epochs, steps_per_epoch=steps_per_epoch)
    if any(not isinstance(shape, str) for shape in rates.shapes):
        raise MistakeError("--yaml: phase_lr is a function, which no file can hold")
    survey = Survey(network, schedule._options.spans())
    untouched = options.get("untouched")
    plan = plan_of(survey, stages, rule, rates, untouched, schedule._options.train_norm)
    if plan.norms.pinned:
        raise MistakeError(
            f"--yaml: {type(network).__name__} has normalization layers without weights, which no "
            "name of a parameter means; write train_norm: in a file of your own"
        )
    if untouched is not None:
        options["untouched"] = [weight.name for weight in survey.select(untouched)]
    total = sum(weight.numel for weight in survey.weights)
    lines = [*_body(survey, plan, run, _counts_steps(rule), total), *_other(options, rule)]
    head = f"""\
{schedule!r}
for {model}: {type(network).__name__}, {total:,} parameters,
{_over(epochs, steps_per_epoch)}.

Edit it, then preview it and train with it:
  paddle-freeze check {file} {model} --epochs {epochs} --steps-per-epoch {steps_per_epoch}
  FreezeSchedule.from_file({file!r})

Moments are in order of time; a number counts epochs. Names are those of layers and parameters;
a layer that is named at no moment stays frozen."""
    width = max(len(text) for text, comment in lines if comment)
    body = [f"{text:<{width}}  # {comment}" if comment else text for text, comment in lines]
    return "\n".join([*(f"# {line}".rstrip() for line in head.splitlines()), "", *body]) + "\n"


def _over(epochs: float, steps_per_epoch: int) -> str:
    """The length of a run, as a file says it."""
    return f"over {epochs} epoch{'' if epochs == 1 else 's'} of {steps_per_epoch} optimizer steps"


def length_in(file: str | os.PathLike[str]) -> tuple[float, int] | None:
    """The epochs, and the steps in an epoch, that a file was written for, if it says so."""
    with open(file, encoding="utf-8") as lines:
        found = re.search(r"^# over ([\d.]+) epochs? of (\d+) optimizer steps", lines.read(), re.M)
    return found and (float(found[1]) if "." in found[1] else int(found[1]), int(found[2]))


def _body(
    survey: Survey, plan: Plan, run: Run, counts_steps: bool, total: int
) -> Iterator[tuple[str, str]]:
    """Lines of YAML with their comments: what opens and freezes when, and the rates."""
    names = {stage.name: covering(stage, survey.weights, plan.openable) for stage in plan.stages}
    before: frozenset[str] = frozenset()
    ever: frozenset[str] = frozenset()
    yield "unfreeze_at:", ""
    own = Timeline(plan, run).peaks()
    for step, opened in plan.timetable(run):
        if step and opened == before and step not in own:
            continue
        yield f"  {_moment(run, step, counts_steps)}:", f"step {step}, epoch {run.epoch_of(step)}"
        for verb, which in (
            ("unfreeze", opened.difference(before, plan.rows)),
            ("freeze", before - opened),
        ):
            if which:
                yield f"    {verb}:", ""
            for stage in (stage for stage in plan.stages if stage.name in which):
                for name in names[stage.name]:
                    numel = sum(weight.numel for weight in select(survey.weights, name))
                    size = f"{numel:,} parameters, {100 * numel / total:.3g}%"
                    yield f"      - {_scalar(name)}", f"{stage.name}: {size}"
        if step in own:
            yield f"    lr: {own[step]!r}", "from here on"
        before, ever = opened, ever | opened
    rates = [
        (f"  {_scalar(name)}: {plan.multipliers[stage.name]!r}", stage.name)
        for stage in plan.stages
        if stage.name in ever and plan.multipliers.get(stage.name, 1.0) != 1.0
        for name in names[stage.name]
    ]
    if rates:
        yield "lr:", "multipliers of the optimizer's learning rate"
        yield from rates
    if plan.learning_rates.shaped:
        yield f"phase_lr: {json.dumps(plan.learning_rates.shapes)}", "over each phase"
    if plan.learning_rates.phase_decay != 1:
        yield f"phase_decay: {plan.learning_rates.phase_decay!r}", "from phase to phase"


def _other(options: Mapping[str, Any], rule: Strategy) -> Iterator[tuple[str, str]]:
    """Lines for the options that moments and rates do not express."""
    for name, value in options.items():
        if name not in (*_EXPRESSED, *_OF_A_RUN):
            plain = os.fspath(value) if isinstance(value, os.PathLike) else value
            yield f"{name}: {json.dumps(plain)}", ""
    if rule.frees_state and "free_optimizer_state" not in options:
        yield "free_optimizer_state: true", f"as {type(rule).__name__} does"


def _counts_steps(rule: Strategy) -> bool:
    """Whether any moment of a strategy is in steps."""
    moments = [getattr(rule, name, None) for name in ("every", "start", "at", "until")]
    if isinstance(rule, Explicit):
        moments = list(rule.unfreeze_at)
    written = [when for when in moments if isinstance(when, (int, str, Moment))]
    return any(Moment.of(when).unit == "steps" for when in written)


def _moment(run: Run, step: int, counts_steps: bool) -> str:
    """A step as a moment, in epochs if it can be.

    >>> run = Run.of(epochs=3, steps_per_epoch=7)
    >>> [_moment(run, step, False) for step in (0, 3, 7, 8)]
    ['0', '0.4 epochs', '1', '1.1 epochs']
    >>> _moment(run, 7, True)
    '7 steps'
    """
    if not step:
        return "0"
    length = run.steps_per_epoch
    if length and not counts_steps:
        if not step % length:
            return str(step // length)
        for digits in range(1, 12):
            # A moment is the first step at or after it: round down.
            share = Fraction(step * 10**digits // length, 10**digits)
            if run.step_of(Moment(share, "epochs")) == step:
                return f"{float(share):.{digits}f} epochs"
    return str(Moment(Fraction(step), "steps"))


def _scalar(text: str) -> str:
    """A text as YAML: plain, if it cannot be read as anything else.

    >>> _scalar("encoder.layers.3"), _scalar("0"), _scalar("1.weight"), _scalar("no")
    ('encoder.layers.3', '"0"', '"1.weight"', '"no"')
    """
    plain = re.fullmatch(r"[A-Za-z_][\w.]*", text, re.ASCII)
    words = ("true", "false", "yes", "no", "on", "off", "null", "y", "n")
    return text if plain and text.lower() not in words else json.dumps(text, ensure_ascii=False)
