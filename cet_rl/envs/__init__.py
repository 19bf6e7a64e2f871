"""Environments: wrappers (clock, delays, sign split), MinAtar, vector environments and snapshots."""

from cet_rl.envs.snapshot import CannotCaptureError, capture, register_snapshot, restore
from cet_rl.envs.tasks import environments, register_env
from cet_rl.envs.vector import GymnasiumVecEnv, find_task, make_env, make_vec_env
from cet_rl.envs.wrappers import ActionsFromZero, DelayedCredit, DelayedReward, PositiveNegativeSplit, StepClock

__all__ = [
    "ActionsFromZero",
    "CannotCaptureError",
    "DelayedCredit",
    "DelayedReward",
    "GymnasiumVecEnv",
    "PositiveNegativeSplit",
    "StepClock",
    "capture",
    "environments",
    "find_task",
    "make_env",
    "make_vec_env",
    "register_env",
    "register_snapshot",
    "restore",
]
