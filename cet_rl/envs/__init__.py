"""Environments: clocks, delays, the split by sign, and vector environments that end episodes honestly."""

from cet_rl.envs.catalogue import ready, register_env
from cet_rl.envs.clock import DelayedCredit, StepClock
from cet_rl.envs.delayed_reward import DelayedReward
from cet_rl.envs.split import PositiveNegativeSplit
from cet_rl.envs.vector import GymnasiumVecEnv, find_task, make_env, make_vec_env

__all__ = [
    "DelayedCredit",
    "DelayedReward",
    "GymnasiumVecEnv",
    "PositiveNegativeSplit",
    "StepClock",
    "find_task",
    "make_env",
    "make_vec_env",
    "ready",
    "register_env",
]
