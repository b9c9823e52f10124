"""One training run under a schedule that freezes, unfreezes and refreezes, in one or two processes.

Every rank writes its weights and transitions to ``FOLDER/rank<N>.pickle``; the global batches
are the same for any number of processes.

    python parallel.py LOOP ACCUMULATE FOLDER [STRATEGY]
    python -m paddle.distributed.launch --nproc_per_node 2 --backend gloo \
        parallel.py LOOP ACCUMULATE FOLDER [STRATEGY]
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import paddle
from networks import Vectors
from paddle import nn

from paddle_freeze_callback import (
    ByGradient,
    Explicit,
    FreezeSchedule,
    HeadOnly,
    OnPlateau,
    RandomStages,
)

GLOBAL_BATCH, EPOCHS = 8, 4
PLAN = {
    0: "head",
    1: "block2",
    2: {"freeze": "block2", "unfreeze": "block1"},
    3: {"unfreeze": "block2"},
}


def unlike(progress):
    """A rule that is not the same on all ranks, as when it draws at random."""
    rank = paddle.distributed.get_rank()
    return progress.stages[: 1 + (progress.step + rank) // 4]


STRATEGIES = {
    "plan": Explicit(PLAN),
    "head": HeadOnly(),
    "random": RandomStages(k=1, every="3 steps"),
    "gradient": ByGradient(every="3 steps", threshold=0.5),
    "plateau": OnPlateau("eval_loss", patience=1, min_delta=0.02, max_wait="5 steps"),
    "rule": unlike,
}


# Options beside a strategy.
FURTHER = {
    "cache": ("head", {"cache": "memory"}),
    "rows": ("plan", {"rows": {"stem.weight": "1:3"}}),
}


class Blocks(nn.Layer):
    """No BatchNorm: its statistics are of a rank's own batch."""

    def __init__(self) -> None:
        super().__init__()
        paddle.seed(11)
        self.stem = nn.Linear(4, 8)
        self.block1 = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Tanh())
        self.block2 = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Tanh())
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.block2(self.block1(self.stem(x))))


def optimizer_for(network):
    clip = nn.ClipGradByGlobalNorm(1.0)  # as the Trainer has it
    return paddle.optimizer.AdamW(
        0.01, parameters=network.parameters(), weight_decay=0.1, grad_clip=clip
    )


def by_hapi(schedule, accumulate, ranks, folder):
    network = Blocks()
    model = paddle.Model(network)
    model.prepare(optimizer_for(network), nn.CrossEntropyLoss())
    model.fit(
        Vectors(32), batch_size=GLOBAL_BATCH // ranks, epochs=EPOCHS, shuffle=False, verbose=0,
        accumulate_grad_batches=accumulate, callbacks=[schedule],
    )  # fmt: skip
    return network


def by_hand(schedule, accumulate, ranks, folder):
    if ranks > 1:
        paddle.distributed.init_parallel_env()
    network = Blocks()
    wrapped = paddle.DataParallel(network) if ranks > 1 else network
    optimizer = optimizer_for(network)
    sampler = paddle.io.DistributedBatchSampler(Vectors(32), GLOBAL_BATCH // ranks, shuffle=False)
    loader = paddle.io.DataLoader(Vectors(32), batch_sampler=sampler)
    steps = len(loader) // accumulate
    with schedule.attach(network, optimizer, epochs=EPOCHS, steps_per_epoch=steps) as freezing:
        for _ in range(EPOCHS):
            for index, (inputs, labels) in enumerate(loader):
                nn.functional.cross_entropy(wrapped(inputs), labels).backward()
                if (index + 1) % accumulate == 0:
                    optimizer.step()
                    optimizer.clear_grad()
                    freezing.step()
    return network


def by_trainer(schedule, accumulate, ranks, folder, **flags):
    from trainers import InOrder, trainer_for

    class Rows(paddle.io.Dataset):
        def __len__(self):
            return 32

        def __getitem__(self, index):
            inputs, label = Vectors(32)[index]
            return {"inputs": inputs, "labels": label}

    class Plain(InOrder):
        def compute_loss(self, model, inputs, return_outputs=False):
            logits = model(inputs["inputs"])
            loss = nn.functional.cross_entropy(logits, inputs["labels"])
            return (loss, logits) if return_outputs else loss

    trainer = trainer_for(
        Blocks(), folder, [schedule], kind=Plain, data=Rows(), num_train_epochs=EPOCHS,
        per_device_train_batch_size=GLOBAL_BATCH // ranks, gradient_accumulation_steps=accumulate,
        learning_rate=0.01, weight_decay=0.1, evaluation_strategy="steps", eval_steps=2, **flags,
    )  # fmt: skip
    trainer.eval_dataset = Rows()
    trainer.train()
    return trainer.model


def by_sharding(schedule, accumulate, ranks, folder):
    flags = {"sharding": "stage1"} if ranks > 1 else {}
    return by_trainer(schedule, accumulate, ranks, folder, **flags)


def main(loop: str, accumulate: str, folder: str, strategy: str = "plan") -> None:
    """Train and write down what came out."""
    loops = {
        "hapi": by_hapi, "hand": by_hand, "trainer": by_trainer, "sharding": by_sharding,
    }  # fmt: skip
    environment = paddle.distributed.ParallelEnv()
    ranks = environment.nranks
    rule, further = FURTHER.get(strategy, (strategy, {}))
    schedule = FreezeSchedule(strategy=STRATEGIES[rule], lr_decay=2, verify=True, **further)
    network = loops[loop](schedule, int(accumulate), ranks, Path(folder))
    result = {
        "weights": {name: tensor.numpy() for name, tensor in network.named_parameters()},
        "history": [(c.step, c.opened, c.frozen) for c in schedule.history],
        "hits": schedule.run.cache.hits if schedule.run.cache else 0,
    }
    (Path(folder) / f"rank{environment.rank}.pickle").write_bytes(pickle.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
