"""The words of messages: lists of names, near misses, sizes, shares."""

from __future__ import annotations

import difflib
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterable, Sequence

#: The selector that means everything, or everything that no other selector means.
EVERYTHING = "*"

_OURS = "FreezeSchedule: "

#: The length of our longest line in a log: with our name before it, 120 characters.
LINE = 120 - len(_OURS)

# Whose frames lie between a user's line and a warning of ours.
_BETWEEN = ("paddle_freeze_callback", "paddle", "paddlenlp", "paddleformers", "decorator")


def warn(text: str) -> None:
    """Warn, and point at the user's line: the nearest that is neither ours nor a library's.

    Python 3.12 has ``skip_file_prefixes=`` for it.
    """
    frame, level = sys._getframe(1), 2
    while frame.f_back and str(frame.f_globals.get("__name__")).partition(".")[0] in _BETWEEN:
        frame, level = frame.f_back, level + 1
    warnings.warn(text, stacklevel=level)


def listing(names: Sequence[str], most: int = 4, noun: str = "stages", room: int = 80) -> str:
    """Names in a row; of many, or of long ones, the middle is left out.

    >>> listing(["a", "b", "c", "d", "e", "f"]), listing(["a", EVERYTHING])
    ('a, b ... f (6 stages)', 'a, the rest')
    >>> listing(["a", "b", "c", "d", "e", "f"], room=20), listing(["a.long.name", "b"], room=10)
    ('a ... f (6 stages)', '2 stages')
    """
    names = ["the rest" if name == EVERYTHING else name for name in names]
    if len(names) < 2:
        return cut("".join(names), room)
    forms = [", ".join(names)] if len(names) <= most else []
    forms += [f"{names[0]}, {names[1]} ... {names[-1]} ({len(names)} {noun})"]
    forms += [f"{names[0]} ... {names[-1]} ({len(names)} {noun})", f"{len(names)} {noun}"]
    return fitting(forms, room)


def fitting(forms: Iterable[str], room: int = LINE) -> str:
    """The first of several ways to say something that has room; the last if none has."""
    text = ""
    for text in forms:
        if len(text) <= room:
            break
    return text


def in_lines(text: str, name: str = _OURS) -> list[str]:
    """What a schedule says, as lines of a log: 120 characters, unless a word is longer.

    >>> in_lines("left frozen, as found: head")
    ['FreezeSchedule: left frozen, as found: head']
    """
    return textwrap.wrap(
        name + text, 120, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )


def cut(name: str, longest: int) -> str:
    """A name, cut in the middle if it is long.

    >>> cut("head", 20), cut("ernie.encoder.layers.11.self_attn.out_proj", 28)
    ('head', 'ernie.enc…self_attn.out_proj')
    """
    front = (longest - 1) // 3  # the end of a dotted name says more than its beginning
    return name if len(name) <= longest else f"{name[:front]}…{name[front + 1 - longest :]}"


def did_you_mean(
    word: object,
    known: Iterable[str],
    *,
    most: int = 3,
    cutoff: float = 0.6,
    show: Callable[[str], str] = repr,
) -> str:
    """The end of a sentence about an unknown word; empty if no known word is like it.

    Args:
        word: the unknown word.
        known: the words that would have been right.
        most: how many of them to name at most, nearest first.
        cutoff: how like the word they must be, from 0 to 1, as for ``difflib.get_close_matches``.
        show: how to write one of them; in quotes by default.

    >>> did_you_mean("fc11", ["fc1", "fc10", "head"])
    "; did you mean 'fc1' or 'fc10'?"
    >>> did_you_mean("resnet51", ["resnet50"], show="paddle.vision:{}".format)
    '; did you mean paddle.vision:resnet50?'
    >>> did_you_mean("zzz", ["fc1", "fc10", "head"])
    ''
    """
    near = difflib.get_close_matches(str(word), list(known), n=most, cutoff=cutoff)
    return f"; did you mean {' or '.join(map(show, near))}?" if near else ""


def known_names(wrong: object, known: Iterable[str]) -> str:
    """The end of a message on an unknown name: those that are near, else all that are known.

    >>> known_names("evry", ["every", "start"]), known_names("x", ["every", "start"])
    ('; did you mean every?', '; known: every, start')
    """
    near = did_you_mean(wrong, known, most=2, show=str)
    return near or f"; known: {', '.join(known)}"


def size_text(count: float) -> str:
    """Bytes in the unit that reads best.

    >>> size_text(2048), size_text(3 * 2**20), size_text(0)
    ('2.0 KB', '3.0 MB', '0')
    """
    for unit, name in ((2**30, "GB"), (2**20, "MB"), (2**10, "KB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count:.0f} B" if count else "0"


def percent(share: float) -> str:
    """A share; a small one gets two significant digits.

    >>> percent(0.5), percent(0.00012), percent(0)
    ('50 %', '0.012 %', '0 %')
    """
    if share >= 0.1 or not share:
        return f"{100 * share:.0f} %"
    return f"{100 * share:.2g} %"
