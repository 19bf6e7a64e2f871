"""Algorithm 1 against autograd and against episodes worked out by hand."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from cet_rl.agents.config import LearnerConfig
from cet_rl.agents.distributions import Categorical
from cet_rl.agents.learner import ActorCriticLearner, Rollout
from cet_rl.agents.networks import Actor, Critic
from cet_rl.traces.registry import TraceConfig
from cet_rl.traces.timing import CreditTiming

N_IN, ACTIONS = 3, 4


def learner(delay=0.0, envs=2, rollout=16, activation="relu", **options):
    torch.manual_seed(0)
    options.setdefault("max_grad_norm", 1e9)
    return ActorCriticLearner(
        Actor((N_IN,), Categorical(ACTIONS), (8, 6), activation),
        Critic((N_IN,), (8,)),
        CreditTiming(delay),
        LearnerConfig(**options),
        num_envs=envs,
        rollout=rollout,
    ).double()


def rollout(steps=16, envs=2, seed=0, ends=0.15):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    done = torch.rand(steps, envs, generator=generator) < ends
    cut = done & (torch.rand(steps, envs, generator=generator) < 0.5)
    starts = torch.zeros(steps, envs, dtype=torch.float64)
    starts[0] = 1
    starts[1:] = done[:-1].double()
    return Rollout(
        observations=normal(steps, envs, N_IN),
        actions=torch.randint(ACTIONS, (steps, envs), generator=generator),
        rewards=normal(steps, envs),
        starts=starts,
        terminated=(done & ~cut).double(),
        truncated=cut.double(),
        last_observations=normal(envs, N_IN),
        final_observations=normal(int(cut.sum()), N_IN),
    )


def advantages(net, data, gamma=0.99, lam=0.95):
    """λ-return less the value, by the recursion in plain Python."""
    steps, envs = data.rewards.shape
    values, last = net.critic(data.observations), net.critic(data.last_observations)
    finals = iter(net.critic(data.final_observations).tolist())
    final = {(int(t), int(e)): next(finals) for t, e in data.truncated.nonzero()}
    result = torch.zeros(steps, envs, dtype=torch.float64)
    for env in range(envs):
        running = 0.0
        for t in reversed(range(steps)):
            if data.terminated[t, env]:
                following = 0.0
            elif data.truncated[t, env]:
                following = final[t, env]
            else:
                following = (values[t + 1, env] if t + 1 < steps else last[env]).item()
            td_error = data.rewards[t, env].item() + gamma * following - values[t, env].item()
            ended = data.terminated[t, env] or data.truncated[t, env]
            running = td_error + (0.0 if ended else gamma * lam * running)
            result[t, env] = running
    return result


def policy_gradient(net, data, advantage, entropy_coef):
    logits = net.actor(data.observations)
    policy = torch.distributions.Categorical(logits=logits)
    loss = -(policy.log_prob(data.actions) * advantage).mean() - entropy_coef * policy.entropy().mean()
    return torch.autograd.grad(loss, list(net.actor.weights))


@pytest.mark.parametrize("error_at", ["preactivation", "activation"])
def test_without_delay_it_is_the_gradient_of_the_lambda_return_loss(error_at):
    net, data = learner(error_at=error_at), rollout()
    advantage = advantages(net, data)
    expected = policy_gradient(net, data, advantage, 0.01)
    returns = (net.critic(data.observations) + advantage).detach()
    value_loss = ((net.critic(data.observations) - returns) ** 2).mean()
    expected_critic = torch.autograd.grad(0.25 * value_loss, list(net.critic.parameters()))

    net.accumulate(data)
    for weight, gradient in zip(net.actor.weights, expected, strict=True):
        torch.testing.assert_close(weight.grad, gradient, rtol=0, atol=1e-12)
    for parameter, gradient in zip(net.critic.parameters(), expected_critic, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=1e-12)


def test_smooth_activations_with_the_error_at_the_output():
    net, data = learner(activation="tanh", error_at="activation"), rollout()
    expected = policy_gradient(net, data, advantages(net, data), 0.01)
    net.accumulate(data)
    for weight, gradient in zip(net.actor.weights, expected, strict=True):
        torch.testing.assert_close(weight.grad, gradient, rtol=0, atol=1e-12)


def parts(data, cuts):
    """The same rollout in pieces, each with the values that follow it."""
    steps = len(data.rewards)
    edges = [0, *cuts, steps]
    order = data.truncated.nonzero()
    for first, last in pairwise(edges):
        inside = (order[:, 0] >= first) & (order[:, 0] < last)
        fields = {
            name: getattr(data, name)[first:last]
            for name in ("observations", "actions", "rewards", "starts", "terminated", "truncated")
        }
        following = data.observations[last] if last < steps else data.last_observations
        yield Rollout(**fields, last_observations=following, final_observations=data.final_observations[inside])


@pytest.mark.parametrize("options", [{}, {"delay": 0.6, "trace": TraceConfig("perfect")}, {"delay": 0.6}])
def test_updates_after_every_step_add_up(options):
    """With frozen weights, sixteen updates of one step are one update of sixteen."""
    data = rollout()
    whole, online = learner(entropy_coef=0.0, **options), learner(entropy_coef=0.0, rollout=1, **options)
    whole.accumulate(data)
    total = [torch.zeros_like(w) for w in online.actor.weights]
    for part in parts(data, range(1, 16)):
        online.accumulate(part)
        for accumulated, weight in zip(total, online.actor.weights, strict=True):
            accumulated += weight.grad / 16
    for accumulated, weight in zip(total, whole.actor.weights, strict=True):
        torch.testing.assert_close(accumulated, weight.grad, rtol=0, atol=1e-12)


def test_perfect_memory_gives_the_undelayed_update_a_delay_later():
    D, data = 5, rollout(steps=16)
    prompt = learner(entropy_coef=0.0)
    prompt.accumulate(data)
    late = learner(delay=D * 0.2, entropy_coef=0.0, trace=TraceConfig("perfect"))
    late.accumulate(data)
    total = [weight.grad.clone() for weight in late.actor.weights]
    silence = rollout(steps=D, ends=0.0)
    silence.valid = torch.zeros_like(silence.rewards)
    late.accumulate(silence)
    for weight, first, expected in zip(late.actor.weights, total, prompt.actor.weights, strict=True):
        found = first + weight.grad * D / 16
        torch.testing.assert_close(found, expected.grad, rtol=0, atol=1e-12)


def single_episode(rewards, starts, terminated=None, truncated=None, finals=None, seed=3):
    """One environment whose rewards and ends are given; everything else is random."""
    steps = len(rewards)
    data = rollout(steps, 1, seed, ends=0.0)
    data.rewards = torch.tensor(rewards, dtype=torch.float64)[:, None]
    zero = [0] * steps
    data.starts = torch.tensor(starts, dtype=torch.float64)[:, None]
    data.terminated = torch.tensor(terminated or zero, dtype=torch.float64)[:, None]
    data.truncated = torch.tensor(truncated or zero, dtype=torch.float64)[:, None]
    if finals is not None:
        data.final_observations = finals
    return data


def actor_gradients(net, data):
    net.accumulate(data)
    return torch.cat([weight.grad.flatten() for weight in net.actor.weights])


def test_the_final_reward_of_an_episode_counts():
    ends = {"starts": [1, 0, 0, 1], "terminated": [0, 0, 1, 0]}
    with_reward = actor_gradients(learner(envs=1), single_episode([0, 0, 1, 0], **ends))
    without = actor_gradients(learner(envs=1), single_episode([0, 0, 0, 0], **ends))
    assert (with_reward - without).abs().max() > 1e-3


@pytest.mark.parametrize("delay", [0.0, 0.4])
def test_nothing_leaks_into_the_next_episode(delay):
    """A reward of the second episode gives no credit to the actions of the first.

    With perfect memory the difference it makes is the one it makes when the first episode never happened.
    """
    options = {"envs": 1, "delay": delay, "trace": TraceConfig("perfect"), "entropy_coef": 0.0}

    def effect(with_first):
        starts, terminated = ([1, 0, 0, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0, 0, 0])
        gradients = []
        for reward in (0.0, 1.0):
            data = single_episode([0, 0, 0, 0, reward, 0, 0, 0], starts, terminated)
            if not with_first:
                data.valid = torch.ones_like(data.rewards)
                data.valid[:3] = 0
            gradients.append(actor_gradients(learner(**options), data))
        return gradients[1] - gradients[0]

    torch.testing.assert_close(effect(True), effect(False), rtol=0, atol=1e-12)
    assert effect(True).abs().max() > 1e-3


def test_a_truncation_bootstraps_and_a_termination_does_not():
    finals = torch.full((1, N_IN), 2.0, dtype=torch.float64)
    starts = [1, 0, 1, 0]
    net = learner(envs=1)
    value = net.critic(finals).item()
    cut = actor_gradients(learner(envs=1), single_episode([0] * 4, starts, truncated=[0, 1, 0, 0], finals=finals))
    paid = actor_gradients(
        learner(envs=1), single_episode([0, 0.99 * value, 0, 0], starts, terminated=[0, 1, 0, 0])
    )
    ended = actor_gradients(learner(envs=1), single_episode([0] * 4, starts, terminated=[0, 1, 0, 0]))
    torch.testing.assert_close(cut, paid, rtol=0, atol=1e-12)
    assert (cut - ended).abs().max() > 1e-4


@pytest.mark.parametrize("delay", [0.0, 0.6])
def test_steps_that_are_none_contribute_nothing(delay):
    """What an environment shows, is told and pays while it resets itself has no effect on the update."""
    gradients = []
    for noise in (0.0, 1.0):
        data = single_episode([1.0, 1, 0, 1, 1, 1], [1, 0, 1, 0, 0, 0], terminated=[0, 1, 0, 0, 0, 0])
        data.valid = torch.ones_like(data.rewards)
        data.valid[2] = 0
        data.rewards[2] += 100 * noise
        data.observations[2] += 10 * noise
        data.actions[2] = int(noise)
        net = learner(envs=1, delay=delay)
        net.accumulate(data)
        gradients.append(torch.cat([p.grad.flatten() for p in net.trained_parameters()]))
    assert torch.equal(*gradients)


def test_alignment_is_one_for_perfect_memory_and_less_for_a_cascade():
    perfect = learner(delay=1.0, trace=TraceConfig("perfect"))
    cascade = learner(delay=1.0, trace=TraceConfig("cet", 4))
    for seed in range(4):
        data = rollout(seed=seed)
        found, smeared = perfect.accumulate(data, statistics=True), cascade.accumulate(data, statistics=True)
    for layer in range(3):
        assert found[f"credit/alignment/{layer}"] == pytest.approx(1.0, abs=1e-3)
        assert abs(smeared[f"credit/alignment/{layer}"]) < 0.95


def test_stacked_delays_have_no_probe_where_nothing_waits():
    net = ActorCriticLearner(
        Actor((N_IN,), Categorical(ACTIONS), (8, 6)),
        Critic((N_IN,)),
        CreditTiming(0.4, stacked=True),
        LearnerConfig(),
        num_envs=1,
        rollout=4,
    )
    assert [synapses.delay_steps for synapses in net.synapses] == [4, 2, 0]
    assert sorted(net.probes) == ["0", "1"]


def test_gradients_are_clipped_together():
    net = learner(max_grad_norm=0.5)
    net.accumulate(rollout())
    norm = torch.cat([p.grad.flatten() for p in net.trained_parameters()]).norm()
    assert norm.item() == pytest.approx(0.5, rel=1e-5)


def test_lambda_per_weight_is_drawn_from_its_range():
    net = learner(random_lam=(0.1, 0.99))
    for synapses in net.synapses:
        drawn = synapses.decay_per_weight / 0.99
        assert 0.1 <= drawn.min() < 0.35 < 0.75 < drawn.max() <= 0.99
    net.accumulate(rollout())
    assert torch.isfinite(net.actor.weights[0].grad).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 1.5}, "gamma"),
        ({"gamma": 1.0, "lam": 1.0}, "forgotten"),
        ({"random_lam": (0.9, 0.1)}, "random_lam"),
        ({"entropy_coef": -1.0}, "entropy_coef"),
        ({"max_grad_norm": 0.0}, "max_grad_norm"),
        ({"error_at": "elsewhere"}, "error_at"),
        ({"activation": "tanh"}, "error_at='activation'"),
        ({"activation": "sine"}, "unknown activation"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        learner(**options)
