"""Mistakes that the user can put right."""

from __future__ import annotations

import contextlib
import difflib
import os

from ..words import did_you_mean


class MistakeError(Exception):
    """Something that the user can put right; its text is all that is shown."""


def near_file(path: str) -> str:
    """The end of a sentence that names files like the one that is missing."""
    folder, name = os.path.split(path)
    with contextlib.suppress(OSError):
        near = difflib.get_close_matches(name, os.listdir(folder or "."), n=3)
        return did_you_mean(os.path.join(folder, one) for one in near)
    return ""
