"""What one transition of an environment stands for, and when credit for it arrives."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from cet_rl.traces.timing import BEHAVIOURAL_STEP, CreditTiming


class StepClock(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Says how many seconds each step of the environment stands for, and counts them.

    The clock does not touch the environment's physics: CartPole pushed one way for 200 ms falls within two steps
    whatever a policy does. `CETActorCritic` reads `step_duration` from it.

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
        """Seconds since the episode began."""
        return self._steps * self.step_duration

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode at time zero."""
        self._steps = 0
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """One step later."""
        self._steps += 1
        return self.env.step(action)

    def get_state(self) -> dict[str, Any]:
        """Where in the episode it is, as plain data (`cet_rl.envs.snapshot`)."""
        return {"steps": self._steps}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._steps = int(state["steps"])


def clock_of(env: gym.Env[Any, Any]) -> float:
    """Seconds a step of the environment stands for, by a clock inside if it has one."""
    return (
        float(env.get_wrapper_attr("step_duration")) if env.has_wrapper_attr("step_duration") else BEHAVIOURAL_STEP
    )
