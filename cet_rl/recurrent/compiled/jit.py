"""How the loop and the kernels are compiled, and where what has been compiled is kept.

Numba keeps machine code in the package's `__pycache__`, or in the user's cache folder where that cannot be
written. It notices when the file of a function changes, but not when that of a function it calls does: here both
count. Where no folder can be written at all, every process compiles for itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numba
import numpy as np
import numpy.typing as npt
from numba.core.caching import FunctionCache

types: Any = numba.types
_njit: Any = numba.njit  # its own annotations leave out the wrappers

Array = npt.NDArray[Any]
Frame = tuple[Array, ...]
"""What a kernel sees of a step: W, r̂, r, D, c̄, the gradient to add to, y*, noise; a row is a sequence."""

Arrays = tuple[tuple[Array, ...], tuple[Array, ...], Array, Array]
"""What it remembers (three axes each), what it scribbles on (two), its constants, and those that are whole."""

Function = TypeVar("Function", bound=Callable[..., Any])

FRAME = 8
STATES, LATE_STATES = 8, 2
WORK, LATE_WORK = 11, 5
BRIDGING = -LATE_WORK
"""Lengths of a kernel's tuples of arrays: with one type for all, the loop is compiled once for all kernels.

What is for late errors comes last in a rule's tuples, in its work from BRIDGING on, and is all that there is in
those of the output layer.
"""

# Sums may be reordered, which vector registers need; NaN and infinity keep their meaning, since they are how a
# divergence is noticed.
_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"contract", "reassoc", "nsz"},
}


def inner(function: Function) -> Function:
    """A function for kernels and the loop to call, compiled when they are; it cannot be called from Python."""
    compiled: Function = _njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, **_OPTIONS)(function)
    return compiled


def kernel_type(dtype: np.dtype[Any], states: int, work: int) -> Any:
    """The signature of kernels, `kernel(frame, arrays, clock, offset)`.

    `clock` counts the steps before this one, `offset` those of this run: where rings stand.

    Args:
        dtype: of all arrays but the last, which is int64.
        states: how many it remembers.
        work: how many it scribbles on.
    """
    vector, matrix, block, whole = array_types(dtype)
    arrays = types.Tuple((types.UniTuple(block, states), types.UniTuple(matrix, work), vector, whole))
    return types.void(types.UniTuple(matrix, FRAME), arrays, types.int64, types.int64)


def rule_type(dtype: np.dtype[Any]) -> Any:
    """The one signature of all rules' kernels."""
    return kernel_type(dtype, STATES, WORK)


def layer_type(dtype: np.dtype[Any]) -> Any:
    """That of the output layer's."""
    return kernel_type(dtype, LATE_STATES, LATE_WORK)


def array_types(dtype: np.dtype[Any]) -> tuple[Any, Any, Any, Any]:
    """Of contiguous arrays with one, two and three axes, and with one axis of int64."""
    number = numba.from_dtype(dtype)
    first, second, third = (types.Array(number, axes, "C") for axes in (1, 2, 3))
    return first, second, third, types.Array(types.int64, 1, "C")


@cache
def build(
    function: Callable[..., None], signature: Any, needless: str = "no_cpython_wrapper"
) -> Callable[..., None]:
    """Compile a function for one signature, or load what has been compiled before.

    Args:
        function: a kernel or the loop.
        signature: its types.
        needless: leaves out the wrapper that the function does without, which takes as long to compile as a
            kernel: kernels are not called from Python ("no_cpython_wrapper"), the loop from nowhere else
            ("no_cfunc_wrapper").
    """
    dispatcher = _njit(**{needless: True}, **_OPTIONS)(function)
    with suppress(RuntimeError):  # no folder to write to
        dispatcher._cache = _Cache(function)  # type: ignore[no-untyped-call]
    dispatcher.compile(signature)
    dispatcher.disable_compile()
    compiled: Callable[..., None] = dispatcher
    return compiled


class _Cache(FunctionCache):
    """Numba's cache of a function, with the sources of all of this package in its key."""

    def _index_key(self, *arguments: Any) -> Any:
        return super()._index_key(*arguments), _sources()  # type: ignore[no-untyped-call]

    def save_overload(self, *arguments: Any) -> None:
        with suppress(OSError):  # a full disk is no reason to stop
            super().save_overload(*arguments)  # type: ignore[no-untyped-call]


@cache
def _sources() -> str:
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
