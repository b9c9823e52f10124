"""Whether an argument is what it must be; if not, an error that names it and says what it is."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any


def one_of(argument: str, value: Any, allowed: Sequence[str]) -> None:
    """Raises ValueError if the value is none of those allowed."""
    if value not in allowed:
        raise ValueError(f"{argument}={value!r} must be {' or '.join(map(repr, allowed))}")


def boolean(argument: str, value: Any) -> None:
    """Raises TypeError if the value is neither True nor False."""
    if not isinstance(value, bool):
        raise TypeError(f"{argument}={value!r} must be True or False")


def whole(argument: str, value: Any, least: int) -> None:
    """Raises ValueError if the value is no whole number from ``least`` on."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or int(value) < least:
        raise ValueError(f"{argument}={value!r} must be a whole number from {least}")


def positive(argument: str, value: Any, example: str) -> None:
    """Raises TypeError for what is no number, ValueError for one that is not positive.

    >>> positive("lr_decay", 0, "2.6")
    Traceback (most recent call last):
    ValueError: lr_decay=0 must be a positive number, such as 2.6
    """
    if not is_number(value):
        raise TypeError(f"{argument}={value!r} must be a number, such as {example}")
    if not 0 < float(value) < math.inf:
        raise ValueError(f"{argument}={value!r} must be a positive number, such as {example}")


def is_number(value: Any) -> bool:
    """Whether this is a real number, also one of NumPy's."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def named(argument: str, parse: Callable[[Any], object], value: Any) -> None:
    """Check a value by parsing it; the error names the argument that it was given for."""
    try:
        parse(value)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{argument}: {error}") from None
