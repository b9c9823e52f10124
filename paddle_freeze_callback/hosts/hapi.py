"""The events of ``paddle.Model.fit``.

``fit`` hands a callback the index of a batch in its epoch. Optimizer steps are counted here, with
``fit``'s own rule: every ``accumulate_grad_batches`` batches, and at the end of an epoch.
"""

from __future__ import annotations

import functools
import math
import os
import shutil
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import paddle

from ..freezing import parallel
from ..session.record import record_named
from ..session.session import Freezing
from ..strategies.moments import Moment, When
from ..strategies.run import Run
from ..words import in_lines

# Our numbers in fit's line, as far as a line of the terminal has room, with what they take; and
# those for reporters alone.
_IN_A_LINE = {"open_stages": len(" - open_stages: 12/24"), "trainable_ratio": 26}
_FURTHER = ("trainable_params", "cache_hit_rate")

# Paddle's callbacks that plot what they pick from the logs; some releases lack one.
_REPORTERS = tuple(
    getattr(paddle.callbacks, name)
    for name in ("VisualDL", "WandbCallback")
    if hasattr(paddle.callbacks, name)
)


def announce(params: dict[str, Any]) -> None:
    """Have ``fit``'s displays show our numbers, as far as the terminal is wide enough.

    They show the names in ``params["metrics"]``, which they read when training begins.

    Args:
        params: the dictionary that ``fit`` hands to all of its callbacks.

    >>> params = {"metrics": ["loss", "acc"], "steps": 1000, "verbose": 2}
    >>> announce(params)
    >>> params["metrics"]
    ['loss', 'acc', 'open_stages']
    """
    metrics = _without_ours(params)
    used = len("step / - 999ms/step") + 2 * len(str(params.get("steps") or ""))
    used += sum(len(f" - {name}: 0.0000") for name in metrics)
    if params.get("verbose") == 1:
        used += len(f" [{'.' * 30}] - ETA: 10:00")
    for name, length in _IN_A_LINE.items():
        used += length
        if used <= shutil.get_terminal_size().columns:
            metrics.append(name)
    params["metrics"] = metrics  # a new list: other callbacks may hold the old one


def _without_ours(params: Mapping[str, Any]) -> list[str]:
    return [name for name in params.get("metrics") or () if name not in _IN_A_LINE]


class HapiHost:
    """One call of ``paddle.Model.fit``.

    Args:
        begin: starts a run.
        model: the ``paddle.Model``.
        params: what ``fit`` handed to the callback: epochs, steps (batches in an epoch), verbose.
        resume_at: how much of the run earlier calls of ``fit`` have done.
        resume_from: the checkpoint that records it.

    Raises:
        ValueError: if the model cannot be trained under a schedule.
    """

    def __init__(
        self,
        begin: Callable[..., Freezing],
        model: Any,
        params: dict[str, Any],
        *,
        resume_at: When | None = None,
        resume_from: str | os.PathLike[str] | None = None,
    ) -> None:
        optimizer = model._optimizer  # no public name
        if optimizer is None:
            raise ValueError("the model has no optimizer; call model.prepare(optimizer, loss)")
        if isinstance((optimizer._parameter_list or [None])[0], dict):
            raise ValueError(
                "paddle.Model cannot train with parameter groups: minimize() of an optimizer with "
                "groups raises TypeError, whatever is frozen. Build it with network.parameters()"
            )
        self._model = model
        self._params = params
        self._accumulate = int(getattr(model, "_accumulate", 1) or 1)  # no public name
        self._batches, run = _length(
            int(params["epochs"]),
            params.get("steps"),
            getattr(model, "num_iters", None),
            self._accumulate,
        )
        record = record_named(resume_from)
        earlier = resume_at if record is None else f"{record.step} steps"
        self.done = 0
        self._inside = False  # a batch: has the optimizer stepped yet?
        self._after_bar = False  # which leaves its line open
        if earlier is not None:
            self.done, run = run.continued(Moment.of(earlier))
        self._counts_epochs = run.steps_per_epoch is None
        self._total = math.inf if run.total_steps is None else run.total_steps
        self._metrics: Sequence[str] = ()  # names of those that fit evaluates
        self._saved: set[Any] = set()  # checkpoints of this step
        self._saved_at = self._settled_at = -1
        self._run: Freezing | None = begin(
            model.network,
            optimizer,
            run,
            step=self.done,
            say=self._say,
            record=record,
            checkpoint=resume_from,
            # Set just before training, for fit's own use; no public name.
            evaluates=getattr(model, "_test_dataloader", None) is not None,
            lacking=(
                "the files beside the checkpoints of fit(save_dir=...); name one with "
                'resume_from=, such as "checkpoints/3", instead of resume_at='
            ),
        )
        self._logs = _Logs()
        self._run.undo_also(self._logs.clear)
        self._run.undo_also(self._watch_saves())
        names = [*_IN_A_LINE, *_FURTHER, *self._run.tags.values()]
        self._run.undo_also(_tell_reporters(model, names))

    # ------------------------------------------------------------ events, as they come

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """An epoch begins; by the first, every display has read which metrics to show."""
        self._params["metrics"] = _without_ours(self._params)
        self._after_bar = False
        if self._run is not None and self._counts_epochs:
            self._run.epoch_began(self.done)

    def on_train_batch_begin(self, step: int, logs: Any = None) -> None:
        """A batch comes next; displays that come before us read our numbers at its end."""
        run = self._run
        if run is None:
            return
        if step % self._accumulate == 0 and self.done < self._total:
            run.at(self.done)
        self._inside = True
        if logs is not None:
            self._logs.show(logs, run.numbers)

    def on_train_batch_end(self, step: int, logs: Any = None) -> None:
        """A batch is done: count the optimizer step, and show our numbers as of now."""
        if self._run is None:
            return
        if (step + 1) % self._accumulate == 0 or step + 1 == self._batches:
            self.done += 1
        self._inside = False
        self._after_bar = self._params.get("verbose") == 1 and step + 1 != self._params.get("steps")
        if logs is not None:
            self._logs.show(logs, self._run.numbers)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """An epoch is over; ``fit`` saves next, on rank 0 alone."""
        if self._run is not None:
            self._run.settle(self.done)
            self._run.check_flags(self.done)
            self._settled_at = self.done

    def on_eval_begin(self, logs: Any = None) -> None:
        """``fit`` evaluates next; the logs name the metrics."""
        self._metrics = tuple((logs or {}).get("metrics") or ())

    def on_eval_end(self, logs: Any = None) -> None:
        """``fit`` evaluated: a strategy may decide, and what was saved before must know it."""
        if self._run is None:
            return
        self._run.evaluated(metrics_of(logs or {}, self._metrics), self.done)
        for path in self._saved if self._saved_at == self.done else ():
            self._run.save(path, self.done)

    def on_train_end(self, logs: Any = None) -> None:
        """Training is over: everything is put back."""
        run, self._run = self._run, None
        if run is None:
            return
        run.close(step=self.done)
        saved = {os.path.basename(path) for path in self._saved}
        if saved and "final" not in saved:  # fit saves that when its own callback's turn comes
            self._watch_saves(run)

    def _say(self, line: str) -> None:
        """Show a line as ``fit`` shows its own: on standard output of rank 0, if verbose."""
        if self._params.get("verbose") != 0 and paddle.distributed.ParallelEnv().local_rank == 0:
            print(*[""][: self._after_bar], *in_lines(line), sep="\n", flush=True)
            self._after_bar = False

    # ------------------------------------------------------------ checkpoints

    def _watch_saves(self, ended: Freezing | None = None) -> Callable[[], None]:
        """Put our record beside each checkpoint that the model saves, be it ``fit``'s or not.

        Args:
            ended: the run, when it is over: then only ``final`` still belongs to it.

        Returns:
            How to stop.
        """
        host = weakref.ref(self)  # the model must not keep the run alive
        model = self._model
        getattr(model.save, "stop", lambda: None)()  # of a run whose "final" never came
        found = vars(model).get("save")
        save = model.save

        @functools.wraps(save)
        def saving(path: Any, training: bool = True) -> Any:
            result = save(path, training)
            if ended is not None:
                stop()
                if os.path.basename(path) == "final":
                    ended.save(path)
            elif training and (alive := host()) is not None:
                alive._record(path)
            return result

        def stop() -> None:
            if vars(model).get("save") is saving:
                _put_back(model, "save", found)

        saving.stop = stop  # type: ignore[attr-defined]
        model.save = saving
        return stop

    def _record(self, path: Any) -> None:
        # Inside a batch nobody knows whether the step is done: rather no record than a wrong one.
        if self._run is None or self._inside:
            return
        # Rank 0 may be alone here; the decisions that need the others were made at an epoch's end.
        if parallel.world_size() > 1 and self._settled_at != self.done:
            return
        if self._saved_at != self.done:
            self._saved, self._saved_at = set(), self.done
        self._saved.add(path)
        self._run.save(path, self.done)


class _Logs:
    """Our numbers in ``fit``'s logs: one dictionary, which Paddle uses for all of its runs."""

    def __init__(self) -> None:
        self._logs: dict[str, Any] = {}
        self._numbers: Mapping[str, float] = {}

    def show(self, logs: dict[str, Any], numbers: Mapping[str, float]) -> None:
        if numbers is not self._numbers or logs is not self._logs:
            self.clear()  # a stage that froze has no rate any more
            self._logs, self._numbers = logs, numbers
        logs.update(numbers)

    def clear(self) -> None:
        for name in self._numbers:
            self._logs.pop(name, None)
        self._logs, self._numbers = {}, {}


def _tell_reporters(model: Any, names: Sequence[str]) -> Callable[[], None]:
    """Have VisualDL and Weights & Biases plot further numbers.

    They read the same list of names as the progress bar, whose line one rate for each stage would
    make unreadable. A bar and a reporter can be told apart only in the list of callbacks, and
    ``fit`` hands that to nothing but ``_run_one_epoch``; without that name they plot what the bar
    shows.

    Returns:
        How to stop, before the first epoch; then it stops by itself.
    """
    found = vars(model).get("_run_one_epoch")

    def first_epoch(loader: Any, callbacks: Any, *rest: Any, **options: Any) -> Any:
        stop()
        for callback in callbacks:
            if isinstance(callback, _REPORTERS) and hasattr(callback, "train_metrics"):
                shown = callback.train_metrics
                callback.train_metrics = [*shown, *(n for n in names if n not in shown)]
        return model._run_one_epoch(loader, callbacks, *rest, **options)

    def stop() -> None:
        if vars(model).get("_run_one_epoch") is first_epoch:
            _put_back(model, "_run_one_epoch", found)

    if hasattr(model, "_run_one_epoch"):
        model._run_one_epoch = first_epoch
    return stop


def _put_back(model: Any, name: str, found: Any) -> None:
    if found is None:
        delattr(model, name)
    else:
        setattr(model, name, found)


def metrics_of(logs: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The metrics of this evaluation among ``fit``'s logs.

    Paddle uses one dictionary for all of its runs, so it may hold values of other models.

    >>> metrics_of({"loss": [0.5], "acc": 0.75, "step": 3, "f1": 0.5}, ["loss", "acc"])
    {'loss': [0.5], 'acc': 0.75}
    """
    return {name: logs[name] for name in names if name in logs}


def _length(
    epochs: int, batches: int | None, iterations: int | None, accumulate: int
) -> tuple[int | None, Run]:
    """The number of batches in an epoch, if it is known, and the length of the run.

    Args:
        epochs: epochs of the run.
        batches: batches in an epoch, or in the whole run if that is cut short in its first epoch.
        iterations: batches in the run, if the user limits them.
        accumulate: batches in an optimizer step.
    """
    if batches is None:
        if accumulate > 1:
            raise ValueError(
                "accumulate_grad_batches needs training data with a length: fit cannot tell "
                "which batch is the last of an epoch"
            )
        return None, Run.of(epochs=epochs) if iterations is None else Run.of(total_steps=iterations)
    if iterations is not None and epochs == 1:
        # With num_iters below an epoch, fit gives num_iters as the batches of its one epoch.
        steps = max(batches // accumulate, 1)
        return None, Run.of(total_steps=steps, steps_per_epoch=steps)
    per_epoch = -(-batches // accumulate)
    if iterations is None:
        return batches, Run.of(epochs=epochs, steps_per_epoch=per_epoch)
    whole, rest = divmod(iterations, batches)
    return batches, Run.of(
        total_steps=whole * per_epoch + rest // accumulate, steps_per_epoch=per_epoch
    )
