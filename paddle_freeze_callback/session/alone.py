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
    as a whole, beside one whose weights have the same names and shapes. Parts that a number
    tells apart, such as blocks, are no twins. An ordinary branch that the user froze looks the
    same: the start of a run names what is found here.

    >>> import paddle
    >>> block = lambda: paddle.nn.Sequential(paddle.nn.Linear(2, 2), paddle.nn.Linear(2, 2))
    >>> net = paddle.nn.LayerDict({"online": block(), "target": block()})
    >>> every = Survey(net).weights
    >>> twins(every, [one.name for one in every if one.name.startswith("online")])
    {'target': 'online'}
    """
    parts: dict[str, list[Weight]] = {}
    for weight in every:
        path = weight.name.split(".")
        for end in range(1, len(path) - 1):
            if any(re.search(r"\d", name) for name in path[:end]):
                break
            parts.setdefault(".".join(path[:end]), []).append(weight)
    kinds: dict[tuple[object, ...], list[str]] = {}
    for place, members in parts.items():
        inside = [(one.name[len(place) + 1 :], tuple(one.tensor.shape)) for one in members]
        if len({name.rpartition(".")[0] for name, _ in inside}) > 1:
            kinds.setdefault((place.rpartition(".")[0], *inside), []).append(place)
    found: dict[str, str] = {}
    for places in kinds.values():
        trains = [place for place in places if any(one.name in openable for one in parts[place])]
        found.update((place, trains[0]) for place in places if trains and place not in trains)
    return {one: found[one] for one in found if not within(one, found)}


def within(name: str, places: Collection[str]) -> bool:
    """Whether a name lies inside one of some places.

    >>> within("a.b", ["a"]), within("ab", ["a"]), within("a", ["a"])
    (True, False, False)
    """
    return name.startswith(tuple(f"{place}." for place in places))
