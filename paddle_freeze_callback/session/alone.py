"""Which weights are not the schedule's: somebody else moves them, or froze them for good."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from ..checks import named
from ..stages.declared import REST
from ..stages.partition import Stage, Survey
from ..stages.selectors import Selector
from ..stages.weights import Weight


def apart(survey: Survey, untouched: Selector, named_stages: Sequence[Stage]) -> frozenset[str]:
    """Names of the weights that the user wants untouched.

    Args:
        survey: of the network.
        untouched: selects them.
        named_stages: the stages that the user named.

    Raises:
        ValueError: if it selects nothing, or all that the schedule has, or a stage.
    """
    chosen = named("untouched", survey.select, untouched)
    names = frozenset(weight.name for weight in chosen)
    if len(chosen) == len(survey.weights):
        raise ValueError("untouched= takes the whole network, so a schedule has nothing to do")
    for stage in named_stages:
        if stage.name != REST and names.issuperset(stage.parameters):
            raise ValueError(
                f"untouched= and the stage {stage.name!r} contradict each other: nothing of the "
                "stage is left; drop one of them"
            )
    return names


def twins(every: Sequence[Weight], openable: Collection[str]) -> dict[str, str]:
    """The frozen twins of parts that train, each with the part that it is a twin of.

    That is an EMA teacher, a target network, a reference model: a part of several layers, frozen
    as a whole, beside one that has weights of the same names and shapes, and maybe more (an
    online network with its predictor). Parts that a number tells apart, such as blocks, are no
    twins. An ordinary branch that the user froze looks the same: the start of a run names what is
    found here.

    >>> import paddle
    >>> block = lambda: paddle.nn.Sequential(paddle.nn.Linear(2, 2), paddle.nn.Linear(2, 2))
    >>> net = paddle.nn.LayerDict({"online": block(), "target": block()})
    >>> every = Survey(net).weights
    >>> twins(every, [one.name for one in every if one.name.startswith("online")])
    {'target': 'online'}
    """
    parts: dict[str, dict[str, Weight]] = {}
    for weight in every:
        path = weight.name.split(".")
        for end in range(1, len(path) - 1):
            if not re.search(r"\d", path[end - 1]):
                inside = parts.setdefault(".".join(path[:end]), {})
                inside[".".join(path[end:])] = weight
    trains: dict[str, list[str]] = {}  # by what is around them
    for place, inside in parts.items():
        if any(one.name in openable for one in inside.values()):
            trains.setdefault(place.rpartition(".")[0], []).append(place)
    found: dict[str, str] = {}
    for place, inside in parts.items():
        beside = trains.get(place.rpartition(".")[0], [])
        if place in beside or len({name.rpartition(".")[0] for name in inside}) < 2:
            continue
        for other in beside:
            if all(_like(one, parts[other].get(name)) for name, one in inside.items()):
                found.setdefault(place, other)
    return {one: found[one] for one in found if not within(one, found)}


def _like(one: Weight, other: Weight | None) -> bool:
    return other is not None and list(one.tensor.shape) == list(other.tensor.shape)


def within(name: str, places: Collection[str]) -> bool:
    """Whether a name lies inside one of some places.

    >>> within("a.b", ["a"]), within("ab", ["a"]), within("a", ["a"])
    (True, False, False)
    """
    return name.startswith(tuple(f"{place}." for place in places))
