"""Options from flags, YAML or JSON, turned into arguments of the constructor."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..strategies.base import Strategy
from ..strategies.by_name import STRATEGIES, Recipe, arguments_of, owners, recipe_of, required_of
from ..strategies.timed import Gradual
from ..words import known_names
from .flags import FLAGS, PREFIX, FreezeArguments
from .readers import once, plain_yaml

# What fine_tune() takes, as options.
_FINE_TUNE = {
    "freeze_epochs": "at: 2",
    "lr_mult": 'lr_decay: "100 in all"',
    **dict.fromkeys(("pct_start", "div"), 'phase_lr: ["one_cycle:0.99", "one_cycle:0.3:5"]'),
}


def has_arguments(args: Any) -> bool:
    """Whether these training arguments have the freeze flags."""
    return any(hasattr(args, PREFIX + name) for name in FLAGS)


def from_arguments(args: Any) -> dict[str, Any]:
    """The options that were set among some training arguments, as written."""
    usual = FreezeArguments()
    options = {}
    for name in FLAGS:
        default = getattr(usual, PREFIX + name)
        value = getattr(args, PREFIX + name, default)
        if value != default and value not in (None, "None", [], ["None"]):
            options[name] = value
    return options


def from_file(path: Any) -> dict[str, Any]:
    """The options in a YAML or JSON file, as written.

    Raises:
        ValueError: naming the file and the key that is wrong.
        OSError: if the file cannot be read.
    """
    path = os.fspath(path)
    with open(path, encoding="utf-8") as file:
        try:
            text = file.read()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text: {error}") from None
    content = _parsed(path, text)
    if not isinstance(content, Mapping):
        raise ValueError(
            f"{path} must hold a mapping of options, such as 'every: 1 epoch', "
            f"not {type(content).__name__}"
        )
    options: dict[str, Any] = {}
    for key, value in content.items():
        name = str(key).removeprefix(PREFIX)
        if key in _FINE_TUNE:
            raise ValueError(f"{path}: {key} is fine_tune()'s in code; here: {_FINE_TUNE[key]}")
        if name in ("resume_at", "resume_from"):
            raise ValueError(f"{path}: {name} is of one run, and not of a file; give it in code")
        if name not in FLAGS:
            raise ValueError(f"{path}: unknown option {key!r}{known_names(name, FLAGS)}")
        if name in options:
            raise ValueError(f"{path}: the option {name!r} is there twice")
        options[name] = value
    return {name: value for name, value in options.items() if value is not None}


def _parsed(path: str, text: str) -> Any:
    ending = os.path.splitext(path)[1].lower()
    if ending == ".json":
        try:
            return json.loads(text, object_pairs_hook=lambda pairs: once(path, pairs))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON: {error}") from None
    if ending in (".yaml", ".yml"):
        return plain_yaml(path, text)
    raise ValueError(f"{path}: a schedule file ends in .yaml, .yml or .json, not {ending!r}")


def arguments(options: Mapping[str, Any], where: Callable[[str], str]) -> dict[str, Any]:
    """The arguments of the constructor for options as written.

    Args:
        options: what a flag or a file gives, by the name of the option.
        where: gives the name of an option in its source, such as ``"--freeze_every"``.

    Raises:
        ValueError, TypeError: naming the option that is wrong as its source does.
    """
    read: dict[str, Any] = {}
    for name, value in options.items():
        try:
            read[name] = FLAGS[name].read(value)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{where(name)}: {error}") from None
    strategy = read.pop("strategy", None)
    own = {name: value for name, value in read.items() if owners(name)}
    rest = {name: value for name, value in read.items() if name not in own}
    if strategy is None and not own:
        return rest
    recipe = _recipe(strategy, own, where)
    return {**recipe.rates_beside(rest), "strategy": _made(recipe, own, where)}


def named_in(error: Exception, options: Iterable[str]) -> str | None:
    """The option that an error begins with; the longest, as one may begin with another."""
    return max((one for one in options if str(error).startswith(one)), key=len, default=None)


def _recipe(name: Any, own: Mapping[str, Any], where: Callable[[str], str]) -> Recipe:
    """The recipe of this name; without a name the strategy that alone has these arguments."""
    if name is None:
        fitting = [kind for kind in STRATEGIES.values() if own.keys() <= arguments_of(kind).keys()]
        if Gradual in fitting:
            return Recipe(Gradual)
        if len(fitting) > 1:
            names = ", ".join(kind.name for kind in fitting)
            raise ValueError(
                f"{where(next(iter(own)))}: belongs to several strategies; "
                f"choose one with {where('strategy')}: {names}"
            )
        name = fitting[0].name if fitting else owners(list(own)[-1])[0]
    try:
        recipe = recipe_of(name)
    except ValueError as error:
        raise ValueError(f"{where('strategy')}: {error}") from None
    for option in own:
        if option not in recipe.free:
            others = owners(option)
            raise ValueError(
                f"{where(option)}: belongs to the "
                + ("strategy " if len(others) == 1 else "strategies ")
                + f"{', '.join(map(repr, others))}, not to {name!r}"
            )
    return recipe


def _made(recipe: Recipe, own: Mapping[str, Any], where: Callable[[str], str]) -> Strategy:
    """The strategy; an error names the option as its source does."""
    kind = recipe.strategy
    lacking = [option for option in required_of(kind) if option not in {**recipe.arguments, **own}]
    if lacking:
        raise ValueError(f"{where('strategy')}: {kind.name} needs {', '.join(map(where, lacking))}")
    try:
        return recipe.made(own)
    except (TypeError, ValueError) as error:
        key = named_in(error, arguments_of(kind)) or "strategy"
        raise type(error)(f"{where(key)}: {str(error).removeprefix(f'{key}: ')}") from None
