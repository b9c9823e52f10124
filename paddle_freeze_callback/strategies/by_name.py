"""The strategies by the names that flags and files call them."""

from __future__ import annotations

import dataclasses
from typing import Any

from .base import Strategy
from .deciding import ByGradient, OnPlateau
from .explicit import Explicit
from .periodic import Cyclic, RandomStages
from .timed import ChainThaw, FreezeDown, Gradual, HeadOnly, HeadThenAll

STRATEGIES: dict[str, type[Strategy]] = {
    strategy.name: strategy
    for strategy in (
        Gradual,
        HeadOnly,
        HeadThenAll,
        Explicit,
        ChainThaw,
        FreezeDown,
        RandomStages,
        Cyclic,
        OnPlateau,
        ByGradient,
    )
}


def options_of(strategy: type[Strategy]) -> tuple[str, ...]:
    """The names of a strategy's arguments."""
    return tuple(field.name for field in dataclasses.fields(strategy))  # type: ignore[arg-type]


def required_of(strategy: type[Strategy]) -> tuple[str, ...]:
    """The names of those arguments of a strategy that have no default."""
    options: Any = dataclasses.fields(strategy)  # type: ignore[arg-type]
    return tuple(each.name for each in options if each.default is dataclasses.MISSING)
