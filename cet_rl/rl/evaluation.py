"""Evaluate agents: deterministic episodes on environments they have not learned from."""

from __future__ import annotations

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.evaluation import evaluate_policy

from cet_rl.envs import ActionsFromZero, find_task, make_vec_env
from cet_rl.rl.config import RLConfig
from cet_rl.runs.interrupt import Interruption

EVALUATION_SEED_OFFSET = 1_000_003
"""Added to a run's seed for its evaluation, so that its episodes are none the agent has learned from."""


def evaluate(
    agent: BaseAlgorithm,
    config: RLConfig,
    episodes: int | None = None,
    seed: int | None = None,
    stop: Interruption | None = None,
) -> tuple[float, float]:
    """Return mean and standard deviation of the return over deterministic episodes on separate environments.

    Args:
        agent: to evaluate.
        config: of its run.
        episodes: how many; None for the configuration's number.
        seed: of the environments; None for one that follows from the run's.
        stop: interruption to look at before every step.

    Raises:
        KeyboardInterrupt: if `stop` is wanted.
    """

    def check(*_: object) -> None:
        if stop is not None and stop.wanted:
            raise KeyboardInterrupt

    episodes = episodes or config.eval_episodes
    seed = config.seed + EVALUATION_SEED_OFFSET if seed is None else seed
    cap = None if find_task(config.task).max_episode_steps else config.eval_max_steps
    # The actions of our agent start where the environment's do; those of others, like their training's, from zero.
    wrappers = [] if getattr(agent.action_space, "start", 0) else [ActionsFromZero]
    env = make_vec_env(
        config.task, min(episodes, 20), seed, config.step_duration, max_episode_steps=cap, wrappers=wrappers
    )
    returns, _ = evaluate_policy(
        agent, env, episodes, deterministic=True, callback=check, return_episode_rewards=True
    )
    env.close()
    return float(np.mean(returns)), float(np.std(returns))
