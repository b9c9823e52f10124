"""How the ablation reads: ABLATION.md, and the marked parts of docs/choosing.md and README.md.

Both are there in English and in Chinese.

Every sentence here follows from an interval: what spans 0 is called no difference.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from schedules import PLAIN, ROWS
from tasks import TASKS

HERE = Path(__file__).parent
REPORT = HERE / "ABLATION.md"
DOCS = {
    "en": HERE.parent / "docs" / "choosing.md",
    "zh": HERE.parent / "docs" / "choosing.zh-CN.md",
}
READMES = {"en": HERE.parent / "README.md", "zh": HERE.parent / "README.zh-CN.md"}
MARK, END = "<!-- ablation -->\n", "<!-- end -->\n"

#: Tasks in Chinese tables and sentences.
CHINESE = {
    "300 sentences": "300 句", "1000 sentences": "1,000 句", "10 images": "每类 10 张",
    "50 images": "每类 50 张", "noise": "加噪声",
}  # fmt: skip
#: The heads of the table of best rows.
COPIED = {
    "en": ("task", "best", "code", "learning rate", "accuracy, difference to full"),
    "zh": ("任务", "最佳策略", "代码", "学习率", "准确率与 full 之差"),
}
FULL = "full"
ALL_SEEDS = 8

#: By task and schedule, the results of each seed on held-out data.
Found = Mapping[tuple[str, str], Mapping[int, Mapping[str, float]]]


def by_row(lines: Sequence[Mapping]) -> Found:
    """The results that count."""
    found: dict[tuple[str, str], dict[int, Mapping[str, float]]] = {}
    for one in lines:
        if one["split"] == "held out":
            found.setdefault((one["task"], one["schedule"]), {})[one["seed"]] = one
    return found


# ---------------------------------------------------------------- differences


class Difference:
    """A schedule's numbers less those of ``full`` with the same seeds: mean and 95 % interval.

    The interval is the middle of the means of 10,000 draws of as many seeds, with replacement.
    """

    def __init__(self, ours: Sequence[float], theirs: Sequence[float]) -> None:
        each = np.array(ours) - np.array(theirs)
        drawn = np.random.RandomState(0).randint(0, len(each), [10_000, len(each)])
        self.mean = float(each.mean())
        self.low, self.high = map(float, np.percentile(each[drawn].mean(1), [2.5, 97.5]))

    @property
    def sign(self) -> int:
        """1 or -1 where the interval lies on one side of 0, else 0."""
        return int(self.low > 0) - int(self.high < 0)

    def text(self, factor: float = 100) -> str:
        """Such as "+1.2 [0.3, 2.1]"."""
        mean, low, high = (factor * one for one in (self.mean, self.low, self.high))
        return f"{mean:+.1f} [{low:.1f}, {high:.1f}]"


def accuracy(one: Mapping[str, float]) -> float:
    return one["accuracy"]


def gap(one: Mapping[str, float]) -> float:
    """Over-fitting."""
    return one["train"] - one["accuracy"]


def kept(one: Mapping[str, float]) -> float:
    return one["old"]


def seconds(one: Mapping[str, float]) -> float:
    return one["seconds"]


def difference(
    found: Found, task: str, name: str, what: Callable[[Mapping[str, float]], float]
) -> Difference | None:
    """To ``full``, over the seeds that both have; ``None`` with less than three."""
    ours, theirs = found.get((task, name), {}), found.get((task, FULL), {})
    seeds = sorted(ours.keys() & theirs.keys())
    if len(seeds) < 3 or name == FULL:
        return None
    return Difference([what(ours[s]) for s in seeds], [what(theirs[s]) for s in seeds])


def mean(found: Found, task: str, name: str, what: Callable[[Mapping[str, float]], float]) -> float:
    return statistics.mean(map(what, found[task, name].values()))


def time_share(found: Found, task: str, name: str) -> float:
    return mean(found, task, name, seconds) / mean(found, task, FULL, seconds)


# ---------------------------------------------------------------- tables


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)]


def judged_text(one: Difference | None, factor: float = 100) -> str:
    if one is None:
        return "-"
    return one.text(factor) if one.sign else f"no difference seen ({one.text(factor)})"


def of_task(found: Found, task: str) -> list[str]:
    """A row for each schedule."""
    rows = []
    for name, row in ROWS.items():
        seeds = found.get((task, name))
        if not seeds:
            continue
        few = "" if len(seeds) >= ALL_SEEDS else f" ({len(seeds)} seeds)"
        code = f"`{row.code}`" + ("" if row.rate == PLAIN else f", rates `{row.rate}`")
        rate = next(iter(seeds.values()))["rate"]
        rows.append([
            f"{name}{few}", code, f"{rate:g}", f"{100 * mean(found, task, name, accuracy):.1f}",
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
            sign = {1: " +", -1: " -", 0: ""}[
                one.sign if (one := difference(found, task, name, accuracy)) else 0
            ]
            right, old = (100 * mean(found, task, name, what) for what in (accuracy, kept))
            cells.append(f"{right:.1f}{sign} ({old:.0f})")
            shares.append(time_share(found, task, name))
        if shares:
            rows.append([name, *cells, f"{statistics.mean(shares):.2f}"])
    return table([rest[0], *(heads[task] for task in tasks), rest[1]], rows)


@dataclass(frozen=True)
class Claim:
    """What an article says of freezing first, and how it is counted.

    Attributes:
        title: the claim, and the unit of its numbers.
        chinese: the claim in Chinese.
        what: the number of a run; the claim is that it is less, or more, than that of ``full``.
        sign: 1 if it claims more, -1 if less.
        factor: from the number to its unit.
    """

    title: str
    chinese: str
    what: Callable[[Mapping[str, float]], float]
    sign: int
    factor: float = 100.0


CLAIMS = (
    Claim(
        "Over-fits less: train - held out, in points", "过拟合更轻（训练减留出，百分点）", gap, -1
    ),
    Claim("Faster: seconds of one processor", "更快（单核秒数）", seconds, -1, 1.0),
    Claim("Keeps what it knew: old task, in points", "保留原有能力（旧任务，百分点）", kept, 1),
)


def claims(found: Found) -> list[str]:
    """The three claims, of every schedule on every task."""
    lines = []
    tasks = [task for task in TASKS if (task, FULL) in found]
    for claim, (english, _) in zip(CLAIMS, claims_said(found)):
        rows = []
        for name in ROWS:
            each = [difference(found, task, name, claim.what) for task in tasks]
            if any(each):
                cells = (judged_text(one, factor=claim.factor) for one in each)
                rows.append([name, *("" if cell == "-" else cell for cell in cells)])
        lines += ["", f"**{english}**", "", *table(["schedule", *tasks], rows)]
    return lines


def claims_said(found: Found) -> list[tuple[str, str]]:
    """How often each claim holds, in two languages."""
    sentences = []
    for claim in CLAIMS:
        each = {
            (task, name): one for task in TASKS for name in ROWS
            if (one := difference(found, task, name, claim.what))
        }  # fmt: skip
        if not each:
            continue
        yes, no = (sum(o.sign == s for o in each.values()) for s in (claim.sign, -claim.sign))
        (task, name), most = max(each.items(), key=lambda pair: claim.sign * pair[1].mean)
        text = most.text(claim.factor)
        sentences.append((
            f"{claim.title}, difference to full: so in {yes} of {len(each)} comparisons, the "
            f"opposite in {no}, no difference seen in {len(each) - yes - no}; most {name} on "
            f"{task} ({text}).",
            f"{claim.chinese}：与 full 比较 {len(each)} 次，{yes} 次如此，{no} 次相反，"
            f"{len(each) - yes - no} 次没有发现差别；差别最大的是“{CHINESE[task]}”上的 {name}"
            f"（{text}）。",
        ))  # fmt: skip
    return sentences


def leaders(found: Found) -> dict[str, str]:
    """By task the schedule that is ahead of ``full`` by most; ``full`` where none is."""
    best = {}
    for task in TASKS:
        each = {name: one for name in ROWS if (one := difference(found, task, name, accuracy))}
        if each:
            ahead = [name for name, one in each.items() if one.sign > 0]
            best[task] = max(ahead, key=lambda name: each[name].mean, default=FULL)
    return best


def to_copy(found: Found, heads: Mapping[str, str], titles: Sequence[str]) -> list[str]:
    """The best row of each task, with the rate that it had."""
    rows = []
    for task, name in leaders(found).items():
        rate = next(iter(found[task, name].values()))["rate"]
        given = f"`{ROWS[name].rate.replace('rate', f'{rate:g}')}`"
        one = difference(found, task, name, accuracy)
        rows.append([heads[task], name, f"`{ROWS[name].code}`", given, one.text() if one else ""])
    return table(titles, rows)


# ---------------------------------------------------------------- sentences


def _named(found: Found, tasks: Sequence[str], signs: Callable[[Difference], bool]) -> list[str]:
    """Schedules for which this holds on every one of these tasks that they were tried on."""
    names = []
    for name in ROWS:
        each = [difference(found, task, name, accuracy) for task in tasks]
        tried = [one for one in each if one is not None]
        if len(tried) == len(tasks) and all(map(signs, tried)):
            names.append(name)
    return names


def quoted(tasks: Sequence[str]) -> str:
    """Tasks in a Chinese sentence."""
    return "、".join(f"“{CHINESE[task]}”" for task in tasks)


def advice(found: Found) -> list[tuple[str, str]]:
    """At most five sentences, in two languages, each from intervals and naming its rows."""
    tasks = [task for task in TASKS if (task, FULL) in found]
    best = leaders(found)
    not_ahead = [task for task, name in best.items() if name == FULL]
    ahead = []
    for task, name in best.items():
        each = [one for name in ROWS if (one := difference(found, task, name, accuracy))]
        if most := difference(found, task, name, accuracy):
            better = sum(one.sign > 0 for one in each)
            ahead.append((
                f"on {task} {better} of {len(each)} schedules, most {name} ({most.text()})",
                f"“{CHINESE[task]}”上{len(each)} 种策略中的 {better} 种，领先最多的是 {name}"
                f"（{most.text()}）",
            ))  # fmt: skip
    sentences = []
    if ahead:
        english, chinese = zip(*ahead)
        sentences.append((
            f"More accurate than training everything from the start: {'; '.join(english)}"
            + (f"; none on {', '.join(not_ahead)}." if not_ahead else "."),
            f"准确率高于一开始就训练全部参数的有：{'；'.join(chinese)}"
            + (f"；{quoted(not_ahead)}上没有。" if not_ahead else "。"),
        ))  # fmt: skip
    elif best:
        sentences.append((
            "No schedule was seen to be more accurate than training everything from the start at "
            "its own best rate.",
            "在各自最佳学习率下，没有发现哪种策略的准确率高于一开始就训练全部参数。",
        ))  # fmt: skip
    no_worse = _named(found, tasks, lambda one: one.sign >= 0)
    if no_worse:
        cheapest = min(
            no_worse,
            key=lambda name: statistics.mean(time_share(found, task, name) for task in tasks),
        )
        share = statistics.mean(time_share(found, task, cheapest) for task in tasks)
        names = ", ".join(no_worse)
        sentences.append((
            f"On no task seen behind it: {names}; the cheapest of them is {cheapest}, at "
            f"{100 * share:.0f} % of the time.",
            f"在任何任务上都没有发现落后的有：{'、'.join(no_worse)}；其中最省时的是 {cheapest}，"
            f"耗时为全部训练的 {100 * share:.0f} %。",
        ))  # fmt: skip
    keeps = [
        name for name in no_worse
        if all((one := difference(found, t, name, kept)) and one.sign > 0 for t in tasks)
    ]  # fmt: skip
    if keeps:
        sentences.append((
            f"If it must keep what it could do: {', '.join(keeps)} kept more of the old task on "
            "every task, and were not seen behind in accuracy.",
            f"需要保留原有能力时：{'、'.join(keeps)} 在每个任务上都保留了更多旧任务的能力，"
            "准确率也没有发现落后。",
        ))  # fmt: skip
    behind = _named(found, tasks, lambda one: one.sign < 0)
    if behind:
        sentences.append((
            f"Behind on every task: {', '.join(behind)}.",
            f"在每个任务上都落后的有：{'、'.join(behind)}。",
        ))  # fmt: skip
    bottom = difference(found, "noise", "bottom only", accuracy)
    if bottom:
        seen = {1: "helped more than everything", 0: "did as well as everything, as far as is seen",
                -1: "helped less than everything"}[bottom.sign]  # fmt: skip
        zh = {1: "优于训练全部参数", 0: "与训练全部参数没有发现差别", -1: "不如训练全部参数"}[
            bottom.sign
        ]
        sentences.append((
            f"Where the input changed and the labels did not (noise), the bottom alone {seen} "
            f"({bottom.text()}).",
            f"输入变化而标签不变时（加噪声），只训练底层{zh}（{bottom.text()}）。",
        ))  # fmt: skip
    return sentences


# ---------------------------------------------------------------- what others published


@dataclass(frozen=True)
class Published:
    """What a paper reports of a schedule beside training everything, and where that is tried here.

    Attributes:
        source: the paper, and where in it.
        compared: its names for both sides, and what on.
        values: its numbers, the schedule's less those of training everything, in accuracy.
        sign: what they say: better (1), no different (0), worse (-1).
        name: the schedule here.
        tasks: the tasks here that come nearest.
    """

    source: str
    compared: str
    values: str
    sign: int
    name: str
    tasks: tuple[str, ...]


_TEXT, _IMAGES = ("300 sentences", "1000 sentences"), ("10 images", "50 images")
_ULMFIT = "ULMFiT (Howard & Ruder 2018), table 7, IMDb / TREC-6 / AG"
_LP_FT = "Kumar et al. 2022, tables 1 and 2, mean of data like those trained on"
_SURGICAL = "Surgical fine-tuning (Lee et al. 2023)"
_BADAM = "BAdam (Luo et al. 2024), table 5, MT-Bench, mean of 3 epochs"

PUBLISHED = (
    Published(_ULMFIT, "Freez + discr + stlr 5.00 / 5.69 / 5.38 % error, Full 6.87 / 6.86 / 5.81",
              "+1.87 / +1.17 / +0.43", 1, "ULMFiT", _TEXT),
    Published(_ULMFIT, "Freez 6.37 / 6.86 / 5.81, Full the same as above",
              "+0.50 / 0.00 / 0.00", 0, "gradual", _TEXT),
    Published(_ULMFIT, "Chain-thaw 5.39 / 6.71 / 5.90",
              "+1.48 / +0.15 / -0.09", 0, "chain-thaw", _TEXT),
    Published(_ULMFIT, "Last 6.49 / 16.09 / 8.38",
              "+0.38 / -9.23 / -2.57", -1, "head only", _TEXT),
    Published(_LP_FT, "LP-FT 85.7, fine-tuning 85.1 %", "+0.6", 1, "LP-FT", _IMAGES),
    Published(_LP_FT, "linear probing 82.9, fine-tuning 85.1 %", "-2.2", -1, "head only", _IMAGES),
    Published(_SURGICAL, "CIFAR-10-C, the first block alone beside all", "about +3", 1,
              "bottom only", ("noise",)),
    Published("LISA (Pan et al. 2024), abstract", "MT-Bench; LISA beside full parameter tuning",
              "on par or above", 1, "LISA", _TEXT),
    Published(_BADAM, "Llama 2-7B at 1e-5 / at 1e-6, Llama 3-8B at 1e-6: BAdam 4.96 / 4.81 / 6.65, "
              "Adam 4.76 / 4.90 / 6.23", "+0.20 / -0.09 / +0.42 points of 10", 1, "Cyclic", _TEXT),
)  # fmt: skip


def verdict(one: Difference, published: int) -> str:
    """Whether a difference here says what was published.

    >>> verdict(Difference([0.8, 0.8, 0.8], [0.7, 0.7, 0.7]), 1)
    'agrees, +10.0 [10.0, 10.0]'
    >>> verdict(Difference([0.8, 0.7], [0.7, 0.8]), 1)
    'not seen, +0.0 [-10.0, 10.0]'
    >>> verdict(Difference([0.8, 0.8, 0.8], [0.7, 0.7, 0.7]), -1)
    'the opposite, +10.0 [10.0, 10.0]'
    """
    word = "agrees" if one.sign == published else "not seen"
    if one.sign == -published != 0:
        word = "the opposite"
    if one.sign and not published:
        word = "better here" if one.sign > 0 else "worse here"
    return f"{word}, {one.text()}"


def beside_published(found: Found) -> list[str]:
    """The papers' numbers, and whether the intervals here say the same."""
    rows = []
    for one in PUBLISHED:
        here = [
            f"{task}: {verdict(seen, one.sign)}" for task in one.tasks
            if (seen := difference(found, task, one.name, accuracy))
        ]  # fmt: skip
        if here:
            rows.append([one.source, one.compared, one.values, one.name, "; ".join(here)])
    return [
        "## Beside what others published", "",
        "Their difference to training everything, in points of accuracy unless it says otherwise, "
        "and whether the interval here says the same. Networks, data and numbers of samples are "
        "others. What Kumar et al. report of shifted data (LP-FT 68.9, linear probing 66.2, "
        "fine-tuning 59.3 %) has no counterpart here, nor has LISA beside LoRA (10 to 35 % more on "
        "MT-Bench).", "",
        *table(["source", "published", "difference", "here", "what is seen here"], rows), "",
    ]  # fmt: skip


# ---------------------------------------------------------------- pages


def page(lines: Sequence[Mapping]) -> str:
    """ABLATION.md."""
    found = by_row(lines)
    total = sum(one["seconds"] for one in lines) / 3600
    machines = ", ".join(sorted({one["machine"] for one in lines}))
    versions = ", ".join(sorted({f"Paddle {one['paddle']}" for one in lines}))
    held_out = [one for one in lines if one["split"] == "held out"]
    tried = ", ".join(
        f"{len(seeds)} on {task}" for task in TASKS
        if (seeds := {o["seed"] for o in lines if (o["task"], o["split"]) == (task, "validation")})
    )  # fmt: skip
    unfinished = [
        f"{name} on {task}" for task in TASKS for name, row in ROWS.items()
        if row.tried_on(task) and len(found.get((task, name), {})) < ALL_SEEDS
    ]  # fmt: skip
    parts = [
        "# Which schedule helps?", "",
        "Written by `make ablation` from the lines in `benchmarks/results`; the first lines of "
        "`benchmarks/tasks.py` say what is learnt, those of `benchmarks/ablation.py` how. "
        f"{len(lines)} runs, {len(held_out)} of them on held-out data, {total:.1f} hours of one "
        f"processor in training; {machines}; {versions}. AdamW, batches of 16, a constant rate "
        "unless the code says otherwise. Each schedule has its own best rate: three, half a decade "
        "apart, were tried on validation data, or more while the best lay at the edge, each with "
        f"seeds of their own ({tried}; 1000 sentences took the rates of 300). Differences are to "
        "`full` with the same seeds, with a 95 % interval over seeds (bootstrap); `seconds` is "
        "processor time of the training with one thread; `memory` the most that Paddle's tensors "
        "took while training, over the network itself; ECE the expected calibration error over 15 "
        "bins. A bootstrap over eight seeds is narrow (an interval by Student's t would be about "
        "1.3 times as wide), and of the many comparisons one in twenty would lie on one side of 0 "
        "by chance: trust what several tasks or schedules say.",
    ]  # fmt: skip
    if unfinished:
        parts += ["", f"Not finished ({len(unfinished)}): {', '.join(unfinished)}."]
    parts += ["", "## All in one", "",
              "Accuracy on held-out data in %; `+` and `-` where the interval of the difference to "
              "`full` lies on one side of 0, no sign where no difference was seen; in brackets "
              "what is left of the old task (before: "
              + ", ".join(f"{task} {_before(found, task):.0f} %" for task in TASKS
                          if (task, FULL) in found)
              + "); time as a share of that of `full`.", "",
              *summary(found, {task: task for task in TASKS}, ("schedule", "time"))]  # fmt: skip
    parts += ["", "## What follows", "", *said(found, "en")]
    parts += ["", "## The best row of each task, to copy", "",
              "That which is ahead of `full` by most, or `full` where none is seen ahead; and what "
              "the optimizer got as its learning rate.", "",
              *to_copy(found, {task: task for task in TASKS}, COPIED["en"])]  # fmt: skip
    for name, task in TASKS.items():
        if (name, FULL) in found:
            parts += ["", f"## {name}: {task.title}", "", *of_task(found, name)]
    parts += ["", "## Three claims about freezing first", *claims(found), ""]
    parts += beside_published(found)
    return "\n".join(parts)


def _before(found: Found, task: str) -> float:
    return 100 * mean(found, task, FULL, lambda one: one["old_before"])


def part(found: Found, language: str) -> str:
    """What docs/choosing.md shows of it."""
    chinese = language == "zh"
    heads = CHINESE if chinese else {task: task for task in TASKS}
    titles = {name: task.chinese if chinese else task.title for name, task in TASKS.items()}
    colon = "：" if chinese else ": "
    before = "微调前" if chinese else "before"
    tasks = [
        f"- {heads[task]}{colon}{titles[task]}{colon if chinese else '; '}{before} "
        f"{_before(found, task):.0f} %"
        for task in TASKS if (task, FULL) in found
    ]  # fmt: skip
    codes = [
        f"- {name}{colon}`{row.code}`" + ("" if row.rate == PLAIN else f", `{row.rate}`")
        for name, row in ROWS.items()
    ]
    rest = ("策略", "耗时") if chinese else ("schedule", "time")
    parts = [*summary(found, heads, rest), "", *tasks, "", *said(found, language), ""]
    parts += [*to_copy(found, heads, COPIED[language]), ""]
    parts += [f"- {pair[chinese]}" for pair in claims_said(found)]
    return "\n".join([*parts, "", *codes, ""])


def said(found: Found, language: str) -> list[str]:
    """The sentences, a line each: all that the READMEs show."""
    return [f"- {pair[language == 'zh']}" for pair in advice(found)]


def write(lines: Sequence[Mapping]) -> None:
    """Write the page, and the marked parts."""
    REPORT.write_text(page(lines), encoding="utf-8")
    found = by_row(lines)
    parts = [(file, part(found, language)) for language, file in DOCS.items()]
    parts += [(file, "\n".join([*said(found, language), ""])) for language, file in READMES.items()]
    for file, new in parts:
        text = file.read_text(encoding="utf-8")
        before, mark, after = text.partition(MARK)
        if mark:
            file.write_text(before + MARK + new + END + after.partition(END)[2], encoding="utf-8")
    print(f"wrote {REPORT}")
