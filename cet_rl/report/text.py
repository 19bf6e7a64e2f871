"""Text from run folders, which may hold anything, made fit for a page and a figure; and numbers as text."""

from __future__ import annotations

import math

LONGEST = 300
"""Characters of a text from a folder that are shown."""


def clean(text: object, longest: int = LONGEST) -> str:
    """One line that can be shown: without control characters, and cut where it is too long.

    It is not escaped: whoever puts it into HTML does that.
    """
    line = " ".join(str(text).split())
    line = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in line)
    return line if len(line) <= longest else line[: longest - 1] + "…"


def number(value: float | None, digits: int) -> str:
    """A number with so many decimals; a dash for None and what is not finite."""
    if value is None or not math.isfinite(value):
        return "–"
    if abs(value) >= 1e7:
        return f"{value:.3g}"
    text = f"{value:,.{digits}f}"
    # A small number is not shown as zero.
    return f"{value:.2g}" if value and not float(text.replace(",", "")) else text


def counted(count: int, noun: str) -> str:
    """A count with its noun: "1 run", "3 runs"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def listed(items: list[str], most: int = 12) -> str:
    """Items with commas; so many of them, and how many more there are."""
    shown = ", ".join(items[:most])
    return f"{shown} and {len(items) - most:,} more" if len(items) > most else shown


def steps(value: float) -> str:
    """A count of steps, short: 500, 20 k, 1.5 M."""
    for unit, name in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= unit:
            return f"{value / unit:.4g}{name}"
    return f"{value:.4g}"
