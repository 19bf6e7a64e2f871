import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env as gymnasium_check
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from stable_baselines3 import A2C
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_checker import check_env as sb3_check
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecMonitor
from toy_env import Toy

from cet_rl.agents import CETActorCritic
from cet_rl.envs import (
    ActionsFromZero,
    DelayedCredit,
    DelayedReward,
    GymnasiumVecEnv,
    PositiveNegativeSplit,
    StepClock,
    environments,
    make_env,
    make_vec_env,
)
from cet_rl.envs.vector import NUMPY_FROM

WRAPPERS = {
    "clock": StepClock,
    "split": PositiveNegativeSplit,
    "credit": lambda env: DelayedCredit(env, delay=2.0, stacked=True),
    "reward": lambda env: DelayedReward(env, delay=2.0),
}

RECOMMENDATIONS = (  # of the checkers, about bounds and types that are the environment's own
    ".*A Box observation space m.*",
    ".*different from the unwrapped version.*",
    ".*symmetric and normalized.*",
    ".*is an image but its `dtype`.*",
    ".*not in .0, 255.*",
    ".*Treating image space as channels-.*",
    ".*the minimal resolution for an image.*",
)


@pytest.mark.parametrize("task", environments())
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_checkers_accept_wrapped_environments(task, wrapper):
    # Made outside: SWIG's import breaks when it may not warn.
    envs = [WRAPPERS[wrapper](gym.make(task)) for _ in range(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for message in RECOMMENDATIONS:
            warnings.filterwarnings("ignore", message=message)
        sb3_check(envs[0], skip_render_check=True)
        gymnasium_check(envs[1], skip_render_check=True, skip_close_check=True)


@pytest.mark.parametrize("task", environments())
def test_ready_environments_run_with_the_agent(task):
    model = CETActorCritic("MlpPolicy", make_vec_env(task, 2, 0), delay=1.0, n_steps=32, seed=0)
    model.learn(256)
    assert all(torch.isfinite(weight).all() for weight in model.policy.actor.weights)


def test_minatar_shows_maps_and_is_repeatable():
    import minatar.gym

    minatar.gym.register_envs()  # its own form of the same ids, which must not win
    envs = [make_env("MinAtar/SpaceInvaders-v1") for _ in range(2)]
    raw = minatar.gym.BaseEnv("space_invaders", use_minimal_action_set=True)
    observation = raw.reset(seed=3)[0]
    raw.game.last_action = 0
    shown = [env.reset(seed=3)[0] for env in envs]
    generator = np.random.default_rng(0)
    for _ in range(300):
        np.testing.assert_array_equal(shown[0], observation.transpose(2, 0, 1))
        assert shown[0].dtype == np.float32
        np.testing.assert_array_equal(shown[0], shown[1])
        action = int(generator.integers(4))
        observation, reward, done, *_ = raw.step(action)
        steps = [env.step(action) for env in envs]
        shown = [step[0] for step in steps]
        assert type(steps[0][1]) is float
        assert steps[0][1:3] == (reward, done)
        if done:
            break
    np.testing.assert_array_equal(envs[0].reset(seed=3)[0], raw.reset(seed=3)[0].transpose(2, 0, 1))
    assert envs[0].unwrapped.game.last_action == 0  # an episode does not depend on how the last one ended


class Reusing(Toy):
    """Show the same array and list again and again, as an environment may."""

    def step(self, action):
        observation, *rest, _ = super().step(action)
        self.shown[:], self.steps_made[0] = observation, self.steps
        return self.shown, *rest, {"steps": self.steps_made}


def reusing(**given):
    return Reusing(5, shown=np.zeros(3, np.float32), steps_made=[0], **given)


@pytest.mark.parametrize(
    "task",
    ["CartPole-v1", lambda: reusing(cut=True), lambda: reusing(), lambda: gym.wrappers.TimeLimit(reusing(), 5)],
    ids=["CartPole", "cut", "ended", "both at once"],
)
def test_environments_step_as_those_of_stable_baselines(task):
    envs = make_vec_env(task, 2, 3), DummyVecEnv([lambda: make_env(task)] * 2)
    envs[1].seed(3)
    seen = []
    for env in envs:
        env.action_space.seed(0)
        first, shown = env.reset(), []
        for _ in range(62):
            shown.append(env.step(np.array([env.action_space.sample() for _ in range(2)])))
        for info in (info for step in shown for info in step[3] if "episode" in info):
            del info["episode"]["t"]
        seen.append([first, *shown])
    assert any(step[2].any() for step in seen[0][1:])
    assert all(type(a) is type(b) for a, b in zip(seen[0][1], seen[1][1], strict=True))
    assert repr(seen[0]) == repr(seen[1])


def test_cartpole_is_gymnasiums_bit_for_bit():
    envs = make_env("CartPole-v1").unwrapped, gym.make("CartPole-v1").unwrapped
    assert type(envs[0]) is not type(envs[1])
    generator, ended = np.random.default_rng(0), 0
    for episode in range(60):
        pushes = generator.integers(2, size=60) if episode % 2 else [0, 1] * 250
        starts = [env.reset(seed=episode)[0].tobytes() for env in envs]
        assert starts[0] == starts[1]
        if episode % 3 == 0:  # so fast that every term counts
            envs[0].state = envs[1].state = generator.normal(size=4) * [0.5, 9, 0.1, 9]
        for action in pushes:  # some beyond the end
            (shown, *rest), (expected, *others) = (env.step(action) for env in envs)
            assert (shown.tobytes(), shown.dtype, rest) == (expected.tobytes(), expected.dtype, others)
            assert envs[0].state.tobytes() == envs[1].state.tobytes()
            ended += rest[1]
    assert ended > 1000
    with pytest.raises(AssertionError, match="invalid"):
        envs[0].step(2)


def counting(length, cut=False):
    """Earn 1, 2, 3, … and end after `length` steps, for good or by a cut."""
    return Toy(length, cut, lambda step, action: step, action_space=gym.spaces.Discrete(2))


@pytest.mark.parametrize("cut", [False, True])
def test_rewards_arrive_late_and_none_is_lost(cut):
    def episode(env):
        env.reset()
        rewards = []
        while True:
            _, reward, terminated, truncated, _ = env.step(0)
            rewards.append(reward)
            if terminated or truncated:
                return rewards

    late = DelayedReward(counting(5, cut), delay=0.4)
    assert episode(late) == [0, 0, 1, 2, 3 + 4 + 5]
    assert episode(late) == [0, 0, 1, 2, 3 + 4 + 5]  # nothing carries over
    late.reset()
    late.step(0)
    assert episode(late) == [0, 0, 1, 2, 3 + 4 + 5]  # nor from an episode that was given up
    assert episode(DelayedReward(counting(3, cut), delay=2.0)) == [0, 0, 6]  # shorter than the delay
    assert episode(DelayedReward(counting(3, cut), delay=0.0)) == [1, 2, 3]
    again = DelayedReward(gym.wrappers.Autoreset(counting(5, cut)), delay=0.4)
    again.reset()
    assert [again.step(0)[1] for _ in range(11)] == [0, 0, 1, 2, 12, 0, 0, 0, 1, 2, 12]


def test_late_rewards_reach_a_foreign_agent_with_the_same_return():
    seen = []

    class Watch(BaseCallback):
        def _on_step(self):
            seen.append(float(self.locals["rewards"][0]))
            return True

    env = make_vec_env(lambda: counting(5), 1, wrappers=[lambda env: DelayedReward(env, delay=0.4)])
    model = A2C("MlpPolicy", env, device="cpu")
    model.learn(10, callback=Watch())
    assert (seen, [info["r"] for info in model.ep_info_buffer]) == ([0, 0, 1, 2, 12] * 2, [15, 15])


def test_the_agent_takes_its_delays_from_the_environment():
    for build in (
        lambda **o: make_vec_env("CartPole-v1", 2, **o),
        lambda **o: make_vec_env("CartPole-v1", 2, vectorization="numpy", **o),
    ):
        model = CETActorCritic("MlpPolicy", build(delay=8.0))
        assert (model.timing.layer_delays, model.learner_config.trace.kind) == ((40, 40, 40), "cet")
        assert CETActorCritic("MlpPolicy", build(), delay=4.0).timing.layer_delays == (20, 20, 20)
        with pytest.raises(ValueError, match="agent's credit is 4 s late, the environment says 8 s"):
            CETActorCritic("MlpPolicy", build(delay=8.0), delay=4.0)
        with pytest.raises(ValueError, match=r"4 s late, the environment says 8 s, stacked"):
            CETActorCritic("MlpPolicy", build(), delay=4.0).set_env(build(delay=8.0, stacked=True))
    assert CETActorCritic("MlpPolicy", make_vec_env("CartPole-v1", 1, delay=0.0)).timing.delay_steps == 0
    assert CETActorCritic("MlpPolicy", "CartPole-v1", delay=1.0, step_duration=0.5).timing.delay_steps == 2


def test_numpy_s_form_is_taken_where_it_is_faster_and_nothing_needs_single_environments():
    def chosen(task="CartPole-v1", num_envs=NUMPY_FROM, **options):
        env = make_vec_env(task, num_envs, vectorization="auto", delay=0.4, **options)
        assert len(env.reset()) == num_envs
        return type(getattr(env, "venv", env))

    assert chosen() is GymnasiumVecEnv
    assert chosen(num_envs=NUMPY_FROM - 1) is not GymnasiumVecEnv
    assert chosen(wrappers=[ActionsFromZero]) is not GymnasiumVecEnv
    assert chosen("Acrobot-v1") is not GymnasiumVecEnv
    assert chosen(lambda: gym.make("CartPole-v1")) is not GymnasiumVecEnv


def test_the_clock_leaves_physics_alone():
    clocked, plain = StepClock(gym.make("CartPole-v1"), 0.3), gym.make("CartPole-v1")
    np.testing.assert_array_equal(clocked.reset(seed=1)[0], plain.reset(seed=1)[0])
    for _ in range(4):
        np.testing.assert_array_equal(clocked.step(0)[0], plain.step(0)[0])
    assert clocked.unwrapped.tau == plain.unwrapped.tau


def test_the_split_keeps_everything():
    cart, narrow = gym.make("CartPole-v1"), gym.spaces.Box(-128, 127, (4,), np.int8)
    for raw in (cart, gym.wrappers.TransformObservation(cart, lambda _: narrow.low, narrow)):
        env = PositiveNegativeSplit(raw)
        observation, _ = env.reset(seed=0)
        assert env.observation_space.contains(observation)
        assert (observation >= 0).all()
        np.testing.assert_array_equal(observation[:4] - observation[4:], raw.reset(seed=0)[0])


def test_seeds_differ_between_environments_and_repeat():
    first = make_vec_env("CartPole-v1", 3, 7).reset()
    assert len({tuple(row) for row in first}) == 3
    for task in ("CartPole-v1", lambda: gym.make("CartPole-v1")):
        env = make_vec_env(task, 3, 7, max_episode_steps=5)
        np.testing.assert_array_equal(first, env.reset())
        assert env.get_attr("step_duration") == [0.2] * 3


STRANGE = {  # attributes of an environment that is none of Gymnasium's
    "step of .*Toy.* must return .*, terminated, truncated": {"step": lambda _: (np.zeros(3), 0.0, False, {})},
    "reset of .*Toy.* must return observation and info": {"reset": lambda **_: np.zeros(3)},
    "reward .a number.": {"step": lambda _: (np.zeros(3), np.ones(1), False, False, {})},
    r"shows .* shape \(3,\), its space has \(2,\)": {"observation_space": gym.spaces.Box(0, 9, (2,))},
}


def play(**given):
    env = make_vec_env(lambda: Toy(**given), 1)
    env.reset()
    env.step(np.array([5]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_env("CartPol-v1"), "did you mean CartPole-v1"),
        (lambda: make_env("LunarLander-v2"), "LunarLander"),
        (lambda: make_env("Zzzzzz"), "`cet-rl list` shows environments, data sets and other tasks"),
        (lambda: make_vec_env(gym.make("CartPole-v1")), "by its Gymnasium id or a function that makes it, got"),
        *[(lambda n=n: make_vec_env("CartPole-v1", n), "num_envs must be") for n in (0, 2.5)],
        (lambda: make_vec_env("CartPole-v1", 16, max_episode_steps=0, vectorization="numpy"), "steps must be"),
        (lambda: make_vec_env("CartPole-v1", n_envs=4), "no n_envs: use num_envs="),
        (lambda: make_vec_env("CartPole-v1", env_kwargs={}), "each of its items as a keyword"),
        (lambda: make_vec_env("Acrobot-v1", 2, vectorization="numpy"), "vectorised form"),
        (lambda: make_vec_env("CartPole-v1", 2, vectorization="fast"), "vectorization"),
        (lambda: make_vec_env("CartPole-v1", stacked=True), "give delay="),
        (lambda: make_vec_env("CartPole-v1", stacked=True, vectorization="numpy"), "give delay="),
        (lambda: make_env(late, step_duration=0.3), "the environment's clock says 0.2 s a step, not 0.3 s"),
        (lambda: make_env(late, step_duration="0.3"), "step_duration must be a number, got '0.3'"),
        (lambda: make_env(late, delay=0.0), "says that credit is 8 s late, not 0 s"),
        (lambda: make_vec_env("CartPole-v1", 2, vectorization="numpy", wrappers=[ActionsFromZero]), "wrappers of"),
        (lambda: GymnasiumVecEnv(vector(AutoresetMode.DISABLED)), r"autoreset_mode=.*\.SAME_STEP.*'Disabled'"),
        (lambda: GymnasiumVecEnv(vector(AutoresetMode.NEXT_STEP)), r"autoreset_mode=.*\.SAME_STEP.*'NextStep'"),
        (lambda: StepClock(gym.make("CartPole-v1"), 0), "step duration"),
        (lambda: DelayedCredit(gym.make("CartPole-v1"), delay=0.3), "no whole number"),
        (lambda: DelayedReward(gym.make("CartPole-v1"), delay=0.3), "no whole number"),
        (lambda: DelayedCredit(StepClock(Toy(), 0.1), 1.0, 0.2), "clock says 0.1 s a step, not 0.2"),
        (lambda: DelayedReward(StepClock(Toy(), 0.1), 1.0, 0.2), "clock says 0.1 s a step, not 0.2"),
        (lambda: DelayedReward(gym.make("CartPole-v1"), "8"), "delay must be a number, got '8'"),
        (lambda: DelayedCredit(late(), 4.0), "says that credit is 8 s late, not 4 s"),
        (lambda: DelayedCredit(late(), 8.0, stacked=True), "says that credit is 8 s late, not 8 s, stacked"),
        (lambda: make_vec_env(lambda: None, 2), "must return a gymnasium.Env, got None"),
        (lambda: make_env("CartPole-v1", wrappers=[lambda env: None]), "must return a gymnasium.Env, got None"),
        (lambda: make_env("CartPole-v1", wrappers=StepClock), "wrappers must be a list of functions or classes"),
        *[(lambda given=given: play(**given), message) for message, given in STRANGE.items()],
        (lambda: PositiveNegativeSplit(gym.make("FrozenLake-v1")), "Box of vectors"),
        (lambda: PositiveNegativeSplit(Toy(observation_space=gym.spaces.Box(0, 1, (3,), bool))), "never negative"),
    ],
)
def test_bad_requests_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def late():
    return DelayedCredit(gym.make("CartPole-v1"), delay=8.0)


def vector(mode):
    return SyncVectorEnv([lambda: gym.make("CartPole-v1", max_episode_steps=5)] * 2, autoreset_mode=mode)


def test_the_vectorised_form_passes_on_options_infos_and_pictures():
    class Told(gym.Wrapper):
        def reset(self, *, seed=None, options=None):
            self.told = (options or {}).get("told", 0)
            return super().reset(seed=seed, options=options)[0], {"at": [self.told, 0]}

        def step(self, action):
            *result, _ = super().step(action)
            return *result, {"told": self.told, "deep": {"er": 1}} if action else {}

    both = [lambda: Told(gym.make("CartPole-v1", max_episode_steps=3, render_mode="rgb_array"))] * 2
    env = GymnasiumVecEnv(RecordEpisodeStatistics(SyncVectorEnv(both, autoreset_mode=AutoresetMode.SAME_STEP)))
    env.set_options([{}, {"told": 7}])
    with pytest.raises(ValueError, match="give set_options one dict"):
        env.reset()
    env.set_options({"told": 7})
    env.reset()
    assert [list(info["at"]) for info in env.reset_infos] == [[7, 0]] * 2
    assert env.render("rgb_array").shape == (800, 600, 3)
    for done in (False, False, True):
        infos = env.step(np.array([0, 1]))[3]
        ended = {"terminal_observation", "TimeLimit.truncated", "episode"} if done else set()
        assert [info.keys() for info in infos] == [ended, {"told", "deep"} | ended]
        assert (infos[1]["told"], infos[1]["deep"]) == (7, {"er": 1})
    assert infos[0]["episode"]["l"] == 3
    assert env._of_each({"all": 7, "none": None, "text": "ab", "few": np.zeros(1)}) == [{}] * 2
    assert [list(info["at"]) for info in env.reset_infos] == [[0, 0]] * 2  # options are for one reset


def numpy_cartpole(num_envs=2, seed=0, limit=None):
    return make_vec_env("CartPole-v1", num_envs, seed, vectorization="numpy", max_episode_steps=limit)


@pytest.mark.filterwarnings("ignore:The environment is already wrapped")
@pytest.mark.parametrize(
    "build",
    [
        lambda: numpy_cartpole(limit=5),
        lambda: VecMonitor(numpy_cartpole(limit=5)),
        lambda: VecFrameStack(numpy_cartpole(limit=5), 2),
        lambda: VecMonitor(GymnasiumVecEnv(vector(AutoresetMode.SAME_STEP))),
    ],
)
def test_the_vectorised_form_has_no_steps_but_those_of_episodes(build):
    env = build()
    env.seed(0)
    env.reset()
    for step in range(1, 21):
        observations, rewards, dones, infos = env.step(np.array([step % 2] * 2))
        assert (rewards == 1).all()
        assert (dones == (step % 5 == 0)).all()
        for shown, info in zip(observations, infos, strict=True) if step % 5 == 0 else ():
            assert not np.array_equal(info["terminal_observation"], shown)
            assert (info["episode"]["l"], info["episode"]["r"], info["TimeLimit.truncated"]) == (5, 5, True)
    model = A2C("MlpPolicy", env, device="cpu")
    model.learn(100)
    assert {episode["l"] for episode in model.ep_info_buffer} == {5}


def test_an_episode_that_ends_both_ways_at_once_was_not_cut():
    both = [lambda: gym.wrappers.TimeLimit(Toy(5), 5)] * 2
    env = GymnasiumVecEnv(SyncVectorEnv(both, autoreset_mode=AutoresetMode.SAME_STEP))
    env.reset()
    infos = [env.step(np.array([5, 6]))[3] for _ in range(5)][-1]
    assert [info["TimeLimit.truncated"] for info in infos] == [False, False]


def test_spaces_of_the_vectorised_form_draw_by_its_seed():
    spaces = [numpy_cartpole(seed=seed).venv.env.action_space for seed in (7, 7, 8)]
    a, b, c = ([tuple(space.sample()) for _ in range(20)] for space in spaces)
    assert a == b != c


def test_the_vectorised_form_is_the_environment():
    """Each episode is what the single environment makes of the same start and actions, to its last observation."""
    env, single, generator = numpy_cartpole(3), gym.make("CartPole-v1").unwrapped, np.random.default_rng(0)
    observations, ended = env.reset(), 0
    for _ in range(100):
        actions = generator.integers(2, size=3)
        following, _, dones, infos = env.step(actions)
        for index, (before, action, after) in enumerate(zip(observations, actions, following, strict=True)):
            single.reset()
            single.state = before.astype(np.float64)
            expected, _, terminated, *_ = single.step(action)
            assert terminated == dones[index]
            np.testing.assert_allclose(infos[index].get("terminal_observation", after), expected, atol=1e-5)
            assert not terminated or (np.abs(after).max() <= 0.05 and not infos[index]["TimeLimit.truncated"])
            ended += terminated
        observations = following
    assert ended > 5
