"""One training run under a schedule: progress in, transitions out.

The three kinds of training loop (``paddle.Model``, a Trainer, one written by hand) all drive a
:class:`Freezing`, the only place where strategy, freezer, optimizer, cache and report meet. What
should be open follows from its :class:`.Timeline`; this class makes it so.
"""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import paddle
from paddle import nn

from ..cache.feature_cache import FeatureCache
from ..cache.options import CacheOptions, CacheStatistics
from ..checks import is_number, tensor_file
from ..freezing import optimizer as optimizers
from ..freezing import parallel, rates
from ..freezing.best_weights import BestWeights
from ..freezing.by_hand import held_by_hand
from ..freezing.freezer import Freezer
from ..freezing.gradients import GradientSample
from ..freezing.rates import Multipliers
from ..freezing.rows import train_rows
from ..freezing.savers import tell_savers
from ..options.norms import TrainNorm
from ..stages.declared import REST
from ..stages.partition import Stage, Stages, Survey, covering
from ..stages.selectors import Selector
from ..stages.weights import layers, own_parameters
from ..strategies.base import Strategy
from ..strategies.explicit import Explicit
from ..strategies.phases import Pace
from ..strategies.rates import LearningRates
from ..strategies.run import Run
from ..words import listing, warn
from .alone import within
from .conflicts import Conflicts
from .first_step import FirstStep
from .ownership import hold, release
from .plan import plan
from .preflight import (
    SPLIT_FILE,
    doubts,
    idle_cache,
    refuse_engines,
    refuse_misfits,
    refuse_optimizer,
    refuse_split,
)
from .record import Record, best_file, file_at
from .tensor_file import refuse_unwritable
from .timeline import Rate, Timeline
from .trained import Trained
from .transition import Open, Transition, numbers, tags

_NEVER = sys.maxsize


class Freezing:
    """A schedule at work on a network, from the beginning of a run to its end.

    Get one from :meth:`.FreezeSchedule.attach`, call :meth:`step` after each optimizer step, and
    :meth:`close` at the end (a ``with`` block does).

    Attributes:
        history: the transitions so far; the first is what the run began with.
        metrics: the results of evaluations, by name: (optimizer steps done, value).
        unreached: names of open weights that got no gradient in the first step after an opening.
    """

    def __init__(
        self,
        network: nn.Layer,
        optimizer: Any,
        stages: Stages,
        strategy: Strategy,
        run: Run,
        step: int = 0,
        *,
        learning_rates: LearningRates,
        frozen_norm: str = "eval",
        frozen_dropout: str = "train",
        train_norm: TrainNorm = "with_stage",
        rows: Mapping[str, slice] | None = None,
        untouched: Selector | None = None,
        on_conflict: str = "warn",
        verify: bool = False,
        restore: bool = True,
        save_trained: str | os.PathLike[str] | None = None,
        free_optimizer_state: bool = False,
        cache: CacheOptions | None = None,
        evaluates: bool = True,
        say: Callable[[str], object] = print,
        schedule: str = "",
        record: Record | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
    ) -> None:
        refuse_engines(network, optimizer)  # of a pipeline a process has a part alone
        survey = Survey(network, rows)
        release(network)
        self._plan = plan(survey, stages, strategy, learning_rates, untouched, train_norm)
        decisions = record.decisions if record else ()
        refuse_misfits(self._plan, survey, run, evaluates=evaluates, decisions=decisions)
        split = refuse_split(survey, cached=cache is not None, saves=save_trained is not None)
        self._split = bool(split)
        if save_trained is not None and parallel.rank() == 0:
            refuse_unwritable(save_trained)
        self._best_file = best_file(parallel.rank() if split else None)
        for doubt in doubts(self._plan, run, optimizer) + idle_cache(self._plan, run, cache):
            warn(doubt)
        will_open = refuse_optimizer(self._plan, survey, run, optimizer)
        held = held_by_hand(survey, will_open)
        if held:
            warn(
                f"freeze() holds the statistics of {listing(held)}, whose weights this schedule "
                "opens; call unfreeze() before the run, and leave it to the schedule"
            )
        self.history: list[Transition] = []
        self.metrics: dict[str, list[tuple[int, float]]] = {}
        self._optimizer = optimizer
        self._verify = verify
        self._restore = restore
        self._trained_file = save_trained
        self._say = say
        self._schedule = schedule
        self._undo: list[Callable[[], object]] = []
        self._numbers: dict[str, float] | None = None
        self._rates: list[float] = []
        self._free = free_optimizer_state
        self._freed: set[str] = set()
        self._seen: dict[str, Any] = {}
        self._step = step
        self._next = _NEVER  # the step at which to look, at flags or at all
        self._due = 0  # the step at which to look at all
        self._open: tuple[str, ...] = ()
        self._sums: dict[str, bytes] = {}
        self._known = _parameters(network)
        self._sample: GradientSample | None = None
        self._first_step: FirstStep | None = None
        self.unreached: tuple[str, ...] = ()
        self._timeline = Timeline(self._plan, run, decisions)
        self._pace: Pace | None = None
        self._moving = False  # whether a rate changes at the next step
        if strategy.foreign:  # code of the user, which may differ from rank to rank
            self._timeline = replace(self._timeline, agreed=_agreed)
        self._best = BestWeights(network, optimizer) if strategy.restore_best else None
        self._freezer = Freezer(
            survey,
            self._plan.stages,
            self._plan.openable,
            alone=self._plan.alone,
            pinned=self._plan.norms.pinned,
            frozen_norm=frozen_norm,
            frozen_dropout=frozen_dropout,
        )
        this = weakref.ref(self)
        self._conflicts = Conflicts(
            self._freezer, on_conflict, say, lambda: alive._step if (alive := this()) else 0
        )
        self._cache = None if cache is None else self._new_cache(network, cache)
        self._multipliers = Multipliers(
            {s.name: self._freezer.members(s.name) for s in self._plan.stages}
        )
        #: By stage, the name of its learning rate in :attr:`numbers`.
        self.tags = tags([stage.name for stage in self._plan.stages])
        hold(network, self)
        self.undo_also(unwatch := self._conflicts.watch(optimizer))
        weakref.finalize(self, unwatch).atexit = False
        opening = {weight.name for weight in will_open}
        trained = [w for w in survey.weights if w.trains or w.name in opening]
        self.undo_also(untell := tell_savers(network, trained))
        # If training fails and the run is thrown away, the network is still put back: what is
        # registered last comes first.
        weakref.finalize(self, untell).atexit = False
        weakref.finalize(self, self._freezer.restore).atexit = False
        weakref.finalize(self, self._multipliers.restore).atexit = False
        if self._cache is not None:
            weakref.finalize(self, self._cache.close).atexit = False
        try:
            self._openings = self._timeline.openings(step)
            before = self._timeline.open_at(step - 1) if step else ()
            self._trained = self._trained_before(record)
            optimizers.settle(optimizer, [w for n in before for w in self._freezer.members(n)])
            changes = record.changes(before, self._timeline.open_at(step)) if record else ""
            if changes:
                say(f"resumed at step {step} with another schedule than the saved run {changes}")
            if record is not None and checkpoint is not None:
                self._load_best(record, checkpoint, before)
            parallel.prepare(network, will_open)
            if split:
                say(split)
            self._look()
            partial = [weight for weight in survey.weights if weight.rows]
            self.undo_also(stop := train_rows(partial, optimizer))
            weakref.finalize(self, stop).atexit = False
            scheduled = (*self._plan.schedulable, *self._plan.always, *self._plan.norms.never, REST)
            left = [s for s in self.stages if s.name not in scheduled]
            alone = [s for s in left if self._plan.alone.issuperset(s.parameters)]
            frozen = [s.name for s in left if s not in alone]
            if frozen:
                how = "to train it, name it alone or set stop_gradient=False"
                say(f"left frozen, as found ({how}): {listing(frozen)}")
            named = [s.name for s in alone if not within(s.parameters[0], self._plan.twins)]
            if named:
                say(f"left alone, as found: {listing(named)}")
            for line in self._plan.of_twins():
                say(line)
        except BaseException:
            self._put_back()
            raise

    # ------------------------------------------------------------ driven by a training loop

    def step(self) -> None:
        """One more optimizer step is done. Call it after ``clear_grad()``."""
        self.at(self._step + 1)

    def at(self, step: int) -> None:
        """So many optimizer steps are done; make the network be as scheduled from here on."""
        self._step = step
        if step >= self._next:
            self._look()

    def epoch_began(self, step: int) -> None:
        """After so many steps an epoch begins, in a run whose data has no length."""
        self._step = step
        self._due = step
        self._timeline = self._timeline.epoch_began(step)
        self._find_pace()
        self._look()

    def evaluated(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """The loop evaluated; a strategy may decide from the metrics.

        Args:
            metrics: values by name.
            step: optimizer steps done, from a loop that calls :meth:`at` before the next one: a
                decision takes effect then. Without it, as in a hand-written loop, it takes effect
                at once.

        Raises:
            TypeError: if they are no mapping.
            ValueError: if the strategy needs a metric that is not there.
        """
        if not isinstance(metrics, Mapping):
            raise TypeError(
                f'evaluated({metrics!r}): give metrics by name, such as evaluated({{"acc": 0.5}})'
            )
        strategy = self._plan.strategy
        if not metrics and strategy.needs_evaluation and self._freezer.holds:
            raise ValueError(f"evaluated({{}}) has no metric, and {strategy!r} needs one")
        self._step = self._step if step is None else step
        self.check_flags(self._step)
        self.notice()
        values = {name: _single(value) for name, value in metrics.items()}
        self._seen.update(values)
        for name, value in values.items():
            if is_number(value):
                self.metrics.setdefault(name, []).append((self._step, float(value)))
        if not strategy.decides or not self._freezer.holds:
            return
        progress = self._timeline.progress(self._step, values)
        self._decide(strategy.decide(progress, self._plan.schedulable))
        if self._best is not None and self._timeline.best_step(self._step) == self._step:
            self._best.take(self._freezer.frozen() | self._not_ours())
        self._next = self._due = self._step
        if step is None:
            self._look()

    def save(self, place: str | os.PathLike[str], step: int | None = None) -> None:
        """Write what ``resume_from`` reads; in distributed training, call it on every rank.

        A Trainer's checkpoints, and those of ``paddle.Model.save`` in ``fit``, have it already.

        Args:
            place: a checkpoint's folder, or the path that its files begin with.
            step: optimizer steps done, if they are more than at the last call.
        """
        self.settle(self._step if step is None else step)
        self.check_flags(self._step)
        if self._cache is not None:
            self._cache.flush()
        rank = parallel.rank()
        if rank == 0 or self._split:
            file = file_at(place, self._best_file)
            if self._best:
                self._best.save(file)
            else:
                file.unlink(missing_ok=True)
        if rank == 0:
            self.record.save(place)

    def trained_state_dict(self) -> dict[str, paddle.Tensor]:
        """The weights that were open at any time, and the statistics that moved, by name.

        The tensors themselves, as ``network.state_dict()`` gives them; a tied one comes once. Of
        one of which rows alone train come these, as ``name[30522:30530]``. What was open before a
        resume counts, too.
        """
        self._trained.opened(self._conflicts.trained)
        return self._trained.state_dict()

    def save_trained(self, file: str | os.PathLike[str]) -> None:
        """Write :meth:`trained_state_dict` for :func:`.load_trained`, in the format of safetensors.

        In distributed training rank 0 writes.

        Args:
            file: where, such as ``"trained.safetensors"``.

        Raises:
            ValueError, TypeError: for another ending, and where weights are split among processes.
        """
        tensor_file("file", file)
        if self._split:
            raise ValueError(f"save_trained: {SPLIT_FILE}")
        if parallel.rank() == 0:
            refuse_unwritable(file)
            self._trained.save(file, self.trained_state_dict())

    def settle(self, step: int) -> None:
        """After so many optimizer steps, make the decisions that need every rank.

        A loop that saves on one rank alone calls this before it, on all ranks.
        """
        self._step = step
        self._finish_sample()
        self.notice()

    def notice(self) -> None:
        """Say which weights came into the network meanwhile; a loop calls this at its logs."""
        now = _parameters(self._freezer.network)
        new = [now[one][0] for one in now if one not in self._known]
        self._known |= now
        if new:
            self._say(
                f"new in the network: {listing(new, noun='weights')}; no stage holds them, so "
                "nothing freezes, opens or counts them; add layers before training starts"
            )

    def check_flags(self, step: int) -> None:
        """Notice soon flags that somebody else has set, so many optimizer steps being done.

        Raises:
            RuntimeError: if one was, and the schedule has ``on_conflict="error"``.
        """
        if self.history and self._freezer.holds:
            self._conflicts.between(step, soon=True)

    def verify(self, step: int | None = None) -> None:
        """Check that nothing that the schedule froze has moved since the last transition.

        Args:
            step: optimizer steps done, if they are more than at the last call.

        Raises:
            RuntimeError: naming the first tensor that has, if the schedule has ``verify=True``.
        """
        self._step = self._step if step is None else step
        self.check_flags(self._step)
        if not self._verify:
            return
        now = self._freezer.checksums()
        for name, before in self._sums.items():
            if now.get(name, before) != before:
                raise RuntimeError(
                    f"{name} moved although it is frozen, between steps "
                    f"{self.history[-1].step} and {self._step}; " + self._conflicts.who_moved(name)
                )

    def close(self, *, verify: bool = True, step: int | None = None) -> None:
        """The run is over: verify if asked to, and put the network back as it was found."""
        self._step = self._step if step is None else step
        try:
            if verify and self._freezer.holds:
                stepped = max(self._conflicts.seen.values(), default=0)
                if stepped > 1 and self._step == self.history[0].step:
                    warn(
                        f"the optimizer stepped {stepped} times, and the schedule was "
                        "never told: nothing opened or froze after the start. Call step() of what "
                        "attach() returned after each step of the optimizer"
                    )
                self.conclude(self._step)
                self.verify()
        finally:
            self.restore(flags=self._restore)

    def conclude(self, step: int) -> None:
        """Training is over after so many steps: say what never happened, and why."""
        if not self._freezer.holds:
            return
        self._step = step
        self.notice()
        self._finish_first_step()
        strategy, names = self._plan.strategy, self._plan.schedulable
        progress = self._timeline.progress(step)
        undecided = strategy.undecided(progress, names)
        if undecided:
            unknown = bool(self._seen) and not self._timeline.decisions
            warn(f"{undecided}; {strategy.unknown_metric(self._seen)}" if unknown else undecided)
        opened = {name for change in self.history for name in change.opened}
        if self.history[0].step and not strategy.foreign:  # resumed
            opened.update(name for _, now in self._timeline.walk(0, step) for name in now)
        ever = strategy.ever_open(progress.run, names)
        closed = [name for name in names if name in ever and name not in opened]
        if closed and step > self.history[0].step:
            why = strategy.why_closed(progress, closed, names)
            line = f"step {step}: the run ends, and {listing(closed)} never opened"
            self._say(f"{line}: {why}" if why else line)
        if self._trained_file is not None:
            self.save_trained(self._trained_file)
            self._say(f"step {step}: what trained is in {self._trained_file}")

    def restore(self, *, flags: bool = True) -> None:
        """Put the network back as it was found, at once; harmless when done twice.

        Args:
            flags: whether ``stop_gradient`` is put back, too.
        """
        self._next = _NEVER
        self._put_back(flags=flags)

    def undo_also(self, function: Callable[[], object]) -> None:
        """Call a function, once, when the network is put back: its host changed something, too."""
        self._undo.append(function)

    def give_up(self) -> None:
        """Another run takes the network: put it back, and refuse to go on."""
        self._put_back()
        self._next = 0

    def _put_back(self, *, flags: bool = True) -> None:
        for watching in (self._sample, self._first_step):
            if watching is not None:
                watching.cancel()
        self._sample = self._first_step = None
        if self._cache is not None:
            self._cache.close()
        self._multipliers.restore()
        self._freezer.restore(flags=flags)
        while self._undo:
            self._undo.pop()()

    def __enter__(self) -> Freezing:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.close(verify=error is None)

    # ------------------------------------------------------------ seen from outside

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of the network, head first."""
        return self._plan.stages

    @property
    def open_stages(self) -> tuple[str, ...]:
        """Names of the stages that are open now."""
        return self._open

    @property
    def multipliers(self) -> Mapping[str, float]:
        """The learning-rate multiplier of each stage, ramps and phases aside."""
        return self._plan.multipliers

    @property
    def shapes_phases(self) -> bool:
        """Whether the rate changes within a phase."""
        return self._plan.learning_rates.shaped

    @property
    def learning_rates(self) -> dict[str, float]:
        """The effective learning rate of each open stage, now."""
        return {
            name: rates.mean(optimizers.training(self._optimizer, self._freezer.members(name)))
            * self._multipliers.effective(name)
            for name in self._open
        }

    @property
    def steps_done(self) -> int:
        """Optimizer steps done."""
        return self._step

    @property
    def length(self) -> Run:
        """How long the run is, with the epochs that were seen to begin."""
        return self._timeline.run

    @property
    def record(self) -> Record:
        """What travels with a checkpoint, as of now."""
        return Record(
            self._step, self._schedule, self._open, self._timeline.decisions,
            tuple(self.trained_state_dict()),
        )  # fmt: skip

    @property
    def steps_per_epoch(self) -> int | None:
        """Optimizer steps in an epoch; ``None`` if that is not known."""
        return self._timeline.run.steps_per_epoch

    @property
    def cache(self) -> CacheStatistics | None:
        """What the cache did so far; ``None`` without a cache."""
        return None if self._cache is None else self._cache.statistics

    @property
    def numbers(self) -> Mapping[str, float]:
        """``trainable_ratio``, ``trainable_params`` and ``open_stages`` as of now.

        With learning rates per stage, also those of open stages, by their :attr:`tags`; with a
        cache, ``cache_hit_rate``. It is the same mapping until stages or rates change: loops ask
        for it at every step.
        """
        neutral = self._plan.neutral
        now = [] if neutral else [rates.current(one) for one in optimizers.each(self._optimizer)]
        if self._numbers is None or now != self._rates:
            effective = {} if neutral else self.learning_rates
            self._numbers = numbers(
                self.history[-1],
                Open(len(self._open), of=len(self.stages)),
                {self.tags[name]: rate for name, rate in effective.items()},
            )
            self._rates = now
        if self._cache is not None:
            self._numbers["cache_hit_rate"] = self._cache.statistics.hit_rate
        return self._numbers

    @property
    def at_work(self) -> bool:
        """Whether the network is still as the schedule made it."""
        return self._freezer.holds

    def rates(self) -> dict[str, list[Rate]]:
        """At which multiplier each stage trained when, ramps in slices."""
        changes, now = [], set[str]()
        for change in self.history:
            now = now.difference(change.frozen).union(change.opened)
            changes.append((change.step, tuple(now)))
        return self._timeline.rates(changes, self._step)

    def as_explicit(self) -> Explicit:
        """The run so far, as a schedule that can be printed and replayed.

        The first entry is what the run began with. What ``rows`` and ``train_norm`` keep open
        throughout is not in it: give the replay the same options.
        """
        weights, openable, apart = self._freezer.weights, self._plan.openable, self._plan.always
        names = {
            stage.name: [] if stage.name in apart else covering(stage, weights, openable)
            for stage in self.stages
        }
        total = self._timeline.run.total_steps  # what is decided after the last step never opens
        until = self._step if total is None else min(self._step, total - 1)
        return self._timeline.as_explicit(until, names)

    # ------------------------------------------------------------ inside

    def _new_cache(self, network: nn.Layer, options: CacheOptions) -> FeatureCache:
        # Weak: the network's patched forward leads to the cache, and must not keep the run alive.
        run = weakref.ref(self)

        def epoch() -> int:
            alive = run()
            return alive._timeline.run.epoch_of(alive._step) if alive else 0

        def ready() -> bool | None:
            alive = run()
            return alive._freezer.settled if alive else False

        return FeatureCache(network, options, self._say, epoch, ready)

    def _look(self) -> None:
        """Make the network be as scheduled for now, and find the step at which to look again."""
        if not self._freezer.holds:
            raise RuntimeError(
                "another FreezeSchedule took over this network; "
                "give one schedule to a training run, not two"
            )
        if self.history and self._step >= self._conflicts.next:
            self._conflicts.between(self._step)
        if self._step >= self._due:
            self._look_at_all()
        elif self._moving:
            self._set_rates()
        due = self._step + 1 if self._moving else self._due
        self._next = min(due, self._conflicts.next)

    def _look_at_all(self) -> None:
        self._finish_sample()
        self._finish_first_step()
        strategy = self._plan.strategy
        if strategy.needs_evaluation and self._seen and not self._timeline.decisions:
            raise ValueError(strategy.unknown_metric(self._seen))
        if self.history and self._is_over():
            return
        self._converge()
        coming = self._timeline.next_step(self._step)
        self._due = _NEVER if coming is None else coming
        self._conflicts.last = self._timeline.run.total_steps if coming is None else coming
        self._set_rates()
        if self._first_step is not None:
            self._due = self._step + 1
        if self._sample is None and self._timeline.measures_at(self._step):
            names = [name for name in self._open if name in self._plan.schedulable]
            members = {name: self._freezer.members(name) for name in names}
            self._sample = GradientSample(members, self._step)

    def _is_over(self) -> bool:
        """Whether all steps that were announced are done: nothing opens or freezes after them."""
        total = self._timeline.run.total_steps
        if total is None or self._step < total:
            return False
        self._due = total + 1 if self._step == total else _NEVER
        if self._step == total + 1:
            self._say(gone_on(self._step, total))
        return True

    def _converge(self) -> None:
        """Make the network be as the timeline has it for the step of now."""
        wanted, first = self._timeline.open_at(self._step), not self.history
        if wanted == self._open and not first:
            return
        if not first:
            self.verify()
            self._put_back_best()
            self._openings = self._openings.then(self._step, wanted)
        if self._cache is not None:
            self._cache.remove()
        self._freezer.apply(wanted)
        self._trained.opened(self._names(wanted))
        self._conflicts.begin(self._step)
        alone = self._plan.alone
        every = tuple(s.name for s in self.stages if not alone.issuperset(s.parameters))
        closed = every if first else self._open
        transition = Transition(
            self._step,
            self._timeline.run.epoch_of(self._step),
            tuple(name for name in wanted if name not in self._open),
            tuple(name for name in closed if name not in wanted),
            *self._freezer.count(),
        )
        if self._free:
            self._exchange_state(transition)
        self._open = wanted
        self._find_pace()
        self._set_rates()
        transition = replace(transition, learning_rates=self.learning_rates)
        self.history.append(transition)
        self._say(str(transition))
        if self._cache is not None:
            repeats = self._timeline.repeats(self._step) is not False  # or it is not known
            self._cache.begin(self._freezer.opened(), repeats)
        if self._verify:
            self._sums = self._freezer.checksums()
        if transition.opened:
            self._watch_first_step(ordered=first)

    def _names(self, stages: Iterable[str]) -> Iterator[str]:
        return (weight.name for name in stages for weight in self._freezer.members(name))

    def _trained_before(self, record: Record | None) -> Trained:
        """What trained before this run began: as recorded, else as the schedule has it."""
        known = None if record is None else record.trained
        alone, network = self._plan.alone, self._freezer.network
        rows = {weight.name: weight.rows for weight in self._freezer.weights if weight.rows}
        before = () if known is None and not self._step else known
        trained = Trained(network, self._freezer.weights, alone, before, rows)
        if known is None and not self._plan.strategy.foreign:
            for _, names in self._timeline.walk(0, self._step):
                trained.opened(self._names(names))
        return trained

    def _set_rates(self) -> None:
        """Set the learning rate of each stage, and notice whether one changes at the next step."""
        self._numbers = None
        if self._plan.neutral:
            return
        if self._pace and self._pace.until is not None and self._step >= self._pace.until:
            self._find_pace()
        multipliers, moving = self._timeline.multipliers(self._step, self._openings, self._pace)
        if self._moving:  # what is frozen gets its own when it opens
            multipliers = {name: one for name, one in multipliers.items() if name in self._open}
        self._multipliers.apply(multipliers)
        self._moving = moving

    def _phase_rates(self) -> list[tuple[int, float]]:
        """What the rates of all stages were multiplied by so far, as points to draw."""
        starts = [change.step for change in self.history if change.step < self._step]
        own = not self._plan.neutral and self._timeline.curve([*starts, self._step])
        return own if own and any(rate != 1 for _, rate in own) else []

    def _find_pace(self) -> None:
        if not self._plan.neutral:
            self._pace = self._timeline.pace(self._step, self._pace)

    def _exchange_state(self, transition: Transition) -> None:
        """Drop the optimizer's state of what froze; make anew that of what reopens.

        At the start of a run, too: a checkpoint saved just before a stage froze holds its state.
        """
        for name in transition.frozen:
            optimizers.free(self._optimizer, self._freezer.members(name))
        for name in self._freed.intersection(transition.opened):
            optimizers.renew(self._optimizer, self._freezer.members(name))
        self._freed = self._freed.difference(transition.opened).union(transition.frozen)

    def _decide(self, note: Any) -> None:
        """Keep the decision of rank 0."""
        note = parallel.same_on_all_ranks(note)
        if note is not None:
            self._timeline = self._timeline.with_decision(self._step, note)

    def _watch_first_step(self, *, ordered: bool) -> None:
        """Watch the next step for what contradicts the stages."""
        if self._first_step is not None:
            self._first_step.cancel()
        plan = self._plan
        members = {name: self._freezer.members(name) for name in plan.schedulable}
        ordered = ordered and plan.in_order
        self._first_step = FirstStep(self._freezer.network, members, self._step, ordered=ordered)

    def _finish_first_step(self) -> None:
        first = self._first_step
        if first is None or self._step <= first.began or not first.conclusive(self._step):
            return
        self._first_step = None
        findings = first.finish(known=(*self.unreached, *self._conflicts.closed))
        self.unreached += findings.names
        for line in findings.lines():
            self._say(line)

    def _finish_sample(self) -> None:
        if self._sample is not None and self._step > self._sample.began:
            measured, self._sample = self._sample.finish(), None
            self._decide(self._plan.strategy.decide_from_gradients(measured))

    def _not_ours(self) -> set[str]:
        """What is left alone, with the statistics beside it, by its names in the state."""
        alone = self._plan.alone
        places = {name.rpartition(".")[0] for name in alone}
        weights = {weight.name for weight in self._freezer.weights}
        state = set(self._freezer.network.state_dict()) - weights if alone else set()
        return {*alone, *(name for name in state if name.rpartition(".")[0] in places)}

    def _load_best(
        self, record: Record, checkpoint: str | os.PathLike[str], before: tuple[str, ...]
    ) -> None:
        """Take up the best weights where the saved run had them."""
        if self._best is None:
            return
        step, changes = self._step, before != self._timeline.open_at(self._step)
        # A checkpoint saved between the decision to open a stage and its opening.
        pending = changes and record.open_stages == before
        steps = (step, step - 1) if pending else () if changes else (step,)
        needed = any(self._timeline.best_step(one) is not None for one in steps)
        file = file_at(checkpoint, self._best_file)
        if not file.exists() and needed:
            raise ValueError(
                f"restore_best: the best weights so far are in {file}, which is missing; resume "
                "from a checkpoint that was saved with this schedule"
            )
        if file.exists() and (needed or pending):
            self._best.load(file)
        if pending:
            self._put_back_best()

    def _put_back_best(self) -> None:
        if self._best:
            self._best.put_back()
            self._say(f"step {self._step}: loads the best weights since the last transition")


def _parameters(network: nn.Layer) -> dict[int, tuple[str, paddle.Tensor]]:
    """All parameters by identity, statistics included: their flags do not matter here."""
    return {
        id(tensor): (f"{path}.{own}" if path else own, tensor)
        for path, layer in layers(network)
        for own, tensor in own_parameters(layer).items()
    }


def gone_on(step: int, total: int) -> str:
    """The line for a loop that makes more steps than it announced."""
    return (
        f"step {step}: the loop goes on after the {total} steps that were announced; "
        "nothing opens or freezes any more"
    )


def _agreed(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(parallel.same_on_all_ranks(names))


def _single(value: Any) -> Any:
    """The number in a tensor, array or list of one; anything else as it is.

    >>> _single(paddle.to_tensor([0.5])), _single([1, 2])
    (0.5, [1, 2])
    """
    if isinstance(value, (paddle.Tensor, np.ndarray, np.generic, list, tuple)):
        array = np.asarray(value.numpy() if isinstance(value, paddle.Tensor) else value)
        return array.item() if array.size == 1 else value
    return value
