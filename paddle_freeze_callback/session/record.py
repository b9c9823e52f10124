"""The part of a run that travels with a checkpoint.

What is frozen follows from the schedule and the number of steps done. So a resumed run needs only
the decisions of strategies that decide from metrics or gradients. The names of the open stages
are kept as well, so that a user who resumes with another schedule learns what differs.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..words import listing

FILE = "freeze_schedule.json"
BEST_FILE = "freeze_schedule_best.npz"
_FORMAT = 1
_ADVICE = "resume from another checkpoint"


def best_file(rank: int | None) -> str:
    """The best weights of all processes, or of one that holds its own part of them."""
    return BEST_FILE if rank is None else f"freeze_schedule_best.rank{rank}.npz"


def file_at(place: str | os.PathLike[str], name: str) -> Path:
    """Where a file of a schedule lies: in a checkpoint's folder, or beside it.

    ``paddle.Model`` saves checkpoints as ``3.pdparams`` and ``3.pdopt``; the place is then
    ``3``, and ours lie beside them.

    >>> file_at("checkpoints/3", FILE).name
    '3.freeze_schedule.json'
    """
    path = Path(place)
    return path / name if path.is_dir() else path.with_name(f"{path.name}.{name}")


def found_at(place: str | os.PathLike[str], name: str) -> Path:
    """Where a file of a schedule was written, even if a folder of that name came later."""
    beside = Path(place).with_name(f"{Path(place).name}.{name}")
    file = file_at(place, name)
    return beside if beside.exists() and not file.exists() else file


@dataclass(frozen=True)
class Record:
    """The state of a run after so many steps.

    Attributes:
        step: optimizer steps done.
        schedule: the schedule, as it prints.
        open_stages: names of the stages that were open.
        decisions: what the strategy decided so far, oldest first: pairs of step and note.
        trained: names of what had trained or moved until then; ``None`` if nobody noted them.
    """

    step: int
    schedule: str
    open_stages: tuple[str, ...]
    decisions: tuple[tuple[int, Any], ...] = ()
    trained: tuple[str, ...] | None = None

    def changes(self, *alike: tuple[str, ...]) -> str:
        """What differs if other stages were open under the schedule of now; empty for nothing.

        Args:
            alike: the stages that it opens before and after the transition of this step; a run
                may have been saved at either.

        >>> Record(3, "FreezeSchedule()", ("head",)).changes(("head", "top"))
        '(FreezeSchedule()): top was frozen and is now open'
        """
        now = min(alike, key=lambda names: len({*names} ^ {*self.open_stages}))
        opened = [name for name in now if name not in self.open_stages]
        closed = [name for name in self.open_stages if name not in now]
        verbs = ((opened, "was frozen and is now open"), (closed, "was open and is not now"))
        found = "; ".join(f"{listing(names)} {verb}" for names, verb in verbs if names)
        return f"({self.schedule}): {found}" if found else ""

    def save(self, place: str | os.PathLike[str]) -> None:
        """Write it to a checkpoint; a crash leaves either all of it or nothing."""
        target = file_at(place, FILE)
        target.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "format": _FORMAT,
            "step": self.step,
            "schedule": self.schedule,
            "open_stages": list(self.open_stages),
            "decisions": [list(decision) for decision in self.decisions],
            "trained": None if self.trained is None else list(self.trained),
        }
        partial = target.with_suffix(".partial")
        partial.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")
        os.replace(partial, target)

    @classmethod
    def load(cls, place: str | os.PathLike[str]) -> Record:
        """Read it from a checkpoint.

        Raises:
            FileNotFoundError: if the checkpoint has none.
            ValueError: if the file is damaged, foreign, or of a newer version.
        """
        file = found_at(place, FILE)
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is damaged: {error}; {_ADVICE}") from None
        except json.JSONDecodeError as error:
            raise ValueError(f"{file} is damaged: it is not JSON ({error}); {_ADVICE}") from None
        if not isinstance(content, dict) or content.get("format") is None:
            raise ValueError(f"{file} was not written by FreezeSchedule; {_ADVICE}")
        if content["format"] != _FORMAT:
            raise ValueError(
                f"{file} has the format {content['format']!r}, this version reads {_FORMAT}; "
                "update paddle-freeze-callback"
            )
        try:
            return cls(
                int(content["step"]),
                str(content["schedule"]),
                tuple(str(name) for name in content["open_stages"]),
                tuple((int(step), decision) for step, decision in content["decisions"]),
                None if content.get("trained") is None else tuple(map(str, content["trained"])),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file} is damaged: {error!r}; {_ADVICE}") from None


def record_named(resume_from: str | os.PathLike[str] | None) -> Record | None:
    """The record beside the checkpoint that ``resume_from`` names; ``None`` if it names none.

    Raises:
        ValueError: if there is none, or it cannot be read.
    """
    if resume_from is None:
        return None
    try:
        return Record.load(resume_from)
    except FileNotFoundError as error:
        raise ValueError(
            f"resume_from={os.fspath(resume_from)!r}: there is no {error.filename}; give the path "
            "that model.load() takes, of a checkpoint that was saved with a FreezeSchedule"
        ) from None
