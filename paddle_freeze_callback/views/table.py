"""Tables with lines beneath them: in a terminal, as plain text and in a notebook."""

from __future__ import annotations

import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Table:
    """Cells in columns.

    Attributes:
        columns: the head of each column.
        rows: the cells of each row.
        words: the heads of the columns of words, which are aligned to the left; numbers are
            aligned to the right.
    """

    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    words: frozenset[str] = frozenset()

    def side(self, column: str) -> Any:
        """``"left"`` or ``"right"``."""
        return "left" if column in self.words else "right"


def as_rich(tables: Sequence[Table], lines: Sequence[str], *, narrow: bool = False) -> Any:
    """What ``rich`` prints: the tables, then the lines.

    Args:
        tables: the tables.
        lines: the lines beneath them.
        narrow: whether heads go over several lines, and words, too, where they must. Numbers and
            the names of rows are never cut.
    """
    from rich import box
    from rich.console import Group
    from rich.table import Table as RichTable
    from rich.text import Text

    drawn = []
    for table in tables:
        padding = (0, 0) if narrow else (0, 1)
        grid = RichTable(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, padding=padding)
        for column in table.columns:
            head = column.replace(" ", "\n") if narrow else column
            folds = narrow and column in table.words and column != table.columns[0]
            grid.add_column(
                head, justify=table.side(column), no_wrap=not folds, overflow="fold",
                min_width=max(map(len, head.split("\n"))),
            )  # fmt: skip
        for row in table.rows:
            grid.add_row(*map(Text, row))  # as Text, so that no cell is read as markup
        drawn.append(grid)
    return Group(*drawn, *map(Text, lines))


def as_text(tables: Sequence[Table], lines: Sequence[str]) -> str:
    """Plain text, as wide as the tables are.

    >>> table = Table(("stage", "size"), [("head", "10"), ("0", "20")], frozenset({"stage"}))
    >>> print(as_text([table], ["30 in all."]))
     stage   size
     ────────────
     head      10
     0         20
    <BLANKLINE>
    30 in all.
    """
    from rich.console import Console

    out = io.StringIO()
    console = Console(
        file=out, width=10_000, color_system=None, force_terminal=False, force_jupyter=False
    )
    console.print(as_rich(tables, lines))
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()).strip("\n")


def as_html(tables: Sequence[Table], lines: Sequence[str]) -> str:
    """HTML for a notebook, light or dark: lines and room, no colours."""
    cell = "padding: 0.15em 0.7em; vertical-align: top"
    looks = {"th": f"{cell}; border-bottom: 1px solid", "td": cell}
    whole = "border-collapse: collapse; font-variant-numeric: tabular-nums; margin-bottom: 1em"

    def cells(tag: str, table: Table, texts: Sequence[str]) -> str:
        return "".join(
            f'<{tag} style="text-align: {table.side(column)}; {looks[tag]}">'
            f"{html.escape(text)}</{tag}>"
            for column, text in zip(table.columns, texts)
        )

    parts = []
    for table in tables:
        head = cells("th", table, table.columns)
        body = "".join(f"<tr>{cells('td', table, row)}</tr>" for row in table.rows)
        inner = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
        parts.append(f'<table style="{whole}">{inner}</table>')
    return "".join([*parts, *(f"<p>{html.escape(line)}</p>" for line in lines)])


def show(tables: Sequence[Table], lines: Sequence[str]) -> None:
    """Print them: in colours in a terminal, as plain text anywhere else."""
    from rich.console import Console

    console = Console()
    if console.is_terminal:
        wide = as_rich(tables, lines)
        narrow = console.measure(wide, options=console.options.update(width=10_000)).maximum
        console.print(as_rich(tables, lines, narrow=narrow > console.width))
    else:
        print(as_text(tables, lines))
