"""A schedule fitted to a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from paddle import nn

from ..stages.automatic import automatic_selectors, depth_of_weights
from ..stages.partition import REST, Stage, Stages, partition, partition_by, stage_names
from ..stages.selectors import Selector, asked_by_name, describe, select
from ..stages.weights import Weight, weights
from ..strategies.base import Strategy
from ..strategies.explicit import Explicit
from ..strategies.rates import LearningRates
from ..strategies.run import Run
from ..words import EVERYTHING


@dataclass(frozen=True)
class Plan:
    """A schedule fitted to a network.

    Attributes:
        stages: all stages, head first.
        strategy: the rule, in terms of stage names.
        schedulable: names of the stages that the strategy decides about: not the ``"rest"``,
            unless the user says when it opens, and none in which everything was frozen already
            and is not asked for by name.
        openable: names of the parameters that may be opened.
        multipliers: the learning-rate multiplier of each stage, ramps aside.
    """

    stages: tuple[Stage, ...]
    strategy: Strategy
    schedulable: tuple[str, ...]
    openable: frozenset[str]
    multipliers: Mapping[str, float]

    def will_open(self, network: nn.Layer, run: Run) -> list[Weight]:
        """The weights that open at some time in a run."""
        ever_open = self.strategy.ever_open(run, self.schedulable)
        wanted = {n for s in self.stages if s.name in ever_open for n in s.parameters}
        return [w for w in weights(network) if w.name in wanted & self.openable]


def plan(
    network: nn.Layer, stages: Stages, strategy: Strategy, learning_rates: LearningRates
) -> Plan:
    """Fit a schedule to a network; touches nothing.

    Raises:
        ValueError: if stages or selectors do not fit the network.
    """
    selectors: Sequence[Selector] = []
    if isinstance(strategy, Explicit) and stages == "auto":
        selectors = strategy.selectors()
        # Rates may be said of parts of what opens together.
        finer = automatic_selectors(network) if learning_rates.lr_decay != 1 else []
        finer += [key for key in learning_rates.lr or () if key != EVERYTHING]
        parts, meant = partition_by(network, selectors, finer)
        names = iter(meant)
        strategy = strategy.with_stages(lambda selector: next(names))
    else:
        parts = partition(network, stages)
        all_names = [stage.name for stage in parts if stage.name != REST]
        strategy = strategy.with_stages(lambda one: stage_names(network, parts, one), all_names)
    if isinstance(stages, (list, tuple)):
        selectors = [*selectors, *stages]
    every = weights(network)
    trainable = [weight for weight in every if weight.trains]
    openable = {weight.name for weight in trainable}
    for selector in selectors:
        try:
            chosen = select(every, selector)
        except ValueError:  # the name of an automatic stage: not a name in the network
            continue
        openable |= asked_by_name(chosen, selector, [w for w in trainable if w in chosen])
    schedulable = tuple(
        stage.name
        for stage in parts
        if (stage.name != REST or isinstance(strategy, Explicit))
        and not openable.isdisjoint(stage.parameters)
    )
    in_order = isinstance(strategy, Explicit) and stages == "auto"
    multipliers = learning_rates.multipliers(
        _depths(network, parts, by_opening=in_order and learning_rates.lr_decay != 1),
        lambda one: _rated(network, parts, one),
    )
    return Plan(parts, strategy, schedulable, frozenset(openable), multipliers)


def _depths(network: nn.Layer, parts: Sequence[Stage], *, by_opening: bool) -> dict[str, int]:
    """How many stages lie above each; stages in order of their opening are put in order first."""
    named = [stage for stage in parts if stage.name != REST]
    if not by_opening:
        return {stage.name: depth for depth, stage in enumerate(named)}
    above = depth_of_weights(network)
    if not above:
        raise ValueError(
            f"lr_decay: which stages of {type(network).__name__} lie below which cannot be told; "
            'name them, head first, for example stages=["head", "*"]'
        )
    return {stage.name: above[stage.parameters[0]] for stage in named}


def _rated(network: nn.Layer, parts: Sequence[Stage], selector: Selector) -> tuple[str, ...]:
    """The stages that a key of ``lr`` means."""
    rest = {name for stage in parts if stage.name == REST for name in stage.parameters}
    try:
        chosen = {weight.name for weight in select(weights(network), selector)}
    except ValueError:  # the name of a stage
        chosen = set()
    if chosen and chosen <= rest:
        raise ValueError(
            f"{describe(selector, network)!r} never opens under this schedule, so a rate for it "
            "would have no effect; open it, or drop the rate"
        )
    return stage_names(network, parts, selector)
