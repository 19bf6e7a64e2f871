"""The contract with Stable-Baselines3: what works on our agent as on its A2C, what differs and what is refused.

    python tests/test_sb3_contract.py     write the tables of docs/agents.md

A row is one use of an agent. It runs on both agents, and has to come out as its verdict says.
"""

import contextlib
import copy
import io
import pickle
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import weights
from gymnasium import spaces
from gymnasium import wrappers as gw
from stable_baselines3 import A2C
from stable_baselines3.common import callbacks as cb
from stable_baselines3.common import vec_env as ve
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.utils import LinearSchedule
from toy_env import Toy

from cet_rl.agents import CETActorCritic

PAGE = Path(__file__).parents[1] / "docs" / "agents.md"
BEGIN, END = "<!-- written by python tests/test_sb3_contract.py -->\n\n", "\n<!-- end of the contract -->\n"
VECTORS, IMAGES = spaces.Box(-1, 1, (3,)), spaces.Box(0, 255, (16, 16, 3), np.uint8)


@dataclass
class Kind:
    """Makes one of the two agents, small and seeded, in a folder of its own."""

    agent: Any
    path: Path

    def __call__(self, env="CartPole-v1", policy="MlpPolicy", **options):
        late = {"delay": 0.4, "order": 2} if self.agent is CETActorCritic else {}
        networks = dict(options.pop("policy_kwargs", {"net_arch": [8]}))  # which A2C changes
        given = {"n_steps": 8, "seed": 0, "device": "cpu", **late, **options}
        return self.agent(policy, env, policy_kwargs=networks, **given)

    def saved(self, **options):
        """Save an agent that has learned, and return it."""
        model = self(**options).learn(24)
        model.save(self.path / "agent")
        return model

    def load(self, name="agent", **options):
        return self.agent.load(self.path / name, device="cpu", **options)


@dataclass
class Row:
    group: str
    subject: str
    use: Callable[[Kind], Any]
    refused: bool = False
    differs: str = ""
    found: tuple[Any, Any] = (None, None)
    """Where it differs, what comes out on A2C and on ours."""

    @property
    def message(self):
        """How ours refuses it."""
        with tempfile.TemporaryDirectory() as folder:
            try:
                self.use(Kind(CETActorCritic, Path(folder)))
            except (ValueError, TypeError, AttributeError) as error:
                return str(error)
        raise AssertionError(f"{self.subject} is not refused")


GROUPS: list[str] = []
ROWS: list[Row] = []


def begin(group):
    """Begin a group of rows."""
    GROUPS.append(group)


def row(subject, use=None, **verdict):
    """Add a row. What its use returns is true, and the same on both, unless the verdict says otherwise."""
    if use is None:
        return lambda use: row(subject, use, **verdict)
    ROWS.append(Row(GROUPS[-1], subject, use, **verdict))
    return use


def refused(subject, use):
    row(subject, use, refused=True)


def learned(make, then=(), **options):
    """Return the weights after five updates; `then` are attributes that are set before."""
    model = make(**options)
    for name, value in dict(then).items():
        setattr(model, name, value)
    return weights(model.learn(40))


def made(**options):
    return lambda make: make(**options)


def matters(**options):
    return lambda make: not torch.equal(learned(make), learned(make, **options))


def setting(**values):
    return lambda make: learned(make, values)


def error_of(use, *args, **options):
    try:
        use(*args, **options)
    except Exception as error:
        return type(error).__name__
    return "works"


def toy(length=10, **given):
    return Toy(length, reward=lambda step, action: 1.0, action_space=spaces.Discrete(2), **given)


def toys(number=1):
    return ve.VecMonitor(ve.DummyVecEnv([toy] * number))


class Sampled(gym.Env):
    """Shows what its space holds; every step earns one."""

    def __init__(self, observations, actions=None, length=5):
        self.observation_space, self.action_space = observations, actions or spaces.Discrete(2)
        self.length = length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.steps += 1
        return self.observation_space.sample(), 1.0, self.steps == self.length, False, {}


def episodes(env, make):
    """Return lengths and returns of the episodes of a short run; the agent can act in the environment, too."""
    model = make(env).learn(32)
    assert len(model.predict(model.env.reset())[0]) == model.n_envs
    model.env.close()
    return [(episode["l"], round(float(episode["r"]), 3)) for episode in model.ep_info_buffer]


def within(observations, actions=None):
    return lambda make: episodes(Sampled(observations, actions), make)


begin("Constructor")

for options in (
    *({"learning_rate": 1e-2}, {"n_steps": 4}, {"gamma": 0.5}, {"gae_lambda": 0.5}, {"ent_coef": 0.5}),
    *({"vf_coef": 0.1}, {"max_grad_norm": 0.01}, {"seed": 1}),
):
    row(f"`{next(iter(options))}`", matters(**options))


@row(
    "`env` as an environment, an id, a `VecEnv`; `learning_rate` as a straight line; `verbose`, "
    "`stats_window_size`, `device`, `tensorboard_log` with `tb_log_name` of `learn`",
)
def usual(make):
    rates = LinearSchedule(1e-3, 1e-4, 0.5), lambda progress: 1e-3 * (1 + progress)
    found = [make(learning_rate=rate).learn(24).policy.optimizer.param_groups[0]["lr"] for rate in rates]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        options = {"stats_window_size": 3, "device": torch.device("cpu"), "tensorboard_log": str(make.path)}
        models = [make(env, verbose=1, **options) for env in (toy(), "CartPole-v1", toys(3))]
        for reset in (True, True, False):
            models[0].learn(8, tb_log_name="name", reset_num_timesteps=reset)
    folders, buffer = sorted(path.name for path in make.path.iterdir()), models[0].ep_info_buffer
    return found, printed.getvalue().splitlines()[:3], [model.n_envs for model in models], folders, buffer.maxlen


row(
    "defaults",
    lambda make: [signature(make.agent).parameters[name].default for name in ("n_steps", "device", "seed")],
    differs="128 steps an update, a rate that falls from 5e-4 to zero, λ .95, `ent_coef` .01, `vf_coef` .25, Adam",
    found=([5, "auto", None], [128, "auto", None]),
)
row(
    "arguments without a name",
    lambda make: list(signature(make.agent).parameters)[2:4],
    differs="after `policy` and `env` come `delay`, `order` and `trace`; all others need their names",
    found=(["learning_rate", "n_steps"], ["delay", "order"]),
)
row(
    "`use_rms_prop`",
    lambda make: [type(make(**given).policy.optimizer).__name__ for given in ({}, {"use_rms_prop": False})],
    differs="the optimiser is Adam, and False may be given",
    found=(["RMSprop", "Adam"], ["Adam", "Adam"]),
)
for options in (
    *({"normalize_advantage": True}, {"rms_prop_eps": 1e-3}, {"use_sde": True, "env": "Pendulum-v1"}),
    *({"rollout_buffer_class": RolloutBuffer}, {"learning_rate": lambda progress: 1e-3 * progress**2}),
    *({"policy": "CnnPolicy", "env": Sampled(spaces.Box(0, 255, (3, 40, 40), np.uint8)), "policy_kwargs": {}},),
    {"policy": "MultiInputPolicy", "env": Sampled(spaces.Dict(x=VECTORS))},
):
    name, value = next(iter(options.items()))
    refused(f"`{name}={value!r}`" if name == "policy" else f"`{name}`", made(**options))

begin("`policy_kwargs`")


def widths(**networks):
    """Return the widths of all layers but the first and the last."""
    return lambda make: {p.shape[0] for p in make(policy_kwargs=networks).learn(8).policy.parameters()} - {1, 2, 4}


row("`net_arch=[12, 7]`", widths(net_arch=[12, 7]))
row("`net_arch=dict(pi=[9], vf=[9])`", widths(net_arch={"pi": [9], "vf": [9]}))
row("`activation_fn=nn.ReLU`", widths(activation_fn=torch.nn.ReLU, net_arch=[12]))


@row("`log_std_init`")
def spread(make):
    policy = make("Pendulum-v1", policy_kwargs={"log_std_init": -1.0}).policy
    return policy.get_distribution(torch.zeros(2, 3)).entropy().tolist()


for options in (
    *({"net_arch": {"pi": [8], "vf": [4]}}, {"activation_fn": torch.nn.Tanh}, {"activation_fn": torch.nn.ELU}),
    *({"optimizer_class": torch.optim.SGD}, {"features_extractor_class": FlattenExtractor}, {"ortho_init": False}),
):
    ((name, value),) = options.items()
    refused(f"`{name}={getattr(value, '__name__', value)}`", made(policy_kwargs=options))


begin("Policy")


@row("`forward`, `evaluate_actions`, `predict_values`: shapes")
def shapes(make):
    found = []
    for policy in (make("CartPole-v1").policy, make("Pendulum-v1").policy):
        observations = torch.zeros(3, *policy.observation_space.shape)
        found += [*policy(observations), *policy.evaluate_actions(observations, policy(observations)[0])]
        found.append(policy.predict_values(observations))
    return [tensor.shape for tensor in found]


@row("`save`, `load`, `load_state_dict`, `pickle`, `deepcopy`")
def copies(make):
    model, observations = make(), np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    model.policy.save(str(make.path / "policy"))
    read, other = type(model.policy).load(str(make.path / "policy")), make(seed=1).policy
    other.load_state_dict(model.policy.state_dict())
    pickled = pickle.loads(pickle.dumps(model.policy))
    everyone = model.policy, read, other, pickled, copy.deepcopy(model.policy), copy.deepcopy(model).policy
    actions = [policy.predict(observations, deterministic=True)[0].tolist() for policy in everyone]
    return actions == actions[:1] * 6


row(
    "names of its networks",
    lambda make: {name.split(".")[0] for name, _ in make().policy.named_parameters()},
    differs="`actor` and `critic`; there are no `mlp_extractor`, `action_net` and `value_net`",
    found=({"mlp_extractor", "action_net", "value_net"}, {"actor", "critic"}),
)

begin("Attributes")

for given in ({"ent_coef": 0.5}, {"vf_coef": 0.1}, {"max_grad_norm": 0.01}):

    @row(f"`{next(iter(given))}` set")
    def takes_effect(make, given=given):
        changed = learned(make, given)
        return torch.equal(changed, learned(make, **given)) and not torch.equal(changed, learned(make))


@row("`learning_rate` set: after `_setup_lr_schedule()`, or once loaded; `lr_schedule` set: at once")
def rates(make):
    def rate(model):
        return round(model.learn(8).policy.optimizer.param_groups[0]["lr"], 6)

    model = make(toy(), learning_rate=1e-3)
    model.learning_rate = 1e-2
    model.save(make.path / "agent")
    found = [rate(model), rate(make.load(env=toy()))]
    model._setup_lr_schedule()
    found.append(rate(model))
    model.lr_schedule = lambda progress: 0.1
    return [*found, rate(model)]


@row("`num_timesteps`, `n_envs`, `env`, `ep_info_buffer`, spaces, `policy.optimizer` and others, read")
def read(make):
    model = make(toy()).learn(24)
    names = "num_timesteps n_envs n_steps verbose seed tensorboard_log _n_updates observation_space action_space"
    shown = [getattr(model, name) for name in names.split()]
    return shown, len(model.ep_info_buffer), model.get_env() is model.env, len(model.policy.optimizer.param_groups)


row(
    "`n_steps` set",
    lambda make: [error_of(learned, make, {"n_steps": steps}) for steps in (4, 16)],
    differs="the next rollout is as long; A2C fails",
    found=(["AssertionError", "IndexError"], ["works", "works"]),
)
for name, value in {"gamma": 0.9, "gae_lambda": 0.9, "normalize_advantage": True}.items():
    refused(f"`{name}` set", setting(**{name: value}))
refused("`rollout_buffer` set", lambda make: setattr(make(), "rollout_buffer", "one's own"))
refused("`policy` set", lambda make: learned(make, {"policy": make().policy}))

begin("`learn`")


def stop(at):
    return lambda found, _: found["self"].num_timesteps != at


@row(
    "`reset_num_timesteps`; totals that are no whole rollouts, `20.0`; `log_interval=None`, `progress_bar`; a "
    "callback, a list of them, a function, one of which returns False; the same seed, the same numbers",
)
def learns(make):
    model, found = make(), []
    for total, reset in ((20, True), (20, False), (20.0, True), (4, False)):
        assert model.learn(total, reset_num_timesteps=reset) is model
        found.append((model.num_timesteps, model._n_updates))
    callbacks = stop(12), cb.ConvertCallback(stop(12)), [cb.ConvertCallback(stop(at)) for at in (99, 12)], None
    found += [make().learn(16, each, None, "name", True, True).num_timesteps for each in callbacks]
    return found, torch.equal(learned(make), learned(make))


@row(
    "again, after a callback has stopped a rollout",
    differs="begins with the present observation, and traces know the steps before; A2C begins with an older one",
    found=(False, True),
)
def stopped(make):
    model = make(toy()).learn(100, callback=stop(13))
    return np.array_equal(model._last_obs[0], model.env.envs[0].unwrapped.observation)


@row(
    "what is logged",
    differs="`train/gradient_norm` and each layer's `credit/alignment`, no `train/policy_loss`",
    found=({"train/policy_loss"}, {"train/gradient_norm", "credit/alignment/0", "credit/alignment/1"}),
)
def logged(make):
    model, names = make(), set()
    model.set_logger(configure(None, []))
    model.learn(24, lambda found, _: names.update(found["self"].logger.name_to_value) or True, log_interval=1)
    usual = {"n_updates", "learning_rate", "entropy_loss", "value_loss", "explained_variance"}
    assert names >= {f"train/{name}" for name in usual}
    return {name for name in names if name[:6] in ("train/", "credit") and name[6:] not in usual}


refused("a run shorter than the delay", lambda make: make().learn(1))

begin("`predict`")


@row(
    "one observation or several, `deterministic`, `state`, `episode_start`; shape and type of actions; images "
    "with the channels last or first; errors for `(obs, info)` and wrong shapes",
)
def predicted(make):
    found, given = [], {"state": (np.ones(2),), "episode_start": np.ones(1), "deterministic": True}
    for model, n in ((make("CartPole-v1"), 4), (make("Pendulum-v1"), 3)):
        for shape in ((n,), (1, n), (3, n)):
            (first, state), (again, _) = (model.predict(np.zeros(shape, np.float32), **given) for _ in range(2))
            assert state is given["state"]
            assert np.array_equal(first, again)
            found.append((np.shape(first), np.asarray(first).dtype))
        found += [error_of(model.predict, wrong) for wrong in ((np.zeros(n), {}), np.zeros(5), np.zeros((2, 5)))]
    model = make(Sampled(IMAGES))
    shapes = ((16, 16, 3), (2, 16, 16, 3), (2, 3, 16, 16))
    return found, [model.predict(np.zeros(shape, np.uint8))[0].shape for shape in shapes]


begin("`save`, `load`")


@row(
    "a path with or without `.zip`, a `Path`, a file object; without `env` to predict, with one, also of "
    "another number, or `set_env` to learn on",
)
def files(make):
    model, stream, found = make(toy()).learn(24), io.BytesIO(), []
    for file in (str(make.path / "a"), make.path / "agent.zip", stream):
        model.save(file)
        stream.seek(0)
        late = make.agent.load(file, device="cpu")
        actions = [each.predict(np.eye(3, dtype=np.float32), deterministic=True)[0] for each in (model, late)]
        found.append((np.array_equal(*actions), late.env, late.num_timesteps))
    late.set_env(toy())
    loaded = make.load(env=toys(1)), make.load(env=toys(2)), late
    found += [(each.learn(16, reset_num_timesteps=False).num_timesteps, each.n_envs) for each in loaded]
    return found, sorted(path.name for path in make.path.iterdir())


for given in ({"learning_rate": 1e-2}, {"n_steps": 4}, {"ent_coef": 0.5}, {"vf_coef": 0.1}, {"seed": 5}):

    @row(f"`{next(iter(given))}=`")
    def changed(make, given=given):
        make.saved(learning_rate=1e-3, env=toy())
        found = []
        for options in ({}, given):
            torch.manual_seed(1)
            found.append(weights(make.load(env=toy(), **options).learn(32)))
        return not torch.equal(*found)


@row(
    "attributes that were set; `verbose=`, `tensorboard_log=`, `print_system_info=True`, numbers in "
    "`custom_objects=`",
)
def kept(make):
    model, names = make(learning_rate=1e-3), ("ent_coef", "vf_coef", "max_grad_norm", "learning_rate")
    for number, name in enumerate(names, start=1):
        setattr(model, name, number / 10)
    model.save(make.path / "agent")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        options = {"custom_objects": {"learning_rate": 0.7}, "verbose": 1, "tensorboard_log": "here"}
        other = make.load(print_system_info=True, **options)
    found = [getattr(make.load(), name) for name in names], other.lr_schedule(1.0), other.verbose
    return found, other.tensorboard_log, "Stable-Baselines3" in printed.getvalue()


@row("`set_parameters` of a `dict` or a file, `exact_match`, unknown names")
def parameters(make):
    source, target = make.saved(), make(seed=1)
    for given in (source.get_parameters(), make.path / "agent", str(make.path / "agent.zip")):
        target.policy.load_state_dict(make(seed=1).policy.state_dict())
        target.set_parameters(given)
        assert torch.equal(weights(source), weights(target))
    part = {"policy": make(seed=2).policy.state_dict()}
    target.set_parameters(part, exact_match=False)
    assert not torch.equal(weights(source), weights(target))
    return [error_of(target.set_parameters, wrong) for wrong in (part, {"foo": 1}, {"policy": {"x": 1}})]


row(
    "`get_parameters`: names",
    lambda make: set(make().get_parameters()),
    differs="besides A2C's, `synapses` and `probes`: what traces and delay lines remember",
    found=({"policy", "policy.optimizer"}, {"policy", "policy.optimizer", "probes", "synapses"}),
)
row(
    "the file",
    lambda make: make.saved() and zipfile.ZipFile(make.path / "agent.zip").namelist()[0],
    differs="JSON and tensors: nothing is pickled, loading runs nothing; `is_success` is counted anew",
    found=("data", "agent.json"),
)
refused("`save(exclude=…)`", lambda make: make().save(make.path / "agent", exclude=["env"]))
for given in ({"gamma": 0.5}, {"force_reset": False}, {"custom_objects": {"lr_schedule": lambda progress: 0.1}}):
    subject = f"`load({next(iter(given))}=…)`" + ", of `lr_schedule`" * ("objects" in str(given))
    refused(subject, lambda make, given=given: make.saved() and make.load(**given))

begin("Other methods")


@row("`set_env`, and what it refuses")
def other_environments(make):
    model = make(toy()).learn(8)
    model.set_env(toy())
    after = model.learn(8, reset_num_timesteps=False).num_timesteps
    wrong = gym.make("Acrobot-v1"), toys(2)
    return after, [error_of(model.set_env, env) for env in wrong], model.learn(8)._n_updates


@row("`set_random_seed` repeats learning, and what `predict` draws")
def repeated(make):
    found = []
    for seed in (4, 4, 5):
        model = make(seed=None)
        model.policy.load_state_dict(make().policy.state_dict())
        model.set_random_seed(seed)
        found.append((weights(model.learn(24)).tolist(), model.predict(np.zeros((50, 4), np.float32))[0].tolist()))
    return found[0] == found[1] and found[0][0] != found[2][0] and found[0][1] != found[2][1]


@row("`set_logger`, `get_vec_normalize_env`, `evaluate_policy`")
def others(make):
    model, env, seen = make(toy()), ve.VecNormalize(toys()), []
    model.set_logger(configure(str(make.path), ["csv"]))
    model.learn(24, log_interval=1)
    make.saved(env=env)
    found = [each.get_vec_normalize_env() is env for each in (make(env), make.load(env=env), model, make.load())]
    options = {"deterministic": False, "callback": lambda found, _: seen.append(found["reward"])}
    found.append(evaluate_policy(model, toys(2), 4, return_episode_rewards=True, **options))
    return found, len(seen), (make.path / "progress.csv").is_file()


begin("Callbacks")


class Watch(cb.BaseCallback):
    """Notes what is called when, and what `self.locals` holds."""

    def __init__(self):
        super().__init__()
        self.calls, self.steps, self.rare = [], [], set()
        for event in ("training_start", "rollout_start", "rollout_end", "training_end"):
            setattr(self, f"_on_{event}", lambda event=event: self.calls.append((event, self.num_timesteps)))

    def _on_step(self):
        training = self.training_env is self.model.env
        self.calls.append((self.n_calls, self.num_timesteps, training, self.logger.level))
        arrays = [self.locals[name] for name in ("actions", "clipped_actions", "new_obs", "rewards", "dones")]
        plain = [self.locals[name] for name in ("n_steps", "n_rollout_steps", "total_timesteps")]
        same = {"self": self.model, "env": self.training_env, "callback": self}
        own = [self.locals[name] is value for name, value in same.items()]
        forms = [(array.shape, array.dtype) for array in arrays]
        self.steps.append((forms, plain, own, list(self.locals["infos"][0])))
        self.rare = {"values", "log_probs", "obs_tensor"} & self.locals.keys()
        return True


@row(
    "a `BaseCallback`: when it is called, `n_calls`, `num_timesteps`, `training_env`, `logger`; of `self.locals` "
    "`self`, `env`, `callback`, `infos`, `actions`, `clipped_actions`, `new_obs`, `rewards`, `dones`, `n_steps`, "
    "`n_rollout_steps`, `total_timesteps`",
)
def called(make):
    watches = Watch(), Watch()
    make(toy()).learn(16, callback=watches[0])
    make("Pendulum-v1").learn(16, callback=watches[1])
    return [(watch.calls, watch.steps) for watch in watches]


@row(
    "of `self.locals` `values`, `log_probs`, `obs_tensor`, `rollout_buffer`",
    differs="not there while acting, when only the actor runs: `self.model.policy(observations)` gives them",
    found=(({"values", "log_probs", "obs_tensor"}, True), (set(), False)),
)
def rare(make):
    watch = Watch()
    make().learn(8, callback=watch)
    return watch.rare, watch.locals["rollout_buffer"] is not None


@row("`EvalCallback`: `best_model_save_path`, `log_path`, the statistics of `VecNormalize`")
def evaluates(make):
    env, other = ve.VecNormalize(toys()), ve.VecNormalize(toys())
    options = {"eval_freq": 16, "n_eval_episodes": 2, "verbose": 0}
    paths = {"best_model_save_path": str(make.path), "log_path": str(make.path)}
    make(env).learn(40, callback=cb.EvalCallback(other, **options, **paths))
    results = np.load(make.path / "evaluations.npz")
    lengths = [results[name].tolist() for name in ("timesteps", "ep_lengths")]
    return lengths, make.load("best_model").num_timesteps, np.round(other.obs_rms.count)


@row("`CheckpointCallback`, with `save_vecnormalize`")
def checkpoints(make):
    callback = cb.CheckpointCallback(8, str(make.path), "cet", save_replay_buffer=True, save_vecnormalize=True)
    make(ve.VecNormalize(toys())).learn(16, callback=callback)
    return sorted(path.name for path in make.path.iterdir()), make.load("cet_8_steps").num_timesteps


@row(
    "`StopTrainingOnRewardThreshold`, `…OnNoModelImprovement`, `…OnMaxEpisodes`, `EveryNTimesteps`, "
    "`LogEveryNTimesteps`, `CallbackList`",
)
def halted(make):
    better, stuck = cb.StopTrainingOnRewardThreshold(9.0), cb.StopTrainingOnNoModelImprovement(2, min_evals=3)
    options, watch = {"eval_freq": 5, "n_eval_episodes": 1, "verbose": 0}, Watch()
    several = cb.EveryNTimesteps(6, watch), cb.LogEveryNTimesteps(10), cb.StopTrainingOnMaxEpisodes(3)
    stopping = [
        cb.EvalCallback(toys(), callback_on_new_best=better, **options),
        cb.EvalCallback(toys(), callback_after_eval=stuck, **options),
        cb.CallbackList(list(several)),
    ]
    return [make(toy()).learn(100, callback=each).num_timesteps for each in stopping], len(watch.calls)


begin("Wrappers")


@row("`TimeLimit`: the state after a time limit has a value, that after an end has none")
def bootstrapped(make):
    """With γ = 1/2 and a reward of one a state is worth two where time goes on, and one where it ends."""
    found, constant = [], spaces.Box(1, 1, (3,))
    for env in (gw.TimeLimit(Sampled(constant), 1), Sampled(constant, length=1)):
        model = make(env, gamma=0.5, learning_rate=1e-2, n_steps=2).learn(200)
        found.append(model.policy.predict_values(torch.ones(1, 3)).item())
    return np.allclose(found, [2, 1], atol=0.2)


for name, env in {
    "`TransformReward`, `ClipReward`": lambda: gw.ClipReward(gw.TransformReward(toy(), lambda r: 3 * r), -2, 2),
    "`NormalizeObservation`": lambda: gw.NormalizeObservation(toy()),
    "`NormalizeReward`": lambda: gw.NormalizeReward(toy()),
    "`TimeAwareObservation`": lambda: gw.TimeAwareObservation(gw.TimeLimit(toy(), 4)),
    "`FlattenObservation` of what is no `Box`": lambda: gw.FlattenObservation(
        Sampled(spaces.Dict(x=VECTORS, y=spaces.MultiDiscrete([2, 3]), z=spaces.Discrete(3)))
    ),
    "`FrameStackObservation`, flattened": lambda: gw.FlattenObservation(gw.FrameStackObservation(toy(), 3)),
    "`RescaleAction`": lambda: gw.RescaleAction(Sampled(VECTORS, spaces.Box(-5, 5, (2,))), -1, 1),
    "`RecordEpisodeStatistics`": lambda: gw.RecordEpisodeStatistics(toy()),
    "`VecNormalize`": lambda: ve.VecNormalize(toys(2)),
    "`VecFrameStack`": lambda: ve.VecFrameStack(ve.VecNormalize(toys(2)), 3),
    "`VecMonitor`": lambda: toys(2),
    "`VecCheckNan`": lambda: ve.VecCheckNan(toys(), raise_exception=True),
    "`VecTransposeImage`": lambda: ve.VecTransposeImage(ve.VecMonitor(ve.DummyVecEnv([lambda: Sampled(IMAGES)]))),
    "`VecExtractDictObs`": lambda: ve.VecMonitor(
        ve.VecExtractDictObs(ve.DummyVecEnv([lambda: Sampled(spaces.Dict(x=VECTORS, y=VECTORS))]), "x")
    ),
    "`SubprocVecEnv`": lambda: ve.VecMonitor(ve.SubprocVecEnv([toy] * 2, start_method="fork")),
}.items():
    row(name, lambda make, env=env: episodes(env(), make))

begin("Spaces")

for name, given in {
    "vectors of `int64`": (spaces.Box(0, 9, (3,), np.int64),),
    "vectors of `float64`": (spaces.Box(-1, 1, (3,), np.float64),),
    "images, channels first or last": (IMAGES,),
    "actions in a `Box` with bounds": (VECTORS, spaces.Box(np.float32([-1, 0]), np.float32([0, 5]))),
    "actions in a `Box` of `float64`": (VECTORS, spaces.Box(-1, 1, (2,), np.float64)),
    "`Discrete` actions": (VECTORS, spaces.Discrete(3)),
}.items():
    row(name, within(*given))
row(
    "actions in `Discrete(n, start=…)`",
    lambda make: error_of(within(VECTORS, spaces.Discrete(2, start=3)), make),
    differs="the environment gets its own numbers; A2C counts from zero",
    found=("AssertionError", "works"),
)
for name, given in {
    "`Discrete` observations": (spaces.Discrete(3),),
    "`MultiDiscrete` observations": (spaces.MultiDiscrete([2, 3]),),
    "`MultiBinary` observations": (spaces.MultiBinary(3),),
    "matrices observed": (spaces.Box(0, 1, (3, 3)),),
    "real maps, channels last": (spaces.Box(0, 1, (16, 16, 3)),),
    "`MultiDiscrete` actions": (VECTORS, spaces.MultiDiscrete([2, 3])),
    "`MultiBinary` actions": (VECTORS, spaces.MultiBinary(2)),
    "matrices as actions": (VECTORS, spaces.Box(-1, 1, (2, 2))),
}.items():
    refused(name, within(*given))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.group}-{row.subject}".replace("`", ""))
def test_a_row(row, tmp_path, elsewhere):
    found = []
    for agent in (A2C, CETActorCritic):
        (tmp_path / agent.__name__).mkdir()
        if row.refused and found:
            break
        found.append(row.use(Kind(agent, tmp_path / agent.__name__)))
    if row.refused:
        assert 20 < len(row.message.splitlines()[0]) == len(row.message)
    elif row.differs:
        assert tuple(found) == row.found
        assert found[0] != found[1]
    else:
        assert found[0] == found[1]
        assert found[0]


def tables():
    """Return the contract as Markdown."""
    lines = ["| | works as on A2C |", "|---|---|"]
    for group in dict.fromkeys(row.group for row in ROWS):
        subjects = [row.subject for row in ROWS if row.group == group and not (row.differs or row.refused)]
        lines += [f"| {group} | {'; '.join(subjects)} |"] if subjects else []
    lines += ["", "| | | differs: here |", "|---|---|---|"]
    lines += [f"| {row.group} | {row.subject} | {row.differs} |" for row in ROWS if row.differs]
    lines += ["", "| | | is refused |", "|---|---|---|"]
    lines += [f"| {row.group} | {row.subject} | `{row.message}` |" for row in ROWS if row.refused]
    return "\n".join(lines) + "\n"


def test_the_page_shows_the_contract():
    assert PAGE.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0] == tables()


if __name__ == "__main__":
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    PAGE.write_text(before + BEGIN + tables() + END + rest.split(END)[1], encoding="utf-8")
