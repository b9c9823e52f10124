"""Which stages are open at this moment of the run.

Pure code: a strategy is a small frozen dataclass that maps the progress of a run and the names
of its stages (head first) to the names of the stages that are open. It remembers nothing, so a
run that was resumed is right by construction. Those that decide from metrics or gradients read
what was noted of them in the progress, too.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, ClassVar

from .checks import boolean, is_number, one_of, positive, whole
from .moments import Moment, Progress, Run, When, named
from .report import listing

Opening = tuple[int, frozenset[str]]
NamesOf = Callable[[Any], Sequence[str]]


class Strategy:
    """The rule that says which stages are open when.

    A subclass gives :meth:`open_stages` and :meth:`next_step`. Both must follow from their
    arguments alone. What does not follow from time (metrics, gradients) is noted once, by
    :meth:`decide` or :meth:`decide_from_gradients`, on one rank; the note is handed to all
    ranks, travels with checkpoints, and comes back in ``progress.decisions``.
    """

    #: Its name in flags and YAML.
    name: ClassVar[str]
    #: Whether it notes anything. Then :meth:`decide` is asked after each evaluation.
    decides: ClassVar[bool] = False
    #: Whether it cannot work in a run that never evaluates.
    needs_evaluation: ClassVar[bool] = False
    #: Whether it cannot go on in the middle of a run without its notes.
    needs_record: ClassVar[bool] = False
    #: Whether it ever measures gradients.
    measures: ClassVar[bool] = False
    #: Whether it has no meaning if the head is to stay frozen.
    needs_head: ClassVar[bool] = False
    #: Whether the optimizer's state of what it freezes again is dropped, unless the user says.
    frees_state: ClassVar[bool] = False
    #: Whether :meth:`open_stages` is code of the user, which may differ from rank to rank.
    foreign: ClassVar[bool] = False
    #: Whether the best weights since the last transition are loaded at the next.
    restore_best: bool = False

    def open_stages(self, progress: Progress, stages: Sequence[str]) -> tuple[str, ...]:
        """The names of the open stages, in the order of ``stages``.

        >>> run = Run.of(epochs=3, steps_per_epoch=10)
        >>> Gradual(every=1).open_stages(Progress(10, run), ["head", "layer2", "layer1"])
        ('head', 'layer2')
        """
        raise NotImplementedError

    def next_step(self, progress: Progress, stages: Sequence[str]) -> int | None:
        """The next step at which to look again; ``None`` if nothing that is known now comes."""
        raise NotImplementedError

    def check(self, run: Run, stages: Sequence[str]) -> None:
        """Refuse a run or stages that the strategy does not fit.

        Raises:
            ValueError: saying what to change.
        """

    def with_stages(self, names_of: NamesOf, stages: Sequence[str]) -> Strategy:
        """The same with every selector replaced by the names of the stages that it means.

        Args:
            names_of: tells them.
            stages: the names of all stages, head first, whether they may open or not.
        """
        return self

    def decide(self, progress: Progress, stages: Sequence[str]) -> Any:
        """What to note after an evaluation, as plain JSON; ``None`` for nothing.

        ``progress.metrics`` are those of this evaluation.
        """
        return None

    def understands(self, note: Any) -> bool:
        """Whether a note read from a checkpoint is one of its own."""
        return True

    def unknown_metric(self, seen: Mapping[str, Any]) -> str:
        """What to say when no evaluation had what it needs; ``seen`` are those that they had."""
        return f"{self!r} has no use for any of {', '.join(sorted(seen))}"

    def samples_gradients(self, progress: Progress, stages: Sequence[str]) -> bool:
        """Whether the gradients of the step that comes now are to be measured."""
        return False

    def decide_from_gradients(self, relative_norms: Mapping[str, float]) -> Any:
        """What to note of them, by stage: norm of the gradient / norm of the weights."""
        return None

    def best_step(self, progress: Progress, stages: Sequence[str]) -> int | None:
        """The step of the best evaluation since the last transition, if there was one.

        An opening that is due at this very step has not happened yet.
        """
        return None

    def timetable(self, run: Run, stages: Sequence[str]) -> list[Opening]:
        """The steps at which the set of open stages changes, with the set from then on.

        Only what is known before the run: what is decided from metrics is not in it.

        >>> run = Run.of(epochs=2, steps_per_epoch=5)
        >>> [(step, *names) for step, names in Cyclic(every=1).timetable(run, ["head", "stem"])]
        [(0, 'head'), (5, 'stem')]
        """
        openings: list[Opening] = []
        step: int | None = 0
        while step is not None and (step == 0 or (run.total_steps and step < run.total_steps)):
            progress = Progress(step, run, stages=tuple(stages))
            names = frozenset(self.open_stages(progress, stages))
            if not openings or openings[-1][1] != names:
                openings.append((step, names))
            step = self.next_step(progress, stages)
        return openings

    def __repr__(self) -> str:
        """The call that makes it, without arguments that have their default."""
        options: Any = dataclasses.fields(self) if dataclasses.is_dataclass(self) else ()
        values = [(each.name, getattr(self, each.name), each.default) for each in options]
        shown = ", ".join(f"{name}={value!r}" for name, value, usual in values if value != usual)
        return f"{type(self).__name__}({shown})"

    def ever_open(self, run: Run, stages: Sequence[str]) -> frozenset[str]:
        """The stages that may open at some time of the run."""
        return frozenset(stages)

    def never_open(self, run: Run, stages: Sequence[str]) -> list[tuple[str, int | None]]:
        """Stages that would open only after the end of the run, and the step they need.

        The step is ``None`` where the data has no length.
        """
        return []


class _Timed(Strategy):
    """A strategy whose moments are all known once the length of the run is."""

    def timetable(self, run: Run, stages: Sequence[str]) -> list[Opening]:
        """Moments that cannot be known yet (see :meth:`Run.step_of`) are left out."""
        raise NotImplementedError

    def open_stages(self, progress: Progress, stages: Sequence[str]) -> tuple[str, ...]:
        now: frozenset[str] = frozenset()
        for step, names in self.timetable(progress.run, stages):
            if step <= progress.step:
                now = names
        return tuple(name for name in stages if name in now)

    def next_step(self, progress: Progress, stages: Sequence[str]) -> int | None:
        steps = [step for step, _ in self.timetable(progress.run, stages)]
        return min((step for step in steps if step > progress.step), default=None)

    def check(self, run: Run, stages: Sequence[str]) -> None:
        timetable = self.timetable(run, stages)
        for step, opens in timetable:
            if not opens:
                raise ValueError(
                    f"nothing would train from step {step} on: all stages are "
                    f"frozen then ({listing(stages)}); keep one open at every moment"
                )
        if not timetable or timetable[0][0] > 0:
            first = f"step {timetable[0][0]}" if timetable else "the end"
            raise ValueError(f"nothing would train before {first}; open the head at moment 0")

    def ever_open(self, run: Run, stages: Sequence[str]) -> frozenset[str]:
        return frozenset().union(*(names for _, names in self.timetable(run.foreseen(), stages)))

    def never_open(self, run: Run, stages: Sequence[str]) -> list[tuple[str, int | None]]:
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


@dataclass(frozen=True, repr=False)
class Gradual(_Timed):
    """Gradual unfreezing: the head first, then one more stage at a time.

    Source: Howard & Ruder 2018, "Universal Language Model Fine-tuning for Text Classification"
    (ULMFiT), section 3.3, which opens one more layer per epoch (``every=1``).

    Args:
        every: time between two openings. By default the openings are spread evenly from
            ``start`` to the beginning of the last epoch, so that every stage trains.
        start: when the second stage opens; by default after ``every``, or after
            the first epoch. A run of one epoch or less, or one whose data has no length, is cut
            into equal parts instead, one per stage.
        direction: ``"top_down"``: from the head to the input. ``"bottom_up"``: from the input
            to the head, which opens last. That is for shifts at the input (other cameras,
            other noise) under a head that was trained before; a new head would stay random
            until the end. Source: Lee et al. 2023, "Surgical Fine-Tuning Improves Adaptation
            to Distribution Shifts".

    >>> run = Run.of(epochs=4, steps_per_epoch=10)
    >>> [step for step, _ in Gradual().timetable(run, ["head", "top", "bottom"])]
    [0, 10, 30]
    """

    name: ClassVar[str] = "gradual"
    every: When | None = None
    start: When | None = None
    direction: str = "top_down"

    def __post_init__(self) -> None:
        if self.every is not None:
            named("every", Moment.length, self.every)
        if self.start is not None:
            named("start", Moment.of, self.start)
        one_of("direction", self.direction, ("top_down", "bottom_up"))

    def timetable(self, run: Run, stages: Sequence[str]) -> list[Opening]:
        if self.direction == "bottom_up":
            stages = stages[::-1]
        openings: list[tuple[int | None, frozenset[str]]] = [(0, frozenset(stages[:1]))]
        for index in range(len(stages) - 1):
            step = self._opening(run, index, len(stages) - 1)
            openings.append((step, frozenset(stages[: index + 2])))
        return _timetable(openings)

    def _opening(self, run: Run, index: int, count: int) -> int | None:
        """The step at which the stage ``index`` after the first opens."""
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


@dataclass(frozen=True, repr=False)
class HeadOnly(_Timed):
    """Linear probing: only the head trains, from beginning to end.

    Source: Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features and Underperform
    Out-of-Distribution".

    >>> HeadOnly().timetable(Run.of(total_steps=10), ["head", "layer1"])
    [(0, frozenset({'head'}))]
    """

    name: ClassVar[str] = "head_only"
    needs_head: ClassVar[bool] = True

    def timetable(self, run: Run, stages: Sequence[str]) -> list[Opening]:
        return [(0, frozenset(stages[:1]))]


@dataclass(frozen=True, repr=False)
class HeadThenAll(_Timed):
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
    needs_head: ClassVar[bool] = True
    at: When = "50%"

    def __post_init__(self) -> None:
        named("at", Moment.of, self.at)

    def timetable(self, run: Run, stages: Sequence[str]) -> list[Opening]:
        return _timetable(
            [(0, frozenset(stages[:1])), (run.step_of(Moment.of(self.at)), frozenset(stages))]
        )


@dataclass(frozen=True, repr=False)
class Explicit(_Timed):
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
    unfreeze_at: Mapping[When, Any] = dataclasses.field(hash=False)

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
        object.__setattr__(self, "unfreeze_at", dict(self.unfreeze_at))  # nobody else's

    def selectors(self) -> list[Any]:
        """Every selector, in order of time as far as the order in the mapping tells."""
        return [selector for _, changes in self._changes() for _, selector in changes]

    def with_stages(self, names_of: NamesOf, stages: Sequence[str] = ()) -> Explicit:
        """The same with every selector replaced by the names of the stages that it means."""
        return Explicit(
            {
                when: {verb: list(names_of(selector)) for verb, selector in changes}
                for when, changes in self._changes()
            }
        )

    def timetable(self, run: Run, stages: Sequence[str]) -> list[Opening]:
        known = set(stages)
        entries: list[tuple[int, list[tuple[str, Any]]]] = []
        for when, changes in self._changes():
            step = run.step_of(Moment.of(when))
            if step is not None:
                entries.append((step, changes))
        openings: list[tuple[int | None, frozenset[str]]] = []
        now: frozenset[str] = frozenset()
        for step, changes in entries:
            for verb, what in changes:
                names = frozenset(
                    stages if what == "*" else [what] if isinstance(what, str) else what
                )
                now = now | (names & known) if verb == "unfreeze" else now - names
            openings.append((step, now))
        return _timetable(openings)

    def check(self, run: Run, stages: Sequence[str]) -> None:
        known = [(when, run.step_of(Moment.of(when))) for when in self.unfreeze_at]
        times = [(when, step) for when, step in known if step is not None]
        for (before, earlier), (when, step) in zip(times, times[1:]):
            if step < earlier:
                raise ValueError(
                    f"unfreeze_at: the moments are out of order: {when!r} (step {step}) stands "
                    f"after {before!r} (step {earlier}); write them in order of time"
                )
        super().check(run, stages)

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


def _enough(strategy: Any, among: Sequence[str], besides: str) -> None:
    if strategy.k > len(among):
        raise ValueError(
            f"k={strategy.k} stages cannot be open at a time: there are {len(among)}{besides} "
            f"({listing(among) or 'none'}); "
            + (f"give k from 1 to {len(among)}" if among else "give the network more stages")
        )


@dataclass(frozen=True, repr=False)
class ChainThaw(_Timed):
    """Chain-thaw: the head, then each other stage alone from the input up, then all together.

    Source: Felbo et al. 2017, "Using millions of emoji occurrences to learn any-domain
    representations for detecting sentiment, emotion and sarcasm" (DeepMoji), section 3.3.

    Args:
        every: how long each of these phases lasts; the last one lasts to the end. By default
            the run is cut into equal parts.

    >>> run = Run.of(total_steps=40)
    >>> for step, names in ChainThaw().timetable(run, ["head", "top", "bottom"]):
    ...     print(step, sorted(names))
    0 ['head']
    10 ['bottom']
    20 ['top']
    30 ['bottom', 'head', 'top']
    """

    name: ClassVar[str] = "chain_thaw"
    every: When | None = None

    def __post_init__(self) -> None:
        if self.every is not None:
            named("every", Moment.length, self.every)

    def timetable(self, run: Run, stages: Sequence[str]) -> list[Opening]:
        phases = self._phases(stages)
        every = Moment.of(self.every) if self.every is not None else None
        every = every or Moment(Fraction(1, len(phases)), "share")
        nothing = Moment(Fraction(0), every.unit)
        return _timetable(
            [(run.step_of(nothing.plus(every, index)), opens) for index, opens in enumerate(phases)]
        )

    @staticmethod
    def _phases(stages: Sequence[str]) -> list[frozenset[str]]:
        alone = [frozenset([name]) for name in (*stages[:1], *stages[:0:-1])]
        return [*alone, frozenset(stages)] if len(stages) > 1 else alone

    def check(self, run: Run, stages: Sequence[str]) -> None:
        super().check(run, stages)
        known = self.timetable(run.foreseen(), stages)
        reached = [step for step, _ in known if run.total_steps is None or step < run.total_steps]
        count = len(self._phases(stages))
        if len(reached) < count:
            raise ValueError(
                f"every: a chain-thaw of {len(stages)} stages has {count} phases, and this run has "
                f"room for {len(reached)}: the last, in which all train, would never come; "
                + ("make the run longer" if self.every is None else "shorten every")
                + f", or merge the backbone: stages={max(len(reached) - 2, 1)}"
            )


@dataclass(frozen=True, repr=False)
class FreezeDown(_Timed):
    """Everything trains at first; then stages freeze one by one from the input side.

    The i-th of m stages below the head freezes at ``until * (i / m) ** power``; the head trains
    to the end.

    Sources: Brock et al. 2017, "FreezeOut: Accelerate Training by Progressively Freezing
    Layers" (moments spaced linearly or cubically; its annealing of each layer's rate is left
    out). AutoFreeze (Liu et al. 2021) and Egeria (Wang et al. 2023) freeze in this direction, at
    moments found while training; for that see :class:`ByGradient`.

    Args:
        until: when the last stage below the head freezes; by default at the end of the run.
        power: 1 spaces the moments evenly, 3 (cubic) has the input side freeze early.

    >>> run = Run.of(total_steps=80)
    >>> rule = FreezeDown("50%")
    >>> [(step, len(names)) for step, names in rule.timetable(run, ["head", "top", "bottom"])]
    [(0, 3), (20, 2), (40, 1)]
    """

    name: ClassVar[str] = "freeze_down"
    until: When = "100%"
    power: float = 1

    def __post_init__(self) -> None:
        named("until", Moment.length, self.until)
        positive("power", self.power, "1 (linear) or 3 (cubic)")

    def timetable(self, run: Run, stages: Sequence[str]) -> list[Opening]:
        until, below = Moment.of(self.until), len(stages) - 1
        openings: list[tuple[int | None, frozenset[str]]] = [(0, frozenset(stages))]
        for index in range(1, below + 1):
            # A power that is not whole makes a float, whose last bit must not move a moment.
            share = Fraction(Fraction(index, below) ** self.power).limit_denominator(10**9)
            step = run.step_of(Moment(until.value * share, until.unit))
            openings.append((step, frozenset(stages[: len(stages) - index])))
        return _timetable(openings)


class _Periodic(Strategy):
    """A strategy that changes every so often, for as long as the run lasts."""

    every: When

    def _period(self, index: int, stages: Sequence[str]) -> frozenset[str]:
        """What is open in the period with this index, from 0."""
        raise NotImplementedError

    def open_stages(self, progress: Progress, stages: Sequence[str]) -> tuple[str, ...]:
        names = self._period(progress.run.passed(Moment.of(self.every), progress.step), stages)
        return tuple(name for name in stages if name in names)

    def next_step(self, progress: Progress, stages: Sequence[str]) -> int | None:
        every = Moment.of(self.every)
        index = progress.run.passed(every, progress.step) + 1
        return progress.run.step_of(Moment(every.value * index, every.unit))


@dataclass(frozen=True, repr=False)
class RandomStages(_Periodic):
    """LISA: ``k`` random stages train at a time, redrawn every so often.

    The draw follows from the seed and the number of the period alone: the same on every rank
    and after a resume. The optimizer's state of what freezes is dropped, which is what saves
    memory; ``FreezeSchedule(free_optimizer_state=False)`` keeps it.

    Source: Pan et al. 2024, "LISA: Layerwise Importance Sampling for Memory-Efficient Large
    Language Model Fine-Tuning".

    Args:
        k: how many stages are drawn, besides those always open.
        every: how long they stay open.
        always: stages that are open all the time: names or selectors. ``"head"`` and
            ``"embeddings"`` mean the first and the last stage, whatever their names.
        seed: another seed, another sequence of draws.

    >>> rule = RandomStages(k=1, every="10 steps")
    >>> for step in (0, 10, 20):
    ...     now = Progress(step, Run.of(total_steps=30))
    ...     print(rule.open_stages(now, ["head", "layer2", "layer1", "layer0", "embeddings"]))
    ('head', 'layer1', 'embeddings')
    ('head', 'layer0', 'embeddings')
    ('head', 'layer0', 'embeddings')
    """

    name: ClassVar[str] = "random_stages"
    frees_state: ClassVar[bool] = True
    k: int = 2
    every: When = "20 steps"
    always: Sequence[Any] = ("head", "embeddings")
    seed: int = 0

    def __post_init__(self) -> None:
        whole("k", self.k, 1)
        whole("seed", self.seed, 0)
        named("every", Moment.length, self.every)
        if not isinstance(self.always, (list, tuple)):
            raise TypeError(
                f'always={self.always!r} must be a list of stages, such as ["head", "embeddings"]'
            )
        object.__setattr__(self, "always", tuple(self.always))  # hashable, and nobody's list

    def with_stages(self, names_of: NamesOf, stages: Sequence[str]) -> RandomStages:
        names: list[str] = []
        for one in self.always:
            try:
                role = _role(one, stages)
                names += names_of(one) if role is None else [role]
            except (TypeError, ValueError) as error:
                raise type(error)(f"always: {error}") from None
        return _Settled(self.k, self.every, names, self.seed)

    def check(self, run: Run, stages: Sequence[str]) -> None:
        run.passed(Moment.of(self.every), 0)
        _enough(self, self._drawn(stages), " to draw from, besides those always open")

    def _drawn(self, stages: Sequence[str]) -> list[str]:
        always = [_role(one, stages) or one for one in self.always]
        return [name for name in stages if name not in always]

    def _period(self, index: int, stages: Sequence[str]) -> frozenset[str]:
        among = self._drawn(stages)

        # Not random.sample(): its draws may change between versions of Python.
        def lot(name: str) -> bytes:
            return hashlib.blake2b(f"{self.seed}/{index}/{name}".encode()).digest()

        closed = sorted(among, key=lot)[self.k :]
        return frozenset(stages).difference(closed)


def _role(one: Any, stages: Sequence[str]) -> str | None:
    """The stage that has this role, or this name."""
    if not isinstance(one, str):
        return None
    return one if one in stages else {"head": stages[0], "embeddings": stages[-1]}.get(one)


@dataclass(frozen=True, repr=False)
class _Settled(RandomStages):
    """The same when it is settled which stages are always open, be they among those drawn or not.

    Without this, the lowest block would take the part of embeddings that stay frozen.
    """

    def _drawn(self, stages: Sequence[str]) -> list[str]:
        return [name for name in stages if name not in self.always]


@dataclass(frozen=True, repr=False)
class Cyclic(_Periodic):
    """Block coordinate descent: the stages train in turn, ``k`` at a time, round and round.

    The head is one of them. The optimizer's state of what freezes is dropped, which is what
    saves memory; ``FreezeSchedule(free_optimizer_state=False)`` keeps it.

    Source: Luo et al. 2024, "BAdam: A Memory Efficient Full Parameter Optimization Method for
    Large Language Models".

    Args:
        k: how many stages are open at a time.
        every: how long they stay open; BAdam's K.
        order: ``"descending"``: from the head to the input; ``"ascending"``: the other way.

    >>> rule = Cyclic(k=2, every="5 steps")
    >>> for step in (0, 5, 10):
    ...     now = Progress(step, Run.of(total_steps=15))
    ...     print(rule.open_stages(now, ["head", "top", "bottom"]))
    ('head', 'top')
    ('head', 'bottom')
    ('top', 'bottom')
    """

    name: ClassVar[str] = "cyclic"
    frees_state: ClassVar[bool] = True
    k: int = 1
    every: When = "100 steps"
    order: str = "descending"

    def __post_init__(self) -> None:
        whole("k", self.k, 1)
        named("every", Moment.length, self.every)
        one_of("order", self.order, ("descending", "ascending"))

    def check(self, run: Run, stages: Sequence[str]) -> None:
        run.passed(Moment.of(self.every), 0)
        _enough(self, stages, " stages")

    def _period(self, index: int, stages: Sequence[str]) -> frozenset[str]:
        ordered = stages if self.order == "descending" else stages[::-1]
        first = index * self.k
        return frozenset(ordered[(first + i) % len(ordered)] for i in range(self.k))


# What the names of metrics tell about which way is better.
_MORE = frozenset(
    [
        "acc",
        "accuracy",
        "f1",
        "auc",
        "precision",
        "recall",
        "score",
        "bleu",
        "rouge",
        "map",
        "iou",
        "r2",
        "corr",
        "pearson",
        "spearman",
        "matthews",
        "reward",
        "top1",
        "top5",
    ]
)
_LESS = frozenset(["loss", "error", "err", "perplexity", "ppl", "mse", "rmse", "mae", "wer", "cer"])


@dataclass(frozen=True)
class _Phase:
    """How far a metric-driven schedule has come: what one pass over the evaluations tells."""

    opened: int = 1
    began: int = 0
    best: float | None = None
    best_step: int | None = None
    waited: int = 0


@dataclass(frozen=True, repr=False)
class OnPlateau(Strategy):
    """The next stage opens when a metric stops improving.

    What has been the best so far counts from the last opening on.

    Source: the early-stopping driven schedules of finetuning-scheduler for Lightning.

    Args:
        metric: its name, as the loop logs it: ``"eval_accuracy"`` in a Trainer, ``"acc"`` in
            ``paddle.Model.fit``.
        patience: after so many evaluations in a row without an improvement the next opens.
        min_delta: an improvement is a change by more than this.
        mode: ``"max"`` if more is better, ``"min"`` if less is; by default told by the name.
        max_wait: the longest time until the next opens, however much the metric improves.
        restore_best: load the weights of the best evaluation since the last opening before the
            next stage opens. The optimizer's moments stay as they are.

    >>> rule = OnPlateau("eval_accuracy", patience=1)
    >>> def noted(step, value):
    ...     return step, {"metric": "eval_accuracy", "value": value}
    >>> seen = (noted(10, 0.7), noted(20, 0.8), noted(30, 0.8))
    >>> now = Progress(30, Run.of(total_steps=100), decisions=seen)
    >>> rule.open_stages(now, ["head", "top", "bottom"])
    ('head', 'top')
    """

    name: ClassVar[str] = "on_plateau"
    decides: ClassVar[bool] = True
    needs_evaluation: ClassVar[bool] = True
    needs_record: ClassVar[bool] = True
    metric: str
    patience: int = 2
    min_delta: float = 0.0
    mode: str | None = None
    max_wait: When | None = None
    restore_best: bool = False

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
                f"mode: whether more or less of {self.metric!r} is better cannot be told from its "
                "name; give mode='max' or mode='min'"
            )
        if self.max_wait is not None:
            named("max_wait", Moment.length, self.max_wait)
        boolean("restore_best", self.restore_best)

    def check(self, run: Run, stages: Sequence[str]) -> None:
        if self.max_wait is not None:
            try:
                run.after(0, Moment.of(self.max_wait))
            except ValueError as error:
                raise ValueError(f"max_wait: {error}") from None

    def decide(self, progress: Progress, stages: Sequence[str]) -> Any:
        """Note the metric's value, if this evaluation has it."""
        value = progress.metrics.get(self.metric)
        if value is None or not is_number(value):
            return None
        return {"metric": self.metric, "value": float(value)}

    def understands(self, note: Any) -> bool:
        return isinstance(note, Mapping) and note.get("metric") == self.metric

    def unknown_metric(self, seen: Mapping[str, Any]) -> str:
        near = difflib.get_close_matches(self.metric, seen, n=1, cutoff=0.4)
        if self.metric in seen:
            why = f"is no number but {type(seen[self.metric]).__name__}"
        else:
            listed = ", ".join(sorted(seen)) or "none at all"
            why = f"is none of the metrics of this evaluation: {listed}"
        hint = f"; did you mean {near[0]!r}?" if near and self.metric not in seen else ""
        return f"metric={self.metric!r} {why}{hint}"

    def open_stages(self, progress: Progress, stages: Sequence[str]) -> tuple[str, ...]:
        return tuple(stages[: self._phase(progress, len(stages)).opened])

    def next_step(self, progress: Progress, stages: Sequence[str]) -> int | None:
        phase = self._phase(progress, len(stages))
        return None if phase.opened == len(stages) else self._deadline(progress.run, phase)

    def best_step(self, progress: Progress, stages: Sequence[str]) -> int | None:
        return self._phase(progress, len(stages), due=progress.step - 1).best_step

    def _phase(self, progress: Progress, count: int, due: int | None = None) -> _Phase:
        """Where it stands, after openings by the longest wait up to the step ``due``."""
        phase = _Phase()
        for step, note in progress.decisions:
            if step > progress.step:
                break
            # What is due at the very step of an evaluation follows it.
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
        """The phase after all openings that the longest wait has brought by this step."""
        while phase.opened < count:
            due = self._deadline(run, phase)
            if due is None or due > step:
                break
            phase = _Phase(phase.opened + 1, due)
        return phase

    def _deadline(self, run: Run, phase: _Phase) -> int | None:
        return None if self.max_wait is None else run.after(phase.began, Moment.of(self.max_wait))


def _better(metric: str) -> str | None:
    """Whether more or less of a metric is better, as far as its name tells.

    >>> _better("eval_accuracy"), _better("eval_loss"), _better("eval_x")
    ('max', 'min', None)
    """
    words = set(re.split(r"[^a-z0-9]+", metric.lower()))
    more, less = words & _MORE, words & _LESS
    return None if bool(more) == bool(less) else "max" if more else "min"


@dataclass(frozen=True, repr=False)
class ByGradient(Strategy):
    """Everything trains at first; stages whose gradients have become small freeze for good.

    At set moments the relative gradient norm of each open stage, norm of gradient / norm of
    weights, is measured in one optimizer step. A stage stays open if its value is at least
    ``threshold`` times the largest. Being relative, it does not depend on the scale of the loss.

    Sources: Lee et al. 2023, "Surgical Fine-Tuning Improves Adaptation to Distribution Shifts"
    (the criterion, Auto-RGN, used there to scale rates); Liu et al. 2021, "AutoFreeze:
    Automatically Freezing Model Blocks to Accelerate Fine-tuning" (freezing by gradient norms).

    In data-parallel training the gradients of rank 0's share of the batch decide for all.
    ``schedule.as_explicit()`` gives the decisions as a schedule to replay.

    Args:
        every: time between two measurements; the first comes after one such time.
        threshold: share of the largest value, over 0 and up to 1.

    >>> seen = ((10, {"gradients": {"head": 0.5, "top": 0.2, "bottom": 0.01}}),)
    >>> now = Progress(10, Run.of(total_steps=100), decisions=seen)
    >>> ByGradient(threshold=0.1).open_stages(now, ["head", "top", "bottom"])
    ('head', 'top')
    """

    name: ClassVar[str] = "by_gradient"
    measures: ClassVar[bool] = True
    decides: ClassVar[bool] = True
    needs_record: ClassVar[bool] = True
    every: When = "10%"
    threshold: float = 0.1

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

    def samples_gradients(self, progress: Progress, stages: Sequence[str]) -> bool:
        every = Moment.of(self.every)
        index = progress.run.passed(every, progress.step)
        moment = progress.run.step_of(Moment(every.value * index, every.unit))
        return index > 0 and moment == progress.step

    def decide_from_gradients(self, relative_norms: Mapping[str, float]) -> Any:
        """Note them, unless they say nothing (a step that loss scaling skips)."""
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
        rule: takes a :class:`Progress`, gives the names of the open stages (or one name). It is
            asked before every optimizer step and must follow from the progress alone. Its
            ``metrics`` are those evaluated so far, also after a resume.

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
                near = difflib.get_close_matches(str(name), stages, n=2)
                hint = f"did you mean {' or '.join(near)}?" if near else listing(stages)
                raise ValueError(
                    f"{what} gave the stage {name!r} at step {progress.step}, which is not one "
                    f"of the {len(stages)} that it decides about; {hint}"
                )
        if not names:
            raise ValueError(
                f"nothing would train from step {progress.step} on: {what} gave no stage; "
                "keep one open at every moment"
            )
        return tuple(name for name in stages if name in names)

    def next_step(self, progress: Progress, stages: Sequence[str]) -> int | None:
        return progress.step + 1

    def timetable(self, run: Run, stages: Sequence[str]) -> list[Opening]:
        return [(0, frozenset(self.open_stages(Progress(0, run), stages)))]

    def decide(self, progress: Progress, stages: Sequence[str]) -> Any:
        """Note all metrics that are numbers."""
        found = {n: float(v) for n, v in progress.metrics.items() if is_number(v)}
        return {"metrics": found} if found else None

    def understands(self, note: Any) -> bool:
        return isinstance(note, Mapping) and "metrics" in note


STRATEGIES: dict[str, type[Strategy]] = {
    strategy.name: strategy
    for strategy in (
        Gradual,
        HeadOnly,
        HeadThenAll,
        Explicit,
        ChainThaw,
        FreezeDown,
        RandomStages,
        Cyclic,
        OnPlateau,
        ByGradient,
    )
}


def options_of(strategy: type[Strategy]) -> tuple[str, ...]:
    """The names of a strategy's arguments."""
    return tuple(field.name for field in dataclasses.fields(strategy))  # type: ignore[arg-type]


def required_of(strategy: type[Strategy]) -> tuple[str, ...]:
    """The names of those arguments of a strategy that have no default."""
    options: Any = dataclasses.fields(strategy)  # type: ignore[arg-type]
    return tuple(each.name for each in options if each.default is dataclasses.MISSING)
