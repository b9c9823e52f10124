"""Tables of any content: as text, for ``rich`` and as HTML."""

from __future__ import annotations

import ast
import re
from pathlib import Path

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
    sides = re.findall(r"<(t[hd]) style=\"text-align: (\w+)\">", as_html([TABLE], []))
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
