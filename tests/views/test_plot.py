"""Pictures of a schedule: their content, their files, and the refusals."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from pathlib import Path

import paddle
import pytest
from matplotlib.colors import to_rgb
from networks import TwoLayers, conv_net

from paddle_freeze_callback import (
    ByGradient,
    Explicit,
    FreezeSchedule,
    Gradual,
    OnPlateau,
    Stage,
    Transition,
    partition,
)
from paddle_freeze_callback.session.timeline import Rate
from paddle_freeze_callback.strategies.base import Strategy
from paddle_freeze_callback.strategies.deciding import Custom
from paddle_freeze_callback.strategies.rates import LearningRates
from paddle_freeze_callback.strategies.run import Run
from paddle_freeze_callback.views import plot
from paddle_freeze_callback.views.plot import plot_preview, shortened
from paddle_freeze_callback.views.preview import Phase, Preview, StagePreview, preview

NAMES = ("head", "top", "bottom")
STAGES = tuple(Stage(name, (f"{name}.weight",), 10) for name in NAMES)


def plot_history(stages, history, total, *more, multipliers=None, **options):
    """A history, with the times of its stages counted step by step."""
    rates = {}
    for stage in stages:
        spans, is_open = [], False
        for step in range(total):
            for change in history:
                if change.step == step:
                    is_open = stage.name in change.opened or (
                        is_open and stage.name not in change.frozen
                    )
            if is_open and spans and spans[-1][1] == step:
                spans[-1][1] = step + 1
            elif is_open:
                spans.append([step, step + 1])
        multiplier = (multipliers or {}).get(stage.name, 1.0)
        rates[stage.name] = [Rate(*span, multiplier, 1.0) for span in spans]
    return plot.plot_history(stages, history, total, *more, rates=rates, **options)


HISTORY = [
    Transition(0, 0, ("head",), ("top", "bottom"), 10, 40),
    Transition(100, 1, ("top",), (), 20, 40),
    Transition(150, 1, ("bottom",), ("head",), 30, 40),
]


def planned(spans, multipliers=None, ratios=((0, 0.25),), total=300, steps_per_epoch=None):
    """A preview from the spans of its stages."""
    stages = tuple(
        StagePreview(
            name, 1, 10, 1 / len(spans), tuple(of_it), (multipliers or {}).get(name, 1.0), 0
        )
        for name, of_it in spans.items()
    )
    ends = [step for step, _ in ratios[1:]] + [total]
    phases = tuple(
        Phase(step, until, 0, (), 10, ratio, 1.0, 1.0) for (step, ratio), until in zip(ratios, ends)
    )
    return Preview(stages, phases, total, steps_per_epoch, 0.3, False, {}, ())


def bars(figure):
    """The open spans in the picture by stage, and their places on the axis."""
    found, places = {}, {}
    for collection in figure.axes[0].collections:
        boxes = [path.get_extents() for path in collection.get_paths()]
        found[collection.get_gid()] = [(round(box.x0), round(box.x1)) for box in boxes]
        places[collection.get_gid()] = next((box.y0 + box.y1) / 2 for box in boxes)
    return found, places


def labels(figure):
    return [label.get_text() for label in figure.axes[0].get_yticklabels()]


def colour(figure, name):
    (bar,) = [c for c in figure.axes[0].collections if c.get_gid() == name]
    return tuple(bar.get_facecolor()[0][:3])


def luminance(rgb):
    return 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]


def panel(figure, title):
    (axis,) = [axis for axis in figure.axes if axis.get_title(loc="left") == title]
    return axis


def colour_bars(figure):
    return [axis for axis in figure.axes if axis.get_ylabel() == "learning-rate multiplier"]


# ---------------------------------------------------------------- the plan


def test_open_spans_are_bars_and_the_head_is_on_top():
    figure = plot_preview(planned({"head": [(0, 300)], "top": [(100, 200), (250, 300)], "low": []}))
    found, places = bars(figure)
    assert found == {"head": [(0, 300)], "top": [(100, 200), (250, 300)]}
    assert places == {"head": 0, "top": 1}
    assert labels(figure) == ["head", "top", "low"]
    bottom, top = figure.axes[0].get_ylim()
    assert bottom > top  # row 0 is the uppermost
    assert figure.axes[0].get_xlim() == (0, 300)


def test_the_rest_comes_last_wherever_it_is_listed():
    figure = plot_preview(planned({"head": [(0, 300)], "rest": [], "low": [(5, 300)]}))
    assert labels(figure) == ["head", "low", "rest"]
    assert bars(figure)[1] == {"head": 0, "low": 1}


def test_what_is_frozen_is_a_hatched_background_over_the_whole_run():
    figure = plot_preview(planned({"head": [(0, 300)], "low": []}))
    backgrounds = figure.axes[0].patches
    assert [(b.get_x(), b.get_width(), b.get_hatch()) for b in backgrounds] == [
        (0, 300, "////"),
        (0, 300, "////"),
    ]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["open", "frozen"]


def test_the_trainable_ratio_is_a_step_line_on_a_percent_axis():
    figure = plot_preview(planned({"head": [(0, 300)]}, ratios=((0, 0.1), (100, 0.4), (200, 1.0))))
    axis = panel(figure, "trainable parameters")
    (line,) = axis.lines
    assert list(line.get_xdata()) == [0, 100, 200, 300]
    assert list(line.get_ydata()) == [0.1, 0.4, 1.0, 1.0]
    assert line.get_drawstyle() == "steps-post"
    figure.canvas.draw()
    assert [label.get_text() for label in axis.get_yticklabels()] == ["0%", "50%", "100%"]


def test_the_title_says_what_it_is():
    one = plot_preview(planned({"head": [(0, 1)]}, total=1))
    assert one.get_suptitle() == "Planned freeze schedule: 1 stage, 1 step"
    many = plot_preview(planned({"head": [(0, 9)], "low": []}, total=12000))
    assert many.get_suptitle() == "Planned freeze schedule: 2 stages, 12,000 steps"
    ran = plot_history(STAGES, HISTORY, 200)
    assert ran.get_suptitle() == "Freeze schedule as it ran: 3 stages, 200 steps"


def test_epochs_are_a_second_scale_where_they_are_known():
    figure = plot_preview(planned({"head": [(0, 300)]}, steps_per_epoch=100))
    (above,) = figure.axes[0].child_axes
    figure.canvas.draw()
    assert above.get_xlabel() == "epochs"
    assert above.get_xlim() == (0, 3)
    assert [round(tick) for tick in above.get_xticks()] == [0, 1, 2, 3]
    assert [line.get_xdata()[0] for line in figure.axes[0].lines] == [100, 200]
    assert plot_preview(planned({"head": [(0, 300)]})).axes[0].child_axes == []


def test_many_epochs_are_no_fence_of_lines_and_have_few_ticks():
    figure = plot_preview(planned({"head": [(0, 300)]}, steps_per_epoch=3))
    assert figure.axes[0].lines[:] == []
    figure.canvas.draw()
    assert len(figure.axes[0].child_axes[0].get_xticks()) <= 13


# ---------------------------------------------------------------- learning rates


def test_the_shade_is_the_multiplier_and_a_scale_says_so():
    spans = {name: [(0, 300)] for name in NAMES}
    figure = plot_preview(planned(spans, {"head": 1.0, "top": 0.1, "bottom": 0.01}))
    shades = [luminance(colour(figure, name)) for name in NAMES]
    assert shades[0] < shades[1] < shades[2]
    assert shades[2] < luminance(to_rgb("#f6f6f6")) - 0.15  # lighter ones still stand out
    (bar,) = colour_bars(figure)
    assert list(bar.get_yticks()) == [0.01, 0.1, 1.0]
    assert [label.get_text() for label in bar.get_yticklabels()] == ["0.01", "0.1", "1"]


def test_without_different_multipliers_there_is_no_scale():
    figure = plot_preview(planned({name: [(0, 300)] for name in NAMES}))
    assert colour_bars(figure) == []
    assert colour(figure, "head") == colour(figure, "bottom")


def test_the_multiplier_of_a_stage_that_never_opens_does_not_count():
    spans = {"head": [(0, 300)], "low": []}
    assert colour_bars(plot_preview(planned(spans, {"low": 0.1}))) == []


def test_a_multiplier_of_zero_is_drawn():
    spans = {"head": [(0, 300)], "low": [(0, 300)]}
    (bar,) = colour_bars(plot_preview(planned(spans, {"low": 0.0})))
    assert list(bar.get_yticks()) == [0.0, 1.0]


def test_thirty_multipliers_do_not_write_over_each_other():
    names = [f"layers.{i}" for i in range(30)]
    multipliers = {name: 1.1**-i for i, name in enumerate(names)}
    (bar,) = colour_bars(plot_preview(planned({name: [(0, 300)] for name in names}, multipliers)))
    shown = list(bar.get_yticks())
    assert 5 < len(shown) < 12
    assert (shown[0], shown[-1]) == (1.1**-29, 1.0)


# ---------------------------------------------------------------- names and sizes


def test_more_stages_make_a_higher_picture_up_to_a_limit():
    heights, fonts = [], []
    for number in (2, 13, 30, 60, 400):
        figure = plot_preview(planned({f"layers.{i}": [] for i in range(number)}))
        heights.append(figure.get_size_inches()[1])
        fonts.append(figure.axes[0].get_yticklabels()[0].get_fontsize())
        assert len(labels(figure)) <= 250
    assert heights[0] < heights[1] < heights[2] < heights[3] == heights[4] < 20
    assert fonts[2] == 9
    assert min(fonts) >= 5


def test_no_label_of_thirty_stages_covers_another():
    figure = plot_preview(planned({f"encoder.layers.{i}": [(0, 300)] for i in range(30)}))
    figure.canvas.draw()
    boxes = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
    assert all(above.y0 >= below.y1 for above, below in itertools.pairwise(boxes))
    assert min(box.x0 for box in boxes) >= 0


def test_long_names_are_cut_in_the_middle_and_stay_different():
    first = "ernie.encoder.layers.1.self_attention.output_projection"
    second = "ernie.encoder.layers.2.self_attention.output_projection"
    assert shortened(["head", first])[1] == "ernie.enc…" + first[-18:]
    one, other = shortened([first, second])
    assert one != other
    assert all("…" in name and len(name) < len(first) for name in (one, other))
    assert shortened([first, first]) == [shortened([first])[0]] * 2  # equal ones stay equal
    figure = plot_preview(planned({first: [(0, 300)], second: []}))
    assert labels(figure) == [one, other]


def test_names_with_dollar_signs_are_text_and_no_formulas(tmp_path):
    name = r"re:a$|\b$"
    figure = plot_preview(planned({name: [(0, 300)]}), tmp_path / "plan.png")
    assert labels(figure) == [name]
    history = [Transition(0, 0, (name,), (), 1, 1)]
    stages = [Stage(name, ("a",), 1)]
    plot_history(stages, history, 9, metrics={r"$\x$": [(3, 1.0)]}, file=tmp_path / "ran.png")
    assert (tmp_path / "ran.png").stat().st_size > 0


# ---------------------------------------------------------------- what happened


def test_a_history_becomes_the_same_bars_as_a_plan():
    figure = plot_history(STAGES, HISTORY, 200, 100)
    spans = {"head": [(0, 150)], "top": [(100, 200)], "bottom": [(150, 200)]}
    plan = plot_preview(planned(spans, total=200, steps_per_epoch=100))
    assert bars(figure) == bars(plan)
    assert bars(figure)[0] == spans
    assert labels(figure) == labels(plan) == list(NAMES)
    assert colour(figure, "head") == colour(plan, "head")
    (line, *_epochs) = panel(figure, "trainable parameters").lines
    assert list(line.get_xdata()) == [0, 100, 150, 200]
    assert list(line.get_ydata()) == [0.25, 0.5, 0.75, 0.75]


def test_a_stage_that_opens_and_freezes_at_one_step_leaves_no_bar():
    history = [*HISTORY, Transition(160, 1, ("head",), (), 30, 40)]
    history.append(Transition(160, 1, (), ("head",), 30, 40))
    assert bars(plot_history(STAGES, history, 200))[0]["head"] == [(0, 150)]


def test_what_lies_before_a_resumed_run_is_blank():
    figure = plot_history(STAGES, HISTORY[1:], 200)
    background = figure.axes[0].patches[0]
    assert (background.get_x(), background.get_width()) == (100, 100)
    assert figure.axes[0].get_xlim() == (0, 200)
    assert bars(figure)[0]["top"] == [(100, 200)]


def test_a_history_is_shaded_by_the_multipliers():
    (given,) = colour_bars(plot_history(STAGES, HISTORY, 200, multipliers={"top": 0.3}))
    assert list(given.get_yticks()) == [0.3, 1.0]


def test_each_metric_has_a_panel_with_a_line_and_markers():
    metrics = {"eval_accuracy": [(200, 0.8), (100, 0.6)], "eval_loss": [(100, 2), (200, 1)]}
    figure = plot_history(STAGES, HISTORY, 200, metrics=metrics)
    (line,) = panel(figure, "eval_accuracy").lines
    assert list(line.get_xdata()) == [100, 200]  # in order of time
    assert list(line.get_ydata()) == [0.6, 0.8]
    assert line.get_marker() == "o"
    (line,) = panel(figure, "eval_loss").lines
    assert list(line.get_ydata()) == [2, 1]
    assert figure.axes[-1].get_xlabel() == "optimizer steps"
    assert len(figure.axes) == 4
    assert len(plot_history(STAGES, HISTORY, 200, metrics={}).axes) == 2


def test_a_metric_with_one_value_or_none_that_is_finite_is_drawn(tmp_path):
    metrics = {"once": [(100, 0.5)], "lost": [(100, float("nan")), (200, float("nan"))]}
    plot_history(STAGES, HISTORY, 200, metrics=metrics, file=tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 0


# ---------------------------------------------------------------- real networks


def test_the_plan_of_a_real_network_is_drawn_as_it_is_previewed():
    table = preview(
        conv_net(), "auto", Gradual(every=1), LearningRates(lr_decay=2), Run.of(
            epochs=4, steps_per_epoch=10, total_steps=40
        ),
    )  # fmt: skip
    figure = plot_preview(table)
    assert bars(figure)[0] == {stage.name: list(stage.spans) for stage in table.stages}
    assert labels(figure) == [stage.name for stage in table.stages]
    (line, *_epochs) = panel(figure, "trainable parameters").lines
    assert list(line.get_ydata())[:-1] == [phase.ratio for phase in table.phases]
    (bar,) = colour_bars(figure)
    assert list(bar.get_yticks()) == sorted({stage.multiplier for stage in table.stages})


def test_what_a_real_run_did_is_drawn():
    from paddle_freeze_callback import FreezeSchedule

    network = TwoLayers()
    optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters())
    schedule = FreezeSchedule(strategy=Explicit({0: "fc2", "2 steps": "*"}))
    with schedule.attach(network, optimizer, total_steps=4) as run:
        for _ in range(4):
            network(paddle.ones([2, 4])).sum().backward()
            optimizer.step()
            optimizer.clear_grad()
            run.step()
    figure = run.plot()
    names = [stage.name for stage in run.stages]
    assert bars(figure)[0] == {names[0]: [(0, 4)], names[1]: [(2, 4)]}
    (line,) = panel(figure, "trainable parameters").lines
    assert list(line.get_ydata()) == pytest.approx([18 / 58, 1, 1])
    assert len(partition(network)) == len(labels(figure))


# ---------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("name", "begins"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml"), ("a.PDF", b"%PDF")]
)
def test_the_ending_says_the_format(tmp_path, name, begins):
    plot_preview(planned({"head": [(0, 300)]}), tmp_path / name)
    plot_history(STAGES, HISTORY, 200, file=str(tmp_path / f"ran_{name}"))
    assert (tmp_path / name).read_bytes().startswith(begins)
    assert (tmp_path / f"ran_{name}").read_bytes().startswith(begins)


def test_without_a_file_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plot_preview(planned({"head": [(0, 300)]}))
    assert list(tmp_path.iterdir()) == []


def refusals(file):
    """The error of both functions for a file; they must be the same."""
    found = []
    for draw in (
        lambda: plot_preview(planned({"head": [(0, 300)]}), file),
        lambda: plot_history(STAGES, HISTORY, 200, file=file),
    ):
        with pytest.raises((ValueError, TypeError, OSError)) as caught:
            draw()
        found.append((type(caught.value), str(caught.value)))
    assert found[0] == found[1]
    return found[0]


def test_an_unknown_ending_is_refused_with_the_nearest_one():
    assert refusals("plan.pgn") == (
        ValueError,
        "file='plan.pgn': cannot draw a '.pgn'; did you mean '.png'? "
        "give a name that ends in .png, .svg or .pdf",
    )
    assert refusals(Path("plan")) == (
        ValueError,
        "file='plan': its name has no ending; give a name that ends in .png, .svg or .pdf",
    )


def test_a_missing_folder_is_refused(tmp_path):
    folder = str(tmp_path / "none")
    assert refusals(tmp_path / "none" / "a.png") == (
        FileNotFoundError,
        f"file={folder + '/a.png'!r}: there is no folder {folder!r}; make it first",
    )


def test_a_folder_and_what_is_no_path_are_refused(tmp_path):
    (tmp_path / "a.png").mkdir()
    assert refusals(tmp_path / "a.png") == (
        ValueError,
        f"file={str(tmp_path / 'a.png')!r} is a folder; give the name of a file",
    )
    assert refusals(3) == (
        TypeError,
        "file=3 is no path; give one that ends in .png, .svg or .pdf",
    )


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (
            {"metrics": [(1, 2)]},
            TypeError,
            "metrics=[(1, 2)] is no mapping from names to (step, value) pairs, "
            'such as {"accuracy": [(100, 0.81), (200, 0.84)]}',
        ),
        (
            {"metrics": {"acc": 0.5}},
            TypeError,
            "metrics['acc']=0.5 must be a list of (step, value) pairs",
        ),
        (
            {"metrics": {"acc": [0.5]}},
            TypeError,
            "metrics['acc'] has 0.5, which is no pair (step, value) of numbers",
        ),
        (
            {"metrics": {"acc": ["12"]}},
            TypeError,
            "metrics['acc'] has '12', which is no pair (step, value) of numbers",
        ),
        (
            {"metrics": {"acc": []}},
            ValueError,
            "metrics['acc'] has no values; give (step, value) pairs, or leave it out",
        ),
        (
            {"metrics": {"acc": [(201, 0.5)]}},
            ValueError,
            "metrics['acc'] has a value at step 201, but the run has steps 0 to 200; "
            "count optimizer steps",
        ),
    ],
)
def test_metrics_that_cannot_be_are_refused(change, kind, message):
    with pytest.raises(kind) as caught:
        plot_history(STAGES, HISTORY, 200, **change)
    assert str(caught.value) == message


# ---------------------------------------------------------------- matplotlib


def test_without_matplotlib_an_error_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError) as caught:
        plot_preview(planned({"head": [(0, 300)]}))
    assert str(caught.value) == (
        "a picture needs matplotlib, which is not there: "
        "pip install 'paddle_freeze_callback[plot]' (from a clone: pip install -e '.[plot]')"
    )


def test_pyplot_is_neither_imported_nor_left_with_figures(tmp_path):
    program = f"""
import sys
import paddle_freeze_callback
import paddle_freeze_callback.views.plot
from paddle_freeze_callback import Stage, Transition
print("matplotlib" in sys.modules)
history = [Transition(0, 0, ("head",), (), 1, 1)]
paddle_freeze_callback.views.plot.plot_history(
    [Stage("head", ("a",), 1)], history, 9, file={str(tmp_path / "a.png")!r}, rates={{}}
)
print("matplotlib" in sys.modules, "matplotlib.pyplot" in sys.modules)
import matplotlib.pyplot
print(matplotlib.pyplot.get_fignums())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines()[-3:] == ["False", "True False", "[]"], done.stderr


# ---------------------------------------------------------------- ramps, decisions, small, dark


PLAN = {"epochs": 4, "steps_per_epoch": 10}


def painted(figure, name):
    """The bars of a stage, each with its first step and how far its colour is from the frozen."""
    (bar,) = [c for c in figure.axes[0].collections if c.get_gid() == name]
    frozen = to_rgb(figure.axes[0].patches[0].get_facecolor())
    return [
        (round(path.get_extents().x0), sum(abs(a - b) for a, b in zip(face, frozen)))
        for path, face in zip(bar.get_paths(), bar.get_facecolor())
    ]


@pytest.mark.parametrize("option", ["warmup", "hold"])
def test_ramps_are_pale_at_first(option):
    schedule = FreezeSchedule(every=1, **{option: "8 steps"})
    figure = schedule.plot(None, conv_net(), **PLAN)
    ramping = painted(figure, "block3" if option == "warmup" else "head")
    rising = [strength for step, strength in ramping if 10 <= step < 18]
    assert rising == sorted(rising)
    assert rising[0] < 0.5 * rising[-1]


def test_the_ramps_of_a_run_are_those_of_its_plan():
    schedule = FreezeSchedule(every="10 steps", warmup="4 steps", lr_decay=2)
    network = conv_net()
    optimizer = paddle.optimizer.SGD(0.1, parameters=network.parameters())
    with schedule.attach(network, optimizer, total_steps=40, say=[].append) as run:
        for _ in range(40):
            network(paddle.rand([2, 1, 6, 6])).sum().backward()
            optimizer.step()
            optimizer.clear_grad()
            run.step()
    ran = run.plot()
    plan = schedule.plot(None, conv_net(), total_steps=40)
    for name in ("head", "block3", "block2", "block1"):
        assert painted(ran, name) == painted(plan, name)


def test_a_ramp_of_many_steps_is_drawn_in_few_slices():
    schedule = FreezeSchedule(every=1, warmup="5000 steps")
    figure = schedule.plot(None, conv_net(), epochs=4, steps_per_epoch=10_000)
    assert len(painted(figure, "block3")) < 40


def everything(progress):
    return progress.stages


@pytest.mark.parametrize(
    ("strategy", "name", "known", "decided", "words"),
    [
        (OnPlateau("acc"), "head", [(0, 40)], None, "all the time"),
        (OnPlateau("acc"), "block3", None, [(0, 40)], "as decided"),
        (OnPlateau("acc", max_wait=1), "block3", [(10, 40)], [(0, 10)], "from 10 at the latest"),
        (ByGradient(every=1), "block3", [(0, 11)], [(11, 40)], "0 to 11, then as decided"),
        (Custom(everything), "block3", None, [(0, 40)], "as decided"),
        (Gradual(every=1), "block3", [(10, 40)], None, "from 10"),
    ],
    ids=lambda one: type(one).__name__ if isinstance(one, Strategy) else None,
)
def test_what_a_run_decides_is_drawn_as_such(strategy, name, known, decided, words):
    schedule = FreezeSchedule(strategy=strategy)
    figure = schedule.plot(None, conv_net(), **PLAN)
    found, _ = bars(figure)
    assert found.get(name) == known
    assert found.get(f"{name}?") == decided
    (legend,) = figure.legends
    later = "open when the run decides so" in [text.get_text() for text in legend.get_texts()]
    assert later is not isinstance(strategy, Gradual)
    assert (panels(figure) == []) is later
    table = str(schedule.preview(conv_net(), **PLAN))
    assert re.search(rf"^ {name} .* {words} +x 1", table, re.MULTILINE)


def panels(figure):
    return [axis for axis in figure.axes if axis.get_title(loc="left") == "trainable parameters"]


@pytest.mark.parametrize("style", ["default", "dark_background"])
def test_everything_stands_out_from_its_background(style):
    from matplotlib import style as styles

    with styles.context(style):
        figure = FreezeSchedule(lr_decay=2.6, every=1).plot(None, conv_net(), **PLAN)
        behind = luminance(to_rgb(figure.get_facecolor()))
        drawn = [luminance(colour(figure, name)) for name in ("head", "block3", "block1")]
        hatch = luminance(to_rgb(figure.axes[0].patches[0].get_edgecolor()))
        (line, *_) = panel(figure, "trainable parameters").lines
        assert abs(luminance(to_rgb(line.get_color())) - behind) > 0.5
        assert all(abs(one - behind) > 0.2 for one in drawn)
        assert abs(hatch - behind) > 0.15
        # the higher the rate, the farther from the background
        distances = [abs(one - behind) for one in drawn]
        assert distances == sorted(distances, reverse=True)


@pytest.mark.parametrize("style", ["default", "dark_background"])
def test_behind_a_transparent_figure_the_colour_of_text_tells(style):
    from matplotlib import rc_context
    from matplotlib import style as styles

    clear = {"figure.facecolor": "none", "axes.facecolor": "none"}
    with styles.context(style), rc_context(clear):
        figure = FreezeSchedule().plot(None, conv_net(), **PLAN)
    assert bool(luminance(colour(figure, "head")) > 0.5) is (style == "dark_background")


def test_a_picture_of_three_by_two_inches_has_the_stages_alone_and_nothing_is_cut(tmp_path):
    names = {f"ernie.encoder.layers.{i}.self_attention": [(i, 300)] for i in range(12)}
    figure = plot_preview(planned(names, steps_per_epoch=50), tmp_path / "s.png", figsize=(3, 2))
    assert tuple(figure.get_size_inches()) == (3, 2)
    assert panels(figure) == []
    renderer = figure.canvas.get_renderer()
    figure.draw(renderer)
    whole = figure.bbox
    for text in figure.findobj(lambda one: hasattr(one, "get_fontsize") and one.get_text()):
        box = text.get_window_extent(renderer)
        if text.get_visible() and box.width:
            assert box.x0 >= whole.x0 - 1, text
            assert box.x1 <= whole.x1 + 1, text
    width = figure.axes[0].get_position().width
    assert width > 0.5
    shown = labels(figure)
    assert len(set(shown)) == len(shown)


def test_a_panel_of_the_user_gets_the_stages_and_keeps_all_else():
    from matplotlib.figure import Figure

    whole = Figure(figsize=(8, 3))
    left, right = whole.subplots(1, 2)
    left.set_title("mine")
    found = FreezeSchedule().plot(None, conv_net(), ax=left, **PLAN)
    assert found is whole
    assert whole.axes == [left, right]
    assert left.get_title() == "mine"
    assert whole.get_suptitle() == ""
    assert whole.legends == []
    assert bars(whole)[0]["block3"] == [(10, 40)]
    assert list(right.collections) == []
