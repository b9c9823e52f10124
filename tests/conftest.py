"""What is left out, and said: tests of a Trainer without one, of what Paddle 2.6 itself lacks."""

from __future__ import annotations

import os
import re
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

OLD = any(  # Paddle 2.6
    one.name in ("paddlepaddle", "paddlepaddle-gpu") and one.version.startswith("2.")
    for one in metadata.distributions()
)
HAS_TRAINER = any(find_spec(name) for name in ("paddlenlp", "paddleformers"))
NEEDS_TRAINER = re.compile(r"^from (trainers|paddlenlp)\b", re.MULTILINE)

#: What Paddle 2.6 cannot do, with this package or without, by the tests that want it.
LACKING = {
    r"-not reentrant\]": "non-reentrant recompute on a CPU",
    r"recompute_through_the_trainer\w*\[llama\]": "non-reentrant recompute on a CPU",
    r"full_graph_from_outside\w*\[function\]": "to_static of a function inside another",
    r"test_a_function_traced_after_the_start": "to_static of a function inside another",
    r"\[(NAdam|RAdam|ASGD|Rprop|an optimizer without multipliers)\]": "these optimizers",
}

left_out: list[str] = []


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    if HAS_TRAINER or collection_path.suffix != ".py":
        return None
    if NEEDS_TRAINER.search(collection_path.read_text(encoding="utf-8")):
        left_out.append(collection_path.name)
        return True
    return None


def pytest_configure() -> None:
    from hypothesis import settings  # here, for the matrix reads this file without it

    settings.register_profile("any machine", deadline=None)  # a timing is never asserted
    settings.load_profile("any machine")
    # PaddleNLP's Trainer in several processes ends in this Paddle's zlib, unless another is there.
    if OLD and os.name == "posix":
        os.environ.setdefault("LD_PRELOAD", "libz.so.1")


def pytest_collection_modifyitems(items) -> None:
    import pytest  # here, for the matrix reads this file without it

    for item in items if OLD else ():
        for pattern, what in LACKING.items():
            if re.search(pattern, item.nodeid):
                item.add_marker(pytest.mark.skip(reason=f"Paddle 2.6 lacks {what}"))


def pytest_terminal_summary(terminalreporter) -> None:
    if left_out:
        terminalreporter.write_line(f"left out, no Trainer is installed: {', '.join(left_out)}")
