"""Which normalization layers train apart from their stage, for the whole run or never."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field

from paddle import nn

from ..options.norms import KINDS, OTHER, TrainNorm
from ..stages.partition import Stage, Survey
from ..stages.parts import unused
from ..stages.selectors import Selector, describe, items
from ..stages.weights import distinct_layers, own_parameters, running_statistics
from ..words import listing

#: How the names of stages of normalization layers begin.
NAME = "norms ("

_KIND = re.compile("|".join(KINDS))


@dataclass(frozen=True)
class Norms:
    """Normalization layers apart from their stages.

    Attributes:
        always: names of the stages of those that train from start to end.
        never: names of the stages of those that never train.
        pinned: whether the statistics of a layer without weights stand still, by its identity.
        idle: the kinds that were to train always, of which every layer was found frozen.
    """

    always: tuple[str, ...] = ()
    never: tuple[str, ...] = ()
    pinned: Mapping[int, bool] = field(default_factory=dict)
    idle: tuple[str, ...] = ()


def kind_of(layer: nn.Layer) -> str | None:
    """The kind of a normalization layer, as its class or one above it is named; else ``None``.

    >>> [kind_of(one) for one in (nn.SyncBatchNorm(2), nn.LayerNorm(2), nn.Linear(2, 2))]
    ['BatchNorm', 'LayerNorm', None]
    """
    if layer.sublayers():
        return None
    names = [one.__name__ for one in type(layer).__mro__]
    known = next((found[0] for name in names if (found := _KIND.search(name))), None)
    if known or any(name.endswith("Norm") and "Spectral" not in name for name in names):
        return known or OTHER
    return None


def norms_apart(
    survey: Survey,
    stages: Sequence[Stage],
    train_norm: TrainNorm,
    openable: Set[str],
    multipliers: Mapping[str, float],
    selectors: Sequence[Selector] = (),
) -> tuple[tuple[Stage, ...], dict[str, float], Norms]:
    """The stages without the normalization layers that do not go with them, and those as stages.

    Layers keep the learning rate of the stage that they come from, so there may be several stages
    of them. What was found frozen, or is left alone, goes with its stage as before. A stage that
    nobody named and that has nothing else is gone.

    Args:
        survey: of the network.
        stages: all stages.
        train_norm: the option.
        openable: names of the parameters that may be opened.
        multipliers: of the learning rate of each stage.
        selectors: those by which the user names stages.

    Returns:
        The stages, their multipliers, and which of them are norms.

    Raises:
        ValueError: if there is no such layer, or a selector, or the head, means nothing else.
    """
    if train_norm == "with_stage":
        return tuple(stages), dict(multipliers), Norms()
    asked = {OTHER: train_norm} if isinstance(train_norm, str) else train_norm
    when: dict[str, str] = {}
    pinned: dict[int, bool] = {}
    kinds: dict[str, bool] = {}  # whether any of it goes apart
    of = {id(weight.tensor): weight.name for weight in survey.weights}
    rows = {weight.name: weight.rows for weight in survey.weights}
    for layer, kind in _norms(survey.network):
        choice = asked.get(kind, asked.get(OTHER, "with_stage"))
        own = [of[id(tensor)] for tensor in own_parameters(layer).values() if id(tensor) in of]
        if own or running_statistics(layer):
            kinds.setdefault(kind, False)
        if choice != "with_stage":
            mine = [name for name in own if name in openable and not rows[name]]
            when |= dict.fromkeys(mine, choice)
            kinds[kind] = kinds.get(kind, False) or bool(mine) or not own
            if not own and running_statistics(layer):
                pinned[id(layer)] = choice == "never"
    lacking = [kind for kind in asked if kind not in kinds and (kind != OTHER or not kinds)]
    if lacking:
        raise ValueError(
            f"train_norm={train_norm!r}: {type(survey.network).__name__} has no "
            + ("normalization layer" if lacking[0] == OTHER else lacking[0])
            + (f"; it has {', '.join(kinds)}" if kinds else "; drop it")
        )
    for one in (one for entry in selectors for one in items(entry)):
        chosen = [weight.name for weight in survey.select(one)]
        if when.keys() >= set(chosen):
            raise ValueError(_nothing_else(train_norm, describe(one, survey.network), chosen))
    if when.keys() >= set(stages[0].parameters):
        raise ValueError(_nothing_else(train_norm, stages[0].name, stages[0].parameters))
    rest: list[Stage] = []
    groups: dict[tuple[str, float], list[str]] = {}
    for stage in stages:
        for name in stage.parameters:
            if name in when:
                rate = multipliers.get(stage.name, 1.0) if when[name] == "always" else 1.0
                groups.setdefault((when[name], rate), []).append(name)
        left = [survey.by_name[name] for name in stage.parameters if name not in when]
        if left:
            rest.append(Stage.of(stage.name, left))
    rates = {stage.name: multipliers.get(stage.name, 1.0) for stage in rest}
    apart: dict[str, tuple[str, Stage]] = {}
    for (choice, rate), names in sorted(groups.items(), key=lambda one: (one[0][0], -one[0][1])):
        name = unused(f"{NAME}{choice})", {**apart, **{stage.name: 0 for stage in rest}})
        apart[name] = choice, Stage.of(name, [w for w in survey.weights if w.name in names])
        rates[name] = rate
    named = {c: tuple(n for n, one in apart.items() if one[0] == c) for c in ("always", "never")}
    every = (*rest, *(stage for _, stage in apart.values()))
    idle = [kind for kind, any_apart in kinds.items() if not any_apart]
    idle = [kind for kind in idle if asked.get(kind, asked.get(OTHER)) == "always"]
    return every, rates, Norms(named["always"], named["never"], pinned, tuple(idle))


def _nothing_else(train_norm: TrainNorm, name: str, parameters: Sequence[str]) -> str:
    return (
        f"train_norm={train_norm!r} and the stage {name!r} contradict each other: it has nothing "
        f"but {listing(parameters, noun='parameters')}; drop one of them"
    )


def _norms(network: nn.Layer) -> Iterator[tuple[nn.Layer, str]]:
    for layer in distinct_layers(network):
        kind = kind_of(layer)
        if kind is not None:
            yield layer, kind
