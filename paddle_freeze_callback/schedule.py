"""``FreezeSchedule``: the one callback for both training loops.

Both loops look up a callback's events by name, without asking for a base class, so one class
serves both and imports neither. ``on_train_begin`` makes the host of the run, which owns all
other events: :mod:`paddle_freeze_callback.hosts`.
"""

from __future__ import annotations

import difflib
import logging
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from paddle import nn

from .cache.options import CacheOptions
from .checks import boolean, named, one_of
from .freezing.freezer import FROZEN_MODES
from .hosts import HapiHost, TrainerHost, announce
from .options import reading
from .options.flags import PREFIX
from .session.record import Record, record_named
from .session.transition import Transition
from .stages.partition import Stages
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
from .views.run import FreezeRun


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
            ``run.save()``. Strategies that decide from metrics or gradients need it.

    Called with no argument at all, in a Trainer whose arguments have ``freeze_*`` flags (see
    :class:`FreezeTrainingArguments`), it takes its options from those.

    Attributes:
        run: the last run, also while it goes on: its stages, history, metrics and cache, and what
            can be done with it (:class:`paddle_freeze_callback.views.FreezeRun`). Every
            argument is an attribute, too, as it was given.

    Raises:
        ValueError, TypeError: for options that are wrong or contradict each other. What depends
            on the network is checked at the start of training, before the first step.

    >>> FreezeSchedule(every="1 epoch", verify=True)
    FreezeSchedule(every='1 epoch', verify=True)
    >>> FreezeSchedule(unfreeze_at={0: "fc", 1: "layer4", "50%": "*"})
    FreezeSchedule(unfreeze_at={0: 'fc', 1: 'layer4', '50%': '*'})
    """

    stages: Stages
    resume_at: When | None
    resume_from: str | os.PathLike[str] | None
    run: FreezeRun

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
        vars(self).update({name: value for name, (value, _) in given.items()})
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
        self._host: HapiHost | TrainerHost | None = None
        self._model: Any = None
        self._params: dict[str, Any] = {}
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
            network, self.stages, self._strategy, manners["learning_rates"], run,
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
        record = record_named(self.resume_from)
        if record is not None:
            if step not in (0, record.step):
                raise ValueError(
                    f"step={step} contradicts resume_from={self.resume_from!r}, which was saved "
                    f"after {record.step} steps; drop step="
                )
            step = record.step
        run = _whole_run(epochs, steps_per_epoch, total_steps)
        assert run.total_steps is not None
        if step >= run.total_steps:
            raise ValueError(f"step={step}: the run of {run.total_steps} steps is over then")
        if self.resume_at is not None:
            raise ValueError(
                f"resume_at={self.resume_at!r} is for paddle.Model.fit; give attach() step="
            )
        if say is not None and not callable(say):
            raise TypeError(f"say={say!r} must be a function that takes a line")
        return self._begin(
            network,
            optimizer,
            run,
            step=step,
            say=say or logging.getLogger("paddle_freeze_callback").info,
            record=record,
            checkpoint=self.resume_from,
            lacking="what schedule.run.save() wrote; name it with resume_from=",
        )

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
        try:
            if step and record is None:
                _go_on_without_record(self._strategy, lacking)
            self.run = FreezeRun(
                network,
                optimizer,
                self.stages,
                self._strategy,
                run,
                step,
                record=record,
                schedule=repr(self),
                **host,
                **self._manners,
            )
        except (TypeError, ValueError) as error:
            if not self._source:
                raise
            raise type(error)(f"{self._source}: {error}") from None
        return self.run

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
        """The Trainer was built: wrong flags are found now."""
        self._take_options_from(args)

    def on_train_begin(self, *event: Any, **context: Any) -> None:
        """Training begins; in a Trainer after the optimizer's state was loaded."""
        self._hand_events_to(None)
        if len(event) == 3:  # as a Trainer calls it
            args, state, _ = event
            self._take_options_from(args)
            host: HapiHost | TrainerHost = TrainerHost(
                self, self._begin, args, state, context,
                resume_at=self.resume_at, resume_from=self.resume_from,
            )  # fmt: skip
        elif self._model is None:
            raise RuntimeError("on_train_begin came before set_model; is this paddle.Model?")
        else:
            host = HapiHost(
                self._begin, self._model, self._params,
                resume_at=self.resume_at, resume_from=self.resume_from,
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
                    "there is no run yet: train first, with paddle.Model.fit, a Trainer or attach()"
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
        vars(self).update({name: getattr(from_flags, name) for name in from_flags._given})
        self._strategy = from_flags._strategy
        self._manners = from_flags._manners
        self._source = from_flags._source

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


def _nothing(*event: Any, **context: Any) -> None:
    """An event that nothing follows from."""


def _go_on_without_record(strategy: Strategy, where: str) -> None:
    """Start in the middle of a run, without the decisions that were made before."""
    if strategy.needs_record:
        raise ValueError(
            f"{strategy!r} does not follow from time alone, and its decisions so far are in {where}"
        )
    if strategy.decides:
        warnings.warn(
            f"{strategy!r} starts without the metrics that were evaluated before; they are in "
            f"{where}",
            stacklevel=4,
        )


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
