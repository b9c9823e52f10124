"""The benchmark's questions run, and its report says what was found, when, and by which code."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"

LOOP = {"first": 1.04, "plain": 2.0, "2": 77.0, "3": 78.0, "10": 79.0, "in order": 80.0,
        "hits": 1.0, "firsts": [0.98, 1.04, 1.1]}  # fmt: skip
EPOCHS = {"predicted": 1536, "steps": 20, "bytes": 1536, "boundary": ["layers.5"],
          "fit": LOOP, "trainer": {**LOOP, "first": 1.2, "hits": 0.9}}  # fmt: skip


def run_of(total, frozen, opened):
    return {"total": total, "start": 0.5, "epochs": [4.0] * frozen + [6.0] * opened}


def whole(frozen, opened):
    return {"cache": run_of(10.0, frozen, opened), "plain": run_of(30.0, frozen, opened),
            "lightning": run_of(40.0, frozen, opened), "frozen": frozen,
            "finetuning-scheduler": run_of(50.0, frozen, opened), "held out": 80,
            "evaluations": [1.2, *[0.01] * (frozen - 1), *[1.1] * opened]}  # fmt: skip


EVENTS = {"ours": 3.0, "empty": 0.2}
PARTS = {"total": 2**20, "weights": 2**18, "gradients": 2**17, "optimizer": 2**17,
         "activations": 2**19}  # fmt: skip
FOUND = {
    "step": {"fit": {"ours": 1.0, "ms": 70.0, "events": EVENTS},
             "trainer": {"ours": 1.02, "ms": 71.0, "events": EVENTS}},
    "transition": {"ours": 12.0, "start": 20.0, "lightning": 4.0, "finetuning-scheduler": 5.0},
    "frozen_step": {"head": 0.36, "half": 0.69, "limit": 0.35, "half limit": 0.68},
    "some_rows": {"whole": 90.0, "rows": 50.0},
    "memory": {"everything": PARTS, "LISA, k=2": {**PARTS, "total": 2**19}},
    **dict.fromkeys(
        ["encoder_epochs", "half_encoder_epochs", "resnet_epochs", "part_resnet_epochs"], EPOCHS
    ),
    "lookup": {"key, 64 tokens": 0.9, "key, image 3 x 224 x 224": 16.0},
    "scale": {"memory 1000": [1.0, 2.0, 3.0], "disk 1000": [4.0, 5.0, 6.0]},
    "kernels": {"forward": 2.0, "step": 1.5, "forward ms": 50.0, "step ms": 150.0,
                "loops": {name: {"ours": 1.01, "plain": 1.0} for name in ("fit", "trainer")},
                "versions": {"torch": "2.13.0"}},
    "long_lp_ft": whole(20, 1), "short_lp_ft": whole(5, 2), "gradual": whole(1, 2),
}  # fmt: skip


@pytest.fixture
def report(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("report")


@pytest.fixture
def lines():
    machine = {"processor": "A processor", "cores": 2, "device": "CPU",
               "settings": {"OMP_NUM_THREADS": "2"}, "versions": {"Paddle": "3.3.1"}}  # fmt: skip
    return {
        name: {"question": name, "when": "2026-11-26 04:00 UTC", "seconds": 9, "load": [0.1, 2.0],
               "code": "new", "machine": machine, "found": found}
        for name, found in FOUND.items()
    }  # fmt: skip


def test_the_report_names_for_each_line_when_under_which_load_and_whether_by_older_code(
    report, lines
):
    lines["step"]["code"] = "old"
    text = report.results(lines, "new")
    rows = [line for line in text.splitlines() if line.startswith("| ") and "UTC" in line]
    assert all("2026-11-26 04:00 UTC, load 0.1 before, 2.0 after" in row for row in rows)
    assert [row.split(" | ")[0] for row in rows if "by older code" in row] == [
        "| a step without a transition, with / without the callback",
        "| all events of such a step, with rates, warm-up and cache",
    ]
    assert "- A processor, 2 cores, device CPU; Paddle 3.3.1, OMP_NUM_THREADS 2 (step, " in text
    for file in BENCHMARKS.glob("RESULTS-*.md"):
        assert file.read_text(encoding="utf-8").strip() in text


def test_what_was_aimed_at_is_said_to_be_reached_or_not(report, lines):
    verdicts = {}
    for line in report.results(lines, "new").splitlines():
        cells = line.strip("| ").split(" | ")
        if len(cells) == 5 and cells[3] in ("yes", "no"):
            verdicts.setdefault(cells[0], []).append(cells[3])
    assert verdicts["a step without a transition, with / without the callback"] == ["no"]
    assert verdicts["the start of a run on BERT base"] == ["yes"]
    assert "1.040 of an uncached one (20 steps; of 3 pairs 0.980 to 1.100)" in (
        report.results(lines, "new")
    )
    assert verdicts["the first epoch, which fills the cache"] == ["yes", "no"] * 4
    encoder = "6 x 384 encoder, whole backbone frozen"
    assert verdicts[f"cached epochs, shuffled, `fit`: {encoder}"] == ["yes"]
    assert verdicts[f"cached epochs, shuffled, Trainer: {encoder}"] == ["no"]
    assert verdicts["LP-FT, 20 + 1 epochs, shuffled, to the end"] == ["yes"]


def test_a_run_at_equal_kernels_and_where_its_time_goes(report, lines):
    text = report.results(lines, "new")
    # 10 s, of which the first frozen epoch would take 2 of its 4, and the open one 4 of its 6
    assert "4.00x against lightning (40.0 s; 6.7x at equal kernels)" in text
    assert "19 cached epochs 76.00, 1 further ones 6.00" in text
    asked = "| an evaluation of 80 samples in such a run | the first 1200 ms, "
    assert f"{asked}from the cache 10 ms, when more is open 1100 ms |" in text
    assert f"{asked}when more is open 1100 ms |" in text  # nothing is cached by then


def test_every_question_is_in_the_report(report, lines):
    whole_text = report.results(lines, "new")
    for name in lines:
        others = {one: line for one, line in lines.items() if one != name}
        assert report.results(others, "new") != whole_text
        assert report.results({name: lines[name]}, "new")  # alone, too


def test_the_documents_have_a_part_that_the_command_writes(report, lines, monkeypatch, tmp_path):
    from test_docs import AVOIDED

    docs = {language: tmp_path / file.name for language, file in report.DOCS.items()}
    for language, file in docs.items():
        file.write_text(report.DOCS[language].read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(report, "DOCS", docs)
    monkeypatch.setattr(report, "RESULTS", tmp_path / "RESULTS.md")
    assert report.write({"step": lines["step"]}, "new") == [tmp_path / "RESULTS.md"]
    for _ in range(2):  # and once more in the same place
        assert report.write(lines, "new") == [tmp_path / "RESULTS.md", *docs.values()]
    for language, found in (
        (
            "en",
            "| 6 x 384 encoder, whole backbone | `fit` | 1.04 of an uncached one | 77.0x faster",
        ),
        ("zh", "| 6 x 384 编码器，全部骨干网络 | `fit` | 不用缓存时的 1.04 倍 | 快 77.0 倍 |"),
    ):
        text = docs[language].read_text(encoding="utf-8")
        assert found in text
        assert text.count(report.MARK) == text.count(report.END) == 1
        assert "A processor" in text
    assert not [term for term in AVOIDED if term in report.part(lines, "zh")]


def test_a_question_runs_and_keeps_nothing_when_it_is_only_tried():
    kept = [BENCHMARKS / "results.jsonl", BENCHMARKS / "RESULTS.md"]
    before = [file.read_bytes() if file.exists() else None for file in kept]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(BENCHMARKS / "bench.py"), "--tiny", "lookup"],
        capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.stdout.count('"question": ') == 1
    assert "'device': 'CPU'" in done.stdout
    assert [file.read_bytes() if file.exists() else None for file in kept] == before


def test_a_question_that_is_none_is_named():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(BENCHMARKS / "bench.py"), "stepp"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert "unknown question 'stepp'; one of step, transition" in done.stderr
