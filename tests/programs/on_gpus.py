"""What two GPUs must show before sharding stage 2 and 3 and pipelines need not be refused.

    python tests/programs/on_gpus.py

Each kind trains one small network in two processes, through freeze, unfreeze and refreeze, and is
compared with one process on the same batches. A row for each: its difference, or how it failed.
docs/conditions.md says which lines of Paddle's sources let doubt that it works.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import paddle
from paddle import nn
from paddle.distributed import fleet

from paddle_freeze_callback import Explicit, FreezeSchedule
from paddle_freeze_callback.session import session

KINDS = {
    "tensor": "tensor parallel, with Paddle's own kernels",
    "stage2": "sharding stage 2, under a schedule",
    "stage3": "sharding stage 3, under a schedule",
    "pipeline": "pipeline, flags alone",
    "pipeline-wanting": "pipeline, flags alone, and what a process hands on wants a gradient",
}
EPOCHS, STEPS, WIDTH, BATCH = 4, 3, 32, 8
# What trains in each epoch: first the second process alone, later both, then one again.
OPEN = [{4}, {3, 4}, {1, 2, 4}, {0, 1, 2, 3, 4}]
PLAN = {
    0: "4",
    1: "3",
    2: {"freeze": "3", "unfreeze": ["1", "2"]},
    3: "*",
}


def layers() -> list[nn.Layer]:
    """Five layers, the same in every process."""
    sizes = [(WIDTH, WIDTH)] * 4 + [(WIDTH, 2)]
    found = []
    for index, (inside, outside) in enumerate(sizes):
        layer = nn.Linear(inside, outside)
        random = np.random.RandomState(index)
        layer.weight.set_value(random.normal(0, 0.2, (inside, outside)).astype("float32"))
        found.append(layer if index == 4 else nn.Sequential(layer, nn.Tanh()))
    return found


def batch(step: int):
    random = np.random.RandomState(100 + step % STEPS)
    inputs = random.normal(size=(BATCH, WIDTH)).astype("float32")
    return paddle.to_tensor(inputs), paddle.to_tensor((random.rand(BATCH) > 0.5).astype("int64"))


def optimizer_for(network):
    return paddle.optimizer.AdamW(0.01, parameters=network.parameters(), weight_decay=0.1)


def under_a_schedule(kind: str, rank: int, ranks: int) -> nn.Layer:
    """One process, or sharding, which has a share of each batch in each."""
    network = nn.Sequential(*layers())
    optimizer = optimizer_for(network)
    outer = network
    if ranks > 1:
        level = {"stage2": "os_g", "stage3": "p_g_os"}[kind]
        outer, optimizer, _ = paddle.distributed.sharding.group_sharded_parallel(
            network, optimizer, level, segment_size=256
        )
    # What is to be shown here is refused until it is.
    assert callable(session.refuse_engines)
    session.refuse_engines = lambda *_: None
    # Of stage 3 a process has its part only, in another tensor than the parameter.
    schedule = FreezeSchedule(strategy=Explicit(PLAN), verify=kind != "stage3")
    with schedule.attach(network, optimizer, epochs=EPOCHS, steps_per_epoch=STEPS) as freezing:
        for step in range(EPOCHS * STEPS):
            inputs, labels = (tensor[rank::ranks] for tensor in batch(step))
            nn.functional.cross_entropy(outer(inputs), labels).backward()
            optimizer.step()
            optimizer.clear_grad()
            freezing.step()
    if hasattr(outer, "get_all_parameters"):
        outer.get_all_parameters()
    return network


def wanting(layer, inputs, output):
    """The next process sends back a gradient only where one is wanted; this one waits for it."""
    output.stop_gradient = False


def in_a_pipeline(kind: str) -> nn.Layer:
    """Two processes with some layers each, whose flags are set by hand."""
    network = fleet.meta_parallel.PipelineLayer(
        layers(), num_stages=2, loss_fn=nn.CrossEntropyLoss()
    )
    if kind == "pipeline-wanting":  # on a layer: the engine calls the network's forward itself
        list(network.children())[-1].register_forward_post_hook(wanting)
    outer = fleet.distributed_model(network)
    optimizer = fleet.distributed_optimizer(optimizer_for(network))
    for step in range(EPOCHS * STEPS):
        if step % STEPS == 0:
            for name, tensor in network.named_parameters():
                tensor.stop_gradient = int(name.split(".")[0]) not in OPEN[step // STEPS]
                if tensor.stop_gradient and tensor.grad is not None:
                    tensor.clear_gradient(False)
        inputs, labels = batch(step)
        outer.train_batch((inputs, labels.unsqueeze(1)), optimizer)
    return network


def train(kind: str, folder: Path) -> None:
    """The part of one process."""
    environment = paddle.distributed.ParallelEnv()
    rank, ranks = environment.rank, environment.nranks
    in_parts = ranks > 1 and kind.startswith("pipeline")
    if in_parts:
        strategy = fleet.DistributedStrategy()
        strategy.hybrid_configs = {"dp_degree": 1, "pp_degree": 2}
        strategy.pipeline_configs = {"accumulate_steps": 2, "micro_batch_size": BATCH // 2}
        fleet.init(is_collective=True, strategy=strategy)
    elif ranks > 1:
        paddle.distributed.init_parallel_env()
    network = in_a_pipeline(kind) if in_parts else under_a_schedule(kind, rank, ranks)
    found = {name: tensor.numpy() for name, tensor in network.named_parameters()}
    (folder / f"rank{rank}.pickle").write_bytes(pickle.dumps(found))


def start(program: Path, folder: Path, *arguments: str, ranks: int = 2) -> str:
    """Run a program; how it failed, or nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    launch = [
        "-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--log_dir", str(folder / "log")
    ]  # fmt: skip
    command = [sys.executable, *(launch if ranks > 1 else []), str(program), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        return "hangs: the processes wait for each other"
    if all((folder / f"rank{rank}.pickle").exists() for rank in range(ranks)):
        return ""
    logs = [done.stderr, *(file.read_text() for file in folder.glob("log/workerlog.*"))]
    errors = [line for log in logs for line in log.splitlines() if "Error" in line]
    return f"fails: {errors[-1] if errors else f'exit {done.returncode}'}"


def verdict(alone: dict, ranks: list[dict]) -> str:
    """How far the ranks are from one process, and from each other where both have a weight."""
    seen: dict[str, np.ndarray] = {}
    apart = furthest = 0.0
    for rank in ranks:
        for name, value in rank.items():
            if value.shape != alone[name].shape:
                return f"fails: {name} has the shape {value.shape}"
            apart = max(apart, float(np.abs(seen.setdefault(name, value) - value).max()))
            furthest = max(furthest, float(np.abs(alone[name] - value).max()))
    word = "equal" if apart == 0 and furthest <= 1e-5 and seen.keys() == alone.keys() else "DIFFERS"
    return f"{word}: ranks {apart:.1e} apart, {furthest:.1e} from one process"


def check(kind: str, folder: Path) -> str:
    """One row."""
    own = Path(__file__)
    if kind == "tensor":  # the program of the test, without what it puts in for CPUs
        program, runs = own.with_name("tensor_parallel.py"), ["plan", "gradient", "plateau"]
        one, two = [str(folder / "one"), *runs], [str(folder / "two"), *runs]
    else:
        program, runs = own, []
        one, two = ["one", str(folder / "one")], [kind, str(folder / "two")]
    for failure in (
        start(program, folder / "one", *one, ranks=1), start(program, folder / "two", *two)
    ):  # fmt: skip
        if failure:
            return failure
    files = [folder / "one" / "rank0.pickle", *sorted(folder.glob("two/rank*.pickle"))]
    alone, *ranks = [pickle.loads(file.read_bytes()) for file in files]
    if runs:
        alone, *ranks = [
            {f"{run} {n}": w for run in runs for n, w in one[run]["weights"].items()}
            for one in (alone, *ranks)
        ]
    return verdict(alone, ranks)


def main() -> int:
    """All rows; how many are not equal."""
    cards = paddle.device.cuda.device_count() if paddle.is_compiled_with_cuda() else 0
    wrong = 0
    for kind, words in KINDS.items():
        if cards < 2:
            print(f"not run: {words} (needs two GPUs, this machine has {cards})")
            continue
        with tempfile.TemporaryDirectory() as folder:
            row = check(kind, Path(folder))
        wrong += not row.startswith("equal")
        print(f"{row}  <- {words}", flush=True)
    return wrong


if __name__ == "__main__":
    if len(sys.argv) > 1:
        train(sys.argv[1], Path(sys.argv[2]))
    else:
        sys.exit(main())
