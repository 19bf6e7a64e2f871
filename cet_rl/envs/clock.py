"""The time that one transition of an environment stands for."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from cet_rl.traces.timing import BEHAVIOURAL_STEP, CreditTiming


class StepClock(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Define how many seconds each step of the environment stands for, and count them.

    Delays in seconds become steps of this length; the simulation itself is unchanged. (CartPole pushed one way for
    200 ms falls within two steps whatever the policy.) `CETActorCritic` reads `step_duration`.

    Args:
        env: any environment.
        step_duration: Δt in seconds: 0.2 for behavioural time scales, 0.3 for retrograde signals
            (paper, section 4).

    Raises:
        ValueError: unless `step_duration` is positive and finite.
    """

    def __init__(self, env: gym.Env[Any, Any], step_duration: float = BEHAVIOURAL_STEP) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, step_duration=step_duration)
        super().__init__(env)
        CreditTiming(step_duration=step_duration)
        self.step_duration = float(step_duration)
        self._steps = 0

    @property
    def elapsed(self) -> float:
        """Return the seconds since the episode began."""
        return self._steps * self.step_duration

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode at time zero."""
        self._steps = 0
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Take one step."""
        self._steps += 1
        return self.env.step(action)

    def get_state(self) -> dict[str, Any]:
        """Return the position within the episode as plain data (`cet_rl.envs.snapshot`)."""
        return {"steps": self._steps}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_state` returned."""
        self._steps = int(state["steps"])


def clock_of(env: gym.Env[Any, Any]) -> float:
    """Return the seconds a step of the environment stands for: as its own clock says, or 0.2."""
    return (
        float(env.get_wrapper_attr("step_duration")) if env.has_wrapper_attr("step_duration") else BEHAVIOURAL_STEP
    )
