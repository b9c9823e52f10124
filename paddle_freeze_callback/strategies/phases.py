"""How the learning rate runs over a phase: its peak, and its shape.

A phase lasts from one change of what is open, or of the rate that ``unfreeze_at`` sets, to the
next; the first begins with the run, the last ends with it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..checks import is_number
from ..words import did_you_mean

CONSTANT = "constant"

_RISE, _DIV, _DIV_FINAL = 0.25, 25.0, 1e5  # of fastai's fit_one_cycle
_ONE_CYCLE = "one_cycle:0.3:25:1e5: the share in which it rises, peak / first, peak / last rate"


def _eased(start: float, end: float, share: float) -> float:
    """Half a cosine from one value to another."""
    return start + (end - start) * (1 - math.cos(math.pi * share)) / 2


def _one_cycle(rise: float, div: float, div_final: float, share: float) -> float:
    if share < rise:
        return _eased(1 / div, 1.0, share / rise)
    return _eased(1.0, 1 / div_final, (share - rise) / (1 - rise))


_CURVES: dict[str, Callable[[float], float]] = {
    CONSTANT: lambda share: 1.0,
    "linear": lambda share: 1 - share,
    "cosine": lambda share: _eased(1.0, 0.0, share),
    "one_cycle": functools.partial(_one_cycle, _RISE, _DIV, _DIV_FINAL),
}


@functools.cache
def _written(text: str) -> Callable[[float], float]:
    name, *numbers = text.strip().split(":")
    if name not in _CURVES:
        near = did_you_mean(name, _CURVES, most=1) or ";"
        raise ValueError(f"is no shape{near} known: {', '.join(_CURVES)}, or a function in code")
    if not numbers:
        return _CURVES[name]
    if name != "one_cycle":
        raise ValueError(f"takes no numbers; write {name!r}")
    try:
        given = [float(number) for number in numbers]
        rise, div, div_final = given + [_RISE, _DIV, _DIV_FINAL][len(given) :]
    except ValueError:
        raise ValueError(f"is not of the form {_ONE_CYCLE}") from None
    if not (0 < rise < 1 and 1 <= div < math.inf and 1 <= div_final < math.inf):
        raise ValueError(
            f"the rise must lie between 0 and 1, the others be at least 1, in {_ONE_CYCLE}"
        )
    return functools.partial(_one_cycle, rise, div, div_final)


def curve_of(shape: Any) -> Callable[[float], float]:
    """The part of the peak at each share of the phase, as the user wrote it.

    Raises:
        ValueError, TypeError: naming what is wrong; a function is tried out.

    >>> [curve_of("one_cycle:0.5:4")(share) for share in (0, 0.5)]
    [0.25, 1.0]
    """
    if isinstance(shape, str):
        try:
            return _written(shape)
        except ValueError as error:
            raise ValueError(f"phase_lr={shape!r}: {error}") from None
    if not callable(shape) or isinstance(shape, type):
        raise TypeError(
            f"phase_lr={shape!r} is no shape: give one of {', '.join(_CURVES)}, or a function of "
            "the share of the phase; a number for a phase belongs in "
            'unfreeze_at={2: {"unfreeze": "*", "lr": 0.1}}'
        )

    def curve(share: float) -> float:
        try:
            value = shape(share)
        except Exception as error:
            raise ValueError(
                f"phase_lr: {shape_name(shape)} raised {type(error).__name__}: {error}, for the "
                f"share {share:.3g} of a phase"
            ) from error
        if not is_number(value) or not 0 <= value < math.inf:
            raise ValueError(
                f"phase_lr: {shape_name(shape)} gave {value!r} for the share {share:.3g} of a "
                "phase; it must give a number from 0, a part of the peak"
            )
        return float(value)

    return curve


def shape_name(shape: Any) -> str:
    """A shape in a message or a table."""
    return shape if isinstance(shape, str) else getattr(shape, "__name__", repr(shape))


@dataclass(frozen=True)
class Pace:
    """The rate of one phase, in which all stages share.

    Attributes:
        index: how many phases came before it.
        began: optimizer steps done when it began.
        until: optimizer steps done when it ends, at the latest; ``None`` if that is not known.
        peak: what it multiplies the rate of each stage by, at its peak.
        shape: how the rate runs over it, as the user wrote it.

    >>> [Pace(0, 10, 14, 0.5, "linear").at(step) for step in range(10, 14)]
    [0.5, 0.375, 0.25, 0.125]
    """

    index: int
    began: int
    until: int | None
    peak: float
    shape: Any

    @property
    def moves(self) -> bool:
        """Whether the rate changes within the phase."""
        return bool(self.shape != CONSTANT)

    def at(self, step: int) -> float:
        """What the rate of each stage is multiplied by after so many steps."""
        if not self.moves or self.until is None:
            return self.peak
        done = min(step, self.until - 1) - self.began  # a loop may go on after the end of its run
        return self.peak * curve_of(self.shape)(done / (self.until - self.began))
