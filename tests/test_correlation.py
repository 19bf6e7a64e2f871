"""Products with a band of kernel values, in blocks that skip its zeros, against the dense product."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cet_rl.credit import factored
from cet_rl.credit.chunk import correlation_matrix, event_matrix
from cet_rl.credit.factored import Correlation

CPU = torch.device("cpu")


@st.composite
def bands(draw):
    """A matrix with one run of non-zeros in each row, which may be empty, and holes within it."""
    rows, columns = draw(st.integers(1, 25)), draw(st.integers(1, 20))
    generator = np.random.default_rng(draw(st.integers(0, 2**31)))
    matrix = np.zeros((rows, columns))
    ends = st.integers(0, columns)
    for row in matrix:
        first, last = draw(ends), draw(ends)
        row[first:last] = generator.normal(size=max(0, last - first)) * (
            generator.random(max(0, last - first)) < 0.8
        )
    return matrix


def check(matrix, errors, rows, first=0, last=None):
    """By blocks of so many rows, and by one product; both against numpy."""
    expected = torch.from_numpy(matrix[first:last] @ errors.numpy())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(factored, "_ROWS", rows)
        product = Correlation(matrix, errors.dtype, CPU)
        for worth in (0, 1 << 62):
            patch.setattr(factored, "_LEAST_WORK", worth)
            for _ in range(2):  # the second time, blocks are known
                found = product(errors, first, last)
                assert found.shape == expected.shape
                torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@given(
    matrix=bands(),
    rows=st.integers(1, 8),
    units=st.integers(1, 6),
    ends=st.none() | st.tuples(st.integers(0, 25), st.integers(0, 30)),
)
def test_blocks_are_the_dense_product_of_all_or_some_rows(matrix, rows, units, ends):
    torch.manual_seed(0)
    errors = torch.randn(matrix.shape[1], units, dtype=torch.float64)
    first, last = (0, None) if ends is None else sorted(ends)
    first = min(first, len(matrix))
    check(matrix, errors, rows, first, None if last is None else max(last, first))


@given(matrix=bands(), rows=st.integers(1, 8))
def test_errors_need_not_lie_side_by_side(matrix, rows):
    columns = matrix.shape[1]
    torch.manual_seed(0)
    wide, tall = (torch.randn(size, dtype=torch.float64) for size in ((columns, 9), (2 * columns, 4)))
    one = torch.randn(1, 1, dtype=torch.float64).expand(columns, 4)
    for errors in (wide[:, 2:7], wide[:, ::3], tall[::2], wide[:, :1].expand(-1, 4), one, wide[:, :0]):
        check(matrix, errors, rows)
    check(matrix, torch.randn(4, columns, dtype=torch.float64).T, rows)


@given(
    length=st.integers(1, 12),
    rows=st.integers(1, 20),
    columns=st.integers(0, 20),
    shift=st.integers(0, 15),
    block=st.integers(1, 8),
)
def test_matrices_of_kernels(length, rows, columns, shift, block):
    kernel = np.arange(1.0, length + 1)
    matrix = correlation_matrix(kernel, rows, columns, shift)
    assert matrix.shape == (rows, columns)
    for s in range(rows):
        for u in range(columns):
            lag = u + shift - s
            assert matrix[s, u] == (kernel[lag] if 0 <= lag < length else 0)
    if columns:
        check(matrix, torch.randn(columns, 2, dtype=torch.float64), block)


@given(
    kernel=st.lists(st.floats(-2, 2), min_size=1, max_size=8),
    happened=st.lists(st.integers(-20, 20), max_size=8),
    arrives=st.lists(st.integers(-20, 20), max_size=8),
)
def test_matrices_of_events(kernel, happened, arrives):
    matrix = event_matrix(np.array(kernel), np.array(happened, dtype=np.int64), np.array(arrives, dtype=np.int64))
    assert matrix.shape == (len(happened), len(arrives))
    for a, event in enumerate(happened):
        for b, arrival in enumerate(arrives):
            lag = arrival - event
            assert matrix[a, b] == (kernel[lag] if 0 <= lag < len(kernel) else 0)


def test_large_enough_for_blocks_as_it_is():
    matrix = correlation_matrix(np.hanning(40)[1:], 128, 118, 10)
    errors = torch.randn(118, 2000)
    assert 128 * errors.numel() >= factored._LEAST_WORK
    product = Correlation(matrix, torch.float32, CPU)
    torch.testing.assert_close(product(errors), product.matrix @ errors, rtol=1e-4, atol=1e-4)
    assert product._blocks
