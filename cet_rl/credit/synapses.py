"""The synapses of one layer: their memory, the signals on their way to them, and the update they accumulate."""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor, nn

from cet_rl.credit.constants import HistoryConstants, StateConstants
from cet_rl.credit.delay_line import DelayLine
from cet_rl.credit.executors import IMPULSE, Executor, run, uses_history
from cet_rl.credit.signals import Decay, Signals, SynapseState
from cet_rl.traces.base import Trace
from cet_rl.traces.perfect import PerfectMemory


class Synapses(nn.Module):
    """Delayed credit assignment for the weights of one layer, y = f(W x).

    Feed it what happens as it happens; it delays the credit signals, keeps the traces, and returns the update
    that the credit arriving in this chunk causes. Everything it carries is in `state_dict`.

    Args:
        n_in: presynaptic units.
        n_out: postsynaptic units.
        trace: the synaptic trace that bridges the delay; None for none.
        delay_steps: D ≥ 0, how late δ, η and episode starts arrive, in steps; None for the delay the trace is
            made for, or none.
        gamma_lam: γλ, the decay of the RL eligibility trace, in [0, 1); or one per weight, shape (n_out, n_in).
        num_envs: E, environments that share the weights.
        rollout: steps of a usual chunk; only guides the choice of executor.
        executor: "auto", or one by name: "step" (the definition), "chunk" (closed form), "fused" (compiled
            loop, CPU) or "history" (closed form over the factored past).
        dtype: of states and signals.

    Raises:
        ValueError: for counts below one, a γλ outside [0, 1), or an executor that cannot do what is asked.
    """

    eligibility: Tensor
    states: Tensor | None
    past_pre: Tensor | None
    past_derivative: Tensor | None
    decay_per_weight: Tensor | None

    def __init__(
        self,
        n_in: int,
        n_out: int,
        trace: Trace | None = None,
        *,
        delay_steps: int | None = None,
        gamma_lam: Decay = 0.0,
        num_envs: int = 1,
        rollout: int = 1,
        executor: Executor = "auto",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        for name, count in {"n_in": n_in, "n_out": n_out, "num_envs": num_envs, "rollout": rollout}.items():
            if count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        if delay_steps is None:
            delay_steps = int(getattr(trace, "delay_steps", 0))
        if delay_steps < 0:
            raise ValueError(f"delay_steps must not be negative, got {delay_steps}")
        if executor not in get_args(Executor):
            raise ValueError(f"executor must be one of {', '.join(get_args(Executor))}, got {executor!r}")
        per_weight = isinstance(gamma_lam, Tensor)
        if isinstance(gamma_lam, Tensor) and gamma_lam.shape != (n_out, n_in):
            found = tuple(gamma_lam.shape)
            raise ValueError(f"gamma_lam per weight must have shape {(n_out, n_in)}, got {found}")
        values = torch.as_tensor(gamma_lam)
        if not bool(((values >= 0) & (values < 1)).all()):
            raise ValueError(f"gamma_lam must lie in [0, 1), got {gamma_lam}")
        if per_weight and executor in ("chunk", "history"):
            raise ValueError(
                f"one gamma_lam per weight breaks the closed form of {executor!r}: use 'fused' or 'step'"
            )

        self.trace = trace or PerfectMemory(0)
        self.delay_steps = delay_steps
        self.executor: Executor = executor
        self.shared_decay = None if isinstance(gamma_lam, Tensor) else float(gamma_lam)
        self._factored = uses_history(
            self.trace, executor, synapses=num_envs * n_out * n_in, rollout=rollout, per_weight=per_weight
        )
        self._constants: StateConstants | HistoryConstants | None = None

        self.error_line = DelayLine(delay_steps, (num_envs, n_out), dtype=dtype)
        self.td_error_line = DelayLine(delay_steps, (num_envs,), dtype=dtype)
        self.start_line = DelayLine(delay_steps, (num_envs,), fill=1.0, dtype=dtype)

        # A kernel that is silent at first, as a delay line is, lets the layer's inputs wait outside.
        transition = self.trace.transition()
        onset = self.trace.support[0] if self._factored or transition is None else 0
        self.pre_line = DelayLine(onset, (num_envs, n_in), dtype=dtype)
        self.derivative_line = DelayLine(onset, (num_envs, n_out), dtype=dtype)

        past = self.trace.support[1] - onset - 1
        order = len((transition or IMPULSE).K)
        shapes: dict[str, tuple[int, ...] | None] = {
            "eligibility": (num_envs, n_out, n_in),
            "states": None if self._factored else (num_envs, n_out, order, n_in),
            "past_pre": (past, num_envs, n_in) if self._factored else None,
            "past_derivative": (past, num_envs, n_out) if self._factored else None,
        }
        for name, shape in shapes.items():
            self.register_buffer(name, None if shape is None else torch.zeros(shape, dtype=dtype))
        self.register_buffer("decay_per_weight", gamma_lam.to(dtype) if isinstance(gamma_lam, Tensor) else None)

    @property
    def constants(self) -> StateConstants | HistoryConstants:
        """The trace's constants in this layer's type, on its device."""
        dtype, device = self.eligibility.dtype, self.eligibility.device
        if self._constants is None or (self._constants.dtype, self._constants.device) != (dtype, device):
            if self._factored:
                self._constants = HistoryConstants(self.trace, dtype, device)
            else:
                self._constants = StateConstants(self.trace.transition() or IMPULSE, dtype, device)
        return self._constants

    @torch.no_grad()
    def forward(self, pre: Tensor, derivative: Tensor, error: Tensor, td_error: Tensor, start: Tensor) -> Tensor:
        """Advance by T steps.

        Args:
            pre: x_t, shape (T, E, n_in).
            derivative: f'(W x_t), shape (T, E, n_out).
            error: δ_t, due to what happened at t: it is delayed here. Shape (T, E, n_out).
            td_error: η_t, shape (T, E); delayed here.
            start: 1 where step t opens an episode, shape (T, E); delayed here.

        Returns:
            ΔW = Σ η e over the chunk's steps and environments, shape (n_out, n_in). It points uphill.

        Raises:
            ValueError: if shapes or types disagree with each other or with the layer's.
        """
        envs, n_out, n_in = self.eligibility.shape
        if pre.ndim != 3 or error.ndim != 3 or (pre.shape[1:], error.shape[2]) != ((envs, n_in), n_out):
            raise ValueError(
                f"expected pre of shape (T, {envs}, {n_in}) and error of shape (T, {envs}, {n_out}), "
                f"got {tuple(pre.shape)} and {tuple(error.shape)}"
            )
        types = {t.dtype for t in (pre, derivative, error, td_error, start)}
        if types != {self.eligibility.dtype}:
            raise ValueError(
                f"this layer computes in {self.eligibility.dtype}, got {types}: convert, or set dtype"
            )
        signals = Signals(pre, derivative, error, td_error, start)
        signals = Signals(
            self.pre_line(signals.pre),
            self.derivative_line(signals.derivative),
            self.error_line(signals.error),
            self.td_error_line(signals.td_error),
            self.start_line(signals.start),
        )
        decay = self.decay_per_weight if self.shared_decay is None else self.shared_decay
        assert decay is not None
        state = SynapseState(self.eligibility, self.states, self.past_pre, self.past_derivative)
        gradient = run(self.executor, self.constants, state, signals, decay)
        self.eligibility, self.states = state.eligibility, state.states
        self.past_pre, self.past_derivative = state.past_pre, state.past_derivative
        return gradient

    def __call__(self, *signals: Tensor) -> Tensor:
        """See `forward`."""
        result: Tensor = super().__call__(*signals)
        return result
