"""What is known of a frozen prefix while nothing that it depends on opens."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import paddle
from paddle import nn

from ..stages.weights import layers, moving_state, own_parameters, weights
from .boundary import Boundary
from .fingerprint import fingerprint
from .keys import CannotCacheError
from .options import CacheOptions
from .state import few
from .stores import MemoryStore
from .watch import ForwardWatch


@dataclass(frozen=True)
class Kept:
    """What is known of a frozen prefix, and kept of it."""

    store: MemoryStore
    boundary: Boundary
    names: tuple[str, ...]  # of the layers whose outputs are kept
    depends: frozenset[int]  # identities of the tensors that the features may depend on
    probes: tuple[tuple[paddle.Tensor, bytes], ...]  # these tensors, and some of their numbers

    @classmethod
    def of(
        cls, boundary: Boundary, names: tuple[str, ...], network: nn.Layer, watch: ForwardWatch,
        opened: Collection[int], options: CacheOptions,
    ) -> Kept:  # fmt: skip
        """Open a store for a boundary that was just found."""
        still = _still(network, watch, opened, boundary)
        return cls(
            options.store(lambda: fingerprint(network, still, names, boundary.kept, options.dtype)),
            boundary,
            names,
            frozenset(id(tensor) for tensor in still),
            tuple((tensor, few(tensor).tobytes()) for tensor in still),
        )

    def probe(self, count: int, network: nn.Layer) -> None:
        """Check one of the frozen tensors, another with each count.

        Raises:
            CannotCacheError: if it is not what it was.
        """
        if not self.probes:
            return
        tensor, before = self.probes[count % len(self.probes)]
        if few(tensor).tobytes() != before:
            name = next((n for n, t in network.named_parameters() if t is tensor), "a buffer")
            raise CannotCacheError(f"{name} changed although it is frozen")


def _still(
    network: nn.Layer, watch: ForwardWatch, opened: Collection[int], boundary: Boundary
) -> list[paddle.Tensor]:
    """What features may depend on: whatever is not open, except what works behind the prefix.

    These are the weights that are not open. Buffers and statistics count if their layer is in the
    prefix, or lies around closed layers and owns no open weights.
    """
    found = {id(w.tensor): w.tensor for w in weights(network) if id(w.tensor) not in opened}
    closed = {id(one) for _, layer in watch.closed for one in layer.sublayers(include_self=True)}
    prefix = [watch.closed[index][1] for index in {index for index, _ in boundary.prefix}]
    inside = [one for layer in prefix for one in layer.sublayers(include_self=True)]
    around = [
        layer
        for _, layer in layers(network)
        if id(layer) not in closed
        and not any(id(tensor) in opened for tensor in own_parameters(layer).values())
    ]
    for layer in [*inside, *around]:
        found.update({id(tensor): tensor for tensor in moving_state(layer).values()})
    return [tensor for tensor in found.values() if tensor._is_initialized()]
