"""How some rows of a tensor train while all others stay as they are, bit for bit.

The gradient of the others is zero from the backward pass on, so that clipping, moments and loss
scaling never see one. What moves a weight without a gradient, decay above all, is undone within
the optimizer's step: nobody sees it, no checkpoint holds it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import paddle

from ..stages.weights import TRAINED_ROWS, Weight
from .optimizer import around, each, parameter_ids


def check_optimizer(optimizer: Any) -> None:
    """Refuse an optimizer whose step cannot be watched.

    Raises:
        ValueError: naming it.
    """
    if not {"LBFGS", "LookAhead"}.isdisjoint(kind.__name__ for kind in type(optimizer).__mro__):
        raise ValueError(
            f"{type(optimizer).__name__} moves weights in ways of its own, so that rows= cannot "
            "keep the others of a tensor still; use another optimizer"
        )


def still(weight: Weight) -> list[slice]:
    """The rows that do not train, where others do.

    >>> still(Weight("table", ("table",), paddle.zeros([9, 2]), rows=(4, 9)))
    [slice(0, 4, None)]
    """
    if weight.rows is None:
        return []
    first, after = weight.rows
    spans = (slice(0, first), slice(after, weight.tensor.shape[0]))
    return [span for span in spans if span.start < span.stop]


def write(value: paddle.Tensor, tensor: paddle.Tensor, span: slice) -> None:
    """Write into rows of a tensor, where it lies."""
    part = tensor[span]
    offset = span.start * (tensor.numel().item() // tensor.shape[0]) * tensor.element_size()
    if part.data_ptr() == tensor.data_ptr() + offset:
        paddle.assign(value, part)
    else:  # a release, or a setting, in which a slice is a copy; ten times slower
        tensor[span] = value


def train_rows(weights: Sequence[Weight], optimizer: Any) -> Callable[[], None]:
    """Have only their rows of these weights train, which are open; returns how to stop."""
    undo: list[Callable[[], object]] = []
    for weight in weights:
        undo.append(weight.tensor.register_hook(_masking(*(weight.rows or (0, 0)))).remove)
        setattr(weight.tensor, TRAINED_ROWS, weight.rows)
        undo.append(functools.partial(delattr, weight.tensor, TRAINED_ROWS))
    for one in each(optimizer):
        own = parameter_ids(one)
        mine = [_Still(weight) for weight in weights if id(weight.tensor) in own]
        if mine:
            # step() and minimize() of every optimizer, and sharding, meet in this method alone.
            undo.append(around(one, "_apply_optimize", functools.partial(_stepping, mine)))

    def stop() -> None:
        while undo:
            undo.pop()()

    return stop


def _masking(first: int, after: int) -> Callable[[Any], Any]:
    def masked(gradient: Any) -> Any:
        if gradient is None:
            return None
        with paddle.no_grad():
            # Not in place: the gradient of something else may lie in the same memory.
            rest = paddle.zeros_like(gradient)
            write(gradient[first:after], rest, slice(first, after))
        return rest

    return masked


def _stepping(
    those: Sequence[_Still], optimizer: Any, method: Callable[..., Any], *given: Any, **named: Any
) -> Any:
    with paddle.no_grad():
        for one in those:
            one.keep(optimizer)
    result = method(*given, **named)
    with paddle.no_grad():
        for one in those:
            one.put_back(optimizer)
    return result


class _Still:
    """The rows of one weight, and of its master weight, that stay as they are in each step."""

    def __init__(self, weight: Weight) -> None:
        self._weight = weight
        # Kept: on a CPU most of the time would go into new memory for each step.
        self._copies: dict[tuple[str, int], paddle.Tensor] = {}

    def keep(self, optimizer: Any) -> None:
        for kind, tensor in self._tensors(optimizer).items():
            for span in still(self._weight):
                part, key = tensor[span], (kind, span.start)
                if key in self._copies:
                    paddle.assign(part, self._copies[key])
                else:
                    self._copies[key] = part.clone()

    def put_back(self, optimizer: Any) -> None:
        for kind, tensor in self._tensors(optimizer).items():
            for span in still(self._weight):
                # A master weight that the step made was made from the weight.
                copy = self._copies.get((kind, span.start), self._copies["weight", span.start])
                write(
                    copy if copy.dtype == tensor.dtype else copy.astype(tensor.dtype), tensor, span
                )

    def _tensors(self, optimizer: Any) -> dict[str, paddle.Tensor]:
        tensor = self._weight.tensor
        masters = getattr(optimizer, "_master_weights", None) or {}
        master = {"master": masters[tensor.name]} if tensor.name in masters else {}
        return {"weight": tensor, **master}
