"""The command ``paddle-freeze``.

``plan`` prints what a schedule does to a model, or writes it as a YAML file to edit; ``plot``
draws it; ``check`` tests whether a schedule file fits a model. Models are built from their
configuration alone, without weights.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..options.flags import PREFIX, FreezeArguments
from ..schedule import FreezeSchedule
from ..strategies.by_name import STRATEGIES, required_of
from ..version import VERSION
from .mistake import MistakeError, near_file
from .models import load_model
from .written import written_out

_EPOCHS, _STEPS = 3, 100

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
    "check": ("freeze.yaml bert-base-uncased --epochs 10 --steps-per-epoch 200",),
}


def main(argv: Sequence[str] | None = None, prog: str = "paddle-freeze") -> int:
    """Run a command.

    Args:
        argv: the words of the command line; by default those of this process.
        prog: what the program is called in help and errors.

    Returns:
        The exit status: 0, or 1 after a mistake, which is one line on the standard error.

    Raises:
        SystemExit: with status 2 for a wrong command line, with 0 after ``--help``.
    """
    given = _parser(prog).parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name may have letters that the terminal lacks
            stream.reconfigure(errors="replace")
    try:
        given.command(given)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output has closed it, as head does
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (MistakeError, ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        print(f"{prog}: error: {_told(error)}", file=sys.stderr)
        return 1
    return 0


def _told(error: Exception) -> str:
    """An error in one line."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        where = os.fsdecode(error.filename)
        near = near_file(where) if isinstance(error, FileNotFoundError) else ""
        return f"{where}: {error.strerror}{near}"
    # The flags here are those of the Trainer without their prefix.
    text = str(error).replace(f"--{PREFIX}", "--").replace("--lr_decay", "--lr-decay")
    return " ".join(text.split()) or type(error).__name__


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
    commands = parser.add_subparsers(
        title="commands (each has its own --help)", metavar="COMMAND", required=True
    )

    def command(name: str, run: Callable[[argparse.Namespace], None], help: str) -> Any:
        description = f"{help[0].upper()}{help[1:]}."
        added = commands.add_parser(name, help=help, description=description, **formatted(name))
        added.set_defaults(command=run)
        return added

    plan = command("plan", _plan, "print what a schedule does to a model, or write it as YAML")
    plan.add_argument("model", metavar="MODEL", help="see below")
    _add_schedule(plan)
    _add_length(plan)
    plan.add_argument(
        "--yaml",
        nargs="?",
        const="-",
        type=_yaml_name,
        metavar="FILE",
        help="instead of the table, write the schedule moment by moment, as commented YAML to edit "
        "and to give to FreezeSchedule.from_file: into a new FILE, or without FILE to the "
        "standard output (then put --yaml after MODEL)",
    )
    plot = command("plot", _plot, "draw a schedule into a file (needs matplotlib)")
    plot.add_argument("model", metavar="MODEL", help="see below")
    plot.add_argument(
        "-o", "--output", required=True, metavar="FILE", help="a .png, .svg or .pdf file"
    )
    _add_schedule(plot)
    _add_length(plot)
    check = command("check", _check, "test whether a schedule file fits a model, and preview it")
    check.add_argument("file", metavar="FILE", help="a .yaml, .yml or .json file")
    check.add_argument("model", metavar="MODEL", help="see below")
    _add_length(check)
    return parser


def _add_schedule(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "the schedule", "By default the head first, the other stages one by one from the top."
    )
    group.add_argument(
        "--strategy", metavar="NAME", help=f"which stages are open when: {', '.join(STRATEGIES)}"
    )
    group.add_argument(
        "--every", metavar="WHEN", help='time between two changes: "1 epoch", "200 steps", "10%%"'
    )
    group.add_argument("--start", metavar="WHEN", help="gradual: when the second stage opens")
    group.add_argument("--at", metavar="WHEN", help="head_then_all: when everything opens")
    group.add_argument(
        "--stages",
        type=_stages,
        metavar="N",
        help='"auto" (the default), or the number of stages of the backbone',
    )
    group.add_argument(
        "--lr-decay",
        type=float,
        metavar="X",
        help="each stage trains at the rate of the one above it divided by this",
    )
    group.add_argument(
        "--config",
        metavar="FILE",
        help="a schedule file with these and all other options, instead of the flags above",
    )


def _add_length(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the run")
    group.add_argument(
        "--epochs",
        type=_epochs,
        default=_EPOCHS,
        metavar="N",
        help="how many epochs the run has (default: %(default)s)",
    )
    group.add_argument(
        "--steps-per-epoch",
        type=_whole,
        default=_STEPS,
        metavar="N",
        help="optimizer steps in an epoch (default: %(default)s, which is a guess; samples / "
        "batch size / accumulation steps)",
    )


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


def _stages(text: str) -> str:
    if text != "auto" and not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(
            f'{text!r} is neither "auto" nor a number from 1 on; selectors go into a file '
            "(--config), as a list named stages"
        )
    return text


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
        schedule = FreezeSchedule.from_file(given.file)
        network = load_model(given.model)
        try:
            table = schedule.preview(network, **_length(given))
        except (ValueError, TypeError) as error:
            raise MistakeError(f"{given.file} does not fit {given.model}: {error}") from error
    table.show()


def _schedule(given: argparse.Namespace) -> FreezeSchedule:
    """The schedule that the flags or the file describe."""
    flags = ("strategy", "every", "start", "at", "stages", "lr_decay")
    said = {name: getattr(given, name) for name in flags if getattr(given, name) is not None}
    if given.config is None:
        lacking = required_of(STRATEGIES[given.strategy]) if given.strategy in STRATEGIES else ()
        if lacking:
            raise MistakeError(
                f"--strategy: {given.strategy} needs {', '.join(lacking)}, for which there is no "
                "flag here; write a file and give it with --config"
            )
        if "stages" in said:
            said["stages"] = [said["stages"]]
        named = {f"{PREFIX}{name}": value for name, value in said.items()}
        return FreezeSchedule.from_args(FreezeArguments(**named))
    if said:
        flag = "--" + next(iter(said)).replace("_", "-")
        raise MistakeError(
            f"{flag} and --config contradict each other; write {flag[2:].replace('-', '_')} "
            f"into {given.config}"
        )
    return FreezeSchedule.from_file(given.config)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Send to the standard error whatever libraries and the user's modules print."""
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
