"""Flags that somebody else set: noticed within a phase, at no cost per step.

What counts is what the optimizer finds when it steps. So its own steps are where flags are
compared: the first, third, seventh, ... after a transition, later every hundredth, the next one
after a log, a save or an evaluation, and the last one of a phase; with ``"enforce"`` each. A loop
may toggle flags between two steps of an optimizer. Where no optimizer is seen to step, such as
one that the loop built anew, flags are compared between steps.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from ..freezing import optimizer as optimizers
from ..freezing.freezer import Freezer, set_frozen
from ..stages.weights import Weight
from ..words import warn

_STEPPING = ("step", "minimize")
_MOST = 100  # steps between two looks


@dataclass
class _Looks:
    """At which steps to look: 1, 3, 7, ... after a transition, later every 100.

    Attributes:
        last: the step of the last look.
        next: that of the next one.
        distance: between the two before it.
    """

    last: int
    next: int
    distance: int = 1

    def go_on(self, step: int) -> None:
        """Find the next step after this one."""
        if step >= self.next:
            self.distance = min(2 * self.distance, _MOST)
            self.next = step + self.distance


class Conflicts:
    """Compares flags with what a schedule says.

    Args:
        freezer: knows what it says.
        mode: ``"warn"``, ``"enforce"`` or ``"error"``.
        say: shows a line.
        step: gives the optimizer steps done.

    Attributes:
        last: the last step of this phase, as far as is known.
        opened: names of the weights that somebody else opened in this phase.
        closed: names of those that somebody else froze.
        trained: names of those that somebody else opened in any phase, and that stayed open.
        seen: the calls of ``step()`` and ``minimize()`` so far, by optimizer.
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
        self.seen: Counter[int] = Counter()
        self.trained: set[str] = set()
        self.begin(0)

    def watch(self, optimizer: Any) -> Callable[[], None]:
        """Look when an optimizer, or one of a list, steps; returns how to stop."""
        this = weakref.ref(self)  # the optimizer must not keep the run alive

        def stepping(one: Any, method: Callable[..., Any], *given: Any, **named: Any) -> Any:
            alive = this()
            later = alive.optimizer_steps(one) if alive is not None else ()
            result = method(*given, **named)
            for weight in later:
                weight.tensor.stop_gradient = False
            return result

        several = optimizer if isinstance(optimizer, list) else [optimizer]
        stops = [optimizers.around(one, name, stepping) for one in several for name in _STEPPING]

        def stop() -> None:
            for one in stops:
                one()

        return stop

    def begin(self, step: int) -> None:
        """A phase begins: the schedule has just set all flags."""
        self.opened: set[str] = set()
        self.closed: set[str] = set()
        self.last: int | None = None
        self._began = step
        self._looks: dict[int | None, _Looks] = {}
        self._before = step, self.seen.total()
        self._told: set[tuple[bool, int | None]] = set()
        self._again = False

    def _looks_at(self, key: int | None) -> _Looks:
        return self._looks.setdefault(key, _Looks(self._began, self._began + 1))

    @property
    def next(self) -> int:
        """The step at which to call :meth:`between`."""
        return self._looks_at(None).next

    def between(self, step: int, *, soon: bool = False) -> None:
        """Between two steps: look, unless an optimizer was seen to step since the last time.

        Args:
            step: the steps done.
            soon: whether the next step of each optimizer is to be looked at.
        """
        now = step, self.seen.total()
        unseen = not now[1] or (now[0] > self._before[0] and now[1] == self._before[1])
        self._before = now
        if unseen:
            self._look(step, None)
            return
        self._looks_at(None).go_on(step)
        for looks in self._looks.values() if soon else ():
            looks.next = min(looks.next, step + 1)

    def optimizer_steps(self, optimizer: Any) -> Sequence[Weight]:
        """An optimizer is about to step.

        Returns:
            The weights to open after that step.
        """
        key, step = id(optimizer), self._step() + 1
        self.seen[key] += 1
        looks = self._looks_at(key)
        due = self._mode == "enforce" or step >= looks.next or step == self.last
        if not due or not self._freezer.holds:
            return ()
        return self._look(step, key, optimizers.parameter_ids(optimizer))

    def _look(
        self, step: int, key: int | None, among: Collection[int] | None = None
    ) -> Sequence[Weight]:
        """Compare.

        Args:
            step: the optimizer step that is being done, or the steps done.
            key: of the optimizer; ``None`` between steps.
            among: identities of the weights that matter; ``None`` for all.

        Returns:
            The weights to open after this step of the optimizer.

        Raises:
            RuntimeError: if a flag differs, in the mode ``"error"``.
        """
        looks, later = self._looks_at(key), []
        found = self._freezer.conflicts(among)
        self.opened.update(weight.name for weight in found.get(False, ()))
        if self._mode != "enforce":
            self.trained |= self.opened
        self.closed.update(weight.name for weight in found.get(True, ()))
        for weight in found.get(False, ()) if self._mode == "enforce" else ():
            set_frozen(weight.tensor, True)
        for weight in found.get(True, ()) if self._mode == "enforce" else ():
            # What was frozen from the forward on has no gradient, or what clear_grad() left: with
            # that, decay and momentum would move it.
            if key is not None and _without_gradient(weight):
                later.append(weight)
            else:
                weight.tensor.stop_gradient = False
        looks.go_on(step)
        if found and self._mode != "warn":
            looks.distance, looks.next = 1, step + 1  # it may happen at every step
        for frozen, weights in found.items():
            self._tell(weights, frozen, step, key, bool(frozen and later))
        looks.last = step
        return later

    def _tell(
        self, weights: Sequence[Weight], frozen: bool, step: int, key: int | None, lost: bool
    ) -> None:
        last = self._looks_at(key).last
        text = self._text(weights, frozen, f"{last} and {step}" if last != step else "", step)
        if self._mode == "error":
            raise RuntimeError(text)
        if (frozen, key) not in self._told:
            self._told.add((frozen, key))
            (self._say if self._mode == "enforce" else warn)(text)
        elif lost and step > last and not self._again:
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

    def _text(self, weights: Sequence[Weight], frozen: bool, between: str, step: int) -> str:
        which = weights[0].name + (f" and {len(weights) - 1} more" if weights[1:] else "")
        be, them = ("is", "it") if len(weights) == 1 else ("are", "them")
        when = f"between steps {between}" if between else f"at step {step}"
        then = {
            "warn": "the schedule sets it at its next transition; on_conflict='enforce' sets it "
            "back at once, 'error' stops, and untouched= leaves it to you",
            "enforce": "it was set back",
            "error": "drop that, or leave it alone with untouched=",
        }[self._mode]
        return (
            f"{which} {be} {'frozen' if frozen else 'open'} although the schedule has {them} "
            f"{'open' if frozen else 'frozen'}: somebody else set stop_gradient {when} (another "
            "callback, a training loop that toggles it, freeze() or unfreeze(), "
            f"mark_only_lora_as_trainable()); {then}"
        )


def _without_gradient(weight: Weight) -> bool:
    gradient = weight.tensor.grad
    # Not by "!= 0": in Paddle 3.0 that takes what is smaller than 1e-8 for zero.
    return gradient is None or (gradient.is_dense() and not bool(gradient.astype("bool").any()))
