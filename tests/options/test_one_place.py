"""A new option is written in one place and is seen everywhere."""

from __future__ import annotations

import dataclasses
import inspect
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from paddle_freeze_callback import FreezeArguments, FreezeSchedule
from paddle_freeze_callback.options import Options
from paddle_freeze_callback.options.flags import FLAGS
from paddle_freeze_callback.strategies.by_name import STRATEGIES, arguments_of

ROOT = Path(__file__).parent.parent.parent

OPTION = """
    colour: str | None = option(None, "the colour of the frozen stages", check=_colour)

    def __post_init__"""
CHECK = """
def _colour(argument: str, value: Any) -> None:
    one_of(argument, value, ("red", "blue"))


@dataclass(frozen=True, kw_only=True"""

SEEN = """
import contextlib, io, inspect, sys
sys.path.insert(0, "docs")
from paddle_freeze_callback import FreezeArguments, FreezeSchedule
from paddle_freeze_callback.cli.main import main
import paddle_freeze_callback, readme_assets

assert paddle_freeze_callback.__file__.startswith(sys.argv[1]), paddle_freeze_callback.__file__

def refused(make):
    try:
        make()
    except ValueError as error:
        return str(error)

# the constructor: signature, docstring, check and repr
assert "colour" in inspect.signature(FreezeSchedule).parameters
assert "    colour: the colour of the frozen stages." in FreezeSchedule.__doc__
assert repr(FreezeSchedule(colour="red")) == "FreezeSchedule(colour='red')"
wrong = "colour='grey' must be 'red' or 'blue'"
assert refused(lambda: FreezeSchedule(colour="grey")) == wrong

# flags of a Trainer
assert repr(FreezeSchedule.from_args(FreezeArguments(freeze_colour="red"))) == (
    "FreezeSchedule(colour='red')"
)
assert refused(lambda: FreezeSchedule.from_args(FreezeArguments(freeze_colour="grey"))) == (
    f"--freeze_colour: {wrong}"
)

# keys of files
with open("s.yaml", "w") as file:
    file.write("colour: grey")
assert refused(lambda: FreezeSchedule.from_file("s.yaml")) == f"s.yaml: colour: {wrong}"

# flags of the command line
told = io.StringIO()
with contextlib.redirect_stderr(told):
    assert main(["plan", "paddle.vision:LeNet", "--colour", "grey"]) == 1
assert f"--colour: {wrong}" in told.getvalue()

# tables, in English at once, in Chinese after a line of text
row = "| `colour` | `None` | the colour of the frozen stages |"
assert row in readme_assets.tables(".md")["schedule"]
try:
    readme_assets.tables(".zh-CN.md")
except SystemExit as stop:
    assert str(stop) == "options.zh-CN.yaml has no help for schedule: colour"
else:
    raise AssertionError("nobody missed the Chinese help")
print("seen everywhere")
"""


def test_an_option_that_is_added_in_one_place_is_seen_everywhere(tmp_path):
    for name in ("paddle_freeze_callback", "docs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    place = tmp_path / "paddle_freeze_callback" / "options" / "options.py"
    text = place.read_text()
    for old, new in (
        ("\n    def __post_init__", OPTION),
        ("\n@dataclass(frozen=True, kw_only=True", CHECK),
    ):
        assert text.count(old) == 1
        text = text.replace(old, new)
    place.write_text(text)
    done = subprocess.run(
        [sys.executable, "-c", SEEN, str(tmp_path)], capture_output=True, text=True, check=False,
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.stdout.strip().endswith("seen everywhere"), done.stderr[-2000:]


def test_every_option_of_a_schedule_is_a_parameter_a_flag_and_in_the_docstring():
    names = [each.name for each in dataclasses.fields(Options)]
    parameters = inspect.signature(FreezeSchedule).parameters
    assert list(parameters) == names
    assert all(each.kind is inspect.Parameter.KEYWORD_ONLY for each in parameters.values())
    assert parameters["frozen_norm"].default == "eval"
    assert {"resume_at", "resume_from"} == set(names) - set(FLAGS)
    for name in names:
        assert f"\n    {name}: " in FreezeSchedule.__doc__
    of_strategies = {name for kind in STRATEGIES.values() for name in arguments_of(kind)}
    assert set(FLAGS) == (set(names) | of_strategies) - {"resume_at", "resume_from"}
    assert [each.name for each in dataclasses.fields(FreezeArguments)] == [
        f"freeze_{name}" for name in FLAGS
    ]


def test_strategies_that_share_an_argument_read_it_in_the_same_way():
    for flag in FLAGS.values():
        assert len({each.metadata["flag"] for each in flag.fields.values()}) == 1, flag.name


def test_an_unknown_option_in_code_shows_the_nearest():
    with pytest.raises(
        TypeError, match=r"FreezeSchedule\(\) has no option 'evry'; did you mean ev"
    ):
        FreezeSchedule(evry=1)
    with pytest.raises(TypeError, match="takes options by name, such as every=1"):
        FreezeSchedule(4)


def test_what_the_caller_changes_later_does_not_matter():
    stages, moments, rates = ["fc", "*"], {0: "fc"}, {"fc": 2}
    schedule = FreezeSchedule(stages=stages, unfreeze_at=moments, lr=rates)
    before = repr(schedule)
    stages.append("x")
    moments[1] = "*"
    rates["*"] = 0.1
    assert repr(schedule) == before
