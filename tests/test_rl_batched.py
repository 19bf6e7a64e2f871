"""Agents that learn in lock step: each ends where it would have ended alone."""

import os
import signal
import time
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs import classic_control
from hypothesis import given, settings
from hypothesis import strategies as st
from leave_callback import Leave
from saved_files import rows, summary
from toy_env import Toy

from cet_rl.agents import CETActorCritic
from cet_rl.agents.distributions import Categorical
from cet_rl.agents.networks import Actor, joint_forward
from cet_rl.agents.rollouts import collect
from cet_rl.envs import capture, make_vec_env
from cet_rl.envs.joint import JointVecEnv
from cet_rl.rl import RLConfig, train, train_batch
from cet_rl.runs import archive
from cet_rl.sweeps import worker
from cet_rl.sweeps.folder import Job, SweepFolder

SMALL = {"task": "CartPole-v1", "hidden": (8, 8), "num_envs": 2, "n_steps": 16, "eval_episodes": 2, "threads": 1}
POLE = RLConfig(**SMALL, delay=1.0, total_steps=320)
RUNS = [
    POLE,
    replace(POLE, trace="legendre", order=3, delay=2.0, seed=1, lam=0.9, lr=1e-3),
    replace(POLE, trace="perfect", order=None, seed=2, random_lam=(0.2, 0.9), feedback="dfa", total_steps=160),
]


def shown(returned):
    """Return everything that one agent gets to see of a step, times apart."""
    observations, rewards, dones, infos = returned
    ends = [(i["terminal_observation"].tolist(), i["episode"]["r"]) for i in infos if "episode" in i]
    cut = [info["TimeLimit.truncated"] for info in infos]
    return observations.tolist(), observations.dtype, rewards.tolist(), dones.tolist(), ends, cut


def gymnasiums():
    return gym.wrappers.TimeLimit(classic_control.CartPoleEnv(), 12)


@settings(deadline=None, max_examples=12)
@given(seed=st.integers(0, 2**31), lean=st.floats(0.2, 0.8), leaves=st.integers(0, 50))
def test_cartpoles_in_one_call_are_gymnasiums_bit_for_bit(seed, lean, leaves):
    """Poles fall, and episodes are cut; one agent leaves on the way."""
    draw = np.random.default_rng(seed)
    here, whole = (
        [make_vec_env("CartPole-v1", 2, seed + n, delay=1.0, max_episode_steps=12) for n in range(3)]
        for _ in range(2)
    )
    theirs = [make_vec_env(gymnasiums, 2, seed + n) for n in range(3)]
    for env in (*here, *whole, *theirs):
        env.reset()
    joint = JointVecEnv(here)
    assert joint._poles is not None
    for step in range(60):
        going = [True, step < leaves, True]
        actions = (draw.random((3, 2)) < lean).astype(int)
        found = joint.step(actions.flatten(), going)
        for number in np.flatnonzero(going):
            whole[number].step(actions[number])
            assert shown(found[number]) == shown(theirs[number].step(actions[number]))
    joint.write_back()
    for env, alone in zip(here, whole, strict=True):
        assert str(capture(env)) == str(capture(alone))


def test_cartpoles_of_another_kind_step_by_themselves():
    def reversed_reward(env):
        return gym.wrappers.TransformReward(env, lambda reward: -reward)

    for wrappers, length in (([reversed_reward], 0.5), ([], 0.7)):
        vectors = [make_vec_env("CartPole-v1", 1, n, wrappers=wrappers) for n in range(2)]
        for env in vectors:
            env.reset()
        vectors[1].envs[0].unwrapped.length = length
        assert JointVecEnv(vectors)._poles is None


@pytest.mark.parametrize("channels", [(), (4,)], ids=["dense", "convolutions"])
def test_networks_act_together_as_alone(channels):
    actors = [Actor((2, 5, 5), Categorical(3), (7, 6), channels=channels) for _ in range(3)]
    x = np.random.default_rng(0).normal(size=(12, 50)).astype(np.float32)
    alone = [actor.numpy_forward()(rows) for actor, rows in zip(actors, np.split(x, 3), strict=True)]
    np.testing.assert_allclose(joint_forward(actors)(x), np.concatenate(alone), rtol=1e-5, atol=1e-6)


def ended(folder):
    """Return what a run leaves, and its checkpoint's tensors, without times and the process's generators."""
    file, drop, tensors = folder / "checkpoint" / "agent.zip", {"wall_seconds", "steps_per_second"}, {}
    run = archive.read(file, what="agent", of_run=True)
    run["runtime_state"]["agent"].pop("random")
    data = archive.encode([archive.read(file, what="agent"), run], tensors)
    return (data, {k: v for k, v in summary(folder).items() if k not in drop}, rows(folder)), tensors


def assert_same(folder, alone):
    """Check that two runs have ended alike."""
    (data, tensors), (expected, numbers) = ended(folder), ended(alone)
    assert data == expected
    torch.testing.assert_close(tensors, numbers, rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Return the folders of runs that have learned one by one."""
    root = tmp_path_factory.mktemp("alone")
    for number, config in enumerate(RUNS):
        assert train(config, root / str(number), quiet=True) == "finished"
    return [root / str(number) for number in range(len(RUNS))]


def test_every_run_ends_where_it_would_have_ended_alone(alone, tmp_path, capsys):
    paths = [tmp_path / str(number) for number in range(len(RUNS))]
    began = time.monotonic()
    assert train_batch(RUNS, paths) == paths
    assert sum(summary(path)["wall_seconds"] for path in paths) <= time.monotonic() - began  # each its own share
    for path, other in zip(paths, alone, strict=True):
        assert_same(path, other)
        assert summary(path)["steps_per_second"] > 0
        assert f"{path}: evaluation: " in capsys.readouterr().err or path != paths[0]
    assert "credit/alignment/0" in rows(paths[0])[-1]


@pytest.mark.parametrize(
    "values",
    [
        {"task": "Pendulum-v1", "num_envs": 1},
        {"task": "MinAtar/Breakout-v1", "actor": "conv", "n_steps": 8, "total_steps": 64, "eval_max_steps": 20},
    ],
    ids=["real actions", "convolutions"],
)
def test_other_environments_are_stepped_one_by_one(values, tmp_path):
    runs = [RLConfig(**{**SMALL, "delay": 0.4, "total_steps": 160, **values}, seed=seed) for seed in (0, 1)]
    paths = train_batch(runs, [tmp_path / "0", tmp_path / "1"], quiet=True)
    assert train(runs[1], tmp_path / "alone", quiet=True) == "finished"
    assert_same(paths[1], tmp_path / "alone")


def interrupted_at(monkeypatch, seed, samples):
    """Press Ctrl-C when the run with this seed has made so many samples."""
    learn = CETActorCritic.learn_from_rollout

    def patched(agent):
        learn(agent)
        if (agent.seed, agent.num_timesteps) == (seed, samples):
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(CETActorCritic, "learn_from_rollout", patched)


def test_interrupted_runs_go_on_together_or_alone_wherever_they_are(alone, tmp_path, monkeypatch):
    paths = [tmp_path / str(number) for number in range(3)]
    for runs, seed, samples in (([0, 1], 1, 96), ([0, 2], 2, 96)):
        with monkeypatch.context() as patch:
            interrupted_at(patch, seed, samples)
            with pytest.raises(KeyboardInterrupt):
                train_batch([RUNS[n] for n in runs], [paths[n] for n in runs], quiet=True)
        assert [summary(paths[n])["status"] for n in runs] == ["interrupted"] * 2
        assert not any((path / "lock").exists() for path in paths)
    assert [summary(path)["steps"] for path in paths] == [192, 96, 96]
    assert train(RUNS[2], paths[2], resume=True, quiet=True) == "finished"
    train_batch(RUNS, paths, quiet=True)
    for path, other in zip(paths, alone, strict=True):
        assert_same(path, other)


def test_a_run_that_diverges_fails_alone(alone, tmp_path):
    runs = [RUNS[0], replace(RUNS[1], lr=1e30), RUNS[2]]
    paths = [tmp_path / str(number) for number in range(3)]
    train_batch(runs, paths, quiet=True)
    assert summary(paths[1])["status"] == "failed"
    assert "learning has diverged" in summary(paths[1])["error"]
    for number in (0, 2):
        assert_same(paths[number], alone[number])


def test_whatever_ends_one_agents_rollout_leaves_those_of_others_whole():
    def broken(step, action):
        if step == 5:
            raise OSError("the robot is gone")
        return 1.0

    def agent(reward):
        env = make_vec_env(lambda: Toy(9, reward=reward, action_space=gym.spaces.Discrete(2)), 2, 0)
        return CETActorCritic("MlpPolicy", env, n_steps=8, seed=0, policy_kwargs={"net_arch": [4]}, device="cpu")

    agents = [agent(reward) for reward in (broken, *[lambda step, action: action] * 4)]
    watches = [Leave(), Leave(3), Leave(4, ValueError("mine")), Leave(), Leave()]
    for one, watch in zip(agents, watches, strict=True):
        one.start_learning(16, watch)
    *five, single = agents
    outcomes = collect(five, [one.env for one in five], watches[:4], 8)
    assert [str(outcome) for outcome in outcomes] == ["the robot is gone", "False", "mine", "True"]
    assert [watch.n_calls for watch in watches[:4]] == [4, 3, 4, 8]
    assert [len(watch.starts) for watch in watches[:4]] == [0, 0, 0, 1]
    assert [one._last_obs is None for one in five] == [True, False, False, False]
    assert [one.learner.steps for one in five] == [4, 3, 4, 0]
    assert collect([single], [single.env], watches[4:], 8) == [True]
    for name, tensor in vars(single._rollout).items():
        assert tensor is None or torch.equal(tensor, getattr(five[3]._rollout, name)), name


def test_jobs_that_are_alike_are_shared_out_to_idle_processors(tmp_path, monkeypatch):
    def job(number, **values):
        return Job(str(number), "", {**SMALL, "delay": 1.0, "seed": number, "device": "cpu", **values})

    class Started:
        def __init__(self, names, command, log):
            self.names, self.status = names, None
            assert "--batch" in command

        def poll(self):
            return self.status

    monkeypatch.setattr(worker, "Worker", Started)
    monkeypatch.setattr(worker, "processors", lambda: 2)
    jobs = [job(n, order=n + 1) for n in range(5)] + [job(5, hidden=(4,)), job(6, hidden=(4,), lam=0.5)]
    launcher = worker.batch_launcher(jobs)
    assert (launcher.capacity, worker.batch_launcher(jobs, 3).capacity) == (32, 3)
    folder = SweepFolder(tmp_path)
    started = launcher.submit(folder, [str(n) for n in range(4)])
    assert [each.names for each in started] == [["0", "1"], ["2", "3"]]
    started[0].status = 0
    assert [each.names for each in launcher.submit(folder, ["4", "5", "6"])] == [["4"]]  # one is idle
    started[1].status = 0
    assert [each.names for each in launcher.submit(folder, ["5", "6"])] == [["5", "6"]]
    with pytest.raises(ValueError, match="must not differ in hidden"):
        train_batch([POLE, replace(POLE, hidden=(9,))], [tmp_path / "a", tmp_path / "b"])
