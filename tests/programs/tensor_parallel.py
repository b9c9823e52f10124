"""Runs of a network that is split among two processes, or the same runs in one process.

Paddle's layers for it have no CPU kernels for two functions of theirs. :func:`on_cpu` puts
others in their place, made of ``paddle.distributed.all_reduce``, which CPUs have.

    python tensor_parallel.py FOLDER NAME[:resume] ...
    python -m paddle.distributed.launch --nproc_per_node 2 --backend gloo \
        tensor_parallel.py FOLDER NAME[:resume] ...

Each rank writes what came out of each run to ``FOLDER/rank<N>.pickle``. A run saves each rank's
part after six steps; ``NAME:resume`` goes on from there.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import paddle
from paddle import nn
from paddle.autograd import PyLayer
from paddle.distributed import fleet
from paddle.distributed.fleet.layers.mpu import mp_ops

from paddle_freeze_callback import (
    ByGradient,
    Explicit,
    FreezeSchedule,
    HeadOnly,
    OnPlateau,
    RandomStages,
    trainable_ratio,
)


class Copied(PyLayer):
    """What goes in comes out; gradients of all ranks are added up."""

    @staticmethod
    def forward(ctx, tensor, group):
        ctx.group = group
        return tensor.clone()

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.clone()
        paddle.distributed.all_reduce(gradient, group=ctx.group)
        return gradient


class Summed(PyLayer):
    """What comes in on all ranks is added up; gradients pass."""

    @staticmethod
    def forward(ctx, tensor, group):
        tensor = tensor.clone()
        paddle.distributed.all_reduce(tensor, group=group)
        return tensor

    @staticmethod
    def backward(ctx, gradient):
        return gradient.clone()


def on_cpu() -> None:
    """Let Paddle's tensor-parallel layers run on CPUs."""
    mp_ops._c_identity = lambda tensor, group=None, **_: Copied.apply(tensor, group)
    mp_ops._mp_allreduce = lambda tensor, group=None, **_: Summed.apply(tensor, group)


RANKS = paddle.distributed.ParallelEnv().nranks
RANK = paddle.distributed.ParallelEnv().rank
PLAN = {
    0: "head",
    1: "block2",
    2: {"freeze": "block2", "unfreeze": "block1"},
    3: {"unfreeze": ["block2", "table"]},
}
EPOCHS, STEPS, SAVED = 4, 4, 6


class Block(nn.Layer):
    """The inner units are split among the ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.up = fleet.meta_parallel.ColumnParallelLinear(
            8, 16, gather_output=False, has_bias=True
        )
        self.down = fleet.meta_parallel.RowParallelLinear(16, 8, None, True, True)

    def forward(self, x):
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


class Split(nn.Layer):
    """A small language classifier; the same weights however many ranks share them."""

    def __init__(self) -> None:
        super().__init__()
        self.table = fleet.meta_parallel.VocabParallelEmbedding(20, 8)
        self.block1 = Block()
        self.block2 = Block()
        self.head = nn.Linear(8, 2)
        random = np.random.RandomState(5)
        for _, tensor in self.named_parameters():
            shape = list(tensor.shape)
            split = tensor.split_axis if tensor.is_distributed else None
            if split is not None:
                shape[split] *= RANKS
            whole = random.normal(0, 0.3, shape).astype("float32")
            if split is not None:
                whole = np.split(whole, RANKS, axis=split)[RANK]
            tensor.set_value(whole)

    def forward(self, tokens):
        return self.head(self.block2(self.block1(self.table(tokens))).mean(axis=1))


def batch(step: int):
    random = np.random.RandomState(100 + step % STEPS)
    tokens = paddle.to_tensor(random.randint(0, 20, (8, 5)))
    return tokens, paddle.to_tensor((random.rand(8) > 0.5).astype("int64"))


def whole(tensor) -> np.ndarray:
    """The tensor of all ranks."""
    own = tensor.numpy()
    if not tensor.is_distributed:
        return own
    parts: list = []
    paddle.distributed.all_gather_object(parts, own)
    return np.concatenate(parts, axis=tensor.split_axis)


def unlike(progress):
    """A rule that is not the same on all ranks, as when it draws at random."""
    return progress.stages[: 1 + (progress.step + RANK) // 4]


PLATEAU = {"patience": 1, "min_delta": 0.02, "max_wait": "5 steps", "restore_best": True}
RUNS = {
    "plan": Explicit(PLAN),
    "gradient": ByGradient(every="3 steps", threshold=0.2),
    "plateau": OnPlateau("loss", **PLATEAU),
    "trainer-plan": Explicit(PLAN),
    "trainer-plateau": OnPlateau("eval_loss", **PLATEAU),
    "random": RandomStages(k=1, every="3 steps"),
    "rule": unlike,
    "moved": HeadOnly(),
}


def run(name: str, folder: Path, *, resumed: bool) -> dict:
    """One run, or its second half."""
    network = Split()
    optimizer = paddle.optimizer.AdamW(
        0.02, parameters=network.parameters(), weight_decay=0.1,
        grad_clip=nn.ClipGradByGlobalNorm(0.5),
    )  # fmt: skip
    # The engine's optimizer takes the norm of all parts; its network would move data to a GPU.
    outer = fleet.distributed_optimizer(optimizer) if RANKS > 1 else optimizer
    place = folder / f"{name}-{SAVED}"
    own = str(folder / f"{name}-{SAVED}.{RANK}")
    if resumed:
        network.set_state_dict(paddle.load(f"{own}.pdparams"))
        outer.set_state_dict(paddle.load(f"{own}.pdopt"))
    lines: list[str] = []
    schedule = FreezeSchedule(
        strategy=RUNS[name], lr_decay=2, verify=True, free_optimizer_state=name == "plan",
        resume_from=str(place) if resumed else None,
    )  # fmt: skip
    freezing = schedule.attach(
        network, outer, epochs=EPOCHS, steps_per_epoch=STEPS, say=lines.append
    )
    ratios = []
    while freezing.steps_done < EPOCHS * STEPS:
        tokens, labels = batch(freezing.steps_done)
        ratios.append(trainable_ratio(network))
        loss = nn.functional.cross_entropy(network(tokens), labels)
        loss.backward()
        outer.step()
        outer.clear_grad()
        if name == "moved" and RANK == RANKS - 1:
            with paddle.no_grad():
                network.table.weight[0] = 1.0
        freezing.step()
        if freezing.steps_done % 2 == 0:
            freezing.evaluated({"loss": float(loss)})
        if freezing.steps_done == SAVED:
            paddle.save(network.state_dict(), f"{own}.pdparams")
            paddle.save(outer.state_dict(), f"{own}.pdopt")
            freezing.save(place)
    failure = ""
    try:
        freezing.close()
    except RuntimeError as error:
        failure = str(error)
    return {
        "weights": {path: whole(tensor) for path, tensor in network.named_parameters()},
        "history": [(c.step, c.opened, c.frozen, c.trainable, c.total) for c in freezing.history],
        "decisions": freezing._timeline.decisions,
        "ratios": ratios,
        "lines": lines,
        "failure": failure,
        "files": sorted(file.name for file in folder.glob(f"{name}-{SAVED}.freeze*")),
    }


class Rows(paddle.io.Dataset):
    """The samples of all batches, in order."""

    def __len__(self) -> int:
        return 8 * STEPS

    def __getitem__(self, index: int) -> dict:
        tokens, labels = batch(index // 8)
        return {"tokens": tokens[index % 8].numpy(), "labels": labels[index % 8].numpy()}


def by_trainer(name: str, folder: Path, *, resumed: bool) -> dict:
    """The same under a Trainer, which saves after each two steps."""
    from trainers import LIBRARY, InOrder, trainer_for

    class Plain(InOrder):
        def compute_loss(self, model, inputs, return_outputs=False):
            logits = model(inputs["tokens"])
            loss = nn.functional.cross_entropy(logits, inputs["labels"])
            return (loss, logits) if return_outputs else loss

    nlp = LIBRARY == "paddlenlp"
    degree = "tensor_parallel_degree" if nlp else "tensor_model_parallel_size"
    network = Split()
    schedule = FreezeSchedule(strategy=RUNS[name], lr_decay=2, verify=True)
    checkpoints = folder / name
    trainer = trainer_for(
        network, checkpoints, [schedule], kind=Plain, data=Rows(), num_train_epochs=EPOCHS,
        per_device_train_batch_size=8, learning_rate=0.02, weight_decay=0.1, max_grad_norm=0.5,
        save_strategy="steps", save_steps=2, evaluation_strategy="steps", eval_steps=2,
        metric_for_best_model="loss",
        **{degree: RANKS},
    )  # fmt: skip
    trainer.eval_dataset = Rows()
    if RANKS > 1:  # the engine would send each batch through a GPU
        configs = fleet.fleet._user_defined_strategy.hybrid_configs["mp_configs"]
        configs.need_broadcast_data = False
    saved = checkpoints / f"checkpoint-{SAVED}"
    trainer.train(resume_from_checkpoint=str(saved) if resumed else None)
    return {
        "weights": {path: whole(tensor) for path, tensor in network.named_parameters()},
        "history": [(c.step, c.opened, c.frozen, c.trainable, c.total) for c in schedule.history],
        "ratios": [log["trainable_ratio"] for log in trainer.state.log_history if "loss" in log],
        "files": sorted(file.name for file in saved.iterdir()),
    }


def main(folder: str, *names: str) -> None:
    """All runs that are asked for, one after another."""
    if not paddle.is_compiled_with_cuda():
        on_cpu()
    strategy = fleet.DistributedStrategy()
    strategy.hybrid_configs = {"mp_degree": RANKS}
    fleet.init(is_collective=True, strategy=strategy)
    results = {}
    for one in names:
        name, _, resumed = one.partition(":")
        with paddle.utils.unique_name.guard():  # as in a process of its own
            kind = by_trainer if name.startswith("trainer") else run
            results[one] = kind(name, Path(folder), resumed=bool(resumed))
    (Path(folder) / f"rank{RANK}.pickle").write_bytes(pickle.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
