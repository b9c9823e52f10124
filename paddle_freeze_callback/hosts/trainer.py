"""The events of a PaddleNLP or PaddleFormers ``Trainer``."""

from __future__ import annotations

import functools
import importlib
import logging
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from paddle import nn

from ..freezing.savers import adapters, tell_savers
from ..options.norms import TrainNorm
from ..session.plan import plan
from ..session.record import FILE, Record
from ..session.session import Freezing
from ..session.transition import shown
from ..stages.partition import Stages, Survey
from ..stages.selectors import Selector
from ..strategies.base import Strategy
from ..strategies.rates import LearningRates
from ..strategies.run import Run
from ..words import in_lines


class TrainerHost:
    """One call of ``Trainer.train``.

    Args:
        callback: the callback that the Trainer has in its list.
        begin: starts a run.
        args: the ``TrainingArguments``.
        state: the ``TrainerState``; its ``global_step`` counts optimizer steps, also after
            a resume, where its float ``epoch`` is wrong under gradient accumulation.
        context: what else the event came with: model, optimizer, train_dataloader.
        resume: options by which other loops resume; a Trainer needs none of them.

    Raises:
        ValueError: if this kind of training, or one of ``resume``, does not fit a schedule.
    """

    def __init__(
        self,
        callback: object,
        begin: Callable[..., Freezing],
        args: Any,
        state: Any,
        context: dict[str, Any],
        **resume: Any,
    ) -> None:
        for name, value in resume.items():
            if value is not None:
                raise ValueError(
                    f"{name}={value!r} is for paddle.Model.fit; a Trainer knows where it "
                    "resumes: call train(resume_from_checkpoint=...)"
                )
        _refuse_unsupported(args)
        callbacks, folder = _calling_trainer(callback)
        # Reporters (VisualDL, TensorBoard, ...) come before a user's callbacks, so numbers that a
        # callback adds to the logs would reach only the console.
        if callbacks:
            callbacks.remove(callback)
            callbacks.insert(0, callback)
        self._bars = [other for other in callbacks if hasattr(other, "training_bar")]
        self._shown = 0  # transitions
        run = Run.of(
            total_steps=int(state.max_steps),
            steps_per_epoch=_steps_per_epoch(args, context.get("train_dataloader")),
        )
        step = int(state.global_step)
        folder = folder or getattr(args, "resume_from_checkpoint", None)
        checkpoint = folder if step and isinstance(folder, str) else None
        record, missing = _record_in(checkpoint) if step else (None, "")
        logger = _logger_beside(state) if state.is_world_process_zero else None
        self._run: Freezing | None = begin(
            context["model"],
            context["optimizer"],
            run,
            step=step,
            say=functools.partial(_say, logger),
            record=record,
            checkpoint=checkpoint,
            evaluates=_evaluates(args, run),
            lacking=(
                f"{FILE} beside trainer_state.json, which is missing ({missing}); "
                "resume from a checkpoint that was saved with this schedule"
            ),
        )
        self._run.undo_also(_shorten_lines(callbacks, self._run.tags.values()))

        every = getattr(args, "logging_steps", 0)
        by_steps = str(getattr(args.logging_strategy, "value", args.logging_strategy)) == "steps"
        if by_steps and run.total_steps and every > run.total_steps:
            _say(
                logger,
                f"logging_steps={every} is longer than this run of {run.total_steps} steps: the "
                f"trainable ratio is never logged; set it to {max(run.total_steps // 10, 1)}",
            )
        scheduler = getattr(args, "lr_scheduler_type", "constant")
        scheduler = str(getattr(scheduler, "value", scheduler))
        if self._run.shapes_phases and not scheduler.startswith("constant"):
            _say(
                logger,
                f"phase_lr multiplies what lr_scheduler_type={scheduler!r} gives; for the rates of "
                "phases alone set lr_scheduler_type='constant'",
            )

    # ------------------------------------------------------------ events, as they come

    def on_step_begin(self, args: Any, state: Any, control: Any, **context: Any) -> None:
        """The first micro-batch of an optimizer step comes next."""
        run = self._run
        if run is None:
            return
        run.at(state.global_step)
        if len(run.history) != self._shown:
            self._shown = len(run.history)
            self._show(f"open {len(run.open_stages)}/{len(run.stages)}")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **context: Any) -> None:
        """The Trainer logs: add our numbers, for the reporters and for ``log_history``.

        Logs of an evaluation are left alone: ``evaluate`` returns them.
        """
        if self._run is None:
            return
        self._run.notice()
        self._run.check_flags(state.global_step)
        if not logs or "loss" not in logs:
            return
        logs.update(self._run.numbers)
        history = state.log_history
        if history and history[-1].get("step") == state.global_step and "loss" in history[-1]:
            history[-1].update(self._run.numbers)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Any = None, **context: Any
    ) -> None:
        """The Trainer evaluated: a strategy may decide from the metrics."""
        if self._run is not None:
            self._run.evaluated(metrics or {}, state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, **context: Any) -> None:
        """The Trainer saved a checkpoint: put our record into it."""
        if self._run is not None:
            folder = os.path.join(args.output_dir, f"checkpoint-{state.global_step}")
            self._run.save(folder, state.global_step)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **context: Any) -> None:
        """An epoch is over."""
        if self._run is not None:
            self._run.verify(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **context: Any) -> None:
        """Training is over: everything is put back."""
        run, self._run = self._run, None
        if run is not None:
            run.conclude(state.global_step)
            # A Trainer may have loaded its best checkpoint since the last epoch's end, so that
            # was the last time to verify.
            run.close(verify=False)

    def _show(self, words: str) -> None:
        """Put a few words behind the Trainer's progress bar, where it has one."""
        for display in self._bars:
            bar = display.training_bar  # None on other ranks
            if hasattr(bar, "set_postfix_str"):
                bar.set_postfix_str(words)


def expect_checkpoint(
    network: Any,
    stages: Stages,
    strategy: Strategy,
    rates: LearningRates,
    untouched: Selector | None,
    train_norm: TrainNorm,
    rows: Mapping[str, slice] | None = None,
) -> None:
    """Have an adapter model load all that a run under this schedule saves.

    A Trainer resumes before training begins. Weights that the user froze and the schedule opens
    are frozen then, and a checkpoint in PaddleNLP's unified format would be read without them.
    """
    if not isinstance(network, nn.Layer) or not adapters(network):
        return
    try:
        survey = Survey(network, rows)
        openable = plan(survey, stages, strategy, rates, untouched, train_norm).openable
    except (TypeError, ValueError):
        return  # what does not fit is refused when training begins
    tell_savers(network, [weight for weight in survey.weights if weight.name in openable])


def _shorten_lines(callbacks: Sequence[Any], tags: Collection[str]) -> Callable[[], None]:
    """Have the Trainer's own displays print the logs without what is for reporters alone.

    Returns:
        How to stop.
    """
    hidden = {"trainable_params", *tags}
    kinds = ("ProgressCallback", "PrinterCallback")
    displays = [
        one for one in callbacks if any(kind.__name__ in kinds for kind in type(one).__mro__)
    ]
    for display in displays:
        print_logs = display.on_log

        def on_log(
            *event: Any, logs: Any = None, print_logs: Any = print_logs, **context: Any
        ) -> Any:
            return print_logs(*event, logs=shown(logs or {}, hidden), **context)

        display.on_log = on_log

    def stop() -> None:
        for display in displays:
            vars(display).pop("on_log", None)

    return stop


def _calling_trainer(callback: object) -> tuple[list[Any], str | None]:
    """The list of callbacks of the Trainer that calls us, and the checkpoint it resumes from.

    Nothing that a Trainer hands to its callbacks leads to either. The list is that of the
    ``CallbackHandler`` which calls us; ``Trainer.train(resume_from_checkpoint=...)`` passes the
    folder on as an argument, and keeps it nowhere.
    """
    callbacks: list[Any] = []
    frame = sys._getframe(1)
    while frame is not None:
        if not callbacks:
            found = getattr(frame.f_locals.get("self"), "callbacks", None)
            if isinstance(found, list) and any(other is callback for other in found):
                callbacks = found
        loop = frame.f_code.co_name.startswith(("_inner_training_loop", "train"))
        if loop and "resume_from_checkpoint" in frame.f_locals:
            folder = frame.f_locals["resume_from_checkpoint"]
            return callbacks, folder if isinstance(folder, str) else None
        frame = frame.f_back  # type: ignore[assignment]
    return callbacks, None


def _record_in(folder: str | None) -> tuple[Record | None, str]:
    """The record in a Trainer's checkpoint, or why there is none."""
    if folder is None:
        return None, "the folder of the checkpoint is not known"
    try:
        return Record.load(folder), ""
    except FileNotFoundError as error:
        return None, str(error)


# As PaddleNLP calls them, and as PaddleFormers does, whose Trainer cannot split a network on CPUs.
_DEGREES = (
    "pipeline_parallel_degree",
    "sep_parallel_degree",
    "context_parallel_degree",
    "expert_parallel_degree",
    "pipeline_model_parallel_size",
    "tensor_model_parallel_size",
    "sep_parallel_size",
    "context_parallel_size",
    "expert_model_parallel_size",
)


def _refuse_unsupported(args: Any) -> None:
    """Refuse, by name, the kinds of parallel training under which a schedule would go wrong."""
    kinds = {str(getattr(kind, "value", kind)) for kind in getattr(args, "sharding", None) or []}
    refused = [
        f"sharding={kind}: it notes what trains when it is set up, and never looks again"
        for kind in ("stage2", "stage3")
        if kind in kinds
    ]
    refused += [
        f"{name}={getattr(args, name)}: not shown to be right with a schedule"
        for name in _DEGREES
        if (getattr(args, name, 1) or 1) > 1
    ]
    if (getattr(args, "tensor_parallel_degree", 1) or 1) > 1:
        refused += [
            f"{name}={getattr(args, name)!r}: not shown to be right with a schedule"
            for name in ("sequence_parallel", "tensor_parallel_config")
            if getattr(args, name, None)
        ]
    split = getattr(args, "split_param", False) or "split_param" in str(
        getattr(args, "sharding_parallel_config", "")
    )
    if kinds and split:
        refused.append("sharding with split_param: it flattens what trains when it is set up")
    if refused:
        raise ValueError(
            f"FreezeSchedule does not work with {'; '.join(refused)}. "
            "Use data parallel or sharding stage1"
        )


def _steps_per_epoch(args: Any, dataloader: Any) -> int | None:
    """The Trainer's own formula; ``None`` if the data has no length."""
    try:
        batches = len(dataloader)
    except (TypeError, ValueError, RuntimeError, NotImplementedError):
        return None
    return max(batches // int(args.gradient_accumulation_steps), 1)


def _evaluates(args: Any, run: Run) -> bool:
    """Whether the Trainer will evaluate before the run is over."""
    when = getattr(args, "evaluation_strategy", getattr(args, "eval_strategy", "no"))
    kind = str(getattr(when, "value", when))
    if kind == "steps" and run.total_steps is not None:
        return int(args.eval_steps) <= run.total_steps
    return kind != "no"


def _logger_beside(state: Any) -> Any:
    """The logger of the library that this Trainer's state comes from."""
    for kind in type(state).__mro__:
        package = kind.__module__.partition(".")[0]
        if package in ("paddlenlp", "paddleformers"):
            return importlib.import_module(f"{package}.utils.log").logger
    return logging.getLogger("paddle_freeze_callback")


def _say(logger: Any, line: str) -> None:
    """Log through the Trainer's own logger, which is ``None`` on other ranks."""
    for part in in_lines(line) if logger is not None else ():
        logger.info(part)
