"""How the ablation reads: ABLATION.md, and the marked parts of docs/choosing.md and README.md.

Both are there in English and in Chinese. Numbers come from :mod:`differences`, and go through
:mod:`ablation_tables` and :mod:`ablation_sentences`: every sentence follows from an interval, and
what spans 0 is called no difference.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ablation_runs import (
    edges,
    hours,
    made_again,
    rates_elsewhere,
    unfinished,
    where_made,
    with_another,
)
from ablation_sentences import advice, claims, claims_said, listed, quoted
from ablation_tables import (
    ENGLISH,
    HEADS,
    beside_published,
    of_task,
    rates_of_full,
    summary,
    to_copy,
)
from differences import FULL, Found, by_row, mean, rate_kept
from schedules import PLAIN, ROWS, of_images
from tasks import TASKS

HERE = Path(__file__).parent
REPORT = HERE / "ABLATION.md"
DOCS = {
    "en": HERE.parent / "docs" / "choosing.md",
    "zh": HERE.parent / "docs" / "choosing.zh-CN.md",
}
READMES = {"en": HERE.parent / "README.md", "zh": HERE.parent / "README.zh-CN.md"}
MARK, END = "<!-- ablation -->\n", "<!-- end -->\n"
#: Before each piece of a document's part.
LEADS = {
    "en": (
        "What follows from the intervals (where nothing differs, one comparison in twenty lies on "
        "one side of 0 by chance):",
        "To copy, for the task nearest to yours: what is ahead of `full` by most (the first of "
        "many is ahead by luck,\ntoo: expect less of it), or `full`, for which no schedule is "
        "needed, and what is not told apart from it:",
        "What is said of freezing first, counted over all schedules and these tasks:",
        "The code of each row, after `{}`:",
    ),
    "zh": (
        "由置信区间得出的结论（即使没有差别，二十次比较中也会有一次碰巧全在 0 的一侧）：",
        "可直接复制，请选与您的任务最接近的一行：领先 `full` 最多的策略（多者之首也有运气成分，"
        "实际优势会小一些；没有发现领先的，\n就是 `full`，无需策略），以及与它没有发现差别的策略：",
        "关于“先冻结”的三种说法，按全部策略和上述任务统计：",
        "各行的代码，先执行 `{}`：",
    ),
}
#: What the networks could do before.
OLD_TASKS = {
    "en": {"text": "sentence similarity", "images": "digits 0 to 4"},
    "zh": {"text": "句子相似度", "images": "数字 0–4"},
}


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
        "too; under `noise` they do not fit, which is most of why gradual falls so far behind: "
        "`gradual + statistics` is the same, but for statistics that move in frozen layers. The "
        "pretrained network of the images saw most of those that `noise` trains with, without the "
        "noise. The command trains it itself, which may give other bits on another machine; the "
        f"held-out runs of one task all began with the same network.{elsewhere}", "",
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


def _before(found: Found, task: str) -> float:
    return 100 * mean(found, task, FULL, lambda one: one["old_before"])


def imports() -> str:
    """What the code of all rows needs.

    >>> imports()[:58]
    'from paddle_freeze_callback import ByGradient, ChainThaw, '
    """
    codes = " ".join(f"{row.code} {row.on_images} {row.rate}" for row in ROWS.values())
    names = sorted(set(re.findall(r"\b[A-Z]\w+(?=[.(])", codes)))
    return f"from paddle_freeze_callback import {', '.join(names)}"


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
        [f"- {pair[chinese]}" for pair in claims_said(found).values()], codes,
    )):  # fmt: skip
        parts += [lead.format(imports()), "", *shown, ""]
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
    """Write the page, and the marked parts; nothing if one of them has no marks."""
    texts = {REPORT: page(lines, repeated, another)}
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
        texts[file] = before + MARK + new + END + after
    for file, text in texts.items():
        file.write_text(text, encoding="utf-8")
    print(f"wrote {REPORT}")
