"""Where the features of samples are kept: in memory, or in files that outlive the process.

A store maps the key of a sample, 16 bytes, to a row: one array for each tensor at the boundary.
Both kinds stop filling at their limit: under shuffling every sample is as likely to come next as
any other, so throwing one out for another gains nothing, and with an order that repeats, the
least recently used is exactly the one that comes next.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

Row = tuple[np.ndarray[Any, Any], ...]


_UNITS = {"B": 1, "KB": 2**10, "MB": 2**20, "GB": 2**30, "TB": 2**40}


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


def free_memory() -> int:
    """Bytes of memory that are free to use, as far as the system tells."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 4 * 2**30  # not Linux; a guess on the safe side


def default_folder() -> Path:
    """Where ``cache="disk"`` keeps its files."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "paddle-freeze-callback" / "features"


class MemoryStore:
    """Rows in the memory of this process.

    Args:
        limit: bytes of features at most.

    >>> store = MemoryStore(limit=100)
    >>> store.put([b"a", b"b"], (np.zeros([2, 3], "float32"),))
    >>> [row is not None for row in store.get([b"b", b"c"])], store.nbytes
    ([True, False], 24)
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        # Whole batches are kept as they came, and a sample is a row of one.
        self._rows: dict[bytes, tuple[Row, int]] = {}
        self.nbytes = 0
        self.full = False

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, keys: Sequence[bytes]) -> list[Row | None]:
        """The row of each key, or ``None``."""
        found: list[Row | None] = []
        for key in keys:
            place = self._rows.get(key)
            found.append(None if place is None else tuple(one[place[1]] for one in place[0]))
        return found

    def put(self, keys: Sequence[bytes], batch: Row) -> None:
        """Keep the rows of a batch, as far as the limit allows; each array has one per key."""
        first = {key: index for index, key in reversed(list(enumerate(keys)))}
        new = sorted(index for key, index in first.items() if key not in self._rows)
        each = sum(array.nbytes for array in batch) // max(len(keys), 1)
        room = len(new) if not each else max((self._limit - self.nbytes) // each, 0)
        if len(new) > room:
            self.full, new = True, new[:room]
        if not new:
            return
        block = batch if len(new) == len(keys) else tuple(array[new] for array in batch)
        for row, index in enumerate(new):
            self._rows[keys[index]] = (block, row)
        self.nbytes += each * len(new)


_INDEX = np.dtype([("key", "V16"), ("digest", "V8")])


_SEGMENT_BYTES = 64 * 2**20


_FORMAT = 1


class DiskStore:
    """Rows in a folder that several processes, and later runs, may share.

    Each process appends to segments of its own: a JSON file that describes them, an array with
    keys and checksums, and one array per tensor, all memory-mapped ``.npy``. A row counts only
    if its checksum fits, so what a crash cut short, or anything altered, is recorded anew.

    Args:
        folder: for these frozen weights only.
        limit: bytes of features at most, those of others included.
    """

    def __init__(self, folder: str | os.PathLike[str], limit: int) -> None:
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._limit = limit
        # A row that was damaged, and recorded anew, has several places.
        self._rows: dict[bytes, list[tuple[_Segment, int]]] = {}
        self._writing: dict[Any, _Segment] = {}
        self._count = 0
        self.nbytes = 0
        self.full = False
        self.damaged = 0
        for file in sorted(self._folder.glob("*.json")):
            segment = _Segment.open(file)
            if segment is None:
                self.damaged += 1
                continue
            for row, key in segment.written():
                self._rows.setdefault(key, []).append((segment, row))
                self.nbytes += segment.nbytes // max(segment.capacity, 1)
        self._count = len(self._rows)

    def __len__(self) -> int:
        return self._count

    def get(self, keys: Sequence[bytes]) -> list[Row | None]:
        """The row of each key, or ``None``; one whose checksum does not fit is forgotten."""
        found: list[Row | None] = []
        for key in keys:
            row, places = None, self._rows.get(key, [])
            while places and row is None:
                segment, number = places[-1]
                row = segment.read(key, number)
                if row is None:
                    self.damaged += 1
                    places.pop()
                    self._count -= not places
            found.append(row)
        return found

    def put(self, keys: Sequence[bytes], batch: Row) -> None:
        """Keep the rows of a batch, as far as the limit allows; each array has one per key."""
        form = tuple((array.shape[1:], array.dtype.str) for array in batch)
        each = sum(array.nbytes for array in batch) // max(len(keys), 1)
        for index, key in enumerate(keys):
            if self._rows.get(key):
                continue
            segment = self._writing.get(form)
            if segment is None or segment.used == segment.capacity:
                capacity = int(min(max(_SEGMENT_BYTES // max(each, 1), 1), 1024))
                capacity = min(capacity, (self._limit - self.nbytes) // max(each, 1))
                try:
                    segment = _Segment.create(self._folder, form, capacity) if capacity else None
                except OSError:  # the disk is full, or nothing more may be opened
                    segment = None
                if segment is None:
                    self.full = True
                    return
                self._writing[form] = segment
            if self.nbytes + each > self._limit:
                self.full = True
                return
            self.nbytes += each
            row = segment.append(key, tuple(array[index] for array in batch))
            self._rows.setdefault(key, []).append((segment, row))
            self._count += 1


class _Segment:
    """A file of rows of one form, with an index."""

    def __init__(self, index: Any, arrays: tuple[Any, ...], used: int) -> None:
        self._index = index
        self._arrays = arrays
        self.used = used
        self.capacity = len(index)
        self.nbytes = sum(array.nbytes for array in arrays)

    @classmethod
    def create(cls, folder: Path, form: Any, capacity: int) -> _Segment:
        stem = folder / uuid.uuid4().hex
        index = _new_array(f"{stem}.index.npy", _INDEX, (capacity,))
        arrays = tuple(
            _new_array(f"{stem}.{i}.npy", np.dtype(dtype), (capacity, *shape))
            for i, (shape, dtype) in enumerate(form)
        )
        # Last, so that whoever sees it finds the arrays in place.
        rows = [[list(shape), dtype] for shape, dtype in form]
        partial = Path(f"{stem}.partial")
        partial.write_text(json.dumps({"format": _FORMAT, "rows": rows}))
        os.replace(partial, f"{stem}.json")
        return cls(index, arrays, 0)

    @classmethod
    def open(cls, file: Path) -> _Segment | None:
        """The segment that a file describes; ``None`` if it is damaged."""
        stem = str(file)[: -len(".json")]
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            if content["format"] != _FORMAT:
                return None
            index = np.load(f"{stem}.index.npy", mmap_mode="r", allow_pickle=False)
            if index.dtype != _INDEX or index.ndim != 1:
                return None
            arrays = []
            for i, (shape, dtype) in enumerate(content["rows"]):
                array = np.load(f"{stem}.{i}.npy", mmap_mode="r", allow_pickle=False)
                if array.shape != (len(index), *shape) or array.dtype.str != dtype:
                    return None
                arrays.append(array)
        except Exception:  # whatever a damaged file makes json, zipfile and NumPy raise
            return None
        return cls(index, tuple(arrays), len(index))

    def written(self) -> list[tuple[int, bytes]]:
        """Rows that were written, with their keys."""
        rows = np.flatnonzero(self._index["digest"] != np.zeros(1, "V8"))
        return [(int(row), self._index["key"][row].tobytes()) for row in rows]

    def append(self, key: bytes, row: Row) -> int:
        place = self.used
        for array, value in zip(self._arrays, row):
            array[place] = value
        self._index[place] = (key, _digest(key, row))
        self.used += 1
        return place

    def read(self, key: bytes, place: int) -> Row | None:
        row = tuple(np.array(array[place]) for array in self._arrays)
        return row if self._index["digest"][place].tobytes() == _digest(key, row) else None


def _new_array(file: str, dtype: Any, shape: tuple[int, ...]) -> Any:
    """A memory-mapped array of zeros, whose space on the disk is taken at once.

    Otherwise a disk that fills up later would kill the process (SIGBUS) when a row is written.
    """
    open_memmap: Any = np.lib.format.open_memmap
    array = open_memmap(file, "w+", dtype, shape)
    if hasattr(os, "posix_fallocate"):
        with open(file, "r+b") as stream:
            try:
                os.posix_fallocate(stream.fileno(), 0, max(os.fstat(stream.fileno()).st_size, 1))
            except OSError:
                del array
                os.unlink(file)
                raise
    return array


def _digest(key: bytes, row: Row) -> bytes:
    sum_ = hashlib.blake2b(key, digest_size=8)
    for value in row:
        sum_.update(np.ascontiguousarray(value).tobytes())
    return sum_.digest()
