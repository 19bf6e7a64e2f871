"""Environments: the step clock, the split by sign, and vector environments that end episodes honestly."""

from cet_rl.envs.catalogue import READY
from cet_rl.envs.clock import StepClock
from cet_rl.envs.split import PositiveNegativeSplit
from cet_rl.envs.vector import GymnasiumVecEnv, find_task, make_env, make_vec_env

__all__ = [
    "READY",
    "GymnasiumVecEnv",
    "PositiveNegativeSplit",
    "StepClock",
    "find_task",
    "make_env",
    "make_vec_env",
]
