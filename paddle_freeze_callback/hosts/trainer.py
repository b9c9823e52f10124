"""What the events of a PaddleNLP or PaddleFormers ``Trainer`` mean."""

from __future__ import annotations

import gc
import importlib
import os
import sys
from typing import Any

from ..strategies.run import Run


class TrainerLoop:
    """One call of ``Trainer.train``, as its events describe it.

    Args:
        args: the ``TrainingArguments``.
        state: the ``TrainerState``; its ``global_step`` counts optimizer steps, also after
            a resume, where its float ``epoch`` is wrong under gradient accumulation.
        context: what else the event came with: model, optimizer, train_dataloader.
    """

    def __init__(self, args: Any, state: Any, context: dict[str, Any]) -> None:
        _refuse_unsupported(args)
        self.network = context["model"]
        self.optimizer = context["optimizer"]
        self._main = bool(state.is_world_process_zero)
        self._logger = _logger_beside(state)
        self.run = Run.of(
            total_steps=int(state.max_steps),
            steps_per_epoch=_steps_per_epoch(args, context.get("train_dataloader")),
        )
        self.evaluates = _evaluates(args, self.run)
        self._displays: list[Any] | None = None
        self._shown = ""

    def show(self, callback: object, line: str) -> None:
        """Put a few words behind the Trainer's progress bar, where it has one.

        Args:
            callback: the schedule's callback.
            line: the words; the bar is touched only if they are new.
        """
        if line == self._shown:
            return
        self._shown = line
        if self._displays is None:
            self._displays = [
                other
                for holder in _lists_with(callback)
                for other in holder
                if hasattr(other, "training_bar")
            ]
        for display in self._displays:
            bar = display.training_bar  # None on other ranks, and when training is over
            if hasattr(bar, "set_postfix_str"):
                bar.set_postfix_str(line)

    def say(self, line: str) -> None:
        """Log a line through the Trainer's own logger, on the main rank."""
        if self._main:
            self._logger.info(f"FreezeSchedule: {line}")


# As PaddleNLP calls them, and as PaddleFormers does.
_DEGREES = (
    "pipeline_parallel_degree",
    "tensor_parallel_degree",
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


def checkpoint_folder(args: Any, state: Any) -> str:
    """The folder of the checkpoint that was just saved."""
    return os.path.join(args.output_dir, f"checkpoint-{state.global_step}")


def resumed_from(args: Any) -> str | None:
    """The folder of the checkpoint that training resumes from, as far as can be told.

    ``Trainer.train(resume_from_checkpoint=...)`` tells its callbacks nothing of it, so it is
    read from the frame of the Trainer's loop, which called us.
    """
    frame = sys._getframe(1)
    while frame is not None:
        if "resume_from_checkpoint" in frame.f_locals and frame.f_code.co_name.startswith(
            ("_inner_training_loop", "train")
        ):
            folder = frame.f_locals["resume_from_checkpoint"]
            return folder if isinstance(folder, str) else None
        frame = frame.f_back  # type: ignore[assignment]
    folder = getattr(args, "resume_from_checkpoint", None)
    return folder if isinstance(folder, str) else None


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
    import logging

    return logging.getLogger("paddle_freeze_callback")


def put_first(callback: object) -> None:
    """Move a callback to the front of the Trainer's list.

    Reporters (VisualDL, TensorBoard, ...) come before a user's callbacks, so numbers that a
    callback adds to the logs would reach only the console.
    """
    for holder in _lists_with(callback):
        holder.remove(callback)
        holder.insert(0, callback)


def _lists_with(callback: object) -> list[list[Any]]:
    """The Trainer's list of callbacks.

    A Trainer hands its callbacks no reference to itself or to the list, so the list is found as
    the one that refers to the callback and holds the Trainer's own flow control.
    """
    return [
        holder
        for holder in gc.get_referrers(callback)
        if isinstance(holder, list)
        and any(type(other).__name__ == "DefaultFlowCallback" for other in holder)
    ]


def publish(numbers: dict[str, float], logs: dict[str, Any] | None, state: Any) -> None:
    """Add numbers to a training log, for the reporters and for ``log_history``.

    Logs of an evaluation are left alone: ``evaluate`` returns them.
    """
    if not logs or "loss" not in logs:
        return
    logs.update(numbers)
    history = state.log_history
    if history and history[-1].get("step") == state.global_step and "loss" in history[-1]:
        history[-1].update(numbers)
