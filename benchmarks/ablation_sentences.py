"""What follows from the ablation's intervals, in words: advice, claims, how far to trust them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ablation_tables import CHINESE, ENGLISH, judged_text, table
from differences import (
    EVALUATED,
    FULL,
    Difference,
    Found,
    accuracies,
    accuracy,
    between,
    difference,
    gap,
    kept,
    leaders,
    mean,
    seconds,
    time_share,
    trained,
)
from schedules import ROWS
from tasks import TASKS


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
    for claim, (english, _) in claims_said(found).items():
        rows = []
        for name in ROWS:
            each = [difference(found, task, name, claim.what) for task in tasks]
            if any(each):
                rows.append([name, *(judged_text(one) if one else "" for one in each)])
        lines += ["", f"**{english}**", "", *table(["schedule", *map(ENGLISH.get, tasks)], rows)]
    return lines


def claims_said(found: Found) -> dict[Claim, tuple[str, str]]:
    """How often each claim holds, in two languages; without those that nothing was compared for."""
    sentences = {}
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
                f"（都是 {'、'.join(EVALUATED)}，因为包含评估）",
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
        sentences[claim] = f"{english}.", f"{chinese}。"
    return sentences


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
    """Tasks in a Chinese sentence; between quotation marks there is no comma (GB/T 15834)."""
    return "".join(f"“{CHINESE[task]}”" for task in tasks)


Sentence = tuple[str, str]


def advice(found: Found, theirs: Found) -> list[Sentence]:
    """At most five sentences, in two languages, each from intervals and naming its rows.

    What another pretrained network gave, in ``theirs``, is said where its verdict is another one.
    """
    best = leaders(found)
    if not best:
        return []
    tasks = list(best)
    no_worse = _named(found, tasks, lambda one: one.sign >= 0)
    behind = _named(found, tasks, lambda one: one.sign < 0)
    each = (
        _ahead(found, theirs, best), _not_behind(found, tasks, no_worse),
        _keeps_more(found, tasks, no_worse), _behind(tasks, behind), _under_noise(found),
    )  # fmt: skip
    return [one for one in each if one]


def _ahead(found: Found, theirs: Found, best: Mapping[str, str]) -> Sentence:
    """What is more accurate than training everything, on which task."""
    none_on = [task for task, name in best.items() if name == FULL]
    on_tasks = []
    for task, name in best.items():
        most, there = (difference(each, task, name, accuracy) for each in (found, theirs))
        if not most:
            continue
        better, tried = _better(found, task)
        but, zh = "", ""
        if there and there.sign != most.sign:
            too, of = _better(theirs, task)
            but = (
                f"; with another pretrained network {too or 'none'} of {of}, {name} "
                f"{judged_text(there)}"
            )
            zh_too = f"中有 {too} 种领先" if too else "无一领先"
            zh = f"；换一个预训练网络时，{of} 种{zh_too}，{name} 为 {there.text()}"
        on_tasks.append((
            f"on {ENGLISH[task]} {better} of {tried} schedules, most {name} ({most.text()}{but})",
            f"“{CHINESE[task]}”上 {tried} 种策略中的 {better} 种，领先最多的是 {name}"
            f"（{most.text()}{zh}）",
        ))  # fmt: skip
    if not on_tasks:
        return (
            "No schedule was seen to be more accurate than training everything from the start at "
            "its own best rate.",
            "在各自最佳学习率下，没有发现哪种策略的准确率高于一开始就训练全部参数。",
        )
    english, chinese = zip(*on_tasks)
    return (
        f"More accurate than training everything from the start: {'; '.join(english)}"
        + (f"; none seen on {listed(none_on, 'or')}." if none_on else "."),
        f"准确率高于一开始就训练全部参数的有：{'；'.join(chinese)}"
        + (f"；{quoted(none_on)}上没有发现。" if none_on else "。"),
    )


def _better(found: Found, task: str) -> tuple[int, int]:
    """How many schedules are ahead of ``full``, and how many were tried."""
    each = accuracies(found, task).values()
    return sum(one.sign > 0 for one in each), len(each)


def _not_behind(found: Found, tasks: Sequence[str], no_worse: Sequence[str]) -> Sentence | None:
    """What was on no task seen to be less accurate, and the cheapest of it."""
    if not no_worse:
        return None
    shares = {
        name: statistics.mean(each) for name in no_worse
        if None not in (each := [time_share(found, task, name) for task in tasks])
    }  # fmt: skip
    english = f"On no task seen behind `full`: {', '.join(no_worse)}"
    chinese = f"在各任务上均未发现落后于 `full` 的有：{'、'.join(no_worse)}"
    if shares:
        cheapest = min(shares, key=lambda name: shares[name])
        code = "" if ROWS[cheapest].on_images else f"`{ROWS[cheapest].code}`"
        share = f"{100 * shares[cheapest]:.0f} %"
        less = sum(
            bool((one := difference(found, task, cheapest, kept)) and one.sign < 0)
            for task in tasks
        )
        if len(no_worse) > 1:
            english += f"; the cheapest of them is {cheapest}"
            chinese += f"；其中最省时的是 {cheapest}"
        whole = less == len(tasks)
        english += (
            f"{code and f' ({code})'}, at {share} of the time of `full`, mean over tasks; it kept "
            f"less of the old task on {f'all {less}' if whole else f'{less} of {len(tasks)}'}"
        )
        chinese += f"{code and f'（{code}）'}，平均耗时为 `full` 的 {share}；" + (
            f"在全部 {less} 个任务上保留的旧任务能力都更少" if whole
            else f"{len(tasks)} 个任务中有 {less} 个保留的旧任务能力更少"
        )  # fmt: skip
    return f"{english}.", f"{chinese}。"


def _keeps_more(found: Found, tasks: Sequence[str], no_worse: Sequence[str]) -> Sentence | None:
    """What of these, which were nowhere seen behind, kept more of the old task everywhere."""
    keeps = [
        name for name in no_worse
        if all((one := difference(found, t, name, kept)) and one.sign > 0 for t in tasks)
    ]  # fmt: skip
    if not keeps:
        return None
    return (
        f"If it must keep what it could do: {', '.join(keeps)} kept more of the old task on "
        "every task, and were not seen behind in accuracy.",
        f"需要保留原有能力时：{'、'.join(keeps)} 在每个任务上都保留了更多旧任务的能力，"
        "准确率也没有发现落后。",
    )


def _behind(tasks: Sequence[str], behind: Sequence[str]) -> Sentence | None:
    """What is less accurate everywhere."""
    if not behind:
        return None
    return (
        f"Behind `full` on all {len(tasks)} tasks: {', '.join(behind)}.",
        f"在全部 {len(tasks)} 个任务上都落后于 `full` 的有：{'、'.join(behind)}。",
    )


def _under_noise(found: Found) -> Sentence | None:
    """What training the bottom alone is worth there, and what norms that follow the new input."""
    bottom = difference(found, "noise", "bottom only", accuracy)
    if not bottom:
        return None
    seen, zh_seen = {
        1: ("was more accurate than", "准确率高于训练全部参数"),
        0: ("showed no difference to", "与训练全部参数没有发现差别"),
        -1: ("was less accurate than", "准确率低于训练全部参数"),
    }[bottom.sign]
    code = f"`{ROWS['bottom only'].code}`"
    changes = []
    for name in ("gradual + norms", "gradual + statistics"):
        gain = between(found, "noise", name, "gradual", accuracy)
        if gain and (rest := difference(found, "noise", name, accuracy)):
            changes.append((f"`{ROWS[name].code}`", gain.text(), rest.text()))
    norms, zh_norms = "", ""
    if changes:
        norms = " and by ".join(
            f"{gain} with {made} (to `full`: {rest})" for made, gain, rest in changes
        )
        norms = f"; gradual, whose frozen norms keep their statistics, changes by {norms}"
        zh_norms = "，".join(
            f"改用 {made} 后准确率变化 {gain}（与 `full` 之差 {rest}）"
            for made, gain, rest in changes
        )
        zh_norms = f"；gradual 的冻结归一化层保留原统计量，{zh_norms}"
    return (
        f"Where the input changed and the labels did not (noise), training the bottom alone "
        f"({code}) {seen} training everything ({bottom.text()}){norms}.",
        f"输入变化而标签不变时（加噪声），只训练底层（{code}）{zh_seen}（{bottom.text()}）{zh_norms}。",
    )
