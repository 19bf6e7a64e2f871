"""Define a synaptic trace: a small linear filter of the Hebbian term, with one output.

    S_t = M S_{t-1} + K h_t        c_t = C · S_t        c_t = Σ_ℓ g_ℓ h_{t-ℓ}

h is the Hebbian term of a synapse (paper, Eq. 1), held constant over a step; S are the trace's states, c its
output, read after the step's input is absorbed (lag 0 is the step itself), and g its kernel.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

Normalization = Literal["area", "peak"]
FloatArray = npt.NDArray[np.float64]

TAIL_TOLERANCE = 1e-15
"""Share of a kernel's area that may lie beyond its numerical support: below the rounding of float64."""

_LONGEST_KERNEL = 1 << 22


@dataclass(frozen=True)
class Transition:
    """Hold the constants of a trace in state-space form, float64.

    Attributes:
        M: (n, n), how the states carry over one step.
        K: (n,), how a step's input enters them.
        C: (n,), how they are read; holds the normalisation.
    """

    M: FloatArray
    K: FloatArray
    C: FloatArray

    def kernel(self, length: int) -> FloatArray:
        """Return g_ℓ = C · M^ℓ K for ℓ = 0 … length - 1, by running the recursion."""
        state = self.K.copy()
        kernel = np.empty(length)
        for lag in range(length):
            kernel[lag] = self.C @ state
            state = self.M @ state
        return kernel


class Trace(ABC):
    """Define a kind of synaptic memory: a frozen dataclass that holds no state of any synapse.

    Attributes:
        normalization: "area" scales the kernel so that Σ|g| = 1; "peak" so that max g = 1 (paper, App. C).
    """

    normalization: Normalization

    def __post_init__(self) -> None:
        if self.normalization not in get_args(Normalization):
            raise ValueError(f"normalization must be 'area' or 'peak', got {self.normalization!r}")

    @classmethod
    def from_delay(cls, delay_steps: int, *args: Any, **options: Any) -> Trace:
        """Return the trace for credit that arrives `delay_steps` late; options are the constructor's.

        A kind overrides this where its constructor takes no delay, or where some options mean another kind.
        """
        return cls(*args, delay_steps=delay_steps, **options)  # type: ignore[call-arg]

    @property
    @abstractmethod
    def states(self) -> int:
        """Return n, the number of state variables a synapse needs; 0 for a trace kept as a delay line."""

    @abstractmethod
    def _unscaled_kernel(self, length: int) -> FloatArray:
        """Return the kernel before normalisation, ℓ = 0 … length - 1."""

    @abstractmethod
    def transition(self) -> Transition | None:
        """Return (M, K, C) in float64, normalised; None for a trace that is a delay line and has no states."""

    def kernel(self, length: int) -> torch.Tensor:
        """Return the normalised response to a unit input held for one step.

        Args:
            length: number of lags.

        Returns:
            float64 tensor of shape (length,): g_0 … g_{length-1}.
        """
        if length < 1:
            raise ValueError(f"length must be at least 1, got {length}")
        import torch  # a second to load, and configurations are read without it

        return torch.from_numpy(self._unscaled_kernel(length) / self.scale)

    @property
    def scale(self) -> float:
        """Return the number that the unscaled kernel is divided by."""
        return _scale(self)

    @property
    def support(self) -> tuple[int, int]:
        """Lags [first, last) outside of which the kernel vanishes in float64."""
        return _support(self)


@lru_cache(maxsize=256)
def _support(trace: Trace) -> tuple[int, int]:
    # Every kernel here decays geometrically in the end, so a window whose second half holds nothing is all of it.
    length = 64
    while length <= _LONGEST_KERNEL:
        magnitude = np.abs(trace._unscaled_kernel(length))
        total = magnitude.sum()
        if total > 0 and magnitude[length // 2 :].sum() <= TAIL_TOLERANCE * total:
            outside = TAIL_TOLERANCE * total
            first = int(np.searchsorted(np.cumsum(magnitude), outside, side="right"))
            tail = np.cumsum(magnitude[::-1])[::-1]
            last = int(np.searchsorted(-tail, -outside, side="left"))
            return first, max(last, first + 1)
        length *= 2
    raise ValueError(f"{trace} forgets too slowly: its kernel does not vanish within {_LONGEST_KERNEL} steps")


@lru_cache(maxsize=256)
def _scale(trace: Trace) -> float:
    first, last = trace.support
    kernel = trace._unscaled_kernel(last)[first:]
    return float(np.abs(kernel).sum() if trace.normalization == "area" else kernel.max())


def check_whole(number: object, name: str) -> None:
    """Raise ValueError unless `number` is an integer, of Python's kind or numpy's."""
    if not isinstance(number, Integral):
        raise ValueError(f"{name} must be a whole number, got {number!r}")


def check_number(number: object, name: str) -> None:
    """Raise ValueError unless `number` is a real number, of Python's kind or numpy's."""
    if not isinstance(number, Real):
        raise ValueError(f"{name} must be a number, got {number!r}")


def check_order(order: int, kind: str) -> None:
    """Raise ValueError unless `order` can be the number of states of a trace with a peak."""
    check_whole(order, f"order of {kind}")
    if order < 2:
        raise ValueError(
            f"{kind} needs an order of at least 2, got {order}; one state is the classical trace, ET (--trace et)"
        )


def check_delay_steps(delay_steps: int, kind: str, *, at_least: int = 1) -> None:
    """Raise ValueError unless `delay_steps` is a whole number no smaller than `at_least`."""
    check_whole(delay_steps, f"delay_steps of {kind}")
    if delay_steps < at_least:
        raise ValueError(
            f"{kind} needs a delay of at least {at_least} whole step{'s' * (at_least != 1)}, got {delay_steps}"
        )
