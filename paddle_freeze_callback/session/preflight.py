"""What is refused before the first step, of a run and of a preview alike."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from paddle import nn

from ..cache.options import CacheOptions
from ..freezing import optimizer as optimizers
from ..freezing import parallel, rates, rows
from ..freezing.savers import adapters
from ..options.norms import TrainNorm
from ..stages.partition import Stages, Survey
from ..stages.selectors import Selector
from ..stages.weights import Weight, layers
from ..strategies.base import Strategy
from ..strategies.deciding import OnPlateau
from ..strategies.phases import CONSTANT, shape_name
from ..strategies.rates import LearningRates
from ..strategies.run import Progress, Run
from ..strategies.timed import Gradual
from ..words import listing
from .plan import Plan, plan
from .timeline import Timeline


def refuse(
    network: nn.Layer,
    stages: Stages,
    strategy: Strategy,
    learning_rates: LearningRates,
    run: Run,
    optimizer: Any,
    untouched: Selector | None,
    train_norm: TrainNorm,
    only_rows: Mapping[str, slice] | None = None,
) -> None:
    """Refuse now what the start of a run would refuse, which comes later.

    Raises:
        ValueError, TypeError: as :func:`refuse_misfits` and :func:`refuse_optimizer`.
    """
    survey = Survey(network, only_rows)
    fitted = plan(survey, stages, strategy, learning_rates, untouched, train_norm)
    refuse_misfits(fitted, survey, run)
    refuse_optimizer(fitted, survey, run, optimizer)


# A multiplier below this: lr_decay=2.6 over 8 stages, more than was ever meant.
_HARDLY_MOVES = 1e-3


def refuse_misfits(
    plan: Plan,
    survey: Survey,
    run: Run,
    *,
    evaluates: bool = True,
    decisions: Sequence[tuple[int, Any]] = (),
) -> None:
    """Refuse a schedule that would go wrong with this network or run.

    Args:
        plan: the schedule, fitted to the network.
        survey: of the network.
        run: the run.
        evaluates: whether the run evaluates.
        decisions: notes of the strategy that a checkpoint holds.

    Raises:
        ValueError: naming what does not fit, and what to change.
    """
    strategy, names = plan.strategy, plan.schedulable
    kind = type(strategy).__name__
    if not names:
        raise ValueError(
            f"every parameter of {type(survey.network).__name__} that the schedule may open is "
            "frozen already; nothing would train. Set stop_gradient=False on what should, "
            "or ask for it by name"
        )
    if strategy.needs_evaluation and not evaluates:
        raise ValueError(
            f"{kind} decides from metrics, and this run never evaluates: "
            "give fit() eval_data, or the Trainer eval_dataset and evaluation_strategy="
        )
    head = plan.stages[0].name
    if strategy.needs_head and head not in names:
        raise ValueError(
            f"{kind} trains the head, and everything in {head!r} was found frozen; "
            "set stop_gradient=False on it"
        )
    for _, note in decisions:
        if not strategy.understands(note):
            raise ValueError(
                f"the checkpoint's notes, such as {str(note)[:60]}, are not of {strategy!r}; "
                "resume with the strategy that it was saved with"
            )
    strategy.check(run, names)
    plan.learning_rates.check(run)
    if plan.learning_rates.shaped:
        _refuse_endless(plan, run)
    if strategy.measures:
        _refuse_sparse(survey.network, "cannot be measured")
    if plan.rows:
        partial = {id(weight.tensor) for weight in survey.weights if weight.rows}
        _refuse_sparse(survey.network, "cannot be cut to some rows", partial)


#: Why what trained is not written where weights are split.
SPLIT_FILE = (
    "each process holds a part of the split weights alone, and a file for all is not written; "
    "gather them, or save with the library that split them"
)


def refuse_engines(network: nn.Layer, optimizer: Any) -> None:
    """Refuse the kinds of parallel training that nobody has shown to be right with a schedule.

    A Trainer's arguments are looked at before, and named in the Trainer's words.

    Raises:
        ValueError: naming them.
    """
    if unshown := parallel.unshown(network, optimizer):
        raise ValueError(
            f"FreezeSchedule does not work with {listing(unshown)}: not shown to be right with a "
            "schedule. Use data parallel, tensor parallel or sharding stage 1"
        )


def refuse_split(survey: Survey, *, cached: bool, saves: bool = False) -> str:
    """Refuse what was not shown to be right where weights are split among processes.

    Returns:
        What to say if some are; empty if none is.

    Raises:
        ValueError: naming what does not go together.
    """
    split = [weight for weight in survey.weights if weight.group]
    if not split:
        return ""
    name, ranks = split[0].name, split[0].group.nranks
    refused = [
        f"{weight.name}, which is marked for sequence parallel"
        for weight in survey.weights
        if getattr(weight.tensor, "sequence_parallel", False)
    ]
    refused += [
        f"{path} with mp_async_allreduce"
        for path, layer in layers(survey.network)
        if getattr(layer, "mp_async_allreduce", False)
    ]
    if ranks < parallel.world_size():
        refused.append(
            f"{name}, which is split among {ranks} of {parallel.world_size()} processes; all must "
            "share it, without data parallel or sharding beside"
        )
    if refused:
        raise ValueError(
            f"FreezeSchedule does not work with {refused[0]}: not shown to be right under "
            "tensor parallel"
        )
    if adapting := adapters(survey.network):
        raise ValueError(
            f"FreezeSchedule does not work with {type(adapting[0]).__name__}, an adapter model, "
            "where weights are split: not shown to be right under tensor parallel"
        )
    if cached:
        raise ValueError(
            f"cache: {name} is split among {ranks} processes, and each would wait for the others "
            "whenever they find less in their cache than it does; leave cache off"
        )
    if saves:
        raise ValueError(f"save_trained: {SPLIT_FILE}")
    if parallel.wrapped(survey.network):
        raise ValueError(
            f"{name} is split among {ranks} processes, and paddle.DataParallel, which paddle.Model "
            "uses too, has overwritten every part with that of rank 0; build the network anew and "
            "wrap it with fleet.distributed_model"
        )
    return f"tensor parallel, {ranks} processes: shown to equal one process on CPUs only"


def refuse_optimizer(plan: Plan, survey: Survey, run: Run, optimizer: Any) -> list[Weight]:
    """Refuse an optimizer under which the schedule would go wrong.

    Returns:
        The weights that open at some time of the run.

    Raises:
        ValueError: if it lacks some of them, or what the schedule needs.
        TypeError: if it is no optimizer of Paddle.
    """
    will_open = plan.will_open(survey, run)
    optimizers.check(optimizer, will_open, lambda: plan.opens_late(run))
    own = {id(weight.tensor) for weight in survey.weights}
    for one in optimizers.each(optimizer):
        if own.isdisjoint(optimizers.parameter_ids(one)):
            raise ValueError(
                f"{type(one).__name__}, one of the optimizers, trains no parameter of this "
                f"{type(survey.network).__name__}; leave out those of other networks"
            )
    if not plan.neutral:
        for one in optimizers.each(optimizer):
            rates.check_optimizer(one)
    for one in optimizers.each(optimizer) if plan.rows else ():
        rows.check_optimizer(one)
    return will_open


def _refuse_endless(plan: Plan, run: Run) -> None:
    """Refuse a shape over phases whose ends nobody knows when they begin."""
    strategy = plan.strategy
    shape = next(shape for shape in plan.learning_rates.shapes if shape != CONSTANT)
    shaped = f"phase_lr={shape_name(shape)!r} needs to know when a phase ends"
    if not strategy.ends_known:
        longest = "max_wait=, which ends it at the latest, or "
        raise ValueError(
            f"{shaped}, and {strategy!r} decides that while it runs; give "
            f"{longest if isinstance(strategy, OnPlateau) else ''}phase_decay= alone, which needs "
            "no end"
        )
    if run.total_steps is None:
        raise ValueError(
            f"{shaped}, and how many steps the run has is not known: the training data has no "
            "length, or epochs were given alone; give the number of steps (steps_per_epoch= or "
            "total_steps=), or phase_decay= alone, which needs no end"
        )


def _refuse_sparse(network: nn.Layer, why: str, among: Collection[int] | None = None) -> None:
    for path, layer in layers(network):
        # nn.Embedding has no public reader of it.
        if isinstance(layer, nn.Embedding) and getattr(layer, "_sparse", False):
            if among is not None and id(layer.weight) not in among:
                continue
            raise ValueError(
                f"{path} has sparse gradients (sparse=True), which {why}; build it without"
            )


def doubts(plan: Plan, run: Run, optimizer: Any = None) -> list[str]:
    """What is allowed, but hardly meant.

    What never opens, what changes nothing or never acts, what opens in a heap, what hardly moves,
    and a scheduler of the optimizer that is made for another run.
    """
    strategy, names = plan.strategy, plan.schedulable
    late = strategy.never_open(run, names)
    found = [_never_opens(late, run)] if late else []
    found += strategy.no_effect(run, names)
    first = strategy.next_step(Progress(0, run, stages=names), names)
    total = run.total_steps
    if not (found or strategy.needs_evaluation) and first and total and first >= total:
        found.append(
            f"in this run of {total} steps {strategy!r} never acts: "
            f"it would change something at step {first} first"
        )
    if plan.norms.idle:
        found.append(
            f'train_norm: every {" and ".join(plan.norms.idle)} was found frozen, and "always" '
            "opens none; set stop_gradient=False on their weights"
        )
    if plan.gone and names:
        found.append(
            f"rows: nothing but these rows is in {plan.gone!r}, so that {names[0]!r} takes its "
            "place and opens first; unfreeze_at= names another"
        )
    if isinstance(strategy, Gradual):
        found += _heaps(strategy, run, names)
    slow = {name: rate for name, rate in plan.multipliers.items() if rate < _HARDLY_MOVES}
    if slow:
        name, rate = min(slow.items(), key=lambda entry: entry[1])
        found.append(
            f"{len(slow)} of {len(plan.multipliers)} stages hardly train: the learning rate of "
            f"{name!r} is multiplied by {rate:.3g}. Give a smaller lr_decay, or fewer stages, "
            "such as stages=4"
        )
    if total and optimizer is not None:
        tolerance = run.steps_per_epoch or total // 10
        lines = (rates.ill_timed(one, total, tolerance) for one in optimizers.each(optimizer))
        found += [line for line in lines if line]
    return found if plan.neutral else found + _idle_rates(plan, run)


def idle_cache(plan: Plan, run: Run, cache: CacheOptions | None) -> list[str]:
    """A line if samples come again only after the frozen prefix has changed.

    A folder may have been filled by an earlier run, and what is decided later is not known.
    """
    strategy, total, epoch = plan.strategy, run.total_steps, run.steps_per_epoch
    if cache is None or cache.cache != "memory" or strategy.decides or strategy.measures:
        return []
    if not (total and epoch):
        return []
    table = plan.timetable(run)
    ends = [*(step for step, _ in table[1:]), total]
    for (step, opened), end in zip(table, ends):
        if end - step > epoch and not opened.issuperset(stage.name for stage in plan.stages):
            return []
    return [
        f"what is frozen never stays the same for more than an epoch ({epoch} steps), so the cache "
        "has hardly a hit: samples come again too late. Keep a prefix frozen for two epochs or "
        "more, as HeadThenAll(at=2) does, or leave cache= out"
    ]


def _idle_rates(plan: Plan, run: Run) -> list[str]:
    """Rates of phases that never come, or at which hardly anything moves."""
    rates = plan.learning_rates
    paces = list(Timeline(plan, run).paces().values())
    found = [
        f"from step {pace.began} on, in phase {pace.index + 1}, learning rates are multiplied by "
        f"{pace.peak:.3g} at most; give a larger phase_decay, or make fewer phases"
        for pace in paces
        if pace.peak < _HARDLY_MOVES
    ][:1]
    if run.total_steps is None or plan.strategy.decides:
        return found
    phases = paces[-1].index + 1
    if phases == 1 and rates.phase_decay != 1:
        found.append("phase_decay has no effect: this run has one phase")
    if (more := len(rates.shapes) - phases) > 0:
        found.append(
            f"phase_lr gives {len(rates.shapes)} shapes, and this run has {phases} "
            f"phase{'s' if phases > 1 else ''}: the last "
            + (f"{more} have no effect" if more > 1 else "has no effect")
        )
    return found


def _heaps(strategy: Gradual, run: Run, names: Sequence[str]) -> list[str]:
    """A line if several stages open at one step."""
    openings = [
        (step, [name for name in names if name in after - before])
        for (_, before), (step, after) in itertools.pairwise(strategy.timetable(run, names))
    ]
    return [
        f"this run of {run.total_steps} steps has no room for one stage at a time: at step {step} "
        f"{listing(opened)} open together. Make it longer, or merge the backbone: "
        f"stages={len(openings)}"
        for step, opened in openings
        if len(opened) > 1
    ][:1]


def _never_opens(late: Sequence[tuple[str, int | None]], run: Run) -> str:
    which = ", ".join(
        repr(name) if step is None else f"{name!r} (which needs {step} steps)"
        for name, step in late
    )
    length = f"{run.total_steps} steps" if run.total_steps else f"{float(run.epochs or 0):g} epochs"
    verb = "never opens" if len(late) == 1 else "never open"
    return f"in this run of {length} {which} {verb}: the schedule is longer than the run"
