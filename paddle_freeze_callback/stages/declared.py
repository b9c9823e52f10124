"""The stages that a network gives itself, or that its family has in the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from paddle import nn

from ..words import EVERYTHING
from .families import FAMILIES
from .parts import Part, Split, unused
from .selectors import Selector, describe, select
from .weights import Weight, weights

#: The stage of weights that no selector names: they stay frozen throughout.
REST = "rest"

Declared = Mapping[str, Selector]


def declared(layer: nn.Layer) -> Declared | None:
    """The stages that a network gives itself, if it does.

    A class says it with ``freeze_stages``, an attribute or a method without arguments: a mapping
    from the names of stages to selectors, or a list of selectors, head first. It wins over
    whatever ``"auto"`` would find. The selectors are relative to the layer that says it;
    ``"auto"`` among them stands for what the others leave, read as if nothing had been said. On a
    backbone inside a network, the stage ``"head"`` joins the head, and the others follow.

    >>> from paddle import nn
    >>> class Net(nn.Sequential):
    ...     freeze_stages = {"head": "1", "body": "*"}
    >>> declared(Net(nn.Linear(2, 2), nn.Linear(2, 1)))
    {'head': '1', 'body': '*'}
    """
    value: Any = vars(layer).get("freeze_stages")
    owner = type(layer).__name__
    if value is None and hasattr(type(layer), "freeze_stages"):
        value = layer.freeze_stages  # bound, if it is a method or a property
    if callable(value):
        value = value()
    if value is None:
        return None
    if isinstance(value, (list, tuple)):
        named: dict[str, Selector] = {}
        for one in value:
            named[unused(describe(one, layer), named)] = one
        value = named
    if not isinstance(value, Mapping):
        raise TypeError(
            f"freeze_stages of {owner} is {value!r}: give a mapping from names of stages to "
            'selectors, head first, such as {"head": "classifier", "body": "*"}, or a list'
        )
    if not value:
        raise ValueError(f'freeze_stages of {owner} names no stage; drop it, or say {{"all": "*"}}')
    return dict(value)


def of_family(layer: nn.Layer) -> Declared | None:
    """What the table says of a class, without selectors that this variant has nothing for."""
    entry = FAMILIES.get(type(layer).__name__)
    if entry is None:
        return None
    among = weights(layer)
    kept: dict[str, Selector] = {}
    for name, selectors in entry.items():
        several = [selectors] if isinstance(selectors, str) else selectors
        found = [one for one in several if one == "auto" or _matches(among, one)]
        if found:
            kept[name] = found[0] if len(found) == 1 else found
    return kept if len(kept) > 1 else None


def _matches(among: Sequence[Weight], selector: str) -> bool:
    try:
        return bool(select(among, selector))
    except ValueError:
        return False


def as_declared(part: Part, said: Declared) -> Split:
    """A declaration as a split: stages by name, and a body if some of it is read automatically."""
    among = weights(part.layer)
    owner = type(part.layer).__name__
    taken: dict[int, str] = {}
    stages: dict[str, frozenset[int]] = {}
    for name, selector in said.items():
        if selector == "auto":
            continue
        try:
            chosen = select(among, selector)
        except (ValueError, TypeError) as wrong:
            raise type(wrong)(f"freeze_stages of {owner}, stage {name!r}: {wrong}") from None
        ids = {id(weight.tensor): weight.name for weight in chosen}
        if selector == EVERYTHING:
            ids = {key: weight for key, weight in ids.items() if key not in taken}
        for key, weight in ids.items():
            if key in taken:
                raise ValueError(
                    f"freeze_stages of {owner}: the stages {taken[key]!r} and {name!r} both claim "
                    f"{weight!r}; a parameter belongs to one stage"
                )
        taken.update(dict.fromkeys(ids, name))
        stages[name] = frozenset(ids)
    head = stages.pop("head", frozenset())
    left = frozenset(part.ids - set(taken))
    if any(selector == "auto" for selector in said.values()):
        return Split(head, (part,), part.path, stages)
    if left:
        stages[unused(REST, stages)] = left
    return Split(head, (), part.path, stages)
