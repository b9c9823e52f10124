"""Which parameters belong together, and in which order.

A *stage* is a named group of weights that is frozen and unfrozen as one. Stages are ordered
head first: the first is the head (the new task part), the last is the input side (embeddings,
stem). :func:`partition` makes them from what the user says: ``"auto"``, a number, or a list of
selectors. Every weight ends up in exactly one stage.

How ``"auto"`` reads a network is in :mod:`paddle_freeze_callback.stages.automatic`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Union

from paddle import nn

from ..words import EVERYTHING
from .automatic import automatic_stages, read
from .declared import REST
from .parts import unused
from .rows import with_rows
from .selectors import Selector, describe, items, select
from .weights import Weight, weights

Stages = Union[str, int, Sequence[Selector]]


@dataclass(frozen=True)
class Stage:
    """A named group of weights that is frozen and unfrozen as one.

    Attributes:
        name: what logs, plots and history call it.
        parameters: names of its weights, as ``network.named_parameters()`` lists them.
        numel: number of elements of all of them, of their rows where only those train.
    """

    name: str
    parameters: tuple[str, ...]
    numel: int

    @classmethod
    def of(cls, name: str, members: Iterable[Weight]) -> Stage:
        members = tuple(members)
        return cls(name, tuple(w.name for w in members), sum(w.opens for w in members))


class Survey:
    """A network that was read once: its weights, and its automatic stages when they are needed.

    Args:
        network: the network.
        rows: of which tensors some rows train alone, by selector.

    Attributes:
        network: the same.
        weights: its weights, in the order in which it defines them.

    Raises:
        TypeError: if it is no ``paddle.nn.Layer``.
        ValueError: if it has no weights, or in a static graph, or if ``rows`` does not fit.
    """

    def __init__(self, network: nn.Layer, rows: Mapping[str, slice] | None = None) -> None:
        self.network = network
        self.weights = with_rows(weights(network), rows or {})
        if not self.weights:
            raise ValueError(
                f"{type(network).__name__} has no parameters, so there is nothing to freeze"
            )

    @functools.cached_property
    def by_name(self) -> dict[str, Weight]:
        """The weights by their first names."""
        return {weight.name: weight for weight in self.weights}

    @functools.cached_property
    def automatic(self) -> dict[str, list[Weight]]:
        """The weights of the automatic stages by name; empty if the network has no clear head."""
        return automatic_stages(self.network, self.weights)

    @functools.cached_property
    def depths(self) -> dict[str, int]:
        """How many automatic stages lie above each weight, by name; empty without such stages."""
        groups = self.automatic.values()
        return {weight.name: depth for depth, group in enumerate(groups) for weight in group}

    def select(self, selector: Selector) -> tuple[Weight, ...]:
        """The weights that a selector means; it may name automatic stages.

        Raises:
            ValueError, TypeError: as :func:`.selectors.select`.
        """
        return select(self.weights, selector, self.automatic)


def partition(network: nn.Layer | Survey, stages: Stages = "auto") -> tuple[Stage, ...]:
    """Group all weights of a network into stages, head first.

    Args:
        network: the network, or a survey of it.
        stages: ``"auto"``: the head, each block of the backbone, the input side. A number: the
            head, and the backbone in so many stages of near-equal size. A list of selectors:
            one stage each, in this order, ``"*"`` being whatever the others leave; what no
            selector names is a last stage ``"rest"``, which no schedule opens.

    Returns:
        The stages; every weight is in exactly one.

    Raises:
        ValueError: if a selector matches nothing, if two claim the same weight, if ``"auto"``
            cannot separate the head from the backbone, or if the number is out of range.
        TypeError: if ``stages`` is none of these.

    >>> import paddle
    >>> net = paddle.nn.Sequential(paddle.nn.Linear(4, 4), paddle.nn.Linear(4, 2))
    >>> for stage in partition(net): print(stage.name, stage.parameters, stage.numel)
    head ('1.weight', '1.bias') 10
    0 ('0.weight', '0.bias') 20
    """
    survey = network if isinstance(network, Survey) else Survey(network)
    if isinstance(stages, bool) or not isinstance(stages, (int, str, list, tuple)):
        raise TypeError(
            f'stages={stages!r}: give "auto", a number of backbone stages, or a list of selectors'
        )
    if stages == "auto" or isinstance(stages, int):
        # Where there are no automatic stages, read() raises and explains why.
        parts = survey.automatic or read(survey.network, survey.weights)
        parts = _merged(parts, stages) if isinstance(stages, int) else parts
    else:
        parts = _chosen(survey, [stages] if isinstance(stages, str) else stages)
    return _stages(survey.weights, parts)


def partition_by(
    survey: Survey,
    selectors: Sequence[Selector],
    finer: Sequence[tuple[str, Sequence[Weight]]] = (),
) -> tuple[Stage, ...]:
    """The coarsest stages of which every selector is a union, in order of first mention.

    Selectors may overlap; the items of a list count one by one. What none of them means is a
    last stage ``"rest"``.

    Args:
        survey: of the network.
        selectors: each of them becomes a union of stages.
        finer: names with weights, which become unions of stages, too; but these alone do not
            keep a weight out of ``"rest"``.
    """
    asked = [
        (describe(one, survey.network), survey.select(one))
        for entry in selectors
        for one in items(entry)
    ]
    groups = [*asked, *finer]
    members = [{id(weight.tensor) for weight in group} for _, group in groups]
    cells: dict[tuple[int, ...], list[Weight]] = {}
    for weight in survey.weights:
        key = tuple(index for index, ids in enumerate(members) if id(weight.tensor) in ids)
        if not key or key[0] >= len(asked):
            key = ()
        cells.setdefault(key, []).append(weight)
    parts: dict[str, list[Weight]] = {}
    # In the order in which the user opens them; the unnamed rest comes last.
    for key in sorted(cells, key=lambda key: key or (len(groups),)):
        narrowest = min(key, key=lambda index: len(members[index]), default=None)
        name = REST if narrowest is None else groups[narrowest][0]
        parts[unused(name, parts)] = cells[key]
    return _stages(survey.weights, parts)


def rows_apart(
    survey: Survey, stages: Sequence[Stage]
) -> tuple[tuple[Stage, ...], tuple[Stage, ...]]:
    """The stages without the weights of which only rows train, and a stage for each of these."""
    partial = {weight.name: weight for weight in survey.weights if weight.rows}
    kept = [
        Stage.of(stage.name, [survey.by_name[name] for name in left])
        for stage in stages
        if (left := [name for name in stage.parameters if name not in partial])
    ]
    rows = [
        Stage.of(f"{name}[{weight.rows[0]}:{weight.rows[1]}]", [weight])
        for name, weight in partial.items()
        if weight.rows
    ]
    return tuple(kept), tuple(rows)


def stages_with(stages: Sequence[Stage], members: Iterable[Weight]) -> tuple[str, ...]:
    """The names of the stages that hold any of these weights."""
    names = {weight.name for weight in members}
    return tuple(stage.name for stage in stages if not names.isdisjoint(stage.parameters))


def stage_names(survey: Survey, stages: Sequence[Stage], selector: Selector) -> tuple[str, ...]:
    """The stages that a selector means, by stage name or by the parameters it selects.

    Raises:
        ValueError: if it cuts through a stage.
    """
    groups = {stage.name: [survey.by_name[name] for name in stage.parameters] for stage in stages}
    if selector == EVERYTHING:
        return tuple(groups)
    if isinstance(selector, str) and selector in groups:
        return (selector,)
    # A share counts in these stages, which therefore come first; names of automatic ones work, too.
    chosen = select(survey.weights, selector, {**groups, **survey.automatic, **groups})
    wanted = {weight.name for weight in chosen}
    for stage in stages:
        inside = wanted.intersection(stage.parameters)
        if inside and len(inside) < len(stage.parameters):
            left = next(name for name in stage.parameters if name not in wanted)
            raise ValueError(
                f"{describe(selector, survey.network)!r} cuts through the stage {stage.name!r}: "
                f"it has {min(inside)!r} but not {left!r}; name whole stages, or give other stages="
            )
    return stages_with(stages, chosen)


def covering(stage: Stage, every: Sequence[Weight], openable: Collection[str]) -> list[str]:
    """The fewest dotted names that together open exactly what may open of a stage.

    A weight that was found frozen opens only by its full name, and one that must not open is
    never named by it.
    """
    inside = {id(weight.tensor) for weight in every if weight.name in stage.parameters}

    def within(prefix: str) -> bool:
        return all(
            id(weight.tensor) in inside
            for weight in every
            if any(f"{name}.".startswith(f"{prefix}.") for name in weight.names)
        )

    names = []
    for weight in every:
        if id(weight.tensor) in inside and weight.name in openable:
            parts = weight.name.split(".")
            prefixes = [".".join(parts[: end + 1]) for end in range(len(parts))]
            names.append(next(prefix for prefix in prefixes if within(prefix)))
    return list(dict.fromkeys(names))


def _stages(every: Sequence[Weight], parts: Mapping[str, Iterable[Weight]]) -> tuple[Stage, ...]:
    """Stages from named lists; within a stage the weights keep the order of the network."""
    stages = []
    for name, members in parts.items():
        ids = {id(weight.tensor) for weight in members}
        stages.append(Stage.of(name, [w for w in every if id(w.tensor) in ids]))
    return tuple(stages)


def _chosen(survey: Survey, selectors: Sequence[Selector]) -> dict[str, list[Weight]]:
    if not selectors:
        raise ValueError('stages=[] names no stage; give "auto" or at least one selector')
    owner: dict[int, str] = {}
    parts: dict[str, list[Weight]] = {}
    for selector in selectors:
        wanted = survey.select(selector)
        if selector == EVERYTHING:
            wanted = tuple(weight for weight in wanted if id(weight.tensor) not in owner)
            if not wanted:
                raise ValueError(
                    'the stage "*" is what the other stages leave, and they leave nothing; drop it'
                )
        name = describe(selector, survey.network)
        for weight in wanted:
            if id(weight.tensor) in owner:
                raise ValueError(_claimed(weight, owner[id(weight.tensor)], name))
        name = unused(name, parts)
        parts[name] = list(wanted)
        owner.update((id(weight.tensor), name) for weight in wanted)
    rest = [weight for weight in survey.weights if id(weight.tensor) not in owner]
    if rest:
        parts[unused(REST, parts)] = rest
    return parts


def _claimed(weight: Weight, first: str, second: str) -> str:
    if first == EVERYTHING:
        return f'the stages "*" and {second!r} both claim {weight.name!r}; put "*" last'
    tied = f" (tied: {' = '.join(weight.names)})" if len(weight.names) > 1 else ""
    return (
        f"the stages {first!r} and {second!r} both claim {weight.name!r}{tied}; "
        "a parameter belongs to one stage"
    )


def _merged(parts: Mapping[str, list[Weight]], number: int) -> dict[str, list[Weight]]:
    """The head, and the backbone in contiguous groups whose largest is as small as possible."""
    (head, *names) = parts
    if not 1 <= number <= len(names):
        raise ValueError(
            f"stages={number}: the backbone has {len(names)} stages to merge "
            f"({', '.join(names)}); give a number from 1 to {len(names)}"
        )
    sizes = [sum(weight.numel for weight in parts[name]) for name in names]
    merged: dict[str, list[Weight]] = {head: list(parts[head])}
    for first, end in _balanced(sizes, number):
        group = names[first:end]
        merged[unused(_joint_name(group), merged)] = [w for n in group for w in parts[n]]
    return merged


def _balanced(sizes: Sequence[int], groups: int) -> list[tuple[int, int]]:
    """Cut a sequence into so many runs, their sum of squares (hence their spread) least.

    >>> _balanced([1, 1, 1, 1, 4], 2)
    [(0, 4), (4, 5)]
    """
    total = [0]
    for size in sizes:
        total.append(total[-1] + size)
    best: list[list[tuple[int, int]]] = [[(0, 0)] + [(-1, 0)] * len(sizes)]
    for _ in range(groups):
        before = best[-1]
        row = [(-1, 0)]
        for end in range(1, len(sizes) + 1):
            row.append(
                min(
                    (
                        (before[cut][0] + (total[end] - total[cut]) ** 2, cut)
                        for cut in range(end)
                        if before[cut][0] >= 0
                    ),
                    default=(-1, 0),
                )
            )
        best.append(row)
    runs, end = [], len(sizes)
    for row in reversed(best[1:]):
        runs.append((row[end][1], end))
        end = row[end][1]
    return runs[::-1]


def _joint_name(names: Sequence[str]) -> str:
    """``layers.{8-11}`` for consecutive blocks, otherwise first and last.

    >>> _joint_name(["layers.11", "layers.10"])
    'layers.{10-11}'
    """
    if len(names) == 1:
        return names[0]
    ends = [re.fullmatch(r"(.*?)(\d+)", name) for name in names]
    if all(ends) and len({end[1] for end in ends if end}) == 1:
        numbers = sorted(int(end[2]) for end in ends if end)
        if numbers == list(range(numbers[0], numbers[-1] + 1)):
            return f"{ends[0][1]}{{{numbers[0]}-{numbers[-1]}}}"  # type: ignore[index]
    return f"{names[0]} ... {names[-1]}"
