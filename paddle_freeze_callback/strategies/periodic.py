"""Strategies that change the open stages periodically, as long as the run lasts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ..checks import named, one_of, option, whole
from ..words import listing
from .base import NamesOf, Strategy
from .moments import Moment, When
from .run import Progress, Run


def _enough(strategy: Any, among: Sequence[str], besides: str) -> None:
    if strategy.k > len(among):
        raise ValueError(
            f"k={strategy.k} stages cannot be open at a time: there are {len(among)}{besides} "
            f"({listing(among) or 'none'}); "
            + (f"give k from 1 to {len(among)}" if among else "give the network more stages")
        )


class _Periodic(Strategy):
    """A strategy that changes the open stages periodically, as long as the run lasts."""

    every: When

    def _period(self, index: int, stages: Sequence[str]) -> frozenset[str]:
        """The stages that are open in the period of this index, from 0."""
        raise NotImplementedError

    def open_stages(self, progress: Progress, stages: Sequence[str]) -> tuple[str, ...]:
        names = self._period(progress.run.passed(Moment.of(self.every), progress.step), stages)
        return tuple(name for name in stages if name in names)

    def next_step(self, progress: Progress, stages: Sequence[str]) -> int | None:
        every = Moment.of(self.every)
        index = progress.run.passed(every, progress.step) + 1
        return progress.run.step_of(Moment(every.value * index, every.unit))

    def no_effect(self, run: Run, stages: Sequence[str]) -> list[str]:
        """Stages whose turn never comes."""
        periods = run.passed(Moment.of(self.every), run.total_steps - 1) if run.total_steps else 0
        left = set(stages) if periods else set()
        for index in range(periods + 1):
            if not left:
                return []
            left -= self._period(index, stages)
        never = [name for name in stages if name in left]
        return never and [
            f"in this run of {run.total_steps} steps {self!r} never opens {listing(never)}: make "
            "the run longer, every shorter or k larger"
        ]


@dataclass(frozen=True, repr=False)
class RandomStages(_Periodic):
    """LISA: ``k`` random stages train at a time, redrawn periodically.

    The draw follows from the seed and the index of the period alone, so it is the same on every
    rank and after a resume. A stage that freezes loses its state in the optimizer; that saves the
    memory. ``FreezeSchedule(free_optimizer_state=False)`` keeps it.

    Source: Pan et al. 2024, "LISA: Layerwise Importance Sampling for Memory-Efficient Large
    Language Model Fine-Tuning".

    >>> rule = RandomStages(k=1, every="10 steps")
    >>> for step in (0, 10, 20):
    ...     now = Progress(step, Run.of(total_steps=30))
    ...     print(rule.open_stages(now, ["head", "layer2", "layer1", "layer0", "embeddings"]))
    ('head', 'layer1', 'embeddings')
    ('head', 'layer0', 'embeddings')
    ('head', 'layer0', 'embeddings')
    """

    name: ClassVar[str] = "random_stages"
    frees_state: ClassVar[bool] = True
    k: int = option(2, "how many stages are drawn, besides those always open", int)
    every: When = option("20 steps", "how long the same stages stay open")
    always: Sequence[Any] = option(
        ("head", "embeddings"),
        "stages that are open all the time, as names or selectors; "
        '"head" and "embeddings" mean the first and the last stage, whatever their names',
        list,
    )
    seed: int = option(0, "another seed gives another sequence of draws", int)

    def __post_init__(self) -> None:
        whole("k", self.k, 1)
        whole("seed", self.seed, 0)
        named("every", Moment.length, self.every)
        if not isinstance(self.always, (list, tuple)):
            raise TypeError(
                f'always={self.always!r} must be a list of stages, such as ["head", "embeddings"]'
            )
        object.__setattr__(self, "always", tuple(self.always))  # hashable, and nobody's list

    def with_stages(self, names_of: NamesOf, stages: Sequence[str]) -> RandomStages:
        names: list[str] = []
        for one in self.always:
            try:
                role = _role(one, stages)
                names += names_of(one) if role is None else [role]
            except (TypeError, ValueError) as error:
                raise type(error)(f"always: {error}") from None
        return replace(self, always=tuple(map(_StageName, names)))

    def check(self, run: Run, stages: Sequence[str]) -> None:
        run.passed(Moment.of(self.every), 0)
        _enough(self, self._drawn(stages), " to draw from, besides those always open")

    def _drawn(self, stages: Sequence[str]) -> list[str]:
        always = [_role(one, stages) or one for one in self.always]
        return [name for name in stages if name not in always]

    def _period(self, index: int, stages: Sequence[str]) -> frozenset[str]:
        among = self._drawn(stages)

        # Not random.sample(): its draws may change between versions of Python.
        def lot(name: str) -> bytes:
            return hashlib.blake2b(f"{self.seed}/{index}/{name}".encode()).digest()

        closed = sorted(among, key=lot)[self.k :]
        return frozenset(stages).difference(closed)


def _role(one: Any, stages: Sequence[str]) -> str | None:
    """The stage that has this role, or this name."""
    if not isinstance(one, str):
        return None
    if isinstance(one, _StageName):
        return one
    return one if one in stages else {"head": stages[0], "embeddings": stages[-1]}.get(one)


class _StageName(str):
    """The name of a stage, never a role: after ``with_stages``, ``"embeddings"`` means that stage.

    Otherwise the lowest block would take the place of embeddings that stay frozen.
    """


@dataclass(frozen=True, repr=False)
class Cyclic(_Periodic):
    """Block coordinate descent: the stages train in turn, ``k`` at a time, round and round.

    The head is one of them. A stage that freezes loses its state in the optimizer; that saves the
    memory. ``FreezeSchedule(free_optimizer_state=False)`` keeps it.

    Source: Luo et al. 2024, "BAdam: A Memory Efficient Full Parameter Optimization Method for
    Large Language Models".

    >>> rule = Cyclic(k=2, every="5 steps")
    >>> for step in (0, 5, 10):
    ...     now = Progress(step, Run.of(total_steps=15))
    ...     print(rule.open_stages(now, ["head", "top", "bottom"]))
    ('head', 'top')
    ('head', 'bottom')
    ('top', 'bottom')
    """

    name: ClassVar[str] = "cyclic"
    frees_state: ClassVar[bool] = True
    k: int = option(1, "how many stages are open at a time", int)
    every: When = option("100 steps", "how long the same stages stay open (BAdam's K)")
    order: str = option(
        "descending", '"descending": from the head to the input; "ascending": the other way'
    )

    def __post_init__(self) -> None:
        whole("k", self.k, 1)
        named("every", Moment.length, self.every)
        one_of("order", self.order, ("descending", "ascending"))

    def check(self, run: Run, stages: Sequence[str]) -> None:
        run.passed(Moment.of(self.every), 0)
        _enough(self, stages, " stages")

    def _period(self, index: int, stages: Sequence[str]) -> frozenset[str]:
        ordered = stages if self.order == "descending" else stages[::-1]
        first = index * self.k
        return frozenset(ordered[(first + i) % len(ordered)] for i in range(self.k))
