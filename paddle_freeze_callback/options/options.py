"""The options of a schedule, each described once.

A new option is a new field here, with its default, its help, the type of its flag, its check and
its reader (see :func:`paddle_freeze_callback.checks.option`). The constructor of FreezeSchedule
and its docstring, repr, flags, keys of files, the command line and the READMEs' tables follow. An
argument of a strategy is a field of the strategy, described in the same way.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

from ..checks import boolean, named, one_of, option, tensor_file
from ..strategies.base import Strategy
from ..strategies.by_name import NAMES, RECIPES, STRATEGIES, recipe_of, required_of
from ..strategies.deciding import Custom
from ..strategies.explicit import Explicit
from ..strategies.moments import Moment, When
from ..strategies.rates import LearningRates
from ..strategies.run import Progress
from ..strategies.timed import Gradual
from ..words import known_names
from . import norms, readers
from . import rows as rows_option

if TYPE_CHECKING:
    from ..stages.partition import Stages
    from ..stages.selectors import Selector

P = ParamSpec("P")


def _mode(argument: str, value: Any) -> None:
    one_of(argument, value, ("eval", "train"))


def _moment(argument: str, value: Any) -> None:
    named(argument, Moment.of, value)


def _path(argument: str, value: Any) -> None:
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{argument}={value!r} must be the path of a checkpoint")


def _reaction(argument: str, value: Any) -> None:
    one_of(argument, value, ("warn", "enforce", "error"))


def _untouched(argument: str, value: Any) -> None:
    if isinstance(value, (bool, int, float, Mapping)) or value in ("", [], ()):
        raise TypeError(f"{argument}={value!r} is no selector; give for example {argument}='ema'")


def _stages(argument: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, str, list, tuple)):
        raise TypeError(
            f'stages={value!r}: give "auto", a number of backbone stages, or a list of selectors'
        )
    if isinstance(value, int) and value < 1:
        raise ValueError(f"stages={value}: the backbone needs at least one stage")
    if isinstance(value, (list, tuple)) and not value:
        raise ValueError('stages=[] names no stage; give "auto" or at least one selector')


@dataclass(frozen=True, kw_only=True, eq=False)
class Options:
    """The options of a schedule, checked one by one."""

    stages: Stages = option(
        "auto",
        'which parameters belong together, head first: "auto", a number of backbone stages, '
        "or selectors, such as classifier 'ernie.encoder.layers.{8-11}' '*'",
        list,
        check=_stages,
        reader=readers.stages,
    )
    strategy: Strategy | str | Callable[[Progress], Any] | None = option(
        None,
        "which stages are open when: a strategy, a function that takes a Progress and gives "
        f"the names of the open stages, or one of the names {', '.join(NAMES)}",
    )
    every: When | None = option(
        None, "time between two openings; short for strategy=Gradual(every, start)"
    )
    start: When | None = option(
        None, "when the first stage below the head opens; short for the same"
    )
    unfreeze_at: Mapping[When, Any] | None = option(
        None,
        'when -> what, such as {0: "fc", "50%": "*"}; short for strategy=Explicit(unfreeze_at)',
        list,
        reader=readers.moments,
    )
    frozen_norm: str = option(
        "eval",
        '"eval" holds the running statistics of frozen normalization layers still; "train" '
        "lets them move, which helps where inputs are unlike those of before, such as under noise",
        check=_mode,
    )
    train_norm: norms.TrainNorm = option(
        "with_stage",
        'when normalization layers train: "with_stage", "never" (frozen and still for the whole '
        'run) or "always" (from the start, statistics too), or by kind, such as {"BatchNorm": '
        '"never", "*": "with_stage"}; as a flag never, or pairs, such as BatchNorm=never',
        list,
        check=norms.check,
        reader=norms.read,
    )
    rows: Mapping[str, str] | None = option(
        None,
        "tensors of which some rows train alone, from start to end, while all others stay as they "
        'are, such as {"embeddings.word_embeddings": "30522:"} for new tokens, at the '
        "optimizer's rate unless lr gives another; as a flag pairs, such as "
        "embeddings.word_embeddings=30522:",
        list,
        check=rows_option.check,
        reader=rows_option.read,
    )
    frozen_dropout: str | None = option(
        None,
        '"train" leaves dropout on in frozen layers; "eval" runs frozen layers in eval mode; '
        'by default "eval" with a cache, which needs it, else "train"',
        check=_mode,
    )
    untouched: Selector | None = option(
        None,
        "a selector of what is left alone altogether, such as a teacher that you move by hand: "
        "neither set, nor held still, nor verified",
        list,
        check=_untouched,
    )
    on_conflict: str = option(
        "warn",
        'what to do when somebody else sets stop_gradient: "warn" once a phase, "enforce" (set it '
        'back), or "error"',
        check=_reaction,
    )
    verify: bool = option(
        False,
        "check with checksums, at every transition and at the end, that nothing moved that the "
        "schedule froze",
        bool,
        check=boolean,
    )
    restore: bool = option(
        True,
        "put stop_gradient back as it was found when training ends; everything else that was "
        "changed is put back in any case",
        bool,
        check=boolean,
    )
    save_trained: str | os.PathLike[str] | None = option(
        None,
        "when training ends, write what trained, and the statistics that moved, to this file, such "
        'as "trained.safetensors"; load_trained(network, file) reads it',
        check=tensor_file,
        reader=readers.path,
    )
    free_optimizer_state: bool | None = option(
        None,
        "drop the optimizer's moments and master weights of a stage that is frozen again, to "
        "save memory; by default as the strategy's source (random_stages and cyclic drop them)",
        bool,
        check=boolean,
    )
    lr_decay: float | str | None = option(
        None,
        "each stage below the head trains at the rate of the one above it divided by this; "
        '"100 in all" leads to a hundredth in the last stage, at equal ratios; by default 1, '
        'with the recipe ulmfit 2.6, with fine_tune "100 in all"',
        reader=readers.decay,
    )
    lr: Mapping[Any, float] | None = option(
        None,
        'learning-rate multipliers by stage or selector, such as {"head": 1, "*": 0.1}, in '
        "place of those by lr_decay; as a flag pairs, such as head=1 '*=0.1'",
        list,
        reader=readers.multipliers,
    )
    warmup: When | None = option(
        None, 'how long a stage that opens while training ramps up to its rate, such as "100 steps"'
    )
    warmup_shape: str = option(
        "linear", 'the shape of the ramps of warmup and hold: "linear" or "cosine"'
    )
    hold: When | None = option(
        None, "how long open stages ramp up again when another opens; by default they don't"
    )
    phase_lr: Any = option(
        None,
        "how the rate of all stages runs over each phase, from one change of what is open to the "
        'next: "constant" (the default), "linear" and "cosine" (down to 0), "one_cycle" (up, then '
        'down; "one_cycle:0.25:25:1e5" with the share in which it rises, peak / first and peak '
        "/ last rate), or a function of the share of the phase that is over; several are one for "
        "each phase, the last for all that follow",
        list,
        reader=readers.shapes,
    )
    phase_decay: float | None = option(
        None,
        "the rate of all stages at the peak of a phase is that of the phase before times this; by "
        "default 1, with the recipe fine_tune 0.5",
        float,
    )
    cache: str | os.PathLike[str] | None = option(
        None,
        'compute a frozen prefix once per sample and keep its output: in "memory", on "disk" '
        "(in the user's cache folder), or in a folder, which several processes and later runs "
        "may share",
        reader=readers.path,
    )
    cache_limit: int | str | None = option(
        None,
        'bytes of features at most, or text such as "4 GB"; by default half of what is free; '
        "a full cache keeps what it has",
    )
    cache_dtype: str | None = option(
        None,
        'keep features as "float16", which halves the memory and rounds, or "float32"; by '
        "default as computed",
    )
    cache_check_every: int | None = option(
        None,
        "compute one batch in so many in spite of the cache and compare, by default one in "
        "200; a difference is an error",
        int,
    )
    cache_key: str | Callable[..., Any] | None = option(
        None,
        "the name of an input of the network that holds sample numbers, or a function that takes "
        "what the network takes and gives a whole number or a text for each sample: samples are "
        "then known by these, and not by their content",
    )
    resume_at: When | None = option(
        None,
        "for paddle.Model.fit alone: how much of the run earlier calls of fit have done, such "
        'as 2 or "300 steps"; a Trainer knows it',
        None,
        check=_moment,
    )
    resume_from: str | os.PathLike[str] | None = option(
        None,
        "the same, read from a checkpoint of fit or of a hand-written loop: the path given to "
        'model.load, such as "checkpoints/3"; strategies that decide from metrics or '
        "gradients need it",
        None,
        check=_path,
    )

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, (list, Mapping)):  # the caller's own may change later
                copy = list(value) if isinstance(value, list) else dict(value)
                object.__setattr__(self, each.name, copy)
            check = each.metadata["check"]
            if check is not None and (value is not None or each.default is not None):
                check(each.name, value)
        for kind, value in (("norm", self.frozen_norm), ("dropout", self.frozen_dropout)):
            if self.cache is not None and value == "train":
                raise ValueError(
                    f"cache={self.cache!r} and frozen_{kind}='train' contradict each other: what "
                    "is kept must not change while it is frozen; drop one of them"
                )
        choices = norms.chosen(self.train_norm)
        if self.frozen_norm == "train" and "never" in choices:
            raise ValueError(
                f"frozen_norm='train' and train_norm={self.train_norm!r} contradict each other: "
                "what never trains stands still; drop one of them"
            )
        if self.cache is not None and "always" in choices:
            raise ValueError(
                f"cache={self.cache!r} and train_norm={self.train_norm!r} contradict each other: "
                "nothing is kept behind a layer that trains; drop one of them"
            )
        if self.cache is not None and self.rows is not None:
            raise ValueError(
                f"cache={self.cache!r} and rows={self.rows!r} contradict each other: nothing is "
                "kept behind a table that trains; drop one of them"
            )
        for name in ("cache_limit", "cache_dtype", "cache_check_every", "cache_key"):
            value = getattr(self, name)
            if value is not None and self.cache is None:
                raise ValueError(f"{name}={value!r} has no effect without cache=")
        if self.resume_at is not None and self.resume_from is not None:
            raise ValueError(
                "resume_at= and resume_from= contradict each other: the checkpoint knows how much "
                "of the run is done; drop resume_at="
            )

    def given(self) -> dict[str, Any]:
        """The options that differ from their defaults."""
        values = [(each.name, getattr(self, each.name), each.default) for each in fields(self)]
        return {
            name: value
            for name, value, default in values
            if not (type(value) is type(default) and value == default)
        }

    def spans(self) -> dict[str, slice]:
        """The rows that train alone."""
        return {name: rows_option.span(text) for name, text in (self.rows or {}).items()}

    def rates(self) -> LearningRates:
        """The learning rates of the stages.

        Raises:
            ValueError, TypeError: if one is wrong, or two contradict each other.
        """
        every = {each.name: getattr(self, each.name) for each in fields(LearningRates)}
        given = {name: value for name, value in every.items() if value is not None}
        if isinstance(self.strategy, str):
            given = recipe_of(self.strategy).rates_beside(given)
        return LearningRates(**given)

    def rule(self) -> Strategy:
        """The strategy that the options add up to.

        Raises:
            ValueError, TypeError: if one is wrong, or two contradict each other.
        """
        strategy = self.strategy
        short = {"every": self.every, "start": self.start, "unfreeze_at": self.unfreeze_at}
        used = {name: value for name, value in short.items() if value is not None}
        if isinstance(strategy, str):
            recipe = named("strategy", recipe_of, strategy)
            kind = recipe.strategy
            if strategy in RECIPES and used.keys() <= set(recipe.free):
                return recipe.made(used)
        if strategy is not None and used:
            example = (
                "write for example strategy=Gradual(every=..., start=...)"
                if strategy not in RECIPES
                else f"{strategy!r} is a strategy of its own; drop one of them"
            )
            raise ValueError(
                f"strategy= and {'=, '.join(used)}= contradict each other: the latter are short "
                f"for a strategy; {example}"
            )
        if self.unfreeze_at is not None and len(used) > 1:
            raise ValueError(
                f"{next(iter(used))}= and unfreeze_at= contradict each other: unfreeze_at= sets "
                "when each stage opens; drop one of them"
            )
        if self.unfreeze_at is not None:
            return Explicit(self.unfreeze_at)
        if strategy is None:
            return Gradual(self.every, self.start)
        if isinstance(strategy, str):
            if required_of(kind):
                raise ValueError(
                    f"strategy={strategy!r} needs {', '.join(required_of(kind))}; "
                    f"write strategy={kind.__name__}(...)"
                )
            return kind()
        if isinstance(strategy, Strategy):
            return strategy
        if isinstance(strategy, type) and issubclass(strategy, Strategy):
            name = strategy.__name__
            raise TypeError(f"strategy={name} is a class; write {name}(...)")
        if callable(strategy) and not isinstance(strategy, type):
            return Custom(strategy)
        raise TypeError(
            f"strategy={strategy!r} is no strategy; give one of "
            f"{', '.join(kind.__name__ + '(...)' for kind in STRATEGIES.values())}, "
            "or a function that takes the progress and gives the names of the open stages"
        )


def taking(
    kind: Callable[P, Options],
) -> Callable[[Callable[[Any, Options], None]], Callable[Concatenate[Any, P], None]]:
    """Have a constructor take options by name; the function beneath gets them as one object."""
    parameters = inspect.signature(kind).parameters

    def decorated(function: Callable[[Any, Options], None]) -> Callable[Concatenate[Any, P], None]:
        @functools.wraps(function)
        def constructor(self: Any, /, *args: P.args, **options: P.kwargs) -> None:
            for name in options:
                if name not in parameters:
                    raise TypeError(
                        f"{type(self).__name__}() has no option {name!r}"
                        + known_names(name, parameters)
                    )
            if args:
                raise TypeError(f"{type(self).__name__}() takes options by name, such as every=1")
            function(self, kind(*args, **options))

        first = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        constructor.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [first, *parameters.values()], return_annotation=None
        )
        return constructor

    return decorated


def described(kind: type[Options]) -> dict[str, str]:
    """The help of each option, by name."""
    return {each.name: each.metadata["help"] for each in fields(kind)}
