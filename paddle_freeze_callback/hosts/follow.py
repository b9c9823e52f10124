"""Under a loop that takes no callback: the optimizer's own steps drive the run.

What counts is a call of ``step()`` or ``minimize()`` that returns, whoever makes it: so a step
under accumulation is one, and so is one of ``GradScaler``, also one that the scaler skips because
it found infinities. A transition comes inside that call; before ``clear_grad()`` or after it is
bitwise the same.

The run begins at the first forward in training mode, not before: weights, a resumed state and
``DataParallel`` come after the optimizer in all of Paddle's suites. Nothing has trained until then.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import paddle
from paddle import nn

from ..freezing import optimizer as optimizers
from ..session.record import Record
from ..session.session import Freezing, gone_on
from ..stages.partition import Survey
from ..strategies.run import Run
from ..words import warn
from .watched import (
    BATCHES,
    FORWARDS,
    LOADS,
    SAVES,
    forget_batches,
    forget_loaded,
    holds,
    latest_iteration,
    origin,
)

_ENDINGS = (".pdopt", ".pdparams")
_ADVICE = "give step=, the optimizer steps done until then (0 to begin afresh)"
_EPOCHS = "give steps_per_epoch= or total_steps=, too"


class Follower:
    """One run, driven by the optimizer: what ``schedule.follow()`` returns.

    It ends with its ``with`` block, with :meth:`close`, or with the optimizer.

    Attributes:
        run: the run, ``None`` until the first forward in training mode.
        steps_done: optimizer steps done.
    """

    def __init__(
        self,
        begin: Callable[..., Freezing],
        network: nn.Layer,
        trained_by: Sequence[Any],
        length: Run,
        *,
        step: int | None,
        say: Callable[[str], object],
        record: Record | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        iteration: int = 0,
    ) -> None:
        self.run: Freezing | None = None
        self.steps_done = step or 0
        self._begin, self._network, self._optimizers = begin, network, tuple(trained_by)
        self._length, self._say = length, say
        self._told = step is not None
        self._record, self._checkpoint = record, checkpoint
        self._epoch = iteration  # of the DataLoader that trains; 0 before its first batch
        self._found_frozen: list[paddle.Tensor] = []  # until the first step
        self._stepped: set[int] = set()  # which of several optimizers did, in this step
        self._state: Any = None  # that an optimizer handed out since its last step
        self._busy = False
        self._undo: list[Callable[[], None]] = []
        for optimizer in self._optimizers:
            follower = getattr(optimizer.step, "follower", None)
            # The method of a deep copy has the mark of what it is a copy of.
            if follower is not None and follower.drives(optimizer):
                follower.close(verify=False)
        for optimizer in self._optimizers:
            for name, through in (
                ("step", self._stepping),
                ("minimize", self._stepping),
                ("state_dict", self._handing_out),
                ("set_state_dict", self._taking),
                ("set_dict", self._taking),
            ):
                stop = optimizers.around(optimizer, name, through, follower=self)
                self._undo.append(stop)
        for watch in (FORWARDS, SAVES, LOADS):
            watch.listen(self)
        if self._counts_epochs:
            if not BATCHES.listeners():
                forget_batches()
            BATCHES.listen(self)

    @property
    def _counts_epochs(self) -> bool:
        return self._length.total_steps is None

    def drives(self, optimizer: Any) -> bool:
        """Whether this very optimizer drives the run."""
        return any(one is optimizer for one in self._optimizers)

    # ------------------------------------------------------------ what the loop does

    def forward_begins(self, layer: nn.Layer) -> None:
        """Some layer's forward begins, in training mode with gradients on."""
        if self._found_frozen:  # the run has begun, and nothing stepped yet
            if layer is self._network:
                self._begin_anew()
            return
        ours = {id(one) for one in self._network.sublayers(include_self=True)}
        if ours.isdisjoint(id(one) for one in layer.sublayers(include_self=True)):
            return
        self._step_is_over()
        if self.run is None and all(one.stop_gradient for one in self._network.parameters()):
            return  # frozen for somebody else's step, as loops of GANs do
        self.begin()
        if not self._found_frozen:
            FORWARDS.leave(self)
        if self._counts_epochs and self._epoch != latest_iteration():
            self._epoch = latest_iteration()
            assert self.run is not None
            self.run.epoch_began(self.steps_done)

    def _begin_anew(self) -> None:
        """A loop may freeze the network for somebody else's step before its own first one.

        As loops of GANs do. What is open before anything stepped was not found frozen.
        """
        opened = [tensor for tensor in self._found_frozen if not tensor.stop_gradient]
        if opened and self.run is not None:
            run, self.run = self.run, None
            run.restore()
            for tensor in opened:
                tensor.stop_gradient = False
            self._say("weights that were frozen opened before the first step: begins again")
            self.begin()

    def batch_comes(self, iteration: int) -> None:
        """A batch of another iteration than the last one comes.

        A batch that is looked at, or an evaluation, is no epoch: only a forward in training mode
        tells.
        """
        if iteration != self._epoch:
            FORWARDS.listen(self)

    def saved(self, obj: Any, path: str) -> None:
        """``paddle.save`` wrote a file: if our optimizer's state is in it, our record follows."""
        if self._state is None or self.run is None or not holds(obj, self._state):
            return
        self._step_is_over()
        place = _without_ending(path)
        # A folder of that name is somebody else's: best_model/ beside best_model.pdopt.
        self.run.save(path if os.path.isdir(place) else place, self.steps_done)

    def begin(self) -> None:
        """Begin the run, if it has not begun.

        Raises:
            ValueError, TypeError: if the schedule does not fit after all.
        """
        if self.run is not None:
            return
        known = self._told or self._record is not None
        if not known and any(map(optimizers.awaits_state, self._optimizers)):
            raise ValueError(f"the optimizer has a loaded state; {_ADVICE}")
        if self._counts_epochs and not latest_iteration():
            raise ValueError(
                f"epochs={float(self._length.epochs or 0):g} alone needs a paddle.io.DataLoader, "
                f"and none gave a batch yet; {_EPOCHS}"
            )
        if self._counts_epochs and self.steps_done and not self._length.epoch_starts:
            raise ValueError(f"a run that goes on cannot count epochs alone; {_EPOCHS}")
        several = len(self._optimizers) > 1
        every = Survey(self._network).weights
        self._found_frozen = [weight.tensor for weight in every if not weight.trains]
        self.run = self._begin(
            self._network,
            list(self._optimizers) if several else self._optimizers[0],
            self._length,
            step=self.steps_done,
            say=self._say,
            record=self._record,
            checkpoint=self._checkpoint,
            lacking=(
                "the file ...freeze_schedule.json beside the optimizer's checkpoint, which is "
                "missing; resume from one that was saved under this schedule"
            ),
        )
        this, run = weakref.ref(self), weakref.ref(self.run)
        let_go = weakref.WeakMethod(self._let_go)

        def put_back() -> None:  # by its user, or by another run that takes the network
            alive, end = this(), let_go()
            if alive is not None and end is not None and alive.run is run():
                end()

        self.run.undo_also(put_back)

    # ------------------------------------------------------------ the optimizers

    def _stepping(self, optimizer: Any, method: Any, *given: Any, **named: Any) -> Any:
        if self._busy:  # one that calls another of ours
            return method(*given, **named)
        if self.run is None:
            self.begin()
            warn(
                "no forward of the network in training mode was seen before the first step: frozen "
                "from here on; running statistics have moved already"
            )
        if self._found_frozen:
            self._found_frozen = []
            FORWARDS.leave(self)
        if optimizer is self._optimizers[0]:
            self._step_is_over()  # the one before
        self._busy = True
        try:
            result = method(*given, **named)
        finally:
            self._busy = False
        self._state = None
        forget_loaded()
        # With several, a step is over when all have stepped, or, at the latest, where the next
        # one begins: what freezes then still trains with the others.
        self._stepped.add(id(optimizer))
        if len(self._stepped) == len(self._optimizers):
            self._step_is_over()
        elif id(self._optimizers[0]) in self._stepped:
            FORWARDS.listen(self)
        return result

    def _step_is_over(self) -> None:
        """Count a step if the first optimizer, whose steps are counted, has done one."""
        if id(self._optimizers[0]) not in self._stepped:
            return
        self._stepped.clear()
        FORWARDS.leave(self)
        self.steps_done += 1
        assert self.run is not None
        total = self._length.total_steps
        if total is None or self.steps_done < total:
            self.run.at(self.steps_done)
        elif self.steps_done == total:
            self.run.settle(total)
        elif self.steps_done == total + 1:
            self._say(gone_on(self.steps_done, total))

    def _handing_out(self, optimizer: Any, method: Any, *given: Any, **named: Any) -> Any:
        state = method(*given, **named)
        self._state = [self._state, state] if self._state else state
        return state

    def _taking(self, optimizer: Any, method: Any, state: Any, *rest: Any, **named: Any) -> Any:
        recorded = self.take(state)
        if recorded and self.run is not None:
            # Paddle refuses a state that lacks moments that are there: of what opened since.
            optimizers.free(optimizer, Survey(self._network).weights)
        result = method(state, *rest, **named)
        if recorded and self.run is not None:  # back to a checkpoint in the middle of a run
            self.run = None
            self.begin()
        return result

    def take(self, state: Any) -> bool:
        """An optimizer is given a state: where it was recorded, the run goes on from there.

        Raises:
            ValueError: if nobody knows how many steps it is worth.
        """
        path = origin(state)
        record, place = _record_beside(path)
        if record is None:
            if state and not self._told:
                where = f"{path}, which has no record of a schedule" if path else "somewhere unseen"
                if self.run is None:
                    raise ValueError(f"the optimizer's state comes from {where}; {_ADVICE}")
                self._say(
                    f"step {self.steps_done}: the optimizer takes a state from {where}; "
                    "the count goes on"
                )
            return False
        if self._told and self.run is None and record.step != self.steps_done:
            raise ValueError(
                f"step={self.steps_done} contradicts {path}, which was saved after {record.step} "
                "steps; drop step="
            )
        self._record, self._checkpoint, self.steps_done = record, place, record.step
        return True

    def succeeded_by(self, trained_by: Sequence[Any]) -> Follower:
        """The loop built its optimizer anew: go on with that one, from here.

        Raises:
            ValueError: if it was not given all that will open.
        """
        assert self.run is not None
        self._step_is_over()
        record, length = self.run.record, self.run.length
        self._let_go()
        self.run.verify()
        self.run.restore()
        follower = Follower(
            self._begin, self._network, trained_by, length,
            step=self.steps_done, say=self._say, record=record, iteration=self._epoch,
        )  # fmt: skip
        follower.begin()
        return follower

    # ------------------------------------------------------------ for the user

    def evaluated(self, metrics: Mapping[str, Any]) -> None:
        """The loop evaluated; a strategy may decide from the metrics.

        Args:
            metrics: values by name.

        Raises:
            ValueError: if the strategy needs a metric that is not there.
            RuntimeError: before the first step.
        """
        if self.run is None:
            raise RuntimeError("nothing was trained yet")
        self._step_is_over()
        self.run.evaluated(metrics)

    def close(self, *, verify: bool = True) -> None:
        """The run is over: verify if asked to, and leave optimizer and network as found."""
        if not self._undo:
            return
        self._step_is_over()
        self._let_go()
        if self.run is None:
            if verify:
                warn("follow() saw neither a forward in training mode nor a step of the optimizer")
            return
        total = self._length.total_steps
        if total is not None and self.steps_done < total:
            self._say(f"ends after {self.steps_done} of {total} steps")
        self.run.close(verify=verify, step=self.steps_done)

    def _let_go(self) -> None:
        while self._undo:
            self._undo.pop()()
        for watch in (FORWARDS, BATCHES, SAVES, LOADS):
            watch.leave(self)
        forget_loaded()

    def __enter__(self) -> Follower:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.close(verify=error is None)


def _without_ending(path: str) -> str:
    stem, ending = os.path.splitext(path)
    return stem if ending in _ENDINGS else path


def _record_beside(path: str | None) -> tuple[Record | None, str | None]:
    """The record of the checkpoint that a file belongs to, and what it is called."""
    for place in () if path is None else (path, _without_ending(path)):
        try:
            return Record.load(place), place
        except FileNotFoundError:
            continue
    return None, None
