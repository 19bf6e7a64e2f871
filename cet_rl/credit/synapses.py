"""The synapses of one layer: their memory, the signals on their way to them, and the update they accumulate."""

from __future__ import annotations

from typing import cast, get_args

import torch
from torch import Tensor, nn

from cet_rl.credit.constants import HistoryConstants, StateConstants, visible_support
from cet_rl.credit.delay_line import DelayLine
from cet_rl.credit.executors import IMPULSE, Executor, run, uses_history
from cet_rl.credit.geometry import Convolution, Dense, Geometry, Parts, layer_geometry
from cet_rl.credit.signals import Decay, Signals, SynapseState
from cet_rl.traces.base import Trace
from cet_rl.traces.perfect import PerfectMemory

WORTH_WAITING = 16
"""Silent lags of a kernel from which on a delay line is cheaper than keeping them in the past."""


class Synapses(nn.Module):
    """Delayed credit assignment for the weights of one layer, y = f(W x), dense or a convolution.

    Feed it what happens as it happens; it delays the credit signals, keeps the traces, and returns the update
    that the credit arriving in this chunk causes. Everything it carries is in `state_dict`.

    A dense layer is given by `n_in` and `n_out`, any layer by `geometry`:
    `Synapses(geometry=Convolution(6, 16, 3, in_size=(10, 10)), trace=CET(5, 10))`. The signals of a convolution
    are maps, x (T, E, C_in, H, W), f' and δ (T, E, C_out, H', W'). It keeps the maps of the kernel's support, in
    memory and in `state_dict`; in float32 that ends where float32 no longer sees the kernel.

    Args:
        n_in: presynaptic units of a dense layer.
        n_out: postsynaptic units of a dense layer.
        trace: the synaptic trace that bridges the delay; None for none.
        delay_steps: D ≥ 0, how late δ, η and episode starts arrive, in steps; None for the delay the trace is
            made for, or none.
        gamma_lam: γλ, the decay of the RL eligibility trace, in [0, 1); or one per weight, of the weight's
            shape, (n_out, n_in). A convolution with one per weight runs the definition, which is slow.
        num_envs: E, environments that share the weights.
        rollout: steps of a usual chunk; only guides the choice of executor.
        executor: "auto", or one by name: "step" (the definition), "chunk" (closed form), "fused" (compiled
            loop, on CPU and CUDA) or "history" (closed form over the factored past).
        dtype: of states and signals.
        geometry: of the layer, in the place of `n_in` and `n_out`.
        supervised: whether errors count as they are and nothing ends, η = 1 and s = 0; `forward` takes neither.

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
        n_in: int | None = None,
        n_out: int | None = None,
        trace: Trace | None = None,
        *,
        delay_steps: int | None = None,
        gamma_lam: Decay = 0.0,
        num_envs: int = 1,
        rollout: int = 1,
        executor: Executor = "auto",
        dtype: torch.dtype = torch.float32,
        geometry: Geometry | None = None,
        supervised: bool = False,
    ) -> None:
        super().__init__()
        self.geometry = geometry = layer_geometry(n_in, n_out, geometry)
        for name, count in {"num_envs": num_envs, "rollout": rollout}.items():
            if count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        if delay_steps is None:
            delay_steps = int(getattr(trace, "delay_steps", 0))
        if delay_steps < 0:
            raise ValueError(f"delay_steps must not be negative, got {delay_steps}")
        if executor not in get_args(Executor):
            raise ValueError(f"executor must be one of {', '.join(get_args(Executor))}, got {executor!r}")
        per_weight = isinstance(gamma_lam, Tensor)
        if isinstance(gamma_lam, Tensor) and gamma_lam.shape != geometry.weight_shape:
            found = tuple(gamma_lam.shape)
            raise ValueError(f"gamma_lam per weight must have shape {geometry.weight_shape}, got {found}")
        values = torch.as_tensor(gamma_lam)
        if not bool(((values >= 0) & (values < 1)).all()):
            raise ValueError(f"gamma_lam must lie in [0, 1), got {gamma_lam}")
        if isinstance(geometry, Convolution) and executor in ("chunk", "fused"):
            raise ValueError(f"a convolution has no states for {executor!r}: use 'auto', 'history' or 'step'")
        if per_weight and executor in ("chunk", "history"):
            raise ValueError(
                f"one gamma_lam per weight breaks the closed form of {executor!r}: use 'fused' or 'step'"
            )

        self.trace = trace or PerfectMemory(0)
        self.delay_steps = delay_steps
        self.executor: Executor = executor
        self.shared_decay = None if isinstance(gamma_lam, Tensor) else float(gamma_lam)
        self._factored = uses_history(
            self.trace, geometry, executor, num_envs=num_envs, rollout=rollout, per_weight=per_weight
        )
        self._support = visible_support(self.trace, dtype)
        self._constants: StateConstants | HistoryConstants | None = None

        n_pre, n_post, weight_shape = geometry.n_pre, geometry.n_post, geometry.weight_shape
        self.error_line = DelayLine(delay_steps, (num_envs, n_post), dtype=dtype)
        self.td_error_line = None if supervised else DelayLine(delay_steps, (num_envs,), dtype=dtype)
        self.start_line = None if supervised else DelayLine(delay_steps, (num_envs,), fill=1.0, dtype=dtype)

        # A kernel that is silent for long, as a delay line is, lets the layer's inputs wait outside.
        transition = self.trace.transition()
        onset = self._support[0] if self._factored or transition is None else 0
        if transition is not None and onset < WORTH_WAITING:
            self._support, onset = (0, self._support[1]), 0
        self.pre_line = DelayLine(onset, (num_envs, n_pre), dtype=dtype)
        self.derivative_line = DelayLine(onset, (num_envs, n_post), dtype=dtype)

        past = self._support[1] - onset - 1
        order = len((transition or IMPULSE).K)
        shapes: dict[str, tuple[int, ...] | None] = {
            "eligibility": (num_envs, *weight_shape),
            "states": None if self._factored else (num_envs, n_post, order, weight_shape[1]),
            "past_pre": (past, num_envs, n_pre) if self._factored else None,
            "past_derivative": (past, num_envs, n_post) if self._factored else None,
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
                self._constants = HistoryConstants(self.trace, dtype, device, self._support, self.geometry)
            else:
                self._constants = StateConstants(self.trace.transition() or IMPULSE, dtype, device)
        return self._constants

    def forward(self, *signals: Tensor) -> Tensor:
        """`advance`, and the update as one tensor of the geometry's `weight_shape`."""
        return self.geometry.join(*self.advance(*signals))

    def __call__(self, *signals: Tensor) -> Tensor:
        """See `forward`."""
        result: Tensor = super().__call__(*signals)
        return result

    @torch.no_grad()
    def advance(
        self,
        pre: Tensor,
        derivative: Tensor,
        error: Tensor,
        td_error: Tensor | None = None,
        start: Tensor | None = None,
    ) -> Parts:
        """Advance by T steps.

        Args:
            pre: x_t, shape (T, E, n_in); of a convolution (T, E, C_in, H, W).
            derivative: f'(W x_t), shape (T, E, n_out); of a convolution (T, E, C_out, H', W').
            error: δ_t, due to what happened at t: it is delayed here. Shaped like `derivative`.
            td_error: η_t, shape (T, E); delayed here. None for supervised synapses, and only for them.
            start: 1 where step t opens an episode, shape (T, E); delayed here. None where `td_error` is.

        Returns:
            ΔW = Σ η e over the chunk's steps and environments, shaped as torch's weight, and that of a bias, or
            None. It points uphill.

        Raises:
            ValueError: if shapes or types disagree with each other or with the layer's.
        """
        geometry, envs = self.geometry, len(self.eligibility)
        if (pre.shape[1:], error.shape[2:]) != ((envs, *geometry.pre_shape), geometry.post_shape):
            expected = [", ".join(map(str, ("T", envs, *s))) for s in (geometry.pre_shape, geometry.post_shape)]
            raise ValueError(
                f"expected pre of shape ({expected[0]}) and error of shape ({expected[1]}), "
                f"got {tuple(pre.shape)} and {tuple(error.shape)}"
            )
        signals = Signals(pre, derivative, error, td_error, start)
        if (td_error is None) != (self.td_error_line is None):
            kind, takes = ("supervised", "no") if self.td_error_line is None else ("not supervised", "a")
            raise ValueError(f"these synapses are {kind}: they take {takes} td_error and start")
        types = {t.dtype for t in (pre, derivative, error, td_error, start) if t is not None}
        if types != {self.eligibility.dtype}:
            raise ValueError(
                f"this layer computes in {self.eligibility.dtype}, got {types}: convert, or set dtype"
            )
        pre = self.pre_line(geometry.flatten_pre(pre))
        signals = Signals(
            pre if self._factored else cast(Dense, geometry).inputs(pre),
            self.derivative_line(geometry.flatten_post(derivative)),
            self.error_line(geometry.flatten_post(error)),
            None if self.td_error_line is None else self.td_error_line(td_error),
            None if self.start_line is None else self.start_line(start),
        )
        decay = self.decay_per_weight if self.shared_decay is None else self.shared_decay
        assert decay is not None
        state = SynapseState(self.eligibility, self.states, self.past_pre, self.past_derivative)
        gradient = run(self.executor, self.constants, state, signals, decay, geometry)
        for name in ("eligibility", "states", "past_pre", "past_derivative"):
            if (new := getattr(state, name)) is not self._buffers[name]:  # setting what a module has is dear
                setattr(self, name, new)
        return gradient
