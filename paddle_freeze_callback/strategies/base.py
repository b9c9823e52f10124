"""What every strategy must answer.

Pure code: a strategy is a small frozen dataclass that maps the progress of a run and the names
of its stages (head first) to the names of the open stages. It remembers nothing, so a resumed
run is right by construction. A strategy that decides from metrics or gradients also reads its
earlier decisions, which the progress holds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from ..checks import documented
from .run import Progress, Run

Opening = tuple[int, frozenset[str]]
NamesOf = Callable[[Any], Sequence[str]]


class Strategy:
    """The rule for which stages are open when.

    A subclass defines :meth:`open_stages` and :meth:`next_step`. Both must follow from their
    arguments alone. A decision from metrics or gradients is made once, on one rank, by
    :meth:`decide` or :meth:`decide_from_gradients`. Its note goes to all ranks, travels with
    checkpoints, and comes back in ``progress.decisions``.
    """

    #: Its name in flags and YAML.
    name: ClassVar[str]
    #: Whether it makes decisions. Then :meth:`decide` is called after each evaluation.
    decides: ClassVar[bool] = False
    #: Whether it cannot work in a run that never evaluates.
    needs_evaluation: ClassVar[bool] = False
    #: Whether it cannot continue a run without the decisions made so far.
    needs_record: ClassVar[bool] = False
    #: Whether stages open, or freeze, in their order, so that the order must be that of use.
    ordered: ClassVar[bool] = False
    #: Whether it ever measures gradients.
    measures: ClassVar[bool] = False
    #: Whether it is meaningless when the head stays frozen.
    needs_head: ClassVar[bool] = False
    #: Whether, by default, a stage that freezes again loses its state in the optimizer.
    frees_state: ClassVar[bool] = False
    #: Whether :meth:`open_stages` is the user's code, which may differ from rank to rank.
    foreign: ClassVar[bool] = False
    #: Whether each transition first loads the best weights since the one before.
    restore_best: bool = False

    def __init_subclass__(cls) -> None:
        """List the arguments in the docstring: each is described once, at its field."""
        own = {n: value for n, value in vars(cls).items() if isinstance(value, dataclasses.Field)}
        helps = {n: each.metadata["help"] for n, each in own.items() if "help" in each.metadata}
        cls.__doc__ = documented(cls.__doc__, helps)

    def open_stages(self, progress: Progress, stages: Sequence[str]) -> tuple[str, ...]:
        """The names of the open stages, in the order of ``stages``.

        >>> from paddle_freeze_callback import Gradual
        >>> run = Run.of(epochs=3, steps_per_epoch=10)
        >>> Gradual(every=1).open_stages(Progress(10, run), ["head", "layer2", "layer1"])
        ('head', 'layer2')
        """
        raise NotImplementedError

    def next_step(self, progress: Progress, stages: Sequence[str]) -> int | None:
        """The next step at which the answer may change; ``None`` if none is known."""
        raise NotImplementedError

    def check(self, run: Run, stages: Sequence[str]) -> None:
        """Refuse a run or stages that the strategy does not fit.

        Raises:
            ValueError: the message says what to change.
        """

    def with_stages(self, names_of: NamesOf, stages: Sequence[str]) -> Strategy:
        """The same strategy with stage names in place of selectors.

        Args:
            names_of: gives the names of the stages that a selector means.
            stages: the names of all stages, head first, including those that may not open.
        """
        return self

    def decide(self, progress: Progress, stages: Sequence[str]) -> Any:
        """The decision after an evaluation, as plain JSON; ``None`` for no decision.

        ``progress.metrics`` holds the metrics of this evaluation.
        """
        return None

    def understands(self, note: Any) -> bool:
        """Whether a decision read from a checkpoint is one of its own."""
        return True

    def unknown_metric(self, seen: Mapping[str, Any]) -> str:
        """The message when no evaluation had its metric; ``seen`` holds the metrics it had."""
        return f"{self!r} has no use for any of {', '.join(sorted(seen))}"

    def samples_gradients(self, progress: Progress, stages: Sequence[str]) -> bool:
        """Whether to measure the gradients of the coming step."""
        return False

    def decide_from_gradients(self, relative_norms: Mapping[str, float]) -> Any:
        """The decision from the relative gradient norms of the stages; ``None`` for none.

        Args:
            relative_norms: by stage, norm of the gradient / norm of the weights.
        """
        return None

    def best_step(self, progress: Progress, stages: Sequence[str]) -> int | None:
        """The step of the best evaluation since the last transition, if there was one.

        An opening at this very step counts as not yet done.
        """
        return None

    def timetable(self, run: Run, stages: Sequence[str]) -> list[Opening]:
        """The steps of the run at which the set of open stages changes, and the set from then on.

        Only changes that are known before the run are listed: no decisions from metrics.

        >>> from paddle_freeze_callback import Cyclic
        >>> run = Run.of(epochs=2, steps_per_epoch=5)
        >>> [(step, *names) for step, names in Cyclic(every=1).timetable(run, ["head", "stem"])]
        [(0, 'head'), (5, 'stem')]
        """
        openings: list[Opening] = []
        step: int | None = 0
        while step is not None and (step == 0 or (run.total_steps and step < run.total_steps)):
            progress = Progress(step, run, stages=tuple(stages))
            names = frozenset(self.open_stages(progress, stages))
            if not openings or openings[-1][1] != names:
                openings.append((step, names))
            step = self.next_step(progress, stages)
        return openings

    @property
    def ends_known(self) -> bool:
        """Whether it is known, when something opens, when the next does at the latest."""
        return not self.decides

    def peaks(self) -> Mapping[Any, float]:
        """By moment, what the rate of all stages is multiplied by from then on."""
        return {}

    def __repr__(self) -> str:
        """The call that makes it, without arguments that have their default."""
        options: Any = dataclasses.fields(self) if dataclasses.is_dataclass(self) else ()
        values = [(each.name, getattr(self, each.name), each.default) for each in options]
        shown = ", ".join(f"{name}={value!r}" for name, value, usual in values if value != usual)
        return f"{type(self).__name__}({shown})"

    def ever_open(self, run: Run, stages: Sequence[str]) -> frozenset[str]:
        """The stages that may open at some time of the run."""
        return frozenset(stages)

    def sure_until(self, run: Run, stages: Sequence[str]) -> int:
        """The step up to which what is open before the run stays open, whatever is decided."""
        return run.total_steps or 0

    def never_open(self, run: Run, stages: Sequence[str]) -> list[tuple[str, int | None]]:
        """Stages that would open only after the end of the run, and the step they need.

        The step is ``None`` where the data has no length.
        """
        return []

    def no_effect(self, run: Run, stages: Sequence[str]) -> list[str]:
        """Parts of the strategy that change nothing in this run, each with the reason."""
        return []

    def undecided(self, progress: Progress, stages: Sequence[str]) -> str:
        """Why, at the end of a run, no decision was possible; empty if one was."""
        if not self.needs_evaluation or progress.decisions:
            return ""
        return f"{self!r} never saw its metric in this run, so only time decided"

    def why_closed(self, progress: Progress, closed: Sequence[str], stages: Sequence[str]) -> str:
        """Why, at the end of a run, some stages never opened; empty if there is nothing to say."""
        return ""
