"""A learning rate per phase: its shape, its peak, and fastai's fine_tune, value by value."""

from __future__ import annotations

import math
import re

import numpy as np
import paddle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from networks import Images, Stream, conv_net, fit, model_for, moved, rates_from, rates_of, values
from timelines import NAMES, line
from trainers import TrainerCallback, logger, tiny_bert, trainer_for

from paddle_freeze_callback import (
    Cyclic,
    Explicit,
    FreezeArguments,
    FreezeDown,
    FreezeSchedule,
    Gradual,
    HeadOnly,
    HeadThenAll,
    OnPlateau,
    RandomStages,
)
from paddle_freeze_callback.strategies.phases import curve_of
from paddle_freeze_callback.strategies.run import Run

# ---------------------------------------------------------------- shapes


def table(timeline, steps=range(12)):
    """The multiplier of all stages after each number of steps."""
    return [timeline.pace(step).at(step) for step in steps]


@pytest.mark.parametrize(
    ("shape", "rates"),
    [
        ("constant", [1, 1, 1, 1]),
        ("linear", [1, 0.75, 0.5, 0.25]),
        ("cosine", [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]),
        ("one_cycle:0.5:4:10", [0.25, 0.625, 1, 0.55]),
        ("one_cycle", [0.04, 1, 0.75 + 0.25e-5, 0.25 + 0.75e-5]),
        (lambda share: 1 + share, [1, 1.25, 1.5, 1.75]),
        (["linear", "constant"], [1, 0.75, 0.5, 0.25]),
    ],
    ids=["constant", "linear", "cosine", "numbers", "one_cycle", "function", "several"],
)
def test_the_shape_of_a_phase_of_four_steps(shape, rates):
    timeline = line(HeadThenAll(1), phase_lr=shape)
    assert table(timeline, range(4)) == pytest.approx(rates)


def test_each_phase_begins_its_shape_anew_at_its_own_peak():
    """Phases of four steps each, then one of two, and an end that is the run's."""
    rule = Explicit({0: "head", "4 steps": "top", "8 steps": "low", "10 steps": {"freeze": "head"}})
    assert table(line(rule, phase_lr="linear", phase_decay=0.5)) == [
        1, 0.75, 0.5, 0.25,
        0.5, 0.375, 0.25, 0.125,
        0.25, 0.125,
        0.125, 0.0625,
    ]  # fmt: skip


def test_a_peak_of_one_phase_is_where_the_next_goes_on_from():
    rule = Explicit(
        {0: {"unfreeze": "head", "lr": 4}, "3 steps": "top", "6 steps": {"lr": 0.5}, "9 steps": "*"}
    )
    assert table(line(rule, phase_decay=0.5)) == [4, 4, 4, 2, 2, 2, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25]
    halves = {6: 1, 7: 2 / 3, 8: 1 / 3}
    shaped = table(line(rule, phase_decay=0.5, phase_lr="linear"))
    assert [shaped[step] for step in halves] == pytest.approx([0.5 * r for r in halves.values()])


def test_several_shapes_are_one_for_each_phase_and_the_last_for_the_rest():
    timeline = line(Gradual("4 steps"), phase_lr=["constant", "linear"])
    assert table(timeline) == [1] * 4 + [1, 0.75, 0.5, 0.25] * 2


def test_an_entry_that_changes_nothing_begins_no_phase():
    rule = Explicit({0: "head", "4 steps": "head", "6 steps": "*"})
    assert table(line(rule, phase_decay=0.5)) == [1] * 6 + [0.5] * 6


def test_a_plateau_with_a_longest_wait_shapes_its_phases_over_it_and_opens_earlier():
    """By its metric at step 2; then at the latest after six steps; then to the end of the run."""
    notes = [(step, {"metric": "acc", "value": value}) for step, value in ((1, 0.5), (2, 0.5))]
    rule = OnPlateau("acc", patience=1, max_wait="6 steps")
    found = table(line(rule, notes=notes, phase_lr="linear"))
    ends = [(0, 6, 2), (2, 8, 8), (8, 12, 12)]
    assert found == [1 - (s - a) / (b - a) for a, b, until in ends for s in range(a, until)]


def test_peaks_alone_need_no_end():
    notes = [(step, {"metric": "acc", "value": value}) for step, value in ((1, 0.5), (5, 0.5))]
    rule = OnPlateau("acc", patience=1)
    assert table(line(rule, Run.of(epochs=3), notes, phase_decay=0.1)) == [1] * 5 + [0.1] * 7
    assert line(rule, notes=notes, phase_decay=0.1).pace(7).until is None


# ---------------------------------------------------------------- as a function of time

RULES = st.one_of(
    st.integers(1, 9).map(lambda n: Gradual(f"{n} steps")),
    st.integers(1, 9).map(lambda n: FreezeDown(f"{n} steps")),
    st.integers(1, 5).map(lambda n: Cyclic(every=f"{n} steps")),
    st.integers(1, 5).map(lambda n: RandomStages(k=1, every=f"{n} steps", always=["head"])),
    st.integers(2, 9).map(lambda n: OnPlateau("acc", patience=1, max_wait=f"{n} steps")),
    st.builds(
        lambda steps, peaks: Explicit(
            {
                f"{step} steps": {"unfreeze": "*" if step else "head"} if peak is None else
                {**({} if step else {"unfreeze": "head"}), "lr": peak}
                for step, peak in zip([0, *sorted(steps)], peaks)
            }
        ),
        st.sets(st.integers(1, 30), min_size=1, max_size=4),
        st.lists(st.none() | st.sampled_from([0.1, 0.5, 2.0]), min_size=5, max_size=5),
    ),
)  # fmt: skip
SHAPES = st.sampled_from(
    ["constant", "linear", "cosine", "one_cycle", "one_cycle:0.3:5", ["linear", "constant"], abs]
)
NOTES = st.lists(st.integers(0, 2), max_size=30).map(
    lambda found: [(3 * i, {"metric": "acc", "value": v}) for i, v in enumerate(found)]
)


@given(RULES, SHAPES, st.sampled_from([0.25, 1.0, 2.0]), st.integers(1, 40), NOTES)
def test_phases_are_a_partition_of_the_run_and_follow_from_the_step_alone(
    rule, shape, decay, total, notes
):
    notes = notes if isinstance(rule, OnPlateau) else []
    run = Run.of(total_steps=total)
    timeline = line(rule, run, notes, phase_lr=shape, phase_decay=decay)
    own = {int(when.split()[0]) for when in rule.peaks()}
    begins = {step for step, _ in timeline.walk(0, total)} | {at for at in own if at < total}
    followed = None
    for step in range(total):
        pace = timeline.pace(step)
        followed = timeline.pace(step, followed)
        assert pace == followed  # a run that goes on, and one that resumes here
        assert pace.began == max(begin for begin in begins if begin <= step)
        assert pace.index == len([begin for begin in begins if begin < pace.began])
        later = [begin for begin in begins if begin > step]
        end = min(later, default=total)
        assert pace.until is None or pace.until >= end
        if pace.moves:
            assert pace.until == end or (isinstance(rule, OnPlateau) and pace.until <= total)
        assert pace.at(step) >= 0
        assert pace.at(step) <= pace.peak
        if step == pace.began and pace.shape in ("constant", "linear", "cosine"):
            assert pace.at(step) == pace.peak


@given(st.floats(0.01, 0.99), st.floats(1, 1e3), st.floats(1, 1e6), st.floats(0, 1))
def test_one_cycle_is_one_at_its_peak_and_lower_elsewhere(rise, div, div_final, share):
    curve = curve_of(f"one_cycle:{rise}:{div}:{div_final}")
    assert curve(rise) == 1
    assert curve(0.0) == pytest.approx(1 / div)
    assert curve(1.0) == pytest.approx(1 / div_final)
    assert 0 < curve(share) <= 1 + 1e-12


# ---------------------------------------------------------------- fastai's fine_tune


def as_fastai(frozen, unfrozen, stages, lr=1.0, mult=100, pct_start=0.3, div=5.0):
    """The rate of each stage in each step: its two cycles, from their definitions.

    The first ends at a hundred-thousandth and rises in 99 % of its steps from a 25th; the second
    has half the rate, and its stages lie between that and a hundredth of it, at equal ratios.
    """

    def cycle(share, rise, low, end):
        a, b, x = (low, 1, share / rise) if share < rise else (1, end, (share - rise) / (1 - rise))
        return b + (a - b) * (1 + math.cos(math.pi * x)) / 2

    for step in range(frozen):
        yield {stages[0]: lr * cycle(step / frozen, 0.99, 1 / 25, 1e-5)}
    ratios = np.geomspace(1, 1 / mult, len(stages))
    for step in range(unfrozen):
        rate = lr / 2 * cycle(step / unfrozen, pct_start, 1 / div, 1e-5)
        yield dict(zip(stages, rate * ratios))


STAGES = ("head", "block3", "block2", "block1")
WITHOUT_HEADS_CYCLE = FreezeSchedule(
    unfreeze_at={0: {"unfreeze": "*", "lr": 0.5}}, lr_decay="100 in all", phase_lr="one_cycle:0.3:5"
)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (FreezeSchedule.fine_tune(), as_fastai(7, 14, STAGES)),
        (FreezeSchedule(strategy="fine_tune"), as_fastai(7, 14, STAGES)),
        (FreezeSchedule.fine_tune(freeze_epochs=2), as_fastai(14, 7, STAGES)),
        (
            FreezeSchedule.fine_tune(freeze_epochs="3 steps", lr_mult=8, pct_start=0.5, div=2.5),
            as_fastai(3, 18, STAGES, 1.0, 8, 0.5, 2.5),
        ),
        (WITHOUT_HEADS_CYCLE, as_fastai(0, 21, STAGES)),
    ],
    ids=["as it is", "by name", "two epochs", "all else", "without the head's cycle"],
)
def test_fine_tune_has_the_rates_of_fastai_in_every_step(schedule, expected):
    network = conv_net()
    optimizer = paddle.optimizer.SGD(1.0, parameters=network.parameters())
    with schedule.attach(network, optimizer, epochs=3, steps_per_epoch=7) as freezing:
        for rates in expected:
            assert freezing.learning_rates == pytest.approx(rates, rel=1e-9)
            freezing.step()


@pytest.mark.parametrize("nothing", [0, "0 steps", "0%"])
def test_fine_tune_without_the_cycle_of_the_head_is_refused_with_what_does_it(nothing):
    with pytest.raises(ValueError, match="leaves it no time") as refused:
        FreezeSchedule.fine_tune(freeze_epochs=nothing)
    flags = FreezeArguments(freeze_strategy="fine_tune", freeze_at=str(nothing))
    with pytest.raises(ValueError, match=f"--freeze_strategy: .* '{nothing}' leaves it no time"):
        FreezeSchedule.from_args(flags)
    code = re.search(r"write (.*)$", str(refused.value))[1]
    assert repr(eval(code)) == repr(WITHOUT_HEADS_CYCLE)


# ---------------------------------------------------------------- in each loop

PLAN = {0: "fc", 1: {"unfreeze": "*", "lr": 0.5}, 2: {"lr": 0.25}}
BY_EPOCH = {"unfreeze_at": PLAN, "phase_lr": ["constant", "linear"]}
# Epochs of three steps.
RATES = [1, 1, 1, 0.5, 1 / 3, 1 / 6, 0.25, 1 / 6, 1 / 12]


def test_the_weights_move_by_the_rate_of_the_phase():
    """SGD is linear in it."""

    def move(peak):
        network = conv_net()
        before = values(network)
        optimizer = paddle.optimizer.SGD(1e-3, parameters=network.parameters())
        plan = {0: {"unfreeze": "*", "lr": peak}}
        with FreezeSchedule(unfreeze_at=plan).attach(network, optimizer, total_steps=9):
            network(paddle.ones([2, 1, 6, 6])).square().sum().backward()
            optimizer.step()
        return {w: network.state_dict()[w].numpy() - before[w] for w in ("fc.bias", "fc.weight")}

    whole, half = move(1.0), move(0.5)
    for name in whole:
        np.testing.assert_allclose(half[name], 0.5 * whole[name], atol=1e-7)
        assert np.abs(whole[name]).max() > 0


def test_in_fit_the_rates_of_phases_multiply_a_scheduler_s():
    seen, found = [], []

    class See(paddle.callbacks.Callback):
        def on_train_batch_begin(self, step, logs=None):
            found.append(rates_of(self.model.network)["fc.weight"])

        def on_train_batch_end(self, step, logs=None):
            seen.append(logs["lr/fc"])

    network, schedule = conv_net(), FreezeSchedule(**BY_EPOCH, verify=True)
    scheduler = paddle.optimizer.lr.StepDecay(0.1, step_size=5, gamma=0.1)
    optimizer = paddle.optimizer.Momentum(scheduler, parameters=network.parameters())
    model_for(network, optimizer).fit(
        Images(12), batch_size=4, epochs=3, verbose=0, callbacks=[schedule, See()]
    )
    assert found == pytest.approx(RATES)
    decayed = [0.1] * 5 + [0.01] * 4
    assert seen == pytest.approx([rate * own for rate, own in zip(decayed, RATES)])
    assert set(rates_of(network).values()) == {1.0}
    assert [change.step for change in schedule.history] == [0, 3]


@pytest.mark.parametrize("scheduler", ["constant", "linear"])
def test_in_a_trainer_flags_say_the_same_and_its_own_schedule_is_told_of(
    tmp_path, monkeypatch, scheduler
):
    found, lines = [], []
    monkeypatch.setattr(logger, "info", lambda line, *rest: lines.append(str(line)))

    class See(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            found.append(rates_of(model)["classifier.weight"])

    trainer_for(
        tiny_bert(), tmp_path, [FreezeSchedule(), See()], num_train_epochs=3,
        per_device_train_batch_size=8, freeze_phase_lr=["constant", "linear"],
        lr_scheduler_type=scheduler,
        freeze_unfreeze_at=['{0: classifier, 1: {unfreeze: "*", lr: 5e-1}, 2: {lr: 0.25}}'],
    ).train()  # fmt: skip
    assert found == pytest.approx(RATES)
    told = [line for line in lines if "phase_lr multiplies what lr_scheduler_type='linear'" in line]
    assert len(told) == (scheduler == "linear")


def test_a_followed_loop_has_them_too():
    network = conv_net()
    optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters())
    found = []
    with FreezeSchedule(**BY_EPOCH).follow(network, optimizer, epochs=3, steps_per_epoch=3):
        for index in range(9):
            loss = network(paddle.to_tensor(Images()[index][0][None])).sum()
            found.append(rates_of(network)["fc.weight"])
            loss.backward()
            optimizer.step()
            optimizer.clear_grad()
    assert found == pytest.approx(RATES)


def test_they_multiply_with_rates_of_stages_and_with_ramps():
    network = conv_net()
    optimizer = paddle.optimizer.SGD(1.0, parameters=network.parameters())
    schedule = FreezeSchedule(
        unfreeze_at={0: "fc", "2 steps": "block3"}, lr={"block3": 0.5}, warmup="2 steps",
        phase_lr="linear", phase_decay=0.1,
    )  # fmt: skip
    found = []
    with schedule.attach(network, optimizer, total_steps=6) as freezing:
        for _ in range(6):
            found.append(freezing.learning_rates)
            freezing.step()
    shape = [0.1, 0.075, 0.05, 0.025]
    ramp = [0.5, 1, 1, 1]
    assert [rates["fc"] for rates in found] == pytest.approx([1, 0.5, *shape])
    block3 = [0.5 * up * down for up, down in zip(ramp, shape)]
    assert [rates.get("block3") for rates in found[2:]] == pytest.approx(block3)


def test_data_without_length_has_peaks_by_epoch():
    schedule = FreezeSchedule(unfreeze_at=PLAN, phase_decay=0.5)
    found = []

    class See(paddle.callbacks.Callback):
        def on_train_batch_begin(self, step, logs=None):
            found.append(rates_of(self.model.network)["fc.weight"])

    loader = paddle.io.DataLoader(Stream(12), batch_size=4)
    model_for(conv_net()).fit(loader, epochs=3, verbose=0, callbacks=[schedule, See()])
    assert found == [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25]


def test_a_metric_brings_the_next_peak():
    network = conv_net()
    optimizer = paddle.optimizer.SGD(1.0, parameters=network.parameters())
    schedule = FreezeSchedule(strategy=OnPlateau("acc", patience=1), phase_decay=0.5)
    with schedule.attach(network, optimizer, total_steps=9) as freezing:
        found = []
        for step in range(9):
            freezing.step()
            freezing.evaluated({"acc": min(step, 2)})
            found.append(freezing.learning_rates["head"])
    assert found == [1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125]


def test_of_two_rates_at_one_step_the_later_entry_holds_and_the_other_is_named():
    network = conv_net()
    optimizer = paddle.optimizer.SGD(1.0, parameters=network.parameters())
    entries = {0: "fc", "3 steps": {"lr": 2}, "50%": {"unfreeze": "*", "lr": 3}}
    text = r"unfreeze_at\['3 steps'\]\['lr'\] has no effect: step 3 is that of unfreeze_at\['50%'\]"
    with pytest.warns(UserWarning, match=text):
        freezing = FreezeSchedule(unfreeze_at=entries).attach(network, optimizer, total_steps=6)
    with freezing:
        for _ in range(3):
            freezing.step()
        assert freezing.learning_rates["fc"] == 3


def test_a_loop_that_goes_on_after_its_end_keeps_the_last_rate():
    network = conv_net()
    optimizer = paddle.optimizer.SGD(1.0, parameters=network.parameters())
    schedule = FreezeSchedule(strategy=HeadOnly(), phase_lr="linear")
    with schedule.attach(network, optimizer, total_steps=4) as freezing:
        for _ in range(7):
            freezing.step()
            rate = freezing.learning_rates["head"]
    assert rate == 0.25


# ---------------------------------------------------------------- resume


@pytest.mark.parametrize("start", range(1, 12))
@pytest.mark.parametrize(
    "options",
    [
        {"strategy": Cyclic(k=2, every="3 steps"), "phase_lr": "one_cycle", "phase_decay": 0.5},
        {"unfreeze_at": {0: "fc", "3 steps": {"lr": 0.5}, "7 steps": "*"}, "phase_lr": "cosine"},
        {"strategy": "fine_tune", "hold": "2 steps"},
    ],
    ids=["cyclic", "explicit", "fine_tune"],
)
def test_a_run_continued_at_any_step_has_the_same_rates(options, start):
    length = {"epochs": 3, "steps_per_epoch": 4}
    whole = rates_from(0, options, **length)
    continued = {step: rates for step, rates in whole.items() if step >= start}
    assert rates_from(start, options, **length) == continued


def test_fit_that_stopped_is_continued_bitwise():
    """In one process, so both optimizers name their state from the beginning."""

    class Stop(paddle.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = epoch == 1

    def trained(stops):
        with paddle.utils.unique_name.guard():
            network = conv_net()
            optimizer = paddle.optimizer.Momentum(0.1, parameters=network.parameters())
            options = {"batch_size": 4, "shuffle": False, "verbose": 0}
            callbacks = [FreezeSchedule.fine_tune(), *([Stop()] if stops else [])]
            model = model_for(network, optimizer)
            model.fit(Images(), epochs=3, callbacks=callbacks, **options)
            if stops:
                model.stop_training = False
                again = FreezeSchedule.fine_tune(resume_at=2)
                model.fit(Images(), epochs=1, callbacks=[again], **options)
        return values(network)

    assert moved(trained(stops=False), trained(stops=True)) == set()


# ---------------------------------------------------------------- seen, and written down


def test_what_happened_is_written_with_its_rates():
    rule = Explicit({0: "head", "4 steps": {"unfreeze": "top", "lr": 0.5}, "6 steps": {"lr": 2}})
    names = {name: [name] for name in NAMES}
    assert line(rule).as_explicit(9, names) == Explicit(
        {
            0: {"unfreeze": ["head"]},
            "4 steps": {"unfreeze": ["top"], "lr": 0.5},
            "6 steps": {"lr": 2},
        }
    )
    assert line(rule).as_explicit(5, names).peaks() == {"4 steps": 0.5}


def test_a_preview_shows_the_rate_of_each_phase_and_what_the_run_then_has():
    network = conv_net()
    schedule = FreezeSchedule.fine_tune(freeze_epochs="4 steps")
    table = schedule.preview(network, total_steps=12)
    assert [(phase.rate, phase.shape) for phase in table.phases] == [
        (1.0, "one_cycle:0.99"),
        (0.5, "one_cycle:0.3:5"),
    ]
    for cell in ("over the phase", "x 0.5", "one_cycle:0.3:5"):
        assert cell in str(table)
    optimizer = paddle.optimizer.SGD(1.0, parameters=network.parameters())
    with schedule.attach(network, optimizer, total_steps=12) as freezing:
        happened = []
        for step in range(12):
            happened.append((step, pytest.approx(freezing.learning_rates["head"])))
            freezing.step()
    assert list(table.rates) == happened
    plain = FreezeSchedule().preview(network, total_steps=12)
    assert "over the phase" not in str(plain)
    assert plain.rates == ()


def panels(figure):
    return {axis.get_title(loc="left"): axis for axis in figure.axes}


RATE_PANEL = "learning rate, x the optimizer's"


def test_the_pictures_of_a_plan_and_of_its_run_show_the_same_rates():
    network = conv_net()
    plan = {0: "fc", "4 steps": {"unfreeze": "*", "lr": 0.5}, "8 steps": {"lr": 0.25}}
    schedule = FreezeSchedule(unfreeze_at=plan, phase_lr="linear")
    planned = panels(schedule.plot(None, network, total_steps=12))[RATE_PANEL]
    optimizer = paddle.optimizer.SGD(1.0, parameters=network.parameters())
    with schedule.attach(network, optimizer, total_steps=12) as freezing:
        for _ in range(12):
            freezing.step()
    ran = panels(freezing.plot())[RATE_PANEL]
    (expected,), (found,) = planned.lines, ran.lines
    linear = [1, 0.75, 0.5, 0.25]
    rates = [peak * rate for peak in (1, 0.5, 0.25) for rate in linear]
    assert list(expected.get_ydata()) == list(found.get_ydata()) == rates
    assert list(expected.get_xdata()) == list(range(12))


def test_a_long_phase_is_drawn_with_few_points_and_none_without_rates():
    network = conv_net()
    table = FreezeSchedule(strategy=HeadOnly(), phase_lr="cosine").preview(
        network, total_steps=100_000
    )
    assert 200 <= len(table.rates) <= 202
    assert table.rates[-1][0] == 99_999
    figure = FreezeSchedule(lr_decay=2).plot(None, network, total_steps=12)
    assert RATE_PANEL not in panels(figure)


# ---------------------------------------------------------------- doubts


@pytest.mark.parametrize(
    ("options", "doubt"),
    [
        ({"phase_decay": 0.01, "every": "2 steps"},
         "from step 4 on, in phase 3, learning rates are multiplied by 0.0001 at most; give a la"),
        ({"phase_decay": 0.5, "strategy": HeadOnly()}, "phase_decay has no effect: this run has "),
        ({"phase_lr": ["linear", "cosine", "constant"], "strategy": HeadThenAll("50%")},
         "phase_lr gives 3 shapes, and this run has 2 phases: the last has no effect"),
        ({"phase_lr": ["linear", "cosine", "constant"], "strategy": HeadOnly()},
         "phase_lr gives 3 shapes, and this run has 1 phase: the last 2 have no effect"),
        ({"unfreeze_at": {0: "*", "20 steps": {"lr": 0.1}}},
         "unfreeze_at['20 steps']['lr'] has no effect: step 20 is after the end of the run"),
    ],
    ids=["hardly moves", "one phase", "a shape too many", "two shapes too many", "after the end"],
)  # fmt: skip
def test_a_rate_that_is_hardly_meant_is_warned_of(options, doubt):
    network = conv_net()
    assert any(
        note.startswith(doubt)
        for note in FreezeSchedule(**options).preview(network, total_steps=12).notes
    )
    with pytest.warns(UserWarning, match=re.escape(doubt)):
        fit(network, FreezeSchedule(**options), batch_size=8, epochs=4)
