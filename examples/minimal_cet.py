"""Cascading eligibility traces in one file: CartPole learned from credit that arrives 8 seconds late.

Equations are those of the paper, *Learning From the Past with Cascading Eligibility Traces*. Each synapse of the
actor computes at every step, in each environment,

    h = f'(z) x, z = W x               the Hebbian term                             (Eq. 1)
    S <- M S + K h,  c = C · S         the synaptic trace: a cascade of n states    (Eqs. 4 and 8)
    e <- γλ (1 - s) e + δ c            the RL eligibility trace                     (Algorithm 1, line 6)
    ΔW <- ΔW + η e                     the update                                   (Algorithm 1, line 8)

where δ = ∂ log π / ∂z, η = r + γ V(s') - V(s) (line 7) and the episode start s arrive D steps late and c recalls
the h of D steps ago. `Synapses.update` sums all this over a rollout in closed form. It takes minutes on one core.
"""

import gymnasium
import numpy as np
import torch
from torch import nn

DELAY, ORDER = 40, 5  # D, 8 s in steps of 0.2 s; n, states of each synapse
ENVS, STEPS, TOTAL = 4, 128, 800_000  # environments, steps of a rollout, environment samples in all
GAMMA, LAM, RATE, ENTROPY_COEF, VALUE_COEF, MAX_NORM = 0.99, 0.95, 5e-4, 0.01, 0.25, 0.5  # App. C and Table 5


def cascade(order, delay):
    """Return M (n, n), K (n,), C (n,) of Eq. 8: Eq. 4's states times α^k, the input held over a step. Float64."""
    a = torch.tensor((order - 1) / delay, dtype=torch.float64)  # αΔt, with α = (n - 1) / T for a peak at T
    n = torch.arange(1.0, order + 1, dtype=torch.float64)
    P = torch.special.gammainc  # the regularised lower incomplete gamma function
    lag = n[:, None] - n
    M = torch.exp(lag * a.log() - a - torch.lgamma(lag + 1))  # e^-a a^(i-j) / (i-j)!, zero above the diagonal
    peak = P(n[-1], a * (delay + 1)) - P(n[-1], a * delay)  # the largest response, C makes it one (App. C, "peak")
    return M, P(n, a), (n == order) / peak


def lambda_sums(values, start):
    """Return A_t = v_t + γλ (1 - s_{t+1}) A_{t+1} for values v (T, ..., E) and episode starts s (T, E)."""
    sums = values.clone()
    for t in reversed(range(len(values) - 1)):
        sums[t] += GAMMA * LAM * (1 - start[t + 1]) * sums[t + 1]
    return sums


class Synapses:
    """The memory of one layer's synapses: S (E, n_out, n, n_in) and e (E, n_out, n_in)."""

    def __init__(self, n_out, n_in, delay, order, steps, envs):
        self.S, self.e = torch.zeros(envs, n_out, order, n_in), torch.zeros(envs, n_out, n_in)
        M, K, C = cascade(order, delay)
        powers = torch.stack([torch.linalg.matrix_power(M, t) for t in range(steps + 1)])
        responses = powers[:-1] @ K  # M^l K; the kernel is g_l = C M^l K
        lag = torch.arange(steps)[:, None] - torch.arange(steps)
        self.g = torch.where(lag >= 0, (responses @ C)[lag], 0).to(self.S)  # g_{u-s} at [u, s]
        self.q = (C @ powers[1:]).to(self.S)  # C M^(u+1): what c holds at step u of the states before the rollout
        self.absorb, self.carry = responses.flip(0).to(self.S), powers[-1].to(self.S)  # M^(T-1-s) K and M^T

    @torch.no_grad()
    def update(self, x, derivative, delta, weights, kept):
        """Return ΔW, the sum over a rollout, and advance S and e; x (T, E, n_in), f' and δ (T, E, n_out).

        The δ c of step u counts A_u = η_u + γλ (1 - s_{u+1}) A_{u+1} times in ΔW and Π_{v>u} γλ (1 - s_v) times in
        the last e: one sum, two `weights` (T, 2, E). The first e counts as step 0, times `kept`, γλ (1 - s_0).
        """
        weighted = weights[..., None] * delta[:, None]  # A_u δ_u
        p = derivative * torch.einsum("us,uweo->wseo", self.g, weighted)  # p_s = f'_s Σ_{u≥s} g_{u-s} A_u δ_u
        reads = torch.einsum("uk,uweo->weok", self.q, weighted)  # Σ_u A_u δ_u q_u
        sums = torch.einsum("wseo,sei->weoi", p, x) + torch.einsum("weok,eoki->weoi", reads, self.S)
        dW, self.e = sums + (kept * weights[0])[..., None, None] * self.e
        self.S = torch.einsum("kl,eoli->eoki", self.carry, self.S)
        self.S += torch.einsum("sk,seo,sei->eoki", self.absorb, derivative, x)
        return dW.sum(0)


class ActorCritic(nn.Module):
    """Algorithm 1: the actor learns by its synapses' traces, the critic by backpropagation on λ-returns."""

    def __init__(self, n_in, n_actions, hidden=256, delay=DELAY, order=ORDER, steps=STEPS, envs=ENVS):
        super().__init__()
        shapes = [(hidden, 2 * n_in), (hidden, hidden), (n_actions, hidden)]  # the actor has no biases
        self.actor = nn.ParameterList(nn.init.orthogonal_(torch.empty(shape), 2**0.5) for shape in shapes)
        layers = nn.Linear(2 * n_in, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1)
        self.critic = nn.Sequential(*layers, nn.Flatten(-2))
        self.synapses = [Synapses(*shape, delay, order, steps, envs) for shape in shapes]
        self.lines = [torch.zeros(delay, envs, n_out) for n_out, _ in shapes]  # each layer's δ on its way, η and s
        self.lines += [torch.zeros(delay, envs), torch.ones(delay, envs)]

    def forward(self, observation):
        """Return each layer's input x and z = W x, the last z being the logits of π."""
        xs, zs = [torch.cat([observation, -observation], -1).relu()], []  # positive and negative parts (App. C)
        for weight in self.actor:
            zs.append(xs[-1] @ weight.T)
            xs.append(zs[-1].relu())
        return xs[:-1], zs

    def late(self, *signals):
        """Return signals (T, ...) as they were D steps before, and keep what is still on its way."""
        lines = [torch.cat(pair) for pair in zip(self.lines, signals, strict=True)]
        self.lines = [line[len(signals[0]) :] for line in lines]
        return [line[: len(signals[0])] for line in lines]

    def set_gradients(self, observations, actions, rewards, starts, terminated, following):
        """Set .grad from a rollout (T, E, ...); `following` is s_{t+1}, before any reset."""
        xs, zs = self(observations)
        values = self.critic(xs[0])
        with torch.no_grad():  # line 7: V(s_{t+1}) counts after a time limit, but not after a termination
            eta = rewards + GAMMA * (1 - terminated) * self.critic(self(following)[0][0]) - values
            returns = values + lambda_sums(eta, starts)
        policy = torch.distributions.Categorical(logits=zs[-1])
        deltas = torch.autograd.grad(policy.log_prob(actions).sum(), zs, retain_graph=True)  # δ = ∂ log π / ∂z
        self.zero_grad()
        (VALUE_COEF * (values - returns).square().mean() - ENTROPY_COEF * policy.entropy().mean()).backward()
        *deltas, eta, start = self.late(*deltas, eta, starts)
        last = torch.eye(len(eta))[:, -1:].expand_as(eta)
        weights, kept = lambda_sums(torch.stack([eta, last], 1), start), GAMMA * LAM * (1 - start[0])
        for weight, synapses, x, z, delta in zip(self.actor, self.synapses, xs, zs, deltas, strict=True):
            derivative = torch.ones_like(z) if z is zs[-1] else (z > 0).to(z)  # f' of the output and of ReLU
            weight.grad -= synapses.update(x, derivative, delta, weights, kept) / eta.numel()  # lines 6 and 8
        nn.utils.clip_grad_norm_(self.parameters(), MAX_NORM)


def main(total=TOTAL, seed=0):
    """Learn CartPole and print the mean return of the last 100 training episodes."""
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    envs = gymnasium.make_vec("CartPole-v1", ENVS, "sync", vector_kwargs={"autoreset_mode": "SameStep"})
    agent = ActorCritic(envs.single_observation_space.shape[0], envs.single_action_space.n)
    optimizer = torch.optim.Adam(agent.parameters(), eps=1e-5)
    observation, start, running, finished = envs.reset(seed=seed)[0], np.ones(ENVS), np.zeros(ENVS), []
    for samples in range(0, total, ENVS * STEPS):
        rollout = []
        for _ in range(STEPS):
            policy = agent(torch.from_numpy(observation))[1][-1].detach().softmax(-1)
            action = torch.multinomial(policy, 1)[:, 0].numpy()  # line 4
            new, reward, terminated, truncated, info = envs.step(action)  # line 5
            done, following, running = terminated | truncated, new.copy(), running + reward
            if done.any():
                following[done] = np.stack(info["final_obs"][done])
                finished.extend(running[done])
            rollout.append((observation, action, reward, start, terminated, following))
            observation, start, running = new, done, running * ~done
        observations, actions, *rest = (torch.from_numpy(np.stack(s)) for s in zip(*rollout, strict=True))
        agent.set_gradients(observations, actions, *(signal.float() for signal in rest))
        optimizer.param_groups[0]["lr"] = RATE * (1 - samples / total)  # annealed to zero
        optimizer.step()  # line 10
        if samples % (100 * ENVS * STEPS) == 0 or samples + ENVS * STEPS >= total:
            print(f"{samples:,} samples, mean return of the last 100 episodes: {np.mean(finished[-100:]):.1f}")


if __name__ == "__main__":
    main()
