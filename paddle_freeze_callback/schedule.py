"""``FreezeSchedule``: the one callback for both training loops.

Both loops look up a callback's events by name, without asking for a base class, so one class
serves both and imports neither. ``on_train_begin`` makes the host of the run, which owns all
other events: :mod:`paddle_freeze_callback.hosts`.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from paddle import nn

from .cache.options import CacheOptions
from .checks import documented, named, positive
from .hosts import Follower, HapiHost, TrainerHost, announce, expect_checkpoint
from .options import reading
from .options.flags import PREFIX
from .options.options import Options, described, taking
from .session.ownership import release
from .session.preflight import refuse
from .session.record import Record, record_named
from .session.transition import Transition
from .strategies.base import Strategy
from .strategies.by_name import RECIPES
from .strategies.moments import Moment, When
from .strategies.periodic import RandomStages
from .strategies.run import Run
from .strategies.timed import HeadThenAll
from .views.preview import Preview, preview
from .views.run import FreezeRun
from .words import warn


class FreezeSchedule:
    """Freezes the backbone at the start and unfreezes its stages on a schedule.

    Pass it to ``paddle.Model.fit(callbacks=[...])`` or to ``Trainer(callbacks=[...])`` of
    PaddleNLP or PaddleFormers; for a hand-written loop see :meth:`attach`, for
    somebody else's :meth:`follow`. At the end of
    training the network is left as it was found. One object may serve several runs, one after
    another; each starts afresh.

    By default the head trains first. The other stages open one by one from the top, spread over
    the run. All options are given by name, and are listed below.

    A moment (``every``, ``start``, keys of ``unfreeze_at``) is an ``int``, which counts epochs,
    or a string such as ``"3 epochs"``, ``"500 steps"`` or ``"30%"`` of the run. Selectors are
    described in :mod:`paddle_freeze_callback.stages.selectors`, stages in
    :func:`paddle_freeze_callback.partition`, the cache in the guide of that name.

    Without any option, in a Trainer whose arguments have ``freeze_*`` flags (see
    :class:`FreezeTrainingArguments`), it takes its options from the flags.

    Attributes:
        run: the last run, also while it goes on: its stages, history, metrics and cache
            (:class:`paddle_freeze_callback.views.FreezeRun`). Every option is an attribute, too,
            as it was given.

    Raises:
        ValueError, TypeError: for options that are wrong or contradict each other. Options that
            depend on the network are checked at the start of training, before the first step.

    >>> FreezeSchedule(every="1 epoch", verify=True)
    FreezeSchedule(every='1 epoch', verify=True)
    >>> FreezeSchedule(unfreeze_at={0: "fc", 1: "layer4", "50%": "*"})
    FreezeSchedule(unfreeze_at={0: 'fc', 1: 'layer4', '50%': '*'})
    """

    run: FreezeRun

    @taking(Options)
    def __init__(self, options: Options) -> None:
        self._use(options)
        self._host: HapiHost | TrainerHost | None = None
        self._model: Any = None
        self._params: dict[str, Any] = {}
        self._source = ""

    def _use(self, options: Options) -> None:
        """Take these options in place of all earlier ones."""
        cache = _cache_options(options)
        dropout, frees = options.frozen_dropout, options.free_optimizer_state
        self._options = options
        self._strategy = options.rule()
        self._manners: dict[str, Any] = {
            "frozen_norm": options.frozen_norm,
            "train_norm": options.train_norm,
            "rows": options.spans(),
            "frozen_dropout": dropout or ("train" if cache is None else "eval"),
            "cache": cache,
            "untouched": options.untouched,
            "on_conflict": options.on_conflict,
            "verify": options.verify,
            "restore": options.restore,
            "save_trained": options.save_trained,
            "free_optimizer_state": self._strategy.frees_state if frees is None else frees,
            "learning_rates": options.rates(),
        }
        vars(self).update({name: getattr(options, name) for name in described(Options)})

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
        return cls(**{**recipe.arguments, **recipe.rates_beside(options)})

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
    def bitfit(cls, **options: Any) -> FreezeSchedule:
        """BitFit: the head and every bias train, from start to end, and nothing else.

        ``strategy="bitfit"`` is the same. Biases learn at higher rates than all weights do: the
        paper tries 1e-4 to 1e-3 for BERT. Give the optimizer such a rate. For a network whose
        head cannot be told write ``unfreeze_at={0: ["fc", "type:bias"]}`` with its name.

        Source: Ben Zaken et al. 2022, "BitFit".

        Args:
            options: further options of the constructor.

        >>> FreezeSchedule.bitfit()
        FreezeSchedule(strategy='bitfit')
        """
        _no_strategy("bitfit", options)
        return cls(strategy="bitfit", **options)

    @classmethod
    def fine_tune(
        cls,
        *,
        freeze_epochs: When = 1,
        lr_mult: float = 100,
        pct_start: float = 0.3,
        div: float = 5,
        **options: Any,
    ) -> FreezeSchedule:
        """As fastai's ``fine_tune``: the head for one cycle, then everything for another.

        ``strategy="fine_tune"`` is the same with the defaults. The optimizer's rate, without a
        scheduler, is fastai's ``base_lr``, which is 2e-3 there; the second cycle peaks at half of
        it. The epochs of the run are all, those of the head among them. Only the rates are
        fastai's: it cycles momentum, too, forgets the optimizer's state at the opening, and
        trains normalization layers from the start, as ``train_norm="always"`` does.

        Source: Howard & Gugger 2020, "fastai: A Layered API for Deep Learning"; numbers as in
        version 2 of fastai.

        Args:
            freeze_epochs: how long the head trains alone, as any moment.
            lr_mult: in the second cycle, rate of the head / that of the last stage.
            pct_start: the share of the second cycle in which the rate rises.
            div: in the second cycle, peak / first rate.
            options: further options of the constructor.

        Raises:
            ValueError: if one of the rates is said twice.

        >>> FreezeSchedule.fine_tune(freeze_epochs=2).strategy
        HeadThenAll(at=2)
        """
        _no_strategy("fine_tune", options)
        named("freeze_epochs", Moment.of, freeze_epochs)
        positive("lr_mult", lr_mult, "100")
        changed = {"lr_mult": lr_mult != 100, "pct_start": pct_start != 0.3, "div": div != 5}
        pairs = ("lr_mult", "lr_decay"), ("lr_mult", "lr"), ("pct_start", "phase_lr")
        for own, other in (*pairs, ("div", "phase_lr")):
            if changed[own] and options.get(other) is not None:
                raise ValueError(f"{own}= and {other}= contradict each other; drop one of them")
        given = {
            "strategy": RECIPES["fine_tune"].made({"at": freeze_epochs}),
            "phase_lr": ["one_cycle:0.99", f"one_cycle:{pct_start}:{div}"],
            **({"lr_decay": f"{lr_mult} in all"} if lr_mult != 100 else {}),  # else the recipe's
        }
        return cls(**RECIPES["fine_tune"].rates_beside({**given, **options}))

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
    def history(self) -> list[Transition]:
        """Short for ``run.history``: the transitions of the last run; empty before the first."""
        return self.run.history if "run" in vars(self) else []

    # ------------------------------------------------------------ seen before

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
            optimizer: the run's, or a list of them; checked, and its state is counted. AdamW's is
                assumed.
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
            network, self._options.stages, self._strategy, manners["learning_rates"], run,
            optimizer=_listed(optimizer), batch=batch, frees_state=manners["free_optimizer_state"],
            cache=manners["cache"], untouched=manners["untouched"],
            train_norm=manners["train_norm"], rows=manners["rows"],
        )  # fmt: skip

    def plot(
        self,
        file: str | os.PathLike[str] | None,
        network: nn.Layer,
        *,
        epochs: float | None = None,
        steps_per_epoch: int | None = None,
        total_steps: int | None = None,
        ax: Any = None,
        figsize: tuple[float, float] | None = None,
    ) -> Any:
        """Draw what this schedule will do: stages upwards, time to the right.

        Args:
            file: a ``.png``, ``.svg`` or ``.pdf`` file; ``None`` to draw only.
            network: the network.
            epochs: how long the run is, as for :meth:`preview`.
            steps_per_epoch: optimizer steps in an epoch.
            total_steps: optimizer steps in the run.
            ax: a panel (``matplotlib.axes.Axes``) of yours to draw the stages into, and nothing
                else.
            figsize: width and height in inches; below 3 inches of height the stages alone.

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
        return plot_preview(table, file, ax=ax, figsize=figsize)

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
    ) -> FreezeRun:
        """Start the schedule in a training loop of your own.

        Args:
            network: the network.
            optimizer: its optimizer, built with all parameters, or a list of those that train it.
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
        run = _whole_run(epochs, steps_per_epoch, total_steps)
        step, record = self._done_before(step, run, "attach")
        return self._begin(
            network,
            _listed(optimizer),
            run,
            step=step,
            say=_sayer(say),
            record=record,
            checkpoint=self._options.resume_from,
            lacking="what schedule.run.save() wrote; name it with resume_from=",
        )

    def follow(
        self,
        network: nn.Layer,
        optimizer: Any,
        *,
        epochs: float | None = None,
        steps_per_epoch: int | None = None,
        total_steps: int | None = None,
        step: int | None = None,
        say: Callable[[str], object] | None = None,
    ) -> Follower:
        """Start the schedule in somebody else's training loop, one that takes no callback.

        The optimizer's own ``step()`` and ``minimize()`` drive the run, whoever calls them. The
        network is frozen at its first forward in training mode: what the loop loads before that
        counts. A file ``....freeze_schedule.json`` is written beside each file in which the loop
        saves the optimizer's state with ``paddle.save``; when the loop loads that state again, the
        run goes on where it was.

        Args:
            network: the network; wrapping it in ``DataParallel`` later is fine.
            optimizer: its optimizer, built with all parameters, or a list of those that train it;
                a step ends when all of them have stepped, or where the next one begins.
            epochs: how long the run is, in epochs. With ``steps_per_epoch`` it need not be whole;
                alone, each new iteration of the ``DataLoader`` that trains is an epoch.
            steps_per_epoch: optimizer steps in an epoch.
            total_steps: optimizer steps in the run.
            step: optimizer steps already done, when a run is continued from a checkpoint that was
                saved without a schedule.
            say: where lines about transitions go; by default to the logger
                ``paddle_freeze_callback``, at level INFO.

        Returns:
            A context manager. The run ends with its ``with`` block, with its ``close()``, or with
            the optimizer.

        Raises:
            ValueError, TypeError: if the schedule does not fit the network, optimizer or run.

        >>> import paddle
        >>> net = paddle.nn.Sequential(paddle.nn.Linear(2, 2), paddle.nn.Linear(2, 1))
        >>> optimizer = paddle.optimizer.SGD(0.1, parameters=net.parameters())
        >>> def train():
        ...     for batch in paddle.ones([4, 1, 2]):
        ...         net(batch).sum().backward()
        ...         optimizer.step()
        ...         optimizer.clear_grad()
        >>> schedule = FreezeSchedule(every="2 steps")
        >>> with schedule.follow(net, optimizer, total_steps=4):
        ...     train()
        >>> [(change.step, change.opened) for change in schedule.history]
        [(0, ('head',)), (2, ('0',))]
        """
        run = Run.of(epochs=epochs, steps_per_epoch=steps_per_epoch, total_steps=total_steps)
        done, record = self._done_before(step or 0, run, "follow")
        trained_by = list(optimizer) if isinstance(optimizer, (list, tuple)) else [optimizer]
        release(network)  # a run that nobody ended
        with self._naming_source():
            refuse(
                network, self._options.stages, self._strategy, self._manners["learning_rates"],
                run, trained_by, self._manners["untouched"], self._manners["train_norm"],
                self._manners["rows"],
            )  # fmt: skip
        return Follower(
            self._begin, network, trained_by, run,
            step=None if step is None and record is None else done,
            say=_sayer(say), record=record, checkpoint=self._options.resume_from,
        )  # fmt: skip

    def _done_before(self, step: int, run: Run, method: str) -> tuple[int, Record | None]:
        """Optimizer steps done before, and what was recorded then, if anything was."""
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            raise ValueError(f"step={step!r} must be the number of optimizer steps done")
        record = record_named(self._options.resume_from)
        if record is not None:
            if step not in (0, record.step):
                raise ValueError(
                    f"step={step} contradicts resume_from={self._options.resume_from!r}, which was "
                    f"saved after {record.step} steps; drop step="
                )
            step = record.step
        if run.total_steps is not None and step >= run.total_steps:
            raise ValueError(f"step={step}: the run of {run.total_steps} steps is over then")
        if self._options.resume_at is not None:
            raise ValueError(
                f"resume_at={self._options.resume_at!r} is for paddle.Model.fit; "
                f"give {method}() step="
            )
        return step, record

    def _begin(
        self,
        network: nn.Layer,
        optimizer: Any,
        run: Run,
        *,
        step: int,
        record: Record | None,
        lacking: str,
        **host: Any,
    ) -> FreezeRun:
        """Start a run.

        Args:
            network: the network.
            optimizer: its optimizer.
            run: how long it is.
            step: optimizer steps done before.
            record: what was recorded then, if anything was.
            lacking: where it should have been recorded.
            host: further arguments of :class:`FreezeRun` that the loop gives.
        """
        if "run" in vars(self):
            self.run.give_up()
        with self._naming_source():
            if step and record is None:
                _go_on_without_record(self._strategy, lacking)
            self.run = FreezeRun(
                network,
                optimizer,
                self._options.stages,
                self._strategy,
                run,
                step,
                record=record,
                schedule=repr(self),
                **host,
                **self._manners,
            )
        return self.run

    @contextlib.contextmanager
    def _naming_source(self) -> Iterator[None]:
        """Errors name the file or flags that the schedule was read from."""
        try:
            yield
        except (TypeError, ValueError) as error:
            if not self._source:
                raise
            raise type(error)(f"{self._source}: {error}") from None

    # ------------------------------------------------------------ events

    def set_model(self, model: Any) -> None:
        """``fit`` introduces its model."""
        self._model = model

    def set_params(self, params: dict[str, Any]) -> None:
        """``fit`` describes the run, and what its displays show."""
        if params.get("epochs") is not None:
            self._params = params
            announce(params)

    def on_init_end(self, args: Any, state: Any, control: Any, **context: Any) -> None:
        """The Trainer was built: wrong flags are found now, and a checkpoint may be loaded next."""
        self._take_options_from(args)
        manners = self._manners
        expect_checkpoint(
            context.get("model"), self._options.stages, self._strategy,
            manners["learning_rates"], manners["untouched"], manners["train_norm"],
            manners["rows"],
        )  # fmt: skip

    def on_train_begin(self, *event: Any, **context: Any) -> None:
        """Training begins; in a Trainer after the optimizer's state was loaded."""
        self._hand_events_to(None)
        if len(event) == 3:  # as a Trainer calls it
            args, state, _ = event
            self._take_options_from(args)
            host: HapiHost | TrainerHost = TrainerHost(
                self, self._begin, args, state, context,
                resume_at=self._options.resume_at, resume_from=self._options.resume_from,
            )  # fmt: skip
        elif self._model is None:
            raise RuntimeError("on_train_begin came before set_model; is this paddle.Model?")
        else:
            host = HapiHost(
                self._begin, self._model, self._params,
                resume_at=self._options.resume_at, resume_from=self._options.resume_from,
            )  # fmt: skip
        self._hand_events_to(host)

    def _hand_events_to(self, host: HapiHost | TrainerHost | None) -> None:
        self._host = host
        for name in [name for name in vars(self) if name.startswith("on_")]:
            delattr(self, name)

    if not TYPE_CHECKING:  # so that a type checker still finds misspelt names

        def __getattr__(self, name: str) -> Any:
            if name == "run":
                raise AttributeError(
                    "there is no run yet: train first, with paddle.Model.fit, a Trainer, attach() "
                    "or follow()"
                )
            if not name.startswith("on_"):
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            # All other events are the host's. What it has no use for, also in releases to come,
            # is nothing. Kept, because a loop asks for each event at every step.
            event = getattr(self._host, name, _nothing)
            setattr(self, name, event)
            return event

    def _take_options_from(self, args: Any) -> None:
        """Use the Trainer's ``freeze_*`` flags, if it has any that were set."""
        if not reading.has_arguments(args) or not reading.from_arguments(args):
            return
        from_flags = type(self).from_args(args)
        if self._options.given() and repr(self) != repr(from_flags):
            raise ValueError(
                f"the schedule is configured twice: {self!r} in code, and by the flags "
                f"{from_flags._source}; use FreezeSchedule() to take the flags, or drop them"
            )
        self._use(from_flags._options)
        self._source = from_flags._source

    # ------------------------------------------------------------ an object like others

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self._options.given().items())
        return f"{type(self).__name__}({shown})"

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy, or a pickled schedule, has the same options and no run."""
        return _rebuilt, (type(self), self._options.given())


def _sayer(say: Callable[[str], object] | None) -> Callable[[str], object]:
    if say is not None and not callable(say):
        raise TypeError(f"say={say!r} must be a function that takes a line")
    return say or logging.getLogger("paddle_freeze_callback").info


def _whole_run(epochs: float | None, steps_per_epoch: int | None, total_steps: int | None) -> Run:
    """A run whose number of steps is known."""
    run = Run.of(epochs=epochs, steps_per_epoch=steps_per_epoch, total_steps=total_steps)
    if run.total_steps is None:
        raise ValueError(
            f"epochs={epochs!r} alone does not say how long the run is; "
            "give steps_per_epoch= or total_steps=, too"
        )
    return run


def _nothing(*event: Any, **context: Any) -> None:
    """An event that nothing follows from."""


def _go_on_without_record(strategy: Strategy, where: str) -> None:
    """Start in the middle of a run, without the decisions that were made before."""
    if strategy.needs_record:
        raise ValueError(
            f"{strategy!r} does not follow from time alone, and its decisions so far are in {where}"
        )
    if strategy.decides:
        warn(
            f"{strategy!r} starts without the metrics that were evaluated before; they are in "
            f"{where}"
        )


def _rebuilt(kind: type[FreezeSchedule], given: dict[str, Any]) -> FreezeSchedule:
    return kind(**given)


def _no_strategy(recipe: str, options: Mapping[str, Any]) -> None:
    """Refuse another strategy beside a recipe."""
    for name in ("strategy", "unfreeze_at", "every", "start"):
        if name in options and name not in RECIPES[recipe].free:
            raise ValueError(
                f"{name}={options[name]!r} and {recipe}() contradict each other: the recipe is a "
                f"strategy; write FreezeSchedule({name}=...)"
            )


def _listed(optimizer: Any) -> Any:
    """Several optimizers as a list; one as it is."""
    return list(optimizer) if isinstance(optimizer, tuple) else optimizer


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
        raise type(error)(f"{where(named)}: {str(error).removeprefix(f'{named}: ')}") from None


def _cache_options(options: Options) -> CacheOptions | None:
    if options.cache is None:
        return None
    every = 200 if options.cache_check_every is None else options.cache_check_every
    return CacheOptions(
        options.cache, options.cache_limit, options.cache_dtype, every, options.cache_key
    )


FreezeSchedule.__doc__ = documented(FreezeSchedule.__doc__, described(Options))
