"""Which parameters does the user mean.

A selector is

* a dotted name. It matches whole components from the left, so ``fc1`` selects ``fc1.weight``
  and never ``fc10.weight``. In a component ``*`` and ``?`` stand for characters and
  ``{8-11}`` or ``{0,2,5-7}`` for numbers or words; the component ``**`` stands for any number
  of components. ``layers.{-2,-1}`` and ``layers.[-2:]`` count from the end, among the numbers
  that are there: both are the last two. The name of a stage is a dotted name, too;
* ``re:`` and a regular expression, which must match the whole name of a parameter or of a
  layer around it;
* ``type:`` and the name of a class of layers, such as ``type:LayerNorm`` or ``type:*Norm*``:
  everything inside layers of this class, or of one that derives from it. ``type:bias``, or
  ``bias`` where nothing has that name, is every bias;
* ``top 30%`` or ``bottom 30%``: from the head down, or from the input side up, so many whole
  stages as come nearest to this share of all parameters, at least one;
* a ``paddle.nn.Layer`` of the network: everything inside it;
* a callable that takes a parameter's name and returns whether it is meant;
* ``!`` before any text above: all but that;
* a list or tuple of these: everything that any of them selects, without what its items with
  ``!`` name, as in ``["encoder", "!encoder.layers.0"]``.

A selector that selects nothing is an error, never a silent no-op.
"""

from __future__ import annotations

import difflib
import fnmatch
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Union

from paddle import nn

from ..words import EVERYTHING, did_you_mean, listing
from .names import matching
from .weights import BIAS, Weight, layers, own_parameters

#: Before a text: all but that.
BUT = "!"

#: Before the name of a class of layers.
TYPE = "type:"

_SHARE = re.compile(r"(?P<end>top|bottom) +(?P<percent>\d+(\.\d+)?) *%")

Selector = Union[str, nn.Layer, Callable[[str], bool], Sequence["Selector"]]


def describe(selector: Selector, network: nn.Layer | None = None) -> str:
    """A short name for a selector, used as the name of the stage it makes.

    >>> describe(["fc", "layer4"])
    'fc + layer4'
    >>> describe(["fc", "layer4", "!layer4.0"])
    'fc + layer4 without layer4.0'
    """
    if isinstance(selector, str):
        return selector
    if isinstance(selector, nn.Layer):
        for path, layer in layers(network) if network is not None else ():
            if layer is selector and path:
                return path
        return type(selector).__name__
    if isinstance(selector, (list, tuple)):
        less = [part[len(BUT) :] for part in selector if _is_but(part)]
        names = [describe(part, network) for part in selector if not _is_but(part)]
        names = [name for name in names if name not in less] or names
        return " + ".join(names or [EVERYTHING]) + (f" without {' + '.join(less)}" if less else "")
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
        if selector.startswith(BUT):
            return _ids(among) - _ids(select(among, selector[len(BUT) :], groups))
        return _ids(_said(among, selector, groups))
    if isinstance(selector, nn.Layer):
        inside = {id(one) for _, part in layers(selector) for one in own_parameters(part).values()}
        return {id(weight.tensor) for weight in among if id(weight.tensor) in inside}
    if isinstance(selector, (list, tuple)):
        if not selector:
            raise ValueError("an empty list selects nothing; name at least one layer or parameter")
        wanted = [part for part in selector if not _is_but(part)]
        found = _ids(among) if not wanted else set()
        for part in wanted:
            found |= _ids(select(among, part, groups))
        for part in selector:
            if _is_but(part):
                less = _ids(select(among, part[len(BUT) :], groups))
                if found.isdisjoint(less):
                    raise ValueError(
                        f"selector {describe(selector)}: {part!r} takes nothing away from the "
                        "others; drop it, or name what they select"
                    )
                found -= less
        return found
    if isinstance(selector, type):
        raise TypeError(f"{selector.__name__} is a class; write 'type:{selector.__name__}'")
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


def _is_but(selector: Selector) -> bool:
    return isinstance(selector, str) and selector.startswith(BUT)


def _ids(of: Iterable[Weight]) -> set[int]:
    return {id(weight.tensor) for weight in of}


def _said(
    among: Sequence[Weight], text: str, groups: Mapping[str, Sequence[Weight]]
) -> Iterable[Weight]:
    """What a text means: a name first, then a group, then a kind or a share."""
    exact = [weight for weight in among if text in weight.names]
    if exact:  # names of layers may hold dots: "_blocks.0.._bn0.weight" is no dotted name
        return exact
    if text.startswith(TYPE):
        kind = text[len(TYPE) :]
        return [w for w in among if any(fnmatch.fnmatchcase(one, kind) for one in w.kinds)]
    names = matching(text, [name for weight in among for name in weight.names])
    if names:
        return [weight for weight in among if not names.isdisjoint(weight.names)]
    names = matching(text, groups)
    if names:
        return [weight for name in groups if name in names for weight in groups[name]]
    share = _SHARE.fullmatch(text)
    if share:
        return _share(text, share["end"], float(share["percent"]), groups)
    return [weight for weight in among if text == BIAS and BIAS in weight.kinds]


def _share(
    text: str, end: str, percent: float, groups: Mapping[str, Sequence[Weight]]
) -> list[Weight]:
    """The groups from one end whose share of all parameters is nearest to this."""
    if not 0 < percent <= 100:
        raise ValueError(f"selector {text!r} must be more than 0% and at most 100%")
    if not groups:
        raise ValueError(
            f"selector {text!r} counts in whole stages, head first, and here are none; "
            'name layers, or the stages with stages=["head", ...]'
        )
    seen: set[int] = set()
    stages: list[list[Weight]] = []
    for group in groups.values():  # names of automatic stages may follow, which hold nothing new
        stages.append([weight for weight in group if id(weight.tensor) not in seen])
        seen |= _ids(group)
    stages = stages if end == "top" else stages[::-1]
    sizes = list(itertools.accumulate(sum(weight.numel for weight in one) for one in stages))
    wanted = sizes[-1] * percent / 100
    nearest = min(range(len(sizes)), key=lambda last: abs(sizes[last] - wanted))
    return [weight for one in stages[: nearest + 1] for weight in one]


def items(selector: Selector) -> list[Selector]:
    """The selectors in a list of lists. One of items that belong together is one selector."""
    if isinstance(selector, (list, tuple)) and selector and not any(map(_is_but, selector)):
        return [item for part in selector for item in items(part)]
    return [selector]


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
    if selector.startswith(BUT):
        return f"selector {selector!r} leaves nothing: {selector[len(BUT) :]!r} is everything"
    if selector in (BIAS, TYPE + BIAS):
        return f"selector {selector!r} selects nothing: this network has no bias"
    if selector.startswith(TYPE):
        kinds = {kind for weight in among for kind in weight.kinds if not kind.startswith("_")}
        like = did_you_mean(
            selector[len(TYPE) :], sorted(kinds), show=lambda kind: repr(TYPE + kind)
        )
        return f"selector {selector!r} matches no class of a layer that has parameters" + (
            like or f"; there are {listing(sorted(kinds), most=12, noun='classes')}"
        )
    if "%" in selector or selector.startswith(("top ", "bottom ")):
        return f"selector {selector!r} matches nothing; a share is 'top 30%' or 'bottom 30%'"
    if selector == "head":
        return "no part of this network can be told to be its head; name layers instead of 'head'"
    every = [name for weight in among for name in weight.names]
    apart = re.sub(r"(?<![.{])\[", ".[", selector)  # "layers[-1]" is written so in Python
    forms = (apart, f"**.{selector}", f"**.{apart}") if "[" in selector else ()
    counted = [one for one in forms if matching(one, every)]
    near = counted[:1] or nearest(selector, among)
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

    That is: by their full name, or by a selector other than ``"*"`` and ``"!..."`` that selects
    nothing that trains, which would otherwise have no meaning. A selector over a layer with
    LoRA therefore never opens the base weights beside the LoRA ones.
    """
    parts = selector if isinstance(selector, (list, tuple)) else [selector]
    if all(part == EVERYTHING or _is_but(part) for part in parts):
        return frozenset()
    if isinstance(selector, str) and any(selector in weight.names for weight in chosen):
        return frozenset(w.name for w in chosen if selector in w.names)
    return frozenset() if trainable else frozenset(weight.name for weight in chosen)
