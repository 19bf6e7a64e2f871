"""CartPole with the same numbers as Gymnasium's in less time, and its vectorised form with same-step autoreset."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.envs import classic_control
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import AutoresetMode

from cet_rl.envs.snapshot import register_snapshot


class CartPoleEnv(classic_control.CartPoleEnv):
    """Step as Gymnasium's class of this name does, bit for bit, but with Python's floats, which are faster.

    Gymnasium's own `step` is called where it does more than compute the next state of a running episode.
    """

    @property
    def is_usual(self) -> bool:
        """Tell whether a step computes only the next state of a running episode."""
        usual = self.kinematics_integrator == "euler" and not self._sutton_barto_reward and not self.render_mode
        return usual and self.steps_beyond_terminated is None and isinstance(self.state, np.ndarray)

    @property
    def physics(self) -> tuple[float, ...]:
        """Return the constants on which the next state and the end of an episode depend."""
        constants = self.gravity, self.masspole, self.total_mass, self.length, self.polemass_length, self.force_mag
        return *constants, self.tau, self.x_threshold, self.theta_threshold_radians

    def step(self, action: Any) -> tuple[npt.NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Take one step."""
        if not (self.is_usual and isinstance(action, (int, np.integer)) and 0 <= action <= 1):
            return super().step(action)  # type: ignore[no-any-return, no-untyped-call]
        before: list[float] = self.state.tolist()  # type: ignore[union-attr]
        force = self.force_mag if action == 1 else -self.force_mag
        # NumPy's cosine and sine, as Gymnasium's: the last bit of those of `math` may differ.
        state = next_state(self, before, force, np.cos(before[2]).item(), np.sin(before[2]).item())
        self.state = np.array(state)
        fallen = abs(state[0]) > self.x_threshold or abs(state[2]) > self.theta_threshold_radians
        if fallen:
            self.steps_beyond_terminated = 0  # type: ignore[assignment]
        return self.state.astype(np.float32), 1.0, fallen, False, {}


def next_state(pole: CartPoleEnv, state: Any, force: Any, cosine: Any, sine: Any) -> tuple[Any, Any, Any, Any]:
    """Return x, its velocity, the angle and its velocity after a step, as floats, or as arrays for many CartPoles.

    `cosine` and `sine` are those of the angle. Operations and their order are Gymnasium's.
    """
    x, velocity, angle, turning = state
    push = (force + pole.polemass_length * (turning * turning) * sine) / pole.total_mass
    inertia = pole.length * (4.0 / 3.0 - pole.masspole * (cosine * cosine) / pole.total_mass)
    angular = (pole.gravity * sine - cosine * push) / inertia
    linear = push - pole.polemass_length * angular * cosine / pole.total_mass
    return (
        *(x + pole.tau * velocity, velocity + pole.tau * linear),
        *(angle + pole.tau * turning, turning + pole.tau * angular),
    )


class VectorCartPole(CartPoleVectorEnv):
    """Reset each environment in the step that ends its episode; Gymnasium's own form resets in a step of its own.

    Wrappers and agents would take such a reset step for a transition.
    """

    metadata = CartPoleVectorEnv.metadata | {"autoreset_mode": AutoresetMode.SAME_STEP}

    def step(self, action: npt.NDArray[Any]) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step each environment; `final_obs` holds the last observations of episodes that end."""
        observations, rewards, terminated, truncated, info = super().step(action)
        ended = terminated | truncated
        if ended.any():
            info["final_obs"], info["_final_obs"] = observations, ended
            state: Any = self.state
            state[:, ended] = self.np_random.uniform(self.low, self.high, (4, ended.sum()))
            self.steps[ended], self.prev_done[:] = 0, False
            observations = state.T.astype(np.float32)
        return observations, rewards, terminated, truncated, info


register_snapshot(CartPoleEnv, like=classic_control.CartPoleEnv)
register_snapshot(VectorCartPole, ["state", "steps", "prev_done", "low", "high"])
OURS = {f"{k.__module__}:{k.__name__}": ours for ours in (CartPoleEnv, VectorCartPole) for k in ours.__bases__}
"""Our classes by the entry points of Gymnasium's classes that they replace."""
