"""Flags that somebody else set: noticed within a phase, at no cost per step.

They are looked at 1, 3, 7, ... steps after a transition, later every 100 steps, and whenever the
loop logs, saves or evaluates; always between two steps, so that a loop may toggle flags inside
one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..freezing.freezer import Freezer
from ..words import warn

_MOST = 100  # steps between two looks


class Conflicts:
    """Compares flags with what a schedule says.

    Args:
        freezer: knows what it says.
        mode: ``"warn"``, ``"enforce"`` or ``"error"``.
        say: shows a line.

    Attributes:
        next: the step at which to look next.
        opened: names of the weights that somebody else opened in this phase.
    """

    def __init__(self, freezer: Freezer, mode: str, say: Callable[[str], object]) -> None:
        self._freezer = freezer
        self._mode = mode
        self._say = say
        self.begin(0)

    def begin(self, step: int) -> None:
        """A phase begins: the schedule has just set all flags."""
        self.opened: set[str] = set()
        self.next = step + 1
        self._distance = 1
        self._seen = step
        self._told: set[bool] = set()

    def look(self, step: int, open_stages: Sequence[str]) -> None:
        """Compare.

        Args:
            step: optimizer steps done.
            open_stages: names of the stages that are open now.

        Raises:
            RuntimeError: if a flag differs, in the mode ``"error"``.
        """
        found = self._freezer.conflicts()
        self.opened.update(found.get(False, ()))
        if found and self._mode == "enforce":
            self._freezer.apply(open_stages)
            self._distance, self.next = 1, step + 1  # it may happen at every step
        elif step >= self.next:
            self._distance = min(2 * self._distance, _MOST)
            self.next = step + self._distance
        for frozen, names in found.items():
            text = self._text(names, frozen, step)
            if self._mode == "error":
                raise RuntimeError(text)
            if frozen in self._told:
                continue
            self._told.add(frozen)
            if self._mode == "enforce":
                self._say(text)
            else:
                warn(text)
        self._seen = step

    def who_moved(self, name: str) -> str:
        """How a tensor that is frozen can have moved."""
        if name in self.opened:
            return "somebody else opened it (see the warning), so the optimizer moved it"
        return (
            "its stop_gradient is as the schedule set it, so what moved it is a loaded checkpoint, "
            "an averaging callback, a layer that updates itself in its forward, or the optimizer "
            "while somebody had it open for a step and put that back; untouched= leaves alone what "
            "is moved by hand"
        )

    def _text(self, names: Sequence[str], frozen: bool, step: int) -> str:
        which = names[0] + (f" and {len(names) - 1} more" if names[1:] else "")
        be, them = ("is", "it") if len(names) == 1 else ("are", "them")
        when = f"at step {step}" if step == self._seen else f"between steps {self._seen} and {step}"
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
