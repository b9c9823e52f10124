"""How gradients reach the open stages under recomputation (gradient checkpointing).

Paddle's default ``recompute(use_reentrant=True)`` looks at the inputs of a block: if none needs a
gradient, because everything below is frozen, the block's own parameters get none either, nor do
those of any recomputed block after it; there is only a warning. The cure is that what a frozen
layer hands to an open one needs a gradient.

Whether a network recomputes cannot be told from outside. So the cure is applied at each
transition, and taken back after the first forward in which no open layer turned out to run
inside a reentrant recomputation: there autograd is off while the rest of the network trains.

Which frozen layer feeds which open one cannot be told, either, so under recomputation what every
frozen layer hands on needs a gradient. That costs the backward pass through the frozen layers.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection
from typing import Any

import paddle
from paddle import nn


class Bridge:
    """Lets gradients pass from open layers to the frozen ones below, where that is needed.

    Args:
        network: the network.
        frozen: identities of its weights that are frozen now.
        opened: identities of those that are open.
    """

    def __init__(self, network: nn.Layer, frozen: Collection[int], opened: Collection[int]) -> None:
        self._seen = self._decided = False
        frozen, opened = set(frozen), set(opened)
        outermost = _outermost(network, frozen, opened)
        everywhere = [layer for _, layer in network.named_sublayers(include_self=True)]
        self._cure = [layer.register_forward_post_hook(self._need_gradient) for layer in outermost]
        self._watch = [
            layer.register_forward_pre_hook(self._look)
            for layer in everywhere
            if any(id(tensor) in opened for tensor in layer.parameters(include_sublayers=False))
        ]
        self._bare = [
            f"{type(layer).__name__}.{name}"
            for layer in everywhere
            if any(id(tensor) in opened for tensor in layer.parameters()) and list(layer.children())
            for name, tensor in layer.named_parameters(include_sublayers=False)
            if id(tensor) in frozen
        ]
        self._root = network.register_forward_post_hook(self._decide)

    def _need_gradient(self, layer: nn.Layer, inputs: Any, outputs: Any) -> None:
        if not paddle.in_dynamic_mode():
            return
        given = {id(tensor) for tensor in paddle.utils.flatten(inputs)}
        for tensor in paddle.utils.flatten(outputs):
            if not isinstance(tensor, paddle.Tensor) or id(tensor) in given:
                continue  # what a layer only hands through is not its own
            if tensor.is_floating_point() and tensor.stop_gradient:
                tensor.stop_gradient = False

    def _look(self, layer: nn.Layer, inputs: Any) -> None:
        if paddle.in_dynamic_mode() and layer.training and not paddle.is_grad_enabled():
            self._seen = True

    def _decide(self, network: nn.Layer, inputs: Any, outputs: Any) -> None:
        if self._decided:
            return
        if not (network.training and paddle.is_grad_enabled()):
            self._seen = False  # not a training step: nobody wanted gradients
            return
        self._decided = True
        for handle in self._watch:
            handle.remove()
        if not self._seen:
            for handle in self._cure:
                handle.remove()
        elif self._bare:
            warnings.warn(
                f"open layers are recomputed, and {self._bare[0]}, which no layer inside owns, is "
                "frozen: a block that is fed by it alone gets no gradient. "
                "Call recompute(..., use_reentrant=False)",
                stacklevel=2,
            )

    def __deepcopy__(self, memo: dict[int, object]) -> Bridge:
        """A copy of a network shares its hooks: they act on the layer that they are called for."""
        return self

    @property
    def settled(self) -> bool | None:
        """Whether a training step has shown that nothing is recomputed; ``None`` if it is."""
        return None if self._decided and self._seen else self._decided

    def undo(self) -> None:
        for handle in [*self._cure, *self._watch, self._root]:
            handle.remove()


def _outermost(layer: nn.Layer, frozen: set[int], opened: set[int]) -> list[nn.Layer]:
    """The largest layers that have frozen weights and no open ones, each once."""
    inside = {id(tensor) for tensor in layer.parameters()}
    if inside & frozen and not inside & opened:
        return [layer]
    found = [one for child in layer.children() for one in _outermost(child, frozen, opened)]
    return list({id(one): one for one in found}.values())
