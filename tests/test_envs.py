from __future__ import annotations

import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env as gymnasium_check
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_checker import check_env as sb3_check
from stable_baselines3.common.evaluation import evaluate_policy

from cet_rl.agents import CETActorCritic
from cet_rl.envs import READY, GymnasiumVecEnv, PositiveNegativeSplit, StepClock, make_env, make_vec_env


@pytest.mark.parametrize("task", READY)
@pytest.mark.parametrize("wrapper", [StepClock, PositiveNegativeSplit])
def test_checkers_accept_wrapped_environments(task, wrapper):
    envs = [wrapper(gym.make(task)) for _ in range(2)]  # outside: SWIG's import breaks when it may not warn
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sb3_check(envs[0], skip_render_check=True)
        # The bounds are the environment's own; a number that is never negative has a constant negative part.
        warnings.filterwarnings("ignore", message=".*A Box observation space m.*")
        warnings.filterwarnings("ignore", message=".*different from the unwrapped version.*")
        gymnasium_check(envs[1], skip_render_check=True, skip_close_check=True)


@pytest.mark.parametrize("task", READY)
def test_ready_environments_run_with_the_agent(task):
    model = CETActorCritic("MlpPolicy", make_vec_env(task, 2, 0), delay=1.0, n_steps=32, seed=0)
    model.learn(256)
    assert all(torch.isfinite(weight).all() for weight in model.policy.actor.weights)


def test_the_clock_counts_and_leaves_physics_alone():
    clocked, plain = StepClock(gym.make("CartPole-v1"), 0.3), gym.make("CartPole-v1")
    first, _ = clocked.reset(seed=1)
    np.testing.assert_array_equal(first, plain.reset(seed=1)[0])
    assert clocked.elapsed == 0
    for step in range(1, 5):
        np.testing.assert_array_equal(clocked.step(0)[0], plain.step(0)[0])
        assert clocked.elapsed == pytest.approx(0.3 * step)
    clocked.reset()
    assert clocked.elapsed == 0
    assert clocked.unwrapped.tau == plain.unwrapped.tau
    with pytest.raises(ValueError, match="step duration"):
        StepClock(plain, 0)


def test_the_split_keeps_everything():
    env = PositiveNegativeSplit(gym.make("CartPole-v1"))
    observation, _ = env.reset(seed=0)
    assert observation.shape == (8,)
    assert env.observation_space.contains(observation)
    assert (observation >= 0).all()
    raw, _ = gym.make("CartPole-v1").reset(seed=0)
    np.testing.assert_array_equal(observation[:4] - observation[4:], raw)
    with pytest.raises(ValueError, match="Box of vectors"):
        PositiveNegativeSplit(gym.make("FrozenLake-v1"))


def test_seeds_differ_between_environments_and_repeat():
    first, again = make_vec_env("CartPole-v1", 3, 7).reset(), make_vec_env("CartPole-v1", 3, 7).reset()
    np.testing.assert_array_equal(first, again)
    assert len({tuple(row) for row in first}) == 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_env("CartPol-v1"), "did you mean CartPole-v1"),
        (lambda: make_env("cartpole-v1"), "CartPole-v1"),
        (lambda: make_env("LunarLander-v2"), "LunarLander"),
        (lambda: make_env("Zzzzzz"), "cet-rl list envs"),
        (lambda: make_vec_env("CartPole-v1", 0), "num_envs"),
        (lambda: make_vec_env("Acrobot-v1", 2, vectorization="numpy"), "vectorised form"),
        (lambda: make_vec_env("CartPole-v1", 2, vectorization="fast"), "vectorization"),
    ],
)
def test_bad_requests_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_environments_from_a_function():
    env = make_vec_env(lambda: gym.make("CartPole-v1"), 2, 3, max_episode_steps=5)
    np.testing.assert_array_equal(env.reset(), make_vec_env("CartPole-v1", 2, 3).reset())
    assert env.get_attr("step_duration") == [0.2, 0.2]


def numpy_cartpole(num_envs=2, seed=0, limit=None):
    return make_vec_env("CartPole-v1", num_envs, seed, vectorization="numpy", max_episode_steps=limit)


def test_resetting_steps_are_marked_and_episodes_recorded():
    env = numpy_cartpole()
    env.reset()
    done_before = np.zeros(2, bool)
    lengths, count = [], np.zeros(2, int)
    for _ in range(200):
        np.testing.assert_array_equal(env.resetting, done_before)
        count += ~env.resetting
        _, rewards, dones, infos = env.step(np.zeros(2, int))
        assert (rewards[done_before] == 0).all()
        for index in np.flatnonzero(dones):
            assert infos[index]["episode"]["l"] == count[index] == infos[index]["episode"]["r"]
            assert not infos[index]["TimeLimit.truncated"]
            lengths.append(count[index])
            count[index] = 0
        done_before = dones.copy()
    assert len(lengths) > 10
    assert 7 < np.mean(lengths) < 11  # pushing one way only


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_time_limits_come_with_the_observation_they_cut(mode):
    def build():
        return gym.make("CartPole-v1", max_episode_steps=4)

    env = GymnasiumVecEnv(SyncVectorEnv([build] * 2, autoreset_mode=mode))
    env.seed(0)
    env.reset()
    for step in range(4):
        observations, _, dones, infos = env.step(np.array([step % 2, (step + 1) % 2]))
    assert dones.all()
    for index in range(2):
        assert infos[index]["TimeLimit.truncated"]
        final = infos[index]["terminal_observation"]
        same = np.array_equal(final, observations[index])
        assert same == (mode == AutoresetMode.NEXT_STEP)


def test_environments_that_never_reset_are_refused():
    vector = SyncVectorEnv([lambda: gym.make("CartPole-v1")], autoreset_mode=AutoresetMode.DISABLED)
    with pytest.raises(ValueError, match="must reset itself"):
        GymnasiumVecEnv(vector)


def test_the_agent_skips_resetting_steps():
    env = numpy_cartpole(seed=1)
    model = CETActorCritic("MlpPolicy", env, delay=0.6, n_steps=64, seed=0)
    invalid = []

    class Watch(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_end(self):
            recording = self.model._recording
            ends = recording.terminated + recording.truncated
            np.testing.assert_array_equal(recording.valid[1:], 1 - ends[:-1])
            invalid.append((recording.valid == 0).sum())

    model.learn(512, callback=Watch())
    assert sum(invalid) > 5
    mean, _ = evaluate_policy(model, numpy_cartpole(seed=5), n_eval_episodes=4)
    assert mean > 5
