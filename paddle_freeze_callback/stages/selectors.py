"""Which parameters does the user mean.

A selector is

* a dotted name. It matches whole components from the left, so ``fc1`` selects ``fc1.weight``
  and never ``fc10.weight``. In a component ``*`` and ``?`` stand for characters and
  ``{8-11}`` or ``{0,2,5-7}`` for numbers or words; the component ``**`` stands for any number
  of components;
* ``re:`` and a regular expression, which must match the whole name of a parameter or of a
  layer around it;
* a ``paddle.nn.Layer`` of the network: everything inside it;
* a callable that takes a parameter's name and returns whether it is meant;
* a list or tuple of these: everything that any of them selects.

A selector that selects nothing is an error, never a silent no-op.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Union

from paddle import nn

from ..words import EVERYTHING
from .weights import Weight, layers, own_parameters

Selector = Union[str, nn.Layer, Callable[[str], bool], Sequence["Selector"]]


@functools.lru_cache(maxsize=1024)
def compile_name(text: str) -> re.Pattern[str]:
    """The regular expression for a dotted name or a ``re:`` selector.

    It matches, in full, the names of all parameters at or below what the text names.

    Raises:
        ValueError: if the text is no dotted name and no regular expression.

    >>> bool(compile_name("layers.{8-11}").fullmatch("layers.10.linear1.weight"))
    True
    >>> bool(compile_name("fc1").fullmatch("fc10.weight"))
    False
    """
    if text.startswith("re:"):
        try:
            return re.compile(rf"(?:{text[3:]})(?:\..*)?", re.DOTALL)
        except re.error as error:
            raise ValueError(f"selector {text!r} is no regular expression: {error}") from None
    components = text.split(".")
    if not all(component and component == component.strip() for component in components):
        raise ValueError(
            f"selector {text!r} has an empty component or blanks around one; "
            'a selector is a dotted name such as "encoder.layers.3"'
        )
    *outer, last = components
    expression = "".join(
        r"(?:[^.]+\.)*" if component == "**" else _component(component, text) + r"\."
        for component in outer
    )
    expression += ".+" if last == "**" else _component(last, text) + r"(?:\..*)?"
    return re.compile(expression, re.DOTALL)


def _component(component: str, text: str) -> str:
    """One component, as a regular expression without dots."""
    parts = re.split(r"(\{[^{}]*\}|\*|\?)", component)
    expression = ""
    for part in parts:
        if part == "*":
            expression += "[^.]*"
        elif part == "?":
            expression += "[^.]"
        elif part.startswith("{") and part.endswith("}"):
            expression += _alternatives(part[1:-1], text)
        elif "{" in part or "}" in part:
            raise ValueError(f"selector {text!r} has an unpaired brace in {component!r}")
        else:
            expression += re.escape(part)
    return expression


def _alternatives(inside: str, text: str) -> str:
    """``8-11`` or ``a,b,3-5`` as a group of alternatives."""
    words: list[str] = []
    for word in (word.strip() for word in inside.split(",")):
        ends = re.fullmatch(r"(\d+)-(\d+)", word)
        if ends:
            low, high = int(ends[1]), int(ends[2])
            if low > high:
                raise ValueError(
                    f"selector {text!r}: the range {{{word}}} runs backwards; "
                    f"write {{{high}-{low}}}"
                )
            words += [str(number) for number in range(low, high + 1)]
        elif word:
            words.append(re.escape(word))
        else:
            raise ValueError(f"selector {text!r} has an empty alternative in {{{inside}}}")
    return "(?:" + "|".join(words) + ")"


def describe(selector: Selector, network: nn.Layer | None = None) -> str:
    """A short name for a selector, used as the name of the stage it makes.

    >>> describe(["fc", "layer4"])
    'fc + layer4'
    """
    if isinstance(selector, str):
        return selector
    if isinstance(selector, nn.Layer):
        for path, layer in layers(network) if network is not None else ():
            if layer is selector and path:
                return path
        return type(selector).__name__
    if isinstance(selector, (list, tuple)):
        return " + ".join(describe(part, network) for part in selector)
    return getattr(selector, "__name__", type(selector).__name__)


def select(
    among: Sequence[Weight],
    selector: Selector,
    groups: Mapping[str, Sequence[Weight]] | None = None,
) -> tuple[Weight, ...]:
    """The weights that a selector means, in the order of the network.

    A tied weight is meant if any of its names is.

    Args:
        among: the weights of the network.
        selector: what is meant.
        groups: named groups of weights, such as the stage ``"head"``; a dotted name that is no
            name in the network may be the name of a group.

    Raises:
        ValueError: if nothing is selected; the message shows the nearest names.
        TypeError: if it is no selector.
    """
    found = _selected(among, selector, groups or {})
    if not found:
        raise ValueError(_nothing(among, selector))
    return tuple(weight for weight in among if id(weight.tensor) in found)


def _selected(
    among: Sequence[Weight], selector: Selector, groups: Mapping[str, Sequence[Weight]]
) -> set[int]:
    if isinstance(selector, str):
        exact = {id(weight.tensor) for weight in among if selector in weight.names}
        if exact:  # names of layers may hold dots: "_blocks.0.._bn0.weight" is no dotted name
            return exact
        pattern = compile_name(selector)
        return {
            id(weight.tensor)
            for weight in among
            if any(pattern.fullmatch(name) for name in weight.names)
        } or {
            id(weight.tensor)
            for name, group in groups.items()
            if pattern.fullmatch(name)
            for weight in group
        }
    if isinstance(selector, nn.Layer):
        inside = {id(one) for _, part in layers(selector) for one in own_parameters(part).values()}
        return {id(weight.tensor) for weight in among if id(weight.tensor) in inside}
    if isinstance(selector, (list, tuple)):
        if not selector:
            raise ValueError("an empty list selects nothing; name at least one layer or parameter")
        found: set[int] = set()
        for part in selector:
            found |= {id(weight.tensor) for weight in select(among, part, groups)}
        return found
    if callable(selector):
        return {
            id(weight.tensor)
            for weight in among
            if any(_answer(selector, name) for name in weight.names)
        }
    shown = repr(selector) if isinstance(selector, (int, float, type(None))) else type(selector)
    raise TypeError(
        f"{shown} is no selector: give a dotted name, 're:...', a paddle.nn.Layer, "
        "a callable on the parameter's name, or a list of these"
    )


def _answer(selector: Callable[[str], bool], name: str) -> bool:
    try:
        return bool(selector(name))
    except Exception as error:
        raise ValueError(
            f"the selector {describe(selector)} failed on {name!r}: {error!r}; "
            "it must take a parameter's name and return whether it is meant"
        ) from error


def _nothing(among: Sequence[Weight], selector: Selector) -> str:
    if isinstance(selector, nn.Layer):
        return (
            f"the layer {type(selector).__name__} given as a selector has no parameter "
            "that belongs to this network"
        )
    if not isinstance(selector, str):
        return f"selector {describe(selector)} selects none of the {len(among)} parameters"
    near = nearest(selector, among)
    hint = "did you mean " + ", ".join(map(repr, near)) + "?" if near else ""
    return f"selector {selector!r} matches no parameter or layer; {hint}".rstrip("; ")


def nearest(text: str, among: Sequence[Weight], most: int = 4) -> list[str]:
    """Names of layers and parameters that look like the text, nearest first."""
    names = list(dict.fromkeys(prefix for w in among for name in w.names for prefix in _up(name)))
    last = text.rsplit(".", 1)[-1]
    inside = [name for name in names if name.rsplit(".", 1)[-1] == last]
    close = difflib.get_close_matches(text, names, n=most, cutoff=0.5)
    tops = list(dict.fromkeys(name.split(".")[0] for name in names))
    return list(dict.fromkeys([*sorted(inside, key=len)[:2], *close]))[:most] or tops[:most]


def _up(name: str) -> Iterable[str]:
    """A parameter's name and the names of all layers around it, outermost first."""
    parts = name.split(".")
    return (".".join(parts[: end + 1]) for end in range(len(parts)))


def asked_by_name(
    chosen: Sequence[Weight], selector: Selector, trainable: Sequence[Weight]
) -> frozenset[str]:
    """Weights found frozen that may be opened all the same, because the user named them.

    That is: by their full name, or by a selector other than ``"*"`` that selects nothing that
    trains, which would otherwise have no meaning. A selector over a layer with LoRA therefore
    never opens the base weights beside the LoRA ones.
    """
    if isinstance(selector, (list, tuple)):
        asked: frozenset[str] = frozenset()
        for part in selector:
            try:
                inside = select(chosen, part)
            except ValueError:  # the name of an automatic stage: not a name in the network
                continue
            asked |= asked_by_name(inside, part, [w for w in trainable if w in inside])
        return asked
    if selector == EVERYTHING:
        return frozenset()
    if isinstance(selector, str) and any(selector in weight.names for weight in chosen):
        return frozenset(w.name for w in chosen if selector in w.names)
    return frozenset() if trainable else frozenset(weight.name for weight in chosen)
