"""What a planned run costs: time, memory, bytes in the cache."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import paddle
from paddle import nn

from ..cache.feature_cache import bytes_a_sample
from ..cache.keys import CannotCacheError
from ..cache.options import CacheOptions
from ..cache.state import ForwardState, WeightState
from ..freezing import optimizer as optimizers
from ..freezing.freezer import Freezer
from ..session.plan import Plan
from ..stages.partition import REST, Stage, Stages, Survey
from ..stages.weights import Weight, layers
from ..strategies.explicit import Explicit

STATE_BYTES = 4  # moments are float32


# Elements of state that Paddle's optimizers keep for an element of a parameter.
# NAdam and RAdam keep three products that are one number as full tensors.
MOMENTS = {
    "SGD": 0, "Momentum": 1, "Adagrad": 1, "RMSProp": 3, "Adadelta": 2, "Adamax": 2, "Adam": 2,
    "AdamW": 2, "Lamb": 2, "NAdam": 5, "RAdam": 5,
}  # fmt: skip


def moments_of(optimizer: Any) -> int:
    inner = optimizers.innermost(optimizer)
    kinds = [kind.__name__ for kind in type(inner).__mro__]
    return next((MOMENTS[kind] for kind in kinds if kind in MOMENTS), 2)


def from_top(survey: Survey, plan: Plan, stages: Stages) -> list[str]:
    """The names of the stages, the top one first; those of unfreeze_at come in order of opening."""
    names = [stage.name for stage in plan.stages]
    if not (isinstance(plan.strategy, Explicit) and stages == "auto"):
        return names
    depth = survey.depths
    lowest = {s.name: max((depth.get(n, 0) for n in s.parameters), default=0) for s in plan.stages}
    return sorted(names, key=lambda name: lowest[name])


def time_share(
    stages: Sequence[str],
    work: Mapping[str, float],
    opened: Collection[str],
    own_share: Mapping[str, float],
) -> float:
    """Estimated time of a step / that of a step with everything open.

    ``own_share`` is the share of each stage's weights that may open at all.

    >>> shares = {"head": 0.0, "top": 0.5, "bottom": 0.5}
    >>> time_share(list(shares), shares, {"head", "top"}, dict.fromkeys(shares, 1.0))
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


def work_by_parameters(
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


def work_measured(
    survey: Survey, stages: Sequence[Stage], batch: Any, rounds: int = 3
) -> dict[str, float] | None:
    """The forward's share of each stage, measured; layers without weights count to the last one.

    ``None`` if hardly any of the forward's time is spent inside single layers, as when it is
    traced as a whole.
    """
    stage_of = {name: stage.name for stage in stages for name in stage.parameters}
    network = survey.network
    owner = {id(w.tensor): stage_of[w.name] for w in survey.weights if w.name in stage_of}
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


def cache_bytes(
    survey: Survey, plan: Plan, opened: Collection[str], batch: Any, options: CacheOptions
) -> tuple[int | None, str]:
    """Bytes a sample that a cache keeps while these stages are open, or why there is none."""
    network = survey.network
    freezer = Freezer(survey, plan.stages, plan.openable, frozen_norm="eval", frozen_dropout="eval")
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
