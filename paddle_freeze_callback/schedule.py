"""``FreezeSchedule``: the one callback for both training loops.

Both loops look up a callback's events by name, without asking for a base class, so one class
serves both and imports neither. Four events have the same name and other arguments in the two
loops; which loop calls is told by how it calls: a Trainer passes ``(args, state, control)``.
"""

from __future__ import annotations

import difflib
import logging
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from paddle import nn

from .cache.options import CacheOptions, CacheStatistics
from .checks import boolean, named, one_of
from .freezing.freezer import FROZEN_MODES
from .hosts.hapi import HapiLoop, checkpoint_prefix, metrics_of
from .hosts.trainer import TrainerLoop, checkpoint_folder, publish, put_first, resumed_from
from .options import reading
from .options.flags import PREFIX
from .session.record import FILE, Record
from .session.session import Freezing
from .session.transition import Transition, brief
from .stages.partition import Stage, Stages
from .strategies.base import Strategy
from .strategies.by_name import STRATEGIES, required_of
from .strategies.deciding import Custom
from .strategies.explicit import Explicit
from .strategies.moments import Moment, When
from .strategies.periodic import RandomStages
from .strategies.rates import LearningRates
from .strategies.run import Progress, Run
from .strategies.timed import Gradual, HeadThenAll
from .views.preview import Preview, preview


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
        strategy: which stages are open when: a strategy object, the name of one that needs
            no arguments, or a function of your own that takes a
            :class:`paddle_freeze_callback.moments.Progress` and gives the names of the open
            stages. By default the head trains first and the other stages open one by one from
            the top, spread over the run.
        every: time between two openings; short for ``strategy=Gradual(every, start)``.
        start: when the first stage below the head opens; short for the same.
        unfreeze_at: when -> what; short for ``strategy=Explicit(unfreeze_at)``.
        frozen_norm: ``"eval"`` holds the running statistics of frozen normalization layers
            still; ``"train"`` lets them move.
        frozen_dropout: ``"train"`` leaves dropout on in frozen layers; ``"eval"`` runs them
            in eval mode. By default ``"eval"`` with a cache, which needs it, else ``"train"``.
        verify: check with checksums, at every transition and at the end, that nothing frozen
            has moved.
        restore: put ``stop_gradient`` back as it was found at the end of training. Everything
            else that was changed is put back in any case.
        free_optimizer_state: drop the optimizer's moments and master weights of a stage that
            is frozen again, to save memory; it gets fresh ones when it opens. By default what
            the strategy's source does: ``RandomStages`` and ``Cyclic`` drop them.
        lr_decay: discriminative fine-tuning: each stage below the head trains at the rate of
            the one above it divided by this; ULMFiT's value is 2.6.
        lr: learning-rate multipliers by stage or selector, such as ``{"head": 1, "*": 0.1}``;
            they take the place of what ``lr_decay`` gives.
        warmup: how long a stage that opens while training ramps up to its rate, such as
            ``"100 steps"``.
        warmup_shape: ``"linear"`` or ``"cosine"``, of ``warmup`` and ``hold``.
        hold: how long stages that are open already ramp up again when another opens; by default
            they don't.
        cache: ``"memory"``, ``"disk"`` or a folder: compute a frozen prefix once per sample
            instead of once per epoch. Results stay the same; see
            :mod:`paddle_freeze_callback.feature_cache`.
        cache_limit: bytes of features at most, or text such as ``"4 GB"``; by default half of
            the free memory, or of the free space on the disk.
        cache_dtype: keep features as ``"float16"`` or ``"float32"``; by default as computed.
        cache_check_every: compute one batch in so many after all and compare it with the cache,
            by default one in 200; a difference is a ``RuntimeError``.
        resume_at: only for ``paddle.Model.fit``, which cannot tell: how much of the run earlier
            calls of ``fit`` have done, as a moment such as ``2`` or ``"300 steps"``. A Trainer
            that resumes knows.
        resume_from: the same, read from a checkpoint of ``fit``: the path given to
            ``model.load``, such as ``"checkpoints/3"``; also for a hand-written loop after
            :meth:`save`. Strategies that decide from metrics or gradients need it.

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
        strategy: Strategy | str | Callable[[Progress], Any] | None = None,
        every: When | None = None,
        start: When | None = None,
        unfreeze_at: Mapping[When, Any] | None = None,
        frozen_norm: str = "eval",
        frozen_dropout: str | None = None,
        verify: bool = False,
        restore: bool = True,
        free_optimizer_state: bool | None = None,
        lr_decay: float = 1.0,
        lr: Mapping[Any, float] | None = None,
        warmup: When | None = None,
        warmup_shape: str = "linear",
        hold: When | None = None,
        cache: str | os.PathLike[str] | None = None,
        cache_limit: int | str | None = None,
        cache_dtype: str | None = None,
        cache_check_every: int | None = None,
        resume_at: When | None = None,
        resume_from: str | os.PathLike[str] | None = None,
    ) -> None:
        # What was given must not change when the caller's own objects do.
        stages = list(stages) if isinstance(stages, list) else stages
        unfreeze_at = dict(unfreeze_at) if isinstance(unfreeze_at, Mapping) else unfreeze_at
        lr = dict(lr) if isinstance(lr, Mapping) else lr
        given = {
            "stages": (stages, "auto"),
            "strategy": (strategy, None),
            "every": (every, None),
            "start": (start, None),
            "unfreeze_at": (unfreeze_at, None),
            "frozen_norm": (frozen_norm, "eval"),
            "frozen_dropout": (frozen_dropout, None),
            "verify": (verify, False),
            "restore": (restore, True),
            "free_optimizer_state": (free_optimizer_state, None),
            "lr_decay": (lr_decay, 1.0),
            "lr": (lr, None),
            "warmup": (warmup, None),
            "warmup_shape": (warmup_shape, "linear"),
            "hold": (hold, None),
            "cache": (cache, None),
            "cache_limit": (cache_limit, None),
            "cache_dtype": (cache_dtype, None),
            "cache_check_every": (cache_check_every, None),
            "resume_at": (resume_at, None),
            "resume_from": (resume_from, None),
        }
        self._given = {
            name: value
            for name, (value, default) in given.items()
            if not (type(value) is type(default) and value == default)
        }
        _check_stages(stages)
        one_of("frozen_norm", frozen_norm, FROZEN_MODES)
        if frozen_dropout is not None:
            one_of("frozen_dropout", frozen_dropout, FROZEN_MODES)
        options = _cache_options(cache, cache_limit, cache_dtype, cache_check_every)
        if options is not None:
            for name, value in (("norm", frozen_norm), ("dropout", frozen_dropout)):
                if value == "train":
                    raise ValueError(
                        f"cache={cache!r} and frozen_{name}='train' contradict each other: what is "
                        "kept must not change while it is frozen; drop one of them"
                    )
        boolean("verify", verify)
        boolean("restore", restore)
        if free_optimizer_state is not None:
            boolean("free_optimizer_state", free_optimizer_state)
        if resume_at is not None:
            named("resume_at", Moment.of, resume_at)
        if resume_from is not None and not isinstance(resume_from, (str, os.PathLike)):
            raise TypeError(f"resume_from={resume_from!r} must be the path of a checkpoint")
        if resume_at is not None and resume_from is not None:
            raise ValueError(
                "resume_at= and resume_from= contradict each other: the checkpoint knows how much "
                "of the run is done; drop resume_at="
            )
        self._resume_at = resume_at
        self._resume_from = resume_from
        self._stages = stages
        self._strategy = _strategy(strategy, every, start, unfreeze_at)
        self._manners: dict[str, Any] = {
            "frozen_norm": frozen_norm,
            "frozen_dropout": frozen_dropout or ("train" if options is None else "eval"),
            "cache": options,
            "verify": verify,
            "restore": restore,
            "free_optimizer_state": (
                self._strategy.frees_state if free_optimizer_state is None else free_optimizer_state
            ),
            "learning_rates": LearningRates(lr_decay, lr, warmup, warmup_shape, hold),
        }
        self._freezing: Freezing | None = None
        self._loop: HapiLoop | TrainerLoop | None = None
        self._model: Any = None
        self._params: dict[str, Any] = {}
        self._logs: dict[str, Any] = {}
        self._logged: tuple[str, ...] = ()
        self._source = ""

    # ------------------------------------------------------------ other ways to make one

    @classmethod
    def ulmfit(cls, **options: Any) -> FreezeSchedule:
        """ULMFiT's fine-tuning: one more stage per epoch, each rate 1/2.6 of the one above.

        Its third part, the slanted triangular rates, belongs into the optimizer: build it with
        :class:`paddle_freeze_callback.SlantedTriangular`.

        Source: Howard & Ruder 2018, sections 3.2 and 3.3.

        Args:
            options: further arguments of the constructor, or other values for these.

        >>> FreezeSchedule.ulmfit()
        FreezeSchedule(every='1 epoch', lr_decay=2.6)
        """
        _no_strategy("ulmfit", options)
        return cls(**{"every": "1 epoch", "lr_decay": 2.6, **options})

    @classmethod
    def lp_ft(cls, at: When = "50%", **options: Any) -> FreezeSchedule:
        """LP-FT: linear probing, then fine-tuning of everything.

        Source: Kumar et al. 2022, which trains the head to convergence first and then, with a
        lower rate for all, the whole network; for the lower rate give the optimizer a scheduler.

        Args:
            at: when everything opens.
            options: further arguments of the constructor.

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

        Source: Pan et al. 2024, which draws 2 blocks (its gamma) for models of 7 billion
        parameters; 20 steps between draws is the default of its authors' LMFlow.

        Args:
            k: blocks open at a time.
            every: how long they stay open.
            seed: another seed, another sequence of draws.
            always: stages that are open all the time.
            options: further arguments of the constructor.

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
        options = reading.options_from_arguments(args)
        schedule = _made(cls, options, lambda name: f"--{PREFIX}{name}")
        schedule._source = ", ".join(reading.given_flags(args))
        return schedule

    @classmethod
    def from_file(cls, path: Any) -> FreezeSchedule:
        """A schedule from a YAML or JSON file.

        Its keys are the flags' names, with or without ``freeze_``.

        Raises:
            ValueError, TypeError: if the content is wrong; the message names file and key.
            OSError: if the file cannot be read.
        """
        schedule = _made(cls, reading.options_from_file(path), lambda name: f"{path}: {name}")
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
        if not reading.has_arguments(args):
            return
        if not reading.given_flags(args):
            return
        from_flags = type(self).from_args(args)
        if self._given and repr(self) != repr(from_flags):
            raise ValueError(
                f"the schedule is configured twice: {self!r} in code, and by the flags "
                f"{', '.join(reading.given_flags(args))}; "
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


def _strategy(
    strategy: Strategy | str | Callable[[Progress], Any] | None,
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
    if callable(strategy) and not isinstance(strategy, type):
        return Custom(strategy)
    if isinstance(strategy, type) and issubclass(strategy, Strategy):
        raise TypeError(f"strategy={strategy.__name__} is a class; write {strategy.__name__}(...)")
    raise TypeError(
        f"strategy={strategy!r} is no strategy; give one of "
        f"{', '.join(kind.__name__ + '(...)' for kind in STRATEGIES.values())}, "
        "or a function that takes the progress and gives the names of the open stages"
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
            f"strategy={name!r} needs {', '.join(required_of(kind))}; "
            f"write strategy={kind.__name__}(...)"
        ) from None


def _cache_options(cache: Any, limit: Any, dtype: Any, check_every: Any) -> CacheOptions | None:
    if cache is not None:
        return CacheOptions(cache, limit, dtype, 200 if check_every is None else check_every)
    for name, value in (("limit", limit), ("dtype", dtype), ("check_every", check_every)):
        if value is not None:
            raise ValueError(f"cache_{name}={value!r} says nothing without cache=")
    return None


def _check_stages(stages: Any) -> None:
    if isinstance(stages, bool) or not isinstance(stages, (int, str, list, tuple)):
        raise TypeError(
            f'stages={stages!r}: give "auto", a number of backbone stages, or a list of selectors'
        )
    if isinstance(stages, int) and stages < 1:
        raise ValueError(f"stages={stages}: the backbone needs at least one stage")
    if isinstance(stages, (list, tuple)) and not stages:
        raise ValueError('stages=[] names no stage; give "auto" or at least one selector')
