"""Make, save and restore the agents of runs: ours and those of Stable-Baselines3."""

from __future__ import annotations

import inspect
from collections import deque
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3 import A2C
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv

from cet_rl.agents.config import SB3_NAMES
from cet_rl.agents.export import TORCH_ACTIVATIONS
from cet_rl.agents.saving import episodes_to_data
from cet_rl.agents.sb3 import CETActorCritic
from cet_rl.envs import ActionsFromZero, DelayedReward, make_vec_env, snapshot
from cet_rl.rl.agent_registry import AgentKind
from cet_rl.rl.config import RLConfig
from cet_rl.runs import archive
from cet_rl.runs.process import process_state, restore_process_state


def kind_of(algorithm: object, name: str) -> AgentKind:
    """Return the agent kind of a class of algorithms; those derived from `CETActorCritic` bridge the delay.

    Raises ValueError unless the class derives from Stable-Baselines3's `BaseAlgorithm`.
    """
    if not (isinstance(algorithm, type) and issubclass(algorithm, BaseAlgorithm)):
        raise ValueError(f"{name} is no Stable-Baselines3 algorithm (a class derived from BaseAlgorithm)")
    return AgentKind(
        partial(_build, algorithm),
        _state,
        partial(_load, algorithm),
        delays_credit=issubclass(algorithm, CETActorCritic),
        runtime_state=runtime_state,
        restore=restore,
    )


def _environments(algorithm: type[BaseAlgorithm], config: RLConfig) -> VecEnv:
    """Make the training environments, which delay credit for our agent and rewards for others."""
    common = config.task, config.num_envs, config.seed, config.step_duration
    make = partial(make_vec_env, *common, vectorization=config.vectorization)
    if issubclass(algorithm, CETActorCritic):
        return make(delay=config.delay, stacked=config.stacked)
    # `DelayedReward` counts its delay in steps of the clock that `make_env` puts inside it.
    delayed = [partial(DelayedReward, delay=config.delay)] if config.delay else []
    return make(wrappers=[ActionsFromZero, *delayed])


def _build(algorithm: type[BaseAlgorithm], config: RLConfig) -> BaseAlgorithm:
    """Make an agent; an algorithm of Stable-Baselines3 gets those options that its constructor takes."""
    env = _environments(algorithm, config)
    values: dict[str, Any] = {
        **vars(config.learner),
        "learning_rate": LinearSchedule(config.lr, 0.0, 1.0) if config.anneal_lr else config.lr,
        "n_steps": config.n_steps,
        "seed": config.seed,
        "device": config.device,
    }
    if issubclass(algorithm, CETActorCritic):
        networks = asdict(config.networks)
        if config.split_observations:
            del networks["split_observations"]  # the agent splits if the environment's observations need it
        return algorithm("MlpPolicy", env, policy_kwargs=networks, **values)
    values |= {
        **{name: getattr(config, field) for name, field in SB3_NAMES.items()},
        "policy_kwargs": {"net_arch": list(config.hidden), "activation_fn": TORCH_ACTIVATIONS[config.activation]},
        "batch_size": min(128, config.n_steps * config.num_envs),
    }
    if not issubclass(algorithm, OnPolicyAlgorithm):  # off-policy, they mean n-step returns and a temperature
        del values["n_steps"], values["ent_coef"]
    if issubclass(algorithm, A2C):
        values["use_rms_prop"] = False  # Adam, as our agent
    cannot = f"{config.agent} cannot be made for {config.task}"
    if isinstance(env.observation_space, spaces.Dict):
        raise ValueError(f"{cannot}: gymnasium.wrappers.FlattenObservation makes vectors of a Dict")
    known = inspect.signature(algorithm.__init__).parameters
    try:
        return algorithm("MlpPolicy", env, **{name: value for name, value in values.items() if name in known})
    except (AssertionError, NotImplementedError, TypeError, ValueError) as error:
        raise ValueError(f"{cannot}: {error}") from error


def _state(agent: BaseAlgorithm) -> dict[str, Any]:
    """Return what an agent's file holds. (Stable-Baselines3's own `save` would pickle.)"""
    if isinstance(agent, CETActorCritic):
        return agent.state()
    return {
        "algorithm": type(agent).__name__,
        "num_timesteps": agent.num_timesteps,
        "episodes": episodes_to_data(agent.ep_info_buffer),
        "parameters": agent.get_parameters(),
    }


def _load(algorithm: type[BaseAlgorithm], config: RLConfig, file: Path) -> BaseAlgorithm:
    """Make an agent and load its state from a file; its environments are at a place of their own."""
    if issubclass(algorithm, CETActorCritic):
        agent: BaseAlgorithm = algorithm.load(file, _environments(algorithm, config), device=config.device)
    else:
        data, agent = archive.read(file, what="agent"), _build(algorithm, config)
        if data.get("algorithm") != type(agent).__name__:
            raise ValueError(f"{file} holds a {data.get('algorithm')}, not a {type(agent).__name__}")
        try:
            agent.set_parameters(data["parameters"])
            agent.num_timesteps = int(data["num_timesteps"])
            agent.ep_info_buffer = deque(data["episodes"], maxlen=100)
            agent.ep_success_buffer = deque(maxlen=100)  # Stable-Baselines3 creates both, or neither
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ValueError(f"{file} is damaged: {error}") from None
    # With the seed of the beginning, each resumed run would start with the first episodes again.
    seeds = np.random.SeedSequence([config.seed, agent.num_timesteps]).generate_state(1)
    agent.get_env().seed(int(seeds[0] // 2))  # type: ignore[union-attr]
    return agent


_COUNTERS = ("_n_updates", "_episode_num", "_current_progress_remaining", "_total_timesteps")
_LAST_SEEN = ("_last_obs", "_last_episode_starts", "_last_original_obs")
"""The agent's last observations; saved only with the environments that they came from."""


def runtime_state(agent: BaseAlgorithm) -> dict[str, Any]:
    """Return the state between two rollouts that an agent's file does not hold; see `AgentKind`.

    It is that of the random generators, of the environments in the middle of their episodes, and of counters. With
    it and the pending numbers of its log, an on-policy agent resumes as if it had not been interrupted.
    """
    not_restored, environments = [], None
    try:
        environments = snapshot.capture(agent.get_env())
        archive.encode(environments, {})
    except ValueError as error:
        environments = None
        not_restored.append(f"cannot be captured ({error}): they start fresh episodes")
    if isinstance(agent, OffPolicyAlgorithm):
        not_restored.append(f"the replay buffer of {type(agent).__name__} is not saved: it starts empty")
    return {
        "not_restored": not_restored,
        "random": process_state(agent.device.type),
        "counters": {name: getattr(agent, name) for name in _COUNTERS},
        "successes": [float(success) for success in agent.ep_success_buffer or ()],
        "environments": environments,
        "last_seen": None if environments is None else {name: getattr(agent, name) for name in _LAST_SEEN},
    }


def restore(agent: BaseAlgorithm, state: dict[str, Any]) -> None:
    """Set an agent, built alike and loaded from its file, to the state that `runtime_state` returned."""
    for name in _COUNTERS:
        setattr(agent, name, type(getattr(agent, name))(state["counters"][name]))
    agent.ep_success_buffer = deque(state["successes"], maxlen=agent._stats_window_size)
    if state["environments"] is not None:
        snapshot.restore(agent.get_env(), state["environments"])
        for name in _LAST_SEEN:
            setattr(agent, name, state["last_seen"][name])
    restore_process_state(state["random"])
