"""Flags that somebody else set: noticed within a phase, at no cost per step.

What counts is what the optimizer finds when it steps. So its own steps are where flags are
compared: the first, third, seventh, ... after a transition, later every hundredth, the next one
after a log, a save or an evaluation, and the last one of a phase; with ``"enforce"`` each. A loop
may toggle flags between two steps of an optimizer. Where no optimizer is seen to step, flags are
compared between steps.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Sequence
from typing import Any

from ..freezing import optimizer as optimizers
from ..freezing.freezer import Freezer, set_frozen
from ..stages.weights import Weight
from ..words import warn

_MOST = 100  # steps between two looks


class Conflicts:
    """Compares flags with what a schedule says.

    Args:
        freezer: knows what it says.
        mode: ``"warn"``, ``"enforce"`` or ``"error"``.
        say: shows a line.
        step: gives the optimizer steps done.

    Attributes:
        next: the step at which to look next.
        last: the last step of this phase, as far as is known.
        opened: names of the weights that somebody else opened in this phase.
        seen: the calls of ``step()`` and ``minimize()`` so far, of all optimizers.
    """

    def __init__(
        self,
        freezer: Freezer,
        mode: str,
        say: Callable[[str], object],
        step: Callable[[], int],
    ) -> None:
        self._freezer = freezer
        self._mode = mode
        self._say = say
        self._step = step
        self.seen = 0
        self.begin(0)

    def watch(self, optimizer: Any) -> Callable[[], None]:
        """Look when an optimizer, or one of a list, steps; returns how to stop."""
        this = weakref.ref(self)  # the optimizer must not keep the run alive

        def stepping(one: Any, method: Callable[..., Any], *given: Any, **named: Any) -> Any:
            alive = this()
            if alive is not None:
                alive.optimizer_steps(one)
            return method(*given, **named)

        several = optimizer if isinstance(optimizer, list) else [optimizer]
        stops = [optimizers.around(one, name, stepping) for one in several for name in _STEPPING]

        def stop() -> None:
            for one in stops:
                one()

        return stop

    def begin(self, step: int) -> None:
        """A phase begins: the schedule has just set all flags."""
        self.opened: set[str] = set()
        self.next = step + 1
        self.last: int | None = None
        self._distance = 1
        self._looked = step
        self._told: set[bool] = set()
        self._again = False

    def look_soon(self, step: int) -> None:
        """Look at the next step of an optimizer; now, if none was seen to step."""
        if not self.seen:
            self.look(step)
        elif self._freezer.holds:
            self.next = min(self.next, step + 1)

    def due(self, step: int) -> bool:
        """Whether to look after so many steps, between two of them."""
        return not self.seen and step >= self.next

    def optimizer_steps(self, optimizer: Any) -> None:
        self.seen += 1
        step = self._step() + 1
        # Of several optimizers each is looked at in the same step.
        if self._freezer.holds and (
            self._mode == "enforce" or step >= self.next or step in (self.last, self._looked)
        ):
            self.look(step, optimizers.parameter_ids(optimizer))

    def look(self, step: int, among: Collection[int] | None = None) -> None:
        """Compare.

        Args:
            step: the optimizer step that is being done, or the steps done.
            among: identities of the weights that matter; ``None`` for all.

        Raises:
            RuntimeError: if a flag differs, in the mode ``"error"``.
        """
        found = self._freezer.conflicts(among)
        self.opened.update(weight.name for weight in found.get(False, ()))
        if found and self._mode == "enforce":
            for frozen, weights in found.items():
                for weight in weights:
                    if frozen:  # its gradient, if it has one, is of this step
                        weight.tensor.stop_gradient = False
                    else:
                        set_frozen(weight.tensor, True)
            self._distance, self.next = 1, step + 1  # it may happen at every step
        elif step >= self.next:
            self._distance = min(2 * self._distance, _MOST)
            self.next = step + self._distance
        for frozen, weights in found.items():
            self._tell(weights, frozen, step)
        self._looked = step

    def _tell(self, weights: Sequence[Weight], frozen: bool, step: int) -> None:
        text = self._text(weights, frozen, step)
        if self._mode == "error":
            raise RuntimeError(text)
        if frozen not in self._told:
            self._told.add(frozen)
            (self._say if self._mode == "enforce" else warn)(text)
        elif self._mode == "enforce" and frozen and step > self._looked and not self._again:
            # What was frozen while the loop went forward and back has no gradient to step with.
            self._again = True
            warn(f"{text}, again: what is frozen before each forward does not train; drop that")

    def who_moved(self, name: str) -> str:
        """How a tensor that is frozen can have moved."""
        if name in self.opened.union(w.name for w in self._freezer.conflicts().get(False, ())):
            return "somebody else opened it, so the optimizer moved it"
        return (
            "its stop_gradient is as the schedule set it, so what moved it is a loaded checkpoint, "
            "an averaging callback, a layer that updates itself in its forward, or the optimizer "
            "while somebody had it open for a step and put that back; untouched= leaves alone what "
            "is moved by hand"
        )

    def _text(self, weights: Sequence[Weight], frozen: bool, step: int) -> str:
        which = weights[0].name + (f" and {len(weights) - 1} more" if weights[1:] else "")
        be, them = ("is", "it") if len(weights) == 1 else ("are", "them")
        when = (
            f"at step {step}"
            if step == self._looked
            else f"between steps {self._looked} and {step}"
        )
        then = {
            "warn": "it stays so until the next transition; on_conflict='enforce' sets it back, "
            "'error' stops, and untouched= leaves it to you",
            "enforce": "it was set back",
            "error": "drop that, or leave it alone with untouched=",
        }[self._mode]
        return (
            f"{which} {be} {'frozen' if frozen else 'open'} although the schedule has {them} "
            f"{'open' if frozen else 'frozen'}: somebody else set stop_gradient {when} (another "
            "callback, a training loop that toggles it, freeze() or unfreeze(), "
            f"mark_only_lora_as_trainable()); {then}"
        )


_STEPPING = ("step", "minimize")
