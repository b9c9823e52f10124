"""A network as a tree of layers that hold weights, and what each of them looks like.

Structure is read from layers, never from the text of their names: those may hold dots.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from paddle import nn
from paddle.nn.layer.rnn import RNNBase

from .families import INPUT
from .weights import own_parameters, running_statistics, split_among

_NUMBERED = re.compile(r"(?P<stem>.*?)(?P<number>\d+)[a-z]?")


@dataclass(frozen=True, eq=False)
class Part:
    """A layer with weights, in its place in the network.

    Attributes:
        path: how parameters below it are named.
        key: what its parent calls it.
        layer: the layer.
        children: the layers inside it that have weights, each once.
        own: the tensors that it holds itself, by identity.
        ids: all tensors in it.
    """

    path: str
    key: str
    layer: nn.Layer
    children: tuple[Part, ...]
    own: frozenset[int]
    ids: frozenset[int]

    def walk(self) -> Iterator[Part]:
        """The part itself and all parts inside it."""
        yield self
        for child in self.children:
            yield from child.walk()


def part_of(layer: nn.Layer, path: str = "", key: str = "", above: tuple[int, ...] = ()) -> Part:
    statistics = running_statistics(layer)
    own = {id(one) for name, one in own_parameters(layer).items() if name not in statistics}
    found: dict[int, Part] = {}
    for name, child in layer._sub_layers.items():
        if child is not None and id(child) not in found and id(child) not in above:
            where = f"{path}.{name}" if path else name
            found[id(child)] = part_of(child, where, name.strip("."), (*above, id(layer)))
    children = tuple(child for child in found.values() if child.ids)
    ids = frozenset(own.union(*(child.ids for child in children)))
    if isinstance(layer, RNNBase):  # its kernel computes all its layers and directions at once
        return Part(path, key, layer, (), ids, ids)
    return Part(path, key, layer, children, frozenset(own), ids)


def is_rnn(part: Part) -> bool:
    return isinstance(part.layer, RNNBase)


def is_norm(part: Part) -> bool:
    """Whether this is a normalization layer: its name says so, in Paddle and by habit."""
    if any(not name.startswith("weight_") for name in running_statistics(part.layer)):
        return True
    return "Norm" in type(part.layer).__name__ and not part.children


def only_norms(part: Part) -> bool:
    return all(is_norm(one) for one in part.walk() if one.own)


def holds_tables(part: Part) -> bool:
    return any("Embedding" in type(one.layer).__name__ for one in part.walk())


def looks_like_input(part: Part) -> bool:
    """Whether this looks like embeddings or a stem; where it is defined says nothing."""
    return bool(INPUT.fullmatch(part.key.lower())) or holds_tables(part)


def holds_blocks(part: Part) -> bool:
    """Whether there is a series of whole layers inside."""
    marks = numbered(part, part.children)
    listed = isinstance(part.layer, (nn.LayerList, nn.Sequential))
    # Only whole layers count: the two linear maps of one feed-forward are not blocks.
    return any(
        listed or bool(child.children) if mark else holds_blocks(child)
        for child, mark in zip(part.children, marks)
    )


def numbered(parent: Part, children: Sequence[Part]) -> list[bool]:
    """Whether each child is one of a numbered series (``layer1``, ``layer2``, ...)."""
    series = [stem_of(child.key) for child in children]
    counted = [stem for stem, child in zip(series, children) if not only_norms(child)]
    least = 1 if isinstance(parent.layer, nn.LayerList) else 2
    return [stem is not None and counted.count(stem) >= least for stem in series]


def stem_of(key: str) -> str | None:
    match = _NUMBERED.fullmatch(key)
    return re.sub(r"\d+", "#", match["stem"]) if match else None


def series_in(part: Part) -> Iterator[Part]:
    """The numbered layers inside, outermost first."""
    for child, mark in zip(part.children, numbered(part, part.children)):
        if mark:
            yield child
        else:
            yield from series_in(child)


def size_of(parts: Sequence[Part]) -> int:
    return sum(
        p.size * (group.nranks if (group := split_among(one.layer, p)) else 1)
        for part in parts
        for one in part.walk()
        for p in own_parameters(one.layer).values()
    )


def common(paths: Sequence[str]) -> str:
    """The layer that all these paths are in, or the one path itself."""
    common: list[str] = []
    for same in zip(*(path.split(".") for path in paths)):
        if len(set(same)) > 1:
            break
        common.append(same[0])
    return ".".join(common)


@dataclass(frozen=True)
class Split:
    """The head's tensors, and what lies below: one body, or several that open side by side.

    Attributes:
        head: the tensors of the head.
        bodies: what lies below it.
        base: the path that is left out of the names of stages.
        declared: stages that the network, or a body, gives itself.
        classifier: pretrained layers of a ``Sequential`` whose last layer is the head.
    """

    head: frozenset[int]
    bodies: tuple[Part, ...]
    base: str = ""
    declared: Mapping[str, frozenset[int]] = field(default_factory=dict)
    classifier: Part | None = None


def unused(name: str, taken: Mapping[str, object]) -> str:
    """The name, with a number behind it if it is taken."""
    number, candidate = 1, name
    while candidate in taken:
        number += 1
        candidate = f"{name} ({number})"
    return candidate
