"""Find the sharpest memory that n states can have: damped oscillators, a trace of our own.

The share F of a kernel's energy at the delay D (`cet_rl.traces.sharp`) depends on the memory's poles p_i alone:

    F = bᴴ G⁻¹ b        b_i = p_i^D        G_ij = Σ_ℓ (p_i p̄_j)^ℓ = 1 / (1 - p_i p̄_j)

and the kernel that has it is g_ℓ = Σ_i w̄_i p_i^ℓ with w = G⁻¹ b. `Optimal` is its maximum over the poles. Where
the delay is known only up to a share t of it, b is the mean of p_i^ℓ over the whole steps from D(1-t) to D(1+t),
and the kernel is the one that is nearest to a delay of that many steps on average.

We write s = D log p. G is a Cauchy matrix, so that its Cholesky factor has a closed form in the differences of the
poles (the Takenaka-Malmquist functions of the delay line's rational approximation): without it G loses its
definiteness at 20 states.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import scipy  # whose parts are loaded on first use: they take half a second

from cet_rl.runs.values import checked
from cet_rl.traces.base import FloatArray, OrderedTrace, Transition
from cet_rl.traces.sharp import shift_register
from cet_rl.traces.timing import RELATIVE_TOLERANCE

ComplexArray = npt.NDArray[np.complex128]

STARTS = ((5.5, 1.9), (5.5, 1.0), (6.0, 0.5), (4.5, 3.0), (3.5, 3.0))
"""Spacing and decay of s in the fans of poles that the search starts from.

Without tolerance the first ends at the best optimum that 60 random starts find (orders 2 to 20, delays of n to
1,000 steps); with one, they end at different ones, of which the best is taken: within 1 % of the random starts'.
"""

_APART = 0.5
"""Least distance of a pair's Im s from the real axis. With a tolerance and almost enough states for a shift
register, pairs want to meet there or to forget at once; their readouts would explode."""

_SLOWEST, _FASTEST = 0.05, 3.0  # least decay of a pole over the delay, and largest over a step

_LARGEST_READOUT = 1e3
"""Weight of a unit pole beyond which another optimum is preferred, as it costs digits in float32."""


@dataclass(frozen=True)
class Optimal(OrderedTrace):
    """Put the largest possible share of the kernel's energy at the delay, with n states of damped oscillators.

    Each oscillator is a pair of states that rotates and decays; if n is odd, one state more only decays. At order
    10 the kernel has negative lobes of a fifth to a third of its peak, and a negative echo near 2.2 D. Off the
    delay it forgets quickly, and turns negative within 20 %: give a `tolerance` where it is not known exactly.

    Attributes:
        order: n ≥ 1. Where there are enough of them, a shift register, which is perfect. One state alone is the
            classical trace with the best decay, √(D/(D+1)).
        tolerance: t in [0, 1), relative uncertainty of the delay: the trace is made for all delays from D(1-t) to
            D(1+t) alike.
    """

    tolerance: float = 0.0
    least_order: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        checked(self.tolerance, float, "tolerance of Optimal")
        if not 0 <= self.tolerance < 1:
            raise ValueError(f"tolerance of Optimal must lie in [0, 1), got {self.tolerance:g}")

    @property
    def delay_range(self) -> tuple[int, int]:
        """Return the first and last delay that it is made for, in steps."""
        spread = int(self.tolerance * self.delay_steps * (1 + RELATIVE_TOLERANCE))
        return self.delay_steps - spread, self.delay_steps + spread

    @property
    def poles(self) -> ComplexArray | None:
        """Return the poles p, of each pair the one with the positive angle; None for a shift register."""
        if self.order > self.delay_range[1]:
            return None
        return np.exp(_best_poles(self.order, *self.delay_range) / self.delay_steps)

    def transition(self) -> Transition:
        """Return (M, K, C), normalised; each pair of states turns and decays by itself."""
        first, last = self.delay_range
        n = min(self.order, last + 1)
        if n > last:
            return Transition(*shift_register(n), (np.arange(n) >= first).astype(np.float64))
        upper = _best_poles(self.order, first, last)
        delay, pairs = self.delay_steps, n // 2
        w = _readout(upper, delay, first, last)[0]
        M, K, C = np.zeros((n, n)), np.zeros(n), np.zeros(n)
        for k, pole in enumerate(np.exp(upper / delay)):
            size = np.sqrt(-np.expm1(2 * upper[k].real / delay))  # so that a state's energy is about one
            i = 2 * k
            K[i] = size
            if k < pairs:
                M[i : i + 2, i : i + 2] = [[pole.real, -pole.imag], [pole.imag, pole.real]]
                C[i : i + 2] = 2 * w[k].real / size, 2 * w[k].imag / size
            else:
                M[i, i], C[i] = pole.real, w[-1].real / size
        return Transition(M, K, C)


def _with_conjugates(upper: ComplexArray) -> ComplexArray:
    """Return all n of s, given those with a positive angle and, last and of no angle, the one of odd orders."""
    pairs = upper[upper.imag != 0]
    return np.concatenate([pairs, pairs.conj(), upper[upper.imag == 0]])


def _cholesky(s: ComplexArray, delay: int) -> tuple[ComplexArray, ComplexArray]:
    """Return the lower factor L of G = L Lᴴ and the matrix 1 - p_i p̄_j, both (n, n).

    L_ik = √(1 - |p_k|²) / (1 - p_i p̄_k) · Π_{j<k} (p_i - p_j) / (1 - p_i p̄_j)
    """
    kept = -np.expm1((s[:, None] + s.conj()) / delay)
    apart = np.exp(s / delay) * np.expm1((s[:, None] - s) / delay)
    products = np.cumprod(apart / kept, axis=1)[:, :-1]
    products = np.concatenate([np.ones((len(s), 1)), products], axis=1)
    return np.tril(products * np.sqrt(kept.diagonal().real) / kept), kept


def _solve(factor: ComplexArray, right: ComplexArray, trans: str = "N") -> ComplexArray:
    return np.asarray(scipy.linalg.solve_triangular(factor, right, lower=True, trans=trans, check_finite=False))


def _targets(s: ComplexArray, delay: int, first: int, last: int) -> tuple[ComplexArray, ComplexArray]:
    """Return b and its derivative by s: means of p^ℓ and of ℓ/D p^ℓ over ℓ = first … last, shape (n,).

    They are sums of geometric series of m terms, p^first (p^m - 1) / (p - 1).
    """
    x: ComplexArray = s / delay
    count = last - first + 1
    if count == 1:
        power: ComplexArray = np.exp(x * first)
        return power, np.multiply(power, first / delay)
    whole: Any = np.expm1(x * count)
    one: Any = np.expm1(x)
    mean: ComplexArray = np.exp(x * first) * whole / one / count
    slope: ComplexArray = (first + count * (whole + 1) / whole - (one + 1) / one) / delay
    return mean, mean * slope


def _readout(upper: ComplexArray, delay: int, first: int, last: int) -> tuple[ComplexArray, float]:
    """Return w, shape (n,), and the share of energy that its kernel has in fact, 0 if it cannot be computed."""
    s = _with_conjugates(upper)
    factor, kept = _cholesky(s, delay)
    b = _targets(s, delay, first, last)[0]
    try:
        w = _solve(factor, _solve(factor, b), trans="C")
    except scipy.linalg.LinAlgError:  # poles that coincide
        return b, 0.0
    pairs = len(s) // 2
    w[:pairs] = (w[:pairs] + w[pairs : 2 * pairs].conj()) / 2  # equal but for rounding, which may be all there is
    w[pairs : 2 * pairs] = w[:pairs].conj()
    w[2 * pairs :] = w[2 * pairs :].real
    return w, float(abs(np.vdot(w, b)) ** 2 / np.vdot(w, (1 / kept) @ w).real)


def loss_and_gradient(
    parameters: FloatArray, order: int, delay: int, first: int, last: int
) -> tuple[float, FloatArray]:
    """Return -F and its gradient, for the mean b over delays of `first` to `last` steps.

    With H_ij = ∂G_ij / ∂s_i, dF = 2 Re Σ_i w̄_i (∂b_i/∂s_i - (H w)_i) ds_i. The parameters are log(-Re s) of each
    pair, Im s of each pair and, for an odd order, log(-Re s) of the pole without a partner.
    """
    try:
        with np.errstate(all="ignore"):
            upper = _upper(parameters, order)
            s, pairs = _with_conjugates(upper), order // 2
            factor, kept = _cholesky(s, delay)
            b, slope = _targets(s, delay, first, last)
            y = _solve(factor, b)
            w = _solve(factor, y, trans="C")
            H = np.exp((s[:, None] + s.conj()) / delay) / kept**2 / delay
            q = w.conj() * (slope - H @ w)
            gradient = np.concatenate(
                [4 * (q * s.real).real[:pairs], -4 * q.imag[:pairs], 2 * (q * s.real).real[2 * pairs :]]
            )
    except scipy.linalg.LinAlgError:  # poles that coincide
        return 0.0, np.zeros_like(parameters)
    share = float(np.vdot(y, y).real)
    bound = min(order / (first + 1), 1 / (last - first + 1))
    if not (share <= bound * (1 + RELATIVE_TOLERANCE) and np.isfinite(gradient).all()):  # lost to rounding
        return 0.0, np.zeros_like(parameters)
    return -share, -gradient


def _upper(parameters: FloatArray, order: int) -> ComplexArray:
    pairs = order // 2
    turning = -np.exp(parameters[:pairs]) + 1j * parameters[pairs : 2 * pairs]
    return np.concatenate([turning, -np.exp(parameters[2 * pairs :])])


@lru_cache(maxsize=256)
def _best_poles(order: int, first: int, last: int) -> ComplexArray:
    """Return s of the best poles, of each pair the one with the positive angle, the pairs by angle."""
    delay = (first + last) // 2
    if order == 1 and first == last:
        return np.array([-0.5 * delay * np.log1p(1 / delay)], dtype=complex)
    found, pairs = [], order // 2
    decays = (np.log(_SLOWEST), np.log(_FASTEST * delay))
    bounds = [decays] * pairs + [(_APART, np.pi * delay - _APART)] * pairs + [decays] * (order % 2)
    for spacing, decay in STARTS[:1] if first == last else STARTS:
        place = np.arange(order)[::-1][: order // 2 + order % 2] - (order - 1) / 2
        decayed = decay * np.sqrt(1 - 0.8 * (place / max(order / 2, 1)) ** 2)
        turning = place > 0
        start = np.concatenate([np.log(decayed[turning]), spacing * place[turning], np.log(decayed[~turning])])
        result = scipy.optimize.minimize(
            loss_and_gradient,
            start,
            args=(order, delay, first, last),
            jac=True,
            bounds=bounds,
            method="L-BFGS-B",
            options={"maxiter": 500, "maxfun": 1000, "ftol": 1e-15, "gtol": 1e-9, "maxcor": 30},
        )
        found.append(_upper(result.x, order))

    def merit(upper: ComplexArray) -> tuple[bool, float]:
        w, share = _readout(upper, delay, first, last)
        return bool(abs(w).max() <= _LARGEST_READOUT), share

    best = max(found, key=merit)  # what it has in fact: the loss of poles that nearly coincide is lost to rounding
    return np.concatenate([best[np.argsort(best[:pairs].imag)], best[pairs:]])
