"""What moment of a training run does the user mean.

Pure code. A moment counts epochs, optimizer steps or a share of the run; a :class:`Run` knows
how long the run is and turns a moment into the number of optimizer steps after which it comes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Union

When = Union[int, str, "Moment"]


_WRITTEN = re.compile(
    r"(?P<value>\d+(?:\.\d+)?)\s*(?P<unit>%|epochs?|steps?)?", re.IGNORECASE | re.ASCII
)


_FORMS = 'write 2 or "2 epochs", "500 steps", or "30%" of the run'


@dataclass(frozen=True)
class Moment:
    """A moment of a run, counted from its beginning.

    Attributes:
        value: how many; for ``"share"`` a number from 0 to 1.
        unit: ``"epochs"``, ``"steps"`` or ``"share"``.

    >>> str(Moment.of("30%")), str(Moment.of(2)), str(Moment.of("1 step"))
    ('30%', '2 epochs', '1 step')
    """

    value: Fraction
    unit: str

    @classmethod
    def of(cls, when: When) -> Moment:
        """The moment that the user wrote: an ``int`` counts epochs, a string names its unit.

        Raises:
            TypeError: for anything but an int, a string or a moment.
            ValueError: for a negative moment, more than 100%, part of a step, or a string of
                another form.
        """
        if isinstance(when, Moment):
            return when
        if isinstance(when, bool) or not isinstance(when, (int, str)):
            raise TypeError(f"{when!r} is no moment of the run; {_FORMS}")
        if isinstance(when, int):
            if when < 0:
                raise ValueError(f"moment {when} is negative; {_FORMS}")
            return cls(Fraction(when), "epochs")
        match = _WRITTEN.fullmatch(when.strip())
        if not match:
            raise ValueError(f"{when!r} is no moment of the run; {_FORMS}")
        value, unit = Fraction(match["value"]), (match["unit"] or "epochs").lower()
        if unit == "%":
            if value > 100:
                raise ValueError(f"{when!r} lies beyond the end of the run; {_FORMS}")
            return cls(value / 100, "share")
        if not match["unit"] and "." in match["value"]:
            raise ValueError(f'{when!r} could be a share or epochs; write "{when} epochs" or "…%"')
        unit = unit.rstrip("s") + "s"
        if unit == "steps" and value.denominator != 1:
            raise ValueError(f"{when!r}: optimizer steps are whole numbers")
        return cls(value, unit)

    @classmethod
    def length(cls, when: When) -> Moment:
        """The same for a length of time, which must not be zero."""
        moment = cls.of(when)
        if not moment.value:
            raise ValueError(f"a length of {when!r} is zero; {_FORMS}")
        return moment

    def plus(self, other: Moment, times: int) -> Moment:
        """The moment so many lengths of the same unit later."""
        return Moment(self.value + times * other.value, self.unit)

    def __str__(self) -> str:
        value = self.value * 100 if self.unit == "share" else self.value
        number = str(value) if value.denominator == 1 else f"{float(value):.4g}"
        if self.unit == "share":
            return number + "%"
        return f"{number} {self.unit[:-1] if value == 1 else self.unit}"
