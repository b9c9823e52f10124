"""What makes a sample the same sample: keys by content."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import paddle
import xxhash

from ..bits import array_of


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
