"""Step the vector environments of many agents side by side: one after another, or all CartPoles in one call."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from cet_rl.envs.cartpole import CartPoleEnv, next_state
from cet_rl.envs.snapshot import layers
from cet_rl.envs.vector import DummyVecEnv
from cet_rl.envs.wrappers import DelayedCredit, StepClock

Array = npt.NDArray[Any]

_KNOWN = (DelayedCredit, StepClock, gym.wrappers.OrderEnforcing, gym.wrappers.TimeLimit)
"""Wrappers that change no observation, action or reward within an episode."""


class JointVecEnv:
    """Step the vector environments of many agents, with the same results for each as if it stepped alone.

    If all environments are our CartPole in `_KNOWN` wrappers, arrays here hold their states until `write_back`.
    """

    def __init__(self, envs: Sequence[VecEnv]) -> None:
        self.envs = envs
        self._poles = _CartPoles(envs) if _CartPoles.can_step(envs) else None

    def step(self, actions: Array, active: Sequence[bool]) -> list[Any]:
        """Step the environments of the active agents; `actions` holds those of all agents, agent after agent.

        Returns an entry for each agent: what its `VecEnv.step` would return, or the exception that it raised. The
        entry of an agent that is not active means nothing.
        """
        if self._poles is not None:
            return self._poles.step(actions, active)
        own = np.split(actions, len(self.envs))
        return [_step(env, its) if acts else None for env, its, acts in zip(self.envs, own, active, strict=True)]

    def write_back(self) -> None:
        """Write the states from the arrays into the environments."""
        if self._poles is not None:
            self._poles.write_back()


def _step(env: VecEnv, actions: Array) -> VecEnvStepReturn | Exception:
    try:
        return env.step(actions)
    except Exception as error:
        return error


class _CartPoles:
    """Step CartPoles in one call for all; each environment's own monitor ends its episode and starts the next.

    Shapes: N environments, agent after agent; states are (4, N), a row for each variable.
    """

    def __init__(self, envs: Sequence[VecEnv]) -> None:
        self._places: list[tuple[Any, int]] = [(env, index) for env in envs for index in range(env.num_envs)]
        stacks = [layers(env.envs[index]) for env, index in self._places]
        self._monitors, self._poles = [stack[0] for stack in stacks], [stack[-1] for stack in stacks]
        self._limits: list[list[Any]] = [
            [one for one in stack if isinstance(one, gym.wrappers.TimeLimit)] for stack in stacks
        ]
        self._state = np.empty((4, len(stacks)))
        self._left, self._known = np.empty((2, len(stacks)), np.int64)  # steps to the limit, here and in the env
        for index in range(len(stacks)):
            self._read(index, self._state)
        self._active = [True] * len(envs)  # by agent: whether the arrays here hold its environments' states

    @staticmethod
    def can_step(envs: Sequence[VecEnv]) -> bool:
        """Return whether all are CartPoles of equal physics, in a running episode, within known wrappers."""
        stacks = [layers(one) for env in envs if type(env) is DummyVecEnv for one in env.envs]
        if len(stacks) < sum(env.num_envs for env in envs):
            return False
        for monitor, *wrappers, pole in stacks:
            kinds = [type(wrapper) for wrapper in wrappers]
            plain = type(monitor) is Monitor and not (monitor.results_writer or monitor.info_keywords)
            if not (plain and set(kinds) <= {*_KNOWN} and kinds.count(gym.wrappers.TimeLimit) < 2):
                return False
            if not (type(pole) is CartPoleEnv and pole.is_usual and pole.physics == stacks[0][-1].physics):
                return False
        return True

    def step(self, actions: Array, active: Sequence[bool]) -> list[Any]:
        """See `JointVecEnv.step`."""
        count, pole = len(self._places) // len(active), self._poles[0]
        for agent in range(len(active)) if active != self._active else ():
            if self._active[agent] and not active[agent]:
                self._write(range(agent * count, (agent + 1) * count))
        self._active = list(active)
        force = np.where(actions == 1, pole.force_mag, -pole.force_mag)
        state = np.array(next_state(pole, self._state, force, np.cos(self._state[2]), np.sin(self._state[2])))
        self._left -= 1
        fallen = (abs(state[0]) > pole.x_threshold) | (abs(state[2]) > pole.theta_threshold_radians)
        ended = fallen | (self._left <= 0)
        observations, rewards = state.T.astype(np.float32, order="C"), np.ones(len(ended), np.float32)
        infos: list[dict[str, Any]] = [{"TimeLimit.truncated": False} for _ in self._places]
        for index in map(int, np.flatnonzero(ended)):
            if self._active[index // count]:
                infos[index] = self._end(index, observations[index].copy(), bool(fallen[index]))
                env, place = self._places[index]
                observations[index], env.reset_infos[place] = self._monitors[index].reset()
                self._read(index, state)
        self._state = state
        shape = len(active), count
        parts = observations.reshape(*shape, 4), rewards.reshape(shape), ended.reshape(shape)
        return [(*each, infos[n * count : (n + 1) * count]) for n, each in enumerate(zip(*parts, strict=True))]

    def _end(self, index: int, observation: Array, fallen: bool) -> dict[str, Any]:
        """Let the monitor record the last step of an episode, and return that step's `info`."""
        monitor, cut = self._monitors[index], bool(self._left[index] <= 0)
        self._left[index] += 1
        self._write([index])
        # The pole has made this step already: the monitor gets its result from a stand-in for the environment.
        result: Any = observation, 1.0, fallen, cut, {}
        inner, monitor.env = monitor.env, SimpleNamespace(step=lambda action: result)
        try:
            info: dict[str, Any] = monitor.step(None)[4]
        finally:
            monitor.env = inner
        return {**info, "TimeLimit.truncated": cut and not fallen, "terminal_observation": observation}

    def write_back(self) -> None:
        """See `JointVecEnv.write_back`."""
        count = len(self._places) // len(self._active)
        self._write(index for index in range(len(self._places)) if self._active[index // count])

    def _write(self, indices: Iterable[int]) -> None:
        for index in indices:
            made = int(self._known[index] - self._left[index])
            self._known[index] = self._left[index]
            self._poles[index].state = self._state[:, index].copy()
            self._monitors[index].rewards.extend([1.0] * made)
            self._monitors[index].total_steps += made
            for limit in self._limits[index]:
                limit._elapsed_steps += made

    def _read(self, index: int, state: Array) -> None:
        state[:, index] = self._poles[index].state
        left = [limit._max_episode_steps - limit._elapsed_steps for limit in self._limits[index]]
        self._left[index] = self._known[index] = min(left, default=2**62)
