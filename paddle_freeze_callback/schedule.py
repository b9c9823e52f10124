"""``FreezeSchedule``: the one callback for both training loops.

Both loops look up a callback's events by name, without asking for a base class, so one class
serves both and imports neither. Four events have the same name and other arguments in the two
loops; which loop calls is told by how it calls: a Trainer passes ``(args, state, control)``.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from paddle import nn

from .cache.options import CacheOptions, CacheStatistics
from .checks import documented
from .hosts.hapi import HapiLoop, checkpoint_prefix, metrics_of
from .hosts.trainer import TrainerLoop, checkpoint_folder, publish, put_first, resumed_from
from .options import reading
from .options.flags import PREFIX
from .options.options import Options, described, taking
from .session.record import FILE, Record
from .session.session import Freezing
from .session.transition import Transition, brief
from .stages.partition import Stage
from .strategies.by_name import RECIPES
from .strategies.explicit import Explicit
from .strategies.moments import When
from .strategies.periodic import RandomStages
from .strategies.run import Run
from .strategies.timed import HeadThenAll
from .views.preview import Preview, preview


class FreezeSchedule:
    """Freezes the backbone at the start and unfreezes its stages on a schedule.

    Pass it to ``paddle.Model.fit(callbacks=[...])`` or to ``Trainer(callbacks=[...])`` of
    PaddleNLP or PaddleFormers; for a hand-written loop see :meth:`attach`. At the end of
    training the network is left as it was found. One object may serve several runs, one after
    another; each starts afresh.

    By default the head trains first. The other stages open one by one from the top, spread over
    the run. All options are given by name, and are listed below.

    A moment (``every``, ``start``, keys of ``unfreeze_at``) is an ``int``, which counts epochs,
    or a string such as ``"3 epochs"``, ``"500 steps"`` or ``"30%"`` of the run. Selectors are
    described in :mod:`paddle_freeze_callback.stages.selectors`, stages in
    :func:`paddle_freeze_callback.partition`, the cache in :mod:`paddle_freeze_callback.cache`.

    Without any option, in a Trainer whose arguments have ``freeze_*`` flags (see
    :class:`FreezeTrainingArguments`), it takes its options from the flags.

    Raises:
        ValueError, TypeError: for options that are wrong or contradict each other. Options that
            depend on the network are checked at the start of training, before the first step.

    >>> FreezeSchedule(every="1 epoch", verify=True)
    FreezeSchedule(every='1 epoch', verify=True)
    >>> FreezeSchedule(unfreeze_at={0: "fc", 1: "layer4", "50%": "*"})
    FreezeSchedule(unfreeze_at={0: 'fc', 1: 'layer4', '50%': '*'})
    """

    @taking(Options)
    def __init__(self, options: Options) -> None:
        self._use(options)
        self._freezing: Freezing | None = None
        self._loop: HapiLoop | TrainerLoop | None = None
        self._model: Any = None
        self._params: dict[str, Any] = {}
        self._logs: dict[str, Any] = {}
        self._logged: tuple[str, ...] = ()
        self._source = ""

    def _use(self, options: Options) -> None:
        """Take these options in place of all earlier ones."""
        cache = _cache_options(options)
        dropout = options.frozen_dropout
        frees = options.free_optimizer_state
        self._given = options.given()
        self._resume_at = options.resume_at
        self._resume_from = options.resume_from
        self._stages = options.stages
        self._strategy = options.rule()
        self._manners: dict[str, Any] = {
            "frozen_norm": options.frozen_norm,
            "frozen_dropout": dropout or ("train" if cache is None else "eval"),
            "cache": cache,
            "verify": options.verify,
            "restore": options.restore,
            "free_optimizer_state": self._strategy.frees_state if frees is None else frees,
            "learning_rates": options.rates(),
        }
        self._options = options
        for name in described(Options):
            if not hasattr(type(self), name):
                setattr(self, name, getattr(options, name))

    # ------------------------------------------------------------ other ways to make one

    @classmethod
    def ulmfit(cls, **options: Any) -> FreezeSchedule:
        """ULMFiT's fine-tuning: one more stage per epoch, each rate 1/2.6 of the one above.

        ``strategy="ulmfit"`` is the same. ULMFiT's third part, the slanted triangular rates,
        belongs in the optimizer: see :class:`paddle_freeze_callback.SlantedTriangular`.

        Source: Howard & Ruder 2018, sections 3.2 and 3.3.

        Args:
            options: further options of the constructor, or other values for these two.

        >>> FreezeSchedule.ulmfit()
        FreezeSchedule(every='1 epoch', lr_decay=2.6)
        """
        _no_strategy("ulmfit", options)
        recipe = RECIPES["ulmfit"]
        return cls(**{**recipe.arguments, "lr_decay": recipe.lr_decay, **options})

    @classmethod
    def lp_ft(cls, at: When = "50%", **options: Any) -> FreezeSchedule:
        """LP-FT: linear probing, then fine-tuning of everything.

        ``strategy="lp_ft"`` is the same with the default of ``at``.

        Source: Kumar et al. 2022. There the head trains to convergence first, then the whole
        network at a lower rate. For the lower rate give the optimizer a scheduler.

        Args:
            at: when everything opens.
            options: further options of the constructor.

        >>> FreezeSchedule.lp_ft(at="2 epochs")
        FreezeSchedule(strategy=HeadThenAll(at='2 epochs'))
        """
        _no_strategy("lp_ft", options)
        return cls(strategy=HeadThenAll(at), **options)

    @classmethod
    def lisa(
        cls,
        k: int = 2,
        every: When = "20 steps",
        seed: int = 0,
        always: Sequence[Any] = ("head", "embeddings"),
        **options: Any,
    ) -> FreezeSchedule:
        """LISA: head and embeddings train throughout, and ``k`` random blocks at a time.

        ``strategy="lisa"`` is the same with the defaults, but for ``every``, which it takes.

        Source: Pan et al. 2024, which draws 2 blocks (its gamma) for models of 7 billion
        parameters; 20 steps between draws is the default of its authors' LMFlow.

        Args:
            k: blocks open at a time.
            every: how long they stay open.
            seed: another seed, another sequence of draws.
            always: stages that are open all the time.
            options: further options of the constructor.

        >>> FreezeSchedule.lisa(k=1)
        FreezeSchedule(strategy=RandomStages(k=1))
        """
        _no_strategy("lisa", options)
        return cls(strategy=RandomStages(k, every, always, seed), **options)

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
        FreezeSchedule(strategy=Gradual(every='200 steps'))
        """
        if not reading.has_arguments(args):
            raise TypeError(
                f"{type(args).__name__} has no freeze_* fields; parse FreezeTrainingArguments "
                "instead of TrainingArguments, or FreezeArguments beside them"
            )
        options = reading.from_arguments(args)
        source = ", ".join(f"--{PREFIX}{name}" for name in options)
        return cls._read(options, lambda name: f"--{PREFIX}{name}", source)

    @classmethod
    def from_file(cls, path: Any) -> FreezeSchedule:
        """A schedule from a YAML or JSON file.

        Its keys are the flags' names, with or without ``freeze_``.

        Raises:
            ValueError, TypeError: if the content is wrong; the message names file and key.
            OSError: if the file cannot be read.
        """
        return cls._read(reading.from_file(path), lambda name: f"{path}: {name}", str(path))

    @classmethod
    def _read(
        cls, options: Mapping[str, Any], where: Callable[[str], str], source: str
    ) -> FreezeSchedule:
        """A schedule from options as written; errors name them as their source does."""
        schedule = _made(cls, reading.arguments(options, where), where)
        schedule._source = source
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

    @property
    def metrics(self) -> dict[str, list[tuple[int, float]]]:
        """What evaluations gave in the last run, by name: (optimizer steps done, value)."""
        return self._freezing.metrics if self._freezing else {}

    @property
    def cache(self) -> CacheStatistics | None:
        """What the cache of the last run did; ``None`` without a cache, or before the first run."""
        return self._freezing.cache if self._freezing else None

    def as_explicit(self) -> Explicit:
        """What happened in the last run, as a schedule that can be printed and replayed.

        Raises:
            RuntimeError: if there was no run yet.
        """
        if self._freezing is None:
            raise RuntimeError("there is no run to tell of yet; train first")
        return self._freezing.as_explicit()

    def save(self, place: str | os.PathLike[str]) -> None:
        """Write what ``resume_from`` reads.

        A Trainer's checkpoints and those of ``fit(save_dir=...)`` have it already.

        Args:
            place: a folder, or the path that the checkpoint's files begin with. In distributed
                training all ranks must call it.

        Raises:
            RuntimeError: if there was no run yet.
        """
        if self._freezing is None:
            raise RuntimeError("there is no run to save yet; call it while training, or after")
        self._freezing.save(place)

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
        for key in self._logged:
            self._logs.pop(key, None)
        self._logs, self._logged = {}, ()

    # ------------------------------------------------------------ seen before, and after

    def preview(
        self,
        network: nn.Layer,
        *,
        epochs: float | None = None,
        steps_per_epoch: int | None = None,
        total_steps: int | None = None,
        optimizer: Any = None,
        batch: Any = None,
    ) -> Preview:
        """What this schedule will do to a network; nothing is changed.

        Args:
            network: the network.
            epochs: how long the run is; give any two of these three, or ``total_steps`` alone.
            steps_per_epoch: optimizer steps in an epoch.
            total_steps: optimizer steps in the run.
            optimizer: the run's; its state is counted, and it is checked. AdamW's is assumed.
            batch: what the network is called with: a tensor, or a tuple, list or dictionary. The
                forward of each stage is then measured, and what a cache keeps is tried out.

        Returns:
            A table: print it, ``show()`` it in colours, or leave it at the end of a notebook's
            cell.

        Raises:
            ValueError, TypeError: whatever the start of the run would refuse.

        >>> import paddle
        >>> net = paddle.nn.Sequential(paddle.nn.Linear(2, 4), paddle.nn.Linear(4, 1))
        >>> schedule = FreezeSchedule(stages=["1", "0"])
        >>> table = schedule.preview(net, epochs=2, steps_per_epoch=10)
        >>> [(phase.step, phase.opened, phase.trainable) for phase in table.phases]
        [(0, ('1',), 5), (10, ('1', '0'), 17)]
        """
        run = _whole_run(epochs, steps_per_epoch, total_steps)
        manners = self._manners
        return preview(
            network, self._stages, self._strategy, manners["learning_rates"], run,
            optimizer=optimizer, batch=batch, frees_state=manners["free_optimizer_state"],
            cache=manners["cache"],
        )  # fmt: skip

    def plot(
        self,
        file: str | os.PathLike[str] | None,
        network: nn.Layer,
        *,
        epochs: float | None = None,
        steps_per_epoch: int | None = None,
        total_steps: int | None = None,
    ) -> Any:
        """Draw what this schedule will do: stages upwards, time to the right.

        Args:
            file: a ``.png``, ``.svg`` or ``.pdf`` file; ``None`` to draw only.
            network: the network.
            epochs: how long the run is, as for :meth:`preview`.
            steps_per_epoch: optimizer steps in an epoch.
            total_steps: optimizer steps in the run.

        Returns:
            The ``matplotlib.figure.Figure``.

        Raises:
            ImportError: without matplotlib.
            ValueError, TypeError: as :meth:`preview`, or for a file that cannot be.
        """
        from .views.plot import plot_preview

        table = self.preview(
            network, epochs=epochs, steps_per_epoch=steps_per_epoch, total_steps=total_steps
        )
        return plot_preview(table, file)

    def plot_history(
        self,
        file: str | os.PathLike[str] | None = None,
        metrics: Mapping[str, Sequence[tuple[int, float]]] | None = None,
    ) -> Any:
        """Draw what happened in the last run.

        Args:
            file: as for :meth:`plot`.
            metrics: lines to draw beneath: by name, (optimizer steps done, value) in order; by
                default all that evaluations gave in the run, timings aside (see :attr:`metrics`).

        Returns:
            The ``matplotlib.figure.Figure``.

        Raises:
            RuntimeError: if there was no run yet.
            ImportError: without matplotlib.
        """
        if self._freezing is None:
            raise RuntimeError("there is no run to draw yet; train first, or use plot()")
        from .views.plot import plot_history

        run = self._freezing
        if not run.steps_done:
            raise RuntimeError("no step was trained yet, so there is nothing to draw")
        drawn = metrics
        if drawn is None:  # a Trainer's timings are no result of training
            drawn = {n: line for n, line in run.metrics.items() if not n.endswith(_NO_RESULTS)}
        return plot_history(
            run.stages, run.history, run.steps_done, run.steps_per_epoch,
            drawn, file, multipliers=run.multipliers,
        )  # fmt: skip

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
            A context manager. Call its ``step()`` after each optimizer step and, for strategies
            that decide from metrics, its ``evaluated(metrics)`` after each evaluation.

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
        record = self._resumed()
        if record is not None:
            if step not in (0, record.step):
                raise ValueError(
                    f"step={step} contradicts resume_from={self._resume_from!r}, which was saved "
                    f"after {record.step} steps; drop step="
                )
            step = record.step
        elif step:
            self._without_record("what schedule.save() wrote; name it with resume_from=")
        run = _whole_run(epochs, steps_per_epoch, total_steps)
        assert run.total_steps is not None
        if step >= run.total_steps:
            raise ValueError(f"step={step}: the run of {run.total_steps} steps is over then")
        if self._resume_at is not None:
            raise ValueError(
                f"resume_at={self._resume_at!r} is for paddle.Model.fit; give attach() step="
            )
        if say is not None and not callable(say):
            raise TypeError(f"say={say!r} must be a function that takes a line")
        log = say or logging.getLogger("paddle_freeze_callback").info
        return self._begin(network, optimizer, run, step, log, record, self._resume_from)

    def _begin(
        self,
        network: nn.Layer,
        optimizer: Any,
        run: Run,
        step: int,
        say: Callable[[str], object],
        record: Record | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        evaluates: bool = True,
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
                schedule=repr(self),
                record=record,
                checkpoint=checkpoint,
                evaluates=evaluates,
                **self._manners,
            )
        except (TypeError, ValueError) as error:
            if not self._source:
                raise
            raise type(error)(f"{self._source}: {error}") from None
        return self._freezing

    def _record_of(self, folder: str | None) -> Record | None:
        """What a Trainer's checkpoint tells."""
        try:
            if folder is None:
                raise FileNotFoundError("the folder of the checkpoint is not known")
            return Record.load(folder)
        except FileNotFoundError as error:
            self._without_record(
                f"{FILE} beside trainer_state.json, which is missing ({error}); "
                "resume from a checkpoint that was saved with this schedule"
            )
            return None

    def _without_record(self, where: str) -> None:
        """In the middle of a run, without the notes that the strategy made before."""
        if self._strategy.needs_record:
            raise ValueError(
                f"{self._strategy!r} does not follow from time alone, and what it noted so far is "
                f"in {where}"
            )
        if self._strategy.decides:
            warnings.warn(
                f"{self._strategy!r} starts without the metrics that were evaluated before; they "
                f"are in {where}",
                stacklevel=4,
            )

    def _resumed(self) -> Record | None:
        """What the checkpoint named by ``resume_from`` tells."""
        if self._resume_from is None:
            return None
        try:
            return Record.load(self._resume_from)
        except FileNotFoundError as error:
            raise ValueError(
                f"resume_from={os.fspath(self._resume_from)!r}: there is no {error.filename}; give "
                "the path that model.load() takes, of a checkpoint that was saved with a "
                "FreezeSchedule"
            ) from None

    # ------------------------------------------------------------ events of both loops

    def on_train_begin(self, *event: Any, **context: Any) -> None:
        """Training begins; in a Trainer after the optimizer's state was loaded."""
        if len(event) == 3:
            args, state, _ = event
            self._take_options_from(args)
            for name, value in (("at", self._resume_at), ("from", self._resume_from)):
                if value is not None:
                    raise ValueError(
                        f"resume_{name}={value!r} is for paddle.Model.fit; a Trainer knows where "
                        "it resumes: call train(resume_from_checkpoint=...)"
                    )
            loop = TrainerLoop(args, state, context)
            put_first(self)
            self._loop = loop
            step = int(state.global_step)
            folder = resumed_from(args) if step else None
            record = self._record_of(folder) if step else None
            self._begin(
                loop.network, loop.optimizer, loop.run, step, loop.say, record, folder,
                loop.evaluates,
            )  # fmt: skip
        else:
            if self._model is None:
                raise RuntimeError("on_train_begin came before set_model; is this paddle.Model?")
            record = self._resumed()
            done = self._resume_at if record is None else f"{record.step} steps"
            if record is None and done is not None:
                self._without_record(
                    "the files beside the checkpoints of fit(save_dir=...); "
                    'name one with resume_from=, such as "checkpoints/3", instead of resume_at='
                )
            hapi = HapiLoop(self._model, self._params, done)
            self._loop = hapi
            self._begin(
                hapi.network, hapi.optimizer, hapi.run, hapi.done, hapi.say, record,
                self._resume_from, hapi.evaluates,
            )  # fmt: skip

    def on_train_end(self, *event: Any, **context: Any) -> None:
        """Training is over: everything is put back."""
        if self._freezing is None:
            return
        # A Trainer may have loaded its best checkpoint since the last epoch's end, so there
        # the last check was then.
        hapi = self._loop if isinstance(self._loop, HapiLoop) else None
        self._freezing.close(verify=hapi is not None, step=hapi.done if hapi else None)
        if hapi is not None:
            self._save_beside("final")
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
        elif self._freezing is not None and isinstance(self._loop, HapiLoop):
            self._save_beside(event[0])

    # ------------------------------------------------------------ events of a Trainer

    def on_init_end(self, args: Any, state: Any, control: Any, **context: Any) -> None:
        """The Trainer was built: wrong flags are found now."""
        self._take_options_from(args)

    def on_step_begin(self, args: Any, state: Any, control: Any, **context: Any) -> None:
        """The first micro-batch of an optimizer step comes next."""
        if self._freezing is not None:
            self._freezing.at(state.global_step)
            if isinstance(self._loop, TrainerLoop):
                now = len(self._freezing.open_stages)
                self._loop.show(self, brief(self.history[-1], now, len(self.stages)))

    def on_evaluate(self, args: Any, state: Any, control: Any, **context: Any) -> None:
        """The Trainer evaluated: a strategy may decide from the metrics."""
        if isinstance(self._loop, TrainerLoop) and self._freezing is not None:
            self._freezing.evaluated(context.get("metrics") or {}, state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, **context: Any) -> None:
        """The Trainer saved a checkpoint: put beside it what a resumed run must know."""
        if self._freezing is not None and isinstance(self._loop, TrainerLoop):
            folder = checkpoint_folder(args, state)
            self._freezing.save(folder, state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, **context: Any) -> None:
        """The Trainer logs: add our numbers."""
        if isinstance(self._loop, TrainerLoop) and self._freezing is not None:
            publish(self._freezing.numbers, context.get("logs"), state)

    def _take_options_from(self, args: Any) -> None:
        """Use the Trainer's ``freeze_*`` flags, if it has any that were set."""
        if not reading.has_arguments(args) or not reading.from_arguments(args):
            return
        from_flags = type(self).from_args(args)
        if self._given and repr(self) != repr(from_flags):
            raise ValueError(
                f"the schedule is configured twice: {self!r} in code, and by the flags "
                f"{from_flags._source}; use FreezeSchedule() to take the flags, or drop them"
            )
        self._use(from_flags._options)
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
        """A batch comes next; our numbers are in the logs before any display looks for them."""
        loop = self._loop
        if isinstance(loop, HapiLoop) and self._freezing is not None:
            if loop.begins_step(step):
                self._freezing.at(loop.done)
            self._log(logs)
            loop.show(self, self._logged)

    def on_train_batch_end(self, step: int, logs: Any = None) -> None:
        """A batch is done: count the optimizer step, add our numbers to the logs."""
        loop = self._loop
        if isinstance(loop, HapiLoop) and self._freezing is not None:
            loop.done += loop.ends_step(step)
            self._log(logs)

    def _log(self, logs: dict[str, Any] | None) -> None:
        """Put our numbers, as of now, into ``fit``'s logs."""
        if logs is not None and self._freezing is not None:
            self._clear_logs()
            numbers = self._freezing.numbers
            self._logs, self._logged = logs, tuple(numbers)
            logs.update(numbers)

    def on_eval_begin(self, logs: Any = None) -> None:
        """``fit`` evaluates next, and says what."""
        if isinstance(self._loop, HapiLoop):
            self._loop.metrics = tuple((logs or {}).get("metrics") or ())

    def on_eval_end(self, logs: Any = None) -> None:
        """``fit`` evaluated: a strategy may decide from the metrics."""
        loop = self._loop
        if isinstance(loop, HapiLoop) and self._freezing is not None:
            self._freezing.evaluated(metrics_of(logs or {}, loop.metrics), loop.done)
            if loop.saved is not None:  # fit saved this epoch before it evaluated
                self._save_beside(loop.saved)

    def _save_beside(self, epoch: Any) -> None:
        """If ``fit`` saves a checkpoint now, put beside it what a resumed run must know."""
        loop = self._loop
        assert isinstance(loop, HapiLoop)
        assert self._freezing is not None
        prefix = checkpoint_prefix(self, epoch)
        loop.saved = None if prefix is None else epoch
        if prefix is not None:
            self._freezing.save(prefix, loop.done)

    def _ignore(self, *event: Any, **context: Any) -> None:
        """An event of either loop at which nothing needs to be done."""

    on_step_end = on_substep_end = on_load_data_end = _ignore
    on_optimizer_begin = on_optimizer_end = _ignore
    on_prediction_step = on_save_hf = _ignore
    on_eval_batch_begin = on_eval_batch_end = _ignore
    on_predict_begin = on_predict_end = on_predict_batch_begin = on_predict_batch_end = _ignore

    # ------------------------------------------------------------ an object like others

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self._given.items())
        return f"{type(self).__name__}({shown})"

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy, or a pickled schedule, has the same options and no run."""
        return _rebuilt, (type(self), self._given)


def _whole_run(epochs: float | None, steps_per_epoch: int | None, total_steps: int | None) -> Run:
    """A run whose number of steps is known."""
    run = Run.of(epochs=epochs, steps_per_epoch=steps_per_epoch, total_steps=total_steps)
    if run.total_steps is None:
        raise ValueError(
            f"epochs={epochs!r} alone does not say how long the run is; "
            "give steps_per_epoch= or total_steps=, too"
        )
    return run


# Beside its metrics a Trainer's evaluation gives these.
_NO_RESULTS = ("_runtime", "_per_second", "epoch")


def _rebuilt(kind: type[FreezeSchedule], given: dict[str, Any]) -> FreezeSchedule:
    return kind(**given)


def _no_strategy(recipe: str, options: Mapping[str, Any]) -> None:
    """Refuse another strategy beside a recipe."""
    for name in ("strategy", "unfreeze_at"):
        if name in options:
            raise ValueError(
                f"{name}={options[name]!r} and {recipe}() contradict each other: the recipe is a "
                f"strategy; write FreezeSchedule({name}=...)"
            )


def _made(
    kind: type[FreezeSchedule], options: dict[str, Any], where: Callable[[str], str]
) -> FreezeSchedule:
    """A schedule from options; an error names the option as its source calls it."""
    try:
        return kind(**options)
    except (TypeError, ValueError) as error:
        named = reading.named_in(error, options)
        if named is None:
            raise
        raise type(error)(f"{where(named)}: {error}") from None


def _cache_options(options: Options) -> CacheOptions | None:
    if options.cache is None:
        return None
    every = 200 if options.cache_check_every is None else options.cache_check_every
    return CacheOptions(options.cache, options.cache_limit, options.cache_dtype, every)


FreezeSchedule.__doc__ = documented(FreezeSchedule.__doc__, described(Options))
