"""How a network is made to be as a schedule says, and how that is undone.

Three things make a weight frozen: ``stop_gradient``; no stale gradient, which would be added to
the first one after unfreezing (Paddle's ``clear_grad`` skips frozen parameters); and, for a
normalization layer, running statistics that stay as they are although every training loop calls
``network.train()`` before each batch.

:class:`Freezer` applies a set of open stages. It is idempotent and converges from any state,
because it remembers only how the network was found.
"""

from __future__ import annotations

import gc
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import paddle
from paddle.jit.dy2static.program_translator import ASTStaticFunction, ProgramTranslator

from ..bits import digest
from ..stages.declared import REST
from ..stages.partition import Stage, Survey
from ..stages.weights import Weight, count, merging, running_statistics
from .kernels import Spared, spare
from .recompute import Bridge
from .rows import still
from .still import EvalForward, GlobalStatistics, Governed, governed, hold_statistics
from .tree import tree


class Freezer:
    """Opens and freezes a network's stages, and knows how the network was found.

    Args:
        survey: of the network.
        stages: all its stages, every weight in exactly one.
        openable: names of the weights that may be opened at all; others stay as found.
        alone: names of the weights that are left alone: neither set, nor held, nor verified.
            Weights that were found frozen and that no selector names are, too.
        pinned: whether the statistics of some layers stand still, by identity, whatever is open.
        frozen_norm: ``"eval"`` holds running statistics of frozen layers; ``"train"`` lets them
            move.
        frozen_dropout: ``"eval"`` also switches off dropout, and whatever else depends on
            training mode, in frozen layers; ``"train"`` leaves it on.
    """

    def __init__(
        self,
        survey: Survey,
        stages: Sequence[Stage],
        openable: Collection[str],
        *,
        alone: Collection[str] = (),
        pinned: Mapping[int, bool] | None = None,
        frozen_norm: str = "eval",
        frozen_dropout: str = "train",
    ) -> None:
        self.network = survey.network
        self.weights = survey.weights
        self._openable = frozenset(openable)
        self._pinned = pinned or {}
        self._alone = frozenset(id(survey.by_name[name].tensor) for name in alone)
        self._members = {
            stage.name: [
                survey.by_name[name]
                for name in stage.parameters
                if name in self._openable or (name not in alone and stage.name != REST)
            ]
            for stage in stages
        }
        managed = [weight for members in self._members.values() for weight in members]
        self._found = [(weight.tensor, weight.tensor.stop_gradient) for weight in managed]
        self._expected: list[tuple[Weight, bool]] = []
        self._tree = tree(survey)
        self._governed: dict[str, list[Governed]] = {}
        if frozen_norm == "eval":
            self._governed["norm"] = governed(self._tree, statistics=True)
        if frozen_dropout == "eval":
            never = {id(one.tensor) for one in managed if one.name not in self._openable}
            self._governed["eval"] = governed(self._tree, statistics=False, never=never)
        self._held: dict[tuple[str, int], EvalForward | GlobalStatistics] = {}
        self._bridge: Bridge | None = None
        self._spared: Spared | None = None
        self._traced = traced_functions()
        self._applied: frozenset[str] | None = None
        self.holds = True

    def apply(self, open_stages: Collection[str]) -> None:
        """Open these stages and freeze all others.

        Applying twice changes nothing; the result does not depend on what was applied before.
        """
        self._expected = [
            (weight, name not in open_stages or weight.name not in self._openable)
            for name, members in self._members.items()
            for weight in members
        ]
        for weight, frozen in self._expected:
            set_frozen(weight.tensor, frozen)
        frozen_now = {id(weight.tensor) for weight, frozen in self._expected if frozen}
        for kind, layers in self._governed.items():
            self._hold(kind, layers, frozen_now)
        self._respect_kernels()
        if self._applied != frozenset(open_stages):
            self._applied = frozenset(open_stages)
            self.cut_bridge()
            self._bridge = Bridge(self.network)
            self._forget_traces()

    def _respect_kernels(self, *, at_work: bool = True) -> None:
        """Let layers train as their flags say now, where their kernels alone could not."""
        if self._spared is not None:
            self._spared.undo()
        self._spared = spare(self.network) if at_work else None

    def _forget_traces(self) -> None:
        """Have ``to_static(full_graph=True)`` trace again: frozen weights are part of a trace."""
        self._traced = self._traced or traced_functions()
        for traced in self._traced:
            # Nothing public leads from a method to what was made of it for each instance.
            for one in [traced, *traced._descriptor_cache.values()]:
                one.program_cache.clear()

    def cut_bridge(self) -> None:
        """Take the cure for recomputed layers back."""
        if self._bridge is not None:
            self._bridge.undo()
            self._bridge = None

    @property
    def settled(self) -> bool | None:
        """See :attr:`.recompute.Bridge.settled`."""
        return None if self._bridge is None else self._bridge.settled

    def opened(self) -> frozenset[int]:
        """The identities of the weights that may move now: they train, or are left alone."""
        return self._alone.union(id(weight.tensor) for weight in self.weights if weight.trains)

    def members(self, stage: str) -> list[Weight]:
        """The weights of a stage that may be opened."""
        return [weight for weight in self._members[stage] if weight.name in self._openable]

    def frozen(self) -> frozenset[str]:
        """The names of the weights that should be frozen now.

        This follows from the stages that were opened last, not from the flags: somebody else may
        have changed those.
        """
        return frozenset(weight.name for weight, frozen in self._expected if frozen)

    def conflicts(self, among: Collection[int] | None = None) -> dict[bool, list[Weight]]:
        """The weights whose flag somebody else has set, by what it is now: frozen, or not.

        Args:
            among: identities of those that matter; ``None`` for all.
        """
        found: dict[bool, list[Weight]] = {}
        for weight, frozen in self._expected:
            if weight.tensor.stop_gradient != frozen and (
                among is None or id(weight.tensor) in among
            ):
                found.setdefault(not frozen, []).append(weight)
        return found

    def _hold(self, kind: str, layers: Sequence[Governed], frozen: set[int]) -> None:
        """Hold exactly those layers whose governing weights are all frozen."""
        for _, layer, governors in layers:
            key, wanted = (kind, id(layer)), bool(governors) and governors <= frozen
            if self._alone.isdisjoint(governors):
                wanted = self._pinned.get(id(layer), wanted)
            if wanted and key not in self._held:
                self._held[key] = hold_statistics(layer) if kind == "norm" else EvalForward(layer)
            elif not wanted and key in self._held:
                self._held.pop(key).undo()

    def count(self) -> tuple[int, int]:
        """Trainable elements and all elements, now."""
        return count(self.weights)

    def checksums(self) -> dict[str, bytes]:
        """A checksum of each weight that the schedule froze, and of each statistic held.

        What the user froze, the user may move, unless it was opened by name. Even then the base
        weight of a LoRA layer that merges moves by rounding (PaddleNLP's merge to evaluate).
        """
        rounded = merging(self.network).intersection(
            id(tensor) for tensor, frozen in self._found if frozen
        )
        sums = {
            weight.name: digest(weight.tensor)
            for weight, frozen in self._expected
            if frozen and weight.name in self._openable and id(weight.tensor) not in rounded
        }
        for weight in self.weights:
            for span in still(weight) if weight.trains else ():
                sums[f"{weight.name}[{span.start}:{span.stop}]"] = digest(weight.tensor[span])
        for path, layer, _ in self._governed.get("norm", ()):
            if ("norm", id(layer)) in self._held:
                for name, tensor in running_statistics(layer).items():
                    sums[f"{path}.{name}"] = digest(tensor)
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


def set_frozen(tensor: paddle.Tensor, frozen: bool) -> None:
    """Freeze or open one weight."""
    changes = tensor.stop_gradient != frozen
    if changes:
        tensor.stop_gradient = frozen
    # Optimizers only zero the gradients of parameters that train, so a gradient that is there
    # now, also of a weight that somebody had open for a while, would be added to the first one
    # after unfreezing. False sets it to None.
    if (frozen or changes) and tensor.grad is not None:
        tensor.clear_gradient(False)


def traced_functions() -> list[Any]:
    """All functions of ``to_static(full_graph=True)``: any of them may call the network."""
    # The first function of to_static makes the only translator; nothing public shows whether
    # there is one. Without any, the walk over all objects of the process would be for nothing.
    if getattr(ProgramTranslator, "_instance", ...) is None:
        return []
    # By type: isinstance() asks the object, and a dead weak proxy raises.
    return [one for one in gc.get_objects() if issubclass(type(one), ASTStaticFunction)]
