"""Delay what an agent learns from: the credit signal inside the agent, or the reward itself."""

from __future__ import annotations

from collections import deque
from typing import Any

import gymnasium as gym

from cet_rl.envs.clock import StepClock, clock_of
from cet_rl.traces.timing import CreditTiming, whole_steps


class DelayedCredit(StepClock):
    """Define when credit for what happens in this environment reaches an agent's layers.

    The environment itself is unchanged. `CETActorCritic` takes its delays from here unless it is given others:

        env = DelayedCredit(gym.make("CartPole-v1"), delay=120, step_duration=0.3, stacked=True)
        CETActorCritic("MlpPolicy", env, order=10)  # 800, 400 and 0 steps

    Args:
        env: any environment.
        delay: T, in seconds.
        step_duration: Δt, in seconds; None for the environment's own clock, or 0.2.
        stacked: whether delays add up from the output layer down (retrograde signalling).

    Raises:
        ValueError: if the delay is negative or no whole number of steps.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any],
        delay: float,
        step_duration: float | None = None,
        stacked: bool = False,
    ) -> None:
        step_duration = clock_of(env) if step_duration is None else step_duration
        # First: the arguments recorded first are those that a spec is rebuilt with.
        gym.utils.RecordConstructorArgs.__init__(self, delay=delay, step_duration=step_duration, stacked=stacked)
        super().__init__(env, step_duration)
        self.credit_timing = CreditTiming(float(delay), self.step_duration, bool(stacked))


class DelayedReward(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Deliver each reward `delay` seconds after it was earned.

    Rewards pending when an episode ends, by termination or truncation, are delivered with its last step, so that
    the episode's return is unchanged. (`CETActorCritic(delay=…)` models a credit signal that is delayed inside the
    agent, and does not need this.)

    Args:
        env: any environment; a time limit belongs inside.
        delay: in seconds.
        step_duration: seconds a step stands for; None for the environment's own clock, or 0.2.

    Raises:
        ValueError: if the delay is negative or no whole number of steps.
    """

    def __init__(self, env: gym.Env[Any, Any], delay: float, step_duration: float | None = None) -> None:
        step_duration = clock_of(env) if step_duration is None else step_duration
        gym.utils.RecordConstructorArgs.__init__(self, delay=delay, step_duration=step_duration)
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
        """Take one step, and return the reward of `delay_steps` steps before."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._pending.append(float(reward))
        delayed = self._pending.popleft()
        if terminated or truncated:
            delayed += sum(self._pending)
            self._pending.clear()
        return observation, delayed, terminated, truncated, info

    def get_state(self) -> dict[str, Any]:
        """Return the pending rewards as plain data (`cet_rl.envs.snapshot`)."""
        return {"pending": list(self._pending)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_state` returned."""
        self._pending = deque(state["pending"])
