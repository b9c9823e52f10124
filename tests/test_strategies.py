"""Which stages are open when: golden tables and properties."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paddle_freeze_callback import Explicit, Gradual, HeadOnly, HeadThenAll
from paddle_freeze_callback.moments import Progress, Run
from paddle_freeze_callback.strategies import STRATEGIES, Strategy

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
        Gradual(),  # two epochs: the last begins when the first ends
        Run.of(epochs=2, steps_per_epoch=10),
        {0: "head", 10: "head layer4 layer3 layer2 layer1 stem"},
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
            20: "head layer4 layer3",
            30: "head layer4 layer3 layer2",
            40: "head layer4 layer3 layer2 layer1",
            50: "head layer4 layer3 layer2 layer1 stem",
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
strategies = st.one_of(graduals, st.just(HeadOnly()), st.builds(HeadThenAll, at=moments))


@given(graduals, runs, stage_lists)
def test_gradual_only_ever_opens_from_the_top_down(strategy, run, stages):
    before: tuple[str, ...] = ()
    for step in range(run.total_steps + 1):
        now = strategy.open_stages(Progress(step, run), stages)
        assert now == stages[: len(now)]
        assert now
        assert set(before) <= set(now)
        before = now


@given(runs, stage_lists)
def test_by_default_every_stage_opens_no_later_than_the_last_epoch_begins(run, stages):
    last_epoch = run.total_steps - run.steps_per_epoch
    at = last_epoch if run.epochs > 1 else run.total_steps - (run.total_steps > len(stages))
    assert Gradual().open_stages(Progress(at, run), stages) == stages
    if run.epochs > 1:
        first = Progress(run.steps_per_epoch - 1, run)
        assert Gradual().open_stages(first, stages) == ("head",)


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


@given(strategies, runs, stage_lists, st.data())
def test_the_state_at_a_step_does_not_depend_on_how_it_was_reached(strategy, run, stages, data):
    start = data.draw(st.integers(0, run.total_steps))
    step = data.draw(st.integers(start, run.total_steps))
    walked, position = None, 0
    while position is not None and position <= step:
        walked = strategy.open_stages(Progress(position, run), stages)
        position = strategy.next_step(Progress(position, run), stages)
    assert strategy.open_stages(Progress(step, run), stages) == walked
