"""Write down how a number grows with a network: n²m, n² + nm, Tn + Tm.

n is the number of units, m = n + n_in + 1 that of columns of W, T a stretch of time in steps.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import comb, factorial
from typing import NamedTuple

import numpy as np

UNITS, INPUTS = range(2, 8), range(1, 5)
"""Where `leading_terms` looks: enough for degree 5 in n and 3 in n_in."""

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

    def times(self, other: Term) -> Term:
        """Return the product of two."""
        return Term(*(a + b for a, b in zip(self, other, strict=True)))

    def __str__(self) -> str:
        factors = {"T": self.window, "n": self.units, "m": self.columns}
        return "".join(_power(letter, power) for letter, power in factors.items()) or "1"


def _power(letter: str, power: int) -> str:
    return "" if power == 0 else letter + (_SUPERSCRIPTS[power] if power > 1 else "")


@dataclass(frozen=True)
class Order:
    """Hold the terms of a number that grow fastest.

    Attributes:
        terms: of one degree, without their coefficients; none for zero.
    """

    terms: tuple[Term, ...]

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
        """Read what `str` writes: letters n, m and T with superscripts, joined by +; 0 and 1 for no growth.

        Raises:
            ValueError: for anything else.
        """
        if text.strip() == "0":
            return cls(())
        return cls.of(_parse_term(word.strip(), text) for word in text.split("+"))

    @property
    def growth(self) -> tuple[int, int] | None:
        """Exponents of the network's size and of T; None for zero."""
        if not self.terms:
            return None
        return self.terms[0].degree, max(term.window for term in self.terms)

    def __str__(self) -> str:
        return " + ".join(map(str, self.terms)) or "0"


def _parse_term(word: str, text: str) -> Term:
    if word == "1":
        return Term()
    if not re.fullmatch(rf"([nmT][{_SUPERSCRIPTS}]*)+", word):
        raise ValueError(f"an order is written like n²m, n² + nm or Tn + Tm, got {text!r}")
    powers = {"n": 0, "m": 0, "T": 0}
    for letter, power in re.findall(rf"([nmT])([{_SUPERSCRIPTS}]*)", word):
        powers[letter] += int("".join(str(_SUPERSCRIPTS.index(digit)) for digit in power) or "1")
    return Term(powers["n"], powers["m"], powers["T"])


def leading_terms(count: Callable[[int, int], int]) -> dict[Term, int] | None:
    """Return the terms of highest degree of a number that is a polynomial in n and n_in, with their coefficients.

    Differences of a polynomial are exact, so that no exponent has to be read off a slope.

    Args:
        count: the number for n units and n_in inputs.

    Returns:
        Coefficients of n^i m^j; none if the number is always zero, and None if it is no polynomial.
    """
    grid = np.array([[count(n, k) for k in INPUTS] for n in UNITS], dtype=object)
    differences = np.array(
        [[np.diff(np.diff(grid, i, 0), j, 1)[0, 0] for j in range(len(INPUTS))] for i in range(len(UNITS))]
    )
    beyond = UNITS[-1] + 3, INPUTS[-1] + 2
    if count(*beyond) != _newton(differences, beyond[0] - UNITS[0], beyond[1] - INPUTS[0]):
        return None
    degree = max((i + j for i, j in np.argwhere(differences != 0).tolist()), default=0)
    found: dict[Term, int] = {}
    for j in range(min(degree + 1, len(INPUTS))):
        i = degree - j
        if i >= len(UNITS) or not differences[i, j]:
            continue
        # n^i n_in^j, and n_in is m - n where both are large
        coefficient = differences[i, j] // (factorial(i) * factorial(j))
        for power in range(j + 1):
            term = Term(i + j - power, power)
            found[term] = found.get(term, 0) + coefficient * comb(j, power) * (-1) ** (j - power)
    return {term: coefficient for term, coefficient in found.items() if coefficient > 0}


def _newton(differences: np.ndarray, right: int, down: int) -> int:
    """Return the polynomial of these differences, so many steps from its first point."""
    rows, columns = differences.shape
    return int(
        sum(comb(right, i) * comb(down, j) * differences[i, j] for i in range(rows) for j in range(columns))
    )
