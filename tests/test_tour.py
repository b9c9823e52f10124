"""The notebooks tell the truth: each cell runs, in order, and gives what the text says."""

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

EXAMPLES = Path(__file__).parent.parent / "examples"
TOURS = {"English": EXAMPLES / "tour.ipynb", "Chinese": EXAMPLES / "tour.zh-CN.ipynb"}
HEAD, UPPER, LOWER = "head", "encoder.layers.{2-3}", "encoder.layers.1 ... embeddings"


def stored(language: str) -> list[dict[str, Any]]:
    notebook = json.loads(TOURS[language].read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    return notebook["cells"]


def cells(kind: str, language: str) -> list[str]:
    return ["".join(c["source"]) for c in stored(language) if c["cell_type"] == kind]


def parsed(source: str) -> ast.Module:
    return ast.parse(source.replace("%matplotlib inline\n", ""))  # which only a notebook knows


def run(source: str, names: dict[str, Any]) -> Any:
    """Run a cell as a notebook does: the value of a last expression is what it shows."""
    tree = parsed(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "tour", "exec"), names)
    if last is None:
        return None
    return eval(compile(ast.Expression(last.value), "tour", "eval"), names)


@pytest.fixture(scope="module", params=TOURS)
def tour(request):
    """All cells, run once: the names they leave, what they show, and what they print."""
    import paddle

    names: dict[str, Any] = {"__name__": "__main__"}
    shown, printed = [], []
    generator = paddle.get_rng_state()
    try:
        for source in cells("code", request.param):
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                shown.append(run(source, names))
            printed.append(out.getvalue())
    finally:
        paddle.set_rng_state(generator)
    return SimpleNamespace(**names, shown=shown, printed=printed, language=request.param)


def test_both_languages_have_the_same_cells_and_code():
    kinds = [[cell["cell_type"] for cell in stored(language)] for language in TOURS]
    assert kinds[0] == kinds[1]
    dumps = []
    for language in TOURS:
        trees = [parsed(source) for source in cells("code", language)]
        for node in (node for tree in trees for node in ast.walk(tree)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                node.value = ""
        dumps.append([ast.dump(tree) for tree in trees])
    assert dumps[0] == dumps[1]


@pytest.mark.parametrize("language", TOURS)
def test_no_cell_uses_a_private_attribute(language):
    found = re.findall(r"\._(?!_)\w+", "\n".join(cells("code", language)))
    assert not found


@pytest.mark.parametrize("language", TOURS)
def test_the_stored_outputs_hold_the_table_and_two_pictures(language):
    data = [o["data"] for c in stored(language) for o in c.get("outputs", ()) if "data" in o]
    assert ["text/html" in one for one in data] == [True, False, False]
    assert ["image/png" in one for one in data] == [False, True, True]


def test_unfreezing_pays_where_the_head_alone_learns_nothing(tour):
    assert tour.found["acc"] > 0.9
    accuracy = [value for _, value in tour.schedule.run.metrics["acc"]]
    assert len(accuracy) == 7
    assert max(accuracy[:3]) < 0.7
    assert tour.gradual == accuracy[-1] > 0.9
    assert tour.alone["acc"] < 0.7


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
    assert (tour.preview.total_steps, tour.preview.steps_per_epoch) == (56, 8)


def test_the_cells_show_the_table_the_lines_and_the_history(tour):
    assert tour.preview in tour.shown
    assert "<table style=" in tour.preview._repr_html_()
    everything = "\n".join(tour.printed)
    for change in tour.schedule.history:
        assert f"FreezeSchedule: {change}" in everything
        assert f"\n{change}\n" in "\n" + everything
    stages = re.findall(r"step 8/8 - .*open_stages: (\d)", everything)
    assert stages == ["1", "1", "1", "2", "3", "3", "3"]
    assert tour.printed[-1].endswith("100%\n")


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

    text = "\n".join(cells("markdown", tour.language))
    root = EXAMPLES.parent
    for path in re.findall(r"`((?:benchmarks|examples|docs)/[\w.-]+)`", text):
        assert (root / path).is_file(), path
    for name in re.findall(r"\b([A-Z]\w+)\(", text):
        assert hasattr(paddle_freeze_callback, name), name
    for name in re.findall(r"`schedule\.([\w.]+)", text):
        attrgetter(name)(tour.schedule)


def test_the_notebooks_are_small():
    for path in TOURS.values():
        assert path.stat().st_size < 300_000
