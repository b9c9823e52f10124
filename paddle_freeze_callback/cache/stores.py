"""Where the features of samples are kept: in memory, or in files that outlive the process.

A store maps the key of a sample, 16 bytes, to a row: one array for each tensor at the boundary.
Both kinds stop filling at their limit. Under shuffling every sample is as likely to come next as
any other, so evicting one for another gains nothing; and in an order that repeats, the least
recently used sample is exactly the one that comes next.
"""

from __future__ import annotations

import os
import time
import uuid
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import xxhash

from .folders import Folder, remove

Row = tuple[np.ndarray[Any, Any], ...]


class MemoryStore:
    """Rows in the memory of this process, up to a limit in bytes.

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
        self.full = False  # whether a row was turned away

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
        if not self._room_for(each * len(new)):
            self.full = True
        if self.full or not new:
            return
        block = batch if len(new) == len(keys) else tuple(array[new] for array in batch)
        self._rows.update((keys[index], (block, row)) for row, index in enumerate(new))
        self.nbytes += each * len(new)

    def flush(self) -> None:
        """Do nothing: these rows end with the process."""

    def _room_for(self, nbytes: int) -> bool:
        return self.nbytes + nbytes <= self._limit


# A process that is killed loses at most so much.
_SEGMENT_BYTES = 64 * 2**20
_SEGMENT_ROWS = 1024

# NumPy's dtypes, and so the columns of a file, end at 2 GB.
_LARGEST = 2**30

# The number is that of the format. Other files in a folder are never read.
_SUFFIX = ".rows3.npy"
_INDEX = ".index3.npy"

# An index is written anew by who finds more files, or rows, than these that are not in it.
_UNINDEXED = 64
_UNINDEXED_ROWS = 8192


class DiskStore(MemoryStore):
    """Rows in a folder that several processes, and later runs, may share.

    New rows wait in memory until they fill a segment: one ``.npy`` file of keys, checksums and
    features, which appears whole and never changes. Rows that still wait are written by
    :meth:`flush`, when the store is dropped, and when the interpreter ends. A row counts only if
    its checksum fits, so a damaged one is recorded anew.

    Other folders count for the limit, too, and may go, the first one first. An open file may be
    held that keeps this folder from being removed.
    """

    def __init__(
        self, folder: str | os.PathLike[str], limit: int, others: Sequence[Folder] = (),
        held: IO[str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(limit - sum(other.nbytes for other in others))
        self._others = list(others)
        self._held = held
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._written: dict[bytes, tuple[_Segment, int]] = {}
        self._lost: set[bytes] = set()  # indexed, but not there
        self.damaged = 0  # rows and files that did not fit their checksum or format
        names = sorted(os.listdir(self._folder))
        self._index = _Index.newest(self._folder, names)
        self.nbytes += self._index.nbytes
        # The oldest first: of a row that was damaged and recorded anew, the newest counts.
        known = set(self._index.names)
        new = [name for name in names if name.endswith(_SUFFIX) and name not in known]
        found = {name: segment for name in new if (segment := self._read_in(name))}
        self.nbytes += sum(segment.nbytes for segment in found.values())
        if len(found) > _UNINDEXED or len(self._written) > _UNINDEXED_ROWS:
            self._index.with_more(found).write(self._folder)
        weakref.finalize(self, _write, self._folder, self._rows)

    def __len__(self) -> int:
        return len(self._rows) + len(self._written) + len(self._index.keys) - len(self._lost)

    def __contains__(self, key: bytes) -> bool:
        waits = key in self._rows or key in self._written
        return waits or (key not in self._lost and self._index.find([key])[0] is not None)

    def get(self, keys: Sequence[bytes]) -> list[Row | None]:
        """The row of each key, or ``None``; one whose checksum does not fit is forgotten."""
        indexed = self._index.find(keys)
        return [
            row or self._checked(key, place)
            for key, row, place in zip(keys, super().get(keys), indexed)
        ]

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
            self._read_in(file.name)
        self.full = self.full or bool(self._rows)

    def _room_for(self, nbytes: int) -> bool:
        need = self.nbytes + nbytes - self._limit
        if need > sum(other.nbytes for other in self._others if not other.busy):
            return False
        while self._others and self.nbytes + nbytes > self._limit:
            self._limit += remove(self._others.pop(0))
        return self.nbytes + nbytes <= self._limit

    def _read_in(self, name: str) -> _Segment | None:
        segment = _segment(self._folder / name)
        if segment is None:
            self.damaged += 1
            return None
        self._written.update((key, (segment, row)) for row, key in enumerate(segment.keys.tolist()))
        return segment

    def _checked(self, key: bytes, indexed: tuple[int, int] | None) -> Row | None:
        if key in self._written:
            segment, place = self._written[key]
        elif indexed is not None and key not in self._lost:
            found = self._index.segment(self._folder, indexed[0])
            if found is None or indexed[1] >= len(found.keys):
                return self._forget(key)
            segment, place = found, indexed[1]
        else:
            return None
        row = tuple(np.array(one) for one in _row(segment.features, place))
        # The key counts for it, so an index that is wrong does no harm.
        return row if segment.digests[place].tobytes() == _digest(key, row) else self._forget(key)

    def _forget(self, key: bytes) -> Row | None:
        if not self._written.pop(key, None):
            self._lost.add(key)
        self.damaged += 1
        return None


_open_memmap: Any = np.lib.format.open_memmap
_Numbers = np.ndarray[Any, Any]
_KINDS = {"key": "<u8", "file": "<u4", "row": "<u4"}  # the columns of an index


class _Segment(NamedTuple):
    """The columns of a file; opening one reads its keys, and none of its features."""

    keys: np.ndarray[Any, Any]
    digests: np.ndarray[Any, Any]
    features: Row

    @property
    def nbytes(self) -> int:
        """Bytes of its features."""
        return sum(column.nbytes for column in self.features)


@dataclass(frozen=True)
class _Index:
    """Which rows are in which file, sorted by key: searched where it lies on the disk."""

    keys: _Numbers  # half of each: the checksum of a row knows all of it
    files: _Numbers
    rows: _Numbers
    names: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()  # bytes of features by file
    opened: dict[int, _Segment | None] = field(default_factory=dict)

    @classmethod
    def newest(cls, folder: Path, names: Sequence[str]) -> _Index:
        """The newest index in a folder that can be read; else an empty one."""
        for name in reversed([name for name in names if name.endswith(_INDEX)]):
            with suppress(Exception):  # whatever a damaged file makes NumPy raise
                content = _open_memmap(folder / name, mode="r", max_header_size=2**20)
                keys, files, rows = (np.asarray(content[column]) for column in _KINDS)
                if [column.dtype.str for column in (keys, files, rows)] == [*_KINDS.values()]:
                    own, sizes = content["name"].tolist(), content["size"].tolist()
                    index = cls(keys, files, rows, tuple(own), tuple(sizes))
                    there = frozenset(names)
                    index.opened.update({i: None for i, n in enumerate(own) if n not in there})
                    return index
        return cls(*(np.zeros(0, kind) for kind in _KINDS.values()))  # type: ignore[arg-type]

    @property
    def nbytes(self) -> int:
        """Bytes of features in all files that are there."""
        return sum(
            size for i, size in enumerate(self.sizes) if self.opened.get(i, self) is not None
        )

    def find(self, keys: Sequence[bytes]) -> list[tuple[int, int] | None]:
        """The file and the row of each key, or ``None``."""
        if not len(self.keys) or not keys:
            return [None] * len(keys)
        wanted = _halves(b"".join(keys))
        at = np.searchsorted(self.keys, wanted).clip(max=len(self.keys) - 1)
        found = zip(
            (self.keys[at] == wanted).tolist(), self.files[at].tolist(), self.rows[at].tolist()
        )
        return [(file, row) if same else None for same, file, row in found]

    def segment(self, folder: Path, number: int) -> _Segment | None:
        """A file of it, opened when it is first needed; ``None`` if it is damaged or gone."""
        if number not in self.opened:
            known = number < len(self.names)
            self.opened[number] = _segment(folder / self.names[number]) if known else None
        return self.opened[number]

    def with_more(self, new: Mapping[str, _Segment]) -> _Index:
        """An index of its files that are there and these; of equal keys the newest counts."""
        names = (*self.names, *new)
        parts = [(self.keys, self.files, self.rows)]
        for number, segment in enumerate(new.values(), len(self.names)):
            count = len(segment.keys)
            parts.append(
                (_halves(segment.keys.tobytes()), np.full(count, number), np.arange(count))
            )
        keys, files, rows = (np.concatenate(one[::-1]) for one in zip(*parts))
        keys, first = np.unique(keys, return_index=True)
        sizes = (*self.sizes, *(segment.nbytes for segment in new.values()))
        return _Index(keys, files[first], rows[first], names, sizes)

    def write(self, folder: Path) -> None:
        """Write it in place of those that are there."""
        old = list(folder.glob(f"*{_INDEX}"))
        n, m = len(self.keys), len(self.names)
        if 16 * n > _LARGEST:
            return
        columns = [(name, kind, (n,)) for name, kind in _KINDS.items()]
        columns += [("name", "U80", (m,)), ("size", "<u8", (m,))]
        content = np.zeros((), columns)
        values = (self.keys, self.files, self.rows, self.names, self.sizes)
        for (column, *_), value in zip(columns, values):
            content[column] = value
        if _saved(folder, _INDEX, content):
            for file in old:
                # Windows keeps a file that is mapped; whoever writes the next index removes it.
                with suppress(PermissionError):
                    file.unlink(missing_ok=True)


def _halves(keys: bytes) -> np.ndarray[Any, Any]:
    """One number of 64 bits for each key of 16 bytes."""
    both: _Numbers = np.frombuffer(keys, "<u8").reshape(-1, 2)
    return np.asarray(both[:, 0] ^ (both[:, 1] * np.uint64(0x9E3779B97F4A7C15)))


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
            try:
                file = _saved(folder, _SUFFIX, _content(part))
            except ValueError:  # one row is too long for a dtype
                file = None
            if file is None:
                continue
            files.append(file)
            for key, _ in part:
                del rows[key]
    return files


def _saved(folder: Path, suffix: str, content: np.ndarray[Any, Any]) -> Path | None:
    """Write a file that appears whole; ``None`` if the disk is full."""
    file = folder / f"{time.time_ns():020}-{uuid.uuid4().hex}{suffix}"
    partial = file.with_suffix(".partial")
    try:
        with partial.open("xb") as stream:
            np.save(stream, content, allow_pickle=False)
        os.replace(partial, file)
    except (OSError, ValueError):
        return None
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    return file


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
    total = xxhash.xxh3_64(key)
    for value in row:
        total.update(repr((value.dtype.str, value.shape)).encode())
        total.update(np.ascontiguousarray(value).data)
    return total.digest()
