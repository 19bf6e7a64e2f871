"""The environments that are ready to use: `cet-rl list envs`."""

from __future__ import annotations

READY: dict[str, str] = {
    "CartPole-v1": "hold a pole up; 4 numbers, 2 actions, at most 500 steps",
    "Acrobot-v1": "swing two links up; 6 numbers, 3 actions, at most 500 steps",
    "MountainCar-v0": "drive out of a valley; 2 numbers, 3 actions, at most 200 steps",
    "LunarLander-v3": "land between two flags; 8 numbers, 4 actions, at most 1000 steps",
}
"""Gymnasium ids and a line about each. Any other with discrete actions and vectors to see works as well."""
