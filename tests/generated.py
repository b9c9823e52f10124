"""Random networks under random schedules, and what must hold after each step.

Used by ``test_generated.py`` (100 networks) and, as a program, by ``make fuzz`` (10,000 networks,
in parts that can be resumed):

    python generated.py [NETWORKS] [SEED]
"""

from __future__ import annotations

import copy
import json
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import paddle
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from paddle import nn

from paddle_freeze_callback import (
    ByGradient,
    Cyclic,
    Explicit,
    FreezeDown,
    FreezeSchedule,
    Gradual,
    HeadOnly,
    HeadThenAll,
    partition,
)
from paddle_freeze_callback.strategies.moments import Moment
from paddle_freeze_callback.strategies.run import Run

RATE, CHANNELS = 0.05, 4


class Scaled(nn.Layer):
    """A container with a parameter of its own beside its children, held in a LayerList."""

    def __init__(self, children: list[nn.Layer]) -> None:
        super().__init__()
        self.scale = self.create_parameter([1], default_initializer=nn.initializer.Constant(0.9))
        self.items = nn.LayerList(children)

    def forward(self, x):
        for item in self.items:
            x = item(x)
        return x * self.scale


class Skip(nn.Layer):
    """A skip connection around a layer."""

    def __init__(self, inner: nn.Layer) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x + self.inner(x)


class OverChannels(nn.Layer):
    """A Linear on the channels of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(CHANNELS, CHANNELS)

    def forward(self, x):
        return self.linear(x.transpose([0, 2, 3, 1])).transpose([0, 3, 1, 2])


class InPlace(nn.Layer):
    """A convolution whose output is changed in place."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv, self.how = nn.Conv2D(CHANNELS, CHANNELS, 1), how

    def forward(self, x):
        x = self.conv(x)
        if self.how == "relu_":
            return nn.functional.relu_(x)
        if self.how == "add_":
            return x.add_(paddle.ones_like(x))
        x[:, 0] = 0.5
        return x


class OverPixels(nn.Layer):
    """A recurrent layer over the pixels of an image."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.rnn = getattr(nn, kind)(CHANNELS, CHANNELS)

    def forward(self, x):
        sequence, _ = self.rnn(x.flatten(2).transpose([0, 2, 1]))
        return sequence.transpose([0, 2, 1]).reshape(x.shape)


class Whole(nn.Layer):
    """A backbone and a head."""

    def __init__(self, body: nn.Layer) -> None:
        super().__init__()
        self.stem = nn.Conv2D(CHANNELS, CHANNELS, 1)
        self.body = body
        self.head = nn.Linear(CHANNELS * 9, 2)

    def forward(self, x):
        return self.head(self.body(self.stem(x)).flatten(1))


@st.composite
def bodies(draw, depth: int = 3) -> nn.Layer:
    kinds = ["conv", "linear", "batch norm", "group norm", "dropout", "in place", "rnn", "other"]
    kinds += ["sequential", "scaled", "skip"] * 2 if depth else []
    kind = draw(st.sampled_from(kinds))
    if kind == "conv":
        size = draw(st.sampled_from([1, 3]))
        bias = draw(st.sampled_from([None, False]))
        return nn.Conv2D(CHANNELS, CHANNELS, size, padding=size // 2, bias_attr=bias)
    if kind == "linear":
        return OverChannels()
    if kind == "batch norm":
        weight, bias = (draw(st.sampled_from([None, None, False])) for _ in range(2))
        given_stats = draw(st.sampled_from([None, None, True, False]))
        return nn.BatchNorm2D(
            CHANNELS, weight_attr=weight, bias_attr=bias, use_global_stats=given_stats
        )
    if kind == "in place":
        return InPlace(draw(st.sampled_from(["relu_", "add_", "[]="])))
    if kind == "rnn":
        return OverPixels(draw(st.sampled_from(["LSTM", "GRU", "SimpleRNN"])))
    if kind == "other":
        return draw(st.sampled_from([nn.InstanceNorm2D, nn.PReLU]))(CHANNELS)
    if kind == "group norm":
        return nn.GroupNorm(2, CHANNELS)
    if kind == "dropout":
        return nn.Dropout(0.3)
    if kind == "skip":
        return Skip(draw(bodies(depth - 1)))
    children = draw(st.lists(bodies(depth - 1), min_size=1, max_size=3))
    if draw(st.booleans()):
        children.append(children[0])  # a shared layer
    return Scaled(children) if kind == "scaled" else nn.Sequential(*children)


moments = st.integers(0, 2) | st.integers(0, 7).map("{} steps".format)
lengths = st.integers(1, 2) | st.integers(1, 4).map("{} steps".format)
changes = st.sampled_from(["stem", "*", {"freeze": "stem"}, {"freeze": "*", "unfreeze": "head"}])


def in_order(plan: dict, steps_per_epoch: int = 3) -> dict:
    """The head at the beginning, then the rest in order of time."""
    run = Run.of(epochs=3, steps_per_epoch=steps_per_epoch)
    whole = {0: "head"} | plan | {0: "head"}  # first, whatever else comes at step 0
    return {when: whole[when] for when in sorted(whole, key=lambda w: run.step_of(Moment.of(w)))}


strategies = st.one_of(
    st.builds(Gradual, every=st.none() | lengths, start=st.none() | moments),
    st.just(HeadOnly()),
    st.builds(HeadThenAll, at=moments),
    st.dictionaries(moments, changes, max_size=3).map(lambda plan: Explicit(in_order(plan))),
    st.builds(FreezeDown, until=lengths, power=st.sampled_from([1, 3])),
    st.builds(Cyclic, every=lengths),
    st.builds(ByGradient, every=st.just("2 steps"), threshold=st.sampled_from([0.1, 0.9])),
)


def statistics(network: nn.Layer) -> dict[str, np.ndarray]:
    return {n: t.numpy().copy() for n, t in network.state_dict().items() if _is_statistic(n)}


def _is_statistic(name: str) -> bool:
    return name.endswith(("._mean", "._variance"))


def outside(network: nn.Layer) -> list[object]:
    """All that a schedule may touch."""
    return [
        (
            layer.training,
            getattr(layer, "_use_global_stats", None),
            len(layer._forward_pre_hooks),
            len(layer._forward_post_hooks),
            [tensor.stop_gradient for tensor in layer.parameters(include_sublayers=False)],
        )
        for layer in network.sublayers(include_self=True)
    ]


def frozen_by_user(network: Whole, every_nth: int, part: int) -> None:
    """The user freezes each so many-th parameter, or a whole layer of the body; or nothing."""
    names = [n for n, _ in network.named_parameters() if not _is_statistic(n)]
    chosen = {n for i, n in enumerate(names) if every_nth and i % every_nth == 1}
    if part:
        paths = [path for path, _ in network.named_sublayers() if path.startswith("body")]
        path = paths[part % len(paths)]
        chosen |= {name for name in names if name.startswith(f"{path}.")}
    for name, tensor in network.named_parameters():
        if name in chosen and not name.startswith("head"):
            tensor.stop_gradient = True


def check(body: nn.Layer, strategy, steps: int, user_froze: tuple, manners: dict) -> None:
    """Train and look at everything after each step."""
    network = Whole(body)
    frozen_by_user(network, *user_froze)
    every = {n: t for n, t in network.named_parameters() if not _is_statistic(n)}
    found = outside(network)
    user_frozen = {name for name, tensor in every.items() if tensor.stop_gradient}
    optimizer = paddle.optimizer.SGD(RATE, parameters=network.parameters())
    schedule = FreezeSchedule(strategy=strategy, verify=True, on_conflict="error", **manners)
    norms = [path for path, layer in network.named_sublayers() if hasattr(layer, "_variance")]
    quiet = {"say": lambda line: None}
    with schedule.attach(network, optimizer, epochs=3, steps_per_epoch=3, **quiet) as freezing:
        for _ in range(steps):
            network.train()
            network(paddle.randn([3, CHANNELS, 3, 3])).square().mean().backward()
            gradients = {n: t.grad.numpy() for n, t in every.items() if t.grad is not None}
            before = {name: tensor.numpy().copy() for name, tensor in every.items()}
            optimizer.step()
            optimizer.clear_grad()
            freezing.step()
            for name, tensor in every.items():
                now = tensor.numpy()
                if name not in gradients:
                    assert now.tobytes() == before[name].tobytes(), name
                elif (RATE * np.abs(gradients[name]) > 4 * np.spacing(np.abs(before[name]))).any():
                    assert now.tobytes() != before[name].tobytes(), name
            naive = sum(t.size for t in every.values() if not t.stop_gradient)
            assert freezing.history[-1].trainable == naive
            assert freezing.history[-1].total == sum(t.size for t in every.values())
            assert not {n for n, t in every.items() if not t.stop_gradient} & user_frozen
            _statistics_stand_still(network, norms, freezing, manners, user_frozen)
    assert outside(network) == found
    members = [name for stage in partition(network) for name in stage.parameters]
    assert sorted(members) == sorted(every)


def check_rival(body: nn.Layer, strategy, user_froze: tuple, rival: tuple) -> None:
    """Somebody else sets all flags after a step: noticed, named once a phase, set back."""
    mode, frozen, at = rival
    network = Whole(body)
    frozen_by_user(network, *user_froze)
    every = {n: t for n, t in network.named_parameters() if not _is_statistic(n)}
    optimizer = paddle.optimizer.SGD(RATE, parameters=network.parameters())
    schedule = FreezeSchedule(strategy=strategy, on_conflict=mode)
    lines: list[str] = []
    with (
        warnings.catch_warnings(record=True) as record,
        schedule.attach(network, optimizer, epochs=3, steps_per_epoch=3, say=lines.append) as run,
    ):
        warnings.simplefilter("always")
        for step in range(at + 1):
            network(paddle.randn([3, CHANNELS, 3, 3])).square().mean().backward()
            optimizer.step()
            optimizer.clear_grad()
            if step < at:
                run.step()
        before = {name: tensor.stop_gradient for name, tensor in every.items()}
        # What the user froze and no selector names is left alone.
        rest = {n for s in run.stages if s.name == "rest" for n in s.parameters}
        for name, tensor in every.items():
            if name not in rest:
                tensor.stop_gradient = frozen
        changed = [n for n, tensor in every.items() if tensor.stop_gradient != before[n]]
        error = ""
        try:
            run.verify()  # asks for a look at the optimizer's next step
            optimizer.step()
            optimizer.step()
        except RuntimeError as raised:
            error = str(raised)
        told = [str(one.message) for one in record] + lines + [error]
        told = [line for line in told if "somebody else set" in line]
        assert len(told) == bool(changed)
        assert not changed or told[0].split()[0] in changed
        if mode == "enforce":
            assert {name: tensor.stop_gradient for name, tensor in every.items()} == before
        for name, flag in before.items():
            every[name].stop_gradient = flag


def check_cache(body: nn.Layer, strategy, user_froze: tuple) -> None:
    """Three epochs with and without a cache; of the same three batches: bitwise the same.

    Shuffled, samples come in other batches, some beside new ones: the same but for rounding.
    """
    network = Whole(body)
    frozen_by_user(network, *user_froze)
    paddle.seed(1)
    batches = [paddle.randn([2 + index, CHANNELS, 3, 3]) for index in range(3)]
    plain, cached = _trained(network, strategy, batches * 3)
    assert plain == cached
    samples, order = paddle.concat(batches), np.random.RandomState(1)
    epochs = [order.permutation(9)[:8] for _ in range(3)]
    mixed = [samples[rows[at : at + 4].tolist()] for rows in epochs for at in (0, 4)]
    plain, cached = _trained(network, strategy, mixed)
    for one, other in zip(plain[0], cached[0]):
        np.testing.assert_allclose(np.frombuffer(other, "f4"), np.frombuffer(one, "f4"), rtol=1e-3)


def _trained(network: nn.Layer, strategy, batches: list) -> list:
    """Losses and weights after these batches, without and with a cache."""
    network, steps, results = copy.deepcopy(network), len(batches), []
    if isinstance(strategy, Explicit):
        strategy = Explicit(in_order(strategy.unfreeze_at, steps // 3))
    for twin, options in (
        (copy.deepcopy(network), {"frozen_dropout": "eval"}),
        (network, {"cache": "memory", "cache_check_every": 2}),
    ):
        paddle.seed(2)
        optimizer = paddle.optimizer.Momentum(RATE, parameters=twin.parameters())
        schedule = FreezeSchedule(strategy=strategy, verify=True, **options)
        losses = []
        with schedule.attach(
            twin, optimizer, epochs=3, steps_per_epoch=steps // 3, say=lambda line: None
        ) as freezing:
            for batch in batches:
                twin.train()
                loss = twin(batch).square().mean()
                loss.backward()
                optimizer.step()
                optimizer.clear_grad()
                freezing.step()
                losses.append(loss.numpy().tobytes())
        results.append((losses, {n: t.numpy().tobytes() for n, t in twin.state_dict().items()}))
    assert not any("forward" in layer.__dict__ for layer in network.sublayers(include_self=True))
    return results


def _statistics_stand_still(network, norms, freezing, manners, user_frozen) -> None:
    """A forward in training mode moves exactly the statistics of layers that are not frozen."""
    if manners["frozen_norm"] == "train":
        return
    before = statistics(network)
    network.train()
    network(paddle.randn([3, CHANNELS, 3, 3]))
    after = statistics(network)
    frozen = {
        name
        for stage in freezing.stages
        for name in stage.parameters
        if (stage.name != "rest" if name in user_frozen else stage.name not in freezing.open_stages)
    }
    weights = {name for stage in freezing.stages for name in stage.parameters}
    for path in norms:
        own = weights.intersection([f"{path}.weight", f"{path}.bias"])
        if own and own <= frozen:
            for part in ("_mean", "_variance"):
                name = f"{path}.{part}"
                assert before[name].tobytes() == after[name].tobytes(), name


def property_test(networks: int):
    """The property over so many networks, as a test function."""

    @settings(
        max_examples=networks,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(
        body=bodies(),
        strategy=strategies,
        steps=st.integers(1, 9),
        user_froze=st.tuples(st.sampled_from([0, 0, 2, 3]), st.integers(0, 5)),
        rival=st.tuples(
            st.sampled_from(["warn", "enforce", "error"]), st.booleans(), st.integers(0, 7)
        ),
        manners=st.fixed_dictionaries(
            {
                "frozen_norm": st.sampled_from(["eval", "eval", "train"]),
                "frozen_dropout": st.sampled_from(["train", "eval"]),
            }
        ),
    )
    def holds(body, strategy, steps, user_froze, rival, manners):
        paddle.seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # stages that never open are meant here
            twin, third = copy.deepcopy(body), copy.deepcopy(body)
            check(body, strategy, steps, user_froze, manners)
            check_rival(third, strategy, user_froze, rival)
            check_cache(twin, strategy, user_froze)
        counted[0] += 1

    return holds


counted = [0]
PART = 500


def main(networks: int = 10_000, first_seed: int = 20261123) -> None:
    """Run in parts; what is done is remembered, so an interrupted run goes on."""
    memory = Path(__file__).parent.parent / ".cache" / "fuzz.json"
    memory.parent.mkdir(exist_ok=True)
    done = json.loads(memory.read_text()) if memory.exists() else {}
    if done.get("seed") != first_seed:
        done = {"seed": first_seed, "networks": 0, "seconds": 0.0}
    while done["networks"] < networks:
        counted[0], started = 0, time.time()
        part = min(PART, networks - done["networks"])
        seed(first_seed + done["networks"])(property_test(part))()
        done["networks"] += part
        done["seconds"] = round(done["seconds"] + time.time() - started, 1)
        memory.write_text(json.dumps(done))
        print(f"{done['networks']} networks right, {done['seconds']} s", flush=True)
    print(f"RESULT {done['networks']} generated networks, seed {first_seed}: no failure")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
