"""Under which training loop?

A host owns the events of one run of its loop. It turns their arguments into the network, the
optimizer, the length of the run and the optimizer steps done, and shows in the loop's own places
what the run reports. Every host is handed ``begin``, which starts a run, and knows no schedule.
"""

from __future__ import annotations

from .follow import Follower
from .hapi import HapiHost, announce
from .trainer import TrainerHost, expect_checkpoint

__all__ = ["Follower", "HapiHost", "TrainerHost", "announce", "expect_checkpoint"]
