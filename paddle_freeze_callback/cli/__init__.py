"""Look before you train: the command ``paddle-freeze``."""

from __future__ import annotations

from .main import main

__all__ = ["main"]
