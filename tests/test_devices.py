"""Nothing stays on the CPU.

On torch's `meta` device, which computes nothing, operations refuse tensors of other devices as they do on a GPU.
"""

from contextlib import nullcontext
from itertools import product

import pytest
import torch
from torch import nn
from torch.nn import functional

from cet_rl import CET, Legendre, PerfectMemory
from cet_rl.credit import Synapses
from cet_rl.credit.geometry import Convolution, Dense
from cet_rl.traces.registry import TraceConfig
from cet_rl.vision import layers
from cet_rl.vision.conversion import convert
from cet_rl.vision.layers import measured, seen_at, traced_layers

GEOMETRIES = [Dense(70, 5), Dense(70, 5, bias=True), Convolution(2, 3, 3, (6, 6), bias=True)]
TRACES = [None, CET(5, 6), Legendre(4, 5), PerfectMemory(7), CET(10, 60)]


def zeros(*shape, dtype=torch.float32):
    return torch.zeros(*shape, dtype=dtype, device="meta")


@pytest.mark.parametrize("supervised", [False, True])
@pytest.mark.parametrize("executor", ["auto", "step", "chunk", "history", "factored"])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=["dense", "bias", "convolution"])
def test_synapses(geometry, executor, supervised):
    for trace, decay in product(TRACES, (0.0, 0.9, "per weight")):
        if executor == "chunk" and isinstance(geometry, Convolution):
            continue  # it has no states
        if executor in ("chunk", "history", "factored") and decay == "per weight":
            continue  # it has no closed form
        synapses = Synapses(
            geometry=geometry,
            trace=trace,
            gamma_lam=torch.full(geometry.weight_shape, 0.5) if decay == "per weight" else decay,
            num_envs=2,
            executor=executor,
            supervised=supervised,
        ).to("meta")
        for steps in (3, 20):
            pre = zeros(steps, 2, *geometry.pre_shape)
            derivative, error = (zeros(steps, 2, *geometry.post_shape) for _ in range(2))
            modulation = [] if supervised else [zeros(steps, 2), zeros(steps, 2)]
            weight, bias = synapses.advance(pre, derivative, error, *modulation)
            assert weight.device.type == "meta"
            assert (bias is not None) == geometry.bias
        assert {tensor.device.type for tensor in synapses.buffers()} == {"meta"}


@pytest.mark.parametrize("mode", ["batch", "matrix", "streaming", "salience", "streaming salience", "memory"])
@pytest.mark.parametrize("kind", ["cet", "legendre", "perfect"])
@pytest.mark.parametrize("maps", [False, True], ids=["dense", "convolution"])
def test_traced_layers(monkeypatch, maps, kind, mode):
    # Its value would be read, which is what the meta device does not have.
    monkeypatch.setattr(layers, "cosine", lambda a, b: 0.0 if a.device == b.device else pytest.fail("devices"))
    first = [nn.Conv2d(2, 3, 3, padding=1)] if maps else []
    model = nn.Sequential(*first, nn.ReLU(), nn.Flatten(), nn.Linear(48 if maps else 32, 40), nn.Linear(40, 5))
    streaming, salient = "streaming" in mode, "salience" in mode
    model = convert(
        model,
        TraceConfig(kind, normalization="area"),
        delay=1.0,
        streaming=streaming,
        record_alignment=streaming,
        derivative_memory="trace" if mode == "memory" else "exact",
    ).to("meta")
    if mode == "matrix":
        for layer in traced_layers(model).values():
            layer.use_matrix(16)
    for look in (False, True, False):
        with (
            seen_at(model, range(0, 32, 2), 40) if salient else nullcontext(),
            measured(model) if look else nullcontext(),
        ):
            functional.cross_entropy(model(zeros(16, 2, 4, 4)), zeros(16, dtype=torch.int64)).backward()
    there = {name.split(".")[-1] for name, tensor in model.state_dict().items() if tensor.device.type != "meta"}
    assert there <= {"times", "arrivals", "_extra_state"}  # numbers that only Python needs
