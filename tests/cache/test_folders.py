"""The folders of a disk cache: the limit counts all of them, and what nobody uses goes first."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cached import kept, put

from paddle_freeze_callback.cache import folders as cache_folders
from paddle_freeze_callback.cache import stores
from paddle_freeze_callback.cache.folders import folders, hold, remove
from paddle_freeze_callback.cache.options import CacheOptions
from paddle_freeze_callback.cache.stores import DiskStore
from paddle_freeze_callback.cli import main


def name(letter):
    return letter * 32


@pytest.fixture
def filled(tmp_path):
    """Three folders of 100 rows each; b was used first, then a, then c."""
    for age, letter in enumerate("cab"):
        store = DiskStore(tmp_path / name(letter), 10**6)
        put(store, range(100), 10)
        store.flush()
        hold(tmp_path / name(letter)).close()
        os.utime(tmp_path / name(letter) / "in-use", (1e9 - age, 1e9 - age))
    (tmp_path / "notes").mkdir()
    (tmp_path / name("d")).mkdir()
    (tmp_path / name("d") / "thesis.txt").write_text("not ours")
    return tmp_path


def left(root):
    return sorted(path.name[0] for path in root.iterdir())


def test_folders_are_listed_the_least_recently_used_first_and_only_ours(filled):
    found = folders(filled)
    assert [folder.path.name[0] for folder in found] == ["b", "a", "c"]
    assert all(4000 < folder.nbytes < 8000 and not folder.busy for folder in found)
    assert folders(filled / "missing") == []


def test_the_limit_counts_all_folders_and_the_least_recently_used_go_first(filled):
    each = folders(filled)[0].nbytes
    options = CacheOptions(filled, limit=3 * each + 1000)
    store = options.store(lambda: name("e"))
    put(store, range(20), 10)  # 800 bytes
    assert left(filled) == ["a", "b", "c", "d", "e", "n"]
    put(store, range(20, 40), 10)
    assert left(filled) == ["a", "c", "d", "e", "n"]
    put(store, range(40, 60), 10)
    assert (left(filled), store.full) == (["a", "c", "d", "e", "n"], False)
    assert kept(store, range(60), 10) == list(range(60))


def test_a_limit_that_no_removal_could_keep_removes_nothing(filled):
    store = CacheOptions(filled, limit=700).store(lambda: name("e"))
    put(store, range(20), 10)
    assert (left(filled), store.full, len(store)) == (["a", "b", "c", "d", "e", "n"], True, 0)


def test_a_folder_that_a_living_process_holds_is_never_removed(filled):
    """Not even if it was used least recently; and once the process is dead it may go."""
    program = (
        "import sys, pathlib\nfrom paddle_freeze_callback.cache.options import CacheOptions\n"
        f"store = CacheOptions({str(filled)!r}).store(lambda: {name('b')!r})\n"
        "print('held', flush=True), sys.stdin.read()"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    child = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True, env=environment,
    )  # fmt: skip
    assert child.stdout.readline() == "held\n"
    os.utime(filled / name("b") / "in-use", (1, 1))
    oldest = folders(filled)[0]
    assert (oldest.path.name[0], oldest.busy) == ("b", True)
    assert remove(oldest) == 0
    each = oldest.nbytes
    store = CacheOptions(filled, limit=3 * each).store(lambda: name("e"))
    put(store, range(20), 10)
    assert left(filled) == ["b", "c", "d", "e", "n"]
    child.kill(), child.communicate()
    assert remove(folders(filled)[0]) > 0
    assert left(filled) == ["c", "d", "e", "n"]


def test_a_run_that_opens_a_folder_which_is_just_removed_makes_it_anew(filled, monkeypatch):
    real, calls = os.utime, []

    def removed_meanwhile(path, *args):
        if not calls:
            calls.append(path)
            shutil.rmtree(filled / name("a"))
        else:
            real(path, *args)

    monkeypatch.setattr(os, "utime", removed_meanwhile)
    file = hold(filled / name("a"))
    assert os.path.samestat(os.fstat(file.fileno()), (filled / name("a") / "in-use").stat())


def test_the_command_shows_and_removes_them(filled, capsys):
    held = hold(filled / name("a"))
    assert main(["cache", "list", "--folder", str(filled)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[0] for line in lines] == ["b", "c", "a", "3"]
    assert lines[2].endswith(", in use")
    assert f"3 in {filled}: 0.0 MB" == lines[-1]
    assert main(["cache", "clear", "--folder", str(filled)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.endswith(", removed") for line in lines] == [True, True, False, False]
    assert left(filled) == ["a", "d", "n"]
    held.close()


@pytest.fixture
def indexed(tmp_path, monkeypatch):
    """Forty rows in ten files, and an index, which was written when a run found so many files."""
    monkeypatch.setattr(stores, "_SEGMENT_ROWS", 4)
    monkeypatch.setattr(stores, "_UNINDEXED", 8)
    store = DiskStore(tmp_path, 10**6)
    for at in range(0, 40, 4):
        put(store, range(at, at + 4))
    assert kept(DiskStore(tmp_path, 10**6), range(41)) == list(range(40))
    return tmp_path


def test_an_index_is_searched_and_no_file_is_read_before_a_row_of_it_is_asked_for(indexed):
    store = DiskStore(indexed, 10**6)
    assert (len(store), store.nbytes, len(store._index.keys)) == (40, 480, 40)
    assert store._index.opened == {}
    assert kept(store, [5, 50, 38]) == [5, 38]
    assert len(store._index.opened) == 2
    assert kept(store, range(41)) == list(range(40))
    assert store.damaged == 0
    put(store, range(40))  # they are there
    assert (len(store), store.nbytes) == (40, 480)


@pytest.mark.parametrize("at", range(0, 1400, 50))
def test_an_index_that_is_altered_never_gives_a_wrong_row(indexed, at):
    (file,) = indexed.glob("*.index3.npy")
    content = bytearray(file.read_bytes())
    for place in range(at, min(at + 50, len(content))):
        content[place] ^= 0x55
    file.write_bytes(content)
    store = DiskStore(indexed, 10**6)
    found = kept(store, range(40))  # compares each with what was put
    for key in sorted({*range(40)}.difference(found)):
        put(store, [key])
    assert len(kept(store, range(40))) >= len(found)


def test_files_of_an_index_that_are_gone_or_damaged_are_recorded_anew(indexed):
    files = sorted(indexed.glob("*.rows3.npy"))
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:-30])
    store = DiskStore(indexed, 10**6)
    assert kept(store, range(40)) == list(range(8, 40))
    put(store, range(8)), store.flush()
    assert kept(DiskStore(indexed, 10**6), range(40)) == list(range(40))


def test_many_rows_in_few_files_are_indexed_too(tmp_path, monkeypatch):
    """Reading every key takes as long as it takes to open."""
    monkeypatch.setattr(stores, "_UNINDEXED_ROWS", 39)
    keys = [number.to_bytes(16, "big") for number in range(40)]
    store = DiskStore(tmp_path, 10**6)
    store.put(keys, (np.zeros([40, 3], "float32"),))
    store.flush()
    assert list(tmp_path.glob("*.index3.npy")) == []
    DiskStore(tmp_path, 10**6)
    last = DiskStore(tmp_path, 10**6)
    assert (len(last), len(last._index.keys), len(last._written)) == (40, 40, 0)


def test_of_equal_keys_in_an_index_the_newest_counts(indexed, monkeypatch):
    file = sorted(indexed.glob("*.rows3.npy"))[0]
    file.write_bytes(file.read_bytes()[:-8] + b"altered!")
    store = DiskStore(indexed, 10**6)
    assert kept(store, range(4)) == [0, 1, 2]
    put(store, [3]), store.flush()
    monkeypatch.setattr(stores, "_UNINDEXED", 0)
    DiskStore(indexed, 10**6)
    last = DiskStore(indexed, 10**6)
    assert kept(last, range(40)) == list(range(40))
    assert (last.damaged, len(list(indexed.glob("*.index3.npy")))) == (0, 1)
    assert np.array_equal(np.sort(last._index.keys), last._index.keys)


# ------------------------------------------------------------ Windows, as far as it can be played


@pytest.fixture
def as_windows(monkeypatch):
    """No locks; a file that is mapped is not removed, one that is open is not renamed."""
    unlink, rename, is_open = Path.unlink, os.rename, set()

    def unlinked(path, missing_ok=False):
        if path.name.endswith(".npy") and str(path) in Path("/proc/self/maps").read_text():
            raise PermissionError(13, "used by another process", str(path))
        unlink(path, missing_ok=missing_ok)

    def renamed(old, new):
        if str(old) in is_open:
            raise PermissionError(13, "used by another process", str(old))
        rename(old, new)

    monkeypatch.setattr(cache_folders, "fcntl", None)
    monkeypatch.setattr(Path, "unlink", unlinked)
    monkeypatch.setattr(os, "rename", renamed)
    return is_open


def test_without_locks_an_open_file_shows_who_uses_a_folder(filled, as_windows, capsys):
    held = hold(filled / name("a"))
    as_windows.add(held.name)
    assert [folder.busy for folder in folders(filled)] == [False, False, True]
    assert main(["cache", "clear", "--folder", str(filled)]) == 0
    assert left(filled) == ["a", "d", "n"]
    held.close()
    as_windows.clear()
    assert main(["cache", "clear", "--folder", str(filled)]) == 0
    assert left(filled) == ["d", "n"]


def test_a_folder_without_such_a_file_goes_without_locks_too(filled, as_windows):
    (filled / name("b") / "in-use").unlink()
    (old,) = (folder for folder in folders(filled) if folder.path.name == name("b"))
    assert remove(old) == old.nbytes
    assert left(filled) == ["a", "c", "d", "n"]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="cannot see what is mapped")
def test_an_index_that_is_mapped_stays_until_the_next_is_written(indexed, as_windows, monkeypatch):
    monkeypatch.setattr(stores, "_UNINDEXED", 0)
    first = DiskStore(indexed, 10**6)
    put(first, range(40, 44)), first.flush()
    second = DiskStore(indexed, 10**6)  # writes an index beside the one that both have mapped
    assert len(list(indexed.glob("*.index3.npy"))) == 2
    assert kept(second, range(44)) == list(range(44))
    del first, second
    gc.collect()
    third = DiskStore(indexed, 10**6)
    assert kept(third, range(44)) == list(range(44))
    put(third, range(44, 48)), third.flush()
    del third
    gc.collect()
    assert kept(DiskStore(indexed, 10**6), range(48)) == list(range(48))
    assert len(list(indexed.glob("*.index3.npy"))) <= 2
