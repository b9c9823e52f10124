"""Whether an argument is what it must be, and how an option is described.

A check raises an error that names the argument and its right values.
"""

from __future__ import annotations

import inspect
import math
import numbers
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from typing import Any, TypeVar

T = TypeVar("T")


def one_of(argument: str, value: Any, allowed: Sequence[str]) -> None:
    """Raises ValueError if the value is not one of those allowed."""
    if value not in allowed:
        raise ValueError(f"{argument}={value!r} must be {' or '.join(map(repr, allowed))}")


def boolean(argument: str, value: Any) -> None:
    """Raises TypeError if the value is neither True nor False."""
    if not isinstance(value, bool):
        raise TypeError(f"{argument}={value!r} must be True or False")


def whole(argument: str, value: Any, least: int) -> None:
    """Raises ValueError if the value is not a whole number from ``least`` on."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or int(value) < least:
        raise ValueError(f"{argument}={value!r} must be a whole number from {least}")


def positive(argument: str, value: Any, example: str) -> None:
    """Raises TypeError if the value is not a number, ValueError if it is not positive.

    >>> positive("lr_decay", 0, "2.6")
    Traceback (most recent call last):
    ValueError: lr_decay=0 must be a positive number, such as 2.6
    """
    if not is_number(value):
        raise TypeError(f"{argument}={value!r} must be a number, such as {example}")
    if not 0 < float(value) < math.inf:
        raise ValueError(f"{argument}={value!r} must be a positive number, such as {example}")


def tensor_file(argument: str, value: Any) -> None:
    """Raises TypeError if the value is no path, ValueError for another ending."""
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{argument}={value!r} must be the path of a file")
    if not os.fspath(value).endswith(".safetensors"):
        raise ValueError(f"{argument}={value!r} must end in .safetensors, which is its format")


def is_number(value: Any) -> bool:
    """Whether this is a real number; NumPy's count, too."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def named(argument: str, parse: Callable[[Any], T], value: Any) -> T:
    """The parsed value; an error names the argument that the value was given for."""
    try:
        return parse(value)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{argument}: {error}") from None


def about(
    help: str,
    flag: type | None = str,
    *,
    check: Callable[[str, Any], None] | None = None,
    reader: Callable[[Any], Any] | None = None,
) -> dict[str, Any]:
    """The description of an option, as the metadata of a dataclass field.

    Args:
        help: the meaning of the option, as the end of the sentence "option: ...".
        flag: the type of its flag: ``str``, ``int``, ``float``, ``bool``, or ``list`` for several
            words; ``None`` for an option that has no flag.
        check: takes the option's name and a value; raises an error if the value is wrong.
        reader: makes what the constructor takes from what a flag or a file gives.
    """
    return {"help": help, "flag": flag, "check": check, "reader": reader}


def option(default: Any, help: str, flag: type | None = str, **further: Any) -> Any:
    """A dataclass field with a default and a description; see :func:`about`."""
    return field(default=default, metadata=about(help, flag, **further))


def documented(text: str | None, helps: Mapping[str, str]) -> str | None:
    """A docstring with a section on these options: their names with their help."""
    lines = [f"    {name}: {help}." for name, help in helps.items()]
    if text is None or not lines:  # python -OO strips docstrings
        return text
    return "\n".join([inspect.cleandoc(text), "", "Args:", *lines, ""])
