"""Look at a schedule before training: the command ``paddle-freeze``.

``plan`` prints what a schedule does to a model, or writes it down as a YAML file to edit; ``plot``
draws it; ``check`` tells whether a schedule file fits a model. Models are built from their
configuration alone, without weights.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import importlib
import json
import os
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import paddle
from paddle import nn

from .arguments import PREFIX, FreezeArguments
from .moments import Moment, Run
from .preview import Preview
from .schedule import FreezeSchedule
from .selectors import select
from .session import Plan
from .session import plan as plan_of
from .stages import covering
from .strategies import STRATEGIES, Explicit, Strategy, required_of
from .version import VERSION
from .weights import Weight, weights

_EPOCHS, _STEPS = 3, 100

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


class MistakeError(Exception):
    """Something that the user can put right; its text is all that is shown."""


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
    given = _parser(prog).parse_args(argv)
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
        near = _near_file(where) if isinstance(error, FileNotFoundError) else ""
        return f"{where}: {error.strerror}{near}"
    # The flags here are those of the Trainer without their prefix.
    text = str(error).replace(f"--{PREFIX}", "--").replace("--lr_decay", "--lr-decay")
    return " ".join(text.split()) or type(error).__name__


def _near_file(path: str) -> str:
    folder, name = os.path.split(path)
    with contextlib.suppress(OSError):
        near = difflib.get_close_matches(name, os.listdir(folder or "."), n=3)
        return _did_you_mean(os.path.join(folder, one) for one in near)
    return ""


def _did_you_mean(names: Iterable[str]) -> str:
    """The end of a sentence that names near misses; empty if there are none.

    >>> _did_you_mean(["a", "b"])
    '; did you mean a or b?'
    """
    shown = " or ".join(names)
    return f"; did you mean {shown}?" if shown else ""


# ---------------------------------------------------------------- the command line


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

    def command(name: str, help: str, description: str) -> argparse.ArgumentParser:
        epilog = text(name, _MODELS, _EXITS)
        return commands.add_parser(
            name, help=help, description=description, epilog=epilog,
            formatter_class=plain, allow_abbrev=False,
        )  # fmt: skip

    plan = command(
        "plan",
        help="print what a schedule does to a model, or write it as YAML to edit",
        description="Print what a schedule does to a model, or write it as YAML to edit.",
    )
    plan.add_argument("model", metavar="MODEL", help="see below")
    _add_schedule(plan)
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
        help="draw a schedule into a file (needs matplotlib)",
        description="Draw what a schedule does to a model: stages upwards, time to the right.",
    )
    plot.add_argument("model", metavar="MODEL", help="see below")
    plot.add_argument(
        "-o", "--output", required=True, metavar="FILE", help="a .png, .svg or .pdf file"
    )
    _add_schedule(plot)
    _add_length(plot)
    plot.set_defaults(command=_plot)

    check = command(
        "check",
        help="tell whether a schedule file fits a model",
        description="Read a schedule file, fit it to a model, and print what it would do.",
    )
    check.add_argument("file", metavar="FILE", help="a .yaml, .yml or .json file")
    check.add_argument("model", metavar="MODEL", help="see below")
    _add_length(check)
    check.set_defaults(command=_check)
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


# ---------------------------------------------------------------- the commands


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
        schedule = FreezeSchedule.from_file(given.file)
        network = load_model(given.model)
        try:
            table = _preview(schedule, network, given)
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


def _preview(schedule: FreezeSchedule, network: nn.Layer, given: argparse.Namespace) -> Preview:
    return schedule.preview(network, epochs=given.epochs, steps_per_epoch=given.steps_per_epoch)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what libraries and the user's modules print out of the standard output."""
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# ---------------------------------------------------------------- models


def load_model(text: str) -> nn.Layer:
    """The network that a MODEL of the command line means, without pretrained weights.

    Args:
        text: ``"paddle.vision:factory"``, ``"module:factory"``, a folder with a configuration
            of PaddleNLP, or the name of one of PaddleNLP's models.

    Raises:
        MistakeError: if there is no such model, with names that look like it.

    >>> type(load_model("paddle.vision:LeNet")).__name__
    'LeNet'
    """
    if os.path.isdir(text):
        return _from_folder(text)
    module, colon, factory = text.partition(":")
    if colon and not os.path.exists(text):
        if not module or not factory:
            raise MistakeError(
                f"MODEL {text!r}: write module:factory, such as paddle.vision:resnet50"
            )
        if module == "paddle.vision":
            return _from_vision(factory)
        return _from_module(module, factory)
    if os.path.isfile(text):
        raise MistakeError(
            f"MODEL {text!r} is a file; give the folder that holds config.json, or module:factory"
        )
    if text.startswith((".", "/", "~")) or text.count("/") > 1 or os.sep == "\\" in text:
        raise MistakeError(f"MODEL {text!r}: there is no such folder{_near_file(text)}")
    return _from_name(text)


def _from_vision(factory: str) -> nn.Layer:
    models = paddle.vision.models
    # Classes that take no arguments (LeNet) are models, too; functions build the others.
    known = [name for name in models.__all__ if name[0].islower() or name == "LeNet"]
    if factory not in known:
        near = difflib.get_close_matches(factory, known, n=3, cutoff=0.5)
        hint = _did_you_mean(f"paddle.vision:{one}" for one in near)
        raise MistakeError(
            f"paddle.vision.models has no {factory!r}{hint or '; it has ' + ', '.join(known)}"
        )
    build = getattr(models, factory)
    with paddle.LazyGuard():  # shapes are enough
        network: nn.Layer = build() if isinstance(build, type) else build(pretrained=False)
    return network


def _from_module(name: str, factory: str) -> nn.Layer:
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise MistakeError(f"the module {name!r} cannot be imported: {error}") from error
        files = [one[:-3] for one in os.listdir(".") if one.endswith(".py")]
        hint = _did_you_mean(f"{one}:{factory}" for one in difflib.get_close_matches(name, files))
        raise MistakeError(
            f"there is no module {error.name!r}, neither here nor installed{hint}"
        ) from error
    except (Exception, SystemExit) as error:
        raise MistakeError(f"the module {name!r} cannot be imported: {_named(error)}") from error
    if not hasattr(module, factory):
        near = difflib.get_close_matches(factory, [n for n in dir(module) if n[0] != "_"], n=3)
        hint = _did_you_mean(f"{name}:{one}" for one in near)
        raise MistakeError(f"the module {name!r} has no {factory!r}{hint}")
    build = getattr(module, factory)
    if isinstance(build, nn.Layer):
        return build
    if not callable(build):
        raise MistakeError(
            f"{name}:{factory} is {type(build).__name__}; "
            "it must be a function without arguments that gives a paddle.nn.Layer"
        )
    try:
        network = build()
    except (Exception, SystemExit) as error:
        raise MistakeError(
            f"{name}:{factory}, called without arguments, failed: {_named(error)}"
        ) from error
    if not isinstance(network, nn.Layer):
        raise MistakeError(
            f"{name}:{factory} gave {type(network).__name__}, not a paddle.nn.Layer"
            + ("; take .network of a paddle.Model" if isinstance(network, paddle.Model) else "")
        )
    return network


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip()[:300]}"


def _transformers() -> Any:
    """``paddlenlp.transformers``."""
    try:
        import paddlenlp.transformers as transformers
        from paddlenlp.utils.log import logger
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.partition(".")[0] == "paddlenlp":
            raise MistakeError(
                "a model by name or folder needs PaddleNLP, which is not installed; "
                "pip install 'paddle-freeze-callback[nlp]', or give module:factory"
            ) from error
        raise MistakeError(f"PaddleNLP is installed, but cannot be imported: {error}") from error
    except Exception as error:
        raise MistakeError(
            f"PaddleNLP is installed, but cannot be imported: {_named(error)}"
        ) from error
    logger.set_level("ERROR")
    return transformers


def _from_folder(folder: str) -> nn.Layer:
    path = os.path.join(folder, "config.json")
    if not os.path.isfile(path):
        inside = sorted(os.listdir(folder))[:5]
        raise MistakeError(
            f"the folder {folder} has no config.json; it has "
            + (", ".join(inside) + ("" if len(inside) < 5 else " ...") if inside else "nothing")
        )
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except ValueError as error:
        raise MistakeError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise MistakeError(f"{path} must hold a mapping, not {type(content).__name__}")
    return _from_configuration(path, content)


def _from_configuration(where: str, content: Mapping[str, Any]) -> nn.Layer:
    transformers = _transformers()
    said = content.get("architectures") or [content.get("init_class")]
    wanted = said[0] if isinstance(said, list) and said else said
    kind = getattr(transformers, wanted, None) if isinstance(wanted, str) else None
    config_class = getattr(kind, "config_class", None)
    if config_class is None:
        families = transformers.AutoConfig.MAPPING_NAMES
        family = content.get("model_type")
        base = transformers.PretrainedConfig
        fitting = [one for one in families.get(family, ()) if one is not base]
        if not fitting:
            told = f"model_type {family!r}" if family else "no model_type"
            near = difflib.get_close_matches(str(wanted or family), [*dir(transformers), *families])
            raise MistakeError(
                f"{where}: PaddleNLP knows no such model: architectures {wanted!r}, "
                f"{told}{_did_you_mean(near)}"
            )
        config_class = fitting[0]
    try:
        config = config_class.from_dict(dict(content))
    except Exception as error:
        raise MistakeError(
            f"{where}: {config_class.__name__} refuses it: {_named(error)}"
        ) from error
    return _built(where, config, kind)


def _from_name(name: str) -> nn.Layer:
    transformers = _transformers()
    kinds = [one for kinds in transformers.AutoConfig.MAPPING_NAMES.values() for one in kinds]
    known = {known: kind for kind in kinds for known in kind.pretrained_init_configuration}
    try:
        config = known.get(name, transformers.AutoConfig).from_pretrained(name)
    except Exception as error:  # whatever a download may fail with
        near = difflib.get_close_matches(name, known, n=3)
        vision = [one for one in paddle.vision.models.__all__ if one == name]
        raise MistakeError(
            f"MODEL {name!r} is no folder, none of the {len(known)} models that PaddleNLP has a "
            f"configuration of, and its config.json cannot be downloaded ({type(error).__name__})"
            + _did_you_mean([*near, *(f"paddle.vision:{one}" for one in vision)])
        ) from error
    said = config.architectures
    return _built(name, config, getattr(transformers, said[0], None) if said else None)


def _built(where: str, config: Any, kind: Any) -> nn.Layer:
    """The network of a configuration, as the class or, if that has no head, as a classifier."""
    if kind is None or re.search(r"(Model|ForPretraining|ForPreTraining)$", kind.__name__):
        family = type(config).__name__[: -len("Config")]
        modeling = importlib.import_module(
            type(config).__module__.replace("configuration", "modeling")
        )
        classifier = getattr(modeling, f"{family}ForSequenceClassification", None)
        kind = classifier or kind or getattr(modeling, f"{family}Model", None)
        if kind is None:
            raise MistakeError(
                f"{where}: PaddleNLP has no sequence classifier for {type(config).__name__}; "
                "say in config.json under architectures which class to build"
            )
    try:
        try:
            with paddle.LazyGuard():  # shapes are enough, and take no memory
                network: nn.Layer = kind.from_config(config)
        except Exception:  # some look at their weights while they are built
            network = kind.from_config(config)
    except Exception as error:
        raise MistakeError(f"{where}: {kind.__name__} cannot be built: {_named(error)}") from error
    return network


# ---------------------------------------------------------------- the schedule as YAML


def written_out(
    schedule: FreezeSchedule,
    network: nn.Layer,
    *,
    epochs: float,
    steps_per_epoch: int,
    model: str,
    file: str,
) -> str:
    """A schedule as YAML that says for each moment what opens and freezes, to edit.

    Moments are written in epochs, so that they stay right for another number of steps in an
    epoch, unless the schedule itself counts steps.

    Args:
        schedule: the schedule.
        network: what it is fitted to.
        epochs: how long the run is.
        steps_per_epoch: optimizer steps in an epoch.
        model: what the network is called on the command line.
        file: what the file is called; both are only told in its comments.

    Raises:
        MistakeError: if the strategy decides while it runs.
        ValueError, TypeError: as at the start of a run.
    """
    run = Run.of(epochs=epochs, steps_per_epoch=steps_per_epoch)
    manners = schedule._manners
    rule = schedule._strategy
    if rule.decides or rule.measures:
        raise MistakeError(
            f"--yaml: {rule!r} decides while it runs, so its moments are not known before; after a "
            "run, schedule.as_explicit() tells them"
        )
    fitted = plan_of(network, schedule._stages, rule, manners["learning_rates"])
    every = weights(network)
    names = {stage.name: covering(stage, every, fitted.openable) for stage in fitted.stages}
    moments = _moments(fitted, rule, run)
    total = sum(weight.numel for weight in every)
    lines: list[tuple[str, str]] = [("unfreeze_at:", "")]
    before: frozenset[str] = frozenset()
    for written, step, opened in moments:
        lines.append((f"  {written}:", f"step {step}, epoch {run.epoch_of(step)}"))
        for verb, which in (("unfreeze", opened - before), ("freeze", before - opened)):
            if which:
                lines.append((f"    {verb}:", ""))
            for stage in (stage for stage in fitted.stages if stage.name in which):
                for name in names[stage.name]:
                    told = _sizes(select(every, name), total)
                    lines.append((f"      - {_scalar(name)}", f"{stage.name}: {told}"))
        before = opened
    ever = {name for _, _, opened in moments for name in opened}
    rates = [
        (f"  {_scalar(name)}: {fitted.multipliers[stage.name]!r}", stage.name)
        for stage in fitted.stages
        if stage.name in ever and fitted.multipliers.get(stage.name, 1.0) != 1.0
        for name in names[stage.name]
    ]
    if rates:
        lines += [("lr:", "multipliers of the optimizer's learning rate"), *rates]
    lines += _other_options(schedule)
    head = [
        f"{schedule!r}",
        f"for {model}: {type(network).__name__}, {total:,} parameters,",
        f"over {epochs} {'epoch' if epochs == 1 else 'epochs'} of {steps_per_epoch} "
        "optimizer steps.",
        "",
        "Edit it, then look at it and train with it:",
        f"  paddle-freeze check {file} {model} "
        f"--epochs {epochs} --steps-per-epoch {steps_per_epoch}",
        f"  FreezeSchedule.from_file({file!r})",
        "",
        "Moments (a number counts epochs) stand in order of time. Names are those of layers and",
        "parameters; what no moment names stays frozen.",
    ]
    width = max(len(text) for text, comment in lines if comment)
    body = [f"{text:<{width}}  # {comment}" if comment else text for text, comment in lines]
    return "\n".join([*(f"# {line}".rstrip() for line in head), "", *body]) + "\n"


def _moments(fitted: Plan, rule: Strategy, run: Run) -> list[tuple[str, int, frozenset[str]]]:
    """When the open stages change, as YAML keys, with the step and what is open from then on."""
    total = run.total_steps
    assert total
    counts_steps = "steps" in _units(rule)
    table = [
        entry for entry in fitted.strategy.timetable(run, fitted.schedulable) if entry[0] < total
    ]
    changes = [
        entry for index, entry in enumerate(table) if not index or table[index - 1][1] != entry[1]
    ]
    return [(_written(run, step, counts_steps), step, opened) for step, opened in changes]


def _units(rule: Strategy) -> set[str]:
    """The units that a strategy's moments are in."""
    if isinstance(rule, Explicit):
        return {Moment.of(when).unit for when in rule.unfreeze_at}
    options: Any = dataclasses.fields(rule) if dataclasses.is_dataclass(rule) else ()
    units = set()
    for name in (each.name for each in options):
        if name in ("every", "start", "at", "until") and getattr(rule, name) is not None:
            units.add(Moment.of(getattr(rule, name)).unit)
    return units


def _written(run: Run, step: int, counts_steps: bool) -> str:
    """A step as a moment.

    >>> run = Run.of(epochs=3, steps_per_epoch=7)
    >>> [_written(run, step, False) for step in (0, 3, 7, 8)]
    ['0', '0.4 epochs', '1', '1.1 epochs']
    >>> _written(run, 7, True)
    '7 steps'
    """
    if not step:
        return "0"
    length = run.steps_per_epoch
    if counts_steps or not length:
        return str(Moment(Fraction(step), "steps"))
    if not step % length:
        return str(step // length)
    for digits in range(1, 12):
        # A moment is the first step at or after it: round down.
        share = Fraction(step * 10**digits // length, 10**digits)
        if run.step_of(Moment(share, "epochs")) == step:
            return f"{float(share):.{digits}f} epochs"
    return str(Moment(Fraction(step), "steps"))


def _sizes(members: Sequence[Weight], total: int) -> str:
    numel = sum(weight.numel for weight in members)
    return f"{numel:,} parameters, {100 * numel / total:.3g}%"


def _scalar(text: str) -> str:
    """A text as YAML: plain, if it cannot be read as anything else.

    >>> _scalar("encoder.layers.3"), _scalar("0"), _scalar("1.weight"), _scalar("no")
    ('encoder.layers.3', '"0"', '"1.weight"', '"no"')
    """
    plain = re.fullmatch(r"[A-Za-z_][\w.]*", text, re.ASCII)
    words = ("true", "false", "yes", "no", "on", "off", "null", "y", "n")
    return text if plain and text.lower() not in words else json.dumps(text, ensure_ascii=False)


def _other_options(schedule: FreezeSchedule) -> list[tuple[str, str]]:
    """What else was said of the schedule, as lines of YAML."""
    said_above = ("stages", "strategy", "every", "start", "unfreeze_at", "lr", "lr_decay")
    elsewhere = (*said_above, "resume_at", "resume_from")  # these belong to a run
    lines = []
    for name, value in schedule._given.items():
        if name not in elsewhere:
            plain = os.fspath(value) if isinstance(value, os.PathLike) else value
            lines.append((f"{name}: {json.dumps(plain)}", ""))
    rule = schedule._strategy
    if rule.frees_state and "free_optimizer_state" not in schedule._given:
        lines.append(("free_optimizer_state: true", f"as {type(rule).__name__} does"))
    return lines
