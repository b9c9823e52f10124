"""What a schedule will do to a network, before the first step."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paddle import nn

from ..cache.keys import CannotCacheError
from ..cache.options import CacheOptions
from ..freezing import optimizer as optimizers
from ..options.norms import TrainNorm
from ..session.ownership import refuse_running
from ..session.plan import Plan
from ..session.plan import plan as plan_of
from ..session.preflight import doubts, idle_cache, refuse_misfits, refuse_optimizer
from ..session.timeline import Rate, Timeline
from ..stages.partition import Stages, Survey
from ..stages.selectors import Selector
from ..strategies.base import Strategy
from ..strategies.phases import CONSTANT, shape_name
from ..strategies.rates import LearningRates
from ..strategies.run import Run
from ..words import percent, size_text
from . import estimate
from .table import Table, as_html, as_rich, as_text, show

_MOST_PHASES = 24  # in a table

_Spans = tuple[tuple[int, int], ...]
_NEVER: _Spans = ()


@dataclass(frozen=True)
class StagePreview:
    """One stage of a planned run.

    Attributes:
        name: its name.
        parameters: how many parameter tensors it has.
        numel: the number of their elements.
        share: elements / all elements of the network.
        spans: when it is open, as far as that is known before the run: (first step, step after
            the last), in order; empty if never.
        multiplier: its learning-rate multiplier, ramps aside.
        optimizer_bytes: bytes that the optimizer keeps for it once it has been open.
        rates: when it trains at which learning-rate multiplier, ramps in slices.
        decided: the times of which the run decides whether it is open, in the same form.
    """

    name: str
    parameters: int
    numel: int
    share: float
    spans: _Spans
    multiplier: float
    optimizer_bytes: int
    rates: tuple[Rate, ...] = ()
    decided: _Spans = ()


@dataclass(frozen=True)
class Phase:
    """The time between two transitions.

    Attributes:
        step: optimizer steps done when it begins.
        until: optimizer steps done when it ends.
        epoch: the epoch that it begins in, from 0.
        opened: the open stages, head first.
        trainable: trainable elements.
        ratio: trainable elements / all elements.
        time_share: estimated time of a step / that of a step with everything open.
        memory_share: memory of weights, gradients and optimizer state / that with everything
            open. Activations depend on the batch and are left out.
        rate: what the rate of all stages is multiplied by at its peak.
        shape: how the rate runs over the phase, such as ``"one_cycle"``.
    """

    step: int
    until: int
    epoch: int
    opened: tuple[str, ...]
    trainable: int
    ratio: float
    time_share: float
    memory_share: float
    rate: float = 1.0
    shape: str = CONSTANT


@dataclass(frozen=True)
class Preview:
    """A planned run: print it, ``show()`` it, or leave it at the end of a notebook's cell.

    Attributes:
        stages: all stages, head first.
        phases: the phases, in order of time.
        total_steps: optimizer steps in the run.
        steps_per_epoch: optimizer steps in an epoch; ``None`` if the run has no epochs.
        saving: estimated share of the run's time that it saves against training everything.
        measured: whether time was measured on a batch; otherwise it follows from parameters.
        cache_bytes: bytes that a cache would keep of each sample, by the first step of the phase;
            empty without a cache or without a batch to try it on.
        notes: warnings, and what cannot be known before the run.
        decided_later: whether the schedule makes decisions while it runs. Then the phases are
            those known before.
        rates: what the rate of all stages is multiplied by over the run, as points (step,
            multiplier) to draw; empty if that is 1 all the time.
    """

    stages: tuple[StagePreview, ...]
    phases: tuple[Phase, ...]
    total_steps: int
    steps_per_epoch: int | None
    saving: float
    measured: bool
    cache_bytes: Mapping[int, int]
    notes: tuple[str, ...]
    decided_later: bool = False
    rates: tuple[tuple[int, float], ...] = ()

    def __str__(self) -> str:
        return as_text(*_page(self))

    def __rich__(self) -> Any:
        return as_rich(*_page(self))

    def _repr_html_(self) -> str:
        return as_html(*_page(self))

    def show(self) -> None:
        """Print it: in colours in a terminal, as plain text anywhere else."""
        show(*_page(self))


def preview(
    network: nn.Layer,
    stages: Stages,
    strategy: Strategy,
    learning_rates: LearningRates,
    run: Run,
    *,
    optimizer: Any = None,
    batch: Any = None,
    frees_state: bool = False,
    cache: CacheOptions | None = None,
    untouched: Selector | None = None,
    train_norm: TrainNorm = "with_stage",
    rows: Mapping[str, slice] | None = None,
) -> Preview:
    """What a schedule will do to a network; see :meth:`FreezeSchedule.preview`."""
    survey = Survey(network, rows)
    refuse_running(network)
    plan = plan_of(survey, stages, strategy, learning_rates, untouched, train_norm)
    refuse_misfits(plan, survey, run)
    if optimizer is not None:
        refuse_optimizer(plan, survey, run, optimizer)
    notes = _notes(plan, run, optimizer, batch, cache)
    every = survey.by_name
    total = sum(weight.numel for weight in every.values())
    opens = {  # elements that may open
        stage.name: sum(every[n].opens for n in stage.parameters if n in plan.openable)
        for stage in plan.stages
    }
    kept_for = estimate.state_of(optimizer, survey.weights)  # of a table for all rows
    states = {
        stage.name: sum(kept_for[n] for n in stage.parameters if n in plan.openable)
        for stage in plan.stages
    }
    beside = [name for name in plan.alone if every[name].trains]
    work = None
    if batch is not None:
        work = estimate.work_measured(network, plan.stages, every, batch)
        if work is None:
            notes.append(
                "too little of the forward could be measured layer by layer: time is estimated "
                "from parameters"
            )
        ever = {name for _, _, opened in _openings(plan, run) for name in opened}
        notes += estimate.first_step(survey, plan, ever, batch)
    measured = work is not None
    work = work or estimate.work_by_parameters(network, plan.stages, every)
    order = estimate.from_top(survey, plan, stages)
    own = {stage.name: opens[stage.name] / max(stage.numel, 1) for stage in plan.stages}
    phases: list[Phase] = []
    had: frozenset[str] = frozenset()
    timeline = Timeline(plan, run)
    paces = timeline.paces()
    for step, until, opened in _openings(plan, run):
        in_order = tuple(stage.name for stage in plan.stages if stage.name in opened)
        had = opened if frees_state else had | opened
        trainable = sum(every[n].numel for n in beside) + sum(opens[name] for name in in_order)
        state = sum(kept_for[n] for n in beside) + sum(states[name] for name in had)
        phases.append(
            Phase(
                step, until, run.epoch_of(step), in_order, trainable, trainable / total,
                estimate.time_share(order, work, opened, own),
                (total + trainable + state) / (2 * total + sum(kept_for.values())),
                paces[step].peak, shape_name(paces[step].shape),
            )
        )  # fmt: skip
    rates = timeline.rates([(phase.step, phase.opened) for phase in phases], phases[-1].until)
    later = plan.strategy.decides or plan.strategy.measures
    may_open = plan.strategy.ever_open(run, plan.schedulable) if later else frozenset()
    sure = plan.strategy.sure_until(run, plan.schedulable) if later else phases[-1].until
    shown = []
    for stage in plan.stages:
        spans, decided = _spans(stage.name, phases), _NEVER
        if stage.name in may_open:
            spans, decided = _foreseen(spans, sure, phases[-1].until)
        state = states[stage.name] if spans or decided else 0
        shown.append(
            StagePreview(
                stage.name, len(stage.parameters), stage.numel, stage.numel / total, spans,
                plan.multipliers.get(stage.name, 1.0), state * estimate.STATE_BYTES,
                tuple(
                    Rate(rate.first, min(rate.after, sure), *rate[2:])
                    for rate in rates.get(stage.name, ()) if rate.first < sure
                ), decided,
            )
        )  # fmt: skip
    kept: dict[int, int] = {}
    if cache is not None and batch is None:
        notes.append("no batch was given: what the cache keeps is not known")
    elif cache is not None:
        for phase in phases:
            try:
                kept[phase.step] = estimate.cache_bytes(survey, plan, phase.opened, batch, cache)
            except CannotCacheError as why:
                notes.append(f"from step {phase.step} the cache is off: {why}")
    length = phases[-1].until
    spent = sum((phase.until - phase.step) * phase.time_share for phase in phases)
    return Preview(
        tuple(shown), tuple(phases), length, run.steps_per_epoch, 1 - spent / length, measured,
        kept, tuple(notes), later,
        tuple(timeline.curve([*paces, length])) if _paced(phases) else (),
    )  # fmt: skip


def _paced(phases: Sequence[Phase]) -> bool:
    """Whether the phases have rates of their own."""
    return any((phase.rate, phase.shape) != (1.0, CONSTANT) for phase in phases)


def _notes(
    plan: Plan, run: Run, optimizer: Any, batch: Any, cache: CacheOptions | None
) -> list[str]:
    strategy, notes = plan.strategy, []
    if strategy.decides or strategy.measures:
        notes.append(
            f"{type(strategy).__name__} decides while it runs; shown is what is known before, "
            "which changes with what it sees"
        )
    notes += [
        *doubts(plan, run, optimizer), *idle_cache(plan, run, cache), *plan.of_twins(),
    ]  # fmt: skip
    if optimizer is None:
        notes.append("no optimizer was given: state is counted as AdamW keeps it")
    else:
        strange = [one for one in optimizers.each(optimizer) if estimate.moments_of(one) is None]
        names = dict.fromkeys(type(one).__name__ for one in strange)
        notes += [f"the state of {name} is not known; counted as AdamW's" for name in names]
    if batch is None:
        notes.append("no batch was given: time is estimated from parameters, not measured")
    return notes


def _openings(plan: Plan, run: Run) -> list[tuple[int, int, frozenset[str]]]:
    """First step, step after the last, and open stages of each phase."""
    assert run.total_steps
    known = plan.timetable(run)
    ends = [*(step for step, _ in known[1:]), run.total_steps]
    return [(step, until, opened) for (step, opened), until in zip(known, ends)]


def _spans(name: str, phases: Sequence[Phase]) -> _Spans:
    """When a stage is open; phases that follow each other are one span."""
    runs = itertools.groupby(phases, key=lambda phase: name in phase.opened)
    spans = [list(group) for opened, group in runs if opened]
    return tuple((group[0].step, group[-1].until) for group in spans)


def _foreseen(spans: _Spans, sure: int, total: int) -> tuple[_Spans, _Spans]:
    """Of a schedule that decides while it runs: when a stage is open for sure, and when it may be.

    >>> _foreseen(((0, 40),), 11, 40), _foreseen(((30, 40),), 40, 40)
    ((((0, 11),), ((11, 40),)), (((30, 40),), ((0, 30),)))
    """
    known = tuple((first, min(after, sure)) for first, after in spans if first < sure)
    edges = [0, *(step for span in known for step in span), total]
    gaps = zip(edges[::2], edges[1::2])
    return known, tuple((begin, end) for begin, end in gaps if begin < end)


# ------------------------------------------------------------ as tables


def _page(preview: Preview) -> tuple[list[Table], list[str]]:
    """The tables of stages and of phases, and the lines beneath them."""
    return [_stage_table(preview), _phase_table(preview)], _closing(preview)


def _stage_table(preview: Preview) -> Table:
    def when(stage: StagePreview) -> str:
        if stage.spans == ((0, preview.total_steps),):
            return "all the time"
        shown = [
            f"from {first}" if after == preview.total_steps else f"{first} to {after}"
            for first, after in stage.spans
        ]
        if len(shown) > 3:
            shown = [*shown[:2], f"... ({len(shown)} times)"]
        text = ", ".join(shown)
        if stage.decided:
            if stage.decided[0][0]:
                return f"{text}, then as decided"
            return f"{text} at the latest" if text else "as decided"
        return text or "never"

    rows = [
        (
            stage.name, f"{stage.parameters:,}", f"{stage.numel:,}", percent(stage.share),
            when(stage), f"x {stage.multiplier:.3g}",
            ("up to " if stage.decided and not stage.spans else "")
            + size_text(stage.optimizer_bytes),
        )
        for stage in preview.stages
    ]  # fmt: skip
    heads = ("stage", "tensors", "parameters", "share", "open", "lr", "optimizer state")
    return Table(heads, rows, frozenset({"stage", "open"}))


def _phase_table(preview: Preview) -> Table:
    def names(opened: tuple[str, ...]) -> str:
        if len(opened) == len(preview.stages):
            return "everything"
        if len(opened) > 3:
            return f"{opened[0]} ... {opened[-1]} ({len(opened)})"
        return ", ".join(opened) or "nothing"

    paced = _paced(preview.phases)
    rows = [
        (
            f"{phase.step:,}", str(phase.epoch), names(phase.opened), f"{phase.trainable:,}",
            percent(phase.ratio), percent(phase.time_share), percent(phase.memory_share),
            *((f"x {phase.rate:.3g}", phase.shape) if paced else ()),
            *((size_text(preview.cache_bytes.get(phase.step, 0)),) if preview.cache_bytes else ()),
        )
        for phase in preview.phases
    ]  # fmt: skip
    heads = ["from step", "epoch", "open", "trainable", "ratio", "time", "memory"]
    heads += ["lr", "over the phase"] * paced + ["cache, a sample"] * bool(preview.cache_bytes)
    if len(rows) > _MOST_PHASES:  # all are in preview.phases
        left = f"... {len(rows) - _MOST_PHASES:,} more phases"
        rows[_MOST_PHASES - 3 : -3] = [("", "", left, *[""] * (len(heads) - 3))]
    return Table(tuple(heads), rows, frozenset({"open", "over the phase"}))


def _closing(preview: Preview) -> list[str]:
    epochs = f", {preview.steps_per_epoch:,} an epoch" if preview.steps_per_epoch else ""
    if preview.decided_later:
        saving = "how much time is saved shows when it runs"
    else:
        how = "measured" if preview.measured else "estimated from parameters"
        share = percent(max(preview.saving, 0))
        saving = f"about {share} of the time saved against training everything ({how})"
    return [
        f"{preview.total_steps:,} steps{epochs}; {saving}.",
        "time and memory: of a step with everything open; memory without activations.",
        *(f"- {note}" for note in preview.notes),
    ]
