"""The folders of a disk cache: how large they are, when they were used, and which may go."""

from __future__ import annotations

import os
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

try:
    import fcntl
except ImportError:  # Windows, where an open file is lock enough
    fcntl = None  # type: ignore[assignment]

_LOCK = "in-use"


class Folder(NamedTuple):
    """The features of one frozen prefix.

    Attributes:
        path: where they are.
        nbytes: the size of its files.
        used: when a run last opened it, in seconds since 1970.
        busy: whether a living process holds it.
    """

    path: Path
    nbytes: int
    used: float
    busy: bool


def default_folder() -> Path:
    """Where ``cache="disk"`` keeps its folders."""
    from platformdirs import user_cache_path

    return user_cache_path("paddle-freeze-callback", appauthor=False) / "features"


def folders(root: Path) -> list[Folder]:
    """The folders of features in this one, the least recently used first; others are left out."""
    found = []
    for path in root.iterdir() if root.is_dir() else ():
        if re.fullmatch("[0-9a-f]{32}", path.name) and path.is_dir():
            files = [(Path(one), one.stat()) for one in os.scandir(path)]
            if all(f.suffix in (".npy", ".partial", ".json") or f.name == _LOCK for f, _ in files):
                used = (path / _LOCK if (path / _LOCK).exists() else path).stat().st_mtime
                nbytes = sum(stat.st_size for _, stat in files)
                found.append(Folder(path, nbytes, used, _locked(path, None)))
    return sorted(found, key=lambda folder: folder.used)


def hold(path: Path) -> IO[str]:
    """Keep a folder from being removed for as long as this file is open; it is made if missing."""
    while True:
        path.mkdir(parents=True, exist_ok=True)
        file = (path / _LOCK).open("a", encoding="utf-8")
        os.utime(path / _LOCK)
        if fcntl is None:
            return file
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_SH)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), (path / _LOCK).stat()):
                return file
        file.close()  # it was removed just now


def remove(folder: Folder) -> int:
    """Remove a folder unless a living process holds it; returns how many bytes that gave."""
    return 0 if _locked(folder.path, shutil.rmtree) else folder.nbytes


def _locked(path: Path, then: Any) -> bool:
    """Whether a process holds a folder; otherwise something is done with it meanwhile."""
    if fcntl is None:
        return _open_on_windows(path / _LOCK) or _done(path, then)
    with suppress(OSError), (path / _LOCK).open("a" if then else "r", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
        return _done(path, then)
    return _done(path, then)  # of an older version, without such a file


def _done(path: Path, then: Any) -> bool:
    if then:
        then(path, ignore_errors=True)
    return False


def _open_on_windows(file: Path) -> bool:
    """Whether a process has a file open: Windows gives such a file no name, not even its own."""
    try:
        os.rename(file, file)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
