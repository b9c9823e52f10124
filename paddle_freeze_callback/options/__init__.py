"""What may be said, said once."""

from __future__ import annotations

from .flags import FreezeArguments

__all__ = ["FreezeArguments"]
