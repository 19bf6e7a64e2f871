"""`CETActorCritic` learns whatever its options, comes back from its file as it was, and refuses what is wrong."""

import contextlib
import io
import json
import pickle
import re
import warnings
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import run_python, weights
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from saved_files import members, write_members
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import ConstantSchedule, LinearSchedule
from toy_env import Toy

from cet_rl import CET, FiniteKernel, Optimal, Trace
from cet_rl.agents import CETActorCritic, CETPolicy
from cet_rl.envs import make_vec_env
from cet_rl.rl.config import RLConfig
from cet_rl.rl.evaluation import evaluate
from cet_rl.runs import optimizers
from cet_rl.traces.registry import TraceConfig


class Plain(Trace):
    """A trace of one's own that is no dataclass."""

    normalization = "peak"

    def __init__(self, delay_steps):
        self.delay_steps = delay_steps

    def transition(self):
        return [[0.5]], [1.0], [1.0]


def make(num_envs=2, seed=0, task="CartPole-v1", env=None, **options):
    options = {"delay": 1.0, "order": 3, "n_steps": 16, "policy_kwargs": {"net_arch": [16, 16]}, **options}
    return CETActorCritic("MlpPolicy", env or make_vec_env(task, num_envs, seed), seed=seed, **options)


def assert_same_state(model, other):
    state = model.learner.state_dict()
    for name, tensor in other.learner.state_dict().items():
        assert torch.equal(tensor, state[name]), name


BREAKOUT = "MinAtar/Breakout-v1"
DICT = spaces.Dict(x=spaces.Discrete(2))


@pytest.mark.parametrize(
    "options",
    [
        {"delay": 0.0, "order": None},
        {"trace": "legendre"},
        {"trace": "sharp"},
        {"trace": "et", "order": None, "decay": 0.8},
        {"trace": "ltp-ltd", "order": None},
        {"trace": "perfect", "order": None},
        {"trace": TraceConfig("legendre", 4, normalization="area"), "order": None},
        {"trace": Optimal(3, 5, "peak", 0.4), "order": None, "delay": None},
        {"trace": FiniteKernel([0, 1, 2], 5), "order": None},
        {"stacked": True},
        {"n_steps": 1},
        {"random_lam": (0.1, 0.9), "seed": None},  # another process draws other λ
        {"normalization": "area", "gae_lambda": 0.9},
        {
            "policy_kwargs": {"net_arch": {"pi": [8], "vf": [8]}, "activation_fn": torch.nn.Tanh},
            "error_at": "activation",
        },
        {"policy_kwargs": {"net_arch": []}},
        {"discretization": "official", "policy_kwargs": {"feedback": "fa"}},
        {"task": "Pendulum-v1"},
        {"task": "LunarLanderContinuous-v3", "trace": "legendre"},
        {"task": BREAKOUT, "policy_kwargs": {"net_arch": [16], "actor": "conv"}},
        {"task": BREAKOUT, "policy_kwargs": {"net_arch": [16], "critic": "mlp", "feedback": "dfa"}},
    ],
    ids=str,
)
def test_every_kind_of_agent_learns_and_comes_back(tmp_path, options):
    model = make(learning_rate=LinearSchedule(1e-3, 1e-4, 0.5), **options)
    before = weights(model)
    model.learn(96)
    assert torch.isfinite(weights(model)).all()
    assert not torch.equal(before, weights(model))
    model.save(tmp_path / "agent")
    loaded = CETActorCritic.load(tmp_path / "agent.zip", model.get_env())
    assert_same_state(model, loaded)
    assert [s.trace for s in loaded.synapses] == [s.trace for s in model.synapses]
    chosen = replace(model.learner_config, executors=model.learner.executors)
    assert (loaded.num_timesteps, loaded.learner_config) == (96, chosen)
    for name, probe in loaded.probes.items():
        if probe.decay_per_weight is not None:
            assert torch.equal(probe.decay_per_weight, loaded.learner.synapses[int(name)].decay_per_weight)
    for agent in (model, loaded):  # weights, traces, lines, optimiser, random state: both learn the same
        agent.set_env(make_vec_env(options.get("task", "CartPole-v1"), 2, seed=99))
        agent.learn(64, reset_num_timesteps=False)
    assert torch.equal(weights(model), weights(loaded))
    assert loaded._n_updates == model._n_updates
    observation = model.get_env().reset()
    np.testing.assert_array_equal(*(m.predict(observation, deterministic=True)[0] for m in (model, loaded)))
    actions, *_ = loaded.predict(observation)
    assert all(loaded.action_space.contains(action) for action in actions)
    observation = torch.as_tensor(observation)
    with torch.no_grad():
        drawn, values, log_probabilities = loaded.policy(observation)
        again = loaded.policy.evaluate_actions(observation, drawn)
        torch.testing.assert_close(loaded.policy.predict_values(observation), values)
        torch.testing.assert_close(loaded.policy.get_distribution(observation).entropy(), again[2])
    assert (values.shape, log_probabilities.shape) == ((2, 1), (2,))
    torch.testing.assert_close(again[1], log_probabilities)


def test_same_seed_same_numbers():
    first, second, other = make(), make(), make(seed=1)
    first.learn(600)
    torch.rand(3)  # drawn by somebody else
    np.random.rand(3)
    second.learn(600)
    assert torch.equal(weights(first), weights(second))
    other.learn(600)
    assert not torch.equal(weights(first), weights(other))


def test_acting_samples_the_policy():
    """Actions taken during collection have the policy's probabilities."""
    model = make(num_envs=4, n_steps=2000)

    class Count(BaseCallback):
        expected = 0.0
        found = 0.0

        def _on_step(self):
            features = self.model._rollout.observations[self.locals["n_steps"]].numpy()
            with torch.no_grad():
                probability = torch.softmax(self.model.policy.actor(torch.from_numpy(features)), -1)[:, 1]
            self.expected += probability.sum().item()
            self.found += self.locals["actions"].sum()
            return True

    count = Count()
    model.learn(8000, callback=count)
    assert abs(count.found - count.expected) < 4 * np.sqrt(8000 / 4)


def test_traces_are_taken_as_they_are():
    """Without a delay of the agent it is the trace's own; with another one, the trace is made for a wrong one."""
    for delay, trace in ((None, Optimal(3, 5, "peak", 0.4)), (0.8, CET(3, 5)), (1.0, FiniteKernel([0, 1, 2], 5))):
        model = make(trace=trace, order=None, delay=delay)
        assert model.timing.delay == pytest.approx(delay or 1.0)
        assert {synapses.trace for synapses in model.synapses} == {trace}
    with pytest.raises(ValueError, match="trace is a CET: set order there"):
        make(trace=CET(3, 5))


def test_nothing_is_pickled(tmp_path, monkeypatch):
    model, stream = make(), io.BytesIO()
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
    with pytest.raises(FileNotFoundError, match="there is no agent file"):
        CETActorCritic.load(tmp_path / "missing")
    model.set_parameters(tmp_path / "agent")
    model.save(stream)
    stream.seek(0)
    assert torch.equal(weights(CETActorCritic.load(stream)), weights(model))


def test_parameters_can_be_moved():
    source, target = make(task="Pendulum-v1", seed=1), make(task="Pendulum-v1", seed=2)
    source.learn(64)
    parameters = source.get_parameters()
    assert set(parameters) == {"policy", "synapses", "probes", "policy.optimizer"}
    assert "actor.head.log_std" in parameters["policy"]
    target.set_parameters(parameters)
    assert_same_state(source, target)
    target.set_parameters({"policy": make(task="Pendulum-v1", seed=3).policy.state_dict()}, exact_match=False)
    with pytest.raises(ValueError, match="Names of parameters"):
        target.set_parameters({"policy": source.policy.state_dict()})


def test_loading_with_other_environments_starts_with_empty_traces(tmp_path):
    model = make(random_lam=(0.1, 0.9))
    model.learn(200)
    model.save(tmp_path / "agent")
    with pytest.warns(UserWarning, match="traces start empty"):
        loaded = CETActorCritic.load(tmp_path / "agent", make_vec_env("CartPole-v1", 3, 0))
    assert torch.equal(weights(loaded), weights(model))
    for before, after in zip(model.synapses, loaded.synapses, strict=True):
        assert torch.equal(before.decay_per_weight, after.decay_per_weight)
    loaded.learn(100, reset_num_timesteps=False)
    with pytest.raises(ValueError, match="spaces do not match"):
        CETActorCritic.load(tmp_path / "agent", make_vec_env("Acrobot-v1", 2, 0))


def agent_file():
    stream = io.BytesIO()
    make(num_envs=1, policy_kwargs={"net_arch": [2]}, alignment=False, delay=0.4).save(stream)
    return stream.getvalue()


AGENT_FILE = agent_file()


def changed(change):
    """Return the file of an agent whose data and tensors have been changed."""
    found, stream = members(io.BytesIO(AGENT_FILE)), io.BytesIO()
    change(*found["agent"])
    write_members(stream, found)
    return stream.getvalue()


DAMAGES = {
    "truncated": lambda: AGENT_FILE[: len(AGENT_FILE) // 2],
    "garbled": lambda: AGENT_FILE[:2000] + bytes(500) + AGENT_FILE[2500:],
    "not a zip": lambda: b"hello",
    "newer": lambda: changed(lambda data, _: data.update(format_version=99)),
    "missing tensor": lambda: changed(lambda _, tensors: tensors.pop("parameters/policy/actor.weights.0")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_refused(tmp_path, damage):
    path = tmp_path / "agent.zip"
    path.write_bytes(DAMAGES[damage]())
    with pytest.raises(ValueError, match=r"damaged|agent file|version"):
        CETActorCritic.load(path)


@given(data=st.data())
def test_mutated_files_are_refused_or_harmless(data):
    content = bytearray(AGENT_FILE)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ValueError):
        CETActorCritic.load(io.BytesIO(bytes(content)))


@given(data=st.data())
def test_mutated_data_is_refused_or_harmless(data):
    """Any value of the JSON part replaced by any other."""
    found, stream = members(io.BytesIO(AGENT_FILE)), io.BytesIO()
    node = found["agent"][0]["state"]
    while True:
        key = data.draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
        if not (isinstance(node[key], dict | list) and node[key] and data.draw(st.booleans())):
            break
        node = node[key]
    others = [None, True, -1, 0, 7, 0.5, 1e308, "", "x", [], {}, [1], {"a": None}, {"$dict": []}]
    node[key] = data.draw(st.sampled_from(others))
    write_members(stream, found)
    with contextlib.suppress(ValueError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        CETActorCritic.load(stream)


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
        ({"foo": 3}, "foo cannot be changed on loading, only entropy_coef, learning_rate"),
        ({"delay": 2.0}, "delay cannot be changed"),
        *[({"n_steps": n}, "n_steps must be") for n in (0, 2.5)],
        ({"custom_objects": {"clip_range": 0.1}}, "clip_range must be left out"),
        ({"env": make_vec_env("CartPole-v1", 2, 0, step_duration=0.5)}, r"clock says 0\.5 s"),
    ):
        with pytest.raises(ValueError, match=message):
            CETActorCritic.load(tmp_path / "agent", **arguments)


def test_divergence_and_a_delay_longer_than_the_run_are_refused():
    with pytest.raises(ValueError, match="longest delay is 40 steps"):
        make(delay=8.0).learn(80)
    model = make(learning_rate=1e30)
    with pytest.raises(FloatingPointError, match="diverged"):
        model.learn(2000)


def test_actions_that_do_not_start_at_zero():
    env = Toy()
    model = CETActorCritic("MlpPolicy", env, delay=0.4, learning_rate=5e-3, n_steps=16, seed=0)
    assert not model.policy.splits  # nothing is ever negative
    model.learn(3000)
    assert (env.seen, model.predict(env.reset()[0], deterministic=True)[0]) == ({5, 6, 7}, 6)


def test_statistics_are_those_of_the_update_before_the_log(monkeypatch):
    model, wanted = make(n_steps=8), []
    accumulate = model.learner.accumulate

    def watched(rollout, *, statistics=False):
        wanted.append(statistics)
        return accumulate(rollout, statistics=statistics)

    monkeypatch.setattr(model.learner, "accumulate", watched)
    model.learn(9 * 8 * model.n_envs, log_interval=3)
    assert wanted == [False, True, False] * 3


def test_the_learning_rate_falls_to_zero(monkeypatch):
    model, rates = make(n_steps=8), []
    optimizer = model.policy.optimizer
    step = optimizer.step
    monkeypatch.setattr(optimizer, "step", lambda: rates.append(optimizer.param_groups[0]["lr"]) or step())
    model.learn(4 * 8 * model.n_envs)
    assert rates == pytest.approx([model.lr_schedule(left) for left in (0.75, 0.5, 0.25, 0.0)])
    assert rates[0] > rates[-1] == 0


def test_evaluation_is_greedy_and_of_episodes_that_training_has_not_seen():
    model, config = make(), RLConfig("CartPole-v1", seed=3, eval_episodes=6)
    env = make_vec_env("CartPole-v1", 6, 1_000_006)
    returns, _ = evaluate_policy(model, env, 6, deterministic=True, return_episode_rewards=True)
    assert evaluate(model, config) == (np.mean(returns), np.std(returns))
    assert np.std(returns) > 0


def test_features_are_the_same_for_acting_and_for_learning():
    for dtype in (np.uint8, np.float64):
        space = spaces.Box(0, 200, (2,), dtype)
        policy = CETPolicy(space, spaces.Discrete(2), lambda _: 0.0, split_observations=True)
        observation = np.array([[3, 5]], dtype)
        acting = np.zeros((1, 4), np.float32)
        policy.write_features(observation, acting)
        np.testing.assert_array_equal(acting, policy.features(torch.from_numpy(observation)).numpy())


@pytest.mark.parametrize(
    ("bad", "step", "episodes"), [("reward", 14, ()), ("observation", 15, ()), ("observation", 15, (15, True))]
)
def test_numbers_that_are_not_finite_are_refused_before_they_do_harm(bad, step, episodes):
    model = CETActorCritic("MlpPolicy", Toy(*episodes, bad=bad), n_steps=16)
    with pytest.raises(FloatingPointError, match=f"environment 0 gave a.* {bad} .* step {step}"):
        model.learn(100)
    assert torch.isfinite(weights(model)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delay": 1.1}, "nearest valid delays are 1 s and 1.2 s"),
        *[({"trace": t}, words) for t, words in ((CET, "trace must be one of"), ("fancy", "unknown trace"))],
        ({"trace": TraceConfig("cet", 3)}, "trace is a TraceConfig: set order there"),
        ({"trace": CET(3, 5), "order": 0}, "trace is a CET: set order there"),
        ({"trace": Plain(5), "order": None}, "Plain.* must be a dataclass, so that its fields can be saved"),
        ({"trace": "none", "order": None}, "without delay"),
        ({"delay": 0.0}, "order belongs to a delay"),
        *[({"n_steps": n}, "n_steps must be") for n in (0, 2.5)],
        ({"max_grad_norm": float("inf")}, "max_grad_norm"),
        ({"order": 2.5}, "whole number"),
        ({"alignment": "no"}, "alignment must be true or false"),
        *[({"learning_rate": rate}, "learning rate must be positive") for rate in (0.0, float("nan"))],
        *[({"learning_rate": rate}, "learning_rate must be a number, got") for rate in (None, "fast")],
        ({"learning_rate": lambda progress: 1e-3 * progress**2}, "no straight line"),
        *[({"policy_kwargs": {"net_arch": widths}}, "net_arch must") for widths in ([0], [True], 5)],
        *[({"policy_kwargs": {"log_std": value}}, "log_std must be") for value in ("wide", float("nan"))],
        ({"policy_kwargs": {"feedback": "telepathy"}}, "feedback must be one of backprop, fa, dfa"),
        ({"policy_kwargs": {"width": 3}}, "unknown argument 'width'; choose from net_arch, activation"),
        ({"step_duration": 0.3, "delay": 1.2}, r"steps of 0\.3 s, the environment's clock says 0\.2 s"),
        ({"env": Toy(observation_space=DICT)}, "not Dict.*FlattenObservation makes vectors"),
        ({"env": Toy(action_space=spaces.Box(-np.inf, np.inf, (2,)))}, "finite bounds, .*TransformAction"),
    ],
    ids=lambda value: re.sub(r" at 0x\w+", "", str(value)),  # the same in every process
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


@pytest.mark.parametrize(
    ("name", "hint"), [("gae_lamda", "'gae_lamda'; did you mean gae_l"), ("tolerance", "use trace_options=")]
)
def test_unknown_arguments_are_named(name, hint):
    with pytest.raises(ValueError, match="policy must be 'MlpPolicy', or a class"):
        CETActorCritic("CnnPolicy", "CartPole-v1")
    with pytest.raises(TypeError, match=hint):
        make(**{name: 1})
    with pytest.raises(TypeError, match=r"unknown argument 'buffer_size'; .*shows all"):
        make(buffer_size=1)
    assert hasattr(CETActorCritic, "gae_lambda")  # also on the class, for tools that inspect it


@pytest.mark.parametrize(
    "schedule",
    [3e-4, ConstantSchedule(3e-4), LinearSchedule(3e-4, 1e-5, 0.5), lambda left: left * 3e-4, lambda _: 3e-4],
    ids=lambda value: type(value).__name__,
)
def test_schedules_are_saved_as_data(tmp_path, schedule):
    make(learning_rate=schedule).save(tmp_path / "agent")
    loaded = CETActorCritic.load(tmp_path / "agent")
    original = schedule if callable(schedule) else ConstantSchedule(schedule)
    for progress in (1.0, 0.8, 0.2):
        assert loaded.lr_schedule(progress) == pytest.approx(original(progress), rel=1e-12)


@pytest.mark.parametrize("kinds", [(optimizers.Adam, torch.optim.Adam), (optimizers.AdamW, torch.optim.AdamW)])
def test_our_optimisers_step_as_torch_s_do(kinds):
    found = []
    for kind in kinds:
        generator = torch.Generator().manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(30, 7, generator=generator))
        optimizer = kind([weight], lr=1e-2, fused=True)
        for _ in range(4):
            optimizer.zero_grad()
            weight.grad = torch.randn(30, 7, generator=generator)
            optimizer.step()
            optimizer.load_state_dict(optimizer.state_dict())
        found.append(weight.detach())
    assert torch.equal(*found)


LEARNING = """
import sys
from cet_rl.agents import CETActorCritic
CETActorCritic("MlpPolicy", "CartPole-v1", delay=1.0, n_steps=16).learn(32)
assert "torch._dynamo" not in sys.modules
"""


def test_learning_loads_no_compiler():
    """`torch._dynamo` would take a second and 70 MB of every run."""
    run_python("-c", LEARNING, succeeds=True)
