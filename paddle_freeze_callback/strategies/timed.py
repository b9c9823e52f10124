"""Strategies whose moments follow from the length of the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from ..checks import named, one_of, option, positive
from ..words import listing
from .base import Opening, Strategy
from .moments import Moment, When
from .run import Progress, Run


class Timed(Strategy):
    """A strategy whose moments follow from the length of the run."""

    def openings(self, run: Run, stages: Sequence[str]) -> list[Opening]:
        """The timetable, with changes after the end of the run.

        Moments that cannot be known yet (see :meth:`Run.step_of`) are left out.
        """
        raise NotImplementedError

    def timetable(self, run: Run, stages: Sequence[str]) -> list[Opening]:
        openings = self.openings(run, stages)
        return [each for each in openings if run.total_steps is None or each[0] < run.total_steps]

    def open_stages(self, progress: Progress, stages: Sequence[str]) -> tuple[str, ...]:
        now: frozenset[str] = frozenset()
        for step, names in self.openings(progress.run, stages):
            if step <= progress.step:
                now = names
        return tuple(name for name in stages if name in now)

    def next_step(self, progress: Progress, stages: Sequence[str]) -> int | None:
        steps = [step for step, _ in self.openings(progress.run, stages)]
        return min((step for step in steps if step > progress.step), default=None)

    def check(self, run: Run, stages: Sequence[str]) -> None:
        openings = self.openings(run, stages)
        for step, opens in openings:
            if not opens:
                raise ValueError(
                    f"nothing would train from step {step} on: all stages are "
                    f"frozen then ({listing(stages)}); keep one open at every moment"
                )
        if not openings or openings[0][0] > 0:
            first = f"step {openings[0][0]}" if openings else "the end"
            raise ValueError(f"nothing would train before {first}; open the head at moment 0")

    def ever_open(self, run: Run, stages: Sequence[str]) -> frozenset[str]:
        return frozenset().union(*(names for _, names in self.openings(run.foreseen(), stages)))

    def never_open(self, run: Run, stages: Sequence[str]) -> list[tuple[str, int | None]]:
        if run.total_steps is not None:
            first = self._first_opening(run, stages)
            return [(name, step) for name, step in first.items() if step >= run.total_steps]
        within = self._first_opening(run.foreseen(), stages)
        ever = self._first_opening(run.foreseen(epochs=10**5), stages)
        return [(name, None) for name in ever if name not in within]

    def why_closed(self, progress: Progress, closed: Sequence[str], stages: Sequence[str]) -> str:
        opens = self._first_opening(progress.run, stages)
        coming = [name for name in closed if name in opens]
        first = min(coming, key=lambda name: opens[name], default=None)
        return f"{first} opens at step {opens[first]}" if first else ""

    def _first_opening(self, run: Run, stages: Sequence[str]) -> dict[str, int]:
        first: dict[str, int] = {}
        for step, names in self.openings(run, stages):
            for name in stages:
                if name in names:
                    first.setdefault(name, step)
        return first


def in_order(openings: Sequence[tuple[int | None, frozenset[str]]]) -> list[Opening]:
    """Known openings in order of time; of several at one step the last counts."""
    known = sorted(
        ((step, names) for step, names in openings if step is not None), key=lambda entry: entry[0]
    )
    return list(dict(known).items())


@dataclass(frozen=True, repr=False)
class Gradual(Timed):
    """Gradual unfreezing: the head first, then one more stage at a time.

    Source: Howard & Ruder 2018, "Universal Language Model Fine-tuning for Text Classification"
    (ULMFiT), section 3.3, which opens one more layer per epoch (``every=1``).

    By default every stage trains: the last one opens when the last epoch begins. A run of fewer
    than three epochs has no room for that, and is cut into equal parts, one per stage; so is one
    whose data has no length.

    ``direction="bottom_up"`` is for shifts at the input (other cameras, other noise) under a head
    that is trained already; a new head would stay random until the end. Source: Lee et al. 2023,
    "Surgical Fine-Tuning Improves Adaptation to Distribution Shifts".

    >>> run = Run.of(epochs=4, steps_per_epoch=10)
    >>> [step for step, _ in Gradual().timetable(run, ["head", "top", "bottom"])]
    [0, 10, 30]
    """

    name: ClassVar[str] = "gradual"
    ordered: ClassVar[bool] = True
    every: When | None = option(
        None,
        "time between two openings; by default spread evenly from start to the beginning of "
        "the last epoch",
    )
    start: When | None = option(
        None, "when the second stage opens; by default after every, or after the first epoch"
    )
    direction: str = option(
        "top_down",
        '"top_down": from the head to the input; "bottom_up": from the input to the head',
    )

    def __post_init__(self) -> None:
        if self.every is not None:
            named("every", Moment.length, self.every)
        if self.start is not None:
            named("start", Moment.of, self.start)
        one_of("direction", self.direction, ("top_down", "bottom_up"))

    def openings(self, run: Run, stages: Sequence[str]) -> list[Opening]:
        if self.direction == "bottom_up":
            stages = stages[::-1]
        openings: list[tuple[int | None, frozenset[str]]] = [(0, frozenset(stages[:1]))]
        for index in range(len(stages) - 1):
            step = self._opening(run, index, len(stages) - 1)
            openings.append((step, frozenset(stages[: index + 2])))
        return in_order(openings)

    def _opening(self, run: Run, index: int, count: int) -> int | None:
        """The step at which the stage ``index`` after the first opens."""
        if self.every is not None:
            every = Moment.of(self.every)
            start = every if self.start is None else Moment.of(self.start)
            if start.unit == every.unit:
                return run.step_of(start.plus(every, index))
            return -int(-(run.steps(start) + index * run.steps(every)) // 1)
        if run.epochs is not None and (run.epochs >= 3 or (run.epochs > 1 and not run.total_steps)):
            first = Fraction(1) if self.start is None else self._start_in_epochs(run)
            last = Fraction(-int(-run.epochs // 1) - 1)
            position = first + max(last - first, Fraction(0)) * index / max(count - 1, 1)
            return run.step_of(Moment(position, "epochs"))
        total = run.total_steps
        if total is None:
            raise ValueError(
                "the openings cannot be spread over a single epoch of data without length; "
                'give the time between them, such as every="100 steps"'
            )
        first = Fraction(total, count + 1)
        if self.start is not None:
            first = run.steps(Moment.of(self.start))
        last = Fraction(total * count, count + 1)
        step = -int(-(first + max(last - first, Fraction(0)) * index / max(count - 1, 1)) // 1)
        # In a run with fewer steps than stages the last stages open together, before its end.
        return step if self.start is not None else min(step, total - 1)

    def _start_in_epochs(self, run: Run) -> Fraction:
        start = Moment.of(self.start)  # type: ignore[arg-type]
        if start.unit == "epochs":
            return start.value
        if start.unit == "share" and run.epochs is not None:
            return start.value * run.epochs
        return run.steps(start) / run.steps(Moment.of(1))


@dataclass(frozen=True, repr=False)
class HeadOnly(Timed):
    """Linear probing: only the head trains, from beginning to end.

    Source: Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features and Underperform
    Out-of-Distribution".

    >>> HeadOnly().timetable(Run.of(total_steps=10), ["head", "layer1"])
    [(0, frozenset({'head'}))]
    """

    name: ClassVar[str] = "head_only"
    needs_head: ClassVar[bool] = True

    def openings(self, run: Run, stages: Sequence[str]) -> list[Opening]:
        return [(0, frozenset(stages[:1]))]


@dataclass(frozen=True, repr=False)
class HeadThenAll(Timed):
    """LP-FT: the head alone, then everything at once.

    Source: Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features and Underperform
    Out-of-Distribution".

    >>> run = Run.of(epochs=2, steps_per_epoch=10)
    >>> [step for step, _ in HeadThenAll(at=1).timetable(run, ["head", "layer1"])]
    [0, 10]
    """

    name: ClassVar[str] = "head_then_all"
    needs_head: ClassVar[bool] = True
    at: When = option("50%", 'when everything opens, such as 2 (epochs) or "30%"')

    def __post_init__(self) -> None:
        named("at", Moment.of, self.at)

    def openings(self, run: Run, stages: Sequence[str]) -> list[Opening]:
        return in_order(
            [(0, frozenset(stages[:1])), (run.step_of(Moment.of(self.at)), frozenset(stages))]
        )


@dataclass(frozen=True, repr=False)
class ChainThaw(Timed):
    """Chain-thaw: the head, then each other stage alone from the input up, then all together.

    Source: Felbo et al. 2017, "Using millions of emoji occurrences to learn any-domain
    representations for detecting sentiment, emotion and sarcasm" (DeepMoji), section 3.3.

    >>> run = Run.of(total_steps=40)
    >>> for step, names in ChainThaw().timetable(run, ["head", "top", "bottom"]):
    ...     print(step, sorted(names))
    0 ['head']
    10 ['bottom']
    20 ['top']
    30 ['bottom', 'head', 'top']
    """

    name: ClassVar[str] = "chain_thaw"
    ordered: ClassVar[bool] = True
    every: When | None = option(
        None, "how long each phase lasts, the last one to the end; by default in equal parts"
    )

    def __post_init__(self) -> None:
        if self.every is not None:
            named("every", Moment.length, self.every)

    def openings(self, run: Run, stages: Sequence[str]) -> list[Opening]:
        phases = self._phases(stages)
        every = Moment.of(self.every) if self.every is not None else None
        every = every or Moment(Fraction(1, len(phases)), "share")
        nothing = Moment(Fraction(0), every.unit)
        return in_order(
            [(run.step_of(nothing.plus(every, index)), opens) for index, opens in enumerate(phases)]
        )

    @staticmethod
    def _phases(stages: Sequence[str]) -> list[frozenset[str]]:
        alone = [frozenset([name]) for name in (*stages[:1], *stages[:0:-1])]
        return [*alone, frozenset(stages)] if len(stages) > 1 else alone

    def check(self, run: Run, stages: Sequence[str]) -> None:
        super().check(run, stages)
        reached = self.timetable(run.foreseen(), stages)
        count = len(self._phases(stages))
        if len(reached) < count:
            raise ValueError(
                f"every: a chain-thaw of {len(stages)} stages has {count} phases, and this run has "
                f"room for {len(reached)}: the last, in which all train, would never come; "
                + ("make the run longer" if self.every is None else "shorten every")
                + f", or merge the backbone: stages={max(len(reached) - 2, 1)}"
            )


@dataclass(frozen=True, repr=False)
class FreezeDown(Timed):
    """Everything trains at first; then stages freeze one by one from the input side.

    The i-th of m stages below the head freezes at ``until * (i / m) ** power``; the head trains
    to the end.

    Sources: Brock et al. 2017, "FreezeOut: Accelerate Training by Progressively Freezing
    Layers" (moments spaced linearly or cubically; its annealing of each layer's rate is left
    out). AutoFreeze (Liu et al. 2021) and Egeria (Wang et al. 2023) freeze in this direction, at
    moments found while training; for that see :class:`ByGradient`.

    >>> run = Run.of(total_steps=80)
    >>> rule = FreezeDown("50%")
    >>> [(step, len(names)) for step, names in rule.timetable(run, ["head", "top", "bottom"])]
    [(0, 3), (20, 2), (40, 1)]
    """

    name: ClassVar[str] = "freeze_down"
    ordered: ClassVar[bool] = True
    until: When = option("100%", "when the last stage below the head freezes")
    power: float = option(
        1, "1 spaces the moments evenly; with 3 (cubic) the input side freezes early", float
    )

    def __post_init__(self) -> None:
        named("until", Moment.length, self.until)
        positive("power", self.power, "1 (linear) or 3 (cubic)")

    def openings(self, run: Run, stages: Sequence[str]) -> list[Opening]:
        until, below = Moment.of(self.until), len(stages) - 1
        openings: list[tuple[int | None, frozenset[str]]] = [(0, frozenset(stages))]
        for index in range(1, below + 1):
            # A power that is not whole gives a float; its last bit must not move a moment.
            share = Fraction(Fraction(index, below) ** self.power).limit_denominator(10**9)
            step = run.step_of(Moment(until.value * share, until.unit))
            openings.append((step, frozenset(stages[: len(stages) - index])))
        return in_order(openings)
