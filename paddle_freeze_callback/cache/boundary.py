"""Where a frozen prefix ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle

from .keys import CannotCacheError
from .nested import tensors
from .watch import Call, Trace

# Layers without weights that compute the same in training and evaluation: these may lie at the
# boundary, which is often a pooling. Dropout may not.
PLAIN = ("paddle.nn.layer.pooling", "paddle.nn.layer.activation")

RECOMPUTED = "layers are recomputed in the backward pass"


@dataclass(frozen=True)
class Boundary:
    """Where the prefix ends."""

    prefix: tuple[Call, ...]  # the calls that need not be made again
    kept: tuple[tuple[Call, tuple[int, ...]], ...]  # those to keep, and the places of their tensors

    @property
    def kept_calls(self) -> frozenset[Call]:
        """The calls whose outputs are kept."""
        return frozenset(call for call, _ in self.kept)

    def features(self, trace: Trace, size: int, name: Callable[[Call], str]) -> list[paddle.Tensor]:
        """The kept tensors in a trace, one row per sample.

        Raises:
            CannotCacheError: if a call was not made, or does not give one row per sample.
        """
        found = []
        for call, places in self.kept:
            output = trace.output(call)
            if output is None:
                raise CannotCacheError(f"{name(call)} is not called for every batch")
            inside = list(tensors(output))
            for place in places:
                if not inside[place].shape or inside[place].shape[0] != size:
                    raise CannotCacheError(
                        f"the output of {name(call)} has the shape {inside[place].shape}, "
                        f"whose first side is not the batch of {size}"
                    )
                found.append(inside[place])
        return found


def filled_like(tensor: paddle.Tensor, value: float) -> paddle.Tensor:
    """A tensor of this shape full of a value, or of whole numbers that differ from those given."""
    if tensor.is_floating_point():
        return paddle.full_like(tensor, value)
    if tensor.dtype == paddle.bool:
        return paddle.logical_not(tensor)
    return paddle.zeros_like(tensor) if bool((tensor != 0).any()) else paddle.ones_like(tensor)


def nearly_equal(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any], loose: float) -> bool:
    """Whether two arrays are equal up to rounding; ``loose`` is relative to the largest number."""
    found, expected = one.astype("float64"), other.astype("float64")
    scale = float(np.abs(expected[np.isfinite(expected)]).max(initial=0.0)) or 1.0
    return bool(np.allclose(found, expected, rtol=loose, atol=loose * scale, equal_nan=True))
