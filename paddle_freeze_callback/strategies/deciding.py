"""Strategies that decide while training: from metrics, from gradients, or by a rule of the user."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from ..checks import about, boolean, is_number, named, one_of, option, positive, whole
from ..words import did_you_mean, listing
from .base import Opening, Strategy
from .moments import Moment, When
from .run import Progress, Run

# Words in the names of metrics of which more, or less, is better.
_MORE = frozenset([
    "acc", "accuracy", "f1", "auc", "precision", "recall", "score", "bleu", "rouge", "map", "iou",
    "r2", "corr", "pearson", "spearman", "matthews", "reward", "top1", "top5",
])  # fmt: skip
_LESS = frozenset(["loss", "error", "err", "perplexity", "ppl", "mse", "rmse", "mae", "wer", "cer"])


@dataclass(frozen=True)
class _Phase:
    """How far a metric-driven schedule has come after some evaluations."""

    opened: int = 1
    began: int = 0
    best: float | None = None
    best_step: int | None = None
    waited: int = 0


@dataclass(frozen=True, repr=False)
class OnPlateau(Strategy):
    """The next stage opens when a metric stops improving.

    The best value so far is counted anew after each opening. ``restore_best`` leaves the
    optimizer's moments as they are.

    Source: the early-stopping driven schedules of finetuning-scheduler for Lightning.

    >>> rule = OnPlateau("eval_accuracy", patience=1)
    >>> def noted(step, value):
    ...     return step, {"metric": "eval_accuracy", "value": value}
    >>> seen = (noted(10, 0.7), noted(20, 0.8), noted(30, 0.8))
    >>> now = Progress(30, Run.of(total_steps=100), decisions=seen)
    >>> rule.open_stages(now, ["head", "top", "bottom"])
    ('head', 'top')
    """

    name: ClassVar[str] = "on_plateau"
    ordered: ClassVar[bool] = True
    decides: ClassVar[bool] = True
    needs_evaluation: ClassVar[bool] = True
    needs_record: ClassVar[bool] = True
    metric: str = field(
        metadata=about(
            'the name of the metric in the logs, such as "eval_accuracy" in a Trainer, "acc" in fit'
        )
    )
    patience: int = option(
        2, "how many evaluations in a row without improvement open the next", int
    )
    min_delta: float = option(0.0, "an improvement is a change by more than this", float)
    mode: str | None = option(
        None, '"max" if more is better, "min" if less is; by default from the name'
    )
    max_wait: When | None = option(None, "the longest time until the next stage opens")
    restore_best: bool = option(
        False, "before the next stage opens, load the best weights since the last opening", bool
    )

    def __post_init__(self) -> None:
        if not isinstance(self.metric, str) or not self.metric:
            raise TypeError(f"metric={self.metric!r} must be a name, such as 'eval_accuracy'")
        whole("patience", self.patience, 1)
        if not is_number(self.min_delta) or not 0 <= self.min_delta < math.inf:
            raise ValueError(f"min_delta={self.min_delta!r} must be a number from 0")
        if self.mode is not None:
            one_of("mode", self.mode, ("max", "min"))
        elif _better(self.metric) is None:
            raise ValueError(
                f"mode: whether more or less of {self.metric!r} is better does not follow from its "
                "name; give mode='max' or mode='min'"
            )
        if self.max_wait is not None:
            named("max_wait", Moment.length, self.max_wait)
        boolean("restore_best", self.restore_best)

    @property
    def ends_known(self) -> bool:
        return self.max_wait is not None

    def check(self, run: Run, stages: Sequence[str]) -> None:
        if self.max_wait is not None:
            try:
                run.after(0, Moment.of(self.max_wait))
            except ValueError as error:
                raise ValueError(f"max_wait: {error}") from None

    def decide(self, progress: Progress, stages: Sequence[str]) -> Any:
        """The metric's value, if this evaluation has it."""
        value = progress.metrics.get(self.metric)
        if value is None or not is_number(value):
            return None
        return {"metric": self.metric, "value": float(value)}

    def understands(self, note: Any) -> bool:
        return isinstance(note, Mapping) and note.get("metric") == self.metric

    def unknown_metric(self, seen: Mapping[str, Any]) -> str:
        if self.metric in seen:
            return f"metric={self.metric!r} is no number but {type(seen[self.metric]).__name__}"
        known = sorted(seen)
        near = did_you_mean(self.metric, known) or did_you_mean(self.metric, known, cutoff=0.4)
        return (
            f"metric={self.metric!r} is none of the metrics of this evaluation: "
            f"{', '.join(known) or 'none at all'}{near}"
        )

    def undecided(self, progress: Progress, stages: Sequence[str]) -> str:
        seen = len(progress.decisions)
        if seen > self.patience or len(stages) < 2:
            return ""
        saw = {0: "never saw its metric", 1: "saw its metric once"}
        return (
            f"{self!r} {saw.get(seen, f'saw its metric {seen} times')} in this run, and needs "
            f"{self.patience + 1} evaluations to open a stage, so "
            f"{'none opened' if self.max_wait is None else 'only time decided'}"
        )

    def why_closed(self, progress: Progress, closed: Sequence[str], stages: Sequence[str]) -> str:
        waited = self._phase(progress, len(stages)).waited
        return (
            f"at the end {self.metric!r} had not improved in {waited} evaluations in a row, "
            f"patience is {self.patience}"
        )

    def open_stages(self, progress: Progress, stages: Sequence[str]) -> tuple[str, ...]:
        return tuple(stages[: self._phase(progress, len(stages)).opened])

    def next_step(self, progress: Progress, stages: Sequence[str]) -> int | None:
        phase = self._phase(progress, len(stages))
        return None if phase.opened == len(stages) else self._deadline(progress.run, phase)

    def best_step(self, progress: Progress, stages: Sequence[str]) -> int | None:
        return self._phase(progress, len(stages), due=progress.step - 1).best_step

    def _phase(self, progress: Progress, count: int, due: int | None = None) -> _Phase:
        """The phase now; openings by the longest wait count up to the step ``due``."""
        phase = _Phase()
        for step, note in progress.decisions:
            if step > progress.step:
                break
            # An opening by the longest wait at the step of an evaluation comes after it.
            phase = self._overdue(progress.run, phase, step - 1, count)
            phase = self._seen(phase, step, note["value"], count)
        return self._overdue(progress.run, phase, progress.step if due is None else due, count)

    def _seen(self, phase: _Phase, step: int, value: float, count: int) -> _Phase:
        """The phase after an evaluation."""
        sign = 1 if (self.mode or _better(self.metric)) == "max" else -1
        better = not math.isnan(value) and (
            phase.best is None or sign * (value - phase.best) > self.min_delta
        )
        if better:
            return replace(phase, best=value, best_step=step, waited=0)
        if phase.waited + 1 >= self.patience and phase.opened < count:
            return _Phase(phase.opened + 1, step)
        return replace(phase, waited=phase.waited + 1)

    def _overdue(self, run: Run, phase: _Phase, step: int, count: int) -> _Phase:
        """The phase after all openings by the longest wait up to this step."""
        while phase.opened < count:
            due = self._deadline(run, phase)
            if due is None or due > step:
                break
            phase = _Phase(phase.opened + 1, due)
        return phase

    def _deadline(self, run: Run, phase: _Phase) -> int | None:
        return None if self.max_wait is None else run.after(phase.began, Moment.of(self.max_wait))


def _better(metric: str) -> str | None:
    """Whether more or less of a metric is better, if its name shows it.

    >>> _better("eval_accuracy"), _better("eval_loss"), _better("eval_x")
    ('max', 'min', None)
    """
    words = set(re.split(r"[^a-z0-9]+", metric.lower()))
    more, less = words & _MORE, words & _LESS
    return None if bool(more) == bool(less) else "max" if more else "min"


@dataclass(frozen=True, repr=False)
class ByGradient(Strategy):
    """Everything trains at first; stages whose gradients have become small freeze for good.

    At fixed moments the relative gradient norm of each open stage (norm of the gradient / norm of
    the weights) is measured in one optimizer step. A stage stays open if its value is at least
    ``threshold`` times the largest. So the scale of the loss does not matter.

    Sources: Lee et al. 2023, "Surgical Fine-Tuning Improves Adaptation to Distribution Shifts"
    (the criterion, Auto-RGN, used there to scale rates); Liu et al. 2021, "AutoFreeze:
    Automatically Freezing Model Blocks to Accelerate Fine-tuning" (freezing by gradient norms).

    In data-parallel training the gradients of rank 0's share of the batch decide for all.
    Of weights that are split among processes all parts count.
    ``schedule.as_explicit()`` gives the decisions as a schedule to replay.

    >>> seen = ((10, {"gradients": {"head": 0.5, "top": 0.2, "bottom": 0.01}}),)
    >>> now = Progress(10, Run.of(total_steps=100), decisions=seen)
    >>> ByGradient(threshold=0.1).open_stages(now, ["head", "top", "bottom"])
    ('head', 'top')
    """

    name: ClassVar[str] = "by_gradient"
    measures: ClassVar[bool] = True
    decides: ClassVar[bool] = True
    needs_record: ClassVar[bool] = True
    every: When = option("10%", "time between two measurements, and before the first")
    threshold: float = option(
        0.1, "stages below this share of the largest value freeze, up to 1", float
    )

    def __post_init__(self) -> None:
        named("every", Moment.length, self.every)
        positive("threshold", self.threshold, "0.1, a share of the largest")
        if self.threshold > 1:
            raise ValueError(f"threshold={self.threshold!r} is a share of the largest: at most 1")

    def check(self, run: Run, stages: Sequence[str]) -> None:
        run.passed(Moment.of(self.every), 0)

    def open_stages(self, progress: Progress, stages: Sequence[str]) -> tuple[str, ...]:
        names = tuple(stages)
        for step, note in progress.decisions:
            if step <= progress.step:
                measured = note["gradients"]
                finite = [value for value in measured.values() if math.isfinite(value)]
                least = self.threshold * max(finite, default=0.0)
                names = tuple(name for name in names if measured.get(name, math.inf) >= least)
        return names

    def next_step(self, progress: Progress, stages: Sequence[str]) -> int | None:
        if self.samples_gradients(progress, stages):
            return progress.step + 1
        every = Moment.of(self.every)
        index = progress.run.passed(every, progress.step) + 1
        return progress.run.step_of(Moment(every.value * index, every.unit))

    def sure_until(self, run: Run, stages: Sequence[str]) -> int:
        return (self.next_step(Progress(0, run), stages) or 0) + 1

    def samples_gradients(self, progress: Progress, stages: Sequence[str]) -> bool:
        every = Moment.of(self.every)
        index = progress.run.passed(every, progress.step)
        moment = progress.run.step_of(Moment(every.value * index, every.unit))
        return index > 0 and moment == progress.step

    def decide_from_gradients(self, relative_norms: Mapping[str, float]) -> Any:
        """The norms, unless they are useless: loss scaling skips some steps."""
        values = relative_norms.values()
        if any(math.isnan(value) for value in values) or not any(values):
            return None
        return {"gradients": dict(relative_norms)}

    def understands(self, note: Any) -> bool:
        return isinstance(note, Mapping) and "gradients" in note


@dataclass(frozen=True, repr=False)
class Custom(Strategy):
    """A rule of the user's own: ``strategy=`` takes the function itself.

    Args:
        rule: takes a :class:`Progress`, returns the names of the open stages (or one name). It
            is called before every optimizer step and must depend on the progress alone. The
            progress holds the last value of each metric so far, also after a resume.

    >>> rule = Custom(lambda progress: progress.stages[: 1 + progress.epoch])
    >>> now = Progress(10, Run.of(epochs=3, steps_per_epoch=10), stages=("head", "top", "bottom"))
    >>> rule.open_stages(now, now.stages)
    ('head', 'top')
    """

    name: ClassVar[str] = "custom"
    decides: ClassVar[bool] = True
    foreign: ClassVar[bool] = True
    rule: Callable[[Progress], Any]

    def check(self, run: Run, stages: Sequence[str]) -> None:
        self.open_stages(Progress(0, run, stages=tuple(stages)), stages)

    def open_stages(self, progress: Progress, stages: Sequence[str]) -> tuple[str, ...]:
        seen: dict[str, Any] = {}
        for step, note in progress.decisions:
            if step <= progress.step:
                seen.update(note["metrics"])
        names = self.rule(replace(progress, metrics=seen, stages=tuple(stages)))
        names = [names] if isinstance(names, str) else names
        what = getattr(self.rule, "__name__", repr(self.rule))
        if not isinstance(names, Iterable):
            raise TypeError(
                f"{what} gave {names!r} at step {progress.step}, not the names of the open stages"
            )
        names = list(names)
        for name in names:
            if name not in stages:
                hint = did_you_mean(name, stages, most=2) or f": {listing(stages)}"
                raise ValueError(
                    f"{what} gave the stage {name!r} at step {progress.step}, which is not one "
                    f"of the {len(stages)} that it decides about{hint}"
                )
        if not names:
            raise ValueError(
                f"nothing would train from step {progress.step} on: {what} gave no stage; "
                "keep one open at every moment"
            )
        return tuple(name for name in stages if name in names)

    def next_step(self, progress: Progress, stages: Sequence[str]) -> int | None:
        return progress.step + 1

    def sure_until(self, run: Run, stages: Sequence[str]) -> int:
        return 0

    def timetable(self, run: Run, stages: Sequence[str]) -> list[Opening]:
        return [(0, frozenset(self.open_stages(Progress(0, run), stages)))]

    def decide(self, progress: Progress, stages: Sequence[str]) -> Any:
        """All metrics that are numbers."""
        found = {n: float(v) for n, v in progress.metrics.items() if is_number(v)}
        return {"metrics": found} if found else None

    def understands(self, note: Any) -> bool:
        return isinstance(note, Mapping) and "metrics" in note
