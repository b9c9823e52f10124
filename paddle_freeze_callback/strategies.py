"""Which stages are open at this moment of the run.

Pure code: a strategy is a small frozen dataclass that maps the progress of a run and the names
of its stages (head first) to the names of the stages that are open. It remembers nothing, so a
run that was resumed is right by construction.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

from .moments import Moment, Progress, Run, When, named

Opening = tuple[int, frozenset[str]]


class Strategy:
    """The rule that says which stages are open when.

    A subclass gives :meth:`timetable`; everything else follows from it.
    """

    #: Its name in flags and YAML.
    name: ClassVar[str]
    #: Whether it decides from metrics. Then :meth:`decide` is asked after each evaluation, and
    #: the decisions travel with checkpoints.
    decides: ClassVar[bool] = False

    def decide(self, progress: Progress, stages: Sequence[str]) -> Any:
        """What to note after an evaluation, as plain JSON; ``None`` for nothing.

        It comes back in ``progress.decisions``, also after a resume and on every rank.
        """
        return None

    def timetable(self, run: Run, stages: Sequence[str]) -> list[Opening]:
        """The steps at which the set of open stages changes, with the set from then on.

        Moments that cannot be known yet (see :meth:`Run.step_of`) are left out.
        """
        raise NotImplementedError

    def open_stages(self, progress: Progress, stages: Sequence[str]) -> tuple[str, ...]:
        """The names of the open stages, in the order of ``stages``.

        >>> run = Run.of(epochs=3, steps_per_epoch=10)
        >>> Gradual(every=1).open_stages(Progress(10, run), ["head", "layer2", "layer1"])
        ('head', 'layer2')
        """
        now: frozenset[str] = frozenset()
        for step, names in self.timetable(progress.run, stages):
            if step <= progress.step:
                now = names
        return tuple(name for name in stages if name in now)

    def next_step(self, progress: Progress, stages: Sequence[str]) -> int | None:
        """The next step at which the open stages may differ; ``None`` if that is not known."""
        steps = [step for step, _ in self.timetable(progress.run, stages)]
        return min((step for step in steps if step > progress.step), default=None)

    def never_open(self, run: Run, stages: Sequence[str]) -> list[tuple[str, int | None]]:
        """Stages that would open only after the end of the run, and the step they need.

        The step is ``None`` where the data has no length.
        """
        if run.total_steps is not None:
            first = self._first_opening(run, stages)
            return [(name, step) for name, step in first.items() if step >= run.total_steps]
        within = self._first_opening(run.foreseen(), stages)
        ever = self._first_opening(run.foreseen(epochs=10**5), stages)
        return [(name, None) for name in ever if name not in within]

    def _first_opening(self, run: Run, stages: Sequence[str]) -> dict[str, int]:
        first: dict[str, int] = {}
        for step, names in self.timetable(run, stages):
            for name in stages:
                if name in names:
                    first.setdefault(name, step)
        return first


def _timetable(openings: Sequence[tuple[int | None, frozenset[str]]]) -> list[Opening]:
    """Known openings in order of time; of several at one step the last counts."""
    known = sorted(
        ((step, names) for step, names in openings if step is not None), key=lambda entry: entry[0]
    )
    return list(dict(known).items())


@dataclass(frozen=True)
class Gradual(Strategy):
    """Gradual unfreezing: the head first, then one more stage at a time from the top.

    Source: Howard & Ruder 2018, "Universal Language Model Fine-tuning for Text Classification"
    (ULMFiT), section 3.3, which opens one more layer per epoch (``every=1``).

    Args:
        every: time between two openings. By default the openings are spread evenly from
            ``start`` to the beginning of the last epoch, so that every stage trains.
        start: when the first stage below the head opens; by default after ``every``, or after
            the first epoch. A run of one epoch or less, or one whose data has no length, is cut
            into equal parts instead, one per stage.

    >>> run = Run.of(epochs=4, steps_per_epoch=10)
    >>> [step for step, _ in Gradual().timetable(run, ["head", "top", "bottom"])]
    [0, 10, 30]
    """

    name: ClassVar[str] = "gradual"
    every: When | None = None
    start: When | None = None

    def __post_init__(self) -> None:
        if self.every is not None:
            named("every", Moment.length, self.every)
        if self.start is not None:
            named("start", Moment.of, self.start)

    def timetable(self, run: Run, stages: Sequence[str]) -> list[Opening]:
        openings: list[tuple[int | None, frozenset[str]]] = [(0, frozenset(stages[:1]))]
        for index in range(len(stages) - 1):
            step = self._opening(run, index, len(stages) - 1)
            openings.append((step, frozenset(stages[: index + 2])))
        return _timetable(openings)

    def _opening(self, run: Run, index: int, count: int) -> int | None:
        """The step at which the stage ``index`` below the head opens."""
        if self.every is not None:
            every = Moment.of(self.every)
            start = every if self.start is None else Moment.of(self.start)
            if start.unit == every.unit:
                return run.step_of(start.plus(every, index))
            return -int(-(run.steps(start) + index * run.steps(every)) // 1)
        if run.epochs is not None and run.epochs > 1:
            first = Fraction(1) if self.start is None else self._start_in_epochs(run)
            last = Fraction(-int(-run.epochs // 1) - 1)
            position = first + max(last - first, Fraction(0)) * index / max(count - 1, 1)
            return run.step_of(Moment(position, "epochs"))
        total = run.total_steps
        if total is None:
            raise ValueError(
                "the openings cannot be spread over a single epoch of data without length; "
                'say how far they are apart, such as every="100 steps"'
            )
        first = Fraction(total, count + 1)
        if self.start is not None:
            first = run.steps(Moment.of(self.start))
        last = Fraction(total * count, count + 1)
        step = -int(-(first + max(last - first, Fraction(0)) * index / max(count - 1, 1)) // 1)
        # In a run of fewer steps than stages the last ones open together, before its last step.
        return step if self.start is not None else min(step, total - 1)

    def _start_in_epochs(self, run: Run) -> Fraction:
        start = Moment.of(self.start)  # type: ignore[arg-type]
        if start.unit == "epochs":
            return start.value
        if start.unit == "share" and run.epochs is not None:
            return start.value * run.epochs
        return run.steps(start) / run.steps(Moment.of(1))


@dataclass(frozen=True)
class HeadOnly(Strategy):
    """Linear probing: only the head trains, from beginning to end.

    Source: Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features and Underperform
    Out-of-Distribution".

    >>> HeadOnly().timetable(Run.of(total_steps=10), ["head", "layer1"])
    [(0, frozenset({'head'}))]
    """

    name: ClassVar[str] = "head_only"

    def timetable(self, run: Run, stages: Sequence[str]) -> list[Opening]:
        return [(0, frozenset(stages[:1]))]


@dataclass(frozen=True)
class HeadThenAll(Strategy):
    """LP-FT: the head alone, then everything at once.

    Source: Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features and Underperform
    Out-of-Distribution".

    Args:
        at: when everything opens; by default half-way.

    >>> run = Run.of(epochs=2, steps_per_epoch=10)
    >>> [step for step, _ in HeadThenAll(at=1).timetable(run, ["head", "layer1"])]
    [0, 10]
    """

    name: ClassVar[str] = "head_then_all"
    at: When = "50%"

    def __post_init__(self) -> None:
        named("at", Moment.of, self.at)

    def timetable(self, run: Run, stages: Sequence[str]) -> list[Opening]:
        return _timetable(
            [(0, frozenset(stages[:1])), (run.step_of(Moment.of(self.at)), frozenset(stages))]
        )


@dataclass(frozen=True)
class Explicit(Strategy):
    """Exactly what the user says: when -> what.

    Args:
        unfreeze_at: a mapping from moments to what opens then, in order of time. A value is a
            selector (see :mod:`.selectors`), which opens, or a mapping with the keys
            ``"unfreeze"`` and ``"freeze"``. What opened stays open until it is frozen.

    Without a list of ``stages``, the stages follow from the selectors.

    >>> rule = Explicit({0: "fc", "50%": "*"})
    >>> rule.open_stages(Progress(5, Run.of(total_steps=10)), ["fc", "layer1"])
    ('fc', 'layer1')
    """

    name: ClassVar[str] = "explicit"
    unfreeze_at: Mapping[When, Any]

    def __post_init__(self) -> None:
        if not isinstance(self.unfreeze_at, Mapping):
            raise TypeError(
                f"unfreeze_at={self.unfreeze_at!r} is no mapping from moments to what opens, "
                'such as {0: "fc", "50%": "*"}'
            )
        if not self.unfreeze_at:
            raise ValueError('unfreeze_at={} opens nothing; start with {0: "the head"}')
        for when, what in self.unfreeze_at.items():
            named("unfreeze_at", Moment.of, when)
            if isinstance(what, Mapping):
                unknown = [key for key in what if key not in ("unfreeze", "freeze")]
                if unknown or not what:
                    raise ValueError(
                        f"unfreeze_at[{when!r}] has the keys {list(what)}; "
                        'give "unfreeze", "freeze" or both'
                    )

    def selectors(self) -> list[Any]:
        """Every selector, in order of time as far as the order in the mapping tells."""
        return [selector for _, changes in self._changes() for _, selector in changes]

    def with_stages(self, names_of: Callable[[Any], Sequence[str]]) -> Explicit:
        """The same with every selector replaced by the names of the stages that it means."""
        return Explicit(
            {
                when: {verb: list(names_of(selector)) for verb, selector in changes}
                for when, changes in self._changes()
            }
        )

    def timetable(self, run: Run, stages: Sequence[str]) -> list[Opening]:
        known = set(stages)
        entries = []
        for when, changes in self._changes():
            step = run.step_of(Moment.of(when))
            if step is not None:
                entries.append((step, changes))
        openings: list[tuple[int | None, frozenset[str]]] = []
        now: frozenset[str] = frozenset()
        for step, changes in sorted(entries, key=lambda entry: entry[0]):
            for verb, what in changes:
                names = frozenset(
                    stages if what == "*" else [what] if isinstance(what, str) else what
                )
                now = now | (names & known) if verb == "unfreeze" else now - names
            openings.append((step, now))
        return _timetable(openings)

    def _changes(self) -> list[tuple[When, list[tuple[str, Any]]]]:
        """Moments with what freezes and what then unfreezes."""
        return [
            (
                when,
                [(verb, what[verb]) for verb in ("freeze", "unfreeze") if verb in what]
                if isinstance(what, Mapping)
                else [("unfreeze", what)],
            )
            for when, what in self.unfreeze_at.items()
        ]


STRATEGIES: dict[str, type[Strategy]] = {
    strategy.name: strategy for strategy in (Gradual, HeadOnly, HeadThenAll, Explicit)
}


def options_of(strategy: type[Strategy]) -> tuple[str, ...]:
    """The names of a strategy's arguments."""
    return tuple(field.name for field in dataclasses.fields(strategy))  # type: ignore[arg-type]
