"""What a run carries beside its agent's file, for agents of Stable-Baselines3's kind.

Random numbers, the environments in the middle of their episodes, counters, and what has been recorded since the
last log: with these, an on-policy agent goes on as if it had never stopped.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from cet_rl.envs.snapshot import capture, restore
from cet_rl.runs import typed_json
from cet_rl.runs.rng import process_state, restore_process_state

_COUNTERS = ("_n_updates", "_episode_num", "_current_progress_remaining", "_total_timesteps")
_AT_HAND = ("_last_obs", "_last_episode_starts", "_last_original_obs")
"""What the agent saw last: worth something only together with the environments it saw it in."""


def carry(agent: BaseAlgorithm) -> dict[str, Any]:
    """What an agent's file does not hold, as `cet_rl.runs.typed_json` can encode it.

    Args:
        agent: between two rollouts.

    Returns:
        The state; under "gaps" a line for each thing that cannot be carried on.
    """
    gaps, environments = [], None
    try:
        environments = capture(agent.get_env())
        typed_json.encode(environments, {})
    except ValueError as error:
        environments = None
        gaps.append(f"cannot be captured ({error}): they start fresh episodes")
    if isinstance(agent, OffPolicyAlgorithm):
        gaps.append(f"the replay buffer of {type(agent).__name__} is not kept: it fills anew")
    return {
        "gaps": gaps,
        "random": process_state(agent.device.type),
        "counters": {name: getattr(agent, name) for name in _COUNTERS},
        "successes": [float(success) for success in agent.ep_success_buffer or ()],
        "environments": environments,
        "at_hand": None if environments is None else {name: getattr(agent, name) for name in _AT_HAND},
    }


def carry_on(agent: BaseAlgorithm, state: dict[str, Any]) -> None:
    """Take over what `carry` gave: an agent made alike, its file loaded.

    Raises:
        ValueError, KeyError, TypeError, AttributeError, RuntimeError: if it does not fit.
    """
    for name in _COUNTERS:
        setattr(agent, name, type(getattr(agent, name))(state["counters"][name]))
    agent.ep_success_buffer = deque(state["successes"], maxlen=agent._stats_window_size)
    if state["environments"] is not None:
        restore(agent.get_env(), state["environments"])
        for name in _AT_HAND:
            setattr(agent, name, state["at_hand"][name])
    restore_process_state(state["random"])


def pending(logger: Logger) -> dict[str, Any]:
    """The numbers that have been recorded but not written yet."""
    return {
        name: (float(value) if isinstance(value, (float, np.floating)) else int(value), count, excluded)
        for name, value in logger.name_to_value.items()
        if isinstance(value, (int, float, np.number))
        for count, excluded in [(logger.name_to_count.get(name, 0), tuple(logger.name_to_excluded[name]))]
    }


def restore_pending(logger: Logger, state: dict[str, Any]) -> None:
    """Record them again."""
    for name, (value, count, excluded) in state.items():
        logger.name_to_value[name], logger.name_to_excluded[name] = value, excluded
        if count:
            logger.name_to_count[name] = count


def log_every(agent: OnPolicyAlgorithm, interval: int) -> None:
    """Make an algorithm of Stable-Baselines3 write a log after so many rollouts counted from the run's first.

    Its own `log_interval` counts from the call of `learn`, which is to be given one; a run that was interrupted
    would log at other steps than one that was not.
    """
    write, per_rollout = agent.dump_logs, agent.n_steps * agent.n_envs

    def dump_logs(iteration: int = 0) -> None:
        iteration = agent.num_timesteps // per_rollout
        if iteration % interval == 0:
            write(iteration)

    agent.dump_logs = dump_logs  # type: ignore[method-assign]
