"""The layers of a network as a tree, each with the weights inside it; read once per run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from paddle import nn

from ..stages.partition import Survey
from ..stages.weights import own_parameters


@dataclass(frozen=True, eq=False)
class Node:
    """A layer in its place in a network.

    Attributes:
        path: its name in the network.
        layer: the layer.
        own: its own weights, without those of its children: identities and names.
        inside: identities of all weights inside it, its children's included.
        children: the layers that it consists of.
    """

    path: str
    layer: nn.Layer
    own: Mapping[int, str]
    inside: frozenset[int]
    children: tuple[Node, ...]

    def layers(self) -> Iterator[Node]:
        """The node itself and all below it; a shared layer comes once for each of its names."""
        yield self
        for child in self.children:
            yield from child.layers()


def tree(survey: Survey) -> Node:
    """The layers of a network.

    >>> from paddle import nn
    >>> root = tree(Survey(nn.Sequential(nn.Linear(2, 2), nn.Dropout())))
    >>> [(node.path, list(node.own.values()), len(node.inside)) for node in root.layers()]
    [('', [], 2), ('0', ['weight', 'bias'], 2), ('1', [], 0)]
    """
    ids = {id(weight.tensor) for weight in survey.weights}

    def grow(path: str, layer: nn.Layer) -> Node:
        children = tuple(
            grow(f"{path}.{name}" if path else name, child)
            for name, child in layer.named_children()
        )
        own = {id(one): name for name, one in own_parameters(layer).items() if id(one) in ids}
        return Node(path, layer, own, frozenset(own).union(*(c.inside for c in children)), children)

    return grow("", survey.network)
