"""Freeze schedules for fine-tuning in PaddlePaddle.

>>> from paddle_freeze_callback import FreezeSchedule
>>> FreezeSchedule(every="1 epoch")
FreezeSchedule(every='1 epoch')
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .arguments import FreezeArguments
from .freezer import freeze, unfreeze
from .report import Transition
from .schedule import FreezeSchedule
from .stages import Stage, partition
from .strategies import Explicit, Gradual, HeadOnly, HeadThenAll
from .version import VERSION
from .weights import trainable_ratio

if TYPE_CHECKING:
    FreezeTrainingArguments: Any

__version__ = VERSION

__all__ = [
    "Explicit",
    "FreezeArguments",
    "FreezeSchedule",
    "Gradual",
    "HeadOnly",
    "HeadThenAll",
    "Stage",
    "Transition",
    "__version__",
    "freeze",
    "partition",
    "trainable_ratio",
    "unfreeze",
]


def __getattr__(name: str) -> Any:
    # Built on first use: it needs the Trainer's library, which takes seconds to import.
    if name == "FreezeTrainingArguments":
        from . import arguments

        return arguments.FreezeTrainingArguments
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
