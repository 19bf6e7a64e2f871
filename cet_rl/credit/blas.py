"""Matrix products on the fastest kernels at hand."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_ONEDNN = (
    getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None  # type: ignore[no-untyped-call]
)
_WORTH_ONEDNN = 1 << 20
"""Multiply-adds below which building a oneDNN primitive costs more than it saves."""


# glibc gives freed memory back to the system beyond a threshold that follows the largest block ever freed, and
# taking it again costs a page fault every 4 kB: a third of the time of an update. One large block, never touched,
# raises the threshold to its limit of 64 MB.
_untouched = torch.empty(31 << 20, dtype=torch.uint8)
del _untouched


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """`a @ b` without a graph; two matrices, or batches of them that broadcast.

    On a CPU, large float32 matrices go to oneDNN, which generates code for the processor it runs on: with one
    thread on an AMD EPYC it reaches 230 GFLOP/s where `torch.mm`, whose MKL takes that processor for an older one,
    reaches 105 (`benchmarks/blas.py`). Batches of small matrices go to numpy, which calls BLAS once for each at
    half of torch's cost.
    """
    if a.device.type != "cpu" or a.dtype not in (torch.float32, torch.float64):  # numpy has no bfloat16
        return torch.matmul(a, b)
    if a.ndim == b.ndim == 2 and a.shape[0] * a.shape[1] * b.shape[1] >= _WORTH_ONEDNN:
        if _ONEDNN is not None and a.dtype == torch.float32:
            product: Tensor = _ONEDNN(_dense(a), _dense(b).T, None, "none", [], "")
            return product
        return a @ b
    with np.errstate(over="ignore", invalid="ignore"):  # as torch does; the learner checks its gradients
        return torch.from_numpy(np.matmul(a.numpy(), b.numpy()))


def _dense(matrix: Tensor) -> Tensor:
    # oneDNN falls back to a loop a hundred times slower for rows or columns with gaps between them.
    return matrix if matrix.is_contiguous() or matrix.T.is_contiguous() else matrix.contiguous()
