"""Whether, where and how features are kept, and what came of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..checks import one_of, whole
from .stores import DiskStore, MemoryStore, bytes_of, default_folder, free_memory


@dataclass(frozen=True)
class CacheOptions:
    """Whether, where and how features are kept.

    Attributes:
        cache: ``"memory"``, ``"disk"`` (a folder in the user's cache folder), or a folder.
        limit: bytes of features at most, or text such as ``"4 GB"``; by default half of the free
            memory, or of the free space on the disk.
        dtype: keep floating-point features as ``"float16"`` or ``"float32"``; by default as
            computed.
        check_every: compute one batch in so many after all, and compare.
    """

    cache: str | os.PathLike[str]
    limit: int | str | None = None
    dtype: str | None = None
    check_every: int = 200

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

    def store(self, fingerprint: Callable[[], str]) -> MemoryStore | DiskStore:
        """A store for features of a prefix with this fingerprint."""
        limit = None if self.limit is None else bytes_of("cache_limit", self.limit)
        if self.cache == "memory":
            return MemoryStore(free_memory() // 2 if limit is None else limit)
        folder = default_folder() if self.cache == "disk" else Path(self.cache)
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        return DiskStore(folder / fingerprint(), free // 2 if limit is None else limit)


@dataclass
class CacheStatistics:
    """What a cache did since the run began.

    Attributes:
        hits: samples whose features were replayed.
        misses: samples whose features were computed.
        rows: samples kept now.
        nbytes: bytes of features kept now.
        boundary: what is kept, such as ``("encoder.layers.2",)``; empty while the cache is off.
        off: why it is off; empty while it is on.
    """

    hits: int = 0
    misses: int = 0
    rows: int = 0
    nbytes: int = 0
    boundary: tuple[str, ...] = ()
    off: str = ""

    @property
    def hit_rate(self) -> float:
        """Hits / all look-ups; 0 before the first."""
        return self.hits / max(self.hits + self.misses, 1)
