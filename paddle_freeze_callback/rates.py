"""How fast each stage trains: learning-rate multipliers per stage, and their ramps.

Only ``param.optimize_attr["learning_rate"]`` is touched, the multiplier that Paddle's optimizers
read at every step. So any ``LRScheduler``, parameter group and checkpoint keeps working.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import paddle
from paddle.optimizer.lr import LRScheduler

from .checks import one_of, positive, whole
from .moments import Moment, Run, When, named
from .selectors import EVERYTHING
from .weights import Weight

SHAPES = ("linear", "cosine")


@dataclass(frozen=True)
class LearningRates:
    """What the user says about the stages' learning rates.

    Attributes:
        lr_decay: each stage below the head gets the multiplier of the one above it, divided by
            this.
        lr: multipliers by stage or selector; they take the place of what ``lr_decay`` gives.
            ``"*"`` stands for the stages that no other key means.
        warmup: how long a newly opened stage ramps up to its multiplier.
        warmup_shape: ``"linear"`` or ``"cosine"``.
        hold: how long stages that are open already ramp up again when another opens.
    """

    lr_decay: float = 1.0
    lr: Mapping[Any, float] | None = None
    warmup: When | None = None
    warmup_shape: str = "linear"
    hold: When | None = None

    def __post_init__(self) -> None:
        positive("lr_decay", self.lr_decay, "2.6, ULMFiT's")
        if self.lr is not None:
            if not isinstance(self.lr, Mapping):
                raise TypeError(
                    f"lr={self.lr!r} is no mapping from stages to multipliers, "
                    'such as {"head": 1.0, "*": 0.1}'
                )
            if not self.lr:
                raise ValueError('lr={} says nothing; give {"head": 1.0, "*": 0.1} or leave it out')
            object.__setattr__(self, "lr", dict(self.lr))  # nobody else's
            if EVERYTHING in self.lr and self.lr_decay != 1:
                raise ValueError(
                    f"lr_decay={self.lr_decay!r} and lr={{'*': ...}} contradict each other: the "
                    "latter says the multiplier of every stage that no other key means; drop one"
                )
            for key, value in self.lr.items():
                positive(f"lr[{key!r}]", value, "0.1; what must not train at all is frozen")
        for name in ("warmup", "hold"):
            if getattr(self, name) is not None:
                named(name, Moment.length, getattr(self, name))
        one_of("warmup_shape", self.warmup_shape, SHAPES)
        if self.warmup_shape != "linear" and self.warmup is None and self.hold is None:
            raise ValueError(
                f"warmup_shape={self.warmup_shape!r} has nothing to shape; give warmup= or hold="
            )

    @property
    def neutral(self) -> bool:
        """Whether every stage simply trains at the optimizer's rate."""
        return self.lr_decay == 1 and not self.lr and self.warmup is None and self.hold is None

    def multipliers(
        self, depths: Mapping[str, int], names_of: Callable[[Any], Sequence[str]]
    ) -> dict[str, float]:
        """The multiplier of each stage, ramps aside.

        Args:
            depths: how many stages lie above each, 0 for the head.
            names_of: the stages that a selector means.

        Raises:
            ValueError: if two keys of ``lr`` mean one stage, or a selector fits nothing.

        >>> LearningRates(lr_decay=2).multipliers({"head": 0, "top": 1}, lambda key: [key])
        {'head': 1.0, 'top': 0.5}
        """
        rates = {name: float(self.lr_decay) ** -depth for name, depth in depths.items()}
        said: dict[str, Any] = {}
        for key, value in (self.lr or {}).items():
            if key == EVERYTHING:
                continue
            try:
                names = names_of(key)
            except (TypeError, ValueError) as error:
                raise type(error)(f"lr: {error}") from None
            for name in names:
                if name in said:
                    raise ValueError(
                        f"lr: both {said[name]!r} and {key!r} mean the stage {name!r}; "
                        "say its multiplier once"
                    )
                said[name] = key
                rates[name] = float(value)
        if self.lr and EVERYTHING in self.lr:
            for name in set(depths).difference(said):
                rates[name] = float(self.lr[EVERYTHING])
        return rates

    def check(self, run: Run) -> None:
        """Refuse a ramp whose length the run cannot tell.

        Raises:
            ValueError: naming the argument.
        """
        for name in ("warmup", "hold"):
            self._steps(name, run)

    def window(self, run: Run) -> int:
        """After how many steps every ramp is over."""
        return max(self._steps("warmup", run), self._steps("hold", run))

    def ramps(
        self, step: int, run: Run, openings: Mapping[str, int], latest: int = 0
    ) -> dict[str, float]:
        """The factors below 1 that ramps give after so many steps, by stage.

        In the n-th of N steps of a linear ramp the factor is n / N; of a cosine one,
        (1 - cos(pi n / N)) / 2. What the run begins with does not ramp: there the scheduler's own
        warm-up is at work.

        Args:
            step: optimizer steps done.
            run: the run.
            openings: at which step each of the open stages opened; 0 for those that were open
                from the beginning.
            latest: the last step at which any stage opened, be it open still or not.

        >>> LearningRates(warmup="4 steps").ramps(11, Run.of(total_steps=99), {"a": 0, "b": 10})
        {'b': 0.5}
        """
        factors: dict[str, float] = {}
        latest = max([latest, *openings.values()])
        for name, opened in openings.items():
            factor = 1.0
            if opened:
                factor = self._ramp(step - opened, self._steps("warmup", run))
            if opened < latest:
                factor = min(factor, self._ramp(step - latest, self._steps("hold", run)))
            if factor < 1:
                factors[name] = factor
        return factors

    def _steps(self, name: str, run: Run) -> int:
        """The length of a ramp in steps; 0 for none."""
        length = getattr(self, name)
        if length is None:
            return 0
        try:
            return math.ceil(run.steps(Moment.of(length)))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None

    def _ramp(self, done: int, steps: int) -> float:
        if done + 1 >= steps:
            return 1.0
        share = (done + 1) / steps
        return share if self.warmup_shape == "linear" else (1 - math.cos(math.pi * share)) / 2


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


def current(optimizer: Any) -> float:
    """The optimizer's own rate, before multipliers."""
    return float(optimizer.get_lr())


def check_optimizer(optimizer: Any) -> None:
    """Refuse an optimizer that has no rate per parameter.

    Raises:
        ValueError: naming it.
    """
    if isinstance(optimizer, (paddle.optimizer.LBFGS, paddle.optimizer.Rprop)):
        raise ValueError(
            f"{type(optimizer).__name__} ignores the learning-rate multipliers of parameters, so "
            "lr_decay, lr, warmup and hold would have no effect; use another optimizer"
        )
