"""The closed form over a factored past: no states at the synapses, only the layer's inputs and derivatives.

A kernel that vanishes after L lags needs (f', x) of the last L steps and nothing else. With A and B of
`cet_rl.credit.chunk`, and events τ of this chunk and of before,

    p_τ = f'_τ ⊙ Σ_{u≥τ} g_{u-τ} A_u δ_u,  τ = -L … T-1        ΔW = Σ_env [ Σ_τ p_τ x_τᵀ + γλ(1 - s_0) A_0 e⁰ ]

Exact for a delay line (perfect memory, no trace at all), and to rounding for every other kernel. Its cost in time
and memory grows with the kernel's support, but not with the number of states nor, in memory, with the number of
synapses. For a convolution, whose outer products are sums over positions too, f', x and δ are maps and p_τ of a
position is that of its own f' and δ: the sum over τ is one gradient of convolution weights.

"history" keeps e at every synapse. "factored" keeps it as weights of the past, e = Σ_env Σ_τ ε_τ x_τᵀ with one
vector ε_τ a step, for the last R steps, after which the kernel convolved with (γλ)^l has vanished; then

    p_τ = f'_τ ⊙ Σ_u g_{u-τ} A_u δ_u + γλ(1 - s_0) A_0 ε_τ        ΔW = Σ_env Σ_τ p_τ x_τᵀ,  τ = -R … T-1
    ε_τ ← f'_τ ⊙ Σ_u g_{u-τ} B_u δ_u + γλ(1 - s_0) B_0 ε_τ

and e itself is never formed: one product with R + T rows in place of two with L + T, and no pass over synapses.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from cet_rl.credit.chunk import correlation_matrix, error_weights, forget_oldest, sum_of_environments
from cet_rl.credit.costs import has_factors
from cet_rl.credit.geometry import Dense, Geometry, WeightAndBias, matmul
from cet_rl.credit.signals import Signals, SynapseState
from cet_rl.traces.base import FloatArray, Trace

_BLOCK = 1 << 20
"""Floats of a convolution's postsynaptic maps taken at once on a CPU: four megabytes, which stay in its cache."""

_BLOCK_ON_DEVICE = 1 << 24  # floats taken at once on other devices, where only memory counts

_ROWS = 64
"""Events taken at once on a CPU: few enough to skip most zeros, enough to keep the product's kernels busy."""

_LEAST_WORK = 1 << 22  # multiply-adds below which one product with the zeros is faster than several without


def eligibility_window(kernel: FloatArray, decay: float, dtype: torch.dtype) -> int:
    """Return R, the steps after which an event's weight in e is below the rounding of a sum over it.

    That weight is at most |g| convolved with (γλ)^l, which past the end of the kernel falls by γλ a step.
    """
    if not decay:
        return len(kernel) - 1
    magnitude = np.abs(kernel)
    last = float(magnitude @ decay ** np.arange(len(kernel))[::-1])  # at the kernel's last lag
    window = len(kernel)
    for _ in range(3):  # √R roundings, see `visible_support`
        visible = np.sqrt(window) * torch.finfo(dtype).eps * magnitude.sum()
        window = len(kernel) + max(0, int(np.ceil(np.log(visible / last) / np.log(decay))))
    return window


def visible_support(trace: Trace, dtype: torch.dtype) -> tuple[int, int]:
    """Return the lags [first, last) outside of which a kernel's area is below the rounding of a sum over it.

    That is about √L eps of `dtype` for L lags, and eps where sums are kept in a wider type. In float32 this is
    half of the support in float64, and so half of the cost of a factored past.
    """
    first, last = trace.support
    magnitude = np.abs(trace.kernel_array(last))
    roundings = 1.0 if dtype.itemsize < torch.float32.itemsize else np.sqrt(len(magnitude))
    outside = roundings * torch.finfo(dtype).eps * magnitude.sum()
    begin = int(np.searchsorted(np.cumsum(magnitude), outside, side="right"))
    end = last - int(np.searchsorted(np.cumsum(magnitude[::-1]), outside, side="right"))
    return max(first, begin), min(last, end)


class Correlation:
    """Correlate a kernel with errors: a product over time with a banded Toeplitz matrix of its values.

    An error that arrives at u adds g_{u-τ} δ_u to what happened at τ. Nothing that happens after u gets credit
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
        self.matrix, self._left, self._right = (
            torch.from_numpy(np.ascontiguousarray(x)).to(device, dtype) for x in (matrix, left, right)
        )
        self._blocks: dict[tuple[int, int], list[tuple[int, int, int, Tensor]]] = {}

    def __call__(
        self, errors: Tensor, first: int = 0, last: int | None = None, *, out: Tensor | None = None
    ) -> Tensor:
        """Return Σ_u g_{u-τ} δ_u for the events τ from `first` up to `last`: (U, F) to (S, F), also as `out`."""
        last = len(self.matrix) if last is None else min(last, len(self.matrix))
        small = errors.device.type != "cpu" or (last - first) * errors.numel() < _LEAST_WORK
        if small and out is None and not len(self._left):  # also where autograd has no products with `out`
            return self.matrix[first:last] @ errors
        sums = errors.new_empty(last - first, errors.shape[1]) if out is None else out
        near = min(max(first, len(self._left)), last)
        if first < near:
            torch.mm(self._left[first:near], matmul(self._right, errors), out=sums[: near - first])
        if errors.device.type != "cpu" or (last - near) * errors.numel() < _LEAST_WORK:
            torch.mm(self.matrix[near:last], errors, out=sums[near - first :])
            return sums
        for begin, end, column, block in self._band(near, last):
            torch.mm(block, errors[column : column + block.shape[1]], out=sums[begin - first : end - first])
        return sums

    def _band(self, first: int, last: int) -> list[tuple[int, int, int, Tensor]]:
        """Return blocks (first row, last row, first column, values) that hold all non-zeros of their rows."""
        if (first, last) not in self._blocks:
            blocks = self._blocks[first, last] = []
            for begin in range(first, last, _ROWS):
                rows = self.matrix[begin : min(begin + _ROWS, last)]
                columns = [*rows.any(0).nonzero().flatten().tolist(), 0]  # some, even where all is zero
                block = rows[:, columns[0] : max(columns) + 1].contiguous()
                blocks.append((begin, begin + len(rows), columns[0], block))
        return self._blocks[first, last]


@dataclass
class HistoryConstants:
    """Hold a trace's kernel over its support, its correlations by chunk length, and the layer's geometry.

    Attributes:
        kernel: g_first … g_{last-1}, shape (L + 1,).
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
        self._kernel = self.trace.kernel_array(last)[first:]
        self.kernel = torch.from_numpy(self._kernel).to(self.device, self.dtype)

    def correlation(self, steps: int) -> Correlation:
        """Return g_{first+u-s} at [s, u], s = -L … steps - 1, shape (L + steps, steps)."""
        if steps not in self._correlations:
            forget_oldest(self._correlations)
            matrix = correlation_matrix(self._kernel, self.past + steps, steps, self.past)
            self._correlations[steps] = Correlation(matrix, self.dtype, self.device, self._factors(steps))
        return self._correlations[steps]

    def _factors(self, steps: int) -> tuple[FloatArray, FloatArray] | None:
        """Return the kernel at [τ, u], τ = -L … -1, u = 0 … steps - 1, as a product, where that is less work.

        It has rank n, as g_{u-τ} = (C M^{-τ}) (M^u K), and random sums of its columns span the same space.
        """
        transition, first = self.trace.transition(), self.support[0]
        if transition is None or not has_factors(len(transition.K), self.past, steps):
            return None
        kernel = self.trace.kernel_array(first + self.past + steps)[first:]
        matrix = correlation_matrix(kernel, self.past, steps, self.past)
        sums = matrix @ np.random.default_rng(0).standard_normal((steps, len(transition.K)))
        basis = np.linalg.qr(sums)[0]
        return basis, basis.T @ matrix


def history(constants: HistoryConstants, state: SynapseState, signals: Signals, decay: float) -> WeightAndBias:
    """Run T steps at once: the arguments of `step`, with one `decay` for all weights, and ΔW in parts.

    The RL eligibility is that of the state: `past_eligibility`, weights of the past, or `eligibility`, dense.
    """
    assert state.past_pre is not None
    assert state.past_derivative is not None
    steps, num_envs, n_post = signals.error.shape
    geometry, total, old = constants.geometry, constants.past + steps, len(state.past_pre) - constants.past

    A, B = error_weights(signals, decay)
    gradient: WeightAndBias | None = None
    kept = None if A is None or B is None else decay * (1 - signals.modulation()[1][0]) * torch.stack([A[0], B[0]])
    if kept is not None and state.past_eligibility is None:
        gradient = geometry.split(sum_of_environments(kept[0], state.eligibility))
    if not constants.past:  # a single lag
        A = constants.kernel.expand(steps, num_envs) if A is None else constants.kernel * A
        B = None if B is None else constants.kernel * B

    # Maps are many times larger than a dense layer's units: environments and steps are taken in blocks.
    at_once, rows_at_once = num_envs, old + total
    if not isinstance(geometry, Dense):
        limit = _BLOCK if signals.error.device.type == "cpu" else _BLOCK_ON_DEVICE
        at_once = min(num_envs, max(1, limit // ((old + total) * n_post)))
        rows_at_once = max(1, limit // (at_once * n_post))
    blocks: list[list[Tensor]] = []
    for first in range(0, num_envs, at_once):
        envs = slice(first, first + at_once)
        # Allocated each time: alignment in memory changes how products round, and resumed runs must be equal.
        pre, derivative = (
            torch.cat([past[:, envs], new[:, envs]]) if len(past) else new[:, envs]
            for past, new in ((state.past_pre, signals.pre), (state.past_derivative, signals.derivative))
        )
        error = signals.error[:, envs]
        epsilon = error[:0] if state.past_eligibility is None else state.past_eligibility[:, envs]
        scales = (epsilon, epsilon) if kept is None else kept[:, envs, None].unbind()
        weighted_errors = (error if w is None else w[:, envs, None] * error for w in (A, B))
        p_at, epsilon_at = (
            partial(_event_weights, constants, derivative, weighted_error, epsilon, scale)
            for weighted_error, scale in zip(weighted_errors, scales, strict=True)
        )
        for row in range(0, old + total, rows_at_once):
            rows = slice(row, min(row + rows_at_once, old + total))
            p, x = p_at(rows), geometry.unflatten_pre(pre[rows])
            if signals.immediate is not None and (now := old + constants.past) < rows.stop:
                p[max(now - row, 0) :] += signals.immediate[max(row - now, 0) : rows.stop - now, envs]
            gradient = add_parts(gradient, geometry.outer_parts(geometry.unflatten_post(p), x))
            if kept is not None and state.past_eligibility is None:
                eligibility = state.eligibility[envs]
                if not row:
                    eligibility *= kept[1, envs].view(-1, *[1] * len(geometry.weight_shape))
                geometry.add_outer_sum_by_env(eligibility, geometry.unflatten_post(epsilon_at(rows)), x)
        blocks.append([pre[steps:], derivative[steps:]])
        if state.past_eligibility is not None:
            blocks[-1].append(epsilon_at(slice(steps, old + total)))
    for name, values in zip(
        ("past_pre", "past_derivative", "past_eligibility"), zip(*blocks, strict=True), strict=False
    ):
        if len(getattr(state, name)):  # an empty view would keep the signals in memory
            setattr(state, name, values[0] if len(values) == 1 else torch.cat(values, 1))
    assert gradient is not None
    return gradient


def _event_weights(
    constants: HistoryConstants,
    derivative: Tensor,
    weighted_error: Tensor,
    epsilon: Tensor,
    epsilon_scale: Tensor,
    rows: slice,
) -> Tensor:
    """Return p_τ or ε_τ of some events, a new tensor (S, E, n_post).

    Args:
        constants: of the layer.
        derivative: f' of the last L + T events.
        weighted_error: A_u δ_u or B_u δ_u, (T, E, n_post).
        epsilon: ε before the chunk, of the first R events, if there are any.
        epsilon_scale: γλ (1 - s_0) A_0 or B_0, (E, 1).
        rows: which of the R + T events, with L in the place of R where there is no ε.
    """
    steps, old = len(weighted_error), max(len(epsilon) - constants.past, 0)  # events too old for the kernel
    p = weighted_error.new_empty(rows.stop - rows.start, *weighted_error.shape[1:])
    known, late = epsilon[rows], min(max(old - rows.start, 0), len(p))
    torch.mul(known[:late], epsilon_scale, out=p[:late])
    some, credited = p[late:], slice(max(rows.start - old, 0), max(rows.stop - old, 0))
    if constants.past:
        constants.correlation(steps)(weighted_error.flatten(1), credited.start, credited.stop, out=some.flatten(1))
        some *= derivative[credited]
    else:
        torch.mul(weighted_error[credited], derivative[credited], out=some)
    some[: len(known) - late].addcmul_(known[late:], epsilon_scale)
    return p


def add_parts(gradient: WeightAndBias | None, part: WeightAndBias) -> WeightAndBias:
    """Add to a gradient in place, and return it."""
    if gradient is None:
        return part
    for total, more in zip(gradient, part, strict=True):
        if total is not None and more is not None:
            total += more
    return gradient
