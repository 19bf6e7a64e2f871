"""Save and load an on-policy agent as JSON and tensors (`cet_rl.runs.archive`), never as a pickle."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections import deque
from collections.abc import Iterable
from typing import Any, Self

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common import utils
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import FloatSchedule, LinearSchedule, check_for_correct_spaces
from stable_baselines3.common.vec_env import unwrap_vec_normalize

from cet_rl import __version__
from cet_rl.agents.config import network_keywords, our_keywords
from cet_rl.runs import archive
from cet_rl.runs.values import checked
from cet_rl.traces.base import check_whole

_PROGRESS = (
    *("num_timesteps", "n_steps", "_n_updates", "_total_timesteps", "_current_progress_remaining"),
    "_updates_at_start",
)
_CHANGEABLE = (
    *("entropy_coef", "learning_rate", "max_grad_norm", "n_steps", "seed", "stats_window_size", "tensorboard_log"),
    *("value_coef", "verbose"),
)
"""Arguments that may be changed on loading, as no saved tensor depends on them."""

MADE_FOR_NON_NEGATIVE = (
    "VecNormalize makes observations negative, but this agent was made for non-negative ones: "
    "make it with VecNormalize, or with policy_kwargs={'split_observations': True}"
)


class StoredAlgorithm(OnPolicyAlgorithm):
    """Save and load an algorithm as data, through the interface of Stable-Baselines3."""

    generator: torch.Generator
    """The agent's own stream of random numbers."""
    _updates_at_start: int
    """Updates made before the current run began; intervals between logs count from here."""

    @abstractmethod
    def constructor_arguments(self) -> dict[str, Any]:
        """Return the arguments that `load` passes to the constructor, as plain data."""

    @abstractmethod
    def check_environment(self) -> None:
        """Raise ValueError if the agent cannot learn in `self.env`, whose spaces are known to fit."""

    def save(self, path: archive.File, exclude: Any = None, include: Any = None) -> None:  # type: ignore[override]
        """Save all that learning needs to continue: networks, traces, optimiser, random state and counters.

        Args:
            path: a file, to which ".zip" is added if missing, or a binary file object.
            exclude, include: part of Stable-Baselines3's interface; they must be left out.

        Raises:
            ValueError: if `exclude` or `include` is given. OSError: if the file cannot be written.
        """
        if exclude or include:
            raise ValueError("this agent is saved whole: leave exclude and include out")
        archive.write(path, self.state(), what="agent")

    def state(self) -> dict[str, Any]:
        """Return what `save` writes, in the form that `archive.write` takes."""
        return {
            "cet_rl": __version__,
            "algorithm": type(self).__name__,
            "policy": self.policy_class.__name__,
            "arguments": self.constructor_arguments(),
            "observation_space": space_to_data(self.observation_space),
            "action_space": space_to_data(self.action_space),
            "n_envs": self.n_envs,
            "progress": {name: getattr(self, name) for name in _PROGRESS},
            "episodes": episodes_to_data(self.ep_info_buffer),
            "generator": self.generator.get_state(),
            "parameters": self.get_parameters(),
        }

    @classmethod
    def load(  # type: ignore[override]
        cls,
        path: archive.File,
        env: GymEnv | None = None,
        device: torch.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        *,
        policy: str | type[Any] = "MlpPolicy",
        **kwargs: Any,
    ) -> Self:
        """Load an agent saved by `save`. Nothing is unpickled.

        Args:
            path, device, print_system_info: as in Stable-Baselines3.
            env: environment to continue learning in, from a reset; not needed to predict.
            custom_objects, **kwargs: constructor arguments. New values are allowed for `learning_rate`, `n_steps`,
                `ent_coef`, `vf_coef`, `max_grad_norm`, `seed`, `stats_window_size`, `tensorboard_log` and
                `verbose`; others must be as they were.
            policy: the policy's class, if the agent was made with a custom one.

        Raises:
            ValueError: if the file is damaged or holds another agent, the environment's spaces differ, or an
                argument cannot be changed.
        """
        if print_system_info:
            utils.get_system_info()
        kwargs = our_keywords({**(custom_objects or {}), **kwargs})
        data = archive.read(path, what="agent")
        fixed = {name: kwargs.pop(name) for name in kwargs.keys() - set(_CHANGEABLE)}
        n_steps = kwargs.pop("n_steps", None)
        try:
            if data["algorithm"] != cls.__name__:
                raise ValueError(f"{path} holds a {data['algorithm']}, not a {cls.__name__}")
            saved = data["arguments"]
            if changed := ", ".join(sorted(n for n, value in fixed.items() if not _is_saved(value, saved.get(n)))):
                raise ValueError(f"{changed} cannot be changed on loading, only {', '.join(_CHANGEABLE)}")
            arguments = {**saved, "learning_rate": schedule_from_data(saved["learning_rate"]), **kwargs}
            model = cls(policy, None, device=device, _init_setup_model=False, **arguments)  # type: ignore[arg-type]
            if data["policy"] != model.policy_class.__name__:
                raise ValueError(f"{path} was saved with the policy {data['policy']}: pass it as policy=")
            model.observation_space = space_from_data(data["observation_space"])
            model.action_space = space_from_data(data["action_space"])
            model.n_envs = data["n_envs"]
            if env is not None:
                model.env = cls._wrap_env(env, model.verbose)
                check_for_correct_spaces(model.env, model.observation_space, model.action_space)
                model.n_envs = model.env.num_envs
                model.check_environment()
                model._vec_normalize_env = unwrap_vec_normalize(model.env)
            model._setup_model()
            if (normalize := model._vec_normalize_env) and normalize.norm_obs and not model.policy.splits:
                warnings.warn(MADE_FOR_NON_NEGATIVE, stacklevel=2)  # it may have been made so on purpose
            model._restore(data)
            if n_steps is not None:
                check_whole(n_steps, "n_steps", at_least=1)
                model.n_steps = int(n_steps)
            model.set_random_seed(kwargs.get("seed"))
        except ValueError:
            raise
        except Exception as error:  # wrong data in the file can raise anything
            if kwargs and not isinstance(error, KeyError):
                raise ValueError(f"{', '.join(kwargs)} cannot be changed for {path}: {error}") from None
            raise ValueError(f"{path} is damaged: {error}") from None
        return model

    def _restore(self, data: dict[str, Any]) -> None:
        saved = data["parameters"]
        if self.n_envs != data["n_envs"]:
            warnings.warn(
                f"saved with {data['n_envs']} environments, loaded with {self.n_envs}: traces start empty",
                stacklevel=3,
            )
            current = self.get_parameters()
            for part in ("synapses", "probes"):  # traces and delay lines hold values of each environment
                kept = {name: value for name, value in saved[part].items() if name.endswith("_per_weight")}
                saved[part] = {**current[part], **kept}
        self.generator.set_state(data["generator"])
        self.set_parameters(saved, exact_match=True, device=self.device)
        for name in _PROGRESS:
            setattr(self, name, type(getattr(self, name))(data["progress"][name]))
        self.ep_info_buffer = deque(data["episodes"], maxlen=self._stats_window_size)
        self.ep_success_buffer = deque(maxlen=self._stats_window_size)

    def set_parameters(
        self,
        load_path_or_dict: archive.File | dict[str, Any],
        exact_match: bool = True,
        device: torch.device | str = "auto",
    ) -> None:
        """Set parameters that `get_parameters` returned, or a file's; the errors are Stable-Baselines3's."""
        parameters = load_path_or_dict
        if not isinstance(parameters, dict):
            parameters = dict(archive.read(parameters, what="agent")["parameters"])
        super().set_parameters(parameters, exact_match, device)


def _is_saved(given: Any, saved: Any) -> bool:
    """Return whether an argument has the value that it had when the agent was saved."""
    if isinstance(given, dict) and isinstance(saved, dict):
        return all(_is_saved(value, saved.get(name)) for name, value in network_keywords(given).items())
    if isinstance(given, list | tuple) and isinstance(saved, list | tuple):
        return list(given) == list(saved)
    return bool(given == saved)


def schedule_to_data(schedule: object) -> float | dict[str, float]:
    """Return a constant learning rate, or start, end and end_fraction of a linear schedule.

    Raises ValueError for a schedule that is not linear, and for a rate that is not positive.
    """
    if isinstance(schedule, FloatSchedule):
        schedule = schedule.value_schedule
    data: Any = getattr(schedule, "val", schedule)  # of a `ConstantSchedule`
    if isinstance(schedule, LinearSchedule):
        data = {name: float(getattr(schedule, name)) for name in ("start", "end", "end_fraction")}
    elif callable(data):
        end, *between, start = (float(data(progress)) for progress in np.linspace(0, 1, 9))
        if not np.allclose(between, np.linspace(end, start, 9)[1:-1], rtol=1e-6, atol=0):
            raise ValueError(
                "learning_rate is a function that is no straight line: it cannot be saved as data; use a number "
                "or LinearSchedule of stable_baselines3.common.utils"
            )
        data = {"start": start, "end": end, "end_fraction": 1.0}
    else:
        data = checked(data, float, "learning_rate")
    start, end = (data["start"], data["end"]) if isinstance(data, dict) else (data, 0.0)
    if not (math.isfinite(start) and start > 0):
        raise ValueError(f"learning rate must be positive and finite, got {start:g}")
    if not (math.isfinite(end) and end >= 0 and (not isinstance(data, dict) or data["end_fraction"] > 0)):
        raise ValueError(f"learning rate must fall to zero or more over a positive share of the run, got {data}")
    return data if isinstance(data, dict) else start


def schedule_from_data(data: float | dict[str, float]) -> float | LinearSchedule:
    """Invert `schedule_to_data`."""
    return LinearSchedule(**data) if isinstance(data, dict) else data


def episodes_to_data(episodes: Iterable[dict[str, Any]] | None) -> list[dict[str, float]]:
    """Return the return "r" and length "l" of each episode, without the time "t" that it took."""
    return [{key: float(episode[key]) for key in ("r", "l")} for episode in episodes or ()]


def space_to_data(space: spaces.Space[Any]) -> dict[str, Any]:
    """Return a `Box` or `Discrete` space as plain data."""
    if isinstance(space, spaces.Discrete):
        kind = {} if space.dtype == np.int64 else {"dtype": np.dtype(space.dtype).name}  # Gymnasium's default
        return {"n": int(space.n), "start": int(space.start), **kind}
    assert isinstance(space, spaces.Box)
    return {"low": space.low, "high": space.high}


def space_from_data(data: dict[str, Any]) -> spaces.Space[Any]:
    """Invert `space_to_data`."""
    if "n" in data:
        return spaces.Discrete(**data)
    return spaces.Box(data["low"], data["high"], dtype=data["low"].dtype.type)
