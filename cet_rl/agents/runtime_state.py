"""Runtime state of agents of Stable-Baselines3's kind: what resuming needs beside the agent's file.

Random numbers, the environments in the middle of their episodes, counters, and what has been recorded since the
last log. With these, an on-policy agent resumes as if it had never stopped.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from cet_rl.envs import snapshot
from cet_rl.runs import typed_json
from cet_rl.runs.rng import process_state, restore_process_state

_COUNTERS = ("_n_updates", "_episode_num", "_current_progress_remaining", "_total_timesteps")
_LAST_SEEN = ("_last_obs", "_last_episode_starts", "_last_original_obs")
"""The agent's last observations; of use only together with the environments they came from."""


def runtime_state(agent: BaseAlgorithm) -> dict[str, Any]:
    """Return the state that an agent's file does not hold, as `cet_rl.runs.typed_json` can encode it.

    Args:
        agent: between two rollouts.

    Returns:
        The state; under "not_restored" a line for each thing that cannot be saved.
    """
    not_restored, environments = [], None
    try:
        environments = snapshot.capture(agent.get_env())
        typed_json.encode(environments, {})
    except ValueError as error:
        environments = None
        not_restored.append(f"cannot be captured ({error}): they start fresh episodes")
    if isinstance(agent, OffPolicyAlgorithm):
        not_restored.append(f"the replay buffer of {type(agent).__name__} is not kept: it fills anew")
    return {
        "not_restored": not_restored,
        "random": process_state(agent.device.type),
        "counters": {name: getattr(agent, name) for name in _COUNTERS},
        "successes": [float(success) for success in agent.ep_success_buffer or ()],
        "environments": environments,
        "last_seen": None if environments is None else {name: getattr(agent, name) for name in _LAST_SEEN},
    }


def restore(agent: BaseAlgorithm, state: dict[str, Any]) -> None:
    """Put an agent into the state that `runtime_state` returned.

    Args:
        agent: built alike, with its file loaded.
        state: of the agent that was saved.

    Raises:
        ValueError, KeyError, TypeError, AttributeError, RuntimeError: if the state does not fit.
    """
    for name in _COUNTERS:
        setattr(agent, name, type(getattr(agent, name))(state["counters"][name]))
    agent.ep_success_buffer = deque(state["successes"], maxlen=agent._stats_window_size)
    if state["environments"] is not None:
        snapshot.restore(agent.get_env(), state["environments"])
        for name in _LAST_SEEN:
            setattr(agent, name, state["last_seen"][name])
    restore_process_state(state["random"])


def pending(logger: Logger) -> dict[str, Any]:
    """Return the numbers that have been recorded but not written yet."""
    return {
        name: (float(value) if isinstance(value, (float, np.floating)) else int(value), count, excluded)
        for name, value in logger.name_to_value.items()
        if isinstance(value, (int, float, np.number))
        for count, excluded in [(logger.name_to_count.get(name, 0), tuple(logger.name_to_excluded[name]))]
    }


def restore_pending(logger: Logger, state: dict[str, Any]) -> None:
    """Record the numbers that `pending` returned."""
    for name, (value, count, excluded) in state.items():
        logger.name_to_value[name], logger.name_to_excluded[name] = value, excluded
        if count:
            logger.name_to_count[name] = count
