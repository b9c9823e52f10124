"""``paddle-freeze run``: somebody's training script, unedited, under a schedule.

The script runs in a Python of its own, which :mod:`.site.sitecustomize` tells what to do; this
process waits. It is not replaced by that Python, because only it sees the status of a script that
exits well and never trained.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .guest import VARIABLE, Wish
from .mistake import MistakeError, near_file

_SITE = Path(__file__).with_name("site")

_HELP = """\
SCRIPT and what follows it go to Python as they are; "-m MODULE" works, too, also
"-m paddle.distributed.launch SCRIPT". The network and its optimizer are found when the script
begins to train; one line on the standard error names them. Beside each file in which the script
saves the optimizer's state with paddle.save, a file ....freeze_schedule.json is written; when the
script loads that state again, the run goes on where it was.

examples
  {prog} run --config freeze.yaml --epochs 10 tools/train.py -c config.yml
  {prog} run --config freeze.yaml --total-steps 5000 -m paddle.distributed.launch train.py

exit status
  that of the script; 1 if the schedule was refused or nothing was trained under it, whatever the
  script says; 2 if the command line is wrong
"""


def split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Our own words, and those that Python gets.

    >>> split(["run", "--epochs", "3", "--config=f.yaml", "-m", "mine", "--epochs", "9"])
    (['run', '--epochs', '3', '--config=f.yaml'], ['-m', 'mine', '--epochs', '9'])
    """
    at = 1
    while (at < len(words) and words[at].startswith("--")) or words[at : at + 1] == ["-h"]:
        if words[at] == "--":
            return list(words[:at]), list(words[at + 1 :])
        at += 1 if "=" in words[at] or words[at] in ("-h", "--help") else 2
    return list(words[:at]), list(words[at:])


def add(
    commands: Any, prog: str, epochs: Callable[[str], float], whole: Callable[[str], int]
) -> None:
    """Add the command to a parser's commands."""
    parser = commands.add_parser(
        "run", help="run a training script, unedited, under a schedule",
        description="Run a training script, unedited, under a schedule.",
        usage=f"{prog} run [options] SCRIPT [arguments of the script]",
        formatter_class=argparse.RawDescriptionHelpFormatter, epilog=_HELP.format(prog=prog),
        allow_abbrev=False,
    )  # fmt: skip
    parser.set_defaults(command=_run)
    for flag, kind, metavar, text in (
        ("config", str, "FILE", "a .yaml, .yml or .json file; without it, the usual schedule"),
        ("epochs", epochs, "N", "how many epochs the script trains; alone, each new iteration of "
         "the paddle.io.DataLoader that trains is one"),
        ("steps-per-epoch", whole, "N", "optimizer steps in an epoch"),
        ("total-steps", whole, "N", "optimizer steps in all; alone, or with one of the two above"),
        ("network", str, "NAME", "the class, or the full_name(), of the network, where the script "
         "trains several"),
        ("done-steps", int, "N", "optimizer steps done, when the script resumes from a checkpoint "
         "that was saved without a schedule"),
    ):  # fmt: skip
        parser.add_argument(f"--{flag}", type=kind, metavar=metavar, help=text)


def _run(given: argparse.Namespace) -> int:
    script = given.script
    if not script:
        raise MistakeError("run needs a script: paddle-freeze run --epochs 3 train.py")
    if not script[0].startswith("-") and not os.path.exists(script[0]):
        advice = "; leave the word out" if script[0].startswith("python") else near_file(script[0])
        raise MistakeError(f"{script[0]}: no such script{advice}")
    if given.epochs is None and given.total_steps is None:
        raise MistakeError("how long is the run? give --epochs or --total-steps")
    with tempfile.TemporaryDirectory(prefix="paddle-freeze-") as notes:
        wish = Wish(
            notes, given.config and os.path.abspath(given.config), given.epochs,
            given.steps_per_epoch, given.total_steps, given.network, given.done_steps,
        )  # fmt: skip
        schedule = wish.schedule()
        if schedule._strategy.needs_evaluation:
            raise MistakeError(
                f"{schedule._strategy!r} decides from metrics, which a script hands to nobody; use "
                "it in paddle.Model.fit, a Trainer, or with attach() or follow()"
            )
        status = _wait([sys.executable, *script], wish)
        if status == 0 and not wish.noted("refused") and not wish.noted("trains"):
            raise MistakeError(
                "nothing was trained under the schedule: no optimizer of paddle.optimizer trained "
                "a layer's parameters in any process of the script"
            )
        return status or int(wish.noted("refused"))


def _wait(words: list[str], wish: Wish) -> int:
    """Run a Python; its exit status, or the signal that ended it, below zero."""
    before = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(_SITE), *([before] if before else [])])
    child = subprocess.Popen(
        words, env={**os.environ, "PYTHONPATH": path, VARIABLE: wish.to_text()}
    )
    # The terminal interrupts both; whoever else ends us means the script.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda number, frame: child.send_signal(number))
    return child.wait()
