"""Look at a schedule before training: the command ``paddle-freeze``.

``plan`` prints what a schedule does to a model, or writes it down as a YAML file to edit; ``plot``
draws it; ``check`` tells whether a schedule file fits a model. Models are built from their
configuration alone, without weights.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from paddle import nn

from ..options import reading
from ..options.flags import FLAGS, PREFIX, Flag
from ..schedule import FreezeSchedule
from ..version import VERSION
from ..views.preview import Preview
from .mistake import MistakeError, near_file
from .models import load_model
from .written import written_out

_EPOCHS, _STEPS = 3, 100
_DEFAULT = "By default the head first, the other stages one by one from the top."


_MODELS = """\
MODEL is one of
  bert-base-uncased        a model of PaddleNLP by name. Those that PaddleNLP has a configuration
                           of need no network; for others config.json alone is downloaded
  path/to/folder           a folder with a config.json of PaddleNLP
  paddle.vision:resnet50   a model of paddle.vision.models
  my_module:build          a function without arguments that gives a paddle.nn.Layer; the module
                           is looked for in the current folder, too
Weights are never loaded. A model of PaddleNLP is built with the head that "architectures" in its
configuration names; if that names none, as a sequence classifier.
"""


_EXITS = """\
exit status
  0  all is well
  1  the schedule does not fit the model, or a model, file or option cannot be used; one line on
     the standard error says why
  2  the command line is wrong
"""


_EXAMPLES = {
    "": """\
examples
  {prog} plan bert-base-uncased --every "1 epoch" --lr-decay 2.6
  {prog} plan ernie-3.0-medium-zh --stages 4 --yaml freeze.yaml
  {prog} check freeze.yaml ernie-3.0-medium-zh --epochs 5
  {prog} plot paddle.vision:resnet50 -o schedule.png
""",
    "plan": """\
examples
  {prog} bert-base-uncased
  {prog} paddle.vision:resnet50 --strategy head_then_all --epochs 5
  {prog} my_module:build --every "200 steps" --start "500 steps"
  {prog} bert-base-uncased --stages 4 --yaml freeze.yaml
""",
    "plot": """\
examples
  {prog} bert-base-uncased -o schedule.png
  {prog} paddle.vision:resnet50 -o schedule.svg --strategy cyclic --every "50 steps"
""",
    "check": """\
examples
  {prog} freeze.yaml bert-base-uncased
  {prog} freeze.json my_module:build --epochs 10 --steps-per-epoch 2000
""",
}


def main(argv: Sequence[str] | None = None, prog: str = "paddle-freeze") -> int:
    """Run a command.

    Args:
        argv: the words of the command line; by default those of this process.
        prog: what the program is called in help and errors.

    Returns:
        The exit status: 0, or 1 for a mistake, which is told in a line on the standard error.

    Raises:
        SystemExit: with status 2 for a wrong command line, with 0 after ``--help``.
    """
    given = _parser(prog).parse_args(_dashed(sys.argv[1:] if argv is None else argv))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name may have letters that the terminal lacks
            stream.reconfigure(errors="replace")
    try:
        given.command(given)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output has seen enough
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


def _parser(prog: str) -> argparse.ArgumentParser:
    def text(command: str, *parts: str) -> str:
        name = f"{prog} {command}".strip()
        return "\n".join([_EXAMPLES[command].format(prog=name), *parts])

    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog=prog,
        formatter_class=plain,
        description="Look at a freeze schedule before training: which stages of a model open when.",
        epilog=text("", _MODELS, _EXITS),
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"paddle_freeze_callback {VERSION}")
    commands = parser.add_subparsers(
        title="commands (each has its own --help)", metavar="COMMAND", required=True
    )

    def command(name: str, words: str, help: str, description: str) -> argparse.ArgumentParser:
        epilog, usage = text(name, _MODELS, _EXITS), f"{prog} {name} {words} [options]"
        return commands.add_parser(
            name, usage=usage, help=help, description=description, epilog=epilog,
            formatter_class=plain, allow_abbrev=False,
        )  # fmt: skip

    plan = command(
        "plan",
        "MODEL",
        help="print what a schedule does to a model, or write it as YAML to edit",
        description="Print what a schedule does to a model, or write it as YAML to edit.",
    )
    plan.add_argument("model", metavar="MODEL", help="see below")
    _add_schedule(plan, "the schedule", _DEFAULT)
    _add_config(plan)
    _add_length(plan)
    plan.add_argument(
        "--yaml",
        nargs="?",
        const="-",
        type=_yaml_name,
        metavar="FILE",
        help="write the schedule moment by moment, as commented YAML to edit and to give to "
        "FreezeSchedule.from_file: into a new FILE, or without FILE to the standard output, "
        "instead of the table (then put --yaml after MODEL)",
    )
    plan.set_defaults(command=_plan)

    plot = command(
        "plot",
        "MODEL -o FILE",
        help="draw a schedule into a file (needs matplotlib)",
        description="Draw what a schedule does to a model: stages upwards, time to the right.",
    )
    plot.add_argument("model", metavar="MODEL", help="see below")
    plot.add_argument(
        "-o", "--output", required=True, metavar="FILE", help="a .png, .svg or .pdf file"
    )
    _add_schedule(plot, "the schedule", _DEFAULT)
    _add_config(plot)
    _add_length(plot)
    plot.set_defaults(command=_plot)

    check = command(
        "check",
        "FILE MODEL",
        help="tell whether a schedule file fits a model",
        description="Read a schedule file, fit it to a model, and print what it would do.",
    )
    check.add_argument("file", metavar="FILE", help="a .yaml, .yml or .json file")
    check.add_argument("model", metavar="MODEL", help="see below")
    _add_schedule(check, "beside the file", "Options that the file does not set.")
    _add_length(check)
    check.set_defaults(command=_check)
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


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        dest="file",
        metavar="FILE",
        help="a schedule file; flags of the schedule add options that it does not set",
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


def _yaml_name(text: str) -> str:
    if text != "-" and not text.lower().endswith((".yaml", ".yml")):
        raise argparse.ArgumentTypeError(
            f"{text!r} does not end in .yaml or .yml; put --yaml without a file after MODEL"
        )
    return text


def _plan(given: argparse.Namespace) -> None:
    target: str | None = given.yaml
    if target not in (None, "-") and os.path.exists(target):
        raise MistakeError(
            f"{target} is there already and may have been edited; "
            "give another name, or delete it first"
        )
    with _quiet():
        schedule = _schedule(given)
        network = load_model(given.model)
        table = _preview(schedule, network, given)
        text = None
        if target is not None:
            text = written_out(
                schedule,
                network,
                epochs=given.epochs,
                steps_per_epoch=given.steps_per_epoch,
                model=given.model,
                file="freeze.yaml" if target == "-" else target,
            )
    if text is None:
        table.show()
    elif target == "-":
        print(text, end="")
    else:
        assert target is not None
        with open(target, "w", encoding="utf-8") as file:
            file.write(text)
        table.show()
        print(f"wrote {target}", file=sys.stderr)


def _plot(given: argparse.Namespace) -> None:
    with _quiet():
        schedule = _schedule(given)
        schedule.plot(
            given.output,
            load_model(given.model),
            epochs=given.epochs,
            steps_per_epoch=given.steps_per_epoch,
        )
    print(f"wrote {given.output}", file=sys.stderr)


def _check(given: argparse.Namespace) -> None:
    with _quiet():
        schedule = _schedule(given)
        network = load_model(given.model)
        try:
            table = _preview(schedule, network, given)
        except (ValueError, TypeError) as error:
            raise MistakeError(f"{given.file} does not fit {given.model}: {error}") from error
    table.show()


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


def _preview(schedule: FreezeSchedule, network: nn.Layer, given: argparse.Namespace) -> Preview:
    return schedule.preview(network, epochs=given.epochs, steps_per_epoch=given.steps_per_epoch)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what libraries and the user's modules print out of the standard output."""
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
