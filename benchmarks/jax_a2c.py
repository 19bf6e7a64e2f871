r"""A peer in speed: an undelayed actor-critic that XLA compiles whole, on gymnax's environments.

    python -m venv peer && peer/bin/pip install jax==0.10.2 gymnax==1.0.1 optax==0.2.8 six
    XLA_FLAGS="--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1" taskset -c 0 \
        peer/bin/python benchmarks/jax_a2c.py CartPole-v1 --envs 4 --steps 128 --updates 400 [--runs 8] [--turns]

One update after each rollout of `steps` steps in `envs` environments: actor and critic with two hidden layers of
256 (ReLU), λ-returns, entropy bonus, joint clip, Adam, as our defaults; no synaptic trace and no delay. `--runs`
trains that many seeds at once (vmap). Prints samples per second of processor time, all runs counted, without
compilation; with `--turns` the versions, then the seconds of one training for each line of input
(`benchmarks/peers.py`).
"""

from __future__ import annotations

import argparse
import sys
import time
from importlib.metadata import version

import gymnax
import jax
import jax.numpy as jnp
import optax

GAMMA, LAM, ENTROPY, VALUE, RATE = 0.99, 0.95, 0.01, 0.25, 5e-4


def dense(key, n_in, n_out, scale=2**0.5):
    return {"w": jax.nn.initializers.orthogonal(scale)(key, (n_in, n_out)), "b": jnp.zeros(n_out)}


def network(key, n_in, n_out, hidden):
    keys = jax.random.split(key, 3)
    sizes = [(n_in, hidden), (hidden, hidden), (hidden, n_out)]
    return [dense(k, *size) for k, size in zip(keys, sizes, strict=True)]


def forward(layers, x):
    for layer in layers[:-1]:
        x = jax.nn.relu(x @ layer["w"] + layer["b"])
    return x @ layers[-1]["w"] + layers[-1]["b"]


def build(name, envs, steps, updates, hidden=256):
    env, params = gymnax.make(name)
    actions = env.action_space(params).n
    n_in = int(jnp.prod(jnp.array(env.observation_space(params).shape)))
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(RATE, eps=1e-5))

    def flat(observation):
        return observation.reshape(envs, -1).astype(jnp.float32)

    def loss(nets, observations, chosen, rewards, dones, last):
        values = forward(nets["critic"], jnp.concatenate([observations, last[None]]))[..., 0]
        frozen = jax.lax.stop_gradient(values)

        def back(carry, row):
            reward, done, value, following = row
            error = reward + GAMMA * following * (1 - done) - value
            carry = error + GAMMA * LAM * (1 - done) * carry
            return carry, carry

        rows = (rewards, dones, frozen[:-1], frozen[1:])
        _, advantages = jax.lax.scan(back, jnp.zeros(envs), rows, reverse=True)
        log_policy = jax.nn.log_softmax(forward(nets["actor"], observations))
        picked = jnp.take_along_axis(log_policy, chosen[..., None], -1)[..., 0]
        entropy = -(jnp.exp(log_policy) * log_policy).sum(-1).mean()
        critic = ((values[:-1] - frozen[:-1] - advantages) ** 2).mean()
        return -(picked * advantages).mean() + VALUE * critic - ENTROPY * entropy

    def train(key):
        key, a, c, r = jax.random.split(key, 4)
        nets = {"actor": network(a, n_in, actions, hidden), "critic": network(c, n_in, 1, hidden)}
        observation, state = jax.vmap(env.reset, (0, None))(jax.random.split(r, envs), params)

        def act(carry, _):
            nets, state, observation, key = carry
            key, pick, move = jax.random.split(key, 3)
            chosen = jax.random.categorical(pick, forward(nets["actor"], observation))
            following, state, reward, *ends, _ = jax.vmap(env.step, (0, 0, 0, None))(
                jax.random.split(move, envs), state, chosen, params
            )
            done = sum(end.astype(jnp.float32) for end in ends)
            return (nets, state, flat(following), key), (observation, chosen, reward, jnp.minimum(done, 1))

        def update(carry, _):
            nets, moments, state, observation, key = carry
            (_, state, observation, key), rollout = jax.lax.scan(act, (nets, state, observation, key), None, steps)
            gradient = jax.grad(loss)(nets, *rollout, observation)
            change, moments = optimizer.update(gradient, moments)
            ends = rollout[3].sum()
            return (optax.apply_updates(nets, change), moments, state, observation, key), ends

        begin = (nets, optimizer.init(nets), state, flat(observation), key)
        return jax.lax.scan(update, begin, None, updates)[1]

    return train


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env")
    parser.add_argument("--envs", type=int, default=4)
    parser.add_argument("--steps", type=int, default=128)
    parser.add_argument("--updates", type=int, default=400)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--turns", action="store_true")
    options = parser.parse_args()
    train = build(options.env, options.envs, options.steps, options.updates)
    keys = jax.random.split(jax.random.PRNGKey(0), options.runs)
    compiled = jax.jit(jax.vmap(train)).lower(keys).compile()
    jax.block_until_ready(compiled(keys))
    if options.turns:
        packages = ("jax", "gymnax", "optax")
        print(", ".join(f"{package} {version(package)}" for package in packages), flush=True)
    for _ in sys.stdin if options.turns else ("",):
        began = time.process_time()
        ends = jax.block_until_ready(compiled(keys))
        seconds = time.process_time() - began
        if options.turns:
            print(seconds, flush=True)
    if not options.turns:
        samples, last = options.runs * options.updates * options.steps * options.envs, options.updates // 10
        length = options.steps * options.envs * last / max(float(ends[:, -last:].mean(0).sum()), 1)
        print(f"{options.env}, {options.envs} × {options.steps}, {options.runs} run(s): ", end="")
        print(f"{samples / seconds:,.0f} samples/s, mean episode at the end {length:.0f}")


if __name__ == "__main__":
    main()
