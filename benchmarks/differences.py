"""What the ablation's runs say, in numbers: differences of schedules, with their intervals.

No words: :mod:`ablation_tables` and :mod:`ablation_sentences` have them.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from schedules import ROWS
from scipy import stats
from tasks import TASKS

FULL = "full"
ALL_SEEDS = 8
#: With fewer seeds no interval between means of draws covers 95 %: one of n values and the lowest
#: and highest mean cover 1 - 2 / 2**n at most.
FEWEST_SEEDS = 6
#: Of a run's numbers those that are the same when it is made once more; time and memory are not.
NUMBERS = ("accuracy", "loss", "ece", "train", "old_before", "old")
#: Schedules that are evaluated meanwhile, on validation data.
EVALUATED = {"OnPlateau"}
#: By task and schedule, the results of each seed on held-out data.
Found = Mapping[tuple[str, str], Mapping[int, Mapping[str, float]]]


def by_row(lines: Sequence[Mapping]) -> Found:
    """The results that count.

    The seconds of a schedule that asks for a metric have the evaluations that give it.
    """
    found: dict[tuple[str, str], dict[int, Mapping[str, float]]] = {}
    for one in lines:
        if one["split"] == "held out":
            found.setdefault((one["task"], one["schedule"]), {})[one["seed"]] = one
    for (task, name), seeds in found.items():
        usual = [
            beside_training(one) for one in found.get((task, FULL), {}).values() if "whole" in one
        ]
        if name in EVALUATED and usual:
            for seed, one in seeds.items():
                if "whole" in one:
                    further = beside_training(one) - statistics.mean(usual)
                    seeds[seed] = {**one, "seconds": one["seconds"] + max(further, 0.0)}
    return found


def beside_training(one: Mapping[str, float]) -> float:
    """The seconds of start and evaluation; of a run whose line has ``whole``."""
    return one["whole"] - one["seconds"]


class Difference:
    """A schedule's numbers less those of ``full`` with the same seeds: mean and 95 % interval.

    The interval is the middle of the means of 10,000 draws of as many seeds, with replacement. As
    such an interval is too narrow for few seeds, so much more of the draws is taken as makes up for
    it: the "expanded percentile interval" of Hesterberg 2015, "What Teachers Should Know About the
    Bootstrap". Of eight seeds it is 98.9 % of the draws.
    """

    def __init__(self, ours: Sequence[float], theirs: Sequence[float]) -> None:
        each = np.array(ours) - np.array(theirs)
        drawn = np.random.RandomState(0).randint(0, len(each), [10_000, len(each)])
        self.mean = float(each.mean())
        tail = 100 * stats.norm.cdf(
            -((len(each) / (len(each) - 1)) ** 0.5) * stats.t.ppf(0.975, len(each) - 1)
        )
        self.low, self.high = map(float, np.percentile(each[drawn].mean(1), [tail, 100 - tail]))

    @property
    def sign(self) -> int:
        """1 or -1 where the interval lies on one side of 0, else 0."""
        return int(self.low > 0) - int(self.high < 0)

    def text(self) -> str:
        """In points of a hundred, such as "+1.2 [0.3, 2.1]"."""
        mean, low, high = (100 * one for one in (self.mean, self.low, self.high))
        return f"{mean:+.1f} [{low:.1f}, {high:.1f}]"


def accuracy(one: Mapping[str, float]) -> float:
    return one["accuracy"]


def gap(one: Mapping[str, float]) -> float:
    """Over-fitting."""
    return one["train"] - one["accuracy"]


def trained(one: Mapping[str, float]) -> float:
    return one["train"]


def kept(one: Mapping[str, float]) -> float:
    return one["old"]


def seconds(one: Mapping[str, float]) -> float:
    return one["seconds"]


def difference(
    found: Found, task: str, name: str, what: Callable[[Mapping[str, float]], float]
) -> Difference | None:
    """To ``full``, over the seeds that both have; ``None`` with less than six.

    Times are compared where one machine made both, and are shares of the mean of ``full``.
    """
    return None if name == FULL else between(found, task, name, FULL, what)


def between(
    found: Found, task: str, name: str, other: str, what: Callable[[Mapping[str, float]], float]
) -> Difference | None:
    """As :func:`difference`, to any schedule."""
    ours, theirs = found.get((task, name), {}), found.get((task, other), {})
    seeds = sorted(ours.keys() & theirs.keys())
    if what is seconds:
        seeds = [seed for seed in seeds if ours[seed]["machine"] == theirs[seed]["machine"]]
    if len(seeds) < FEWEST_SEEDS:
        return None
    unit = statistics.mean(what(theirs[s]) for s in seeds) if what is seconds else 1.0
    return Difference(
        [what(ours[s]) / unit for s in seeds], [what(theirs[s]) / unit for s in seeds]
    )


def accuracies(found: Found, task: str) -> dict[str, Difference]:
    """By schedule the difference in accuracy to ``full``, where there is one."""
    each = ((name, difference(found, task, name, accuracy)) for name in ROWS)
    return {name: one for name, one in each if one}


def mean(found: Found, task: str, name: str, what: Callable[[Mapping[str, float]], float]) -> float:
    return statistics.mean(map(what, found[task, name].values()))


def rate_kept(found: Found, task: str, name: str) -> float:
    """The rate that was chosen; that of all held-out runs."""
    return next(iter(found[task, name].values()))["rate"]


def time_share(found: Found, task: str, name: str) -> float | None:
    """1 is the time of ``full``; ``None`` where no machine did both for six seeds."""
    one = difference(found, task, name, seconds)
    return 1.0 if name == FULL else 1.0 + one.mean if one else None


def leaders(found: Found) -> dict[str, str]:
    """By task the schedule that is ahead of ``full`` by most; ``full`` where none is."""
    best = {}
    for task in TASKS:
        if each := accuracies(found, task):
            ahead = [name for name, one in each.items() if one.sign > 0]
            best[task] = max(ahead, key=lambda name: each[name].mean, default=FULL)
    return best


def unlike(one: Mapping, other: Mapping) -> list[str]:
    """Which numbers of a run are others, to the last bit, when it is made once more."""
    return [name for name in NUMBERS if one.get(name) != other.get(name)]
