"""tanh of many numbers at once, in vector registers.

The C library's takes one number at a time, ten nanoseconds each: more than all the rest of a small network.

    tanh |x| = e/(e + 2)      e = exp(2|x|) - 1 = 2^k p + (2^k - 1)      p = exp(r) - 1,  2|x| = k ln 2 + r

p is a Taylor polynomial on |r| ≤ ln(2)/2. Within 2.5 units in the last place, like the C library's; NaN stays NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from cet_rl.recurrent.compiled.jit import Array

Squash = Callable[[Array], None]


def squash(values: Array) -> None:
    """Replace each number of a matrix, float32 or float64, by its tanh. For compiled functions only."""
    raise NotImplementedError("squash can be called by compiled functions only")


def _variant(
    number: Any, whole: Any, digits: int, degree: int, coarse: float, fine: float
) -> Callable[[Array], None]:
    # ln 2 = coarse + fine; coarse has so few digits that its products with k are exact.
    bias, shift = whole(np.finfo(number).maxexp - 1), whole(digits)
    rounding = number(1.5 * 2.0**digits)  # added and taken away again, it leaves a whole number
    octaves, ln2, rest = number(1 / math.log(2)), number(coarse), number(fine)
    one, two, large = number(1), number(2), number(digits)  # tanh is 1 beyond digits/2
    first, second = number(1 / math.factorial(degree)), number(1 / math.factorial(degree - 1))
    others = tuple(number(1 / math.factorial(k)) for k in reversed(range(2, degree - 1)))

    def squash_matrix(values: Any) -> None:
        for row in range(values.shape[0]):
            for i in range(values.shape[1]):
                x = values[row, i]
                y = two * abs(x)
                y = large if y > large else y
                shifted = y * octaves + rounding  # k in its lowest bits
                k = shifted - rounding
                r = y - k * ln2 - k * rest
                p = first * r + second
                for coefficient in others:
                    p = p * r + coefficient
                p = p * (r * r) + r
                power = whole((number(shifted).view(whole) + bias) << shift).view(number)
                e = power * p + (power - one)
                values[row, i] = math.copysign(e / (e + two), x)

    return squash_matrix


_SINGLE = _variant(np.float32, np.int32, 23, 7, 355 / 512, math.log(2) - 355 / 512)
_DOUBLE = _variant(np.float64, np.int64, 52, 13, 0x162E42FEE / 2**33, 1.9082149292705877e-10)


# Sums keep their order in here: the rounding by a large number rests on it.
@overload(squash, jit_options={"fastmath": {"contract"}, "error_model": "numpy", "nogil": True})
def _squash(values: Any) -> Any:
    return _SINGLE if values.dtype == types.float32 else _DOUBLE
