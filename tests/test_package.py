"""What importing and installing the package does."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest

import paddle_freeze_callback


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_importing_it_imports_no_trainer_library_and_no_plotting():
    code = (
        "import sys, paddle; before = set(sys.modules); import paddle_freeze_callback; "
        "heavy = ('paddlenlp', 'paddleformers', 'matplotlib', 'rich', 'yaml', 'datasets'); "
        "print([name for name in sys.modules if name.partition('.')[0] in heavy"
        " and name not in before])"
    )
    assert run(code) == "[]"


def test_a_star_import_needs_no_trainer_library():
    code = (
        "import sys; sys.modules['paddlenlp'] = None; sys.modules['paddleformers'] = None\n"
        "from paddle_freeze_callback import *\n"
        "print(FreezeSchedule())"
    )
    assert run(code) == "FreezeSchedule()"


def test_training_arguments_without_a_trainer_library_say_what_to_install():
    code = (
        "import sys; sys.modules['paddlenlp'] = None; sys.modules['paddleformers'] = None\n"
        "try:\n    from paddle_freeze_callback import FreezeTrainingArguments\n"
        "except ImportError as error:\n    print(error)"
    )
    assert "pip install 'paddle-freeze-callback[nlp]'" in run(code)


def test_modules_that_only_decide_when_do_not_import_paddle():
    code = (
        "import sys, types; package = types.ModuleType('p'); package.__path__ = "
        f"[{paddle_freeze_callback.__path__[0]!r}]; sys.modules['p'] = package\n"
        "import p.strategies, p.options, p.words, p.checks; print('paddle' in sys.modules)"
    )
    assert run(code) == "False"


def test_everything_that_is_exported_exists_and_is_documented():
    for name in paddle_freeze_callback.__all__:
        thing = getattr(paddle_freeze_callback, name)
        assert isinstance(thing, str) or thing.__doc__


@pytest.mark.skipif(
    not (find_spec("paddlenlp") or find_spec("paddleformers")), reason="no library of a Trainer"
)
def test_training_arguments_are_documented():
    assert paddle_freeze_callback.FreezeTrainingArguments.__doc__
