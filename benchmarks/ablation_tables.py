"""The ablation's tables: all tasks in one, each task, the rows to copy, what others published."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from differences import (
    ALL_SEEDS,
    FULL,
    Difference,
    Found,
    accuracy,
    between,
    difference,
    gap,
    kept,
    leaders,
    mean,
    rate_kept,
    seconds,
    time_share,
)
from published import PUBLISHED
from schedules import PLAIN, ROWS
from tasks import TASKS

#: Tasks in tables and sentences.
ENGLISH = {
    "300 sentences": "300 sentences", "1000 sentences": "1,000 sentences",
    "10 images": "10 images a class", "50 images": "50 images a class", "noise": "noise",
}  # fmt: skip
CHINESE = {
    "300 sentences": "300 句", "1000 sentences": "1,000 句", "10 images": "每类 10 张",
    "50 images": "每类 50 张", "noise": "加噪声",
}  # fmt: skip
HEADS = {"en": ENGLISH, "zh": CHINESE}
#: The heads of the table of best rows.
COPIED = {
    "en": (
        "task",
        "to begin with",
        "code",
        "learning rate",
        "difference to full",
        "old task % (of full)",
        "no difference seen to it, and cheaper than full (difference; time; learning rate)",
    ),
    "zh": (
        "任务",
        "首选",
        "代码",
        "学习率",
        "与 full 之差",
        "旧任务 %（full）",
        "与它没有发现差别且比 full 省时的策略（准确率之差；相对耗时；学习率）",
    ),
}
NOTHING_AHEAD = {"en": "full (nothing seen ahead)", "zh": "full（未发现领先者）"}
OTHER_NETWORK = {"en": "; with another pretrained network {}", "zh": "；换一个预训练网络则为 {}"}
#: Of a rate that is not the same in all steps.
PEAK = {"en": "peak ", "zh": "峰值 "}


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)]


def judged_text(one: Difference | None) -> str:
    if one is None:
        return "-"
    return one.text() if one.sign else f"no difference seen ({one.text()})"


def of_task(found: Found, task: str) -> list[str]:
    """A row for each schedule."""
    rows = []
    for name, row in ROWS.items():
        seeds = found.get((task, name))
        if not seeds:
            continue
        few = "" if len(seeds) >= ALL_SEEDS else f" ({len(seeds)} seeds)"
        code = f"`{row.code_on(task)}`" + ("" if row.rate == PLAIN else f", rates `{row.rate}`")
        rows.append([
            f"{name}{few}", code, f"{rate_kept(found, task, name):g}",
            f"{100 * mean(found, task, name, accuracy):.1f}",
            judged_text(difference(found, task, name, accuracy)),
            f"{100 * mean(found, task, name, gap):.1f}",
            f"{100 * mean(found, task, name, kept):.1f}",
            f"{100 * mean(found, task, name, lambda one: one['ece']):.1f}",
            f"{mean(found, task, name, seconds):.1f}",
            f"{mean(found, task, name, lambda one: one['memory']):.0f}",
        ])  # fmt: skip
    heads = ["schedule", "code", "rate", "accuracy %", "difference to full", "train - held out",
             "old task %", "ECE %", "seconds", "memory MB"]  # fmt: skip
    return table(heads, rows)


def summary(found: Found, heads: Mapping[str, str], rest: Sequence[str]) -> list[str]:
    """Accuracy, what is left of the old task, and the time, of every schedule on every task."""
    tasks = [task for task in TASKS if (task, FULL) in found]
    rows = []
    for name in ROWS:
        cells, shares = [], []
        for task in tasks:
            if (task, name) not in found:
                cells.append("")
                continue
            one = difference(found, task, name, accuracy)
            few = "" if name == FULL else " ?"
            sign = {1: " +", -1: " -", 0: ""}[one.sign] if one else few
            right, old = (100 * mean(found, task, name, what) for what in (accuracy, kept))
            cells.append(f"{right:.1f}{sign} ({old:.0f})")
            shares.append(time_share(found, task, name))
        if shares:
            known = [one for one in shares if one is not None]
            only = ROWS[name].tasks  # a mean over these is none over all
            alone = f" ({', '.join(heads[task] for task in only)})" if only else ""
            rows.append([name, *cells, f"{statistics.mean(known):.2f}{alone}" if known else "-"])
    return table([rest[0], *(heads[task] for task in tasks), rest[1]], rows)


def rates_of_full(lines: Sequence[Mapping]) -> list[str]:
    """What another rate would have left of the old task: on validation data, for each rate."""
    of_full = [o for o in lines if (o["schedule"], o["split"]) == (FULL, "validation")]
    tasks = [task for task in TASKS if any(one["task"] == task for one in of_full)]
    rows = []
    for rate in sorted({one["rate"] for one in of_full}):
        cells = []
        for task in tasks:
            there = [one for one in of_full if (one["task"], one["rate"]) == (task, rate)]
            both = (100 * statistics.mean(map(what, there)) for what in (accuracy, kept) if there)
            cells.append("{:.1f} ({:.0f})".format(*both) if there else "")
        rows.append([f"{rate:g}", *cells])
    return [
        "Rates were chosen for accuracy alone, and what is left of the old task depends on them: "
        "`full` on validation data by its rate, in brackets what was left.", "",
        *table(["rate of full", *map(ENGLISH.get, tasks)], rows),
    ]  # fmt: skip


def to_copy(found: Found, language: str, theirs: Found) -> list[str]:
    """The row to begin with on each task, with the rate that it had, and what is as good.

    As far as is seen, and cheaper than ``full``: the cheapest first.
    """
    rows = []
    for task, name in leaders(found).items():
        given = f"`{ROWS[name].rate.replace('rate', f'{rate_kept(found, task, name):g}')}`"
        here, there = (difference(each, task, name, accuracy) for each in (found, theirs))
        ahead = here.text() if here else ""
        if here and there and here.sign != there.sign:
            ahead += OTHER_NETWORK[language].format(there.text())
        old = f"{100 * mean(found, task, name, kept):.0f}"
        if name != FULL:
            old += f" ({100 * mean(found, task, FULL, kept):.0f})"
        equal = [
            (share, cheaper, to) for cheaper in ROWS
            if cheaper != name and (to := between(found, task, cheaper, name, accuracy))
            and to.sign == 0 and (share := time_share(found, task, cheaper)) and share < 1
        ]  # fmt: skip
        said = []
        for share, cheaper, to in sorted(equal, key=lambda one: one[0]):
            peak = "" if ROWS[cheaper].rate == PLAIN else PEAK[language]
            rate = f"{peak}{rate_kept(found, task, cheaper):g}"
            said.append(f"{cheaper} ({to.text()}; {share:.2f}; {rate})")
        rows.append([
            HEADS[language][task], NOTHING_AHEAD[language] if name == FULL else name,
            f"`{ROWS[name].code_on(task)}`", given, ahead, old, ", ".join(said),
        ])  # fmt: skip
    return table(COPIED[language], rows)


def verdict(one: Difference, published: Mapping[str, float]) -> str:
    """Which of the published signs a difference here has.

    >>> up = Difference([0.8, 0.8, 0.8], [0.7, 0.7, 0.7])
    >>> verdict(up, {"a": 1.5, "b": -0.1, "c": 0.0})
    '+10.0 [10.0, 10.0], as a, unlike b, c'
    >>> verdict(Difference([0.8, 0.7, 0.7], [0.7, 0.8, 0.7]), {"a": 1.5})
    'no difference seen (+0.0 [-10.0, 10.0])'
    """
    if not one.sign:
        return judged_text(one)
    as_here = [data for data, value in published.items() if value * one.sign > 0]
    unlike = [data for data in published if data not in as_here]
    words = [f"as {', '.join(as_here)}"] * bool(as_here)
    words += [f"unlike {', '.join(unlike)}"] * bool(unlike)
    return ", ".join([one.text(), *words])


def beside_published(found: Found) -> list[str]:
    """The papers' numbers, and whether the intervals here say the same."""
    rows = []
    for one in PUBLISHED:
        here = [
            f"{ENGLISH[task]}: {verdict(seen, one.values)}" for task in one.tasks
            if (seen := difference(found, task, one.name, accuracy))
        ]  # fmt: skip
        if here:
            values = ", ".join(f"{data} {value:+g}" for data, value in one.values.items())
            values = f"{values} {one.unit}" if values else "-"
            rows.append([one.source, one.compared, values, one.name, "; ".join(here)])
    return [
        "## Beside what others published", "",
        "Differences to training everything, and which of them has the sign that is seen here. "
        "Networks, data and numbers of samples are others; a published value has no interval.", "",
        *table(["source", "published", "difference", "here", "what is seen here"], rows), "",
    ]  # fmt: skip
