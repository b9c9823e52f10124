"""Learning rates per stage: multipliers, ramps, the slanted triangle."""

from __future__ import annotations

import gc
import math

import numpy as np
import paddle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from networks import (
    Images,
    TwoLayers,
    conv_net,
    fit,
    model_for,
    moved,
    open_names,
    rates_from,
    rates_of,
    values,
)
from trainers import tiny_bert, trainer_for

from paddle_freeze_callback import Cyclic, FreezeSchedule, HeadOnly, SlantedTriangular
from paddle_freeze_callback.strategies.rates import LearningRates
from paddle_freeze_callback.strategies.run import Run

ALL = {0: "*"}
OPTIMIZERS = ["SGD", "Momentum", "Adam", "AdamW", "Lamb", "RMSProp", "NAdam", "RAdam", "Adagrad",
              "Adamax", "Adadelta", "ASGD"]  # fmt: skip


def one_step(schedule, network, optimizer, steps: int = 1, total: int = 9) -> dict[str, np.ndarray]:
    """What each weight moved by in the last of some steps."""
    with (schedule or FreezeSchedule(unfreeze_at=ALL)).attach(
        network, optimizer, total_steps=total
    ) as freezing:
        for _ in range(steps):
            before = values(network)
            network.eval()
            network(paddle.ones([2, *shape_of(network)])).square().sum().backward()
            optimizer.step()
            optimizer.clear_grad()
            freezing.step()
    return {name: value - before[name] for name, value in values(network).items()}


def shape_of(network):
    return (4,) if isinstance(network, TwoLayers) else (1, 6, 6)


def two_layers() -> TwoLayers:
    paddle.seed(5)
    return TwoLayers()


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_every_optimizer_moves_a_stage_by_its_multiplier(kind):
    """Compared with the same first step at the plain rate, which is linear in the rate."""
    optimizer = getattr(paddle.optimizer, kind)
    options = {"batch_num": 1} if kind == "ASGD" else {}
    moves = []
    for schedule in (None, FreezeSchedule(unfreeze_at=ALL, lr={"fc1": 0.25})):
        network = two_layers()
        made = optimizer(learning_rate=1e-3, parameters=network.parameters(), **options)
        moves.append(one_step(schedule, network, made))
    plain, scaled = moves
    for name, move in plain.items():
        assert np.abs(move).max() > 0
        factor = 0.25 if name.startswith("fc1") else 1.0
        np.testing.assert_allclose(scaled[name], factor * move, rtol=2e-3, atol=1e-7)


@pytest.mark.parametrize("kind", ["LBFGS", "Rprop"])
def test_an_optimizer_without_rates_per_parameter_is_refused_only_if_they_are_asked_for(kind):
    network = two_layers()
    optimizer = getattr(paddle.optimizer, kind)(parameters=network.parameters())
    FreezeSchedule().attach(network, optimizer, total_steps=4).close()
    with pytest.raises(ValueError, match=f"{kind} ignores the learning-rate multipliers"):
        FreezeSchedule(lr_decay=2).attach(network, optimizer, total_steps=4)


def test_lr_decay_divides_once_more_for_each_stage_below_the_head():
    network = conv_net()
    optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters())
    schedule = FreezeSchedule(lr_decay=2.6, strategy="gradual", verify=True)
    with schedule.attach(network, optimizer, total_steps=8):
        rates = rates_of(network)
    for index, stage in enumerate(["fc", "block3", "block2", "block1"]):
        own = {rate for name, rate in rates.items() if name.startswith(stage) and "_" not in name}
        assert own == {2.6**-index}
    assert set(rates_of(network).values()) == {1.0}


def test_discriminative_rates_without_a_schedule_of_openings():
    """Everything opens at once, in one stage: rates still follow the automatic stages."""
    network = conv_net()
    optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters())
    schedule = FreezeSchedule(unfreeze_at=ALL, lr_decay=2)
    with schedule.attach(network, optimizer, total_steps=8) as freezing:
        assert freezing.open_stages == ("head", "block3", "block2", "block1")
        assert freezing.learning_rates == pytest.approx(
            {"head": 0.1, "block3": 0.05, "block2": 0.025, "block1": 0.0125}
        )


def test_multipliers_by_stage_or_selector_take_the_place_of_the_decay():
    network = tiny_bert()
    optimizer = paddle.optimizer.SGD(1.0, parameters=network.parameters())
    schedule = FreezeSchedule(
        unfreeze_at=ALL, lr_decay=2, lr={"head": 10, "bert.encoder.layers.{0-1}": 0.1}
    )
    with schedule.attach(network, optimizer, total_steps=8):
        rates = rates_of(network)
    assert rates["classifier.weight"] == 10
    assert rates["bert.encoder.layers.2.linear1.weight"] == 0.5
    assert rates["bert.encoder.layers.1.linear1.weight"] == 0.1
    assert rates["bert.encoder.layers.0.linear1.weight"] == 0.1
    assert rates["bert.embeddings.word_embeddings.weight"] == 2**-4


def test_a_star_stands_for_the_stages_that_no_other_key_means():
    network = conv_net()
    optimizer = paddle.optimizer.SGD(1.0, parameters=network.parameters())
    with FreezeSchedule(lr={"*": 0.1, "fc": 1}).attach(network, optimizer, total_steps=8):
        rates = rates_of(network)
    assert {rates["fc.weight"], rates["fc.bias"]} == {1.0}
    assert {rate for name, rate in rates.items() if "block" in name and "._" not in name} == {0.1}


CARVED = {0: "fc", "1 step": "block3.1", "2 steps": "*"}


@pytest.mark.parametrize(
    ("moments", "lr", "expected"),
    [
        (CARVED, {"!fc": 0.1}, {"fc": 1, "block3.1": 0.1, "!fc": 0.1}),
        (
            {**CARVED, "2 steps": "block3"},
            {"block3": 0.5},
            {"fc": 1, "block3.1": 0.5, "block3": 0.5, "rest": 1},
        ),
        (
            {**CARVED, "2 steps": "block3"},
            {"block3": 0.5, "block3.1": 0.2},
            {"fc": 1, "block3.1": 0.2, "block3": 0.5, "rest": 1},
        ),
        (
            CARVED,
            {"!fc": 0.1, "block3": 0.2, "*": 3},
            {"fc": 3, "block3.1": 0.2, "block3": 0.2, "!fc": 0.1},
        ),
        (
            {0: ["head", "type:bias"]},
            {"head": 0.5},
            {"head": 0.5, "head (2)": 0.5, "type:bias": 1, "rest": 1},
        ),
    ],
    ids=["all but", "a layer", "a narrower key", "three keys", "a head in two"],
)
def test_a_rate_is_for_all_that_its_key_means_however_moments_cut_it(moments, lr, expected):
    table = FreezeSchedule(unfreeze_at=moments, lr=lr).preview(conv_net(), total_steps=4)
    assert {stage.name: stage.multiplier for stage in table.stages} == expected


def test_rates_may_be_said_of_parts_of_what_opens_together():
    network = conv_net()
    optimizer = paddle.optimizer.SGD(1.0, parameters=network.parameters())
    schedule = FreezeSchedule(unfreeze_at={0: "fc", 1: ["block3", "block2"]}, lr={"block2": 0.5})
    with schedule.attach(network, optimizer, epochs=2, steps_per_epoch=2):
        rates = rates_of(network)
        assert [s.name for s in schedule.run.stages] == ["fc", "block3", "block2", "rest"]
    assert rates["block2.0.weight"] == 0.5
    assert rates["block3.0.weight"] == rates["block1.0.weight"] == 1.0


def test_multipliers_of_the_user_are_multiplied_and_put_back():
    network = two_layers()
    own = {"learning_rate": 0.5, "note": "mine"}
    network.fc1.weight.optimize_attr = own
    optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters())
    schedule = FreezeSchedule(unfreeze_at=ALL, lr={"fc1": 0.1})
    with schedule.attach(network, optimizer, total_steps=4) as freezing:
        assert network.fc1.weight.optimize_attr == {"learning_rate": 0.05, "note": "mine"}
        assert rates_of(network)["fc1.bias"] == 0.1
        # 32 weights at 0.5 and 8 biases at 1, of the optimizer's 0.1
        expected = 0.1 * 0.1 * (32 * 0.5 + 8) / 40
        assert freezing.learning_rates["fc1"] == pytest.approx(expected)
    assert network.fc1.weight.optimize_attr is own
    assert rates_of(network) == {"fc1.weight": 0.5, "fc1.bias": 1, "fc2.weight": 1, "fc2.bias": 1}


def test_multipliers_are_put_back_when_training_fails_and_the_run_is_thrown_away():
    network = two_layers()
    optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters())
    FreezeSchedule(lr_decay=3).attach(network, optimizer, total_steps=4)
    gc.collect()
    assert set(rates_of(network).values()) == {1.0}
    first = FreezeSchedule(lr_decay=3)
    first.attach(network, optimizer, total_steps=4)
    second = FreezeSchedule(lr_decay=5)  # takes over, and finds what the user had set
    with second.attach(network, optimizer, total_steps=4):
        assert rates_of(network)["fc1.weight"] == 1 / 5
        first.run.restore()
        assert rates_of(network)["fc1.weight"] == 1 / 5
    assert set(rates_of(network).values()) == {1.0}


def test_schedulers_keep_working_on_top_and_rates_are_in_history_and_logs():
    network = conv_net()
    scheduler = paddle.optimizer.lr.StepDecay(0.1, step_size=6, gamma=0.5)
    optimizer = paddle.optimizer.Momentum(scheduler, parameters=network.parameters())
    schedule = FreezeSchedule(every=1, lr_decay=2)
    seen: list[dict] = []

    class See(paddle.callbacks.Callback):
        def on_train_batch_end(self, step, logs=None):
            seen.append({key: value for key, value in logs.items() if key.startswith("lr/")})

    model = model_for(network, optimizer)
    model.fit(Images(), batch_size=4, epochs=3, verbose=0, callbacks=[schedule, See()])
    assert [change.learning_rates for change in schedule.history] == [
        pytest.approx({"head": 0.1}),
        pytest.approx({"head": 0.05, "block3": 0.025}),
        pytest.approx({"head": 0.025, "block3": 0.0125, "block2": 0.00625}),
    ]
    assert seen[0] == pytest.approx({"lr/head": 0.1})
    assert list(seen[-1]) == ["lr/head", "lr/block3", "lr/block2"]
    assert "; lr head 0.05, block3 0.025" in str(schedule.history[1])


def test_rates_of_stages_that_froze_leave_the_logs_of_fit():
    schedule = FreezeSchedule(strategy=Cyclic(every=1), lr_decay=2)
    logs: list[list[str]] = []

    class See(paddle.callbacks.Callback):
        def on_train_batch_end(self, step, logs_=None):
            logs.append([key for key in logs_ if key.startswith("lr/")])

    network = conv_net()
    model_for(network).fit(
        Images(), batch_size=12, epochs=3, verbose=0, callbacks=[schedule, See()]
    )
    assert logs == [["lr/head"]] * 2 + [["lr/block3"]] * 2 + [["lr/block2"]] * 2


def test_a_trainer_logs_the_rate_of_each_open_stage(tmp_path):
    schedule = FreezeSchedule(every="2 steps", lr_decay=10)
    trainer = trainer_for(
        tiny_bert(), tmp_path, [schedule], num_train_epochs=1, lr_scheduler_type="constant"
    )
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert logs[-1]["lr/head"] == pytest.approx(1e-3)
    assert logs[-1]["lr/encoder.layers.1"] == pytest.approx(1e-5)
    assert "lr/embeddings" not in logs[-1]


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_stage_that_two_optimizers_train_shows_the_mean_of_their_rates(kind):
    """Over elements; and a preview counts the state that each of them keeps."""
    network = conv_net()
    of_head = [network.fc.weight]
    others = [one for one in network.parameters() if one is not network.fc.weight]
    optimizers = kind([
        paddle.optimizer.SGD(0.4, parameters=of_head),
        paddle.optimizer.Momentum(0.1, parameters=others),
    ])  # fmt: skip
    schedule = FreezeSchedule(lr_decay=2)
    page = schedule.preview(network, total_steps=4, optimizer=optimizers)
    assert page.stages[0].optimizer_bytes == 4 * network.fc.bias.size
    with schedule.attach(network, optimizers, total_steps=4) as freezing:
        weight, bias = network.fc.weight.size, network.fc.bias.size
        mean = (0.4 * weight + 0.1 * bias) / (weight + bias)
        assert freezing.learning_rates == {"head": pytest.approx(mean)}
        for _ in range(2):
            freezing.step()
        assert freezing.learning_rates["block3"] == pytest.approx(0.05)


def test_without_rates_per_stage_nothing_is_added_to_the_logs():
    network = conv_net()
    keys: set[str] = set()

    class See(paddle.callbacks.Callback):
        def on_train_batch_end(self, step, logs=None):
            keys.update(logs)

    model_for(network).fit(
        Images(), batch_size=12, verbose=0, callbacks=[FreezeSchedule(strategy=HeadOnly()), See()]
    )
    assert not any(key.startswith("lr/") for key in keys)


# ---------------------------------------------------------------- ramps


def test_a_newly_opened_stage_ramps_up_and_the_head_at_the_start_does_not():
    network = conv_net()
    optimizer = paddle.optimizer.SGD(1.0, parameters=network.parameters())
    schedule = FreezeSchedule(every="3 steps", warmup="4 steps", lr={"block3": 0.5})
    rates = []
    with schedule.attach(network, optimizer, total_steps=12) as freezing:
        for _ in range(9):
            rates.append(freezing.learning_rates)
            network(paddle.ones([1, 1, 6, 6])).sum().backward()
            optimizer.step()
            optimizer.clear_grad()
            freezing.step()
    assert [rate["head"] for rate in rates] == [1.0] * 9
    block3 = [rate.get("block3") for rate in rates]
    assert block3 == [None] * 3 + [0.125, 0.25, 0.375, 0.5, 0.5, 0.5]
    assert [rate.get("block2") for rate in rates] == [None] * 6 + [0.25, 0.5, 0.75]


def test_hold_ramps_the_open_stages_up_again_when_another_opens():
    ramps = LearningRates(warmup="4 steps", hold="2 steps").ramps
    run = Run.of(total_steps=99)
    opened = {"head": 0, "top": 10, "next": 20}
    assert ramps(20, run, opened) == {"head": 0.5, "top": 0.5, "next": 0.25}
    assert ramps(21, run, opened) == {"next": 0.5}
    assert ramps(23, run, opened) == {}
    assert ramps(11, run, {"head": 0, "top": 10}) == {"top": 0.5}


def test_hold_goes_on_when_what_opened_last_freezes_again():
    network = conv_net()
    optimizer = paddle.optimizer.SGD(1.0, parameters=network.parameters())
    plan = {0: "fc", "2 steps": "block3", "4 steps": {"freeze": "block3"}}
    schedule = FreezeSchedule(unfreeze_at=plan, hold="8 steps")

    def head_rates(step):
        rates = {}
        with schedule.attach(network, optimizer, total_steps=12, step=step) as freezing:
            for index in range(step, 12):
                rates[index] = freezing.learning_rates["fc"]
                freezing.step()
        return rates

    whole = head_rates(0)
    assert list(whole.values()) == [1, 1, *(n / 8 for n in range(1, 9)), 1, 1]
    for step in range(1, 12):
        assert head_rates(step) == {s: rate for s, rate in whole.items() if s >= step}


def test_decay_follows_depth_and_not_the_order_of_opening():
    network = conv_net()
    optimizer = paddle.optimizer.SGD(1.0, parameters=network.parameters())
    plan = {0: "block1", "50%": ["fc", "block3", "block2"]}
    with FreezeSchedule(unfreeze_at=plan, lr_decay=2).attach(network, optimizer, total_steps=8):
        rates = rates_of(network)
    found = [rates[name] for name in ("fc.weight", "block3.0.weight", "block2.0.weight",
                                      "block1.0.weight")]  # fmt: skip
    assert found == [1.0, 0.5, 0.25, 0.125]


def test_what_was_given_does_not_change_with_the_callers_own_objects():
    rates, plan = {"fc": 0.5}, {0: "*"}
    schedule = FreezeSchedule(unfreeze_at=plan, lr=rates)
    rates["fc"], plan["1 step"] = -5.0, {"freeze": "*"}
    assert repr(schedule) == "FreezeSchedule(unfreeze_at={0: '*'}, lr={'fc': 0.5})"
    network = conv_net()
    optimizer = paddle.optimizer.SGD(1.0, parameters=network.parameters())
    with schedule.attach(network, optimizer, total_steps=8) as freezing:
        assert freezing.learning_rates["fc"] == 0.5


def test_a_cosine_ramp_is_half_a_cosine():
    rates = LearningRates(warmup="4 steps", warmup_shape="cosine")
    found = [rates.ramps(10 + i, Run.of(total_steps=99), {"a": 10}).get("a", 1.0) for i in range(5)]
    expected = [(1 - math.cos(math.pi * n / 4)) / 2 for n in (1, 2, 3, 4)]
    assert found == pytest.approx([*expected, 1.0])


@given(
    st.integers(1, 30),
    st.integers(0, 30),
    st.sampled_from(["linear", "cosine"]),
    st.lists(st.integers(0, 60), min_size=1, max_size=5),
)
def test_ramps_rise_to_one_and_last_no_longer_than_said(warmup, hold, shape, opened):
    rates = LearningRates(
        warmup=f"{warmup} steps", hold=f"{hold} steps" if hold else None, warmup_shape=shape
    )
    run = Run.of(total_steps=200)
    openings = {str(index): step for index, step in enumerate(opened)}
    before: dict[str, float] = {}
    for step in range(max(opened), 100):
        now = rates.ramps(step, run, openings)
        assert all(0 < factor < 1 for factor in now.values())
        assert all(before[name] <= factor for name, factor in now.items() if name in before)
        assert set(now) <= set(before) or step == max(opened)
        before = now
    assert not rates.ramps(max(opened) + rates.window(run), run, openings)


def test_a_ramp_in_epochs_or_share_is_counted_in_steps():
    run = Run.of(epochs=4, steps_per_epoch=10)
    assert LearningRates(warmup=1).window(run) == 10
    assert LearningRates(warmup="2 epochs", hold="50%").window(run) == 20
    with pytest.raises(ValueError, match='warmup: "1 epoch" cannot be counted'):
        LearningRates(warmup=1).check(Run.of(epochs=3))


@pytest.mark.parametrize("start", range(1, 12))
def test_a_run_continued_at_any_step_has_the_same_rates(start):
    """Ramps are derived from the schedule, not carried along."""

    options = {
        "strategy": Cyclic(k=2, every="3 steps"),
        "warmup": "5 steps", "hold": "2 steps", "lr_decay": 2,
    }  # fmt: skip
    whole = rates_from(0, options, total_steps=12)
    continued = {step: rates for step, rates in whole.items() if step >= start}
    assert rates_from(start, options, total_steps=12) == continued


# ---------------------------------------------------------------- slanted triangle


@given(
    st.integers(20, 500),
    st.sampled_from([0.1, 0.2, 0.5, 0.05]),
    st.floats(1, 100),
    st.floats(1e-6, 1),
)
def test_slanted_triangle_is_equation_3_of_ulmfit(total, cut_frac, ratio, peak):
    scheduler = SlantedTriangular(peak, total, cut_frac=cut_frac, ratio=ratio)
    cut = math.floor(total * cut_frac)
    for t in range(total):
        p = t / cut if t < cut else 1 - (t - cut) / (cut * (1 / cut_frac - 1))
        expected = peak * (1 + max(p, 0) * (ratio - 1)) / ratio
        assert scheduler.get_lr() == pytest.approx(expected, rel=1e-9)
        scheduler.step()


def test_the_cut_is_not_moved_by_the_last_bit_of_a_float():
    assert SlantedTriangular(1, 100, cut_frac=0.29).cut == 29


def test_slanted_triangle_is_saved_and_continued_like_any_scheduler():
    whole = SlantedTriangular(0.01, 50)
    for _ in range(20):
        whole.step()
    other = SlantedTriangular(0.01, 50)
    other.set_state_dict(whole.state_dict())
    assert other() == whole()
    other.step()
    whole.step()
    assert other() == whole()


def test_slanted_triangle_drives_a_real_run_with_ulmfits_other_two_parts():
    network = conv_net()
    scheduler = SlantedTriangular(0.1, total_steps=24)
    optimizer = paddle.optimizer.Adam(scheduler, parameters=network.parameters())
    schedule = FreezeSchedule.ulmfit(verify=True)
    before = values(network)
    model_for(network, optimizer).fit(
        Images(), batch_size=4, epochs=4, verbose=0, callbacks=[schedule]
    )
    assert [change.step for change in schedule.history] == [0, 6, 12, 18]
    head = [change.learning_rates["head"] for change in schedule.history]
    # steps 0, 6, 12 and 18 with the cut at 2: on the rise's foot, then on the way down
    assert head == pytest.approx([0.1 / 32, 0.0788, 0.0466, 0.0139], rel=0.01)
    assert all(rate == pytest.approx(head[3] / 2.6**i) for i, rate in enumerate(
        schedule.history[3].learning_rates.values()))  # fmt: skip
    assert moved(before, values(network))


def test_a_schedule_with_rates_leaves_flags_and_rates_as_found():
    network = conv_net()
    before = open_names(network)
    fit(network, FreezeSchedule(lr_decay=2, warmup="2 steps", hold="1 step"))
    assert open_names(network) == before
    assert set(rates_of(network).values()) == {1.0}
