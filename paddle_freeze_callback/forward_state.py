"""What a forward may move besides its output, so that a trial leaves no trace.

Buffers, statistics, plain attributes of layers, and the random generators of Paddle, NumPy and
Python.
"""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import paddle
from paddle import nn

from .weights import layers, moving_state


class ForwardState:
    """The state of a network around its forwards, as it is now.

    Args:
        network: the network.
    """

    def __init__(self, network: nn.Layer) -> None:
        every = {id(layer): layer for _, layer in layers(network)}
        self._tensors = [
            (tensor, tensor.clone())
            for layer in every.values()
            for tensor in moving_state(layer).values()
            if tensor._is_initialized()  # an RNN has a buffer without memory
        ]
        self._attributes: list[tuple[nn.Layer, dict[str, tuple[Any, Any]]]] = [
            (layer, _shallow(layer.__dict__)) for layer in every.values()
        ]
        self._random = (paddle.get_rng_state(), np.random.get_state(), random.getstate())

    def restore(self) -> None:
        """Put everything back as it was."""
        with paddle.no_grad():
            for tensor, value in self._tensors:
                tensor.set_value(value)
        for layer, attributes in self._attributes:
            for name in set(layer.__dict__) - set(attributes):
                del layer.__dict__[name]
            mutable: Any
            for name, (mutable, content) in attributes.items():
                layer.__dict__[name] = mutable
                if isinstance(content, dict):
                    mutable.clear()
                    mutable.update(content)
                elif content is not None:
                    mutable.clear()
                    mutable.extend(content)
        paddle.set_rng_state(self._random[0])
        np.random.set_state(self._random[1])
        random.setstate(self._random[2])

    def assigned(self) -> dict[tuple[int, str], paddle.Tensor]:
        """Tensors that layers have put into attributes since, by identity and name.

        Paddle makes a buffer of a tensor that is assigned to an attribute.
        """
        changed = {}
        for layer, before in self._attributes:
            held = {**layer.__dict__, **layer._buffers}
            had = {**{name: value for name, (value, _) in before.items()}, **before["_buffers"][1]}
            for name, value in held.items():
                if isinstance(value, paddle.Tensor) and had.get(name) is not value:
                    changed[id(layer), name] = value
        return changed


def _shallow(attributes: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Each attribute, and a copy of its content if that can change in place."""
    return {
        name: (value, copy.copy(value) if isinstance(value, (dict, list)) else None)
        for name, value in attributes.items()
    }


def random_state() -> Any:
    """The state of all random generators, comparable."""
    # Paddle's states cannot be compared; as text they can, but for an address in it.
    ours = [[part for part in str(s).split() if "x" not in part] for s in paddle.get_rng_state()]
    theirs: Any = np.random.get_state()
    return (ours, theirs[1].tobytes(), theirs[2:], random.getstate())


def reseed(seed: int) -> None:
    """Seed all random generators."""
    paddle.seed(seed)
    np.random.seed(seed)
    random.seed(seed)
