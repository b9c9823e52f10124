"""What the callback and its cache cost, and what they save.

    python benchmarks/bench.py                  # every question (about 45 minutes), then the report
    python benchmarks/bench.py step lookup      # only these
    python benchmarks/bench.py --report         # only the report, from the answers that are there
    python benchmarks/bench.py --tiny [step]    # only see that they run; nothing is kept

Each answer is a line of results.jsonl: what was found, when, under which load, by which code, on
which machine. RESULTS.md and the marked parts of the documents are written from these lines alone.
It runs unchanged on a GPU, if Paddle's build is for one. ``make bench`` sets up the other
libraries, which are compared with, too.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "examples"))

import fast_on_a_cpu  # isort: skip

import argparse
import hashlib
import json
import logging
import os
import platform
import time
import warnings
from importlib.metadata import version

warnings.filterwarnings("ignore")

import paddle
import questions
import report
from machine import keep_freed_memory, processor

LINES = HERE / "results.jsonl"
FREED = "kept" if keep_freed_memory() else "as the system has it"


def code() -> str:
    """What tells whether the package is the same: a hash of its sources."""
    total = hashlib.sha256()
    package = HERE.parent / "paddle_freeze_callback"
    for path in sorted(package.rglob("*.py")):
        total.update(path.relative_to(package).as_posix().encode() + path.read_bytes())
    return total.hexdigest()[:12]


def machine() -> dict[str, object]:
    """Where this runs, and with which settings and versions."""
    gpu = paddle.get_device().startswith("gpu")
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "device": paddle.device.cuda.get_device_name() if gpu else "CPU",
        "settings": {
            **{name: os.environ[name] for name in fast_on_a_cpu.SETTINGS},
            "freed memory": FREED,
        },
        "versions": {
            "Python": platform.python_version(), "Paddle": paddle.__version__,
            "PaddleNLP": version("paddlenlp"),
        },
    }  # fmt: skip


def load() -> float:
    """Processes that want to run, over the last minute."""
    return round(os.getloadavg()[0], 1)


def answers() -> dict[str, dict]:
    """The lines that are there, by question."""
    if not LINES.exists():
        return {}
    lines = [json.loads(line) for line in LINES.read_text(encoding="utf-8").splitlines()]
    return {line["question"]: line for line in lines if line["question"] in questions.QUESTIONS}


def ask(name: str) -> dict:
    """The answer to a question, as a line."""
    before, began = load(), time.perf_counter()
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    found = questions.QUESTIONS[name]()
    seconds = round(time.perf_counter() - began)
    return {
        "question": name, "when": when, "seconds": seconds, "load": [before, load()],
        "code": code(), "machine": machine(), "found": found,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("questions", nargs="*", metavar="question",
                        help=f"of {', '.join(questions.QUESTIONS)}")  # fmt: skip
    parser.add_argument("--report", action="store_true", help="only write the report")
    parser.add_argument("--tiny", action="store_true", help="only see that the questions run")
    options = parser.parse_args()
    wrong = [name for name in options.questions if name not in questions.QUESTIONS]
    if wrong:
        parser.error(f"unknown question {wrong[0]!r}; one of {', '.join(questions.QUESTIONS)}")
    logging.disable(logging.WARNING)
    questions.tiny = options.tiny
    print(f"{machine()}, load {load()}", flush=True)
    for name in () if options.report else options.questions or questions.QUESTIONS:
        line = ask(name)
        print(json.dumps(line), flush=True)
        if not options.tiny:  # each is kept at once
            lines = {**answers(), name: line}
            ordered = [lines[one] for one in questions.QUESTIONS if one in lines]
            text = "".join(json.dumps(one) + "\n" for one in ordered)
            LINES.write_text(text, encoding="utf-8")
    if not options.tiny:
        for file in report.write(answers(), code()):
            print(f"wrote {file}")


if __name__ == "__main__":
    main()
