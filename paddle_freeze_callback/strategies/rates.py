"""How fast each stage trains: learning-rate multipliers per stage and phase, and their ramps."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..checks import named, one_of, positive
from ..words import EVERYTHING
from .moments import Moment, When
from .phases import CONSTANT, Pace, curve_of, shape_name
from .run import Run

SHAPES = ("linear", "cosine")
_IN_ALL = re.compile(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?) in all", re.ASCII)


@dataclass(frozen=True)
class LearningRates:
    """The learning rates of the stages: the options of the same names.

    In ``lr`` the key ``"*"`` means every stage that no other key means.
    """

    lr_decay: float | str = 1.0
    lr: Mapping[Any, float] | None = None
    warmup: When | None = None
    warmup_shape: str = "linear"
    hold: When | None = None
    phase_lr: Any = CONSTANT
    phase_decay: float = 1.0

    def __post_init__(self) -> None:
        self._decay(1)
        positive("phase_decay", self.phase_decay, "0.5")
        if not self.shapes:
            raise ValueError('phase_lr=[] has no shape; give "cosine", or one for each phase')
        for shape in self.shapes:
            curve = curve_of(shape)
            if callable(shape):
                shares = (*(tenth / 10 for tenth in range(10)), 0.95, 0.99, 0.999, 0.9999)
                if not max(curve(share) for share in shares):
                    raise ValueError(
                        f"phase_lr: {shape_name(shape)} is 0 throughout, so that nothing would "
                        "train; what must not train is frozen"
                    )
        if self.lr is not None:
            if not isinstance(self.lr, Mapping):
                raise TypeError(
                    f"lr={self.lr!r} is no mapping from stages to multipliers, "
                    'such as {"head": 1.0, "*": 0.1}'
                )
            if not self.lr:
                raise ValueError('lr={} sets nothing; give {"head": 1.0, "*": 0.1} or leave it out')
            object.__setattr__(self, "lr", dict(self.lr))  # nobody else's
            if EVERYTHING in self.lr and self.lr_decay != 1:
                raise ValueError(
                    f"lr_decay={self.lr_decay!r} and lr={{'*': ...}} contradict each other: the "
                    "latter sets the multiplier of every stage that no other key means; drop one"
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
        usual = self.lr_decay == 1 and not self.lr and self.warmup is None and self.hold is None
        return usual and not self.shaped and self.phase_decay == 1

    @property
    def shapes(self) -> tuple[Any, ...]:
        """The shapes of the phases in order; the last holds for all that follow."""
        several = isinstance(self.phase_lr, (list, tuple))
        return tuple(self.phase_lr) if several else (self.phase_lr,)

    @property
    def shaped(self) -> bool:
        """Whether the rate changes within a phase, so that its length matters."""
        return any(shape != CONSTANT for shape in self.shapes)

    def pace(self, before: Pace | None, began: int, own: float | None) -> Pace:
        """The rate of the phase that begins at a step, its end aside.

        Args:
            before: that of the phase before it; ``None`` for the first.
            began: the step.
            own: the peak that the strategy sets for it.

        >>> rates = LearningRates(phase_decay=0.5)
        >>> rates.pace(rates.pace(None, 0, 4.0), 10, None).peak
        2.0
        """
        index = before.index + 1 if before else 0
        peak = before.peak * self.phase_decay if before else 1.0
        shape = self.shapes[min(index, len(self.shapes) - 1)]
        return Pace(index, began, None, peak if own is None else float(own), shape)

    def multipliers(
        self, depths: Mapping[str, int], names_of: Callable[[Any], Sequence[str]]
    ) -> dict[str, float]:
        """The multiplier of each stage, without ramps.

        Args:
            depths: how many stages lie above each, 0 for the head.
            names_of: the stages that a selector means.

        Raises:
            ValueError: if two keys of ``lr`` mean one stage, or a selector fits nothing.

        >>> LearningRates(lr_decay=2).multipliers({"head": 0, "top": 1}, lambda key: [key])
        {'head': 1.0, 'top': 0.5}
        """
        decay = self._decay(max(depths.values(), default=0))
        rates = {name: decay**-depth for name, depth in depths.items()}
        keys: dict[str, Any] = {}
        for key, value in (self.lr or {}).items():
            if key == EVERYTHING:
                continue
            try:
                names = names_of(key)
            except (TypeError, ValueError) as error:
                raise type(error)(f"lr: {error}") from None
            for name in names:
                if name in keys:
                    raise ValueError(
                        f"lr: both {keys[name]!r} and {key!r} mean the stage {name!r}; "
                        "give its multiplier once"
                    )
                keys[name] = key
                rates[name] = float(value)
        if self.lr and EVERYTHING in self.lr:
            for name in set(depths).difference(keys):
                rates[name] = float(self.lr[EVERYTHING])
        return rates

    def check(self, run: Run) -> None:
        """Refuse a ramp whose length in steps is unknown in this run.

        Raises:
            ValueError: naming the argument.
        """
        for name in ("warmup", "hold"):
            self._steps(name, run)

    def window(self, run: Run) -> int:
        """The number of steps after which every ramp is over."""
        return max(self._steps("warmup", run), self._steps("hold", run))

    def ramps(
        self, step: int, run: Run, openings: Mapping[str, int], latest: int = 0
    ) -> dict[str, float]:
        """The factors below 1 that ramps give after so many steps, by stage.

        In the n-th of N steps of a linear ramp the factor is n / N; of a cosine one,
        (1 - cos(pi n / N)) / 2. Stages that are open from the start do not ramp: their warm-up is
        the scheduler's.

        Args:
            step: optimizer steps done.
            run: the run.
            openings: the step at which each open stage opened; 0 stands for the start.
            latest: the last step at which any stage opened, even one that is frozen again.

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

    def _decay(self, deepest: int) -> float:
        """The ratio of the rates of two neighbours, the last of so many lying below the head."""
        if isinstance(self.lr_decay, str):
            match = _IN_ALL.fullmatch(self.lr_decay.strip())
            if not match or not float(match[1]):
                raise ValueError(
                    f"lr_decay={self.lr_decay!r} must be a number, such as 2.6, or say how much "
                    'lower the last stage is than the head, such as "100 in all"'
                )
            return float(float(match[1]) ** (1 / max(deepest, 1)))
        positive("lr_decay", self.lr_decay, "2.6, ULMFiT's")
        return float(self.lr_decay)

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
