"""What moment of a run the user means."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddle_freeze_callback.strategies.moments import Moment
from paddle_freeze_callback.strategies.run import Progress, Run


@pytest.mark.parametrize(
    ("written", "step"),
    [
        (0, 0),
        (2, 20),
        ("2", 20),
        ("2 epochs", 20),
        ("1 epoch", 10),
        ("1.5 epochs", 15),
        ("0.01 epochs", 1),
        ("7 steps", 7),
        ("1 step", 1),
        ("7steps", 7),
        ("30%", 12),
        ("100 %", 40),
        ("33.3%", 14),
    ],
)
def test_a_moment_becomes_a_number_of_optimizer_steps(written, step):
    assert Run.of(epochs=4, steps_per_epoch=10).step_of(Moment.of(written)) == step


def test_a_length_of_zero_is_refused():
    with pytest.raises(ValueError, match="a length of '0 steps' is zero"):
        Moment.length("0 steps")


@pytest.mark.parametrize("written", ["2 epochs", "1 epoch", "500 steps", "1 step", "30%", "2.5%"])
def test_a_moment_prints_as_it_is_written(written):
    assert str(Moment.of(written)) == written


def test_a_run_is_known_by_any_two_lengths_or_by_its_total():
    assert Run.of(epochs=2.5, steps_per_epoch=4) == Run(4, 10, Fraction(5, 2))
    assert Run.of(total_steps=10, steps_per_epoch=4) == Run(4, 10, Fraction(5, 2))
    assert Run.of(total_steps=10, epochs=2) == Run(5, 10, Fraction(2))
    assert Run.of(total_steps=10) == Run(None, 10, None)


def test_epochs_of_data_without_length_are_known_once_they_begin():
    run = Run.of(epochs=4)
    assert run.step_of(Moment.of(1)) is None
    run = run.epoch_began(0).epoch_began(17)
    assert run.step_of(Moment.of(1)) == 17
    assert run.step_of(Moment.of("25%")) == 17
    assert run.step_of(Moment.of("50%")) is None
    assert run.step_of(Moment.of("5 steps")) == 5
    assert [run.epoch_of(step) for step in (0, 16, 17, 40)] == [0, 0, 1, 1]


def test_epochs_cannot_be_counted_where_only_the_total_is_known():
    with pytest.raises(ValueError, match=r'"1 epoch" cannot be counted.*use steps'):
        Run.of(total_steps=10).step_of(Moment.of(1))


@settings(deadline=None)  # nothing is timed
@given(st.integers(1, 50), st.integers(1, 50), st.integers(0, 60), st.integers(0, 100))
def test_a_moment_never_comes_before_its_share_of_the_run(epochs, per_epoch, epoch, percent):
    run = Run.of(epochs=epochs, steps_per_epoch=per_epoch)
    assert run.step_of(Moment.of(epoch)) == epoch * per_epoch
    step = run.step_of(Moment.of(f"{percent}%"))
    assert step is not None
    assert 0 <= step * 100 - percent * epochs * per_epoch < 100


@settings(deadline=None)  # nothing is timed
@given(st.integers(1, 50), st.integers(0, 500))
def test_the_epoch_follows_from_the_step(per_epoch, step):
    run = Run.of(total_steps=1000, steps_per_epoch=per_epoch)
    assert Progress(step, run).epoch == step // per_epoch
