"""Whatever a network does, a run with the cache is the run without it."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from cached import Three, both, off_reason, random_batches
from networks import moved, values
from paddle import nn
from trainers import tiny_bert

from paddle_freeze_callback import FreezeSchedule


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
        if not self.training or float(paddle.rand([])) > 0.3:
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


class ZeroGate(Three):
    """A gate whose weights are zero until the first step: large numbers show nothing before."""

    def __init__(self) -> None:
        super().__init__()
        self.o = nn.Linear(6, 1)
        self.o.weight.set_value(paddle.zeros([6, 1]))
        self.o.bias.set_value(paddle.full([1], -1e-3))

    def forward(self, x):
        inner = self.a(x)
        found = self.b(inner)
        found = paddle.where(self.o(inner) > 0, found * 0, found)
        return self.c(found) + self.o(x)


class Shared(nn.Linear):
    """An open layer that writes what it saw of an inner one into a buffer, for its next call."""

    def __init__(self) -> None:
        super().__init__(6, 6)
        self.register_buffer("share", paddle.zeros([6]))

    def forward(self, found, inner):
        found = super().forward(found) * (1 + self.share)
        self.share.set_value((inner > 0).astype("float32").mean(0))
        return found


class ShareInPlace(Three):
    def __init__(self) -> None:
        super().__init__()
        self.c = Shared()

    def forward(self, x):
        inner = self.a(x)
        return self.c(self.b(inner), inner)


class PartOfAnother(Three):
    """An attribute that shares its memory with the rest of a feature."""

    def forward(self, x):
        inner = self.b(self.a(x))
        self.part = inner[:, :3]
        return self.c(inner)


NASTY = [Detached, OtherInEvaluation, Flag, Appends, Recomputed, Doubles, OwnRandom, OpenNorm,
         KeepsAux, FrozenAux, Counts, Position, InPlace, InPlaceInput, LayerDrop, Threshold,
         OverTime, GivesNumpy, Checks, MomentumCopy, OwnGenerator, NestedState, StepBuffer,
         ZeroThenAdded, Compared, ZeroGate, ShareInPlace, PartOfAnother]  # fmt: skip


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
                assert schedule.run.cache.hits
                network.a.register_forward_post_hook(
                    lambda layer, inputs, output: seen.append(bool(paddle.isnan(output).any()))
                )
            network(batch).sum().backward()
            optimizer.step()
            optimizer.clear_grad()
            freezing.step()
    assert seen == [False] * 3
    assert "forward hook" in schedule.run.cache.off[0]


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
        assert schedule.run.cache.hits == 8
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
        assert schedule.run.cache.hits > 0
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
