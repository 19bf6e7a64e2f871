"""Colours, markers and dashes of all figures: an arm looks the same wherever it is drawn.

Colour and marker stand for the kind of trace, the rule or the agent; the dash stands for a trace's order, or tells
two related rules apart. No two arms differ in colour alone, and colours also differ in lightness, for grey print
and for readers who confuse red and green. Each colour has a counterpart for a dark background.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

INK, SOFT, FAINT, PAPER = "#222222", "#6e6e6e", "#dddddd", "#ffffff"
"""Colours of text and axes, of less important lines and text, of grids, and of the background."""

COLORS = {
    **{"#0a6fb5": "#4596dd", "#d95f02": "#ff8a3d", "#9b2f7f": "#e27ac4", "#12a37a": "#2fc79a"},
    **{"#4fb3e8": "#8accfa", "#c99700": "#f0c74a", "#3b2a91": "#9d8cf2", "#7a3b12": "#c98b5e"},
}
"""Colours of arms, each with its counterpart for a dark background."""

DARK = {**COLORS, INK: "#e4e4e4", SOFT: "#a2a2a2", FAINT: "#3a3d42", PAPER: "#16181c"}
"""All colours of figures, each with its counterpart for a dark background."""

MARKERS = "os^DvPX*"  # one for each colour
DASHES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (7, 1.2)), (0, (3, 1.2, 1, 1.2, 1, 1.2)), (0, (1, 3)))
ORDERS = (10, 5, 2, 20, 6, 3, 7)
"""The orders of traces that `DASHES` stand for, in that order; other orders share the dashes."""

BLUE, ORANGE, PURPLE, GREEN, SKY, YELLOW, INDIGO, BROWN = range(8)
PLAIN = {"perfect": INK, "none": SOFT, "rtrl": INK, "fixed-w": SOFT}
"""Reference arms, which are drawn in black or grey without markers."""

KINDS: Mapping[str, tuple[int, int]] = {
    **{"cet": (BLUE, 0), "et": (ORANGE, 0), "legendre": (PURPLE, 0), "optimal": (GREEN, 0), "sharp": (SKY, 0)},
    **{"ltp-ltd": (YELLOW, 0), "sb3:a2c": (INDIGO, 0), "sb3:ppo": (BROWN, 0)},
    **{"bptt": (BLUE, 0), "future-bptt": (BLUE, 1), "rflo": (ORANGE, 0), "dni": (PURPLE, 0), "dni-b": (PURPLE, 1)},
    **{"kf-rtrl": (GREEN, 0), "r-kf": (GREEN, 1), "uoro": (SKY, 0), "kernl": (YELLOW, 0)},
}
"""Indices of colour and dash of traces, rules and agents; for others they follow from the name."""


class Identity(NamedTuple):
    """Hold what decides the look of an arm: the name of its trace, rule or agent, and the order of its trace."""

    kind: str
    order: int | None = None


def looks(arms: Mapping[str, Identity]) -> dict[str, dict[str, Any]]:
    """Return keyword arguments of `Axes.plot` for each arm: the look of its identity, or a free one near it.

    Up to 56 arms have different looks.
    """
    found: dict[str, dict[str, Any]] = {}
    taken: set[tuple[str, int]] = set()
    known = (None, *ORDERS)  # arms with these orders choose first, so that no other arm takes their look
    for label, (kind, order) in sorted(arms.items(), key=lambda arm: arm[1].order not in known):
        place, dash = KINDS.get(kind, (zlib.crc32(kind.encode()) % len(COLORS), 0))
        dash += 0 if order is None else ORDERS.index(order) if order in ORDERS else order
        colors = [*COLORS][place:] + [*COLORS][:place]
        wanted = [(color, (dash + step) % len(DASHES)) for color in colors for step in range(len(DASHES))]
        if kind in PLAIN:
            dashes = range(kind == "none", len(DASHES) + (kind == "none"))
            wanted = [(PLAIN[kind], each % len(DASHES)) for each in dashes] + wanted
        color, dash = next((each for each in wanted if each not in taken), wanted[0])
        taken.add((color, dash))
        marker = MARKERS[[*COLORS].index(color)] if color in COLORS else ""
        found[label] = {"color": color, "linestyle": DASHES[dash], "marker": marker, "linewidth": 1.4}
    return {label: found[label] for label in arms}


def follow_the_page(svg: str) -> str:
    """Return an SVG whose colours fit the background that its reader has chosen, light or dark."""
    for color in DARK:
        svg = svg.replace(color, f"var(--c{color[1:]})")
    light, dark = (
        "".join(f"--c{color[1:]}:{shown};" for color, shown in pairs)
        for pairs in (zip(DARK, DARK, strict=True), DARK.items())
    )
    style = f"<style>:root{{{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}</style>"
    head, tag, rest = svg.partition("<svg")
    inside, end, body = rest.partition(">")
    return f"{head}{tag}{inside}{end}{style}{body}"
