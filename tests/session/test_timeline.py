"""What should be open at a step, until when, and why: plain tables, no network."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from timelines import NAMES, RUN, line

from paddle_freeze_callback import (
    ByGradient,
    Cyclic,
    Explicit,
    FreezeDown,
    Gradual,
    HeadThenAll,
    OnPlateau,
    Progress,
)
from paddle_freeze_callback.session.timeline import Openings, Timeline
from paddle_freeze_callback.strategies import Run
from paddle_freeze_callback.strategies.deciding import Custom
from paddle_freeze_callback.strategies.timed import Timed

ACCURACY = [(4, 0.5), (6, 0.6), (8, 0.6), (9, 0.7)]


def noted(*values: tuple[int, float]) -> list:
    return [(step, {"metric": "acc", "value": value}) for step, value in values]


@pytest.mark.parametrize(
    ("timeline", "changes"),
    [
        (line(Gradual(every=1)), {0: "head", 4: "head top", 8: "head top low"}),
        (line(HeadThenAll("50%")), {0: "head", 6: "head top low"}),
        (line(Cyclic(every="3 steps")), {0: "head", 3: "top", 6: "low", 9: "head"}),
        (
            line(Explicit({0: "head", 1: {"unfreeze": "low", "freeze": "head"}})),
            {0: "head", 4: "low"},
        ),
        (
            line(OnPlateau("acc", patience=1), notes=noted(*ACCURACY)),
            {0: "head", 8: "head top"},
        ),
        (
            line(OnPlateau("acc", max_wait="5 steps")),
            {0: "head", 5: "head top", 10: "head top low"},
        ),
        (
            line(ByGradient(), notes=[(3, {"gradients": {"head": 1.0, "top": 0.5, "low": 0.0}})]),
            {0: "head top low", 3: "head top"},
        ),
        (
            line(Custom(lambda progress: progress.stages[: 1 + progress.step // 5])),
            {0: "head", 5: "head top", 10: "head top low"},
        ),
    ],
    ids=lambda value: repr(value.plan.strategy)[:20] if isinstance(value, Timeline) else "",
)
def test_open_stages_change_at_the_steps_of_the_table_and_at_no_other(timeline, changes):
    expected = {step: tuple(names.split()) for step, names in changes.items()}
    assert dict(timeline.walk(0, 12)) == expected
    for step in range(12):
        last = max(change for change in expected if change <= step)
        assert timeline.open_at(step) == expected[last], step
        later = [change for change in expected if change > step]
        coming = timeline.next_step(step)
        decided = [at for at, _ in timeline.decisions if at > step]
        if later:  # no change passes unnoticed: it is foreseen, or a decision brings it
            assert min(one for one in (coming, *decided) if one is not None) <= later[0], step


def test_a_walk_may_begin_in_the_middle():
    assert list(line(Gradual(every=1)).walk(5, 9)) == [
        (5, ("head", "top")),
        (8, ("head", "top", "low")),
    ]


def test_decisions_count_from_their_step_on_and_the_timeline_before_stays_as_it_was():
    before = line(OnPlateau("acc", patience=1))
    after = before
    for step, note in noted(*ACCURACY[:3]):
        after = after.with_decision(step, note)
    assert [len(timeline.open_at(8)) for timeline in (before, after)] == [1, 2]
    assert after.open_at(7) == ("head",)
    assert before.decisions == ()
    assert after.progress(6).decisions == after.decisions[:2]
    assert after.best_step(7) == 6
    with pytest.raises(dataclasses.FrozenInstanceError):
        before.decisions = after.decisions


def test_an_epoch_of_data_without_length_counts_when_it_has_begun():
    timeline = line(Gradual(every=1), Run.of(epochs=3))
    for step in (0, 7):
        timeline = timeline.epoch_began(step)
    assert [timeline.open_at(step) for step in (6, 7)] == [("head",), ("head", "top")]
    assert timeline.run.epoch_starts == (0, 7)
    assert list(timeline.epoch_began(9).walk(0, 12))[-1] == (9, NAMES)


@pytest.mark.parametrize(
    ("step", "cause"),
    [(0, None), (7, None), (8, noted((8, 0.6))[0][1]), (11, noted((8, 0.6))[0][1])],
)
def test_the_cause_of_a_change_is_the_note_that_brought_it(step, cause):
    assert line(OnPlateau("acc", patience=1), notes=noted(*ACCURACY)).cause(step) == cause


def test_time_alone_is_the_cause_where_a_note_came_at_the_same_step():
    rule = OnPlateau("acc", patience=5, max_wait="4 steps")
    timeline = line(rule, notes=noted((3, 0.5), (4, 0.6)))
    assert timeline.open_at(4) == ("head", "top")
    assert timeline.cause(4) is None
    assert line(Gradual(every=1)).cause(9) is None


def test_openings_reach_as_far_back_as_ramps_do():
    rule = FreezeDown("2 steps")
    opened = Gradual("2 steps")
    assert line(opened).openings(5) == Openings({"head": 0, "top": 0, "low": 0}, 0)
    assert line(opened, warmup="3 steps").openings(5) == Openings(
        {"head": 0, "top": 2, "low": 4}, 4
    )
    assert line(opened, warmup="1 step").openings(5) == Openings({"head": 0, "top": 0, "low": 4}, 4)
    assert line(opened, hold="3 steps").openings(0) == Openings({"head": 0}, 0)
    assert set(line(rule, warmup="3 steps").openings(5).since.values()) == {0}


def test_openings_followed_step_by_step_are_those_of_a_run_that_resumes():
    timeline = line(Cyclic(every="3 steps"), warmup="2 steps", hold="2 steps")
    steps = timeline.walk(0, 12)
    _, names = next(steps)
    openings, changes = Openings(dict.fromkeys(names, 0)), dict(steps)
    for step in range(12):
        if step in changes:
            openings = openings.then(step, changes[step])
        # What has no ramp any more may have any step: the multipliers are what counts.
        resumed = timeline.openings(step)
        assert timeline.multipliers(step, openings) == timeline.multipliers(step, resumed), step


def test_multipliers_ramp_up_after_an_opening_and_say_so():
    timeline = line(Gradual("4 steps"), warmup="4 steps")
    table = []
    for step in range(3, 9):
        rates, ramping = timeline.multipliers(step, timeline.openings(step))
        table.append((step, rates["top"], ramping))
    # top opens at step 4; low, at a quarter of the rate, at step 8
    assert table == [
        (3, 0.5, False),
        (4, 0.125, True),
        (5, 0.25, True),
        (6, 0.375, True),
        (7, 0.5, False),
        (8, 0.5, True),
    ]


def test_gradients_are_measured_when_the_strategy_asks():
    timeline = line(ByGradient("4 steps"))
    assert [step for step in range(12) if timeline.measures_at(step)] == [4, 8]


def test_all_ranks_follow_the_answer_that_they_agreed_on():
    asked: list[tuple[str, ...]] = []

    def agreed(names):
        asked.append(names)
        return ("head", "low")

    timeline = dataclasses.replace(line(Gradual(every=1)), agreed=agreed)
    assert timeline.open_at(4) == ("head", "low")
    assert asked == [("head", "top")]
    assert list(timeline.walk(0, 12)) == [(0, ("head", "low"))]


def test_what_happened_is_written_as_a_schedule_to_replay():
    names_of = {"head": ["fc"], "top": ["layer4"], "low": ["conv1", "layer1"]}
    explicit = line(Cyclic(every="5 steps")).as_explicit(10, names_of)
    assert explicit == Explicit(
        {
            0: {"unfreeze": ["fc"]},
            "5 steps": {"unfreeze": ["layer4"], "freeze": ["fc"]},
            "10 steps": {"unfreeze": ["conv1", "layer1"], "freeze": ["layer4"]},
        }
    )


def test_progress_holds_what_a_rule_may_know():
    notes = [(2, "a"), (5, "b")]
    assert line(Gradual(), notes=notes).progress(4, {"acc": 0.5}) == Progress(
        4, RUN, {"acc": 0.5}, ((2, "a"),), NAMES
    )


@dataclasses.dataclass(frozen=True)
class Each(Timed):
    """These stages at these steps."""

    plan: dict[int, set[str]]

    def openings(self, run, stages):
        return sorted({0: {"head"}, **self.plan}.items())


@given(
    st.dictionaries(st.integers(0, 30), st.sets(st.sampled_from(NAMES), min_size=1), max_size=6),
    st.integers(1, 12),
    st.integers(1, 40),
    st.data(),
)
def test_samples_repeat_where_those_of_a_step_come_again_before_anything_opens(
    plan, epoch, total, data
):
    step = data.draw(st.integers(0, total - 1))
    whole = line(Each(plan), Run(epoch, total, None))
    now = set(whole.open_at(step))
    later = ((at, set(whole.open_at(at))) for at in range(step, total))
    end, then = next(((at, names) for at, names in later if names != now), (total, now))
    again = 0.0  # steps' worth of samples
    for at in range(step, end):
        since = (at // epoch - step // epoch) * epoch - step % epoch  # done before this epoch
        again += min(max(since, 0) / epoch, 1)
    assert whole.repeats(step) is (again > 0.999 or (end < total and then < now))


@pytest.mark.parametrize(
    ("strategy", "run"),
    [
        (OnPlateau("acc"), RUN),
        (ByGradient("3 steps"), RUN),
        (HeadThenAll(at="5 steps"), Run(None, 20, None)),
        (HeadThenAll(at="5 steps"), Run(20, None, None)),
    ],
    ids=["decided", "measured", "no epochs", "no end"],
)
def test_whether_samples_repeat_is_not_always_known(strategy, run):
    assert line(strategy, run).repeats(0) is None


def test_whether_samples_repeat_is_found_by_a_look_at_two_moments():
    """Not at each of thousands of changes, before each of them."""
    looks = []

    class Counted(Each):
        def open_stages(self, progress, stages):
            looks.append(progress.step)
            return super().open_stages(progress, stages)

    plan = {step: {"head", "top"} if step % 2 else {"head"} for step in range(1000)}
    assert line(Counted(plan), Run.of(total_steps=1000, steps_per_epoch=500)).repeats(0) is False
    assert looks == [0, 1]
