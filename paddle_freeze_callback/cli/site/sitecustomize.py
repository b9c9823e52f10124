"""In every Python process below ``paddle-freeze run``: wait for paddle to be imported.

Python imports ``sitecustomize`` from ``PYTHONPATH`` as it starts, so the script, its launcher and
the children of ``spawn`` are all reached, and ``__main__``, ``__file__`` and relative imports are
those of a plain ``python script.py``. Another ``sitecustomize`` still has its turn.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
from types import ModuleType
from typing import Any


class _AfterPaddle:
    """Begins when ``paddle`` has been imported; a finder that finds nothing itself."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """The spec of ``paddle``, whose loader tells us when it is done."""
        if name != "paddle":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            load(module)
            _begin()

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _begin() -> None:
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(__file__))))
    if importlib.util.find_spec("paddle_freeze_callback") is None:
        sys.path.append(root)  # it was started from a clone that is not installed
    from paddle_freeze_callback.cli import guest

    guest.begin()


def _another() -> None:
    """Run the ``sitecustomize`` that ours stands before, if there is one."""
    here = os.path.dirname(os.path.abspath(__file__))
    others = [one for one in sys.path if os.path.abspath(one or ".") != here]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


if "PADDLE_FREEZE_RUN" in os.environ:
    sys.meta_path.insert(0, _AfterPaddle())
_another()
