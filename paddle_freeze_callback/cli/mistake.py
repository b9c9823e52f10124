"""Mistakes that the user can put right."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from ..words import did_you_mean


class MistakeError(Exception):
    """A mistake that the user can put right; its text is all that is shown."""


@contextlib.contextmanager
def blaming(what: str) -> Iterator[None]:
    """Report whatever code of others raises as a mistake that begins with these words.

    >>> with blaming("the index"):
    ...     [][0]
    Traceback (most recent call last):
    paddle_freeze_callback.cli.mistake.MistakeError: the index: IndexError: list index out of range
    """
    try:
        yield
    except MistakeError:
        raise
    except (Exception, SystemExit) as error:
        kind = "" if isinstance(error, ModuleNotFoundError) else f"{type(error).__name__}: "
        raise MistakeError(f"{what}: {kind}{str(error).strip()[:300]}") from error


def near_file(path: str) -> str:
    """The end of a sentence that names files like the one that is missing."""
    folder, name = os.path.split(path)
    with contextlib.suppress(OSError):
        inside = os.listdir(folder or ".")
        return did_you_mean(name, inside, show=lambda one: os.path.join(folder, one))
    return ""
