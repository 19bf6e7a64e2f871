"""Float32 over millions of samples at order 10 and 800 steps, state by state, beside float64.

    python benchmarks/soak.py [--samples 5000000] [--order 10] [--delay-steps 800]

Two layers' worth of synapses, one in float32 and one in float64, get the same signals for the whole time: noise
whose activity and credit come and go, as they do while an agent learns. Prints, for each trace, the largest
magnitude that each state reached and the largest error of the float32 update, relative to the root mean square of
the float64 one. Exits with an error if anything is not finite.
"""

from __future__ import annotations

import argparse

import torch

from cet_rl import CET, Legendre, Optimal, SharpCET
from cet_rl.credit import Synapses
from cet_rl.traces.base import Trace

N_IN, N_OUT, NUM_ENVS, STEPS = 24, 16, 4, 128


def soak(trace: Trace, samples: int, delay_steps: int, seed: int = 0) -> tuple[list[float], float]:
    """Run it.

    Returns:
        The largest magnitude of each state over time, and the largest relative error of an update.

    Raises:
        FloatingPointError: if a state, an eligibility or an update is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    layers = {
        dtype: Synapses(
            N_IN,
            N_OUT,
            trace,
            delay_steps=delay_steps,
            gamma_lam=0.99 * 0.95,
            num_envs=NUM_ENVS,
            rollout=STEPS,
            executor="chunk",
            dtype=dtype,
        )
        for dtype in (torch.float32, torch.float64)
    }
    largest = torch.zeros(trace.states, dtype=torch.float64)
    square, updates, worst = 0.0, 0, 0.0
    for chunk in range(-(-samples // (NUM_ENVS * STEPS))):
        loudness = 2.0 ** ((chunk // 50) % 5 - 2)
        signals = [
            torch.rand(STEPS, NUM_ENVS, N_IN, generator=generator, dtype=torch.float64) * loudness,
            (torch.rand(STEPS, NUM_ENVS, N_OUT, generator=generator) < 0.5).double(),
            torch.randn(STEPS, NUM_ENVS, N_OUT, generator=generator, dtype=torch.float64),
            torch.randn(STEPS, NUM_ENVS, generator=generator, dtype=torch.float64),
            (torch.rand(STEPS, NUM_ENVS, generator=generator) < 0.005).double(),
        ]
        found = {dtype: layer(*(signal.to(dtype) for signal in signals)) for dtype, layer in layers.items()}
        single = layers[torch.float32]
        assert single.states is not None
        for tensor in (single.states, single.eligibility, found[torch.float32]):
            if not torch.isfinite(tensor).all():
                raise FloatingPointError(f"{trace}: not finite after {(chunk + 1) * NUM_ENVS * STEPS:,} samples")
        largest = torch.maximum(largest, single.states.abs().amax(dim=(0, 1, 3)).double())
        square += float((found[torch.float64] ** 2).mean())
        updates += 1
        worst = max(worst, float((found[torch.float32].double() - found[torch.float64]).abs().max()))
    return largest.tolist(), worst / (square / updates) ** 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=5_000_000)
    parser.add_argument("--order", type=int, default=10)
    parser.add_argument("--delay-steps", type=int, default=800)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{arguments.samples:,} samples, {arguments.delay_steps} steps\n")
    print("| trace | largest of each state | error of an update |\n|---|---|---|")
    for kind in (CET, SharpCET, Legendre, Optimal):
        trace = kind(arguments.order, arguments.delay_steps, "peak")
        largest, error = soak(trace, arguments.samples, arguments.delay_steps)
        shown = ", ".join(f"{value:.2g}" for value in largest)
        print(f"| {kind.__name__} {arguments.order} | {shown} | {error:.1e} |", flush=True)


if __name__ == "__main__":
    main()
