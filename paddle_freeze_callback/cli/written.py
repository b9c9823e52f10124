"""A schedule as YAML, moment by moment, to edit."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from paddle import nn

from ..schedule import FreezeSchedule
from ..session.plan import Plan
from ..session.plan import plan as plan_of
from ..stages.partition import covering
from ..stages.selectors import select
from ..stages.weights import Weight, weights
from ..strategies.base import Strategy
from ..strategies.explicit import Explicit
from ..strategies.moments import Moment
from ..strategies.run import Run
from .mistake import MistakeError


def written_out(
    schedule: FreezeSchedule,
    network: nn.Layer,
    *,
    epochs: float,
    steps_per_epoch: int,
    model: str,
    file: str,
) -> str:
    """A schedule as YAML that says for each moment what opens and freezes, to edit.

    Moments are written in epochs, so that they stay right for another number of steps in an
    epoch, unless the schedule itself counts steps.

    Args:
        schedule: the schedule.
        network: what it is fitted to.
        epochs: how long the run is.
        steps_per_epoch: optimizer steps in an epoch.
        model: what the network is called on the command line.
        file: what the file is called; both are only told in its comments.

    Raises:
        MistakeError: if the strategy decides while it runs.
        ValueError, TypeError: as at the start of a run.
    """
    run = Run.of(epochs=epochs, steps_per_epoch=steps_per_epoch)
    manners = schedule._manners
    rule = schedule._strategy
    if rule.decides or rule.measures:
        raise MistakeError(
            f"--yaml: {rule!r} decides while it runs, so its moments are not known before; after a "
            "run, schedule.run.as_explicit() gives them"
        )
    fitted = plan_of(network, schedule.stages, rule, manners["learning_rates"])
    every = weights(network)
    names = {stage.name: covering(stage, every, fitted.openable) for stage in fitted.stages}
    moments = _moments(fitted, rule, run)
    total = sum(weight.numel for weight in every)
    lines: list[tuple[str, str]] = [("unfreeze_at:", "")]
    before: frozenset[str] = frozenset()
    for written, step, opened in moments:
        lines.append((f"  {written}:", f"step {step}, epoch {run.epoch_of(step)}"))
        for verb, which in (("unfreeze", opened - before), ("freeze", before - opened)):
            if which:
                lines.append((f"    {verb}:", ""))
            for stage in (stage for stage in fitted.stages if stage.name in which):
                for name in names[stage.name]:
                    told = _sizes(select(every, name), total)
                    lines.append((f"      - {_scalar(name)}", f"{stage.name}: {told}"))
        before = opened
    ever = {name for _, _, opened in moments for name in opened}
    rates = [
        (f"  {_scalar(name)}: {fitted.multipliers[stage.name]!r}", stage.name)
        for stage in fitted.stages
        if stage.name in ever and fitted.multipliers.get(stage.name, 1.0) != 1.0
        for name in names[stage.name]
    ]
    if rates:
        lines += [("lr:", "multipliers of the optimizer's learning rate"), *rates]
    lines += _other_options(schedule)
    head = [
        f"{schedule!r}",
        f"for {model}: {type(network).__name__}, {total:,} parameters,",
        f"over {epochs} {'epoch' if epochs == 1 else 'epochs'} of {steps_per_epoch} "
        "optimizer steps.",
        "",
        "Edit it, then look at it and train with it:",
        f"  paddle-freeze check {file} {model} "
        f"--epochs {epochs} --steps-per-epoch {steps_per_epoch}",
        f"  FreezeSchedule.from_file({file!r})",
        "",
        "Moments (a number counts epochs) stand in order of time. Names are those of layers and",
        "parameters; what no moment names stays frozen.",
    ]
    width = max(len(text) for text, comment in lines if comment)
    body = [f"{text:<{width}}  # {comment}" if comment else text for text, comment in lines]
    return "\n".join([*(f"# {line}".rstrip() for line in head), "", *body]) + "\n"


def _moments(fitted: Plan, rule: Strategy, run: Run) -> list[tuple[str, int, frozenset[str]]]:
    """When the open stages change, as YAML keys, with the step and what is open from then on."""
    total = run.total_steps
    assert total
    counts_steps = "steps" in _units(rule)
    table = [
        entry for entry in fitted.strategy.timetable(run, fitted.schedulable) if entry[0] < total
    ]
    changes = [
        entry for index, entry in enumerate(table) if not index or table[index - 1][1] != entry[1]
    ]
    return [(_written(run, step, counts_steps), step, opened) for step, opened in changes]


def _units(rule: Strategy) -> set[str]:
    """The units that a strategy's moments are in."""
    if isinstance(rule, Explicit):
        return {Moment.of(when).unit for when in rule.unfreeze_at}
    options: Any = dataclasses.fields(rule) if dataclasses.is_dataclass(rule) else ()
    units = set()
    for name in (each.name for each in options):
        if name in ("every", "start", "at", "until") and getattr(rule, name) is not None:
            units.add(Moment.of(getattr(rule, name)).unit)
    return units


def _written(run: Run, step: int, counts_steps: bool) -> str:
    """A step as a moment.

    >>> run = Run.of(epochs=3, steps_per_epoch=7)
    >>> [_written(run, step, False) for step in (0, 3, 7, 8)]
    ['0', '0.4 epochs', '1', '1.1 epochs']
    >>> _written(run, 7, True)
    '7 steps'
    """
    if not step:
        return "0"
    length = run.steps_per_epoch
    if counts_steps or not length:
        return str(Moment(Fraction(step), "steps"))
    if not step % length:
        return str(step // length)
    for digits in range(1, 12):
        # A moment is the first step at or after it: round down.
        share = Fraction(step * 10**digits // length, 10**digits)
        if run.step_of(Moment(share, "epochs")) == step:
            return f"{float(share):.{digits}f} epochs"
    return str(Moment(Fraction(step), "steps"))


def _sizes(members: Sequence[Weight], total: int) -> str:
    numel = sum(weight.numel for weight in members)
    return f"{numel:,} parameters, {100 * numel / total:.3g}%"


def _scalar(text: str) -> str:
    """A text as YAML: plain, if it cannot be read as anything else.

    >>> _scalar("encoder.layers.3"), _scalar("0"), _scalar("1.weight"), _scalar("no")
    ('encoder.layers.3', '"0"', '"1.weight"', '"no"')
    """
    plain = re.fullmatch(r"[A-Za-z_][\w.]*", text, re.ASCII)
    words = ("true", "false", "yes", "no", "on", "off", "null", "y", "n")
    return text if plain and text.lower() not in words else json.dumps(text, ensure_ascii=False)


def _other_options(schedule: FreezeSchedule) -> list[tuple[str, str]]:
    """What else was said of the schedule, as lines of YAML."""
    said_above = ("stages", "strategy", "every", "start", "unfreeze_at", "lr", "lr_decay")
    elsewhere = (*said_above, "resume_at", "resume_from")  # these belong to a run
    lines = []
    for name, value in schedule._given.items():
        if name not in elsewhere:
            plain = os.fspath(value) if isinstance(value, os.PathLike) else value
            lines.append((f"{name}: {json.dumps(plain)}", ""))
    rule = schedule._strategy
    if rule.frees_state and "free_optimizer_state" not in schedule._given:
        lines.append(("free_optimizer_state: true", f"as {type(rule).__name__} does"))
    return lines
