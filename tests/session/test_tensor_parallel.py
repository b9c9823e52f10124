"""Condition: two processes that share one network train it as one process does.

The layers are Paddle's; two of its functions that CPUs lack are replaced in the program.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import paddle
import pytest
from networks import Vectors
from paddle import nn
from processes import PROGRAMS, command, furthest, results
from trainers import LIBRARY

from paddle_freeze_callback import FreezeSchedule, trainable_ratio
from paddle_freeze_callback.stages.weights import weights

BY_HAND = ["plan", "gradient", "plateau", "random", "rule"]
# PaddleFormers' Trainer asks the optimizer for what its wrapper on a GPU has, and raises.
TRAINED = ["trainer-plan", "trainer-plateau"] if LIBRARY == "paddlenlp" else []
RESUMED = [f"{name}:resume" for name in ("plan", "gradient", "plateau", *TRAINED)]
SHOWN = "tensor parallel, 2 processes: shown to equal one process on CPUs only"


def start(folder: Path, *names: str, ranks: int) -> Callable[[], list[dict]]:
    """Begin the runs; what is returned waits for what came out of each, by name, on each rank."""
    words = command("tensor_parallel.py", str(folder), *names, ranks=ranks, folder=folder)
    log = folder / "log"
    with log.open("w") as stream:
        process = subprocess.Popen(words, stdout=stream, stderr=subprocess.STDOUT)

    def wait() -> list[dict]:
        try:
            assert process.wait(timeout=300) == 0, log.read_text()[-6000:]
        finally:
            process.kill()
        return results(folder, ranks)

    return wait


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def at_once(tmp_path_factory, folder) -> tuple[dict, list[dict]]:
    one = start(tmp_path_factory.mktemp("one"), *BY_HAND, *TRAINED, ranks=1)
    two = start(folder, *BY_HAND, "moved", *TRAINED, ranks=2)
    return one()[0], two()


@pytest.fixture(scope="module")
def single(at_once) -> dict:
    return at_once[0]


@pytest.fixture(scope="module")
def both(at_once) -> list[dict]:
    return at_once[1]


@pytest.fixture(scope="module")
def resumed(both, folder) -> list[dict]:
    return start(folder, *RESUMED, ranks=2)()


@pytest.mark.parametrize("name", [*BY_HAND, *TRAINED])
def test_two_processes_decide_the_same_and_train_as_one(single, both, name):
    """Through freeze, unfreeze and refreeze; by plan, gradients, metrics, chance, a rule."""
    first, second, alone = both[0][name], both[1][name], single[name]
    assert len(alone["history"]) > 1
    assert first["history"] == second["history"] == alone["history"]
    assert furthest(first["weights"], second["weights"]) == 0
    assert furthest(first["weights"], alone["weights"]) <= 1e-6


@pytest.mark.parametrize("name", ["plan", *TRAINED[:1]])
def test_what_is_split_is_counted_once(single, both, name):
    total = sum(weight.size for weight in single[name]["weights"].values())
    assert {entry[4] for entry in both[1][name]["history"]} == {total}
    assert both[0][name]["ratios"] == both[1][name]["ratios"] == single[name]["ratios"]


def test_gradients_are_measured_over_all_parts(single, both):
    alone = [note["gradients"] for _, note in single["gradient"]["decisions"]]
    for rank in both:
        measured = [note["gradients"] for _, note in rank["gradient"]["decisions"]]
        assert [list(one) for one in measured] == [list(one) for one in alone]
        for one, other in zip(measured, alone):
            assert one == pytest.approx(other, rel=1e-4)


def test_a_part_that_moves_on_one_process_is_named_there(both):
    """On the second, where the program changed its part of a frozen weight."""
    assert both[0]["moved"]["failure"] == ""
    assert both[1]["moved"]["failure"].startswith("table.weight moved although it is frozen")


@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_run_ends_as_the_uninterrupted_one(both, resumed, name):
    for rank in (0, 1):
        before = both[rank][name.removesuffix(":resume")]
        assert furthest(resumed[rank][name]["weights"], before["weights"]) == 0
        transitions = resumed[rank][name]["history"][1:]  # the first says what is open
        assert transitions
        assert transitions == before["history"][-len(transitions) :]


def test_each_process_keeps_its_part_of_the_best_weights(both):
    own = {f"plateau-6.freeze_schedule_best.rank{rank}.npz" for rank in (0, 1)}
    assert {*both[0]["plateau"]["files"]} == {"plateau-6.freeze_schedule.json", *own}


def test_a_line_says_how_far_it_was_shown(single, both):
    assert both[0]["plan"]["lines"].count(SHOWN) == 1
    assert SHOWN not in single["plan"]["lines"]


@pytest.mark.skipif(paddle.is_compiled_with_cuda(), reason="may have them")
def test_what_needs_gpus_is_named_where_there_are_none():
    """``make fleet-check`` ends with it."""
    program = PROGRAMS / "on_gpus.py"
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("not run: ")]
    assert len(rows) == 5
    assert all("(needs two GPUs, this machine has 0)" in row for row in rows)


# ---------------------------------------------------------------- in one process


class Split(nn.Layer):
    """As Paddle marks a weight of which each of two processes has half."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 8)
        self.head = nn.Linear(8, 2)
        self.body.model_parallel_group = SimpleNamespace(nranks=2)
        for tensor in self.body.parameters():
            tensor.is_distributed = True

    def forward(self, x):
        return self.head(self.body(x))


def attach(network, **options):
    optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters())
    return FreezeSchedule(**options).attach(network, optimizer, total_steps=4)


def test_the_other_processes_parts_count():
    network = Split()
    assert [weight.numel for weight in weights(network)] == [64, 16, 16, 2]
    network.head.weight.stop_gradient = True
    assert trainable_ratio(network) == (64 + 16 + 2) / 98


def marked(network: Split) -> None:
    network.head.weight.sequence_parallel = True


def overlapped(network: Split) -> None:
    network.body.mp_async_allreduce = True


class Adapted(Split):
    """As a LoRA model, which knows how to save the weights that train alone."""

    def get_trainable_state_dict(self):
        return {}


def adapted(network: Split) -> None:
    network.__class__ = Adapted


@pytest.mark.parametrize(
    ("change", "processes", "options", "message"),
    [
        (adapted, 2, {}, "does not work with Adapted, an adapter model, where weights are split"),
        (marked, 2, {}, "head.weight, which is marked for sequence parallel: not shown"),
        (overlapped, 2, {}, "body with mp_async_allreduce: not shown"),
        (lambda _: None, 4, {}, "body.weight, which is split among 2 of 4 processes; all must"),
        (
            lambda _: None,
            2,
            {"rows": {"body.weight": "1:"}},
            "body.weight is split among processes",
        ),
        (lambda _: None, 2, {"save_trained": "a.safetensors"}, "save_trained: each process holds"),
        (lambda _: None, 2, {"cache": "memory"}, "cache: body.weight is split among 2 processes"),
    ],
)
def test_what_was_not_shown_beside_it_is_refused(monkeypatch, change, processes, options, message):
    network = Split()
    change(network)
    monkeypatch.setattr(paddle.distributed, "get_world_size", lambda: processes)
    with pytest.raises(ValueError, match=message):
        attach(network, **options)
    assert not network.body.weight.stop_gradient


def test_what_trained_is_not_written_by_hand_either(monkeypatch, tmp_path):
    monkeypatch.setattr(paddle.distributed, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match="save_trained: each process holds a part of the split"):
        attach(Split()).save_trained(tmp_path / "a.safetensors")


def test_data_parallel_around_split_weights_is_refused(monkeypatch):
    """It sends the parts of rank 0 to all, so the network is wrong before the schedule begins."""
    network = Split()
    wrapper = paddle.DataParallel(network)
    monkeypatch.setattr(paddle.distributed, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match=r"body.weight .*paddle.DataParallel.*that of rank 0"):
        attach(network)
    assert wrapper(paddle.to_tensor(Vectors(1)[0][0][None])).shape == [1, 2]
