"""Parts that all figures of a report share: styles, panels, legends, axes, baselines, and writing to files."""

from __future__ import annotations

import io
import math
import warnings
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, cast

import matplotlib as mpl
import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import EngFormatter, MaxNLocator
from PIL import Image

from cet_rl.report.grouping import Comparison
from cet_rl.report.names import arm_identity
from cet_rl.report.palette import FAINT, INK, PAPER, SOFT, follow_the_page, looks
from cet_rl.runs.task_kinds import RECURRENT
from cet_rl.traces.base import FloatArray

if TYPE_CHECKING:
    from cet_rl.recurrent.config import RecurrentConfig

Format = Literal["png", "svg", "pdf"]
"""Format of the figures beside the page; on the page they are always SVG."""

DPI = 200  # of PNG files: sharp on a screen of high density, and in print
ACROSS = 3  # most panels side by side
MOST_ARMS = 20  # drawn as curves; more cannot be distinguished
LONGEST_ENTRY = 28  # characters of a legend's entry
MOST_PANELS = 6  # for delays; of more, the shortest, the longest and some between are drawn
MARGIN = 0.04  # added on each side of an axis, as a share of the values shown
FENCE = 5.0  # a loss that is more interquartile ranges above the upper quartile does not set an axis
LEAST_LOSSES = 4  # with fewer losses the axis shows all of them
LEAST_ALPHA = 0.01  # with a smaller one each symbol lasts so long that baselines need too much memory
MOST_SEEDS = 5  # whose baselines are averaged: in some tasks each seed makes a task of its own

DOTTED = "Dotted: the losses of the best predictors that know only what the label says."
"""Sentence of a caption on baselines."""


@dataclass(frozen=True)
class Picture:
    """Hold a figure of the report: first as a matplotlib figure, then as SVG for the page and as a file."""

    name: str  # part of the file's name
    figure: Figure | None
    caption: str  # what it shows, how many runs it rests on, and what is missing
    alternative: str  # a few words for readers who cannot see it
    svg: str = ""  # for the page, with colours for a light and a dark background
    file: bytes = b""


@contextmanager
def drawing() -> Iterator[None]:
    """Draw with fixed settings of matplotlib, whatever the user's are, and do not read text as mathematics."""
    colored = ("axes.edgecolor", "axes.labelcolor", "text.color", "xtick.color", "ytick.color")
    ours: Any = {
        **{"text.parse_math": False, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False},
        **dict.fromkeys(colored, INK),
        "axes.titley": 1.0,  # saves matplotlib's search for what is above the axes
        "pdf.fonttype": 42,  # TrueType: journals refuse matplotlib's usual fonts
    }
    with style.context("default"), mpl.rc_context(ours), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a task may have any name
        yield


def as_files(picture: Picture, form: Format) -> Picture:
    """Return the picture with its figure rendered: as SVG for the page, and as the bytes of a file."""
    assert picture.figure is not None
    svg = render(picture.figure, "svg")
    file = svg if form == "svg" else render(picture.figure, form)
    return replace(picture, figure=None, svg=follow_the_page(svg.decode()), file=file)


def render(figure: Figure, form: Format) -> bytes:
    """Return a figure as the bytes of a file, which are the same at any time and on any machine."""
    stream = io.BytesIO()
    canvas: Any
    if engine := figure.get_layout_engine():  # once, not for each format; `savefig` would draw everything twice
        for axes in figure.axes:
            for axis in (axes.xaxis, axes.yaxis):
                if not axis.get_label_text():
                    axis.set_label_coords(0.5, 0.0)  # saves a search for a place below all ticks
        FigureCanvasAgg(figure)
        engine.execute(figure)
        figure.set_layout_engine("none")
    if form == "pdf":
        canvas = FigureCanvasPdf(figure)
        canvas.print_pdf(stream, metadata={"CreationDate": None})
    elif form == "svg":
        with mpl.rc_context({"svg.hashsalt": "cet-rl"}):
            canvas = FigureCanvasSVG(figure)
            canvas.print_svg(stream, metadata={"Date": None})
    else:
        figure.set_dpi(DPI)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        width, height = canvas.get_width_height()
        drawn = Image.frombuffer("RGBA", (width, height), canvas.buffer_rgba(), "raw", "RGBA", 0, 1)
        drawn.convert("RGB").save(stream, "png", dpi=(DPI, DPI), compress_level=3)
    return stream.getvalue()


@contextmanager
def scaled_at_the_end(axes: Axes) -> Iterator[None]:
    """Compute an axis' limits once at the end: else every band that is drawn computes them for all panels."""
    axes.set_autoscale_on(False)
    yield
    axes.autoscale()


def panels(
    count: int, width: float = 3.0, height: float = 2.5, most_across: int = ACROSS, **options: Any
) -> tuple[Figure, list[Axes]]:
    """Return a figure with `count` panels, and the panels row by row.

    Each is `width` by `height` inches; at most `most_across` are side by side. `options` go to `Figure.subplots`.
    """
    across = min(count, most_across)
    down = math.ceil(count / across)
    figure = Figure(figsize=(max(across * width, 6.0), max(down * height, 2.8)), layout="constrained")
    grid = list(figure.subplots(down, across, squeeze=False, **options).flat)
    for axes in grid[count:]:
        axes.set_visible(False)
    for axes in grid[max(0, count - across) : count]:
        axes.xaxis.set_tick_params(labelbottom=True)  # also where the place below is empty
    return figure, grid[:count]


def label_outside(grid: Sequence[Axes], x: str, y: str, most_across: int = ACROSS) -> None:
    """Label the x axis of each column and the y axis of each row of panels that `panels` returned."""
    across = min(len(grid), most_across)
    for place, axes in enumerate(grid):
        axes.set_xlabel(x if place >= len(grid) - across else "")
        axes.set_ylabel(y if place % across == 0 else "")


def legend(figure: Figure, lines: Mapping[str, Line2D], order: Sequence[str] = ()) -> None:
    """Add one legend below all panels, and increase the figure's height for it.

    There is an entry for each of `lines`, by label, those in `order` first. (Matplotlib's own search for labels
    skips those that begin with "_".)
    """
    if not lines:
        return
    labels = [*(label for label in order if label in lines), *(label for label in lines if label not in order)]
    half = LONGEST_ENTRY // 2  # a long label loses its middle, which says least, unless two would become equal
    cut = [label if len(label) <= LONGEST_ENTRY else f"{label[:half]}…{label[-half:]}" for label in labels]
    names = cut if len({*cut}) == len(labels) else labels
    fitting = max(1, min(7, int(figure.get_figwidth() / (0.075 * max(map(len, names)) + 0.7))))
    rows = math.ceil(len(names) / fitting)
    figure.set_figheight(figure.get_figheight() + 0.17 * rows + 0.1)
    handles = [lines[label] for label in labels]
    columns = math.ceil(len(names) / rows)
    look: Any = {"frameon": False, "fontsize": 8, "handlelength": 3.6}
    figure.legend(handles, names, loc="outside lower center", ncols=columns, **look)


def styles(comparison: Comparison) -> Mapping[str, Mapping[str, Any]]:
    """Return the keyword arguments of `Axes.plot` for each arm, equal in all figures of a comparison."""
    return looks({arm.label: arm_identity(arm.config) for arm in (*comparison.compared, *comparison.references)})


def format_steps(axes: Axes) -> None:
    """Format the ticks of an x axis of steps: 20 k, 1.5 M."""
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter())


def some_delays(delays: Sequence[float], most: int = MOST_PANELS) -> list[float]:
    """Return all delays or, if there are more than `most`, so many at even distances, both ends included."""
    if len(delays) <= most:
        return list(delays)
    return [delays[round(place * (len(delays) - 1) / (most - 1))] for place in range(most)]


def loss_limit(losses: Sequence[float]) -> float | None:
    """Return the largest loss that an axis shows, without those of a few diverging runs; None if it shows all.

    Losses more than `FENCE` interquartile ranges above the upper quartile are left out. There is no such limit for
    returns and accuracies: a value that is far from all others is a result.
    """
    if len(losses) < LEAST_LOSSES:
        return None
    lower, upper = np.quantile(losses, [0.25, 0.75], method="lower")
    shown = max(loss for loss in losses if loss <= upper + FENCE * (upper - lower))
    return shown if min(losses) < shown < max(losses) else None


def baselines_of(comparison: Comparison) -> Mapping[str, float]:
    """Return the least losses of predictors with limited knowledge, by that knowledge, averaged over seeds.

    The result is empty if the task has no baselines, or if they differ between arms.
    """
    tasks: dict[int, set[tuple[str, tuple[int, int], float]]] = defaultdict(set)
    if comparison.task_kind.name == RECURRENT.name:
        for config in (cast("RecurrentConfig", run.config) for run in comparison.counted_runs):
            tasks[config.seed].add((config.task, config.lags, config.alpha))
    losses: list[Mapping[str, float]] = []
    for seed in sorted(tasks)[:MOST_SEEDS]:
        found = {_baselines(*task, seed) for task in tasks[seed]}
        if len(found) > 1:
            return {}
        losses.append(dict(found.pop()))
    shared = [name for name in (losses or [{}])[0] if all(name in each for each in losses)]
    return {name: sum(each[name] for each in losses) / len(losses) for name in shared}


@cache
def _baselines(task: str, lags: tuple[int, int], alpha: float, seed: int) -> tuple[tuple[str, float], ...]:
    from cet_rl.recurrent.tasks import build_task  # torch: a second to load

    if alpha < LEAST_ALPHA:
        return ()
    try:
        return tuple(build_task(task, SimpleNamespace(lags=lags, alpha=alpha, seed=seed)).baselines.items())
    except Exception:  # a third party's task may raise anything; the report then has no baselines
        return ()


def draw_baselines(axes: Axes, lines: Mapping[str, float], *, vertical: bool, named: bool = True) -> None:
    """Draw dotted lines at baselines: `vertical` where the x axis is the score, `named` outside the axes."""
    for name, value in lines.items():
        draw = axes.axvline if vertical else axes.axhline
        draw(value, color=SOFT, linestyle=":", linewidth=1, zorder=0)
        look: dict[str, Any] = {"fontsize": 7, "color": SOFT, "ha": "left"}
        if named and vertical:
            axes.text(value, 1.01, name, rotation=45, va="bottom", transform=axes.get_xaxis_transform(), **look)
        elif named:
            axes.text(1.01, value, name, va="center", transform=axes.get_yaxis_transform(), **look)


def draw_cells(
    axes: Axes,
    values: FloatArray,
    texts: Sequence[Sequence[str]],
    colormap: str,
    limits: tuple[float, float],
    wide: Collection[int] = (),
    bold: Collection[tuple[int, int]] = (),
) -> None:
    """Draw values, of shape (rows, columns), as coloured cells with texts.

    Cells that are nan are hatched, cells with an empty text left out. Each row in `wide` is a single cell; the
    texts of the (row, column) in `bold` are bold.
    """
    shades = mpl.colormaps[colormap](mpl.colors.Normalize(*limits)(np.ma.masked_invalid(values)))
    bright = shades[..., :3] @ [0.3, 0.59, 0.11] > 0.5
    frames, fills = [], []
    rows, columns = values.shape
    for row, column in np.ndindex(rows, columns):
        left, top, width = column - 0.5, row - 0.5, columns if row in wide else 1
        known = bool(np.isfinite(values[row, column]))
        if not texts[row][column] or (row in wide and column):
            continue
        frames.append([(left, top), (left + width, top), (left + width, top + 1), (left, top + 1)])
        fills.append(mpl.colors.to_hex(shades[row, column]) if known else "none")
        color = SOFT if not known else "#000000" if bright[row, column] else "#fefefe"  # in print, on any page
        if not known:
            look: Any = {"fill": False, "hatch": "////", "edgecolor": FAINT, "linewidth": 0}
            axes.add_patch(Rectangle((left, top), width, 1, **look))
        weight = "bold" if (row, column) in bold else "normal"
        look = {"ha": "center", "va": "center", "fontsize": 8, "color": color, "weight": weight}
        written = axes.text(left + width / 2, row, texts[row][column], linespacing=1.1, **look)
        written.set_in_layout(column in (0, columns - 1))  # inner texts stay within the axes
    # One collection for all cells: a hundred single patches are slow.
    edges: Any = {"facecolors": fills, "edgecolors": PAPER, "linewidths": 1.5, "joinstyle": "miter"}
    axes.add_collection(PolyCollection(frames, **edges), autolim=False)
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
