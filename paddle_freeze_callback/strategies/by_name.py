"""The strategies and recipes by the names that code, flags and files give them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..words import EVERYTHING, did_you_mean
from .base import Strategy
from .deciding import ByGradient, OnPlateau
from .explicit import Explicit
from .moments import Moment
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


@dataclass(frozen=True)
class Recipe:
    """A strategy with the numbers of a paper.

    Attributes:
        strategy: the class of the strategy.
        arguments: its arguments, where they differ from their defaults.
        rates: options of the schedule for learning rates, unless others are given.
    """

    strategy: type[Strategy]
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rates: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def made(self, own: Mapping[str, Any]) -> Strategy:
        """The strategy with these arguments beside those of the recipe.

        Raises:
            ValueError, TypeError: if one is wrong, or leaves out a part of the recipe.
        """
        strategy = self.strategy(**{**self.arguments, **own})
        if self is RECIPES["fine_tune"] and not Moment.of(own.get("at", 1)).value:
            raise ValueError(
                f"fine_tune trains the head first, and {own['at']!r} leaves it no time; for the "
                'cycle of everything alone write FreezeSchedule(unfreeze_at={0: {"unfreeze": "*", '
                '"lr": 0.5}}, lr_decay="100 in all", phase_lr="one_cycle:0.3:5")'
            )
        return strategy

    @property
    def free(self) -> list[str]:
        """The arguments that may be given beside its name: not what makes it what it is."""
        fixed = self.arguments.keys() & required_of(self.strategy)
        return [name for name in arguments_of(self.strategy) if name not in fixed]

    def rates_beside(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Its options for learning rates and those that are given, which win.

        >>> recipe_of("ulmfit").rates_beside({"lr": {"head": 1, "*": 0.1}})
        {'lr': {'head': 1, '*': 0.1}}
        """
        lr = given.get("lr")
        all_set = isinstance(lr, Mapping) and EVERYTHING in lr  # which leaves a decay no stage
        usual = {n: v for n, v in self.rates.items() if not (all_set and n == "lr_decay")}
        return {**usual, **given}


#: The papers are named at the constructors of FreezeSchedule with the same names.
RECIPES = {
    "ulmfit": Recipe(Gradual, {"every": "1 epoch"}, {"lr_decay": 2.6}),
    "lp_ft": Recipe(HeadThenAll),
    "lisa": Recipe(RandomStages),
    # "head" in the second list: "!head" must take something away where the head has no bias.
    "bitfit": Recipe(Explicit, {"unfreeze_at": {0: ["head", ["type:bias", "head", "!head"]]}}),
    "fine_tune": Recipe(
        HeadThenAll,
        {"at": 1},
        {
            "lr_decay": "100 in all",
            "phase_lr": ["one_cycle:0.99", "one_cycle:0.3:5"],
            "phase_decay": 0.5,
        },
    ),
}

#: Every name that ``strategy`` may be.
NAMES = (*STRATEGIES, *RECIPES)


def recipe_of(name: Any) -> Recipe:
    """The recipe of this name; the name of a strategy means its defaults.

    Raises:
        ValueError: for an unknown name; the message shows the nearest.

    >>> recipe_of("lp_ft") == recipe_of("head_then_all")
    True
    """
    if isinstance(name, str) and name in NAMES:
        return RECIPES[name] if name in RECIPES else Recipe(STRATEGIES[name])
    near = did_you_mean(name, NAMES, most=1) or ";"
    raise ValueError(f"unknown strategy {name!r}{near} known: {', '.join(NAMES)}")


def arguments_of(strategy: type[Strategy]) -> dict[str, dataclasses.Field[Any]]:
    """The arguments of a strategy by name, each with its description."""
    return {each.name: each for each in dataclasses.fields(strategy)}  # type: ignore[arg-type]


def required_of(strategy: type[Strategy]) -> list[str]:
    """The names of the arguments of a strategy that have no default."""
    arguments = arguments_of(strategy)
    return [name for name, each in arguments.items() if each.default is dataclasses.MISSING]


def owners(argument: str) -> list[str]:
    """The names of the strategies that have an argument of this name."""
    return [name for name, kind in STRATEGIES.items() if argument in arguments_of(kind)]
