"""Algorithm 1 against autograd and episodes worked out by hand, for every shape of actor and route of credit."""

import signal
from dataclasses import replace
from itertools import pairwise

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

N_IN, ACTIONS = 3, 4
MAPS = (2, 4, 5)
PERFECT = TraceConfig("perfect")


def learner(head=None, shape=(N_IN,), delay=0.0, envs=2, rollout=16, hidden=(8, 6), critic=None, **options):
    torch.manual_seed(0)
    names = {"activation", "feedback", "channels"}
    networks = {name: options.pop(name) for name in names & options.keys()}
    actor = Actor(shape, head or Categorical(ACTIONS), hidden, **networks)
    options.setdefault("max_grad_norm", 1e9)
    return built(actor, critic or Critic(shape, (8,)), delay, LearnerConfig(**options), envs, rollout)


def built(actor, critic, delay, config, envs=2, rollout=16):
    timing = CreditTiming(delay, layers=len(actor.weights))
    return ActorCriticLearner(actor, critic, timing, config, num_envs=envs, rollout=rollout).double()


def rollout(steps=16, envs=2, seed=0, ends=0.15, net=None):
    generator = torch.Generator().manual_seed(seed)
    head = net.actor.head if net else Categorical(ACTIONS)
    n_in = net.actor.layers[0].n_pre if net else N_IN

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    done = torch.rand(steps, envs, generator=generator) < ends
    cut = done & (torch.rand(steps, envs, generator=generator) < 0.5)
    starts = torch.ones(steps, envs, dtype=torch.float64)
    starts[1:] = done[:-1].double()
    drawn = torch.randint(head.num_outputs, (steps, envs), generator=generator)
    return Rollout(
        observations=normal(steps, envs, n_in),
        actions=normal(steps, envs, *head.action_shape) if head.action_shape else drawn,
        rewards=normal(steps, envs),
        starts=starts,
        terminated=(done & ~cut).double(),
        truncated=cut.double(),
        last_observations=normal(envs, n_in),
        final_observations=normal(int(cut.sum()), n_in),
    )


def advantages(net, data, gamma=0.99, lam=0.95):
    """Return the λ-return less the value, by the recursion in plain Python."""
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


def policy_terms(head, outputs, actions):
    """Return log π(a) and the entropy by torch.distributions."""
    if isinstance(head, DiagonalGaussian):
        policy = Normal(outputs, head.log_std.squeeze(1).exp().expand_as(outputs))
        return policy.log_prob(actions).sum(-1), policy.entropy().sum(-1)
    policy = TorchCategorical(logits=outputs)
    return policy.log_prob(actions), policy.entropy()


def assert_gradients(parameters, expected):
    for parameter, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=1e-12)


def actor_gradients(net, data):
    net.accumulate(data)
    return torch.cat([weight.grad.flatten() for weight in net.actor.weights])


CASES = {
    "preactivation": lambda: learner(),
    "activation": lambda: learner(error_at="activation"),
    "tanh": lambda: learner(activation="tanh", error_at="activation"),
    "gaussian": lambda: learner(DiagonalGaussian(ACTIONS, -0.3)),
    "convolutions": lambda: learner(shape=MAPS, channels=(3, 2)),
    "convolutions, gaussian": lambda: learner(DiagonalGaussian(ACTIONS), MAPS, channels=(3,), hidden=()),
    "a critic by autograd": lambda: learner(critic=type("Own", (Critic,), {})((N_IN,), (8,))),
    "flattened maps, convolutional critic": lambda: learner(shape=MAPS, critic=Critic(MAPS, (5,), (3,))),
}


@pytest.mark.parametrize("case", CASES)
def test_without_delay_it_is_the_gradient_of_the_lambda_return_loss(case):
    net = CASES[case]()
    data = rollout(net=net, ends=0.3)
    assert data.terminated.any()
    assert data.truncated.any()
    advantage, values = advantages(net, data), net.critic(data.observations)
    log_probability, entropy = policy_terms(net.actor.head, net.actor(data.observations), data.actions)
    loss = -(log_probability * advantage).mean() - 0.01 * entropy.mean()
    expected = torch.autograd.grad(loss, net.actor.synaptic_weights)
    value_loss = ((values - (values + advantage).detach()) ** 2).mean()
    expected_critic = torch.autograd.grad(0.25 * value_loss, list(net.critic.parameters()))
    net.accumulate(data)
    assert_gradients(net.actor.synaptic_weights, expected)
    assert_gradients(net.critic.parameters(), expected_critic)


@pytest.mark.parametrize("case", CASES)
def test_perfect_memory_is_aligned_with_the_true_gradient(case):
    net = CASES[case]()
    late = built(net.actor, net.critic, 0.6, replace(net.config, trace=PERFECT, entropy_coef=0.0))
    for seed in range(3):
        found = late.accumulate(rollout(net=net, seed=seed), statistics=True)
    # log σ waits as the output layer does, through a synapse whose input is one.
    names = [*map(str, range(len(net.actor.weights))), *net.actor.head.own_weights]
    assert (list(late.names), {synapses.delay_steps for synapses in late.synapses}) == (names, {3})
    for name in names:
        assert found[f"credit/alignment/{name}"] == pytest.approx(1, abs=1e-3)


def parts(data, cuts):
    """Return the same rollout in pieces, each with the values that follow it."""
    steps, order = len(data.rewards), data.truncated.nonzero()
    for first, last in pairwise([0, *cuts, steps]):
        inside = (order[:, 0] >= first) & (order[:, 0] < last)
        names = ("observations", "actions", "rewards", "starts", "terminated", "truncated")
        fields = {name: getattr(data, name)[first:last] for name in names}
        following = data.observations[last] if last < steps else data.last_observations
        yield Rollout(**fields, last_observations=following, final_observations=data.final_observations[inside])


@pytest.mark.parametrize("options", [{}, {"delay": 0.6, "trace": PERFECT}, {"delay": 0.6}], ids=str)
def test_updates_after_every_step_add_up(options):
    """With frozen weights, sixteen updates of one step are one update of sixteen."""
    data = rollout()
    whole, online = learner(entropy_coef=0.0, **options), learner(entropy_coef=0.0, rollout=1, **options)
    total = sum(actor_gradients(online, part) / 16 for part in parts(data, range(1, 16)))
    torch.testing.assert_close(total, actor_gradients(whole, data), rtol=0, atol=1e-12)


def test_perfect_memory_gives_the_undelayed_update_a_delay_later():
    D, data = 5, rollout(ends=0.3)  # nothing leaks into the next episode
    late = learner(delay=D * 0.2, entropy_coef=0.0, trace=PERFECT)
    first = actor_gradients(late, data)
    silence = rollout(steps=D, ends=0.0)
    silence.valid = torch.zeros_like(silence.rewards)
    found = first + actor_gradients(late, silence) * D / 16
    torch.testing.assert_close(found, actor_gradients(learner(entropy_coef=0.0), data), rtol=0, atol=1e-12)


@pytest.mark.parametrize("delay", [0.0, 0.6])
def test_steps_that_are_none_contribute_nothing(delay):
    """What an environment shows, is told and pays while it resets itself has no effect on the update."""
    gradients = []
    for noise in (0.0, 1.0):
        data = rollout(6, 1, 3, ends=0.0)
        data.terminated[1] = data.starts[2] = 1
        data.valid = torch.ones_like(data.rewards)
        data.valid[2] = data.rewards[2] = 0
        data.rewards[2] += 100 * noise
        data.observations[2] += 10 * noise
        data.actions[2] = int(noise)
        net = learner(envs=1, delay=delay)
        net.accumulate(data)
        gradients.append(torch.cat([p.grad.flatten() for p in net.trained_parameters()]))
    assert torch.equal(*gradients)


@pytest.mark.parametrize("random_lam", [None, (0.1, 0.9)])
def test_alignment_is_one_for_perfect_memory_and_less_for_a_cascade(random_lam):
    """The true gradient has the same λ for each weight."""
    options = {"delay": 1.0, "random_lam": random_lam}
    perfect, cascade = learner(trace=PERFECT, **options), learner(trace=TraceConfig("cet", 4), **options)
    for seed in range(4):
        data = rollout(seed=seed)
        found, smeared = perfect.accumulate(data, statistics=True), cascade.accumulate(data, statistics=True)
    for layer in range(3):
        assert found[f"credit/alignment/{layer}"] == pytest.approx(1.0, abs=1e-3)
        assert abs(smeared[f"credit/alignment/{layer}"]) < 0.95


def test_stacked_delays_have_no_probe_where_nothing_waits():
    actor, timing = Actor((N_IN,), Categorical(ACTIONS), (8, 6)), CreditTiming(0.4, stacked=True)
    net = ActorCriticLearner(actor, Critic((N_IN,)), timing, LearnerConfig(), num_envs=1, rollout=4)
    assert ([synapses.delay_steps for synapses in net.synapses], sorted(net.probes)) == ([4, 2, 0], ["0", "1"])


def test_gradients_are_clipped_together():
    net = learner(max_grad_norm=0.5)
    net.accumulate(rollout())
    norm = torch.cat([p.grad.flatten() for p in net.trained_parameters()]).norm()
    assert norm.item() == pytest.approx(0.5, rel=1e-5)


def test_lambda_per_weight_is_drawn_from_its_range():
    for synapses in learner(random_lam=(0.1, 0.99)).synapses:
        drawn = synapses.decay_per_weight / 0.99
        assert 0.1 <= drawn.min() < 0.35 < 0.75 < drawn.max() <= 0.99


@pytest.mark.parametrize("head", [Categorical(4), DiagonalGaussian(4, -0.5)], ids=lambda head: type(head).__name__)
def test_derivatives_of_a_distribution_are_autograds(head):
    head, generator = head.double(), torch.Generator().manual_seed(0)
    outputs = torch.randn(6, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    own = list(head.own_weights.values())
    actions = torch.randn(6, 4, generator=generator, dtype=torch.float64) if own else torch.arange(6) % 4
    log_probability, entropy = policy_terms(head, outputs, actions)
    each, entropy_gradients = head.entropy(outputs.detach())
    torch.testing.assert_close(each, entropy)
    for value, found in ((log_probability, head.scores(outputs.detach(), actions)), (entropy, entropy_gradients)):
        wanted = torch.autograd.grad(value.sum(), [outputs, *own], retain_graph=True, allow_unused=True)
        totals = [found[0], *(gradient.sum(0)[:, None] for gradient in found[1:])]
        for expected, total in zip(wanted, totals, strict=True):
            torch.testing.assert_close(total, torch.zeros_like(total) if expected is None else expected)


def test_samples_follow_the_distribution():
    generator, outputs = torch.Generator().manual_seed(0), torch.tensor([[0.5, -1.0, 0.2]])

    def drawn(head):
        return torch.from_numpy(head.sample(outputs.numpy(), head.noise((40_000, 1), generator)))[:, 0]

    share = torch.bincount(drawn(Categorical(3)), minlength=3) / 40_000
    torch.testing.assert_close(share, torch.softmax(outputs[0], 0), atol=0.01, rtol=0)
    reals = drawn(DiagonalGaussian(3, -0.7))
    torch.testing.assert_close(reals.mean(0), outputs[0], atol=0.01, rtol=0)
    torch.testing.assert_close(reals.std(0), torch.full((3,), -0.7).exp(), atol=0.01, rtol=0)


@pytest.mark.parametrize("feedback", ["fa", "dfa"])
def test_feedback_goes_through_fixed_random_matrices(feedback):
    net, data = learner(feedback=feedback, entropy_coef=0.0), rollout()
    before = {name: buffer.clone() for name, buffer in net.actor.named_buffers()}
    assert sorted(before) == ["feedback_0", "feedback_1"]

    # By hand: h = f' x of each layer, the error by its route, credit η e with e over past events.
    x, pres, gates = data.observations, [], []
    for weight in net.actor.weights[:-1]:
        pres.append(x)
        z = x @ weight.T
        gates.append((z > 0).double())
        x = z.clamp(min=0)
    pres.append(x)
    score = torch.nn.functional.one_hot(data.actions, ACTIONS) - torch.softmax(x @ net.actor.weights[-1].T, -1)
    B0, B1 = before["feedback_0"], before["feedback_1"]
    second = score @ B1
    first = score @ B0 if feedback == "dfa" else (second * gates[1]) @ B0
    advantage = advantages(net, data)[..., None]
    errors = [first * gates[0], second * gates[1], score]
    net.accumulate(data)
    expected = [
        -torch.einsum("teo,tei->oi", (advantage * error).detach(), pre.detach()) / data.rewards.numel()
        for error, pre in zip(errors, pres, strict=True)
    ]
    assert_gradients(net.actor.synaptic_weights, expected)
    for name, buffer in net.actor.named_buffers():
        assert torch.equal(buffer, before[name])
        assert name in net.actor.state_dict()


@pytest.mark.parametrize("feedback", ["fa", "dfa"])
def test_alignment_of_random_feedback_is_against_the_true_gradient(feedback):
    data, random, true = rollout(), learner(feedback=feedback, entropy_coef=0.0), learner(entropy_coef=0.0)
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
    net = learner(shape=MAPS, channels=(3, 2), feedback=feedback, delay=0.4)
    for seed in range(2):
        found = net.accumulate(rollout(net=net, seed=seed), statistics=True)
    assert all(weight.grad.abs().sum() > 0 for weight in net.actor.weights)
    assert len(found) == 4 + 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trace": "cet"}, r"trace must be a TraceConfig such as TraceConfig\('cet', 5\), got 'cet'"),
        ({"gamma": 1.5}, "gamma"),
        ({"gamma": 1.0, "lam": 1.0}, "would never decay"),
        *[({"random_lam": given}, "random_lam must be") for given in ((0.9, 0.1), 0.5, (0.1, 0.2, 0.3))],
        ({"random_lam": ("a", "b")}, "random_lam must be"),
        ({"entropy_coef": -1.0}, "entropy_coef must be finite and not negative"),
        ({"max_grad_norm": 0.0}, "max_grad_norm must be finite and positive"),
        ({"error_at": "elsewhere"}, "error_at"),
        ({"activation": "tanh"}, "error_at='activation'"),
        ({"activation": "sine"}, "unknown activation"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        learner(**options)


def test_the_configuration_knows_how_many_layers_a_convolutional_actor_has():
    assert len(CHANNELS) == CONVOLUTIONS


@pytest.mark.parametrize("head", [None, DiagonalGaussian(ACTIONS, -0.3)])
def test_statistics_are_their_formulas(head):
    net = learner(head)
    data = rollout(net=net, ends=0.3)
    advantage, values = advantages(net, data), net.critic(data.observations).detach()
    _, entropy = policy_terms(net.actor.head, net.actor(data.observations), data.actions)
    found = net.accumulate(data, statistics=True)
    gradients = torch.cat([p.grad.flatten() for p in net.trained_parameters()])
    expected = {
        "train/value_loss": advantage.square().mean(),
        "train/entropy_loss": -entropy.mean(),
        "train/gradient_norm": gradients.norm(),
        "train/explained_variance": 1 - advantage.var() / (values + advantage).var(),
    }
    if head:
        expected["train/std"] = head.log_std.exp().mean()
    assert found == pytest.approx({name: value.item() for name, value in expected.items()})


def test_ctrl_c_waits_for_the_last_layer(monkeypatch):
    net, twin, data, forward = learner(delay=0.4), learner(delay=0.4), rollout(), Synapses.forward

    def interrupted(synapses, *signals):
        if synapses is net.synapses[1]:
            signal.raise_signal(signal.SIGINT)
        return forward(synapses, *signals)

    twin.accumulate(data)
    monkeypatch.setattr(Synapses, "forward", interrupted)
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            net.accumulate(data)
    finally:
        signal.signal(signal.SIGINT, earlier)
    assert net.steps == twin.steps
    for one, other in zip(net.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.equal(one, other)
