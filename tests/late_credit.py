"""Random layers with late credit, chunks of signals for them, and their update from the formulas alone."""

from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import strategies as st

from cet_rl import CET, ET, LTPLTD, FiniteKernel, Legendre, Optimal, PerfectMemory, SharpCET, Trace
from cet_rl.credit import Convolution, Dense, Geometry, Synapses


@dataclass(frozen=True)
class Echo(Trace):
    """A trace of one's own: a decay, heard again some steps later."""

    delay_steps: int

    def transition(self):
        states = self.delay_steps + 2
        M = np.eye(states, k=-1)
        M[0, 0] = 0.7
        return M, np.eye(states)[0], np.eye(states)[0] - 2 * np.eye(states)[-1]


NORMALIZATIONS = st.sampled_from(["area", "peak"])
ORDERS = st.integers(2, 6)
DELAYS = st.integers(1, 12)
TRACES = st.one_of(
    st.none(),
    *(st.builds(kind, ORDERS, DELAYS, NORMALIZATIONS) for kind in (CET, SharpCET, Legendre)),
    st.builds(ET, st.floats(0.05, 0.95), NORMALIZATIONS),
    st.builds(LTPLTD, DELAYS, st.floats(1.5, 4), NORMALIZATIONS),
    st.builds(PerfectMemory, st.integers(0, 12)),
    st.builds(Optimal, st.integers(1, 6), DELAYS, NORMALIZATIONS, st.sampled_from([0.0, 0.2])),
    st.builds(Echo, st.sampled_from([2, 9])),
    st.builds(FiniteKernel, st.lists(st.floats(0.1, 1) | st.floats(-1, -0.1), min_size=1, max_size=4)),
    st.builds(FiniteKernel, st.just([0.0] * 70 + [1.0, 0.5, 2.0])),
)
DENSE = st.builds(Dense, st.integers(1, 4), st.integers(1, 3), st.booleans())
CONVOLUTIONS = st.builds(
    Convolution,
    in_channels=st.integers(1, 3),
    out_channels=st.integers(1, 3),
    kernel_size=st.integers(1, 3),
    in_size=st.tuples(st.integers(3, 5), st.integers(3, 5)),
    stride=st.integers(1, 2),
    padding=st.integers(0, 1),
    bias=st.booleans(),
)


def random_signals(generator, steps, envs, pre_shape, post_shape, dtype=torch.float64):
    """Return random activity with ReLU derivatives, episode starts, and steps that are no transition."""

    def normal(*shape):
        return torch.randn(steps, envs, *shape, generator=generator, dtype=torch.float64).to(dtype)

    valid = (torch.rand(steps, envs, generator=generator) > 0.1).to(dtype)
    each = valid.view(steps, envs, *(1 for _ in post_shape))
    derivative, error = (normal(*post_shape) > 0).to(dtype) * each, normal(*post_shape) * each
    start = (torch.rand(steps, envs, generator=generator) < 0.15).to(dtype)
    return normal(*pre_shape), derivative, error, normal() * valid, start


@dataclass(frozen=True)
class Problem:
    """A layer and the lengths of several chunks of signals for it."""

    geometry: Geometry
    num_envs: int
    trace: Trace | None
    delay_steps: int
    chunks: list[int]
    decay: float = 0.0
    seed: int = 0

    def layer(self, executor="auto", **options):
        given = {"trace": self.trace, "delay_steps": self.delay_steps, "gamma_lam": self.decay}
        given |= {"num_envs": self.num_envs, "rollout": self.chunks[0], "dtype": torch.float64}
        return Synapses(geometry=self.geometry, executor=executor, **{**given, **options})

    def signals(self, repeats=1):
        shapes, generator = (self.geometry.pre_shape, self.geometry.post_shape), self.generator()
        return [random_signals(generator, steps, self.num_envs, *shapes) for steps in self.chunks * repeats]

    def generator(self):
        return torch.Generator().manual_seed(self.seed)

    def decay_per_weight(self):
        return torch.rand(self.geometry.weight_shape, generator=self.generator(), dtype=torch.float64)

    def updates_by_formula(self, parts, outer):
        """Return the sum of all updates from the formulas and the kernel, given a layer's outer product."""
        pre, derivative, error, td_error, start = joined(parts)
        (total, envs), D, trace = td_error.shape, self.delay_steps, self.trace
        kernel = torch.ones(1, dtype=torch.float64) if trace is None else trace.kernel(total)
        gradient = torch.zeros(self.geometry.weight_shape, dtype=torch.float64)
        for env in range(envs):
            e = torch.zeros_like(gradient)
            for t in range(D, total):
                arriving = error[t - D, env]
                e *= self.decay * (1 - start[t - D, env])
                for lag in range(min(t + 1, len(kernel))):
                    e += kernel[lag] * outer(arriving * derivative[t - lag, env], pre[t - lag, env])
                gradient += td_error[t - D, env] * e
        return gradient


def problems(geometries, longest=20, decays=(0.0, 0.5, 0.94, 0.999)):
    """Draw problems whose chunks have up to `longest` steps."""
    return st.builds(
        Problem,
        geometry=geometries,
        num_envs=st.integers(1, 3),
        trace=TRACES,
        delay_steps=st.integers(0, 15),
        chunks=st.lists(st.integers(1, longest), min_size=1, max_size=5),
        decay=st.sampled_from(decays),
        seed=st.integers(0, 2**31),
    )


def joined(parts):
    """Return chunks of signals as one."""
    return [torch.cat(kind) for kind in zip(*parts, strict=True)]


def dense_eligibility(layer):
    """Return e of each environment, (E, *weight_shape), also of a layer that keeps it as weights of its past."""
    if layer.past_eligibility is None:
        return layer.eligibility
    geometry, post, pre = layer.geometry, layer.past_eligibility, layer.past_pre
    return geometry.outer_sum_by_env(geometry.unflatten_post(post), geometry.unflatten_pre(pre))
