"""Features in memory and in files: what is put comes back, or nothing does."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys

import numpy as np
import paddle
import pytest
from cached import Three, by_hand, kept, put, random_batches
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import conv_net
from processes import posix_only

from paddle_freeze_callback import FreezeSchedule
from paddle_freeze_callback.cache import stores
from paddle_freeze_callback.cache.stores import DiskStore, MemoryStore


def disk_run(folder, network=None, **options):
    paddle.seed(5)
    network = network or conv_net()
    schedule = FreezeSchedule(unfreeze_at={0: "fc"}, cache=folder, **options)
    return by_hand(network, schedule, random_batches([1, 6, 6]))


def test_features_on_disk_outlive_the_run_and_are_never_served_to_other_weights(tmp_path):
    plain, _, _ = by_hand_plain()
    first, statistics, _ = disk_run(tmp_path)
    assert first == plain
    assert statistics.rows == 16
    second, statistics, lines = disk_run(tmp_path)
    assert second == plain
    assert statistics.misses == 8  # how the network runs, and the proof
    assert any("16 samples are there" in line for line in lines)
    other = conv_net()
    with paddle.no_grad():
        other.block2[0].weight.set_value(other.block2[0].weight * 1.5)
    _, statistics, lines = disk_run(tmp_path, other)
    assert any("0 samples are there" in line for line in lines)
    kinds = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert kinds == {".npy", ""}  # an empty file tells others that the folder is in use
    for path in tmp_path.rglob("*.npy"):
        np.load(path, allow_pickle=False)


def by_hand_plain():
    paddle.seed(5)
    schedule = FreezeSchedule(unfreeze_at={0: "fc"}, frozen_dropout="eval")
    return by_hand(conv_net(), schedule, random_batches([1, 6, 6]))


SHAPE = b"'<f4', (16, 4, 6, 6)"  # how the features of these sixteen samples are described

DAMAGES = {
    "altered": lambda content: content[:1000] + bytes(9000) + content[10000:],
    "cut": lambda content: content[:-100],
    "cut in the header": lambda content: content[:50],
    "empty": lambda content: b"",
    "no header": lambda content: content.replace(b"{'descr'", b"{{descr'", 1),
    "missing": lambda content: None,
    "integers": lambda content: content.replace(b"<f4", b"<i4", 1),
    "big endian": lambda content: content.replace(b"<f4", b">f4", 1),
    "other sides": lambda content: content.replace(SHAPE, b"'<f4', (16, 6, 4, 6)", 1),
    "other lengths": lambda content: content.replace(SHAPE, b"'<f4', (4, 16, 6, 6)", 1),
    "other checksums": lambda content: content[:-16 * 144 * 4 - 128] + bytes(128)
    + content[-16 * 144 * 4 :],
    "other keys": lambda content: content[:-16 * 144 * 4 - 384] + bytes(256)
    + content[-16 * 144 * 4 - 128 :],
    "another array": lambda content: npy(np.ones([3, 4])),
    "another table": lambda content: npy(np.zeros(3, [("key", "V16"), ("digest", "V8")])),
    "objects": lambda content: content.replace(b"'|V16'", b"'|O'  ", 1),
    "zip": lambda content: b"PK\x03\x04" + content,
    "nested": lambda content: content[:8] + b"\xff\xff" + b"[" * 0xFFFF,
}  # fmt: skip


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_is_cut_short_or_altered_is_noticed_and_recorded_anew(tmp_path, damage):
    plain, _, _ = by_hand_plain()
    disk_run(tmp_path)
    (file,) = tmp_path.rglob("*.npy")
    before = file.read_bytes()
    assert SHAPE in before
    after = DAMAGES[damage](before)
    assert after != before
    file.unlink() if after is None else file.write_bytes(after)
    again, statistics, _ = disk_run(tmp_path)
    assert again == plain
    assert statistics.misses > 8
    third, statistics, _ = disk_run(tmp_path)
    assert third == plain
    assert statistics.misses == 8


def test_the_same_weights_under_other_options_or_code_are_other_features(tmp_path):
    def build(factor):
        class Times(Three):
            def forward(self, x):
                return self.c(self.b(self.a(x) * factor))

        paddle.seed(5)
        return Times()

    class Option(Three):
        def __init__(self, power):
            super().__init__()
            self.power = power

        def forward(self, x):
            return self.c(self.b(self.a(x) ** self.power))

    def run(network, cache):
        schedule = FreezeSchedule(unfreeze_at={0: "c"}, cache=cache, frozen_dropout="eval")
        return by_hand(network, schedule, random_batches([6]))

    run(build(1), tmp_path)
    losses, statistics, _ = run(build(5), tmp_path)  # a constant in a closure: found by comparing
    assert losses == run(build(5), None)[0]
    assert "has other features of a sample" in statistics.off[0]
    for power in (2, 3):
        paddle.seed(5)
        found = run(Option(power), tmp_path / "options")
        paddle.seed(5)
        assert found[0] == run(Option(power), None)[0]
        assert found[1].hits > 0


def test_a_disk_that_is_full_stops_filling_and_nothing_worse(tmp_path, monkeypatch):
    """Rows that could not be written stay in memory."""

    def full(stream, array, **options):
        stream.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stores.np, "save", full)
    monkeypatch.setattr(stores, "_SEGMENT_ROWS", 8)
    plain, _, _ = by_hand_plain()
    losses, statistics, lines = disk_run(tmp_path)
    assert losses == plain
    assert statistics.rows == 8
    assert statistics.hits > 0
    assert sum(line.startswith("cache full: 8 samples in") for line in lines) == 1
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["in-use"]


def test_a_disk_that_is_full_when_the_run_ends_is_reported(tmp_path, monkeypatch):
    def full(stream, array, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stores.np, "save", full)
    _, statistics, lines = disk_run(tmp_path)
    assert statistics.rows == 16
    assert sum(line.startswith("cache full: 16 samples in") for line in lines) == 1


def test_two_stores_share_a_folder(tmp_path):
    one, two = DiskStore(tmp_path, 10**6), DiskStore(tmp_path, 10**6)
    one.put([b"a" * 16, b"b" * 16], (np.arange(6, dtype="float32").reshape(2, 3),))
    two.put([b"c" * 16], (np.ones([1, 3], "float32"),))
    one.flush(), two.flush()
    third = DiskStore(tmp_path, 10**6)
    rows = third.get([b"c" * 16, b"b" * 16, b"d" * 16])
    assert [None if row is None else row[0].tolist() for row in rows] == [
        [1, 1, 1], [3, 4, 5], None,
    ]  # fmt: skip


def test_rows_that_wait_are_served_and_written_with_the_last_of_the_store(tmp_path):
    store = DiskStore(tmp_path, 10**6)
    put(store, range(3))
    put(store, range(2, 5))
    assert kept(store, range(6)) == [0, 1, 2, 3, 4]
    assert (len(store), store.nbytes) == (5, 5 * 12)
    assert list(tmp_path.iterdir()) == []
    del store
    again = DiskStore(tmp_path, 10**6)
    assert (len(again), again.nbytes, again.damaged) == (5, 5 * 12, 0)
    assert kept(again, range(6)) == [0, 1, 2, 3, 4]


def test_a_segment_holds_rows_of_one_form_and_is_one_file(tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "_SEGMENT_ROWS", 4)
    store = DiskStore(tmp_path, 10**6)
    put(store, range(2), length=3)
    put(store, range(10, 12), length=5)
    assert len(list(tmp_path.iterdir())) == 2
    put(store, range(20, 26))
    assert [file.name.partition(".")[2] for file in tmp_path.iterdir()] == ["rows3.npy"] * 3
    assert kept(store, range(20, 26)) == list(range(20, 26))
    assert kept(store, range(10, 12), length=5) == [10, 11]


def test_segments_are_cut_where_numpys_dtypes_end(tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "_LARGEST", 30)
    store = DiskStore(tmp_path, 10**6)
    put(store, range(5))
    store.flush()
    assert len(list(tmp_path.iterdir())) == 3
    assert kept(DiskStore(tmp_path, 10**6), range(5)) == [0, 1, 2, 3, 4]


def test_what_others_wrote_counts_for_the_limit(tmp_path):
    one = DiskStore(tmp_path, 100)
    put(one, range(6))
    one.flush()
    two = DiskStore(tmp_path, 100)
    put(two, range(6, 12))
    assert (len(two), two.nbytes, two.full) == (6, 72, True)
    put(DiskStore(tmp_path, 100), range(6, 8))
    assert kept(DiskStore(tmp_path, 100), range(12)) == list(range(8))


def test_of_a_row_that_was_recorded_anew_the_newest_counts(tmp_path):
    one, two = DiskStore(tmp_path, 10**6), DiskStore(tmp_path, 10**6)
    put(one, [1]), one.flush()
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-4] + b"else")
    put(two, [1]), two.flush()
    again = DiskStore(tmp_path, 10**6)
    assert kept(again, [1]) == [1]
    assert again.damaged == 0


def test_files_of_an_older_format_are_left_alone(tmp_path):
    old = {"ab.json": b'{"format": 1}', "ab.index.npy": npy(np.zeros(4, "V24")),
           "ab.0.npy": npy(np.zeros([4, 3]))}  # fmt: skip
    for file, content in old.items():
        (tmp_path / file).write_bytes(content)
    store = DiskStore(tmp_path, 10**6)
    assert (len(store), store.nbytes, store.damaged) == (0, 0, 0)
    put(store, [1]), store.flush()
    assert kept(DiskStore(tmp_path, 10**6), [1]) == [1]
    assert {file: (tmp_path / file).read_bytes() for file in old} == old


# What a process of its own does with a store: the file of this test is its library.
PROGRAM = """
import importlib.util, os, resource, sys
spec = importlib.util.spec_from_file_location("tested", {file!r})
tested = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tested)
store = tested.DiskStore({folder!r}, 10**9)
def put(keys, length=3):
    tested.put(store, keys, length)
    print(max(keys), flush=True)
"""


def process(folder, program):
    posix_only()
    program = PROGRAM.format(file=__file__, folder=str(folder)) + program
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


def test_two_processes_fill_one_folder_at_the_same_time(tmp_path):
    """Some of their samples are the same."""
    fill = (
        "print('open', flush=True), input()\nfor at in range({}, {}, 100): put(range(at, at + 100))"
    )
    two = [process(tmp_path, fill.format(*part)) for part in ((0, 3000), (2000, 5000))]
    assert [one.stdout.readline() for one in two] == ["open\n"] * 2  # both, before either writes
    for one in two:
        one.stdin.write("go\n"), one.stdin.flush()
    assert [one.communicate()[0].count("\n") for one in two] == [30, 30]
    assert [one.returncode for one in two] == [0, 0]
    store = DiskStore(tmp_path, 10**9)
    assert (len(store), store.damaged) == (5000, 0)
    assert store.nbytes == 6000 * 12  # both wrote the samples that they share
    assert kept(store, range(5000)) == list(range(5000))


def test_a_process_that_is_killed_loses_the_rows_that_wait_and_no_others(tmp_path):
    child = process(tmp_path, "for at in range(0, 10**9, 100): put(range(at, at + 100), 500)")
    for line in child.stdout:
        if int(line) > 3000:
            break
    child.kill()
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    (tmp_path / "half.partial").write_bytes(next(tmp_path.glob("*.npy")).read_bytes()[:5000])
    store = DiskStore(tmp_path, 10**9)
    assert store.damaged == 0
    found = kept(store, range(10**5), length=500)
    assert found == list(range(len(store)))
    assert len(found) >= 3000 - 1024
    put(store, range(10**5, 10**5 + 4)), store.flush()
    assert len(DiskStore(tmp_path, 10**9)) == len(found) + 4


@pytest.mark.parametrize("end", ["", "sys.exit(3)", "raise ValueError('of the training')"])
def test_rows_that_wait_are_written_when_the_process_ends(tmp_path, end):
    child = process(tmp_path, f"sys.stderr.close()\nput(range(5))\n{end}")
    child.communicate()
    assert child.returncode == {"": 0, "sys.exit(3)": 3}.get(end, 1)
    assert kept(DiskStore(tmp_path, 10**9), range(6)) == [0, 1, 2, 3, 4]


def test_a_file_that_may_not_grow_makes_the_store_full_and_does_not_end_the_process(tmp_path):
    """The system's own refusal, in the middle of a write."""
    child = process(tmp_path, "resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))\n"
                    "put(range(10)); store.flush()\n"
                    "put(range(10, 1000), 100); store.flush(); put(range(1000, 1010))\n"
                    "few = tested.kept(store, range(10))\n"
                    "many = tested.kept(store, range(10, 1010), 100)\n"
                    "print(store.full, len(few), len(many), len(store))")  # fmt: skip
    assert child.communicate()[0].splitlines()[-1] == "True 10 990 1000"
    assert child.returncode == 0
    assert [file.name.partition(".")[2] for file in tmp_path.iterdir()] == ["rows3.npy"]
    assert kept(DiskStore(tmp_path, 10**9), range(1000)) == list(range(10))


rows = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 3)), min_size=1, max_size=12)


@pytest.mark.parametrize("kind", ["memory", "disk"])
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=st.lists(rows, max_size=6), limit=st.integers(8, 400))
def test_a_store_gives_back_what_was_put_or_nothing_and_never_passes_its_limit(
    tmp_path_factory, kind, batches, limit
):
    """Whatever comes in which order, in rows of different length."""
    folder = tmp_path_factory.mktemp("store")
    store = MemoryStore(limit) if kind == "memory" else DiskStore(folder, limit)

    def value(key, length):
        return np.full([length], key, "float32")

    for batch in batches:
        length = batch[0][1]
        keys = list(dict.fromkeys(key for key, _ in batch))
        names = [f"{key:08}{length:08}".encode() for key in keys]
        store.put(names, (np.stack([value(key, length) for key in keys]),))
        for name, key, row in zip(names, keys, store.get(names)):
            assert row is None or (row[0] == value(key, length)).all(), name
        assert store.nbytes <= limit
    assert store.full or all(
        row is not None
        for batch in batches
        for row in store.get([f"{key:08}{batch[0][1]:08}".encode() for key, _ in batch])
    )


def test_a_run_writes_what_it_keeps_when_it_saves_and_when_a_stage_opens(tmp_path):
    def there():
        return [len(DiskStore(folder, 10**9)) for folder in tmp_path.iterdir() if folder.is_dir()]

    network = conv_net()
    optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters())
    plan = {0: "fc", "6 steps": ["fc", "block3"]}
    schedule = FreezeSchedule(unfreeze_at=plan, cache=tmp_path)
    seen = []
    with schedule.attach(network, optimizer, total_steps=9) as freezing:
        for batch in random_batches([1, 6, 6], 7):
            network(batch).sum().backward()
            optimizer.step()
            optimizer.clear_grad()
            if len(seen) == 3:
                freezing.save(tmp_path / "run")
            freezing.step()
            seen.append(there())
    # the second batch shows where the boundary is, and then the first is kept, too
    assert seen == [[], [0], [0], [16], [16], [24], [24]]
