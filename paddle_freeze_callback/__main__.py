"""``python -m paddle_freeze_callback``: look at a schedule before training."""

from __future__ import annotations

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main(prog="python -m paddle_freeze_callback"))
