"""Shapes and products of a layer: dense, where no synapses share a weight, or a convolution, where positions do.

A position of a convolution's output acts like one more environment: it has inputs of its own, the patch under the
kernel, and shares the weights, η and the episode starts. So the Hebbian term of a weight, and everything linear in
it, is a sum over positions, and credit assignment needs to know of a layer's geometry only how to sum post ⊗ pre.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.grad import conv2d_input, conv2d_weight

from cet_rl.traces.base import check_whole

WeightAndBias = tuple[Tensor, Tensor | None]
"""A weight and its bias, or their updates, shaped as torch's layers have them; None where there is no bias."""

_ONEDNN = (
    getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None  # type: ignore[no-untyped-call]
)

_LEAST_FOR_ONEDNN = 1 << 20  # multiply-adds below which building a oneDNN primitive costs more than it saves

_NARROW = 32  # rows or columns that are few: a product is up to four times faster as its transpose, or by numpy

_LARGEST_UNFOLDED = 64 << 20
"""Bytes of unfolded patches at once: what torch makes of the inputs where neither oneDNN nor cuDNN serves."""

_ALIGNED = 16  # floats in 64 bytes
_LEAST_TO_ALIGN = 64  # inputs from which on a layer's rows are aligned

# glibc gives freed memory back to the system beyond a threshold that follows the largest block ever freed, and
# taking it again costs a page fault every 4 kB: a third of the time of an update. One large block, never touched,
# raises the threshold to its limit of 64 MB.
_untouched = torch.empty(31 << 20, dtype=torch.uint8)
del _untouched


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Return `a @ b` by the fastest library; two matrices, or batches of them that broadcast, without gradients.

    On a CPU, large float32 matrices go to oneDNN, which generates code for the processor it runs on: with one
    thread on an AMD EPYC it reaches 230 GFLOP/s where `torch.mm`, whose MKL takes that processor for an older one,
    reaches 105 (`benchmarks/blas.py`). It copies a transposed `a`, and takes three times as long for one of few
    rows, where numpy's BLAS does not; numpy also calls that for batches of small matrices at half of torch's cost.
    """
    if not is_for_numpy(a):
        return torch.matmul(a, b)
    large = a.ndim == b.ndim == 2 and a.shape[0] * a.shape[1] * b.shape[1] >= _LEAST_FOR_ONEDNN
    suits = a.is_contiguous() and len(a) >= _NARROW
    if large and (suits or torch.get_num_threads() > 1):  # threads of torch and of numpy would wait for each other
        if _ONEDNN is not None and a.dtype == torch.float32:
            product: Tensor = _ONEDNN(_without_gaps(a), _without_gaps(b).T, None, "none", [], "")
            return product
        return a @ b
    with np.errstate(over="ignore", invalid="ignore"):  # as torch does; the learner checks its gradients
        return torch.from_numpy(np.matmul(a.numpy(), b.numpy()))


def is_for_numpy(tensor: Tensor) -> bool:
    """Return whether numpy, which has no bfloat16, can work on a tensor; for small ones its calls are lighter."""
    return tensor.is_cpu and tensor.dtype in (torch.float32, torch.float64)


def _without_gaps(matrix: Tensor) -> Tensor:
    # oneDNN falls back to a loop a hundred times slower for rows or columns with gaps between them.
    return matrix if matrix.is_contiguous() or matrix.T.is_contiguous() else matrix.contiguous()


class Geometry(ABC):
    """Describe the shapes of one layer, its weight's products with signals, and the sum of its outer products.

    "Flat" signals have their units in one last axis, in the order that makes the products fastest.

    A bias is one more weight of each unit, whose input is always 1. A geometry with `bias` includes it: weights
    then have the shape (units, inputs and more), those of a unit side by side and its bias after them. `split`
    separates them and `join` puts them together.
    """

    bias: bool
    weight_shape: tuple[int, ...]  # of the layer's weight, as torch has it; with a bias, of what `join` returns
    pre_shape: tuple[int, ...]  # of one sample's input x
    post_shape: tuple[int, ...]  # of one sample's f' and δ

    def _set_shapes(self, **shapes: tuple[int, ...]) -> None:
        for name, shape in shapes.items():
            object.__setattr__(self, name, shape)  # of a frozen dataclass

    @property
    def n_pre(self) -> int:
        """Return the number of presynaptic units, without the constant input of a bias."""
        return prod(self.pre_shape)

    @property
    def n_post(self) -> int:
        """Return the number of postsynaptic units, at all positions."""
        return prod(self.post_shape)

    @abstractmethod
    def split(self, weights: Tensor) -> WeightAndBias:
        """Separate weights of `weight_shape` into weight and bias, (units,), the latter None without a bias."""

    @abstractmethod
    def join(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Undo `split`."""

    def flatten(self, signal: Tensor) -> Tensor:
        """Flatten x, f' or δ: (..., *pre_shape) to (..., n_pre), (..., *post_shape) to (..., n_post)."""
        return signal

    def unflatten_pre(self, flat: Tensor) -> Tensor:
        """Undo `flatten` of x."""
        return flat

    def unflatten_post(self, flat: Tensor) -> Tensor:
        """Undo `flatten` of f' or δ."""
        return flat

    @abstractmethod
    def forward(self, weight: Tensor, pre: Tensor) -> Tensor:
        """Return z = W x without a graph: (N, *pre_shape) to (N, *post_shape)."""

    @abstractmethod
    def backproject(self, weight: Tensor, error: Tensor) -> Tensor:
        """Return Wᵀ error, the adjoint of `forward`: (N, *post_shape) to (N, *pre_shape)."""

    @abstractmethod
    def outer_parts(self, post: Tensor, pre: Tensor) -> WeightAndBias:
        """Return Σ post ⊗ pre and, with a bias, Σ post over all leading axes, shaped as torch's weight and bias.

        The arguments have shapes (..., *post_shape) and (..., *pre_shape).
        """

    def outer_sum(self, post: Tensor, pre: Tensor) -> Tensor:
        """Return `outer_parts` as one tensor of `weight_shape`."""
        return self.join(*self.outer_parts(post, pre))

    def outer_sum_by_env(self, post: Tensor, pre: Tensor) -> Tensor:
        """Return the sum of each environment: (S, E, *post_shape), (S, E, *pre_shape) to (E, *weight_shape).

        One product for each is faster than one for all of them.
        """
        pairs = zip(post.unbind(1), pre.unbind(1), strict=True)
        return torch.stack([self.outer_sum(p, x) for p, x in pairs])

    def add_outer_sum_by_env(self, total: Tensor, post: Tensor, pre: Tensor) -> None:
        """Add `outer_sum_by_env` in place to a total, (E, *weight_shape)."""
        total += self.outer_sum_by_env(post, pre)


@dataclass(frozen=True)
class Dense(Geometry):
    """Connect every input to every unit once, z = W x; ValueError for counts below one.

    A bias is one more input, always 1, that `with_bias_input` adds. Large layers get some more that are 0, as
    matrix products are up to a third faster where rows begin at multiples of 64 bytes.
    """

    n_in: int
    n_out: int
    bias: bool = False

    def __post_init__(self) -> None:
        _check_counts(n_in=self.n_in, n_out=self.n_out)
        aligned = _ALIGNED if self.n_in >= _LEAST_TO_ALIGN else 1
        columns = -(-(self.n_in + 1) // aligned) * aligned if self.bias else self.n_in
        self._set_shapes(weight_shape=(self.n_out, columns), pre_shape=(self.n_in,), post_shape=(self.n_out,))

    def with_bias_input(self, pre: Tensor) -> Tensor:
        """Append the constant input of a bias: (..., n_in) to (..., weight_shape[1])."""
        if not self.bias:
            return pre
        inputs = pre.new_zeros(*pre.shape[:-1], self.weight_shape[1])
        inputs[..., : self.n_in] = pre
        inputs[..., self.n_in] = 1
        return inputs

    def forward(self, weight: Tensor, pre: Tensor) -> Tensor:
        """Return z = W x: (N, n_in) to (N, n_out)."""
        return matmul(pre, weight.T)

    def backproject(self, weight: Tensor, error: Tensor) -> Tensor:
        """Return Wᵀ error: (N, n_out) to (N, n_in)."""
        return matmul(error, weight)

    def outer_parts(self, post: Tensor, pre: Tensor) -> WeightAndBias:
        """Return Σ post ⊗ pre and Σ post: (..., n_out), (..., n_in) to (n_out, n_in), (n_out,)."""
        post, pre = post.reshape(-1, self.n_out), pre.reshape(-1, self.n_in)
        weight = matmul(post.T, pre) if self.n_in >= _NARROW else matmul(pre.T, post).T.contiguous()
        return weight, post.sum(0) if self.bias else None

    def add_outer_sum_by_env(self, total: Tensor, post: Tensor, pre: Tensor) -> None:
        """Add sums of (S, E, n_out), (S, E, n_in) to (E, n_out, n_in and more), in one pass over it."""
        if self.bias or self.n_in < _NARROW:
            return super().add_outer_sum_by_env(total, post, pre)
        total.baddbmm_(post.permute(1, 2, 0), pre.transpose(0, 1))

    def split(self, weights: Tensor) -> WeightAndBias:
        """Separate (n_out, n_in and more) into (n_out, n_in) and (n_out,)."""
        return (weights[:, : self.n_in], weights[:, self.n_in]) if self.bias else (weights, None)

    def join(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Join (n_out, n_in) and (n_out,) to (n_out, n_in and more)."""
        if bias is None:
            return weight
        added = self.weight_shape[1] - self.n_in - 1
        return torch.cat([weight, bias[:, None], weight.new_zeros(self.n_out, added)], 1)


@dataclass(frozen=True)
class Convolution(Geometry):
    """Move a kernel over a map, z = conv2d(x, W): the function of `torch.nn.Conv2d`.

    Flat maps have the channels of a position side by side: the layout in which a CPU computes the gradient of the
    weights fastest, well ahead of a matrix product over unfolded patches. Maps that are in torch's `channels_last`
    format already are flattened without a copy. On CUDA, float32 products are as exact as `torch.backends.cudnn`
    is told to be, and by default it may use TF32.

    Raises ValueError for counts below one, negative padding, an `in_size` that is no pair, or a kernel larger than
    the padded input.
    """

    in_channels: int
    out_channels: int
    kernel_size: int  # of both sides
    in_size: tuple[int, int]  # (H, W) of the input
    stride: int = 1  # between positions, along both sides
    padding: int = 0  # zeros on every side
    bias: bool = False  # whether units have a bias, the same at all positions

    def __post_init__(self) -> None:
        try:
            height, width = self.in_size
        except (TypeError, ValueError):
            raise ValueError(f"in_size must be (height, width), got {self.in_size!r}") from None
        names = ("in_channels", "out_channels", "kernel_size", "stride")
        _check_counts(**{name: getattr(self, name) for name in names}, height=height, width=width)
        check_whole(self.padding, "padding", at_least=0)
        if self.kernel_size > min(height, width) + 2 * self.padding:
            raise ValueError(
                f"a kernel of size {self.kernel_size} does not fit an input of {height} × {width} "
                f"with padding {self.padding}"
            )
        kernels = self._kernel_shape
        self._set_shapes(
            weight_shape=(kernels[0], prod(kernels[1:]) + 1) if self.bias else kernels,
            pre_shape=(self.in_channels, height, width),
            post_shape=(
                self.out_channels,
                *((size + 2 * self.padding - self.kernel_size) // self.stride + 1 for size in self.in_size),
            ),
        )

    @property
    def _kernel_shape(self) -> tuple[int, int, int, int]:
        return self.out_channels, self.in_channels, self.kernel_size, self.kernel_size

    def flatten(self, signal: Tensor) -> Tensor:
        """Flatten maps (..., C, H, W) to (..., H · W · C)."""
        return signal.movedim(-3, -1).flatten(-3)

    def unflatten_pre(self, flat: Tensor) -> Tensor:
        """Return (..., H · W · C_in) as (..., C_in, H, W), in `channels_last` format."""
        return _maps(flat, self.pre_shape)

    def unflatten_post(self, flat: Tensor) -> Tensor:
        """Return (..., H' · W' · C_out) as (..., C_out, H', W'), in `channels_last` format."""
        return _maps(flat, self.post_shape)

    @torch.no_grad()
    def forward(self, weight: Tensor, pre: Tensor) -> Tensor:
        """Convolve: (N, C_in, H, W) to (N, C_out, H', W'), both in `channels_last` format."""
        pre = pre.contiguous(memory_format=torch.channels_last)
        kernels, bias = self.split(weight)
        return functional.conv2d(pre, kernels, bias, stride=self.stride, padding=self.padding)

    @torch.no_grad()
    def backproject(self, weight: Tensor, error: Tensor) -> Tensor:
        """Apply the adjoint: (N, C_out, H', W') to (N, C_in, H, W), both in `channels_last` format."""
        error = error.contiguous(memory_format=torch.channels_last)
        shape = (len(error), *self.pre_shape)
        return conv2d_input(shape, self.split(weight)[0], error, stride=self.stride, padding=self.padding)  # type: ignore[no-untyped-call, no-any-return]

    @torch.no_grad()
    def outer_parts(self, post: Tensor, pre: Tensor) -> WeightAndBias:
        """Return sums over positions: (..., C_out, H', W'), (..., C_in, H, W) to (C_out, C_in, k, k), (C_out,)."""
        post, pre = post.reshape(-1, *self.post_shape), pre.reshape(-1, *self.pre_shape)
        total = torch.zeros(self._kernel_shape, dtype=post.dtype, device=post.device)
        unfolded = prod(self.post_shape[1:]) * prod(self._kernel_shape[1:]) * pre.element_size()
        block = max(1, _LARGEST_UNFOLDED // unfolded)
        for p, x in zip(torch.split(post, block), torch.split(pre, block), strict=True):
            total += conv2d_weight(  # type: ignore[no-untyped-call]
                x.contiguous(memory_format=torch.channels_last),
                self._kernel_shape,
                p.contiguous(memory_format=torch.channels_last),
                stride=self.stride,
                padding=self.padding,
            )
        return total, post.sum((0, 2, 3)) if self.bias else None

    def split(self, weights: Tensor) -> WeightAndBias:
        """Separate (C_out, C_in · k · k + 1) into (C_out, C_in, k, k) and (C_out,)."""
        if not self.bias:
            return weights, None
        return weights[:, :-1].view(self._kernel_shape), weights[:, -1]

    def join(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Join (C_out, C_in, k, k) and (C_out,) to (C_out, C_in · k · k + 1)."""
        return weight if bias is None else torch.cat([weight.flatten(1), bias[:, None]], 1)


def _maps(flat: Tensor, shape: tuple[int, ...]) -> Tensor:
    channels, height, width = shape
    return flat.view(*flat.shape[:-1], height, width, channels).movedim(-1, -3)


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        check_whole(count, name, at_least=1)
