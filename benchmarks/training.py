"""One training of the ablation: from the pretrained network to its numbers."""

from __future__ import annotations

import fast_on_a_cpu  # noqa: F401  isort: skip

import math
import time
from dataclasses import dataclass

import numpy as np
import paddle
from paddle import nn
from schedules import ROWS, Row
from tasks import TASKS, Data, Made, batches

BATCH = 16


@dataclass(frozen=True)
class Run:
    """One training; ``split`` is "validation" or "held out"."""

    task: str
    schedule: str
    rate: float
    seed: int
    split: str


def train(
    network: nn.Layer, data: Data, row: Row, *, epochs: int, rate: float, seed: int,
    validation: Data | None = None,
) -> float:  # fmt: skip
    """Train with AdamW in shuffled batches; returns seconds of processor time.

    Evaluated after each epoch, where a schedule asks for it; that time is not counted.
    """
    inputs, labels = data
    per_epoch = math.ceil(len(labels) / BATCH)
    learning_rate = row.learning_rate(rate, epochs * per_epoch)
    optimizer = paddle.optimizer.AdamW(learning_rate, parameters=network.parameters())
    order = np.random.RandomState(seed)
    run = row.schedule().attach(
        network, optimizer, epochs=epochs, steps_per_epoch=per_epoch, say=lambda line: None
    )
    began, beside = time.process_time(), 0.0
    with run:
        for _ in range(epochs):
            network.train()
            shuffled = order.permutation(len(labels))
            for at in range(0, len(labels), BATCH):
                batch = shuffled[at : at + BATCH]
                logits = network(paddle.to_tensor(inputs[batch]))
                truth = paddle.to_tensor(labels[batch])
                nn.functional.cross_entropy(logits, truth).backward()
                optimizer.step()
                optimizer.clear_grad()
                if not isinstance(learning_rate, float):
                    learning_rate.step()
                run.step()
            if validation is not None and "loss" in row.code:
                paused = time.process_time()
                run.evaluated({"loss": judged(network, validation)["loss"]})
                beside += time.process_time() - paused
    return time.process_time() - began - beside


@paddle.no_grad()
def judged(network: nn.Layer, data: Data) -> dict[str, float]:
    """Accuracy, loss, and the expected calibration error over 15 bins (Guo et al. 2017)."""
    training = network.training
    network.eval()
    inputs, labels = data
    logits = paddle.concat([network(batch) for batch in batches(inputs)])
    shares = nn.functional.softmax(logits).numpy()
    loss = float(nn.functional.cross_entropy(logits, paddle.to_tensor(labels)))
    if training:
        network.train()
    right, sure = shares.argmax(1) == labels, shares.max(1)
    bins = np.minimum((sure * 15).astype(int), 14)
    gaps = [
        abs(right[bins == one].mean() - sure[bins == one].mean()) * (bins == one).mean()
        for one in np.unique(bins)
    ]
    return {"accuracy": float(right.mean()), "loss": loss, "ece": float(sum(gaps))}


class PeakMemory:
    """The most memory, in MB, that Paddle's tensors took since it was made, over that time's."""

    def __init__(self) -> None:
        # paddle.device has these numbers for GPUs only.
        self._began = paddle.framework.core.host_memory_stat_current_value("Allocated", 0)
        paddle.framework.core.host_memory_stat_reset_peak_value("Allocated", 0)

    def __call__(self) -> float:
        peak = paddle.framework.core.host_memory_stat_peak_value("Allocated", 0)
        return (peak - self._began) / 2**20


def results(run: Run) -> dict[str, float]:
    """Train from the pretrained network, and judge."""
    task, row = TASKS[run.task], ROWS[run.schedule]
    made: Made = task.make(run.seed)
    network = made.network
    network.eval()
    with paddle.no_grad():
        before = made.old_task()
    memory = PeakMemory()
    seconds = train(
        network, made.train, row, epochs=task.epochs, rate=run.rate, seed=run.seed,
        validation=made.validation,
    )  # fmt: skip
    peak = memory()
    found = judged(network, made.validation if run.split == "validation" else made.held_out)
    network.eval()
    with paddle.no_grad():
        after = made.old_task()
    return {
        **found, "train": judged(network, made.train)["accuracy"], "old_before": before,
        "old": after, "seconds": round(seconds, 2), "memory": round(peak, 1),
    }  # fmt: skip


def first_weights(network: nn.Layer, data: Data) -> None:
    """What the images' network knew before."""
    train(network, data, Row('FreezeSchedule(unfreeze_at={0: "*"})'), epochs=6, rate=1e-3, seed=0)
