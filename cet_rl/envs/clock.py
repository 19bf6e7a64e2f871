"""The step clock: what one transition of an environment stands for."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from cet_rl.timing import BEHAVIOURAL_STEP, CreditTiming


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
