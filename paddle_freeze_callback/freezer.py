"""How to make a network be as a schedule says, and how to undo it.

Three things make a weight frozen: ``stop_gradient``; no stale gradient that would be added to
the first one after unfreezing (Paddle's ``clear_grad`` skips frozen parameters); and, for a
normalization layer, running statistics that stand still although every training loop calls
``network.train()`` before each batch.

:class:`Freezer` applies a set of open stages. It is idempotent and converges from any state,
because it remembers only how the network was found. :func:`freeze` and :func:`unfreeze` are the
same machinery for people with a training loop of their own.
"""

from __future__ import annotations

import gc
import hashlib
import weakref
from collections.abc import Collection, Sequence

import paddle
from paddle import nn
from paddle.jit.dy2static.program_translator import StaticFunction

from .recompute import Bridge
from .selectors import EVERYTHING, Selector, select
from .stages import Stage, automatic_stages
from .weights import Weight, count, moving_state, running_statistics, weights

FROZEN_MODES = ("eval", "train")


# A layer with its path and the identities of the weights that decide whether it is frozen.
_Governed = tuple[str, nn.Layer, frozenset[int]]


class _EvalForward:
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


class _GlobalStatistics:
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


def hold_statistics(layer: nn.Layer) -> _EvalForward | _GlobalStatistics:
    """Keep a layer's running statistics and buffers still until ``undo()``."""
    # SyncBatchNorm has the attribute but ignores it.
    if hasattr(layer, "_use_global_stats") and not isinstance(layer, nn.SyncBatchNorm):
        return _GlobalStatistics(layer)
    return _EvalForward(layer)


class Freezer:
    """Makes a network's stages open or frozen, and knows how the network was found.

    Args:
        network: the network.
        stages: all its stages, every weight in exactly one.
        openable: names of the weights that may be opened at all; others stay as found.
        frozen_norm: ``"eval"`` holds running statistics of frozen layers still; ``"train"``
            lets them move.
        frozen_dropout: ``"eval"`` also switches off dropout, and whatever else depends on
            training mode, in frozen layers; ``"train"`` leaves it on.
    """

    def __init__(
        self,
        network: nn.Layer,
        stages: Sequence[Stage],
        openable: Collection[str],
        *,
        frozen_norm: str = "eval",
        frozen_dropout: str = "train",
    ) -> None:
        every = weights(network)
        by_name = {weight.name: weight for weight in every}
        self._network = network
        self._members = {stage.name: [by_name[n] for n in stage.parameters] for stage in stages}
        self._openable = frozenset(openable)
        self._every = every
        self._found = [(weight.tensor, weight.tensor.stop_gradient) for weight in every]
        self._frozen_norm = frozen_norm
        self._frozen_dropout = frozen_dropout
        self._norms = _governed(network, every, statistics=True)
        self._others = _governed(network, every, statistics=False)
        self._held: dict[tuple[str, int], _EvalForward | _GlobalStatistics] = {}
        self._bridge: Bridge | None = None
        # A traced function may call the network from anywhere, so all there are are found. By
        # type: isinstance() asks the object, and a dead weak proxy raises.
        self._traced = [one for one in gc.get_objects() if issubclass(type(one), StaticFunction)]
        self._applied: frozenset[str] | None = None
        self.holds = True

    def apply(self, open_stages: Collection[str]) -> None:
        """Open these stages and freeze all others.

        Applying twice changes nothing; the result does not depend on what was applied before.
        """
        for name, members in self._members.items():
            for weight in members:
                _set_frozen(weight, name not in open_stages or weight.name not in self._openable)
        frozen_now = {
            id(weight.tensor)
            for name, members in self._members.items()
            if name not in open_stages
            for weight in members
        }
        if self._frozen_norm == "eval":
            self._hold("norm", self._norms, frozen_now)
        if self._frozen_dropout == "eval":
            self._hold("eval", self._others, frozen_now)
        if self._applied != frozenset(open_stages):
            self._applied = frozenset(open_stages)
            self.cut_bridge()
            opened = {id(weight.tensor) for weight in self._every if weight.trains}
            self._bridge = Bridge(self._network, frozen_now, opened)
            self._forget_traces()

    def _forget_traces(self) -> None:
        """Have ``to_static(full_graph=True)`` trace again: what is frozen is part of a trace."""
        for traced in self._traced:
            # StaticFunction has no public way to forget its programs, nor those of the
            # instances whose method it decorates.
            for one in [traced, *traced._descriptor_cache.values()]:
                one._program_cache.clear()

    def cut_bridge(self) -> None:
        """Take the cure for recomputed layers back; for when no backward pass follows."""
        if self._bridge is not None:
            self._bridge.undo()
            self._bridge = None

    @property
    def settled(self) -> bool | None:
        """See :attr:`.recompute.Bridge.settled`."""
        return None if self._bridge is None else self._bridge.settled

    def opened(self) -> frozenset[int]:
        """The identities of the weights that train now."""
        return frozenset(id(weight.tensor) for weight in self._every if weight.trains)

    def members(self, stage: str) -> list[Weight]:
        """The weights of a stage that may be opened."""
        return [weight for weight in self._members[stage] if weight.name in self._openable]

    def frozen(self) -> frozenset[str]:
        """The names of the weights that should be frozen now.

        This follows from the stages that were opened last, not from the flags: somebody else may
        have changed those.
        """
        return frozenset(
            weight.name
            for name, members in self._members.items()
            for weight in members
            if name not in (self._applied or ()) or weight.name not in self._openable
        )

    def _hold(self, kind: str, governed: Sequence[_Governed], frozen: set[int]) -> None:
        """Hold exactly those layers whose governing weights are all frozen."""
        for _, layer, governors in governed:
            key, wanted = (kind, id(layer)), bool(governors) and governors <= frozen
            if wanted and key not in self._held:
                self._held[key] = hold_statistics(layer) if kind == "norm" else _EvalForward(layer)
            elif not wanted and key in self._held:
                self._held.pop(key).undo()

    def count(self) -> tuple[int, int]:
        """Trainable elements and all elements, now."""
        return count(self._every)

    def checksums(self) -> dict[str, str]:
        """A checksum of each weight that should be frozen now, and of each statistic held."""
        frozen = self.frozen()
        sums = {w.name: _checksum(w.tensor) for w in self._every if w.name in frozen}
        for path, layer, _ in self._norms:
            if ("norm", id(layer)) in self._held:
                for name, tensor in running_statistics(layer).items():
                    sums[f"{path}.{name}"] = _checksum(tensor)
        return sums

    def restore(self, *, flags: bool = True) -> None:
        """Put everything back as it was found. Doing it again changes nothing.

        Args:
            flags: whether ``stop_gradient`` is put back, too.
        """
        if not self.holds:
            return
        self.holds = False
        for held in self._held.values():
            held.undo()
        self._held.clear()
        self.cut_bridge()
        if flags:
            for tensor, stop_gradient in self._found:
                tensor.stop_gradient = stop_gradient
        self._forget_traces()


def _set_frozen(weight: Weight, frozen: bool) -> None:
    tensor = weight.tensor
    if tensor.stop_gradient != frozen:
        tensor.stop_gradient = frozen
    # Optimizers only zero the gradients of parameters that train, so a gradient that is there
    # now would be added to the first one after unfreezing. False sets it to None.
    if frozen and tensor.grad is not None:
        tensor.clear_gradient(False)


def _checksum(tensor: paddle.Tensor) -> str:
    return hashlib.blake2b(tensor.numpy().tobytes(), digest_size=16).hexdigest()


def _governed(network: nn.Layer, every: Sequence[Weight], *, statistics: bool) -> list[_Governed]:
    """Layers with the weights that decide whether they count as frozen.

    These are a layer's own weights and those inside it. A layer without any is governed by the
    weights that its container defines just before and just after it (a dropout between a
    frozen layer and the open head regularizes the head); where there are none, by its
    container. One that keeps statistics follows only the weights before it (a BatchNorm without
    scale goes with its convolution).
    """
    ids = {id(weight.tensor) for weight in every}
    governed: dict[int, _Governed] = {}

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


# ---------------------------------------------------------------- for hand-written loops


class _ByHand:
    """What :func:`freeze` did to one network."""

    def __init__(self) -> None:
        self.frozen: dict[int, bool] = {}
        self.held: dict[int, _EvalForward | _GlobalStatistics] = {}


_by_hand: weakref.WeakKeyDictionary[nn.Layer, _ByHand] = weakref.WeakKeyDictionary()


def freeze(network: nn.Layer, selector: Selector = EVERYTHING) -> tuple[str, ...]:
    """Freeze parameters, and hold the running statistics of their normalization layers still.

    Args:
        network: the network.
        selector: which parameters, see :mod:`paddle_freeze_callback.selectors`.

    Returns:
        The names of the selected parameters.

    Raises:
        ValueError: if the selector matches nothing.

    >>> import paddle
    >>> net = paddle.nn.Sequential(paddle.nn.Linear(2, 2), paddle.nn.Linear(2, 1))
    >>> freeze(net, "0")
    ('0.weight', '0.bias')
    >>> net[0].weight.stop_gradient, net[1].weight.stop_gradient
    (True, False)
    """
    every = _all_weights(network)
    chosen = select(every, selector, automatic_stages(network, every))
    state = _by_hand.setdefault(network, _ByHand())
    for weight in chosen:
        state.frozen.setdefault(id(weight.tensor), weight.tensor.stop_gradient)
        _set_frozen(weight, True)
    _hold_by_hand(network, every, state)
    return tuple(weight.name for weight in chosen)


def unfreeze(network: nn.Layer, selector: Selector = EVERYTHING) -> tuple[str, ...]:
    """Open parameters again.

    What :func:`freeze` froze gets back the flag that it had. A parameter that something else
    had frozen (you, or LoRA) is opened only if it is asked for by name: by its full name, or by
    a selector, other than ``"*"``, that selects nothing else.

    Args:
        network: the network.
        selector: which parameters; by default whatever :func:`freeze` froze.

    Returns:
        The names of the parameters that train now and did not before.

    Raises:
        ValueError: if the selector matches nothing.

    >>> import paddle
    >>> net = paddle.nn.Sequential(paddle.nn.Linear(2, 2), paddle.nn.Linear(2, 1))
    >>> net[1].bias.stop_gradient = True
    >>> _ = freeze(net)
    >>> unfreeze(net)
    ('0.weight', '0.bias', '1.weight')
    >>> unfreeze(net, "1.bias")
    ('1.bias',)
    """
    every = _all_weights(network)
    chosen = select(every, selector, automatic_stages(network, every))
    state = _by_hand.setdefault(network, _ByHand())
    found = {id(w.tensor): state.frozen.get(id(w.tensor), w.tensor.stop_gradient) for w in chosen}
    opened = []
    by_name = asked_by_name(chosen, selector, [w for w in chosen if not found[id(w.tensor)]])
    for weight in chosen:
        if not weight.trains and (not found[id(weight.tensor)] or weight.name in by_name):
            _set_frozen(weight, False)
            opened.append(weight.name)
        if weight.trains:
            state.frozen.pop(id(weight.tensor), None)
    _hold_by_hand(network, every, state)
    return tuple(opened)


def _all_weights(network: nn.Layer) -> tuple[Weight, ...]:
    every = weights(network)
    if not every:
        raise ValueError(
            f"{type(network).__name__} has no parameters, so there is nothing to freeze"
        )
    return every


def _hold_by_hand(network: nn.Layer, every: Sequence[Weight], state: _ByHand) -> None:
    frozen = {id(w.tensor) for w in every if not w.trains and id(w.tensor) in state.frozen}
    for _, layer, governors in _governed(network, every, statistics=True):
        wanted = bool(governors) and governors <= frozen
        if wanted and id(layer) not in state.held:
            state.held[id(layer)] = hold_statistics(layer)
        elif not wanted and id(layer) in state.held:
            state.held.pop(id(layer)).undo()


def asked_by_name(
    chosen: Sequence[Weight], selector: Selector, trainable: Sequence[Weight]
) -> frozenset[str]:
    """Weights found frozen that may be opened all the same, because the user named them.

    That is: by their full name, or by a selector other than ``"*"`` that selects nothing that
    trains, which would otherwise have no meaning. A selector over a layer with LoRA therefore
    never opens the base weights beside the LoRA ones.
    """
    if isinstance(selector, (list, tuple)):
        asked: frozenset[str] = frozenset()
        for part in selector:
            try:
                inside = select(chosen, part)
            except ValueError:  # the name of an automatic stage: not a name in the network
                continue
            asked |= asked_by_name(inside, part, [w for w in trainable if w in inside])
        return asked
    if selector == EVERYTHING:
        return frozenset()
    if isinstance(selector, str) and any(selector in weight.names for weight in chosen):
        return frozenset(w.name for w in chosen if selector in w.names)
    return frozenset() if trainable else frozenset(weight.name for weight in chosen)
