"""The strategy that is written out: when -> what."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ..checks import named
from .base import NamesOf, Opening
from .moments import Moment, When
from .run import Run
from .timed import Timed, in_order


@dataclass(frozen=True, repr=False)
class Explicit(Timed):
    """Exactly what the user says: when -> what.

    Args:
        unfreeze_at: a mapping from moments to what opens then, in order of time. A value is a
            selector (see :mod:`.selectors`), which opens, or a mapping with the keys
            ``"unfreeze"`` and ``"freeze"``. What opened stays open until it is frozen.

    Without a list of ``stages``, the stages follow from the selectors.

    >>> from paddle_freeze_callback import Progress
    >>> rule = Explicit({0: "fc", "50%": "*"})
    >>> rule.open_stages(Progress(5, Run.of(total_steps=10)), ["fc", "layer1"])
    ('fc', 'layer1')
    """

    name: ClassVar[str] = "explicit"
    unfreeze_at: Mapping[When, Any] = dataclasses.field(hash=False)

    def __post_init__(self) -> None:
        if not isinstance(self.unfreeze_at, Mapping):
            raise TypeError(
                f"unfreeze_at={self.unfreeze_at!r} is no mapping from moments to what opens, "
                'such as {0: "fc", "50%": "*"}'
            )
        if not self.unfreeze_at:
            raise ValueError('unfreeze_at={} opens nothing; start with {0: "the head"}')
        for when, what in self.unfreeze_at.items():
            named("unfreeze_at", Moment.of, when)
            if isinstance(what, Mapping):
                unknown = [key for key in what if key not in ("unfreeze", "freeze")]
                if unknown or not what:
                    raise ValueError(
                        f"unfreeze_at[{when!r}] has the keys {list(what)}; "
                        'give "unfreeze", "freeze" or both'
                    )
        object.__setattr__(self, "unfreeze_at", dict(self.unfreeze_at))  # nobody else's

    def selectors(self) -> list[Any]:
        """Every selector, in order of time as far as the order in the mapping tells."""
        return [selector for _, changes in self._changes() for _, selector in changes]

    def with_stages(self, names_of: NamesOf, stages: Sequence[str] = ()) -> Explicit:
        """The same with every selector replaced by the names of the stages that it means."""
        return Explicit(
            {
                when: {verb: list(names_of(selector)) for verb, selector in changes}
                for when, changes in self._changes()
            }
        )

    def timetable(self, run: Run, stages: Sequence[str]) -> list[Opening]:
        known = set(stages)
        entries: list[tuple[int, list[tuple[str, Any]]]] = []
        for when, changes in self._changes():
            step = run.step_of(Moment.of(when))
            if step is not None:
                entries.append((step, changes))
        openings: list[tuple[int | None, frozenset[str]]] = []
        now: frozenset[str] = frozenset()
        for step, changes in entries:
            for verb, what in changes:
                names = frozenset(
                    stages if what == "*" else [what] if isinstance(what, str) else what
                )
                now = now | (names & known) if verb == "unfreeze" else now - names
            openings.append((step, now))
        return in_order(openings)

    def check(self, run: Run, stages: Sequence[str]) -> None:
        known = [(when, run.step_of(Moment.of(when))) for when in self.unfreeze_at]
        times = [(when, step) for when, step in known if step is not None]
        for (before, earlier), (when, step) in itertools.pairwise(times):
            if step < earlier:
                raise ValueError(
                    f"unfreeze_at: the moments are out of order: {when!r} (step {step}) stands "
                    f"after {before!r} (step {earlier}); write them in order of time"
                )
        super().check(run, stages)

    def _changes(self) -> list[tuple[When, list[tuple[str, Any]]]]:
        """Moments with what freezes and what then unfreezes."""
        return [
            (
                when,
                [(verb, what[verb]) for verb in ("freeze", "unfreeze") if verb in what]
                if isinstance(what, Mapping)
                else [("unfreeze", what)],
            )
            for when, what in self.unfreeze_at.items()
        ]
