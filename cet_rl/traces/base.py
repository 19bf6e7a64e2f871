"""Define a synaptic trace: a small linear filter of the Hebbian term, with one output.

    S_t = M S_{t-1} + K h_t        c_t = C · S_t        c_t = Σ_ℓ g_ℓ h_{t-ℓ}

h is the Hebbian term of a synapse (paper, Eq. 1), held constant over a step; S are the trace's states, c its
output, read after the step's input is absorbed (lag 0 is the step itself), and g its kernel.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, wraps
from numbers import Integral
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from cet_rl.runs.plugins import naming
from cet_rl.runs.values import checked

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure

Normalization = Literal["area", "peak"]
"""How a kernel is scaled: to Σ|g| = 1, or to max g = 1 (paper, App. C)."""
FloatArray = npt.NDArray[np.float64]

TAIL_TOLERANCE = 1e-15
"""Share of a kernel's area that may lie beyond its numerical support: below the rounding of float64."""

_LONGEST_KERNEL = 1 << 22

_BLOCK = 1 << 10  # lags of a kernel that are computed step by step; later ones follow from them in blocks


@dataclass(frozen=True)
class Transition:
    """Hold the constants of a trace in state-space form, float64."""

    M: FloatArray  # (n, n), how the states carry over one step
    K: FloatArray  # (n,), how a step's input enters them
    C: FloatArray  # (n,), how they are read; holds the normalisation

    def kernel(self, length: int) -> FloatArray:
        """Return g_ℓ = C · M^ℓ K for ℓ = 0 … length - 1, by running the recursion."""
        return self._run(length)[0]

    def _run(self, length: int) -> tuple[FloatArray, FloatArray]:
        """Return the kernel, and the state M^{length-1} K that is left when its last lag is read."""
        block = np.empty((len(self.K), min(length, _BLOCK)))
        state = self.K
        for lag in range(block.shape[1]):
            block[:, lag] = state
            state = self.M @ state
        jump = np.linalg.matrix_power(self.M, block.shape[1])
        kernel = np.empty(length)
        for first in range(0, length, _BLOCK):
            if first:
                block = jump @ block
            kernel[first : first + _BLOCK] = (self.C @ block)[: length - first]
        return kernel, block[:, (length - 1) % _BLOCK]


class Trace(ABC):
    """Define a kind of synaptic memory: a frozen dataclass that holds no state of any synapse.

    A trace of your own derives from this class and defines `transition`; everything else follows. Its fields may
    be `delay_steps`, `order`, `normalization` and further options, all hashable. For a kernel given by its values
    there is `cet_rl.FiniteKernel`.

    Attributes:
        normalization: "area" scales the kernel so that Σ|g| = 1; "peak" so that max g = 1 (paper, App. C).

    Example:
        >>> @dataclass(frozen=True)
        ... class Halving(Trace):
        ...     def transition(self):
        ...         return Transition(M=[[0.5]], K=[1.0], C=[1.0])
        >>> Halving().kernel(3).tolist()
        [0.5, 0.25, 0.125]
    """

    normalization: Normalization = "area"
    _define: ClassVar[Callable[[Any], Any]]

    def __post_init__(self) -> None:
        checked(self.normalization, Normalization, "normalization")

    def __init_subclass__(cls, **options: Any) -> None:
        """Wrap the subclass's `transition`, so that the constants it returns are checked and normalised."""
        super().__init_subclass__(**options)
        define = cls.transition
        closed_forms = {"support"} if "unscaled_kernel" in vars(cls) else set()
        if define is not Trace.transition and not hasattr(define, "scales"):

            @wraps(define)
            def transition(self: Trace) -> Transition | None:
                # A subclass that asks super() for its constants gets them as they are.
                return _scaled(self) if type(self).transition is transition else define(self)

            transition.scales = True  # type: ignore[attr-defined]
            cls._define = define
            cls.transition = transition  # type: ignore[method-assign]
            closed_forms = {"unscaled_kernel", "support"}
        # Closed forms of a base class do not hold for other constants.
        for name in closed_forms - vars(cls).keys():
            setattr(cls, name, vars(Trace)[name])

    @classmethod
    def from_delay(cls, delay_steps: int, *args: Any, **options: Any) -> Trace:
        """Return the trace for credit that arrives `delay_steps` late; options are the constructor's.

        A subclass overrides this if its constructor takes no delay, or if some options stand for another class.
        """
        return cls(*args, delay_steps=delay_steps, **options)  # type: ignore[call-arg]

    @abstractmethod
    def transition(self) -> Transition | None:
        """Return (M, K, C) in float64, normalised; None for a trace that is a delay line and has no states.

        A subclass may return them at any scale, as a `Transition` or a tuple, as lists or arrays.

        Raises:
            ValueError: if shapes do not fit, a number is not finite, the memory does not fade, or nothing is
                remembered.
        """

    @property
    def made_for(self) -> int | None:
        """Return the delay in steps that the trace is made for; None if it knows none."""
        delay_steps: int | None = getattr(self, "delay_steps", None)
        return delay_steps

    @property
    def states(self) -> int:
        """Return n, the number of state variables a synapse needs; 0 for a trace kept as a delay line."""
        constants = _constants(self)
        return 0 if constants is None else len(constants.K)

    def unscaled_kernel(self, length: int) -> FloatArray:
        """Return the kernel before normalisation, shape (length,); a subclass may give a closed form of it."""
        constants = _constants(self)
        assert constants is not None
        return constants.kernel(length)

    def kernel(self, length: int) -> torch.Tensor:
        """Return the normalised response to a unit input held for one step: g_0 … g_{length-1}, in float64.

        Raises ValueError if length is below one; also see `transition`.
        """
        import torch  # a second to load, and configurations are read without it

        return torch.from_numpy(self.kernel_array(length))

    def kernel_array(self, length: int) -> FloatArray:
        """Return `kernel` as an array of NumPy, without importing torch."""
        check_whole(length, "length", at_least=1)
        return self.unscaled_kernel(length) / self.scale

    @property
    def scale(self) -> float:
        """Return the number that the unscaled kernel is divided by."""
        return _scale(self)

    @property
    def support(self) -> tuple[int, int]:
        """Return the lags [first, last) outside of which the kernel vanishes in float64."""
        return _support(self)

    def share(self, lag: int) -> float:
        """Return the share of the kernel's energy at one lag, g_lag² / Σ g²: how sharply it recalls that lag."""
        check_whole(lag, "lag")
        if lag < 0:
            return 0.0
        energy = self.unscaled_kernel(max(lag + 1, self.support[1])) ** 2
        return float(energy[lag] / energy.sum())

    @property
    def sharpness(self) -> float | None:
        """Return the share of the kernel's energy at the delay; None where the trace knows no delay."""
        return None if self.made_for is None else self.share(self.made_for)

    @property
    def bound(self) -> float | None:
        """Return min(1, n / (D+1)), which no sharpness of n states exceeds (docs/method.md has the proof).

        None for a trace without states, or one that knows no delay.
        """
        return None if self.made_for is None else largest_share(self.states, self.made_for)

    def plot(self) -> Figure:
        """Draw the kernel over the lag, and return the figure."""
        from cet_rl.traces.plot import plot_kernels

        return plot_kernels({repr(self): self})


def largest_share(states: int, lag: int) -> float | None:
    """Return the largest share of its energy that a kernel of n states can have at a lag; None for n = 0."""
    return min(1.0, states / (lag + 1)) if states else None


def real_numbers(values: object) -> FloatArray:
    """Return numbers as an array of float64, a copy; raise TypeError or ValueError for what is no real number.

    Casting alone would drop the imaginary part of complex numbers.
    """
    try:
        found = np.asarray(values)
    except RuntimeError as error:  # torch's, for a tensor with a gradient
        raise TypeError(error) from None
    if np.iscomplexobj(found):
        raise TypeError(f"{found.dtype} numbers are not real")
    return found.astype(np.float64)


@lru_cache(maxsize=256)
def _constants(trace: Trace) -> Transition | None:
    """Return the constants that the class of a trace defines, checked and not yet scaled."""
    kind = type(trace).__name__
    with naming(f"{kind}.transition() fails"):
        found = type(trace)._define(trace)
    if found is None:
        if type(trace).unscaled_kernel is Trace.unscaled_kernel:
            raise ValueError(f"{kind}.transition() returns nothing: without states, use a cet_rl.FiniteKernel")
        return None
    try:
        parts = (found.M, found.K, found.C) if isinstance(found, Transition) else found
        M, K, C = map(real_numbers, parts)
    except (TypeError, ValueError):
        raise ValueError(f"{kind}.transition() must return M, K and C of real numbers, got {found!r}") from None
    n = len(K) if K.ndim == 1 else 0
    if not n or M.shape != (n, n) or C.shape != (n,):
        shapes = ", ".join(f"{name} {part.shape}" for name, part in zip("MKC", (M, K, C), strict=True))
        raise ValueError(f"{kind}.transition() must return M (n, n), K (n,) and C (n,), got {shapes}")
    if not all(np.isfinite(part).all() for part in (M, K, C)):
        raise ValueError(f"{kind}.transition() returns numbers that are not finite")
    return Transition(M, K, C)


def _scaled(trace: Trace) -> Transition | None:
    constants = _constants(trace)
    if constants is None:
        return None
    return Transition(constants.M.copy(), constants.K.copy(), constants.C / trace.scale)


@lru_cache(maxsize=256)
def _support(trace: Trace) -> tuple[int, int]:
    length = 64
    while length <= _LONGEST_KERNEL:
        with np.errstate(over="ignore", invalid="ignore"):
            kernel, left = _window(trace, length)
        if not np.isfinite(kernel).all():
            raise ValueError(f"the kernel of {trace} is not finite: its memory grows instead of fading")
        magnitude = np.abs(kernel)
        total = magnitude.sum()
        outside = TAIL_TOLERANCE * total
        ended = left <= outside and magnitude[length // 2 :].sum() <= outside
        if ended and not _rises_again(trace, length, outside):
            if total == 0:
                raise ValueError(f"{trace} remembers nothing: its kernel is zero everywhere")
            first = int(np.searchsorted(np.cumsum(magnitude), outside, side="right"))
            tail = np.cumsum(magnitude[::-1])[::-1]
            last = int(np.searchsorted(-tail, -outside, side="left"))
            return first, max(last, first + 1)
        length *= 2
    raise ValueError(f"{trace} forgets too slowly: its kernel does not vanish within {_LONGEST_KERNEL} steps")


def _window(trace: Trace, length: int) -> tuple[FloatArray, float]:
    """Return the unscaled kernel at lags 0 … length - 1, and a bound on its values at later lags.

    A kernel in closed form decays geometrically in the end, so the bound is zero once it has begun; the caller
    sees whether it has ended. Any other kernel may be zero for long and rise again: the states give its bound.
    """
    if type(trace).unscaled_kernel is not Trace.unscaled_kernel:
        kernel = trace.unscaled_kernel(length)
        return kernel, 0.0 if kernel.any() else np.inf
    constants = _constants(trace)
    assert constants is not None
    kernel, state = constants._run(length)
    return kernel, float(np.abs(state).sum() * np.abs(constants.C).max())


def _rises_again(trace: Trace, length: int, outside: float) -> bool:
    """Tell whether a third party's kernel in closed form is large at lags from `length` on; ours are not."""
    kernel = type(trace).unscaled_kernel
    if kernel is Trace.unscaled_kernel or kernel.__module__.startswith("cet_rl."):
        return False
    values, constants = trace.unscaled_kernel(4 * length + 2 * (trace.made_for or 0)), _constants(trace)
    close = 1e-3 * float(abs(values).max())
    if constants is not None and not np.allclose(values, constants.kernel(len(values)), rtol=0, atol=close):
        raise ValueError(f"unscaled_kernel and transition of {type(trace).__name__} define different kernels")
    return not np.abs(values[length:]).sum() <= outside


@lru_cache(maxsize=256)
def _scale(trace: Trace) -> float:
    first, last = trace.support
    kernel = trace.unscaled_kernel(last)[first:]
    if trace.normalization == "area":
        return float(np.abs(kernel).sum())
    if kernel.max() <= 0:
        raise ValueError(f"the kernel of {trace} has no positive lag to scale to one: use normalization='area'")
    return float(kernel.max())


def check_whole(number: object, name: str, at_least: float = -np.inf) -> None:
    """Raise ValueError unless `number` is an integer, Python's or NumPy's, and not below `at_least`."""
    if isinstance(number, bool) or not isinstance(number, Integral):
        raise ValueError(f"{name} must be a whole number, got {number!r}")
    if number < at_least:
        raise ValueError(f"{name} must be at least {at_least}, got {number}")


@dataclass(frozen=True)
class OrderedTrace(Trace):
    """Define the fields of a trace with n states that is made for one delay.

    Attributes:
        order: n, the number of states.
        delay_steps: D ≥ 1, in steps.
        normalization: see `Trace`.

    Raises:
        ValueError: for an order or a delay that is too small or no whole number.
    """

    order: int
    delay_steps: int
    normalization: Normalization = "area"
    least_order: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        kind = type(self).__name__
        check_whole(self.order, f"order of {kind}")
        if self.order < self.least_order:
            hint = "; one state is the classical trace, ET (--trace et)" if self.least_order == 2 else ""
            raise ValueError(f"{kind} needs an order of at least {self.least_order}, got {self.order}{hint}")
        check_whole(self.delay_steps, f"delay_steps of {kind}", at_least=1)
