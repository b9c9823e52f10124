"""Whether a tensor is bit for bit what it was."""

from __future__ import annotations

import hashlib

import paddle


def checksum(tensor: paddle.Tensor) -> str:
    """The same text for the same bits."""
    return hashlib.blake2b(tensor.numpy().tobytes(), digest_size=16).hexdigest()
