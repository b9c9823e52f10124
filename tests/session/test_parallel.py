"""Condition: several processes train the same network as one process does."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import paddle
import processes
import pytest
from processes import furthest
from trainers import ACCUMULATES, LIBRARY, tiny_bert, trainer_for, trainer_library

from paddle_freeze_callback import FreezeSchedule
from paddle_freeze_callback.freezing import parallel
from paddle_freeze_callback.hosts.trainer import _refuse_unsupported


def run(
    folder: Path, loop: str, accumulate: int, *, ranks: int, strategy: str = "plan"
) -> list[dict]:
    folder.mkdir()
    words = (loop, str(accumulate), str(folder), strategy)
    return processes.run("parallel.py", *words, ranks=ranks, folder=folder)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("loop", ["hapi", "trainer", "hand", "sharding"])
def test_two_processes_equal_each_other_and_one(tmp_path, loop, accumulate):
    """Through freeze, unfreeze and refreeze, on the same global batches."""
    if accumulate > 1 and not ACCUMULATES and loop == "trainer":
        pytest.skip("this Trainer cannot accumulate on a CPU, with or without a schedule")
    if loop == "sharding" and LIBRARY == "paddleformers":
        pytest.skip("PaddleFormers cannot wrap its optimizer for sharding on a CPU")
    if loop == "sharding" and paddle.__version__.startswith("3.0."):
        pytest.skip("under sharding AdamW of Paddle 3.0 wants memory of CUDA, with or without us")
    (single,) = run(tmp_path / "one", loop, accumulate, ranks=1)
    first, second = run(tmp_path / "two", loop, accumulate, ranks=2)
    assert first["history"] == second["history"] == single["history"]
    assert len(single["history"]) == 4
    assert furthest(first["weights"], second["weights"]) == 0
    assert furthest(first["weights"], single["weights"]) <= 1e-6


@pytest.mark.parametrize(
    ("loop", "strategy"),
    [("hapi", "random"), ("trainer", "plateau"), ("hapi", "gradient"), ("hand", "rule")],
)
def test_two_processes_decide_the_same(tmp_path, loop, strategy):
    """By chance, metrics, gradients, and an own rule that differs from rank to rank."""
    first, second = run(tmp_path / "two", loop, 1, ranks=2, strategy=strategy)
    assert first["history"] == second["history"]
    assert len(first["history"]) > 1
    assert furthest(first["weights"], second["weights"]) == 0


@pytest.mark.parametrize("loop", ["hapi", "sharding"])
def test_rows_alone_train_in_two_processes_as_in_one(tmp_path, loop):
    """Clipped; each process verifies that the others stay as they are."""
    if loop == "sharding" and LIBRARY == "paddleformers":
        pytest.skip("PaddleFormers cannot wrap its optimizer for sharding on a CPU")
    (single,) = run(tmp_path / "one", loop, 1, ranks=1, strategy="rows")
    first, second = run(tmp_path / "two", loop, 1, ranks=2, strategy="rows")
    assert first["history"] == second["history"] == single["history"]
    assert single["history"][0][1] == ("head", "stem.weight[1:3]")
    assert furthest(first["weights"], second["weights"]) == 0
    assert furthest(first["weights"], single["weights"]) <= 1e-6


def test_each_process_has_a_cache_of_its_own_and_nothing_changes(tmp_path):
    (single,) = run(tmp_path / "one", "hapi", 1, ranks=1, strategy="head")
    first, second = run(tmp_path / "two", "hapi", 1, ranks=2, strategy="cache")
    assert min(first["hits"], second["hits"]) > 0
    assert furthest(first["weights"], second["weights"]) == 0
    assert furthest(first["weights"], single["weights"]) <= 1e-6


def test_sharding_as_the_trainer_parses_it_is_refused_too(tmp_path):
    trainer = trainer_for(tiny_bert(), tmp_path, [FreezeSchedule()])
    _refuse_unsupported(trainer.args)
    trainer.args.sharding = [trainer_library.trainer_utils.ShardingOption.FULL_SHARD]
    with pytest.raises(ValueError, match=r"sharding=stage3.*Use data parallel or sharding stage1"):
        _refuse_unsupported(trainer.args)


# ---------------------------------------------------------------- engines that were not shown


@pytest.mark.parametrize(
    ("kind", "named"),
    [("pipeline", "a pipeline"), ("groups", "a pipeline"), ("sequence", "sequence parallel")],
)
def test_a_loop_of_ones_own_is_told_of_engines_that_were_not_shown(kind, named, tmp_path):
    """By the network, or by fleet's groups alone; nothing is frozen then."""
    said = processes.run("engines.py", str(tmp_path), kind, ranks=2, folder=tmp_path)
    words = (
        f"FreezeSchedule does not work with {named}: not shown to be right with a schedule. "
        "Use data parallel, tensor parallel or sharding stage 1"
    )
    assert said == [words, words]


def made_of(name: str, base: type, **attributes: object) -> type:
    """A class of this name that says it is Paddle's; the real ones want GPUs to be made."""
    return type(name, (base,), {"__module__": "paddle.distributed.fleet", **attributes})


@pytest.mark.parametrize(
    ("name", "named"),
    [("GroupShardedStage2", "sharding stage 2"), ("GroupShardedStage3", "sharding stage 3")],
)
def test_sharding_around_a_network_is_seen(name, named, monkeypatch):
    monkeypatch.setattr(parallel, "world_size", lambda: 2)
    network = paddle.nn.Sequential(paddle.nn.Linear(2, 2), paddle.nn.Linear(2, 2))
    optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters())
    assert parallel.unshown(network, optimizer) == []
    around = made_of(name, paddle.nn.Layer)()
    around._layer = network
    assert parallel.unshown(network, optimizer) == [named]
    with pytest.raises(ValueError, match=f"does not work with {named}: not shown to be right"):
        FreezeSchedule().attach(network, optimizer, total_steps=4)
    assert not any(tensor.stop_gradient for tensor in network.parameters())


def test_objects_whose_type_says_nothing_of_itself_are_passed_over(monkeypatch):
    """As types that are written in C; all objects there are, are looked at."""

    class Silent(type):
        @property
        def __module__(cls):
            raise AttributeError("__module__")

    silent = Silent("GroupShardedStage2", (), {"_layer": None})()
    monkeypatch.setattr(parallel, "world_size", lambda: 2)
    network = paddle.nn.Linear(2, 2)
    silent._layer = network
    optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters())
    assert parallel.unshown(network, optimizer) == []


def test_an_optimizer_of_sharding_and_a_mixture_of_experts_are_seen(monkeypatch):
    monkeypatch.setattr(parallel, "world_size", lambda: 2)
    network = paddle.nn.Sequential(made_of("MoELayer", paddle.nn.Linear)(2, 2))
    optimizer = made_of("GroupShardedOptimizerStage2", paddle.optimizer.SGD)(
        0.1, parameters=network.parameters()
    )
    assert parallel.unshown(network, [optimizer]) == ["expert parallel", "sharding stage 2"]
    monkeypatch.setattr(parallel, "world_size", lambda: 1)
    assert parallel.unshown(network, [optimizer]) == []


def test_the_engines_are_still_called_so():
    from paddle.distributed import fleet
    from paddle.incubate.distributed.models import moe

    sharding = importlib.import_module("paddle.distributed.fleet.meta_parallel.sharding")
    stages = [importlib.import_module(f"{sharding.__name__}.group_sharded_{one}")
              for one in ("optimizer_stage2", "stage2", "stage3")]  # fmt: skip
    sources = [inspect.getsource(module) for module in stages[1:]]
    assert all("self._layer = layer" in source for source in sources)
    found = {name for module in (*stages, fleet.meta_parallel, moe) for name in dir(module)}
    assert set(parallel._ENGINES) <= found
    groups = fleet.base.topology.HybridCommunicateGroup
    assert [name for name in parallel._DEGREES if not hasattr(groups, name)] == []
