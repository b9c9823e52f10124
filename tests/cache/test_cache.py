"""A frozen prefix is computed once per sample, and nothing else changes."""

from __future__ import annotations

import copy
import gc
import inspect
import json

import numpy as np
import paddle
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from networks import Images, TwoLayers, conv_net, model_for, moved, values
from paddle import nn
from trainers import Tokens, tiny_bert, trainer_for

from paddle_freeze_callback import FreezeSchedule, HeadOnly, RandomStages
from paddle_freeze_callback.cache.options import bytes_of
from paddle_freeze_callback.cache.stores import DiskStore, MemoryStore


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


def by_hand(network, schedule, batches, epochs=3):
    """A loop of our own: losses, what the cache did, and the lines that were said."""
    optimizer = paddle.optimizer.AdamW(0.01, parameters=network.parameters())
    losses, lines = [], []
    with schedule.attach(
        network, optimizer, epochs=epochs, steps_per_epoch=len(batches), say=lines.append
    ) as freezing:
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
    return losses, schedule.cache, lines


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


def bert(**options):
    return tiny_bert(hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1, **options)


def ernie():
    from paddlenlp.transformers import ErnieConfig, ErnieForSequenceClassification

    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2,
             "intermediate_size": 32, "max_position_embeddings": 16}  # fmt: skip
    return ErnieForSequenceClassification(ErnieConfig(**sizes))


# ---------------------------------------------------------------- the same result


@pytest.mark.parametrize("frozen", [0, 1, 2, 3])
@pytest.mark.parametrize(("build", "name"), [(bert, "bert"), (ernie, "ernie")])
def test_an_encoder_has_bitwise_the_same_losses(build, name, frozen):
    """Frozen: the embeddings and so many of three layers; with three, the whole backbone."""
    above = [f"{name}.encoder.layers.{i}" for i in range(frozen, 3)]
    plan = {0: ["classifier", *([] if frozen == 3 else [f"{name}.pooler"]), *above]}
    statistics, _ = both(build, random_batches([8], whole=50), plan)
    # the first batch of the first epoch shows how the network runs
    assert statistics.hits == 16 + 12
    kept = {0: f"{name}.embeddings", 3: name}.get(frozen, f"{name}.encoder.layers.{frozen - 1}")
    assert statistics.boundary == (kept,)
    each = {3: 16 * 4}.get(frozen, 8 * 16 * 4)  # of the whole backbone only what is pooled
    assert statistics.nbytes == 16 * each


RESNET = ["fc", "layer4", "layer3", "layer2", "layer1"]


@pytest.mark.parametrize("opened", range(1, 6))
def test_resnet18_has_bitwise_the_same_losses_at_each_stage_boundary(opened):
    def build():
        return paddle.vision.models.resnet18(num_classes=3)

    statistics, _ = both(build, random_batches([3, 32, 32], 3, 2), {0: RESNET[:opened]})
    kept = ["avgpool", "layer3", "layer2", "layer1", "maxpool"][opened - 1]
    assert statistics.boundary == (kept,)
    assert statistics.hits > 0


@pytest.mark.parametrize("last", [18, 14, 9, 4, 1])
def test_mobilenet_v2_has_bitwise_the_same_losses_at_stage_boundaries(last):
    def build():
        return paddle.vision.models.mobilenet_v2(num_classes=3)

    plan = {0: ["classifier", *(f"features.{i}" for i in range(last, 19))]}
    statistics, _ = both(build, random_batches([3, 32, 32], 2, 2), plan)
    assert statistics.boundary == (f"features.{last - 1}",)
    assert statistics.hits > 0


class Three(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        return self.c(self.b(self.a(x)))


class Skip(Three):
    """The open layer looks over the boundary."""

    def forward(self, x):
        inner = self.a(x)
        return self.c(self.b(inner)) + inner


class InputSkip(Three):
    def forward(self, x):
        return self.c(self.b(self.a(x))) + x


class Twice(Three):
    """Two inputs, and a layer that is called twice."""

    def forward(self, x, y):
        return self.c(self.b(self.a(self.a(x) + y)))


class Split(Three):
    """Gives a tuple, of which the head reads one item."""

    class Pair(nn.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(6, 6)

        def forward(self, x):
            return {"wide": x.tile([1, 50]), "states": (self.inner(x), None)}

    def __init__(self) -> None:
        super().__init__()
        self.b = Split.Pair()

    def forward(self, x):
        return self.c(self.b(self.a(x))["states"][0])


@pytest.mark.parametrize(
    ("build", "inputs", "boundary", "each"),
    [
        (Three, 1, ("b",), 24),
        (Skip, 1, ("a", "b"), 48),
        (InputSkip, 1, ("b",), 24),
        (Twice, 2, ("b",), 24),
        (Split, 1, ("b",), 24),
    ],
)
def test_what_is_kept_is_what_the_rest_looks_at(build, inputs, boundary, each):
    batches = [tuple(one * (i + 1) for i in range(inputs)) for one in random_batches([6])]
    statistics, lines = both(build, batches, {0: "c"})
    assert statistics.boundary == boundary
    assert statistics.nbytes == 16 * each
    assert statistics.hits == 28
    where = ", ".join(boundary)
    expected = f"cache on: keeps the output of {where}, {each} bytes a sample; 0 samples are there"
    assert expected in lines


def test_through_transitions_features_are_kept_or_made_anew():
    """A prefix that shrinks has another boundary; one that comes back has other weights."""
    plan = {
        0: "fc",
        "12 steps": "block3",
        "20 steps": {"freeze": "block3"},
        "28 steps": {"unfreeze": ["block3", "block2"]},
    }
    statistics, lines = both(conv_net, random_batches([1, 6, 6]), plan, epochs=9)
    on = [line.split(",")[0] for line in lines if line.startswith("cache on")]
    assert on == [
        "cache on: keeps the output of block3",
        "cache on: keeps the output of block2",
        "cache on: keeps the output of block3",
        "cache on: keeps the output of block1",
    ]
    assert statistics.hits > 60


def test_fit_has_bitwise_the_same_losses_and_evaluates_from_the_cache_too():
    runs = []
    for options in ({"frozen_dropout": "eval"}, {"cache": "memory"}):
        losses = Losses()
        schedule = FreezeSchedule(strategy=HeadOnly(), verify=True, **options)
        model = model_for(conv_net(), metrics=paddle.metric.Accuracy())
        model.fit(
            Images(), Images(8), batch_size=4, epochs=4, shuffle=False, verbose=0,
            callbacks=[schedule, losses],
        )  # fmt: skip
        runs.append((losses.all, values(model.network)))
    assert runs[0][0] == runs[1][0]
    assert not moved(runs[0][1], runs[1][1])
    # 24 samples in 4 epochs and 8 in 4 evaluations: computed once each, but for the first batch
    assert schedule.cache.hits + schedule.cache.misses == 4 * 24 + 4 * 8 - 4
    assert schedule.cache.rows == 24 + 8
    assert schedule.cache.misses <= 24 + 8
    assert schedule._freezing.numbers["cache_hit_rate"] == schedule.cache.hit_rate > 0.7


def test_a_trainer_has_bitwise_the_same_weights_and_evaluates_from_the_cache_too(tmp_path):
    runs = []
    for options in ({"frozen_dropout": "eval"}, {"cache": "memory"}):
        schedule = FreezeSchedule(every="12 steps", stages=2, verify=True, **options)
        trainer = trainer_for(
            tiny_bert(), tmp_path, [schedule], num_train_epochs=5, evaluation_strategy="epoch"
        )
        trainer.eval_dataset = Tokens(8)
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        runs.append((losses, values(trainer.model)))
    assert runs[0][0] == runs[1][0]
    assert not moved(runs[0][1], runs[1][1])
    assert schedule.cache.hits > 50


def test_samples_that_come_in_other_batches_give_the_same_losses_within_rounding():
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
    assert schedule.cache.rows == 24
    assert schedule.cache.hits > 100


# ---------------------------------------------------------------- off, and why


class FunctionalDropout(Three):
    def forward(self, x):
        return self.c(self.b(nn.functional.dropout(self.a(x), training=self.training)))


class LooksAtOthers(Three):
    def forward(self, x):
        inner = self.a(x)
        return self.c(self.b(inner - inner.mean(0)))


class NoBatchAtTheBoundary(Three):
    def forward(self, x):
        return self.c(self.b(self.a(x).reshape([2, -1, 6])).reshape([-1, 6]))


class OpenFirst(Three):
    def forward(self, x):
        return self.b(self.a(self.c(x)))


class Unused(Three):
    def forward(self, x):
        self.a(x)
        return self.c(x)


def off_reason(network, batches, **options):
    schedule = FreezeSchedule(unfreeze_at={0: "c"}, cache="memory", **options)
    _, statistics, lines = by_hand(network, schedule, batches)
    assert [line for line in lines if line.startswith("cache off")] == [
        f"cache off until the next transition: {statistics.off}"
    ]
    assert statistics.hits == statistics.rows == 0
    return statistics.off


@pytest.mark.parametrize(
    ("build", "why"),
    [
        (FunctionalDropout, "random numbers are drawn before the end of b"),
        (LooksAtOthers, "they depend on open layers, on the other samples of the batch"),
        (NoBatchAtTheBoundary, "whose first side is not the batch of 4"),
        (OpenFirst, "no frozen layer comes before the open ones"),
        (Unused, "does not depend on its frozen layers"),
    ],
)
def test_a_prefix_that_cannot_be_kept_switches_the_cache_off_and_says_why(build, why):
    """And the run is the same as without."""
    batches = random_batches([6])
    runs = []
    for options in ({"frozen_dropout": "eval"}, {"cache": "memory"}):
        paddle.seed(5)
        schedule = FreezeSchedule(unfreeze_at={0: "c"}, **options)
        runs.append(by_hand(build(), schedule, batches)[0])
    assert runs[0] == runs[1]
    assert why in off_reason(build(), batches)


def test_inputs_without_a_common_batch_switch_it_off():
    batches = [(one, one[:1]) for one in random_batches([6])]
    assert "have no common first side" in off_reason(Twice(), batches)


def test_a_hook_of_the_users_switches_it_off():
    """It would see placeholders, or nothing."""
    network, seen = Three(), []
    network.a.register_forward_post_hook(lambda layer, i, o: seen.append(float(o.sum())))
    assert "a has a forward hook, which would not see" in off_reason(network, random_batches([6]))
    assert len(seen) == 12
    network, seen = Three(), []
    network.c.register_forward_post_hook(lambda layer, i, o: seen.append(float(o.sum())))
    assert "c has a forward hook" in off_reason(network, random_batches([6]))
    assert len(seen) == 12  # one call of its own too many would be wrong as well


def test_random_augmentation_makes_it_give_up_after_two_epochs():
    class Augmented(Images):
        def __getitem__(self, index):
            image, label = super().__getitem__(index)
            return image + np.float32(np.random.rand()), label

    schedule = FreezeSchedule(strategy=HeadOnly(), cache="memory")
    model_for(conv_net()).fit(Augmented(), batch_size=4, epochs=5, verbose=0, callbacks=[schedule])
    assert "almost no sample came twice in two epochs" in schedule.cache.off
    assert schedule.cache.rows == 0


def test_layers_that_are_recomputed_switch_it_off(tmp_path):
    from paddle.distributed.fleet.utils import recompute

    class Recomputed(Three):
        def forward(self, x):
            return self.c(recompute(self.b, self.a(x)))

    network = Recomputed()
    schedule = FreezeSchedule(unfreeze_at={0: ["b", "c"]}, cache="memory")
    _, statistics, _ = by_hand(network, schedule, random_batches([6]))
    assert "recomputed" in statistics.off


# ---------------------------------------------------------------- networks with ideas of their own


class Detached(Three):
    """An open layer feeds the frozen ones, without a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.o = nn.Linear(6, 6)

    def forward(self, x):
        inner = self.o(x)
        return self.c(self.b(inner.detach())) + inner


class OtherInEvaluation(Detached):
    def forward(self, x):
        if self.training:
            return self.c(self.b(self.a(x))) + self.o(x)
        return self.c(self.b(self.a(x + self.o(x))))


class Flag(Three):
    """Another way through, from the fifth call on."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        inner = self.a(x)
        out = self.c(self.b(inner))
        return out + inner if self.calls > 4 else out


class Appends(Three):
    """Writes into the list that a frozen layer gave."""

    class Several(nn.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(6, 6)

        def forward(self, x):
            return [x * 1, self.inner(x)]

    def __init__(self) -> None:
        super().__init__()
        self.a = Appends.Several()

    def forward(self, x):
        found = self.a(x)
        found.append(self.c(found[-1]))
        return found[2] + found[1]


class Recomputed(Three):
    def forward(self, x):
        from paddle.distributed.fleet.utils import recompute

        return recompute(lambda inner: self.c(self.b(inner)), self.a(x), use_reentrant=False)


class Doubles(Three):
    """Something else in training than in evaluation, before the prefix."""

    def forward(self, x):
        return self.c(self.b(self.a(x * 2 if self.training else x)))


class OwnRandom(Three):
    def forward(self, x):
        return self.c(self.b(self.a(x))) + 0.1 * paddle.randn([6]) * float(np.random.rand())


class OpenNorm(Three):
    def __init__(self) -> None:
        super().__init__()
        self.n = nn.BatchNorm1D(6, use_global_stats=False)

    def forward(self, x):
        return self.c(self.n(self.b(self.a(x))))


class KeepsAux(Three):
    """What an open layer puts aside goes into the loss."""

    class Head(nn.Linear):
        def forward(self, x):
            out = super().forward(x)
            self.aux = out.abs().mean()
            return out

    def __init__(self) -> None:
        super().__init__()
        self.c = KeepsAux.Head(6, 6)


class FrozenAux(Three):
    def forward(self, x):
        self.aux = self.a(x)  # of a frozen layer, read by the loss
        return self.c(self.b(self.aux))


class Counts(Three):
    """A temperature that falls with each call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.past = 0, []

    def forward(self, x):
        self.calls += 1
        self.past.append(self.calls)
        return self.c(self.b(self.a(x))) / (1 + 0.1 * self.calls + 0.01 * len(self.past))


class Position(Three):
    """A frozen parameter of the container itself."""

    def __init__(self) -> None:
        super().__init__()
        self.pos = self.create_parameter([6])

    def forward(self, x):
        return self.c(self.b(self.a(x) + self.pos))


class InPlace(Three):
    def forward(self, x):
        inner = self.b(self.a(x))
        nn.functional.relu_(inner)
        return self.c(inner)


class InPlaceInput(Three):
    def forward(self, x):
        x = x * 1
        x.scale_(0.5)
        return self.c(self.b(self.a(x)))


class LayerDrop(Three):
    def forward(self, x):
        inner = self.a(x)
        if not self.training or float(paddle.rand([1])) > 0.3:
            inner = self.b(inner)
        return self.c(inner)


class Threshold(Three):
    """A comparison, in which NaN does not show."""

    def forward(self, x):
        inner = self.a(x)
        return self.c(self.b(inner)) + (inner > 1.2).astype("float32")


class OverTime(Three):
    """The first side is time, not the batch."""

    def forward(self, x):
        return self.c(self.b(self.a(x).cumsum(0)))


class GivesNumpy(Three):
    def forward(self, x):
        return self.c(self.b(self.a(x))), np.ones(3)


class MomentumCopy(Three):
    """Moves a copy of an open layer in its forward, as momentum encoders do."""

    def __init__(self) -> None:
        super().__init__()
        self.k = nn.Linear(6, 6)

    def forward(self, x):
        with paddle.no_grad():
            self.k.weight.set_value(0.9 * self.k.weight + 0.1 * self.c.weight)
            teacher = self.k(self.b(self.a(x)))
        return self.c(self.b(self.a(x))) + 0.1 * teacher


class OwnGenerator(Three):
    def __init__(self) -> None:
        super().__init__()
        self.order = np.random.RandomState(3)

    def forward(self, x):
        return super().forward(x) * float(self.order.rand())


class NestedState(Three):
    def __init__(self) -> None:
        super().__init__()
        self.state = {"inner": {"count": np.zeros(1)}}

    def forward(self, x):
        self.state["inner"]["count"] += 1
        return super().forward(x) / float(self.state["inner"]["count"][0])


class StepBuffer(Three):
    """What the frozen layers get depends on how often the network was called."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", paddle.zeros([1]))

    def forward(self, x):
        self.calls.set_value(self.calls + 1)
        return super().forward(x / self.calls)


class ZeroThenAdded(Three):
    """Changes what the frozen layers gave, in place, by something that begins at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.o = nn.Linear(6, 6, bias_attr=False)
        self.o.weight.set_value(paddle.zeros([6, 6]))

    def forward(self, x):
        h = self.b(self.a(x))
        h.add_(self.o(x))
        return self.c(h)


class Compared(Three):
    """An open layer steers the frozen ones by a comparison, which NaN never passes."""

    def __init__(self) -> None:
        super().__init__()
        self.o = nn.Linear(6, 1)
        self.o.bias.set_value(paddle.full([1], -5.0))

    def forward(self, x):
        return super().forward(paddle.where(self.o(x) > 0, x * 0, x)) + self.o(x).mean()


class SmallBatches(Three):
    """Looks at an inner layer if the batch is small."""

    def forward(self, x):
        inner = self.a(x)
        out = self.c(self.b(inner))
        return out + inner if len(x) < 4 else out


class Checks(Three):
    def forward(self, x):
        inner = self.b(self.a(x))
        if bool(paddle.isnan(inner).any()):
            raise ValueError("NaN")
        return self.c(inner)


NASTY = [Detached, OtherInEvaluation, Flag, Appends, Recomputed, Doubles, OwnRandom, OpenNorm,
         KeepsAux, FrozenAux, Counts, Position, InPlace, InPlaceInput, LayerDrop, Threshold,
         OverTime, GivesNumpy, Checks, MomentumCopy, OwnGenerator, NestedState, StepBuffer,
         ZeroThenAdded, Compared]  # fmt: skip


@pytest.mark.parametrize("recomposed", [False, True], ids=["fixed", "recomposed"])
@pytest.mark.parametrize("build", NASTY, ids=lambda build: build.__name__)
def test_whatever_a_network_does_the_run_is_the_same(build, recomposed):
    """With the cache on or, with a reason, off: losses, evaluations, weights, statistics."""
    samples = np.random.RandomState(0).rand(16, 6).astype("float32")
    orders = [np.random.RandomState(e if recomposed else 0).permutation(16) for e in range(5)]
    results = []
    for options in ({"frozen_dropout": "eval"}, {"cache": "memory"}):
        paddle.seed(5)
        np.random.seed(5)
        network = build()
        optimizer = paddle.optimizer.AdamW(0.05, parameters=network.parameters())
        plan = {0: ["c", *(["o"] if hasattr(network, "o") else []),
                    *(["n"] if hasattr(network, "n") else [])]}  # fmt: skip
        if isinstance(network, Position):
            plan |= {"8 steps": {"unfreeze": "pos"}, "9 steps": {"freeze": "pos"}}
        schedule = FreezeSchedule(unfreeze_at=plan, **options)
        seen = []
        with schedule.attach(
            network, optimizer, epochs=5, steps_per_epoch=4, say=lambda line: None
        ) as freezing:
            for order in orders:
                for at in range(0, 16, 4):
                    batch = paddle.to_tensor(samples[order[at : at + 4]])
                    network.train()
                    out = network(batch)
                    out = out[0] if isinstance(out, tuple) else out
                    loss = out.square().mean()
                    for owner in (network, network.c):
                        loss = loss + (owner.aux.mean() if hasattr(owner, "aux") else 0)
                    loss.backward()
                    optimizer.step()
                    optimizer.clear_grad()
                    freezing.step()
                    seen.append(float(loss))
                network.eval()
                with paddle.no_grad():
                    out = network(paddle.to_tensor(samples[:6]))
                seen.append(float((out[0] if isinstance(out, tuple) else out).sum()))
        results.append((seen, values(network)))
    (plain, before), (cached, after) = results
    if recomposed:
        np.testing.assert_allclose(cached, plain, rtol=1e-4)
        for name, value in before.items():
            np.testing.assert_allclose(after[name], value, rtol=1e-3, atol=1e-4)
    else:
        assert plain == cached
        assert not moved(before, after)


def test_a_smaller_batch_is_tried_out_for_itself():
    samples = np.random.RandomState(0).rand(10, 6).astype("float32")
    results = []
    for options in ({"frozen_dropout": "eval"}, {"cache": "memory"}):
        paddle.seed(5)
        network = SmallBatches()
        optimizer = paddle.optimizer.AdamW(0.05, parameters=network.parameters())
        schedule = FreezeSchedule(unfreeze_at={0: "c"}, **options)
        losses = []
        with schedule.attach(network, optimizer, total_steps=12) as freezing:
            for step in range(12):
                at = 4 * (step % 3)
                loss = network(paddle.to_tensor(samples[at : at + 4])).square().mean()
                loss.backward()
                optimizer.step()
                optimizer.clear_grad()
                freezing.step()
                losses.append(float(loss))
        results.append(losses)
    assert results[0] == results[1]


def test_a_hook_that_comes_in_the_middle_of_a_phase_switches_it_off():
    network, seen = Three(), []
    optimizer = paddle.optimizer.SGD(0.01, parameters=network.parameters())
    schedule = FreezeSchedule(unfreeze_at={0: "c"}, cache="memory")
    batch = paddle.rand([4, 6])
    with schedule.attach(network, optimizer, total_steps=20) as freezing:
        for step in range(8):
            if step == 5:
                assert schedule.cache.hits
                network.a.register_forward_post_hook(
                    lambda layer, inputs, output: seen.append(bool(paddle.isnan(output).any()))
                )
            network(batch).sum().backward()
            optimizer.step()
            optimizer.clear_grad()
            freezing.step()
    assert seen == [False] * 3
    assert "forward hook" in schedule.cache.off


def test_a_folder_knows_features_of_other_code(tmp_path):
    def trained(function):
        paddle.seed(5)
        network = Three()
        network.a.act = function
        network.a.forward = lambda x: network.a.act(nn.functional.linear(x, network.a.weight))
        optimizer = paddle.optimizer.SGD(0.01, parameters=network.parameters())
        schedule = FreezeSchedule(unfreeze_at={0: "c"}, cache=tmp_path)
        with schedule.attach(network, optimizer, total_steps=20) as freezing:
            for _ in range(4):
                network(paddle.ones([4, 6])).sum().backward()
                optimizer.step()
                optimizer.clear_grad()
                freezing.step()
        return len(list(tmp_path.iterdir()))

    assert trained(nn.functional.relu) == 1
    assert trained(nn.functional.relu) == 1
    assert trained(nn.functional.gelu) == 2


def test_what_the_network_keeps_of_a_frozen_layer_is_kept_for_it():
    statistics, _ = both(FrozenAux, random_batches([6]), {0: "c"})
    assert statistics.boundary == ("a", "b")
    assert statistics.hits > 0


def test_another_kind_of_call_is_proven_for_itself():
    network = tiny_bert()
    optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters())
    plan = {0: ["classifier", "bert.pooler", "bert.encoder.layers.2"]}
    schedule = FreezeSchedule(unfreeze_at=plan, cache="memory")
    (batch,) = random_batches([8], 1, whole=50)
    with schedule.attach(network, optimizer, total_steps=9) as freezing:
        for _ in range(4):
            network.train()
            network(batch).sum().backward()
            optimizer.step()
            optimizer.clear_grad()
            freezing.step()
        assert schedule.cache.hits == 8
        network.eval()

        def hidden():
            with paddle.no_grad():
                found = network(batch, output_hidden_states=True, return_dict=True).hidden_states
            return [one.numpy().tobytes() for one in found]

        first = hidden()
        assert [hidden() for _ in range(3)] == [first] * 3


def test_gradients_of_the_input_itself_are_computed():
    network = Three()
    optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters())
    schedule = FreezeSchedule(unfreeze_at={0: "c"}, cache="memory")
    batch = random_batches([6], 1)[0]
    with schedule.attach(network, optimizer, total_steps=9) as freezing:
        for _ in range(4):
            network(batch).sum().backward()
            optimizer.step()
            optimizer.clear_grad()
            freezing.step()
        assert schedule.cache.hits > 0
        asked = batch.clone()
        asked.stop_gradient = False
        (gradient,) = paddle.grad(network(asked).sum(), asked)
        assert float(gradient.abs().sum()) > 0


def test_an_interrupt_while_it_tries_leaves_the_network_as_it_was():
    class Interrupted(OpenNorm):
        calls = 0

        def forward(self, x):
            Interrupted.calls += 1
            out = super().forward(x)
            if Interrupted.calls == 5:
                raise KeyboardInterrupt
            return out

    network = Interrupted()
    optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters())
    schedule = FreezeSchedule(unfreeze_at={0: ["c", "n"]}, cache="memory")
    batch = random_batches([6], 1)[0]
    with schedule.attach(network, optimizer, total_steps=9) as freezing:
        network(batch).sum().backward()
        optimizer.step()
        optimizer.clear_grad()
        freezing.step()
        before, random = values(network), paddle.get_rng_state()
        with pytest.raises(KeyboardInterrupt):
            network(batch)
        assert not moved(before, values(network))
        paddle.set_rng_state(random)


def test_half_precision_that_overflows_switches_it_off():
    class Large(Three):
        def forward(self, x):
            return self.c(self.b(self.a(x)) * 1.0)

    network = Large()
    with paddle.no_grad():
        network.b.weight.set_value(network.b.weight * 1e7)
    assert "cache_dtype=float16 is too small" in off_reason(
        network, random_batches([6]), cache_dtype="float16"
    )


def test_small_whole_numbers_and_empty_batches_are_inputs_like_others():
    class Bytes(Three):
        def forward(self, x):
            return super().forward(x.astype("float32") / 255)

    random = np.random.RandomState(0)
    batches = [paddle.to_tensor(random.randint(0, 255, [4, 6]).astype("uint8")) for _ in range(4)]
    statistics, _ = both(Bytes, batches, {0: "c"})
    assert statistics.hits > 0
    network = Three()
    optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters())
    schedule = FreezeSchedule(unfreeze_at={0: "c"}, cache="memory")
    with schedule.attach(network, optimizer, total_steps=9):
        assert network(paddle.zeros([0, 6])).shape == [0, 6]


# ---------------------------------------------------------------- nothing is left behind


def test_after_training_the_network_is_as_it_was_and_computes_for_itself():
    network = conv_net()
    schedule = FreezeSchedule(strategy=HeadOnly(), cache="memory")
    batches = random_batches([1, 6, 6])
    by_hand(network, schedule, batches)
    assert all("forward" not in layer.__dict__ for layer in network.sublayers(include_self=True))
    network.eval()
    before = network(batches[0]).numpy()
    with paddle.no_grad():
        network.block1[0].weight.set_value(network.block1[0].weight * 2)
    assert (network(batches[0]).numpy() != before).any()


def test_an_abandoned_run_leaves_no_patch():
    network = conv_net()
    optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters())
    freezing = FreezeSchedule(strategy=HeadOnly(), cache="memory").attach(
        network, optimizer, total_steps=9
    )
    assert "forward" in network.__dict__
    network(random_batches([1, 6, 6])[0])
    del freezing
    gc.collect()
    assert all("forward" not in layer.__dict__ for layer in network.sublayers(include_self=True))


def test_copies_state_and_signature_are_those_of_the_network():
    network = conv_net()
    names, signature = list(network.state_dict()), inspect.signature(network.forward)
    optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters())
    batch = random_batches([1, 6, 6])[0]
    schedule = FreezeSchedule(strategy=HeadOnly(), cache="memory")
    with schedule.attach(network, optimizer, total_steps=9) as freezing:
        for _ in range(3):
            network(batch).sum().backward()
            optimizer.step()
            optimizer.clear_grad()
            freezing.step()
        assert schedule.cache.hits == 4
        assert list(network.state_dict()) == names
        assert inspect.signature(network.forward) == signature
        other = copy.deepcopy(network)
        hits = schedule.cache.hits
        network.eval(), other.eval()
        with paddle.no_grad():
            other.block1[0].weight.set_value(other.block1[0].weight * 3)
            assert (other(batch).numpy() != network(batch).numpy()).any()
        assert schedule.cache.hits in (hits, hits + 4)


def test_a_forward_that_the_user_had_put_there_stays():
    network = TwoLayers()
    calls = []

    def mine(x):
        calls.append(1)
        return TwoLayers.forward(network, x)

    network.forward = mine
    schedule = FreezeSchedule(strategy=HeadOnly(), cache="memory")
    by_hand(network, schedule, random_batches([4]))
    assert network.__dict__["forward"] is mine
    assert len(calls) >= 12


# ---------------------------------------------------------------- options


def test_a_full_cache_keeps_what_it_has_and_computes_the_rest():
    batches = random_batches([1, 6, 6])
    statistics, lines = both(conv_net, batches, {0: "fc"}, cache_limit=6 * 4 * 36 * 4)
    assert statistics.nbytes <= 6 * 4 * 36 * 4
    assert statistics.rows == 6
    assert any(line.startswith("cache full: 6 samples in") for line in lines)
    assert statistics.hits > 0


def test_half_precision_halves_the_bytes_and_is_near():
    losses = {}
    for dtype in (None, "float16"):
        paddle.seed(5)
        schedule = FreezeSchedule(unfreeze_at={0: "fc"}, cache="memory", cache_dtype=dtype)
        found, statistics, _ = by_hand(conv_net(), schedule, random_batches([1, 6, 6]))
        losses[dtype] = np.frombuffer(b"".join(found), "float32")
        assert statistics.nbytes == 16 * 4 * 36 * (2 if dtype else 4)
    np.testing.assert_allclose(losses["float16"], losses[None], rtol=1e-2)
    assert (losses["float16"] != losses[None]).any()


def looped(network, schedule, meddle):
    """Two batches again and again; after ten steps somebody meddles with the network."""
    optimizer = paddle.optimizer.SGD(0.01, parameters=network.parameters())
    batches = random_batches([1, 6, 6], 2)
    with schedule.attach(network, optimizer, epochs=20, steps_per_epoch=2) as freezing:
        for step in range(20):
            network.train()
            network(batches[step % 2]).sum().backward()
            optimizer.step()
            optimizer.clear_grad()
            freezing.step()
            if step == 9:
                meddle(network)
    return values(network)


def test_a_frozen_weight_that_changes_is_noticed_and_switches_it_off():
    def as_a_loaded_checkpoint(network):
        for tensor in network.block1.parameters():
            tensor.set_value(tensor * 2)

    schedule = FreezeSchedule(strategy=HeadOnly(), cache="memory")
    looped(conv_net(), schedule, as_a_loaded_checkpoint)
    assert "changed although it is frozen" in schedule.cache.off
    assert schedule.cache.hits > 0


def test_a_batch_is_compared_now_and_then_and_what_changed_is_an_error():
    """An option of a frozen layer, which nothing but a comparison tells."""

    class Option(type(conv_net())):
        factor = 1.0

        def forward(self, x):
            x = self.block3(self.block2(self.block1(x) * self.factor))
            return self.fc(x.mean(axis=[2, 3]))

    def louder(network):
        network.factor = 3.0

    schedule = FreezeSchedule(strategy=HeadOnly(), cache="memory", cache_check_every=2)
    with pytest.raises(RuntimeError, match=r"other features of a sample than.*\(block3\)"):
        looped(Option(), schedule, louder)


def test_a_frozen_rnn_below_the_head_changes_nothing():
    class Reader(nn.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.rnn = nn.Embedding(50, 6), nn.LSTM(6, 6)
            self.c = nn.Linear(6, 2)

        def forward(self, x):
            return self.c(self.rnn(self.embedding(x))[0][:, -1])

    statistics, _ = both(Reader, random_batches([5], whole=50), {0: "c"})
    assert statistics.boundary == ("embedding",)  # Paddle says that its RNN needs a gradient
    assert statistics.hits > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache": 3}, 'cache=3 must be "memory", "disk" or a folder'),
        ({"cache": True}, "cache=True must be"),
        ({"cache": ""}, "cache='' must be"),
        ({"cache": __file__}, "is a file, not a folder"),
        ({"cache_limit": "4 GB"}, "cache_limit='4 GB' says nothing without cache="),
        ({"cache": "memory", "cache_limit": "much"}, "cache_limit='much' must be bytes, or text"),
        ({"cache": "memory", "cache_limit": 0}, "cache_limit=0 must be bytes"),
        ({"cache": "memory", "cache_limit": 1.5}, "cache_limit=1.5 must be bytes"),
        ({"cache": "memory", "cache_dtype": "int8"}, "cache_dtype='int8' must be 'float16' or"),
        ({"cache": "memory", "cache_check_every": 0}, "cache_check_every=0 must be a whole number"),
        ({"cache": "memory", "frozen_dropout": "train"}, "and frozen_dropout='train' contradict"),
        ({"cache": "memory", "frozen_norm": "train"}, "and frozen_norm='train' contradict"),
    ],
)
def test_wrong_options_are_refused_with_what_to_do(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        FreezeSchedule(**options)


def test_sizes_are_read_as_people_write_them():
    assert bytes_of("x", "4 GB") == 4 * 2**30
    assert bytes_of("x", "1.5kb") == 1536
    assert bytes_of("x", 77) == 77


# ---------------------------------------------------------------- files


def disk_run(folder, network=None, **options):
    paddle.seed(5)
    network = network or conv_net()
    schedule = FreezeSchedule(unfreeze_at={0: "fc"}, cache=folder, **options)
    return by_hand(network, schedule, random_batches([1, 6, 6]))


def test_features_on_disk_outlive_the_run_and_are_never_served_to_other_weights(tmp_path):
    plain, _, _ = by_hand_plain()
    first, statistics, _ = disk_run(tmp_path)
    assert first == plain
    assert statistics.rows == 16
    second, statistics, lines = disk_run(tmp_path)
    assert second == plain
    assert statistics.misses == 0 or statistics.misses <= 4  # the proof after the start
    assert any("16 samples are there" in line for line in lines)
    other = conv_net()
    with paddle.no_grad():
        other.block2[0].weight.set_value(other.block2[0].weight * 1.5)
    _, statistics, lines = disk_run(tmp_path, other)
    assert any("0 samples are there" in line for line in lines)
    kinds = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert kinds == {".npy", ".json"}
    for path in tmp_path.rglob("*.npy"):
        np.load(path, allow_pickle=False)


def by_hand_plain():
    paddle.seed(5)
    schedule = FreezeSchedule(unfreeze_at={0: "fc"}, frozen_dropout="eval")
    return by_hand(conv_net(), schedule, random_batches([1, 6, 6]))


@pytest.mark.parametrize(
    "damage",
    ["altered", "cut", "index", "json", "missing", "foreign", b"<i4", b">f4", "zip", "nested"],
)
def test_a_file_that_is_cut_short_or_altered_is_noticed_and_recorded_anew(tmp_path, damage):
    plain, _, _ = by_hand_plain()
    disk_run(tmp_path)
    (array,) = tmp_path.rglob("*.0.npy")
    (index,) = tmp_path.rglob("*.index.npy")
    (description,) = tmp_path.rglob("*.json")
    if damage == "altered":
        content = bytearray(array.read_bytes())
        content[200:4000] = bytes(3800)
        array.write_bytes(content)
    elif damage == "cut":
        array.write_bytes(array.read_bytes()[:500])
    elif damage == "index":
        index.write_bytes(b"")
    elif damage == "json":
        description.write_text("{")
    elif damage == "missing":
        array.unlink()
    elif damage == "foreign":
        description.write_text(json.dumps({"format": 99, "rows": []}))
    elif damage in (b"<i4", b">f4"):
        array.write_bytes(array.read_bytes().replace(b"<f4", damage, 1))
    elif damage == "zip":
        array.write_bytes(b"PK\x03\x04" + array.read_bytes())
    elif damage == "nested":
        description.write_text("[" * 10**5)
    again, statistics, _ = disk_run(tmp_path)
    assert again == plain
    assert statistics.misses > 4
    third, statistics, _ = disk_run(tmp_path)
    assert third == plain
    assert statistics.misses <= 4


def test_the_same_weights_under_other_options_or_code_are_other_features(tmp_path):
    def build(factor):
        class Times(Three):
            def forward(self, x):
                return self.c(self.b(self.a(x) * factor))

        paddle.seed(5)
        return Times()

    class Option(Three):
        def __init__(self, power):
            super().__init__()
            self.power = power

        def forward(self, x):
            return self.c(self.b(self.a(x) ** self.power))

    def run(network, cache):
        schedule = FreezeSchedule(unfreeze_at={0: "c"}, cache=cache, frozen_dropout="eval")
        return by_hand(network, schedule, random_batches([6]))

    run(build(1), tmp_path)
    losses, statistics, _ = run(build(5), tmp_path)  # a constant in a closure: found by comparing
    assert losses == run(build(5), None)[0]
    assert "has other features of a sample" in statistics.off
    for power in (2, 3):
        paddle.seed(5)
        found = run(Option(power), tmp_path / "options")
        paddle.seed(5)
        assert found[0] == run(Option(power), None)[0]
        assert found[1].hits > 0


def test_a_disk_that_is_full_stops_filling_and_nothing_worse(tmp_path, monkeypatch):
    import paddle_freeze_callback.cache.stores as module

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "posix_fallocate", full)
    plain, _, _ = by_hand_plain()
    losses, statistics, _ = disk_run(tmp_path)
    assert losses == plain
    assert statistics.rows == 0
    assert not list(tmp_path.rglob("*.npy"))


def test_two_stores_share_a_folder(tmp_path):
    one, two = DiskStore(tmp_path, 10**6), DiskStore(tmp_path, 10**6)
    one.put([b"a" * 16, b"b" * 16], (np.arange(6, dtype="float32").reshape(2, 3),))
    two.put([b"c" * 16], (np.ones([1, 3], "float32"),))
    third = DiskStore(tmp_path, 10**6)
    rows = third.get([b"c" * 16, b"b" * 16, b"d" * 16])
    assert [None if row is None else row[0].tolist() for row in rows] == [
        [1, 1, 1], [3, 4, 5], None,
    ]  # fmt: skip


rows = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 3)), min_size=1, max_size=12)


@pytest.mark.parametrize("kind", ["memory", "disk"])
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=st.lists(rows, max_size=6), limit=st.integers(8, 400))
def test_a_store_gives_back_what_was_put_or_nothing_and_never_passes_its_limit(
    tmp_path_factory, kind, batches, limit
):
    """Whatever comes in which order, in rows of different length."""
    folder = tmp_path_factory.mktemp("store")
    store = MemoryStore(limit) if kind == "memory" else DiskStore(folder, limit)

    def value(key, length):
        return np.full([length], key, "float32")

    for batch in batches:
        length = batch[0][1]
        keys = list(dict.fromkeys(key for key, _ in batch))
        names = [f"{key:08}{length:08}".encode() for key in keys]
        store.put(names, (np.stack([value(key, length) for key in keys]),))
        for name, key, row in zip(names, keys, store.get(names)):
            assert row is None or (row[0] == value(key, length)).all(), name
        assert store.nbytes <= limit
    assert store.full or all(
        row is not None
        for batch in batches
        for row in store.get([f"{key:08}{batch[0][1]:08}".encode() for key, _ in batch])
    )


# ---------------------------------------------------------------- other conditions


def test_lora_weights_inside_a_frozen_block_leave_what_lies_before_them():
    """Even inside the block: attention and norm come before the layer with LoRA."""
    from paddlenlp.peft import LoRAConfig, LoRAModel

    model = LoRAModel(
        tiny_bert(),
        LoRAConfig(target_modules=[".*layers.2.linear1"], r=2, lora_alpha=4),
    )
    model.mark_only_lora_as_trainable()
    schedule = FreezeSchedule(stages=["re:.*lora.*", "*"], unfreeze_at={0: "re:.*lora.*"},
                              cache="memory")  # fmt: skip
    _, statistics, _ = by_hand(model, schedule, random_batches([8], whole=50))
    assert statistics.boundary == ("model.bert.encoder.layers.2.norm1",)
    assert statistics.hits > 0


def test_random_stages_use_it_whenever_a_prefix_is_frozen():
    plan = RandomStages(k=1, every="6 steps", always=["head"])
    runs = []
    for options in ({"frozen_dropout": "eval"}, {"cache": "memory"}):
        paddle.seed(5)
        schedule = FreezeSchedule(strategy=plan, verify=True, **options)
        runs.append(by_hand(conv_net(), schedule, random_batches([1, 6, 6], 2), epochs=12))
    assert runs[0][0] == runs[1][0]
    assert runs[1][1].hits > 0


def test_gradient_accumulation_and_a_smaller_last_batch():
    runs = []
    for options in ({"frozen_dropout": "eval"}, {"cache": "memory"}):
        losses = Losses()
        schedule = FreezeSchedule(strategy=HeadOnly(), **options)
        model = model_for(conv_net())
        model.fit(
            Images(22), batch_size=4, epochs=4, shuffle=False, verbose=0,
            accumulate_grad_batches=2, callbacks=[schedule, losses],
        )  # fmt: skip
        runs.append((losses.all, values(model.network)))
    assert runs[0][0] == runs[1][0]
    assert not moved(runs[0][1], runs[1][1])
    assert schedule.cache.rows == 22


def test_bfloat16_features_are_kept_as_they_are():
    def build():
        network = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 2))
        return network

    class Last(nn.Layer):
        """The embeddings in bfloat16 (a matrix product has no CPU kernel for it)."""

        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(9, 6), nn.Linear(6, 2)
            self.embedding.to(dtype="bfloat16")

        def forward(self, x):
            return self.head(self.embedding(x).astype("float32"))

    statistics, _ = both(Last, random_batches([5], whole=9), {0: "head"})
    assert statistics.nbytes == 16 * 5 * 6 * 2
    assert statistics.hits > 0
