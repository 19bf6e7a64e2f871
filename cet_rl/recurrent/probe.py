"""How well a network does, and how well its rule's gradient points along the true one, with frozen weights."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from cet_rl.recurrent.cell import Cell
from cet_rl.recurrent.online import Memory, Online
from cet_rl.recurrent.rules.base import Moment
from cet_rl.recurrent.tasks import Stream

BURN_IN = 50
"""Steps from silence before anything counts."""

PROBED = 50
"""Steps whose losses the probed gradient is of."""


@torch.no_grad()
def test_loss(cell: Cell, memory: Memory, stream: Stream, steps: int) -> float:
    """Mean loss over some steps of each sequence of a stream, after a burn-in from r = 0.

    Args:
        cell: of the network.
        memory: with its weights.
        stream: to test on; B sequences.
        steps: that count, of each sequence.
    """
    x, label = (tensor.to(memory.weight.device) for tensor in stream.take(BURN_IN + steps))
    rates = memory.rates.new_zeros(x.shape[1], cell.units)
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    for step in range(len(x)):
        rates = cell.advance(memory.weight, rates, x[step]).rates
        if step >= BURN_IN:
            total += cell.loss(cell.read(memory.weight_out, rates), label[step]).mean()
    return float(total) / steps


def measure_alignment(
    online: Online, memory: Memory, stream: Stream, generator: torch.Generator
) -> tuple[float, float]:
    """Cosines between the gradients that learning would use and the true ones, weights frozen.

    The network runs through a burn-in without errors and then some steps with; what counts is all of the gradient
    that the rule gives for these errors, however late, against backpropagation through all of it. What the rule
    has learned of its own (`Rule.shared`) is that of `memory`.

    Args:
        online: how it learns.
        memory: with weights and the rule's state; left untouched.
        stream: to probe with; B sequences.
        generator: of the rule's noise.

    Returns:
        Cosines for W and W_out; nan where a gradient is zero.
    """
    x, label = (tensor.to(memory.weight.device) for tensor in stream.take(BURN_IN + PROBED))
    used = _used_gradients(online, memory, x, label, generator)
    true = _true_gradients(online.cell, memory, x, label)
    first, second = (_cosine(mine, wanted) for mine, wanted in zip(used, true, strict=True))
    return first, second


@torch.no_grad()
def _used_gradients(
    online: Online, memory: Memory, x: Tensor, label: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    cell, rule, weight, weight_out = online.cell, online.rule, memory.weight, memory.weight_out
    rates = memory.rates.new_zeros(x.shape[1], cell.units)
    state = rule.init_state(weight, rates, generator)
    state |= {name: memory.rule[name] for name in rule.shared}
    layer = online.readout.init_state(rates, cell.outputs)
    noise = rule.draw(x.shape[1], len(x), generator)
    gradient, gradient_out = torch.zeros_like(weight), torch.zeros_like(weight_out)
    for step in range(len(x)):
        inputs, rates, slope = cell.advance(weight, rates, x[step])
        error = cell.error(cell.read(weight_out, rates), label[step]) * (step >= BURN_IN)
        credit = cell.credit(weight_out, error) if online.feedback is None else error @ online.feedback
        drawn = None if noise is None else noise[step].to(weight)
        state, new = rule.step(state, Moment(weight, inputs, rates, slope, credit, label[step], drawn, step))
        layer, new_out = online.readout.step(layer, error, rates)
        gradient, gradient_out = gradient + new, gradient_out + new_out
    for _ in range(online.readout.delay_steps):
        layer, new_out = online.readout.step(layer, torch.zeros_like(error), torch.zeros_like(rates))
        gradient_out = gradient_out + new_out
    return gradient + rule.flush(state, weight), gradient_out


@torch.enable_grad()
def _true_gradients(cell: Cell, memory: Memory, x: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    weight = memory.weight.detach().clone().requires_grad_()
    weight_out = memory.weight_out.detach().clone().requires_grad_()
    rates = memory.rates.new_zeros(x.shape[1], cell.units)
    objective = torch.zeros((), dtype=weight.dtype, device=weight.device)
    for step in range(len(x)):
        rates = cell.advance(weight, rates, x[step]).rates
        if step >= BURN_IN:
            readout = cell.read(weight_out, rates)
            # The sum whose derivative by the readout is the error that rules descend.
            loss = cell.loss(readout, label[step]) * (cell.outputs if cell.output == "linear" else 1)
            objective = objective + loss.mean()
    first, second = torch.autograd.grad(objective, (weight, weight_out))
    return first, second


def _cosine(a: Tensor, b: Tensor) -> float:
    if not (a.any() and b.any()):
        return float("nan")
    return float(functional.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0))
