"""The strategy that lists every change: when -> what."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..checks import about, named
from .base import NamesOf, Opening
from .moments import Moment, When
from .run import Run
from .timed import Timed, in_order


@dataclass(frozen=True, repr=False)
class Explicit(Timed):
    """Exactly the changes that the user lists: when -> what.

    A value is a selector, which opens, or a mapping with the keys ``"unfreeze"`` and
    ``"freeze"``. A stage that opened stays open until it is frozen. Without a list of
    ``stages``, the stages follow from the selectors.

    >>> from paddle_freeze_callback import Progress
    >>> rule = Explicit({0: "fc", "50%": "*"})
    >>> rule.open_stages(Progress(5, Run.of(total_steps=10)), ["fc", "layer1"])
    ('fc', 'layer1')
    """

    name: ClassVar[str] = "explicit"
    unfreeze_at: Mapping[When, Any] = field(
        hash=False,
        metadata=about(
            'moments and what opens then, in order of time, such as {0: "fc", "50%": "*"}; '
            "as a flag pairs when=what, such as 0=fc 1=layer4 '50%=*'",
            list,
        ),
    )

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
        """Every selector, in the order of the mapping."""
        return [selector for _, changes in self._changes() for _, selector in changes]

    def with_stages(self, names_of: NamesOf, stages: Sequence[str] = ()) -> Explicit:
        return Explicit(
            {
                when: {verb: list(names_of(selector)) for verb, selector in changes}
                for when, changes in self._changes()
            }
        )

    def openings(self, run: Run, stages: Sequence[str]) -> list[Opening]:
        known = set(stages)
        openings: list[tuple[int | None, frozenset[str]]] = []
        now: frozenset[str] = frozenset()
        for when, changes in self._changes():
            step = run.step_of(Moment.of(when))
            if step is None:
                continue
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
                    f"unfreeze_at: the moments are out of order: {when!r} (step {step}) comes "
                    f"after {before!r} (step {earlier}); write them in order of time"
                )
        super().check(run, stages)

    def _changes(self) -> list[tuple[When, list[tuple[str, Any]]]]:
        """Each moment with its selectors: first those that freeze, then those that open."""
        return [
            (
                when,
                [(verb, what[verb]) for verb in ("freeze", "unfreeze") if verb in what]
                if isinstance(what, Mapping)
                else [("unfreeze", what)],
            )
            for when, what in self.unfreeze_at.items()
        ]
