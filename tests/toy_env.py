"""An environment that is worked out by hand."""

import gymnasium as gym
import numpy as np


class Toy(gym.Env):
    """Show how far the episode is; earn one for action 6, or `reward(step, action)`; end after `length` steps.

    `cut` makes ends truncations, `bad` the reward or the observation after 15 steps in all not finite. Further
    arguments replace attributes, such as the spaces.
    """

    observation_space = gym.spaces.Box(0, 100, (3,), np.float32)
    action_space = gym.spaces.Discrete(3, start=5)

    def __init__(self, length=10, cut=False, reward=lambda step, action: action == 6, bad=None, **given):
        self.length, self.cut, self.reward, self.bad = length, cut, reward, bad
        self.steps, self.seen = 0, set()
        vars(self).update(given)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.step_number = 0
        return self.observation, {}

    @property
    def observation(self):
        shown = np.eye(8, dtype=np.float32)[self.step_number % 8, :3] + self.step_number
        return shown + np.inf if self.bad == "observation" and self.steps == 15 else shown

    def step(self, action):
        assert self.action_space.contains(action)
        self.steps += 1
        self.step_number += 1
        self.seen.add(int(action))
        reward = (
            float("nan")
            if self.bad == "reward" and self.steps == 15
            else float(self.reward(self.step_number, action))
        )
        ends = self.step_number == self.length
        return self.observation, reward, ends and not self.cut, ends and self.cut, {}
