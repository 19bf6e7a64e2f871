"""The Triton kernel against the definition: on a CUDA device, and without one in Triton's interpreter.

The interpreter must be asked for before Triton is imported, so this file is also a script, which a test runs.
"""

import random
import sys

import numpy as np
import pytest
import torch
from conftest import run_python
from hypothesis import given
from hypothesis import strategies as st
from late_credit import random_signals

from cet_rl import CET, ET, LTPLTD, Legendre, PerfectMemory, SharpCET
from cet_rl.credit import Signals, Synapses, SynapseState, step, synapses
from cet_rl.credit.chunk import StateConstants
from cet_rl.credit.synapses import compiled_loop
from cet_rl.traces.base import Transition

IMPULSE = Transition(np.zeros((1, 1)), np.ones(1), np.ones(1))
"""No memory at all as a state space: the state is the step's input."""

TRACES = [
    lambda order, delay: None,
    lambda order, delay: ET(1 - 1 / delay),
    lambda order, delay: LTPLTD(delay, 2.0),
    lambda order, delay: CET(order, delay, "peak"),
    lambda order, delay: SharpCET(order, delay),
    lambda order, delay: Legendre(order, delay),
]

GROUPS = [(1, 1), (2, 1), (2, 2), (3, 2), (5, 2), (5, 4)]
"""Environments, and into how many groups to split them at most: whole, uneven, fewer than asked for."""


def assert_near(found, expected, tolerance):
    assert found.shape == expected.shape
    assert torch.isfinite(found).all()
    assert (found - expected).abs().max() <= tolerance * max(1, expected.abs().max())


def check(seed, device="cpu", dtype=torch.float64, tolerance=1e-10):
    """One random layer, several chunks of random lengths with carried state: kernel and definition agree."""
    from cet_rl.credit import fused_cuda

    draw, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    envs, groups = GROUPS[seed % len(GROUPS)]
    n_out, n_in = draw.randint(1, 3), draw.choice([1, 7, 40, 70, 130])
    trace = draw.choice(TRACES)(draw.choice([2, 3, 5]), draw.randint(2, 8))
    constants = StateConstants(IMPULSE if trace is None else trace.transition(), dtype, torch.device(device))
    order = len(constants.K)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device, dtype)

    decay = draw.choice([0.0, 0.94, torch.rand(n_out, n_in, generator=generator, dtype=torch.float64)])
    if isinstance(decay, torch.Tensor):
        decay = decay.to(device, dtype)
    # A state that lies in memory otherwise than the kernel wants it.
    eligibility, states = normal(envs, n_out, n_in), normal(envs, n_out, n_in, order).mT
    reference, state = (SynapseState(eligibility.clone(), states.clone()) for _ in range(2))
    walks = fused_cuda._WALKS
    try:
        fused_cuda._WALKS = groups * n_out * n_in
        for _ in range(draw.randint(1, 3)):
            parts = random_signals(generator, draw.choice([1, 1, 2, 5]), envs, (n_in,), (n_out,), dtype)
            pre, *others = (part.to(device) for part in parts)
            if draw.random() < 0.3:  # as a view of something else
                pre = pre.mT.contiguous().mT
            signals = Signals(pre, *others)
            expected = step(constants, reference, signals, decay)
            assert_near(fused_cuda.fused_cuda(constants, state, signals, decay), expected, tolerance)
            assert_near(state.states, reference.states, tolerance)
            assert_near(state.eligibility, reference.eligibility, tolerance)
    finally:
        fused_cuda._WALKS = walks


def check_layer(executor, per_weight, trace, device="cpu"):
    """A layer asked for `executor` gives the definition's updates, chunk after chunk."""
    generator = torch.Generator().manual_seed(0)
    decay = torch.rand(3, 40, generator=generator, dtype=torch.float64) if per_weight else 0.9
    options = {"gamma_lam": decay, "num_envs": 2, "dtype": torch.float64}
    found, reference = (Synapses(40, 3, trace, executor=e, **options).to(device) for e in (executor, "step"))
    for steps in (1, 4, 1, 2):
        parts = [part.to(device) for part in random_signals(generator, steps, 2, (40,), (3,))]
        assert_near(found(*parts), reference(*parts), 1e-10)


LAYERS = [("auto", True), ("fused", True), ("fused", False)]


def interpret():
    """What there is to check without a device; run with TRITON_INTERPRET=1."""
    from cet_rl.credit.fused_cuda import fused_cuda

    for seed in range(24):
        check(seed)
    for seed in range(24, 28):
        check(seed, dtype=torch.float32, tolerance=1e-3)
    synapses.compiled_loop = lambda device_type: fused_cuda
    for executor, per_weight in LAYERS:
        check_layer(executor, per_weight, CET(3, 2))
    check_layer("auto", True, PerfectMemory(2))


def test_the_interpreted_kernel_equals_the_definition():
    pytest.importorskip("triton", reason="Triton is not installed; it comes with torch's CUDA builds")
    run_python(__file__, TRITON_INTERPRET="1", OMP_NUM_THREADS="1", succeeds=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("trace", [ET(0.9), CET(2, 8), CET(5, 40), CET(10, 40), Legendre(10, 40)], ids=str)
def test_the_kernel_compiles(trace, dtype):
    """Down to machine code, which takes no device; the interpreter accepts more than the compiler does."""
    triton = pytest.importorskip("triton", reason="Triton is not installed; it comes with torch's CUDA builds")
    from triton.backends import backends
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from cet_rl.credit import fused_cuda

    if "nvidia" not in backends:
        pytest.skip("this Triton compiles for no NVIDIA device")
    pattern, values = StateConstants(trace.transition(), dtype, torch.device("cpu")).coefficients
    names = fused_cuda._kernel.arg_names
    first_count, first_constant = names.index("steps"), names.index("PATTERN")
    source = ASTSource(
        fused_cuda._kernel,
        {
            **dict.fromkeys(names[:first_count], {torch.float32: "*fp32", torch.float64: "*fp64"}[dtype]),
            **dict.fromkeys(names[first_count:first_constant], "i32"),
            **dict.fromkeys(names[first_constant:], "constexpr"),
        },
        {"PATTERN": pattern, "COUNT": len(values), "BLOCK": 128},
    )
    options = {"num_warps": 2, "enable_fp_fusion": True}
    assert triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["cubin"]


def test_cpus_have_a_compiled_loop_and_where_triton_is_missing_a_warning_says_so(monkeypatch):
    assert compiled_loop("cpu").__module__ == "cet_rl.credit.fused"
    assert compiled_loop("mps") is None
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "cet_rl.credit.fused_cuda", raising=False)
    compiled_loop.cache_clear()
    with pytest.warns(UserWarning, match=r"no compiled loop on CUDA .*triton"):
        assert compiled_loop("cuda") is None
    assert compiled_loop("cuda") is None  # and says it once
    compiled_loop.cache_clear()


@pytest.mark.parametrize(("executor", "per_weight"), LAYERS)
def test_without_a_compiled_loop_the_others_serve(executor, per_weight, monkeypatch):
    monkeypatch.setattr(synapses, "compiled_loop", lambda device_type: None)
    check_layer(executor, per_weight, CET(3, 2))


@pytest.mark.cuda
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-3)], ids=str)
@given(seed=st.integers(0, 2**31))
def test_the_kernel_equals_the_definition(dtype, tolerance, seed):
    pytest.importorskip("triton")
    check(seed, "cuda", dtype, tolerance)


@pytest.mark.cuda
@pytest.mark.parametrize(("executor", "per_weight"), LAYERS)
@pytest.mark.parametrize("trace", [None, PerfectMemory(3), CET(5, 4)], ids=str)
def test_layers_on_a_device_take_the_kernel(executor, per_weight, trace):
    pytest.importorskip("triton")
    from cet_rl.credit.fused_cuda import fused_cuda

    assert compiled_loop("cuda") is fused_cuda
    check_layer(executor, per_weight, trace, "cuda")


@pytest.mark.cuda
@pytest.mark.parametrize("envs", [1, 8])
def test_large_layers_and_the_same_numbers_again(envs):
    pytest.importorskip("triton")
    generator = torch.Generator().manual_seed(0)
    decay = torch.rand(256, 600, generator=generator)
    parts = random_signals(generator, 32, envs, (600,), (256,), torch.float32)
    updates = []
    for executor in ("step", "fused", "fused"):
        synapses = Synapses(600, 256, CET(10, 5), gamma_lam=decay, num_envs=envs, executor=executor).cuda()
        updates.append(synapses(*(part.cuda() for part in parts)))
    assert torch.equal(updates[1], updates[2])
    assert_near(updates[1], updates[0], 1e-4)


if __name__ == "__main__":
    interpret()
