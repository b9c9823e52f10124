"""A timeline without a network, that tests share: three stages, twelve steps in three epochs."""

from __future__ import annotations

from paddle_freeze_callback.session.plan import Plan
from paddle_freeze_callback.session.timeline import Timeline
from paddle_freeze_callback.stages.partition import Stage
from paddle_freeze_callback.strategies import LearningRates, Run

NAMES = ("head", "top", "low")
RUN = Run.of(epochs=3, steps_per_epoch=4)


def line(strategy, run: Run = RUN, notes=(), **rates) -> Timeline:
    stages = tuple(Stage(name, (f"{name}.weight",), 1) for name in NAMES)
    multipliers = {"head": 1.0, "top": 0.5, "low": 0.25}
    plan = Plan(stages, strategy, NAMES, frozenset(), LearningRates(**rates), multipliers)
    return Timeline(plan, run, tuple(notes))
