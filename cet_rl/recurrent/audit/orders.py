"""Write down how a number grows with a network: n²m, n² + nm, Tn + Tm.

n is the number of units, m = n + n_in + 1 that of columns of W, T a stretch of time in steps.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from math import comb
from typing import NamedTuple

import numpy as np

UNITS, COLUMNS = range(2, 8), range(9, 13)
"""The n and m at which `leading_terms` looks: enough for degree 5 in n and 3 in m."""

_SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹"


class Term(NamedTuple):
    """Hold one term, n^units m^columns T^window."""

    units: int = 0
    columns: int = 0
    window: int = 0

    @property
    def degree(self) -> int:
        """Return how it grows with the size of the network, n and m alike."""
        return self.units + self.columns

    def __str__(self) -> str:
        powers = (("T", self.window), ("n", self.units), ("m", self.columns))
        factors = [letter + (_SUPERSCRIPTS[power] if power > 1 else "") for letter, power in powers if power]
        return "".join(factors) or "1"


@dataclass(frozen=True)
class Order:
    """Hold the terms of a number that grow fastest."""

    terms: tuple[Term, ...]  # of one degree, without their coefficients; none for zero

    @classmethod
    def of(cls, terms: Iterable[Term]) -> Order:
        """Return what remains of a sum for large networks and long stretches of time."""
        all_of_them = set(terms)
        degree = max((term.degree for term in all_of_them), default=0)
        largest = {term for term in all_of_them if term.degree == degree}
        kept = (t for t in largest if not any(o[:2] == t[:2] and o.window > t.window for o in largest))
        return cls(tuple(sorted(kept, key=lambda term: (-term.units, term.columns))))

    @classmethod
    def parse(cls, text: str) -> Order:
        """Read what `str` writes: letters n, m and T with superscripts, joined by +; 0 and 1 for no growth."""
        words = [] if text.strip() == "0" else [word.strip() for word in text.split("+")]
        if not all(re.fullmatch(rf"1|([nmT][{_SUPERSCRIPTS}]*)+", word) for word in words):
            raise ValueError(f"an order is written like n²m, n² + nm or Tn + Tm, got {text!r}")
        terms = []
        for word in words:
            powers = dict.fromkeys("nmT", 0)
            for letter, power in re.findall(rf"([nmT])([{_SUPERSCRIPTS}]*)", word):
                powers[letter] += int("".join(str(_SUPERSCRIPTS.index(digit)) for digit in power) or "1")
            terms.append(Term(*powers.values()))
        return cls.of(terms)

    @property
    def degree(self) -> int:
        """Return the exponent of the network's size, n and m alike; 0 for zero."""
        return self.terms[0].degree if self.terms else 0

    @property
    def growth(self) -> tuple[int, int] | None:
        """Return the exponents of the network's size and of T; None for zero."""
        return (self.degree, max(term.window for term in self.terms)) if self.terms else None

    def __str__(self) -> str:
        return " + ".join(map(str, self.terms)) or "0"


def leading_terms(count: Callable[[int, int, int], int], windows: Sequence[int] = (0,)) -> Order | None:
    """Return the order of a number `count(n, m, T)`; None if it is no polynomial.

    `windows` are the T to look at, neighbours. Differences of a polynomial are exact, so that no exponent has to
    be read off a slope.
    """
    grid = np.array([[[count(n, m, window) for window in windows] for m in COLUMNS] for n in UNITS])
    exponents = list(product(range(len(UNITS)), range(len(COLUMNS))))
    differences = {(i, j): np.diff(np.diff(grid, i, 0), j, 1)[0, 0] for i, j in exponents}
    right, down = UNITS[-1] + 3, COLUMNS[-1] + 2  # beyond the grid, where a polynomial is known from it
    known = sum(
        comb(right - UNITS[0], i) * comb(down - COLUMNS[0], j) * found for (i, j), found in differences.items()
    )
    if (known != [count(right, down, window) for window in windows]).any():
        return None
    degree = max((i + j for (i, j), found in differences.items() if found.any()), default=0)
    terms = []
    for (i, j), found in differences.items():
        series = {power: np.diff(found, power)[0] for power in range(len(windows))}
        window = max((power for power, value in series.items() if value), default=0)
        if i + j == degree and series[window] > 0:
            terms.append(Term(i, j, window))
    return Order.of(terms)
