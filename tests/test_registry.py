"""Agents and environments by name: ours, others', third parties'."""

import sys
import textwrap
from dataclasses import replace
from importlib.metadata import EntryPoint

import gymnasium as gym
import pytest
from stable_baselines3 import A2C, DQN, PPO
from toy_env import Toy

from cet_rl.agents import CETActorCritic
from cet_rl.credit.activations import ACTIVATIONS
from cet_rl.envs import DelayedReward, environments, make_env, register_env, tasks
from cet_rl.rl import agent_registry
from cet_rl.rl.agent_kinds import TORCH_ACTIVATIONS
from cet_rl.rl.agent_registry import agents, find_agent, register_agent
from cet_rl.rl.config import RLConfig
from cet_rl.rl.training import evaluate_run, resolve, train
from cet_rl.runs import plugins
from cet_rl.runs.config_files import tuned_defaults

QUICK = {"total_steps": 600, "hidden": (8,), "n_steps": 32, "num_envs": 2, "eval_episodes": 2, "device": "cpu"}


class Ours(CETActorCritic):
    """A derived agent, found as test_registry:Ours."""


@pytest.fixture(autouse=True)
def _clean(monkeypatch):
    monkeypatch.setitem(sys.modules, "a_module", sys.modules[__name__])
    monkeypatch.setattr(agent_registry, "_AGENTS", dict(agent_registry._AGENTS))
    monkeypatch.setattr(tasks, "_ENVIRONMENTS", dict(tasks._ENVIRONMENTS))
    yield
    for task in ("Mine/CartPole-v0", "Offset-v0", "Dict-v0"):
        gym.registry.pop(task, None)
    plugins._loaded = True


@pytest.mark.parametrize(
    ("name", "algorithm"),
    [
        ("cet", CETActorCritic),
        ("sb3:a2c", A2C),
        ("sb3:ppo", PPO),
        ("stable_baselines3:DQN", DQN),
        ("a_module:Ours", Ours),
    ],
)
def test_each_agent_runs_through_the_same_door(tmp_path, name, algorithm):
    """Trains, is saved without a pickle, comes back from its folder with the same policy, and can go on."""
    register_env("Offset-v0", "", Toy)  # takes the actions 5, 6 and 7 and no others
    config = resolve(RLConfig("Offset-v0", agent=name, delay=1.0, **QUICK))
    assert train(config, tmp_path / "run", quiet=True) == "finished"
    kind, file = find_agent(name), tmp_path / "run" / "checkpoint" / "agent.zip"
    agent = kind.load(config, file)
    assert type(agent) is algorithm
    assert agent.num_timesteps >= 600
    first = agent.get_env().reset()
    again = kind.load(config, file)
    assert (agent.predict(first, deterministic=True)[0] == again.predict(first, deterministic=True)[0]).all()
    late = agent.get_env().env_is_wrapped(DelayedReward)[0]
    assert late != kind.delays_credit  # those who cannot bridge a delay meet it in the environment
    if kind.delays_credit:
        assert agent.timing.layer_delays == (5, 5)


@pytest.mark.parametrize(("chosen", "inputs"), [(True, 8), (False, 4)])
def test_observations_enter_whole_where_that_is_asked_for(chosen, inputs):
    config = resolve(RLConfig("CartPole-v1", delay=1.0, split_observations=chosen, **QUICK))
    policy = find_agent("cet").build(config).policy
    assert policy.splits is chosen
    assert policy.actor.weights[0].shape[1] == policy.critic[0].in_features == inputs


def test_a_foreign_agent_follows_the_configuration():
    options = {"lr": 1e-3, "gamma": 0.9, "lam": 0.8, "activation": "tanh"}
    agent = find_agent("sb3:a2c").build(resolve(RLConfig("CartPole-v1", agent="sb3:a2c", **options, **QUICK)))
    assert (agent.gamma, agent.gae_lambda, agent.n_steps, agent.n_envs) == (0.9, 0.8, 32, 2)
    assert (agent.lr_schedule(1), agent.lr_schedule(0), agent.policy.net_arch) == (1e-3, 0, [8])
    assert any(type(module).__name__ == "Tanh" for module in agent.policy.modules())
    assert (type(agent.policy.optimizer).__name__, set(ACTIVATIONS)) == ("Adam", set(TORCH_ACTIVATIONS))
    dqn = find_agent("stable_baselines3:DQN").build(RLConfig("CartPole-v1", gamma=0.9, **QUICK))
    assert (dqn.n_steps, dqn.gamma) == (1, 0.9)  # off-policy, n_steps means something else


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("order", 5),
        ("trace", "cet"),
        ("stacked", True),
        ("random_lam", (0.1, 0.9)),
        ("feedback", "fa"),
        ("alignment", False),
    ],
)
def test_what_does_not_apply_is_refused(name, value):
    with pytest.raises(ValueError, match=f"--{'no-' * (value is False)}{name.replace('_', '-')} has no meaning"):
        resolve(RLConfig("CartPole-v1", agent="sb3:ppo", delay=2.0, **{name: value}))


def test_the_tuned_defaults_of_a_task_do_not_stand_in_the_way():
    config = RLConfig(agent="sb3:a2c", **tuned_defaults("LunarLander-v3", RLConfig))
    assert (config.normalization, resolve(config).normalization) == ("area", "peak")
    assert resolve(config).total_steps == 2_000_000
    with pytest.raises(ValueError, match="--normalization has no meaning"):
        resolve(RLConfig("CartPole-v1", agent="sb3:a2c", normalization="area"))


def test_labels_name_the_agent():
    def label(**options):
        return resolve(RLConfig("CartPole-v1", **options)).label

    assert (label(agent="sb3:a2c"), label(agent="sb3:a2c", delay=8.0)) == ("sb3-a2c", "sb3-a2c-8s")
    assert label(agent="a_module:Ours", delay=8.0, order=3) == "a_module-Ours-cet3-8s"
    assert (label(delay=8.0), label(delay=120.0, stacked=True, step_ms=300.0)) == ("cet5-8s", "cet5-120s-stacked")
    assert label(delay=8.0, discretization="official") == "official-cet5-8s"
    assert label(delay=8.0, feedback="dfa", random_lam=(0.1, 0.9)) == "cet5-dfa-random-lam-8s"
    assert (label(actor="conv"), label()) == ("none-conv", "none")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sb3:a3c", r"unknown agent 'sb3:a3c'; did you mean sb3:a2c"),
        ("cat", r"unknown agent 'cat'; did you mean cet"),
        ("json:loads", "no Stable-Baselines3 algorithm"),
        ("no_such_module:Agent", "No module named 'no_such_module'"),
        ("a_module:Nothing", "a_module has nothing named 'Nothing'"),
        ("a_broken_module:Agent", r"cannot import 'a_broken_module' \(ZeroDivisionError: division by zero\)"),
        (":A", "cannot import ''"),
    ],
)
def test_unknown_agents_are_named(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where a user's own modules are found
    (tmp_path / "a_broken_module.py").write_text("1 / 0\n")
    with pytest.raises(ValueError, match=message):
        find_agent(name)


def test_third_parties_register_agents_and_environments(monkeypatch, tmp_path):
    (tmp_path / "a_plugin.py").write_text(
        textwrap.dedent("""
        from cet_rl.rl import register_agent
        from cet_rl.envs import register_env


        def register():
            from cet_rl.rl.agent_registry import agents
            assert "cet" in agents()  # looks things up itself
            register_agent("mine:ppo", "of mine", "stable_baselines3:PPO")
            register_env(
                "Mine/CartPole-v0", "of mine", "gymnasium.envs.classic_control:CartPoleEnv", max_episode_steps=50
            )


        def broken():
            raise RuntimeError("not today")
        """)
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = [
        EntryPoint("mine", "a_plugin:register", plugins.GROUP),
        EntryPoint("hers", "a_plugin:broken", plugins.GROUP),
    ]
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: found if group == plugins.GROUP else [])
    monkeypatch.setattr(plugins, "_loaded", False)
    with pytest.warns(UserWarning, match=r"plugin hers \(a_plugin:broken\) does not load: not today"):
        assert agents()["mine:ppo"] == "of mine"
    assert environments()["Mine/CartPole-v0"] == "of mine"
    config = resolve(RLConfig("Mine/CartPole-v0", agent="mine:ppo", **QUICK))
    assert train(config, tmp_path / "run", quiet=True) == "finished"
    assert make_env("Mine/CartPole-v0").spec.max_episode_steps == 50


def test_names_are_given_once():
    with pytest.raises(ValueError, match="agent 'cet' is registered already"):
        register_agent("cet", "", "here:Mine")
    with pytest.raises(ValueError, match="environment 'CartPole-v1' is registered already"):
        register_env("CartPole-v1", "")


@pytest.mark.parametrize(
    ("task", "name", "options", "message"),
    [
        ("CartPole-v1", "stable_baselines3:SAC", {}, "cannot be made for CartPole-v1"),
        ("Pendulum-v1", "stable_baselines3:DQN", {}, "cannot be made for Pendulum-v1"),
        ("Blackjack-v1", "sb3:a2c", {}, "cannot be made for Blackjack-v1"),
        ("CartPole-v1", "sb3:ppo", {"num_envs": 1, "n_steps": 1}, "cannot be made for CartPole-v1"),
        ("CartPole-v1", "stable_baselines3.common.base_class:BaseAlgorithm", {}, "cannot be made"),
        ("Dict-v0", "sb3:a2c", {}, "cannot be made for Dict-v0: gymnasium.*FlattenObservation makes vectors"),
        ("Dict-v0", "cet", {}, "must be a Box of vectors, .*FlattenObservation makes vectors"),
    ],
)
def test_agents_that_do_not_fit_the_task_are_refused(task, name, options, message, tmp_path):
    register_env("Dict-v0", "", lambda: Toy(observation_space=gym.spaces.Dict(x=Toy.observation_space)))
    config = RLConfig(task, agent=name, **{**QUICK, **options})
    with pytest.raises(ValueError, match=message):
        train(config, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_foreign_agent_may_act_in_several_ways_at_once(tmp_path):
    several = gym.spaces.MultiDiscrete([2, 3])
    register_env("Several-v0", "", lambda: gym.wrappers.TransformAction(Toy(), lambda both: 5 + both[0], several))
    assert train(RLConfig("Several-v0", agent="sb3:a2c", **QUICK), tmp_path / "run", quiet=True) == "finished"


@pytest.mark.parametrize("task", ["CartPole-v1", "MinAtar/Breakout-v1"])
@pytest.mark.parametrize("agent", ["cet", "sb3:a2c"])
def test_every_seed_that_is_accepted_works_to_the_end(task, agent, tmp_path):
    """The seeds of environments side by side and of the evaluation follow from it: MinAtar's have 32 bits."""
    config = RLConfig(task, agent=agent, critic="auto", **{**QUICK, "seed": 2**32 - 1, "total_steps": 64})
    assert train(replace(config, eval_max_steps=20), tmp_path / "run", quiet=True) == "finished"
    checkpoint = tmp_path / "run" / "checkpoint" / "agent.zip"
    assert "episodes" in evaluate_run(config.as_data(), checkpoint, episodes=2, seed=2**32 - 1)
