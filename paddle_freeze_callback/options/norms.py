"""The option ``train_norm``: when normalization layers train."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Union

from ..checks import one_of
from ..words import known_names
from .readers import pairs

#: The kinds of normalization layers, as the names of their classes say.
KINDS = ("BatchNorm", "InstanceNorm", "GroupNorm", "LayerNorm", "RMSNorm")

#: All other kinds.
OTHER = "*"

CHOICES = ("with_stage", "never", "always")

TrainNorm = Union[str, Mapping[str, str]]


def check(argument: str, value: Any) -> None:
    """Refuse what is no choice, and no mapping from kinds to choices."""
    if not isinstance(value, Mapping):
        return one_of(argument, value, CHOICES)
    if not value:
        raise ValueError(
            f'{argument}={{}} names no kind; give for example {{"BatchNorm": "never"}}'
        )
    for kind, choice in value.items():
        if kind not in (*KINDS, OTHER):
            known = known_names(kind, (*KINDS, OTHER))
            raise ValueError(f"{argument}: unknown kind of normalization {kind!r}{known}")
        one_of(f"{argument}[{kind!r}]", choice, CHOICES)


def read(value: Any) -> Any:
    """One choice, a mapping, or pairs ``kind=choice``."""
    if isinstance(value, (list, tuple)) and len(value) == 1:
        value = value[0]
    if isinstance(value, str) and not any(mark in value for mark in "={"):
        return value
    return pairs(value, "kind=choice", "BatchNorm=never or '*=always'", "the kind")


def chosen(value: TrainNorm) -> set[str]:
    """All choices that are made."""
    return {value} if isinstance(value, str) else set(value.values())
