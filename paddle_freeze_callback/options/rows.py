"""The option ``rows``: of which tensors some rows train alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .readers import pairs

_ROWS = re.compile(r"(-?\d+)?\s*:\s*(-?\d+)?")


def span(text: str) -> slice:
    """The rows that a text such as ``"30522:"``, ``"-8:"`` or ``"5:10"`` means.

    Raises:
        ValueError: for another text.

    >>> span("30522:"), span("-8:-2")
    (slice(30522, None, None), slice(-8, -2, None))
    """
    found = _ROWS.fullmatch(text.strip())
    if found is None or found.group(1) == found.group(2):
        raise ValueError(f'{text!r} is no run of rows; write for example "30522:", "-8:" or "5:10"')
    first, after = found.groups()
    return slice(*(None if end is None else int(end) for end in (first, after)))


def check(argument: str, value: Any) -> None:
    """Refuse what is no mapping from names of tensors to rows."""
    if not isinstance(value, Mapping):
        raise TypeError(f'{argument}={value!r} must be a mapping, such as {{"embeddings": "-8:"}}')
    if not value:
        raise ValueError(
            f'{argument}={{}} names no tensor; give for example {{"embeddings": "-8:"}}'
        )
    for name, rows in value.items():
        if not isinstance(name, str) or not isinstance(rows, str):
            raise TypeError(
                f"{argument}={{{name!r}: {rows!r}}} must give text for a name, such as "
                '{"embeddings": "5:10"}; in YAML in quotes, as 5:10 alone is a number there'
            )
        try:
            span(rows)
        except ValueError as error:
            raise ValueError(f"{argument}[{name!r}]: {error}") from None


def read(value: Any) -> Any:
    """A mapping, or pairs ``tensor=rows``."""
    return pairs(value, "tensor=rows", "embeddings=30522:", "the tensor")
