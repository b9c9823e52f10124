"""A schedule fitted to a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ..options.norms import TrainNorm
from ..stages.declared import REST
from ..stages.partition import (
    Stage,
    Stages,
    Survey,
    partition,
    partition_by,
    rows_apart,
    stage_names,
    stages_with,
)
from ..stages.selectors import Selector, asked_by_name, describe, items
from ..stages.weights import Weight
from ..strategies.base import Opening, Strategy
from ..strategies.explicit import Explicit
from ..strategies.rates import LearningRates
from ..strategies.run import Progress, Run
from ..words import EVERYTHING
from .alone import apart, twins, within
from .norms import NAME, Norms, norms_apart


@dataclass(frozen=True)
class Plan:
    """A schedule fitted to a network.

    Attributes:
        stages: all stages, head first.
        strategy: the rule, in terms of stage names.
        schedulable: names of the stages that the strategy decides about: not the ``"rest"``,
            unless ``unfreeze_at`` names it, and no stage that was found frozen as a whole and is
            not asked for by name.
        openable: names of the parameters that may be opened.
        learning_rates: the options for the learning rates of stages.
        multipliers: the learning-rate multiplier of each stage, ramps aside.
        alone: names of the parameters that are left alone altogether.
        norms: the stages of normalization layers apart from theirs, which no strategy sees.
        twins: the parts among ``alone`` that nobody named, with the parts that they are like.
        rows: names of the stages of rows that train from start to end, which none sees either.
        gone: the head, if nothing but such rows is in it.
    """

    stages: tuple[Stage, ...]
    strategy: Strategy
    schedulable: tuple[str, ...]
    openable: frozenset[str]
    learning_rates: LearningRates
    multipliers: Mapping[str, float]
    alone: frozenset[str] = frozenset()
    norms: Norms = field(default_factory=Norms)
    twins: Mapping[str, str] = field(default_factory=dict)
    rows: tuple[str, ...] = ()
    gone: str | None = None

    @property
    def always(self) -> tuple[str, ...]:
        """Names of the stages that train from start to end, whatever the strategy says."""
        return (*self.norms.always, *self.rows)

    @property
    def in_order(self) -> bool:
        """Whether the order of the stages decides anything."""
        return self.strategy.ordered or self.learning_rates.lr_decay != 1

    def of_twins(self) -> list[str]:
        """A line for each twin that is left alone."""
        return [
            f"left alone, as found: {part}, the frozen twin of {like}; its statistics and training "
            f"mode are yours. freeze(network, {part!r}) holds them still"
            for part, like in self.twins.items()
        ]

    @property
    def neutral(self) -> bool:
        """Whether every stage always trains at the optimizer's rate."""
        return self.learning_rates.neutral and not self.strategy.peaks()

    def will_open(self, survey: Survey, run: Run) -> list[Weight]:
        """The weights that open at some time in a run."""
        ever_open = self.strategy.ever_open(run, self.schedulable).union(self.always)
        wanted = {n for s in self.stages if s.name in ever_open for n in s.parameters}
        return [w for w in survey.weights if w.name in wanted & self.openable]

    def timetable(self, run: Run) -> list[Opening]:
        """As that of the strategy, with what is always open."""
        always = frozenset(self.always)
        return [
            (at, open_ | always) for at, open_ in self.strategy.timetable(run, self.schedulable)
        ]

    def opens_late(self, run: Run) -> str | None:
        """The first stage that may open after the first step, if one may."""
        names = self.schedulable
        first = self.strategy.open_stages(Progress(0, run, stages=names), names)
        late = self.strategy.ever_open(run, names).difference(first)
        return next((name for name in names if name in late), None)


def plan(
    survey: Survey,
    stages: Stages,
    strategy: Strategy,
    learning_rates: LearningRates,
    untouched: Selector | None = None,
    train_norm: TrainNorm = "with_stage",
) -> Plan:
    """Fit a schedule to a network, which stays as it is.

    Raises:
        ValueError: if stages or selectors do not fit the network, or ``untouched`` not them.
    """
    selectors: list[Selector] = list(stages) if isinstance(stages, (list, tuple)) else []
    opening = selectors
    by_opening = isinstance(strategy, Explicit) and stages == "auto"
    if isinstance(strategy, Explicit) and stages == "auto":
        selectors, opening = strategy.selectors(), strategy.selectors(["unfreeze"])
        parts = partition_by(survey, selectors, _rated_parts(survey, learning_rates))
        strategy = strategy.with_stages(lambda one: stages_with(parts, survey.select(one)))
    else:
        parts = partition(survey, stages)
        all_names = [stage.name for stage in parts if stage.name != REST]
        strategy = strategy.with_stages(lambda one: stage_names(survey, parts, one), all_names)
    head = parts[0].name
    parts, rows = _rows_apart(survey, parts, selectors)
    gone = None if head in {stage.name for stage in parts} else head
    openable = _openable(survey, opening).union(*(stage.parameters for stage in rows))
    beside = twins(survey.weights, openable)
    alone = frozenset(one.name for one in survey.weights if within(one.name, beside))
    if untouched is not None:
        alone |= apart(survey, untouched, parts if selectors else ())
        openable -= alone
        for stage in rows:
            if alone.issuperset(stage.parameters):
                raise ValueError(
                    f"untouched= and the rows of {stage.parameters[0]} contradict each other; "
                    "drop one of them"
                )
    # What is new in a table trains as fast as a head does, however deep the table lies.
    depths = _depths(survey, parts, by_opening=by_opening and learning_rates.lr_decay != 1)
    depths |= {stage.name: 0 for stage in rows}
    parts = (*parts, *rows)
    rated = _rated(survey, parts, list(learning_rates.lr or ()), parts if by_opening else rows)
    multipliers = learning_rates.multipliers(depths, rated)
    parts, multipliers, norms = norms_apart(
        survey, parts, train_norm, openable, multipliers, selectors
    )
    left = {stage.name for stage in parts}
    if isinstance(strategy, Explicit):  # of a stage of norms or of one table nothing may be left
        strategy = strategy.with_stages(lambda names: tuple(n for n in names if n in left))
    schedulable = tuple(
        stage.name
        for stage in parts
        if stage not in rows
        and stage.name not in (*norms.always, *norms.never)
        and (stage.name != REST or isinstance(strategy, Explicit))
        and not openable.isdisjoint(stage.parameters)
    )
    return Plan(
        parts, strategy, schedulable, openable, learning_rates, multipliers, alone, norms,
        beside, tuple(stage.name for stage in rows), gone,
    )  # fmt: skip


def _rows_apart(
    survey: Survey, parts: Sequence[Stage], selectors: Sequence[Selector]
) -> tuple[tuple[Stage, ...], tuple[Stage, ...]]:
    """As :func:`rows_apart`; what names nothing but a table of which only rows train is refused."""
    kept, rows = rows_apart(survey, parts)
    for one in (one for entry in selectors if rows for one in items(entry)):
        chosen = survey.select(one)
        if all(weight.rows for weight in chosen):
            raise ValueError(
                f"rows= and {describe(one, survey.network)!r} contradict each other: that is "
                f"nothing but {chosen[0].name}, of which some rows alone train, from start to "
                "end; drop one of them"
            )
    return kept, rows


def _openable(survey: Survey, selectors: Sequence[Selector]) -> frozenset[str]:
    """Names of the weights that train, or that selectors ask for by name."""
    trainable = [weight for weight in survey.weights if weight.trains]
    openable = {weight.name for weight in trainable}
    for selector in (one for entry in selectors for one in items(entry)):
        chosen = survey.select(selector)
        openable |= asked_by_name(chosen, selector, [w for w in trainable if w in chosen])
    return frozenset(openable)


def _rated_parts(survey: Survey, rates: LearningRates) -> list[tuple[str, Sequence[Weight]]]:
    """Parts of what opens together that have a learning rate of their own, with their names."""
    parts: list[tuple[str, Sequence[Weight]]] = []
    if rates.lr_decay != 1:
        parts += survey.automatic.items()
    for key in rates.lr or ():
        if key != EVERYTHING:
            parts += [(describe(one, survey.network), survey.select(one)) for one in items(key)]
    return parts


def _depths(survey: Survey, parts: Sequence[Stage], *, by_opening: bool) -> dict[str, int]:
    """How many stages lie above each.

    Args:
        survey: of the network.
        parts: its stages.
        by_opening: whether they are in order of opening, which says nothing of their depth.
    """
    named = [stage for stage in parts if stage.name != REST]
    if not by_opening:
        return {stage.name: depth for depth, stage in enumerate(named)}
    if not survey.depths:
        raise ValueError(
            f"lr_decay: which stages of {type(survey.network).__name__} lie below which cannot be "
            'told; name them, head first, for example stages=["head", "*"]'
        )
    return {stage.name: survey.depths[stage.parameters[0]] for stage in named}


def _rated(
    survey: Survey, parts: Sequence[Stage], keys: Sequence[Selector], carved: Sequence[Stage]
) -> Callable[[Selector], tuple[str, ...]]:
    """A function that gives the stages that a key of ``lr`` means.

    Rows, and stages that follow from moments of opening, are carved out of others. A key that is
    the name of a stage means what was carved out of it, too, unless a narrower key does.
    """
    rest = {name for stage in parts if stage.name == REST for name in stage.parameters}

    def members(key: Selector) -> set[str]:
        try:
            return {weight.name for weight in survey.select(key)} if key != EVERYTHING else set()
        except ValueError:  # the name of a stage
            return set()

    def stages_of(selector: Selector) -> tuple[str, ...]:
        if str(selector).startswith(NAME):
            raise ValueError(
                f"{selector!r}: normalization layers have the rate of the stage that they come "
                "from; give that of the stage"
            )
        chosen = members(selector)
        if chosen and chosen <= rest:
            raise ValueError(
                f"{describe(selector, survey.network)!r} never opens under this schedule, so a "
                "rate for it would have no effect; open it, or drop the rate"
            )
        names = stage_names(survey, parts, selector)
        if names != (selector,):
            return names
        narrower = [other for key in keys if len(other := members(key)) < len(chosen)]
        return names + tuple(
            stage.name
            for stage in carved
            if stage.name != selector
            and chosen.issuperset(stage.parameters)
            and not any(other.issuperset(stage.parameters) for other in narrower)
        )

    return stages_of
