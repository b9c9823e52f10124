"""What the events of ``paddle.Model.fit`` mean.

``fit`` tells a callback the index of a batch in its epoch; optimizer steps are counted here,
with ``fit``'s own rule: every ``accumulate_grad_batches`` batches, and at the end of an epoch.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Sequence
from typing import Any

import paddle

from ..strategies.moments import Moment, When
from ..strategies.run import Run


class HapiLoop:
    """One call of ``paddle.Model.fit``.

    Args:
        model: the ``paddle.Model``.
        params: what ``fit`` told the callback: epochs, steps (batches in an epoch), verbose.
        resume_at: how much of the run earlier calls of ``fit`` have done.

    Raises:
        ValueError: if the model cannot be trained under a schedule.
    """

    def __init__(self, model: Any, params: dict[str, Any], resume_at: When | None = None) -> None:
        self.network = model.network
        self.optimizer = model._optimizer
        if self.optimizer is None:
            raise ValueError("the model has no optimizer; call model.prepare(optimizer, loss)")
        if isinstance((self.optimizer._parameter_list or [None])[0], dict):
            raise ValueError(
                "paddle.Model cannot train with parameter groups: minimize() of an optimizer with "
                "groups raises TypeError, whatever is frozen. Build it with network.parameters()"
            )
        self.done = 0
        self._accumulate = int(getattr(model, "_accumulate", 1) or 1)
        self._verbose = params.get("verbose")
        # fit sets it just before training, for its own use; nothing public tells.
        self.evaluates = getattr(model, "_test_dataloader", None) is not None
        self.saved: Any = None
        self.metrics: tuple[str, ...] = ()
        self._displays: list[Any] | None = None
        self._shown: tuple[str, ...] = ()
        batches: int | None = params.get("steps")
        iterations: int | None = getattr(model, "num_iters", None)
        epochs = int(params["epochs"])
        if batches is None and self._accumulate > 1:
            raise ValueError(
                "accumulate_grad_batches needs training data with a length: fit cannot tell "
                "which batch is the last of an epoch"
            )
        # With num_iters below an epoch, fit reports num_iters as the batches of its one epoch.
        cut_short = iterations is not None and batches is not None and epochs == 1
        self._batches = None if cut_short else batches
        self.run = self._length(epochs, batches, iterations, cut_short)
        if resume_at is not None:
            self.done, self.run = self.run.continued(Moment.of(resume_at))

    def _length(
        self, epochs: int, batches: int | None, iterations: int | None, cut_short: bool
    ) -> Run:
        if batches is None:
            return Run.of(epochs=epochs) if iterations is None else Run.of(total_steps=iterations)
        if cut_short:
            steps = max(batches // self._accumulate, 1)
            return Run.of(total_steps=steps, steps_per_epoch=steps)
        per_epoch = -(-batches // self._accumulate)
        if iterations is None:
            return Run.of(epochs=epochs, steps_per_epoch=per_epoch)
        whole, rest = divmod(iterations, batches)
        total = whole * per_epoch + rest // self._accumulate
        return Run.of(total_steps=total, steps_per_epoch=per_epoch)

    def begins_step(self, batch: int) -> bool:
        """Whether this batch is the first of an optimizer step of the run."""
        over = self.run.total_steps is not None and self.done >= self.run.total_steps
        return batch % self._accumulate == 0 and not over

    def ends_step(self, batch: int) -> bool:
        """Whether the optimizer stepped after this batch."""
        return (batch + 1) % self._accumulate == 0 or batch + 1 == self._batches

    def show(self, callback: object, names: Iterable[str]) -> None:
        """Have ``fit``'s own displays show our numbers from the logs.

        They show only what ``fit`` announces: the loss, and the metrics given to ``prepare``.

        Args:
            callback: the schedule's callback.
            names: of the numbers that it puts into the logs.
        """
        now = tuple(names)
        if now == self._shown:
            return
        if self._displays is None:
            self._displays = _displays_beside(callback)
        for display in self._displays:
            announced = [name for name in display.train_metrics if name not in self._shown]
            # One rate for each stage would make the line of the progress bar unreadable.
            brief = isinstance(display, paddle.callbacks.ProgBarLogger)
            ours = [name for name in now if name in _IN_A_LINE or not brief]
            # A new list: that of fit is shared with callbacks that count on its metrics alone.
            display.train_metrics = announced + [name for name in ours if name not in announced]
        self._shown = now

    def say(self, line: str) -> None:
        """Show a line as ``fit`` shows its own: on standard output of rank 0, if verbose."""
        if self._verbose != 0 and paddle.distributed.ParallelEnv().local_rank == 0:
            print(f"FreezeSchedule: {line}", flush=True)


# Of our numbers, what fits into one line.
_IN_A_LINE = ("trainable_ratio", "open_stages")


# Those of Paddle that pick names from the logs; some are absent in some releases.
_DISPLAYS = tuple(
    getattr(paddle.callbacks, name)
    for name in ("ProgBarLogger", "VisualDL", "WandbCallback")
    if hasattr(paddle.callbacks, name)
)


def _displays_beside(callback: object) -> list[Any]:
    """``fit``'s displays, among the callbacks of the list that refers to ours."""
    found: dict[int, Any] = {}
    for holder in gc.get_referrers(callback):
        for other in holder if isinstance(holder, list) else ():
            if isinstance(other, _DISPLAYS) and hasattr(other, "train_metrics"):
                found[id(other)] = other
    return list(found.values())


def metrics_of(logs: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The metrics of this evaluation among ``fit``'s logs.

    Paddle uses one dictionary for all its runs, so values of other models may be in it.

    >>> metrics_of({"loss": [0.5], "acc": 0.75, "step": 3, "f1": 0.5}, ["loss", "acc"])
    {'loss': [0.5], 'acc': 0.75}
    """
    return {name: logs[name] for name in names if name in logs}


def checkpoint_prefix(callback: object, epoch: Any) -> str | None:
    """Where ``fit`` saves its checkpoint of this epoch, if it does.

    ``fit`` tells its callbacks nothing of ``save_dir``, so its own ``ModelCheckpoint`` is looked
    up in the list of callbacks that refers to ours.
    """
    for holder in gc.get_referrers(callback):
        for other in holder if isinstance(holder, list) else ():
            if isinstance(other, paddle.callbacks.ModelCheckpoint) and other.save_dir:
                due = epoch == "final" or epoch % other.save_freq == 0
                return f"{other.save_dir}/{epoch}" if due else None
    return None
