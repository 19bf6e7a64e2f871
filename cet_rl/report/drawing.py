"""What all figures of a report share: how they look, and how they become files."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from PIL import Image

from cet_rl.report.arms import Study
from cet_rl.report.text import steps

DPI = 120
LEVEL = 3
"""Of compression, of nine."""

ACROSS = 3
"""Panels side by side."""

LINES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (7, 1.2)), (0, (3, 1.2, 1, 1.2, 1, 1.2)), (0, (1, 3)))
"""Dashes of successive arms; as many as have no divisor in common with the colours, so that few arms are alike."""

COLORS = 10

MOST_ARMS = 20
"""Drawn as curves; no more can be told apart."""

LONGEST_ENTRY = 28
"""Characters of a legend's entry."""

MOST_PANELS = 6
"""One for each delay; of more the shortest and the longest are drawn."""


@dataclass(frozen=True)
class Picture:
    """A figure of the report.

    Attributes:
        name: short, for its file.
        png: the picture itself.
        caption: what it shows, how many runs it rests on, and what is missing.
        alternative: the same in a few words, for those who cannot see it.
    """

    name: str
    png: bytes
    caption: str
    alternative: str


@contextmanager
def drawing() -> Iterator[None]:
    """Within it figures look the same whatever the user's settings, and text is never taken for mathematics."""
    ours: Any = {
        **{"text.parse_math": False, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False},
        "axes.titley": 1.0,  # nothing is above the axes: need not be looked for
    }
    with style.context("default"), mpl.rc_context(ours), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a task may have any name
        yield


def png(figure: Figure) -> bytes:
    """The figure as a PNG file that depends on nothing but what is drawn."""
    figure.set_dpi(DPI)
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if not axis.get_label_text():
                axis.set_label_coords(0.5, 0.0)  # else a place below all ticks is looked for, again and again
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()  # once; `savefig` draws twice
    width, height = canvas.get_width_height()
    drawn = Image.frombuffer("RGBA", (width, height), canvas.buffer_rgba(), "raw", "RGBA", 0, 1)
    stream = io.BytesIO()
    # Nothing shines through: without its alpha a picture is smaller even at a level that takes half the time.
    drawn.convert("RGB").save(stream, "png", dpi=(DPI, DPI), compress_level=LEVEL)
    return stream.getvalue()


@contextmanager
def scaled_at_the_end(axes: Axes) -> Iterator[None]:
    """Within it limits do not follow what is drawn: every band would have those of all panels computed anew."""
    axes.set_autoscale_on(False)
    yield
    axes.autoscale()


def panels(
    count: int, width: float = 3.0, height: float = 2.5, most_across: int = ACROSS, **options: Any
) -> tuple[Figure, list[Axes]]:
    """A figure with so many panels, row by row.

    Args:
        count: of panels.
        width: of each, in inches.
        height: of each, in inches.
        most_across: panels side by side.
        **options: of `Figure.subplots`.
    """
    across = min(count, most_across)
    down = math.ceil(count / across)
    wide = max(across * width, 6.0)
    figure = Figure(figsize=(wide, max(down * height, 2.8)), layout="constrained")
    grid = list(figure.subplots(down, across, squeeze=False, **options).flat)
    for axes in grid[count:]:
        axes.set_visible(False)
    for axes in grid[max(0, count - across) : count]:
        axes.xaxis.set_tick_params(labelbottom=True)  # also above an empty place
    return figure, grid[:count]


def label_outside(grid: Sequence[Axes], x: str, y: str, most_across: int = ACROSS) -> None:
    """Name the axes once for each column and row of a figure's panels, which `panels` has made."""
    across = min(len(grid), most_across)
    for place, axes in enumerate(grid):
        axes.set_xlabel(x if place >= len(grid) - across else "")
        axes.set_ylabel(y if place % across == 0 else "")


def legend(figure: Figure, axes: Sequence[Axes], order: Iterable[str] = (), height: float = 0.17) -> None:
    """One legend for all panels, below them, for which the figure grows.

    Args:
        figure: of the panels.
        axes: the panels.
        order: of the entries; those that are not in it come after, as they are met.
        height: of a row, in inches.
    """
    entries: dict[str, Any] = {}
    for each in axes:
        for handle, label in zip(*each.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if not entries:
        return
    entries = {label: entries[label] for label in (*filter(entries.__contains__, order), *entries)}
    names = [_short(label) for label in entries]
    longest = max(map(len, names))
    fitting = max(1, min(7, int(figure.get_figwidth() / (0.075 * longest + 0.5))))
    rows = math.ceil(len(entries) / fitting)
    columns = math.ceil(len(entries) / rows)
    figure.set_figheight(figure.get_figheight() + height * rows + 0.1)
    figure.legend(
        list(entries.values()), names, loc="outside lower center", ncols=columns, frameon=False, fontsize=8
    )


def _short(label: str) -> str:
    """A label that leaves room for others; its ends tell most."""
    half = LONGEST_ENTRY // 2
    return label if len(label) <= LONGEST_ENTRY else f"{label[:half]}…{label[-half:]}"


def arm_style(label: str, number: int) -> Mapping[str, Any]:
    """How the line of a study's arm is drawn: successive ones differ in colour and in dash.

    Args:
        label: of the arm.
        number: its place among those of the study that are compared, the same in all figures.
    """
    look = {"color": f"C{number % COLORS}", "linestyle": LINES[number % len(LINES)], "linewidth": 1.4}
    return {"label": label, **look}


def styles(study: Study) -> Mapping[str, Mapping[str, Any]]:
    """How each line is drawn, by its arm's label, in all figures of a study; references grey."""
    found = {arm.label: arm_style(arm.label, number) for number, arm in enumerate(study.compared)}
    for number, arm in enumerate(study.references):
        found[arm.label] = {**arm_style(arm.label, number), "color": "0.45", "linewidth": 1.2}
    return found


def count_steps(axes: Axes) -> None:
    """Ticks of an axis of steps."""
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: steps(value)))


def some_delays(delays: Sequence[float], most: int = MOST_PANELS) -> list[float]:
    """Delays that there is room for: all, or the shortest and the longest ones evenly chosen between."""
    if len(delays) <= most:
        return list(delays)
    return [delays[round(place * (len(delays) - 1) / (most - 1))] for place in range(most)]


def in_seconds(delay: float) -> str:
    """A delay in words."""
    return f"{delay:g} s" if delay else "no delay"
