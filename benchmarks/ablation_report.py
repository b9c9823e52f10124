"""How the ablation reads: ABLATION.md, and the marked parts of docs/choosing.md and README.md.

Both are there in English and in Chinese.

Every sentence here follows from an interval: what spans 0 is called no difference.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from published import PUBLISHED
from schedules import PLAIN, ROWS
from scipy import stats
from tasks import TASKS

HERE = Path(__file__).parent
REPORT = HERE / "ABLATION.md"
DOCS = {
    "en": HERE.parent / "docs" / "choosing.md",
    "zh": HERE.parent / "docs" / "choosing.zh-CN.md",
}
READMES = {"en": HERE.parent / "README.md", "zh": HERE.parent / "README.zh-CN.md"}
MARK, END = "<!-- ablation -->\n", "<!-- end -->\n"

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
ANOTHER = {"en": "; with another pretrained network {}", "zh": "；换一个预训练网络则为 {}"}
#: Of a rate that is not the same in all steps.
PEAK = {"en": "peak ", "zh": "峰值 "}
#: Before each piece of a document's part.
LEADS = {
    "en": (
        "What follows from the intervals:",
        "To copy, for the task nearest to yours: what is ahead of `full` by most (the first of "
        "many is ahead by luck,\ntoo: expect less of it), or `full`, for which no schedule is "
        "needed, and what is not told apart from it:",
        "What is said of freezing first, counted over all schedules and these tasks:",
        "The code of each row:",
    ),
    "zh": (
        "由置信区间得出的结论：",
        "可直接复制，请选与您的任务最接近的一行：领先 `full` 最多的策略（多者之首也有运气成分，"
        "实际优势会小一些；没有发现领先的，\n就是 `full`，无需策略），以及与它没有发现差别的策略：",
        "关于“先冻结”的三种说法，按全部策略和上述任务统计：",
        "各行的代码：",
    ),
}
FULL = "full"
ALL_SEEDS = 8
#: With fewer seeds no interval between means of draws covers 95 %: one of n values and the lowest
#: and highest mean cover 1 - 2 / 2**n at most.
FEWEST_SEEDS = 6
#: Of a run's numbers those that are the same when it is made once more; time and memory are not.
NUMBERS = ("accuracy", "loss", "ece", "train", "old_before", "old")

#: Schedules that are evaluated meanwhile, on validation data.
EVALUATED = {"OnPlateau"}
#: What the networks could do before.
OLD_TASKS = {
    "en": {"text": "sentence similarity", "images": "digits 0 to 4"},
    "zh": {"text": "句子相似度", "images": "数字 0–4"},
}

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
        usual = [_beside(one) for one in found.get((task, FULL), {}).values() if "whole" in one]
        if name in EVALUATED and usual:
            for seed, one in seeds.items():
                if "whole" in one:
                    further = _beside(one) - statistics.mean(usual)
                    seeds[seed] = {**one, "seconds": one["seconds"] + max(further, 0.0)}
    return found


def _beside(one: Mapping[str, float]) -> float:
    """What a run did beside training: start and evaluation, in seconds."""
    return one["whole"] - one["seconds"]


# ---------------------------------------------------------------- differences


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


def mean(found: Found, task: str, name: str, what: Callable[[Mapping[str, float]], float]) -> float:
    return statistics.mean(map(what, found[task, name].values()))


def rate_kept(found: Found, task: str, name: str) -> float:
    """The rate that was chosen; that of all held-out runs."""
    return next(iter(found[task, name].values()))["rate"]


def time_share(found: Found, task: str, name: str) -> float | None:
    """1 is the time of ``full``; ``None`` where no machine did both for six seeds."""
    one = difference(found, task, name, seconds)
    return 1.0 if name == FULL else 1.0 + one.mean if one else None


# ---------------------------------------------------------------- tables


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
            one = difference(found, task, name, accuracy)
            few = "" if name == FULL else " ?"
            sign = {1: " +", -1: " -", 0: ""}[one.sign] if one else few
            right, old = (100 * mean(found, task, name, what) for what in (accuracy, kept))
            cells.append(f"{right:.1f}{sign} ({old:.0f})")
            shares.append(time_share(found, task, name))
        if shares:
            known = [one for one in shares if one is not None]
            rows.append([name, *cells, f"{statistics.mean(known):.2f}" if known else "-"])
    return table([rest[0], *(heads[task] for task in tasks), rest[1]], rows)


@dataclass(frozen=True)
class Claim:
    """What an article says of freezing first, and how it is counted.

    Attributes:
        title: the claim, and the unit of its numbers.
        chinese: the same in Chinese.
        what: the number of a run; the claim is that it is less, or more, than that of ``full``.
        sign: 1 if it claims more, -1 if less.
    """

    title: str
    chinese: str
    what: Callable[[Mapping[str, float]], float]
    sign: int


OVER_FITS = Claim("Over-fits less (accuracy in training less held out, in points)",
                  "过拟合更轻（训练准确率减留出准确率，百分点）", gap, -1)  # fmt: skip
FASTER = Claim("Faster (difference in time, in % of full's)", "更快（耗时之差，占 full 的 %）",
               seconds, -1)  # fmt: skip
KEEPS = Claim("Keeps what it knew (old task, in points)", "保留原有能力（旧任务，百分点）", kept, 1)
CLAIMS = (OVER_FITS, FASTER, KEEPS)


def claims(found: Found) -> list[str]:
    """The three claims, of every schedule on every task."""
    lines = []
    tasks = [task for task in TASKS if (task, FULL) in found]
    for claim, (english, _) in zip(CLAIMS, claims_said(found)):
        rows = []
        for name in ROWS:
            each = [difference(found, task, name, claim.what) for task in tasks]
            if any(each):
                rows.append([name, *(judged_text(one) if one else "" for one in each)])
        lines += ["", f"**{english}**", "", *table(["schedule", *map(ENGLISH.get, tasks)], rows)]
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
        so = [key for key, one in each.items() if one.sign == claim.sign]
        against = [name for (_, name), one in each.items() if one.sign == -claim.sign]
        no, why, zh = len(against), "", ""
        if claim is FASTER and against and EVALUATED.issuperset(against):
            why, zh = (
                f" (all {', '.join(EVALUATED)}, whose evaluations count)",
                "（都因为包含评估）",
            )
        english = (
            f"{claim.title}: holds in {len(so)} of {len(each)} comparisons with full, the "
            f"opposite in {no}{why}, no difference seen in {len(each) - len(so) - no}"
        )
        chinese = (
            f"{claim.chinese}：与 full 的 {len(each)} 次比较中，{len(so)} 次成立，{no} 次相反{zh}，"
            f"{len(each) - len(so) - no} 次没有发现差别"
        )
        if claim is OVER_FITS and so:
            behind = [
                key for key in so
                if (one := difference(found, *key, accuracy)) and one.sign < 0
            ]  # fmt: skip
            english += f"; {len(behind)} of the {len(so)} were less accurate, too"
            chinese += f"；这 {len(so)} 次中有 {len(behind)} 次准确率也更低"
            so = [key for key in so if key not in behind]
        if so:
            task, name = max(so, key=lambda key: claim.sign * each[key].mean)
            of_these = " of the others" if claim is OVER_FITS and behind else ""
            english += f"; most{of_these} {name} on {ENGLISH[task]} ({each[task, name].text()})"
            chinese += (
                f"；{'其余' if of_these else ''}差别最大的是“{CHINESE[task]}”上的 {name}"
                f"（{each[task, name].text()}）"
            )
        if claim is OVER_FITS:
            right = sum(
                mean(found, task, name, trained) >= 0.99 <= mean(found, task, FULL, trained)
                for task, name in each
            )
            english += (
                f". In {right} of the {len(each)} both are right on at least 99 % of what they "
                "were trained on: there this is the difference in accuracy with its sign turned"
            )
            chinese += (
                f"。{len(each)} 次比较中有 {right} 次双方的训练准确率都不低于 99 %，"
                "这时该差值只是把准确率之差换了符号"
            )
        if claim is KEEPS:
            english += (
                ". Rates were chosen for accuracy alone, and another keeps more or less "
                "(ABLATION.md shows it for `full`)"
            )
            chinese += (
                "。学习率只按准确率选取，换一个学习率，保留的多少也会不同"
                "（ABLATION.md 列出了 `full` 的数值）"
            )
        sentences.append((f"{english}.", f"{chinese}。"))
    return sentences


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


def leaders(found: Found) -> dict[str, str]:
    """By task the schedule that is ahead of ``full`` by most; ``full`` where none is."""
    best = {}
    for task in TASKS:
        each = {name: one for name in ROWS if (one := difference(found, task, name, accuracy))}
        if each:
            ahead = [name for name, one in each.items() if one.sign > 0]
            best[task] = max(ahead, key=lambda name: each[name].mean, default=FULL)
    return best


def to_copy(found: Found, language: str, theirs: Found) -> list[str]:
    """The row to begin with on each task, with the rate that it had, and what is as good.

    As far as is seen, and cheaper than ``full``: the cheapest first.
    """
    rows = []
    for task, name in leaders(found).items():
        given = f"`{ROWS[name].rate.replace('rate', f'{rate_kept(found, task, name):g}')}`"
        one, other = (difference(each, task, name, accuracy) for each in (found, theirs))
        ahead = one.text() if one else ""
        if one and other and one.sign != other.sign:
            ahead += ANOTHER[language].format(other.text())
        old = f"{100 * mean(found, task, name, kept):.0f}"
        if name != FULL:
            old += f" ({100 * mean(found, task, FULL, kept):.0f})"
        equal = [
            (share, other, to) for other in ROWS
            if other != name and (to := between(found, task, other, name, accuracy))
            and to.sign == 0 and (share := time_share(found, task, other)) and share < 1
        ]  # fmt: skip
        said = []
        for share, other, to in sorted(equal, key=lambda one: one[0]):
            peak = "" if ROWS[other].rate == PLAIN else PEAK[language]
            rate = f"{peak}{rate_kept(found, task, other):g}"
            said.append(f"{other} ({100 * to.mean:+.1f}; {share:.2f}; {rate})")
        rows.append([
            HEADS[language][task], NOTHING_AHEAD[language] if name == FULL else name,
            f"`{ROWS[name].code_on(task)}`", given, ahead, old, ", ".join(said),
        ])  # fmt: skip
    return table(COPIED[language], rows)


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


def listed(tasks: Sequence[str], word: str) -> str:
    """Tasks in an English sentence.

    >>> listed(["noise"], "and"), listed(["300 sentences", "10 images", "noise"], "or")
    ('noise', '300 sentences, 10 images a class or noise')
    """
    *first, last = (ENGLISH[task] for task in tasks)
    return f"{', '.join(first)} {word} {last}" if first else last


def quoted(tasks: Iterable[str]) -> str:
    """Tasks in a Chinese sentence."""
    return "、".join(f"“{CHINESE[task]}”" for task in tasks)


def advice(found: Found, theirs: Found) -> list[tuple[str, str]]:
    """At most five sentences, in two languages, each from intervals and naming its rows.

    What another pretrained network gave, in ``theirs``, is said where its verdict is another one.
    """
    best = leaders(found)
    tasks = list(best)
    if not tasks:
        return []
    not_ahead = [task for task, name in best.items() if name == FULL]
    ahead = []
    for task, name in best.items():
        each = [one for name in ROWS if (one := difference(found, task, name, accuracy))]
        if most := difference(found, task, name, accuracy):
            better = sum(one.sign > 0 for one in each)
            there = [one for name in ROWS if (one := difference(theirs, task, name, accuracy))]
            other = difference(theirs, task, name, accuracy)
            but, zh = "", ""
            if other and other.sign != most.sign:
                too = sum(one.sign > 0 for one in there)
                but = (
                    f"; with another pretrained network {too or 'none'} of {len(there)}, {name} "
                    f"{judged_text(other)}"
                )
                zh = (
                    f"；换一个预训练网络时，{len(there)} 种中有 {too} 种领先，"
                    f"{name} 为 {other.text()}"
                )
            ahead.append((
                f"on {ENGLISH[task]} {better} of {len(each)} schedules, most {name} "
                f"({most.text()}{but})",
                f"“{CHINESE[task]}”上 {len(each)} 种策略中的 {better} 种，领先最多的是 {name}"
                f"（{most.text()}{zh}）",
            ))  # fmt: skip
    sentences = []
    if ahead:
        english, chinese = zip(*ahead)
        sentences.append((
            f"More accurate than training everything from the start: {'; '.join(english)}"
            + (f"; none seen on {listed(not_ahead, 'or')}." if not_ahead else "."),
            f"准确率高于一开始就训练全部参数的有：{'；'.join(chinese)}"
            + (f"；{quoted(not_ahead)}上没有发现。" if not_ahead else "。"),
        ))  # fmt: skip
    else:
        sentences.append((
            "No schedule was seen to be more accurate than training everything from the start at "
            "its own best rate.",
            "在各自最佳学习率下，没有发现哪种策略的准确率高于一开始就训练全部参数。",
        ))  # fmt: skip
    no_worse = _named(found, tasks, lambda one: one.sign >= 0)
    if no_worse:
        shares = {
            name: statistics.mean(each) for name in no_worse
            if None not in (each := [time_share(found, task, name) for task in tasks])
        }  # fmt: skip
        cheapest = min(shares, key=lambda name: shares[name], default=None)
        english = f"On no task seen behind `full`: {', '.join(no_worse)}"
        chinese = f"在各任务上均未发现落后于 `full` 的有：{'、'.join(no_worse)}"
        if cheapest:
            code = "" if ROWS[cheapest].on_images else f"`{ROWS[cheapest].code}`"
            share = f"{100 * shares[cheapest]:.0f} %"
            less = sum(
                bool((one := difference(found, task, cheapest, kept)) and one.sign < 0)
                for task in tasks
            )
            if len(no_worse) > 1:
                english += f"; the cheapest of them is {cheapest}"
                chinese += f"；其中最省时的是 {cheapest}"
            english += (
                f"{code and f' ({code})'}, at {share} of the time of `full`, mean over tasks; it "
                f"kept less of the old task on {less} of {len(tasks)}"
            )
            chinese += (
                f"{code and f'（{code}）'}，平均耗时为 `full` 的 {share}；{len(tasks)} 个任务中有 "
                f"{less} 个保留的旧任务能力更少"
            )
        sentences.append((f"{english}.", f"{chinese}。"))
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
            f"Behind `full` on all {len(tasks)} tasks: {', '.join(behind)}.",
            f"在全部 {len(tasks)} 个任务上都落后于 `full` 的有：{'、'.join(behind)}。",
        ))  # fmt: skip
    bottom = difference(found, "noise", "bottom only", accuracy)
    if bottom:
        than = "training everything"
        seen = {1: f"was more accurate than {than}", 0: f"showed no difference to {than}",
                -1: f"was less accurate than {than}"}[bottom.sign]  # fmt: skip
        zh = {1: "准确率高于训练全部参数", 0: "与训练全部参数没有发现差别",
              -1: "准确率低于训练全部参数"}[bottom.sign]  # fmt: skip
        code = f"`{ROWS['bottom only'].code}`"
        sentences.append((
            f"Where the input changed and the labels did not (noise), training the bottom alone "
            f"({code}) {seen} ({bottom.text()}).",
            f"输入变化而标签不变时（加噪声），只训练底层（{code}）{zh}（{bottom.text()}）。",
        ))  # fmt: skip
    return sentences


# ---------------------------------------------------------------- what others published


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


# ---------------------------------------------------------------- pages


def unlike(one: Mapping, other: Mapping) -> list[str]:
    """Which numbers of a run are others, to the last bit, when it is made once more."""
    return [name for name in NUMBERS if one.get(name) != other.get(name)]


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
            seeds = sorted({str(other["seed"]) for _, other in pairs[task]})
            machines = sorted({
                f"; on {other['machine']}, at first on {one['machine']}"
                for one, other in pairs[task] if one["machine"] != other["machine"]
            })  # fmt: skip
            where.append(
                f"{len(pairs[task])} on {task} (seed{'s' * (len(seeds) > 1)} "
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
        pairs = {
            name: (ours, other) for name in ROWS
            if (ours := difference(found, task, name, accuracy))
            and (other := difference(theirs, task, name, accuracy))
            and rate_kept(found, task, name) == rate_kept(theirs, task, name)
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
            top.setdefault(one["task"], []).append(one["whole"] - one["seconds"])
    training = sum(one["seconds"] for one in lines)
    beside = sum(
        one["whole"] - one["seconds"] if "whole" in one
        else statistics.mean(top.get(one["task"], [0.0]))
        for one in lines
    )  # fmt: skip
    return training / 3600, (training + beside) / 3600


def where_made(lines: Iterable[Mapping]) -> list[str]:
    """Each machine, and what was made on it: tasks, and rates of others.

    >>> made = dict(task="noise", schedule="full", machine="A")
    >>> where_made([{**made, "split": "validation"}, {**made, "machine": "B", "split": "held out"}])
    ['A (rates of noise)', 'B (noise)']
    """
    by_split: dict[str, dict[str, set[str]]] = {}
    for one in lines:
        splits = by_split.setdefault(one["machine"], {"held out": set(), "validation": set()})
        splits[one["split"]].add(one["task"])
    said = []
    for machine, splits in sorted(by_split.items()):
        held = [task for task in TASKS if task in splits["held out"]]
        rates = [task for task in TASKS if task in splits["validation"] and task not in held]
        words = [", ".join(held)] * bool(held) + [f"rates of {', '.join(rates)}"] * bool(rates)
        said.append(f"{machine} ({'; '.join(words)})")
    return said


def of_images(task: str) -> bool:
    """Whether it begins with the network that was pretrained on images."""
    return "sentences" not in task


def rates_elsewhere(lines: Iterable[Mapping], task: str) -> bool:
    """Whether its rates come from another machine than its held-out runs."""
    by_split: dict[str, set[str]] = {"validation": set(), "held out": set()}
    for one in lines:
        if one["task"] == task:
            by_split[one["split"]].add(one["machine"])
    return bool(by_split["held out"]) and by_split["validation"] != by_split["held out"]


def page(
    lines: Sequence[Mapping], repeated: Iterable[Mapping] = (), another: Sequence[Mapping] = ()
) -> str:
    """ABLATION.md."""
    found, theirs = by_row(lines), by_row(another)
    training, whole = hours(lines)
    machines = "; ".join(where_made(lines))
    versions = ", ".join(sorted({f"Paddle {one['paddle']}" for one in lines}))
    held_out = [one for one in lines if one["split"] == "held out"]
    tried = ", ".join(
        f"{len(seeds)} on {task}" for task in TASKS
        if (seeds := {
            one["seed"] for one in lines if (one["task"], one["split"]) == (task, "validation")
            and one["schedule"] != FULL
        })
    )  # fmt: skip
    at_edge = [
        f"{name} on {task}" for task, name in found
        if rate_kept(found, task, name) in edges(lines, task, name)
    ]  # fmt: skip
    chosen = [task for task in TASKS if of_images(task) and rates_elsewhere(lines, task)]
    elsewhere = ""
    if chosen:
        elsewhere = (
            f" The rates of {listed(chosen, 'and')} were chosen with a network that another "
            "machine had trained."
        )
    edge = f"still there: {', '.join(at_edge)}" if at_edge else "in no row does it still lie there"
    parts = [
        "# Which schedule helps?", "",
        "Written by `make ablation` from the lines in `benchmarks/results`; the first lines of "
        "`benchmarks/tasks.py` say what is learnt, those of `benchmarks/ablation.py` how. "
        f"{len(lines)} runs, {len(held_out)} of them on held-out data; {training:.1f} hours of one "
        f"processor in training, {whole:.1f} with start and evaluation (runs that were "
        f"repeated, or made with another pretrained network, come on top). {machines}; {versions}. "
        "AdamW, batches of 16, a constant rate unless the code says otherwise.", "",
        "**Rates.** Each schedule has its own best rate: three, half a decade apart, were tried on "
        f"validation data, or up to six while the best lay at the edge ({edge}), each with seeds "
        f"of their own ({tried}; 1000 sentences took the rates of 300). `full`, which all are "
        "compared with, had twice as many seeds for it: a difference to it hangs on its rate. "
        "Twice as many seeds favour `full`.", "",
        "**Intervals.** Differences are to `full` with the same seeds, with a 95 % interval over "
        "seeds (bootstrap, widened for few seeds). Pretrained weights, validation data (300 "
        "sentences, 250 images) and held-out data (300 sentences, 500 images) are the same for all "
        "seeds: the interval leaves out the chance of which these are, the choice of the rate, and "
        "LISA's draws, which are the same in all seeds. Where nothing differs, one comparison in "
        "twenty lies on one side of 0 by chance, and all on one task share the runs of `full`: "
        "trust what several tasks say.", "",
        "**Columns.** `seconds`: processor time of the training with one thread; that of OnPlateau "
        "with the ten evaluations that it needs. `memory`: the peak of Paddle's tensors meanwhile, "
        "beyond the network's weights; stored activations of a cache come on top. "
        "`ECE`: expected calibration error over 15 bins.", "",
        "**What else to know.** Only OnPlateau sees validation labels, ten times a run, in "
        "held-out runs, too. On text the cache changes numbers: dropout in frozen layers rests "
        "(head only, LP-FT); on images they are the same without it. `bottom 2%` of the ResNet18 "
        "is its stem and `layer1`. Statistics of BatchNorm are those of the pretrained "
        "network while a layer is frozen, as is the default, so a schedule decides about them, "
        "too; under `noise` they do not fit, which may be why gradual and OnPlateau fall so far "
        "behind (`train_norm=\"always\"` was not tried). The pretrained network of the images saw "
        "most of those that `noise` trains with, without the noise. The command trains it itself, "
        "which may give other bits on another machine; the held-out runs of one task all began "
        f"with the same network.{elsewhere}", "",
        "**Dropped, to stay within some hours.** Rates of 1000 sentences of its own; half of the "
        "seeds by which rates are chosen on sentences; the tasks of version 0.4 with 200 images "
        "and with the encoder's own pooler. The tables of LISA and of surgical fine-tuning "
        "could not be read: their abstracts stand below, and what others report.",
    ]  # fmt: skip
    parts += made_again(lines, repeated) + with_another(found, theirs)
    if few := unfinished(found):
        named = (
            f"{task} ({', '.join(names) if (task, FULL) in found else 'nothing yet'})"
            for task, names in few.items()
        )
        parts += ["", f"**Not finished:** {'; '.join(named)}."]
    parts += ["", "## All in one", "",
              "Accuracy on held-out data in %; `+` and `-` where the interval of the difference to "
              "`full` lies on one side of 0, no sign where no difference was seen; in brackets "
              "what is left of the old task (before: "
              + ", ".join(f"{task} {_before(found, task):.0f} %" for task in TASKS
                          if (task, FULL) in found)
              + "); time as a share of that of `full`.", "",
              *summary(found, ENGLISH, ("schedule", "time"))]  # fmt: skip
    parts += ["", "## What follows", "", *said(found, "en", theirs)]
    parts += ["", "## The best row of each task, to copy", "",
              "That which is ahead of `full` by most, or `full` (no schedule: everything is "
              "trained) where none is seen ahead; what the optimizer got as its learning rate; and "
              "those whose paired difference to it spans 0, the cheapest first, with their time as "
              "a share of that of `full`, and their rate. The first of many is ahead by luck, too: "
              "expect less of it.", "",
              *to_copy(found, "en", theirs)]  # fmt: skip
    for name, task in TASKS.items():
        if (name, FULL) in found:
            parts += ["", f"## {name}: {task.title}", "", *of_task(found, name)]
    parts += ["", "## Three claims about freezing first", *claims(found), "",
              *rates_of_full(lines), ""]  # fmt: skip
    parts += beside_published(found)
    return "\n".join(parts)


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


def _before(found: Found, task: str) -> float:
    return 100 * mean(found, task, FULL, lambda one: one["old_before"])


def part(found: Found, language: str, theirs: Found) -> str:
    """What docs/choosing.md shows of it."""
    chinese = language == "zh"
    heads = HEADS[language]
    titles = {name: task.chinese if chinese else task.title for name, task in TASKS.items()}
    colon = "：" if chinese else ": "
    before = "；旧任务（{}），微调前" if chinese else "; the old task ({}) before:"
    tasks = [
        f"- {heads[task]}{colon}{titles[task]}"
        f"{before.format(OLD_TASKS[language]['images' if of_images(task) else 'text'])} "
        f"{_before(found, task):.0f} %"
        for task in TASKS if (task, FULL) in found
    ]  # fmt: skip
    on_images = "，图像上 " if chinese else ", on images "
    with_rate = "，学习率 " if chinese else ", its learning rate "
    codes = [
        f"- {name}{colon}`{row.code}`" + (f"{on_images}`{row.on_images}`" if row.on_images else "")
        + ("" if row.rate == PLAIN else f"{with_rate}`{row.rate}`") for name, row in ROWS.items()
    ]  # fmt: skip
    rest = ("策略", "耗时") if chinese else ("schedule", "time")
    parts = [*summary(found, heads, rest), "", *tasks, ""]
    for lead, shown in zip(LEADS[language], (
        said(found, language, theirs), to_copy(found, language, theirs),
        [f"- {pair[chinese]}" for pair in claims_said(found)], codes,
    )):  # fmt: skip
        parts += [lead, "", *shown, ""]
    if few := unfinished(found):
        named = quoted(few) if chinese else ", ".join(few)
        parts += [f"尚未完成：{named}。" if chinese else f"Not finished: {named}.", ""]
    return "\n".join(parts)


def said(found: Found, language: str, theirs: Found) -> list[str]:
    """The sentences, a line each: all that the READMEs show."""
    return [f"- {pair[language == 'zh']}" for pair in advice(found, theirs)]


def write(
    lines: Sequence[Mapping], repeated: Iterable[Mapping] = (), another: Sequence[Mapping] = ()
) -> None:
    """Write the page, and the marked parts."""
    REPORT.write_text(page(lines, repeated, another), encoding="utf-8")
    found, theirs = by_row(lines), by_row(another)
    parts = [(file, part(found, language, theirs)) for language, file in DOCS.items()]
    parts += [
        (file, "\n".join([*said(found, language, theirs), ""]))
        for language, file in READMES.items()
    ]
    for file, new in parts:
        text = file.read_text(encoding="utf-8")
        before, mark, after = text.partition(MARK)
        _, end, after = after.partition(END)
        if not (mark and end):
            raise ValueError(
                f"{file} has no lines {MARK.strip()} and {END.strip()} to write between"
            )
        file.write_text(before + MARK + new + END + after, encoding="utf-8")
    print(f"wrote {REPORT}")
