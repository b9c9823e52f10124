"""How statistics and dropout of frozen layers are held still."""

from __future__ import annotations

import weakref
from collections.abc import Set
from typing import Any

from paddle import nn

from ..stages.weights import measured, moving_state
from .tree import Node

# A layer with its path and the identities of the weights that decide whether it is frozen.
Governed = tuple[str, nn.Layer, frozenset[int]]


def before_all(layer: nn.Layer, hook: Any) -> Any:
    """Register a hook that comes before the layer's other forward-pre-hooks; gives its handle.

    ``register_forward_pre_hook(prepend=True)`` is Paddle's since 3.3. For releases before that,
    the entry is moved in the mapping that Paddle walks.
    """
    handle = layer.register_forward_pre_hook(hook)
    layer._forward_pre_hooks.move_to_end(handle._hook_id, last=False)
    return handle


class EvalForward:
    """Runs one layer's forward in eval mode, and leaves its ``training`` flag as it was.

    ``layer.eval()`` would not last: ``paddle.Model`` and the Trainer call ``network.train()``
    before every batch. A hook before the forward lasts, also inside recomputation. It comes
    before the layer's other hooks (spectral norm moves its vectors in a hook).

    A quanter that has measured little yet goes on until its average has settled: held at once,
    it would cut off all that its frozen layer gives.
    """

    def __init__(self, layer: nn.Layer) -> None:
        self._layer = layer
        self._found: list[bool] = []
        self._settled = False
        self._handles = (
            before_all(layer, self._enter),
            layer.register_forward_post_hook(self._leave),
        )

    def _enter(self, layer: nn.Layer, inputs: object) -> None:
        self._found.append(layer.training)
        self._settled = self._settled or _settled(layer)
        layer.training = layer.training and not self._settled

    def _leave(self, layer: nn.Layer, inputs: object, outputs: object) -> None:
        if self._found:
            layer.training = self._found.pop()

    def undo(self) -> None:
        for handle in self._handles:
            handle.remove()
        if self._found:  # the forward raised, so the hook behind it did not run
            self._layer.training = self._found[0]


def _settled(layer: nn.Layer) -> bool:
    """Whether what a quanter measures is of this network; true of any other layer.

    Its moving average begins at one, and counts in ``_state``, which approaches 1 / (1 - rate).
    """
    state, rate = measured(layer).get("_state"), getattr(layer, "_moving_rate", None)
    # NumPy 2.4 makes no number of an array with one side.
    return state is None or rate is None or state.item() * (1 - rate) >= 0.99


class GlobalStatistics:
    """Makes a BatchNorm use, and not move, its running statistics.

    ``_use_global_stats`` has a constructor argument but no public setter. Eval mode alone is not
    enough: a layer built with ``use_global_stats=False`` moves its statistics in eval mode, too.
    """

    def __init__(self, layer: nn.Layer) -> None:
        self._layer = layer
        holders, found = _held.get(layer, (0, layer._use_global_stats))
        _held[layer] = holders + 1, found
        layer._use_global_stats = True

    def undo(self) -> None:
        holders, found = _held.pop(self._layer)
        if holders > 1:
            _held[self._layer] = holders - 1, found
        else:
            self._layer._use_global_stats = found


# How many hold a layer, for freeze() and a run may, in whatever order they end; and how it was.
_held: weakref.WeakKeyDictionary[nn.Layer, tuple[int, Any]] = weakref.WeakKeyDictionary()


def hold_statistics(layer: nn.Layer) -> EvalForward | GlobalStatistics:
    """Keep a layer's running statistics and buffers still until ``undo()``."""
    # SyncBatchNorm has the attribute but ignores it.
    if hasattr(layer, "_use_global_stats") and not isinstance(layer, nn.SyncBatchNorm):
        return GlobalStatistics(layer)
    return EvalForward(layer)


def governed(root: Node, *, statistics: bool, never: Set[int] = frozenset()) -> list[Governed]:
    """Layers with the weights that decide whether they count as frozen.

    A layer with weights is governed by those inside it. A layer without weights counts as frozen
    when its neighbours in the container are (a dropout between a frozen layer and the open head
    regularizes the head); without neighbours, when the container is. One that keeps statistics
    follows only the neighbour before it (a BatchNorm without scale goes with its convolution).

    Args:
        root: the network's tree.
        statistics: whether to list the layers that keep statistics or buffers, or all others.
        never: identities of weights that never open. A dropout does not go with them: between
            the frozen linear layers of a block with LoRA it is on when the block's LoRA trains.
    """
    found: dict[int, Governed] = {}

    def visit(node: Node, rule: frozenset[int]) -> None:
        if bool(moving_state(node.layer)) == statistics:
            found.setdefault(id(node.layer), (node.path, node.layer, rule))
        held = [child.inside if statistics else child.inside - never for child in node.children]
        for index, child in enumerate(node.children):
            before = next((own for own in reversed(held[:index]) if own), None)
            after = next((own for own in held[index + 1 :] if own), frozenset())
            beside = before if statistics and before else (before or frozenset()) | after
            visit(child, child.inside or beside or rule)

    visit(root, root.inside)
    return list(found.values())
