"""Tables of any content: as text, for ``rich`` and as HTML."""

from __future__ import annotations

import ast
import functools
import io
import re
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text

from paddle_freeze_callback.views import table
from paddle_freeze_callback.views.table import Table, as_html, as_text, show

TABLE = Table(
    ("name", "size"), [("[bold]fc[/bold]", "1"), ("<fc10>", "1,000")], frozenset({"name"})
)


def test_words_are_aligned_to_the_left_and_numbers_to_the_right():
    _, _, first, second = as_text([TABLE], []).splitlines()
    assert first.index("[bold]") == second.index("<fc10>")
    assert len(first) == len(second)
    assert first.endswith("    1")
    sides = re.findall(r"<(t[hd]) style=\"text-align: (\w+);[^>]*>", as_html([TABLE], []))
    assert sides == [("th", "left"), ("th", "right"), *[("td", "left"), ("td", "right")] * 2]


def test_a_cell_with_brackets_is_text_and_no_markup():
    assert "[bold]fc[/bold]" in as_text([TABLE], ["[red]a line[/red]"])
    assert "[red]a line[/red]" in as_text([TABLE], ["[red]a line[/red]"])


def test_lines_come_after_all_tables():
    text = as_text([TABLE, TABLE], ["one", "two"])
    assert text.count("1,000") == 2
    assert text.splitlines()[-2:] == ["one", "two"]
    assert as_html([TABLE, TABLE], ["a < b"]).endswith("</table><p>a &lt; b</p>")


def test_a_line_is_never_broken_where_there_is_no_terminal(capsys):
    wide = Table(("name",), [("x" * 500,)])
    show([wide], ["y " * 500])
    lines = capsys.readouterr().out.splitlines()
    assert sum("x" * 500 in line for line in lines) == 1
    assert lines[-1].count("y") == 500


def test_it_imports_nothing_of_the_package():
    tree = ast.parse(Path(table.__file__).read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert len(imports) > 3
    assert [node.module for node in imports if node.level] == []


@pytest.mark.parametrize("width", [80, 100, 200])
def test_a_terminal_of_any_usual_width_shows_every_number_whole(width, monkeypatch):
    """The widest plan that is usual: twelve blocks, a rate of their own each."""
    monkeypatch.setenv("COLUMNS", str(width))
    out = io.StringIO()
    monkeypatch.setattr(
        "rich.console.Console", functools.partial(Console, file=out, force_terminal=True)
    )
    same = ("16", "7,087,872", "6.5 %")
    blocks = [
        (f"encoder.layers.{i}", *same, f"from {i}", f"x {2.6**-i:.3g}", "54.1 MB")
        for i in range(12)
    ]
    head = ("stage", "tensors", "parameters", "share", "open", "lr", "optimizer state")
    rows = [("head", "2", "1,538", "0.0014 %", "all the time", "x 1", "12.0 KB"), *blocks]
    show([Table(head, rows, frozenset({"stage", "open"}))], ["300 steps."])
    lines = Text.from_ansi(out.getvalue()).plain.splitlines()
    assert all(len(line) <= width for line in lines)
    for row in rows:
        line = next(line for line in lines if line.split() and line.split()[0] == row[0])
        assert all(cell in line for cell in (*row[:4], *row[5:])), row
