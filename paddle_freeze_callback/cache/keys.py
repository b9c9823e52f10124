"""What makes a sample the same sample: its content, or a key that the user gives."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import paddle
import xxhash

from ..bits import array_of
from ..words import known_names


class CannotCacheError(Exception):
    """A network, or a call of it, cannot use the cache; the message gives the reason."""


def batch_size(inputs: Sequence[paddle.Tensor]) -> int:
    """The first side that all inputs share.

    Raises:
        CannotCacheError: if they share none.
    """
    sizes = {tuple(tensor.shape[:1]) for tensor in inputs}
    if len(sizes) != 1 or () in sizes:
        raise CannotCacheError("the network's inputs have no common first side, the batch")
    return int(sizes.pop()[0])


def form_of(value: Any) -> Any:
    """How inputs look, apart from their values; equal forms can share a recipe.

    Raises:
        CannotCacheError: for an input whose content no key can describe.

    >>> form_of((paddle.zeros([2, 3]), True))
    ('tuple', (('tensor', (2, 3), 'paddle.float32'), 'True'))
    """
    if isinstance(value, paddle.Tensor):
        return ("tensor", tuple(value.shape), str(value.dtype))
    if isinstance(value, dict):
        return ("dict", tuple((str(key), form_of(one)) for key, one in value.items()))
    if isinstance(value, (tuple, list)):
        return (type(value).__name__, tuple(form_of(one) for one in value))
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    raise CannotCacheError(
        f"the network is called with {type(value).__name__}, which has no content key"
    )


def kind_of(form: Any) -> Any:
    """A form without its sizes; a proof for one form holds for all of its kind."""
    if isinstance(form, tuple) and form and form[0] == "tensor":
        return ("tensor", len(form[1]), form[2])
    return tuple(kind_of(one) for one in form) if isinstance(form, tuple) else form


@functools.lru_cache(256)
def _seed(form: Any) -> int:
    # How many samples come with it is no part of a sample.
    return xxhash.xxh3_64_intdigest(repr(_without_batch(form)).encode())


def _without_batch(form: Any) -> Any:
    if isinstance(form, tuple) and form and form[0] == "tensor":
        return ("tensor", form[1][1:], form[2])
    return tuple(_without_batch(one) for one in form) if isinstance(form, tuple) else form


def keys_of(inputs: Sequence[paddle.Tensor], size: int, form: Any) -> list[bytes]:
    """A 128-bit key for each sample, from its rows of all inputs.

    >>> rows = paddle.to_tensor([[1, 2], [3, 4], [1, 2]])
    >>> first, second, third = keys_of([rows], 3, form_of(rows))
    >>> len(first), first == second, first == third
    (16, False, True)
    """
    seed = _seed(form)
    arrays = [np.ascontiguousarray(array_of(tensor)).reshape(size, -1) for tensor in inputs]
    each = [[xxhash.xxh3_128_digest(row, seed) for row in array] for array in arrays]
    return each[0] if len(each) == 1 else [
        xxhash.xxh3_128_digest(b"".join(parts), seed) for parts in zip(*each)
    ]  # fmt: skip


def keys_given(
    key: str | Callable[..., Any], call: tuple[Callable[..., Any], Any, Any], size: int, form: Any
) -> list[bytes]:
    """A key for each sample, of what the user says makes it the same; numbers are not hashed.

    Raises:
        ValueError, TypeError: unless there is a whole number or a text for each sample.

    >>> keys = keys_given(lambda x: [7, 8, 7], (abs, (paddle.zeros([3, 2]),), {}), 3, "form")
    >>> len(keys[0]), keys[0] == keys[1], keys[0] == keys[2]
    (16, False, True)
    """
    original, args, kwargs = call
    given = _input(key, original, args, kwargs) if isinstance(key, str) else key(*args, **kwargs)
    found = array_of(given) if isinstance(given, paddle.Tensor) else np.asarray(given)
    if found.dtype.kind not in "iuU":
        raise TypeError(f"{_said(key)} gives {found.dtype}; give whole numbers or texts")
    if found.size != size or found.shape[:1] != (size,):
        raise ValueError(
            f"{_said(key)} gives keys of the shape {list(found.shape)} for a batch of {size} "
            "samples; give one for each"
        )
    seed, found = _seed(form), found.reshape(size)
    if found.dtype.kind == "U":
        return [xxhash.xxh3_128_digest(one.encode(), seed) for one in found.tolist()]
    both = np.empty([size, 2], "<u8")
    both[:, 0], both[:, 1] = found.astype("<i8").view("<u8"), seed
    keys = both.tobytes()
    return [keys[at : at + 16] for at in range(0, 16 * size, 16)]


def _said(key: str | Callable[..., Any]) -> str:
    return f"cache_key={key!r}" if isinstance(key, str) else "the function given as cache_key="


def _input(name: str, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """An input of the network by its name, also one inside a dictionary of inputs."""
    if kwargs.get(name) is not None:
        return kwargs[name]
    inputs = inspect.signature(original).bind(*args, **kwargs).arguments
    for value in list(inputs.values()):
        if isinstance(value, Mapping):
            inputs = {**value, **inputs}
    if inputs.get(name) is None:
        there = [str(each) for each, value in inputs.items() if value is not None]
        raise ValueError(
            f"cache_key={name!r}: the network is called without an input of this name"
            + known_names(name, there)
        )
    return inputs[name]
