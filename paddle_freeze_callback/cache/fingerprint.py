"""What the features of a frozen prefix depend on besides the sample, as a short text."""

from __future__ import annotations

import types
from collections.abc import Iterable
from typing import Any

import paddle
import xxhash
from paddle import nn

from ..bits import digest
from ..stages.weights import layers

# What Paddle and we keep in a layer; not part of its options.
_PASSING = frozenset(["training", "_full_name", "_casted_by_pure_fp16", "forward"])

_FUNCTIONS = (types.FunctionType, types.MethodType, types.BuiltinFunctionType)
_PLAIN = (bool, int, float, str)


def fingerprint(network: nn.Layer, still: Iterable[paddle.Tensor], *further: Any) -> str:
    """A text that is another one for other weights, options or code.

    Code counts as far as it can be read: methods of the user's layers, and functions that a layer
    holds. What these call in turn does not count.

    Weights, buffers and statistics count by their bits, whatever else is given by its ``repr``.

    >>> layer = nn.Linear(2, 2)
    >>> one = fingerprint(layer, layer.parameters())
    >>> one == fingerprint(layer, layer.parameters())
    True
    >>> layer.scale = 3
    >>> one == fingerprint(layer, layer.parameters())
    False
    """
    total = xxhash.xxh3_128()
    total.update(repr((further, paddle.__version__)).encode())
    for path, layer in layers(network):
        options = {
            name: value if isinstance(value, _PLAIN) else _code_of(value)
            for name, value in sorted(layer.__dict__.items())
            if isinstance(value, (*_PLAIN, *_FUNCTIONS)) and name not in _PASSING
        }
        code = [
            (name, _code_of(value))
            for kind in type(layer).__mro__
            if kind.__module__.partition(".")[0] not in ("paddle", "builtins")
            for name, value in sorted(vars(kind).items())
            if isinstance(value, _FUNCTIONS)
        ]
        total.update(repr((path, type(layer).__qualname__, code, options)).encode())
    for tensor in still:
        total.update(digest(tensor))
    return total.hexdigest()


def _code_of(function: Any) -> Any:
    """What a function does, as far as its own code shows: instructions, constants and names."""
    code = getattr(function, "__code__", None)
    name = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', '')}"
    if code is None:
        return name
    constants = [one for one in code.co_consts if not isinstance(one, types.CodeType)]
    inner = [one.co_code for one in code.co_consts if isinstance(one, types.CodeType)]
    return (name, code.co_code, constants, code.co_names, inner)
