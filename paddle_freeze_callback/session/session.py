"""One training run under a schedule: progress in, transitions out.

The three kinds of training loop (``paddle.Model``, a Trainer, one written by hand) all drive a
:class:`Freezing`; it is the only place where strategy, freezer, optimizer and report meet.
"""

from __future__ import annotations

import os
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from fractions import Fraction
from types import TracebackType
from typing import Any

import numpy as np
import paddle
from paddle import nn

from ..cache.feature_cache import FeatureCache
from ..cache.options import CacheOptions
from ..checks import is_number
from ..freezing import optimizer as optimizers
from ..freezing import parallel, rates
from ..freezing.best_weights import BestWeights
from ..freezing.freezer import Freezer
from ..freezing.gradients import GradientSample
from ..freezing.rates import Multipliers
from ..stages.partition import REST, Stages, covering
from ..stages.weights import Weight, weights
from ..strategies.base import Strategy
from ..strategies.explicit import Explicit
from ..strategies.moments import Moment, When
from ..strategies.rates import LearningRates
from ..strategies.run import Progress, Run
from ..words import listing
from .ownership import hold, release
from .plan import plan
from .preflight import never_opens, refuse_nothing_to_train, refuse_sparse
from .record import BEST_FILE, Record, file_at
from .transition import Transition, numbers


def _single(value: Any) -> Any:
    """The number in a tensor, array or list of one; anything else as it is.

    >>> _single(paddle.to_tensor([0.5])), _single([1, 2])
    (0.5, [1, 2])
    """
    if isinstance(value, (paddle.Tensor, np.ndarray, np.generic, list, tuple)):
        array = np.asarray(value.numpy() if isinstance(value, paddle.Tensor) else value)
        return array.item() if array.size == 1 else value
    return value


class Freezing:
    """A schedule at work on a network, from the beginning of a run to its end.

    Get one from :meth:`FreezeSchedule.attach`, call :meth:`step` after each optimizer step, and
    :meth:`close` at the end (a ``with`` block does).

    Attributes:
        stages: the stages of the network.
        history: the transitions so far.
        metrics: what evaluations gave, by name: (optimizer steps done, value).
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
        verify: bool = False,
        restore: bool = True,
        free_optimizer_state: bool = False,
        cache: CacheOptions | None = None,
        evaluates: bool = True,
        say: Callable[[str], object] = print,
        record: Record | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
    ) -> None:
        weights(network)  # is it a network at all?
        release(network)
        self._network = network
        self._plan = plan(network, stages, strategy, learning_rates)
        self._run = run
        self._step = step
        self._verify = verify
        self._restore = restore
        self._say = say
        self.stages = self._plan.stages
        self.history: list[Transition] = []
        self._optimizer = optimizer
        self._learning_rates = learning_rates
        self._free = free_optimizer_state
        self._freed: set[str] = set()
        self._metrics: dict[str, Any] = {}
        self._seen: dict[str, Any] = {}
        self.metrics: dict[str, list[tuple[int, float]]] = {}
        self._decisions = record.decisions if record else ()
        self._sample: GradientSample | None = None
        self._best = BestWeights(network, optimizer) if strategy.restore_best else None
        will_open = self._check(network, optimizer, evaluates)
        self._freezer = Freezer(
            network,
            self.stages,
            self._plan.openable,
            frozen_norm=frozen_norm,
            frozen_dropout=frozen_dropout,
        )
        self.cache = None if cache is None else self._new_cache(cache)
        self._multipliers = Multipliers(
            {s.name: self._freezer.members(s.name) for s in self.stages}
        )
        hold(network, self)
        # If training fails and the run is thrown away, the network is still put back.
        weakref.finalize(self, self._freezer.restore).atexit = False
        weakref.finalize(self, self._multipliers.restore).atexit = False
        if self.cache is not None:
            weakref.finalize(self, self.cache.close).atexit = False
        self._open: tuple[str, ...] = ()
        self._next: int | None = None
        self._sums: dict[str, str] = {}
        self._openings, self._latest = self._openings_until(step)
        try:
            before = self._open_at(step - 1) if step else ()
            trained = [w for name in before for w in self._freezer.members(name)]
            optimizers.settle(optimizer, trained)
            if record is not None:
                self._compare(record, before)
            if self._best is not None and record is not None and checkpoint is not None:
                self._load_best(record, checkpoint, before)
            parallel.prepare(network, will_open)
            self._look()
            left = [s.name for s in self.stages if s.name not in (*self._plan.schedulable, REST)]
            if left:
                say(f"found frozen and left so, as nothing asks for it by name: {listing(left)}")
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
        if self._next is not None and step >= self._next:
            self._look()

    def epoch_began(self, step: int) -> None:
        """After so many steps an epoch begins, in a run whose data has no length."""
        self._step = step
        self._run = self._run.epoch_began(step)
        self._look()

    def evaluated(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """The loop evaluated; a strategy may decide from the metrics.

        Args:
            metrics: values by name.
            step: optimizer steps done, from a loop that will say when the next one begins: what
                is decided then waits for that. Without it, as in a hand-written loop, it happens
                at once.

        Raises:
            ValueError: if the strategy needs a metric that is not there.
        """
        self._step = self._step if step is None else step
        self._metrics = {name: _single(value) for name, value in metrics.items()}
        self._seen.update(self._metrics)
        for name, value in self._metrics.items():
            if is_number(value):
                self.metrics.setdefault(name, []).append((self._step, float(value)))
        strategy, names = self._plan.strategy, self._plan.schedulable
        if not strategy.decides or not self._freezer.holds:
            return
        self._note(strategy.decide(self._progress(self._step), names))
        if self._best is not None and self._best_step() == self._step:
            self._best.take(self._freezer.frozen())
        self._next = self._step
        if step is None:
            self._look()

    def save(
        self, place: str | os.PathLike[str], schedule: str = "", step: int | None = None
    ) -> None:
        """Write what a resumed run must know; in distributed training, call it on every rank.

        Args:
            place: a checkpoint's folder, or the path that its files begin with.
            schedule: the schedule, as it prints.
            step: optimizer steps done, if they are more than at the last call.
        """
        self._step = self._step if step is None else step
        self._finish_sample()
        if self.cache is not None:
            self.cache.flush()
        if parallel.rank() != 0:
            return
        if self._best:
            self._best.save(file_at(place, BEST_FILE))
        else:
            file_at(place, BEST_FILE).unlink(missing_ok=True)
        Record(self._step, schedule, self._open, self._decisions).save(place)

    def verify(self, step: int | None = None) -> None:
        """Check that nothing frozen has moved since the last transition.

        Args:
            step: optimizer steps done, if they are more than at the last call.

        Raises:
            RuntimeError: naming the first tensor that has, if the schedule has ``verify=True``.
        """
        self._step = self._step if step is None else step
        if not self._verify:
            return
        now = self._freezer.checksums()
        for name, before in self._sums.items():
            if now[name] != before:
                raise RuntimeError(
                    f"{name} moved although it is frozen, between steps "
                    f"{self.history[-1].step} and {self._step}; something else than the "
                    "optimizer changed it (a loaded checkpoint, an averaging callback, a layer "
                    "that updates itself in its forward)"
                )

    def close(self, *, verify: bool = True, step: int | None = None) -> None:
        """The run is over: verify if asked to, and put the network back as it was found."""
        strategy = self._plan.strategy
        try:
            if verify and self._freezer.holds:
                if strategy.needs_evaluation and not self._decisions:
                    warnings.warn(
                        f"{strategy!r} never saw its metric in this run, so only time decided",
                        stacklevel=3,
                    )
                self.verify(step)
        finally:
            self.restore(flags=self._restore)

    def restore(self, *, flags: bool = True) -> None:
        """Put the network back as it was found, at once; harmless when done twice."""
        self._next = None
        self._put_back(flags=flags)

    def give_up(self) -> None:
        """Another run takes the network: put it back, and refuse to go on."""
        self._put_back()
        self._next = 0

    def _put_back(self, *, flags: bool = True) -> None:
        if self._sample is not None:
            self._sample.cancel()
            self._sample = None
        if self.cache is not None:
            self.cache.close()
        self._multipliers.restore()
        self._freezer.restore(flags=flags)

    def __enter__(self) -> Freezing:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(verify=error is None)

    # ------------------------------------------------------------ what is seen from outside

    @property
    def at_work(self) -> bool:
        """Whether it has the network in its hands."""
        return self._freezer.holds

    @property
    def multipliers(self) -> Mapping[str, float]:
        """The learning-rate multiplier of each stage, ramps aside."""
        return self._plan.multipliers

    @property
    def steps_done(self) -> int:
        """Optimizer steps done."""
        return self._step

    @property
    def steps_per_epoch(self) -> int | None:
        """Optimizer steps in an epoch; ``None`` if that is not known."""
        return self._run.steps_per_epoch

    @property
    def open_stages(self) -> tuple[str, ...]:
        """Names of the stages that are open now."""
        return self._open

    def as_explicit(self) -> Explicit:
        """What happened so far, as a schedule to replay; the first entry is what it began with."""
        every = weights(self._network)
        names = {s.name: covering(s, every, self._plan.openable) for s in self.stages}
        moments: dict[When, Any] = {}
        before: tuple[str, ...] = ()
        for step, now in self._walk(0, self._step + 1):
            verbs = {
                "unfreeze": [name for name in now if name not in before],
                "freeze": [name for name in before if name not in now],
            }
            moments[str(Moment(Fraction(step), "steps")) if step else 0] = {
                verb: [name for stage in which for name in names[stage]]
                for verb, which in verbs.items()
                if which
            }
            before = now
        return Explicit(moments)

    @property
    def numbers(self) -> dict[str, float]:
        """``trainable_ratio``, ``trainable_params`` and ``open_stages`` as of now.

        With learning rates per stage, also ``lr/`` and the name of each open stage; with a cache,
        ``cache_hit_rate``.
        """
        effective = {} if self._learning_rates.neutral else self.learning_rates
        found = numbers(self.history[-1], len(self._open), effective)
        if self.cache is not None:
            found["cache_hit_rate"] = self.cache.statistics.hit_rate
        return found

    @property
    def learning_rates(self) -> dict[str, float]:
        """The effective learning rate of each open stage, now."""
        current = rates.current(optimizers.innermost(self._optimizer))
        return {name: current * self._multipliers.effective(name) for name in self._open}

    # ------------------------------------------------------------ inside

    def _new_cache(self, options: CacheOptions) -> FeatureCache:
        # Weak: the network's patched forward leads to the cache, and must not keep the run alive.
        run = weakref.ref(self)

        def epoch() -> int:
            alive = run()
            return alive._run.epoch_of(alive._step) if alive else 0

        def ready() -> bool | None:
            alive = run()
            return alive._freezer.settled if alive else False

        return FeatureCache(self._network, options, self._say, epoch, ready)

    def _progress(self, step: int) -> Progress:
        now = Progress(step, self._run, dict(self._metrics), self._decisions)
        return replace(now.back_to(step), stages=self._plan.schedulable)

    def _open_at(self, step: int) -> tuple[str, ...]:
        strategy = self._plan.strategy
        wanted = strategy.open_stages(self._progress(step), self._plan.schedulable)
        return tuple(parallel.same_on_all_ranks(wanted)) if strategy.foreign else wanted

    def _walk(self, start: int, end: int) -> Iterator[tuple[int, tuple[str, ...]]]:
        """The open stages at a step, and at each later one before the end where they change."""
        strategy, names = self._plan.strategy, self._plan.schedulable
        decided = [step for step, _ in self._decisions]
        at: int | None = start
        before: tuple[str, ...] | None = None
        while at is not None and at < end:
            now = self._open_at(at)
            if now != before:
                yield at, now
            before = now
            coming = [strategy.next_step(self._progress(at), names), *decided]
            at = min((step for step in coming if step is not None and step > at), default=None)

    def _openings_until(self, step: int) -> tuple[dict[str, int], int]:
        """When each stage that is open from this step on opened, and when any did last.

        As far as ramps ask: 0 means from the beginning, or so long ago that every ramp is over.
        """
        window = self._learning_rates.window(self._run)
        if not step or not window:
            return {}, 0
        start = max(step - 1 - window, 0)
        openings: dict[str, int] = {}
        latest = 0
        for at, now in self._walk(start, step + 1):
            if at == start:
                openings = dict.fromkeys(now, 0)
                continue
            latest = at if set(now) - set(openings) else latest
            openings = {name: openings.get(name, at) for name in now}
        return openings, latest

    def _note(self, decision: Any) -> None:
        """Keep what rank 0 decided."""
        decision = parallel.same_on_all_ranks(decision)
        if decision is not None:
            self._decisions = (*self._decisions, (self._step, decision))

    def _best_step(self, step: int | None = None) -> int | None:
        progress = self._progress(self._step if step is None else step)
        return self._plan.strategy.best_step(progress, self._plan.schedulable)

    def _load_best(
        self, record: Record, checkpoint: str | os.PathLike[str], before: tuple[str, ...]
    ) -> None:
        """Take up the best weights where the saved run had them."""
        assert self._best is not None
        due = before != self._open_at(self._step)
        # A checkpoint saved between the decision to open a stage and its opening.
        pending = due and record.open_stages == before
        steps = (self._step, self._step - 1) if pending else () if due else (self._step,)
        needed = any(self._best_step(step) is not None for step in steps)
        file = file_at(checkpoint, BEST_FILE)
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

    def _compare(self, record: Record, before: tuple[str, ...]) -> None:
        """Say what differs from the run that was saved, if another schedule goes on."""
        changes = [
            f"{listing(names)} {verb}"
            for names, verb in (
                ([n for n in before if n not in record.open_stages], "was frozen and is now open"),
                ([n for n in record.open_stages if n not in before], "was open and is not now"),
            )
            if names
        ]
        if changes:
            self._say(
                f"resumed at step {self._step} with another schedule than the saved run "
                f"({record.schedule}): {'; '.join(changes)}"
            )

    def _check(self, network: nn.Layer, optimizer: Any, evaluates: bool) -> list[Weight]:
        """Refuse what would go wrong; returns what will open at some time."""
        names, strategy = self._plan.schedulable, self._plan.strategy
        refuse_nothing_to_train(network, names)
        if strategy.needs_evaluation and not evaluates:
            raise ValueError(
                f"{type(strategy).__name__} decides from metrics, and this run never evaluates: "
                "give fit() eval_data, or the Trainer eval_dataset and evaluation_strategy="
            )
        if strategy.needs_head and self.stages[0].name not in names:
            raise ValueError(
                f"{type(strategy).__name__} trains the head, and everything in "
                f"{self.stages[0].name!r} was found frozen; set stop_gradient=False on it"
            )
        for _, note in self._decisions:
            if not strategy.understands(note):
                raise ValueError(
                    f"the checkpoint's notes, such as {str(note)[:60]}, are not of {strategy!r}; "
                    "resume with the strategy that it was saved with"
                )
        strategy.check(self._run, names)
        self._learning_rates.check(self._run)
        late = strategy.never_open(self._run, names)
        if late:
            warnings.warn(never_opens(late, self._run), stacklevel=6)
        first = strategy.next_step(Progress(0, self._run, stages=names), names)
        total = self._run.total_steps
        if not late and not strategy.needs_evaluation and first and total and first >= total:
            warnings.warn(
                f"in this run of {total} steps {strategy!r} never acts: "
                f"it would change something at step {first} first",
                stacklevel=6,
            )
        will_open = self._plan.will_open(network, self._run)
        optimizers.check(optimizer, will_open)
        if strategy.measures:
            refuse_sparse(network)
        if not self._learning_rates.neutral:
            rates.check_optimizer(optimizers.innermost(optimizer))
        return will_open

    def _look(self) -> None:
        """See whether anything is due at the step of now, and when to look again."""
        if not self._freezer.holds:
            raise RuntimeError(
                "another FreezeSchedule took over this network; "
                "give one schedule to a training run, not two"
            )
        self._finish_sample()
        strategy, names = self._plan.strategy, self._plan.schedulable
        if strategy.needs_evaluation and self._seen and not self._decisions:
            raise ValueError(strategy.unknown_metric(self._seen))
        self._converge()
        progress = self._progress(self._step)
        self._next = strategy.next_step(progress, names)
        if self._set_rates():
            self._next = self._step + 1
        if self._sample is None and strategy.samples_gradients(progress, names):
            members = {name: self._freezer.members(name) for name in self._open}
            self._sample = GradientSample(members, self._step)

    def _finish_sample(self) -> None:
        if self._sample is not None and self._step > self._sample.began:
            measured, self._sample = self._sample.finish(), None
            self._note(self._plan.strategy.decide_from_gradients(measured))

    def _converge(self) -> None:
        """Make the network be as the strategy says for the progress of now."""
        wanted = self._open_at(self._step)
        first = not self.history
        if wanted == self._open and not first:
            return
        if not first:
            self.verify()
            self._put_back_best()
        if self.cache is not None:
            self.cache.remove()
        self._freezer.apply(wanted)
        everything = tuple(stage.name for stage in self.stages)
        closed = everything if first else self._open
        transition = Transition(
            self._step,
            self._run.epoch_of(self._step),
            tuple(name for name in wanted if name not in self._open),
            tuple(name for name in closed if name not in wanted),
            *self._freezer.count(),
        )
        if self._free:
            self._exchange_state(transition)
        self._latest = self._step if transition.opened and not first else self._latest
        self._open = wanted
        self._openings = {name: self._openings.get(name, self._step) for name in wanted}
        self._set_rates()
        transition = replace(transition, learning_rates=self.learning_rates)
        self.history.append(transition)
        self._say(str(transition))
        if self.cache is not None:
            self.cache.begin(self._freezer.opened())
        if self._verify:
            self._sums = self._freezer.checksums()

    def _set_rates(self) -> bool:
        """Set the learning rate of each stage; tells whether one is still ramping up."""
        if self._learning_rates.neutral:
            return False
        ramps = self._learning_rates.ramps(self._step, self._run, self._openings, self._latest)
        whole = self._plan.multipliers
        self._multipliers.apply({n: rate * ramps.get(n, 1.0) for n, rate in whole.items()})
        return bool(ramps)

    def _exchange_state(self, transition: Transition) -> None:
        """Drop the optimizer's state of what froze; make anew that of what reopens.

        At the start of a run, too: a checkpoint saved just before a stage froze knows its state.
        """
        for name in transition.frozen:
            optimizers.free(self._optimizer, self._freezer.members(name))
        for name in self._freed.intersection(transition.opened):
            optimizers.renew(self._optimizer, self._freezer.members(name))
        self._freed = self._freed.difference(transition.opened).union(transition.frozen)
