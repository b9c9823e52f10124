"""How the answers of bench.py read: RESULTS.md, and the marked parts of the documents.

A marked part is what stands between ``<!-- bench: cache -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "RESULTS.md"
DOCS = {"en": HERE.parent / "docs" / "cache.md", "zh": HERE.parent / "docs" / "cache.zh-CN.md"}

MARK, END = "<!-- bench: cache -->\n", "<!-- end -->\n"

Found = dict[str, Any]
Row = tuple[str, str, str, str]  # what, as measured, the aim, whether it was reached


def _row(what: str, measured: str, aim: str = "", reached: bool | None = None) -> Row:
    return what, measured, aim, "" if reached is None else "yes" if reached else "no"


def _table(heads: list[str], rows: list[list[str]]) -> list[str]:
    lines = [heads, ["---"] * len(heads), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


# ---------------------------------------------------------------- one question each


def _step(found: Found) -> Iterator[Row]:
    fit, trainer = found["fit"], found["trainer"]
    yield _row(
        "a step without a transition, with / without the callback",
        f"`fit` {fit['ours']:.3f} of a {fit['ms']:.0f} ms step, Trainer {trainer['ours']:.3f} of "
        f"{trainer['ms']:.0f} ms",
        "<= 1.01", max(fit["ours"], trainer["ours"]) <= 1.01,
    )  # fmt: skip
    costs = [one["events"] for one in (fit, trainer)]
    beyond = [one["ours"] - one["empty"] for one in costs]
    yield _row(
        "all events of such a step, with rates, warm-up and cache",
        f"`fit` {costs[0]['ours']:.1f} microseconds (a callback that does nothing "
        f"{costs[0]['empty']:.1f}), Trainer {costs[1]['ours']:.1f} ({costs[1]['empty']:.1f})",
        "<= 4 and <= 2 more", beyond[0] <= 4 and beyond[1] <= 2,
    )  # fmt: skip


def _transition(found: Found) -> Iterator[Row]:
    yield _row(
        "opening BERT base stage by stage (201 tensors)",
        f"{found['ours']:.1f} ms for all 13 transitions; Lightning's "
        f"`unfreeze_and_add_param_group` {found['lightning']:.1f} ms, finetuning-scheduler's thaw "
        f"{found['finetuning-scheduler']:.1f} ms",
        "<= 13 ms", found["ours"] <= 13,
    )  # fmt: skip
    yield _row("the start of a run on BERT base", f"{found['start']:.1f} ms", "<= 30 ms",
               found["start"] <= 30)  # fmt: skip


def _frozen_step(found: Found) -> Iterator[Row]:
    yield _row(
        "a frozen step as a share of a full one",
        f"head only {found['head']:.2f} (limit, the forward alone: {found['limit']:.2f}), top half "
        f"{found['half']:.2f} (limit {found['half limit']:.2f})",
        "<= 0.37 and <= 0.70", found["head"] <= 0.37 and found["half"] <= 0.70,
    )  # fmt: skip


def _some_rows(found: Found) -> Iterator[Row]:
    yield _row("a step that trains 8 of 30,530 rows of a word table (1 block)",
               f"{found['rows']:.0f} ms; the whole table {found['whole']:.0f} ms")  # fmt: skip


EPOCHS = {  # the title, and the least that is aimed at
    "encoder_epochs": ("6 x 384 encoder, whole backbone", 50),
    "half_encoder_epochs": ("6 x 384 encoder, half", 1.2),
    "resnet_epochs": ("resnet18, whole backbone", 20),
    "part_resnet_epochs": ("resnet18 without layer4 and fc", 1.1),
}


def _epochs(name: str, found: Found) -> Iterator[Row]:
    title, least = EPOCHS[name]
    for loop, label in (("fit", "`fit`"), ("trainer", "Trainer")):
        one = found[loop]
        yield _row(
            f"cached epochs, shuffled, {label}: {title} frozen",
            f"second epoch {one['2']:.1f}x, third {one['3']:.1f}x, tenth {one['10']:.1f}x; in "
            f"order {one['in order']:.1f}x; {100 * one['hits']:.1f} % of the second epoch's "
            f"samples from the cache; without it {one['plain']:.2f} s",
            f">= {least}x, >= 99 %, >= 0.8 of in order",
            one["2"] >= least and one["hits"] >= 0.99 and one["2"] >= 0.8 * one["in order"],
        )  # fmt: skip
        yield _row(
            "the first epoch, which fills the cache",
            f"{one['first']:.3f} of an uncached one ({found['steps']} steps; of "
            f"{len(one['firsts'])} pairs {one['firsts'][0]:.3f} to {one['firsts'][-1]:.3f})",
            "<= 1.05", one["first"] <= 1.05,
        )  # fmt: skip
    yield _row("its memory", f"{found['bytes']:,} bytes a sample ({', '.join(found['boundary'])}), "
               f"{found['predicted']:,} predicted by preview")  # fmt: skip


def _lookup(found: Found) -> Iterator[Row]:
    fast = found["key, image 3 x 224 x 224"] <= 60 and found["key, 64 tokens"] <= 1
    text = "; ".join(f"{name} {value:.1f} microseconds" for name, value in found.items())
    yield _row("key and look-up, per sample", text, "keys: <= 60 for an image, <= 1 for 64 tokens",
               fast)  # fmt: skip


def _kernels(found: Found) -> Iterator[Row]:
    yield _row(
        "Paddle's bare kernels beside PyTorch's (MiniLM, 16 x 48)",
        f"forward {found['forward']:.2f}x, full step {found['step']:.2f}x the time",
    )
    loops = found["loops"]
    parts = [
        f"{label} {loops[name]['plain']:.2f}x, with the callback {loops[name]['ours']:.2f}x"
        for name, label in (("fit", "`fit`"), ("trainer", "Trainer"))
    ]
    yield _row("an open step in each loop, beside one without a loop "
               f"({found['step ms']:.0f} ms)", "; ".join(parts))  # fmt: skip


RUNS = {
    "long_lp_ft": ("LP-FT, 20 + 1 epochs", 3.3),
    "short_lp_ft": ("LP-FT, 5 + 2 epochs", 1.1),
    "gradual": ("the default `Gradual`, 3 epochs", None),
}


def _at_equal_kernels(found: Found, kernels: Found | None) -> float:
    """Our seconds, had the forward and the step of a frozen and an open epoch PyTorch's kernels."""
    own = found["cache"]
    if kernels is None:
        return own["total"]
    frozen = found["frozen"]
    ahead, opened = own["epochs"][0], sum(own["epochs"][frozen:])
    return own["total"] - ahead * (1 - 1 / kernels["forward"]) - opened * (1 - 1 / kernels["step"])


def _whole(name: str, found: Found, kernels: Found | None) -> Iterator[Row]:
    title, least = RUNS[name]
    own = found["cache"]
    others = {other: found[other]["total"] for other in ("lightning", "finetuning-scheduler")}
    equal = _at_equal_kernels(found, kernels)
    parts = [
        f"{seconds / own['total']:.2f}x against {other} ({seconds:.1f} s; "
        f"{seconds / equal:.1f}x at equal kernels)"
        for other, seconds in others.items()
    ]
    yield _row(
        f"{title}, shuffled, to the end",
        f"{own['total']:.1f} s with the cache ({found['plain']['total']:.1f} s without): "
        + ", ".join(parts),
        "" if least is None else f">= {least}x",
        None if least is None else min(others.values()) / own["total"] >= least,
    )  # fmt: skip
    frozen, plain = found["frozen"], found["plain"]["epochs"][0]
    cached, opened = own["epochs"][1:frozen], own["epochs"][frozen:]
    rest = own["total"] - own["start"] - sum(own["epochs"])
    yield _row(
        "where its time goes",
        f"start {own['start']:.2f} s, first epoch {plain:.2f}, filling the cache and trying the "
        f"network out {own['epochs'][0] - plain:.2f}, {len(cached)} cached epochs "
        f"{sum(cached):.2f}, {len(opened)} further ones {sum(opened):.2f}, the rest {rest:.2f}; "
        + "; ".join(
            f"{other}: start {found[other]['start']:.2f} s, frozen "
            f"{sum(found[other]['epochs'][:frozen]):.2f}, further "
            f"{sum(found[other]['epochs'][frozen:]):.2f}"
            for other in others
        ),
    )
    first, *later = found["evaluations"][:frozen]
    then = found["evaluations"][frozen:]
    parts = [f"the first {1e3 * first:.0f} ms", *(
        f"{label} {1e3 * statistics.median(some):.0f} ms"
        for label, some in (("from the cache", later), ("when more is open", then)) if some
    )]  # fmt: skip
    yield _row(f"an evaluation of {found['held out']} samples in such a run", ", ".join(parts))


def _rows_of(name: str, found: Found, kernels: Found | None) -> Iterator[Row]:
    if name in EPOCHS:
        return _epochs(name, found)
    if name in RUNS:
        return _whole(name, found, kernels)
    plain = {"step": _step, "transition": _transition, "frozen_step": _frozen_step,
             "some_rows": _some_rows,
             "lookup": _lookup, "kernels": _kernels}  # fmt: skip
    return plain[name](found) if name in plain else iter(())


# ---------------------------------------------------------------- tables of their own

PAPERS = {
    "Cyclic, k=1": "<= 0.16 (Luo et al. 2024: Llama 3 8B, over 144 to 23.5 GB)",
}


def _memory(found: Found) -> list[str]:
    parts = ("total", "weights", "gradients", "optimizer", "activations")
    full = found["everything"]
    rows = [
        [
            name,
            *(f"{one[part] / full['total']:.2f} ({one[part] / 2**20:.0f} MB)" for part in parts),
            PAPERS.get(name, ""),
        ]
        for name, one in found.items()
    ]
    return [
        "A decoder of 12 layers, AdamW, float32: the step that takes most memory, its parts as "
        "shares of the largest step of full training. Activations are what is left of the peak.",
        "",
        *_table(["open", *parts, "in the paper"], rows),
    ]


def _scale(found: Found) -> list[str]:
    counts = sorted({int(name.split()[1]) for name in found})
    rows = []
    for count in counts:
        memory, disk = found[f"memory {count}"], found[f"disk {count}"]
        cells = [f"{count:,}", f"{memory[0]:.1f}", f"{max(memory[1], 0):.0f}"]
        rows.append(cells + [f"{value:.1f}" for value in disk])
    heads = ["samples", "memory: look-up", "overhead", "disk: look-up", "write", "open"]
    return [
        "Features of 384 floats (1,536 bytes). Memory: microseconds to find one, bytes around each "
        "row beside features and key. Disk: microseconds to find and check one, to write one, and "
        "milliseconds to open the folder.",
        "",
        *_table(heads, rows),
    ]


TABLES = {"memory": ("Memory", _memory), "scale": ("As work grows", _scale)}


# ---------------------------------------------------------------- the files


def _measured(line: Mapping[str, Any], code: str) -> str:
    """When a line was measured, under which load, and whether by this code."""
    old = "" if line["code"] == code else "; **by older code**"
    before, after = line["load"]
    return f"{line['when']}, load {before} before, {after} after{old}"


def _machine(line: Mapping[str, Any]) -> str:
    machine = line["machine"]
    named = [*machine["versions"].items(), *machine["settings"].items()]
    return (
        f"{machine['processor']}, {machine['cores']} cores, device {machine['device']}; "
        + ", ".join(f"{name} {value}" for name, value in named)
    )


def results(lines: Mapping[str, Mapping[str, Any]], code: str) -> str:
    """The text of RESULTS.md."""
    kernels = lines["kernels"]["found"] if "kernels" in lines else None
    rows = [
        [*row, _measured(line, code)]
        for name, line in lines.items()
        for row in _rows_of(name, line["found"], kernels)
    ]
    text = [
        "# What it costs and what it saves",
        "",
        "Written by `make bench` alone; medians of several rounds, both sides in turn in one run.",
        "",
    ]
    machines = {name: _machine(line) for name, line in lines.items()}
    for each in dict.fromkeys(machines.values()):
        there = [name for name, one in machines.items() if one == each]
        text.append(f"- {each} ({', '.join(there)})")
    if kernels:
        others = ", ".join(f"{name} {one}" for name, one in kernels["versions"].items())
        text.append(f"- The other libraries: {others}, with the same number of threads")
    text += ["", *_table(["question", "measured", "aim", "reached", "when"], rows)]
    for name, (title, table) in TABLES.items():
        if name in lines:
            line = lines[name]
            text += ["", f"## {title}", "", *table(line["found"]), "", _measured(line, code) + "."]
    notes = (HERE / "RESULTS-notes.md").read_text(encoding="utf-8").strip()
    return "\n".join([*text, "", notes]) + "\n"


WORDS = {
    "en": {
        "heads": ["frozen (shuffled, 20 steps an epoch)", "loop", "epoch 1", "2", "3", "10"],
        "titles": [title for title, _ in EPOCHS.values()],
        "first": "{:.2f} of an uncached one", "later": "{:.1f}x faster",
        "run": "MiniLM, {}: {:.1f} s with the cache, {:.1f} s without; Lightning {:.1f} s, "
               "finetuning-scheduler {:.1f} s (PyTorch, same data and threads).",
        "runs": ["LP-FT, 20 + 1 epochs", "LP-FT, 5 + 2 epochs", "the default schedule, 3 epochs"],
        "where": "Measured on {}, {} cores, {}; load {} when it began "
                 "([benchmarks/RESULTS.md](../benchmarks/RESULTS.md)).",
    },
    "zh": {
        "heads": ["冻结的部分（打乱，每个 epoch 20 步）", "训练循环", "epoch 1", "2", "3", "10"],
        "titles": ["6 x 384 编码器，全部骨干网络", "6 x 384 编码器，一半", "resnet18，全部骨干网络",
                   "resnet18，`layer4` 和 `fc` 以外"],
        "first": "不用缓存时的 {:.2f} 倍", "later": "快 {:.1f} 倍",
        "run": "MiniLM，{}：使用缓存 {:.1f} 秒，不使用 {:.1f} 秒；Lightning {:.1f} 秒，"
               "finetuning-scheduler {:.1f} 秒（PyTorch，数据与线程数相同）。",
        "runs": ["LP-FT（20 + 1 个 epoch）", "LP-FT（5 + 2 个 epoch）",
                 "默认冻结计划（3 个 epoch）"],
        "where": "测于 {}，{} 核，{}；开始时的负载为 {}"
                 "（[benchmarks/RESULTS.md](../benchmarks/RESULTS.md)）。",
    },
}  # fmt: skip


def part(lines: Mapping[str, Mapping[str, Any]], language: str) -> str | None:
    """What the page on the cache shows; ``None`` as long as an answer is missing."""
    if not {*EPOCHS, *RUNS} <= lines.keys():
        return None
    words: dict[str, Any] = WORDS[language]
    rows = []
    for name, title in zip(EPOCHS, words["titles"]):
        for loop, label in (("fit", "`fit`"), ("trainer", "Trainer")):
            one = lines[name]["found"][loop]
            later = [words["later"].format(one[n]) for n in ("2", "3", "10")]
            rows.append([title, label, words["first"].format(one["first"]), *later])
    text = [*_table(words["heads"], rows), ""]
    for name, title in zip(RUNS, words["runs"]):
        found = lines[name]["found"]
        sides = ("cache", "plain", "lightning", "finetuning-scheduler")
        totals = [found[side]["total"] for side in sides]
        text += [words["run"].format(title, *totals), ""]
    line = lines["encoder_epochs"]
    machine = line["machine"]
    where = [machine["processor"], machine["cores"], line["when"], line["load"][0]]
    return "\n".join([*text, words["where"].format(*where)]) + "\n"


def write(lines: Mapping[str, Mapping[str, Any]], code: str) -> list[Path]:
    """Write the report, and the marked parts of the documents; returns the files."""
    RESULTS.write_text(results(lines, code), encoding="utf-8")
    written = [RESULTS]
    for language, file in DOCS.items():
        new = part(lines, language)
        if new is not None:
            text = file.read_text(encoding="utf-8")
            before, _, rest = text.partition(MARK)
            _, end, after = rest.partition(END)
            file.write_text(f"{before}{MARK}\n{new}\n{end}{after}", encoding="utf-8")
            written.append(file)
    return written
