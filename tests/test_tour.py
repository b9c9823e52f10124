"""The notebook tells the truth: each of its cells runs, in order, and gives what the text says."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import re
from operator import attrgetter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

TOUR = Path(__file__).parent.parent / "examples" / "tour.ipynb"
HEAD, UPPER, LOWER = "head", "encoder.layers.{2-3}", "encoder.layers.1 ... embeddings"


def cells(kind: str) -> list[str]:
    notebook = json.loads(TOUR.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    return ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == kind]


def run(source: str, names: dict[str, Any]) -> Any:
    """Run a cell as a notebook does: the value of a last expression is what it shows."""
    tree = ast.parse(source.replace("%matplotlib inline\n", ""))  # which only a notebook knows
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, str(TOUR), "exec"), names)
    if last is None:
        return None
    return eval(compile(ast.Expression(last.value), str(TOUR), "eval"), names)


@pytest.fixture(scope="module")
def tour():
    """All cells, run once: the names they leave, what they show, and what they print."""
    import paddle

    names: dict[str, Any] = {"__name__": "__main__"}
    shown, printed = [], []
    generator = paddle.get_rng_state()
    try:
        for source in cells("code"):
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                shown.append(run(source, names))
            printed.append(out.getvalue())
    finally:
        paddle.set_rng_state(generator)
    return SimpleNamespace(**names, names=names, shown=shown, printed=printed)


def test_the_backbone_knows_the_first_task_and_the_new_head_learns_the_second(tour):
    assert tour.found["acc"] > 0.9
    accuracy = [value for _, value in tour.schedule.run.metrics["acc"]]
    assert len(accuracy) == 6
    assert accuracy[-1] > 0.9


def test_what_was_previewed_is_what_happened(tour):
    planned = [(phase.step, phase.epoch, phase.opened) for phase in tour.preview.phases]
    assert planned == [
        (0, 0, (HEAD,)),
        (24, 3, (HEAD, UPPER)),
        (32, 4, (HEAD, UPPER, LOWER)),
    ]
    history = tour.schedule.history
    assert [(c.step, c.epoch, c.opened) for c in history] == [
        (0, 0, (HEAD,)),
        (24, 3, (UPPER,)),
        (32, 4, (LOWER,)),
    ]
    assert [c.trainable for c in history] == [p.trainable for p in tour.preview.phases]
    assert [p.trainable for p in tour.preview.phases] == [66, 17_154, 35_202]
    assert tour.preview.measured
    assert (tour.preview.total_steps, tour.preview.steps_per_epoch) == (48, 8)


def test_the_printed_cells_show_the_table_the_lines_and_the_history(tour):
    everything = "\n".join(tour.printed)
    assert str(tour.preview) in everything
    for change in tour.schedule.history:
        assert f"FreezeSchedule: {change}" in everything
        assert f"\n{change}\n" in "\n" + everything
    stages = re.findall(r"step 8/8 - .*open_stages: (\d)", everything)
    assert stages == ["1", "1", "1", "2", "3", "3"]
    assert tour.printed[-1] == "100% of the parameters can be trained\n"


def test_two_cells_show_a_figure(tour):
    figures = [value for value in tour.shown if type(value).__name__ == "Figure"]
    assert len(figures) == 2
    for figure in figures:
        assert figure.axes


def test_the_cache_was_of_use_while_the_head_learned_alone(tour):
    done = tour.schedule.run.cache
    assert done.hits >= 256
    assert done.hit_rate > 0.2
    assert (done.rows, done.nbytes) == (0, 0)
    assert done.off == ("no layer is frozen as a whole",)


def test_after_the_tour_the_network_is_as_it_was_found(tour):
    assert tour.trainable_ratio(tour.network) == 1.0
    assert not [n for n, p in tour.network.named_parameters() if p.stop_gradient]


def test_names_and_files_that_the_text_sends_to_exist(tour):
    import paddle_freeze_callback

    text = "\n".join(cells("markdown"))
    root = TOUR.parent.parent
    for path in re.findall(r"`((?:benchmarks|examples|docs)/[\w.]+)`", text):
        assert (root / path).is_file(), path
    for name in re.findall(r"\b([A-Z]\w+)\(", text):
        assert hasattr(paddle_freeze_callback, name), name
    for name in re.findall(r"`schedule\.([\w.]+)", text):
        attrgetter(name)(tour.schedule)


def test_the_notebook_is_small():
    assert TOUR.stat().st_size < 300_000
