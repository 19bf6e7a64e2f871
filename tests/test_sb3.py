"""Stable-Baselines3 in depth: what its users have around an agent works around ours."""

import contextlib
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import run_python
from leave_callback import Leave
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from toy_env import Toy

from cet_rl.agents import CETActorCritic
from cet_rl.envs import DelayedCredit, DelayedReward, StepClock, make_vec_env

OPTIONS = {"n_steps": 16, "policy_kwargs": {"net_arch": [16]}, "seed": 0, "device": "cpu"}


def make(env, **options):
    return CETActorCritic("MlpPolicy", env, **{"delay": 1.0, "order": 3, **OPTIONS, **options})


def evaluated(checkpoint, statistics):
    """Return what the agent in a file earns under VecNormalize's statistics, and the sums of what it remembers."""
    model = CETActorCritic.load(checkpoint, device="cpu")
    env = VecNormalize.load(statistics, make_vec_env("CartPole-v1", 2, 7))
    env.training = env.norm_reward = False
    rewards = evaluate_policy(model, env, 6, return_episode_rewards=True)
    return rewards, [float(tensor.double().sum()) for tensor in model.learner.state_dict().values()]


EVALUATION = "import sys, test_sb3, torch; torch.set_num_threads(1); print(test_sb3.evaluated(*sys.argv[1:]))"


def test_checkpoints_with_everything_come_back_in_a_fresh_process(tmp_path):
    """Random λ, traces, lines and VecNormalize's statistics: the evaluation is the same to the last digit."""
    model = make(VecNormalize(make_vec_env("CartPole-v1", 2, 0)), random_lam=(0.1, 0.9))
    model.learn(400, callback=CheckpointCallback(200, str(tmp_path), name_prefix="cet", save_vecnormalize=True))
    files = [str(tmp_path / name) for name in ("cet_400_steps.zip", "cet_vecnormalize_400_steps.pkl")]
    result = run_python("-c", EVALUATION, *files, cwd=Path(__file__).parent, succeeds=True)
    assert result.stdout.strip().splitlines()[-1] == str(evaluated(*files))


def test_normalised_observations_are_split_though_the_space_is_not_negative(tmp_path):
    plain, networks = make_vec_env("MinAtar/Breakout-v1", 2, 0), {"net_arch": [8], "critic": "mlp"}
    assert not make(plain, policy_kwargs=networks).policy.splits
    assert not make(VecNormalize(plain, norm_obs=False), policy_kwargs=networks).policy.splits
    with pytest.raises(ValueError, match="VecNormalize makes observations negative"):
        make(plain, policy_kwargs=networks).set_env(VecNormalize(plain))
    make(VecNormalize(plain), policy_kwargs={**networks, "split_observations": False}).learn(32)

    env = VecNormalize(plain)
    model = make(env, policy_kwargs=networks)
    model.learn(32)
    model.save(tmp_path / "agent")
    loaded = CETActorCritic.load(tmp_path / "agent")
    assert loaded.policy.splits
    observation = env.reset()
    np.testing.assert_array_equal(*(m.predict(observation, deterministic=True)[0] for m in (model, loaded)))
    assert CETActorCritic.load(tmp_path / "agent", env).get_vec_normalize_env() is env
    make(plain, policy_kwargs=networks).save(tmp_path / "agent")
    with pytest.warns(UserWarning, match="VecNormalize makes observations negative"):
        CETActorCritic.load(tmp_path / "agent", VecNormalize(plain))


def test_set_env_goes_on_learning_with_its_traces():
    model = make(make_vec_env("CartPole-v1", 2, 0))
    model.learn(64)
    states = [synapses.states.clone() for synapses in model.synapses]
    model.set_env(make_vec_env("CartPole-v1", 2, 5))
    assert all(torch.equal(s.states, before) for s, before in zip(model.synapses, states, strict=True))
    model.learn(64, reset_num_timesteps=False)
    assert model.num_timesteps == 128
    for env, message in (
        (make_vec_env("CartPole-v1", 3, 0), "number of environments"),
        (make_vec_env("Acrobot-v1", 2, 0), "[Oo]bservation spaces do not match"),
        (make_vec_env("CartPole-v1", 2, 0, step_duration=0.3), "the environment's clock says 0.3 s"),
    ):
        with pytest.raises((ValueError, AssertionError), match=message):
            model.set_env(env)
    model.learn(32, reset_num_timesteps=False)  # and is none the worse for the refusals


def test_a_delay_that_travels_keeps_its_clock():
    def build():
        return DelayedCredit(gym.make("CartPole-v1"), delay=120, step_duration=0.3, stacked=True)

    assert make(make_vec_env(build, 2), delay=None).timing.layer_delays == (400, 0)
    with pytest.raises(ValueError, match="one clock"):
        make(make_vec_env(lambda: StepClock(build(), 0.2), 2), delay=None)
    assert gym.make(build().spec).get_wrapper_attr("credit_timing") == build().credit_timing
    assert DelayedReward(StepClock(gym.make("CartPole-v1"), 0.3), delay=6).delay_steps == 20


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize("options", [{}, {"random_lam": (0.1, 0.9)}, {"trace": "perfect", "order": None}], ids=str)
def test_moving_keeps_everything(device, options, tmp_path):
    def everything():
        return {**model.learner.state_dict(), **model.policy.optimizer.state_dict()["state"][0]}

    model = make(make_vec_env("CartPole-v1", 2, 0), **options)
    for target in (device, "cpu"):
        model.learn(64, reset_num_timesteps=False)
        before = {name: tensor.clone().cpu() for name, tensor in everything().items()}
        assert model.to(target) is model
        assert {tensor.device.type for tensor in everything().values() if tensor.ndim} == {target}
        for name, tensor in everything().items():
            assert torch.equal(tensor.cpu(), before[name]), name
        model.save(tmp_path / "agent")
        loaded = CETActorCritic.load(tmp_path / "agent", device="cpu")
        assert all(map(torch.equal, loaded.policy.parameters(), [p.cpu() for p in model.policy.parameters()]))
    model.learn(64, reset_num_timesteps=False)
    assert any(not torch.equal(tensor.cpu(), before[name]) for name, tensor in everything().items())


@pytest.mark.cuda
@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("CartPole-v1", {}),
        ("CartPole-v1", {"random_lam": (0.1, 0.9)}),
        ("CartPole-v1", {"stacked": True}),
        ("Pendulum-v1", {}),
        ("MinAtar/Breakout-v1", {}),
        ("MinAtar/Breakout-v1", {"policy_kwargs": {"net_arch": [16], "actor": "conv"}}),
    ],
    ids=str,
)
def test_cuda_learns_as_the_cpu_does(task, options):
    """The same rollout gives the same gradients; the agents' own streams draw the same actions at first."""
    models = [make(make_vec_env(task, 2, 0), **{**options, "device": device}) for device in ("cpu", "cuda")]
    for model in models:
        model.learn(32)
    pairs = zip(*(model.policy.parameters() for model in models), strict=True)
    assert all(torch.allclose(a, b.cpu(), atol=1e-4) for a, b in pairs)


def test_rollouts_may_change_their_length(tmp_path):
    models = [make(make_vec_env("CartPole-v1", 2, 0), n_steps=n_steps) for n_steps in (8, 24)]
    for model in models:
        model.n_steps = 8
        model.learn(48)
        assert model._n_updates == 3
    assert all(map(torch.equal, *(model.policy.parameters() for model in models)))
    models[1].save(tmp_path / "agent")  # whose traces are laid out for 24
    assert CETActorCritic.load(tmp_path / "agent").n_steps == 8


def test_frozen_weights_stay():
    model = make(make_vec_env("CartPole-v1", 2, 0))
    actor, critic = model.policy.actor, model.policy.critic
    model.learn(64)
    for parameter in [actor.weights[0], *critic.parameters()]:
        parameter.requires_grad_(False)
    before = [parameter.clone() for parameter in model.policy.parameters()]
    model.learn(64, reset_num_timesteps=False)
    for parameter, old in zip(model.policy.parameters(), before, strict=True):
        assert torch.equal(parameter, old) != parameter.requires_grad


def phases():
    return Toy(7, reward=lambda step, action: action, action_space=gym.spaces.Discrete(2))


@pytest.mark.parametrize("error", [None, RuntimeError("mine")], ids=str)
@pytest.mark.parametrize("stop", [5, 7, 9])
def test_a_rollout_left_early_goes_on_where_the_environment_is(stop, error):
    """The next gradient is that of an agent whose rollouts end where this one was left."""

    def gradients(model):
        return [weight.grad.clone() for weight in model.policy.actor.weights]

    options = {"learning_rate": 1e-9, "order": 2, "delay": 0.4, "ent_coef": 0.0}
    whole, left = (make(make_vec_env(phases, 1), **options) for _ in range(2))
    whole.n_steps = stop
    whole.learn(stop)
    whole.n_steps = 16
    with pytest.raises(type(error)) if error else contextlib.nullcontext():
        left.learn(1000, callback=Leave(stop, error))
    assert left._n_updates == 0
    np.testing.assert_array_equal(left._last_obs, whole._last_obs)
    np.testing.assert_array_equal(left._last_episode_starts, whole._last_episode_starts)
    left.generator.set_state(whole.generator.get_state())
    watch = Leave()
    for model in (whole, left):
        model.learn(16, callback=watch, reset_num_timesteps=False)
    assert torch.equal(*watch.starts)
    for expected, found in zip(gradients(whole), gradients(left), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert any(gradient.abs().max() > 1e-3 for gradient in gradients(whole))


def test_after_numbers_that_are_not_finite_episodes_end():
    model = make(make_vec_env("CartPole-v1", 2, 0))

    def spoil(found, _):
        found["self"]._rollout.rewards[0, 0] = float("nan")
        return False

    model.learn(64, callback=spoil)
    assert model._last_episode_starts.all()
    model.learn(64, reset_num_timesteps=False)
    assert all(torch.isfinite(p).all() for p in model.policy.parameters())


def test_a_truncation_without_its_last_observation_ends_the_episode_as_in_a2c():
    class Silent(DummyVecEnv):
        def step_wait(self):
            *result, infos = super().step_wait()
            return *result, [{"TimeLimit.truncated": info["TimeLimit.truncated"]} for info in infos]

    model = make(Silent([lambda: gym.make("CartPole-v1", max_episode_steps=5)] * 2))
    model.learn(32)
    assert (model._rollout.terminated.sum(), model._rollout.truncated.sum()) == (6, 0)


def test_actions_of_any_whole_type_are_saved(tmp_path):
    env = make_vec_env(lambda: Toy(action_space=gym.spaces.Discrete(3, start=5, dtype=np.int32)), 1)
    make(env).save(tmp_path / "agent")
    assert CETActorCritic.load(tmp_path / "agent", env).action_space == env.action_space


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ([(DelayedCredit, 1.0), (DelayedCredit, 8.0)], "must have one delay, these have 1 s and 8 s"),
        ([(DelayedCredit, 1.0), (StepClock,)], "some of the environments have a credit_timing, others have none"),
        ([(StepClock, 0.2), (StepClock, 0.5)], r"must have one clock, these have 0\.2 s and 0\.5 s"),
    ],
)
def test_environments_with_different_delays_are_refused(kinds, message):
    env = DummyVecEnv([lambda k=kind, a=given: k(gym.make("CartPole-v1"), *a) for kind, *given in kinds])
    with pytest.raises(ValueError, match=message):
        make(env, delay=None)


def test_maps_with_the_channels_last_are_refused_by_convolutions():
    def maps():
        return Toy(observation_space=gym.spaces.Box(0, 1, (20, 20, 3), np.float32))

    for networks in ({"actor": "conv"}, {"critic": "conv"}, {}):
        with pytest.raises(ValueError, match=r"\(20, 20, 3\) look like maps with the channels last"):
            make(make_vec_env(maps, 1), policy_kwargs=networks)
    make(make_vec_env(maps, 1), policy_kwargs={"net_arch": [4], "critic": "mlp"})
