"""Vector environments for training and evaluation, with the interface of Stable-Baselines3."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, VectorEnv
from stable_baselines3.common import vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from cet_rl.envs.cartpole import OURS
from cet_rl.envs.snapshot import capture, register_snapshot, restore
from cet_rl.envs.tasks import register_minatar
from cet_rl.envs.wrappers import DelayedCredit, Env, StepClock, seconds_a_step
from cet_rl.runs.plugins import import_named, load_plugins
from cet_rl.runs.values import unknown
from cet_rl.traces.base import check_whole
from cet_rl.traces.timing import BEHAVIOURAL_STEP, CreditTiming

_SB3_NAMES = {
    "n_envs": "num_envs=",
    "wrapper_class": "wrappers=[…]",
    "wrapper_kwargs": "wrappers=[functools.partial(…)]",
    "env_kwargs": "each of its items as a keyword",
    "vec_env_cls": "vectorization=, or Stable-Baselines3's own make_vec_env",
    "monitor_dir": "VecMonitor around it to write a file",
    "start_index": "seed=, which the environments count on from",
}
"""Arguments of Stable-Baselines3's `make_vec_env`, each with what replaces it here."""

Vectorization = Literal["auto", "each", "numpy"]

NUMPY_FROM = 16
"""Least number of CartPoles for which one call for all is faster: 16 take 3.8 µs a step and pole, not 4.9."""


def make_env(
    task: str | Callable[..., Env],
    step_duration: float | None = None,
    *,
    delay: float | None = None,
    stacked: bool = False,
    max_episode_steps: int | None = None,
    wrappers: Sequence[Callable[[Env], Env]] = (),
    **kwargs: Any,
) -> Monitor:
    """Make one environment with a clock and a `Monitor`, which records the returns and lengths of episodes.

    Args:
        task: a Gymnasium id, or a function that returns a new environment.
        step_duration: seconds that a step stands for; None for the environment's own clock, or 0.2.
        delay: seconds until credit reaches the agent (`DelayedCredit`); None to leave it to the agent.
        stacked: whether that delay adds up from the output layer down.
        max_episode_steps: steps after which an episode is truncated; None for the environment's own limit.
        wrappers: further wrappers, innermost first.
        **kwargs: for the environment.

    Raises:
        ValueError: for an unknown id, with the nearest known one; a missing package; a delay that is not a whole
            number of steps; or a clock or delay other than those that the environment itself has.
    """
    if stacked and delay is None:
        raise ValueError("stacked=True has no meaning without a delay: give delay=")
    if callable(wrappers):
        raise ValueError(f"wrappers must be a list of functions or classes, got {wrappers!r}")
    if callable(task):
        env = _made_by(task, task(**kwargs))
        if max_episode_steps is not None:
            env = gym.wrappers.TimeLimit(env, max_episode_steps)
    else:
        spec = copy.copy(find_task(task))
        spec.entry_point = OURS.get(str(spec.entry_point), spec.entry_point)  # type: ignore[assignment]
        try:
            env = gym.make(spec, max_episode_steps=max_episode_steps, disable_env_checker=True, **kwargs)
        except (ImportError, gym.error.DependencyNotInstalled) as error:
            raise ValueError(f"environment {task!r} needs a package that is not installed: {error}") from None
    env = StepClock(env, seconds_a_step(env, step_duration))
    for wrapper in wrappers:  # around the clock, so that they can read it
        env = _made_by(wrapper, wrapper(env))
    if delay is None:
        return Monitor(env)
    return Monitor(DelayedCredit(env, delay, stacked=stacked))


def _made_by(maker: object, env: object) -> Env:
    if not isinstance(env, gym.Env):
        raise ValueError(f"{maker!r} must return a gymnasium.Env, got {env!r}")
    return env


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
    wrappers: Sequence[Callable[[Env], Env]] = (),
    **kwargs: Any,
) -> VecEnv:
    """Make several environments side by side, each of which is reset in the step that ends its episode.

    Args:
        task, step_duration, delay, stacked, max_episode_steps, wrappers, **kwargs: as in `make_env`.
        num_envs: number of environments.
        seed: seed of the first environment; the others have the numbers after it.
        vectorization: "each" steps one environment after the other, and works for all; "numpy" uses the
            environment's own vectorised form (CartPole has one), which has one generator for all and is faster
            from sixteen environments on; "auto" takes "numpy" where it is possible and faster.

    Raises:
        ValueError: as `make_env`; or if "numpy" is not possible: no vectorised form, or there are wrappers.
    """
    for name in kwargs.keys() & _SB3_NAMES.keys():
        raise ValueError(f"cet_rl's make_vec_env has no {name}: use {_SB3_NAMES[name]}")
    if stacked and delay is None:
        raise ValueError("stacked=True has no meaning without a delay: give delay=")
    for name, count in (("num_envs", num_envs), ("max_episode_steps", max_episode_steps)):
        if count is not None:
            check_whole(count, name, at_least=1)
    if vectorization == "auto":
        vectorization = choose_vectorization(task, num_envs, wrapped=bool(wrappers))
    if vectorization == "each":
        options = {"delay": delay, "stacked": stacked, "max_episode_steps": max_episode_steps, **kwargs}
        build = partial(make_env, task, step_duration, wrappers=wrappers, **options)
        env: VecEnv = DummyVecEnv([build] * num_envs)
    elif vectorization == "numpy":
        spec = copy.copy(vectorised_form(task, wrapped=bool(wrappers)))
        entry = spec.vector_entry_point
        spec.vector_entry_point = OURS.get(str(entry), entry)  # type: ignore[assignment]
        if max_episode_steps is not None:
            kwargs["max_episode_steps"] = max_episode_steps
        vector = gym.make_vec(spec, num_envs, vectorization_mode="vector_entry_point", **kwargs)
        for space in (vector.action_space, vector.observation_space):  # snapshots include their generators
            space.seed(seed)
        step_duration = BEHAVIOURAL_STEP if step_duration is None else step_duration
        joint = GymnasiumVecEnv(vector, step_duration)
        if delay is not None:
            joint.credit_timing = CreditTiming(delay, step_duration, stacked)
        env = VecMonitor(joint)
    else:
        raise ValueError(f"vectorization must be 'auto', 'each' or 'numpy', got {vectorization!r}")
    env.seed(seed)
    return env


def choose_vectorization(
    task: str | Callable[..., Env], num_envs: int, *, wrapped: bool
) -> Literal["each", "numpy"]:
    """Return "numpy" if our vectorised form exists and is faster, and there are no wrappers, else "each"."""
    if wrapped or callable(task) or num_envs < NUMPY_FROM:
        return "each"
    return "numpy" if str(find_task(task).vector_entry_point) in OURS else "each"


def vectorised_form(task: str | Callable[..., Env], *, wrapped: bool) -> EnvSpec:
    """Return the Gymnasium spec of a task; raise ValueError if it has no vectorised form, or is wrapped."""
    if callable(task) or (spec := find_task(task)).vector_entry_point is None:
        raise ValueError(f"{task} has no vectorised form of its own: use vectorization 'each'")
    if wrapped:
        raise ValueError("wrappers of single environments, which other agents need, take vectorization 'each'")
    return spec


def find_task(task: str) -> EnvSpec:
    """Return the spec of a Gymnasium id; raise ValueError with the nearest known id if there is none.

    For "module:Id-v0" the module is imported first.
    """
    if not isinstance(task, str):
        raise ValueError(f"an environment is given by its Gymnasium id or a function that makes it, got {task!r}")
    module, colon, name = task.rpartition(":")
    load_plugins()
    register_minatar()
    try:
        if colon:
            import_named(module, f"environment {task!r}")
        return gym.spec(name)
    except gym.error.Error:
        otherwise = "`cet-rl list` shows environments, data sets and other tasks; module:Id-v0 imports one"
        # Reversed, so that of two equally near versions the later is suggested.
        raise unknown("environment", name, reversed(gym.registry), otherwise) from None


class DummyVecEnv(vec_env.DummyVecEnv):
    """Step environments one after the other as Stable-Baselines3's class of this name does, in half the time.

    It copies only what an environment may change later: its observation and its `info`.
    """

    def step_wait(self) -> VecEnvStepReturn:
        """Step each environment, and reset those whose episode ends."""
        if self.keys != [None]:  # Dict or Tuple observations
            return super().step_wait()
        space = self.observation_space
        observations: npt.NDArray[Any] = np.empty((self.num_envs, *space.shape), space.dtype)  # type: ignore[misc]
        rewards, dones = np.zeros(self.num_envs, np.float32), np.zeros(self.num_envs, bool)
        infos: list[dict[str, Any]] = []
        for index, (env, action) in enumerate(zip(self.envs, self.actions, strict=True)):
            observation, rewards[index], terminated, truncated, original = env.step(action)
            info = copy.deepcopy(original) if original else {}
            info["TimeLimit.truncated"] = truncated and not terminated
            if terminated or truncated:
                dones[index] = True
                info["terminal_observation"] = copy.deepcopy(observation)
                observation, self.reset_infos[index] = env.reset()
            observations[index] = observation
            infos.append(info)
        return observations, rewards, dones, infos


register_snapshot(DummyVecEnv, like=vec_env.DummyVecEnv)


class VecMonitor(vec_env.VecMonitor):
    """Record returns and lengths of episodes as Stable-Baselines3's class does, but as Python numbers."""

    def step_wait(self) -> VecEnvStepReturn:
        """Step the environments; returns become Python floats, as they are after a checkpoint is loaded."""
        observations, rewards, dones, infos = super().step_wait()
        for index in np.flatnonzero(dones):
            episode = infos[index]["episode"]
            episode.update(r=float(episode["r"]), l=int(episode["l"]))
        return observations, rewards, dones, infos


register_snapshot(VecMonitor, like=vec_env.VecMonitor)


class GymnasiumVecEnv(VecEnv):
    """Present a Gymnasium vector environment as a Stable-Baselines3 one; `VecMonitor` around it records episodes.

    Args:
        env: a `gymnasium.vector.VectorEnv` with same-step autoreset; ValueError for another mode.
        step_duration: seconds that a step stands for.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], step_duration: float = BEHAVIOURAL_STEP) -> None:
        mode = env.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)
        if mode != AutoresetMode.SAME_STEP:
            raise ValueError(
                "the vector environment must reset each episode within the step that ends it: make it with "
                f"autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP, this one's is {str(mode.value)!r}"
            )
        self.env, self.step_duration = env, step_duration
        self.credit_timing: CreditTiming | None = None  # as in `DelayedCredit`
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> VecEnvObs:
        """Start all episodes anew."""
        if any(options != self._options[0] for options in self._options):
            raise ValueError("a vectorised environment takes the same options for all: give set_options one dict")
        # One seed is enough: a vectorised environment has one generator; others derive the seeds that follow.
        observations, info = self.env.reset(seed=self._seeds[0], options=self._options[0] or None)
        self.reset_infos = self._of_each(info)
        self._reset_seeds()
        self._reset_options()
        return np.array(observations)

    def step_async(self, actions: npt.NDArray[Any]) -> None:
        """Store the actions for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Step each environment."""
        observations, rewards, terminated, truncated, info = self.env.step(self._actions)
        dones = terminated | truncated
        infos = self._of_each(info)
        for index in np.flatnonzero(dones):  # what its info says of the reset, and what of the end
            reset = self.reset_infos[index] = infos[index]
            infos[index] = {name: reset[name] for name in ("episode",) if name in reset}
            infos[index] |= reset.pop("final_info", None) or {}
            infos[index]["terminal_observation"] = np.array(reset.pop("final_obs"))
            infos[index]["TimeLimit.truncated"] = bool(truncated[index] and not terminated[index])
        return np.array(observations), np.asarray(rewards, np.float32), dones, infos

    def _of_each(self, info: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the infos of each environment; what is no array with an entry for each is left out."""
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for name in info.keys() - {f"_{name}" for name in info}:  # "_name" tells which environments have a "name"
            values = np.array(self._of_each(info[name]), object) if isinstance(info[name], dict) else info[name]
            if getattr(values, "shape", ())[:1] == (self.num_envs,):
                for index in np.flatnonzero(info.get(f"_{name}", np.ones(self.num_envs))):
                    infos[index][name] = values[index]
        return infos

    def get_images(self) -> Sequence[npt.NDArray[Any] | None]:
        """Return a picture of each environment."""
        pictures: Any = self.env.render()
        return [None] * self.num_envs if pictures is None else list(pictures)

    def get_state(self) -> dict[str, Any]:
        """Return the state of the environments as plain data (`cet_rl.envs.snapshot`)."""
        return {"env": capture(self.env)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_state` returned."""
        restore(self.env, state["env"])
        self._reset_seeds()  # the first reset has used them; the next one must not
        self._reset_options()

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
        """Return False: no environment is wrapped by itself."""
        return [False] * len(list(self._get_indices(indices)))


def shared_attribute(env: VecEnv, name: str) -> Any:
    """Return the environments' "step_duration" or "credit_timing", or None; raise ValueError if they differ."""
    if not env.has_attr(name):  # at least one of them lacks it
        with suppress(AttributeError, NotImplementedError):
            if any(env.env_method("has_wrapper_attr", name)):
                raise ValueError(f"some of the environments have a {name}, others have none: they must agree")
        return None
    first, *others = env.get_attr(name)
    for other in others:
        if other != first:
            what = "delay" if isinstance(other, CreditTiming) else "clock"
            shown = [str(v) if isinstance(v, CreditTiming) else f"{v:g} s" for v in (first, other)]
            raise ValueError(f"environments side by side must have one {what}, these have {' and '.join(shown)}")
    return first
