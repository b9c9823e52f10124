"""The stages below the head: the blocks of the backbone, what opens with them, the input side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from paddle import nn

from .declared import REST
from .families import INPUT, LAST, USED_FIRST, USED_LAST, listed, way
from .parts import (
    Part,
    Split,
    holds_blocks,
    is_norm,
    is_rnn,
    looks_like_input,
    numbered,
    only_norms,
    size_of,
    stem_of,
    unused,
)
from .weights import weights


@dataclass
class _Rung:
    """A stage to be: one block and what opens with it, or the input side (no block)."""

    parts: list[Part]
    is_block: bool
    ids: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class _Unit:
    """A piece that is not taken apart: a block (of several series), or something beside blocks."""

    parts: tuple[Part, ...]
    is_block: bool
    reads_input: bool = False


def below_head(root: Part, split: Split) -> dict[str, set[int]]:
    """The stages below the head by name, from the top, several bodies zipped."""
    taken = set(split.head)
    for ids in split.declared.values():
        taken |= ids
    parts: dict[str, set[int]] = {name: set(ids) for name, ids in split.declared.items()}
    rest = parts.pop(REST, None)
    if split.classifier is not None:
        parts[_short(split.classifier.path, split.base)] = set(split.classifier.ids) - taken
        taken |= split.classifier.ids
    towers = []
    for body in split.bodies:
        towers.append(_rungs(body, taken))
        taken |= body.ids
    depth = max((len(rungs) for _, rungs in towers), default=0)
    for level in range(depth):
        beside = [rungs[-1 - level] for _, rungs in towers if level < len(rungs)]
        names = [_short(rung.parts[0].path.strip("."), split.base) for rung in beside]
        name = unused(" + ".join(names), parts)
        parts[name] = set().union(*(rung.ids for rung in beside))
    seen = set(split.head).union(*parts.values(), rest or ())
    inputs = (root.ids - seen).union(*(ids for ids, _ in towers))
    if inputs and (towers or not rest):
        parts[unused(_input_name(root, set(inputs)), parts)] = set(inputs)
    if rest:
        parts[unused(REST, parts)] = rest
    return parts


def _rungs(body: Part, taken: set[int]) -> tuple[set[int], list[_Rung]]:
    """The input side of a body, and its stages from the bottom."""
    units = _units(body, taken)
    has_blocks = any(unit.is_block and not is_rnn(unit.parts[0]) for unit in units)
    inputs: list[Part] = []
    rungs: list[_Rung] = []
    if not has_blocks:
        units.sort(key=lambda unit: not unit.reads_input)
    for unit in units:
        part = unit.parts[0]
        beside = has_blocks and not unit.is_block
        if (has_blocks and unit.is_block) or (not has_blocks and not (is_norm(part) and rungs)):
            rungs.append(_Rung(list(unit.parts), has_blocks))
        elif rungs and not (beside and unit.reads_input):
            rungs[-1].parts.append(part)
        else:
            inputs.append(part)
    left = set(body.ids) - taken
    for rung in rungs:
        rung.ids = left.intersection(*[set().union(*(part.ids for part in rung.parts))])
        left -= rung.ids
    ids = left
    if not has_blocks and rungs and left:  # what a container owns goes with the first layer
        rungs[0].ids |= left
        ids = set()
    return ids, [rung for rung in rungs if rung.ids]


def _units(parent: Part, taken: set[int]) -> list[_Unit]:
    """The pieces of a layer in order of use, as far as names and definition tell."""
    children = _in_order(parent, [child for child in parent.children if child.ids - taken])
    if not children:
        return [_Unit((parent,), is_rnn(parent))]
    marks = numbered(parent, children)
    beside = _side_by_side(children, marks)
    units: list[_Unit] = []
    for child, mark in zip(children, marks):
        if child in beside:
            units += beside[child]
        elif not mark and _is_taken_apart(child, children, marks):
            units += _units(child, taken)
        else:
            first = child.key in listed(USED_FIRST, type(parent.layer))
            block = (mark and not is_norm(child)) or is_rnn(child)
            units.append(_Unit((child,), block, first or looks_like_input(child)))
    return units


def _is_taken_apart(child: Part, children: Sequence[Part], marks: Sequence[bool]) -> bool:
    """Whether there are blocks inside; those of a stem only count if there are no others."""
    if is_rnn(child) or not holds_blocks(child):
        return False
    return not INPUT.fullmatch(child.key.lower()) or not any(
        mark or holds_blocks(one)
        for one, mark in zip(children, marks)
        if one is not child and not INPUT.fullmatch(one.key.lower())
    )


def _in_order(parent: Part, children: Sequence[Part]) -> list[Part]:
    """Encoder before decoder, the middle between down and up, a final norm or pooler last."""
    ranks = {child: rank for child in children if (rank := way(child.key)) is not None}
    ranked = iter(sorted(ranks, key=lambda child: ranks[child]))
    several = len(set(ranks.values())) > 1
    ordered = [next(ranked) if several and child in ranks else child for child in children]
    last = listed(USED_LAST, type(parent.layer))
    return sorted(ordered, key=lambda one: one.key in last or bool(LAST.fullmatch(one.key.lower())))


def _side_by_side(children: Sequence[Part], marks: Sequence[bool]) -> dict[Part, list[_Unit]]:
    """Series of equal length that open number by number: all units at the first, none at others.

    They are lists of layers (``attentions``, ``ffns``), or numbered layers that are defined one
    series after the other (``patch_embed1``, ..., ``block1``, ...).
    """
    lists = {
        child.key: (child, list(child.children))
        for child, mark in zip(children, marks)
        if isinstance(child.layer, nn.LayerList) and not mark and child.children
    }
    numbers: dict[str, list[Part]] = {}
    for child, mark in zip(children, marks):
        stem = stem_of(child.key)
        if stem is not None and (mark or only_norms(child)):
            numbers.setdefault(stem, []).append(child)
    found = _zipped([items for _, items in lists.values()])
    replaced: dict[Part, list[_Unit]] = {}
    if found:
        joined = [
            owner for owner, items in lists.values() if any(items[0] in u.parts for u in found)
        ]
        replaced.update({owner: [] for owner in joined})
        replaced[joined[0]] = found
    if len(numbers) > 1 and _one_after_the_other(list(numbers.values()), children):
        found = _zipped(list(numbers.values()))
        members = [part for unit in found for part in unit.parts]
        replaced.update({part: [] for part in members})
        if members:
            replaced[min(members, key=children.index)] = found
    return replaced


def _one_after_the_other(series: Sequence[Sequence[Part]], children: Sequence[Part]) -> bool:
    """Whether some of these whole layers are defined only after all of another series."""
    solid = [one for one in series if not all(only_norms(part) for part in one)]
    ends = [(children.index(one[0]), children.index(one[-1])) for one in solid]
    apart = any(first[1] < second[0] for first in ends for second in ends)
    return apart and all(part.children for one in solid for part in one)


def _zipped(series: Sequence[Sequence[Part]]) -> list[_Unit]:
    """The longest series with all as long, number by number; the largest gives the name."""
    solid = [one for one in series if not all(only_norms(part) for part in one)]
    ways = {
        way(part.path.split(".")[-2] if "." in part.path else part.key)
        for one in solid
        for part in one[:1]
    }
    for length in sorted({len(one) for one in solid}, reverse=True):
        equal = [one for one in series if len(one) == length]
        if length > 1 and len(equal) > 1 and len(ways - {None}) < 2:
            first = max((one for one in equal if one in solid), key=lambda one: size_of(one))
            others = [one for one in equal if one is not first]
            return [_Unit(tuple(parts), True) for parts in zip(first, *others)]
    return []


def _short(path: str, base: str) -> str:
    """The path of a block, seen from the backbone."""
    shorter = path
    if path == base:
        shorter = path.rsplit(".", 1)[-1]
    elif base and path.startswith(base + "."):
        shorter = path[len(base) + 1 :]
    return path if shorter[:1].isdigit() else shorter


def _input_name(root: Part, inside: set[int]) -> str:
    """What people call the input side of such a network."""
    embeds = any(
        one.ids & inside and "Embedding" in type(one.layer).__name__ for one in root.walk()
    ) or any(
        "embed" in name
        for weight in weights(root.layer)
        if id(weight.tensor) in inside
        for name in weight.names
    )
    return "embeddings" if embeds else "stem"
