"""A change of the set of open stages: as a line of text, and as numbers for logs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..words import listing


@dataclass(frozen=True)
class Transition:
    """A change of the set of open stages; the first of a run is what the run began with.

    Attributes:
        step: optimizer steps done when it happened.
        epoch: the epoch, from 0.
        opened: names of the stages that opened.
        frozen: names of the stages that froze.
        trainable: trainable elements from then on.
        total: all elements.
        learning_rates: the effective learning rate of each open stage in the step that follows:
            the optimizer's, times the multipliers; where the user's multipliers differ inside a
            stage, with their mean over elements.

    >>> change = Transition(100, 1, ("layer4",), (), 250, 1000)
    >>> print(change)
    step 100, epoch 1: opens layer4; 250 of 1,000 parameters train (25%)
    >>> change.ratio
    0.25
    """

    step: int
    epoch: int
    opened: tuple[str, ...]
    frozen: tuple[str, ...]
    trainable: int
    total: int
    learning_rates: Mapping[str, float] = field(default_factory=dict, hash=False)

    @property
    def ratio(self) -> float:
        """The trainable ratio, trainable elements / all elements."""
        return self.trainable / self.total

    def __str__(self) -> str:
        changes = [
            f"{verb} {listing(names)}"
            for verb, names in (("opens", self.opened), ("freezes", self.frozen))
            if names
        ]
        line = (
            f"step {self.step}, epoch {self.epoch}: {'; '.join(changes) or 'no change'}; "
            f"{self.trainable:,} of {self.total:,} parameters train ({100 * self.ratio:.3g}%)"
        )
        if len(set(self.learning_rates.values())) > 1:
            rates = [f"{name} {rate:.3g}" for name, rate in self.learning_rates.items()]
            line += f"; learning rates {listing(rates)}"
        return line


def brief(transition: Transition, open_stages: int, stages: int) -> str:
    """The current phase in a few words, for a progress bar.

    >>> brief(Transition(100, 1, ("layer4",), (), 250, 1000), 2, 6)
    'open 2/6 stages, 25% train'
    """
    return f"open {open_stages}/{stages} stages, {100 * transition.ratio:.3g}% train"


def numbers(
    transition: Transition, open_stages: int, learning_rates: Mapping[str, float]
) -> dict[str, float]:
    """The numbers for the loop's logs, such as every reporter can plot."""
    return {
        "trainable_ratio": transition.ratio,
        "trainable_params": transition.trainable,
        "open_stages": open_stages,
        **{f"lr/{name}": rate for name, rate in learning_rates.items()},
    }
