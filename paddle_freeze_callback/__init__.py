"""Freeze schedules for fine-tuning in PaddlePaddle.

>>> from paddle_freeze_callback import FreezeSchedule
>>> FreezeSchedule(every="1 epoch")
FreezeSchedule(every='1 epoch')
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .installed import require_paddle

require_paddle()  # before anything imports it

from .freezing import SlantedTriangular, freeze, unfreeze
from .options import FreezeArguments
from .schedule import FreezeSchedule
from .session import Transition, load_trained
from .stages import Stage, partition, trainable_ratio
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
    Progress,
    RandomStages,
    Strategy,
)
from .version import VERSION
from .views import Preview

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
    "load_trained",
    "partition",
    "trainable_ratio",
    "unfreeze",
]


def __getattr__(name: str) -> Any:
    # Built on first use: it needs the Trainer's library, which takes seconds to import.
    if name == "FreezeTrainingArguments":
        from .options import flags

        return flags.FreezeTrainingArguments
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
