"""The weights of the best evaluation so far, kept until a stage opens.

The copy holds only what can have moved: the weights that train, all statistics and buffers.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import nn

from .optimizer import each


class BestWeights:
    """A copy, in the computer's main memory, of what a network had learned at one moment.

    Args:
        network: the network.
        optimizer: its optimizer, which may keep weights in a higher precision of its own.
    """

    def __init__(self, network: nn.Layer, optimizer: Any) -> None:
        self._network = network
        self._optimizers = each(optimizer)
        self._copies: dict[str, paddle.Tensor] = {}

    def take(self, frozen: Collection[str]) -> None:
        """Copy everything but the weights with these names."""
        self._copies = {
            name: tensor.detach().cpu().clone()
            for name, tensor in self._tensors().items()
            if name not in frozen
        }

    def put_back(self) -> None:
        """Load the copy into the network, if there is one, and forget it."""
        tensors = self._tensors()
        with paddle.no_grad():
            for name, copy in self._copies.items():
                tensors[name].set_value(copy)
                master = tensors.get(f"{name} (master)")
                if master is not None and f"{name} (master)" not in self._copies:
                    # made after the copy; the next step would write it over the weight
                    master.set_value(copy.astype(master.dtype))
        self._copies = {}

    def __bool__(self) -> bool:
        return bool(self._copies)

    def save(self, file: str | os.PathLike[str]) -> None:
        """Write the copy as plain arrays; a crash leaves either all of it or nothing."""
        partial = Path(f"{os.fspath(file)}.partial")
        partial.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as stream:
            np.savez(stream, **{name: copy.numpy() for name, copy in self._copies.items()})
        os.replace(partial, file)

    def load(self, file: str | os.PathLike[str]) -> None:
        """Read a copy that was saved.

        Raises:
            ValueError: if the file is damaged or of another network.
        """
        tensors, copies = self._tensors(), {}
        try:
            with np.load(file, allow_pickle=False) as arrays:
                for name in arrays.files:
                    copy = paddle.to_tensor(arrays[name], place=paddle.CPUPlace())
                    # NumPy has no bfloat16: its bits come as 16-bit integers.
                    if tensors[name].dtype == paddle.bfloat16 != copy.dtype:
                        copy = copy.view(paddle.bfloat16)
                    if copy.shape != tensors[name].shape:
                        raise ValueError(
                            f"{name} has the shape {copy.shape}, not {tensors[name].shape}"
                        )
                    copies[name] = copy
        except KeyError as error:
            raise ValueError(f"{file} belongs to another network: it has {error}") from None
        except Exception as error:  # whatever a damaged archive makes zipfile and NumPy raise
            raise ValueError(
                f"{file} is damaged: {error}; resume from another checkpoint"
            ) from None
        self._copies = copies

    def _tensors(self) -> dict[str, paddle.Tensor]:
        """The tensors that may move, by name: the network's state, and master weights behind it."""
        state = self._network.state_dict()
        masters: dict[str, paddle.Tensor] = {}
        for optimizer in self._optimizers:
            masters |= getattr(optimizer, "_master_weights", None) or {}
        behind = {
            f"{name} (master)": masters[tensor.name]
            for name, tensor in state.items()
            if tensor.name in masters
        }
        return {**state, **behind}
