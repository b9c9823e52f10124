"""One training run under a schedule: progress in, transitions out.

The three kinds of training loop (``paddle.Model``, a Trainer, one written by hand) all drive a
:class:`Freezing`; it is the only place where strategy, freezer, optimizer and report meet.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from paddle import nn

from . import optimizer as optimizers
from . import parallel
from .freezer import Freezer, asked_by_name
from .moments import Progress, Run
from .record import Record
from .report import Transition, listing, numbers
from .selectors import Selector, select
from .stages import REST, Stage, Stages, partition, partition_by, stage_names
from .strategies import Explicit, Strategy
from .weights import Weight, weights


@dataclass(frozen=True)
class Plan:
    """A schedule fitted to a network.

    Attributes:
        stages: all stages, head first.
        strategy: the rule, in terms of stage names.
        schedulable: names of the stages that the strategy decides about: not the ``"rest"``,
            unless the user says when it opens, and none in which everything was frozen already
            and is not asked for by name.
        openable: names of the parameters that may be opened.
    """

    stages: tuple[Stage, ...]
    strategy: Strategy
    schedulable: tuple[str, ...]
    openable: frozenset[str]


def plan(network: nn.Layer, stages: Stages, strategy: Strategy) -> Plan:
    """Fit a schedule to a network; touches nothing.

    Raises:
        ValueError: if stages or selectors do not fit the network.
    """
    selectors: Sequence[Selector] = []
    if isinstance(strategy, Explicit):
        if stages == "auto":
            selectors = strategy.selectors()
            parts, meant = partition_by(network, selectors)
            names = iter(meant)
            strategy = strategy.with_stages(lambda selector: next(names))
        else:
            parts = partition(network, stages)
            strategy = strategy.with_stages(lambda one: stage_names(network, parts, one))
    else:
        parts = partition(network, stages)
    if isinstance(stages, (list, tuple)):
        selectors = [*selectors, *stages]
    every = weights(network)
    trainable = [weight for weight in every if weight.trains]
    openable = {weight.name for weight in trainable}
    for selector in selectors:
        try:
            chosen = select(every, selector)
        except ValueError:  # the name of an automatic stage: not a name in the network
            continue
        openable |= asked_by_name(chosen, selector, [w for w in trainable if w in chosen])
    schedulable = tuple(
        stage.name
        for stage in parts
        if (stage.name != REST or isinstance(strategy, Explicit))
        and not openable.isdisjoint(stage.parameters)
    )
    return Plan(parts, strategy, schedulable, frozenset(openable))


# Which run holds a layer: two networks may share some. Both ends are weak: whoever drives the
# run owns it.
_holders: weakref.WeakKeyDictionary[nn.Layer, weakref.ref[Freezing]] = weakref.WeakKeyDictionary()


def release(network: nn.Layer) -> None:
    """End the runs that hold any layer of it: they were left by an exception, or are rivals."""
    for layer in network.sublayers(include_self=True):
        holder = _holders.pop(layer, lambda: None)()
        if holder is not None:
            holder.give_up()


def _never_opens(late: Sequence[tuple[str, int | None]], run: Run) -> str:
    """One warning for all stages that this run leaves frozen."""
    which = ", ".join(
        repr(name) if step is None else f"{name!r} (which needs {step} steps)"
        for name, step in late
    )
    length = f"{run.total_steps} steps" if run.total_steps else f"{float(run.epochs or 0):g} epochs"
    verb = "never opens" if len(late) == 1 else "never open"
    return f"in this run of {length} {which} {verb}: the schedule is longer than the run"


class Freezing:
    """A schedule at work on a network, from the beginning of a run to its end.

    Get one from :meth:`FreezeSchedule.attach`, call :meth:`step` after each optimizer step, and
    :meth:`close` at the end (a ``with`` block does).

    Attributes:
        stages: the stages of the network.
        history: the transitions so far.
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
        frozen_norm: str = "eval",
        frozen_dropout: str = "train",
        verify: bool = False,
        restore: bool = True,
        free_optimizer_state: bool = False,
        say: Callable[[str], object] = print,
        record: Record | None = None,
    ) -> None:
        weights(network)  # is it a network at all?
        release(network)
        self._plan = plan(network, stages, strategy)
        self._run = run
        self._step = step
        self._verify = verify
        self._restore = restore
        self._say = say
        self.stages = self._plan.stages
        self.history: list[Transition] = []
        self._optimizer = optimizer
        self._free = free_optimizer_state
        self._freed: set[str] = set()
        self._metrics: dict[str, Any] = {}
        self._decisions = record.decisions if record else ()
        will_open = self._check(network, optimizer)
        self._freezer = Freezer(
            network,
            self.stages,
            self._plan.openable,
            frozen_norm=frozen_norm,
            frozen_dropout=frozen_dropout,
        )
        for layer in network.sublayers(include_self=True):
            _holders[layer] = weakref.ref(self)
        # If training fails and the run is thrown away, the network is still put back.
        weakref.finalize(self, self._freezer.restore).atexit = False
        self._open: tuple[str, ...] = ()
        self._next: int | None = None
        self._sums: dict[str, str] = {}
        try:
            before = self._open_at(step - 1) if step else ()
            trained = [w for name in before for w in self._freezer.members(name)]
            optimizers.settle(optimizer, trained)
            if record is not None:
                self._compare(record, before)
            parallel.prepare(network, will_open)
            self._converge()
            left = [s.name for s in self.stages if s.name not in (*self._plan.schedulable, REST)]
            if left:
                say(f"found frozen and left so, as nothing asks for it by name: {listing(left)}")
        except BaseException:
            self._freezer.restore()
            raise

    # ------------------------------------------------------------ driven by a training loop

    def step(self) -> None:
        """One more optimizer step is done. Call it after ``clear_grad()``."""
        self.at(self._step + 1)

    def at(self, step: int) -> None:
        """So many optimizer steps are done; make the network be as scheduled from here on."""
        self._step = step
        if self._next is not None and step >= self._next:
            self._converge()

    def epoch_began(self, step: int) -> None:
        """After so many steps an epoch begins, in a run whose data has no length."""
        self._step = step
        self._run = self._run.epoch_began(step)
        self._converge()

    def evaluated(self, step: int, metrics: Mapping[str, Any]) -> None:
        """After so many steps the loop evaluated; a strategy may decide from the metrics."""
        self._step = step
        self._metrics.update(metrics)
        strategy = self._plan.strategy
        if not strategy.decides:
            return
        made = parallel.same_on_all_ranks(
            strategy.decide(self._progress(self._step), self._plan.schedulable)
        )
        if made is not None:
            self._decisions = (*self._decisions, (self._step, made))
            self._next = self._step  # whatever follows, follows before the next step

    def record(self, step: int, schedule: str) -> Record:
        """What a checkpoint made after so many steps must know."""
        return Record(step, schedule, self._open, self._decisions)

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
        try:
            if verify and self._freezer.holds:
                self.verify(step)
        finally:
            self.restore(flags=self._restore)

    def restore(self, *, flags: bool = True) -> None:
        """Put the network back as it was found, at once; harmless when done twice."""
        self._next = None
        self._freezer.restore(flags=flags)

    def give_up(self) -> None:
        """Another run takes the network: put it back, and refuse to go on."""
        self._freezer.restore()
        self._next = 0

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
    def open_stages(self) -> tuple[str, ...]:
        """Names of the stages that are open now."""
        return self._open

    @property
    def numbers(self) -> dict[str, float]:
        """``trainable_ratio``, ``trainable_params`` and ``open_stages`` as of now."""
        return numbers(self.history[-1], len(self._open))

    # ------------------------------------------------------------ inside

    def _progress(self, step: int) -> Progress:
        return Progress(step, self._run, dict(self._metrics), self._decisions)

    def _open_at(self, step: int) -> tuple[str, ...]:
        return self._plan.strategy.open_stages(self._progress(step), self._plan.schedulable)

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

    def _check(self, network: nn.Layer, optimizer: Any) -> list[Weight]:
        """Refuse what would go wrong; returns what will open at some time."""
        names, strategy = self._plan.schedulable, self._plan.strategy
        if not names:
            raise ValueError(
                f"every parameter of {type(network).__name__} that the schedule may open is "
                "frozen already; nothing would train. Set stop_gradient=False on what should, "
                "or ask for it by name"
            )
        timetable = strategy.timetable(self._run, names)
        for step, opens in timetable:
            if not opens:
                raise ValueError(
                    f"nothing would train from step {step} on: all {len(self.stages)} stages are "
                    f"frozen then ({listing([s.name for s in self.stages])}); "
                    "keep one open at every moment"
                )
        if not timetable or timetable[0][0] > 0:
            first = f"step {timetable[0][0]}" if timetable else "the end"
            raise ValueError(f"nothing would train before {first}; open the head at moment 0")
        late = strategy.never_open(self._run, names)
        if late:
            warnings.warn(_never_opens(late, self._run), stacklevel=6)
        ever_open: set[str] = set()
        ever_open.update(*(opens for _, opens in strategy.timetable(self._run.foreseen(), names)))
        wanted = {n for s in self.stages if s.name in ever_open for n in s.parameters}
        will_open: list[Weight] = [
            w for w in weights(network) if w.name in wanted & self._plan.openable
        ]
        optimizers.check(optimizer, will_open)
        return will_open

    def _converge(self) -> None:
        """Make the network be as the strategy says for the progress of now."""
        if not self._freezer.holds:
            raise RuntimeError(
                "another FreezeSchedule took over this network; "
                "give one schedule to a training run, not two"
            )
        progress = self._progress(self._step)
        strategy, names = self._plan.strategy, self._plan.schedulable
        wanted = strategy.open_stages(progress, names)
        self._next = strategy.next_step(progress, names)
        first = not self.history
        if wanted == self._open and not first:
            return
        if not first:
            self.verify()
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
        self._open = wanted
        self.history.append(transition)
        self._say(str(transition))
        if self._verify:
            self._sums = self._freezer.checksums()

    def _exchange_state(self, transition: Transition) -> None:
        """Drop the optimizer's state of what froze; make anew that of what reopens.

        At the start of a run, too: a checkpoint saved just before a stage froze knows its state.
        """
        for name in transition.frozen:
            optimizers.free(self._optimizer, self._freezer.members(name))
        for name in self._freed.intersection(transition.opened):
            optimizers.renew(self._optimizer, self._freezer.members(name))
        self._freed = self._freed.difference(transition.opened).union(transition.frozen)
