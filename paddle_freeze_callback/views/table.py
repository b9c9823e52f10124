"""How a preview looks: a table in a terminal, as plain text, and in a notebook."""

from __future__ import annotations

import html
import io
from typing import TYPE_CHECKING, Any

from ..words import percent, size_text

if TYPE_CHECKING:
    from .preview import Preview, StagePreview


_STAGE_COLUMNS = ("stage", "tensors", "parameters", "share", "open", "lr", "optimizer state")


_PHASE_COLUMNS = ("from step", "epoch", "open", "trainable", "ratio", "time", "memory")


_MOST_PHASES = 24


def opening_text(stage: StagePreview, preview: Preview) -> str:
    """When a stage is open, in steps; epochs beside the first, where they are known.

    Spans are [first step, step after the last).
    """
    if not stage.spans:
        return "never"
    if stage.spans == ((0, preview.total_steps),):
        return "all the time"
    shown = [
        f"from {first}" if after == preview.total_steps else f"{first} to {after}"
        for first, after in stage.spans
    ]
    if len(shown) > 3:
        shown = [*shown[:2], f"... ({len(shown)} times)"]
    return ", ".join(shown)


def stage_rows(preview: Preview) -> list[tuple[str, ...]]:
    """The cells of the table of stages."""
    return [
        (
            stage.name,
            f"{stage.parameters:,}",
            f"{stage.numel:,}",
            percent(stage.share),
            opening_text(stage, preview),
            f"x {stage.multiplier:.3g}",
            size_text(stage.optimizer_bytes),
        )
        for stage in preview.stages
    ]


def phase_rows(preview: Preview) -> list[tuple[str, ...]]:
    """The cells of the table of phases."""
    every = len(preview.stages)
    rows: list[tuple[str, ...]] = []
    for phase in preview.phases:
        if len(phase.opened) == every:
            opened = "everything"
        elif len(phase.opened) > 3:
            opened = f"{phase.opened[0]} ... {phase.opened[-1]} ({len(phase.opened)})"
        else:
            opened = ", ".join(phase.opened) or "nothing"
        cells = (
            f"{phase.step:,}", str(phase.epoch), opened, f"{phase.trainable:,}",
            percent(phase.ratio), percent(phase.time_share), percent(phase.memory_share),
        )  # fmt: skip
        kept = preview.cache_bytes.get(phase.step)
        rows.append((*cells, size_text(kept) if kept else "") if preview.cache_bytes else cells)
    if len(rows) > _MOST_PHASES:  # the rest is in preview.phases
        left = f"... {len(rows) - _MOST_PHASES:,} more phases"
        blank = ("", "", left, *("" for _ in rows[0][3:]))
        rows = [*rows[: _MOST_PHASES - 3], blank, *rows[-3:]]
    return rows


def phase_columns(preview: Preview) -> tuple[str, ...]:
    """The heads of the table of phases."""
    return (*_PHASE_COLUMNS, "cache, a sample") if preview.cache_bytes else _PHASE_COLUMNS


def closing_lines(preview: Preview) -> list[str]:
    """What stands beneath the tables."""
    epochs = f", {preview.steps_per_epoch:,} an epoch" if preview.steps_per_epoch else ""
    how = "measured" if preview.measured else "estimated from parameters"
    saving = f"about {percent(max(preview.saving, 0))} of the time saved"
    if preview.decided_later:
        saving = "how much time is saved shows when it runs"
    else:
        saving += f" against training everything ({how})"
    return [
        f"{preview.total_steps:,} steps{epochs}; {saving}.",
        "time and memory: of a step with everything open; memory without activations.",
        *(f"- {note}" for note in preview.notes),
    ]


def rich_view(preview: Preview) -> Any:
    """Both tables for ``rich``."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    tables = []
    for columns, rows in (
        (_STAGE_COLUMNS, stage_rows(preview)),
        (phase_columns(preview), phase_rows(preview)),
    ):
        table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
        for column in columns:
            text = column in ("stage", "open")
            table.add_column(column, justify="left" if text else "right", no_wrap=True)
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        tables.append(table)
    return Group(*tables, *(Text(line) for line in closing_lines(preview)))


def plain(preview: Preview) -> str:
    """Both tables as text, however wide they are."""
    from rich.console import Console

    out = io.StringIO()
    console = Console(
        file=out, width=10_000, color_system=None, force_terminal=False, force_jupyter=False
    )
    console.print(rich_view(preview))
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    return "\n".join(lines).strip("\n")


def show(preview: Preview) -> None:
    """Print it: in colours in a terminal, as plain text anywhere else."""
    from rich.console import Console

    console = Console()
    if console.is_terminal:
        console.print(rich_view(preview))
    else:
        print(plain(preview))


def html_view(preview: Preview) -> str:
    """Both tables for a notebook."""

    def table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
        def cell(tag: str, column: str, text: str) -> str:
            side = "left" if column in ("stage", "open") else "right"
            return f'<{tag} style="text-align: {side}">{html.escape(text)}</{tag}>'

        head = "".join(cell("th", name, name) for name in columns)
        lines = [
            "<tr>" + "".join(cell("td", name, text) for name, text in zip(columns, row)) + "</tr>"
            for row in rows
        ]
        return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"

    words = "".join(f"<p>{html.escape(line)}</p>" for line in closing_lines(preview))
    return (
        table(_STAGE_COLUMNS, stage_rows(preview))
        + table(phase_columns(preview), phase_rows(preview))
        + words
    )
