"""What a planned run costs: time, memory, bytes in the cache."""

from __future__ import annotations

import contextlib
import functools
import statistics
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import paddle
from paddle import nn

from ..cache.feature_cache import bytes_a_sample
from ..cache.nested import tensors
from ..cache.options import CacheOptions
from ..cache.state import ForwardState, WeightState, surely
from ..freezing import optimizer as optimizers
from ..freezing.freezer import Freezer
from ..session.first_step import FirstStep
from ..session.plan import Plan
from ..stages.declared import REST
from ..stages.partition import Stage, Stages, Survey
from ..stages.weights import Weight, layers
from ..strategies.explicit import Explicit

STATE_BYTES = 4  # moments are float32

# Elements of state that Paddle's optimizers keep for an element of a parameter.
# NAdam and RAdam keep three products that are one number as full tensors.
_MOMENTS = {
    "SGD": 0, "Momentum": 1, "Adagrad": 1, "RMSProp": 3, "Adadelta": 2, "Adamax": 2, "Adam": 2,
    "AdamW": 2, "Lamb": 2, "NAdam": 5, "RAdam": 5,
}  # fmt: skip


def moments_of(optimizer: Any) -> int | None:
    """Elements of state that an optimizer keeps for an element of a parameter.

    ``None`` for an optimizer that is not Paddle's own.
    """
    kinds = [kind.__name__ for kind in type(optimizer).__mro__]
    return next((_MOMENTS[kind] for kind in kinds if kind in _MOMENTS), None)


def state_of(optimizer: Any, weights: Collection[Weight]) -> dict[str, int]:
    """Elements of state for each weight, by its name; as AdamW's where that is not known.

    >>> net = nn.Linear(2, 3)
    >>> every = Survey(net).weights
    >>> state_of(paddle.optimizer.Momentum(parameters=net.parameters()), every)
    {'weight': 6, 'bias': 3}
    """
    several = [] if optimizer is None else optimizers.each(optimizer)
    moments = {
        tensor: kept
        for one in reversed(several)
        if (kept := moments_of(one)) is not None
        for tensor in optimizers.parameter_ids(one)
    }
    usual = _MOMENTS["AdamW"]
    return {one.name: one.numel * moments.get(id(one.tensor), usual) for one in weights}


def from_top(survey: Survey, plan: Plan, stages: Stages) -> list[str]:
    """The names of the stages, the one nearest the output first.

    The stages of a plan are in that order, except those of ``unfreeze_at``, which are in the order
    in which they open.
    """
    names = [stage.name for stage in plan.stages]
    if not (isinstance(plan.strategy, Explicit) and stages == "auto"):
        return names
    above = survey.depths
    lowest = {s.name: max((above.get(n, 0) for n in s.parameters), default=0) for s in plan.stages}
    return sorted(names, key=lambda name: lowest[name])


def time_share(
    stages: Sequence[str],
    work: Mapping[str, float],
    opened: Collection[str],
    own_share: Mapping[str, float],
) -> float:
    """Estimated time of a step / that of a step with everything open.

    The forward of a stage, the gradient of its activations and the gradient of its weights count
    as the same work. A frozen stage beneath all open ones costs its forward alone. Stages come
    from the output on; ``own_share`` is the share of each one's weights that may open at all.

    >>> shares = {"head": 0.0, "top": 0.5, "bottom": 0.5}
    >>> time_share(list(shares), shares, {"head", "top"}, dict.fromkeys(shares, 1.0))
    0.6666666666666666
    """
    in_order = [name for name in stages if name != REST]
    deepest = max((i for i, name in enumerate(in_order) if name in opened), default=-1)
    if REST in opened:  # where it lies is not known; at worst everything is above it
        deepest = len(in_order)
    above = set(in_order[: deepest + 1]) | ({REST} & set(opened))
    forward = sum(work.values())
    back = sum(work[name] for name in stages if name in above)
    own = sum(work[name] * own_share[name] for name in stages if name in opened)
    return (forward + back + own) / (3 * forward) if forward else 1.0


def work_by_parameters(
    network: nn.Layer, stages: Sequence[Stage], every: Mapping[str, Weight]
) -> dict[str, float]:
    """Each stage's share of the forward, by parameters; looking up an embedding is no work."""
    lookups = {id(la.weight) for _, la in layers(network) if isinstance(la, nn.Embedding)}
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


def work_measured(
    network: nn.Layer, stages: Sequence[Stage], every: Mapping[str, Weight], batch: Any
) -> dict[str, float] | None:
    """Each stage's share of the forward, measured; a layer without weights counts to the last one.

    ``None`` if hardly any of the forward's time is spent inside single layers, as in a network
    that is traced as a whole.

    Raises:
        ValueError: if the network cannot be called with the batch.
    """
    owner = {id(every[n].tensor): stage.name for stage in stages for n in stage.parameters}
    spent: list[dict[str, float]] = []
    wholes: list[float] = []
    stage, began = stages[-1].name, 0.0

    def before(layer: nn.Layer, inputs: Any) -> None:
        nonlocal stage, began
        stage = next((owner[id(t)] for t in layer.parameters() if id(t) in owner), stage)
        began = time.perf_counter()

    def after(layer: nn.Layer, inputs: Any, output: Any) -> None:
        spent[-1][stage] = spent[-1].get(stage, 0.0) + time.perf_counter() - began

    state = ForwardState(network)
    leaves = [la for la in network.sublayers(include_self=True) if not la.sublayers()]
    handles = [layer.register_forward_pre_hook(before) for layer in leaves]
    handles += [layer.register_forward_post_hook(after) for layer in leaves]
    try:
        with paddle.no_grad():
            network.eval()
            for _ in range(4):
                spent.append({})
                start = time.perf_counter()
                try:
                    _call(network, batch)
                except Exception as error:
                    raise ValueError(
                        f"batch: {type(network).__name__} cannot be called with it: "
                        f"{type(error).__name__}: {str(error).strip()[:200]}"
                    ) from error
                wholes.append(time.perf_counter() - start)
    finally:
        for handle in handles:
            handle.remove()
        surely(state.restore)
    medians = {  # the first round warms up
        stage.name: statistics.median(found.get(stage.name, 0.0) for found in spent[1:])
        for stage in stages
    }
    total = sum(medians.values())
    if total < 0.03 * statistics.median(wholes[1:]):
        return None
    return {name: value / total for name, value in medians.items()}


def _call(network: nn.Layer, batch: Any) -> Any:
    """The network's output for a batch that is a tensor, a sequence or a dictionary."""
    if isinstance(batch, dict):
        return network(**batch)
    return network(*batch) if isinstance(batch, (tuple, list)) else network(batch)


def cache_bytes(
    survey: Survey, plan: Plan, opened: Collection[str], batch: Any, options: CacheOptions
) -> int:
    """Bytes a sample that a cache keeps while these stages are open.

    Raises:
        CannotCacheError: if it keeps nothing; the message gives the reason.
    """
    with _in_training(survey, plan, opened, frozen_dropout="eval") as freezer:
        forward = functools.partial(_call, survey.network, batch)
        return bytes_a_sample(survey.network, freezer.opened(), options, forward)


def first_step(survey: Survey, plan: Plan, opened: Collection[str], batch: Any) -> list[str]:
    """What the first step of a run would report: see :class:`.session.first_step.FirstStep`.

    One forward and backward, with everything open that the schedule ever opens.
    """
    with _in_training(survey, plan, opened, frozen_dropout="train") as freezer:
        members = {name: freezer.members(name) for name in plan.schedulable}
        watching = FirstStep(survey.network, members, 0, ordered=plan.in_order)
        try:
            outputs = tensors(_call(survey.network, batch))
            means = [o.astype("float32").mean() for o in outputs if not o.stop_gradient]
            if means:
                paddle.add_n(means).backward()
            return watching.finish().lines()
        finally:
            watching.cancel()


@contextlib.contextmanager
def _in_training(
    survey: Survey, plan: Plan, opened: Collection[str], frozen_dropout: str
) -> Iterator[Freezer]:
    """The network as it trains while these stages are open; afterwards as it was found."""
    network = survey.network
    # Freezing drops waiting gradients.
    before = (WeightState(survey.weights), ForwardState(network))
    freezer = Freezer(
        survey, plan.stages, plan.openable, alone=plan.alone, frozen_dropout=frozen_dropout
    )
    try:
        with paddle.enable_grad():
            network.train()
            freezer.apply(opened)
            freezer.cut_bridge()  # that is for recomputation in the backward of a run
            yield freezer
    finally:
        freezer.restore()
        for state in before:
            surely(state.restore)
