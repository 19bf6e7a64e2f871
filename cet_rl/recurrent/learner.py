"""Train a recurrent network online on an endless task."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cet_rl.credit.alignment import cosine
from cet_rl.recurrent.cell import RNNCell
from cet_rl.recurrent.compiled import run as run_compiled
from cet_rl.recurrent.compiled import supports
from cet_rl.recurrent.config import RecurrentConfig
from cet_rl.recurrent.delayed import Delayed, Readout, delay_rule
from cet_rl.recurrent.online import Memory, Online
from cet_rl.recurrent.rules import build_rule, parse_options
from cet_rl.recurrent.tasks import SequenceTask, Stream, build_task
from cet_rl.runs.learner import Learner

# Steps of a chunk, summed over its sequences, and least time steps of one; an interruption waits for its end.
CHUNK, SHORTEST_CHUNK = 1000, 50

# Sequences of the test stream, and the length of each at the end of a run and at a logged point.
TEST_SEQUENCES, TEST_STEPS, CURVE_STEPS = 100, 1000, 100

# Sequences of the stream that alignment is probed with, and steps of each whose losses count.
PROBE_SEQUENCES, PROBE_STEPS = 8, 50

BURN_IN = 50  # steps from silence before anything counts, in tests and probes


def seeds(seed: int) -> dict[str, int]:
    """Return independent seeds, derived from that of a run, for weights, rule, training, test and probe."""
    names = ("weights", "rule", "train", "test", "probe")
    drawn = np.random.SeedSequence(seed).generate_state(len(names), np.uint64)
    return {name: int(value >> np.uint64(1)) for name, value in zip(names, drawn, strict=True)}


def build_online(config: RecurrentConfig, task: SequenceTask) -> Online:
    """Return the configuration's network, rule and output layer; ValueError if they do not fit together."""
    if task.alpha != config.alpha:
        raise ValueError(
            f"task {config.task} holds symbols for a network of alpha {task.alpha:g}: use --alpha {task.alpha:g}"
        )
    cell = RNNCell(config.units, task.inputs, task.outputs, config.alpha, config.activation, task.output)
    rule = build_rule(config.rule, cell, parse_options(config.rule, config.all_rule_options))
    hidden, output = config.timing.layer_delays
    traces = [config.trace_config.build(delay) for delay in (hidden, output)]
    feedback = None
    if config.feedback == "random":
        generator = torch.Generator().manual_seed(seeds(config.seed)["weights"] + 1)
        feedback = torch.randn(task.outputs, config.units, generator=generator) / math.sqrt(config.units)
    return Online(
        cell,
        delay_rule(rule, traces[0], hidden, config.jitter, config.seed),
        Readout(traces[1], output, config.jitter, config.seed),
        lr=config.lr,
        update_every=config.update_every,
        feedback=feedback,
    )


class SequenceLearner(Learner):
    """Train a network with its rule on a stream, as a resolved configuration says."""

    def __init__(self, config: RecurrentConfig) -> None:
        self.config, self.step = config, 0
        self.dtype = getattr(torch, config.precision)
        self.task = build_task(config.task, config)
        self.online = build_online(config, self.task)
        self._seeds = seeds(config.seed)
        self.stream = self.task.stream(self._seeds["train"], config.batch_size, self.dtype)
        self._noise = torch.Generator().manual_seed(self._seeds["rule"])
        drawn = torch.Generator().manual_seed(self._seeds["weights"])
        weights = self.online.cell.initial_weights(drawn, self.dtype)
        weight, weight_out = (tensor.to(config.device) for tensor in weights)
        if self.online.feedback is not None:
            self.online.feedback = self.online.feedback.to(weight)
        rates = weight.new_zeros(config.batch_size, config.units)
        self.memory = self.online.begin(weight, weight_out, rates, self._noise)
        possible = supports(self.online, self.memory)
        if config.executor == "compiled" and not possible:
            raise ValueError(
                f"--executor compiled is for CPUs, the rules that come with the package and no --jitter, not for "
                f"{config.label} on {config.device}: use --executor step"
            )
        self.compiled = possible and config.executor != "step"
        self.loss_sum, self.losses = torch.zeros((), dtype=torch.float64), 0
        self._alignment: dict[str, float] = {}

    def advance(self, limit: int, *, measure: bool = False) -> Tensor:
        """Learn from a chunk of the stream, up to step `limit`, and return its mean loss.

        `measure` alignment on reaching the limit, if the configuration asks for it.

        Raises:
            FloatingPointError: if a number is not finite, naming its tensor and the step. Whatever is raised, the
                learner is as it was before the chunk.
        """
        size = max(CHUNK // self.config.batch_size, SHORTEST_CHUNK)
        steps = min(self.step - self.step % size + size, limit) - self.step
        stream, noise = self.stream.state_dict(), self._noise.get_state()
        try:
            memory, losses = self._run(steps)
        except BaseException:
            self.stream.load_state_dict(stream)
            self._noise.set_state(noise)
            raise
        self.memory, self.step = memory, self.step + steps
        self.loss_sum += losses.double().sum().cpu()
        self.losses += steps
        if measure and self.step == limit and self.config.alignment and not self.config.jitter:
            self._alignment = self._measure()
        return losses.mean()

    def _run(self, steps: int) -> tuple[Memory, Tensor]:
        """Return the memory after the next steps of the stream, and their losses."""
        x, label = (tensor.to(self.config.device) for tensor in self.stream.take(steps))
        noise = self.online.rule.draw(self.config.batch_size, steps, self._noise)
        noise = None if noise is None else noise.to(x)
        run = run_compiled if self.compiled else Online.run
        memory, losses = run(self.online, self.memory, self.step, x, label, noise)
        if not all(bool(tensor.isfinite().all()) for tensor in (losses, *memory.named().values())):
            raise self._diverged(self.memory, x, label, noise)
        return memory, losses

    def _diverged(self, memory: Memory, x: Tensor, label: Tensor, noise: Tensor | None) -> FloatingPointError:
        """Return what went wrong in a chunk, found by running it again step by step."""
        advice = f"use a smaller --lr ({self.config.lr:g} now)"
        for offset in range(len(x)):
            drawn = None if noise is None else noise[offset]
            memory, loss = self.online.step(memory, self.step + offset, x[offset], label[offset], drawn)
            for name, tensor in {**memory.named(), "loss": loss}.items():
                if not tensor.isfinite().all():
                    where = f"at step {self.step + offset + 1:,}"
                    return FloatingPointError(f"{name} of rule {self.config.rule} is not finite {where}: {advice}")
        where = f"between steps {self.step + 1:,} and {self.step + len(x):,}"
        return FloatingPointError(f"rule {self.config.rule} gives numbers that are not finite {where}: {advice}")

    def _measure(self) -> dict[str, float]:
        stream = self.task.stream(self._seeds["probe"], PROBE_SEQUENCES, self.dtype)
        generator = torch.Generator().manual_seed(self._seeds["probe"] ^ self.step)
        recurrent, output = measure_alignment(self.online, self.memory, stream, generator)
        found = {"credit/alignment/0": recurrent, "credit/alignment/1": output}
        return found if self.config.delay else {"credit/alignment/0": recurrent}

    def measurements(self) -> dict[str, float]:
        """Return the loss on the test stream with frozen weights, and the alignment that was measured last."""
        return {"test/loss": self.test(CURVE_STEPS), **self._alignment}

    def evaluate(self) -> dict[str, float]:
        """Return the mean loss over 100,000 steps of the test stream with frozen weights."""
        return {"test_loss": self.test(TEST_STEPS)}

    @torch.no_grad()
    def test(self, steps: int) -> float:
        """Return the mean loss with frozen weights over some steps of each test sequence, after a burn-in."""
        stream, cell = self.task.stream(self._seeds["test"], TEST_SEQUENCES, self.dtype), self.online.cell
        x, label = (tensor.to(self.memory.weight.device) for tensor in stream.take(BURN_IN + steps))
        readouts, _ = cell.unroll(self.memory.weight, self.memory.weight_out, x)
        losses = cell.loss(readouts[BURN_IN:].flatten(0, 1), label[BURN_IN:].flatten(0, 1))
        return float(losses.view(steps, -1).mean(1).double().sum()) / steps

    def contents(self) -> dict[str, Any]:
        """Return the state of the network and the rule, of the stream, and of the random numbers."""
        noise = self._noise.get_state()
        return {"memory": self.memory.named(), "stream": self.stream.state_dict(), "noise": noise}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Restore what `contents` has returned."""
        mine, found = self.memory.named(), saved["memory"]
        if [tuple(found[name].shape) for name in mine] != [tuple(tensor.shape) for tensor in mine.values()]:
            raise TypeError("it holds tensors of other shapes")
        self.memory = Memory.from_named({name: found[name].to(tensor) for name, tensor in mine.items()})
        self.stream.load_state_dict(saved["stream"])
        self._noise.set_state(saved["noise"])


def measure_alignment(
    online: Online, memory: Memory, stream: Stream, generator: torch.Generator
) -> tuple[float, float]:
    """Return the cosines for W and W_out between the gradients that learning would use and the true ones, or nan.

    With weights frozen, the network runs through a burn-in without errors, then through some steps with errors.
    The whole gradient that the rule gives for these errors, however late, is compared with that of backpropagation
    through all steps. The tensors that the rule learns (`Rule.shared`) are those of `memory`.
    """
    x, label = (tensor.to(memory.weight.device) for tensor in stream.take(BURN_IN + PROBE_STEPS))
    used = _used_gradients(online, memory, x, label, generator)
    true = _true_gradients(online.cell, memory, x, label)
    first, second = (cosine(mine.double(), wanted.double()) for mine, wanted in zip(used, true, strict=True))
    return float(first), float(second)


@torch.no_grad()
def _used_gradients(
    online: Online, memory: Memory, x: Tensor, label: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    bare = online.rule.rule if isinstance(online.rule, Delayed) else online.rule
    rates = memory.rates.new_zeros(x.shape[1], online.cell.units)
    state = bare.init_state(memory.weight, rates, generator) | {name: memory.rule[name] for name in bare.shared}
    noise = bare.draw(x.shape[1], len(x), generator)
    errors, inputs = [], []
    for step in range(len(x)):
        drawn = None if noise is None else noise[step].to(x)
        now, _, error = online.step_inputs(memory[:2], rates, x[step], label[step], drawn, step)
        rates, counts = now.rates, step >= BURN_IN
        errors.append(error * counts)
        inputs.append(now._replace(credit=now.credit * counts))
    of_output = online.readout.total(torch.stack(errors), torch.stack([now.rates for now in inputs]))
    return online.rule.total(state, inputs), of_output


def _true_gradients(cell: RNNCell, memory: Memory, x: Tensor, label: Tensor) -> tuple[Tensor, ...]:
    weight, weight_out = (each.detach().clone().requires_grad_() for each in (memory.weight, memory.weight_out))
    with torch.enable_grad():
        readouts, _ = cell.unroll(weight, weight_out, x)
        losses = cell.loss(readouts[BURN_IN:].flatten(0, 1), label[BURN_IN:].flatten(0, 1))
        # The sum whose derivative by the readout is the error that rules descend.
        objective = losses.sum() * (cell.outputs if cell.output == "linear" else 1) / x.shape[1]
    return torch.autograd.grad(objective, (weight, weight_out))
