"""Format texts from run folders, numbers and lists for the page and the figures."""

from __future__ import annotations

import math
from collections.abc import Collection

LONGEST = 300  # characters of a text from a run folder that are shown


def clean(text: object, longest: int = LONGEST) -> str:
    """Return a text as one printable line of at most `longest` characters, with control characters replaced.

    It is not escaped for HTML: the page's template does that.
    """
    line = " ".join(str(text).split())
    line = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in line)
    return line if len(line) <= longest else line[: longest - 1] + "…"


def number(value: float | None, digits: int) -> str:
    """Format a number with the given decimals; None and non-finite values give a dash."""
    if value is None or not math.isfinite(value):
        return "–"
    if abs(value) >= 1e7:
        return f"{value:.3g}"
    text = f"{value:,.{digits}f}"
    # A small number is not shown as zero.
    return f"{value:.2g}" if value and not float(text.replace(",", "")) else text


def counted(count: int, noun: str) -> str:
    """Format a count with its noun: "1 run", "3 runs"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def listed(items: list[str], most: int = 12) -> str:
    """Join items with commas; after `most` of them add how many more there are."""
    shown = ", ".join(items[:most])
    return f"{shown} and {len(items) - most:,} more" if len(items) > most else shown


def sentence(said: str, items: list[str]) -> list[str]:
    """Return a sentence that lists items, ["Not drawn: 2 s, 8 s."], or no sentence without any."""
    return [f"{said}: {listed(items)}."] * bool(items)


def span(counts: Collection[int]) -> str:
    """Format the smallest and the largest of some counts: "3", "3 to 7"."""
    least, most = min(counts), max(counts)
    return str(least) if least == most else f"{least} to {most}"


def in_seconds(delay: float) -> str:
    """Format a delay in seconds: "8 s", or "no delay"."""
    return f"{delay:g} s" if delay else "no delay"
