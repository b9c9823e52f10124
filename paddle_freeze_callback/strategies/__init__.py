"""When does each stage open, and how fast does it train?"""

from __future__ import annotations

from .base import Strategy
from .by_name import STRATEGIES
from .deciding import ByGradient, Custom, OnPlateau
from .explicit import Explicit
from .moments import Moment, When
from .periodic import Cyclic, RandomStages
from .rates import LearningRates
from .run import Progress, Run
from .timed import ChainThaw, FreezeDown, Gradual, HeadOnly, HeadThenAll

__all__ = [
    "STRATEGIES",
    "ByGradient",
    "ChainThaw",
    "Custom",
    "Cyclic",
    "Explicit",
    "FreezeDown",
    "Gradual",
    "HeadOnly",
    "HeadThenAll",
    "LearningRates",
    "Moment",
    "OnPlateau",
    "Progress",
    "RandomStages",
    "Run",
    "Strategy",
    "When",
]
