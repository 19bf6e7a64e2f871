"""Our agent as a Tianshou algorithm, and a Tianshou agent that learns from delayed rewards."""

import copy
import runpy
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.callbacks import BaseCallback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter
from toy_env import Toy

pytest.importorskip("tianshou")

from tianshou.algorithm.optim import AdamOptimizerFactory, LRSchedulerFactoryLinear, TorchOptimizerFactory
from tianshou.data import Batch, Collector, ReplayBuffer, VectorReplayBuffer
from tianshou.env import DummyVectorEnv
from tianshou.trainer import OnPolicyTrainerParams
from tianshou.utils import TensorboardLogger
from tianshou.utils.torch_utils import policy_within_training_step

from cet_rl.agents import CETActorCritic
from cet_rl.agents.tianshou import CETTianshou, CETTianshouPolicy
from cet_rl.envs import DelayedReward, make_vec_env

STEPS, ENVS = 16, 3


def make(env=None, num_envs=ENVS, n_steps=STEPS, networks=None, **options):
    env = env or gym.make("CartPole-v1")
    policy = CETTianshouPolicy(env.observation_space, env.action_space, net_arch=[16, 16], **(networks or {}))
    options = {"delay": 1.0, "order": 5, **options}
    torch.manual_seed(0)  # what is drawn next is the λ of each weight, if at all
    return CETTianshou(policy=policy, num_envs=num_envs, n_steps=n_steps, **options)


def update(algorithm, buffer):
    with policy_within_training_step(algorithm.policy):
        stats = algorithm.update(buffer, batch_size=None, repeat=1)
    buffer.reset(keep_statistics=True)
    return stats


def steps(obs, obs_next, **given):
    """Return one step of each environment."""
    n, no = len(obs), np.zeros(len(obs), bool)
    default = {"act": np.zeros(n, int), "rew": np.ones(n), "terminated": no, "truncated": no, "info": {}}
    return Batch(obs=obs, obs_next=obs_next, **{**default, **given})


class Twins(BaseCallback):
    """Give the transitions that one face learns from to the other, and compare their gradients."""

    def __init__(self, algorithm):
        super().__init__()
        self.algorithm, self.buffer = algorithm, VectorReplayBuffer(STEPS * ENVS, ENVS)
        self.compared, self.terminations, self.truncations = 0, 0, 0

    def _on_rollout_start(self):
        self.compare()
        self.seen = self.model._last_obs.copy()

    def _on_step(self):
        found = self.locals
        following, truncated = found["new_obs"].copy(), np.zeros(ENVS, bool)
        for env in np.flatnonzero(found["dones"]):
            following[env] = found["infos"][env]["terminal_observation"]
            truncated[env] = found["infos"][env]["TimeLimit.truncated"]
        terminated = found["dones"] & ~truncated
        ends = {"terminated": terminated, "truncated": truncated}
        self.buffer.add(steps(self.seen, following, act=found["actions"], rew=found["rewards"], **ends))
        self.terminations += terminated.sum()
        self.truncations += truncated.sum()
        self.seen = found["new_obs"].copy()
        return True

    def _on_rollout_end(self):
        update(self.algorithm, self.buffer)

    def _on_training_end(self):
        self.compare()

    def compare(self):
        ours, theirs = self.model.policy, self.algorithm.policy.networks
        for (name, first), second in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            if first.grad is None:
                assert second.grad is None
                continue
            torch.testing.assert_close(first.grad, second.grad, rtol=1e-6, atol=1e-6, msg=name)
            torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-6)
            self.compared += 1


@pytest.mark.parametrize(
    "options",
    [
        {"order": 5},
        {"order": 3, "stacked": True},
        {"trace": "perfect", "order": None},
        {"random_lam": (0.1, 0.9)},
        {"order": 5, "task": "Pendulum-v1"},
    ],
    ids=str,
)
def test_both_faces_have_the_same_gradient(options):
    options = {"delay": 1.0, "order": 5, "n_steps": STEPS, **options}
    task = options.pop("task", "CartPole-v1")
    env = make_vec_env(task, ENVS, seed=0, max_episode_steps=12)
    model = CETActorCritic(
        "MlpPolicy", env, seed=0, learning_rate=1e-3, policy_kwargs={"net_arch": [16, 16]}, **options
    )
    adam = TorchOptimizerFactory(torch.optim.Adam, lr=1e-3, eps=1e-5, fused=True)
    algorithm = make(gym.make(task), optim=adam, **options)
    algorithm.policy.networks.load_state_dict(model.policy.state_dict())

    twins = Twins(algorithm)
    model.learn(6 * STEPS * ENVS, callback=twins)
    assert twins.compared == 6 * len(list(model.policy.parameters()))
    assert twins.truncations
    assert twins.terminations or task == "Pendulum-v1"
    theirs = algorithm.learner.state_dict()
    for name, ours in model.learner.state_dict().items():
        torch.testing.assert_close(ours, theirs[name], rtol=1e-5, atol=1e-6, msg=name)


class Script(Toy):
    """Show (its number, the episode, the step); terminate in even episodes, be cut off in odd ones."""

    action_space = spaces.Discrete(2, start=5)
    episode = -1

    def __init__(self, number):
        super().__init__(3 + number, reward=lambda step, action: number + 10 * (step - 1) + (action - 5) * 100)
        self.number = number

    def reset(self, **options):
        self.episode += 1
        self.cut = self.episode % 2 == 1
        return super().reset(**options)

    @property
    def observation(self):
        return np.array([self.number, self.episode, self.step_number], np.float32)


def collections(monkeypatch, between=lambda collector: None, count=3):
    """Return the rollouts that a learner gets from real collections of scripted environments."""
    algorithm = make(Script(0), n_steps=4, num_envs=2)
    seen = []
    accumulate = algorithm.learner.accumulate

    def watch(rollout, *, statistics):
        seen.append(copy.deepcopy(rollout))
        return accumulate(rollout, statistics=statistics)

    monkeypatch.setattr(algorithm.learner, "accumulate", watch)
    envs = DummyVectorEnv([lambda: Script(0), lambda: Script(1)])
    collector = Collector(algorithm, envs, VectorReplayBuffer(100, 2))
    collector.reset()
    for _ in range(count):
        collector.collect(n_step=8)
        update(algorithm, collector.buffer)
        between(collector)
    return seen


def test_collections_become_rollouts(monkeypatch):
    rollouts = collections(monkeypatch)
    all_steps = {
        name: torch.cat([getattr(rollout, name) for rollout in rollouts])
        for name in ("observations", "rewards", "starts", "terminated", "truncated", "actions")
    }
    # Environment 0 has episodes of 3 steps, environment 1 of 4.
    steps = torch.tensor([[0, 1, 2] * 4, [0, 1, 2, 3] * 3]).T
    episodes = torch.tensor([[t // 3 for t in range(12)], [t // 4 for t in range(12)]]).T
    numbers = torch.tensor([[0, 1]] * 12)
    torch.testing.assert_close(all_steps["observations"].long(), torch.stack([numbers, episodes, steps], -1))
    torch.testing.assert_close(all_steps["starts"], (steps == 0).float())
    last = steps == torch.tensor([2, 3])
    torch.testing.assert_close(all_steps["terminated"], (last & (episodes % 2 == 0)).float())
    torch.testing.assert_close(all_steps["truncated"], (last & (episodes % 2 == 1)).float())
    assert set(all_steps["actions"].flatten().tolist()) == {0, 1}
    torch.testing.assert_close(all_steps["rewards"], (numbers + 10 * steps + 100 * all_steps["actions"]).float())
    # What follows the last step is the next episode's first observation only after it has been reset.
    assert rollouts[0].last_observations.tolist() == [[0, 1, 1], [1, 0, 4]]
    # Truncated at t = 5 in environment 0 (second collection), t = 7 in environment 1, and t = 11 in environment 0.
    assert [r.final_observations.tolist() for r in rollouts] == [[], [[0, 1, 3], [1, 1, 4]], [[0, 3, 3]]]
    assert all(rollout.valid is None for rollout in rollouts)


def test_a_reset_of_the_collector_starts_an_episode(monkeypatch):
    rollouts = collections(monkeypatch, between=lambda collector: collector.reset_env(), count=2)
    assert (rollouts[0].starts[0].tolist(), rollouts[1].starts[0].tolist()) == ([1, 1], [1, 1])
    rollouts = collections(monkeypatch, count=2)
    assert rollouts[1].starts[0].tolist() == [0, 1]  # environment 1 ended with the collection


def history(number, reward=1.0):
    """A buffer with collection `number` of an endless history of three environments, always the same one."""
    buffer = VectorReplayBuffer(STEPS * ENVS, ENVS)
    seen = [
        np.random.default_rng(t).uniform(-0.2, 0.2, (ENVS, 4)).astype(np.float32) for t in range(9 * STEPS + 1)
    ]
    for t in range(number * STEPS, (number + 1) * STEPS):
        drawn = np.random.default_rng((t, 1))
        ends = {name: drawn.random(ENVS) < 0.1 for name in ("terminated", "truncated")}
        buffer.add(steps(seen[t], seen[t + 1], act=drawn.integers(0, 2, ENVS), rew=np.full(ENVS, reward), **ends))
    return buffer


@settings(max_examples=12)
@given(
    st.lists(st.sampled_from(["learn", "drop", "play", "infinite", "too short", "saved"]), min_size=2, max_size=8)
)
def test_only_what_is_learned_from_changes_what_is_remembered(events):
    algorithm, twin = make(delay=1.0, order=3), make(delay=1.0, order=3)
    twin.load_state_dict(algorithm.state_dict())
    for number, event in enumerate(events):
        if event == "learn":
            update(algorithm, history(number))
            update(twin, history(number))
        elif event == "play":
            algorithm.policy(Batch(obs=np.ones((5, 4), np.float32), info={}))
        elif event == "saved":
            saved = copy.deepcopy(algorithm.state_dict())
            algorithm = make(delay=1.0, order=3)
            algorithm.load_state_dict(saved)
        elif event != "drop":
            error, buffer = (
                (FloatingPointError, history(number, np.inf))
                if event == "infinite"
                else (ValueError, filled(length=5))
            )
            with pytest.raises(error):
                update(algorithm, buffer)
        for name, expected in twin.state_dict().items():
            found = algorithm.state_dict()[name]
            assert not isinstance(expected, torch.Tensor) or torch.equal(found, expected), (name, event)
    assert "learn" not in events or any(each.eligibility.any() for each in algorithm.learner.synapses)


def trainer_params(algorithm, **changes):
    envs = DummyVectorEnv([lambda: gym.make("CartPole-v1")] * ENVS)
    envs.seed(0)
    params = {
        "training_collector": Collector(algorithm, envs, VectorReplayBuffer(STEPS * ENVS, ENVS)),
        "max_epochs": 1,
        "epoch_num_steps": 4800,
        "collection_step_num_env_steps": STEPS * ENVS,
        "batch_size": None,
    }
    return OnPolicyTrainerParams(**{**params, "show_progress": False, "verbose": False, **changes})


def test_trains_logs_and_goes_on_from_what_was_saved(tmp_path):
    torch.manual_seed(0)
    epochs, samples, collected = 2, 2000, STEPS * ENVS
    schedule = LRSchedulerFactoryLinear(epochs, samples, collected)
    algorithm = make(optim=AdamOptimizerFactory(lr=1e-3, eps=1e-5).with_lr_scheduler_factory(schedule))
    before = copy.deepcopy(algorithm.policy.state_dict())
    logger = TensorboardLogger(SummaryWriter(str(tmp_path)), training_interval=1, update_interval=1)
    params = trainer_params(algorithm, max_epochs=epochs, epoch_num_steps=samples, logger=logger)
    collector = params.training_collector
    info = algorithm.run_training(params)
    logger.finalize()
    assert info.train_step == epochs * -(-samples // collected) * collected
    assert any(not torch.equal(before[key], value) for key, value in algorithm.policy.state_dict().items())
    assert algorithm.lr_schedulers[0].get_last_lr()[0] == pytest.approx(0)

    events = EventAccumulator(str(tmp_path)).Reload()
    tags = events.Tags()["scalars"]
    for tag in ("train/value_loss", "train/entropy_loss", "train/gradient_norm"):
        assert f"update/{tag}" in tags
        assert f"update/smoothed_loss/{tag}" in tags
    for layer in range(3):
        values = [event.value for event in events.Scalars(f"update/credit/alignment/{layer}")]
        assert len(values) > 50
        assert np.isfinite(values).all()
        assert max(np.abs(values)) <= 1.0001

    torch.save(algorithm.state_dict(), tmp_path / "agent.pt")
    other = make()
    other.load_state_dict(torch.load(tmp_path / "agent.pt", weights_only=True))
    assert any(synapses.eligibility.any() for synapses in other.learner.synapses)
    for ours, theirs in zip(algorithm.learner.buffers(), other.learner.buffers(), strict=True):
        assert torch.equal(ours, theirs)
    torch.manual_seed(1)
    collector.collect(n_step=collected)
    buffer = copy.deepcopy(collector.buffer)
    first, second = update(algorithm, collector.buffer), update(other, buffer)
    assert first.get_loss_stats_dict() == second.get_loss_stats_dict()


def test_acts_like_any_policy_of_tianshou():
    policy = make(Script(0), networks={"deterministic_eval": True}).policy
    observation = np.ones(3, np.float32)
    assert policy.compute_action(observation) in (5, 6)
    assert policy.map_action(np.array([0, 1])).tolist() == [5, 6]
    assert policy.map_action_inverse(np.array([5, 6])).tolist() == [0, 1]
    batch = Batch(obs=np.tile(observation, (200, 1)), info={})
    assert len(set(policy(batch).act.tolist())) == 1
    with policy_within_training_step(policy):
        assert set(policy(batch).act.tolist()) == {0, 1}

    pendulum = gym.make("Pendulum-v1")
    policy = make(pendulum).policy
    assert pendulum.action_space.contains(policy.compute_action(pendulum.observation_space.sample()))
    assert policy.map_action(np.array([[-9.0], [9.0]])).tolist() == [[-2], [2]]


def filled(envs=ENVS, length=STEPS, room=STEPS, **options):
    """Return a buffer with so many steps of so many environments."""
    buffer = VectorReplayBuffer(room * envs, envs, **options)
    for step in range(length):
        buffer.add(steps(*(np.full((envs, 4), number, np.float32) for number in (step, step + 1))))
    return buffer


@pytest.mark.parametrize(
    ("buffer", "message"),
    [
        (lambda: filled(envs=2), "got 16, 16: collect"),
        (lambda: filled(envs=4), "got 16, 16, 16, 16: collect"),
        (lambda: filled(length=15), "must be n_steps=16 steps of each of num_envs=3 .* got 15, 15, 15: collect"),
        (lambda: filled(length=17, room=32), "got 17, 17, 17"),
        (lambda: filled(length=32, room=8), "got 8, 8, 8"),
        (lambda: filled(length=20), "environments in order, got 16, 16, 16"),
        (lambda: filled(ignore_obs_next=True), "must keep obs and obs_next"),
        (lambda: filled(stack_num=2), "no stack_num"),
        (lambda: filled(envs=1, length=48, room=48), "got 48: collect"),
    ],
)
def test_refuses_what_is_no_collection(buffer, message):
    algorithm = make()
    with pytest.raises(ValueError, match=message):
        update(algorithm, buffer())
    assert not any(synapses.eligibility.any() for synapses in algorithm.learner.synapses)


def test_a_trainer_that_does_not_fit_is_refused_before_anything_is_collected():
    algorithm = make(delay=20.0)
    algorithm.create_trainer(trainer_params(algorithm))
    for change, message in [
        ({"batch_size": 64}, "batch_size must be None"),
        ({"update_step_num_repetitions": 3}, "repetitions must be 1, got 3"),
        ({"collection_step_num_env_steps": 50}, "16 × 3 = 48, got 50"),
        ({"collection_step_num_env_steps": None, "collection_step_num_episodes": 5}, "got None"),
        ({"epoch_num_steps": 300}, "longest delay is 100 steps"),
    ]:
        with pytest.raises(ValueError, match=message):
            algorithm.create_trainer(trainer_params(algorithm, **change))
    with policy_within_training_step(algorithm.policy), pytest.raises(ValueError, match="must be None, got 8"):
        algorithm.update(filled(), batch_size=8, repeat=1)


def test_one_environment_needs_no_vector_buffer():
    algorithm = make(num_envs=1)
    collector = Collector(algorithm, gym.make("CartPole-v1"), ReplayBuffer(STEPS))
    collector.reset()
    collector.collect(n_step=STEPS)
    assert np.isfinite(update(algorithm, collector.buffer).train["value_loss"])


def test_refuses_numbers_that_are_not_finite():
    algorithm = make()
    buffer = filled()
    buffer.rew[STEPS + 3] = np.inf
    weights = copy.deepcopy(algorithm.policy.state_dict())
    with pytest.raises(FloatingPointError, match="environment 1 gave a reward that is not finite at its step 3"):
        update(algorithm, buffer)
    assert all(torch.equal(weights[key], value) for key, value in algorithm.policy.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_steps": 0}, "n_steps must be at least 1"),
        ({"num_envs": 0}, "num_envs must be at least 1"),
        ({"delay": 0.9}, "no whole number"),
        ({"networks": {"activation_fn": torch.nn.Tanh}}, "error_at='activation'"),
        ({"return_scaling": True}, "return_scaling must be left out: TD errors count as they are"),
        ({"max_grad_norm": None}, "max_grad_norm must be a number, got None"),
    ],
)
def test_refuses_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_names_of_tianshou():
    with pytest.raises(TypeError, match=r"unknown argument 'eps_clip'; help\(CETTianshou\) shows all"):
        make(eps_clip=0.2)
    with pytest.raises(TypeError, match="unknown argument 'hidden'; choose from net_arch, activation"):
        make(networks={"hidden": [8]})
    assert make(gae_lambda=0.5, return_scaling=False, max_batchsize=None).learner.config.lam == 0.5


@pytest.mark.parametrize("delay", ["0.4", "2"])
def test_the_example_trains_a_tianshou_agent_on_delayed_rewards(delay, capsys):
    example = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "tianshou_delayed_reward.py"))
    assert isinstance(example["build_env"]("CartPole-v1", float(delay)), DelayedReward)
    mean = example["main"](["--delay", delay, "--steps", "300", "--num-envs", "2"])
    assert 8 <= mean <= 500
    assert f"rewards {delay} s late: return {mean:.1f} over 20 episodes" in capsys.readouterr().out
