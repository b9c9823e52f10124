"""The strategy that lists every change: when -> what."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..checks import about, named, positive
from ..words import did_you_mean, listing
from .base import NamesOf, Opening
from .moments import Moment, When
from .run import Run
from .timed import Timed, in_order

Names = frozenset[str]

_KEYS = ("unfreeze", "freeze", "lr")


@dataclass(frozen=True, repr=False)
class Explicit(Timed):
    """Exactly the changes that the user lists: when -> what.

    A value is a selector, which opens, or a mapping with the keys ``"unfreeze"`` and
    ``"freeze"``. Of the two the narrower wins, in whatever order they are written:
    ``{"unfreeze": "*", "freeze": "layer1"}`` opens all but ``layer1``. A stage that opened stays
    open until it is frozen. A third key, ``"lr"``, is what the rate of all stages is multiplied
    by in the phase that begins then. An entry that changes nothing is warned of. Without a list of
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
            'moments and what opens then, in order of time, such as {0: "fc", "50%": "*"}, or '
            '{"unfreeze": "*", "freeze": "layer1", "lr": 0.1}, where lr multiplies the rate of all '
            "in the phase that begins; as a flag pairs when=what, such as 0=fc 1=layer4 "
            "'50%=*', where what may be such a mapping",
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
                unknown = [key for key in what if key not in _KEYS]
                if unknown or not what:
                    hint = did_you_mean(unknown[0], _KEYS, most=1) if unknown else ""
                    raise ValueError(
                        f"unfreeze_at[{when!r}] has the keys {list(what)}; "
                        f'give "unfreeze", "freeze" or both, and "lr"{hint}'
                    )
                if "lr" in what:
                    multiplier = "0.1, a multiplier of the optimizer's rate"
                    positive(f"unfreeze_at[{when!r}]['lr']", what["lr"], multiplier)
        if not any(changes for _, changes in self._changes()):
            raise ValueError(
                f"unfreeze_at={self.unfreeze_at!r} sets rates and opens nothing; "
                'start with {0: "the head"}'
            )
        object.__setattr__(self, "unfreeze_at", dict(self.unfreeze_at))  # nobody else's

    def selectors(self, verbs: Sequence[str] = ("unfreeze", "freeze")) -> list[Any]:
        """Every selector after one of these verbs, in the order of the mapping."""
        found = [change for _, changes in self._changes() for change in changes]
        return [selector for verb, selector in found if verb in verbs]

    def with_stages(self, names_of: NamesOf, stages: Sequence[str] = ()) -> Explicit:
        peaks = self.peaks()
        return Explicit(
            {
                when: {
                    **{verb: list(names_of(selector)) for verb, selector in changes},
                    **({"lr": peaks[when]} if when in peaks else {}),
                }
                for when, changes in self._changes()
            }
        )

    def peaks(self) -> dict[When, float]:
        changes = self.unfreeze_at.items()
        return {w: what["lr"] for w, what in changes if isinstance(what, Mapping) and "lr" in what}

    def openings(self, run: Run, stages: Sequence[str]) -> list[Opening]:
        openings: list[tuple[int | None, Names]] = []
        now: Names = frozenset()
        for _, step, changes in self._known(run, stages):
            for change in changes:
                now = _after(now, change, stages)
            openings.append((step, now))
        return in_order(openings)

    def check(self, run: Run, stages: Sequence[str]) -> None:
        sets = [entry for entry in self._sets(stages) if entry[1]]
        first, [(verb, names), *others] = sets[0]
        if verb == "freeze" and not others:
            kept = sorted(names)
            entry = json.dumps({"unfreeze": "*", "freeze": kept if kept[1:] else kept[0]})
            raise ValueError(
                f"unfreeze_at: everything is frozen at the start, and {first!r} opens nothing; "
                f"to open all but {listing(kept)}, write {{0: {entry}}}"
            )
        for when, changes in sets:
            both = frozenset.intersection(*(names for _, names in changes))
            if len(changes) == 2 and both and not _nested(changes):
                raise ValueError(
                    f"unfreeze_at[{when!r}] both opens and freezes {listing(sorted(both))}; "
                    "name it once, or make one of the two selectors the narrower, which wins: "
                    '{"unfreeze": "*", "freeze": "layer1"} opens all but layer1'
                )
        known = [(when, run.step_of(Moment.of(when))) for when in self.unfreeze_at]
        times = [(when, step) for when, step in known if step is not None]
        for (before, earlier), (when, step) in itertools.pairwise(times):
            if step < earlier:
                raise ValueError(
                    f"unfreeze_at: the moments are out of order: {when!r} (step {step}) comes "
                    f"after {before!r} (step {earlier}); write them in order of time"
                )
        super().check(run, stages)

    def no_effect(self, run: Run, stages: Sequence[str]) -> list[str]:
        found = []
        now: Names = frozenset()
        ever: Names = frozenset()
        peaks = self.peaks()
        rated: dict[int, When] = {}
        for when, step, changes in self._known(run, stages):
            before = now
            if when in peaks and step in rated:
                found.append(
                    f"unfreeze_at[{rated[step]!r}]['lr'] has no effect: step {step} is that of "
                    f"unfreeze_at[{when!r}], too, whose rate holds"
                )
            if when in peaks:
                rated[step] = when
            if when in peaks and run.total_steps and step >= run.total_steps:
                found.append(
                    f"unfreeze_at[{when!r}]['lr'] has no effect: step {step} is after the end of "
                    "the run"
                )
            for verb, names in changes:
                then, now = now, _after(now, (verb, names), stages)
                many = "are" if len(names) > 1 else "is"
                if verb == "freeze" and run.total_steps and step >= run.total_steps:
                    why = f"{many} to freeze at step {step}, after the end of the run"
                elif now != then or _nested(changes):
                    continue
                elif verb == "freeze":
                    why = f"{many} frozen already" if names & ever else "never opened"
                else:
                    shut = sorted(names - now)  # all that may open is open
                    why = f"{many} open already" if names & now else f"{many} found frozen"
                    if names & now and shut:
                        why = f"are open already, or were found frozen ({listing(shut)})"
                found.append(
                    f"unfreeze_at[{when!r}][{verb!r}] has no effect: {listing(sorted(names))} {why}"
                )
            ever |= now
            if _nested(changes) and now == before:
                found.append(f"unfreeze_at[{when!r}] has no effect: everything is so already")
        return [*found, *self._undone_at_once(run, stages)]

    def _undone_at_once(self, run: Run, stages: Sequence[str]) -> list[str]:
        """What one entry does and another takes back at the same step."""
        found = []
        now: Names = frozenset()
        for step, entries in itertools.groupby(self._known(run, stages), lambda entry: entry[1]):
            together, before, touched = list(entries), now, frozenset[str]()
            for _, _, changes in together:
                for change in changes:
                    now = _after(now, change, stages)
                touched |= now ^ before
            undone = sorted(touched - (now ^ before))
            if undone:
                keys = ", ".join(f"unfreeze_at[{when!r}]" for when, _, _ in together)
                found.append(
                    f"{keys} all come at step {step} of this run and take each other back: "
                    f"{listing(undone)} would open and freeze at once; move one of them"
                )
        return found

    def _known(
        self, run: Run, stages: Sequence[str]
    ) -> list[tuple[When, int, list[tuple[str, Names]]]]:
        """The moments whose steps are known, each with its step and its changes."""
        steps = [
            (when, run.step_of(Moment.of(when)), changes) for when, changes in self._sets(stages)
        ]
        return [(when, step, changes) for when, step, changes in steps if step is not None]

    def _sets(self, stages: Sequence[str]) -> list[tuple[When, list[tuple[str, Names]]]]:
        """Each moment with the stages that it freezes and opens; the narrower comes last."""

        def names(what: Any) -> Names:
            return frozenset(stages if what == "*" else [what] if isinstance(what, str) else what)

        return [
            (
                when,
                sorted(((verb, names(what)) for verb, what in changes), key=lambda c: -len(c[1])),
            )
            for when, changes in self._changes()
        ]

    def _changes(self) -> list[tuple[When, list[tuple[str, Any]]]]:
        """Each moment with its selectors."""
        return [
            (
                when,
                [(verb, what[verb]) for verb in ("freeze", "unfreeze") if verb in what]
                if isinstance(what, Mapping)
                else [("unfreeze", what)],
            )
            for when, what in self.unfreeze_at.items()
        ]


def _after(now: Names, change: tuple[str, Names], stages: Sequence[str]) -> Names:
    verb, names = change
    return now | names.intersection(stages) if verb == "unfreeze" else now - names


def _nested(changes: Sequence[tuple[str, Names]]) -> bool:
    """Whether one of two changes is about a part of what the other is about."""
    return len(changes) == 2 and changes[1][1] < changes[0][1]
