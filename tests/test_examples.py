"""The example in one file computes what the library computes."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from cet_rl import CET, CreditTiming
from cet_rl.agents.distributions import Categorical
from cet_rl.agents.learner import ActorCriticLearner, LearnerConfig, Rollout
from cet_rl.agents.networks import Actor, Critic, split_signs
from cet_rl.traces.registry import TraceConfig

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def _double() -> object:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_example_is_short_and_independent() -> None:
    text = (EXAMPLES / "minimal_cet.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert "cet_rl" not in text


@pytest.mark.parametrize(("order", "delay"), [(2, 1), (5, 40), (10, 400)])
def test_example_has_the_cascade_of_the_library(order: int, delay: int) -> None:
    transition = CET(order, delay, "peak").transition()
    for found, expected in zip(
        load("minimal_cet").cascade(order, delay), (transition.M, transition.K, transition.C), strict=True
    ):
        torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-10, atol=1e-14)


@pytest.mark.usefixtures("_double")
def test_example_and_library_set_the_same_gradients() -> None:
    """Episodes end and are cut off; delays are shorter and longer than a rollout; weights move in between."""
    for delay, order, steps, envs in ((3, 2, 8, 3), (11, 4, 5, 2)):
        torch.manual_seed(delay)
        agent = load("minimal_cet").ActorCritic(3, 2, 7, delay, order, steps, envs)
        learner = ActorCriticLearner(
            Actor((6,), Categorical(2), hidden=(7, 7)),
            Critic((6,), (7, 7)),
            CreditTiming(delay * 0.2),
            LearnerConfig(trace=TraceConfig("cet", order)),
            num_envs=envs,
            rollout=steps,
        ).double()
        ours, theirs = list(agent.parameters()), list(learner.trained_parameters())
        starts = torch.ones(envs)
        for _ in range(6):
            with torch.no_grad():
                for a, b in zip(ours, theirs, strict=True):
                    b.copy_(a.add_(0.1 * torch.randn_like(a)))
            starts = compare(agent, learner, steps, starts)


def compare(agent: nn.Module, learner: ActorCriticLearner, steps: int, starts: Tensor) -> Tensor:
    envs = len(starts)
    observations, following = torch.randn(2, steps, envs, 3)
    ends = torch.randint(0, 8, (steps, envs))
    terminated, truncated = (ends == 0).double(), (ends == 1).double()
    begins = torch.cat([starts[None], (terminated + truncated)])
    goes_on = (begins[1:-1] == 0)[..., None]
    following[:-1] = torch.where(goes_on, observations[1:], following[:-1])
    actions, rewards = torch.randint(0, 2, (steps, envs)), torch.randn(steps, envs)
    agent.set_gradients(observations, actions, rewards, begins[:-1], terminated, following)
    learner.accumulate(
        Rollout(
            observations=split_signs(observations),
            actions=actions,
            rewards=rewards,
            starts=begins[:-1],
            terminated=terminated,
            truncated=truncated,
            last_observations=split_signs(following[-1]),
            final_observations=split_signs(following[truncated.bool()]),
        )
    )
    for a, b in zip(agent.parameters(), learner.trained_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-8, atol=1e-12)
    return begins[-1]
