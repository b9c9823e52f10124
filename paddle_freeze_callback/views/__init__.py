"""How do people see it?"""

from __future__ import annotations

from .preview import Phase, Preview, StagePreview
from .run import FreezeRun

__all__ = ["FreezeRun", "Phase", "Preview", "StagePreview"]
