"""Evaluate agents with deterministic actions, on environments that they were not trained in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.evaluation import evaluate_policy

from cet_rl.envs import ActionsFromZero, find_task, make_vec_env
from cet_rl.rl.config import RLConfig
from cet_rl.rl.video import watch
from cet_rl.runs.process import Interruption

SEED_OFFSET = 1_000_003  # added to a run's seed for its evaluation, so that no training episode is repeated


def evaluate(
    agent: BaseAlgorithm,
    config: RLConfig,
    episodes: int | None = None,
    seed: int | None = None,
    *,
    stop: Interruption | None = None,
    shown: bool = False,
    video: Path | None = None,
) -> tuple[float, float]:
    """Return mean and standard deviation of the return over deterministic episodes.

    Args:
        episodes: number of episodes; None for that of `config`, the configuration of the agent's run.
        seed: seed of the first environment; None for one that follows from the run's seed.
        stop: an interruption; KeyboardInterrupt is raised once it is wanted.
        shown, video: whether to show the episodes, in the file `video` or else in a window; see `watch`.
    """

    def check(*_: object) -> None:
        if stop is not None and stop.wanted:
            raise KeyboardInterrupt

    episodes = episodes or config.eval_episodes
    seed = (config.seed + SEED_OFFSET) % 2**32 if seed is None else seed
    cap = None if find_task(config.task).max_episode_steps else config.eval_max_steps
    # Our agent's actions start where the environment's do; other agents were trained in `ActionsFromZero`.
    wrappers = [] if np.any(getattr(agent.action_space, "start", 0)) else [ActionsFromZero]
    options: dict[str, Any] = {"task": config.task, "max_episode_steps": cap, "wrappers": wrappers}
    returns: Any
    if shown:
        returns = watch(agent, options, episodes, seed, video)
    else:
        env = make_vec_env(num_envs=min(episodes, 20), seed=seed, **options)
        returns, _ = evaluate_policy(
            agent, env, episodes, deterministic=True, callback=check, return_episode_rewards=True
        )
        env.close()
    return float(np.mean(returns)), float(np.std(returns))
