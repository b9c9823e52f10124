"""The tests under several releases of Paddle, Trainers and Pythons.

    python tests/matrix.py              every row whose code has changed since it ran
    python tests/matrix.py --row 3.2    the rows that have this in their names
    python tests/matrix.py --again      also those that ran on this code
    python tests/matrix.py --list       the rows, and when they ran
    python tests/matrix.py --smallest   a few tests under each Paddle; records nothing
    python tests/matrix.py --docs       write docs/versions.md and its Chinese version anew

An environment is built when its row runs for the first time, or asks for other packages than then,
under .matrix/, by uv where this Python has it, else by pip. A row that cannot be built is skipped,
and says why; one that was asked for by name makes the status 1. A row's result is written to
docs/versions.json as it ends, so a run that was stopped goes on where it was; that of a part of its
tests, after further words for pytest, is not. Needs nothing but Python.
"""

from __future__ import annotations

import argparse
import configparser
import datetime
import glob
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from importlib.util import find_spec

from conftest import NEEDS_TRAINER
from install import ROOT, by_uv

RESULTS = ROOT / "docs" / "versions.json"
PLACE = ROOT / ".matrix"

WHOLE: tuple[str, ...] = ()
# Contract, events, resume, several processes, the zoo: what the Makefile calls COMPAT.
_MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
COMPAT = tuple(_MAKEFILE.partition("\nCOMPAT := ")[2].partition("\n")[0].split())
# All that can run without a Trainer.
WINGS = (
    *(f"tests/{wing}" for wing in ("cache", "cli", "freezing", "hosts", "options", "session")),
    *("tests/stages", "tests/strategies", "tests/views", "tests/test_generated.py"),
    *("tests/test_package.py", "paddle_freeze_callback"),
)
# All that cannot, and the zoo, so that with the ones above nothing of the package is left out; what
# is tested beside it, such as documents, examples and benchmarks, runs in the first row.
TRAINERS = (
    "tests/zoo",
    *(
        path.relative_to(ROOT).as_posix()
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if NEEDS_TRAINER.search(path.read_text(encoding="utf-8")) and path.parent.name != "zoo"
    ),
)
# fit, resume and loops of one's own.
LOOPS = ("tests/hosts", "tests/session", "tests/freezing/test_freezer.py")
NAMES = {
    WHOLE: "whole",
    COMPAT: "compat",
    WINGS: "wings",
    TRAINERS: "trainers",
    LOOPS: "loops",
}


@dataclass(frozen=True)
class Row:
    """One environment: releases, and which tests run in it."""

    paddle: str
    python: str
    trainer: str = ""  # an extra of ours
    tests: tuple[str, ...] = WHOLE
    besides: tuple[str, ...] = ()  # further requirements

    @property
    def name(self) -> str:
        return "-".join(filter(None, [self.paddle, self.trainer, f"py{self.python}"]))

    def has(self, part: str) -> bool:
        """Whether a part of its name begins so: 3.1.1-py3.12 has 3.1 and py3, not 1.1 or 3.12."""
        return f"-{part}" in f"-{self.name}"


ROWS = (
    Row("3.3.1", "3.11", "nlp"),
    Row("3.3.1", "3.11", "nlp3", COMPAT),
    Row("3.3.1", "3.11", "formers", COMPAT),
    Row("3.3.1", "3.10", tests=WINGS),
    Row("3.3.1", "3.12", tests=WINGS),
    Row("3.3.1", "3.13", tests=WINGS),
    Row("3.3.1", "3.13", "nlp", COMPAT),
    Row("3.2.2", "3.11", "nlp", TRAINERS),
    Row("3.1.1", "3.11", "nlp", TRAINERS),
    Row("3.0.0", "3.11", "nlp", TRAINERS),
    Row("3.2.2", "3.10", tests=WINGS),
    Row("3.1.1", "3.12", tests=WINGS),
    Row("3.0.0", "3.13", tests=WINGS),
    Row("2.6.2", "3.10", "", LOOPS, ("numpy<2",)),
    Row("2.6.2", "3.10", "nlp", LOOPS, ("numpy<2",)),
)


def smallest() -> list[Row]:
    """For each Paddle its first row without a Trainer, and of that what takes a minute."""
    first = {row.paddle: row for row in reversed(ROWS) if not row.trainer}
    return [replace(row, tests=LOOPS) for row in first.values()]


def interpreter(version: str) -> str | None:
    """A Python of this version that runs: on the path, or built by pyenv."""
    home = os.environ.get("PYENV_ROOT", os.path.expanduser("~/.pyenv"))
    built = sorted(glob.glob(f"{home}/versions/{version}.*/bin/python"))
    for one in [shutil.which(f"python{version}"), *built]:
        if one and not subprocess.run([one, "--version"], capture_output=True).returncode:
            return one
    return None


def code() -> str:
    """A short hash of the package, its tests and what they need; not of the package's version."""
    digest = hashlib.sha1()
    for name in ("setup.cfg", "pyproject.toml", "paddle_freeze_command.py"):
        digest.update((ROOT / name).read_bytes())
    for folder in ("paddle_freeze_callback", "tests"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.name == "version.py":  # of a release, which is tested before it is named
                continue
            if path.suffix in (".py", ".txt") and path.is_file():
                digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def requirements(row: Row) -> str:
    """What a row's environment holds of what setup.cfg asks for, a line each."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    extras = setup["options.extras_require"]
    asked = [setup["options"]["install_requires"], *(extras[one] for one in extras_of(row))]
    lines = "\n".join(asked).splitlines()
    return "\n".join([row.paddle, *row.besides, *sorted(line for line in lines if line)])


def extras_of(row: Row) -> list[str]:
    """Those of setup.cfg that a row needs."""
    return [*filter(None, [row.trainer]), "plot", "test"]


class CannotBuildError(Exception):
    """No environment for a row, and why."""


def environment(row: Row) -> str:
    """The Python of the row's environment; built if it is not there.

    Raises:
        CannotBuildError: if this machine lacks the Python, or the packages cannot be had.
    """
    folder = PLACE / row.name
    inside = str(folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))
    ready, wanted = folder / "ready", requirements(row)
    if ready.exists() and ready.read_text(encoding="utf-8") == wanted:
        return inside
    python = interpreter(row.python)
    if python is None:
        raise CannotBuildError(f"no Python {row.python} on this machine")
    shutil.rmtree(folder, ignore_errors=True)
    extras = ",".join(extras_of(row))
    besides = [f"paddlepaddle=={row.paddle}", *row.besides]
    install = (
        by_uv(inside, *besides, "--editable", f"{ROOT}[{extras}]")
        if find_spec("uv")
        else [inside, str(ROOT / "tests" / "install.py"), extras, *besides]
    )
    for command in ([python, "-m", "venv", str(folder)], install):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            said = (done.stderr or done.stdout).strip()
            raise CannotBuildError(f"{' '.join(command[:5])} ... failed: {said[-500:]}")
    ready.write_text(wanted, encoding="utf-8")
    return inside


def result(row: Row, further: list[str]) -> dict[str, object]:
    """Run a row's tests.

    Raises:
        CannotBuildError: if there is no environment for them.
    """
    base = {"paddle": row.paddle, "python": row.python, "trainer": row.trainer, "code": code()}
    inside = environment(row)
    if row.trainer:
        asking = (
            f"from importlib import metadata as m; print(m.version({LIBRARIES[row.trainer][0]!r}))"
        )
        answer = subprocess.run([inside, "-c", asking], capture_output=True, text=True, check=True)
        base["library"] = answer.stdout.strip()
    done = subprocess.run(
        [inside, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--numprocesses", "2",
         "--dist", "loadfile", *row.tests, *further],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    (PLACE / f"{row.name}.log").write_text(done.stdout + done.stderr, encoding="utf-8")
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (\w+)", last)}
    return {
        **base,
        "scope": NAMES[row.tests],
        "passed": counts.get("passed", 0),
        "failed": counts.get("failed", 0) + counts.get("error", 0) + counts.get("errors", 0),
        "skipped": counts.get("skipped", 0),
        "status": done.returncode,
        "day": datetime.date.today().isoformat(),
    }


def load() -> dict[str, dict[str, object]]:
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}


HEADS = {
    "": "| paddlepaddle | Python | Trainer | tests | passed | failed | skipped | run on | code |",
    ".zh-CN": "| paddlepaddle | Python | Trainer | 测试范围 | 通过 | 失败 | 跳过 | 日期 | 代码 |",
}
#: By extra, a library's distribution, and its name.
LIBRARIES = {
    "nlp": ("paddlenlp", "PaddleNLP"),
    "nlp3": ("paddlenlp", "PaddleNLP"),
    "formers": ("paddleformers", "PaddleFormers"),
}
SCOPES = {
    "": {
        "whole": "all",
        "wings": "all that need no Trainer",
        "trainers": "all that need one",
        "compat": "contract, resume, several processes, zoo",
        "loops": "loops",
    },
    ".zh-CN": {
        "whole": "全部",
        "wings": "不需要 Trainer 的全部",
        "trainers": "需要 Trainer 的全部",
        "compat": "约定、续训、多进程、模型库",
        "loops": "训练循环",
    },
}


def table(language: str) -> str:
    """The rows that ran, as a table."""
    results = load()
    lines = [HEADS[language], "|" + " --- |" * 9]
    for row in ROWS:
        one = results.get(row.name, {})
        if "passed" in one:
            scope = SCOPES[language][one["scope"]]
            library = f"{LIBRARIES[row.trainer][1]} {one['library']}" if row.trainer else "-"
            lines.append(
                f"| {row.paddle} | {row.python} | {library} | {scope} | "
                f"{one['passed']} | {one['failed']} | {one['skipped']} | {one['day']} | "
                f"`{one['code']}` |"
            )
    return "\n".join(lines)


def write_docs() -> None:
    """Put the table between its marks in both pages."""
    for language in HEADS:
        page = ROOT / "docs" / f"versions{language}.md"
        text = page.read_text(encoding="utf-8")
        start, end = "<!-- table: versions -->\n", "<!-- end -->"
        before, _, rest = text.partition(start)
        after = rest.partition(end)[2]
        page.write_text(f"{before}{start}{table(language)}\n{end}{after}", encoding="utf-8")


def main() -> int:
    raw = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--row", action="append", default=[], help="part of a row's name")
    parser.add_argument("--again", action="store_true", help="also rows that ran on this code")
    parser.add_argument("--list", action="store_true", help="show the rows")
    parser.add_argument("--smallest", action="store_true", help="a few tests under each Paddle")
    parser.add_argument("--minutes", type=float, help="begin no row after so many")
    parser.add_argument("--docs", action="store_true", help="write the tables only")
    parser.add_argument("further", nargs="*", help="further words for pytest, after --")
    given = parser.parse_args()
    if given.docs:
        write_docs()
        return 0
    for part in given.row:
        if not any(row.has(part) for row in ROWS):
            parser.error(f"no row has {part!r} in its name: {', '.join(row.name for row in ROWS)}")
    worst, began, today = 0, time.monotonic(), code()
    for row in smallest() if given.smallest else ROWS:
        if given.row and not any(map(row.has, given.row)):
            continue
        before = load().get(row.name, {})
        if given.list:
            shown = {k: before.get(k) for k in ("passed", "failed", "skipped", "day")}
            print(row.name, shown, "today's code" if before.get("code") == today else "")
            continue
        ran = before.get("code") == today and before["status"] == 0
        if ran and not (given.smallest or given.again):
            print(f"{row.name}: ran on this code already")
            continue
        if given.minutes is not None and time.monotonic() - began > 60 * given.minutes:
            print(f"{row.name}: not run, the {given.minutes:g} minutes are over", flush=True)
            continue
        print(f"{row.name} ...", flush=True)
        try:
            now = result(row, given.further)
        except CannotBuildError as error:
            print(f"{row.name}: not run, {error}", flush=True)
            worst = 1 if given.row else worst
            continue
        print(f"{row.name}: {now}", flush=True)
        if now["status"]:
            worst = 1
            print((PLACE / f"{row.name}.log").read_text(encoding="utf-8")[-5000:])
        whole = not (given.smallest or given.further)
        if now["status"] in (0, 1) and whole:  # the tests ran to their end
            RESULTS.write_text(
                json.dumps({**load(), row.name: now}, indent=2) + "\n", encoding="utf-8"
            )
    if not (given.list or given.smallest):
        write_docs()
    return worst


if __name__ == "__main__":
    sys.exit(main())
