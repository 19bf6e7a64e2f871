"""Saving and loading of on-policy agents as data and tensors, in the interface of Stable-Baselines3."""

from __future__ import annotations

import inspect
import warnings
from abc import abstractmethod
from collections import deque
from typing import Any, Self

import torch
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv
from stable_baselines3.common.utils import check_for_correct_spaces
from stable_baselines3.common.vec_env import unwrap_vec_normalize
from torch import Tensor

from cet_rl import __version__
from cet_rl.agents.saving import episodes_to_data, schedule_from_data, space_from_data, space_to_data
from cet_rl.runs import archive


class StoredAlgorithm(OnPolicyAlgorithm):
    """An algorithm whose files hold JSON and tensors only (`cet_rl.runs.archive`), never a pickle.

    What `get_parameters` returns is saved, with the state of `generator`, the constructor's arguments, the spaces
    and the counters.

    Attributes:
        generator: the agent's own stream of random numbers.
    """

    generator: torch.Generator
    _updates_at_start: int
    """Updates made before the run began that is under way: what intervals between logs count from."""

    @abstractmethod
    def constructor_arguments(self) -> dict[str, Any]:
        """What `load` passes to the constructor, as plain data."""

    @property
    @abstractmethod
    def per_environment_parts(self) -> tuple[str, ...]:
        """Names of those parameters that start afresh when the number of environments differs."""

    def check_environment(self) -> None:
        """Raise ValueError if `self.env` is none this agent can go on in; spaces have been compared."""

    def save(self, path: archive.File, exclude: Any = None, include: Any = None) -> None:  # type: ignore[override]
        """Save everything needed to go on: networks, traces, delay lines, optimiser, random state, counters.

        Args:
            path: a file, ".zip" added if missing, or a binary file object.
            exclude: part of the interface of Stable-Baselines3; must be left out, as must `include`.

        Raises:
            ValueError: if something cannot be saved as data.
        """
        if exclude or include:
            raise ValueError("this agent is saved whole: exclude and include have no meaning")
        archive.write(path, *self.contents(), what="agent")

    def contents(self) -> archive.Contents:
        """Return what `save` writes: JSON data, and tensors by name.

        Raises:
            ValueError: if something cannot be saved as data.
        """
        data = {
            "cet_rl": __version__,
            "algorithm": type(self).__name__,
            "policy": self.policy_class.__name__,
            "arguments": self.constructor_arguments(),
            "observation_space": space_to_data(self.observation_space),
            "action_space": space_to_data(self.action_space),
            "n_envs": self.n_envs,
            "progress": {
                "num_timesteps": self.num_timesteps,
                "n_updates": self._n_updates,
                "total_timesteps": self._total_timesteps,
                "remaining": self._current_progress_remaining,
                "updates_at_start": self._updates_at_start,
                "episodes": episodes_to_data(self.ep_info_buffer),
            },
        }
        tree = {**self.get_parameters(), "generator": {"state": self.generator.get_state()}}
        tensors, rest = archive.flatten(tree)
        data["rest"] = archive.as_json("the optimiser's settings", rest)
        return data, tensors

    @classmethod
    def load(  # type: ignore[override]
        cls,
        path: archive.File,
        env: GymEnv | None = None,
        device: torch.device | str = "auto",
        policy: str | type[Any] = "MlpPolicy",
        **kwargs: Any,
    ) -> Self:
        """Load an agent saved by `save`. Nothing is unpickled.

        Args:
            path: the file.
            env: to go on learning in; not needed to predict.
            device: where to put it.
            policy: the policy's class, if the agent was made with one of its own.
            **kwargs: constructor arguments to change, such as `verbose` or `tensorboard_log`.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is damaged or no such agent, or the environment's spaces differ from the saved.
        """
        for part_of_the_interface in ("print_system_info", "force_reset"):
            kwargs.pop(part_of_the_interface, None)
        if kwargs.pop("custom_objects", None):
            raise ValueError("custom_objects has no meaning here: give the arguments to change by name")
        known = inspect.signature(cls.__init__).parameters
        unknown = [name for name in kwargs if name not in known]
        if unknown:
            raise ValueError(f"load does not know {', '.join(unknown)}")
        data, tensors = archive.read(path, what="agent")
        try:
            if data["algorithm"] != cls.__name__:
                raise ValueError(f"{path} holds a {data['algorithm']}, not a {cls.__name__}")
            arguments = dict(data["arguments"])
            arguments["learning_rate"] = schedule_from_data(arguments["learning_rate"])
            model = cls(policy, None, device=device, _init_setup_model=False, **{**arguments, **kwargs})  # type: ignore[arg-type]
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
            model._restore(data, tensors)
        except ValueError:
            raise
        except Exception as error:  # whatever the file's data may be, it can only be wrong
            if kwargs:
                raise ValueError(f"{', '.join(kwargs)} cannot be changed for {path}: {error}") from None
            raise ValueError(f"{path} is damaged: {error}") from None
        return model

    def _restore(self, data: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        saved = archive.as_state_dicts(archive.unflatten(tensors, data["rest"]))
        if self.n_envs != data["n_envs"]:
            warnings.warn(
                f"saved with {data['n_envs']} environments, loaded with {self.n_envs}: traces start empty",
                stacklevel=3,
            )
            current = self.get_parameters()
            for part in self.per_environment_parts:
                kept = {name: value for name, value in saved[part].items() if name.endswith("_per_weight")}
                saved[part] = {**current[part], **kept}
        self.generator.set_state(saved.pop("generator")["state"])
        self.set_parameters(saved, exact_match=True, device=self.device)
        progress = data["progress"]
        self.num_timesteps, self._n_updates = progress["num_timesteps"], progress["n_updates"]
        self._total_timesteps, self._current_progress_remaining = (
            progress["total_timesteps"],
            progress["remaining"],
        )
        self._updates_at_start = int(progress.get("updates_at_start", 0))
        self.ep_info_buffer = deque(progress["episodes"], maxlen=self._stats_window_size)
        self.ep_success_buffer = deque(maxlen=self._stats_window_size)

    def set_parameters(
        self,
        load_path_or_dict: archive.File | dict[str, Any],
        exact_match: bool = True,
        device: torch.device | str = "auto",
    ) -> None:
        """Take over parameters: a dictionary as `get_parameters` gives, or a file as `save` writes.

        Args:
            load_path_or_dict: the parameters.
            exact_match: whether all of them must be there.
            device: part of the interface; parameters go where this agent's are.

        Raises:
            ValueError: if the file is damaged, or names do not match.
        """
        if not isinstance(load_path_or_dict, dict):
            data, tensors = archive.read(load_path_or_dict, what="agent")
            load_path_or_dict = archive.as_state_dicts(archive.unflatten(tensors, data["rest"]))
            load_path_or_dict.pop("generator")
        super().set_parameters(load_path_or_dict, exact_match, device)
