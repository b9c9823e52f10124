"""How gradients reach the open stages under recomputation (gradient checkpointing).

Paddle's default ``recompute(use_reentrant=True)`` looks at the inputs of a block: if none needs a
gradient, because everything below is frozen, the block's own parameters get none either, nor do
those of any recomputed block after it; there is only a warning. The cure is that what a frozen
layer hands to an open one needs a gradient.

Whether a network recomputes cannot be told from outside. So the cure is applied at each
transition, and taken back after the first forward in which no open layer turned out to run
inside a reentrant recomputation: there autograd is off while the rest of the network trains.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import paddle
from paddle import nn

from .stages import Stage
from .weights import layers


class Bridge:
    """Lets gradients pass from open layers to the frozen ones below, where that is needed.

    Args:
        network: the network.
        stages: all its stages, head first.
        open_stages: names of those that are open now.
    """

    def __init__(
        self, network: nn.Layer, stages: Sequence[Stage], open_stages: Collection[str]
    ) -> None:
        self._seen = self._decided = False
        below = {
            name
            for above, stage in zip(stages, stages[1:])
            if above.name in open_stages and stage.name not in open_stages
            for name in stage.parameters
        }
        opened = {name for s in stages if s.name in open_stages for name in s.parameters}
        self._cure = [
            layer.register_forward_post_hook(self._need_gradient)
            for layer in _outermost(network, below)
        ]
        self._watch = [
            layer.register_forward_pre_hook(self._look)
            for path, layer in _unique(network)
            if any(_parent(name) == path for name in opened)
        ]
        self._root = network.register_forward_post_hook(self._decide)

    def _need_gradient(self, layer: nn.Layer, inputs: Any, outputs: Any) -> None:
        if not paddle.in_dynamic_mode():
            return
        for tensor in paddle.utils.flatten(outputs):
            if isinstance(tensor, paddle.Tensor) and tensor.is_floating_point():
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

    def __deepcopy__(self, memo: dict[int, object]) -> Bridge:
        """A copy of a network shares its hooks: they act on the layer that they are called for."""
        return self

    def undo(self) -> None:
        for handle in [*self._cure, *self._watch, self._root]:
            handle.remove()


def _unique(network: nn.Layer) -> list[tuple[str, nn.Layer]]:
    seen: set[int] = set()
    return [
        (path, layer)
        for path, layer in layers(network)
        if not (id(layer) in seen or seen.add(id(layer)))  # type: ignore[func-returns-value]
    ]


def _outermost(network: nn.Layer, names: set[str]) -> list[nn.Layer]:
    """The largest layers in which all weights are among these."""
    found: list[str] = []
    chosen = []
    for path, layer in _unique(network):
        inside = {f"{path}.{name}" if path else name for name, _ in layer.named_parameters()}
        ours = inside & names
        whole = ours and not any(
            name not in names and not name.endswith(("_mean", "_variance")) for name in inside
        )
        if whole and not any(path.startswith(outer + ".") for outer in found):
            found.append(path)
            chosen.append(layer)
    return chosen


def _parent(name: str) -> str:
    return name.rpartition(".")[0]
