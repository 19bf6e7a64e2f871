"""`CETActorCritic` as Stable-Baselines3's own helpers see it."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import re
import warnings
import zipfile

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from saved_files import members, write_members
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import ConstantSchedule, LinearSchedule
from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize

from cet_rl.agents import CETActorCritic, CETPolicy
from cet_rl.envs import make_vec_env


def make(num_envs=2, seed=0, **options):
    options = {"delay": 1.0, "order": 3, "n_steps": 16, "policy_kwargs": {"net_arch": [16, 16]}, **options}
    return CETActorCritic("MlpPolicy", make_vec_env("CartPole-v1", num_envs, seed), seed=seed, **options)


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.policy.parameters()])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"delay": 0.0, "order": None},
        {"trace": "legendre"},
        {"trace": "sharp"},
        {"trace": "et", "order": None, "decay": 0.8},
        {"trace": "ltp-ltd", "order": None},
        {"trace": "perfect", "order": None},
        {"stacked": True},
        {"n_steps": 1},
        {"random_lam": (0.1, 0.9)},
        {"normalization": "area"},
        {"policy_kwargs": {"net_arch": [8], "activation": "tanh"}, "error_at": "activation"},
        {"policy_kwargs": {"net_arch": []}},
    ],
    ids=str,
)
def test_every_arm_learns_through_the_same_code(options):
    model = make(**options)
    before = weights(model)
    model.learn(200)
    assert torch.isfinite(weights(model)).all()
    assert not torch.equal(before, weights(model))


def test_same_seed_same_numbers():
    first, second = make(), make()
    first.learn(600)
    torch.rand(3)  # drawn by somebody else
    np.random.rand(3)
    second.learn(600)
    assert torch.equal(weights(first), weights(second))
    other = make(seed=1)
    other.learn(600)
    assert not torch.equal(weights(first), weights(other))


def test_predict_like_any_model():
    model = make()
    env = gym.make("CartPole-v1")
    observation, _ = env.reset(seed=0)
    action, state = model.predict(observation, deterministic=True)
    assert state is None
    assert env.action_space.contains(action.item())
    batch, _ = model.predict(np.stack([observation] * 5))
    assert batch.shape == (5,)


def test_policy_methods_agree():
    model = make()
    observations = torch.randn(6, 4)
    actions, values, log_probability = model.policy(observations)
    again_values, again, entropy = model.policy.evaluate_actions(observations, actions)
    torch.testing.assert_close(log_probability, again)
    torch.testing.assert_close(values, again_values)
    torch.testing.assert_close(model.policy.predict_values(observations)[:, 0], values)
    torch.testing.assert_close(model.policy.get_distribution(observations).entropy(), entropy)


def test_acting_samples_the_policy():
    """Actions taken during collection have the policy's probabilities."""
    model = make(num_envs=4, n_steps=2000)

    class Count(BaseCallback):
        expected = 0.0
        found = 0.0

        def _on_step(self):
            features = self.locals["features"]
            with torch.no_grad():
                probability = torch.softmax(self.model.policy.actor(torch.from_numpy(features)), -1)[:, 1]
            self.expected += probability.sum().item()
            self.found += self.locals["actions"].sum()
            return True

    count = Count()
    model.learn(8000, callback=count)
    assert abs(count.found - count.expected) < 4 * np.sqrt(8000 / 4)


def test_callbacks_of_stable_baselines(tmp_path):
    model = make()
    evaluation = EvalCallback(
        make_vec_env("CartPole-v1", 1, 5),
        eval_freq=100,
        n_eval_episodes=2,
        best_model_save_path=str(tmp_path),
        verbose=0,
    )
    checkpoints = CheckpointCallback(save_freq=100, save_path=str(tmp_path), name_prefix="agent")
    model.learn(600, callback=[evaluation, checkpoints], progress_bar=True)
    assert evaluation.evaluations_results or evaluation.last_mean_reward > 0
    saved = CETActorCritic.load(tmp_path / "agent_200_steps.zip")
    assert saved.num_timesteps == 200
    CETActorCritic.load(tmp_path / "best_model")


def test_a_callback_can_stop_it():
    class Stop(BaseCallback):
        def _on_step(self):
            return self.num_timesteps < 100

    model = make()
    model.learn(1000, callback=Stop())
    assert model.num_timesteps == 100


def test_evaluate_policy_and_monitor():
    model = make()
    model.learn(400)
    assert len(model.ep_info_buffer) > 3
    mean, _ = evaluate_policy(model, model.get_env(), n_eval_episodes=3, warn=True)
    assert 1 <= mean <= 500


def continued(model, steps=400):
    model.set_env(make_vec_env("CartPole-v1", 2, seed=99))
    model.learn(steps, reset_num_timesteps=False)
    return weights(model)


@pytest.mark.parametrize("options", [{}, {"trace": "perfect", "order": None}, {"random_lam": (0.2, 0.9)}], ids=str)
def test_a_loaded_agent_goes_on_exactly(tmp_path, options):
    """Weights, traces, lines, optimiser, random state: the copy learns what the original learns."""
    model = make(learning_rate=LinearSchedule(1e-3, 1e-4, 0.5), **options)
    model.learn(400)
    model.save(tmp_path / "agent")
    loaded = CETActorCritic.load(tmp_path / "agent.zip", model.get_env())
    for name, parameters in model.get_parameters().items():
        if name != "optimizer":
            for key, value in parameters.items():
                assert torch.equal(value, loaded.get_parameters()[name][key]), f"{name}/{key}"
    assert loaded.num_timesteps == model.num_timesteps
    assert loaded.learner_config == model.learner_config
    assert torch.equal(continued(model), continued(loaded))


def test_nothing_is_pickled(tmp_path, monkeypatch):
    model = make()
    model.learn(100)

    def forbidden(*args, **kwargs):
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, forbidden)
    monkeypatch.setattr(torch, "load", forbidden)
    model.save(tmp_path / "agent")
    with zipfile.ZipFile(tmp_path / "agent.zip") as file:
        assert sorted(file.namelist()) == ["agent.json", "agent.safetensors"]
        json.loads(file.read("agent.json"))
    CETActorCritic.load(tmp_path / "agent")
    model.set_parameters(tmp_path / "agent")


def test_file_objects_work_too():
    model = make()
    stream = io.BytesIO()
    model.save(stream)
    stream.seek(0)
    assert torch.equal(weights(CETActorCritic.load(stream)), weights(model))


def test_parameters_can_be_moved():
    source, target = make(seed=1), make(seed=2)
    target.set_parameters(source.get_parameters())
    assert torch.equal(weights(source), weights(target))
    target.set_parameters({"policy": make(seed=3).policy.state_dict()}, exact_match=False)
    with pytest.raises(ValueError, match="Names of parameters"):
        target.set_parameters({"policy": source.policy.state_dict()})


def test_loading_with_other_environments_starts_with_empty_traces(tmp_path):
    model = make()
    model.learn(200)
    model.save(tmp_path / "agent")
    with pytest.warns(UserWarning, match="traces start empty"):
        loaded = CETActorCritic.load(tmp_path / "agent", make_vec_env("CartPole-v1", 3, 0))
    assert torch.equal(weights(loaded), weights(model))
    loaded.learn(100, reset_num_timesteps=False)
    with pytest.raises(ValueError, match="spaces do not match"):
        CETActorCritic.load(tmp_path / "agent", make_vec_env("Acrobot-v1", 2, 0))


@pytest.mark.parametrize("damage", ["truncate", "garble", "not a zip", "other zip", "newer", "missing tensor"])
def test_damaged_files_are_refused(tmp_path, damage):
    path = tmp_path / "agent.zip"
    make().save(path)
    content = path.read_bytes()
    if damage == "truncate":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "garble":
        path.write_bytes(content[:2000] + bytes(500) + content[2500:])
    elif damage == "not a zip":
        path.write_bytes(b"hello")
    elif damage == "other zip":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("readme", b"hello")
    else:
        found = members(path)
        data, tensors = found["agent"]
        if damage == "newer":
            data["format_version"] = 99
        if damage == "missing tensor":
            tensors.pop("parameters/policy/actor.weights.0")
        write_members(path, found)
    with pytest.raises(ValueError, match=r"damaged|agent file|version"):
        CETActorCritic.load(path)
    with pytest.raises(FileNotFoundError, match="no agent file"):
        CETActorCritic.load(tmp_path / "elsewhere")


def test_learning_twice_continues():
    model = make()
    model.learn(320)
    model.learn(320, reset_num_timesteps=False)
    assert model.num_timesteps == 640
    assert model._n_updates == 20


def test_the_environment_s_clock_sets_the_delay():
    assert make().timing.layer_delays == (5, 5, 5)
    env = make_vec_env("CartPole-v1", 2, step_duration=0.1)
    assert CETActorCritic("MlpPolicy", env, delay=1.0).timing.layer_delays == (10, 10, 10)
    assert CETActorCritic("MlpPolicy", "CartPole-v1", delay=1.0, step_duration=0.5).timing.delay_steps == 2


def test_vec_normalize():
    env = VecNormalize(make_vec_env("CartPole-v1", 2, 0))
    model = CETActorCritic("MlpPolicy", env, delay=1.0, n_steps=16, seed=0)
    model.learn(200)
    assert torch.isfinite(weights(model)).all()


def test_vec_normalize_comes_back_with_the_environment(tmp_path):
    env = VecNormalize(make_vec_env("CartPole-v1", 2, 0))
    model = CETActorCritic("MlpPolicy", env, delay=1.0, n_steps=16, seed=0)
    model.save(tmp_path / "agent")
    assert CETActorCritic.load(tmp_path / "agent", env).get_vec_normalize_env() is env


def test_environments_in_other_processes():
    env = SubprocVecEnv([lambda: gym.make("CartPole-v1")] * 2, start_method="fork")
    model = CETActorCritic("MlpPolicy", env, delay=1.0, n_steps=16, seed=0)
    assert model.timing.step_duration == 0.2
    model.learn(64)
    env.close()


def test_lambda_per_weight_survives_a_change_of_environments(tmp_path):
    model = make(random_lam=(0.1, 0.9), seed=None)
    model.save(tmp_path / "agent")
    with pytest.warns(UserWarning, match="traces start empty"):
        loaded = CETActorCritic.load(tmp_path / "agent", make_vec_env("CartPole-v1", 3, 0))
    for before, after in zip(model.synapses, loaded.synapses, strict=True):
        assert torch.equal(before.decay_per_weight, after.decay_per_weight)


class Louder(CETPolicy):
    def features(self, observation):
        return 2 * super().features(observation)


def test_a_policy_of_ones_own(tmp_path):
    model = CETActorCritic(Louder, make_vec_env("CartPole-v1", 2, 0), delay=1.0, n_steps=16, seed=0)
    model.save(tmp_path / "agent")
    with pytest.raises(ValueError, match="saved with the policy Louder"):
        CETActorCritic.load(tmp_path / "agent")
    assert isinstance(CETActorCritic.load(tmp_path / "agent", policy=Louder).policy, Louder)


def test_what_cannot_be_changed_on_loading_is_named(tmp_path):
    make().save(tmp_path / "agent")
    assert CETActorCritic.load(tmp_path / "agent", verbose=1, ent_coef=0.5).ent_coef == 0.5
    for arguments, message in (
        ({"foo": 3}, "does not know foo"),
        ({"delay": 2.0}, "delay cannot be changed"),
        ({"custom_objects": {"learning_rate": 0.1}}, "custom_objects"),
    ):
        with pytest.raises(ValueError, match=message):
            CETActorCritic.load(tmp_path / "agent", **arguments)
    with pytest.raises(ValueError, match=r"clock says 0\.5 s"):
        CETActorCritic.load(tmp_path / "agent", make_vec_env("CartPole-v1", 2, 0, step_duration=0.5))


@given(data=st.data())
def test_mutated_files_are_refused_or_harmless(data):
    """Whatever happens to the bytes, loading raises ValueError or gives an agent."""
    content = bytearray(AGENT_FILE)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ValueError):
        CETActorCritic.load(io.BytesIO(bytes(content)))


@given(data=st.data())
def test_mutated_data_is_refused_or_harmless(data):
    """Any value of the JSON part replaced by any other."""
    found = members(io.BytesIO(AGENT_FILE))
    node = found["agent"][0]["state"]
    while True:
        key = data.draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
        if not (isinstance(node[key], dict | list) and node[key] and data.draw(st.booleans())):
            break
        node = node[key]
    node[key] = data.draw(
        st.sampled_from([None, True, -1, 0, 7, 0.5, 1e308, "", "x", [], {}, [1], {"a": None}, {"$dict": []}])
    )
    stream = io.BytesIO()
    write_members(stream, found)
    with contextlib.suppress(ValueError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        CETActorCritic.load(stream)


def agent_file():
    stream = io.BytesIO()
    make(num_envs=1, policy_kwargs={"net_arch": [2]}, alignment=False, delay=0.4).save(stream)
    return stream.getvalue()


AGENT_FILE = agent_file()


def test_divergence_is_noticed_and_leaves_the_weights():
    model = make(learning_rate=1e30)
    with pytest.raises(FloatingPointError, match="diverged"):
        model.learn(2000)


class Constant(gym.Env):
    """One action pays; spaces with an odd start; can be told to misbehave."""

    observation_space = spaces.Box(0, 1, (2,), np.float64)
    action_space = spaces.Discrete(3, start=5)

    def __init__(self, bad=None):
        self.bad, self.steps, self.seen = bad, 0, set()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.ones(2), {}

    def step(self, action):
        self.steps += 1
        self.seen.add(int(action))
        reward = float(action == 6)
        observation = np.ones(2)
        if self.steps == 15 and self.bad == "reward":
            reward = float("nan")
        if self.steps == 15 and self.bad == "observation":
            observation[1] = np.inf
        return observation, reward, self.steps % 10 == 0, False, {}


def test_actions_that_do_not_start_at_zero():
    env = Constant()
    model = CETActorCritic("MlpPolicy", env, delay=0.4, learning_rate=5e-3, n_steps=16, seed=0)
    assert not model.policy.splits  # nothing is ever negative
    model.learn(3000)
    assert env.seen == {5, 6, 7}
    assert model.predict(np.ones(2), deterministic=True)[0] == 6


def test_features_are_the_same_for_acting_and_for_learning():
    for dtype in (np.uint8, np.float64):
        space = spaces.Box(0, 200, (2,), dtype)
        policy = CETPolicy(space, spaces.Discrete(2), lambda _: 0.0, split_observations=True)
        observation = np.array([[3, 5]], dtype)
        acting = np.zeros((1, 4), np.float32)
        policy.write_features(observation, acting)
        np.testing.assert_array_equal(acting, policy.features(torch.from_numpy(observation)).numpy())


@pytest.mark.parametrize("bad", ["reward", "observation"])
def test_numbers_that_are_not_finite_are_refused_before_they_do_harm(bad):
    model = CETActorCritic("MlpPolicy", Constant(bad), n_steps=16)
    step = 14 if bad == "reward" else 15
    with pytest.raises(FloatingPointError, match=f"environment 0 gave a.* {bad} .* step {step}"):
        model.learn(100)
    assert torch.isfinite(weights(model)).all()


class Matrix(Constant):
    observation_space = spaces.Box(0, 1, (3, 3), np.float32)


class TwoChoices(Constant):
    action_space = spaces.MultiDiscrete([2, 2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delay": -1.0}, "delay must be"),
        ({"delay": float("inf")}, "delay must be"),
        ({"delay": 1.1}, "nearest valid delays are 1 s and 1.2 s"),
        ({"order": 0}, "order must be at least 1"),
        ({"trace": "fancy"}, "unknown trace"),
        ({"trace": "et"}, "order 3 has no meaning"),
        ({"decay": 0.5}, "only 'et' takes one"),
        ({"trace": "et", "order": None, "decay": 1.0}, "between 0 and 1"),
        ({"trace": "sharp", "order": 1}, "at least 2"),
        ({"trace": "none", "order": None}, "without delay"),
        ({"delay": 0.0}, "belong to a delay"),
        ({"delay": 0.0, "order": None, "trace": "legendre"}, "bridges a delay"),
        ({"normalization": "sum"}, "'area' or 'peak'"),
        ({"n_steps": 0}, "n_steps"),
        ({"max_grad_norm": float("inf")}, "max_grad_norm"),
        ({"order": 2.5}, "whole number"),
        ({"learning_rate": 0.0}, "learning rate must be positive"),
        ({"learning_rate": float("nan")}, "learning rate must be positive"),
        ({"learning_rate": lambda progress: 1e-3 * progress**2}, "no straight line"),
        ({"policy_kwargs": {"net_arch": [0]}}, "net_arch"),
        ({"policy_kwargs": {"width": 3}}, "do not fit the policy"),
        ({"policy_kwargs": {"activation_fn": torch.nn.ELU}}, "unknown activation 'elu'; .*relu"),
        ({"policy_kwargs": {"activation_fn": torch.nn.Tanh}}, "error_at='activation'"),
        ({"policy_kwargs": {"net_arch": {"pi": [8], "vf": [4]}}}, "net_arch is one list here"),
        ({"policy_kwargs": {"ortho_init": True}}, "'ortho_init'; it takes net_arch, activation"),
        ({"trace_options": {"ratio": object()}}, "ratio"),
    ],
    ids=lambda value: re.sub(r" at 0x\w+", "", str(value)),  # the same in every process
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


@pytest.mark.parametrize(("name", "hint"), [("gae_lamda", "did you mean gae_lambda"), ("clip_range", "shows all")])
def test_unknown_arguments_are_named(name, hint):
    with pytest.raises(TypeError, match=f"unknown argument '{name}'; .*{hint}"):
        make(**{name: 1})


def test_bad_environments_are_named():
    with pytest.raises(ValueError, match=r"must be a Box of vectors, or of maps .* not those of shape \(3, 3\)"):
        CETActorCritic("MlpPolicy", Matrix())
    with pytest.raises(ValueError, match="discrete actions or a Box of real vectors"):
        CETActorCritic("MlpPolicy", TwoChoices())


def test_a_delay_longer_than_the_run_is_refused():
    with pytest.raises(ValueError, match="longest delay is 40 steps"):
        make(delay=8.0).learn(80)


def test_schedules_are_saved_as_data(tmp_path):
    for schedule in (3e-4, ConstantSchedule(3e-4), LinearSchedule(3e-4, 1e-5, 0.5)):
        make(learning_rate=schedule).save(tmp_path / "agent")
        loaded = CETActorCritic.load(tmp_path / "agent")
        original = schedule if callable(schedule) else ConstantSchedule(schedule)
        for progress in (1.0, 0.8, 0.2):
            assert loaded.lr_schedule(progress) == original(progress)


@pytest.mark.cuda
def test_on_cuda(tmp_path):
    model = make(device="cuda")
    model.learn(400)
    assert model.policy.actor.weights[0].is_cuda
    model.save(tmp_path / "agent")
    assert torch.equal(weights(CETActorCritic.load(tmp_path / "agent", device="cpu")), weights(model).cpu())
