"""What becomes of the actor's gradient if δ waits and the TD error does not, with a memory that is perfect.

    python benchmarks/undelayed_td_error.py [SAMPLES ...]

Takes agents after so many samples of CartPole, three seeds, with a delay of 13 steps, and prints the cosine with
the true gradient over 4,096 more samples, lowest and highest of the actor's layers. First δ, η and episode starts
are delayed together, then η is not, then neither η nor episode starts are. About a minute.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from cet_rl import PerfectMemory
from cet_rl.agents import CETActorCritic
from cet_rl.credit import Synapses
from cet_rl.credit.alignment import cosine
from cet_rl.envs import make_vec_env

DELAY, ENVS, STEPS = 13, 4, 128


def record(model: CETActorCritic, rollouts: int = 8) -> list[list[Tensor]]:
    """Return the signals of each of the actor's layers over some rollouts, (time, environment, …), in float64."""
    found: list[list[list[Tensor]]] = [[] for _ in model.synapses]
    hooks = [
        synapses.register_forward_pre_hook(
            lambda _, signals, seen=seen: seen.append([s.double() for s in signals])
        )
        for synapses, seen in zip(model.synapses, found, strict=True)
    ]
    model.learn(rollouts * STEPS * ENVS, reset_num_timesteps=False)
    for hook in hooks:
        hook.remove()
    return [[torch.cat(chunks) for chunks in zip(*seen, strict=True)] for seen in found]


def cosines(model: CETActorCritic, layer: int, signals: list[Tensor]) -> list[float]:
    """Return the cosines of one layer."""
    pre, derivative, error, td_error, start = signals
    shared = {"geometry": model.learner.actor.geometries[layer], "gamma_lam": model.gamma * model.gae_lambda}

    def update(delay: int, td_error: Tensor, start: Tensor) -> Tensor:
        trace = PerfectMemory(DELAY) if delay else None
        synapses = Synapses(trace=trace, delay_steps=delay, num_envs=ENVS, dtype=torch.float64, **shared)
        return synapses(pre, derivative, error, td_error, start)

    def earlier(signal: Tensor) -> Tensor:
        """Return a signal that arrives undelayed after the synapses have delayed it."""
        return torch.cat([signal[DELAY:], torch.zeros_like(signal[:DELAY])])

    arrived = td_error.clone()
    arrived[-DELAY:] = 0  # the credit of the last steps does not arrive any more
    truth = update(0, arrived, start)
    late = (td_error, start), (earlier(td_error), start), (earlier(td_error), earlier(start))
    return [cosine(truth, update(DELAY, *each)).item() for each in late]


def main(samples: list[int]) -> None:
    """Print a line for each seed and number of samples learned before."""
    print("seed  samples   all delayed   η undelayed   η and starts undelayed")
    for seed in range(3):
        env = make_vec_env("CartPole-v1", ENVS, seed)
        networks = {"net_arch": [32, 32]}
        options = {"trace": "perfect", "n_steps": STEPS, "learning_rate": 1e-3, "policy_kwargs": networks}
        model = CETActorCritic("MlpPolicy", env, delay=0.2 * DELAY, seed=seed, device="cpu", **options)
        for learned in samples:
            model.lr_schedule = lambda _: 1e-3
            if learned > model.num_timesteps:
                model.learn(learned - model.num_timesteps, reset_num_timesteps=False)
            model.lr_schedule = lambda _: 1e-12  # the weights rest while signals are recorded
            found = [cosines(model, layer, signals) for layer, signals in enumerate(record(model))]
            shown = [f"{min(column):.2f} … {max(column):.2f}" for column in zip(*found, strict=True)]
            print(f"{seed:4}  {learned:7}   " + "   ".join(shown), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main([int(argument) for argument in sys.argv[1:]] or [0, 30_000, 100_000])
