"""What the callback and its cache cost, and what they save.

    python benchmarks/bench.py               # every question, then the report RESULTS.md
    python benchmarks/bench.py step lookup   # only these
    python benchmarks/bench.py --report      # only the report, from the answers that are there

Both sides of each comparison run in turn, round by round (other libraries, which need PyTorch, in a
process of their own), and medians are compared. ``make bench`` sets up their environment, too.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "examples"))

import fast_on_a_cpu  # noqa: F401  isort: skip

import argparse
import gc
import json
import logging
import os
import platform
import random
import statistics
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable

warnings.filterwarnings("ignore")

import numpy as np
import paddle
from finetune_sentiment import CACHE, fetch_model, fetch_sentences
from paddle import nn

from paddle_freeze_callback import FreezeSchedule, HeadThenAll
from paddle_freeze_callback.cache.keys import form_of, keys_of
from paddle_freeze_callback.cache.stores import DiskStore, MemoryStore

ANSWERS = HERE.parent / ".cache" / "bench"
REPORT = HERE / "RESULTS.md"
PEERS = HERE.parent.resolve() / ".venv-peers" / "bin" / "python"
QUIET = logging.getLogger("paddlenlp")


def median_of(rounds: int, *works: Callable[[], float]) -> list[float]:
    """The median time of each, measured in turn; each tells its own seconds."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(rounds):
        for own, work in zip(times, works):
            gc.collect()
            own.append(work())
    return [statistics.median(own) for own in times]


def cost_of_events(callback: object, empty: object, events: list, count: int = 5000) -> dict:
    """Microseconds that all events of a step take, less those of the loop around them.

    Args:
        callback: whose events are called, by name, as both loops do.
        empty: the base class's callback: any callback costs its loop as much as this one.
        events: name, arguments and named arguments of each.
        count: how often.

    Returns:
        The microseconds of "ours" and of the "empty" callback.
    """

    def calls(of: object) -> float:
        began = time.thread_time()
        for _ in range(count):
            for name, arguments, named in events:
                getattr(of, name)(*arguments, **named)
        return time.thread_time() - began

    def loop() -> float:
        began = time.thread_time()
        for _ in range(count):
            for _name, _arguments, _named in events:
                pass
        return time.thread_time() - began

    # In turn, and the fastest of several: whatever else runs here only makes it slower.
    rounds = [(calls(callback), calls(empty), loop()) for _ in range(15)]
    ours, none, around = (min(each) for each in zip(*rounds))
    return {"ours": (ours - around) / count * 1e6, "empty": (none - around) / count * 1e6}


class Encoder(nn.Layer):
    """A BERT-like encoder with a head; every layer is one of Paddle's."""

    def __init__(self, layers: int, width: int, heads: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(1000, width)
        self.layers = nn.LayerList(
            [nn.TransformerEncoderLayer(width, heads, 4 * width, 0.1) for _ in range(layers)]
        )
        self.head = nn.Linear(width, 2)

    def forward(self, tokens):
        hidden = self.embedding(tokens)
        for layer in self.layers:
            hidden = layer(hidden)
        return self.head(hidden.mean(1))


def sample_rows(count: int, length: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    order = np.random.RandomState(seed)
    return order.randint(1, 1000, [count, length]), order.randint(0, 2, [count])


class Rows(paddle.io.Dataset):
    def __init__(self, count: int, length: int, named: bool = False) -> None:
        self.tokens, self.labels = sample_rows(count, length)
        self.named = named

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int):
        if self.named:
            return {"tokens": self.tokens[index], "labels": self.labels[index]}
        return self.tokens[index], self.labels[index : index + 1]


def train_epoch(network, optimizer, freezing, batches, clock=time.perf_counter) -> float:
    """Seconds of one pass over the batches."""
    began = clock()
    for inputs, labels in batches:
        network.train()
        nn.functional.cross_entropy(network(inputs), labels).backward()
        optimizer.step()
        optimizer.clear_grad()
        freezing.step()
    if paddle.is_compiled_with_cuda():
        paddle.device.synchronize()
    return clock() - began


def batches_of(tokens: np.ndarray, labels: np.ndarray, size: int = 16) -> list:
    return [
        (paddle.to_tensor(tokens[at : at + size]), paddle.to_tensor(labels[at : at + size]))
        for at in range(0, len(labels), size)
    ]


# ---------------------------------------------------------------- what it costs


def step() -> dict:
    """A step without a transition, with and without the callback."""
    everything = {0: "*"}

    class Times(paddle.callbacks.Callback):
        def on_train_batch_begin(self, step, logs=None):
            self.times.append(time.perf_counter()) if step else setattr(self, "times", [])

        def on_train_begin(self, logs=None):
            self.times = []

    def by_hapi(schedule: bool) -> float:
        paddle.seed(0)
        network = Encoder(4, 128, 4)
        model = paddle.Model(network)
        optimizer = paddle.optimizer.AdamW(1e-4, parameters=network.parameters())
        model.prepare(optimizer, nn.CrossEntropyLoss())
        times = Times()
        callbacks = [FreezeSchedule(unfreeze_at=everything), times] if schedule else [times]
        model.fit(Rows(320, 32), batch_size=16, epochs=1, verbose=0, callbacks=callbacks)
        return statistics.median(np.diff(times.times[3:]))

    from paddlenlp.trainer import Trainer, TrainerCallback, TrainingArguments

    class Starts(TrainerCallback):
        def __init__(self) -> None:
            self.times: list[float] = []

        def on_step_begin(self, args, state, control, **context):
            self.times.append(time.perf_counter())

    class Plain(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False):
            return nn.functional.cross_entropy(model(inputs["tokens"]), inputs["labels"])

    def by_trainer(schedule: bool) -> float:
        paddle.seed(0)
        starts = Starts()
        with tempfile.TemporaryDirectory() as folder:
            args = TrainingArguments(
                output_dir=folder, per_device_train_batch_size=16, num_train_epochs=1,
                logging_steps=10, report_to=[], disable_tqdm=True, save_strategy="no",
            )  # fmt: skip
            callbacks = [FreezeSchedule(unfreeze_at=everything)] if schedule else []
            trainer = Plain(
                model=Encoder(4, 128, 4), args=args, train_dataset=Rows(320, 32, named=True),
                callbacks=[*callbacks, starts],
            )  # fmt: skip
            trainer.train()
        return statistics.median(np.diff(starts.times[3:]))

    # Every option that costs something at each step, and nothing that changes any more.
    options = {
        "unfreeze_at": {0: "head", "2 steps": "layers.{2-3}"}, "lr": {"head": 1, "*": 0.1},
        "warmup": "3 steps", "cache": "memory",
    }  # fmt: skip

    def events_of_fit() -> dict:
        class Probe(paddle.callbacks.Callback):
            def on_train_batch_end(self, step, logs=None):
                if step == 12:
                    assert {"cache_hit_rate", "lr/layers.{2-3}"} <= set(logs)
                    found.append(cost_of_events(schedule, paddle.callbacks.Callback(), [
                        ("on_train_batch_begin", (step, logs), {}),
                        ("on_train_batch_end", (step, logs), {}),
                    ]))  # fmt: skip
                    self.model.stop_training = True

        found: list[dict] = []
        schedule = FreezeSchedule(**options)
        network = Encoder(4, 128, 4)
        model = paddle.Model(network)
        model.prepare(
            paddle.optimizer.AdamW(1e-4, parameters=network.parameters()), nn.CrossEntropyLoss()
        )
        # So many epochs that the events of the probe come to no end.
        model.fit(
            Rows(320, 32), batch_size=16, epochs=10**6, verbose=0, callbacks=[schedule, Probe()]
        )
        return found[0]

    def events_of_trainer() -> dict:
        class Probe(TrainerCallback):
            def on_step_end(self, args, state, control, **context):
                if state.global_step == 12:
                    assert "lr/layers.{2-3}" in schedule.run.numbers
                    event = (args, state, control)
                    found.append(cost_of_events(schedule, TrainerCallback(), [
                        ("on_load_data_end", event, {**context, "inputs": {}}),
                        ("on_step_begin", event, context),
                        ("on_optimizer_begin", event, {**context, "scaler": None}),
                        ("on_optimizer_end", event, {**context, "scaler": None}),
                        ("on_step_end", event, context),
                    ]))  # fmt: skip
                    control.should_training_stop = True
                return control

        found: list[dict] = []
        schedule = FreezeSchedule(**options)
        with tempfile.TemporaryDirectory() as folder:
            args = TrainingArguments(
                output_dir=folder, per_device_train_batch_size=16, num_train_epochs=1,
                report_to=[], disable_tqdm=True, save_strategy="no",
            )  # fmt: skip
            Plain(
                model=Encoder(4, 128, 4), args=args, train_dataset=Rows(320, 32, named=True),
                callbacks=[schedule, Probe()],
            ).train()  # fmt: skip
        return found[0]

    events = {"fit": events_of_fit(), "trainer": events_of_trainer()}
    hapi = median_of(9, lambda: by_hapi(True), lambda: by_hapi(False))
    trainer = median_of(9, lambda: by_trainer(True), lambda: by_trainer(False))
    return {
        "fit": hapi[0] / hapi[1], "fit ms": 1e3 * hapi[1], "trainer": trainer[0] / trainer[1],
        "trainer ms": 1e3 * trainer[1], "events": events,
    }  # fmt: skip


def transition() -> dict:
    """The start of a run on BERT base, and opening its 14 stages with 201 tensors one by one."""
    from paddlenlp.transformers import BertConfig, BertForSequenceClassification

    network = BertForSequenceClassification(BertConfig())
    optimizer = paddle.optimizer.AdamW(1e-4, parameters=network.parameters())

    starts: list[float] = []

    def ours() -> float:
        total = 0.0
        began = time.perf_counter()
        with FreezeSchedule(every="1 step").attach(network, optimizer, total_steps=20) as freezing:
            starts.append(time.perf_counter() - began)
            for _ in range(13):
                began = time.perf_counter()
                freezing.step()
                total += time.perf_counter() - began
            assert len(freezing.history) == 14
        return total

    (seconds,) = median_of(5, ours)
    start = 1e3 * statistics.median(starts)
    return {"ours": 1e3 * seconds, "start": start, **peers("transition")}


def frozen_step() -> dict:
    """Steps of a 12-layer encoder with less and less open: time and memory."""
    paddle.seed(0)
    network = Encoder(12, 256, 8)
    optimizer = paddle.optimizer.AdamW(1e-4, parameters=network.parameters())
    (batch,) = batches_of(*sample_rows(16, 64))
    core = paddle.framework.core
    memory: dict[str, float] = {}

    def steps(name: str, plan: dict) -> Callable[[], float]:
        def work() -> float:
            with FreezeSchedule(unfreeze_at=plan).attach(
                network, optimizer, total_steps=9
            ) as freezing:
                train_epoch(network, optimizer, freezing, [batch])
                before = core.host_memory_stat_current_value("Allocated", 0)
                core.host_memory_stat_reset_peak_value("Allocated", 0)
                seconds = train_epoch(network, optimizer, freezing, [batch] * 2)
                peak = core.host_memory_stat_peak_value("Allocated", 0)
                memory[name] = (peak - before) / 2**20
            return seconds

        return work

    def forward() -> float:
        network.train()
        began = time.perf_counter()
        with paddle.no_grad():
            for _ in range(2):
                network(batch[0])
        return time.perf_counter() - began

    top = ["head", "layers.{6-11}"]
    full, half, head, ahead = median_of(
        5, steps("full", {0: "*"}), steps("half", {0: top}), steps("head", {0: "head"}), forward
    )
    return {
        "head": head / full, "half": half / full, "limit": ahead / full,
        "half limit": (ahead + (full - ahead) / 2) / full, "memory": memory,
    }  # fmt: skip


def some_rows() -> dict:
    """Steps with BERT base's word table, of 30,530 rows, under one block: all of it, and 8 rows."""
    from paddlenlp.transformers import BertConfig, BertForSequenceClassification

    network = BertForSequenceClassification(BertConfig(vocab_size=30530, num_hidden_layers=1))
    optimizer = paddle.optimizer.AdamW(1e-4, parameters=network.parameters())
    (batch,) = batches_of(*sample_rows(16, 64))
    table = "bert.embeddings.word_embeddings"

    def steps(head: list[str], **options: object) -> Callable[[], float]:
        def work() -> float:
            with FreezeSchedule(unfreeze_at={0: head}, **options).attach(
                network, optimizer, total_steps=9
            ) as freezing:
                train_epoch(network, optimizer, freezing, [batch])
                return train_epoch(network, optimizer, freezing, [batch] * 2) / 2

        return work

    whole, some = median_of(
        7, steps(["classifier", table]), steps(["classifier"], rows={table: "30522:"})
    )
    return {"whole": 1e3 * whole, "rows": 1e3 * some}


# ---------------------------------------------------------------- what the cache saves


def cached(build, plan: dict, rows: tuple[np.ndarray, np.ndarray], rounds: int = 3) -> dict:
    """Three epochs of a frozen network, each with and without the cache, shuffled and in order.

    Both sides see the same batches, epoch by epoch in turn. What counts is the processor time of
    this process: what else runs on the machine hardly moves it.
    """
    order = np.random.RandomState(0)
    first_batch = batches_of(rows[0][:16], rows[1][:16])[0][0]
    planned = FreezeSchedule(unfreeze_at=plan, cache="memory")
    result: dict = {
        "predicted": planned.preview(build(), total_steps=100, batch=first_batch).cache_bytes[0],
        "steps": len(rows[1]) // 16,
    }
    for kind in ("shuffled", "in order"):
        epochs: list[list[tuple[float, float]]] = [[], [], []]
        hits = []
        for _ in range(rounds):
            sides = []
            for options in ({"frozen_dropout": "eval"}, {"cache": "memory"}):
                paddle.seed(0)
                network = build()
                optimizer = paddle.optimizer.AdamW(1e-4, parameters=network.parameters())
                schedule = FreezeSchedule(unfreeze_at=plan, **options)
                freezing = schedule.attach(network, optimizer, total_steps=10**6)
                sides.append((network, optimizer, freezing))
            done = sides[1][2].cache
            for epoch, times in enumerate(epochs):
                places = np.arange(len(rows[1]))
                if kind == "shuffled":
                    order.shuffle(places)
                batches = batches_of(rows[0][places], rows[1][places])
                before = (done.hits, done.misses)
                gc.collect()
                times.append(tuple(train_epoch(*one, batches, time.process_time) for one in sides))
                if epoch == 1:
                    new = (done.hits - before[0], done.misses - before[1])
                    hits.append(new[0] / max(sum(new), 1))
            result |= {"bytes": done.nbytes / max(done.rows, 1), "boundary": done.boundary}
            for one in sides:
                one[2].close()
        ratios = [statistics.median(plain / own for plain, own in times) for times in epochs]
        plain, own = (statistics.median(side) for side in zip(*epochs[1]))
        result[kind] = {
            "first": 1 / ratios[0], "second": ratios[1], "third": ratios[2],
            "hits": statistics.median(hits), "plain": plain, "cache": own,
        }  # fmt: skip
    return result


def bert_frozen() -> dict:
    """The whole backbone of a 6 x 384 encoder frozen, sequences of 32, 20 steps an epoch."""
    return cached(lambda: Encoder(6, 384, 12), {0: "head"}, sample_rows(320, 32))


def bert_half() -> dict:
    """Half of the encoder frozen; and the forward of that half alone."""
    rows = sample_rows(320, 32)
    found = cached(lambda: Encoder(6, 384, 12), {0: ["head", "layers.{3-5}"]}, rows)
    network = Encoder(6, 384, 12)

    def prefix() -> float:
        began = time.process_time()
        with paddle.no_grad():
            for inputs, _ in batches_of(*rows):
                hidden = network.embedding(inputs)
                for layer in network.layers[:3]:
                    hidden = layer(hidden)
        return time.process_time() - began

    network.eval()
    (alone,) = median_of(3, prefix)
    saved = found["shuffled"]["plain"] - found["shuffled"]["cache"]
    return {**found, "prefix saved": saved / alone}


def resnet_frozen() -> dict:
    """The whole backbone of ResNet18 frozen, images of 64 x 64, 20 steps an epoch."""
    return resnet18_with(["fc"])


def resnet_part() -> dict:
    """ResNet18 without layer4 and fc frozen."""
    return resnet18_with(["fc", "layer4"])


def resnet18_with(opened: list[str]) -> dict:
    order = np.random.RandomState(0)
    images = order.rand(320, 3, 64, 64).astype("float32")
    build = lambda: paddle.vision.models.resnet18(num_classes=5)  # noqa: E731
    return cached(build, {0: opened}, (images, order.randint(0, 5, [320])))


def lookup() -> dict:
    """Microseconds per sample to make the key, and to find and stack the features."""
    result = {}
    order = np.random.RandomState(0)
    inputs = {
        "64 tokens": [order.randint(0, 1000, [16, 64])],
        "64 tokens and mask": [order.randint(0, 1000, [16, 64]), np.ones([16, 64], "int64")],
        "image 3 x 224 x 224": [order.rand(16, 3, 224, 224).astype("float32")],
    }
    for name, arrays in inputs.items():
        tensors = [paddle.to_tensor(array) for array in arrays]
        form = form_of(tuple(tensors))

        def work(tensors=tensors, form=form) -> float:
            began = time.thread_time()
            for _ in range(200):
                keys_of(tensors, 16, form)
            return (time.thread_time() - began) / 3200 * 1e6

        (result[f"key, {name}"],) = median_of(5, work)
    for name, shape in {"384 floats": [384], "64 x 384 floats": [64, 384]}.items():
        store = MemoryStore(2**31)
        keys = [index.to_bytes(16, "big") for index in range(1024)]
        for at in range(0, 1024, 16):
            store.put(keys[at : at + 16], (order.rand(16, *shape).astype("float32"),))
        order.shuffle(keys)

        def find(store=store, keys=keys) -> float:
            began = time.perf_counter()
            for at in range(0, 1024, 16):
                rows = store.get(keys[at : at + 16])
                paddle.to_tensor(np.stack([row[0] for row in rows]))
            return (time.perf_counter() - began) / 1024 * 1e6

        (result[f"look-up, {name}"],) = median_of(5, find)
    return result


def scale() -> dict:
    """Look-ups of 384 floats among more and more samples, and the memory around them."""
    result = {}
    for count in (10**3, 10**4, 10**5, 10**6):
        store = MemoryStore(2**32)
        before = resident()
        keys = [index.to_bytes(16, "big") for index in range(count)]
        alone = resident()
        for at in range(0, count, 1000):
            part = keys[at : at + 1000]
            store.put(part, (np.ones([len(part), 384], "float32"),))
        after = resident()
        chosen = random.Random(0).sample(keys, 1000)
        began = time.perf_counter()
        for key in chosen:
            store.get([key])
        found = (time.perf_counter() - began) / 1000 * 1e6
        result[f"memory {count}"] = [
            found, (after - alone - store.nbytes) / count, (alone - before) / count,
        ]  # fmt: skip
        del store, keys
    for count in (10**3, 10**4, 10**5, 10**6):
        with tempfile.TemporaryDirectory() as folder:
            keys = [index.to_bytes(16, "big") for index in range(count)]
            store = DiskStore(folder, 2**32)
            began = time.perf_counter()
            for at in range(0, count, 1000):
                part = keys[at : at + 1000]
                store.put(part, (np.ones([len(part), 384], "float32"),))
            store.flush()
            written = (time.perf_counter() - began) / count * 1e6
            DiskStore(folder, 2**32)  # who opens it first writes the index
            began = time.perf_counter()
            again = DiskStore(folder, 2**32)
            opened = (time.perf_counter() - began) * 1e3
            chosen = random.Random(0).sample(keys, 1000)
            began = time.perf_counter()
            for key in chosen:
                assert again.get([key])[0] is not None
            found = (time.perf_counter() - began) / 1000 * 1e6
            result[f"disk {count}"] = [found, written, opened]
    return result


def resident() -> int:
    """Bytes of this process in memory."""
    gc.collect()
    with Path("/proc/self/statm").open() as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# ---------------------------------------------------------------- a whole run


class MiniLM(nn.Layer):
    """all-MiniLM-L6-v2 under a new head on the mean over tokens, as in peers.py."""

    base_model_prefix = "bert"

    def __init__(self, bert: nn.Layer) -> None:
        super().__init__()
        self.bert = bert
        self.classifier = nn.Linear(bert.config.hidden_size, 2)

    def forward(self, tokens):
        weight = (tokens != 0).astype("float32").unsqueeze(-1)
        hidden = self.bert(tokens)[0]
        return self.classifier((hidden * weight).sum(1) / weight.sum(1))


def movie_rows(count: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Sentences as token numbers, cut or filled up to one length; kept for the other side."""
    from paddlenlp.transformers import BertTokenizer

    CACHE.mkdir(parents=True, exist_ok=True)
    folder = fetch_model(CACHE)
    labelled = fetch_sentences(CACHE)
    random.Random(0).shuffle(labelled)
    tokenizer = BertTokenizer.from_pretrained(str(folder))
    tokens = np.zeros([count, length], "int64")
    for row, (text, _) in enumerate(labelled[:count]):
        ids = tokenizer(text, max_length=length, truncation=True)["input_ids"]
        tokens[row, : len(ids)] = ids
    labels = np.array([label for _, label in labelled[:count]])
    np.savez(CACHE / "bench-rows.npz", tokens=tokens, labels=labels)
    return tokens, labels


def minilm() -> MiniLM:
    from paddlenlp.transformers import BertModel

    paddle.seed(0)
    folder = str(fetch_model(CACHE))
    return MiniLM(BertModel.from_pretrained(folder, convert_from_torch=True, use_cache=False))


def whole() -> dict:
    """LP-FT on 320 movie sentences to its end: 20 frozen epochs and 1 open one; 5 and 2."""
    tokens, labels = movie_rows(320, 48)
    data = paddle.io.TensorDataset([paddle.to_tensor(tokens), paddle.to_tensor(labels)])
    result: dict = {}

    def ours(first: int, then: int, **options) -> Callable[[], float]:
        def work() -> float:
            network = minilm()
            model = paddle.Model(network)
            optimizer = paddle.optimizer.AdamW(2e-4, parameters=network.parameters())
            model.prepare(optimizer, nn.CrossEntropyLoss())
            schedule = FreezeSchedule(strategy=HeadThenAll(first), **options)
            began = time.perf_counter()
            model.fit(
                data, batch_size=16, epochs=first + then, shuffle=False, verbose=0,
                callbacks=[schedule],
            )  # fmt: skip
            seconds = time.perf_counter() - began
            assert [change.epoch for change in schedule.history] == [0, first]
            return seconds

        return work

    def theirs(kind: str, first: int, then: int) -> Callable[[], float]:
        def work() -> float:
            found = peers("whole", kind, str(CACHE), str(first), str(then))
            assert found["epochs"] == first + then, found
            assert found["backbone moved"], found
            return found["seconds"]

        return work

    for first, then, rounds in ((20, 1, 3), (5, 2, 1)):
        times = median_of(
            rounds,
            ours(first, then, cache="memory"),
            theirs("lightning", first, then),
            theirs("fts", first, then),
        )
        (plain,) = median_of(1, ours(first, then, frozen_dropout="eval"))
        result[f"{first}+{then}"] = dict(
            zip(("cache", "lightning", "finetuning-scheduler", "plain"), [*times, plain])
        )
    network = minilm()
    optimizer = paddle.optimizer.AdamW(2e-4, parameters=network.parameters())
    (batch,) = batches_of(tokens[:16], labels[:16])

    def forward() -> float:
        began = time.perf_counter()
        with paddle.no_grad():
            network(batch[0])
        return time.perf_counter() - began

    def full() -> float:
        began = time.perf_counter()
        nn.functional.cross_entropy(network(batch[0]), batch[1]).backward()
        optimizer.step()
        optimizer.clear_grad()
        return time.perf_counter() - began

    network.train()
    ahead, both = median_of(7, forward, full)
    other = peers("kernels", str(CACHE))
    result["kernels"] = {"forward": ahead / other["forward"], "step": both / other["step"]}
    return result


def peers(*arguments: str) -> dict:
    """What peers.py prints, in the environment of the other libraries."""
    if not PEERS.exists():
        raise SystemExit("the other libraries are not there; run make bench")
    with tempfile.TemporaryDirectory() as here:  # finetuning-scheduler writes where it runs
        done = subprocess.run(
            [str(PEERS), str(HERE.resolve() / "peers.py"), *arguments],
            capture_output=True, text=True, cwd=here,
        )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise SystemExit(done.stdout[-1000:] + done.stderr[-3000:])
    return json.loads(lines[0][len("RESULT ") :])


# ---------------------------------------------------------------- the report

QUESTIONS = {
    work.__name__: work
    for work in (
        step, transition, frozen_step, some_rows, bert_frozen, bert_half, resnet_frozen,
        resnet_part, lookup, scale, whole,
    )
}  # fmt: skip


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def verdict(reached: bool) -> str:
    return "yes" if reached else "no"


def rows_of(found: dict[str, dict]) -> list[tuple[str, str, str, str]]:
    """Question, what was measured, what was aimed at, whether it was reached."""
    rows = []
    if one := found.get("step"):
        text = (
            f"`fit` {one['fit']:.3f} of a {one['fit ms']:.0f} ms step, Trainer "
            f"{one['trainer']:.3f} of {one['trainer ms']:.0f} ms"
        )
        rows.append(("a step without a transition, with / without the callback", text, "<= 1.01",
                     verdict(max(one["fit"], one["trainer"]) <= 1.01)))  # fmt: skip
        fit, trainer = one["events"]["fit"], one["events"]["trainer"]
        text = (
            f"`fit` {fit['ours']:.1f} microseconds (a callback that does nothing "
            f"{fit['empty']:.1f}), Trainer {trainer['ours']:.1f} ({trainer['empty']:.1f})"
        )
        beyond = [each["ours"] - each["empty"] for each in (fit, trainer)]
        rows.append(("all events of such a step, with rates, warm-up and cache", text,
                     "<= 4 and <= 2 more", verdict(beyond[0] <= 4 and beyond[1] <= 2)))  # fmt: skip
    if one := found.get("transition"):
        text = (
            f"{one['ours']:.1f} ms for all 13 transitions; Lightning's "
            f"`unfreeze_and_add_param_group` {one['lightning']:.1f} ms, finetuning-scheduler's "
            f"thaw {one['finetuning-scheduler']:.1f} ms"
        )
        rows.append(("opening BERT base stage by stage (201 tensors)", text, "<= 13 ms",
                     verdict(one["ours"] <= 13)))  # fmt: skip
        if start := one.get("start"):
            rows.append(("the start of a run on BERT base", f"{start:.1f} ms", "<= 30 ms",
                         verdict(start <= 30)))  # fmt: skip
    if one := found.get("frozen_step"):
        memory = one["memory"]
        text = (
            f"head only {one['head']:.2f} (limit, the forward alone: {one['limit']:.2f}), top half "
            f"{one['half']:.2f} (limit {one['half limit']:.2f}); memory {memory['full']:.0f}, "
            f"{memory['half']:.0f}, {memory['head']:.0f} MB for all, top half, head"
        )
        rows.append(("a frozen step as a share of a full one", text, "<= 0.37 and <= 0.70",
                     verdict(one["head"] <= 0.37 and one["half"] <= 0.70)))  # fmt: skip
    if one := found.get("some_rows"):
        text = f"{one['rows']:.0f} ms; the whole table {one['whole']:.0f} ms"
        rows.append(("a step that trains 8 of 30,530 rows of a word table (1 block)", text,
                     "", ""))  # fmt: skip
    for name, title, least in (
        ("bert_frozen", "whole backbone frozen (6 x 384)", 50),
        ("bert_half", "half of the encoder frozen", 1.2),
        ("resnet_frozen", "backbone of resnet18 frozen", 20),
        ("resnet_part", "resnet18 without layer4 and fc frozen", 1.1),
    ):
        if (one := found.get(name)) and "shuffled" in one:
            mixed, straight = one["shuffled"], one["in order"]
            share = mixed["second"] / straight["second"]
            text = (
                f"second epoch {mixed['second']:.1f}x, third {mixed['third']:.1f}x; in order "
                f"{straight['second']:.1f}x and {straight['third']:.1f}x; "
                f"{100 * mixed['hits']:.1f} % of the second epoch's samples from the cache"
            )
            if "prefix saved" in one:
                text += f"; {100 * one['prefix saved']:.0f} % of the prefix's forward time saved"
            rows.append((f"cached epochs, shuffled: {title}", text,
                         f">= {least}x, >= 99 %, >= 0.8 of in order",
                         verdict(mixed["second"] >= least and mixed["hits"] >= 0.99
                                 and share >= 0.8)))  # fmt: skip
            rows.append(("the first epoch, which fills the cache",
                         f"{mixed['first']:.3f} of an uncached one ({one['steps']} steps)",
                         "<= 1.05", verdict(mixed["first"] <= 1.05)))  # fmt: skip
            kept = (f"{one['bytes']:,.0f} bytes a sample ({', '.join(one['boundary'])}), "
                    f"{one['predicted']:,} predicted by preview")  # fmt: skip
            rows.append(("its memory", kept, "", ""))
    if one := found.get("lookup"):
        text = "; ".join(f"{name} {value:.1f} microseconds" for name, value in one.items())
        fast = one["key, image 3 x 224 x 224"] <= 60 and one["key, 64 tokens"] <= 1
        rows.append(("key and look-up, per sample", text,
                     "keys: <= 60 for an image, <= 1 for 64 tokens", verdict(fast)))  # fmt: skip
    if one := found.get("whole"):
        kernels = one["kernels"]
        for run in ("20+1", "5+2"):
            times = one[run]
            parts = []
            for other in ("lightning", "finetuning-scheduler"):
                ratio = times[other] / times["cache"]
                parts.append(
                    f"{ratio:.2f}x against {other} ({times[other]:.1f} s; "
                    f"{ratio * kernels['step']:.1f}x at equal kernels)"
                )
            text = (
                f"{times['cache']:.1f} s with the cache ({times['plain']:.1f} s without): "
                + ", ".join(parts)
            )
            goal = ">= 2x" if run == "20+1" else "as it comes"
            fast = min(times["lightning"], times["finetuning-scheduler"]) / times["cache"]
            rows.append((f"LP-FT, {run} epochs, to the end", text, goal,
                         verdict(fast >= 2) if run == "20+1" else ""))  # fmt: skip
        text = f"forward {kernels['forward']:.2f}x, full step {kernels['step']:.2f}x the time"
        rows.append(("Paddle's bare kernels against PyTorch's here", text, "", ""))
    return rows


def report() -> str:
    found = {
        name: json.loads((ANSWERS / f"{name}.json").read_text())
        for name in QUESTIONS
        if (ANSWERS / f"{name}.json").exists()
    }
    lines = [
        "# What it costs and what it saves",
        "",
        "Written by `make bench`; medians of several rounds, both sides in turn in one run. "
        f"Machine: {processor()}, {os.cpu_count()} cores, {os.environ['OMP_NUM_THREADS']} threads "
        f"for both sides; Paddle {paddle.__version__} (oneDNN on), Python "
        f"{platform.python_version()}; PyTorch 2.13.0, Lightning 2.6.6, "
        "finetuning-scheduler 2.14.1.",
        "",
        "| question | measured | aim | reached |",
        "| --- | --- | --- | --- |",
        *(f"| {' | '.join(row)} |" for row in rows_of(found)),
    ]
    if one := found.get("scale"):
        lines += [
            "",
            "## As work grows",
            "",
            "Features of 384 floats (1,536 bytes). Memory: microseconds to find one, bytes around "
            "each row beside features and key. Disk: microseconds to find and check one, to write "
            "one, and milliseconds to open the folder.",
            "",
            "| samples | memory: look-up | overhead | disk: look-up | write | open |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
        for count in (10**3, 10**4, 10**5, 10**6):
            memory = one[f"memory {count}"]
            disk = one.get(f"disk {count}")
            cells = [f"{count:,}", f"{memory[0]:.1f}", f"{max(memory[1], 0):.0f}"]
            cells += [f"{value:.1f}" for value in disk] if disk else ["", "", ""]
            lines.append(f"| {' | '.join(cells)} |")
    extra = HERE / "RESULTS-notes.md"
    if extra.exists():
        lines += ["", extra.read_text(encoding="utf-8").strip()]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("questions", nargs="*", metavar="question",
                        help=f"of {', '.join(QUESTIONS)}")  # fmt: skip
    parser.add_argument("--report", action="store_true", help="only write the report")
    options = parser.parse_args()
    wrong = [name for name in options.questions if name not in QUESTIONS]
    if wrong:
        parser.error(f"unknown question {wrong[0]!r}; one of {', '.join(QUESTIONS)}")
    ANSWERS.mkdir(parents=True, exist_ok=True)
    if not options.report:
        for name in options.questions or QUESTIONS:
            began = time.perf_counter()
            answer = QUESTIONS[name]()
            (ANSWERS / f"{name}.json").write_text(json.dumps(answer))
            print(f"{name} ({time.perf_counter() - began:.0f} s): {json.dumps(answer)}", flush=True)
    REPORT.write_text(report(), encoding="utf-8")
    print(f"wrote {REPORT}")


if __name__ == "__main__":
    main()
