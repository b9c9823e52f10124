"""Pictures of a schedule: the plan before a run, and its history afterwards.

One function draws both from plain spans, so that a plan and its run can be laid side by side.
Nothing goes through ``matplotlib.pyplot``: no display is needed, and nothing is left behind in
its list of figures.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..session.transition import Transition
from ..stages.declared import REST
from ..stages.partition import Stage
from ..words import cut, did_you_mean
from .preview import Preview

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

File = str | os.PathLike[str]
Rates = Sequence[tuple[int, float]]
Metrics = Mapping[str, Rates]

_ENDINGS = (".png", ".svg", ".pdf")
_NAMED = "ends in .png, .svg or .pdf"

# Lengths in inches. Around the panels are the title, the legend and the two scales.
_WIDTH, _AROUND = 9.0, 1.7
_ROW, _LOWEST, _HIGHEST = 0.3, 1.2, 14.0
_PANEL = 1.05

_FONT, _SMALLEST_FONT = 9.0, 5.0
_LONGEST_NAME = 28
_MOST_EPOCH_LINES = 30

_LIGHTEST, _DARKEST = 0.38, 0.95  # the part of the colour map that differs from the background
_FROZEN: Any = {"facecolor": "#f6f6f6", "edgecolor": "#cfcfcf", "linewidth": 0, "hatch": "////"}
_LINE = "#08306b"


def plot_preview(preview: Preview, file: File | None = None) -> Figure:
    """Draw a planned run: see :meth:`FreezeSchedule.plot`.

    Filled bars are open stages, the darker the higher their learning-rate multiplier; the hatched
    background is frozen. The panel beneath shows the trainable ratio, the next one the rates of
    phases, if they have their own.
    """
    path = _checked(file)
    rows = [_Row(stage.name, stage.spans, stage.multiplier) for stage in preview.stages]
    return _draw(
        "Planned freeze schedule",
        ", as far as known before" if preview.decided_later else "",
        rows,
        [(phase.step, phase.ratio) for phase in preview.phases],
        preview.total_steps, preview.steps_per_epoch, {}, path, preview.rates,
    )  # fmt: skip


def plot_history(
    stages: Sequence[Stage],
    history: Sequence[Transition],
    total_steps: int,
    steps_per_epoch: int | None = None,
    metrics: Metrics | None = None,
    file: File | None = None,
    *,
    multipliers: Mapping[str, float],
    rates: Rates = (),
) -> Figure:
    """Draw a run as :func:`plot_preview` draws its plan: see :meth:`FreezeRun.plot`.

    The time before the first transition (of a run that was resumed) is left blank.
    """
    path = _checked(file)
    lines = _checked_metrics(metrics, total_steps)
    spans = _spans([stage.name for stage in stages], history, total_steps)
    rows = [_Row(name, each, multipliers.get(name, 1.0)) for name, each in spans.items()]
    ratios = [(change.step, change.ratio) for change in history]
    return _draw(
        "Freeze schedule as it ran", "", rows, ratios, total_steps, steps_per_epoch, lines, path,
        rates,
    )  # fmt: skip


class _Row(NamedTuple):
    """A stage as it is drawn: [first step, step after the last) of each bar."""

    name: str
    spans: Sequence[tuple[int, int]]
    multiplier: float


def _checked(file: File | None) -> Path | None:
    """The file as a path that can be written; refused before anything is drawn."""
    if file is None:
        return None
    if not isinstance(file, (str, os.PathLike)):
        raise TypeError(f"file={file!r} is no path; give one that {_NAMED}")
    path = Path(file)
    where, ending = f"file={str(path)!r}", path.suffix.lower()
    if not ending:
        raise ValueError(f"{where}: its name has no ending; give a name that {_NAMED}")
    if ending not in _ENDINGS:
        hint = did_you_mean(ending, _ENDINGS, most=1, cutoff=0.5) or ";"
        raise ValueError(f"{where}: cannot draw a {ending!r}{hint} give a name that {_NAMED}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{where}: there is no folder {str(path.parent)!r}; make it first")
    if path.is_dir():
        raise ValueError(f"{where} is a folder; give the name of a file")
    return path


def _checked_metrics(metrics: Any, total: int) -> dict[str, list[tuple[float, float]]]:
    """The metrics as numbers, in order of time."""
    if not isinstance(metrics or {}, Mapping):
        raise TypeError(
            f"metrics={metrics!r} is no mapping from names to (step, value) pairs, "
            'such as {"accuracy": [(100, 0.81), (200, 0.84)]}'
        )
    found = {}
    for name, points in (metrics or {}).items():
        try:
            points = list(points)
        except TypeError:
            raise TypeError(
                f"metrics[{name!r}]={points!r} must be a list of (step, value) pairs"
            ) from None
        if not points:
            raise ValueError(
                f"metrics[{name!r}] has no values; give (step, value) pairs, or leave it out"
            )
        pairs = [_pair(name, point) for point in points]
        for step, _ in pairs:
            if not 0 <= step <= total:
                raise ValueError(
                    f"metrics[{name!r}] has a value at step {step:g}, "
                    f"but the run has steps 0 to {total}; count optimizer steps"
                )
        found[str(name)] = sorted(pairs, key=lambda pair: pair[0])
    return found


def _pair(name: str, point: Any) -> tuple[float, float]:
    try:
        step, value = point
        if isinstance(point, str):  # two letters are no pair
            raise TypeError
        return float(step), float(value)
    except (TypeError, ValueError):
        raise TypeError(
            f"metrics[{name!r}] has {point!r}, which is no pair (step, value) of numbers"
        ) from None


def _spans(
    names: Sequence[str], history: Sequence[Transition], total: int
) -> dict[str, list[tuple[int, int]]]:
    """When each stage was open.

    >>> changes = [Transition(0, 0, ("a",), ("b",), 1, 2), Transition(5, 1, ("b",), ("a",), 1, 2)]
    >>> _spans(["a", "b"], changes, 9)
    {'a': [(0, 5)], 'b': [(5, 9)]}
    """
    found: dict[str, list[tuple[int, int]]] = {name: [] for name in names}
    since: dict[str, int] = {}
    changes = [(change.step, change.frozen, change.opened) for change in history]
    for step, frozen, opened in [*changes, (total, tuple(names), ())]:
        for name in frozen:
            first = since.pop(name, step)
            if first < step:  # two transitions at one step leave no bar
                found[name].append((first, step))
        for name in opened:
            since.setdefault(name, step)
    return found


def shortened(names: Sequence[str], longest: int = _LONGEST_NAME) -> list[str]:
    """Names cut in the middle; different names stay different.

    >>> shortened(["head", "ernie.encoder.layers.11.self_attn.out_proj"])
    ['head', 'ernie.enc…self_attn.out_proj']
    """
    found = [cut(name, longest) for name in names]
    return found if len(set(found)) == len(set(names)) else shortened(names, longest + 4)


def _draw(
    title: str,
    reservation: str,
    rows: Sequence[_Row],
    ratios: Sequence[tuple[int, float]],
    total: int,
    steps_per_epoch: int | None,
    metrics: Mapping[str, Sequence[tuple[float, float]]],
    path: Path | None,
    rates: Rates,
) -> Figure:
    """The picture of rows of bars; beneath the trainable ratio, rates of phases and metrics."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter, MaxNLocator
    except ModuleNotFoundError as error:
        raise ImportError(
            "a picture needs matplotlib, which is not there: "
            "pip install 'paddle_freeze_callback[plot]'"
        ) from error

    rows = sorted(rows, key=lambda row: row.name == REST)  # the rest last; others in their order
    upper = min(max(_ROW * len(rows), _LOWEST), _HIGHEST)
    heights = [upper] + [_PANEL] * (1 + bool(rates) + len(metrics))
    figure = Figure(figsize=(_WIDTH, sum(heights) + _AROUND), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(
        len(heights), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    axes: list[Axes] = list(grid[:, 0])
    counts = [
        f"{number:,} {thing}{'' if number == 1 else 's'}"
        for number, thing in ((len(rows), "stage"), (total, "step"))
    ]
    figure.suptitle(f"{title}: {', '.join(counts)}{reservation}", fontsize=12)

    _draw_stages(figure, axes[0], rows, ratios[0][0], total, upper)
    _draw_ratio(axes[1], ratios, total)
    if rates:
        _draw_rates(axes[2], rates)
    for axis, (name, points) in zip(axes[2 + bool(rates) :], metrics.items()):
        _draw_metric(axis, name, points)

    axes[0].set_xlim(0, total)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    bottom = axes[-1]
    bottom.set_xlabel("optimizer steps")
    bottom.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, steps=[1, 2, 2.5, 5, 10]))
    bottom.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    if steps_per_epoch:
        _mark_epochs(axes, total, steps_per_epoch)
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def _draw_stages(
    figure: Figure, axis: Axes, rows: Sequence[_Row], begin: int, total: int, height: float
) -> None:
    import matplotlib
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize
    from matplotlib.patches import Patch

    # One hue from light to dark: it reads the same in grey and for every kind of sight.
    blues = matplotlib.colormaps["Blues"]
    colours = LinearSegmentedColormap.from_list(
        "multipliers", [blues(_LIGHTEST + i / 20 * (_DARKEST - _LIGHTEST)) for i in range(21)]
    )
    values = sorted({row.multiplier for row in rows if row.spans})
    differ = len(values) > 1
    low, high = (values[0], values[-1]) if differ else (0.0, 1.0)
    norm = LogNorm(low, high) if low > 0 and high / low > 4 else Normalize(low, high)

    places = range(len(rows))
    axis.barh(places, [total - begin] * len(rows), left=begin, height=0.8, zorder=1, **_FROZEN)
    for place, row in zip(places, rows):
        if row.spans:
            colour = colours(norm(row.multiplier) if differ else 0.7)
            bars = axis.broken_barh(
                [(first, after - first) for first, after in row.spans], (place - 0.4, 0.8),
                facecolor=colour, edgecolor=colour, linewidth=0.4, zorder=2,
            )  # fmt: skip
            bars.set_gid(row.name)

    # Nothing below the smallest size can be read; from there on only every n-th stage is named.
    font = min(_FONT, 0.75 * 72 * height / max(len(rows), 1))
    every = math.ceil(_SMALLEST_FONT / font)
    axis.set_yticks(
        places[::every], shortened([row.name for row in rows])[::every],
        fontsize=max(font, _SMALLEST_FONT), parse_math=False,
    )  # fmt: skip
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.tick_params(axis="y", length=0)
    axis.tick_params(axis="x", labelbottom=False)
    handles = [Patch(facecolor=colours(0.7), label="open"), Patch(label="frozen", **_FROZEN)]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=_FONT
    )
    if differ:
        mappable = ScalarMappable(norm, colours)
        bar = figure.colorbar(mappable, ax=axis, pad=0.015, aspect=height / 0.1)
        bar.set_label("learning-rate multiplier", fontsize=_FONT)
        shown = _apart(values, [float(norm(value)) for value in values], max(0.14 / height, 0.1))
        bar.set_ticks(shown, labels=[f"{value:.3g}" for value in shown])
        bar.ax.tick_params(labelsize=8)
        bar.ax.minorticks_off()


def _apart(values: Sequence[float], places: Sequence[float], least: float) -> list[float]:
    """Those of some ordered values that leave room between their labels, both ends included.

    >>> _apart([1, 2, 3, 4], [0, 0.04, 0.5, 1], 0.1)
    [1, 3, 4]
    """
    kept = [0]
    for index in range(1, len(values) - 1):
        if places[index] - places[kept[-1]] >= least and places[-1] - places[index] >= least:
            kept.append(index)
    return [values[index] for index in [*kept, len(values) - 1]]


def _draw_ratio(axis: Axes, ratios: Sequence[tuple[int, float]], total: int) -> None:
    from matplotlib.ticker import PercentFormatter

    steps, values = zip(*ratios, (total, ratios[-1][1]))  # the last value holds until the end
    axis.plot(steps, values, drawstyle="steps-post", color=_LINE, linewidth=1.6)
    axis.fill_between(steps, values, step="post", color=_LINE, alpha=0.12, linewidth=0)
    axis.set_ylim(0, 1.05)
    axis.set_yticks([0, 0.5, 1])
    axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    _dress(axis, "trainable parameters")


def _draw_rates(axis: Axes, rates: Rates) -> None:
    axis.plot(*zip(*rates), color=_LINE, linewidth=1.6)
    axis.set_ylim(0, 1.05 * max(rate for _, rate in rates))
    _dress(axis, "learning rate, x the optimizer's")


def _draw_metric(axis: Axes, name: str, points: Sequence[tuple[float, float]]) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.plot(
        *zip(*points), color=_LINE, linewidth=1.4, marker="o", markersize=3.5,
        markevery=max(1, len(points) // 40), clip_on=False,
    )  # fmt: skip
    axis.margins(y=0.12)
    axis.yaxis.set_major_locator(MaxNLocator(nbins=3, min_n_ticks=2))
    _dress(axis, shortened([name], 60)[0])


def _dress(axis: Axes, title: str) -> None:
    axis.set_title(title, loc="left", fontsize=_FONT, parse_math=False)
    axis.tick_params(axis="y", labelsize=8)
    axis.grid(axis="y", color="#dddddd", linewidth=0.6)
    axis.set_axisbelow(True)


def _mark_epochs(axes: Sequence[Axes], total: int, length: int) -> None:
    """A second scale on top, and a line where an epoch begins, unless these would be a fence."""
    from matplotlib.ticker import MaxNLocator

    scale: Any = (lambda step: step / length, lambda epoch: epoch * length)
    above = axes[0].secondary_xaxis("top", functions=scale)
    above.set_xlabel("epochs")
    above.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True))
    number = math.ceil(total / length) - 1
    for axis in axes if number <= _MOST_EPOCH_LINES else ():
        for epoch in range(1, number + 1):
            axis.axvline(epoch * length, color="#888888", linewidth=0.7, linestyle=":", zorder=3)
