"""``FreezeSchedule``: the one callback for both training loops.

Both loops look up a callback's events by name, without asking for a base class, so one class
serves both and imports neither. Four events have the same name and other arguments in the two
loops; which loop calls is told by how it calls: a Trainer passes ``(args, state, control)``.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Mapping
from typing import Any

from paddle import nn

from . import arguments
from .freezer import FROZEN_MODES
from .hosts.hapi import HapiLoop
from .hosts.trainer import TrainerLoop, checkpoint_folder, publish, put_first, resumed_from
from .moments import Moment, Run, When, named
from .record import FILE, Record
from .report import Transition
from .session import Freezing
from .stages import Stage, Stages
from .strategies import STRATEGIES, Explicit, Gradual, Strategy, options_of


class FreezeSchedule:
    """Freezes the backbone at the start and unfreezes its stages on a schedule.

    Pass it to ``paddle.Model.fit(callbacks=[...])`` or to ``Trainer(callbacks=[...])`` of
    PaddleNLP or PaddleFormers; for a hand-written loop see :meth:`attach`. At the end of
    training the network is left as it was found. One object may serve several runs, one after
    another; each starts afresh.

    A moment (``every``, ``start``, keys of ``unfreeze_at``) is an ``int``, which counts epochs,
    or a string such as ``"3 epochs"``, ``"500 steps"`` or ``"30%"`` of the run. A selector is
    described in :mod:`paddle_freeze_callback.selectors`.

    Args:
        stages: which parameters belong together, head first: ``"auto"``, a number of backbone
            stages, or a list of selectors; see :func:`paddle_freeze_callback.stages.partition`.
        strategy: which stages are open when: a strategy object, or the name of one that needs
            no arguments. By default the head trains first and the other stages open one by
            one from the top, spread over the run.
        every: time between two openings; short for ``strategy=Gradual(every, start)``.
        start: when the first stage below the head opens; short for the same.
        unfreeze_at: when -> what; short for ``strategy=Explicit(unfreeze_at)``.
        frozen_norm: ``"eval"`` holds the running statistics of frozen normalization layers
            still; ``"train"`` lets them move.
        frozen_dropout: ``"train"`` leaves dropout on in frozen layers; ``"eval"`` runs them
            in eval mode.
        verify: check with checksums, at every transition and at the end, that nothing frozen
            has moved.
        restore: put ``stop_gradient`` back as it was found at the end of training. Everything
            else that was changed is put back in any case.
        free_optimizer_state: drop the optimizer's moments and master weights of a stage that
            is frozen again, to save memory; it gets fresh ones when it opens.
        resume_at: only for ``paddle.Model.fit``, which cannot tell: how much of the run earlier
            calls of ``fit`` have done, as a moment such as ``2`` or ``"300 steps"``. A Trainer
            that resumes knows.

    Called with no argument at all, in a Trainer whose arguments have ``freeze_*`` flags (see
    :class:`FreezeTrainingArguments`), it takes its options from those.

    Raises:
        ValueError, TypeError: for options that are wrong or contradict each other. What depends
            on the network is checked at the start of training, before the first step.

    >>> FreezeSchedule(every="1 epoch", verify=True)
    FreezeSchedule(every='1 epoch', verify=True)
    >>> FreezeSchedule(unfreeze_at={0: "fc", 1: "layer4", "50%": "*"})
    FreezeSchedule(unfreeze_at={0: 'fc', 1: 'layer4', '50%': '*'})
    """

    def __init__(
        self,
        *,
        stages: Stages = "auto",
        strategy: Strategy | str | None = None,
        every: When | None = None,
        start: When | None = None,
        unfreeze_at: Mapping[When, Any] | None = None,
        frozen_norm: str = "eval",
        frozen_dropout: str = "train",
        verify: bool = False,
        restore: bool = True,
        free_optimizer_state: bool = False,
        resume_at: When | None = None,
    ) -> None:
        given = {
            "stages": (stages, "auto"),
            "strategy": (strategy, None),
            "every": (every, None),
            "start": (start, None),
            "unfreeze_at": (unfreeze_at, None),
            "frozen_norm": (frozen_norm, "eval"),
            "frozen_dropout": (frozen_dropout, "train"),
            "verify": (verify, False),
            "restore": (restore, True),
            "free_optimizer_state": (free_optimizer_state, False),
            "resume_at": (resume_at, None),
        }
        self._given = {
            name: value
            for name, (value, default) in given.items()
            if not (type(value) is type(default) and value == default)
        }
        _check_stages(stages)
        _one_of("frozen_norm", frozen_norm, FROZEN_MODES)
        _one_of("frozen_dropout", frozen_dropout, FROZEN_MODES)
        _boolean("verify", verify)
        _boolean("restore", restore)
        _boolean("free_optimizer_state", free_optimizer_state)
        if resume_at is not None:
            named("resume_at", Moment.of, resume_at)
        self._resume_at = resume_at
        self._stages = stages
        self._strategy = _strategy(strategy, every, start, unfreeze_at)
        self._manners: dict[str, Any] = {
            "frozen_norm": frozen_norm,
            "frozen_dropout": frozen_dropout,
            "verify": verify,
            "restore": restore,
            "free_optimizer_state": free_optimizer_state,
        }
        self._freezing: Freezing | None = None
        self._loop: HapiLoop | TrainerLoop | None = None
        self._model: Any = None
        self._params: dict[str, Any] = {}
        self._logs: dict[str, Any] = {}
        self._source = ""

    # ------------------------------------------------------------ other ways to make one

    @classmethod
    def from_args(cls, args: Any) -> FreezeSchedule:
        """A schedule from parsed ``freeze_*`` flags.

        Args:
            args: a :class:`FreezeArguments`, or any object that has its fields, such as a
                :class:`FreezeTrainingArguments`.

        Raises:
            ValueError, TypeError: if a value is wrong; the message names its flag.

        >>> from paddle_freeze_callback import FreezeArguments
        >>> FreezeSchedule.from_args(FreezeArguments(freeze_every="200 steps"))
        FreezeSchedule(strategy=Gradual(every='200 steps', start=None))
        """
        if not arguments.has_arguments(args):
            raise TypeError(
                f"{type(args).__name__} has no freeze_* fields; parse FreezeTrainingArguments "
                "instead of TrainingArguments, or FreezeArguments beside them"
            )
        options = arguments.options_from_arguments(args)
        schedule = _made(cls, options, lambda name: f"--{arguments.PREFIX}{name}")
        schedule._source = ", ".join(arguments.given_flags(args))
        return schedule

    @classmethod
    def from_file(cls, path: Any) -> FreezeSchedule:
        """A schedule from a YAML or JSON file.

        Its keys are the flags' names, with or without ``freeze_``.

        Raises:
            ValueError, TypeError: if the content is wrong; the message names file and key.
            OSError: if the file cannot be read.
        """
        schedule = _made(cls, arguments.options_from_file(path), lambda name: f"{path}: {name}")
        schedule._source = str(path)
        return schedule

    # ------------------------------------------------------------ what it did

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of the network of the last run, head first; empty before the first."""
        return self._freezing.stages if self._freezing else ()

    @property
    def history(self) -> list[Transition]:
        """The transitions of the last run; the first says what it began with."""
        return self._freezing.history if self._freezing else []

    def restore(self) -> None:
        """Put the network back as it was found, at once.

        Needed only if training ended with an exception, of which no loop tells its callbacks,
        and the network is used before the next training starts.
        """
        self._clear_logs()
        if self._freezing is not None:
            self._freezing.restore()

    def _clear_logs(self) -> None:
        """Take our numbers out of ``fit``'s logs: Paddle uses one dictionary for all its runs."""
        if self._freezing is not None:
            for key in self._freezing.numbers:
                self._logs.pop(key, None)
        self._logs = {}

    # ------------------------------------------------------------ hand-written loops

    def attach(
        self,
        network: nn.Layer,
        optimizer: Any,
        *,
        epochs: float | None = None,
        steps_per_epoch: int | None = None,
        total_steps: int | None = None,
        step: int = 0,
        say: Callable[[str], object] | None = None,
    ) -> Freezing:
        """Start the schedule in a training loop of your own.

        Args:
            network: the network.
            optimizer: its optimizer, built with all parameters.
            epochs: how long the run is, in epochs; need not be whole. Of this and the next two
                give any two, or ``total_steps`` alone.
            steps_per_epoch: optimizer steps in an epoch.
            total_steps: optimizer steps in the run.
            step: optimizer steps already done, when a run is continued.
            say: where lines about transitions go; by default to the logger
                ``paddle_freeze_callback``, at level INFO.

        Returns:
            A context manager. Call its ``step()`` after each optimizer step.

        Raises:
            ValueError: if the schedule does not fit the network, optimizer or run.

        >>> import paddle
        >>> net = paddle.nn.Sequential(paddle.nn.Linear(2, 2), paddle.nn.Linear(2, 1))
        >>> optimizer = paddle.optimizer.SGD(0.1, parameters=net.parameters())
        >>> with FreezeSchedule(every="2 steps").attach(net, optimizer, total_steps=4) as freezing:
        ...     for batch in paddle.ones([4, 1, 2]):
        ...         net(batch).sum().backward()
        ...         optimizer.step()
        ...         optimizer.clear_grad()
        ...         freezing.step()
        >>> [(change.step, change.opened) for change in freezing.history]
        [(0, ('head',)), (2, ('0',))]
        """
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            raise ValueError(f"step={step!r} must be the number of optimizer steps done")
        run = Run.of(epochs=epochs, steps_per_epoch=steps_per_epoch, total_steps=total_steps)
        if run.total_steps is None:
            raise ValueError(
                f"epochs={epochs!r} alone does not say how long the run is; "
                "give steps_per_epoch= or total_steps=, too"
            )
        if step >= run.total_steps:
            raise ValueError(f"step={step}: the run of {run.total_steps} steps is over then")
        if self._resume_at is not None:
            raise ValueError(
                f"resume_at={self._resume_at!r} is for paddle.Model.fit; give attach() step="
            )
        if say is not None and not callable(say):
            raise TypeError(f"say={say!r} must be a function that takes a line")
        log = say or logging.getLogger("paddle_freeze_callback").info
        return self._begin(network, optimizer, run, step, log)

    def _begin(
        self,
        network: nn.Layer,
        optimizer: Any,
        run: Run,
        step: int,
        say: Callable[[str], object],
        record: Record | None = None,
    ) -> Freezing:
        self._clear_logs()
        if self._freezing is not None:
            self._freezing.give_up()
        try:
            self._freezing = Freezing(
                network,
                optimizer,
                self._stages,
                self._strategy,
                run,
                step,
                say=say,
                record=record,
                **self._manners,
            )
        except (TypeError, ValueError) as error:
            if not self._source:
                raise
            raise type(error)(f"{self._source}: {error}") from None
        return self._freezing

    def _record_of(self, folder: str | None) -> Record | None:
        """What the checkpoint tells of the schedule; only decisions cannot be done without."""
        try:
            if folder is None:
                raise FileNotFoundError("the folder of the checkpoint is not known")
            return Record.load(folder)
        except FileNotFoundError as error:
            if self._strategy.decides:
                raise ValueError(
                    f"{self._strategy!r} decides from metrics, and its decisions so far are in "
                    f"{FILE} beside trainer_state.json, which is missing ({error}); resume from a "
                    "checkpoint that was saved with this schedule"
                ) from None
            return None

    # ------------------------------------------------------------ events of both loops

    def on_train_begin(self, *event: Any, **context: Any) -> None:
        """Training begins; in a Trainer after the optimizer's state was loaded."""
        if len(event) == 3:
            args, state, _ = event
            self._take_options_from(args)
            if self._resume_at is not None:
                raise ValueError(
                    f"resume_at={self._resume_at!r} is for paddle.Model.fit; a Trainer knows where "
                    "it resumes: call train(resume_from_checkpoint=...)"
                )
            loop = TrainerLoop(args, state, context)
            put_first(self)
            self._loop = loop
            step = int(state.global_step)
            record = self._record_of(resumed_from(args)) if step else None
            self._begin(loop.network, loop.optimizer, loop.run, step, loop.say, record)
        else:
            if self._model is None:
                raise RuntimeError("on_train_begin came before set_model; is this paddle.Model?")
            hapi = HapiLoop(self._model, self._params, self._resume_at)
            self._loop = hapi
            self._begin(hapi.network, hapi.optimizer, hapi.run, hapi.done, hapi.say)

    def on_train_end(self, *event: Any, **context: Any) -> None:
        """Training is over: everything is put back."""
        if self._freezing is None:
            return
        # A Trainer may have loaded its best checkpoint since the last epoch's end, so there
        # the last check was then.
        hapi = self._loop if isinstance(self._loop, HapiLoop) else None
        self._freezing.close(verify=hapi is not None, step=hapi.done if hapi else None)
        self._clear_logs()
        self._loop = None

    def on_epoch_begin(self, *event: Any, **context: Any) -> None:
        """An epoch begins."""
        loop = self._loop
        if self._freezing is None or not isinstance(loop, HapiLoop):
            return
        if loop.run.steps_per_epoch is None:
            self._freezing.epoch_began(loop.done)

    def on_epoch_end(self, *event: Any, **context: Any) -> None:
        """An epoch is over."""
        if self._freezing is not None and isinstance(self._loop, TrainerLoop):
            self._freezing.verify(event[1].global_step)

    # ------------------------------------------------------------ events of a Trainer

    def on_init_end(self, args: Any, state: Any, control: Any, **context: Any) -> None:
        """The Trainer was built: wrong flags are found now."""
        self._take_options_from(args)

    def on_step_begin(self, args: Any, state: Any, control: Any, **context: Any) -> None:
        """The first micro-batch of an optimizer step comes next."""
        if self._freezing is not None:
            self._freezing.at(state.global_step)

    def on_evaluate(self, args: Any, state: Any, control: Any, **context: Any) -> None:
        """The Trainer evaluated: a strategy may decide from the metrics."""
        if isinstance(self._loop, TrainerLoop) and self._freezing is not None:
            self._freezing.evaluated(state.global_step, context.get("metrics") or {})

    def on_save(self, args: Any, state: Any, control: Any, **context: Any) -> None:
        """The Trainer saved a checkpoint: put beside it what a resumed run must know."""
        if self._freezing is None or not isinstance(self._loop, TrainerLoop):
            return
        if state.is_world_process_zero:
            record = self._freezing.record(state.global_step, repr(self))
            record.save(checkpoint_folder(args, state))

    def on_log(self, args: Any, state: Any, control: Any, **context: Any) -> None:
        """The Trainer logs: add our numbers."""
        if isinstance(self._loop, TrainerLoop) and self._freezing is not None:
            publish(self._freezing.numbers, context.get("logs"), state)

    def _take_options_from(self, args: Any) -> None:
        """Use the Trainer's ``freeze_*`` flags, if it has any that were set."""
        if not arguments.has_arguments(args):
            return
        if not arguments.given_flags(args):
            return
        from_flags = type(self).from_args(args)
        if self._given and repr(self) != repr(from_flags):
            raise ValueError(
                f"the schedule is configured twice: {self!r} in code, and by the flags "
                f"{', '.join(arguments.given_flags(args))}; "
                "use FreezeSchedule() to take the flags, or drop them"
            )
        self._given = from_flags._given
        self._stages = from_flags._stages
        self._strategy = from_flags._strategy
        self._manners = from_flags._manners
        self._source = from_flags._source

    # ------------------------------------------------------------ events of paddle.Model

    def set_model(self, model: Any) -> None:
        """``fit`` introduces itself."""
        self._model = model

    def set_params(self, params: dict[str, Any]) -> None:
        """``fit`` says how long it will run."""
        if "epochs" in params and params["epochs"] is not None:
            self._params = params

    def on_train_batch_begin(self, step: int, logs: Any = None) -> None:
        """A batch comes next."""
        loop = self._loop
        if isinstance(loop, HapiLoop) and self._freezing is not None and loop.begins_step(step):
            self._freezing.at(loop.done)

    def on_train_batch_end(self, step: int, logs: Any = None) -> None:
        """A batch is done: count the optimizer step, add our numbers to the logs."""
        loop = self._loop
        if isinstance(loop, HapiLoop) and self._freezing is not None:
            loop.done += loop.ends_step(step)
            if logs is not None:
                self._logs = logs
                logs.update(self._freezing.numbers)

    def on_eval_end(self, logs: Any = None) -> None:
        """``fit`` evaluated: a strategy may decide from the metrics."""
        loop = self._loop
        if isinstance(loop, HapiLoop) and self._freezing is not None:
            self._freezing.evaluated(loop.done, logs or {})

    def _ignore(self, *event: Any, **context: Any) -> None:
        """An event of either loop at which nothing needs to be done."""

    on_step_end = on_substep_end = on_load_data_end = _ignore
    on_optimizer_begin = on_optimizer_end = _ignore
    on_prediction_step = on_save_hf = _ignore
    on_eval_begin = on_eval_batch_begin = on_eval_batch_end = _ignore
    on_predict_begin = on_predict_end = on_predict_batch_begin = on_predict_batch_end = _ignore

    # ------------------------------------------------------------ an object like others

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self._given.items())
        return f"{type(self).__name__}({shown})"

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy, or a pickled schedule, has the same options and no run."""
        return _rebuilt, (type(self), self._given)


def _rebuilt(kind: type[FreezeSchedule], given: dict[str, Any]) -> FreezeSchedule:
    return kind(**given)


def _made(
    kind: type[FreezeSchedule], options: dict[str, Any], where: Callable[[str], str]
) -> FreezeSchedule:
    """A schedule from options; an error names the option as its source calls it."""
    try:
        return kind(**options)
    except (TypeError, ValueError) as error:
        named = next((name for name in options if str(error).startswith(name)), None)
        if named is None:
            raise
        raise type(error)(f"{where(named)}: {error}") from None


def _strategy(
    strategy: Strategy | str | None,
    every: When | None,
    start: When | None,
    unfreeze_at: Mapping[When, Any] | None,
) -> Strategy:
    """What the options add up to."""
    short = {"every": every, "start": start, "unfreeze_at": unfreeze_at}
    used = [name for name, value in short.items() if value is not None]
    if strategy is not None and used:
        raise ValueError(
            f"strategy= and {'=, '.join(used)}= contradict each other: the latter are short for a "
            f"strategy; write for example strategy=Gradual(every=..., start=...)"
        )
    if unfreeze_at is not None and len(used) > 1:
        raise ValueError(
            f"{used[0]}= and unfreeze_at= contradict each other: unfreeze_at= says when each "
            "stage opens; drop one of them"
        )
    if unfreeze_at is not None:
        return Explicit(unfreeze_at)
    if strategy is None:
        return Gradual(every, start)
    if isinstance(strategy, str):
        return _strategy_named(strategy)
    if isinstance(strategy, Strategy):
        return strategy
    if isinstance(strategy, type) and issubclass(strategy, Strategy):
        raise TypeError(f"strategy={strategy.__name__} is a class; write {strategy.__name__}(...)")
    raise TypeError(
        f"strategy={strategy!r} is no strategy; give one of "
        f"{', '.join(kind.__name__ + '(...)' for kind in STRATEGIES.values())}"
    )


def _strategy_named(name: str) -> Strategy:
    if name not in STRATEGIES:
        near = difflib.get_close_matches(name, STRATEGIES, n=1)
        raise ValueError(
            f"strategy={name!r} is unknown; "
            + (f"did you mean {near[0]!r}? " if near else "")
            + f"known: {', '.join(STRATEGIES)}"
        )
    try:
        return STRATEGIES[name]()
    except TypeError:
        kind = STRATEGIES[name]
        raise ValueError(
            f"strategy={name!r} needs {', '.join(options_of(kind))}; "
            f"write strategy={kind.__name__}(...)"
        ) from None


def _check_stages(stages: Any) -> None:
    if isinstance(stages, bool) or not isinstance(stages, (int, str, list, tuple)):
        raise TypeError(
            f'stages={stages!r}: give "auto", a number of backbone stages, or a list of selectors'
        )
    if isinstance(stages, int) and stages < 1:
        raise ValueError(f"stages={stages}: the backbone needs at least one stage")
    if isinstance(stages, (list, tuple)) and not stages:
        raise ValueError('stages=[] names no stage; give "auto" or at least one selector')


def _one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value!r} must be {' or '.join(map(repr, allowed))}")


def _boolean(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name}={value!r} must be True or False")
