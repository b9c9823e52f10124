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

from ..session.timeline import Rate
from ..session.transition import Transition
from ..stages.declared import REST
from ..stages.partition import Stage
from ..words import cut, did_you_mean
from .preview import Preview

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

File = str | os.PathLike[str]
Curve = Sequence[tuple[int, float]]
Metrics = Mapping[str, Curve]

_ENDINGS = (".png", ".svg", ".pdf")
_NAMED = "ends in .png, .svg or .pdf"

# Lengths in inches. Around the panels are the title, the legend and the two scales.
_WIDTH, _AROUND = 9.0, 1.7
_ROW, _LOWEST, _HIGHEST = 0.3, 1.2, 14.0
_PANEL = 1.05
_SMALL = 3.0  # a picture less high has the stages alone

_FONT, _SMALLEST_FONT = 9.0, 5.0
_LONGEST_NAME = 28
_MOST_EPOCH_LINES = 30


class _Look(NamedTuple):
    """Colours that can be told apart on a background, also in grey and by every kind of sight."""

    line: str
    grid: str
    face: str  # of what is frozen
    hatch: str
    high: float  # places on the colour map, of the largest multiplier and of the smallest
    low: float


_ON_LIGHT = _Look("#08306b", "#dddddd", "#f6f6f6", "#cfcfcf", 0.95, 0.38)
_ON_DARK = _Look("#9ecae1", "#444444", "#1c1c1c", "#4d4d4d", 0.18, 0.78)


def plot_preview(
    preview: Preview, file: File | None = None, *, ax: Axes | None = None, figsize: Any = None
) -> Figure:
    """Draw a planned run: see :meth:`FreezeSchedule.plot`.

    Filled bars are open stages, the darker the higher their learning-rate multiplier, paler while
    it ramps up; the hatched background is frozen, the dotted one is decided while it runs. The
    panel beneath shows the trainable ratio, where it is known before the run; the next one the
    rates of phases, if they have their own.
    """
    path = _checked(file)
    rows = [
        _Row(
            stage.name,
            stage.rates or [Rate(*span, stage.multiplier, 1.0) for span in stage.spans],
            stage.decided,
        )
        for stage in preview.stages
    ]
    return _draw(
        "Planned freeze schedule",
        ", as far as known before" if preview.decided_later else "",
        rows,
        0, [] if preview.decided_later else [(one.step, one.ratio) for one in preview.phases],
        preview.total_steps, preview.steps_per_epoch, {}, path, preview.rates, ax, figsize,
    )  # fmt: skip


def plot_history(
    stages: Sequence[Stage],
    history: Sequence[Transition],
    total_steps: int,
    steps_per_epoch: int | None = None,
    metrics: Metrics | None = None,
    file: File | None = None,
    *,
    rates: Mapping[str, Sequence[Rate]],
    curve: Curve = (),
    ax: Axes | None = None,
    figsize: Any = None,
) -> Figure:
    """Draw a run as :func:`plot_preview` draws its plan: see :meth:`FreezeRun.plot`.

    The time before the first transition (of a run that was resumed) is left blank.
    """
    path = _checked(file)
    lines = _checked_metrics(metrics, total_steps)
    rows = [_Row(stage.name, rates.get(stage.name, ()), ()) for stage in stages]
    ratios = [(change.step, change.ratio) for change in history]
    return _draw(
        "Freeze schedule as it ran", "", rows, history[0].step, ratios, total_steps,
        steps_per_epoch, lines, path, curve, ax, figsize,
    )  # fmt: skip


class _Row(NamedTuple):
    """A stage as it is drawn: when it trains how fast, and when the run decides."""

    name: str
    rates: Sequence[Rate]
    decided: Sequence[tuple[int, int]]


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
    begin: int,
    ratios: Sequence[tuple[int, float]],
    total: int,
    steps_per_epoch: int | None,
    metrics: Mapping[str, Sequence[tuple[float, float]]],
    path: Path | None,
    curve: Curve,
    ax: Axes | None,
    figsize: tuple[float, float] | None,
) -> Figure:
    """The picture of rows of bars; beneath the trainable ratio, rates of phases and metrics."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter, MaxNLocator
    except ModuleNotFoundError as error:
        raise ImportError(
            "a picture needs matplotlib, which is not there: "
            "pip install 'paddle_freeze_callback[plot]' (from a clone: pip install -e '.[plot]')"
        ) from error

    rows = sorted(rows, key=lambda row: row.name == REST)  # the rest last; others in their order
    if ax is not None:
        figure: Figure = ax.figure.figure  # also of a panel in a subfigure
        width, upper = ax.get_window_extent().transformed(figure.dpi_scale_trans.inverted()).size
        axes, small = [ax], True
    else:
        upper = min(max(_ROW * len(rows), _LOWEST), _HIGHEST)
        panels = bool(ratios) + bool(curve) + len(metrics)
        width, height = figsize or (_WIDTH, upper + _PANEL * panels + _AROUND)
        small = figsize is not None and height < _SMALL
        heights = [upper] + [_PANEL] * (0 if small else panels)
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        axes = list(
            figure.subplots(
                len(heights), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights}
            )[:, 0]
        )
        upper = (height - (0.7 if small else _AROUND)) * upper / sum(heights)
    font = min(_FONT, max(_SMALLEST_FONT, _SMALLEST_FONT + (width - 3) * 0.7))
    look = _look(axes[0])
    counts = [
        f"{number:,} {thing}{'' if number == 1 else 's'}"
        for number, thing in ((len(rows), "stage"), (total, "step"))
    ]
    if ax is None:
        figure.suptitle(f"{title}: {', '.join(counts)}{reservation}", fontsize=font * 4 / 3)

    _draw_stages(figure, axes[0], rows, begin, total, (width, upper, font), look, small)
    if not small:
        beneath = iter(axes[1:])
        if ratios:
            _draw_ratio(axis := next(beneath), ratios, total, look)
            _dress(axis, "trainable parameters", look, font)
        if curve:
            _draw_rates(axis := next(beneath), curve, look)
            _dress(axis, "learning rate, x the optimizer's", look, font)
        for axis, (name, points) in zip(beneath, metrics.items()):
            _draw_metric(axis, points, look)
            _dress(axis, shortened([name], 60)[0], look, font)

    axes[0].set_xlim(0, total)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    bottom = axes[-1]
    bottom.set_xlabel("optimizer steps", fontsize=font * 10 / 9)
    bottom.tick_params(axis="x", labelsize=font * 10 / 9, labelbottom=True)
    most = max(min(8, int(width)), 2)
    bottom.xaxis.set_major_locator(MaxNLocator(nbins=most, integer=True, steps=[1, 2, 2.5, 5, 10]))
    bottom.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    if steps_per_epoch:
        _mark_epochs(axes, total, steps_per_epoch, font=0 if small else font)
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def _look(axis: Axes) -> _Look:
    """Colours for the background of a panel, which a style or a notebook may have made dark."""
    import matplotlib
    from matplotlib.colors import to_rgba

    def light(colour: Any) -> float:
        red, green, blue, _ = to_rgba(colour)
        return 0.299 * red + 0.587 * green + 0.114 * blue

    for behind in (axis.get_facecolor(), axis.figure.figure.get_facecolor()):
        if to_rgba(behind)[3] > 0.5:
            return _ON_LIGHT if light(behind) > 0.5 else _ON_DARK
    return _ON_DARK if light(matplotlib.rcParams["text.color"]) > 0.5 else _ON_LIGHT


def _draw_stages(
    figure: Figure,
    axis: Axes,
    rows: Sequence[_Row],
    begin: int,
    total: int,
    size: tuple[float, float, float],
    look: _Look,
    small: bool,
) -> None:
    import matplotlib
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize, to_rgb
    from matplotlib.patches import Patch

    width, height, most_font = size
    # One hue from light to dark: it reads the same in grey and for every kind of sight.
    blues = matplotlib.colormaps["Blues"]
    colours = LinearSegmentedColormap.from_list(
        "multipliers",
        [blues(look.low + i / 20 * (look.high - look.low)) for i in range(21)],
    )
    values = sorted({rate.multiplier for row in rows for rate in row.rates})
    differ = len(values) > 1
    low, high = (values[0], values[-1]) if differ else (0.0, 1.0)
    norm = LogNorm(low, high) if low > 0 and high / low > 4 else Normalize(low, high)

    def paint(rate: Rate) -> list[float]:
        """The colour of a multiplier, the paler the less of it a ramp gives."""
        full, pale = colours(norm(rate.multiplier) if differ else 0.7), to_rgb(look.face)
        share = 0.3 + 0.7 * rate.ramp
        return [share * one + (1 - share) * other for one, other in zip(full, pale)]

    frozen: Any = {
        "facecolor": look.face, "edgecolor": look.hatch, "linewidth": 0, "hatch": "////",
    }  # fmt: skip
    decided = {**frozen, "edgecolor": colours(0.7), "hatch": "...."}
    places = range(len(rows))
    axis.barh(places, [total - begin] * len(rows), left=begin, height=0.8, zorder=1, **frozen)
    for place, row in zip(places, rows):
        shapes = (
            ([(rate.first, rate.after) for rate in row.rates], 2, row.name,
             {"facecolor": [paint(rate) for rate in row.rates], "linewidth": 0}),
            (row.decided, 1.5, f"{row.name}?", decided),
        )  # fmt: skip
        for spans, order, gid, manner in shapes:
            if spans:
                axis.broken_barh(
                    [(first, after - first) for first, after in spans], (place - 0.4, 0.8),
                    zorder=order, **manner,
                ).set_gid(gid)  # fmt: skip

    # Nothing below the smallest size can be read; from there on only every n-th stage is named.
    font = min(most_font, 0.75 * 72 * height / max(len(rows), 1))
    every = math.ceil(_SMALLEST_FONT / font)
    longest = _LONGEST_NAME if width > 6 else max(int(4 * width), 8)
    axis.set_yticks(
        places[::every], shortened([row.name for row in rows], longest)[::every],
        fontsize=max(font, _SMALLEST_FONT), parse_math=False,
    )  # fmt: skip
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.tick_params(axis="y", length=0)
    if small:
        return
    axis.tick_params(axis="x", labelbottom=False)
    handles = [Patch(facecolor=colours(0.7), label="open"), Patch(label="frozen", **frozen)]
    if any(row.decided for row in rows):
        handles.append(Patch(label="open when the run decides so", **decided))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=most_font
    )
    if differ:
        mappable = ScalarMappable(norm, colours)
        bar = figure.colorbar(mappable, ax=axis, pad=0.015, aspect=height / 0.1)
        bar.set_label("learning-rate multiplier", fontsize=most_font)
        shown = _apart(values, [float(norm(value)) for value in values], max(0.14 / height, 0.1))
        bar.set_ticks(shown, labels=[f"{value:.3g}" for value in shown])
        bar.ax.tick_params(labelsize=most_font * 8 / 9)
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


def _draw_ratio(axis: Axes, ratios: Sequence[tuple[int, float]], total: int, look: _Look) -> None:
    from matplotlib.ticker import PercentFormatter

    steps, values = zip(*ratios, (total, ratios[-1][1]))  # the last value holds until the end
    axis.plot(steps, values, drawstyle="steps-post", color=look.line, linewidth=1.6)
    axis.fill_between(steps, values, step="post", color=look.line, alpha=0.12, linewidth=0)
    axis.set_ylim(0, 1.05)
    axis.set_yticks([0, 0.5, 1])
    axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _draw_rates(axis: Axes, curve: Curve, look: _Look) -> None:
    axis.plot(*zip(*curve), color=look.line, linewidth=1.6)
    axis.set_ylim(0, 1.05 * max(rate for _, rate in curve))


def _draw_metric(axis: Axes, points: Sequence[tuple[float, float]], look: _Look) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.plot(
        *zip(*points), color=look.line, linewidth=1.4, marker="o", markersize=3.5,
        markevery=max(1, len(points) // 40), clip_on=False,
    )  # fmt: skip
    axis.margins(y=0.12)
    axis.yaxis.set_major_locator(MaxNLocator(nbins=3, min_n_ticks=2))


def _dress(axis: Axes, title: str, look: _Look, font: float) -> None:
    axis.set_title(title, loc="left", fontsize=font, parse_math=False)
    axis.tick_params(axis="y", labelsize=font * 8 / 9)
    axis.grid(axis="y", color=look.grid, linewidth=0.6)
    axis.set_axisbelow(True)


def _mark_epochs(axes: Sequence[Axes], total: int, length: int, *, font: float) -> None:
    """A second scale on top, and a line where an epoch begins, unless these would be a fence."""
    from matplotlib.ticker import MaxNLocator

    if font:
        both: Any = (lambda step: step / length, lambda epoch: epoch * length)
        above = axes[0].secondary_xaxis("top", functions=both)
        above.set_xlabel("epochs", fontsize=font * 10 / 9)
        above.tick_params(labelsize=font * 10 / 9)
        above.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True))
    number = math.ceil(total / length) - 1
    for axis in axes if number <= _MOST_EPOCH_LINES else ():
        for epoch in range(1, number + 1):
            axis.axvline(epoch * length, color="#888888", linewidth=0.7, linestyle=":", zorder=3)
