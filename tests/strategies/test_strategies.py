"""Which stages are open when: golden tables and properties."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddle_freeze_callback import (
    ByGradient,
    ChainThaw,
    Cyclic,
    Explicit,
    FreezeDown,
    Gradual,
    HeadOnly,
    HeadThenAll,
    OnPlateau,
    RandomStages,
    Strategy,
)
from paddle_freeze_callback.strategies.by_name import STRATEGIES, arguments_of
from paddle_freeze_callback.strategies.deciding import Custom
from paddle_freeze_callback.strategies.run import Progress, Run

STAGES = ("head", "layer4", "layer3", "layer2", "layer1", "stem")


def table(strategy: Strategy, run: Run, stages=STAGES) -> dict[int, str]:
    """Per step at which something changes, how many letters of the stages are open."""
    return {
        step: " ".join(name for name in stages if name in names)
        for step, names in strategy.timetable(run, stages)
    }


GOLDEN = [
    (
        Gradual(),
        Run.of(epochs=6, steps_per_epoch=10),
        {
            0: "head",
            10: "head layer4",
            20: "head layer4 layer3",
            30: "head layer4 layer3 layer2",
            40: "head layer4 layer3 layer2 layer1",
            50: "head layer4 layer3 layer2 layer1 stem",
        },
    ),
    (
        Gradual(),  # more stages than epochs: several in an epoch, the last as the last begins
        Run.of(epochs=3, steps_per_epoch=10),
        {
            0: "head",
            10: "head layer4",
            13: "head layer4 layer3",
            15: "head layer4 layer3 layer2",
            18: "head layer4 layer3 layer2 layer1",
            20: "head layer4 layer3 layer2 layer1 stem",
        },
    ),
    (
        Gradual(),  # two epochs have no room for "until the last begins": equal parts
        Run.of(epochs=2, steps_per_epoch=9),
        {
            0: "head",
            3: "head layer4",
            6: "head layer4 layer3",
            9: "head layer4 layer3 layer2",
            12: "head layer4 layer3 layer2 layer1",
            15: "head layer4 layer3 layer2 layer1 stem",
        },
    ),
    (
        Gradual(),  # a single epoch is cut into equal parts
        Run.of(epochs=1, steps_per_epoch=12),
        {
            0: "head",
            2: "head layer4",
            4: "head layer4 layer3",
            6: "head layer4 layer3 layer2",
            8: "head layer4 layer3 layer2 layer1",
            10: "head layer4 layer3 layer2 layer1 stem",
        },
    ),
    (
        Gradual(every=1),  # ULMFiT
        Run.of(epochs=3, steps_per_epoch=10),
        {
            0: "head",
            10: "head layer4",
            20: "head layer4 layer3",  # the others would open after the end
        },
    ),
    (
        Gradual(every="200 steps", start="500 steps"),
        Run.of(total_steps=5000),
        {
            0: "head",
            500: "head layer4",
            700: "head layer4 layer3",
            900: "head layer4 layer3 layer2",
            1100: "head layer4 layer3 layer2 layer1",
            1300: "head layer4 layer3 layer2 layer1 stem",
        },
    ),
    (
        Gradual(every=1, start="5 steps"),  # mixed units
        Run.of(epochs=9, steps_per_epoch=10),
        {
            0: "head",
            5: "head layer4",
            15: "head layer4 layer3",
            25: "head layer4 layer3 layer2",
            35: "head layer4 layer3 layer2 layer1",
            45: "head layer4 layer3 layer2 layer1 stem",
        },
    ),
    (
        Gradual(start="50%"),
        Run.of(epochs=4, steps_per_epoch=10),
        {
            0: "head",
            20: "head layer4",
            23: "head layer4 layer3",
            25: "head layer4 layer3 layer2",
            28: "head layer4 layer3 layer2 layer1",
            30: "head layer4 layer3 layer2 layer1 stem",
        },
    ),
    (HeadOnly(), Run.of(epochs=3, steps_per_epoch=10), {0: "head"}),
    (
        HeadThenAll(at="30%"),
        Run.of(epochs=3, steps_per_epoch=10),
        {0: "head", 9: "head layer4 layer3 layer2 layer1 stem"},
    ),
    (
        Explicit({0: "head", 1: ["layer4", "layer3"], "50%": "*"}),
        Run.of(epochs=4, steps_per_epoch=10),
        {
            0: "head",
            10: "head layer4 layer3",
            20: "head layer4 layer3 layer2 layer1 stem",
        },
    ),
    (
        Explicit(
            {0: "*", 1: {"freeze": ["stem", "layer1"]}, 2: {"freeze": "*", "unfreeze": "head"}}
        ),
        Run.of(epochs=4, steps_per_epoch=10),
        {
            0: "head layer4 layer3 layer2 layer1 stem",
            10: "head layer4 layer3 layer2",
            20: "head",
        },
    ),
    (
        Gradual(every=1, direction="bottom_up"),
        Run.of(epochs=6, steps_per_epoch=10),
        {
            0: "stem",
            10: "layer1 stem",
            20: "layer2 layer1 stem",
            30: "layer3 layer2 layer1 stem",
            40: "layer4 layer3 layer2 layer1 stem",
            50: "head layer4 layer3 layer2 layer1 stem",
        },
    ),
    (
        ChainThaw(),  # equal parts
        Run.of(epochs=2, steps_per_epoch=14),
        {
            0: "head",
            4: "stem",
            8: "layer1",
            12: "layer2",
            16: "layer3",
            20: "layer4",
            24: "head layer4 layer3 layer2 layer1 stem",
        },
    ),
    (
        ChainThaw(every="3 steps"),
        Run.of(total_steps=100),
        {
            0: "head",
            3: "stem",
            6: "layer1",
            9: "layer2",
            12: "layer3",
            15: "layer4",
            18: "head layer4 layer3 layer2 layer1 stem",
        },
    ),
    (
        FreezeDown(until="50%"),  # linear: at i / 5 of the first half
        Run.of(total_steps=100),
        {
            0: "head layer4 layer3 layer2 layer1 stem",
            10: "head layer4 layer3 layer2 layer1",
            20: "head layer4 layer3 layer2",
            30: "head layer4 layer3",
            40: "head layer4",
            50: "head",
        },
    ),
    (
        FreezeDown(power=3),  # cubic, to the end: at (i / 5) ** 3 of the run
        Run.of(total_steps=1000),
        {
            0: "head layer4 layer3 layer2 layer1 stem",
            8: "head layer4 layer3 layer2 layer1",
            64: "head layer4 layer3 layer2",
            216: "head layer4 layer3",
            512: "head layer4",  # and at the end, step 1000, layer4
        },
    ),
    (
        RandomStages(k=2, every="5 steps"),  # drawn once, and for ever the same
        Run.of(total_steps=20),
        {
            0: "head layer3 layer1 stem",  # and again at 5
            10: "head layer4 layer2 stem",
            15: "head layer3 layer2 stem",
        },
    ),
    (
        RandomStages(k=1, every=1, always=["layer2"], seed=7),
        Run.of(epochs=3, steps_per_epoch=4),
        {0: "layer2 layer1", 4: "layer4 layer2"},
    ),
    (
        Cyclic(every="10 steps"),
        Run.of(total_steps=70),
        {
            0: "head",
            10: "layer4",
            20: "layer3",
            30: "layer2",
            40: "layer1",
            50: "stem",
            60: "head",
        },
    ),
    (
        Cyclic(k=4, every=1, order="ascending"),  # round and round, always four
        Run.of(epochs=3, steps_per_epoch=5),
        {
            0: "layer3 layer2 layer1 stem",
            5: "head layer4 layer1 stem",
            10: "head layer4 layer3 layer2",
        },
    ),
    (
        OnPlateau("eval_accuracy", max_wait="10 steps"),  # before anything was evaluated
        Run.of(total_steps=35),
        {
            0: "head",
            10: "head layer4",
            20: "head layer4 layer3",
            30: "head layer4 layer3 layer2",
        },
    ),
    (
        ByGradient(),  # before anything was measured
        Run.of(total_steps=50),
        {0: "head layer4 layer3 layer2 layer1 stem"},
    ),
]


@pytest.mark.parametrize(("strategy", "run", "golden"), GOLDEN, ids=lambda value: repr(value)[:60])
def test_golden_table(strategy, run, golden):
    assert table(strategy, run) == golden


def test_every_strategy_has_a_golden_table():
    assert {type(strategy) for strategy, _, _ in GOLDEN} == set(STRATEGIES.values())


def test_data_without_length_opens_stages_as_epochs_begin():
    run = Run.of(epochs=3).epoch_began(0)
    stages = STAGES[:3]
    assert Gradual(every=1).open_stages(Progress(30, run), stages) == ("head",)
    run = run.epoch_began(31)
    assert Gradual(every=1).open_stages(Progress(31, run), stages) == ("head", "layer4")
    assert Gradual().open_stages(Progress(31, run), stages) == ("head", "layer4")
    assert HeadThenAll().open_stages(Progress(31, run), stages) == ("head",)
    run = run.epoch_began(62)
    assert Gradual().open_stages(Progress(62, run), stages) == stages
    assert HeadThenAll().open_stages(Progress(62, run), stages) == stages


def test_a_run_of_known_steps_but_unknown_epochs_is_cut_into_equal_parts():
    assert list(table(Gradual(), Run.of(total_steps=30), STAGES[:3])) == [0, 10, 20]
    assert list(table(Gradual(start="6 steps"), Run.of(total_steps=30), STAGES[:3])) == [0, 6, 20]


def test_a_timetable_ends_with_the_run_and_the_openings_do_not():
    run = Run.of(epochs=3, steps_per_epoch=10)
    late = [(30, frozenset(STAGES[:4])), (40, frozenset(STAGES[:5])), (50, frozenset(STAGES))]
    openings = Gradual(every=1).openings(run, STAGES)
    assert openings == Gradual(every=1).timetable(run, STAGES) + late
    assert FreezeDown(power=3).openings(Run.of(total_steps=1000), STAGES)[-1][0] == 1000
    frozen_late = Explicit({0: "*", "9 epochs": {"freeze": "*"}})
    with pytest.raises(ValueError, match="nothing would train from step 90 on"):
        frozen_late.check(run, STAGES)


def test_random_stages_that_were_fitted_to_a_network_print_as_what_they_are():
    fitted = RandomStages(k=1).with_stages(lambda selector: [selector], STAGES)
    assert repr(fitted) == "RandomStages(k=1, always=('head', 'stem'))"
    with pytest.raises(ValueError, match="there are 2 to draw from"):
        RandomStages(k=3).with_stages(lambda selector: [selector], STAGES).check(
            Run.of(total_steps=9), STAGES[:3]
        )


def test_the_docstring_of_a_strategy_lists_its_arguments():
    for kind in STRATEGIES.values():
        for name, each in arguments_of(kind).items():
            assert f"\n    {name}: {each.metadata['help']}.\n" in kind.__doc__
    assert "\n    k: how many stages are drawn" in RandomStages.__doc__
    assert "Args:" not in HeadOnly.__doc__


def test_stages_that_open_after_the_end_are_found():
    run = Run.of(epochs=3, steps_per_epoch=10)
    assert Gradual(every=1).never_open(run, STAGES) == [
        ("layer2", 30),
        ("layer1", 40),
        ("stem", 50),
    ]
    assert Gradual().never_open(run, STAGES) == []
    assert HeadOnly().never_open(run, STAGES) == []  # by design, not by accident
    late = [("layer2", None), ("layer1", None), ("stem", None)]
    assert Gradual(every=1).never_open(Run.of(epochs=3), STAGES) == late
    assert HeadOnly().never_open(Run.of(epochs=3), STAGES) == []
    assert HeadThenAll("5 steps").never_open(Run.of(epochs=3), STAGES) == []
    assert len(Explicit({0: "head", 9: "*"}).never_open(Run.of(epochs=3), STAGES)) == 5


@pytest.mark.parametrize("total", range(2, 16))
def test_a_run_of_fewer_steps_than_stages_still_opens_every_stage(total):
    for run in (Run.of(total_steps=total), Run.of(epochs=1, steps_per_epoch=total)):
        assert Gradual().never_open(run, STAGES) == []
        assert Gradual().open_stages(Progress(0, run), STAGES) == ("head",)
        assert Gradual().open_stages(Progress(total - 1, run), STAGES) == STAGES


def test_a_single_epoch_of_unknown_length_cannot_be_spread_over():
    with pytest.raises(ValueError, match=r'over a single epoch.*every="100 steps"'):
        Gradual().timetable(Run.of(epochs=1), STAGES)


# ---------------------------------------------------------------- decided while training


def progress(step: int, *decisions, total: int = 1000) -> Progress:
    return Progress(step, Run.of(total_steps=total), decisions=decisions, stages=STAGES)


def noted(step: int, value: float, metric: str = "accuracy"):
    return step, {"metric": metric, "value": value}


def opened_by(rule: OnPlateau, *values: float, every: int = 10) -> list[int]:
    """How many stages are open after each of these evaluations."""
    seen = [noted((i + 1) * every, value, rule.metric) for i, value in enumerate(values)]
    return [len(rule.open_stages(progress(step, *seen), STAGES)) for step, _ in seen]


def test_a_plateau_is_patience_evaluations_without_an_improvement():
    rule = OnPlateau("accuracy", patience=2)
    assert opened_by(rule, 0.5, 0.6, 0.6, 0.7, 0.7, 0.7) == [1, 1, 1, 1, 1, 2]
    assert opened_by(OnPlateau("accuracy", patience=1), 0.5, 0.5, 0.5, 0.5) == [1, 2, 2, 3]


def test_the_best_is_counted_anew_after_an_opening():
    rule = OnPlateau("accuracy", patience=1)
    # 0.6 is worse than 0.9, but the best since the opening at the second evaluation
    assert opened_by(rule, 0.9, 0.5, 0.4, 0.6, 0.6) == [1, 2, 2, 2, 3]


def test_less_is_better_for_a_loss_and_more_for_an_accuracy_unless_said_otherwise():
    assert opened_by(OnPlateau("loss", patience=1), 0.5, 0.4, 0.45) == [1, 1, 2]
    assert opened_by(OnPlateau("eval_f1", patience=1), 0.5, 0.4) == [1, 2]
    assert opened_by(OnPlateau("eval_f1", patience=1, mode="min"), 0.5, 0.4) == [1, 1]
    with pytest.raises(ValueError, match=r"better does not follow.*mode='max' or mode='min'"):
        OnPlateau("eval_x")


def test_an_improvement_is_more_than_min_delta():
    rule = OnPlateau("accuracy", patience=1, min_delta=0.05)
    assert opened_by(rule, 0.5, 0.54, 0.6) == [1, 2, 2]


def test_a_metric_that_is_not_a_number_is_no_improvement():
    assert opened_by(OnPlateau("loss", patience=2), float("nan"), float("nan"), 0.5) == [1, 2, 2]


def test_the_longest_wait_opens_the_next_however_the_metric_improves():
    rule = OnPlateau("accuracy", patience=9, max_wait="25 steps")
    assert opened_by(rule, *(0.1 * i for i in range(9))) == [1, 1, 2, 2, 3, 3, 3, 4, 4]
    assert rule.next_step(progress(0), STAGES) == 25
    assert rule.next_step(progress(25), STAGES) == 50
    # a plateau starts the wait anew
    assert rule.next_step(progress(20, *[noted(20, 0.0)] * 10), STAGES) == 45


def test_an_evaluation_at_the_very_end_of_the_longest_wait_opens_one_stage_not_two():
    rule = OnPlateau("accuracy", patience=1, max_wait="20 steps")
    assert opened_by(rule, 0.5, 0.5) == [1, 2]
    assert opened_by(rule, 0.5, 0.6) == [1, 2]


def test_all_stages_open_is_the_end_of_a_plateau_schedule():
    rule = OnPlateau("accuracy", patience=1)
    assert opened_by(rule, *[0.5] * 20)[-1] == len(STAGES)
    assert rule.next_step(progress(200, *[noted(i, 0.5) for i in range(20)]), STAGES) is None


def test_the_best_evaluation_is_known_for_its_weights_to_be_kept():
    rule = OnPlateau("accuracy", patience=2, restore_best=True)
    seen = [noted(10, 0.5), noted(20, 0.7), noted(30, 0.6)]
    assert rule.best_step(progress(5, *seen), STAGES) is None
    assert [rule.best_step(progress(s, *seen), STAGES) for s in (10, 20, 30)] == [10, 20, 20]
    seen.append(noted(40, 0.6))
    assert rule.best_step(progress(40, *seen), STAGES) is None


def test_a_stage_with_small_gradients_freezes_for_good():
    rule = ByGradient(every="10 steps", threshold=0.5)
    seen = [
        (11, {"gradients": dict(zip(STAGES, (1.0, 0.6, 0.5, 0.4, 0.6, 0.0)))}),
        (21, {"gradients": {"head": 0.1, "layer4": 0.3, "layer3": 0.3, "layer1": 0.14}}),
    ]
    assert rule.open_stages(progress(10, *seen), STAGES) == STAGES
    assert rule.open_stages(progress(11, *seen), STAGES) == ("head", "layer4", "layer3", "layer1")
    assert rule.open_stages(progress(21, *seen), STAGES) == ("layer4", "layer3")


def test_gradients_are_measured_in_the_step_after_each_moment():
    rule = ByGradient(every="10 steps")
    assert [s for s in range(40) if rule.samples_gradients(progress(s), STAGES)] == [10, 20, 30]
    assert rule.next_step(progress(0), STAGES) == 10
    assert rule.next_step(progress(10), STAGES) == 11
    assert rule.next_step(progress(11), STAGES) == 20


def test_measurements_without_meaning_freeze_nothing():
    rule = ByGradient()
    assert rule.decide_from_gradients({"head": float("nan")}) is None
    assert rule.decide_from_gradients(dict.fromkeys(STAGES, 0.0)) is None
    # weights that are all zero (a new head) have no relative norm: they stay open
    measured = {**dict.fromkeys(STAGES, 0.1), "head": float("inf"), "stem": 0.001}
    fresh = (10, rule.decide_from_gradients(measured))
    assert rule.open_stages(progress(10, fresh), STAGES) == STAGES[:-1]


def test_a_rule_of_the_users_own_sees_progress_and_the_metrics_noted_so_far():
    def rule(now):
        return now.stages if now.metrics.get("acc", 0) > 0.8 else "head"

    custom = Custom(rule)
    assert custom.open_stages(progress(5), STAGES) == ("head",)
    noted = custom.decide(
        Progress(4, Run.of(total_steps=9), metrics={"acc": 0.9, "x": "?"}), STAGES
    )
    assert noted == {"metrics": {"acc": 0.9}}
    assert custom.open_stages(progress(5, (4, noted)), STAGES) == STAGES
    assert custom.open_stages(progress(3, (4, noted)), STAGES) == ("head",)
    assert custom.next_step(progress(3), STAGES) == 4


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        ([], ValueError, "nothing would train from step 3 on: rule gave no stage"),
        (["head", "layer5"], ValueError, "rule gave the stage 'layer5' at step 3.*'?layer4"),
        ("decoder", ValueError, "'decoder' at step 3, which is not one of the 6"),
        (None, TypeError, "rule gave None at step 3, not the names"),
        (7, TypeError, "rule gave 7 at step 3"),
    ],
)
def test_what_a_rule_of_the_users_own_gives_is_checked(answer, error, message):
    def rule(now):
        return answer

    with pytest.raises(error, match=message):
        Custom(rule).open_stages(progress(3), STAGES)


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (RandomStages(k=5), "k=5 stages cannot be open at a time: there are 4 to draw from"),
        (RandomStages(k=1, always=STAGES), "there are 0 to draw from.*none"),
        (Cyclic(k=7), "k=7 stages cannot be open at a time: there are 6 stages.*k from 1 to 6"),
        (ChainThaw("20 steps"), "7 phases, and this run has room for 5: .*shorten every, or merge"),
        (Explicit({0: "head", "50 steps": "*", "40%": "layer4"}),
         "out of order: '40%' \\(step 40\\) comes after '50 steps'"),
        (Explicit({0: "head", "50%": {"freeze": "head"}}), "nothing would train from step 50"),
        (Explicit({"5 steps": "head"}), "nothing would train before step 5"),
    ],
)  # fmt: skip
def test_a_schedule_that_does_not_fit_the_run_or_the_stages_is_refused(strategy, message):
    with pytest.raises(ValueError, match=message):
        strategy.check(Run.of(total_steps=100), STAGES)


def test_random_stages_are_drawn_evenly():
    """Over many periods each of four blocks is open half of the time, two at a time."""
    rule = RandomStages(k=2, every="1 step")
    count = dict.fromkeys(STAGES, 0)
    for step in range(4000):
        for name in rule.open_stages(progress(step, total=4000), STAGES):
            count[name] += 1
    assert count.pop("head") == count.pop("stem") == 4000
    assert sum(count.values()) == 8000
    # five standard deviations of a binomial count
    assert all(abs(number - 2000) < 5 * 4000**0.5 / 2 for number in count.values())


def test_a_chain_thaw_that_data_without_length_cuts_short_is_refused():
    ChainThaw(1).check(Run.of(epochs=7), STAGES)
    with pytest.raises(ValueError, match="7 phases, and this run has room for 6: the last"):
        ChainThaw(1).check(Run.of(epochs=6), STAGES)


def test_strategies_and_what_they_did_can_be_keys():
    rules = [strategy for strategy, _, _ in GOLDEN]
    assert len(set(rules)) == len({repr(rule) for rule in rules})


def test_an_epoch_that_is_not_known_is_an_error_and_not_the_first():
    with pytest.raises(ValueError, match="the epoch is not known"):
        _ = Progress(5, Run.of(total_steps=9)).epoch
    assert Progress(5, Run.of(epochs=3).epoch_began(0).epoch_began(4)).epoch == 1


def test_another_seed_draws_otherwise():
    runs = [RandomStages(seed=seed).timetable(Run.of(total_steps=200), STAGES) for seed in range(4)]
    assert len({str(run) for run in runs}) == 4


def test_a_strategy_prints_as_the_call_that_makes_it():
    assert repr(Gradual()) == "Gradual()"
    assert repr(RandomStages(k=1)) == "RandomStages(k=1)"
    assert repr(OnPlateau("acc", max_wait="9%")) == "OnPlateau(metric='acc', max_wait='9%')"
    for rule, _, _ in GOLDEN:
        assert eval(repr(rule)) == rule


# ---------------------------------------------------------------- properties

runs = st.builds(
    lambda epochs, per_epoch: Run.of(epochs=epochs, steps_per_epoch=per_epoch),
    st.integers(1, 12),
    st.integers(1, 40),
)
stage_lists = st.integers(1, 14).map(lambda n: ("head", *(f"block{i}" for i in range(n, 0, -1))))
moments = st.one_of(
    st.integers(1, 6),
    st.integers(1, 100).map("{} steps".format),
    st.integers(1, 100).map("{}%".format),
)
graduals = st.builds(Gradual, every=st.none() | moments, start=st.none() | moments | st.just(0))
periodic = st.one_of(
    st.builds(RandomStages, k=st.just(1), every=moments, always=st.just(["head"])),
    st.builds(Cyclic, k=st.integers(1, 2), every=moments),
)
strategies = st.one_of(
    graduals,
    st.just(HeadOnly()),
    st.builds(HeadThenAll, at=moments),
    st.builds(ChainThaw, every=st.none() | moments),
    st.builds(FreezeDown, until=moments, power=st.sampled_from([1, 2, 3, 0.5])),
    periodic,
)
decided = st.builds(
    OnPlateau,
    metric=st.just("acc"),
    patience=st.integers(1, 3),
    min_delta=st.sampled_from([0.0, 0.1]),
    max_wait=st.none() | moments,
)


@settings(deadline=None)  # nothing is timed
@given(strategies, runs, stage_lists)
def test_something_trains_at_every_moment(strategy, run, stages):
    for step in range(run.total_steps):
        assert strategy.open_stages(Progress(step, run), stages)


@settings(deadline=None)  # nothing is timed
@given(periodic, runs, stage_lists)
def test_as_many_stages_as_asked_for_are_open_all_the_time(strategy, run, stages):
    always = 1 if isinstance(strategy, RandomStages) else 0
    for step in range(run.total_steps):
        assert len(strategy.open_stages(Progress(step, run), stages)) == strategy.k + always


@settings(deadline=None)  # nothing is timed
@given(runs, stage_lists, st.builds(FreezeDown, until=moments, power=st.floats(0.2, 5)))
def test_freeze_down_only_ever_freezes_from_the_input_side(run, stages, strategy):
    before = stages
    for step in range(run.total_steps + 1):
        now = strategy.open_stages(Progress(step, run), stages)
        assert now == stages[: len(now)]
        assert len(now) <= len(before)
        before = now


@settings(deadline=None)  # nothing is timed
@given(decided, runs, stage_lists, st.data())
def test_a_plateau_schedule_looks_back_on_what_it_was(strategy, run, stages, data):
    """At a step it depends on the evaluations until then only, and only ever opens."""
    steps = data.draw(
        st.lists(st.integers(1, run.total_steps), unique=True, max_size=12).map(sorted)
    )
    values = data.draw(st.lists(st.floats(0, 1), min_size=len(steps), max_size=len(steps)))
    seen = tuple(noted(step, value, "acc") for step, value in zip(steps, values))
    count = 0
    for step in range(run.total_steps + 1):
        known = tuple(one for one in seen if one[0] <= step)
        now = strategy.open_stages(Progress(step, run, decisions=seen), stages)
        assert now == strategy.open_stages(Progress(step, run, decisions=known), stages)
        assert now == stages[: len(now)]
        assert len(now) >= max(count, 1)
        if len(now) > count and count and step not in steps:
            assert strategy.max_wait is not None
        count = len(now)


@settings(deadline=None)  # nothing is timed
@given(graduals, runs, stage_lists)
def test_gradual_only_ever_opens_from_the_top_down(strategy, run, stages):
    before: tuple[str, ...] = ()
    for step in range(run.total_steps + 1):
        now = strategy.open_stages(Progress(step, run), stages)
        assert now == stages[: len(now)]
        assert now
        assert set(before) <= set(now)
        before = now


@settings(deadline=None)  # nothing is timed
@given(runs, stage_lists)
def test_by_default_every_stage_opens_no_later_than_the_last_epoch_begins(run, stages):
    last_epoch = run.total_steps - run.steps_per_epoch
    at = last_epoch if run.epochs >= 3 else run.total_steps - (run.total_steps > len(stages))
    assert Gradual().open_stages(Progress(at, run), stages) == stages
    if run.epochs >= 3:
        first = Progress(run.steps_per_epoch - 1, run)
        assert Gradual().open_stages(first, stages) == ("head",)


@settings(deadline=None)  # nothing is timed
@given(strategies, runs, stage_lists, st.data())
def test_the_next_step_misses_no_change(strategy, run, stages, data):
    """What a run would do that looks only at ``next_step`` is what it would do at each step."""
    step = data.draw(st.integers(0, run.total_steps))
    now = strategy.open_stages(Progress(step, run), stages)
    after = strategy.next_step(Progress(step, run), stages)
    until = run.total_steps + 1 if after is None else min(after, run.total_steps + 1)
    for later in range(step, until):
        assert strategy.open_stages(Progress(later, run), stages) == now
    if after is not None:
        assert after > step


@settings(deadline=None)  # nothing is timed
@given(strategies, runs, stage_lists, st.data())
def test_the_state_at_a_step_does_not_depend_on_how_it_was_reached(strategy, run, stages, data):
    start = data.draw(st.integers(0, run.total_steps))
    step = data.draw(st.integers(start, run.total_steps))
    walked, position = None, 0
    while position is not None and position <= step:
        walked = strategy.open_stages(Progress(position, run), stages)
        position = strategy.next_step(Progress(position, run), stages)
    assert strategy.open_stages(Progress(step, run), stages) == walked
