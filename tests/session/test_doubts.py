"""What is allowed, but hardly meant, is one line before the first step."""

from __future__ import annotations

import warnings

import paddle
import pytest
from trainers import logger, tiny_bert, trainer_for

from paddle_freeze_callback import Cyclic, FreezeSchedule, Gradual, RandomStages, SlantedTriangular


def doubts_of(schedule: FreezeSchedule, *, epochs: float = 3, steps: int = 10) -> list[str]:
    """The notes of a preview that are doubts: a run gives the same as warnings."""
    notes = schedule.preview(deep(), epochs=epochs, steps_per_epoch=steps).notes
    return [note for note in notes if "no optimizer" not in note and "no batch" not in note]


def deep(blocks: int = 12) -> paddle.nn.Layer:
    linear = paddle.nn.Linear
    return paddle.nn.Sequential(
        ("body", paddle.nn.Sequential(*(linear(2, 2) for _ in range(blocks)))),
        ("head", linear(2, 2)),
    )


def test_rates_that_hardly_move_anything_are_named_with_the_smallest():
    (line,) = doubts_of(FreezeSchedule(lr_decay=2.6), steps=40)
    assert line.startswith("5 of 13 stages hardly train: the learning rate of 'body.0' is ")
    assert "multiplied by 1.05e-05" in line
    assert "stages=4" in line
    assert doubts_of(FreezeSchedule(lr_decay=1.5), steps=40) == []


def test_stages_that_open_together_for_lack_of_steps_are_named():
    (line,) = doubts_of(FreezeSchedule(strategy=Gradual()), epochs=3, steps=4)
    assert line.startswith("this run of 12 steps has no room for one stage at a time: at step ")
    assert "open together" in line
    many = int(line.rpartition("stages=")[2])
    assert doubts_of(FreezeSchedule(stages=many), epochs=3, steps=4) == []
    assert doubts_of(FreezeSchedule(), epochs=3, steps=40) == []


@pytest.mark.parametrize("rule", [Cyclic(every="5 steps"), RandomStages(1, every="10 steps")])
def test_stages_whose_turn_never_comes_are_named(rule):
    (line,) = doubts_of(FreezeSchedule(strategy=rule))
    assert line.startswith(f"in this run of 30 steps {type(rule).__name__}(")
    assert " never opens body." in line
    assert doubts_of(FreezeSchedule(strategy=rule), steps=300) == []


def test_a_trainer_that_logs_nothing_in_this_run_is_told_so(tmp_path, monkeypatch):
    lines: list[str] = []
    monkeypatch.setattr(logger, "info", lines.append)
    trainer_for(
        tiny_bert(), tmp_path, [FreezeSchedule(stages=2)], max_steps=6, logging_steps=500
    ).train()
    (line,) = [line for line in lines if "logging_steps=500" in line]
    assert "longer than this run of 6 steps: the trainable ratio is never logged" in line
    assert line.endswith("set it to 1")


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        (30, ""),
        (21, ""),
        (40, ""),  # an epoch more
        (
            19,
            "this one of 30 steps: the rate is at its lowest from there on; give total_steps=30",
        ),
        (41, "this one of 30 steps: the rate never falls; give total_steps=30"),
        (300, "the rate never falls; give total_steps=30"),
    ],
)
@pytest.mark.parametrize("wrap", [False, True])
def test_a_triangle_for_another_run_is_named(steps, said, wrap):
    network = deep(3)
    triangle = SlantedTriangular(0.1, total_steps=steps)
    optimizer = paddle.optimizer.SGD(triangle, parameters=network.parameters())
    if wrap:
        optimizer = [optimizer]
    schedule = FreezeSchedule(stages=2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        schedule.attach(network, optimizer, epochs=3, steps_per_epoch=10).restore()
    lines = [str(one.message) for one in caught]
    if not wrap:
        notes = schedule.preview(network, epochs=3, steps_per_epoch=10, optimizer=optimizer).notes
        assert [note for note in notes if "Triangular" in note] == lines
    if said:
        (line,) = lines
        assert line.startswith(f"SlantedTriangular(total_steps={steps}) is for ")
        assert said in line
    else:
        assert lines == []
