"""Which stages are open at this moment of the run.

Pure code: a strategy is a small frozen dataclass that maps the progress of a run and the names
of its stages (head first) to the names of the stages that are open. It remembers nothing, so a
run that was resumed is right by construction. Those that decide from metrics or gradients read
what was noted of them in the progress, too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from .run import Progress, Run

Opening = tuple[int, frozenset[str]]


NamesOf = Callable[[Any], Sequence[str]]


class Strategy:
    """The rule that says which stages are open when.

    A subclass gives :meth:`open_stages` and :meth:`next_step`. Both must follow from their
    arguments alone. What does not follow from time (metrics, gradients) is noted once, by
    :meth:`decide` or :meth:`decide_from_gradients`, on one rank; the note is handed to all
    ranks, travels with checkpoints, and comes back in ``progress.decisions``.
    """

    #: Its name in flags and YAML.
    name: ClassVar[str]
    #: Whether it notes anything. Then :meth:`decide` is asked after each evaluation.
    decides: ClassVar[bool] = False
    #: Whether it cannot work in a run that never evaluates.
    needs_evaluation: ClassVar[bool] = False
    #: Whether it cannot go on in the middle of a run without its notes.
    needs_record: ClassVar[bool] = False
    #: Whether it ever measures gradients.
    measures: ClassVar[bool] = False
    #: Whether it has no meaning if the head is to stay frozen.
    needs_head: ClassVar[bool] = False
    #: Whether the optimizer's state of what it freezes again is dropped, unless the user says.
    frees_state: ClassVar[bool] = False
    #: Whether :meth:`open_stages` is code of the user, which may differ from rank to rank.
    foreign: ClassVar[bool] = False
    #: Whether the best weights since the last transition are loaded at the next.
    restore_best: bool = False

    def open_stages(self, progress: Progress, stages: Sequence[str]) -> tuple[str, ...]:
        """The names of the open stages, in the order of ``stages``.

        >>> from paddle_freeze_callback import Gradual
        >>> run = Run.of(epochs=3, steps_per_epoch=10)
        >>> Gradual(every=1).open_stages(Progress(10, run), ["head", "layer2", "layer1"])
        ('head', 'layer2')
        """
        raise NotImplementedError

    def next_step(self, progress: Progress, stages: Sequence[str]) -> int | None:
        """The next step at which to look again; ``None`` if nothing that is known now comes."""
        raise NotImplementedError

    def check(self, run: Run, stages: Sequence[str]) -> None:
        """Refuse a run or stages that the strategy does not fit.

        Raises:
            ValueError: saying what to change.
        """

    def with_stages(self, names_of: NamesOf, stages: Sequence[str]) -> Strategy:
        """The same with every selector replaced by the names of the stages that it means.

        Args:
            names_of: tells them.
            stages: the names of all stages, head first, whether they may open or not.
        """
        return self

    def decide(self, progress: Progress, stages: Sequence[str]) -> Any:
        """What to note after an evaluation, as plain JSON; ``None`` for nothing.

        ``progress.metrics`` are those of this evaluation.
        """
        return None

    def understands(self, note: Any) -> bool:
        """Whether a note read from a checkpoint is one of its own."""
        return True

    def unknown_metric(self, seen: Mapping[str, Any]) -> str:
        """What to say when no evaluation had what it needs; ``seen`` are those that they had."""
        return f"{self!r} has no use for any of {', '.join(sorted(seen))}"

    def samples_gradients(self, progress: Progress, stages: Sequence[str]) -> bool:
        """Whether the gradients of the step that comes now are to be measured."""
        return False

    def decide_from_gradients(self, relative_norms: Mapping[str, float]) -> Any:
        """What to note of them, by stage: norm of the gradient / norm of the weights."""
        return None

    def best_step(self, progress: Progress, stages: Sequence[str]) -> int | None:
        """The step of the best evaluation since the last transition, if there was one.

        An opening that is due at this very step has not happened yet.
        """
        return None

    def timetable(self, run: Run, stages: Sequence[str]) -> list[Opening]:
        """The steps at which the set of open stages changes, with the set from then on.

        Only what is known before the run: what is decided from metrics is not in it.

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

    def __repr__(self) -> str:
        """The call that makes it, without arguments that have their default."""
        options: Any = dataclasses.fields(self) if dataclasses.is_dataclass(self) else ()
        values = [(each.name, getattr(self, each.name), each.default) for each in options]
        shown = ", ".join(f"{name}={value!r}" for name, value, usual in values if value != usual)
        return f"{type(self).__name__}({shown})"

    def ever_open(self, run: Run, stages: Sequence[str]) -> frozenset[str]:
        """The stages that may open at some time of the run."""
        return frozenset(stages)

    def never_open(self, run: Run, stages: Sequence[str]) -> list[tuple[str, int | None]]:
        """Stages that would open only after the end of the run, and the step they need.

        The step is ``None`` where the data has no length.
        """
        return []
