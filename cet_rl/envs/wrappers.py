"""Wrappers of single environments: clock, delayed credit, delayed reward, sign split, actions from zero."""

from __future__ import annotations

from collections import deque
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs

from cet_rl.envs.snapshot import register_snapshot
from cet_rl.traces.timing import BEHAVIOURAL_STEP, CreditTiming, same_time, whole_steps

Env = gym.Env[Any, Any]


class StepClock(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Define how many seconds each step of the environment stands for.

    Delays in seconds become steps of this length; the simulation itself is unchanged. (CartPole pushed one way for
    200 ms falls within two steps whatever the policy.) `CETActorCritic` reads `step_duration`.

    Args:
        env: any environment.
        step_duration: Δt in seconds; in the paper 0.2, and 0.3 for retrograde signals (sec. 4).
    """

    def __init__(self, env: Env, step_duration: float = BEHAVIOURAL_STEP) -> None:
        RecordConstructorArgs.__init__(self, step_duration=step_duration)
        super().__init__(env)
        self.step_duration = CreditTiming(step_duration=step_duration).step_duration

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode; the seed is taken modulo 2^32, since many environments refuse larger ones."""
        found: Any = self.env.reset(seed=None if seed is None else seed % 2**32, options=options)
        if not isinstance(found, tuple) or len(found) != 2:
            raise ValueError(
                f"reset of {self.unwrapped} must return observation and info, not as in the older Gym"
            )
        needs, given = self.env.observation_space.shape, np.shape(found[0])
        if needs not in (None, given):
            raise ValueError(f"{self.unwrapped} shows observations of shape {given}, its space has {needs}")
        return found

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take one step; raise ValueError unless it is one of Gymnasium's interface."""
        found: Any = self.env.step(action)
        if not isinstance(found, tuple) or len(found) != 5 or getattr(found[1], "shape", None):
            needs = "observation, reward (a number), terminated, truncated and info, not as in the older Gym"
            raise ValueError(f"step of {self.unwrapped} must return {needs}")
        return found


def seconds_a_step(env: Env, given: float | None) -> float:
    """Return the seconds that a step stands for: as given, by the environment's own clock, or 0.2.

    Raises ValueError for a number that is not that of the environment's clock.
    """
    found = env.get_wrapper_attr("step_duration") if env.has_wrapper_attr("step_duration") else None
    own = None if found is None else CreditTiming(step_duration=found).step_duration
    if given is None:
        return own or BEHAVIOURAL_STEP
    given = CreditTiming(step_duration=given).step_duration
    if own is not None and not same_time(own, given):
        raise ValueError(f"the environment's clock says {own:g} s a step, not {given:g} s (--step-ms)")
    return given


class DelayedCredit(StepClock):
    """Define when credit for a step of this environment reaches an agent's layers.

    The environment itself is unchanged. `CETActorCritic` takes its delays from here unless it is given others:

        env = DelayedCredit(gym.make("CartPole-v1"), delay=120, step_duration=0.3, stacked=True)
        CETActorCritic("MlpPolicy", env, order=10)  # 800, 400 and 0 steps

    Args:
        env: any environment.
        delay: T, in seconds.
        step_duration: Δt, in seconds; None for the environment's own clock, or 0.2.
        stacked: whether delays add up from the output layer down (retrograde signalling).

    Raises:
        ValueError: for a delay that is negative, or not a whole number of steps, and for a clock or delay other
            than those that the environment itself has.
    """

    def __init__(self, env: Env, delay: float, step_duration: float | None = None, stacked: bool = False) -> None:
        step_duration = seconds_a_step(env, step_duration)
        # Called before StepClock's: only the first call records arguments, with which a spec is rebuilt.
        RecordConstructorArgs.__init__(self, delay=delay, step_duration=step_duration, stacked=stacked)
        super().__init__(env, step_duration)
        self.credit_timing = asked = CreditTiming(delay, self.step_duration, bool(stacked))
        own = env.get_wrapper_attr("credit_timing") if env.has_wrapper_attr("credit_timing") else None
        if own is not None and not own.same_delay(asked):
            raise ValueError(f"the environment says that credit is {own} late, not {asked} (--delay, --stacked)")


class DelayedReward(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Deliver each reward `delay` seconds after it was earned.

    Rewards pending when an episode ends, by termination or truncation, are delivered with its last step, so that
    the episode's return is unchanged. (`CETActorCritic(delay=…)` models a credit signal that is delayed inside the
    agent, and does not need this.)

    Args:
        env: any environment; a time limit belongs inside.
        delay: in seconds.
        step_duration: seconds that a step stands for; None for the environment's own clock, or 0.2.

    Raises:
        ValueError: as `DelayedCredit`.
    """

    def __init__(self, env: Env, delay: float, step_duration: float | None = None) -> None:
        step_duration = seconds_a_step(env, step_duration)
        RecordConstructorArgs.__init__(self, delay=delay, step_duration=step_duration)
        super().__init__(env)
        self.delay_steps = whole_steps(delay, step_duration)
        self._pending: deque[float] = deque()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode without pending rewards."""
        self._pending = deque([0.0] * self.delay_steps)
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take one step, and return the reward of `delay_steps` steps ago."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._pending.append(float(reward))
        delayed = self._pending.popleft()
        if terminated or truncated:
            delayed += sum(self._pending)
            self._pending = deque([0.0] * self.delay_steps)  # an `Autoreset` inside resets by itself
        return observation, delayed, terminated, truncated, info


class PositiveNegativeSplit(gym.ObservationWrapper[Any, Any, Any], RecordConstructorArgs):
    """Split an observation into its positive part and its negated negative part (paper, App. C).

    Vectors (n,) become (2n,), maps (channels, height, width) get twice the channels, and whole numbers become
    floats of 32 bits. `CETActorCritic` splits its inputs itself where they can be negative; this wrapper is for
    other agents.
    """

    def __init__(self, env: Env) -> None:
        RecordConstructorArgs.__init__(self)
        super().__init__(env)
        space = env.observation_space
        if not isinstance(space, spaces.Box) or len(space.shape) not in (1, 3):
            raise ValueError(f"only a Box of vectors or maps can be split by sign, this environment shows {space}")
        if space.dtype == np.bool_ or np.issubdtype(space.dtype, np.unsignedinteger):
            raise ValueError(f"observations of type {space.dtype} are never negative: nothing to split by sign")
        # The negative of the least whole number, of -128 in 8 bits, would be itself.
        whole = np.issubdtype(space.dtype, np.integer)
        self._type: type[np.floating[Any]] = np.float32 if whole else space.dtype.type
        least, most = space.low.astype(self._type), space.high.astype(self._type)
        low = np.concatenate([np.maximum(least, 0), np.maximum(-most, 0)])
        high = np.concatenate([np.maximum(most, 0), np.maximum(-least, 0)])
        self.observation_space = spaces.Box(low, high, dtype=self._type)

    def observation(self, observation: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return both parts: (n, …) to (2n, …)."""
        signed = observation.astype(self._type)
        return np.concatenate([np.maximum(signed, 0), np.maximum(-signed, 0)])


class ActionsFromZero(gym.ActionWrapper[Any, Any, Any], RecordConstructorArgs):
    """Count discrete actions from zero, for agents that ignore the `start` of their action space."""

    def __init__(self, env: Env) -> None:
        RecordConstructorArgs.__init__(self)
        super().__init__(env)
        space = env.action_space
        self._first = int(space.start) if isinstance(space, spaces.Discrete) else 0
        if self._first:
            self.action_space = spaces.Discrete(space.n)  # type: ignore[attr-defined]

    def action(self, action: Any) -> Any:
        """Return the environment's action."""
        return action + self._first if self._first else action


for _stateless in (StepClock, DelayedCredit, PositiveNegativeSplit, ActionsFromZero):
    register_snapshot(_stateless)
register_snapshot(DelayedReward, ["_pending"])
