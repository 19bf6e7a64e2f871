"""The closed form over a factored past: no states at the synapses, only the layer's inputs and derivatives.

A kernel that vanishes after L lags needs (f', x) of the last L steps and nothing else. With A and B of
`cet_rl.credit.chunk`, and events s of this chunk and of before,

    p_s = f'_s ⊙ Σ_{u≥s} g_{u-s} A_u δ_u,  s = -L … T-1        ΔW = Σ_env [ Σ_s p_s x_sᵀ + γλ(1 - s_0) A_0 e⁰ ]

Exact for a delay line (perfect memory, no trace at all), and to rounding for every other kernel. Its cost in time
and memory grows with the kernel's support, but not with the number of states nor, in memory, with the number of
synapses. For a convolution, whose outer products are sums over positions too, f', x and δ are maps and p_s of a
position is that of its own f' and δ: the sum over s is one gradient of convolution weights.

"history" keeps e at every synapse. "factored" keeps it as weights of the past, e = Σ_env Σ_s ε_s x_sᵀ with one
vector ε_s a step, for the last W steps, after which the kernel convolved with (γλ)^l has vanished; then

    p_s = f'_s ⊙ Σ_u g_{u-s} A_u δ_u + γλ(1 - s_0) A_0 ε_s        ΔW = Σ_env Σ_s p_s x_sᵀ,  s = -W … T-1
    ε_s ← f'_s ⊙ Σ_u g_{u-s} B_u δ_u + γλ(1 - s_0) B_0 ε_s

and e itself is never formed: one product with W + T rows in place of two with L + T, and no pass over synapses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from cet_rl.credit.chunk import correlation_matrix, forget_oldest, sum_of_environments, sum_weights
from cet_rl.credit.costs import has_factors
from cet_rl.credit.geometry import Dense, Geometry, Parts, matmul
from cet_rl.credit.signals import Signals, SynapseState
from cet_rl.traces.base import FloatArray, Trace

_BLOCK = 1 << 20
"""Floats of a convolution's postsynaptic maps taken at once on a CPU: four megabytes, which stay in its cache."""

_BLOCK_ON_DEVICE = 1 << 24  # floats taken at once on other devices, where only memory counts

_ROWS = 64
"""Events taken at once on a CPU: few enough to skip most zeros, enough to keep the product's kernels busy."""

_LEAST_WORK = 1 << 22  # multiply-adds below which one product with the zeros is faster than several without


def eligibility_window(kernel: FloatArray, decay: float, dtype: torch.dtype) -> int:
    """Return W, the steps after which an event's weight in e is below the rounding of a sum over it.

    That weight is at most |g| convolved with (γλ)^l, which past the end of the kernel falls by γλ a step.
    """
    if not decay:
        return len(kernel) - 1
    magnitude = np.abs(kernel)
    last = float(magnitude @ decay ** np.arange(len(kernel))[::-1])  # at the kernel's last lag
    window = len(kernel)
    for _ in range(3):  # √W roundings, see `visible_support`
        visible = np.sqrt(window) * torch.finfo(dtype).eps * magnitude.sum()
        window = len(kernel) + max(0, int(np.ceil(np.log(visible / last) / np.log(decay))))
    return window


def visible_support(trace: Trace, dtype: torch.dtype) -> tuple[int, int]:
    """Return the lags [first, last) outside of which a kernel's area is below the rounding of a sum over it.

    That is about √L eps of `dtype` for L lags, and eps where sums are kept in a wider type. In float32 this is
    half of the support in float64, and so half of the cost of a factored past.
    """
    first, last = trace.support
    magnitude = trace.kernel(last).abs().numpy()
    roundings = 1.0 if dtype.itemsize < torch.float32.itemsize else np.sqrt(len(magnitude))
    outside = roundings * torch.finfo(dtype).eps * magnitude.sum()
    begin = int(np.searchsorted(np.cumsum(magnitude), outside, side="right"))
    end = last - int(np.searchsorted(np.cumsum(magnitude[::-1]), outside, side="right"))
    return max(first, begin), min(last, end)


class Correlation:
    """Correlate a kernel with errors: a product over time with a banded Toeplitz matrix of its values.

    An error that arrives at u adds g_{u-s} δ_u to what happened at s. Nothing that happens after u gets credit
    from it, and kernels forget, so half or more of a plain product would be with zeros; on feature maps that costs
    as much as a convolution. A CPU therefore takes the band in blocks of rows.

    Args:
        matrix: g at [event, error], shape (S, U).
        dtype: of the signals.
        device: of the signals.
        factors: of the first rows of the matrix, (R, n) and (n, U), if those are a product with less to compute.
    """

    def __init__(
        self,
        matrix: FloatArray,
        dtype: torch.dtype,
        device: torch.device,
        factors: tuple[FloatArray, FloatArray] | None = None,
    ) -> None:
        left, right = factors or (matrix[:0, :0], matrix[:0])
        self._left, self._right = (torch.from_numpy(x).to(device, dtype) for x in (left, right))
        self.matrix = torch.from_numpy(np.ascontiguousarray(matrix)).to(device, dtype)
        band = matrix != 0
        filled = band.any(1)
        self._first = np.where(filled, band.argmax(1), band.shape[1])
        self._last = np.where(filled, band.shape[1] - band[:, ::-1].argmax(1), 0)
        self._blocks: dict[tuple[int, int], list[tuple[int, int, int, Tensor]]] = {}

    def __call__(
        self, errors: Tensor, first: int = 0, last: int | None = None, *, out: Tensor | None = None
    ) -> Tensor:
        """Return Σ_u g_{u-s} δ_u for the events s from `first` up to `last`: (U, F) to (S, F), also as `out`."""
        last = len(self.matrix) if last is None else min(last, len(self.matrix))
        out = errors.new_empty(last - first, errors.shape[1]) if out is None else out
        factored = max(min(last, len(self._left)) - first, 0)
        if factored:
            torch.mm(self._left[first : first + factored], matmul(self._right, errors), out=out[:factored])
        if factored == len(out):
            return out
        first, sums = first + factored, out[factored:]
        work = (last - first) * errors.numel()
        if errors.device.type != "cpu" or work < _LEAST_WORK:
            torch.mm(self.matrix[first:last], errors, out=sums)
            return out
        for begin, end, column, block in self._band(first, last):
            if block.numel():
                torch.mm(block, errors[column : column + block.shape[1]], out=sums[begin - first : end - first])
            else:
                sums[begin - first : end - first] = 0
        return out

    def _band(self, first: int, last: int) -> list[tuple[int, int, int, Tensor]]:
        """Return blocks (first row, last row, first column, values) that hold all non-zeros of their rows."""
        if (first, last) not in self._blocks:
            blocks = []
            for begin in range(first, last, _ROWS):
                end = min(begin + _ROWS, last)
                left, right = int(self._first[begin:end].min()), int(self._last[begin:end].max())
                blocks.append((begin, end, left, self.matrix[begin:end, left : max(left, right)].contiguous()))
            self._blocks[first, last] = blocks
        return self._blocks[first, last]


@dataclass
class HistoryConstants:
    """Hold a trace's kernel over its support, its correlations by chunk length, and the layer's geometry.

    Attributes:
        support: lags [first, last); the layer delays (f', x) by the first before anything else.
        geometry: how the layer sums its outer products.
        past: L = last - first - 1, the number of earlier steps that still matter.
    """

    trace: Trace
    dtype: torch.dtype
    device: torch.device
    support: tuple[int, int]
    geometry: Geometry
    _correlations: dict[int, Correlation] = field(default_factory=dict)

    def __post_init__(self) -> None:
        first, last = self.support
        self.past = last - first - 1
        self._kernel = self.trace.kernel(last)[first:].numpy()
        self.kernel = torch.from_numpy(self._kernel).to(self.device, self.dtype)

    def correlation(self, steps: int) -> Correlation:
        """Return g_{first+u-s} at [s, u], s = -L … steps - 1, shape (L + steps, steps)."""
        if steps not in self._correlations:
            forget_oldest(self._correlations)
            matrix = correlation_matrix(self._kernel, self.past + steps, steps, self.past)
            self._correlations[steps] = Correlation(matrix, self.dtype, self.device, self._factors(steps))
        return self._correlations[steps]

    def _factors(self, steps: int) -> tuple[FloatArray, FloatArray] | None:
        """Return the kernel at [s, u], s = -L … -1, u = 0 … steps - 1, as a product, where that is less work.

        g_{u-s} = (C M^{-s}) (M^u K). Of the n vectors an orthonormal basis is taken, so that rounding is that of a
        product with the kernel itself.
        """
        transition, (first, _) = self.trace.transition(), self.support
        if transition is None or not has_factors(len(transition.K), self.past, steps):
            return None
        reads = np.empty((self.past, len(transition.K)))  # C M^{first - s}
        reads[-1] = transition.C @ np.linalg.matrix_power(transition.M, first + 1)
        for row in reversed(range(self.past - 1)):
            reads[row] = reads[row + 1] @ transition.M
        basis = np.linalg.qr(reads)[0]
        kernel = self.trace.kernel(first + self.past + steps)[first:].numpy()
        return basis, basis.T @ correlation_matrix(kernel, self.past, steps, self.past)


def history(constants: HistoryConstants, state: SynapseState, signals: Signals, decay: float) -> Parts:
    """Run T steps at once: the arguments of `step`, with one `decay` for all weights, and ΔW in parts.

    The RL eligibility is that of the state: `past_eligibility`, weights of the past, or `eligibility`, dense.
    """
    assert state.past_pre is not None
    assert state.past_derivative is not None
    steps, num_envs, n_post = signals.error.shape
    geometry, total, old = constants.geometry, constants.past + steps, len(state.past_pre) - constants.past

    A, B = sum_weights(signals, decay)
    gradient: Parts | None = None
    kept = None if A is None or B is None else decay * (1 - signals.modulation()[1][0]) * torch.stack([A[0], B[0]])
    if kept is not None and state.past_eligibility is None:
        gradient = geometry.split(sum_of_environments(kept[0], state.eligibility))

    # Maps are many times larger than a dense layer's units: environments and steps are taken in blocks.
    at_once, rows_at_once = num_envs, old + total
    if not isinstance(geometry, Dense):
        limit = _BLOCK if signals.error.device.type == "cpu" else _BLOCK_ON_DEVICE
        at_once = min(num_envs, max(1, limit // ((old + total) * n_post)))
        rows_at_once = max(1, limit // (at_once * n_post))
    blocks: list[tuple[Tensor, ...]] = []
    for first in range(0, num_envs, at_once):
        envs = slice(first, first + at_once)
        # Allocated each time: alignment in memory changes how products round, and resumed runs must be equal.
        pre, derivative = (
            torch.cat([past[:, envs], new[:, envs]]) if len(past) else new[:, envs]
            for past, new in ((state.past_pre, signals.pre), (state.past_derivative, signals.derivative))
        )
        error = signals.error[:, envs]
        weights = error[:0] if state.past_eligibility is None else state.past_eligibility[:, envs]
        scales = (weights, weights) if kept is None else kept[:, envs, None].unbind()
        to_gradient, to_eligibility = (
            _Events(constants, derivative, _weighted(constants, sums, envs, error), weights, scale)
            for sums, scale in zip((A, B), scales, strict=True)
        )
        for row in range(0, old + total, rows_at_once):
            p, x = to_gradient[row : row + rows_at_once], geometry.pre(pre[row : row + rows_at_once])
            if signals.immediate is not None and (now := old + constants.past) < row + len(p):
                p[max(now - row, 0) :] += signals.immediate[max(row - now, 0) : row + len(p) - now, envs]
            gradient = add_parts(gradient, geometry.outer_parts(geometry.post(p), x))
        ends = []
        if state.past_eligibility is not None:
            rows = range(steps, old + total, rows_at_once)
            ends = [_joined([to_eligibility[row : row + rows_at_once] for row in rows], 0)]
        elif kept is not None:
            for row in range(0, total, rows_at_once):
                p, x = to_eligibility[row : row + rows_at_once], geometry.pre(pre[row : row + rows_at_once])
                fade = None if row else kept[1, envs]
                geometry.add_outer_sums(state.eligibility[envs], geometry.post(p), x, fade)
        blocks.append((pre[steps:], derivative[steps:], *ends))
    for name, values in zip(
        ("past_pre", "past_derivative", "past_eligibility"), zip(*blocks, strict=True), strict=False
    ):
        if len(getattr(state, name)):  # an empty view would keep the signals in memory
            setattr(state, name, _joined(values, 1))
    assert gradient is not None
    return gradient


def _joined(parts: Sequence[Tensor], axis: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), axis)


def _weighted(constants: HistoryConstants, sums: Tensor | None, envs: slice, error: Tensor) -> Tensor:
    """Return A_u δ_u or B_u δ_u, (T, E, n_post), times a kernel of a single lag; δ_u without weights."""
    weights = None if sums is None else sums[:, envs, None]
    if not constants.past:
        weights = constants.kernel if weights is None else constants.kernel * weights
    return error if weights is None else weights * error


@dataclass
class _Events:
    """Compute p_s or ε_s of events s = -W … T-1, counted from zero; L is in the place of W if e is dense.

    `derivative` and `weights`, ε, are those of the last L and the first W of them.
    """

    constants: HistoryConstants
    derivative: Tensor  # f', (L + T, E, n_post)
    weighted: Tensor  # from `_weighted`, (T, E, n_post)
    weights: Tensor  # ε before the chunk, (W, E, n_post), or none
    scale: Tensor  # γλ (1 - s_0) A_0 or B_0 of each environment, (E, 1); unused where there are no weights

    def __getitem__(self, rows: slice) -> Tensor:
        """Return some, a new tensor (S, E, n_post)."""
        events = max(len(self.weights), self.constants.past) + len(self.weighted)
        first, last = rows.start, min(rows.stop, events)
        old = events - len(self.derivative)  # those that get no more credit from the kernel
        p = self.weighted.new_empty(last - first, *self.weighted.shape[1:])
        known, late = self.weights[first:last], min(max(old - first, 0), len(p))
        if late:
            torch.mul(known[:late], self.scale, out=p[:late])
        if late < len(p):
            begin, end = first + late - old, last - old
            if self.constants.past:
                correlate = self.constants.correlation(len(self.weighted))
                correlate(self.weighted.flatten(1), begin, end, out=p[late:].flatten(1))
                p[late:] *= self.derivative[begin:end]
            else:
                torch.mul(self.weighted[begin:end], self.derivative[begin:end], out=p[late:])
            if late < len(known):
                p[late : len(known)].addcmul_(known[late:], self.scale)
        return p


def add_parts(gradient: Parts | None, part: Parts) -> Parts:
    """Add to a gradient in place, and return it."""
    if gradient is None:
        return part
    for total, more in zip(gradient, part, strict=True):
        if total is not None and more is not None:
            total += more
    return gradient
