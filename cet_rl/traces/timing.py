"""Convert seconds to steps: when the credit signal reaches each layer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cet_rl.runs.values import checked
from cet_rl.traces.base import FloatArray, check_whole

# Two delays closer than this, relative to each other, are the same: 1.2 / 0.2 is 5.999... in binary.
RELATIVE_TOLERANCE = 1e-9

LONGEST_DELAY = 1_000_000  # steps beyond which a delay is refused: more than two days of 0.2 s steps
BEHAVIOURAL_STEP = 0.2  # seconds one simulation step stands for at behavioural time scales (paper, section 4)


def whole_steps(delay: float, step_duration: float) -> int:
    """Return the delay in whole steps, D = T / Δt, both in seconds.

    Raises ValueError for a step duration that is not positive, and for a delay that is negative, not finite, too
    long, or no whole number of steps; then the message names the two nearest valid delays.
    """
    delay, step_duration = checked(delay, float, "delay"), checked(step_duration, float, "step_duration")
    if not math.isfinite(step_duration) or step_duration <= 0:
        raise ValueError(f"step duration must be a positive number of seconds, got {step_duration:g}")
    if not math.isfinite(delay) or delay < 0:
        raise ValueError(f"delay must be zero or a positive, finite number of seconds, got {delay:g}")
    exact = delay / step_duration
    if not exact <= LONGEST_DELAY:
        raise ValueError(f"a delay of {delay:g} s is more than {LONGEST_DELAY:,} steps of {step_duration:g} s")
    nearest = round(exact)
    if abs(exact - nearest) > RELATIVE_TOLERANCE * exact:
        below, above = math.floor(exact), math.ceil(exact)
        raise ValueError(
            f"a delay of {delay:g} s is no whole number of {step_duration:g} s steps; "
            f"the nearest valid delays are {below * step_duration:g} s and {above * step_duration:g} s"
        )
    return nearest


def check_jitter(name: str, jitter: float) -> None:
    """Raise ValueError unless the jitter, called `name` in the message, lies in [0, 1]."""
    if not 0 <= checked(jitter, float, name) <= 1:
        raise ValueError(f"{name} must lie in [0, 1], as errors follow their cause, got {jitter:g}")


def jitter_draws(seed: int, step: int, count: int) -> FloatArray:
    """Return u ~ U[-1, 1] for each of `count` events of a step; equal seeds and steps give equal numbers."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(step,))).uniform(-1, 1, count)


def jittered_steps(delay_steps: int, jitter: float, draws: FloatArray) -> npt.NDArray[np.int64]:
    """Return the steps after which errors arrive, D (1 + J u) rounded, for draws u of any shape."""
    return np.rint(delay_steps * (1 + jitter * draws)).astype(np.int64)


def same_time(a: float, b: float) -> bool:
    """Tell whether two numbers of seconds are the same but for rounding."""
    return math.isclose(a, b, rel_tol=RELATIVE_TOLERANCE)


def longest_steps(delay_steps: int, jitter: float) -> int:
    """Return the largest of all `jittered_steps`, which is that at u = 1."""
    return round(delay_steps * (1 + jitter))


@dataclass(frozen=True)
class CreditTiming:
    """Tell when credit arrives, in seconds, for a network of `layers` layers.

    Uniform (behavioural time scale): the signal reaches every layer after `delay` (paper, section 4.1).
    Stacked (retrograde signalling): each layer passes it on after another `delay`, so that the output layer
    waits 0, the layer before it `delay`, the one before that twice `delay` (section 4.2, Fig. 6).

    Raises ValueError as `whole_steps` does, and for fewer layers than one.
    """

    delay: float = 0.0  # T, in seconds
    step_duration: float = BEHAVIOURAL_STEP  # Δt, in seconds: the time one simulation step stands for
    stacked: bool = False  # whether delays add up from the output layer down
    layers: int = 3  # number of layers, input side first

    def __post_init__(self) -> None:
        check_whole(self.layers, "layers", at_least=1)
        for name, kind in (("delay", float), ("step_duration", float), ("stacked", bool)):
            object.__setattr__(self, name, checked(getattr(self, name), kind, name))
        whole_steps(self.delay, self.step_duration)

    def __str__(self) -> str:
        return f"{self.delay:g} s{', stacked' * self.stacked}"

    def same_delay(self, other: CreditTiming) -> bool:
        """Tell whether another delay is the same but for rounding, and stacked alike."""
        return same_time(self.delay, other.delay) and self.stacked == other.stacked

    @property
    def delay_steps(self) -> int:
        """Return D: the delay of one layer (stacked) or of all of them (uniform), in steps."""
        return whole_steps(self.delay, self.step_duration)

    @property
    def layer_delays(self) -> tuple[int, ...]:
        """Return the delay of each layer in steps, input side first."""
        steps = self.delay_steps
        if self.stacked:
            return tuple(steps * (self.layers - 1 - layer) for layer in range(self.layers))
        return (steps,) * self.layers

    def check_run(self, samples: int, num_envs: int, jitter: float = 0.0) -> None:
        """Raise ValueError if a run of `samples` in all environments ends before credit reaches all layers."""
        longest = longest_steps(max(self.layer_delays), jitter)
        if longest and longest >= samples / num_envs:
            each = f" in each of {num_envs} environments" * (num_envs > 1)
            raise ValueError(
                f"the longest delay is {longest} steps, but this run makes only {samples // num_envs}{each}: "
                "learn for longer (--total-steps) or use a shorter delay"
            )
