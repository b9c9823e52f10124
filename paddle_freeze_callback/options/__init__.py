"""Which options are there, and how are they read?"""

from __future__ import annotations

from .flags import FreezeArguments
from .options import Options

__all__ = ["FreezeArguments", "Options"]
