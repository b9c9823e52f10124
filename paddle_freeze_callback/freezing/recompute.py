"""How gradients reach the open stages under recomputation (gradient checkpointing).

Paddle's default ``recompute(use_reentrant=True)`` asks whether an input of the block needs a
gradient. If none does, because everything below is frozen, the block's own parameters get no
gradient either, nor do those of any recomputed block after it; there is only a warning. The cure
is that what a frozen layer hands to an open one needs a gradient.

Nothing shows from outside whether a network recomputes. So the cure is applied at each
transition. It is taken back after the first forward in which no open layer ran inside a reentrant
recomputation, where autograd is off although the network trains.

Nor does anything show which frozen layer feeds which open one. So under recomputation everything
that a frozen layer hands on needs a gradient, at the cost of the backward pass through it.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import paddle
from paddle import nn

from .tree import Node


class Bridge:
    """Lets gradients pass from open layers to the frozen ones below, where that is needed.

    Args:
        root: the network's tree.
        frozen: identities of its weights that are frozen now.
        opened: identities of those that are open.
    """

    def __init__(self, root: Node, frozen: frozenset[int], opened: frozenset[int]) -> None:
        self._seen = self._decided = False
        self._inside = root, frozen, opened
        self._cured: weakref.WeakValueDictionary[int, paddle.Tensor] = weakref.WeakValueDictionary()
        outermost = _outermost(root, frozen, opened)
        self._cure = [layer.register_forward_post_hook(self._need_gradient) for layer in outermost]
        self._cure += [
            layer.register_forward_pre_hook(self._spare)
            for layer in outermost
            if isinstance(layer, nn.layer.rnn.RNNBase)
        ]
        owners = (node for node in root.layers() if not opened.isdisjoint(node.own))
        watched = {id(node.layer): node.layer for node in owners}
        self._watch = [layer.register_forward_pre_hook(self._look) for layer in watched.values()]
        self._root = root.layer.register_forward_post_hook(self._decide)

    def _need_gradient(self, layer: nn.Layer, inputs: Any, outputs: Any) -> None:
        if not paddle.in_dynamic_mode():
            return
        given = {id(tensor) for tensor in paddle.utils.flatten(inputs)}
        for tensor in paddle.utils.flatten(outputs):
            if not isinstance(tensor, paddle.Tensor) or id(tensor) in given:
                continue  # what a layer only hands through is not its own
            if tensor.is_floating_point() and tensor.stop_gradient:
                tensor.stop_gradient = False
                self._cured[id(tensor)] = tensor

    def _spare(self, layer: nn.Layer, inputs: Any) -> None:
        """A frozen RNN has no backward for its input on a CPU, and needs none for the cure's sake.

        Its own output is cured all the same.
        """
        for tensor in paddle.utils.flatten(inputs):
            if id(tensor) in self._cured and tensor is self._cured[id(tensor)]:
                tensor.stop_gradient = True

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
            return
        for bare in _bare(*self._inside):
            warnings.warn(
                f"open layers are recomputed, and {bare}, which no layer inside owns, is "
                "frozen: a block that is fed by it alone gets no gradient. "
                "Call recompute(..., use_reentrant=False)",
                stacklevel=2,
            )
            return

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


def _outermost(root: Node, frozen: frozenset[int], opened: frozenset[int]) -> list[nn.Layer]:
    """The largest layers that have frozen weights and no open ones, each once."""
    found: dict[int, nn.Layer] = {}

    def visit(node: Node) -> None:
        if node.inside.isdisjoint(frozen):
            return
        if node.inside.isdisjoint(opened):
            found[id(node.layer)] = node.layer
            return
        for child in node.children:
            visit(child)

    visit(root)
    return list(found.values())


def _bare(root: Node, frozen: frozenset[int], opened: frozenset[int]) -> Iterator[str]:
    """Frozen weights that a container with something open owns directly."""
    for node in root.layers():
        if node.children and not node.inside.isdisjoint(opened):
            for tensor, name in node.own.items():
                if tensor in frozen:
                    yield f"{type(node.layer).__name__}.{name}"
