"""Which schedule helps: each at its own best rate, on five tasks.

    python benchmarks/ablation.py                         every run that is missing, then the report
    python benchmarks/ablation.py --task noise --jobs 2   only these; several processes at a time
    python benchmarks/ablation.py --report                only the report, from what is there
    python benchmarks/ablation.py --again 1 2             held-out runs of seeds 1 and 2 once more,
                                                          from nothing: the same numbers?

First each schedule is trained with three learning rates, half decades apart, or more while the best
lies at the edge, and with seeds of their own; the rate with the best mean accuracy on validation
data is kept (1,000 sentences take that of 300, which saves hours). Then it is trained with eight
further seeds and judged on held-out data. tasks.py says what is learnt, schedules.py by which
schedules.

Each run is a process with one thread, and a line of JSON in results/, written when it ends: a
benchmark that is stopped at any time goes on where it was, on another day or machine. A line holds
a hash of what produced it; a line with another hash than today's is run again, and not reported.
"was" in a line is an older hash: the run was kept because the change did not concern it. All
held-out runs of images on one task begin with the same pretrained network; another machine may
train another one, and can still do tasks of which no held-out run was made.
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
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess as Process
from typing import Any

warnings.filterwarnings("ignore")

import ablation_report
import numpy as np
import paddle
from differences import ALL_SEEDS, NUMBERS, unlike
from finetune_sentiment import CACHE, fetch_model, fetch_sentences
from machine import processor
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from schedules import ROWS, Row, of_images
from tasks import TASKS, fetch_digits, pretrained
from training import Run, first_weights, results

from paddle_freeze_callback import __version__

RESULTS = HERE / "results"
#: Not 0, which the images' pretrained network was made with: a new head would be its old one.
SEEDS = tuple(range(1, ALL_SEEDS + 1))
#: Tasks that take the best rates of another, to save hours.
RATES_OF = {"1000 sentences": "300 sentences"}
NO_NETWORK = "the network that all images begin with could not be made"
STOPPED = "stopped; the same command goes on from here"
FIRST_RATES, MOST_RATES = (-0.5, 0.0, 0.5), 6
PRETRAINED = CACHE / "ablation-resnet18.pdparams"
#: What no line of results is without.
NEEDED = {*Run.__dataclass_fields__, *NUMBERS, "seconds", "memory", "code", "machine", "paddle"}
#: Runs made once more, lines of the same kind.
AGAIN = RESULTS / "again"
#: Runs of images with a pretrained network that another machine had trained.
ANOTHER = RESULTS / "another"


# ---------------------------------------------------------------- processes


def start(work: Callable[[], Any]) -> tuple[Connection, Process]:
    """Begin some work in a process of its own.

    Forked, as a new process would import for seconds; nothing was built here before.
    """
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(work, there), daemon=True)
    child.start()
    there.close()
    return here, child


def _child(work: Callable[[], Any], end: Connection) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all: the parent ends this one
    logging.disable(logging.WARNING)
    end.send(work())


def result_of(here: Connection, child: Process) -> Any:
    """Wait for what it gives; ``None`` if it failed, which it has said itself."""
    try:
        return here.recv()
    except EOFError:
        return None
    finally:
        child.join()


def in_parallel(
    todo: Callable[[], Sequence[Run]], jobs: int
) -> Iterator[tuple[Run, dict[str, float] | None]]:
    """Runs and their numbers as they end; ``todo`` is asked for more whenever a process is free."""
    running: dict[Connection, tuple[Run, Process]] = {}
    try:
        while True:
            begun = [run for run, _ in running.values()]
            for run in [one for one in todo() if one not in begun][: jobs - len(running)]:
                here, child = start(functools.partial(results, run))
                running[here] = run, child
            if not running:
                return
            for here in wait(list(running)):
                run, child = running.pop(here)
                yield run, result_of(here, child)
    finally:
        for _, child in running.values():
            child.terminate()


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


@functools.cache
def weights() -> str:
    """A hash of what the images' network knew before; another machine may have learnt other ones.

    Computed in a process of its own, so that those that are forked later begin without them.
    """
    found = result_of(*start(_weights))
    if found is None:
        raise SystemExit(NO_NETWORK)
    return found


def _weights() -> str:
    """Makes the network, if it is not there."""
    total = hashlib.sha256()
    for name, value in sorted(pretrained(first_weights).items()):
        total.update(name.encode() + np.ascontiguousarray(value.numpy()).tobytes())
    return total.hexdigest()[:12]


def finished(folder: Path = RESULTS) -> list[dict]:
    """All results that today's code would give, each run once.

    A line that was cut off, when a machine went down, is left out, and so are those of other code;
    both are said. Of a run that two machines made the first line counts.

    Raises:
        SystemExit: if held-out runs of one task began with different weights: they are not to be
            compared. Those that only chose a rate may have.
    """
    there: dict[Run, dict] = {}
    for file in sorted(folder.glob("*.jsonl")):
        others = 0
        for number, text in enumerate(file.read_bytes().split(b"\n"), 1):
            line = _read(text)
            if line is None:
                if text.strip():
                    _say(f"{file}:{number}: left out, not a whole result: {text[:60]!r}")
            elif known(line) and line["code"] == produced_by(run_of(line)):
                there.setdefault(run_of(line), line)
            else:
                others += 1
        if others:
            _say(f"{file}: {others} lines are of other code than today's, and do not count")
    for task in TASKS:
        seen = _machines(there.values(), [task])
        if len(seen) > 1:
            raise SystemExit(
                f"held-out runs of {task} began with different weights, those of {seen}: in "
                f"{folder}, keep the lines of one"
            )
    return list(there.values())


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _read(text: bytes) -> dict | None:
    """A line of results, if it is a whole one."""
    try:
        line = json.loads(text)
    except ValueError:  # of JSON, or of UTF-8
        return None
    return line if isinstance(line, dict) and line.keys() >= NEEDED else None


def _machines(lines: Iterable[dict], tasks: Collection[str]) -> dict[str, str]:
    """By hash, the weights that held-out runs of images began with, and where they were made."""
    return {
        one.get("weights", "unknown"): one["machine"] for one in lines
        if one["task"] in tasks and one["split"] == "held out" and of_images(one["task"])
    }  # fmt: skip


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
    return range(100, 100 + (4 if of_images(task) else 2) * (2 if schedule == "full" else 1))


def _best(row: Row, tried: Iterable[float], found: Mapping[float, float]) -> float:
    """Of equal ones that nearest to the usual."""
    return max(tried, key=lambda one: (found[rate_of(one)], -abs(one - row.usual)))


def powers(row: Row, found: Mapping[float, float]) -> list[float]:
    """Which rates to try, as powers of ten: three, and further ones while the best is at the edge.

    >>> row = Row("", usual=-3)
    >>> powers(row, {})
    [-3.5, -3.0, -2.5]
    >>> powers(row, {0.00032: 0.5, 0.001: 0.6, 0.0032: 0.7})
    [-3.5, -3.0, -2.5, -2.0]
    """
    tried = [row.usual + one for one in FIRST_RATES]
    while len(tried) < MOST_RATES and all(rate_of(one) in found for one in tried):
        best = _best(row, tried, found)
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


def seconds_left(
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
        "sources": sources(), "weights": weights() if of_images(run.task) else "",
        "paddle": paddle.__version__, "paddlenlp": version("paddlenlp"),
        "machine": f"{processor()}, {os.cpu_count()} cores",
        "day": datetime.date.today().isoformat(),
    }  # fmt: skip
    path = folder / f"{run.task.replace(' ', '-')}.jsonl"
    cut_off = path.exists() and not path.read_bytes().endswith(b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" * cut_off + json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())
    return line


# ---------------------------------------------------------------- all of them


def _check_writable(folder: Path) -> None:
    """Before a run, whose numbers would be lost.

    Raises:
        SystemExit: if nothing can be written there.
    """
    try:
        folder.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SystemExit(f"results cannot be written to {folder}: {error}") from None


def _prepare(lines: Iterable[dict], tasks: Collection[str]) -> None:
    """Fetch and make what all runs begin with; held-out runs of others are not gone on with."""
    CACHE.mkdir(parents=True, exist_ok=True)
    if not all(of_images(task) for task in tasks):
        fetch_model(CACHE)
        fetch_sentences(CACHE)
    if not any(of_images(task) for task in tasks):
        return
    fetch_digits()
    if result_of(*start(_weights)) is None:
        raise SystemExit(NO_NETWORK)
    others = {where for what, where in _machines(lines, tasks).items() if what != weights()}
    if others:
        raise SystemExit(
            f"this machine's pretrained network is not that of {', '.join(others)}: go on there, "
            f"copy {PRETRAINED} from it, or move these tasks' held-out results away"
        )


def run_all(tasks: Sequence[str], schedules: Sequence[str], seeds: int, jobs: int) -> list[Run]:
    """Do what is missing, a line of progress meanwhile. Those that failed."""
    lines = finished()
    _check_writable(RESULTS)
    _prepare(lines, tasks)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )  # fmt: skip
    failed: list[Run] = []

    def todo() -> list[Run]:
        needed = [one for one in missing(lines, tasks, schedules, seeds) if one not in failed]
        hours = seconds_left(lines, tasks, schedules, seeds) / jobs / 3600
        done = sum(one["task"] in tasks and one["schedule"] in schedules for one in lines)
        total, rest = done + len(needed), f"about {hours:.1f} hours left"
        progress.update(shown, completed=done, total=total, left=rest)
        return needed

    with Progress(*columns) as progress:
        shown = progress.add_task("ablation", total=None, left="")
        for run, numbers in in_parallel(todo, jobs):
            if numbers is None:
                failed.append(run)
                continue
            lines.append(keep(run, numbers))
            progress.console.print(
                f"{run.task}: {run.schedule}, rate {run.rate:g}, seed {run.seed}, "
                f"{run.split}: {numbers['accuracy']:.3f} in {numbers['seconds']:.0f} s"
            )
    return failed


def _make_anew(lines: Iterable[dict], tasks: Collection[str]) -> None:
    """The pretrained network; one that gives other numbers, or none, leaves what was there."""
    before = PRETRAINED.with_suffix(".before")
    if PRETRAINED.exists() and not before.exists():
        PRETRAINED.replace(before)  # else one is there from a command that was killed
    PRETRAINED.unlink(missing_ok=True)
    try:
        _prepare(lines, tasks)
    except BaseException:
        if before.exists():
            before.replace(PRETRAINED)
        raise
    before.unlink(missing_ok=True)
    print("the pretrained network of all images was made anew")


def again(
    seeds: Collection[int], tasks: Collection[str], schedules: Collection[str], jobs: int
) -> int:
    """Do held-out runs of these seeds once more, from nothing. How many gave other numbers.

    Kept in a folder of their own, and not made a third time: it goes on where it was, too.
    """
    lines = finished()
    first = {
        run_of(one): one for one in counted(lines)
        if one["split"] == "held out" and one["seed"] in seeds
        and one["task"] in tasks and one["schedule"] in schedules
    }  # fmt: skip
    second = {run_of(one): one for one in finished(AGAIN) if run_of(one) in first}
    left = [run for run in first if run not in second]
    _check_writable(AGAIN)
    if any(of_images(run.task) for run in left):
        _make_anew(lines, tasks)
    elif left:
        _prepare(lines, tasks)
    for run, now in in_parallel(lambda: list(left), jobs):
        left.remove(run)
        second[run] = keep(run, now, AGAIN) if now else {}
        differ = unlike(first[run], second[run])
        said = f"differs in {', '.join(differ)}" if differ else "gives the same"
        print(run, said if now else "failed", flush=True)
    wrong = sum(bool(unlike(first[run], second[run])) for run in first)
    print(f"{len(first) - wrong} of {len(first)} gave the same numbers; --report writes that down")
    return wrong


def _number(text: str) -> int:
    """One or more.

    >>> _number("2")
    2
    """
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", nargs="+", default=list(TASKS), choices=TASKS, metavar="TASK",
                        help=f"only these of: {', '.join(TASKS)}")  # fmt: skip
    parser.add_argument("--schedule", nargs="+", default=list(ROWS), choices=ROWS,
                        metavar="SCHEDULE", help=f"only these of: {', '.join(ROWS)}")  # fmt: skip
    parser.add_argument("--seeds", type=int, default=len(SEEDS), metavar="N",
                        choices=range(1, len(SEEDS) + 1),
                        help=f"so many of {len(SEEDS)} held-out seeds")  # fmt: skip
    parser.add_argument("--jobs", type=_number, default=os.cpu_count() or 1, metavar="N",
                        help="processes at a time")  # fmt: skip
    parser.add_argument("--report", action="store_true", help="only write the report")
    parser.add_argument("--again", type=int, nargs="+", choices=SEEDS, metavar="SEED",
                        help="only do the held-out runs of these seeds once more")  # fmt: skip
    options = parser.parse_args()
    if options.report and (options.again or any(
        getattr(options, name) != parser.get_default(name)
        for name in ("task", "schedule", "seeds", "jobs")
    )):  # fmt: skip
        parser.error("--report is of all results: it goes with no other option")
    if options.again and options.seeds != len(SEEDS):
        parser.error("--again names its seeds itself: it does not go with --seeds")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(STOPPED))  # children end, too
    if options.again:
        wrong = again(options.again, options.task, options.schedule, options.jobs)
        raise SystemExit(min(wrong, 1))
    failed: list[str] = []
    if not options.report:
        runs = run_all(options.task, options.schedule, options.seeds, options.jobs)
        failed = [f"failed: {run}" for run in runs]
    lines = counted(finished())
    if any(one["split"] == "held out" for one in lines):
        ablation_report.write(lines, finished(AGAIN), finished(ANOTHER))
    else:
        failed.append("no held-out run counts: the documents are left as they are")
    if failed:
        raise SystemExit("\n".join(failed))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(STOPPED) from None
