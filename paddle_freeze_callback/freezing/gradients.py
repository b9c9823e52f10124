"""How large the gradients of each stage are, measured in one optimizer step.

``paddle.Model`` has no event between the backward pass and the optimizer's step, so hooks on the
parameters read the gradients. Under gradient accumulation each call of a hook sees one more
micro-batch; the last call counts. Of weights that are split among processes, each process sees
its part, and the parts are added up at the end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import paddle

from ..stages.weights import Weight


class GradientSample:
    """Watches the gradients of one optimizer step.

    Args:
        members: the open weights of each stage that is to be measured.
        began: optimizer steps done before that step.
    """

    def __init__(self, members: Mapping[str, Sequence[Weight]], began: int) -> None:
        self.began = began
        self._members = members
        self._squares: dict[str, float] = {}
        # Now, as the optimizer moves the weights before the result is read.
        self._own = {
            weight.name: _square(weight.tensor) for group in members.values() for weight in group
        }
        self._handles = [
            weight.tensor.register_hook(self._watch(weight))
            for group in members.values()
            for weight in group
        ]

    def _watch(self, weight: Weight) -> Any:
        def seen(gradient: paddle.Tensor | None) -> None:
            if gradient is None:  # BatchNorm's, if only one of weight and bias trains
                return
            with paddle.no_grad():
                before = weight.tensor.grad
                whole = gradient if before is None else before + gradient
                self._squares[weight.name] = _square(whole)

        return seen

    def finish(self) -> dict[str, float]:
        """Norm of the gradient / norm of the weights, by stage; 0 where none arrived."""
        self.cancel()
        weights = [weight for group in self._members.values() for weight in group]
        gradients, norms = _added_up(weights, self._squares), _added_up(weights, self._own)
        return {
            stage: _ratio(
                math.sqrt(sum(gradients[weight.name] for weight in group)),
                math.sqrt(sum(norms[weight.name] for weight in group)),
            )
            for stage, group in self._members.items()
        }

    def cancel(self) -> None:
        """Stop watching."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


def _added_up(weights: Sequence[Weight], squares: Mapping[str, float]) -> dict[str, float]:
    """The number of each weight, over all processes among which it is split."""
    found = {weight.name: squares.get(weight.name, 0.0) for weight in weights}
    for group in {id(weight.group): weight.group for weight in weights if weight.group}.values():
        names = [weight.name for weight in weights if weight.group is group]
        parts = paddle.to_tensor([found[name] for name in names], dtype="float64")
        paddle.distributed.all_reduce(parts, group=group)
        found.update(zip(names, parts.tolist()))
    return found


def _ratio(gradient: float, weight: float) -> float:
    # Weights that are all zero (a new head's, or LoRA's) move as soon as they have a gradient.
    if not weight:
        return math.inf if gradient else 0.0
    return gradient / weight


def _square(tensor: paddle.Tensor) -> float:
    """The sum of squares."""
    return float(tensor.detach().astype("float32").square().sum())
