"""What the first step after an opening shows: the order of use, and what no gradient reaches.

Stages and their order are read from the structure of a network, which is a guess. The first
forward and backward of a run are a fact. :class:`FirstStep` watches them with hooks that only
note, and that come off when the step is over, so no number of the training changes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import paddle
from paddle import nn

from ..stages.weights import Weight, distinct_layers, own_parameters

# How many steps without any gradient at all pass (a skipped batch, a scaled-down loss) until the
# network is believed to have none.
_PATIENCE = 3


@dataclass(frozen=True)
class Findings:
    """What contradicts a schedule.

    Attributes:
        order: pairs of stages; the first opens before the second, yet is used before it.
        unreached: by stage, names of the open weights that got no gradient.
        whole: the stages of ``unreached`` of which no weight got one.
    """

    order: tuple[tuple[str, str], ...]
    unreached: Mapping[str, tuple[str, ...]]
    whole: frozenset[str]

    @property
    def names(self) -> tuple[str, ...]:
        """All names in ``unreached``."""
        return tuple(name for names in self.unreached.values() for name in names)

    def lines(self) -> list[str]:
        """One line for each contradiction, with what to do about it.

        >>> print(*Findings((("norm", "top"),), {}, frozenset()).lines())
        order: 'norm' opens before 'top' but is used before it in the forward; name the stages \
in the order of use, head first (stages=[...])
        """
        found = [
            f"order: {upper!r} opens before {lower!r} but is used before it in the forward; name "
            "the stages in the order of use, head first (stages=[...])"
            for upper, lower in self.order
        ]
        for stage, names in self.unreached.items():
            listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")
            if stage in self.whole:
                found.append(
                    f"nothing reaches {stage!r}: it is open, and none of its weights got a "
                    f"gradient ({listed}); the forward leaves it out, detaches it, or sets "
                    "stop_gradient above it"
                )
            else:
                found.append(
                    f"no gradient reaches {listed} in this step, unlike the rest of {stage!r}; "
                    "unless other batches use it, the forward leaves it out, or its layer has none "
                    "while its other weights are frozen"
                )
        return found


class FirstStep:
    """Watches one optimizer step of a training loop.

    Args:
        network: the network.
        members: all weights of each stage, head first.
        began: optimizer steps done before the step.
        ordered: whether to note the order of use, too.
    """

    def __init__(
        self,
        network: nn.Layer,
        members: Mapping[str, Sequence[Weight]],
        began: int,
        *,
        ordered: bool,
    ) -> None:
        self.began = began
        self._open = {
            stage: [weight.name for weight in group if weight.trains]
            for stage, group in members.items()
        }
        self._stages = tuple(members)
        self._reached: set[str] = set()
        self._first: dict[str, int] = {}
        self._last: dict[str, int] = {}
        self._calls = 0
        self._handles = [
            weight.tensor.register_hook(self._arrived(weight.name))
            for group in members.values()
            for weight in group
            if weight.trains
        ]
        if ordered:
            # A tied tensor belongs to one stage and is used in two places. A container that owns
            # weights beside its children is called before it uses them. Neither shows an order.
            stage_of = {
                id(weight.tensor): stage
                for stage, group in members.items()
                for weight in group
                if len(weight.names) == 1
            }
            for layer in distinct_layers(network):
                own = own_parameters(layer).values()
                stages = {stage_of[id(tensor)] for tensor in own if id(tensor) in stage_of}
                if stages and not any(list(child.parameters()) for child in layer.children()):
                    self._handles.append(layer.register_forward_pre_hook(self._used(stages)))

    def _arrived(self, name: str) -> Callable[[Any], None]:
        def note(gradient: paddle.Tensor | None) -> None:
            if gradient is not None:  # BatchNorm gives None if one of weight and bias is frozen
                self._reached.add(name)

        return note

    def _used(self, stages: set[str]) -> Callable[[Any, Any], None]:
        def note(layer: nn.Layer, inputs: Any) -> None:
            self._calls += 1
            for stage in stages:
                self._first.setdefault(stage, self._calls)
                self._last[stage] = self._calls

        return note

    def conclusive(self, step: int) -> bool:
        """Whether what was seen up to this step can be believed."""
        return bool(self._reached) or step >= self.began + _PATIENCE

    def finish(self, known: Collection[str] = ()) -> Findings:
        """Stop watching, and report all but what is known already."""
        self.cancel()
        lacking = {
            stage: tuple(name for name in names if name not in self._reached)
            for stage, names in self._open.items()
        }
        whole = frozenset(s for s, names in lacking.items() if len(names) == len(self._open[s]))
        new = {s: tuple(n for n in names if n not in known) for s, names in lacking.items()}
        unreached = {stage: names for stage, names in new.items() if names}
        return Findings(tuple(self._out_of_order()), unreached, whole)

    def _out_of_order(self) -> list[tuple[str, str]]:
        """For each stage the first one below it that is used after it.

        The head may have layers before the backbone (a new projection of the input), so its last
        use counts.
        """
        found = []
        for index, upper in enumerate(self._stages):
            used = (self._first if index else self._last).get(upper)
            later = [
                lower
                for lower in self._stages[index + 1 :]
                if used is not None and self._first.get(lower, 0) > used
            ]
            found += [(upper, lower) for lower in later[:1]]
        return found

    def cancel(self) -> None:
        """Stop watching."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def __deepcopy__(self, memo: dict[int, object]) -> FirstStep:
        """A copy of a network shares its hooks; the copy's calls are not those of the run."""
        return self
