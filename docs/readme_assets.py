"""Writes the READMEs' pictures and outputs: `make readme-assets`.

    python docs/readme_assets.py            # all, with the demo's training (3 minutes)
    python docs/readme_assets.py --quick    # without what needs the demo's training

An output stands in a README as a fenced block after the line ``<!-- output: NAME -->``.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from pathlib import Path

import paddle

from paddle_freeze_callback import FreezeSchedule
from paddle_freeze_callback.cli import main as command_line

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "docs" / "images"
READMES = (ROOT / "README.md", ROOT / "README.zh-CN.md")
_BLOCK = r"(<!-- output: {} -->\n```text\n)(.*?)(```\n)"


def preview_output() -> str:
    """What the READMEs' call of preview prints."""
    network = paddle.vision.models.resnet18(num_classes=5)
    return str(FreezeSchedule.ulmfit().preview(network, epochs=6, steps_per_epoch=100))


def plan_output() -> str:
    """What the READMEs' call of the command line prints."""
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


def block(name: str, text: str) -> str | None:
    """The output of this name in a README's text; ``None`` if it has none."""
    found = re.search(_BLOCK.format(name), text, re.DOTALL)
    return found and found[2]


def fill(name: str, output: str) -> None:
    """Put an output into its place in both READMEs."""
    for readme in READMES:
        text = readme.read_text(encoding="utf-8")
        if block(name, text) is None:
            raise SystemExit(f"{readme.name} has no block after <!-- output: {name} -->")
        body = output.rstrip("\n") + "\n"
        changed = re.sub(
            _BLOCK.format(name), lambda m, body=body: m[1] + body + m[3], text, flags=re.DOTALL
        )
        readme.write_text(changed, encoding="utf-8")


def main(arguments: list[str]) -> None:
    IMAGES.mkdir(exist_ok=True)
    fill("preview", preview_output())
    fill("plan", plan_output())
    draw_plan(IMAGES / "schedule.png")
    if "--quick" not in arguments:
        fill("demo", demo(IMAGES / "history.png"))


if __name__ == "__main__":
    main(sys.argv[1:])
