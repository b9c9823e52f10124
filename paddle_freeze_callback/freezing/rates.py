"""How fast each stage trains: learning-rate multipliers per stage, and their ramps.

Only ``param.optimize_attr["learning_rate"]`` is touched, the multiplier that Paddle's optimizers
read at every step. So any ``LRScheduler``, parameter group and checkpoint keeps working.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from paddle.optimizer.lr import LRScheduler

from ..checks import positive, whole
from ..stages.weights import Weight


class Multipliers:
    """Sets the learning-rate multipliers of weights, and knows how they were found.

    Args:
        members: the weights of each stage.
    """

    def __init__(self, members: Mapping[str, Sequence[Weight]]) -> None:
        self._members = members
        self._found = {
            weight.name: getattr(weight.tensor, "optimize_attr", None) or {"learning_rate": 1.0}
            for group in members.values()
            for weight in group
        }
        self._of_user = {stage: self._mean(group) for stage, group in members.items()}
        self._applied: dict[str, float] = {}

    def _mean(self, group: Sequence[Weight]) -> float:
        total = sum(weight.numel for weight in group)
        weighted = sum(
            weight.numel * float(self._found[weight.name].get("learning_rate", 1.0))
            for weight in group
        )
        return weighted / total if total else 1.0

    def apply(self, multipliers: Mapping[str, float]) -> None:
        """Give each of these stages so many times what the user had set."""
        for stage, factor in multipliers.items():
            if self._applied.get(stage, 1.0) == factor:
                continue
            self._applied[stage] = factor
            for weight in self._members[stage]:
                found = self._found[weight.name]
                wanted = found.get("learning_rate", 1.0) * factor
                # A new dictionary: parameters may share one.
                weight.tensor.optimize_attr = {**found, "learning_rate": wanted}

    def effective(self, stage: str) -> float:
        """The multiplier of a stage now; where the user's differ, with their mean over elements."""
        return self._of_user[stage] * self._applied.get(stage, 1.0)

    def restore(self) -> None:
        """Put the multipliers back as they were found. Doing it again changes nothing."""
        for stage in self._applied:
            for weight in self._members[stage]:
                weight.tensor.optimize_attr = self._found[weight.name]
        self._applied.clear()


class SlantedTriangular(LRScheduler):  # type: ignore[misc]  # it is untyped
    """Slanted triangular learning rates: a short linear rise, then a long linear fall.

    With T steps in all, cut = floor(T * cut_frac), and p = t / cut before the cut and
    1 - (t - cut) / (cut * (1 / cut_frac - 1)) after it, the rate in step t is
    peak * (1 + p * (ratio - 1)) / ratio.

    Source: Howard & Ruder 2018, "Universal Language Model Fine-tuning for Text Classification"
    (ULMFiT), equation 3. After step T the rate stays at its lowest.

    Args:
        peak: the highest rate, reached at the cut.
        total_steps: T, the optimizer steps of the run.
        cut_frac: the share of the run in which the rate rises.
        ratio: how much lower than the peak the lowest rate is.
        last_epoch: the index of the last step, when training goes on; -1 to begin.
        verbose: print each change.

    Raises:
        ValueError, TypeError: for arguments out of range, or a run too short to have a rise.

    >>> scheduler = SlantedTriangular(0.01, total_steps=100)
    >>> rates = []
    >>> for step in range(100):
    ...     rates.append(scheduler.get_lr())
    ...     scheduler.step()
    >>> rates[0] == 0.01 / 32, rates.index(max(rates)), round(max(rates), 12)
    (True, 10, 0.01)
    """

    def __init__(
        self,
        peak: float,
        total_steps: int,
        cut_frac: float = 0.1,
        ratio: float = 32,
        last_epoch: int = -1,
        verbose: bool = False,
    ) -> None:
        positive("peak", peak, "0.01")
        whole("total_steps", total_steps, 1)
        positive("cut_frac", cut_frac, "0.1")
        if cut_frac >= 1:
            raise ValueError(f"cut_frac={cut_frac!r} must be below 1: the rate must fall, too")
        positive("ratio", ratio, "32")
        if ratio < 1:
            raise ValueError(f"ratio={ratio!r} must be at least 1: peak is the highest rate")
        self.total_steps: int = int(total_steps)
        # 0.29 * 100 is a hair below 29
        self.cut: int = math.floor(round(self.total_steps * cut_frac, 9))
        self.cut_frac: float = cut_frac
        self.ratio: float = ratio
        if self.cut < 1:
            raise ValueError(
                f"total_steps={total_steps!r} with cut_frac={cut_frac!r} leaves no step to rise "
                f"in; give at least {math.ceil(1 / cut_frac)} steps"
            )
        super().__init__(peak, last_epoch, verbose)

    def get_lr(self) -> float:
        """The rate in the step with the index ``last_epoch``."""
        step = self.last_epoch
        if step < self.cut:
            share = step / self.cut
        else:
            share = 1 - (step - self.cut) / (self.cut * (1 / self.cut_frac - 1))
        return float(self.base_lr * (1 + max(share, 0.0) * (self.ratio - 1)) / self.ratio)


def ill_timed(optimizer: Any, total_steps: int, tolerance: int) -> str:
    """What to say of a scheduler that is made for a run of another length; empty if none is."""
    scheduler = getattr(optimizer, "_learning_rate", None)  # nothing public gives it
    if not isinstance(scheduler, SlantedTriangular):
        return ""
    steps = scheduler.total_steps
    if abs(steps - total_steps) <= tolerance:
        return ""
    then = (
        "the rate is at its lowest from there on" if steps < total_steps else "the rate never falls"
    )
    return (
        f"SlantedTriangular(total_steps={steps}) is for another run than this one of "
        f"{total_steps:,} steps: {then}; give total_steps={total_steps}"
    )


def current(optimizer: Any) -> float:
    """The optimizer's own rate, before multipliers."""
    return float(optimizer.get_lr())


def mean(shares: Mapping[Any, int]) -> float:
    """The own rate of several optimizers, where each trains so many elements of one stage."""
    return sum(current(one) * share for one, share in shares.items()) / sum(shares.values())


def check_optimizer(optimizer: Any) -> None:
    """Refuse an optimizer that has no rate per parameter.

    Raises:
        ValueError: naming it.
    """
    # By name: Paddle 2.6 has no Rprop.
    if not {"LBFGS", "Rprop"}.isdisjoint(kind.__name__ for kind in type(optimizer).__mro__):
        raise ValueError(
            f"{type(optimizer).__name__} ignores the learning-rate multipliers of parameters, so "
            "lr_decay, lr, warmup, hold, phase_lr, phase_decay and rates in unfreeze_at would have "
            "no effect; use another optimizer"
        )
