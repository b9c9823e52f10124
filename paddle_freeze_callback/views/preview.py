"""What a schedule will do to a network, before the first step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paddle import nn

from ..cache.options import CacheOptions
from ..freezing import optimizer as optimizers
from ..freezing.rates import check_optimizer
from ..session.ownership import refuse_running
from ..session.plan import Plan
from ..session.plan import plan as plan_of
from ..session.preflight import never_opens, refuse_nothing_to_train
from ..stages.partition import Stages
from ..stages.weights import weights
from ..strategies.base import Strategy
from ..strategies.rates import LearningRates
from ..strategies.run import Run
from .estimate import (
    MOMENTS,
    STATE_BYTES,
    cache_bytes,
    from_top,
    moments_of,
    time_share,
    work_by_parameters,
    work_measured,
)


@dataclass(frozen=True)
class StagePreview:
    """One stage of a planned run.

    Attributes:
        name: its name.
        parameters: how many parameter tensors it has.
        numel: their elements.
        share: elements / all elements of the network.
        spans: when it is open: (first step, step after the last), in order; empty if never.
        multiplier: its learning-rate multiplier, ramps aside.
        optimizer_bytes: what the optimizer keeps for it once it has been open.
    """

    name: str
    parameters: int
    numel: int
    share: float
    spans: tuple[tuple[int, int], ...]
    multiplier: float
    optimizer_bytes: int


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
        memory_share: the same for the memory of weights, gradients and optimizer state;
            activations, which depend on the batch, are left out.
    """

    step: int
    until: int
    epoch: int
    opened: tuple[str, ...]
    trainable: int
    ratio: float
    time_share: float
    memory_share: float


@dataclass(frozen=True)
class Preview:
    """A planned run.

    Attributes:
        stages: all stages, head first.
        phases: what follows what.
        total_steps: optimizer steps in the run.
        steps_per_epoch: optimizer steps in an epoch; ``None`` if the run has no epochs.
        saving: estimated share of the run's time that it saves against training everything.
        measured: whether time was measured on a batch, or follows from parameters alone.
        cache_bytes: bytes a sample that a cache would keep, by the step of the phase; without a
            batch or a cache empty.
        notes: what cannot be known before the run, or deserves a word.
        decided_later: whether the schedule decides while it runs, so that this is only what is
            known before.
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

    def __str__(self) -> str:
        from .table import plain

        return plain(self)

    def __rich__(self) -> Any:
        from .table import rich_view

        return rich_view(self)

    def _repr_html_(self) -> str:
        from .table import html_view

        return html_view(self)

    def show(self) -> None:
        """Print it: with colours in a terminal, as plain text anywhere else."""
        from .table import show

        show(self)


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
) -> Preview:
    """What a schedule will do to a network; the network is left as it was found.

    Time is estimated with one unit for the forward of a part of the network, one for the gradient
    of its activations and one for that of its weights: a frozen part beneath everything that is
    open costs its forward alone.

    Args:
        network: the network.
        stages: as in :class:`FreezeSchedule`.
        strategy: which stages are open when.
        learning_rates: multipliers of the stages.
        run: how long the run is, with its total of steps.
        optimizer: its state per parameter is counted, and it is checked as at the start of a run;
            without one, AdamW's state is counted.
        batch: what the network is called with (a tensor, or a tuple, list or dictionary of
            them): the forward of each stage is measured on it, a few times, without gradients.
        frees_state: whether the state of what freezes again is dropped.
        cache: the cache's options; with a batch, what it keeps is found out by trying.

    Raises:
        ValueError, TypeError: as at the start of a run.
        RuntimeError: if a schedule is at work on the network.
    """
    weights(network)  # is it a network at all?
    refuse_running(network)
    plan = plan_of(network, stages, strategy, learning_rates)
    names = plan.schedulable
    refuse_nothing_to_train(network, names)
    plan.strategy.check(run, names)
    learning_rates.check(run)
    every = {weight.name: weight for weight in weights(network)}
    moments = 2 if optimizer is None else moments_of(optimizer)
    if optimizer is not None:
        optimizers.check(optimizer, plan.will_open(network, run))
        if not learning_rates.neutral:
            check_optimizer(optimizers.innermost(optimizer))
    total = sum(weight.numel for weight in every.values())
    sizes = {s.name: sum(every[n].numel for n in s.parameters) for s in plan.stages}
    opens = {
        stage.name: sum(every[n].numel for n in stage.parameters if n in plan.openable)
        for stage in plan.stages
    }
    notes = _notes(plan, run, optimizer, batch)
    work = None if batch is None else work_measured(network, plan.stages, batch)
    measured = work is not None
    if batch is not None and work is None:
        notes.append(
            "too little of the forward could be measured layer by layer: time is estimated from "
            "parameters"
        )
    work = work or work_by_parameters(network, plan.stages, every)
    order = from_top(network, plan, stages)
    own = {name: opens[name] / max(size, 1) for name, size in sizes.items()}
    assert run.total_steps
    openings = plan.strategy.timetable(run, names)
    ends = [step for step, _ in openings[1:]] + [run.total_steps]
    phases: list[Phase] = []
    had: frozenset[str] = frozenset()
    for (step, opened), until in zip(openings, ends):
        in_order = tuple(stage.name for stage in plan.stages if stage.name in opened)
        had = opened if frees_state else had | opened
        trainable = sum(opens[name] for name in in_order)
        kept = sum(opens[name] for name in had)
        phases.append(
            Phase(
                step, until, run.epoch_of(step), in_order, trainable, trainable / total,
                time_share(order, work, opened, own),
                (total + trainable + moments * kept) / (total * (2 + moments)),
            )
        )  # fmt: skip
    spans = {stage.name: _spans(stage.name, phases) for stage in plan.stages}
    shown = tuple(
        StagePreview(
            stage.name,
            len(stage.parameters),
            sizes[stage.name],
            sizes[stage.name] / total,
            spans[stage.name],
            plan.multipliers.get(stage.name, 1.0),
            moments * STATE_BYTES * (opens[stage.name] if spans[stage.name] else 0),
        )
        for stage in plan.stages
    )  # fmt: skip
    features: dict[int, int] = {}
    if cache is not None and batch is not None:
        for phase in phases:
            each, why = cache_bytes(network, plan, phase.opened, batch, cache)
            if each is None:
                notes.append(f"from step {phase.step} the cache is off: {why}")
            else:
                features[phase.step] = each
    elif cache is not None:
        notes.append("no batch was given: what the cache keeps is not known")
    spent = sum((phase.until - phase.step) * phase.time_share for phase in phases)
    return Preview(
        shown, tuple(phases), run.total_steps, run.steps_per_epoch, 1 - spent / run.total_steps,
        measured, features, tuple(notes),
        plan.strategy.decides or plan.strategy.measures,
    )  # fmt: skip


def _notes(plan: Plan, run: Run, optimizer: Any, batch: Any) -> list[str]:
    strategy, notes = plan.strategy, []
    if strategy.decides or strategy.measures:
        notes.append(
            f"{type(strategy).__name__} decides while it runs; shown is what is known before, "
            "which changes with what it sees"
        )
    late = strategy.never_open(run, plan.schedulable)
    if late:
        notes.append(never_opens(late, run))
    if optimizer is None:
        notes.append("no optimizer was given: state is counted as AdamW keeps it")
    elif moments_of(optimizer) == 2 and not any(
        kind.__name__ in MOMENTS for kind in type(optimizers.innermost(optimizer)).__mro__
    ):
        notes.append(
            f"the state of {type(optimizers.innermost(optimizer)).__name__} is not known; "
            "counted as AdamW's"
        )
    if batch is None:
        notes.append("no batch was given: time is estimated from parameters, not measured")
    return notes


def _spans(name: str, phases: Sequence[Phase]) -> tuple[tuple[int, int], ...]:
    """When a stage is open; phases that follow each other are one span."""
    found: list[tuple[int, int]] = []
    for phase in phases:
        if name not in phase.opened:
            continue
        if found and found[-1][1] == phase.step:
            found[-1] = (found[-1][0], phase.until)
        else:
            found.append((phase.step, phase.until))
    return tuple(found)
