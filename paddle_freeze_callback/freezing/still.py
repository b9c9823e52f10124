"""How statistics and dropout of frozen layers are held still."""

from __future__ import annotations

from collections.abc import Sequence

from paddle import nn

from ..stages.weights import Weight, moving_state

# A layer with its path and the identities of the weights that decide whether it is frozen.
Governed = tuple[str, nn.Layer, frozenset[int]]


class EvalForward:
    """Runs one layer's forward in eval mode, and leaves its ``training`` flag as it was.

    ``layer.eval()`` would not last: ``paddle.Model`` and the Trainer call ``network.train()``
    before every batch. A hook before the forward does, also inside recomputation. It comes
    before the layer's other hooks (spectral norm, for one, moves its vectors in a hook).
    """

    def __init__(self, layer: nn.Layer) -> None:
        self._layer = layer
        self._found: list[bool] = []
        self._handles = (
            layer.register_forward_pre_hook(self._enter, prepend=True),
            layer.register_forward_post_hook(self._leave),
        )

    def _enter(self, layer: nn.Layer, inputs: object) -> None:
        self._found.append(layer.training)
        layer.training = False

    def _leave(self, layer: nn.Layer, inputs: object, outputs: object) -> None:
        if self._found:
            layer.training = self._found.pop()

    def undo(self) -> None:
        for handle in self._handles:
            handle.remove()
        if self._found:  # the forward raised, so the hook behind it did not run
            self._layer.training = self._found[0]


class GlobalStatistics:
    """Makes a BatchNorm use, and not move, its running statistics.

    Sets ``_use_global_stats``, for which there is a constructor argument but no public setter.
    Eval mode alone would not do: a layer built with ``use_global_stats=False`` moves its
    statistics in eval mode, too.
    """

    def __init__(self, layer: nn.Layer) -> None:
        self._layer = layer
        self._found = layer._use_global_stats
        layer._use_global_stats = True

    def undo(self) -> None:
        self._layer._use_global_stats = self._found


def hold_statistics(layer: nn.Layer) -> EvalForward | GlobalStatistics:
    """Keep a layer's running statistics and buffers still until ``undo()``."""
    # SyncBatchNorm has the attribute but ignores it.
    if hasattr(layer, "_use_global_stats") and not isinstance(layer, nn.SyncBatchNorm):
        return GlobalStatistics(layer)
    return EvalForward(layer)


def governed(network: nn.Layer, every: Sequence[Weight], *, statistics: bool) -> list[Governed]:
    """Layers with the weights that decide whether they count as frozen.

    These are a layer's own weights and those inside it. A layer without any is governed by the
    weights that its container defines just before and just after it (a dropout between a
    frozen layer and the open head regularizes the head); where there are none, by its
    container. One that keeps statistics follows only the weights before it (a BatchNorm without
    scale goes with its convolution).
    """
    ids = {id(weight.tensor) for weight in every}
    governed: dict[int, Governed] = {}

    def inside(layer: nn.Layer) -> frozenset[int]:
        return frozenset(id(tensor) for tensor in layer.parameters() if id(tensor) in ids)

    def visit(path: str, layer: nn.Layer, rule: frozenset[int]) -> None:
        if bool(moving_state(layer)) == statistics:
            governed.setdefault(id(layer), (path, layer, rule))
        children = list(layer.named_children())
        held = [inside(child) for _, child in children]
        for index, (name, child) in enumerate(children):
            before = next((own for own in reversed(held[:index]) if own), None)
            after = next((own for own in held[index + 1 :] if own), frozenset())
            beside = before if statistics and before else (before or frozenset()) | after
            below = held[index] or beside or rule
            visit(f"{path}.{name}" if path else name, child, below)

    visit("", network, inside(network))
    return list(governed.values())
