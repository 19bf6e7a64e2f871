"""How far an axis of losses goes, where a few runs diverge."""

from __future__ import annotations

from collections.abc import Sequence

TIMES = 5.0
"""An axis that would be so many times as long for a few runs leaves them out."""

SHARE = 0.1
"""Of all runs that may be left out; one always."""

LEAST = 4
"""Runs from which on one may be left out."""

MARGIN = 0.04
"""Of an axis beyond what is shown, on each side, relative to its length."""

Range = tuple[float, float]
"""The lowest and the highest value of a run."""


def highest(ranges: Sequence[Range]) -> float | None:
    """How far up an axis goes that leaves out the few runs which would make it many times as long.

    Only a loss knows no bound: a return or an accuracy far below all others is a result, and is shown.

    Args:
        ranges: of all runs.

    Returns:
        The highest value of the others; None where none is left out.
    """
    ordered = sorted(ranges, key=lambda each: each[1], reverse=True)
    found = None
    for count in range(1, 1 + max(1, int(SHARE * len(ordered)))):
        if len(ordered) < max(LEAST, count + 1):
            break
        more, fewer = _length(ordered[count - 1 :]), _length(ordered[count:])
        if fewer > 0 and more >= TIMES * fewer:
            found = ordered[count][1]
    return found


def _length(ranges: Sequence[Range]) -> float:
    return max(high for _, high in ranges) - min(low for low, _ in ranges)
