"""What should be open at a step, until when, and why.

Pure: nothing here touches a network, and every answer follows from the arguments alone. So a
resumed run gets the answers that the first one got.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

from ..strategies.explicit import Explicit
from ..strategies.moments import Moment, When
from ..strategies.phases import Pace
from ..strategies.run import Progress, Run

if TYPE_CHECKING:  # a plan is fitted to a network; nothing here needs one
    from .plan import Plan

Names = tuple[str, ...]

_SLICES = 24  # of a ramp, in a picture


@dataclass(frozen=True)
class Openings:
    """When stages opened, as far as learning-rate ramps need it.

    Attributes:
        since: the step at which each open stage opened. 0 stands for "at the start" and for "so
            long ago that its ramp is over".
        latest: the last step at which a stage opened, be it still open or not; 0 for none.

    >>> Openings({"head": 0}).then(5, ("head", "top")).then(9, ("top",))
    Openings(since={'top': 5}, latest=5)
    """

    since: Mapping[str, int] = field(default_factory=dict)
    latest: int = 0

    def then(self, step: int, names: Iterable[str]) -> Openings:
        """The same after a transition to these open stages."""
        since = {name: self.since.get(name, step) for name in names}
        return Openings(since, self.latest if since.keys() <= self.since.keys() else step)


class Rate(NamedTuple):
    """At which learning-rate multiplier a stage trains in steps from ``first`` to ``after``.

    The multiplier is without ramps; ``ramp`` is the factor of theirs, up to 1.
    """

    first: int
    after: int
    multiplier: float
    ramp: float


@dataclass(frozen=True)
class Timeline:
    """A run under a plan, from its first step to its last.

    Attributes:
        plan: the schedule, fitted to a network.
        run: how long the run is.
        decisions: what the strategy decided so far, oldest first: pairs of step and note.
        agreed: makes the open stages equal on all ranks, where the rule is code of the user.
    """

    plan: Plan
    run: Run
    decisions: tuple[tuple[int, Any], ...] = ()
    agreed: Callable[[Names], Names] = lambda names: names

    def with_decision(self, step: int, note: Any) -> Timeline:
        """The same with one more decision, made after so many steps."""
        return replace(self, decisions=(*self.decisions, (step, note)))

    def epoch_began(self, step: int) -> Timeline:
        """The same after an epoch has begun, in a run whose data has no length."""
        return replace(self, run=self.run.epoch_began(step))

    def progress(self, step: int, metrics: Mapping[str, Any] | None = None) -> Progress:
        """Where training is after so many steps, with the decisions made until then."""
        names = self.plan.schedulable
        return Progress(step, self.run, metrics or {}, self.decisions, names).back_to(step)

    def open_at(self, step: int) -> Names:
        """The names of the stages that are open after so many steps."""
        names = self.plan.strategy.open_stages(self.progress(step), self.plan.schedulable)
        return (*self.agreed(names), *self.plan.always)

    def next_step(self, step: int) -> int | None:
        """The next step at which the open stages may change; ``None`` if none is known."""
        return self.plan.strategy.next_step(self.progress(step), self.plan.schedulable)

    def measures_at(self, step: int) -> bool:
        """Whether the strategy wants the gradients of the step that follows so many."""
        strategy = self.plan.strategy
        return strategy.samples_gradients(self.progress(step), self.plan.schedulable)

    def best_step(self, step: int) -> int | None:
        """The step of the best evaluation since the last transition, if there was one."""
        return self.plan.strategy.best_step(self.progress(step), self.plan.schedulable)

    def cause(self, step: int) -> Any:
        """The note by which the stages that are open at a step came about; ``None`` for time."""
        changed, now = list(self.walk(0, step + 1))[-1]
        before = [decision for decision in self.decisions if decision[0] < changed]
        notes = [note for at, note in self.decisions if at == changed]
        by_time = replace(self, decisions=tuple(before)).open_at(changed) == now
        return None if by_time or not notes else notes[-1]

    def walk(self, start: int, end: int) -> Iterator[tuple[int, Names]]:
        """The open stages at a step, and at each later one before the end where they change."""
        decided = [step for step, _ in self.decisions]
        at: int | None = start
        before: Names | None = None
        while at is not None and at < end:
            now = self.open_at(at)
            if now != before:
                yield at, now
            before = now
            coming = [self.next_step(at), *decided]
            at = min((step for step in coming if step is not None and step > at), default=None)

    def repeats(self, step: int) -> bool | None:
        """Whether samples come again before another stage opens, counted from a step.

        That is at least as many as there are in one step, of shuffled epochs. What freezes before
        is taken to leave a frozen prefix as it is. ``None`` if it is not known: what opens is
        decided while it runs, or the run or its epochs have no known length.
        """
        strategy, total, epoch = self.plan.strategy, self.run.total_steps, self.run.steps_per_epoch
        if strategy.decides or strategy.measures or not (total and epoch):
            return None
        changes = self.walk(step, total)
        _, now = next(changes, (step, ()))
        end, then = next(changes, (total, now))
        if end < total and set(then).issubset(now):
            return True
        first = epoch - step % epoch  # steps until the samples begin to come again
        second = max(end - step - first, 0)  # steps from then on
        return min(second, epoch) * first / epoch + max(second - epoch, 0) >= 1

    def openings(self, step: int) -> Openings:
        """When the stages that are open at a step opened, as far as a ramp reaches back."""
        window = self.plan.learning_rates.window(self.run)
        (_, names), *later = self.walk(max(step - 1 - window, 0) if window else step, step + 1)
        found = Openings(dict.fromkeys(names, 0))
        for at, names in later:
            found = found.then(at, names)
        return found

    def pace(self, step: int, since: Pace | None = None) -> Pace:
        """The rate of the phase at a step.

        Args:
            step: optimizer steps done.
            since: that of the same phase or an earlier one, where the search begins; the answer
                does not depend on it.
        """
        own, begin = self.peaks(), since.began if since else 0
        begins = {at for at, _ in self.walk(begin, step + 1)}
        begins.update(at for at in own if begin <= at <= step)
        pace = since
        for at in sorted(begins):
            if since is None or at > begin:
                pace = self.plan.learning_rates.pace(pace, at, own.get(at))
        assert pace is not None
        ends = [at for at in own if at > pace.began]
        if pace.moves and self.run.total_steps:
            total = max(self.run.total_steps, pace.began + 1)
            known = tuple(one for one in self.decisions if one[0] <= pace.began)
            foreseen = replace(self, decisions=known).walk(pace.began, total)
            ends += [total, *(at for at, _ in itertools.islice(foreseen, 1, 2))]
        return replace(pace, until=min(ends, default=None))

    def paces(self) -> dict[int, Pace]:
        """The rate at each change that is known before the run, by its step."""
        found: dict[int, Pace] = {}
        for step, _ in self.plan.timetable(self.run):
            found[step] = self.pace(step, next(reversed(found.values()), None))
        return found

    def curve(self, steps: Sequence[int], most: int = 200) -> list[tuple[int, float]]:
        """What the rate of all stages is multiplied by, as points to draw.

        Args:
            steps: where phases may begin, and at last the end.
            most: how many points a phase has, about.
        """
        points: list[tuple[int, float]] = []
        pace = None
        begins = {*steps, *(at for at in self.peaks() if steps[0] < at < steps[-1])}
        for step, until in itertools.pairwise(sorted(begins)):
            pace = self.pace(step, pace)
            every = max((until - step) // most, 1) if pace.moves else until - step
            points += [(at, pace.at(at)) for at in sorted({*range(step, until, every), until - 1})]
        return points

    def peaks(self) -> dict[int, float]:
        """The peaks that the strategy sets, by the step at which their phases begin."""
        peaks = self.plan.strategy.peaks().items()
        steps = [(self.run.step_of(Moment.of(when)), peak) for when, peak in peaks]
        return {step: peak for step, peak in steps if step is not None}

    def multipliers(
        self, step: int, openings: Openings, pace: Pace | None = None
    ) -> tuple[dict[str, float], bool]:
        """The learning-rate multiplier of each stage, and whether any changes at the next step."""
        rates = self.plan.learning_rates
        ramps = rates.ramps(step, self.run, openings.since, openings.latest)
        whole, all_alike = self.plan.multipliers, pace.at(step) if pace else 1.0
        return (
            {name: rate * ramps.get(name, 1.0) * all_alike for name, rate in whole.items()},
            bool(ramps) or (pace is not None and pace.moves),
        )

    def rates(self, changes: Iterable[tuple[int, Names]], until: int) -> dict[str, list[Rate]]:
        """Stage by stage, at which multiplier it trains when; ramps in slices.

        Args:
            changes: steps at which the open stages change, with the open ones from then on.
            until: the step after the last.
        """
        window = self.plan.learning_rates.window(self.run)
        found: dict[str, list[Rate]] = {}
        openings: Openings | None = None
        for (at, names), (end, _) in itertools.pairwise([*changes, (until, ())]):
            start = Openings(dict.fromkeys(names, 0))
            openings = openings.then(at, names) if openings else start
            ramped = min(at + window, end)
            cuts = [*range(at, ramped, max(window // _SLICES, 1)), ramped, end]
            for first, after in itertools.pairwise(cuts):
                ramps = self.plan.learning_rates.ramps(
                    first, self.run, openings.since, openings.latest
                )
                for name in names if first < after else ():
                    share, own = ramps.get(name, 1.0), found.setdefault(name, [])
                    whole = self.plan.multipliers.get(name, 1.0)
                    if own and own[-1][1:] == (first, whole, share):
                        first_of_it = own.pop().first
                    else:
                        first_of_it = first
                    own.append(Rate(first_of_it, after, whole, share))
        return found

    def as_explicit(self, until: int, names_of: Mapping[str, list[str]]) -> Explicit:
        """What is open up to a step, as a schedule to replay.

        Args:
            until: the last step that counts.
            names_of: the names of layers and parameters that cover each stage.
        """
        moments: dict[When, Any] = {}
        before: Names = ()
        peaks, changes = self.peaks(), dict(self.walk(0, until + 1))
        for step in sorted({*changes, *(at for at in peaks if at <= until)}):
            now = changes.get(step, before)
            verbs = {
                "unfreeze": [name for name in now if name not in before],
                "freeze": [name for name in before if name not in now],
            }
            moments[str(Moment(Fraction(step), "steps")) if step else 0] = {
                verb: [name for stage in stages for name in names_of[stage]]
                for verb, stages in verbs.items()
                if stages
            } | ({"lr": peaks[step]} if step in peaks else {})
            before = now
        return Explicit(moments)
