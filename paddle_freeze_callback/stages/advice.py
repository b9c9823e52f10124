"""What to say of a network that cannot be read: why, and stages for it that can be pasted."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from ..words import EVERYTHING
from .blocks import below_head
from .head import pretrained_inside
from .parts import Part, Split
from .weights import own_parameters


def refusal(root: Part, why: str) -> str:
    """The message for a network that cannot be read."""
    children = ", ".join(
        f"{name} ({type(child).__name__})" for name, child in root.layer.named_children()
    )
    return (
        f"cannot tell the head of {type(root.layer).__name__} from its backbone: {why}. "
        f"Its children are: {children or 'none'}. Put your own layer on top of it, or name the "
        f"stages yourself, head first: stages={to_paste(root)}"
    )


def to_paste(root: Part) -> str:
    """Stages for this very network, from what is defined last to the input side."""
    body = root
    while len(body.children) == 1 and not body.own and body.children[0].children:
        body = body.children[0]
    groups = list(below_head(root, Split(frozenset(), pretrained_inside(body) or (body,))).values())
    between = groups[1:-1]
    few = -(-len(between) // 4) or 1  # the top, at most four between, and the input side
    merged = [set[int]().union(*between[at : at + few]) for at in range(0, len(between), few)]
    entries = []
    for ids in [*groups[: len(groups) > 1], *merged]:
        names = _in_ranges(list(_cover(root, set(ids))))
        quoted = ", ".join(map(_quoted, names))
        entries.append(quoted if len(names) == 1 else f"[{quoted}]")
    return f"[{', '.join([*entries, _quoted(EVERYTHING)])}]"


def _quoted(name: str) -> str:
    return '"' + name.replace("\\", "\\\\") + '"'


def _cover(part: Part, ids: set[int]) -> Iterator[str]:
    """The outermost layers and parameters that together hold these tensors, each named once."""
    if part.path and part.ids & ids and part.ids <= ids:
        ids -= part.ids
        yield _selector(part.path)
        return
    for name, one in own_parameters(part.layer).items():
        if id(one) in ids & part.own:
            ids.discard(id(one))
            yield _selector(f"{part.path}.{name}" if part.path else name)
    for child in part.children:
        yield from _cover(child, ids)


def _selector(path: str) -> str:
    """A path as a selector; one with empty components is no dotted name."""
    path = path.rstrip(".")
    return path if all(path.split(".")) else f"re:{re.escape(path)}"


def _in_ranges(names: Sequence[str]) -> list[str]:
    """Consecutive numbers at the end of names as one range.

    >>> _in_ranges(["layers.2", "layers.3", "norm"])
    ['layers.{2-3}', 'norm']
    """
    joined: dict[str, list[int]] = {}
    for name in names:
        match = None if name.startswith("re:") else re.fullmatch(r"(.*?)(0|[1-9]\d*)", name)
        joined.setdefault(match[1] if match else name + "\0", []).append(
            int(match[2]) if match else 0
        )
    found = []
    for stem, numbers in joined.items():
        if stem.endswith("\0"):
            found.append(stem[:-1])
        elif len(numbers) > 1 and sorted(numbers) == list(range(min(numbers), max(numbers) + 1)):
            found.append(f"{stem}{{{min(numbers)}-{max(numbers)}}}")
        else:
            found += [f"{stem}{number}" for number in numbers]
    return found
