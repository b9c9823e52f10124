"""Tuples, lists and dictionaries of tensors: the arguments and the outputs of layers."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import paddle


def leaves(value: Any) -> Iterator[Any]:
    """The values in nested tuples, lists and dictionaries, without ``None``.

    >>> list(leaves({"a": [1, None], "b": (2,)}))
    [1, 2]
    """
    if isinstance(value, dict):
        for one in value.values():
            yield from leaves(one)
    elif isinstance(value, (tuple, list)):
        for one in value:
            yield from leaves(one)
    elif value is not None:
        yield value


def tensors(value: Any) -> Iterator[paddle.Tensor]:
    """The tensors among the leaves."""
    return (leaf for leaf in leaves(value) if isinstance(leaf, paddle.Tensor))


def replaced(value: Any, change: Callable[[int, Any], Any], kind: Any = paddle.Tensor) -> Any:
    """The same structure, in which each leaf of a kind is replaced.

    ``change`` gets the number of the leaf, from 0, and the leaf; so does ``dict.get`` fit, which
    takes a key and a default.

    >>> replaced({"a": [1, "x"], "b": (2,)}, {1: 20}.get, int)
    {'a': [1, 'x'], 'b': (20,)}
    """
    count = itertools.count()

    def walk(one: Any) -> Any:
        if isinstance(one, kind):
            return change(next(count), one)
        if isinstance(one, dict):
            changed = copy.copy(one)
            for key in one:
                changed[key] = walk(one[key])
            return changed
        if isinstance(one, tuple) and hasattr(one, "_fields"):
            return type(one)(*(walk(item) for item in one))
        if isinstance(one, (tuple, list)):
            return type(one)(walk(item) for item in one)
        return one

    return walk(value)


def restructured(value: Any) -> Any:
    """A copy of a structure that holds the same tensors."""
    return replaced(value, lambda _, tensor: tensor)
