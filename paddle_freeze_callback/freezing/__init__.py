"""How is a weight frozen, held still, and given back?"""

from __future__ import annotations

from .by_hand import freeze, unfreeze
from .freezer import Freezer
from .rates import SlantedTriangular

__all__ = ["Freezer", "SlantedTriangular", "freeze", "unfreeze"]
