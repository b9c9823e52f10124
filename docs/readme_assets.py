"""Writes the documents' pictures, outputs and tables of options: `make readme-assets`.

    python docs/readme_assets.py            # all, with the demo's training (3 minutes)
    python docs/readme_assets.py --quick    # without the demo's training

An output is a fenced block after the line ``<!-- output: NAME -->`` of a document, a table of
options the table after ``<!-- options: NAME -->``. The help of an option is at its field, in
English, and in ``docs/options.zh-CN.yaml``, in Chinese.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import sys
from pathlib import Path

import paddle
import yaml

from paddle_freeze_callback import FreezeSchedule
from paddle_freeze_callback.cli import main as command_line
from paddle_freeze_callback.options import Options
from paddle_freeze_callback.strategies import LearningRates
from paddle_freeze_callback.strategies.by_name import STRATEGIES, arguments_of

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "docs" / "images"
ENDINGS = (".md", ".zh-CN.md")  # English, Chinese
CHINESE = ROOT / "docs" / "options.zh-CN.yaml"
_BLOCK = r"(<!-- output: {} -->\n```text\n)(.*?)(```\n)"
_TABLE = r"(<!-- options: {} -->\n)((?:\|.*\n)*)"

# In a help text: a mapping, a quoted word, a call, a name.
_CODE = re.compile(
    r"""\{[^{}]*"[^{}]*\}|"[^"]*"|'[^' ]+'|\w+=\w+\([\w, ]*\)|\b[a-z]+(?:_[a-z]+)+\b"""
)


def preview_output() -> str:
    """What the documents' call of preview prints."""
    network = paddle.vision.models.resnet18(num_classes=5)
    return str(FreezeSchedule.ulmfit().preview(network, epochs=6, steps_per_epoch=100))


def plan_output() -> str:
    """What the documents' call of the command line prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        command_line(["plan", "paddle.vision:mobilenet_v2", "--stages", "3", "--epochs", "4"])
    return out.getvalue()


def draw_plan(file: Path) -> None:
    """The picture before a run."""
    network = paddle.vision.models.resnet18(num_classes=5)
    FreezeSchedule.ulmfit().plot(file, network, epochs=6, steps_per_epoch=100)


def demo(picture: Path) -> str:
    """What the demo prints at its end; draws what happened."""
    sys.path.insert(0, str(ROOT / "examples"))
    from finetune_sentiment import main

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        found = main([])
    metrics = {"accuracy": found["schedule"].run.metrics["eval_accuracy"]}
    found["schedule"].run.plot(picture, metrics)
    text = out.getvalue()
    return text[text.index("FreezeSchedule(") :]


def english() -> dict[str, dict[str, str]]:
    """The help of each option, by strategy; those of the schedule under ``"schedule"``."""
    described = {"schedule": {each.name: each for each in dataclasses.fields(Options)}}
    described |= {name: arguments_of(kind) for name, kind in STRATEGIES.items()}
    return {
        owner: {name: each.metadata["help"] for name, each in own.items()}
        for owner, own in described.items()
        if own
    }


def chinese() -> dict[str, dict[str, str]]:
    """The same in Chinese."""
    return yaml.safe_load(CHINESE.read_text(encoding="utf-8"))


def place(kind: str, name: str, ending: str) -> Path:
    """The document in a language that has the mark of an output, or of a table of options.

    Raises:
        SystemExit: if none has it.
    """
    for path in [ROOT / f"README{ending}", *sorted((ROOT / "docs").glob(f"*{ending}"))]:
        translated = path.name.endswith(ENDINGS[1])
        mark = f"<!-- {kind}: {name} -->"
        if translated == (ending == ENDINGS[1]) and mark in path.read_text(encoding="utf-8"):
            return path
    raise SystemExit(f"no document *{ending} has the mark <!-- {kind}: {name} -->")


def tables(ending: str) -> dict[str, str]:
    """The tables of options in a language, by name.

    Raises:
        SystemExit: if an option has no help in the language.
    """
    translated = ending == ENDINGS[1]
    helps = chinese() if translated else english()
    for owner, own in english().items():
        for name in own:
            if name not in helps.get(owner, {}):
                raise SystemExit(f"{CHINESE.name} has no help for {owner}: {name}")
    head = ["选项", "默认值", "含义"] if translated else ["option", "default", "meaning"]
    rates = {each.name for each in dataclasses.fields(LearningRates)}
    groups: dict[str, list[list[str]]] = {"schedule": [], "rates": [], "cache": [], "arguments": []}
    for each in dataclasses.fields(Options):
        group = "rates" if each.name in rates else each.name.partition("_")[0]
        row = [f"`{each.name}`", _default(each), _marked(helps["schedule"][each.name])]
        groups[group if group in groups else "schedule"].append(row)
    for owner, kind in STRATEGIES.items():
        for name, each in arguments_of(kind).items():
            row = [f"`{owner}`", f"`{name}`", _default(each), _marked(helps[owner][name])]
            groups["arguments"].append(row)
    heads = dict.fromkeys(groups, head)
    heads["arguments"] = ["策略" if translated else "strategy", *head]
    return {
        name: "".join(
            f"| {' | '.join(row)} |\n".replace("|  |", "| |")
            for row in (heads[name], ["---"] * len(heads[name]), *rows)
        )
        for name, rows in groups.items()
    }


def _default(option: dataclasses.Field) -> str:
    """The default as code; nothing for an option that must be given."""
    value = option.default
    return "" if value is dataclasses.MISSING else f"`{value!r}`".replace("'", '"')


def _marked(help: str) -> str:
    """A help text as a cell, with code in backticks."""
    return _CODE.sub(lambda found: f"`{found[0]}`", help.replace("|", "\\|"))


def block(name: str, text: str) -> str | None:
    """The output of this name in a document's text; ``None`` if it has none."""
    found = re.search(_BLOCK.format(name), text, re.DOTALL)
    return found and found[2]


def table(name: str, text: str) -> str | None:
    """The table of options of this name in a document's text; ``None`` if it has none."""
    found = re.search(_TABLE.format(name), text)
    return found and found[2]


def fill(name: str, output: str) -> None:
    """Put an output into its place in both languages."""
    body = output.rstrip("\n") + "\n"
    for ending in ENDINGS:
        path = place("output", name, ending)
        text = path.read_text(encoding="utf-8")
        pattern = _BLOCK.format(name)
        changed = re.sub(pattern, lambda m: m[1] + body + m[3], text, flags=re.DOTALL)
        path.write_text(changed, encoding="utf-8")


def fill_tables() -> None:
    """Put the tables of options into their places in both languages."""
    for ending in ENDINGS:
        for name, rows in tables(ending).items():
            path = place("options", name, ending)
            text = path.read_text(encoding="utf-8")
            changed = re.sub(_TABLE.format(name), lambda m, rows=rows: m[1] + rows, text)
            path.write_text(changed, encoding="utf-8")


def main(arguments: list[str]) -> None:
    IMAGES.mkdir(exist_ok=True)
    fill_tables()
    fill("preview", preview_output())
    fill("plan", plan_output())
    draw_plan(IMAGES / "schedule.png")
    if "--quick" not in arguments:
        fill("demo", demo(IMAGES / "history.png"))


if __name__ == "__main__":
    main(sys.argv[1:])
