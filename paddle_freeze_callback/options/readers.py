"""What flags and files give, turned into what the constructor takes."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def once(where: str, pairs: Sequence[tuple[Any, Any]]) -> dict[Any, Any]:
    """A dictionary of these pairs, if no key is there twice.

    Raises:
        ValueError: naming the key that is there twice.
    """
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"{where}: the key {key!r} is there twice")
    return dict(pairs)


def plain_yaml(where: str, text: str) -> Any:
    """Plain data from YAML.

    Raises:
        ValueError: for another text, or if a key is there twice.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """Refuses a key that is there twice."""

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            once(where, [(str(self.construct_object(key, deep=True)), 0) for key, _ in node.value])
            return super().construct_mapping(node, deep)

    def quoted(loader: Any, tag: str, node: Any) -> Any:
        raise ValueError(f"{where}: write '!{tag}' in quotes; YAML reads !{tag} as a type")

    Loader.add_multi_constructor("!", quoted)
    try:
        return yaml.load(text, Loader)
    except (yaml.scanner.ScannerError, yaml.parser.ParserError) as error:
        raise ValueError(
            f"{where} is not plain YAML: {error}\nwhat has !, [, {{, * or : in it stands in quotes"
        ) from None
    except yaml.YAMLError as error:
        raise ValueError(f"{where} is not plain YAML: {error}") from None


def stages(value: Any) -> Any:
    """``"auto"``, a number or selectors; a flag gives the first two as a list of one word."""
    if isinstance(value, (list, tuple)) and len(value) == 1:
        only = value[0]
        if only == "auto" or (isinstance(only, str) and only.isdigit()):
            value = only
    if isinstance(value, (list, tuple)):  # YAML reads the name "1" of an item as a number
        return [str(one) if type(one) is int else one for one in value]
    return int(value) if isinstance(value, str) and value.isdigit() else value


def moments(value: Any) -> dict[Any, Any]:
    """A mapping, or pairs ``when=what``."""
    found = pairs(value, "when=what", "1=layer4 or '50%=*'", "the moment")
    for when, what in found.items():
        if isinstance(what, str) and what.startswith("{") and ":" in what:
            found[when] = what = plain_yaml(f"what opens at {when}", what)
        if isinstance(what, Mapping) and "lr" in what:
            try:
                found[when] = {**what, "lr": number(what["lr"])}
            except ValueError as error:
                raise ValueError(f"at {when!r} the rate {error}") from None
    return found


def multipliers(value: Any) -> dict[Any, Any]:
    """A mapping, or pairs ``stage=multiplier``; a stage's name may hold no equals sign."""
    found = pairs(value, "stage=multiplier", "head=1 or '*=0.1'", "the stage")
    for stage, multiplier in found.items():
        try:
            found[stage] = number(multiplier)
        except ValueError:
            raise ValueError(f"the multiplier {multiplier!r} of {stage!r} is no number") from None
    return found


def pairs(value: Any, form: str, example: str, key: str) -> dict[Any, Any]:
    """A mapping, or a list of pairs; a JSON mapping comes through argparse as one string."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, Sequence):
        raise TypeError(f"{value!r} is no mapping and no list of {form}")
    if len(value) == 1 and isinstance(value[0], str) and value[0].lstrip().startswith("{"):
        return pairs(plain_yaml("the mapping", value[0]), form, example, key)
    found: dict[Any, Any] = {}
    for pair in value:
        if isinstance(pair, Mapping):  # "name: rows", or "name=7:", which YAML reads as a mapping
            raise ValueError(f"{pair!r} is no pair {form}; put it in quotes, such as '{example}'")
        left, equals, right = (part.strip() for part in str(pair).partition("="))
        if not equals or not left or not right:
            raise ValueError(f"{pair!r} is no pair {form}, such as {example}")
        if left in found:
            raise ValueError(f"{key} {left!r} is there twice")
        found[left] = right
    return found


def number(value: Any) -> Any:
    """A number; YAML reads ``1e-3`` as text."""
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"{value!r} is no number") from None


def decay(value: Any) -> Any:
    """A number, or text that says more."""
    try:
        return number(value)
    except ValueError:
        return value


def shapes(value: Any) -> Any:
    """One shape, or several; a flag gives one as a list."""
    return value[0] if isinstance(value, (list, tuple)) and len(value) == 1 else value


def path(value: Any) -> Any:
    """A path; ``~`` is the user's home folder, as a shell would have it."""
    return os.path.expanduser(value) if isinstance(value, str) else value


def truth(value: Any) -> bool:
    """True or false, and no text that may mean it."""
    if not isinstance(value, bool):
        raise TypeError(f"{value!r} is neither true nor false")
    return value


#: The readers of options that have no reader of their own, by the type of their flag.
BY_TYPE: dict[type, Callable[[Any], Any]] = {float: number, bool: truth}
