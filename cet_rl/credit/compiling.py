"""Compilation of loops by numba."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def compile_loop(function: Function, **options: Any) -> Function:
    """Compile a function on its first call for a type of numbers, and keep the machine code for later processes.

    numba stores it by the function's file, name and line, beside the file or in the user's cache. `options` are
    those of `numba.njit`.
    """
    njit: Any = numba.njit  # its own annotations leave out the wrappers
    try:
        compiled: Function = njit(cache=True, **options)(function)
    except RuntimeError:  # there is no folder that can be written to
        compiled = njit(**options)(function)
    return compiled
