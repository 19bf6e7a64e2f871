"""Environments as data: captured in the middle of an episode, they go on in another process as they would have."""

import json
import random
from collections import Counter, deque

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.wrappers import FlattenObservation
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from cet_rl.envs import DelayedReward, PositiveNegativeSplit, environments, make_env, make_vec_env, snapshot
from cet_rl.envs.snapshot import CannotCaptureError, capture, register_snapshot, restore
from cet_rl.runs import archive, process

BEFORE, AFTER = 37, 90
"""Steps until the capture, and those that are compared after it."""


def through_a_file(state):
    """Return what comes back when a state has been JSON and tensors."""
    tensors = {}
    text = json.dumps(archive.encode(state, tensors), allow_nan=False)
    return archive.decode(json.loads(text), {name: tensor.clone() for name, tensor in tensors.items()})


def actions_for(env, steps, seed=3):
    env.action_space.seed(seed)
    return [np.array([env.action_space.sample() for _ in range(env.num_envs)]) for _ in range(steps)]


def play(env, actions):
    """Return everything an agent gets to see, times apart."""
    seen = []
    for action in actions:
        observations, rewards, dones, infos = env.step(action)
        ends = [
            (i["terminal_observation"].tolist(), i["TimeLimit.truncated"], i["episode"]["r"], i["episode"]["l"])
            for i in infos
            if "episode" in i
        ]
        seen.append((observations.tolist(), rewards.tolist(), dones.tolist(), ends))
    return seen


def assert_goes_on(build, *, ends=True):
    """Step, capture, step on; the same from the capture in an environment made anew."""
    env = build()
    env.reset()
    actions = actions_for(env, BEFORE + AFTER)
    play(env, actions[:BEFORE])
    state = capture(env)
    saved = through_a_file(state)
    expected = play(env, actions[BEFORE:])
    other = build()
    other.reset()
    actions_for(other, 5)  # its own generators are elsewhere
    restore(other, saved)
    assert play(other, actions[BEFORE:]) == expected
    restore(other, state)  # neither `capture` nor `restore` shares anything with what it was given
    assert play(other, actions[BEFORE:]) == expected
    if ends:
        assert any(any(step[2]) for step in expected)  # what a reset draws has been compared too
    assert any(step != expected[0] for step in expected)


CAPTURED = [task for task in environments() if not task.startswith("LunarLander")]


@pytest.mark.parametrize("task", CAPTURED)
def test_every_environment_of_the_catalogue_goes_on(task):
    limit = None if task.startswith("MinAtar/") or task == "CartPole-v1" else 25
    ends = task not in ("MinAtar/Freeway-v1", "MinAtar/Seaquest-v1")
    assert_goes_on(lambda: make_vec_env(task, 2, 7, delay=1.0, max_episode_steps=limit), ends=ends)


WRAPPERS = [FlattenObservation, PositiveNegativeSplit, lambda env: DelayedReward(env, 1.0)]


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("CartPole-v1", {}),  # never seeded
        ("MinAtar/Breakout-v1", {}),
        ("CartPole-v1", {"seed": 5, "vectorization": "numpy", "delay": 1.0}),
        ("CartPole-v1", {"seed": 5, "vectorization": "numpy", "max_episode_steps": 12}),
        ("CartPole-v1", {"seed": 1, "wrappers": WRAPPERS}),
    ],
)
def test_every_form_goes_on(task, options):
    assert_goes_on(lambda: make_vec_env(task, 2, **options))


def test_actions_that_stick_go_on_sticking():
    env = make_env("MinAtar/Breakout-v1")
    env.reset(seed=0)
    env.step(2)
    other = make_env("MinAtar/Breakout-v1")
    restore(other, through_a_file(capture(env)))
    assert other.unwrapped.game.last_action == env.unwrapped.game.last_action > 0


class Walk(gym.Env):
    """Walk at random; a third party's environment, which says its state itself."""

    observation_space = gym.spaces.Box(-100, 100, (1,), np.float64)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = self.np_random.normal(size=1)
        return self.place.copy(), {}

    def step(self, action):
        self.place = self.place + self.np_random.normal() + action
        return self.place.copy(), 0.0, bool(abs(self.place[0]) > 4), False, {}

    def get_state(self):
        return {"place": self.place}

    def set_state(self, state):
        self.place = state["place"]


def fails(*_):
    raise KeyError("where?")


def walk(**replaced):
    return type("Changed", (Walk,), replaced)


class Doubled(gym.Wrapper):
    """Deliver the last observation as the next reward: somebody's wrapper with a memory."""

    def __init__(self, env):
        super().__init__(env)
        self.last = 0.0

    def step(self, action):
        observation, reward, terminated, truncated, info = self.env.step(action)
        reward, self.last = self.last, float(observation[0])
        return observation, reward, terminated, truncated, info


def test_third_parties_take_part_by_two_methods_or_by_registering(monkeypatch):
    monkeypatch.setattr(snapshot, "_ACCESS", dict(snapshot._ACCESS))

    def build():
        return make_vec_env(lambda: Doubled(Walk()), 2, 4, max_episode_steps=30)

    with pytest.raises(CannotCaptureError, match="Doubled has no get_state and set_state"):
        capture(build())
    register_snapshot(Doubled, ["last"])
    assert_goes_on(build)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: make_env("LunarLander-v3"), "LunarLander has no get_state and set_state"),
        (lambda: make_env(walk(get_state=None)), "Changed has no"),
        (lambda: make_env(walk(get_state=lambda env: env.place)), "get_state of Changed must return a dict"),
        (lambda: DummyVecEnv([walk(get_state=fails)]), "get_state of Changed fails: KeyError: 'where"),
        (lambda: VecNormalize(make_vec_env("CartPole-v1", 1)), "VecNormalize has no"),
    ],
)
def test_what_cannot_be_captured_is_named(build, words):
    env = build()
    env.reset()
    with pytest.raises(CannotCaptureError, match=words):
        capture(env)


def test_a_state_of_other_environments_is_refused():
    state = capture(make_vec_env("CartPole-v1", 2, 0))
    with pytest.raises(ValueError, match="there are 3 environments here, 2 in the state"):
        restore(make_vec_env("CartPole-v1", 3, 0), state)
    with pytest.raises(ValueError, match=r"made of .*MountainCarEnv, the state is of .*CartPoleEnv"):
        restore(make_vec_env("MountainCar-v0", 2, 0), state)
    breakout = capture(make_vec_env("MinAtar/Breakout-v1", 1, 0))
    with pytest.raises(ValueError, match="another game than freeway"):
        restore(make_vec_env("MinAtar/Freeway-v1", 1, 0), breakout)
    forgetful = make_env(walk(set_state=fails, get_state=lambda env: {}))
    with pytest.raises(ValueError, match="set_state of Changed fails: KeyError: 'where"):
        restore(forgetful, capture(forgetful))


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=4),
    st.integers(-9, 9).map(np.int64),
    st.floats(width=32).map(np.float32),
    st.booleans().map(np.bool_),
    st.lists(st.floats(), max_size=4).map(np.array),
    st.lists(st.integers(0, 9), max_size=4).map(lambda numbers: torch.tensor(numbers, dtype=torch.uint8)),
    st.just(np.arange(6, dtype=">i2").reshape(2, 3)),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.lists(inner, max_size=3).map(lambda items: deque(items, maxlen=5)),
        st.dictionaries(st.one_of(st.text(max_size=3), st.integers(0, 3), st.just(("a", 1))), inner, max_size=3),
    ),
    max_leaves=8,
)


def same(a, b):
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple, deque)):
        ends = getattr(a, "maxlen", None) == getattr(b, "maxlen", None)
        return ends and len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, (np.ndarray, np.generic)):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return repr(a) == repr(b)


@given(VALUES)
def test_plain_values_come_back_with_their_types(value):
    assert same(through_a_file(value), value)


STRANGE = [object(), {1, 2}, b"x", 1j, np.array([None]), open, Counter("a"), np.ma.array([1]), np.str_("")]


@pytest.mark.parametrize("value", STRANGE, ids=type)
def test_what_is_not_plain_is_refused(value):
    with pytest.raises(ValueError, match=f"a/1 is of type {type(value).__name__} and cannot be saved as data"):
        archive.encode({"a": [0, value]}, {})


@pytest.mark.parametrize(
    "data",
    [
        {"$exec": "1"},
        {"$dict": 3},
        {"$array": "missing", "dtype": "<f8", "shape": [1]},
        {"$array": "here", "dtype": "O", "shape": [1]},
        {"$array": "here", "dtype": "no type", "shape": [1]},
        {"$array": "here", "dtype": "<f8", "shape": [9]},
        {"$float": "one"},
        {"$dict": [[{"$dict": []}, 1]]},
    ],
    ids=str,
)
def test_what_nobody_has_encoded_is_refused(data):
    with pytest.raises((ValueError, TypeError, KeyError)):
        archive.decode(data, {"here": torch.zeros(8, dtype=torch.uint8)})


@pytest.mark.parametrize("kind", ["PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64"])
def test_generators_go_on(kind):
    generator = np.random.Generator(getattr(np.random, kind)(5))
    generator.random(3, dtype=np.float32)  # half a word is left over
    again = process.generator_from(through_a_file(process.generator_state(generator)))
    assert np.array_equal(generator.random(9, dtype=np.float32), again.random(9, dtype=np.float32))
    with pytest.raises(ValueError, match="there is no bit generator 'system'"):
        process.generator_from({"bit_generator": "system"})


def test_the_process_s_generators_go_on():
    np.random.normal()  # one of a pair is left over
    state = through_a_file(process.process_state())
    expected = torch.rand(3).tolist(), np.random.normal(size=3).tolist(), random.random()
    process.restore_process_state(state)
    assert (torch.rand(3).tolist(), np.random.normal(size=3).tolist(), random.random()) == expected
