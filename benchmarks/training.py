"""One training of the ablation: from the pretrained network to its numbers."""

from __future__ import annotations

import fast_on_a_cpu  # noqa: F401  isort: skip

import time
from dataclasses import dataclass

import numpy as np
import paddle
from paddle import nn
from schedules import ROWS, Row
from tasks import TASKS, Data, Made, batches

BATCH = 16
#: How often what asks for a metric gets one in a run.
EVALUATIONS = 10


@dataclass(frozen=True)
class Run:
    """One training; ``split`` is "validation" or "held out"."""

    task: str
    schedule: str
    rate: float
    seed: int
    split: str


def batch_ends(samples: int) -> list[int]:
    """Where batches end; what is left, if less than half a batch, joins the last one.

    Statistics of BatchNorm over two images of one pixel, as layer4 of a ResNet has of small
    images, would say nothing, and be the last that a running mean takes in.

    >>> batch_ends(50), batch_ends(40), batch_ends(3)
    ([16, 32, 50], [16, 32, 40], [3])
    """
    ends = [*range(BATCH, samples, BATCH), samples]
    if len(ends) > 1 and samples - ends[-2] < BATCH / 2:
        del ends[-2]
    return ends


def train(
    network: nn.Layer, data: Data, row: Row, task: str, *, epochs: int, rate: float, seed: int,
    validation: Data | None = None,
) -> float:  # fmt: skip
    """Train with AdamW in shuffled batches; returns seconds of processor time.

    Evaluated now and then, where a schedule asks for it; that time is not counted.
    """
    inputs, labels = data
    ends = batch_ends(len(labels))
    per_epoch = len(ends)
    learning_rate = row.learning_rate(rate, epochs * per_epoch)
    optimizer = paddle.optimizer.AdamW(learning_rate, parameters=network.parameters())
    order = np.random.RandomState(seed)
    run = row.schedule(task).attach(
        network, optimizer, epochs=epochs, steps_per_epoch=per_epoch, say=lambda line: None
    )
    began, beside = time.process_time(), 0.0
    steps = epochs * per_epoch
    evaluated = {round(steps * (1 + nth) / EVALUATIONS) for nth in range(EVALUATIONS)}
    step = 0
    with run:
        for _ in range(epochs):
            network.train()
            shuffled = order.permutation(len(labels))
            for start, end in zip([0, *ends], ends):
                batch = shuffled[start:end]
                logits = network(paddle.to_tensor(inputs[batch]))
                truth = paddle.to_tensor(labels[batch])
                nn.functional.cross_entropy(logits, truth).backward()
                optimizer.step()
                optimizer.clear_grad()
                if not isinstance(learning_rate, float):
                    learning_rate.step()
                run.step()
                step += 1
                if validation is not None and "loss" in row.code and step in evaluated:
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
    began = time.process_time()
    task, row = TASKS[run.task], ROWS[run.schedule]
    made: Made = task.make(run.seed)
    network = made.network
    network.eval()
    with paddle.no_grad():
        before = made.old_task()
    memory = PeakMemory()
    seconds = train(
        network, made.train, row, run.task, epochs=task.epochs, rate=run.rate, seed=run.seed,
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
        "whole": round(time.process_time() - began, 2),
    }  # fmt: skip


def first_weights(network: nn.Layer, data: Data) -> None:
    """What the images' network knew before."""
    train(network, data, ROWS["full"], "noise", epochs=6, rate=1e-3, seed=0)
