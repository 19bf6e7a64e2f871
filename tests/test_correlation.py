"""Products with a band of kernel values, in blocks that skip its zeros, against the dense product."""

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


LAYOUTS = {
    "contiguous": lambda columns, units: torch.randn(columns, units, dtype=torch.float64),
    "some columns": lambda columns, units: torch.randn(columns, 3 * units + 2, dtype=torch.float64)[:, 2::3],
    "some rows": lambda columns, units: torch.randn(2 * columns, units, dtype=torch.float64)[::2],
    "transposed": lambda columns, units: torch.randn(units, columns, dtype=torch.float64).T,
    "one column": lambda columns, units: torch.randn(columns, 1, dtype=torch.float64).expand(-1, units),
    "one number": lambda columns, units: torch.randn(1, 1, dtype=torch.float64).expand(columns, units),
}


@given(
    matrix=bands(),
    rows=st.integers(1, 8),
    units=st.integers(0, 6),
    ends=st.none() | st.tuples(st.integers(0, 25), st.integers(0, 30)),
    layout=st.sampled_from(sorted(LAYOUTS)),
)
def test_blocks_are_the_dense_product_of_all_or_some_rows(matrix, rows, units, ends, layout):
    torch.manual_seed(0)
    first, last = (0, None) if ends is None else sorted(ends)
    first = min(first, len(matrix))
    check(matrix, LAYOUTS[layout](matrix.shape[1], units), rows, first, None if last is None else max(last, first))


def matrix_of(kernel, happened, arrives):
    """Return the value of the kernel at each lag from an event to an arrival, zero outside of it."""
    values = [[kernel[b - a] if 0 <= b - a < len(kernel) else 0 for b in arrives] for a in happened]
    return np.array(values, dtype=float).reshape(len(happened), len(arrives))


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
    np.testing.assert_array_equal(
        matrix, matrix_of(kernel, range(rows), range(shift, shift + columns)), strict=True
    )
    if columns:
        check(matrix, torch.randn(columns, 2, dtype=torch.float64), block)


events = st.lists(st.integers(-20, 20), max_size=8)


@given(kernel=st.lists(st.floats(-2, 2), min_size=1, max_size=8), happened=events, arrives=events)
def test_matrices_of_events(kernel, happened, arrives):
    times = (np.array(each, dtype=np.int64) for each in (happened, arrives))
    np.testing.assert_array_equal(event_matrix(np.array(kernel), *times), matrix_of(kernel, happened, arrives))


def test_large_enough_for_blocks_as_it_is():
    matrix = correlation_matrix(np.hanning(40)[1:], 128, 118, 10)
    errors = torch.randn(118, 2000)
    assert 128 * errors.numel() >= factored._LEAST_WORK
    product = Correlation(matrix, torch.float32, CPU)
    torch.testing.assert_close(product(errors), product.matrix @ errors, rtol=1e-4, atol=1e-4)
    assert product._blocks
