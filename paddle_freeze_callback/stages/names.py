"""Which names does a text match."""

from __future__ import annotations

import functools
import re
from collections.abc import Collection

_BRACES = re.compile(r"\{([^{}]*)\}|\[([^\[\]]*)\]")


def matching(text: str, names: Collection[str]) -> set[str]:
    """The names that a dotted name or a ``re:`` selector matches, each in full or above it.

    Raises:
        ValueError: if the text is no dotted name and no regular expression, or counts from an
            end further than there are numbers.

    >>> sorted(matching("layers.[-2:]", ["layers.9.bias", "layers.10.bias", "layers.11.bias"]))
    ['layers.10.bias', 'layers.11.bias']
    """
    patterns = [compile_name(one) for one in _counted(text, names)]
    return {name for name in names if any(one.fullmatch(name) for one in patterns)}


def _counted(text: str, names: Collection[str]) -> list[str]:
    """The text with numbers in place of ``[-2:]`` and ``{-2,-1}``, once for each place.

    Places differ in what stands before the numbers: each of several encoders has a last layer.
    """
    part = next((one for one in _BRACES.finditer(text) if _counts(one)), None)
    if part is None or text.startswith("re:"):
        return [text]
    before, after = text[: part.start()], text[part.end() :]
    beside, _, _ = after.partition(".")
    left, right = re.compile(_expression(before, text)), re.compile(_component(beside, text))
    places: dict[str, set[str]] = {}
    for name in names:
        for number in re.finditer(r"\d+", name):
            place, (rest, *_) = name[: number.start()], name[number.end() :].split(".")
            if left.fullmatch(place) and right.fullmatch(rest):
                places.setdefault(place, set()).add(number[0])
    found = []
    for place, numbers in places.items():
        picked = _picked(part, sorted(numbers, key=int), text)
        if picked:
            found += _counted(f"{place}{{{','.join(picked)}}}{after}", names)
    return found


def _counts(part: re.Match[str]) -> bool:
    """Whether braces or brackets count numbers, and do not give them."""
    braces, brackets = part.groups()
    return brackets is not None or bool(re.search(r"(^|,)\s*-\d+\s*(,|$)", braces))


def _picked(part: re.Match[str], numbers: list[str], text: str) -> list[str]:
    """Those of the numbers that braces or brackets mean."""
    braces, brackets = part.groups()
    if brackets is not None and ":" in brackets:
        ends = re.fullmatch(r"\s*(-?\d+)?\s*:\s*(-?\d+)?\s*", brackets)
        if ends:
            return numbers[slice(*(int(end) if end else None for end in ends.groups()))]
    words = [word.strip() for word in (brackets if braces is None else braces).split(",")]
    if braces is None and not all(re.fullmatch(r"-?\d+", word) for word in words):
        raise ValueError(
            f"selector {text!r}: {part[0]} is no position; [-2:] means the last two, [0] the first"
        )
    try:
        return [
            numbers[int(word)] if braces is None or re.fullmatch(r"-\d+", word) else word
            for word in words
        ]
    except IndexError:
        raise ValueError(
            f"selector {text!r}: {part[0]} counts further than the {len(numbers)} that there are, "
            f"{numbers[0]} to {numbers[-1]}"
        ) from None


@functools.lru_cache(maxsize=1024)
def compile_name(text: str) -> re.Pattern[str]:
    """The regular expression for a dotted name or a ``re:`` selector.

    It matches, in full, the names of all parameters at or below what the text names.

    Raises:
        ValueError: if the text is no dotted name and no regular expression.

    >>> bool(compile_name("layers.{8-11}").fullmatch("layers.10.linear1.weight"))
    True
    >>> bool(compile_name("fc1").fullmatch("fc10.weight"))
    False
    """
    if text.startswith("re:"):
        try:
            return re.compile(rf"(?:{text[3:]})(?:\..*)?", re.DOTALL)
        except re.error as error:
            raise ValueError(f"selector {text!r} is no regular expression: {error}") from None
    components = text.split(".")
    if not all(component and component == component.strip() for component in components):
        raise ValueError(
            f"selector {text!r} has an empty component or blanks around one; "
            'a selector is a dotted name such as "encoder.layers.3"'
        )
    tail = "" if components[-1] == "**" else r"(?:\..*)?"
    return re.compile(_expression(text, text) + tail, re.DOTALL)


def _expression(start: str, text: str) -> str:
    """The beginning of a dotted name, as a regular expression."""
    *outer, last = start.split(".")
    return "".join(
        r"(?:[^.]+\.)*" if component == "**" else _component(component, text) + r"\."
        for component in outer
    ) + (".+" if last == "**" else _component(last, text))


def _component(component: str, text: str) -> str:
    """One component, as a regular expression without dots."""
    parts = re.split(r"(\{[^{}]*\}|\*|\?)", component)
    expression = ""
    for part in parts:
        if part == "*":
            expression += "[^.]*"
        elif part == "?":
            expression += "[^.]"
        elif part.startswith("{") and part.endswith("}"):
            expression += _alternatives(part[1:-1], text)
        elif "{" in part or "}" in part:
            raise ValueError(f"selector {text!r} has an unpaired brace in {component!r}")
        else:
            expression += re.escape(part)
    return expression


def _alternatives(inside: str, text: str) -> str:
    """``8-11`` or ``a,b,3-5`` as a group of alternatives."""
    words: list[str] = []
    for word in (word.strip() for word in inside.split(",")):
        ends = re.fullmatch(r"(\d+)-(\d+)", word)
        if ends:
            low, high = int(ends[1]), int(ends[2])
            if low > high:
                raise ValueError(
                    f"selector {text!r}: the range {{{word}}} runs backwards; "
                    f"write {{{high}-{low}}}"
                )
            words += [str(number) for number in range(low, high + 1)]
        elif word.startswith("-"):
            raise ValueError(
                f"selector {text!r}: what {{{inside}}} counts from the end cannot be told; write "
                "{-2,-1} or [-2:] for the last two"
            )
        elif word:
            words.append(re.escape(word))
        else:
            raise ValueError(f"selector {text!r} has an empty alternative in {{{inside}}}")
    return "(?:" + "|".join(words) + ")"
