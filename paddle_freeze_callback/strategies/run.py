"""How long a run is, and where training is in it."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

from .moments import Moment


@dataclass(frozen=True)
class Run:
    """How long a training run is, as far as its loop can tell.

    Attributes:
        steps_per_epoch: optimizer steps in an epoch; ``None`` if the data has no length.
        total_steps: optimizer steps in the run; ``None`` if not known.
        epochs: epochs in the run, maybe not a whole number; ``None`` if not known.
        epoch_starts: where the data has no length, the steps at which epochs were seen to begin.

    >>> run = Run.of(steps_per_epoch=100, epochs=3)
    >>> run.step_of(Moment.of("50%")), run.step_of(Moment.of(2)), run.epoch_of(199)
    (150, 200, 1)
    """

    steps_per_epoch: int | None
    total_steps: int | None
    epochs: Fraction | None
    epoch_starts: tuple[int, ...] = ()

    @classmethod
    def of(
        cls,
        *,
        epochs: float | None = None,
        steps_per_epoch: int | None = None,
        total_steps: int | None = None,
    ) -> Run:
        """A run from any two of its three lengths, or from its total alone.

        Raises:
            ValueError: if they say too little, contradict each other, or are not positive.
        """
        for name, value in (
            ("epochs", epochs),
            ("steps_per_epoch", steps_per_epoch),
            ("total_steps", total_steps),
        ):
            kinds = numbers.Real if name == "epochs" else numbers.Integral
            right = isinstance(value, kinds) and not isinstance(value, bool)
            if value is not None and not (right and 0 < value < math.inf):
                raise ValueError(
                    f"{name}={value!r} must be a positive "
                    + ("number" if name == "epochs" else "whole number")
                )
        share = None if epochs is None else Fraction(epochs).limit_denominator(10**6)
        steps_per_epoch = None if steps_per_epoch is None else int(steps_per_epoch)
        total_steps = None if total_steps is None else int(total_steps)
        if total_steps is None and share is not None and steps_per_epoch:
            total_steps = int(share * steps_per_epoch)
            if not total_steps:
                raise ValueError(f"epochs={epochs!r} of {steps_per_epoch} steps are no whole step")
        if (
            share is not None
            and steps_per_epoch
            and total_steps
            and total_steps != int(share * steps_per_epoch)
        ):
            raise ValueError(
                f"epochs={epochs!r}, steps_per_epoch={steps_per_epoch} and "
                f"total_steps={total_steps} contradict each other; give two of them"
            )
        if share is None and total_steps and steps_per_epoch:
            share = Fraction(total_steps, steps_per_epoch)
        if total_steps is None and share is None:
            raise ValueError(
                "how long is the run? give two of epochs=, steps_per_epoch= and total_steps=, "
                "or total_steps= alone"
            )
        if steps_per_epoch is None and total_steps and share:
            steps_per_epoch = max(math.ceil(total_steps / share), 1)
        return cls(steps_per_epoch, total_steps, share)

    def steps(self, length: Moment) -> Fraction:
        """A length of time in optimizer steps, not rounded.

        Raises:
            ValueError: if the run cannot tell.
        """
        if length.unit == "steps":
            return length.value
        if length.unit == "share" and self.total_steps:
            return length.value * self.total_steps
        if length.unit == "epochs" and self.steps_per_epoch:
            return length.value * self.steps_per_epoch
        if self.total_steps and self.epochs is None and length.unit == "epochs":
            raise ValueError(
                f'"{length}" cannot be counted: how many steps an epoch has is not known (training '
                "data without length, or no steps_per_epoch=); "
                'use steps ("500 steps") or a share of the run ("30%")'
            )
        raise ValueError(
            f'"{length}" cannot be counted: the training data has no length'
            + (
                '; use steps ("500 steps") or a share of the run ("30%")'
                if self.total_steps
                else ' and the run has no known end; use whole epochs alone or steps ("500 steps")'
            )
        )

    def step_of(self, moment: Moment) -> int | None:
        """How many optimizer steps are done when the moment comes.

        ``None`` while that cannot be known: an epoch of data without length that has not begun.

        Raises:
            ValueError: if it never can.
        """
        if moment.value == 0:
            return 0
        epochs = self._in_epochs(moment)
        if epochs is not None:
            return self._begun(math.ceil(epochs))
        return math.ceil(self.steps(moment))

    def passed(self, every: Moment, step: int) -> int:
        """How many whole lengths of time have passed after so many optimizer steps.

        The next one has passed at ``step_of`` of one more length.

        Raises:
            ValueError: if the run can never tell.

        >>> Run.of(total_steps=100).passed(Moment.of("30 steps"), 60)
        2
        """
        epochs = self._in_epochs(every)
        if epochs is not None:
            return self.epoch_of(step) // epochs
        return int(step // self.steps(every))

    def after(self, step: int, length: Moment) -> int | None:
        """How many optimizer steps are done when so much time has passed since a step.

        ``None`` while that cannot be known: an epoch of data without length that has not begun.

        Raises:
            ValueError: if it never can.

        >>> Run.of(epochs=3, steps_per_epoch=10).after(7, Moment.of(1))
        17
        """
        epochs = self._in_epochs(length)
        if epochs is not None:
            return self._begun(self.epoch_of(step) + max(math.ceil(epochs), 1))
        return step + max(math.ceil(self.steps(length)), 1)

    def _in_epochs(self, length: Moment) -> Fraction | None:
        """A length in epochs, if only their beginnings tell the steps; ``None`` elsewhere."""
        if length.unit == "steps" or self.steps_per_epoch or self.total_steps or not self.epochs:
            return None
        return length.value * (self.epochs if length.unit == "share" else 1)

    def _begun(self, epoch: int) -> int | None:
        """The step at which an epoch began; ``None`` if it has not."""
        return self.epoch_starts[epoch] if epoch < len(self.epoch_starts) else None

    def epoch_of(self, step: int) -> int:
        """The epoch, from 0, in which training is after so many optimizer steps."""
        if self.steps_per_epoch:
            return step // self.steps_per_epoch
        return max(sum(start <= step for start in self.epoch_starts) - 1, 0)

    def continued(self, done: Moment) -> tuple[int, Run]:
        """Steps done when this run goes on after so much of it, and the whole run's length.

        Raises:
            ValueError: if that cannot be counted.

        >>> Run.of(epochs=3, steps_per_epoch=10).continued(Moment.of(2))[0]
        20
        """
        if done.unit == "share":
            raise ValueError(
                f'resume_at="{done}" is a share, of a run whose length only its rest tells; '
                'write epochs or steps, such as "2 epochs"'
            )
        step = math.ceil(self.steps(done))
        if self.total_steps is None:
            raise ValueError("resume_at needs training data with a length")
        return step, Run.of(
            total_steps=step + self.total_steps, steps_per_epoch=self.steps_per_epoch
        )

    def foreseen(self, epochs: int | None = None) -> Run:
        """The run when all its epochs, or so many, have begun, as if each had one step.

        Tells what will happen at all where the data has no length; other runs are known anyway.
        """
        if self.total_steps is not None or self.epochs is None:
            return self
        count = math.ceil(self.epochs) if epochs is None else epochs
        return Run(None, None, self.epochs, tuple(range(count)))

    def epoch_began(self, step: int) -> Run:
        """The run when one more epoch has been seen to begin at this step."""
        return Run(self.steps_per_epoch, self.total_steps, self.epochs, (*self.epoch_starts, step))


@dataclass(frozen=True)
class Progress:
    """Where training is.

    Attributes:
        step: optimizer steps done.
        run: the length of the run.
        metrics: the values of the evaluation that was just made, or, for a rule of the user's
            own, the last value of each metric.
        decisions: what a strategy that does not follow from time alone noted so far, oldest
            first: pairs of step and note.
        stages: the names of the stages that a strategy decides about, head first.
    """

    step: int
    run: Run
    metrics: Mapping[str, Any] = field(default_factory=dict)
    decisions: tuple[tuple[int, Any], ...] = ()
    stages: tuple[str, ...] = ()

    @property
    def epoch(self) -> int:
        """The epoch, from 0.

        Raises:
            ValueError: if the run does not tell how many steps an epoch has.
        """
        if self.run.steps_per_epoch is None and self.run.epochs is None:
            raise ValueError(
                "the epoch is not known: the training data has no length, or steps_per_epoch= was "
                "not given; use progress.step or progress.share"
            )
        return self.run.epoch_of(self.step)

    @property
    def share(self) -> float | None:
        """Steps done / steps of the run; ``None`` if its end is not known.

        >>> Progress(25, Run.of(total_steps=100)).share
        0.25
        """
        return self.step / self.run.total_steps if self.run.total_steps else None

    def back_to(self, step: int) -> Progress:
        """The progress as it was after so many steps, with the decisions made until then."""
        known = tuple(decision for decision in self.decisions if decision[0] <= step)
        return replace(self, step=step, decisions=known)
