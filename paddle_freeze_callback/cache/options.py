"""Whether, where and how features are kept, and what a cache did."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checks import one_of, whole
from .folders import default_folder, folders, hold
from .stores import DiskStore, MemoryStore

_UNITS = {"B": 1, "KB": 2**10, "MB": 2**20, "GB": 2**30, "TB": 2**40}


@dataclass(frozen=True)
class CacheOptions:
    """Whether, where and how features are kept.

    Attributes:
        cache: ``"memory"``, ``"disk"`` (a folder in the user's cache folder), or a folder.
        limit: bytes of features at most, or text such as ``"4 GB"``; by default half of the free
            memory, or of the space on the disk that is free or filled by features. On a disk it
            counts the features of all prefixes; those that were used least recently go first.
        dtype: keep floating-point features as ``"float16"`` or ``"float32"``; by default as
            computed.
        check_every: one batch in so many is computed although it is kept, and compared.
        key: what makes a sample the same: the name of an input that holds sample numbers, or a
            function that takes what the network takes and gives a whole number or a text for each
            sample; by default the sample's content.

    Raises:
        TypeError, ValueError: naming the option.
    """

    cache: str | os.PathLike[str]
    limit: int | str | None = None
    dtype: str | None = None
    check_every: int = 200
    key: str | Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.cache, (str, os.PathLike)) or not os.fspath(self.cache):
            raise TypeError(f'cache={self.cache!r} must be "memory", "disk" or a folder')
        if self.cache not in ("memory", "disk") and Path(self.cache).is_file():
            raise ValueError(f"cache={os.fspath(self.cache)!r} is a file, not a folder")
        if self.limit is not None:
            bytes_of("cache_limit", self.limit)
        if self.dtype is not None:
            one_of("cache_dtype", self.dtype, ("float16", "float32"))
        whole("cache_check_every", self.check_every, 1)
        if not (self.key is None or callable(self.key) or (self.key and type(self.key) is str)):
            raise TypeError(
                f"cache_key={self.key!r} must be the name of an input that holds sample "
                "numbers, or a function that gives a key for each sample of a batch"
            )

    def store(self, fingerprint: Callable[[], str]) -> MemoryStore:
        """A store for the features of the prefix with this fingerprint."""
        limit = None if self.limit is None else bytes_of("cache_limit", self.limit)
        if self.cache == "memory":
            return MemoryStore(_free_memory() // 2 if limit is None else limit)
        root = default_folder() if self.cache == "disk" else Path(self.cache)
        own = root / fingerprint()
        held = hold(own)
        there = folders(root)
        if limit is None:
            free = shutil.disk_usage(root).free
            limit = (free + sum(folder.nbytes for folder in there)) // 2
        return DiskStore(own, limit, [folder for folder in there if folder.path != own], held)


@dataclass
class CacheStatistics:
    """What a cache did since the run began.

    Attributes:
        hits: samples whose features were replayed.
        misses: samples whose features were computed.
        rows: samples kept now.
        nbytes: bytes of features kept now.
        boundary: the layers whose outputs are kept, such as ``("encoder.layers.2",)``; empty
            while the cache is off.
        off: why it was switched off, each time, oldest first; empty if it never was.
    """

    hits: int = 0
    misses: int = 0
    rows: int = 0
    nbytes: int = 0
    boundary: tuple[str, ...] = ()
    off: tuple[str, ...] = ()

    @property
    def hit_rate(self) -> float:
        """Hits / all look-ups; 0 before the first."""
        return self.hits / max(self.hits + self.misses, 1)


def bytes_of(argument: str, size: int | str) -> int:
    """Bytes, from a number or a text such as ``"4 GB"`` (of 2**30 bytes each).

    Raises:
        ValueError, TypeError: naming the argument.

    >>> bytes_of("cache_limit", "1.5 KB")
    1536
    """
    if isinstance(size, str):
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?B)", size.strip(), re.IGNORECASE)
        number = float(match[1]) * _UNITS[match[2].upper()] if match else 0
    elif isinstance(size, int) and not isinstance(size, bool):
        number = size
    else:
        raise TypeError(f'{argument}={size!r} must be bytes, or text such as "4 GB"')
    if number < 1:
        raise ValueError(f'{argument}={size!r} must be bytes, or text such as "500 MB" or "4 GB"')
    return int(number)


def _free_memory() -> int:
    """Bytes of memory that are free to use."""
    import psutil

    return int(psutil.virtual_memory().available)
