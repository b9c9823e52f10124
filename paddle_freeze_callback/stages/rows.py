"""Of which weights some rows train alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..checks import named
from .selectors import select
from .weights import Weight


def with_rows(every: Sequence[Weight], rows: Mapping[str, slice]) -> tuple[Weight, ...]:
    """The weights of a network, those that are named with the rows of them that train.

    Raises:
        ValueError: naming a selector that means no weight or several, or rows that are not there.
    """
    found: dict[int, tuple[int, int]] = {}
    for name, span in rows.items():
        chosen = named("rows", lambda one: select(every, one), name)
        weight = chosen[0]
        where = f"rows[{name!r}]"
        if len(chosen) > 1:
            raise ValueError(
                f"{where} means {len(chosen)} tensors, {chosen[0].name}, {chosen[1].name} "
                f"{'...' if chosen[2:] else ''}".rstrip()
                + "; name one"
            )
        if id(weight.tensor) in found:
            raise ValueError(f"{where}: the rows of {weight.name} are there twice; give them once")
        if weight.group:
            raise ValueError(
                f"{where}: {weight.name} is split among processes, of which each has some rows; "
                "not shown to be right under tensor parallel"
            )
        found[id(weight.tensor)] = _ends(where, weight, span)
    return tuple(replace(weight, rows=found.get(id(weight.tensor))) for weight in every)


def _ends(where: str, weight: Weight, span: slice) -> tuple[int, int]:
    """The first row and the one after the last, of a weight."""
    length = weight.tensor.shape[0] if weight.tensor.shape else 0
    first, after, _ = span.indices(length)
    asked = [end + length if end < 0 else end for end in (span.start, span.stop) if end is not None]
    if first >= after or min(asked) < 0 or max(asked) > length:
        raise ValueError(
            f"{where}: {weight.name} has {length} rows, 0 to {length - 1}; the rows "
            f"{'' if span.start is None else span.start}:{'' if span.stop is None else span.stop} "
            "are not among them. Of a table that is to grow, resize it before training begins"
        )
    if after - first == length:
        raise ValueError(f"{where}: that is all of {weight.name}; open it as a stage instead")
    return first, after
