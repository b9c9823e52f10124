"""Networks and training loops that the tests of the cache share."""

from __future__ import annotations

import numpy as np
import paddle
from networks import moved, values
from paddle import nn

from paddle_freeze_callback import FreezeSchedule


class Losses(paddle.callbacks.Callback):
    """The loss of each step of ``fit``."""

    def __init__(self) -> None:
        super().__init__()
        self.all: list[float] = []

    def on_train_batch_end(self, step, logs=None):
        self.all.append(float(np.asarray(logs["loss"]).item()))


def random_batches(shape, count=4, size=4, *, whole=0):
    random = np.random.RandomState(0)
    if whole:
        return [paddle.to_tensor(random.randint(3, whole, [size, *shape])) for _ in range(count)]
    arrays = (random.rand(size, *shape).astype("float32") for _ in range(count))
    return [paddle.to_tensor(array) for array in arrays]


def by_hand(network, schedule, batches, epochs=3, steps_per_epoch=None):
    """A loop of our own: losses, what the cache did, and the lines that were said."""
    optimizer = paddle.optimizer.AdamW(0.01, parameters=network.parameters())
    losses, lines = [], []
    with schedule.attach(
        network, optimizer, total_steps=epochs * len(batches),
        steps_per_epoch=steps_per_epoch or len(batches), say=lines.append,
    ) as freezing:  # fmt: skip
        for _ in range(epochs):
            for batch in batches:
                network.train()
                out = network(*batch) if isinstance(batch, tuple) else network(batch)
                out = out[0] if isinstance(out, tuple) else out
                loss = out.astype("float32").square().mean()
                loss.backward()
                optimizer.step()
                optimizer.clear_grad()
                losses.append(loss.numpy().tobytes())
                freezing.step()
    return losses, schedule.run.cache, lines


def both(build, batches, plan, *, epochs=3, **options):
    """The same run without and with a cache; what the cache did."""
    results = []
    for cache in ({"frozen_dropout": "eval"}, {"cache": "memory", **options}):
        paddle.seed(5)
        network = build()
        schedule = FreezeSchedule(unfreeze_at=plan, verify=True, **cache)
        results.append((*by_hand(network, schedule, batches, epochs), values(network)))
    (plain, _, _, before), (cached, statistics, lines, after) = results
    assert plain == cached
    assert not moved(before, after)
    return statistics, lines


def off_reason(network, batches, **options):
    schedule = FreezeSchedule(unfreeze_at={0: "c"}, cache="memory", **options)
    _, statistics, lines = by_hand(network, schedule, batches)
    assert [line for line in lines if line.startswith("cache off")] == [
        f"cache off until the next transition: {why}" for why in statistics.off
    ]
    assert statistics.hits == statistics.rows == 0
    return statistics.off[0]


class Three(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        return self.c(self.b(self.a(x)))


class Twice(Three):
    """Two inputs, and a layer that is called twice."""

    def forward(self, x, y):
        return self.c(self.b(self.a(self.a(x) + y)))


# Rows of a store: each is full of the number of its key.


def row(key, length=3):
    return np.full([length], key, "float32")


def name(key):
    return f"{key:016}".encode()


def put(store, keys, length=3):
    store.put([name(key) for key in keys], (np.stack([row(key, length) for key in keys]),))


def kept(store, keys, length=3):
    """Which of these keys are there; all rows are right."""
    found = {}
    for key, one in zip(keys, store.get([name(key) for key in keys])):
        if one is not None:
            assert one[0].tolist() == row(key, length).tolist()
            found[key] = one
    return list(found)
