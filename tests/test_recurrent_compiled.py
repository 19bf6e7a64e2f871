import hashlib
from functools import partial
from pathlib import Path

import numba
import numpy as np
import pytest
import torch

from cet_rl.recurrent import compiled
from cet_rl.recurrent.cell import RNNCell
from cet_rl.recurrent.compiled import loops, network
from cet_rl.recurrent.delayed import Delayed, Readout, TraceFilter, delay_rule
from cet_rl.recurrent.online import Memory, Online
from cet_rl.recurrent.rules import _BUILT_IN
from cet_rl.recurrent.rules.built_in import RFLO
from cet_rl.traces import CET, ET, Legendre, PerfectMemory, SharpCET

STEPS, CELL = 60, RNNCell(5, 2, 3, alpha=0.3)
OPTIONS = {
    **{"bptt": {"window": 7}, "future-bptt": {"window": 7}, "kernl": {"rate": 0.02}},
    **{"dni": {"rate": 0.05, "renewal": 4}, "dni-b": {"rate": 0.05, "jacobian_rate": 0.02}},
}
RULES = {kind.name: partial(kind, **OPTIONS.get(kind.name, {})) for kind in _BUILT_IN}
LATE = ["fixed-w", "rflo", "kernl", "dni", "dni-b"]
TRACES = {
    "cet": (CET(5, 6), 6),
    "sharp": (SharpCET(4, 6), 6),
    "legendre": (Legendre(5, 6), 6),
    "et": (ET.from_delay(6), 6),
    "perfect": (PerfectMemory(6), 6),
    "perfect without delay": (PerfectMemory(0), 0),
    "cet for another delay": (CET(3, 4), 9),
}


def build(name, *, batch=3, trace=None, delay=0, feedback=False, dtype=torch.float64, cell=CELL, **options):
    """How it learns, what it starts with, and (x, label, noise) of STEPS steps."""
    generator = torch.Generator().manual_seed(7)
    back = torch.randn(cell.outputs, cell.units, generator=generator).to(dtype) if feedback else None
    rule = delay_rule(RULES[name](cell), trace, delay)
    online = Online(cell, rule, Readout(trace, delay), feedback=back, **{"lr": 0.05, **options})
    rates = 0.3 * torch.randn(batch, cell.units, generator=generator).to(dtype)
    memory = online.begin(*cell.initial_weights(generator, dtype), rates, generator)
    x = torch.randint(0, 2, (STEPS, batch, cell.inputs), generator=generator).to(dtype)
    label = torch.rand(STEPS, batch, cell.outputs, generator=generator).to(dtype)
    label = label / label.sum(2, keepdim=True)
    noise = rule.draw(batch, STEPS, generator)
    return online, memory, (x, label, None if noise is None else noise.to(dtype))


def assert_same(got, want, tolerance=1e-10):
    assert list(got) == list(want)
    for name, tensor in want.items():
        assert got[name].dtype == tensor.dtype
        assert tensor.isfinite().all(), f"{name} is not finite: nothing to compare"
        scale = tensor.abs().max().item() if tensor.numel() else 0.0
        torch.testing.assert_close(
            got[name], tensor, rtol=0, atol=tolerance * scale, msg=lambda text, name=name: f"{name}: {text}"
        )


def assert_runs_alike(online, memory, data, clock=0, tolerance=1e-10):
    before = {name: tensor.clone() for name, tensor in memory.named().items()}
    got, losses = compiled.run(online, memory, clock, *data)
    for name, tensor in memory.named().items():
        assert torch.equal(tensor, before[name]), f"{name} was changed"
    want, expected = online.run(memory, clock, *data)
    assert_same(got.named(), want.named(), tolerance)
    assert_same({"losses": losses}, {"losses": expected}, tolerance)
    return got, losses


@pytest.mark.parametrize("name", RULES)
def test_every_rule_learns_as_defined(name):
    for batch in (1, 3, 6):
        assert_runs_alike(*build(name, batch=batch))
    for batch in (1, 3):
        # Sums of gradients and fixed feedback; with 60 steps and a clock of 2, two steps are pending in the end.
        got, _ = assert_runs_alike(*build(name, batch=batch, update_every=3, feedback=True), clock=2)
        assert got.pending_out.abs().max() > 0
    assert_runs_alike(*build(name, cell=RNNCell(1, 1, 1, alpha=1.0, output="linear"), lr=0.01))


@pytest.mark.parametrize("output", ["softmax", "linear"])
@pytest.mark.parametrize("activation", ["tanh", "identity"])
@pytest.mark.parametrize("name", ["rflo", "kernl", "future-bptt", "dni-b"])
def test_with_other_networks(name, activation, output):
    cell = RNNCell(4, 1, 2, alpha=0.5, activation=activation, output=output)
    online, memory, data = build(name, cell=cell, lr=0.005)
    # A linear network with what is learned about it diverges unless it forgets.
    assert_runs_alike(online, memory._replace(weight=0.5 * memory.weight), data)


@pytest.mark.parametrize("kind", TRACES)
@pytest.mark.parametrize("name", LATE)
def test_late_errors(name, kind):
    trace, delay = TRACES[kind]
    assert_runs_alike(*build(name, trace=trace, delay=delay, batch=1))
    assert_runs_alike(*build(name, trace=trace, delay=delay, update_every=3, feedback=True))


CUTS = [(name, None) for name in RULES] + [(name, kind) for name in ("rflo", "dni") for kind in TRACES]


@pytest.mark.parametrize(("name", "kind"), CUTS)
def test_a_run_may_be_cut_anywhere_and_go_on_with_the_other_executor(name, kind):
    # The cuts lie within windows of 7, within updates of 3 and within delays of 6 and 9.
    trace, delay = TRACES[kind] if kind else (None, 0)
    online, memory, data = build(name, trace=trace, delay=delay, update_every=3)
    fast, slow = compiled.run, Online.run
    for executors, cuts, tolerance in (
        ((fast, slow, fast), (0, 17, 33), 1e-10),
        ((slow, fast, slow), (0, 17, 33), 1e-10),
        ((fast, fast, fast), (0, 1, 18), 0.0),
    ):
        want, losses = executors[0](online, memory, 4, *data)
        now, heard = memory, []
        for execute, first, last in zip(executors, cuts, (*cuts[1:], STEPS), strict=True):
            some = [None if tensor is None else tensor[first:last] for tensor in data]
            now, loss = execute(online, now, 4 + first, *some)
            heard.append(loss)
        assert_same(now.named(), want.named(), tolerance)
        assert_same({"losses": torch.cat(heard)}, {"losses": losses}, tolerance)


@pytest.mark.parametrize("name", ["rflo", "uoro"])
def test_single_precision(name):
    online, memory, data = build(name, batch=4, dtype=torch.float32)
    got, losses = assert_runs_alike(online, memory, data, tolerance=1e-4)
    assert losses.dtype == torch.float32
    # Double precision is further away than its own rounding: nothing was promoted.
    double = Memory.from_named({key: tensor.double() for key, tensor in memory.named().items()})
    exact, _ = online.run(double, 0, *(None if tensor is None else tensor.double() for tensor in data))
    assert 1e-9 < (got.weight.double() - exact.weight).abs().max() < 1e-4


def test_noise_as_it_is_drawn_and_tensors_in_any_layout():
    online, memory, (x, label, noise) = build("uoro")
    want, _ = compiled.run(online, memory, 0, x, label, noise)
    got, _ = compiled.run(online, memory, 0, x.mT.contiguous().mT, label, noise.float())
    assert_same(got.named(), want.named(), 0.0)


def test_what_is_not_finite_stays_visible():
    for name in RULES:
        online, memory, data = build(name)
        memory.weight_out[0, 0] = torch.inf
        after, losses = compiled.run(online, memory, 0, *data)
        assert not losses[-1].isfinite()
        assert not after.weight_out.isfinite().all()
    online, memory, data = build("fixed-w")
    memory.rates[0, 0] = torch.nan
    assert compiled.run(online, memory, 0, *data)[0].rates[0].isnan().all()


def own(kind):
    """Return a subclass, which may do something else."""
    return type(f"Own{kind.__name__}", (kind,), {"name": "own"})


def test_supports_no_class_but_those_of_this_package():
    online, memory, data = build("rflo")
    cell, trace = online.cell, CET(3, 4)
    rule, readout = RFLO(cell), Readout(trace, 4)
    readout.filter = own(TraceFilter)(trace)
    for supported in (online, Online(cell, Delayed(rule, trace, 4), Readout(trace, 4))):
        assert compiled.supports(supported, memory)
    for unsupported in (
        Online(cell, own(RFLO)(cell)),
        Online(cell, Delayed(own(RFLO)(cell), trace, 4)),
        Online(cell, own(Delayed)(rule, trace, 4)),
        Online(cell, rule, own(Readout)()),
        Online(cell, rule, readout),
        Online(own(RNNCell)(5, 2, 3), rule),
        own(Online)(cell, rule),
    ):
        assert not compiled.supports(unsupported, memory)
    with pytest.raises(ValueError, match="cannot run OwnRFLO here"):
        compiled.run(Online(cell, own(RFLO)(cell)), memory, 0, *data)


def test_supports_float32_and_float64_on_a_cpu():
    online, memory, _ = build("rflo")

    def moved(to):
        return Memory.from_named({name: tensor.to(to) for name, tensor in memory.named().items()})

    assert compiled.supports(online, moved(torch.float32))
    for other in (moved(torch.bfloat16), moved("meta"), memory._replace(rates=memory.rates.float())):
        assert not compiled.supports(online, other)
    online.feedback = torch.zeros(3, 5)
    assert not compiled.supports(online, memory)


def test_tensors_that_do_not_fit_are_refused():
    online, memory, (x, label, noise) = build("uoro")

    def refused(match, memory=memory, x=x, label=label, noise=noise):
        with pytest.raises(ValueError, match=match):
            compiled.run(online, memory, 0, x, label, noise)

    refused(r"x must have the shape \(60, 3, 2\)", x=x[..., :1])
    refused(r"label must have the shape \(60, 3, 3\)", label=label[1:])
    refused(r"noise must have the shape \(60, 3, 5\)", noise=noise[:, :1])
    refused("needs noise", noise=None)
    refused(r"rates in the memory must have the shape \(3, 5\)", memory._replace(rates=memory.rates[:, :4]))
    refused(r"B in the memory", memory._replace(rule={**memory.rule, "B": memory.rule["B"][:2]}))
    refused(
        r"must hold .* rule\.A, rule\.B, .* got .* rule\.A, weight", memory._replace(rule={"A": memory.rule["A"]})
    )
    online.feedback = torch.zeros(5, 3, dtype=torch.float64)
    refused(r"feedback .* must have the shape \(3, 5\)")


@numba.njit(error_model="numpy")
def tanh(values):
    network.tanh(values)
    return values


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_tanh_is_as_exact_as_the_c_librarys(dtype):
    steps = np.concatenate([np.linspace(-22, 22, 40_001), np.logspace(-30, 0, 3_001), -np.logspace(-30, 0, 3_001)])
    values = steps.astype(dtype)
    exact = np.tanh(values.astype(np.longdouble))
    assert np.max(np.abs(tanh(values[None].copy())[0] - exact) / np.spacing(np.abs(exact).astype(dtype))) < 2.5
    ends = np.array([[0.0, -0.0, np.inf, -np.inf, np.nan, 3e38]], dtype)
    np.testing.assert_array_equal(tanh(ends.copy())[0], np.array([0, 0, 1, -1, np.nan, 1], dtype))
    assert np.signbit(tanh(ends.copy())[0, 1])


def test_machine_code_of_another_network_is_not_used():
    source = Path(network.__file__).read_bytes()
    assert hashlib.sha256(source).hexdigest()[:16] == loops.NETWORK_DIGEST, "network.py has changed: renew it"


def test_compiles_where_nothing_can_be_written(monkeypatch):
    # Of numba's places for machine code, this one is for notebooks only.
    monkeypatch.setattr(numba.config, "CACHE_LOCATOR_CLASSES", "IPythonCacheLocator", raising=False)
    with pytest.raises(RuntimeError, match="cannot cache"):
        numba.njit(cache=True)(build)
    assert network.loop(lambda x: x + 1)(1) == 2
