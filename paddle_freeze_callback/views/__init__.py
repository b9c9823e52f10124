"""How do people see it?"""

from __future__ import annotations

from .preview import Phase, Preview, StagePreview

__all__ = ["Phase", "Preview", "StagePreview"]
