"""Samples that come in other batches than before: they are kept once, and served in any batch."""

from __future__ import annotations

import re

import numpy as np
import paddle
import pytest
from cached import Losses, Three, by_hand, random_batches
from networks import ConvNet, Images, conv_net, model_for
from paddle import nn
from trainers import Tokens, tiny_bert, trainer_for

from paddle_freeze_callback import FreezeSchedule, HeadOnly

SAMPLES = np.random.RandomState(0).rand(24, 6).astype("float32")


def shuffled(network, schedule, epochs, *, count=24, seed=0, size=4):
    """A loop over shuffled samples: losses by epoch, hits and misses by epoch."""
    order = np.random.RandomState(seed)
    optimizer = paddle.optimizer.SGD(0.05, parameters=network.parameters())
    losses, counts = [], []
    with schedule.attach(network, optimizer, total_steps=10**6, say=lambda line: None) as freezing:
        for _ in range(epochs):
            rows = SAMPLES[order.permutation(count)]
            for at in range(0, count, size):
                network.train()
                loss = network(paddle.to_tensor(rows[at : at + size])).square().mean()
                loss.backward()
                optimizer.step()
                optimizer.clear_grad()
                freezing.step()
                losses.append(float(loss))
            done = schedule.run.cache
            counts.append((done.hits, done.misses) if done else (0, 0))
    return losses, counts


def test_every_sample_of_the_first_epoch_is_kept_and_hits_in_the_second_under_fit():
    schedule = FreezeSchedule(strategy=HeadOnly(), cache="memory")
    model_for(conv_net()).fit(
        Images(), batch_size=4, epochs=3, shuffle=True, verbose=0, callbacks=[schedule]
    )
    done = schedule.run.cache
    assert (done.hits, done.misses, done.rows) == (48, 24, 24)


def test_every_sample_of_the_first_epoch_is_kept_and_hits_in_the_second_under_a_trainer(tmp_path):
    schedule = FreezeSchedule(strategy=HeadOnly(), cache="memory")
    trainer = trainer_for(tiny_bert(), tmp_path, [schedule], num_train_epochs=3)
    trainer.train_dataset = Tokens(24)
    trainer._get_train_sampler = lambda: paddle.io.DistributedBatchSampler(
        trainer.train_dataset, batch_size=4, shuffle=True
    )
    trainer.train()
    done = schedule.run.cache
    assert (done.hits, done.misses, done.rows) == (48, 24, 24)


@pytest.mark.parametrize("size", [4, 5])
def test_after_a_start_in_the_middle_of_a_phase_only_what_is_missing_is_computed(tmp_path, size):
    """From a folder that has half of the samples, in batches that mix both kinds."""
    seen = []

    class Counted(Three):
        def forward(self, x):
            seen.append(len(x))
            return super().forward(x)

    def run(cache, epochs, count):
        paddle.seed(5)
        schedule = FreezeSchedule(unfreeze_at={0: "c"}, cache=cache, frozen_dropout="eval")
        return shuffled(Counted(), schedule, epochs, count=count, size=size)

    run(tmp_path, 1, 12)
    plain, _ = run(None, 4, 24)
    seen.clear()
    losses, counts = run(tmp_path, 4, 24)
    np.testing.assert_allclose(losses, plain, rtol=1e-5)
    steps = -(-24 // size)
    assert counts[1][1] == counts[3][1] <= 24 + 3 * size  # nothing is computed twice but to compare
    assert counts[3][0] - counts[1][0] == 48
    assert seen[-2 * steps :] == ([size] * (24 // size) + [24 % size] * (size == 5)) * 2


def test_a_batch_with_missing_samples_computes_those_alone():
    rows = []

    class Frozen(nn.Linear):
        def forward(self, x):
            rows.append(len(x))
            return super().forward(x)

    network = Three()
    network.a = Frozen(6, 6)
    optimizer = paddle.optimizer.SGD(0.05, parameters=network.parameters())
    schedule = FreezeSchedule(unfreeze_at={0: "c"}, cache="memory")

    def step(samples):
        network(paddle.to_tensor(samples)).mean().backward()
        optimizer.step(), optimizer.clear_grad(), freezing.step()
        return schedule.run.cache.hits, schedule.run.cache.misses

    with schedule.attach(network, optimizer, total_steps=99) as freezing:
        for _ in range(3):
            before = step(SAMPLES[:4])
        rows.clear()
        assert step(SAMPLES[2:6]) == (before[0] + 2, before[1] + 2)
        assert rows == [2]
        assert step(SAMPLES[[5, 0, 3, 4]]) == (before[0] + 6, before[1] + 2)
        assert rows == [2]


def test_a_prefix_that_gives_few_samples_another_shape_switches_it_off():
    """Only batches of three are cut, of which the proof saw none."""

    class Cuts(nn.Embedding):
        def forward(self, x):
            out = super().forward(x)
            return out[:, :3] if len(x) == 3 else out

    class Reader(nn.Layer):
        def __init__(self):
            super().__init__()
            self.a, self.c = Cuts(50, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.c(self.a(x).mean(1))

    rows = paddle.to_tensor(np.random.RandomState(0).randint(3, 50, [8, 5]))
    batches = [rows[:4], rows[:4], rows[:4], rows[3:7], rows[2:6]]
    runs = []
    for options in ({"frozen_dropout": "eval"}, {"cache": "memory"}):
        paddle.seed(5)
        schedule = FreezeSchedule(unfreeze_at={0: "c"}, **options)
        runs.append(by_hand(Reader(), schedule, batches, 2))
    assert runs[0][0] == runs[1][0]
    assert "gives another shape for inputs of the same shape" in str(runs[1][1].off)
    assert runs[1][1].hits == 4


def test_a_prefix_that_moves_a_buffer_before_its_end_is_computed_for_the_whole_batch():
    """An open normalization on a branch beside the frozen layers, before the last of these."""

    class Beside(Three):
        def __init__(self):
            super().__init__()
            self.n = nn.BatchNorm1D(6)

        def forward(self, x):
            aside = self.n(x)
            return self.c(self.b(self.a(x))) + aside

    results = []
    for cache in (None, "memory"):
        paddle.seed(5)
        network = Beside()
        optimizer = paddle.optimizer.SGD(0.05, parameters=network.parameters())
        plan = {0: ["c", "n"]}
        schedule = FreezeSchedule(unfreeze_at=plan, cache=cache, frozen_dropout="eval")
        with schedule.attach(network, optimizer, total_steps=99) as freezing:
            for rows in (slice(0, 4), slice(0, 4), slice(0, 4), slice(2, 6), slice(4, 8)):
                network(paddle.to_tensor(SAMPLES[rows])).mean().backward()
                optimizer.step(), optimizer.clear_grad(), freezing.step()
        results.append(network.n._mean.numpy())
    np.testing.assert_allclose(results[1], results[0], rtol=1e-6)
    assert (schedule.run.cache.hits, schedule.run.cache.off) == (4, type(schedule.run.cache.off)())


def test_a_doubt_in_a_later_batch_of_the_proof_switches_it_off_before_anything_is_served():
    batches = random_batches([6], 5)
    batches[3] = batches[3] + 10

    class SometimesLooksAtOthers(Three):
        def forward(self, x):
            inner = self.a(x)
            return self.c(self.b(inner - inner.mean(0) if float(x.max()) > 5 else inner))

    runs = []
    for options in ({"frozen_dropout": "eval"}, {"cache": "memory"}):
        paddle.seed(5)
        schedule = FreezeSchedule(unfreeze_at={0: "c"}, **options)
        runs.append(by_hand(SometimesLooksAtOthers(), schedule, batches))
    assert runs[0][0] == runs[1][0]
    assert "on the other samples of the batch" in str(runs[1][1].off)
    assert runs[1][1].hits == 0


def test_the_layer_that_is_called_counts_and_not_the_one_around_it():
    """A T5 of which only the encoder is used; a container whose layers are called one by one."""
    from paddlenlp.transformers import T5Config, T5Model

    class Encoder(nn.Layer):
        def __init__(self):
            super().__init__()
            self.t5 = T5Model(T5Config(
                vocab_size=50, d_model=8, d_kv=4, d_ff=16, num_layers=2, num_heads=2,
                bos_token_id=0, pad_token_id=0, eos_token_id=1,
            ))  # fmt: skip
            self.c = nn.Linear(8, 2)

        def forward(self, x):
            return self.c(self.t5.encoder(x)[0].mean(1))

    class Listed(nn.Layer):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(*(nn.Linear(6, 6) for _ in range(3)))
            self.c = nn.Linear(6, 2)

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
            return self.c(x)

    for build, batches, boundary in (
        (Encoder, random_batches([5], whole=50), ("t5.encoder",)),
        (Listed, random_batches([6]), ("layers.2",)),
    ):
        runs = []
        for options in ({"frozen_dropout": "eval"}, {"cache": "memory"}):
            paddle.seed(5)
            schedule = FreezeSchedule(unfreeze_at={0: "c"}, **options)
            runs.append(by_hand(build(), schedule, batches))
        assert runs[0][0] == runs[1][0]
        assert runs[1][1].boundary == boundary
        assert runs[1][1].hits == 32


def test_losses_of_shuffled_samples_are_those_without_a_cache_within_rounding():
    results = []
    for options in ({"frozen_dropout": "eval"}, {"cache": "memory"}):
        paddle.seed(3)
        np.random.seed(3)
        losses = Losses()
        schedule = FreezeSchedule(strategy=HeadOnly(), **options)
        model_for(conv_net()).fit(
            Images(), batch_size=5, epochs=6, shuffle=True, verbose=0, callbacks=[schedule, losses]
        )
        results.append(losses.all)
    np.testing.assert_allclose(results[1], results[0], rtol=1e-5)
    assert schedule.run.cache.rows == 24
    assert schedule.run.cache.hits == 5 * 24  # batches of 5 are proven in the first epoch


class Aside(ConvNet):
    """An open normalization on a branch beside the frozen blocks moves its statistics."""

    def __init__(self):
        super().__init__()
        self.aside = nn.BatchNorm2D(1)

    def forward(self, x):
        aside = self.aside(x).mean([1, 2, 3]).unsqueeze(1)
        return super().forward(x) + aside


@pytest.mark.parametrize(
    ("network", "fresh", "size", "limit", "why"),
    [
        (ConvNet, 0, 4, None, ""),
        (ConvNet, 8, 4, None, ""),
        (ConvNet, 16, 4, None, "padding that differs from batch to batch, or random augmentation"),
        (Aside, 14, 2, None, "the frozen part moves a buffer in each forward, so a batch with one"),
        (ConvNet, 0, 4, 8 * 4 * 36 * 4, "it is full; raise cache_limit"),
    ],
)
def test_a_cache_that_few_samples_come_from_says_so_once_and_what_to_do(
    network, fresh, size, limit, why, capsys
):
    class Augmented(Images):
        """The first samples are new ones in every epoch."""

        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return image + np.float32(random.rand() if index < fresh else 0), label

    random = np.random.RandomState(3)  # of its own: the data is read in another thread
    paddle.seed(3), np.random.seed(3)
    schedule = FreezeSchedule(unfreeze_at={0: ["fc", *(["aside"] * (network is Aside))]},
                              cache="memory", cache_limit=limit)  # fmt: skip
    model_for(network()).fit(
        Augmented(), batch_size=size, epochs=8, shuffle=True, verbose=2, callbacks=[schedule]
    )
    lines = capsys.readouterr().out.replace("\n    ", " ").splitlines()
    said = [line for line in lines if "of the samples come from it" in line]
    assert len(said) == bool(why), said
    assert all(re.search(r"cache: \d+ % of the .* come from it: " + why, line) for line in said)
    assert schedule.run.cache.off == ()
