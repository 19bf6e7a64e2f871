"""The actor's other shapes: continuous actions, convolutions, and routes of credit without weight transport."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Normal

from cet_rl.agents.config import LearnerConfig
from cet_rl.agents.distributions import Categorical, DiagonalGaussian
from cet_rl.agents.learner import ActorCriticLearner, Rollout
from cet_rl.agents.networks import CHANNELS, Actor, Critic
from cet_rl.credit import Synapses
from cet_rl.rl.config import CONVOLUTIONS
from cet_rl.traces.registry import TraceConfig
from cet_rl.traces.timing import CreditTiming

STEPS, ENVS, ACTIONS = 12, 2, 3
MAPS = (2, 4, 5)


def rollout(n_in, head, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    done = torch.rand(STEPS, ENVS, generator=generator) < 0.2
    starts = torch.ones(STEPS, ENVS, dtype=torch.float64)
    starts[1:] = done[:-1].double()
    if head.action_shape:
        actions = normal(STEPS, ENVS, *head.action_shape)
    else:
        actions = torch.randint(head.num_outputs, (STEPS, ENVS), generator=generator)
    return Rollout(
        observations=normal(STEPS, ENVS, n_in),
        actions=actions,
        rewards=normal(STEPS, ENVS),
        starts=starts,
        terminated=done.double(),
        truncated=torch.zeros(STEPS, ENVS, dtype=torch.float64),
        last_observations=normal(ENVS, n_in),
        final_observations=normal(0, n_in),
    )


def learner(head, shape=(4,), delay=0.0, channels=(), feedback="backprop", hidden=(6, 5), critic=None, **options):
    torch.manual_seed(1)
    actor = Actor(shape, head, hidden, feedback=feedback, channels=channels)
    options.setdefault("max_grad_norm", 1e9)
    return ActorCriticLearner(
        actor,
        critic or Critic(shape, (7,)),
        CreditTiming(delay, layers=len(actor.weights)),
        LearnerConfig(**options),
        num_envs=ENVS,
        rollout=STEPS,
    ).double()


def advantages(net, data, gamma=0.99, lam=0.95):
    """λ-return less the value, by the recursion."""
    values, last = (
        net.critic(data.observations.flatten(0, 1)).view(STEPS, ENVS),
        net.critic(data.last_observations),
    )
    running, result = torch.zeros(ENVS, dtype=torch.float64), []
    for t in reversed(range(STEPS)):
        following = values[t + 1] if t + 1 < STEPS else last
        goes_on = 1 - data.terminated[t]
        running = data.rewards[t] + gamma * goes_on * following - values[t] + gamma * lam * goes_on * running
        result.append(running.detach())
    return torch.stack(result[::-1])


def loss(net, data):
    output, head = net.actor(data.observations), net.actor.head
    if isinstance(head, DiagonalGaussian):
        policy = Normal(output, head.log_std.squeeze(1).exp().expand_as(output))
        log_probability, entropy = policy.log_prob(data.actions).sum(-1), policy.entropy().sum(-1)
    else:
        policy = TorchCategorical(logits=output)
        log_probability, entropy = policy.log_prob(data.actions), policy.entropy()
    return -(log_probability * advantages(net, data)).mean() - 0.01 * entropy.mean()


CASES = {
    "gaussian": lambda: learner(DiagonalGaussian(ACTIONS, -0.3)),
    "convolutions": lambda: learner(Categorical(ACTIONS), MAPS, channels=(3, 2)),
    "convolutions, gaussian": lambda: learner(DiagonalGaussian(ACTIONS), MAPS, channels=(3,), hidden=()),
    "flattened maps, convolutional critic": lambda: learner(
        Categorical(ACTIONS), MAPS, critic=Critic(MAPS, (5,), (3,))
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_without_delay_it_is_the_gradient_of_the_lambda_return_loss(case):
    net = CASES[case]()
    data = rollout(net.actor.layers[0].n_pre, net.actor.head)
    expected = torch.autograd.grad(loss(net, data), net.actor.synaptic_weights)
    net.accumulate(data)
    for weight, gradient in zip(net.actor.synaptic_weights, expected, strict=True):
        torch.testing.assert_close(weight.grad, gradient, rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_perfect_memory_is_aligned_with_the_true_gradient(case):
    net = CASES[case]()
    late = ActorCriticLearner(
        net.actor,
        net.critic,
        CreditTiming(0.6, layers=len(net.actor.weights)),
        replace(net.config, trace=TraceConfig("perfect"), entropy_coef=0.0),
        num_envs=ENVS,
        rollout=STEPS,
    ).double()
    for seed in range(3):
        found = late.accumulate(rollout(net.actor.layers[0].n_pre, net.actor.head, seed), statistics=True)
    names = [*map(str, range(len(net.actor.weights))), *net.actor.head.own_weights]
    assert list(late.names) == names
    for name in names:
        assert found[f"credit/alignment/{name}"] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("head", [Categorical(4), DiagonalGaussian(4, -0.5)], ids=lambda head: type(head).__name__)
def test_derivatives_of_a_distribution_are_autograds(head):
    head = head.double()
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(6, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    own = list(head.own_weights.values())
    if own:
        policy = Normal(outputs, own[0].squeeze(1).exp().expand_as(outputs))
        actions = torch.randn(6, 4, generator=generator, dtype=torch.float64)
        log_probability, entropy = policy.log_prob(actions).sum(-1), policy.entropy().sum(-1)
    else:
        policy = TorchCategorical(logits=outputs)
        actions = torch.randint(4, (6,), generator=generator)
        log_probability, entropy = policy.log_prob(actions), policy.entropy()
    each, entropy_gradients = head.entropy(outputs.detach())
    torch.testing.assert_close(each, entropy)
    for value, found in ((log_probability, head.scores(outputs.detach(), actions)), (entropy, entropy_gradients)):
        wanted = torch.autograd.grad(value.sum(), [outputs, *own], retain_graph=True, allow_unused=True)
        totals = [found[0], *(gradient.sum(0)[:, None] for gradient in found[1:])]
        for expected, total in zip(wanted, totals, strict=True):
            torch.testing.assert_close(total, torch.zeros_like(total) if expected is None else expected)


def test_samples_follow_the_distribution():
    generator = torch.Generator().manual_seed(0)
    outputs = torch.tensor([[0.5, -1.0, 0.2]])
    categorical = Categorical(3)
    noise = categorical.noise((40_000, 1), generator)
    actions = torch.from_numpy(categorical.sample(outputs.numpy(), noise).ravel())
    share = torch.bincount(actions, minlength=3) / len(actions)
    torch.testing.assert_close(share, torch.softmax(outputs[0], 0), atol=0.01, rtol=0)

    gaussian = DiagonalGaussian(3, -0.7)
    drawn = torch.from_numpy(gaussian.sample(outputs.numpy(), gaussian.noise((40_000, 1), generator)))[:, 0]
    torch.testing.assert_close(drawn.mean(0), outputs[0], atol=0.01, rtol=0)
    torch.testing.assert_close(drawn.std(0), torch.full((3,), -0.7).exp(), atol=0.01, rtol=0)


@pytest.mark.parametrize("feedback", ["fa", "dfa"])
def test_feedback_goes_through_fixed_random_matrices(feedback):
    head = Categorical(ACTIONS)
    net = learner(head, feedback=feedback, entropy_coef=0.0)
    actor, data = net.actor, rollout(4, head)
    before = {name: buffer.clone() for name, buffer in actor.named_buffers()}
    assert sorted(before) == ["feedback_0", "feedback_1"]

    # By hand: h = f' x of each layer, the error by its route, credit η e with e over past events.
    x, pres, gates = data.observations, [], []
    for weight in actor.weights[:-1]:
        pres.append(x)
        z = x @ weight.T
        gates.append((z > 0).double())
        x = z.clamp(min=0)
    pres.append(x)
    logits = x @ actor.weights[-1].T
    score = torch.nn.functional.one_hot(data.actions, ACTIONS) - torch.softmax(logits, -1)
    B0, B1 = before["feedback_0"], before["feedback_1"]
    second = score @ B1
    first = score @ B0 if feedback == "dfa" else (second * gates[1]) @ B0
    advantage = advantages(net, data)[..., None]
    errors = [first * gates[0], second * gates[1], score]
    net.accumulate(data)
    for weight, error, pre in zip(actor.weights, errors, pres, strict=True):
        expected = -torch.einsum("teo,tei->oi", (advantage * error).detach(), pre) / (STEPS * ENVS)
        torch.testing.assert_close(weight.grad, expected.detach(), rtol=0, atol=1e-12)
    for name, buffer in actor.named_buffers():
        assert torch.equal(buffer, before[name])
        assert name in actor.state_dict()


@pytest.mark.parametrize("feedback", ["fa", "dfa"])
def test_alignment_of_random_feedback_is_against_the_true_gradient(feedback):
    head = Categorical(ACTIONS)
    data = rollout(4, head)
    random = learner(head, feedback=feedback, entropy_coef=0.0)
    true = learner(head, entropy_coef=0.0)
    true.load_state_dict(random.state_dict(), strict=False)
    found = random.accumulate(data, statistics=True)
    true.accumulate(data)
    for layer, (a, b) in enumerate(zip(random.actor.weights[:2], true.actor.weights[:2], strict=True)):
        cosine = torch.nn.functional.cosine_similarity(a.grad.flatten(), b.grad.flatten(), dim=0).item()
        assert found[f"credit/alignment/{layer}"] == pytest.approx(cosine, abs=1e-9)
    assert "credit/alignment/2" not in found  # the output layer's error is the true one
    assert abs(found["credit/alignment/0"]) < 0.999


@pytest.mark.parametrize("feedback", ["fa", "dfa"])
def test_feedback_reaches_convolutions(feedback):
    head = Categorical(ACTIONS)
    net = learner(head, MAPS, channels=(3, 2), feedback=feedback, delay=0.4)
    for seed in range(2):
        found = net.accumulate(rollout(40, head, seed), statistics=True)
    assert all(weight.grad.abs().sum() > 0 for weight in net.actor.weights)
    assert len(found) == 4 + 5


def test_alignment_with_one_lambda_per_weight():
    """The true gradient has the same λ for each weight: perfect memory gives exactly that."""
    head = Categorical(ACTIONS)
    net = learner(head, delay=0.6, trace=TraceConfig("perfect"), random_lam=(0.1, 0.9), entropy_coef=0.0)
    for seed in range(3):
        found = net.accumulate(rollout(4, head, seed), statistics=True)
    for layer in range(3):
        assert found[f"credit/alignment/{layer}"] == pytest.approx(1, abs=1e-3)


def test_a_scale_learns_like_a_bias():
    """log σ waits as the output layer does, through a synapse whose input is one."""
    head = DiagonalGaussian(ACTIONS)
    net = learner(head, delay=0.4)
    assert net.names[-1] == "log_std"
    synapses = net.synapses[-1]
    assert isinstance(synapses, Synapses)
    assert synapses.delay_steps == 2
    assert synapses.geometry.weight_shape == (ACTIONS, 1)


def test_an_actor_with_unknown_feedback_is_refused():
    with pytest.raises(ValueError, match="feedback must be one of backprop, fa, dfa"):
        Actor((4,), Categorical(2), feedback="telepathy")


def test_the_configuration_knows_how_many_layers_a_convolutional_actor_has():
    assert len(CHANNELS) == CONVOLUTIONS
