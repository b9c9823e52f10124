"""Without a Trainer's library, the files that need one are left out, and named."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

HAS_TRAINER = any(find_spec(name) for name in ("paddlenlp", "paddleformers"))
NEEDS_TRAINER = re.compile(r"^from (trainers|paddlenlp)\b", re.MULTILINE)

left_out: list[str] = []


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    if HAS_TRAINER or collection_path.suffix != ".py":
        return None
    if NEEDS_TRAINER.search(collection_path.read_text(encoding="utf-8")):
        left_out.append(collection_path.name)
        return True
    return None


def pytest_terminal_summary(terminalreporter) -> None:
    if left_out:
        terminalreporter.write_line(f"left out, no Trainer is installed: {', '.join(left_out)}")
