"""The command ``paddle-freeze``.

``plan`` prints what a schedule does to a model, or writes it as a YAML file to edit; ``plot``
draws it; ``check`` tests whether a schedule file fits a model; ``cache`` shows and removes the
features on the disk. For the first three, models are built from their configuration alone, without
weights. ``run`` runs a training script under a schedule.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..cache.folders import default_folder, folders, remove
from ..installed import versions
from ..options import reading
from ..options.flags import FLAGS, PREFIX, Flag
from ..schedule import FreezeSchedule
from ..version import VERSION
from . import run
from .mistake import MistakeError, near_file
from .models import load_batch, load_model, with_values
from .written import length_in, written_out

_EPOCHS, _STEPS = 3, 100
_DEFAULT = "By default the head first, the other stages one by one from the top."

_MODELS = """\
MODEL is one of
  bert-base-uncased        a model of PaddleNLP by name. Those that PaddleNLP has a configuration
                           of need no network; for others config.json alone is downloaded
  path/to/folder           a folder with a config.json of PaddleNLP
  paddle.vision:resnet50   a model of paddle.vision.models
  my_module:build          a function without arguments that gives a paddle.nn.Layer; the module
                           may be in the current folder
Weights are never loaded. A model of PaddleNLP is built with the head that "architectures" in its
configuration names; if that names none, as a sequence classifier.
"""

_EXITS = """\
exit status
  0  all is well
  1  the schedule does not fit the model, or a model, file or option cannot be used; the reason is
     one line on the standard error
  2  the command line is wrong
"""

_EXAMPLES = {
    "plan": (
        'bert-base-uncased --every "1 epoch" --lr-decay 2.6',
        "paddle.vision:resnet50 --strategy head_then_all --epochs 5",
        "my_module:build --stages 4 --yaml freeze.yaml",
    ),
    "plot": ("paddle.vision:resnet50 --strategy cyclic -o schedule.svg",),
    "cache": ("list", "clear --folder path/to/folder"),
    "check": ("freeze.yaml bert-base-uncased --epochs 10 --steps-per-epoch 200",),
}


def main(argv: Sequence[str] | None = None, prog: str = "paddle-freeze") -> int:
    """Run a command.

    Args:
        argv: the words of the command line; by default those of this process.
        prog: what the program is called in help and errors.

    Returns:
        The exit status: 0, or 1 after a mistake, which is one line on the standard error; of
        ``run`` that of the script.

    Raises:
        SystemExit: with status 2 for a wrong command line, with 0 after ``--help``.
    """
    words, script = list(sys.argv[1:] if argv is None else argv), list[str]()
    if words[:1] == ["run"]:
        words, script = run.split(words)
    given = _parser(prog).parse_args(_dashed(words), argparse.Namespace(script=script))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name may have letters that the terminal lacks
            stream.reconfigure(errors="replace")
    status = 0
    try:
        status = given.command(given) or 0
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output has closed it, as head does
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (MistakeError, ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        print(f"{prog}: error: {_told(error)}", file=sys.stderr)
        return 1
    if status < 0:  # a script that a signal ended
        with contextlib.suppress(OSError):  # some cannot be caught anyway
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status


def _told(error: Exception) -> str:
    """An error in one line."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        where = os.fsdecode(error.filename)
        near = near_file(where) if isinstance(error, FileNotFoundError) else ""
        return f"{where}: {error.strerror}{near}"
    # The flags here are those of the Trainer without their prefix.
    text = re.sub(rf"--{PREFIX}(\w+)", lambda flag: _flag(flag[1]), str(error))
    return " ".join(text.split()) or type(error).__name__


def _flag(name: str) -> str:
    """The flag of an option."""
    return "--" + name.replace("_", "-")


def _dashed(words: Sequence[str]) -> list[str]:
    """The words of a command line, with ``-`` for ``_`` in the names of flags."""

    def dashed(word: str) -> str:
        name, equals, value = word.partition("=")
        return name.replace("_", "-") + equals + value

    return [dashed(word) if word.startswith("--") else word for word in words]


class _Versions(argparse.Action):
    """Prints versions and exits; looked up only then, as that takes milliseconds."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(versions())
        parser.exit()


def _parser(prog: str) -> argparse.ArgumentParser:
    def formatted(*names: str) -> dict[str, Any]:
        """Options of a parser whose help ends with the examples of these commands."""
        lines = [f"  {prog} {name} {words}" for name in names for words in _EXAMPLES[name]]
        return {
            "formatter_class": argparse.RawDescriptionHelpFormatter,
            "epilog": "\n".join(["examples", *lines, "", _MODELS, _EXITS]),
            "allow_abbrev": False,
        }

    parser = argparse.ArgumentParser(
        prog=prog,
        description="Preview a freeze schedule before training: which stages of a model open when.",
        **formatted(*_EXAMPLES),
    )
    parser.add_argument("--version", action="version", version=f"paddle_freeze_callback {VERSION}")
    parser.add_argument(
        "--versions", action=_Versions, nargs=0,
        help="show what a report of a fault should say of this machine, and exit",
    )  # fmt: skip
    commands = parser.add_subparsers(
        title="commands (each has its own --help)", metavar="COMMAND", required=True
    )

    def command(name: str, words: str, act: Callable[[argparse.Namespace], None], help: str) -> Any:
        """A command with its positional words, in which FILE is a schedule file."""
        added = commands.add_parser(
            name, help=help, description=f"{help[0].upper()}{help[1:]}.",
            usage=f"{prog} {name} {words} [options]", **formatted(name),
        )  # fmt: skip
        added.set_defaults(command=act)
        if words == "FILE MODEL":
            added.add_argument("file", metavar="FILE", help="a .yaml, .yml or .json file")
        if "MODEL" in words:
            added.add_argument("model", metavar="MODEL", help="see below")
        return added

    plan = command(
        "plan", "MODEL", _plan, "print what a schedule does to a model, or write it as YAML"
    )
    plan.add_argument(
        "--yaml", nargs="?", const="-", type=_yaml_name, metavar="FILE",
        help="instead of the table, write the schedule moment by moment, as commented YAML to edit "
        "and to give to FreezeSchedule.from_file: into a new FILE, or without FILE to the "
        "standard output (then put --yaml after MODEL)",
    )  # fmt: skip
    plot = command("plot", "MODEL -o FILE", _plot, "draw a schedule into a file (needs matplotlib)")
    plot.add_argument(
        "-o", "--output", required=True, metavar="FILE", help="a .png, .svg or .pdf file"
    )
    check = command(
        "check", "FILE MODEL", _check, "test whether a schedule file fits a model, and preview it"
    )
    check.add_argument(
        "--batch", metavar="MODULE:FUNCTION",
        help="what the model is called with: a tensor, tuple or dictionary. The first step is "
        "tried, with random weights, and its contradictions are listed under the table",
    )  # fmt: skip
    run.add(commands, prog, _epochs, _whole)
    for each in (plan, plot):
        _add_schedule(each, "the schedule", _DEFAULT)
        each.add_argument(
            "--config", dest="file", metavar="FILE",
            help="a schedule file; flags of the schedule add options that it does not set",
        )  # fmt: skip
    _add_schedule(check, "beside the file", "Options that the file does not set.")
    cache = command(
        "cache", "list|clear", _cache, "show or remove the features that disk caches keep"
    )
    cache.add_argument(
        "what", choices=("list", "clear"), help="clear leaves what a living process uses"
    )
    cache.add_argument("--folder", type=Path, help="of cache=; by default that of cache=disk")
    for each in (plan, plot, check):
        written = "what plan wrote the file for, else " if each is check else ""
        group = each.add_argument_group("the run")
        group.add_argument(
            "--epochs", type=_epochs, default=None if each is check else _EPOCHS, metavar="N",
            help=f"how many epochs the run has (default: {written}{_EPOCHS})",
        )  # fmt: skip
        group.add_argument(
            "--steps-per-epoch", type=_whole, default=None if each is check else _STEPS,
            metavar="N", help=f"optimizer steps in an epoch (default: {written}{_STEPS}, which is "
            "a guess; samples / batch size / accumulation steps)",
        )  # fmt: skip
    return parser


def _add_schedule(parser: argparse.ArgumentParser, title: str, description: str) -> None:
    description += "\nNames may have _ in place of -. Flags with several WORDs come after MODEL."
    group = parser.add_argument_group(title, description)
    for flag in FLAGS.values():
        group.add_argument(_flag(flag.name), help=flag.help.replace("%", "%%"), **_form(flag))


def _form(flag: Flag) -> dict[str, Any]:
    """How argparse reads a flag."""
    if flag.kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if flag.kind is list:
        return {"nargs": "+", "action": "extend", "metavar": "WORD"}
    if flag.kind in (int, float):
        return {"type": flag.kind, "metavar": "N" if flag.kind is int else "X"}
    moment = any("When" in str(each.type) for each in flag.fields.values())
    return {"metavar": "WHEN" if moment else "NAME" if flag.name == "strategy" else "TEXT"}


def _whole(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def _epochs(text: str) -> float:
    if text.isdecimal():
        return _whole(text)
    if not re.fullmatch(r"\d*\.\d+", text) or not float(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number, such as 3 or 0.5")
    return float(text)


def _yaml_name(text: str) -> str:
    if text != "-" and not text.lower().endswith((".yaml", ".yml")):
        raise argparse.ArgumentTypeError(
            f"{text!r} does not end in .yaml or .yml; put --yaml without a file after MODEL"
        )
    return text


def _length(given: argparse.Namespace) -> dict[str, Any]:
    """How long the run is, as ``FreezeSchedule.preview`` takes it."""
    return {"epochs": given.epochs, "steps_per_epoch": given.steps_per_epoch}


def _plan(given: argparse.Namespace) -> None:
    target = given.yaml
    if target not in (None, "-") and os.path.exists(target):
        raise MistakeError(
            f"{target} is there already and may have been edited; "
            "give another name, or delete it first"
        )
    with _quiet():
        schedule = _schedule(given)
        network = load_model(given.model)
        table = schedule.preview(network, **_length(given))
        if target is not None:
            file = "freeze.yaml" if target == "-" else target
            text = written_out(schedule, network, model=given.model, file=file, **_length(given))
    if target == "-":
        print(text, end="")
        return
    if target is not None:
        with open(target, "w", encoding="utf-8") as out:
            out.write(text)
    table.show()
    if target is not None:
        print(f"wrote {target}", file=sys.stderr)


def _plot(given: argparse.Namespace) -> None:
    with _quiet():
        schedule = _schedule(given)
        schedule.plot(given.output, load_model(given.model), **_length(given))
    print(f"wrote {given.output}", file=sys.stderr)


def _check(given: argparse.Namespace) -> None:
    with _quiet():
        schedule = _schedule(given)
        written = length_in(given.file)
        epochs, steps = written or (_EPOCHS, _STEPS)
        given.epochs = given.epochs or epochs
        given.steps_per_epoch = given.steps_per_epoch or steps
        network = load_model(given.model)
        batch = None
        if given.batch is not None:
            batch, network = load_batch(given.batch), with_values(network)
        try:
            table = schedule.preview(network, batch=batch, **_length(given))
        except (ValueError, TypeError) as error:
            raise MistakeError(f"{given.file} does not fit {given.model}: {error}") from error
    if written is not None and written != (given.epochs, given.steps_per_epoch):
        note = (
            f"{given.file} was written for {written[0]} epochs of {written[1]} steps, and this run "
            f"has {given.epochs} of {given.steps_per_epoch}: what opens when may not be what was "
            "meant; for another length, write it anew (plan --yaml)"
        )
        table = replace(table, notes=(note, *table.notes))
    table.show()


def _cache(given: argparse.Namespace) -> None:
    root = given.folder or default_folder()
    there = folders(root)
    for folder in there:
        gone = given.what == "clear" and remove(folder)
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(folder.used))
        size = f"{folder.nbytes / 2**20:,.1f} MB"
        print(
            f"{folder.path.name}  {size:>12}  last used {used}"
            + (", in use" if folder.busy else "") + (", removed" if gone else "")
        )  # fmt: skip
    total = sum(folder.nbytes for folder in there)
    print(f"{len(there)} in {root}: {total / 2**20:,.1f} MB")


def _schedule(given: argparse.Namespace) -> FreezeSchedule:
    """The schedule of the file and the flags; no option may be in both."""
    flags = {name: getattr(given, name) for name in FLAGS if getattr(given, name) is not None}
    written = {} if given.file is None else reading.from_file(given.file)
    for name in flags:
        if name in written:
            raise MistakeError(
                f"{_flag(name)} and {given.file} contradict each other: both set {name}; "
                "drop one of them"
            )
    sources = ([] if given.file is None else [given.file]) + [_flag(name) for name in flags]

    def where(name: str) -> str:
        return _flag(name) if given.file is None or name in flags else f"{given.file}: {name}"

    return FreezeSchedule._read({**written, **flags}, where, ", ".join(sources))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Send to the standard error whatever libraries and the user's modules print."""
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
