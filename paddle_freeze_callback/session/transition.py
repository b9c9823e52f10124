"""A change of the set of open stages: as a line of text, and as numbers for logs."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..words import EVERYTHING, fitting, listing


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
            the optimizer's, times the multipliers; where optimizers, or the user's multipliers,
            differ inside a stage, with their mean over elements.

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
        share = f"{100 * self.ratio:.3g}%"
        most = f"{self.trainable:,} of {self.total:,} parameters train ({share})"
        middle = f"{self.trainable:,} of {self.total:,} train ({share})"
        least = f"{share} of {self.total:,} train"
        every, span = "", ""
        if len(set(self.learning_rates.values())) > 1:
            rates = self.learning_rates.values()
            each = [f"{name} {rate:.3g}" for name, rate in self.learning_rates.items()]
            every = f"; lr {listing(each)}"
            span = f"; lr {max(rates):.3g} to {min(rates):.3g}"
        ways = (
            (60, most, every), (60, middle, every), (60, most, span), (60, middle, span),
            (44, middle, span), (60, least, span), (44, least, span),
            (20, most, span), (20, middle, span), (20, least, span), (12, least, ""),
        )  # fmt: skip
        return fitting(
            f"step {self.step}, epoch {self.epoch}: {self._changes(room)}; {count}{rate}"
            for room, count, rate in ways
        )

    def _changes(self, room: int) -> str:
        """What opens and freezes, with room for the names after each verb."""
        verbs = (("opens", self.opened), ("freezes", self.frozen))
        found = [f"{verb} {listing(names, room=room)}" for verb, names in verbs if names]
        return "; ".join(found) or "no change"


class Open(int):
    """How many stages are open: a number for reporters, of how many where it is shown.

    >>> print(Open(3, of=8), Open(3, of=8) + 1)
    3/8 4
    """

    of: int

    def __new__(cls, value: int, of: int = 0) -> Open:
        """As in ``Open(3, of=8)``."""
        number = super().__new__(cls, value)
        number.of = of
        return number

    def __str__(self) -> str:
        return f"{int(self)}/{self.of}"


def tags(names: Sequence[str]) -> dict[str, str]:
    """Stage by stage, the name of its learning rate for reporters: no letter that one replaces.

    >>> tags(["layers.{2-3}", "conv1, bn1", "*"])
    {'layers.{2-3}': 'lr/layers.2-3', 'conv1, bn1': 'lr/conv1_bn1', '*': 'lr/rest'}
    """
    found: dict[str, str] = {}
    for name in names:
        text = "rest" if name == EVERYTHING else re.sub(r"[{}\[\]]", "", name)
        tag = "lr/" + re.sub(r"[^\w./-]+", "_", text, flags=re.ASCII).strip("_")
        while tag in found.values():
            tag += "_"
        found[name] = tag
    return found


def numbers(
    transition: Transition, open_stages: Open, learning_rates: Mapping[str, float]
) -> dict[str, float]:
    """The numbers for the loop's logs, such as every reporter can plot; rates by their tags."""
    return {
        "trainable_ratio": transition.ratio,
        "trainable_params": transition.trainable,
        "open_stages": open_stages,
        **learning_rates,
    }


def shown(logs: Mapping[str, Any], hidden: Collection[str]) -> dict[str, Any]:
    """A loop's logs as a line shows them: without what is for reporters alone; shares rounded.

    >>> shown({"loss": 0.7, "trainable_ratio": 2 / 3, "lr/head": 0.1}, {"lr/head"})
    {'loss': 0.7, 'trainable_ratio': 0.667}
    """
    ours = ("trainable_ratio", "cache_hit_rate")
    return {
        name: float(f"{value:.3g}") if name in ours else value
        for name, value in logs.items()
        if name not in hidden
    }
