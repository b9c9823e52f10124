"""One run: what should be open, made so."""

from __future__ import annotations

from .plan import Plan, plan
from .record import Record
from .session import Freezing
from .trained import load_trained
from .transition import Transition

__all__ = ["Freezing", "Plan", "Record", "Transition", "load_trained", "plan"]
