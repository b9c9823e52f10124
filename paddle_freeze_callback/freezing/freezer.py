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
from collections.abc import Collection, Sequence

from paddle import nn
from paddle.jit.dy2static.program_translator import StaticFunction

from ..stages.partition import Stage
from ..stages.weights import Weight, count, running_statistics, weights
from .checksums import checksum
from .kernels import Spared, spare
from .recompute import Bridge
from .still import EvalForward, GlobalStatistics, Governed, governed, hold_statistics

FROZEN_MODES = ("eval", "train")


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
        self._norms = governed(network, every, statistics=True)
        self._others = governed(network, every, statistics=False)
        self._held: dict[tuple[str, int], EvalForward | GlobalStatistics] = {}
        self._bridge: Bridge | None = None
        self._spared: Spared | None = None
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
                set_frozen(weight, name not in open_stages or weight.name not in self._openable)
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
        self._respect_kernels()
        if self._applied != frozenset(open_stages):
            self._applied = frozenset(open_stages)
            self.cut_bridge()
            opened = {id(weight.tensor) for weight in self._every if weight.trains}
            self._bridge = Bridge(self._network, frozen_now, opened)
            self._forget_traces()

    def _respect_kernels(self, *, at_work: bool = True) -> None:
        """Let layers train as their flags say now, where their kernels alone could not."""
        if self._spared is not None:
            self._spared.undo()
        self._spared = spare(self._network) if at_work else None

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

    def _hold(self, kind: str, governed: Sequence[Governed], frozen: set[int]) -> None:
        """Hold exactly those layers whose governing weights are all frozen."""
        for _, layer, governors in governed:
            key, wanted = (kind, id(layer)), bool(governors) and governors <= frozen
            if wanted and key not in self._held:
                self._held[key] = hold_statistics(layer) if kind == "norm" else EvalForward(layer)
            elif not wanted and key in self._held:
                self._held.pop(key).undo()

    def count(self) -> tuple[int, int]:
        """Trainable elements and all elements, now."""
        return count(self._every)

    def checksums(self) -> dict[str, str]:
        """A checksum of each weight that should be frozen now, and of each statistic held."""
        frozen = self.frozen()
        sums = {w.name: checksum(w.tensor) for w in self._every if w.name in frozen}
        for path, layer, _ in self._norms:
            if ("norm", id(layer)) in self._held:
                for name, tensor in running_statistics(layer).items():
                    sums[f"{path}.{name}"] = checksum(tensor)
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
        self._respect_kernels(at_work=False)
        if flags:
            for tensor, stop_gradient in self._found:
                tensor.stop_gradient = stop_gradient
        self._forget_traces()


def set_frozen(weight: Weight, frozen: bool) -> None:
    tensor = weight.tensor
    if tensor.stop_gradient != frozen:
        tensor.stop_gradient = frozen
    # Optimizers only zero the gradients of parameters that train, so a gradient that is there
    # now would be added to the first one after unfreezing. False sets it to None.
    if frozen and tensor.grad is not None:
        tensor.clear_gradient(False)
