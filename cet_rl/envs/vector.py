"""Vector environments for training and evaluation, with the interface of Stable-Baselines3."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, VectorEnv
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from cet_rl.envs.clock import StepClock
from cet_rl.envs.delays import DelayedCredit
from cet_rl.envs.snapshot import capture, restore
from cet_rl.envs.tasks import register_minatar
from cet_rl.runs.plugins import import_named, load_plugins
from cet_rl.runs.values import unknown
from cet_rl.traces.timing import BEHAVIOURAL_STEP, CreditTiming

Vectorization = Literal["each", "numpy"]
Env = gym.Env[Any, Any]


def make_env(
    task: str | Callable[..., Env],
    step_duration: float | None = None,
    *,
    delay: float | None = None,
    stacked: bool = False,
    max_episode_steps: int | None = None,
    wrappers: Iterable[Callable[[Env], Env]] = (),
    **kwargs: Any,
) -> Monitor:
    """Make one environment with a clock that records the returns and lengths of its episodes.

    Args:
        task: a Gymnasium id, or a function that returns a new environment.
        step_duration: seconds a step stands for; None for the environment's own clock, or 0.2.
        delay: seconds until credit reaches an agent that asks (`DelayedCredit`); None to leave it to the agent.
        stacked: whether that delay adds up from the output layer down.
        max_episode_steps: steps after which an episode is truncated; None for the environment's own limit.
        wrappers: further wrappers, innermost first.
        **kwargs: for the environment.

    Raises:
        ValueError: for an id that is not registered, with the nearest one that is.
    """
    if callable(task):
        env = task(**kwargs)
        if max_episode_steps is not None:
            env = gym.wrappers.TimeLimit(env, max_episode_steps)
    else:
        find_task(task)
        try:
            env = gym.make(task, max_episode_steps=max_episode_steps, disable_env_checker=True, **kwargs)
        except (ImportError, gym.error.DependencyNotInstalled) as error:
            raise ValueError(f"environment {task!r} needs a package that is not installed: {error}") from None
    if step_duration is not None or not env.has_wrapper_attr("step_duration"):
        env = StepClock(env, BEHAVIOURAL_STEP if step_duration is None else step_duration)
    for wrapper in wrappers:  # outside the clock, which they may ask
        env = wrapper(env)
    return Monitor(env if delay is None else DelayedCredit(env, delay, stacked=stacked))


def make_vec_env(
    task: str | Callable[..., Env],
    num_envs: int = 1,
    seed: int | None = None,
    step_duration: float | None = None,
    *,
    delay: float | None = None,
    stacked: bool = False,
    vectorization: Vectorization = "each",
    max_episode_steps: int | None = None,
    wrappers: Iterable[Callable[[Env], Env]] = (),
    **kwargs: Any,
) -> VecEnv:
    """Make several environments side by side.

    Both forms distinguish a termination (`terminal_observation`) from a truncation (`TimeLimit.truncated`, to be
    bootstrapped), and start the next episode by themselves: "each" within the step that ended the last, "numpy" in
    a step of its own, which an agent must not learn from (`GymnasiumVecEnv`).

    Args:
        task: a Gymnasium id, or a function that returns a new environment.
        num_envs: number of environments.
        seed: of the first environment; the others count on from it.
        step_duration, delay, stacked, max_episode_steps, wrappers, **kwargs: as in `make_env`.
        vectorization: "each" steps one environment after the other and works for all; "numpy" uses the
            environment's own vectorised form if it has one (CartPole has), faster from about ten environments on.

    Raises:
        ValueError: for an unknown id, fewer than one environment, or a vectorised form that does not exist.
    """
    if num_envs < 1:
        raise ValueError(f"num_envs must be at least 1, got {num_envs}")
    spec = None if callable(task) else find_task(task)
    wrappers = tuple(wrappers)
    if vectorization == "each":
        options: dict[str, Any] = {"delay": delay, "stacked": stacked, "max_episode_steps": max_episode_steps}
        build: Callable[[], Env] = partial(make_env, task, step_duration, wrappers=wrappers, **options, **kwargs)
        env: VecEnv = DummyVecEnv([build] * num_envs)
    elif vectorization == "numpy":
        if spec is None or spec.vector_entry_point is None:
            raise ValueError(f"{task} has no vectorised form of its own: use vectorization='each'")
        if wrappers:
            raise ValueError("wrappers of single environments need vectorization='each'")
        if max_episode_steps is not None:
            kwargs["max_episode_steps"] = max_episode_steps
        vector = gym.make_vec(spec.id, num_envs, vectorization_mode="vector_entry_point", **kwargs)
        step_duration = BEHAVIOURAL_STEP if step_duration is None else step_duration
        env = GymnasiumVecEnv(vector, step_duration)
        if delay is not None:
            env.credit_timing = CreditTiming(delay, step_duration, stacked)
    else:
        raise ValueError(f"vectorization must be 'each' or 'numpy', got {vectorization!r}")
    env.seed(seed)
    return env


def find_task(task: str) -> EnvSpec:
    """Return the specification of a Gymnasium id; as in Gymnasium, "module:Id-v0" imports the module first.

    Raises:
        ValueError: if there is none, naming the nearest id.
    """
    module, colon, name = task.rpartition(":")
    load_plugins()
    register_minatar()
    try:
        if colon:
            import_named(module, f"environment {task!r}")
        return gym.spec(name)
    except gym.error.Error:
        otherwise = "`cet-rl list` shows environments, data sets and other tasks; module:Id-v0 imports one"
        # Reversed, so that of two versions that are as near the later is suggested.
        raise unknown("environment", name, reversed(gym.registry), otherwise) from None


class ActionsFromZero(gym.ActionWrapper[Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Count discrete actions from zero, for agents that ignore the `start` of their action space.

    Args:
        env: any environment; without discrete actions, nothing changes.
    """

    def __init__(self, env: Env) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        super().__init__(env)
        space = env.action_space
        self._first = int(space.start) if isinstance(space, gym.spaces.Discrete) else 0
        if self._first:
            self.action_space = gym.spaces.Discrete(space.n)  # type: ignore[attr-defined]

    def action(self, action: Any) -> Any:
        """Return the environment's action."""
        return action + self._first if self._first else action

    def get_state(self) -> dict[str, Any]:
        """Return an empty state: nothing is kept from step to step (`cet_rl.envs.snapshot`)."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Do nothing: the state is empty."""


class GymnasiumVecEnv(VecEnv):
    """Present a Gymnasium vector environment as a Stable-Baselines3 one, whichever way it resets itself.

    Episodes are recorded as by `Monitor`. If the environment resets in the step *after* an episode's end
    (`AutoresetMode.NEXT_STEP`), that step is no transition: its action is ignored and its reward zero. `resetting`
    marks the environments whose coming step is one; there `CETActorCritic` lets time pass without learning.

    Args:
        env: any `gymnasium.vector.VectorEnv` that resets itself.
        step_duration: seconds a step stands for.

    Attributes:
        resetting: (num_envs,) bool, updated in place.
        credit_timing: as in `DelayedCredit`; None to leave it to the agent.

    Raises:
        ValueError: if the environment does not reset itself.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], step_duration: float = BEHAVIOURAL_STEP) -> None:
        mode = env.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)
        if mode == AutoresetMode.DISABLED:
            raise ValueError("the vector environment must reset itself: its autoreset mode is 'disabled'")
        self._next_step = mode == AutoresetMode.NEXT_STEP
        self.env, self.step_duration = env, step_duration
        self.credit_timing: CreditTiming | None = None
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)
        self.resetting = np.zeros(self.num_envs, bool)
        self._returns, self._lengths = np.zeros(self.num_envs), np.zeros(self.num_envs, int)
        self._began = time.time()

    def reset(self) -> VecEnvObs:
        """Start all episodes anew."""
        # One seed for all: a vectorised environment has one generator, a list of them numbers its own on.
        observations, _ = self.env.reset(seed=self._seeds[0])
        self._reset_seeds()
        self.resetting[:], self._returns[:], self._lengths[:] = False, 0, 0
        return np.array(observations)

    def step_async(self, actions: npt.NDArray[Any]) -> None:
        """Remember the actions."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Step each environment."""
        observations, rewards, terminated, truncated, info = self.env.step(self._actions)
        dones = terminated | truncated
        self._returns += np.where(self.resetting, 0, rewards)
        self._lengths += ~self.resetting
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for index in np.flatnonzero(dones):
            final = observations[index] if self._next_step else info["final_obs"][index]
            episode = {"r": float(self._returns[index]), "l": int(self._lengths[index])}
            infos[index] = {
                "terminal_observation": np.array(final),
                "TimeLimit.truncated": bool(truncated[index] and not terminated[index]),
                "episode": {**episode, "t": round(time.time() - self._began, 6)},
            }
        self._returns[dones], self._lengths[dones] = 0, 0
        if self._next_step:
            self.resetting[:] = dones
        return np.array(observations), np.asarray(rewards, np.float32), dones, infos

    def get_state(self) -> dict[str, Any]:
        """Return the environments and their running episodes as plain data (`cet_rl.envs.snapshot`)."""
        running = {"resetting": self.resetting, "returns": self._returns, "lengths": self._lengths}
        return {"env": capture(self.env), **running}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_state` returned."""
        restore(self.env, state["env"])
        self._reset_seeds()  # they are for the first reset, which is long past
        self.resetting[:] = state["resetting"]
        self._returns[:], self._lengths[:] = state["returns"], state["lengths"]

    def close(self) -> None:
        """Close the environments."""
        self.env.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return an attribute of this object or of the vector environment, once for each index."""
        owner = self if attr_name in ("step_duration", "credit_timing") else self.env
        return [getattr(owner, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Raise NotImplementedError: the environments are one object."""
        raise NotImplementedError("attributes of a vectorised environment cannot be set one by one")

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """Raise NotImplementedError: the environments are one object."""
        raise NotImplementedError("methods of a vectorised environment cannot be called one by one")

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Return True for `Monitor`, whose records this class keeps, and False for any other wrapper."""
        return [wrapper_class is Monitor] * len(list(self._get_indices(indices)))


def shared_attribute(env: VecEnv, name: str) -> Any:
    """Return the value that the environments' wrappers have under `name`; None if none has one.

    Args:
        env: the environments.
        name: "step_duration" or "credit_timing".

    Raises:
        ValueError: if environments side by side disagree.
    """
    if not env.has_attr(name):  # not all of them have one
        try:
            some = any(env.env_method("has_wrapper_attr", name))
        except (AttributeError, NotImplementedError):
            some = False
        if some:
            raise ValueError(f"some of the environments have a {name}, others have none: they must agree")
        return None
    first, *others = env.get_attr(name)
    for other in others:
        if other != first:
            what = "delay" if isinstance(other, CreditTiming) else "clock"
            shown = [describe_delay(v) if isinstance(v, CreditTiming) else f"{v:g} s" for v in (first, other)]
            raise ValueError(f"environments side by side must have one {what}, these have {' and '.join(shown)}")
    return first


def describe_delay(timing: CreditTiming) -> str:
    """Return "8 s" or "8 s, stacked"."""
    return f"{timing.delay:g} s{', stacked' * timing.stacked}"
