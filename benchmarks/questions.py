"""What bench.py measures: each function is a question, and gives its answer as plain numbers.

Both sides of each comparison run in turn, round by round (other libraries, which need PyTorch, in a
process of their own), and medians are compared. A clock is read when the device has done its work.
"""

from __future__ import annotations

import fast_on_a_cpu  # noqa: F401  isort: skip

import gc
import json
import os
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import paddle
from finetune_sentiment import CACHE, fetch_model, fetch_sentences
from machine import give_back_freed_memory
from paddle import nn
from paddlenlp.trainer import Trainer, TrainerCallback, TrainingArguments

from paddle_freeze_callback import Cyclic, FreezeSchedule, HeadOnly, HeadThenAll, RandomStages
from paddle_freeze_callback.cache.keys import form_of, keys_given, keys_of
from paddle_freeze_callback.cache.stores import DiskStore, MemoryStore

HERE = Path(__file__).parent.resolve()
PEERS = HERE.parent / ".venv-peers" / "bin" / "python"
BATCH = 16

tiny = False  # only to see that a question runs: the answer is worth nothing


def pick(full: int, small: int) -> int:
    """How much of it: as measured, or as little as runs."""
    return small if tiny else full


def now() -> float:
    """Seconds on a clock that waits for the device."""
    if paddle.get_device().startswith("gpu"):
        paddle.device.synchronize()
    return time.perf_counter()


def median_of(rounds: int, *works: Callable[[], float]) -> list[float]:
    """The median time of each, measured in turn; each tells its own seconds."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(pick(rounds, 1)):
        for own, work in zip(times, works):
            gc.collect()
            own.append(work())
    return [statistics.median(own) for own in times]


def timed(work: Callable[[], object], count: int) -> Callable[[], float]:
    """Seconds of one of so many calls."""

    def seconds() -> float:
        began = now()
        for _ in range(count):
            work()
        return (now() - began) / count

    return seconds


# ---------------------------------------------------------------- networks, data, loops


class Encoder(nn.Layer):
    """A BERT-like encoder with a head; every layer is one of Paddle's."""

    def __init__(self, layers: int, width: int, heads: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(1000, width)
        self.layers = nn.LayerList(
            [nn.TransformerEncoderLayer(width, heads, 4 * width, 0.1) for _ in range(layers)]
        )
        self.head = nn.Linear(width, 2)

    def forward(self, inputs):
        hidden = self.embedding(inputs)
        for layer in self.layers:
            hidden = layer(hidden)
        return self.head(hidden.mean(1))


class Decoder(nn.Layer):
    """A GPT-like decoder; every layer is one of Paddle's."""

    def __init__(self, layers: int, width: int, heads: int, words: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.layers = nn.LayerList(
            [
                nn.TransformerEncoderLayer(
                    width, heads, 4 * width, 0.0, "gelu", normalize_before=True
                )
                for _ in range(layers)
            ]
        )
        self.head = nn.Linear(width, words)

    def forward(self, inputs):
        length = inputs.shape[1]
        before = paddle.triu(paddle.full([length, length], -1e9), 1)
        hidden = self.embedding(inputs)
        for layer in self.layers:
            hidden = layer(hidden, before)
        return self.head(hidden)


class MiniLM(nn.Layer):
    """all-MiniLM-L6-v2 under a new head on the mean over tokens, as in peers.py."""

    base_model_prefix = "bert"

    def __init__(self) -> None:
        from paddlenlp.transformers import BertModel

        super().__init__()
        paddle.seed(0)
        folder = str(fetch_model(CACHE))
        self.bert = BertModel.from_pretrained(folder, convert_from_torch=True, use_cache=False)
        self.classifier = nn.Linear(self.bert.config.hidden_size, 2)

    def forward(self, inputs):
        weight = (inputs != 0).astype("float32").unsqueeze(-1)
        hidden = self.bert(inputs)[0]
        return self.classifier((hidden * weight).sum(1) / weight.sum(1))


def resnet() -> nn.Layer:
    return paddle.vision.models.resnet18(num_classes=5)


class Rows(paddle.io.Dataset):
    """Inputs with their labels, for ``fit`` as a pair, for a Trainer by name."""

    def __init__(self, inputs: np.ndarray, labels: np.ndarray, named: bool = False) -> None:
        self.inputs, self.labels, self.named = inputs, labels, named

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int):
        if self.named:
            return {"inputs": self.inputs[index], "labels": self.labels[index]}
        return self.inputs[index], self.labels[index : index + 1]


Data = tuple[np.ndarray, np.ndarray]


def token_rows(count: int, length: int) -> Data:
    order = np.random.RandomState(0)
    return order.randint(1, 1000, [count, length]), order.randint(0, 2, [count])


def image_rows(count: int, side: int) -> Data:
    order = np.random.RandomState(0)
    return order.rand(count, 3, side, side).astype("float32"), order.randint(0, 5, [count])


def movie_rows(count: int, length: int) -> Data:
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


class Clock:
    """When a run, its epochs and its steps began and ended, and what the cache did by then."""

    def __init__(self, schedule: FreezeSchedule | None = None, until: int | None = None) -> None:
        self.schedule = schedule
        self.until = until  # the run ends after so many epochs, though more were announced
        self.began = now()
        self.start = 0.0  # seconds to the first step
        self.epochs: list[float] = []
        self.steps: list[float] = []
        self.hits: list[tuple[int, int]] = []
        self.evaluations: list[float] = []

    def epoch_begins(self) -> None:
        self._epoch = now()

    def step_begins(self) -> None:
        self.steps.append(now())
        self.start = self.start or self.steps[0] - self.began

    def epoch_ends(self) -> None:
        self.epochs.append(now() - self._epoch)
        done = self.schedule.run.cache if self.schedule else None
        self.hits.append((done.hits, done.misses) if done else (0, 0))

    @property
    def done(self) -> bool:
        """Whether the run ends with this epoch."""
        return len(self.epochs) == self.until

    @property
    def step(self) -> float:
        """Seconds of a step, the median, without the first ones."""
        return statistics.median(np.diff(self.steps)[2:] if len(self.steps) > 4 else [0.0])


class FitClock(Clock, paddle.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        self.epoch_begins()

    def on_train_batch_begin(self, step, logs=None):
        self.step_begins()

    def on_epoch_end(self, epoch, logs=None):
        self.epoch_ends()
        if self.done:
            self.model.stop_training = True

    def on_eval_begin(self, logs=None):
        self._evaluation = now()

    def on_eval_end(self, logs=None):
        self.evaluations.append(now() - self._evaluation)


class TrainerClock(Clock, TrainerCallback):
    def on_epoch_begin(self, args, state, control, **context):
        self.epoch_begins()

    def on_step_begin(self, args, state, control, **context):
        self.step_begins()

    def on_epoch_end(self, args, state, control, **context):
        self.epoch_ends()
        if self.done:
            control.should_training_stop = True


class Plain(Trainer):
    in_order = False

    def compute_loss(self, model, inputs, return_outputs=False):
        return nn.functional.cross_entropy(model(inputs["inputs"]), inputs["labels"])

    def _get_train_sampler(self):
        if not self.in_order:
            return super()._get_train_sampler()
        return paddle.io.BatchSampler(self.train_dataset, batch_size=BATCH)


Loop = Callable[..., Clock]


def by_fit(
    build: Callable[[], nn.Layer], data: Data, epochs: int, schedule: FreezeSchedule | None = None,
    shuffle: bool = True, also: tuple = (), held_out: Data | None = None,
    until: int | None = None,
) -> Clock:  # fmt: skip
    """A run by ``paddle.Model.fit``; with ``held_out``, an evaluation comes after each epoch."""
    paddle.seed(0)
    np.random.seed(0)
    network = build()
    model = paddle.Model(network)
    optimizer = paddle.optimizer.AdamW(2e-4, parameters=network.parameters())
    model.prepare(optimizer, nn.CrossEntropyLoss())
    clock = FitClock(schedule, until)
    model.fit(
        Rows(*data), Rows(*held_out) if held_out else None, batch_size=BATCH, epochs=epochs,
        shuffle=shuffle, verbose=0, callbacks=[*([schedule] if schedule else []), clock, *also],
    )  # fmt: skip
    clock.total = now() - clock.began
    return clock


def by_trainer(
    build: Callable[[], nn.Layer], data: Data, epochs: int, schedule: FreezeSchedule | None = None,
    shuffle: bool = True, also: tuple = (), until: int | None = None,
) -> Clock:  # fmt: skip
    """A run by PaddleNLP's Trainer."""
    paddle.seed(0)
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder, per_device_train_batch_size=BATCH, num_train_epochs=epochs,
            learning_rate=2e-4, report_to=[], disable_tqdm=True, save_strategy="no",
        )  # fmt: skip
        network = build()
        clock = TrainerClock(schedule, until)
        trainer = Plain(
            model=network, args=args, train_dataset=Rows(*data, named=True),
            callbacks=[*([schedule] if schedule else []), clock, *also],
        )  # fmt: skip
        trainer.in_order = not shuffle
        trainer.train()
        clock.total = now() - clock.began
    return clock


LOOPS: dict[str, Loop] = {"fit": by_fit, "trainer": by_trainer}


def one_step(network, optimizer, inputs, labels) -> None:
    """A step without any loop around it."""
    loss = nn.functional.cross_entropy(network(inputs), labels)
    loss.backward()
    optimizer.step()
    optimizer.clear_grad()


def peers(*arguments: str) -> dict:
    """What peers.py prints, in the environment of the other libraries."""
    if not PEERS.exists():
        raise SystemExit("the other libraries are not there; run make bench")
    with tempfile.TemporaryDirectory() as here:  # finetuning-scheduler writes where it runs
        done = subprocess.run(
            [str(PEERS), str(HERE / "peers.py"), *arguments],
            capture_output=True, text=True, cwd=here,
        )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise SystemExit(done.stdout[-1000:] + done.stderr[-3000:])
    return json.loads(lines[0][len("RESULT ") :])


# ---------------------------------------------------------------- what it costs


def step() -> dict:
    """A step without a transition: all of it, and the events alone."""
    rows = token_rows(pick(320, 80), 32)
    build = lambda: Encoder(4, 128, 4)  # noqa: E731
    found: dict = {}
    for name, loop in LOOPS.items():
        ours, plain = median_of(
            7,
            lambda loop=loop: loop(build, rows, 1, FreezeSchedule(unfreeze_at={0: "*"})).step,
            lambda loop=loop: loop(build, rows, 1).step,
        )
        found[name] = {"ours": ours / plain, "ms": 1e3 * plain}
    for name, events in (("fit", events_of_fit()), ("trainer", events_of_trainer())):
        found[name]["events"] = events
    return found


# Every option that costs something at each step, and nothing that changes any more.
COSTLY = {
    "unfreeze_at": {0: "head", "2 steps": "layers.{2-3}"}, "lr": {"head": 1, "*": 0.1},
    "warmup": "3 steps", "cache": "memory",
}  # fmt: skip


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
    count = pick(count, 50)

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


def events_of_fit() -> dict:
    schedule = FreezeSchedule(**COSTLY)
    found: list[dict] = []

    class Probe(paddle.callbacks.Callback):
        def on_train_batch_end(self, step, logs=None):
            if step == 12:
                assert {"cache_hit_rate", "lr/layers.2-3"} <= set(logs)
                found.append(cost_of_events(schedule, paddle.callbacks.Callback(), [
                    ("on_train_batch_begin", (step, logs), {}),
                    ("on_train_batch_end", (step, logs), {}),
                ]))  # fmt: skip
                self.model.stop_training = True

    # So many epochs that the events of the probe come to no end.
    by_fit(lambda: Encoder(4, 128, 4), token_rows(320, 32), 10**6, schedule, also=(Probe(),))
    return found[0]


def events_of_trainer() -> dict:
    schedule = FreezeSchedule(**COSTLY)
    found: list[dict] = []

    class Probe(TrainerCallback):
        def on_step_end(self, args, state, control, **context):
            if state.global_step == 12:
                assert "lr/layers.2-3" in schedule.run.numbers
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

    by_trainer(lambda: Encoder(4, 128, 4), token_rows(320, 32), 1, schedule, also=(Probe(),))
    return found[0]


def transition() -> dict:
    """The start of a run on BERT base, and opening its 14 stages with 201 tensors one by one."""
    from paddlenlp.transformers import BertConfig, BertForSequenceClassification

    network = BertForSequenceClassification(BertConfig())
    optimizer = paddle.optimizer.AdamW(1e-4, parameters=network.parameters())
    starts: list[float] = []

    def ours() -> float:
        total = 0.0
        began = now()
        with FreezeSchedule(every="1 step").attach(network, optimizer, total_steps=20) as freezing:
            starts.append(now() - began)
            for _ in range(13):
                began = now()
                freezing.step()
                total += now() - began
            assert len(freezing.history) == 14
        return total

    (seconds,) = median_of(5, ours)
    start = 1e3 * statistics.median(starts)
    return {"ours": 1e3 * seconds, "start": start, **peers("transition")}


def frozen_step() -> dict:
    """Steps of a 12-layer encoder with less and less open, as shares of a full one."""
    paddle.seed(0)
    network = Encoder(12, 256, 8)
    optimizer = paddle.optimizer.AdamW(1e-4, parameters=network.parameters())
    inputs, labels = (paddle.to_tensor(one) for one in token_rows(BATCH, 64))
    count = pick(4, 1)

    def steps(opened) -> Callable[[], float]:
        def work() -> float:
            schedule = FreezeSchedule(unfreeze_at={0: opened})
            with schedule.attach(network, optimizer, total_steps=99):
                network.train()
                one_step(network, optimizer, inputs, labels)
                return timed(lambda: one_step(network, optimizer, inputs, labels), count)()

        return work

    def ahead() -> None:
        with paddle.no_grad():
            network(inputs)

    full, half, head, forward = median_of(
        5, steps("*"), steps(["head", "layers.{6-11}"]), steps("head"), timed(ahead, count)
    )
    return {
        "head": head / full, "half": half / full, "limit": forward / full,
        "half limit": (forward + (full - forward) / 2) / full,
    }  # fmt: skip


def some_rows() -> dict:
    """Steps with BERT base's word table, of 30,530 rows, under one block: all of it, and 8 rows."""
    from paddlenlp.transformers import BertConfig, BertForSequenceClassification

    network = BertForSequenceClassification(BertConfig(vocab_size=30530, num_hidden_layers=1))
    optimizer = paddle.optimizer.AdamW(1e-4, parameters=network.parameters())
    inputs, labels = (paddle.to_tensor(one) for one in token_rows(BATCH, 64))
    table = "bert.embeddings.word_embeddings"

    def steps(opened: list[str], **options: object) -> Callable[[], float]:
        def work() -> float:
            schedule = FreezeSchedule(unfreeze_at={0: opened}, **options)
            with schedule.attach(network, optimizer, total_steps=9):
                network.train()
                one_step(network, optimizer, inputs, labels)
                return timed(lambda: one_step(network, optimizer, inputs, labels), 2)()

        return work

    whole, some = median_of(
        7, steps(["classifier", table]), steps(["classifier"], rows={table: "30522:"})
    )
    return {"whole": 1e3 * whole, "rows": 1e3 * some}


# ---------------------------------------------------------------- memory


class Memory:
    """Bytes of tensors on the device."""

    def __init__(self) -> None:
        self._gpu = paddle.get_device().startswith("gpu")
        # Of the memory beside a CPU only this knows.
        self._core = paddle.framework.core

    def now(self) -> int:
        if self._gpu:
            return paddle.device.cuda.memory_allocated()
        return self._core.host_memory_stat_current_value("Allocated", 0)

    def peak(self) -> int:
        if self._gpu:
            return paddle.device.cuda.max_memory_allocated()
        return self._core.host_memory_stat_peak_value("Allocated", 0)

    def forget_peak(self) -> None:
        if self._gpu:
            paddle.device.cuda.reset_max_memory_allocated()
        else:
            self._core.host_memory_stat_reset_peak_value("Allocated", 0)


def nbytes_of(tensors) -> int:
    return sum(t.size * t.element_size() for t in tensors if isinstance(t, paddle.Tensor))


def memory() -> dict:
    """A decoder of 12 layers: the largest step of each schedule, and what it is made of."""
    methods = {
        "everything": ({"unfreeze_at": {0: "*"}}, 4),
        "head only": ({"strategy": HeadOnly()}, 4),
        "LISA, k=2": ({"strategy": RandomStages(2, "1 step")}, 15),
        "Cyclic, k=1": ({"strategy": Cyclic(1, "1 step")}, 15),
        "LP-FT": ({"strategy": HeadThenAll(at="50%")}, 8),
    }
    found: dict = {}
    for name, (options, count) in methods.items():
        schedule = FreezeSchedule(**options)
        gc.collect()
        paddle.seed(0)
        memory, base = Memory(), Memory().now()
        network = Decoder(12, pick(256, 32), 8, pick(4000, 100))
        optimizer = paddle.optimizer.AdamW(1e-4, parameters=network.parameters())
        words = np.random.RandomState(0).randint(0, pick(4000, 100), [4, 65])
        inputs, labels = paddle.to_tensor(words[:, :-1]), paddle.to_tensor(words[:, 1:])
        weights = nbytes_of(network.parameters())
        steps = []
        with schedule.attach(network, optimizer, total_steps=count) as freezing:
            for _ in range(count):
                network.train()
                memory.forget_peak()
                nn.functional.cross_entropy(network(inputs), labels).backward()
                gradients = nbytes_of(p.grad for p in network.parameters())
                optimizer.step()
                optimizer.clear_grad()
                state = nbytes_of(optimizer.state_dict().values())
                total = memory.peak() - base
                steps.append({
                    "total": total, "weights": weights, "gradients": gradients,
                    "optimizer": state, "activations": total - weights - gradients - state,
                })  # fmt: skip
                freezing.step()
        found[name] = max(steps, key=lambda one: one["total"])
        if name == "LP-FT":  # the largest of its first half, too
            found["LP-FT, its first half"] = max(steps[:4], key=lambda one: one["total"])
        del network, optimizer, freezing, schedule
    return found


# ---------------------------------------------------------------- what the cache saves


def epochs_of(build: Callable[[], nn.Layer], opened: list[str], data: Data, rounds: int) -> dict:
    """Epochs 1, 2, 3 and 10 of a frozen network in both loops, with and without the cache."""
    plan = {0: opened}
    data = tuple(one[: pick(320, 64)] for one in data)
    batch = paddle.to_tensor(data[0][:BATCH])
    preview = FreezeSchedule(unfreeze_at=plan, cache="memory").preview(
        build(), total_steps=100, batch=batch
    )
    found: dict = {"predicted": preview.cache_bytes[0], "steps": len(data[1]) // BATCH}
    sides: dict[str, dict] = {"cached": {"cache": "memory"}, "plain": {"frozen_dropout": "eval"}}
    for name, loop in LOOPS.items():
        runs, first = [], []
        for turn in range(pick(9, 1)):  # a short measurement, so that little else comes between
            took = {}
            for side in sorted(sides, reverse=bool(turn % 2)):
                gc.collect()
                schedule = FreezeSchedule(unfreeze_at=plan, **sides[side])
                took[side] = loop(build, data, 2, schedule, until=1).epochs[0]
            first.append(took["cached"] / took["plain"])
        for _ in range(pick(rounds, 1)):
            cached = [FreezeSchedule(unfreeze_at=plan, cache="memory") for _ in range(2)]
            gc.collect()
            plain = loop(build, data, 3, FreezeSchedule(unfreeze_at=plan, frozen_dropout="eval"))
            mixed = loop(build, data, 10, cached[0])
            straight = loop(build, data, 2, cached[1], shuffle=False)
            later = statistics.median(plain.epochs[1:])
            (hits, misses), (before, missed) = mixed.hits[1], mixed.hits[0]
            runs.append({
                "plain": later,
                **{str(n): later / mixed.epochs[n - 1] for n in (2, 3, 10)},
                "in order": later / straight.epochs[1],
                "hits": (hits - before) / max(hits - before + misses - missed, 1),
            })  # fmt: skip
            done = cached[0].run.cache
            found |= {"bytes": done.nbytes // max(done.rows, 1), "boundary": done.boundary}
        found[name] = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        found[name] |= {"first": statistics.median(first), "firsts": sorted(first)}
    return found


def encoder_epochs() -> dict:
    """The whole backbone of a 6 x 384 encoder frozen, sequences of 32."""
    return epochs_of(lambda: Encoder(6, 384, 12), ["head"], token_rows(320, 32), 3)


def half_encoder_epochs() -> dict:
    """Half of the encoder frozen."""
    opened = ["head", "layers.{3-5}"]
    return epochs_of(lambda: Encoder(6, 384, 12), opened, token_rows(320, 32), 2)


def resnet_epochs() -> dict:
    """The whole backbone of ResNet18 frozen, images of 64 x 64."""
    return epochs_of(resnet, ["fc"], image_rows(320, 64), 3)


def part_resnet_epochs() -> dict:
    """ResNet18 without layer4 and fc frozen."""
    return epochs_of(resnet, ["fc", "layer4"], image_rows(320, 64), 2)


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
    numbers = paddle.arange(16)
    call = (lambda numbers: None, (numbers,), {})

    def given() -> float:
        began = time.thread_time()
        for _ in range(200):
            keys_given("numbers", call, 16, "form")
        return (time.thread_time() - began) / 3200 * 1e6

    (result["key, a number in an input"],) = median_of(5, given)
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


SIZES = (10**3, 10**4, 10**5, 10**6)


def scale() -> dict:
    """Look-ups of 384 floats among more and more samples, and the memory around them."""
    result = {}
    for count in SIZES[: pick(4, 1)]:
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
    for count in SIZES[: pick(4, 1)]:
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
            times = []
            for _ in range(5):
                began = time.perf_counter()
                again = DiskStore(folder, 2**32)
                times.append((time.perf_counter() - began) * 1e3)
            opened = statistics.median(times)
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
    give_back_freed_memory()
    with Path("/proc/self/statm").open() as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# ---------------------------------------------------------------- whole runs


def minilm_rows() -> Data:
    return movie_rows(pick(320, 48), pick(48, 16))


def whole(phases: list[list], strategy: dict, rounds: int) -> dict:
    """A run of MiniLM on movie sentences, shuffled, beside the same in the other libraries.

    Args:
        phases: what the others do: epochs, and how many layers of the encoder are open, or "all".
        strategy: what ours does.
        rounds: how often; without a cache it runs once.

    Returns:
        By side the seconds: in all, to the first step, and of each epoch.
    """
    # The rows that the other side reads are those written last.
    held_out = tuple(one[-pick(80, 12) :] for one in movie_rows(pick(400, 60), pick(48, 16)))
    data, epochs = minilm_rows(), sum(count for count, _ in phases)

    def ours(**options) -> dict:
        clock = by_fit(MiniLM, data, epochs, FreezeSchedule(**strategy, **options))
        return {"total": clock.total, "start": clock.start, "epochs": clock.epochs}

    def theirs(kind: str) -> dict:
        found = peers("whole", kind, str(CACHE), json.dumps(phases))
        assert len(found["epochs"]) == epochs, found
        assert found["moved"] == (phases[-1][1] != 0), found
        return found

    sides = {
        "cache": lambda: ours(cache="memory"),
        "lightning": lambda: theirs("lightning"),
        "finetuning-scheduler": lambda: theirs("fts"),
    }
    runs: dict[str, list[dict]] = {name: [] for name in sides}
    for _ in range(pick(rounds, 1)):
        for name, side in sides.items():
            gc.collect()
            runs[name].append(side())
    found = {name: sorted(own, key=lambda run: run["total"])[len(own) // 2]
             for name, own in runs.items()}  # fmt: skip
    watched = FreezeSchedule(**strategy, cache="memory")
    evaluations = by_fit(MiniLM, data, epochs, watched, held_out=held_out).evaluations
    return {
        **found, "plain": ours(frozen_dropout="eval"), "frozen": phases[0][0],
        "evaluations": evaluations, "held out": len(held_out[1]),
    }  # fmt: skip


def long_lp_ft() -> dict:
    """LP-FT: 20 frozen epochs and an open one."""
    first = pick(20, 3)
    return whole([[first, 0], [1, "all"]], {"strategy": HeadThenAll(first)}, 2)


def short_lp_ft() -> dict:
    """LP-FT: 5 frozen epochs and two open ones."""
    first, then = pick(5, 1), pick(2, 1)
    return whole([[first, 0], [then, "all"]], {"strategy": HeadThenAll(first)}, 2)


def gradual() -> dict:
    """The default: head, then stage by stage, then all; the others open half in between."""
    return whole([[1, 0], [1, 3], [1, "all"]], {}, 2)


def kernels() -> dict:
    """A forward and a step of MiniLM: beside PyTorch's, and inside each loop."""
    data = minilm_rows()
    network = MiniLM()
    optimizer = paddle.optimizer.AdamW(2e-4, parameters=network.parameters())
    inputs, labels = (paddle.to_tensor(one[:BATCH]) for one in data)

    def ahead() -> None:
        with paddle.no_grad():
            network(inputs)

    network.train()
    one_step(network, optimizer, inputs, labels)
    forward, bare = median_of(
        7, timed(ahead, 1), timed(lambda: one_step(network, optimizer, inputs, labels), 1)
    )
    other = peers("kernels", str(CACHE))
    rows = tuple(one[: pick(160, 48)] for one in data)
    loops = {}
    for name, loop in LOOPS.items():
        ours, plain = median_of(
            2,
            lambda loop=loop: loop(MiniLM, rows, 1, FreezeSchedule(unfreeze_at={0: "*"})).step,
            lambda loop=loop: loop(MiniLM, rows, 1).step,
        )
        loops[name] = {"ours": ours / bare, "plain": plain / bare}
    return {
        "forward": forward / other["forward"], "step": bare / other["step"],
        "forward ms": 1e3 * forward, "step ms": 1e3 * bare, "loops": loops,
        "versions": other["versions"],
    }  # fmt: skip


QUESTIONS: dict[str, Callable[[], dict]] = {
    question.__name__: question
    for question in (
        step, transition, frozen_step, some_rows, memory, encoder_epochs, half_encoder_epochs,
        resnet_epochs, part_resnet_epochs, lookup, scale, kernels, long_lp_ft, short_lp_ft, gradual,
    )
}  # fmt: skip
