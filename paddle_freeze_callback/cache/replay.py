"""How a forward becomes features, and features become the outputs of skipped layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle

from ..bits import array_of
from .boundary import Boundary, filled_like
from .keys import CannotCacheError
from .nested import replaced, restructured, tensors
from .stores import Row
from .watch import Call, Shape, Trace


@dataclass(frozen=True)
class Recipe:
    """How one form of input is replayed."""

    boundary: Boundary
    placeholders: dict[Call, Any]  # the output of each call of the prefix, without its tensors
    looks: tuple[tuple[Any, Any], ...]  # the dtype and the place of each that is kept
    shapes: tuple[tuple[int, ...], ...]  # of one sample's part of them

    @classmethod
    def of(cls, trace: Trace, boundary: Boundary, features: Row, blanks: Blanks) -> Recipe:
        """The recipe for inputs of the form that gave this trace and these features."""
        outputs = {call: trace.output(call) for call in boundary.prefix}
        placeholders = {
            call: replaced(output, blanks.like, (paddle.Tensor, Shape))
            for call, output in outputs.items()
            if output is not None
        }
        kept = (
            list(tensors(outputs[call]))[number]
            for call, numbers in boundary.kept
            for number in numbers
        )
        looks = tuple((tensor.dtype, tensor.place) for tensor in kept)
        return cls(boundary, placeholders, looks, shapes_of(features))

    def serves(self, rows: Sequence[Row | None]) -> bool:
        """Whether all samples are there, in the shapes that this form of input gives."""
        return all(
            row is not None and tuple(array.shape for array in row) == self.shapes for row in rows
        )

    def outputs(self, rows: Sequence[Row | None]) -> dict[Call, Any]:
        """The output of each call of the prefix: placeholders, and features where they belong."""
        columns = (np.stack([row[i] for row in rows if row]) for i in range(len(self.looks)))
        features = (_tensor(array, *look) for array, look in zip(columns, self.looks))
        # Copies of the structures: the network may append to a list that it gets.
        plan = {call: restructured(output) for call, output in self.placeholders.items()}
        for call, places in self.boundary.kept:
            own = {place: next(features) for place in places}
            plan[call] = replaced(plan[call], own.get)
        return plan


class Blanks:
    """Placeholders; those of one dtype share their memory."""

    def __init__(self) -> None:
        self._shared: dict[Any, paddle.Tensor] = {}

    def like(self, index: int, like: paddle.Tensor | Shape) -> paddle.Tensor:
        """NaN of this shape, or zeros of whole numbers; called as ``replaced`` calls."""
        size = math.prod(like.shape)
        shared = self._shared.get(like.dtype)
        if shared is None or shared.shape[0] < size:
            shared = paddle.zeros([size], like.dtype)
            shared = filled_like(shared, math.nan) if shared.is_floating_point() else shared
            self._shared[like.dtype] = shared
        return shared[:size].reshape(list(like.shape))


def arrays_of(features: Sequence[paddle.Tensor], dtype: str | None) -> Row:
    """Features as arrays to keep; floating-point ones in this dtype.

    Raises:
        CannotCacheError: if a number is too large for it.

    >>> arrays_of([paddle.ones([2]), paddle.ones([2], "int64")], "float16")
    (array([1., 1.], dtype=float16), array([1, 1]))
    """
    arrays = []
    for tensor in features:
        array = array_of(tensor)
        if dtype is not None and array.dtype.kind == "f":
            with np.errstate(over="ignore"):
                small = array.astype(dtype)
            if np.isinf(small).any() and not np.isinf(array).any():
                raise CannotCacheError(f"cache_dtype={dtype} is too small for it")
            array = small
        arrays.append(array)
    return tuple(arrays)


def shapes_of(features: Row) -> tuple[tuple[int, ...], ...]:
    """The shapes of one sample's part of features."""
    return tuple(array.shape[1:] for array in features)


def _tensor(array: np.ndarray[Any, Any], dtype: Any, place: Any) -> paddle.Tensor:
    """A tensor of this dtype in this place; bfloat16 was kept as its bits."""
    tensor = _sent(array, place)
    if dtype == paddle.bfloat16 and array.dtype == np.uint16:
        return tensor.view(paddle.bfloat16)
    return tensor if tensor.dtype == dtype else tensor.astype(dtype)


def _sent(array: np.ndarray[Any, Any], place: Any) -> paddle.Tensor:
    """A tensor in this place, in one go; to a GPU from memory that it reads by itself."""
    if not (place.is_gpu_place() and paddle.is_compiled_with_cuda()):
        return paddle.to_tensor(array, place=place)
    pinned = paddle.to_tensor(array, place=paddle.CUDAPinnedPlace())
    # Waited for: pinned memory may be used again as soon as nothing refers to it.
    return pinned.to(place, blocking=True)
