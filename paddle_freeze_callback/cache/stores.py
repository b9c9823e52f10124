"""Where the features of samples are kept: in memory, or in files that outlive the process.

A store maps the key of a sample, 16 bytes, to a row: one array for each tensor at the boundary.
Both kinds stop filling at their limit. Under shuffling every sample is as likely to come next as
any other, so evicting one for another gains nothing; and in an order that repeats, the least
recently used sample is exactly the one that comes next.
"""

from __future__ import annotations

import hashlib
import os
import time
import uuid
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Row = tuple[np.ndarray[Any, Any], ...]


class MemoryStore:
    """Rows in the memory of this process.

    Args:
        limit: bytes of features at most.

    Attributes:
        nbytes: bytes of features in it.
        full: whether a row was turned away.

    >>> store = MemoryStore(limit=100)
    >>> store.put([b"a", b"b"], (np.zeros([2, 3], "float32"),))
    >>> [row is not None for row in store.get([b"b", b"c"])], store.nbytes
    ([True, False], 24)
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        # Batches are kept whole, as they came: the batch of each sample, and its row there.
        self._rows: dict[bytes, tuple[Row, int]] = {}
        self.nbytes = 0
        self.full = False

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, key: bytes) -> bool:
        return key in self._rows

    def get(self, keys: Sequence[bytes]) -> list[Row | None]:
        """The row of each key, or ``None``."""
        places = (self._rows.get(key) for key in keys)
        return [None if place is None else _row(*place) for place in places]

    def put(self, keys: Sequence[bytes], batch: Row) -> None:
        """Keep the rows of a batch, as far as the limit allows; each array has one per key."""
        first = {key: index for index, key in reversed(list(enumerate(keys)))}
        new = sorted(index for key, index in first.items() if key not in self)
        each = sum(array.nbytes for array in batch) // max(len(keys), 1)
        # Whole batches, so that batches that come again as they are never mix old and new rows.
        if self.nbytes + each * len(new) > self._limit:
            self.full = True
        if self.nbytes + each * len(new) > self._limit or not new:
            return
        block = batch if len(new) == len(keys) else tuple(array[new] for array in batch)
        self._rows.update((keys[index], (block, row)) for row, index in enumerate(new))
        self.nbytes += each * len(new)

    def flush(self) -> None:
        """Do nothing: these rows end with the process."""


# A process that is killed loses at most so much.
_SEGMENT_BYTES = 64 * 2**20
_SEGMENT_ROWS = 1024

# NumPy's dtypes, and so the columns of a file, end at 2 GB.
_LARGEST = 2**30

# The number is that of the format. Other files in a folder are never read.
_SUFFIX = ".rows2.npy"


class DiskStore(MemoryStore):
    """Rows in a folder that several processes, and later runs, may share.

    New rows wait in memory until they fill a segment: one ``.npy`` file of keys, checksums and
    features, which appears whole and never changes. Rows that still wait are written by
    :meth:`flush`, when the store is dropped, and when the interpreter ends. A row counts only if
    its checksum fits, so a damaged one is recorded anew.

    Args:
        folder: a folder for the features of one frozen prefix.
        limit: bytes of features at most, those that it finds in the folder included.

    Attributes:
        damaged: how many rows and files did not fit their checksum or format.
    """

    def __init__(self, folder: str | os.PathLike[str], limit: int) -> None:
        super().__init__(limit)
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._written: dict[bytes, tuple[_Segment, int]] = {}
        self.damaged = 0
        # The oldest first: of a row that was damaged and recorded anew, the newest counts.
        for file in sorted(self._folder.glob(f"*{_SUFFIX}")):
            self.nbytes += self._read_in(file)
        weakref.finalize(self, _write, self._folder, self._rows)

    def __len__(self) -> int:
        return len(self._rows) + len(self._written)

    def __contains__(self, key: bytes) -> bool:
        return key in self._rows or key in self._written

    def get(self, keys: Sequence[bytes]) -> list[Row | None]:
        """The row of each key, or ``None``; one whose checksum does not fit is forgotten."""
        return [row or self._checked(key) for key, row in zip(keys, super().get(keys))]

    def put(self, keys: Sequence[bytes], batch: Row) -> None:
        """Keep the rows of a batch, as far as the limit allows; each array has one per key."""
        if self.full:
            return
        super().put(keys, batch)
        waiting = len(self._rows)
        nbytes = waiting * sum(array.nbytes for array in batch) // max(len(keys), 1)
        if self.full or waiting >= _SEGMENT_ROWS or nbytes >= _SEGMENT_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write the rows that wait; if that fails they stay in memory, and the store is full."""
        for file in _write(self._folder, self._rows):
            self._read_in(file)
        self.full = self.full or bool(self._rows)

    def _read_in(self, file: Path) -> int:
        """Add the rows of a segment; returns the bytes of their features."""
        segment = _segment(file)
        if segment is None:
            self.damaged += 1
            return 0
        self._written.update((key, (segment, row)) for row, key in enumerate(segment.keys.tolist()))
        return sum(column.nbytes for column in segment.features)

    def _checked(self, key: bytes) -> Row | None:
        if key not in self._written:
            return None
        segment, place = self._written[key]
        row = tuple(np.array(one) for one in _row(segment.features, place))
        if segment.digests[place].tobytes() == _digest(key, row):
            return row
        del self._written[key]
        self.damaged += 1
        return None


_open_memmap: Any = np.lib.format.open_memmap


class _Segment(NamedTuple):
    """The columns of a file; opening one reads its keys, and none of its features."""

    keys: np.ndarray[Any, Any]
    digests: np.ndarray[Any, Any]
    features: Row


def _segment(file: Path) -> _Segment | None:
    """The rows in a file, mapped into memory; ``None`` if it is damaged."""
    try:
        content = _open_memmap(file, mode="r", max_header_size=2**20)
        keys, digests, *features = (np.asarray(content[name]) for name in content.dtype.names)
    except Exception:  # whatever a damaged file makes NumPy raise
        return None
    kinds = (keys.dtype.str, digests.dtype.str)
    sides = {column.shape[:1] for column in (keys, digests, *features)}
    if kinds != ("|V16", "|V8") or sides != {keys.shape}:
        return None
    return _Segment(keys, digests, tuple(features))


def _write(folder: Path, rows: dict[bytes, tuple[Row, int]]) -> list[Path]:
    """Write segments, at least one for each form of row; what is written leaves ``rows``.

    Not a method, because it must also run after the store is gone.
    """
    forms: dict[Any, list[tuple[bytes, Row]]] = {}
    for key, place in rows.items():
        row = _row(*place)
        forms.setdefault(tuple((one.dtype.str, one.shape) for one in row), []).append((key, row))
    files = []
    for group in forms.values():
        each = sum(array.nbytes for array in group[0][1])
        most = max(_LARGEST // max(each, 1), 1)
        for part in (group[at : at + most] for at in range(0, len(group), most)):
            file = folder / f"{time.time_ns():020}-{uuid.uuid4().hex}{_SUFFIX}"
            partial = file.with_suffix(".partial")
            try:
                with partial.open("xb") as stream:
                    np.save(stream, _content(part), allow_pickle=False)
                os.replace(partial, file)
            except (OSError, ValueError):  # the disk is full, or one row is too long for a dtype
                continue
            finally:
                with suppress(OSError):
                    partial.unlink(missing_ok=True)
            files.append(file)
            for key, _ in part:
                del rows[key]
    return files


def _content(rows: Sequence[tuple[bytes, Row]]) -> np.ndarray[Any, Any]:
    """Rows of one form as one structured value: a column of keys, of checksums, of each array."""
    n = len(rows)
    columns = [(str(i), one.dtype.str, (n, *one.shape)) for i, one in enumerate(rows[0][1])]
    content = np.zeros((), [("key", "V16", (n,)), ("digest", "V8", (n,)), *columns])
    content["key"] = np.frombuffer(b"".join(key for key, _ in rows), "V16")
    content["digest"] = np.frombuffer(b"".join(_digest(*one) for one in rows), "V8")
    for i, (name, _, _) in enumerate(columns):
        np.stack([row[i] for _, row in rows], out=content[name])
    return content


def _row(batch: Row, index: int) -> Row:
    return tuple(array[index] for array in batch)


def _digest(key: bytes, row: Row) -> bytes:
    total = hashlib.blake2b(key, digest_size=8)
    for value in row:
        total.update(repr((value.dtype.str, value.shape)).encode())
        total.update(np.ascontiguousarray(value).tobytes())
    return total.digest()
