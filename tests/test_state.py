"""The rule for state (`cet_rl.credit.Synapses`): what is told once, what counts as time, and what does not."""

import contextlib
from copy import deepcopy

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from leave_callback import Leave
from torch import nn
from toy_env import Toy

from cet_rl.agents import CETActorCritic
from cet_rl.envs import make_vec_env
from cet_rl.recurrent import RecurrentConfig
from cet_rl.recurrent.learner import SequenceLearner
from cet_rl.recurrent.training import resolve
from cet_rl.vision.conversion import convert, prepare
from cet_rl.vision.layers import seen_at, traced_layers


class StopError(Exception):
    """Whatever ends a pass in the middle."""


def stop(*_):
    raise StopError


class Stop(torch.autograd.Function):
    """Lets images pass, but not errors."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    backward = stop


class Images:
    """A traced network whose batches are shown in one of four ways."""

    def __init__(self, streaming, salient):
        torch.manual_seed(0)
        layers = (nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 2))
        options = {"error_at": "activation", "streaming": streaming}
        self.model, self.salient = convert(nn.Sequential(*layers).double(), delay=0.6, order=3, **options), salient
        prepare(self.model, (2, 4, 4), salient=salient)
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.01)

    def loss(self, number, x=None):
        generator = torch.Generator().manual_seed(number)
        drawn = torch.randn(6, 2, 4, 4, generator=generator, dtype=torch.float64)
        times = torch.randperm(9, generator=generator)[:6].sort().values
        with seen_at(self.model, times, 9) if self.salient else contextlib.nullcontext():
            return self.model(drawn if x is None else x).square().sum()

    def learn(self, number, scaler=None, factor=1.0):
        self.optimizer.zero_grad()
        loss = self.loss(number) * factor
        if scaler is None:
            loss.backward()
        else:
            scaler.scale(loss).backward()
            scaler.unscale_(self.optimizer)
        return [p.grad for p in self.model.parameters()]

    def disturb(self, event, number):
        """Do what does not count."""
        x = torch.randn(6, 2, 4, 4, dtype=torch.float64)
        if event == "evaluation":
            self.model.eval()
            self.loss(number, x).backward()
            self.model.train()
        elif event == "no gradient":
            with torch.no_grad():
                self.loss(number, x)
        elif event == "forgotten":
            self.loss(number, x)
        elif event == "inputs":
            torch.autograd.grad(self.loss(number, x.requires_grad_()), x)
        elif event in ("raised", "raised backwards"):
            place = self.model[number % len(self.model)]
            instead = stop if event == "raised" else lambda layer, given, y: Stop.apply(y)
            hook = place.register_forward_hook(instead)
            with contextlib.suppress(StopError):
                self.loss(number, x).backward()
            hook.remove()
        elif traced_layers(self.model)["0"].rule.streaming:
            with pytest.raises(FloatingPointError, match=r"the input of layer '0' .* not finite at step"):
                self.loss(number, torch.where(x == x.max(), torch.inf, x))


NOT_TIME = ["evaluation", "no gradient", "forgotten", "inputs", "raised", "raised backwards", "not finite"]
TIME = ["learn", "no step", "scaled", "overflow", "asked for", *("frozen 0", "frozen 3", "frozen 5")]


def assert_equal(found, expected):
    for a, b in zip(found, expected, strict=True):
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("streaming", "salient"), [(True, False), (True, True), (False, True), (False, False)])
@settings(max_examples=20)
@given(events=st.lists(st.sampled_from(NOT_TIME + TIME), min_size=3, max_size=12))
def test_traced_layers(streaming, salient, events):
    """They learn what they learn without all that does not count; a batch that overflows has no error."""
    disturbed, quiet = Images(streaming, salient), Images(streaming, salient)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=1)
    for number, event in enumerate([*events, "learn", "learn"]):
        if event in NOT_TIME:
            disturbed.disturb(event, number)
            continue
        frozen = disturbed.model[int(event[-1])] if event.startswith("frozen") else nn.Identity()
        frozen.requires_grad_(False)
        wanted = quiet.learn(number, factor=0.0 if event == "overflow" and streaming else 1.0)
        if event == "asked for" or (event.startswith("frozen") and number % 2 and not event.endswith("0")):
            # Nobody asks a frozen first layer for anything then.
            asked = [p for p in disturbed.model.parameters() if p.requires_grad]
            given_back = iter(torch.autograd.grad(disturbed.loss(number), asked))
            found = [next(given_back) if p.requires_grad else None for p in disturbed.model.parameters()]
        else:
            used = scaler if event in ("scaled", "overflow") else None
            found = disturbed.learn(number, used, torch.inf if event == "overflow" else 1.0)
        if used_scaler := event in ("scaled", "overflow"):
            scaler.step(disturbed.optimizer) if event == "scaled" else None
            scaler.update() if event == "scaled" else scaler.update(scaler.get_scale() / 2)
        if event == "overflow":
            assert not any(gradient.isfinite().all() for gradient in found)
        else:
            assert_equal(found, wanted)
        if event == "learn":
            disturbed.optimizer.step()
        if event == "learn" or (event == "scaled" and used_scaler):
            quiet.optimizer.step()
        frozen.requires_grad_(True)
    assert_equal(disturbed.model.state_dict().values(), quiet.model.state_dict().values())


class Diary(Toy):
    """Shows (its number, the episode, the step) and fails within a step when told to."""

    action_space = gym.spaces.Discrete(2)

    def __init__(self, number=0):
        super().__init__(3 + number, reward=lambda step, action: step + 100 * action)
        self.number, self.episode, self.fails_in = number, -1, -1

    def reset(self, **options):
        self.episode += 1
        self.cut = self.episode % 2 == 1
        return super().reset(**options)

    def step(self, action):
        self.fails_in -= 1
        if self.fails_in == 0:
            raise KeyboardInterrupt
        return super().step(action)

    @property
    def observation(self):
        return np.array([self.number, self.episode, self.step_number], np.float32)


class Told:
    """Keeps what a learner is told, and tells it a twin that nothing else happens to."""

    def __init__(self, learner):
        self.learner, self.twin, self.rows, self.fails = learner, deepcopy(learner), [], False
        self.accumulate = learner.accumulate
        learner.accumulate = self

    def __call__(self, rollout, **options):
        if self.fails:
            self.fails = False
            raise KeyboardInterrupt  # as in the critic's backward pass
        rollout = deepcopy(rollout)
        self.twin.actor.load_state_dict(self.learner.actor.state_dict())
        self.twin.critic.load_state_dict(self.learner.critic.state_dict())
        self.twin.accumulate(rollout)
        self.rows += zip(rollout.observations, rollout.actions, rollout.rewards, rollout.starts, strict=True)
        return self.accumulate(rollout, **options)

    def check(self):
        """Every step once and in order; a start where an episode begins, or began in what was not told."""
        assert_equal(self.learner.state_dict().values(), self.twin.state_dict().values())
        for env in range(2):
            before = (-1, -1)
            for observations, actions, rewards, starts in self.rows:
                number, *now = observations[env].tolist()
                assert number == env
                assert tuple(now) > before
                assert rewards[env] == now[1] + 1 + 100 * actions[env]
                if now[0] != before[0]:
                    assert starts[env] == 1
                elif now[1] == before[1] + 1:
                    assert starts[env] == 0
                before = tuple(now)


LEFT = ["asked", "error", "Ctrl-C", "in a step", "at the end", "in the update"]


@settings(max_examples=25)
@given(
    events=st.lists(st.sampled_from(["learn", "frozen", "predict", "inputs", *LEFT]), min_size=2, max_size=8),
    data=st.data(),
)
def test_stable_baselines3(events, data):
    env = make_vec_env(Diary, 2)
    diaries = [each.unwrapped for each in env.envs]
    for number, diary in enumerate(diaries):
        Diary.__init__(diary, number)
    options = {
        "delay": 0.4,
        "order": 2,
        "n_steps": 5,
        "policy_kwargs": {"net_arch": [4]},
        "seed": 0,
        "device": "cpu",
    }
    model = CETActorCritic("MlpPolicy", env, **options)
    told = Told(model.learner)
    for event in [*events, "learn"]:
        callback = {
            "asked": Leave(at := data.draw(st.integers(1, 5))),
            "error": Leave(at, StopError()),
            "Ctrl-C": Leave(at, KeyboardInterrupt()),
            "at the end": Leave(at, StopError(), at_end=True),
        }.get(event)
        diaries[at % 2].fails_in = at if event == "in a step" else -1
        told.fails = event == "in the update"
        if event == "predict":
            model.predict(env.observation_space.sample())
        elif event == "inputs":
            x = torch.ones(1, 3, requires_grad=True)
            torch.autograd.grad(model.policy.actor(x).sum() + model.policy.critic(x).sum(), x)
        else:
            model.policy.requires_grad_(event != "frozen")
            with contextlib.suppress(StopError, KeyboardInterrupt):
                model.learn(10, callback, reset_num_timesteps=False)
            model.policy.requires_grad_(True)
    told.check()
    assert told.learner.steps == len(told.rows)


@settings(max_examples=15)
@given(
    events=st.lists(st.sampled_from(["learn", "measure", "test", "raised", "diverged"]), min_size=2, max_size=7)
)
@pytest.mark.parametrize("rule", ["rflo", "uoro"])
def test_recurrent_rules(rule, events):
    """A chunk that raised is taken again: data, noise and memory are those of learning without interruption."""
    options = {"delay": 1.0, "order": 2} if rule == "rflo" else {}
    config = RecurrentConfig("add", rule=rule, units=4, total_steps=400, executor="step", device="cpu", **options)
    disturbed, quiet = (SequenceLearner(resolve(config)) for _ in range(2))
    for event in [*events, "learn"]:
        limit = disturbed.step + 7
        if event in ("learn", "measure"):
            assert torch.equal(disturbed.advance(limit, measure=event == "measure"), quiet.advance(limit))
        elif event == "test":
            disturbed.test(3)
        elif event == "raised":
            step = disturbed.online.rule.step
            disturbed.online.rule.step = Interrupted(step, 4)
            with pytest.raises(KeyboardInterrupt):
                disturbed.advance(limit)
            disturbed.online.rule.step = step
        else:
            disturbed.online.lr = float("inf")
            with pytest.raises(FloatingPointError):
                disturbed.advance(limit)
            disturbed.online.lr = quiet.online.lr
    for name, tensor in quiet.memory.named().items():
        assert torch.equal(disturbed.memory.named()[name], tensor), name
    assert disturbed.state()["stream"]["steps"] == quiet.state()["stream"]["steps"]


class Interrupted:
    """A function that is interrupted in one of its calls."""

    def __init__(self, function, call):
        self.function, self.left = function, call

    def __call__(self, *arguments):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt
        return self.function(*arguments)
