"""How is a frozen prefix computed once per sample?"""

from __future__ import annotations

from .feature_cache import FeatureCache
from .options import CacheOptions, CacheStatistics

__all__ = ["CacheOptions", "CacheStatistics", "FeatureCache"]
