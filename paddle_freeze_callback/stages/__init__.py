"""Which weights open and freeze as one?"""

from __future__ import annotations

from .declared import REST
from .partition import Stage, Stages, Survey, partition
from .selectors import Selector, select
from .weights import Weight, trainable_ratio, weights

__all__ = [
    "REST",
    "Selector",
    "Stage",
    "Stages",
    "Survey",
    "Weight",
    "partition",
    "select",
    "trainable_ratio",
    "weights",
]
