"""Which schedule helps: each at its own best rate, on five tasks.

    python benchmarks/ablation.py                         every run that is missing, then the report
    python benchmarks/ablation.py --task noise --jobs 2   only these; several processes at a time
    python benchmarks/ablation.py --report                only the report, from what is there
    python benchmarks/ablation.py --again 2               two finished runs once more: same numbers?

First each schedule is trained with three learning rates, half decades apart, or more while the best
lies at the edge, and with seeds of their own; the rate with the best mean accuracy on validation
data is kept (1,000 sentences take that of 300, which saves hours). Then it is trained with eight
further seeds and judged on held-out data. tasks.py says what is learnt, schedules.py by which
schedules.

Each run is a process with one thread, and a line of JSON in results/, written when it ends: a
benchmark that is stopped at any time goes on where it was, on another day or machine. A line holds
a hash of what produced it; a line with another hash than today's is run again, and not reported.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "examples"))
os.environ["OMP_NUM_THREADS"] = "1"

import fast_on_a_cpu  # noqa: F401  isort: skip

import argparse
import datetime
import functools
import hashlib
import json
import logging
import multiprocessing
import signal
import statistics
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess as Process

warnings.filterwarnings("ignore")

import paddle
from machine import processor
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from schedules import ROWS, Row
from tasks import TASKS, fetch_digits, pretrained
from training import Run, first_weights, results

from paddle_freeze_callback import __version__

RESULTS = HERE / "results"
#: Not 0, which the images' pretrained network was made with: a new head would be its old one.
SEEDS = tuple(range(1, 9))
#: Tasks that take the best rates of another, to save hours.
RATES_OF = {"1000 sentences": "300 sentences"}
FIRST_RATES, MOST_RATES = (-0.5, 0.0, 0.5), 6


# ---------------------------------------------------------------- processes


def start(run: Run | None) -> tuple[Connection, Process]:
    """Begin a run in a process of its own; ``None`` makes the weights that all images begin with.

    Forked, as a new process would import for seconds; nothing was built here before.
    """
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(run, there), daemon=True)
    child.start()
    there.close()
    return here, child


def _child(run: Run | None, end: Connection) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    logging.disable(logging.WARNING)
    if run is None:
        pretrained(first_weights)
    end.send(None if run is None else results(run))


def result_of(run: Run | None, here: Connection, child: Process) -> dict[str, float]:
    """Wait for its numbers."""
    try:
        return here.recv()
    except EOFError:
        child.join()
        raise SystemExit(f"{run} ended with exit code {child.exitcode}") from None
    finally:
        child.join()


# ---------------------------------------------------------------- which runs


def produced_by(run: Run) -> str:
    """A hash of what decides the numbers of a run: the schedule, its tasks, how it trains."""
    row = ROWS[run.schedule]
    total = hashlib.sha256(f"{row.code_on(run.task)} {row.rate}".encode())
    for name in ("tasks.py", "training.py"):
        total.update((HERE / name).read_bytes())
    return total.hexdigest()[:12]


@functools.cache
def sources() -> str:
    """A hash of the package, and of the example that text is fetched with; kept, not asked for.

    A change of the package should change no number; ``--again`` shows whether it did.
    """
    root = HERE.parent
    total = hashlib.sha256()
    example = root / "examples" / "finetune_sentiment.py"
    for file in [*sorted((root / "paddle_freeze_callback").rglob("*.py")), example]:
        total.update(file.relative_to(root).as_posix().encode() + file.read_bytes())
    return total.hexdigest()[:12]


def finished(folder: Path = RESULTS) -> list[dict]:
    """All results that today's code would give."""
    lines = [
        json.loads(line)
        for file in sorted(folder.glob("*.jsonl"))
        for line in file.read_text(encoding="utf-8").splitlines()
    ]
    return [one for one in lines if known(one) and one["code"] == produced_by(run_of(one))]


def known(line: dict) -> bool:
    """Whether there is still such a task and such a schedule."""
    return line["task"] in TASKS and line["schedule"] in ROWS


def run_of(line: dict) -> Run:
    """The run that a line is the result of."""
    return Run(line["task"], line["schedule"], line["rate"], line["seed"], line["split"])


def rate_of(power: float) -> float:
    """Ten to this power, to two digits.

    >>> rate_of(-3.5), rate_of(-3)
    (0.00032, 0.001)
    """
    return float(f"{10**power:.2g}")


def validation_seeds(task: str, schedule: str) -> range:
    """The seeds by which a rate is chosen.

    Few images make runs differ much, and the best mean of two seeds was often a lucky one; and
    every difference is one to ``full``.

    >>> validation_seeds("noise", "LISA"), validation_seeds("300 sentences", "full")
    (range(100, 104), range(100, 104))
    """
    return range(100, 100 + (2 if "sentences" in task else 4) * (2 if schedule == "full" else 1))


def _best(row: Row, powers: Iterable[float], scores: Mapping[float, float]) -> float:
    """Of equal ones that nearest to the usual."""
    return max(powers, key=lambda one: (scores[rate_of(one)], -abs(one - row.usual)))


def powers(row: Row, scores: Mapping[float, float]) -> list[float]:
    """Which rates to try, as powers of ten: three, and further ones while the best is at the edge.

    >>> row = Row("", usual=-3)
    >>> powers(row, {})
    [-3.5, -3.0, -2.5]
    >>> powers(row, {0.00032: 0.5, 0.001: 0.6, 0.0032: 0.7})
    [-3.5, -3.0, -2.5, -2.0]
    """
    tried = [row.usual + one for one in FIRST_RATES]
    while len(tried) < MOST_RATES and all(rate_of(one) in scores for one in tried):
        best = _best(row, tried, scores)
        if best == tried[-1]:
            tried.append(best + 0.5)
        elif best == tried[0]:
            tried.insert(0, best - 0.5)
        else:
            break
    return tried


def scores(lines: Iterable[dict], task: str, schedule: str) -> dict[float, float]:
    """The mean accuracy on validation data for each rate that all seeds have tried.

    Of a task that takes the rates of another, those of that one.
    """
    task = RATES_OF.get(task, task)
    by_rate: dict[float, dict[int, float]] = {}
    for one in lines:
        if (one["task"], one["schedule"], one["split"]) == (task, schedule, "validation"):
            by_rate.setdefault(one["rate"], {})[one["seed"]] = one["accuracy"]
    wanted = validation_seeds(task, schedule)
    full = {rate: seeds for rate, seeds in by_rate.items() if seeds.keys() >= set(wanted)}
    return {rate: statistics.mean(seeds[seed] for seed in wanted) for rate, seeds in full.items()}


def best_rate(row: Row, found: dict[float, float]) -> float | None:
    """The rate with the best score, once all that are to be tried have one."""
    tried = powers(row, found)
    return rate_of(_best(row, tried, found)) if all(rate_of(o) in found for o in tried) else None


def counted(lines: Sequence[dict]) -> list[dict]:
    """Without held-out runs at a rate or with a seed that is no more among those that count."""
    best = {
        (task, name): best_rate(ROWS[name], scores(lines, task, name))
        for task, name in {(one["task"], one["schedule"]) for one in lines}
    }
    return [
        one for one in lines
        if one["split"] != "held out"
        or (one["rate"] == best[one["task"], one["schedule"]] and one["seed"] in SEEDS)
    ]  # fmt: skip


def missing(
    lines: Sequence[dict], tasks: Collection[str], schedules: Collection[str], seeds: int
) -> list[Run]:
    """The runs that are known to be needed now; more may follow from their results."""
    there = {run_of(one) for one in lines}
    wanted: list[tuple[int, Run]] = []
    for task in tasks:
        for name in schedules:
            row = ROWS[name]
            if not row.tried_on(task):
                continue
            found, source = scores(lines, task, name), RATES_OF.get(task, task)
            wanted += [
                (-1, Run(source, name, rate, seed, "validation"))
                for rate in map(rate_of, powers(row, found))
                for seed in validation_seeds(source, name)
            ]  # fmt: skip
            rate = best_rate(row, found)
            if rate is not None:
                wanted += [(s, Run(task, name, rate, s, "held out")) for s in SEEDS[:seeds]]
    # Seed by seed, so that an early report is fair to all.
    in_order = dict.fromkeys(run for _, run in sorted(wanted, key=lambda one: one[0]))
    return [run for run in in_order if run not in there]


def left(
    lines: Sequence[dict], tasks: Collection[str], schedules: Collection[str], seeds: int
) -> float:
    """Seconds of one processor that are left, from what runs took; a guess.

    What is known to be missing, and the held-out runs of schedules whose rate is not known yet.
    """
    took = {
        task: statistics.mean([o.get("whole", o["seconds"]) for o in lines if o["task"] == task]
                              or [30.0])
        for task in TASKS
    }  # fmt: skip
    total = sum(took[run.task] for run in missing(lines, tasks, schedules, seeds))
    for task in tasks:
        for name in schedules:
            row = ROWS[name]
            if row.tried_on(task) and best_rate(row, scores(lines, task, name)) is None:
                total += seeds * took[task]
    return total


def keep(run: Run, numbers: dict[str, float], folder: Path = RESULTS) -> dict:
    """Write a result to the end of its file."""
    line = {
        **asdict(run), **numbers, "code": produced_by(run), "package": __version__,
        "sources": sources(), "paddle": paddle.__version__, "paddlenlp": version("paddlenlp"),
        "machine": f"{processor()}, {os.cpu_count()} cores",
        "day": datetime.date.today().isoformat(),
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    with (folder / f"{run.task.replace(' ', '-')}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())
    return line


# ---------------------------------------------------------------- all of them


def _prepare() -> None:
    """Fetch and make what all runs begin with."""
    result_of(None, *start(None))
    fetch_digits()


def run_all(tasks: Sequence[str], schedules: Sequence[str], seeds: int, jobs: int) -> None:
    """Do what is missing, a line of progress meanwhile."""
    _prepare()
    lines = finished()
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )  # fmt: skip
    running: dict[Connection, tuple[Run, Process]] = {}
    with Progress(*columns) as progress:
        shown = progress.add_task("ablation", total=None, left="")
        try:
            while True:
                begun = [run for run, _ in running.values()]
                needed = missing(lines, tasks, schedules, seeds)
                todo = [run for run in needed if run not in begun]
                for run in todo[: jobs - len(running)]:
                    here, child = start(run)
                    running[here] = run, child
                hours = left(lines, tasks, schedules, seeds) / jobs / 3600
                total = len(lines) + len(needed)
                rest = f"about {hours:.1f} hours left"
                progress.update(shown, completed=len(lines), total=total, left=rest)
                if not running:
                    return
                for here in wait(list(running)):
                    run, child = running.pop(here)
                    numbers = result_of(run, here, child)
                    lines.append(keep(run, numbers))
                    progress.console.print(
                        f"{run.task}: {run.schedule}, rate {run.rate:g}, seed {run.seed}, "
                        f"{run.split}: {numbers['accuracy']:.3f} in {numbers['seconds']:.0f} s"
                    )
        finally:
            for _, child in running.values():
                child.terminate()


def again(number: int) -> int:
    """Do finished runs once more; the numbers must be the same. How many were not."""
    _prepare()
    lines = [one for one in counted(finished()) if one["split"] == "held out"]
    wrong = 0
    for line in lines[:: max(len(lines) // number, 1)][:number]:
        run = run_of(line)
        now = result_of(run, *start(run))
        differ = [n for n in now if n not in ("seconds", "memory") and now[n] != line[n]]
        print(run, "differs in " + ", ".join(differ) if differ else "gives the same")
        wrong += bool(differ)
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", nargs="+", default=list(TASKS), choices=TASKS, metavar="TASK",
                        help=f"only these of: {', '.join(TASKS)}")  # fmt: skip
    parser.add_argument("--schedule", nargs="+", default=list(ROWS), choices=ROWS,
                        metavar="SCHEDULE", help=f"only these of: {', '.join(ROWS)}")  # fmt: skip
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="so many, not all")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at a time")
    parser.add_argument("--report", action="store_true", help="only write the report")
    parser.add_argument("--again", type=int, metavar="N", help="only do so many runs once more")
    options = parser.parse_args()
    if options.again:
        raise SystemExit(again(options.again))
    if not options.report:
        run_all(options.task, options.schedule, options.seeds, options.jobs)
    import ablation_report

    ablation_report.write(counted(finished()))


if __name__ == "__main__":
    main()
