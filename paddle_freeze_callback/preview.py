"""What a schedule will do to a network, before the first step."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import paddle
from paddle import nn

from . import optimizer as optimizers
from .feature_cache import CacheOptions, bytes_a_sample
from .forward_state import ForwardState, WeightState
from .freezer import Freezer
from .moments import Run
from .rates import LearningRates, check_optimizer
from .sample_keys import CannotCacheError
from .session import Plan, never_opens, refuse_nothing_to_train, refuse_running
from .session import plan as plan_of
from .stages import REST, Stage, Stages, depth_of_weights
from .strategies import Explicit, Strategy
from .weights import Weight, layers, weights


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
        from .preview_table import plain

        return plain(self)

    def __rich__(self) -> Any:
        from .preview_table import rich_view

        return rich_view(self)

    def _repr_html_(self) -> str:
        from .preview_table import html_view

        return html_view(self)

    def show(self) -> None:
        """Print it: with colours in a terminal, as plain text anywhere else."""
        from .preview_table import show

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
    moments = 2 if optimizer is None else _moments_of(optimizer)
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
    work = None if batch is None else _work_measured(network, plan.stages, batch)
    measured = work is not None
    if batch is not None and work is None:
        notes.append(
            "too little of the forward could be measured layer by layer: time is estimated from "
            "parameters"
        )
    work = work or _work_by_parameters(network, plan.stages, every)
    order = _from_top(network, plan, stages)
    own = {name: opens[name] / max(size, 1) for name, size in sizes.items()}
    assert run.total_steps
    timetable = plan.strategy.timetable(run, names)
    openings = [(step, opened) for step, opened in timetable if step < run.total_steps]
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
                _time_share(order, work, opened, own),
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
            moments * _STATE_BYTES * (opens[stage.name] if spans[stage.name] else 0),
        )
        for stage in plan.stages
    )  # fmt: skip
    features: dict[int, int] = {}
    if cache is not None and batch is not None:
        for phase in phases:
            each, why = _cache_bytes(network, plan, phase.opened, batch, cache)
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


_STATE_BYTES = 4  # moments are float32

# Elements of state that Paddle's optimizers keep for an element of a parameter.
# NAdam and RAdam keep three products that are one number as full tensors.
_MOMENTS = {
    "SGD": 0, "Momentum": 1, "Adagrad": 1, "RMSProp": 3, "Adadelta": 2, "Adamax": 2, "Adam": 2,
    "AdamW": 2, "Lamb": 2, "NAdam": 5, "RAdam": 5,
}  # fmt: skip


def _moments_of(optimizer: Any) -> int:
    inner = optimizers.innermost(optimizer)
    kinds = [kind.__name__ for kind in type(inner).__mro__]
    return next((_MOMENTS[kind] for kind in kinds if kind in _MOMENTS), 2)


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
    elif _moments_of(optimizer) == 2 and not any(
        kind.__name__ in _MOMENTS for kind in type(optimizers.innermost(optimizer)).__mro__
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


def _from_top(network: nn.Layer, plan: Plan, stages: Stages) -> list[str]:
    """The names of the stages, the top one first; those of unfreeze_at come in order of opening."""
    names = [stage.name for stage in plan.stages]
    if not (isinstance(plan.strategy, Explicit) and stages == "auto"):
        return names
    depth = depth_of_weights(network)
    lowest = {s.name: max((depth.get(n, 0) for n in s.parameters), default=0) for s in plan.stages}
    return sorted(names, key=lambda name: lowest[name])


def _time_share(
    stages: Sequence[str],
    work: Mapping[str, float],
    opened: Collection[str],
    own_share: Mapping[str, float],
) -> float:
    """Estimated time of a step / that of a step with everything open.

    ``own_share`` is the share of each stage's weights that may open at all.

    >>> shares = {"head": 0.0, "top": 0.5, "bottom": 0.5}
    >>> _time_share(list(shares), shares, {"head", "top"}, dict.fromkeys(shares, 1.0))
    0.6666666666666666
    """
    in_order = [name for name in stages if name != REST]
    deepest = max((i for i, name in enumerate(in_order) if name in opened), default=-1)
    if REST in opened:  # where it lies is not known; everything is above it at worst
        deepest = len(in_order)
    above = set(in_order[: deepest + 1]) | ({REST} & set(opened))
    forward = sum(work.values())
    back = sum(work[name] for name in stages if name in above)
    own = sum(work[name] * own_share[name] for name in stages if name in opened)
    return (forward + back + own) / (3 * forward) if forward else 1.0


def _work_by_parameters(
    network: nn.Layer, stages: Sequence[Stage], every: Mapping[str, Weight]
) -> dict[str, float]:
    """The forward's share of each stage, by parameters; looking up an embedding is no work."""
    lookups = {
        id(layer.weight)
        for _, layer in layers(network)
        if isinstance(layer, nn.Embedding)
    }  # fmt: skip
    sizes = {
        stage.name: sum(
            every[n].numel
            for n in stage.parameters
            if id(every[n].tensor) not in lookups or len(every[n].names) > 1
        )
        for stage in stages
    }
    total = sum(sizes.values())
    return {name: size / total if total else 0.0 for name, size in sizes.items()}


def call(network: nn.Layer, batch: Any) -> Any:
    """The network's output for a batch that is a tensor, a sequence or a dictionary."""
    if isinstance(batch, dict):
        return network(**batch)
    return network(*batch) if isinstance(batch, (tuple, list)) else network(batch)


@contextmanager
def _modes_kept(network: nn.Layer) -> Iterator[None]:
    """Training or evaluation, as each layer was, afterwards."""
    modes = [(layer, layer.training) for _, layer in layers(network)]
    try:
        yield
    finally:
        for layer, mode in modes:
            layer.training = mode


def _work_measured(
    network: nn.Layer, stages: Sequence[Stage], batch: Any, rounds: int = 3
) -> dict[str, float] | None:
    """The forward's share of each stage, measured; layers without weights count to the last one.

    ``None`` if hardly any of the forward's time is spent inside single layers, as when it is
    traced as a whole.
    """
    stage_of = {name: stage.name for stage in stages for name in stage.parameters}
    owner = {id(w.tensor): stage_of[w.name] for w in weights(network) if w.name in stage_of}
    spent: list[dict[str, float]] = []
    wholes: list[float] = []
    current: dict[str, Any] = {}

    def before(layer: nn.Layer, inputs: Any) -> None:
        own = [owner[id(t)] for t in layer.parameters() if id(t) in owner]
        current["stage"] = own[0] if own else current.get("stage", stages[-1].name)
        current["began"] = time.perf_counter()

    def after(layer: nn.Layer, inputs: Any, output: Any) -> None:
        found = spent[-1]
        stage = current["stage"]
        found[stage] = found.get(stage, 0.0) + time.perf_counter() - current["began"]

    state = ForwardState(network)
    leaves = [layer for _, layer in layers(network) if not layer.sublayers()]
    handles = []
    try:
        for layer in leaves:
            handles += [
                layer.register_forward_pre_hook(before),
                layer.register_forward_post_hook(after),
            ]
        with _modes_kept(network), paddle.no_grad():
            network.eval()
            for _ in range(rounds + 1):  # the first one warms up
                spent.append({})
                began = time.perf_counter()
                try:
                    call(network, batch)
                except Exception as error:
                    raise ValueError(
                        f"batch: {type(network).__name__} cannot be called with it: "
                        f"{type(error).__name__}: {str(error).strip()[:200]}"
                    ) from error
                wholes.append(time.perf_counter() - began)
    finally:
        for handle in handles:
            handle.remove()
        state.restore()
    medians = {
        stage.name: statistics.median(found.get(stage.name, 0.0) for found in spent[1:])
        for stage in stages
    }
    total = sum(medians.values())
    if total < 0.15 * statistics.median(wholes[1:]):
        return None
    return {name: value / total for name, value in medians.items()}


def _cache_bytes(
    network: nn.Layer, plan: Plan, opened: Collection[str], batch: Any, options: CacheOptions
) -> tuple[int | None, str]:
    """Bytes a sample that a cache keeps while these stages are open, or why there is none."""
    freezer = Freezer(
        network, plan.stages, plan.openable, frozen_norm="eval", frozen_dropout="eval"
    )
    gradients = WeightState(network)  # freezing drops those that are left over
    with _modes_kept(network), paddle.enable_grad():
        try:
            network.train()
            freezer.apply(opened)
            freezer.cut_bridge()  # that is for a backward pass, which does not come
            forward = functools.partial(call, network, batch)
            return bytes_a_sample(network, freezer.opened(), options, forward), ""
        except CannotCacheError as why:
            return None, str(why)
        finally:
            freezer.restore()
            gradients.restore()
