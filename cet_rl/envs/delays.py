"""Delay what an agent learns from: the credit signal inside the agent, or the reward itself."""

from __future__ import annotations

from collections import deque
from typing import Any

import gymnasium as gym

from cet_rl.envs.clock import StepClock, clock_of
from cet_rl.traces.timing import CreditTiming, whole_steps


class DelayedCredit(StepClock):
    """Says when credit for what happens in this environment reaches an agent's layers.

    Nothing about the environment changes. `CETActorCritic` takes its delays from here unless it is told of others:

        env = DelayedCredit(gym.make("CartPole-v1"), delay=120, step_duration=0.3, stacked=True)
        CETActorCritic("MlpPolicy", env, order=10)  # 800, 400 and 0 steps

    Args:
        env: any environment.
        delay: T, in seconds.
        step_duration: Δt, in seconds; None for that of a clock inside, or 0.2.
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
    """Hands out each reward `delay` seconds after it was earned.

    What is outstanding when an episode ends, by termination or truncation, is handed out with its last step, so
    that an episode's return stays what it was. (`CETActorCritic(delay=…)` models a credit signal that is late
    inside the agent, and does not need this.)

    Args:
        env: any environment; a time limit belongs inside.
        delay: in seconds.
        step_duration: seconds a step stands for; None for what a clock inside says, or 0.2.

    Raises:
        ValueError: if the delay is negative or no whole number of steps.
    """

    def __init__(self, env: gym.Env[Any, Any], delay: float, step_duration: float | None = None) -> None:
        step_duration = clock_of(env) if step_duration is None else step_duration
        gym.utils.RecordConstructorArgs.__init__(self, delay=delay, step_duration=step_duration)
        super().__init__(env)
        self.delay_steps = whole_steps(delay, step_duration)
        self._outstanding: deque[float] = deque()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode; nothing is owed from the last."""
        self._outstanding = deque([0.0] * self.delay_steps)
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One step later, with the reward of `delay_steps` steps before."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._outstanding.append(float(reward))
        arriving = self._outstanding.popleft()
        if terminated or truncated:
            arriving += sum(self._outstanding)
            self._outstanding.clear()
        return observation, arriving, terminated, truncated, info

    def get_state(self) -> dict[str, Any]:
        """What is owed, as plain data (`cet_rl.envs.snapshot`)."""
        return {"outstanding": list(self._outstanding)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Owe that."""
        self._outstanding = deque(state["outstanding"])
