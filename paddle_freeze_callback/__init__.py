"""Freeze schedules for fine-tuning in PaddlePaddle.

>>> from paddle_freeze_callback import FreezeSchedule
>>> FreezeSchedule(every="1 epoch")
FreezeSchedule(every='1 epoch')
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .arguments import FreezeArguments
from .freezer import freeze, unfreeze
from .moments import Progress
from .preview import Preview
from .rates import SlantedTriangular
from .report import Transition
from .schedule import FreezeSchedule
from .stages import Stage, partition
from .strategies import (
    ByGradient,
    ChainThaw,
    Cyclic,
    Explicit,
    FreezeDown,
    Gradual,
    HeadOnly,
    HeadThenAll,
    OnPlateau,
    RandomStages,
    Strategy,
)
from .version import VERSION
from .weights import trainable_ratio

if TYPE_CHECKING:
    FreezeTrainingArguments: Any

__version__ = VERSION

__all__ = [
    "ByGradient",
    "ChainThaw",
    "Cyclic",
    "Explicit",
    "FreezeArguments",
    "FreezeDown",
    "FreezeSchedule",
    "Gradual",
    "HeadOnly",
    "HeadThenAll",
    "OnPlateau",
    "Preview",
    "Progress",
    "RandomStages",
    "SlantedTriangular",
    "Stage",
    "Strategy",
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
