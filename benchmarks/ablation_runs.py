"""How the ablation's runs were made: hours, machines, what is missing, what differs made again."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence

from differences import (
    ALL_SEEDS,
    FULL,
    Found,
    accuracies,
    beside_training,
    by_row,
    rate_kept,
    unlike,
)
from schedules import ROWS
from tasks import TASKS


def made_again(lines: Sequence[Mapping], repeated: Iterable[Mapping]) -> list[str]:
    """How many held-out runs were made once more, and whether they gave the same numbers."""
    found = by_row(lines)
    pairs: dict[str, list[tuple[Mapping, Mapping]]] = {}
    for other in repeated:
        one = found.get((other["task"], other["schedule"]), {}).get(other["seed"])
        if one and one["rate"] == other["rate"]:
            pairs.setdefault(other["task"], []).append((one, other))
    if not pairs:
        return []
    total = sum(map(len, pairs.values()))
    differ = [
        f"{one['schedule']} on {task}, seed {one['seed']} ({', '.join(names)})"
        for task, each in pairs.items() for one, other in each if (names := unlike(one, other))
    ]  # fmt: skip
    where = []
    for task in TASKS:
        if task in pairs:
            again = {other["seed"] for _, other in pairs[task]}
            there = sum(len(again & found[at].keys()) for at in found if at[0] == task)
            few = f" of {there}" if len(pairs[task]) < there else ""
            seeds = sorted(map(str, again))
            machines = sorted({
                f"; on {other['machine']}, at first on {one['machine']}"
                for one, other in pairs[task] if one["machine"] != other["machine"]
            })  # fmt: skip
            where.append(
                f"{len(pairs[task])}{few} on {task} (seed{'s' * (len(seeds) > 1)} "
                f"{' and '.join(seeds)}{''.join(machines)})"
            )
    same = f"{total - len(differ)} of them" if differ else "All"
    other = f"; others in {'; '.join(differ)}" if differ else ""
    return [
        "", f"**Once more.** {total} held-out runs were made again from nothing, for images with "
        f"their pretrained network: {', '.join(where)}. {same} gave the same numbers, to the last "
        f"bit, time and memory aside{other}.",
    ]  # fmt: skip


def with_another(found: Found, theirs: Found) -> list[str]:
    """Whether a network that another machine had pretrained gives the same verdicts."""
    said = []
    for task in TASKS:
        there = accuracies(theirs, task)
        pairs = {
            name: (ours, there[name]) for name, ours in accuracies(found, task).items()
            if name in there and rate_kept(found, task, name) == rate_kept(theirs, task, name)
        }  # fmt: skip
        if pairs:
            (machine, *_) = {one["machine"] for one in theirs[task, FULL].values()}
            unlike_here, opposite = (
                [
                    f"{name} ({ours.text()} here, {other.text()} there)"
                    for name, (ours, other) in pairs.items()
                    if ours.sign != other.sign and bool(ours.sign * other.sign) is both
                ]
                for both in (False, True)
            )
            same = len(pairs) - len(unlike_here) - len(opposite)
            one_alone = "; a difference is seen with one of the networks alone for "
            but = one_alone + ", ".join(unlike_here) if unlike_here else ""
            but += f"; the opposite for {', '.join(opposite) or 'none'}"
            said += [
                "", f"**Another pretrained network.** {task} was run with the one that {machine} "
                f"had trained, too (`results/another`): the verdict on accuracy is the same for "
                f"{same} of {len(pairs)} schedules{but}.",
            ]  # fmt: skip
    return said


def hours(lines: Iterable[Mapping]) -> tuple[float, float]:
    """Of one processor, for training, and for all that runs did.

    Older lines have no ``whole``: what came on top is taken from others of their task.
    """
    lines = list(lines)
    top: dict[str, list[float]] = {}
    for one in lines:
        if "whole" in one:
            top.setdefault(one["task"], []).append(beside_training(one))
    training = sum(one["seconds"] for one in lines)
    beside = sum(
        beside_training(one) if "whole" in one
        else statistics.mean(top.get(one["task"], [0.0]))
        for one in lines
    )  # fmt: skip
    return training / 3600, (training + beside) / 3600


def _made_on(lines: Iterable[Mapping]) -> dict[tuple[str, str], set[str]]:
    """Those that each task was run on, for its rates ("validation") and after that ("held out")."""
    found: dict[tuple[str, str], set[str]] = {}
    for one in lines:
        found.setdefault((one["task"], one["split"]), set()).add(one["machine"])
    return found


def where_made(lines: Iterable[Mapping]) -> list[str]:
    """Each machine, and what was made on it: tasks, and rates of others.

    >>> made = dict(task="noise", schedule="full", machine="A")
    >>> where_made([{**made, "split": "validation"}, {**made, "machine": "B", "split": "held out"}])
    ['A (rates of noise)', 'B (noise)']
    """
    found = _made_on(lines)
    said = []
    for machine in sorted(set().union(*found.values())):
        held, rates = (
            [task for task in TASKS if machine in found.get((task, split), ())]
            for split in ("held out", "validation")
        )
        rates = [task for task in rates if task not in held]
        words = [", ".join(held)] * bool(held) + [f"rates of {', '.join(rates)}"] * bool(rates)
        said.append(f"{machine} ({'; '.join(words)})")
    return said


def rates_elsewhere(lines: Iterable[Mapping], task: str) -> bool:
    """Whether its rates come from another machine than its held-out runs."""
    found = _made_on(lines)
    rates, held = (found.get((task, split), set()) for split in ("validation", "held out"))
    return bool(held) and rates != held


def unfinished(found: Found) -> dict[str, list[str]]:
    """By task the schedules that lack seeds."""
    return {
        task: few for task in TASKS
        if (few := [name for name, row in ROWS.items()
                    if row.tried_on(task) and len(found.get((task, name), {})) < ALL_SEEDS])
    }  # fmt: skip


def edges(lines: Sequence[Mapping], task: str, name: str) -> set[float]:
    """The lowest and the highest rate that was tried."""
    rates = {
        one["rate"] for one in lines
        if (one["task"], one["schedule"], one["split"]) == (task, name, "validation")
    }  # fmt: skip
    return {min(rates), max(rates)} if rates else set()
