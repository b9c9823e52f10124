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
    accuracy,
    between,
    by_row,
    difference,
    gap,
    kept,
    leaders,
    mean,
    rate_kept,
    seconds,
    time_share,
    trained,
    unlike,
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
        gain = between(found, "noise", "gradual, norms", "gradual", accuracy)
        left = difference(found, "noise", "gradual, norms", accuracy)
        norms, zh_norms = "", ""
        if gain and left:
            norms_code = f"`{ROWS['gradual, norms'].code}`"
            norms = (
                f"; normalization that trains from the start ({norms_code}) changed gradual by "
                f"{gain.text()}, which leaves it at {left.text()} to `full`"
            )
            zh_norms = (
                f"；归一化层从一开始就训练（{norms_code}）使 gradual 的准确率变化 {gain.text()}，"
                f"此时与 `full` 之差为 {left.text()}"
            )
        sentences.append((
            f"Where the input changed and the labels did not (noise), training the bottom alone "
            f"({code}) {seen} ({bottom.text()}){norms}.",
            f"输入变化而标签不变时（加噪声），只训练底层（{code}）{zh}（{bottom.text()}）{zh_norms}。",
        ))  # fmt: skip
    return sentences


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


def _machines(lines: Iterable[Mapping]) -> dict[tuple[str, str], set[str]]:
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
    found = _machines(lines)
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
    found = _machines(lines)
    rates, held = (found.get((task, split), set()) for split in ("validation", "held out"))
    return bool(held) and rates != held
