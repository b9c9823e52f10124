"""Tensors in one file that runs no code when it is read: the format of safetensors.

Eight bytes that say how long the header is, the header as JSON, then the numbers one after
another. That package has no interface to Paddle that serves here: of its releases some lack
bfloat16, some need types that only new releases of Paddle have.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from ..bits import array_of

# What the format calls each kind of number. NumPy has no bfloat16: its bits are whole numbers.
_CODES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64",
    "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
_KINDS = {code: kind for kind, code in _CODES.items()}


def kind_of(tensor: paddle.Tensor) -> str:
    """The kind of numbers in a tensor.

    >>> kind_of(paddle.ones([1], "bfloat16"))
    'bfloat16'
    """
    return str(tensor.dtype).rpartition(".")[2]


def write(
    file: str | os.PathLike[str],
    tensors: Mapping[str, paddle.Tensor],
    metadata: Mapping[str, str],
) -> None:
    """Write tensors by name, and text by key; a crash leaves either the whole file or none.

    Raises:
        ValueError: for a kind of numbers that the format does not have.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in tensors.items():
        kind = kind_of(tensor)
        if kind not in _CODES:
            raise ValueError(f"{name} has the type {kind}, which no file of safetensors can hold")
        start, end = end, end + _size(kind, tensor.shape)
        shape = list(tensor.shape)
        header[name] = {"dtype": _CODES[kind], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    partial = Path(f"{os.fspath(file)}.partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        with partial.open("wb") as stream:
            stream.write(struct.pack("<Q", len(text)) + text)
            for tensor in tensors.values():
                stream.write(np.ascontiguousarray(array_of(tensor)).reshape(-1).view("uint8").data)
        os.replace(partial, file)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def refuse_unwritable(file: str | os.PathLike[str]) -> None:
    """Refuse a path at which no file can be written.

    Raises:
        ValueError: naming what is in the way.
    """
    path = Path(file).absolute()
    if path.is_dir():
        raise ValueError(
            f"save_trained: {file} is a folder; name a file, such as {path / 'trained.safetensors'}"
        )
    above = next(one for one in path.parents if one.exists())
    if not above.is_dir():
        raise ValueError(f"save_trained: {file} cannot be written: {above} is no folder")
    if not os.access(above, os.W_OK):
        raise ValueError(
            f"save_trained: {file} cannot be written: nothing may be written in {above}"
        )


def read(file: str | os.PathLike[str]) -> tuple[dict[str, paddle.Tensor], dict[str, str]]:
    """The tensors and the text that a file holds.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is damaged, or another kind of file.
    """
    content = np.fromfile(os.fspath(file), "uint8")
    try:
        (length,) = struct.unpack("<Q", content[:8].tobytes())
        header = json.loads(content[8 : 8 + length].tobytes())
        metadata = header.pop("__metadata__", {})
        data = content[8 + length :]
        tensors = {name: _tensor(data, **entry) for name, entry in header.items()}
    except (struct.error, ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{os.fspath(file)} is damaged, or no file of safetensors: {error}"
        ) from None
    return tensors, metadata


def _size(kind: str, shape: list[int]) -> int:
    return math.prod(shape) * (2 if kind == "bfloat16" else np.dtype(kind).itemsize)


def _tensor(
    data: np.ndarray[Any, Any], dtype: str, shape: list[int], data_offsets: list[int]
) -> paddle.Tensor:
    kind, (start, end) = _KINDS.get(dtype), data_offsets
    if kind is None:
        raise ValueError(f"it holds numbers of the type {dtype}")
    if not 0 <= start <= end <= len(data) or end - start != _size(kind, shape):
        raise ValueError(f"{end - start} bytes from {start} on are no tensor of the shape {shape}")
    bits = data[start:end].copy().view("int16" if kind == "bfloat16" else kind).reshape(shape)
    found = paddle.to_tensor(bits, place=paddle.CPUPlace())
    return found.view(paddle.bfloat16) if kind == "bfloat16" else found
