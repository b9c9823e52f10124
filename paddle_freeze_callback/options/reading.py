"""Options as flags, YAML or JSON say them, turned into arguments of the constructor."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any, Optional

from ..strategies.base import Strategy
from ..strategies.by_name import STRATEGIES, options_of, required_of
from ..strategies.timed import Gradual
from .flags import PREFIX, FreezeArguments


def options_from_arguments(args: Any) -> dict[str, Any]:
    """The options that were set among some training arguments, as the constructor takes them.

    Raises:
        ValueError, TypeError: naming the flag whose value is wrong.
    """
    return _read(_given(args), lambda key: f"--{PREFIX}{key}")


def given_flags(args: Any) -> list[str]:
    """The flags that were set among some training arguments."""
    return [f"--{PREFIX}{name}" for name in _given(args)]


def _given(args: Any) -> dict[str, Any]:
    options = {}
    for each in fields(FreezeArguments):
        value = getattr(args, each.name, each.default)
        default = None if each.default is MISSING else each.default
        if value != default and value not in (None, "None", [], ["None"]):
            options[each.name[len(PREFIX) :]] = value
    return options


def has_arguments(args: Any) -> bool:
    """Whether these training arguments know the freeze flags."""
    return any(hasattr(args, each.name) for each in fields(FreezeArguments))


def options_from_file(path: Any) -> dict[str, Any]:
    """The options in a YAML or JSON file, as the constructor takes them.

    Raises:
        ValueError, TypeError: naming the file and the key that is wrong.
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
    known = [each.name[len(PREFIX) :] for each in fields(FreezeArguments)]
    options = {}
    for key, value in content.items():
        name = str(key)
        name = name[len(PREFIX) :] if name.startswith(PREFIX) else name
        if name not in known:
            near = difflib.get_close_matches(name, known, n=2)
            hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
            raise ValueError(f"{path}: unknown option {key!r}; {hint}")
        if name in options:
            raise ValueError(f"{path}: the option {name!r} is there twice")
        if value is not None:
            options[name] = value
    return _read(options, lambda key: f"{path}: {key}")


def _parsed(path: str, text: str) -> Any:
    ending = os.path.splitext(path)[1].lower()
    if ending == ".json":
        try:
            return json.loads(text, object_pairs_hook=lambda pairs: _once(path, pairs))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON: {error}") from None
    if ending in (".yaml", ".yml"):
        return _yaml(path, text)
    raise ValueError(f"{path}: a schedule file ends in .yaml, .yml or .json, not {ending!r}")


def _once(where: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A dictionary of these, if no key is there twice."""
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"{where}: the key {key!r} is there twice")
    return dict(pairs)


def _yaml(where: str, text: str) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """Plain data only, and no key twice."""

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            _once(where, [(str(key), None) for key in keys])
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{where} is not plain YAML: {error}") from None


def _read(options: dict[str, Any], where: Callable[[str], str]) -> dict[str, Any]:
    """Turn flat options as written into arguments of the constructor."""
    read: dict[str, Any] = {}
    for key, value in options.items():
        try:
            read[key] = _READERS.get(key, lambda given: given)(value)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{where(key)}: {error}") from None
    name = read.pop("strategy", None)
    if name is not None and not (isinstance(name, str) and name in STRATEGIES):
        near = difflib.get_close_matches(str(name), STRATEGIES, n=1)
        raise ValueError(
            f"{where('strategy')}: unknown strategy {name!r}; "
            + (f"did you mean {near[0]!r}? " if near else "")
            + f"known: {', '.join(STRATEGIES)}"
        )
    own = {option: value for option, value in read.items() if owners(option)}
    rest = {option: value for option, value in read.items() if option not in own}
    if not own and name is None:
        return rest
    return {**rest, "strategy": _made(_kind(name, own, where), own, where)}


def named_in(error: Exception, options: Iterable[str]) -> Optional[str]:
    """The option that an error begins with; the longest, as one may begin with another."""
    return max((one for one in options if str(error).startswith(one)), key=len, default=None)


def owners(option: str) -> list[str]:
    """The names of the strategies that have an option of this name."""
    return [name for name, kind in STRATEGIES.items() if option in options_of(kind)]


def _kind(
    name: Optional[str], own: Mapping[str, Any], where: Callable[[str], str]
) -> "type[Strategy]":
    """The strategy that is named, or that alone has these options; the plain one if it has."""
    fitting = [kind for kind in STRATEGIES.values() if set(own) <= set(options_of(kind))]
    if name is None and Gradual in fitting:
        return Gradual
    if name is None and len(fitting) > 1:
        names = ", ".join(kind.name for kind in fitting)
        raise ValueError(
            f"{where(next(iter(own)))}: belongs to several strategies; "
            f"say which with {where('strategy')}: {names}"
        )
    if name is None and fitting:
        return fitting[0]
    kind = STRATEGIES[name or owners(list(own)[-1])[0]]
    for option in own:
        if option not in options_of(kind):
            others = owners(option)
            raise ValueError(
                f"{where(option)}: belongs to the "
                + ("strategy " if len(others) == 1 else "strategies ")
                + f"{', '.join(map(repr, others))}, not to {kind.name!r}"
            )
    return kind


def _made(kind: "type[Strategy]", own: Mapping[str, Any], where: Callable[[str], str]) -> Strategy:
    """The strategy; an error names the option as its source calls it."""
    lacking = [option for option in required_of(kind) if option not in own]
    if lacking:
        raise ValueError(f"{where('strategy')}: {kind.name} needs {', '.join(map(where, lacking))}")
    try:
        return kind(**own)
    except (TypeError, ValueError) as error:
        key = named_in(error, options_of(kind)) or "strategy"
        text = str(error)[len(key) + 2 :] if str(error).startswith(f"{key}: ") else str(error)
        raise type(error)(f"{where(key)}: {text}") from None


def _stages(value: Any) -> Any:
    if isinstance(value, (list, tuple)) and len(value) == 1:
        only = value[0]
        if only == "auto" or (isinstance(only, str) and only.isdigit()):
            value = only
    if isinstance(value, (list, tuple)):  # a file may say 1 for the item "1" of a Sequential
        return [str(one) if type(one) is int else one for one in value]
    return int(value) if isinstance(value, str) and value.isdigit() else value


def _unfreeze_at(value: Any) -> Any:
    """A mapping, or pairs ``when=what``."""
    return _pairs(value, "when=what", "1=layer4 or '50%=*'", "the moment")


def _lr(value: Any) -> Any:
    """A mapping, or pairs ``stage=multiplier``; a stage's name may hold no equals sign."""
    pairs = _pairs(value, "stage=multiplier", "head=1 or '*=0.1'", "the stage")
    numbers = {}
    for stage, multiplier in pairs.items():
        try:
            numbers[stage] = float(multiplier) if isinstance(multiplier, str) else multiplier
        except ValueError:
            raise ValueError(f"the multiplier {multiplier!r} of {stage!r} is no number") from None
    return numbers


def _pairs(value: Any, form: str, example: str, key: str) -> "dict[Any, Any]":
    """A mapping, or a list of pairs; a JSON mapping comes through argparse as one string."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, Sequence):
        raise TypeError(f"{value!r} is no mapping and no list of {form}")
    if len(value) == 1 and isinstance(value[0], str) and value[0].lstrip().startswith("{"):
        return _pairs(_yaml("the mapping", value[0]), form, example, key)
    pairs: dict[Any, Any] = {}
    for pair in value:
        left, equals, right = str(pair).partition("=")
        if not equals or not left.strip() or not right.strip():
            raise ValueError(f"{pair!r} is no pair {form}, such as {example}")
        if left.strip() in pairs:
            raise ValueError(f"{key} {left.strip()!r} is there twice")
        pairs[left.strip()] = right.strip()
    return pairs


def _number(value: Any) -> Any:
    """A number; YAML reads ``1e-3`` as text."""
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"{value!r} is no number") from None


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{value!r} is neither true nor false")
    return value


_READERS = {
    "stages": _stages,
    "unfreeze_at": _unfreeze_at,
    "lr": _lr,
    "restore_best": _boolean,
    **dict.fromkeys(("power", "min_delta", "threshold", "lr_decay"), _number),
    "verify": _boolean,
    "restore": _boolean,
    "free_optimizer_state": _boolean,
}
