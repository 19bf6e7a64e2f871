"""Errors that come late: the delayed gradient against its formula, and against the credit engine."""

import numpy as np
import pytest
import torch

from cet_rl import CET, ET, Legendre, PerfectMemory, SharpCET
from cet_rl.credit import Synapses
from cet_rl.recurrent import Delayed, Online, Readout, RNNCell, Rule, build_rule
from cet_rl.recurrent.delayed import delay_rule
from cet_rl.recurrent.rules import RULES

DOUBLE = torch.float64
SEPARABLE = ["rflo", "kernl", "dni", "dni-b"]
TRACES = [CET(4, 6), SharpCET(3, 6), Legendre(4, 6), ET.from_delay(6), PerfectMemory(6)]
every_trace = pytest.mark.parametrize("trace", TRACES, ids=lambda trace: type(trace).__name__)


def experience(rule, steps=25, batch=3, seed=0):
    """The moments that a network with frozen weights gives a rule."""
    generator = torch.Generator().manual_seed(seed)
    cell, online = rule.cell, Online(rule.cell, rule)
    weights = cell.initial_weights(generator, DOUBLE)
    rates = torch.zeros(batch, cell.units, dtype=DOUBLE)
    noise = rule.draw(batch, steps, generator)
    moments = []
    for clock in range(steps):
        x = torch.randn(batch, cell.inputs, generator=generator, dtype=DOUBLE)
        label = torch.softmax(torch.randn(batch, cell.outputs, generator=generator, dtype=DOUBLE), dim=1)
        drawn = None if noise is None else noise[clock].to(DOUBLE)
        now, _, _ = online.step_inputs(weights, rates, x, label, drawn, clock)
        rates = now.rates
        moments.append(now)
    return moments


def start(rule, moments):
    return rule.init_state(moments[0].weight, torch.zeros_like(moments[0].rates), torch.Generator().manual_seed(1))


def gradients(rule, moments):
    state, found = start(rule, moments), []
    for now in moments:
        state, gradient = rule.step(state, now)
        found.append(gradient)
    return torch.stack(found), state


def arrivals(steps, batch, jitter, seed):
    """Steps (T, B) in which signals arrive that are made for a delay of six."""
    found = np.empty((steps, batch), int)
    for step in range(steps):
        draws = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(step,))).uniform(-1, 1, batch)
        found[step] = step + np.rint(6 * (1 + jitter * draws))
    return found


@every_trace
@pytest.mark.parametrize("name", SEPARABLE)
@pytest.mark.parametrize("jitter", [0, 0.4, 1])
def test_it_is_the_signal_of_before_times_the_filtered_eligibility(name, trace, jitter):
    rule = build_rule(name, RNNCell(4, 2, 3))
    moments = experience(rule)
    state, signals, eligibilities = start(rule, moments), [], []
    for now in moments:
        state, signal, eligibility = rule.factors(state, now)
        signals.append(signal)
        eligibilities.append(eligibility)
    kernel = trace.kernel(len(moments)).tolist()
    late, _ = gradients(Delayed(rule, trace, 6, jitter, seed=5), moments)
    due = torch.from_numpy(arrivals(len(moments), 3, jitter, seed=5))
    for t, found in enumerate(late):
        recalled = sum(kernel[lag] * eligibilities[t - lag] for lag in range(t + 1))
        expected = (sum((due[s] == t)[:, None] * signals[s] for s in range(t + 1))[:, :, None] * recalled).mean(0)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@every_trace
@pytest.mark.parametrize("name", SEPARABLE)
def test_the_gradient_of_a_sequence_is_that_of_its_steps_and_of_what_comes_later(name, trace):
    rule = build_rule(name, RNNCell(4, 2, 3))
    late, moments = Delayed(rule, trace, 6), experience(rule, steps=9)
    by_step, state = gradients(late, moments)
    expected = by_step.sum(0) + late.pending_gradient(state, moments[0].weight)
    torch.testing.assert_close(late.total(start(rule, moments), moments), expected, rtol=1e-10, atol=1e-12)
    assert expected.abs().max() > 1e-3


@every_trace
def test_without_a_stage_of_the_rule_s_own_it_is_what_the_credit_engine_gives(trace):
    cell = RNNCell(4, 2, 3, alpha=1.0)  # no leak: RFLO's eligibility is that of a feedforward layer
    rule = build_rule("rflo", cell)
    moments = experience(rule)
    late, _ = gradients(Delayed(rule, trace, 6), moments)
    engine = Synapses(cell.columns, cell.units, trace, delay_steps=6, num_envs=3, dtype=DOUBLE)
    zeros = torch.zeros(1, 3, dtype=DOUBLE)
    for now, gradient in zip(moments, late, strict=True):
        found = engine(now.inputs[None], now.slope[None], now.credit[None], zeros + 1, zeros)
        torch.testing.assert_close(found / 3, gradient, rtol=1e-10, atol=1e-12)


@every_trace
@pytest.mark.parametrize("jitter", [0, 0.7])
def test_the_output_layer_waits_for_the_same_steps_also_for_errors_that_come_early_or_late(trace, jitter):
    layer, kernel, seeded = Readout(trace, 6, jitter, seed=3), trace.kernel(43), torch.Generator().manual_seed(0)
    rates, errors = (torch.randn(30, 3, n, generator=seeded, dtype=DOUBLE) for n in (4, 2))
    state, due = layer.init_state(rates[0], 2), torch.from_numpy(arrivals(30, 3, jitter, seed=3))
    known = torch.cat([rates, torch.ones_like(rates[..., :1])], dim=2)
    total = torch.zeros(2, 5, dtype=DOUBLE)
    for t in range(43):
        recalled = sum(kernel[t - before] * known[before] for before in range(min(t + 1, 30)))
        expected = sum((due[s] == t)[:, None] * errors[s] for s in range(min(t + 1, 30))).mT @ recalled / 3
        total += expected
        if t < 30:
            state, found = layer.step(state, errors[t], rates[t], t)
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    if not jitter:  # which `total` leaves out
        torch.testing.assert_close(layer.total(errors, rates), total, rtol=1e-10, atol=1e-12)


def test_every_rule_either_waits_or_refuses():
    trace = CET(4, 6)
    for name in RULES:
        rule = build_rule(name, RNNCell(4, 2, 3))
        assert delay_rule(rule, None, 0) is rule
        if name in SEPARABLE:
            assert isinstance(delay_rule(rule, trace, 6), Delayed)
        elif name == "fixed-w":
            assert delay_rule(rule, trace, 6) is rule
        else:
            with pytest.raises(ValueError, match=f"rule {name} cannot learn from a late error"):
                delay_rule(rule, trace, 6)
    for wrong, message in (((-1,), "delay_steps must be at least 0"), ((6, 2.0), r"jitter must lie in \[0, 1\]")):
        with pytest.raises(ValueError, match=message):
            Readout(trace, *wrong)


def test_learning_online_is_descent_along_the_rule_s_gradients():
    """Two updates of two steps each, written out."""
    cell = RNNCell(3, 2, 2, output="linear")
    rule: Rule = build_rule("rflo", cell)
    feedback = torch.randn(2, 3, dtype=DOUBLE)
    online = Online(cell, rule, lr=0.1, update_every=2, feedback=feedback)
    weight, weight_out = cell.initial_weights(torch.Generator().manual_seed(0), DOUBLE)
    x, label = torch.randn(4, 3, 2, dtype=DOUBLE), torch.randn(4, 3, 2, dtype=DOUBLE)
    memory, losses = online.run(
        online.begin(weight, weight_out, torch.zeros(3, 3, dtype=DOUBLE)), 0, x, label, None
    )
    rates, eligibility = torch.zeros(3, 3, dtype=DOUBLE), torch.zeros(3, 3, 6, dtype=DOUBLE)
    for start in (0, 2):
        first, second = torch.zeros_like(weight), torch.zeros_like(weight_out)
        for t in (start, start + 1):
            inputs, rates, slope = cell.advance(weight, rates, x[t])
            error = torch.cat([rates, torch.ones(3, 1, dtype=DOUBLE)], 1) @ weight_out.T - label[t]
            assert losses[t] == pytest.approx(float(error.square().mean() / 2), rel=1e-12)
            eligibility = 0.5 * eligibility + slope[:, :, None] * inputs[:, None, :]
            first += ((error @ feedback)[:, :, None] * eligibility).mean(0)
            second += error.T @ torch.cat([rates, torch.ones(3, 1, dtype=DOUBLE)], 1) / 3
        weight, weight_out = weight - 0.1 * first, weight_out - 0.1 * second
    torch.testing.assert_close(memory.weight, weight, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(memory.weight_out, weight_out, rtol=1e-12, atol=1e-12)
