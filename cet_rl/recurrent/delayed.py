"""Learn from delayed errors: each synapse keeps its eligibility in a trace until the signal for it arrives.

    G_t = s_{t-D} ⊙ (g * E)_t

s is the rule's signal of each unit, delayed by D steps, E its eligibility, g the kernel of the trace. With a
perfect memory g is one at D and zero elsewhere, and the gradients are those of the rule without delay, D steps
later. The trace filters the eligibility of the rule, which may be a filtered one itself, as in RFLO.

With jitter J the signal of step τ arrives after D_τ = D (1 + J u_τ) steps, rounded, u_τ drawn from [-1, 1], and
signals that arrive together add up: G_t = Σ_{τ + D_τ = t} s_τ ⊙ (g * E)_t. The trace stays that of D.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cet_rl.credit.chunk import StateConstants, correlation_matrix, forget_oldest
from cet_rl.recurrent.rules.base import Rule, SeparableRule, State, StepInputs, combine
from cet_rl.recurrent.rules.built_in import FixedW
from cet_rl.traces.base import Trace, check_whole
from cet_rl.traces.timing import check_jitter, jitter_draws, jittered_steps, longest_steps


class TraceFilter:
    """Filter B sequences of tensors, c_t = Σ_ℓ g_ℓ h_{t-ℓ}, one pure step at a time.

    Its state is that of the trace; for a trace without states, such as a delay line, it is the past inputs.
    """

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.transition = trace.transition()
        # Zeros are left out: the kernel of a delay line has one value.
        kernel = trace.kernel(trace.support[1]).tolist() if self.transition is None else []
        self.taps = [(lag, value) for lag, value in enumerate(kernel) if value]
        self.kept = len(kernel) - 1 if self.transition is None else len(self.transition.K)
        self._constants: dict[tuple[torch.dtype, torch.device], StateConstants] = {}
        self._correlations: dict[tuple[int, int], Tensor] = {}

    def init_state(self, like: Tensor) -> Tensor:
        """Return zeros of shape (B, P, …) for h of shape (B, …): P states, or past inputs, oldest first."""
        return like.new_zeros(len(like), self.kept, *like.shape[1:])

    def step(self, state: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
        """Return the state after h_t of shape (B, …), and c_t, of h's shape."""
        if self.transition is None:
            window = torch.cat([state, new[:, None]], dim=1)
            recalled = sum((value * window[:, -1 - lag] for lag, value in self.taps), torch.zeros_like(new))
            return window[:, 1:], recalled
        key = new.dtype, new.device
        if key not in self._constants:
            self._constants[key] = StateConstants(self.transition, *key)
        constants = self._constants[key]
        after = constants.M @ state.flatten(2) + constants.K[:, None] * new.flatten(1)[:, None]
        return after.view_as(state), (constants.C @ after).view_as(new)

    def spread(self, signals: Tensor, delay_steps: int) -> Tensor:
        """Return p_u = Σ_t g_{t+D-u} s_t, the weight of h_u in Σ_t s_t c_{t+D}: (T, …) to (T, …).

        Apart from the kernel, which is computed once, the cost does not depend on D.
        """
        steps = len(signals)
        key = steps, delay_steps
        if key not in self._correlations:
            forget_oldest(self._correlations)
            kernel = self.trace.kernel_array(delay_steps + steps)
            self._correlations[key] = torch.from_numpy(correlation_matrix(kernel, steps, steps, delay_steps))
        return torch.einsum("ut,t...->u...", self._correlations[key].to(signals), signals)


@dataclass(frozen=True)
class SignalDelay:
    """Delay signals by D steps, or with jitter J by D (1 + J u), where u is drawn for each event.

    The draws depend on the seed and the step alone, and are the same for all layers. Raises ValueError unless D is
    a whole number from 0 on, and J lies in [0, 1].
    """

    delay_steps: int
    jitter: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_whole(self.delay_steps, "delay_steps", at_least=0)
        check_jitter("jitter", self.jitter)

    @property
    def longest(self) -> int:
        """Return the largest number of steps that a signal can take."""
        return longest_steps(self.delay_steps, self.jitter)

    def step(self, line: Tensor, new: Tensor, clock: int) -> tuple[Tensor, Tensor]:
        """Return the line after the signals of step `clock`, (B, …), and the sum of those that arrive in it.

        The line, (B, `longest`, …), holds what arrives in the next step, the one after, and so on.
        """
        if not self.longest:
            return line, new
        if not self.jitter:
            return torch.cat([line[:, 1:], new[:, None]], dim=1), line[:, 0]
        draws = jitter_draws(self.seed, clock, len(new))
        steps = torch.from_numpy(jittered_steps(self.delay_steps, self.jitter, draws))
        line = torch.cat([line, torch.zeros_like(new)[:, None]], dim=1)
        line[torch.arange(len(new)), steps] += new
        return line[:, 1:], line[:, 0]


class Delayed(Rule):
    """Run a rule whose signals arrive D steps late; raise ValueError unless it is separable, or as `SignalDelay`.

    Its state is that of the rule with two more tensors: "trace", shape (B, P, n, m), and "signals", (B, D, n).
    With jitter D is the longest possible delay here, and the draws follow from `seed`.
    """

    def __init__(self, rule: Rule, trace: Trace, delay_steps: int, jitter: float = 0.0, seed: int = 0) -> None:
        if not isinstance(rule, SeparableRule):
            raise ValueError(
                f"rule {rule.name} cannot learn from a late error: its gradient is no product of a unit's signal "
                "and a synapse's eligibility, which is what a trace keeps; leave the delay out, or use rflo, "
                "kernl, dni or dni-b"
            )
        super().__init__(rule.cell)
        self.rule, self.filter, self.delay = rule, TraceFilter(trace), SignalDelay(delay_steps, jitter, seed)
        self.name, self.shared = rule.name, rule.shared

    def init_state(self, weight: Tensor, rates: Tensor, generator: torch.Generator | None = None) -> State:
        """Return the rule's own state, an empty trace, and no signals on their way."""
        synapses = weight.new_zeros(len(rates), *weight.shape)
        return {
            **self.rule.init_state(weight, rates, generator),
            "trace": self.filter.init_state(synapses),
            "signals": rates.new_zeros(len(rates), self.delay.longest, self.cell.units),
        }

    def draw(self, batch: int, steps: int, generator: torch.Generator | None = None) -> Tensor | None:
        return self.rule.draw(batch, steps, generator)

    def step(self, state: State, now: StepInputs) -> tuple[State, Tensor]:
        inner, signal, eligibility = self.rule.factors(state, now)
        trace, recalled = self.filter.step(state["trace"], eligibility)
        signals, arrived = self.delay.step(state["signals"], signal, now.clock)
        return {**inner, "trace": trace, "signals": signals}, combine(arrived, recalled)

    def pending_gradient(self, state: State, weight: Tensor) -> Tensor:
        """Return the gradient of the signals on their way, for eligibilities of zero from now on."""
        trace, signals, gradient = state["trace"], state["signals"], torch.zeros_like(weight)
        nothing = weight.new_zeros(len(signals), *weight.shape)
        for step in range(self.delay.longest):
            trace, recalled = self.filter.step(trace, nothing)
            gradient = gradient + combine(signals[:, step], recalled)
        return gradient

    def total(self, state: State, inputs: Sequence[StepInputs]) -> Tensor:
        """Return the sum of all gradients, in two passes whatever the delay.

        The trace starts empty, and `state` is that of the rule alone. All signals arrive D steps late: jitter is
        left out.
        """
        signals, first = [], state
        for now in inputs:
            state, signal, _ = self.rule.factors(state, now)
            signals.append(signal)
        gradient, state = torch.zeros_like(inputs[0].weight), first
        spread = self.filter.spread(torch.stack(signals), self.delay.delay_steps)
        for now, signal in zip(inputs, spread, strict=True):
            state, _, eligibility = self.rule.factors(state, now)
            gradient = gradient + combine(signal, eligibility)
        return gradient


def delay_rule(rule: Rule, trace: Trace | None, delay_steps: int, jitter: float = 0.0, seed: int = 0) -> Rule:
    """Return the rule with signals D steps late; the rule itself if there is no trace, or W does not learn."""
    if trace is None or isinstance(rule, FixedW):
        return rule
    return Delayed(rule, trace, delay_steps, jitter, seed)


class Readout:
    """Compute the gradient of the output layer, the same for all rules: G = (ŷ - y*) ⊗ [r; 1], or with a delay

        G_t = (ŷ - y*)_{t-D} ⊗ (g * [r; 1])_t

    Without a trace its state is empty, else "trace", shape (B, P, n + 1), and "errors", (B, D, n_out), where D is
    the longest possible delay.
    """

    def __init__(
        self, trace: Trace | None = None, delay_steps: int = 0, jitter: float = 0.0, seed: int = 0
    ) -> None:
        self.filter = None if trace is None else TraceFilter(trace)
        self.delay = SignalDelay(delay_steps, jitter, seed)

    def init_state(self, rates: Tensor, outputs: int) -> State:
        """Return an empty trace and no errors on their way, for rates of shape (B, n)."""
        if self.filter is None:
            return {}
        return {
            "trace": self.filter.init_state(_with_one(rates)),
            "errors": rates.new_zeros(len(rates), self.delay.longest, outputs),
        }

    def step(self, state: State, error: Tensor, rates: Tensor, clock: int) -> tuple[State, Tensor]:
        """Return the state after step `clock`, and the gradient of W_out, mean over sequences.

        Shapes are (B, n_out) of ŷ - y*, (B, n) of r, and (n_out, n + 1) of the gradient.
        """
        recalled = _with_one(rates)
        if self.filter is not None:
            trace, recalled = self.filter.step(state["trace"], recalled)
            errors, error = self.delay.step(state["errors"], error, clock)
            state = {"trace": trace, "errors": errors}
        return state, error.mT @ recalled / len(rates)

    def total(self, errors: Tensor, rates: Tensor) -> Tensor:
        """Return the sum of the gradients of T steps, whose errors (T, B, n_out) arrive D steps late.

        Rates have shape (T, B, n), and the gradient (n_out, n + 1).
        """
        if self.filter is not None:
            errors = self.filter.spread(errors, self.delay.delay_steps)
        return torch.einsum("tbo,tbe->oe", errors, _with_one(rates)) / rates.shape[1]


def _with_one(rates: Tensor) -> Tensor:
    return torch.cat([rates, torch.ones_like(rates[..., :1])], dim=-1)
