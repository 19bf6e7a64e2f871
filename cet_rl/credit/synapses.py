"""The synapses of one layer: they delay the credit, keep the traces, and choose the executor of the update."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import lru_cache
from math import prod
from typing import Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn

from cet_rl.credit.chunk import StateConstants, chunk
from cet_rl.credit.costs import FORMS, Form, Plan, cheapest
from cet_rl.credit.factored import HistoryConstants, add_parts, eligibility_window, history, visible_support
from cet_rl.credit.geometry import Convolution, Dense, Geometry, WeightAndBias, is_for_numpy
from cet_rl.credit.signals import Decay, DelayLine, Signals, SynapseState
from cet_rl.credit.step import step
from cet_rl.traces.base import Trace, Transition, check_whole
from cet_rl.traces.finite import PerfectMemory
from cet_rl.traces.sharp import shift_register

Executor = Literal["auto", "step", "chunk", "fused", "history", "factored"]
"""How an update is computed: "step" is the definition, the others compute the same numbers faster, and "auto"
chooses one by `cet_rl.credit.costs`."""

_CARRIED = tuple(item.name for item in fields(SynapseState))

Loop = Callable[[StateConstants, SynapseState, Signals, Decay], Tensor]

LONGEST_REGISTER = 64
"""Longest kernel, in lags, of a trace without states that gets one state a lag by "auto" and "step"."""


class Synapses(nn.Module):
    """Assign late credit to the weights of one layer, y = f(W x), dense or a convolution.

    Signals are given for the steps in which they occur. The layer delays the credit signals, keeps the traces, and
    returns the update from the credit that arrives in these steps. All of its state is in `state_dict`.

    **When time advances**: the rule for everything that learns here, agents, traced layers and recurrent networks.

    - Every step of learning counts once: a forward pass in training whose backward pass arrives and completes,
      whether weights are frozen or not, whether the optimiser then steps or not. Nothing else counts: no pass in
      `eval()` or under `no_grad`, no gradient of inputs, no forward or backward pass that raised an error.
    - x or f' that is not finite is refused, by layer and step, before anything changes. Where δ is not finite,
      gradients are not finite either, so that a loss scaler skips them, and the traces take δ = 0 for that batch;
      agents, which have no scaler, refuse it like x. Errors are kept without the scaler's scale.
    - A rollout that a callback, an error or Ctrl-C ends early counts as far as it got, without an update. If that
      is impossible, the next step opens an episode, and an environment that was left within a step is reset.

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
            shape, (n_out, n_in). A convolution with one per weight runs the definition, which is slow, as does a
            trace without states whose kernel is longer than 64 lags.
        num_envs: E, environments that share the weights.
        rollout: steps of a usual chunk; only guides the choice of executor.
        executor: "auto", or one by name: "step" (the definition), "chunk" (closed form), "fused" (compiled
            loop, on CPU and CUDA; the closed form where there is none, as for types of 16 bits on a CPU),
            "history" (closed form over the factored past) or "factored" (the same with e factored as well).
        dtype: of states and signals.
        geometry: of the layer, in the place of `n_in` and `n_out`.
        supervised: whether η = 1 and s = 0 at all steps; `forward` then takes neither.
        choice: the attribute `choice` of an equal layer, to compute as that one does; None to choose anew.

    Attributes:
        plan: how updates are computed; its `form` is the executor. Unless `settled`, a layer that keeps states
            chooses between "chunk" and "fused" for the length of every chunk.
        choice: the name of the plan, as "history+40", where inputs are delayed by 40 steps beforehand.
        settled: whether the plan holds for chunks of every length (on a CPU).

    Raises:
        ValueError: for counts below one, a γλ outside [0, 1), or an executor that cannot do what is asked.
    """

    __call__: Callable[..., Tensor]
    eligibility: Tensor
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
        choice: str | None = None,
    ) -> None:
        super().__init__()
        if geometry is None and n_in is not None and n_out is not None:
            geometry = Dense(n_in, n_out)
        elif geometry is None or n_in is not None or n_out is not None:
            raise ValueError("a layer needs either n_in and n_out, or geometry, and not both")
        self.geometry = geometry
        if not isinstance(trace, Trace | None):
            raise ValueError(f"trace must be a trace such as CET(6, 10), or None, got {trace!r}")
        if delay_steps is None:
            delay_steps = 0 if trace is None else int(trace.made_for or 0)
        if not dtype.is_floating_point:
            raise ValueError(f"dtype must be a type of real numbers, such as torch.float32, got {dtype}")
        check_whole(num_envs, "num_envs", at_least=1)
        check_whole(rollout, "rollout", at_least=1)
        check_whole(delay_steps, "delay_steps", at_least=0)
        _check_decay(gamma_lam, geometry)
        _check_executor(executor, geometry, per_weight=isinstance(gamma_lam, Tensor))

        self.trace = trace or PerfectMemory(0)
        self.delay_steps = delay_steps
        self.executor: Executor = executor
        self.shared_decay = None if isinstance(gamma_lam, Tensor) else float(gamma_lam)
        plans = {plan.name: plan for plan in self._plans(num_envs, dtype)}
        if choice is not None and choice not in plans:
            raise ValueError(f"this layer's executor must be one of {', '.join(plans)}, got {choice!r}")
        self.plan = cheapest(plans.values(), rollout) if choice is None else plans[choice]
        self.choice, self.settled = self.plan.name, choice is not None
        self._with_states = [plan for plan in plans.values() if not plan.is_factored]
        self._constants: StateConstants | HistoryConstants | None = None

        pre, post, onset = (num_envs, geometry.n_pre), (num_envs, geometry.n_post), self.plan.onset
        self.error_line = DelayLine(delay_steps, post, dtype=dtype)
        self.td_error_line = None if supervised else DelayLine(delay_steps, (num_envs,), dtype=dtype)
        self.start_line = None if supervised else DelayLine(delay_steps, (num_envs,), fill=1.0, dtype=dtype)
        self.pre_line = DelayLine(onset, pre, dtype=dtype)
        self.derivative_line = DelayLine(onset, post, dtype=dtype)
        for name, shape in self.plan.state_shapes(geometry.weight_shape).items():
            self.register_buffer(name, None if shape is None else torch.zeros(shape, dtype=dtype))
        self.register_buffer("decay_per_weight", gamma_lam.to(dtype) if isinstance(gamma_lam, Tensor) else None)

    def extra_repr(self) -> str:
        """Return what `print` shows: shape of the weights, trace, delay in steps, executor."""
        trace = None if self.trace == PerfectMemory(0) else self.trace
        shape, executor = self.geometry.weight_shape, self.plan.form if self.executor == "auto" else self.executor
        return f"weight={shape}, trace={trace}, delay_steps={self.delay_steps}, executor={executor}"

    def _plans(self, num_envs: int, dtype: torch.dtype) -> Iterator[Plan]:
        """Yield a plan for each executor that can do what is asked for.

        A convolution would have states for every position of its output, so it keeps its past. So does a trace
        without states if its kernel is long, as one state for each lag would be too many to compile a loop for.
        Where the first lags of a kernel are zero, as in a delay line, the layer's inputs may be delayed instead.
        """
        geometry, decay, executor = self.geometry, self.shared_decay, self.executor
        transition, (first, last) = self.trace.transition(), visible_support(self.trace, dtype)
        kernel = self.trace.kernel_array(last)
        forms = FORMS if decay else FORMS[:3]
        if executor not in ("auto", "step"):
            forms = (cast(Form, executor),)
        elif isinstance(geometry, Convolution) or (
            transition is None and (last - first > LONGEST_REGISTER or executor == "step")
        ):
            forms = ("history",) if decay is None or executor == "step" else forms[2:]
        elif decay is None or executor == "step":
            forms = ("fused",)
        for form in forms:
            onsets = (first,) if transition is None else (0,) if form in ("chunk", "fused") else sorted({0, first})
            for onset in onsets:
                lags = last - onset
                constants = None if transition is None else vars(transition).values()
                yield Plan(
                    form,
                    n_pre=geometry.n_pre,
                    n_post=geometry.n_post,
                    weights=prod(geometry.weight_shape),
                    positions=geometry.n_post // geometry.weight_shape[0],
                    envs=num_envs,
                    eligible=decay != 0,
                    order=lags if transition is None else len(transition.K),
                    couplings=sum(map(np.count_nonzero, constants)) if constants else 2 * lags,
                    onset=onset,
                    past=lags - 1,
                    window=eligibility_window(kernel[onset:], decay or 0.0, dtype),
                )

    @property
    def constants(self) -> StateConstants | HistoryConstants:
        """Return the trace's constants in this layer's type, on its device."""
        dtype, device = self.eligibility.dtype, self.eligibility.device
        if self._constants is None or (self._constants.dtype, self._constants.device) != (dtype, device):
            first, last = self.plan.onset, self.plan.onset + self.plan.past + 1
            if self.plan.is_factored:
                self._constants = HistoryConstants(self.trace, dtype, device, (first, last), self.geometry)
            else:
                transition = self.trace.transition()
                if transition is None:  # one state for each lag; the inputs are delayed by the first beforehand
                    kernel = self.trace.kernel_array(last)[first:]
                    transition = Transition(*shift_register(last - first), kernel)
                self._constants = StateConstants(transition, dtype, device)
        return self._constants

    def forward(self, *signals: Tensor) -> Tensor:
        """Advance as `advance` does, and return the update as one tensor of the geometry's `weight_shape`."""
        return self.geometry.join(*self.advance(*signals))

    def advance(self, *signals: Tensor) -> WeightAndBias:
        """Advance by T steps, given as to `stage`, and return the update that they cause."""
        update, commit = self.stage(*signals)
        commit()
        return update

    @torch.no_grad()
    def stage(
        self,
        pre: Tensor,
        derivative: Tensor,
        error: Tensor,
        td_error: Tensor | None = None,
        start: Tensor | None = None,
        immediate: Tensor | None = None,
    ) -> tuple[WeightAndBias, Callable[[], None]]:
        """Return what T steps add, and a function that advances by them.

        Until that is called, supervised synapses with γλ = 0 are as they were; others may be half advanced.

        Args:
            pre: x_t, shape (T, E, n_in); of a convolution (T, E, C_in, H, W).
            derivative: f'(W x_t), shape (T, E, n_out); of a convolution (T, E, C_out, H', W').
            error: δ_t for what happened at t, not yet delayed. Shaped like `derivative`.
            td_error: η_t, shape (T, E), not yet delayed. None for supervised synapses, and only for them.
            start: 1 where step t opens an episode, shape (T, E), not yet delayed. None where `td_error` is.
            immediate: b_t, shaped like `derivative`, if Σ b_t x_tᵀ is to be added to the update at once.

        Returns:
            ΔW = Σ η e over the chunk's steps and environments, shaped as torch's weight, and the same for the
            bias, if any, else None: the gradient, not its negative. And the function.

        Raises:
            ValueError: if shapes or types disagree with each other or with the layer's.
        """
        geometry, envs = self.geometry, len(self.eligibility)
        if not len(pre) or (pre.shape[1:], error.shape[2:]) != ((envs, *geometry.pre_shape), geometry.post_shape):
            expected = [", ".join(map(str, ("T", envs, *s))) for s in (geometry.pre_shape, geometry.post_shape)]
            raise ValueError(
                f"expected pre of shape ({expected[0]}) and error of shape ({expected[1]}), "
                f"got {tuple(pre.shape)} and {tuple(error.shape)}"
            )
        signals = Signals(pre, derivative, error, td_error, start, immediate)
        if (td_error is None) != (self.td_error_line is None):
            kind, takes = ("supervised", "no") if self.td_error_line is None else ("not supervised", "a")
            raise ValueError(f"these synapses are {kind}: they take {takes} td_error and start")
        types = {t.dtype for t in (pre, derivative, error, td_error, start, immediate) if t is not None}
        if types != {self.eligibility.dtype}:
            raise ValueError(f"this layer computes in {self.eligibility.dtype}, got {types}: convert or set dtype")
        given = (geometry.flatten(pre), geometry.flatten(derivative), geometry.flatten(error), td_error, start)
        lines = (self.pre_line, self.derivative_line, self.error_line, self.td_error_line, self.start_line)
        pairs = [(line, signal) for line, signal in zip(lines, given, strict=True) if line and signal is not None]
        now, *late = (line.peek(signal) for line, signal in pairs)
        signals = Signals(now if self.plan.is_factored else cast(Dense, geometry).with_bias_input(now), *late)
        if immediate is not None and self._by_history and not self.plan.onset:  # into the product of the update
            signals.immediate, immediate = geometry.flatten(immediate), None
        state = SynapseState(**{name: self._buffers[name] for name in _CARRIED})  # type: ignore[arg-type]
        update = self._execute(state, signals)
        if immediate is not None:  # a product of its own
            update = add_parts(update, geometry.outer_parts(immediate, pre))

        def commit() -> None:
            for line, signal in pairs:
                line.push(signal)
            for name in _CARRIED:
                if (new := getattr(state, name)) is not self._buffers[name]:  # setting attributes is slow
                    setattr(self, name, new)

        return update, commit

    @property
    def _by_history(self) -> bool:
        """Tell whether the closed form over a factored past computes the update."""
        return self.plan.is_factored and self.executor != "step" and self.shared_decay is not None

    def _execute(self, state: SynapseState, signals: Signals) -> WeightAndBias:
        """Advance `state` by one chunk and return ΔW, by the executor asked for or the fastest for its shapes."""
        decay = self.decay_per_weight if self.shared_decay is None else self.shared_decay
        assert decay is not None
        constants, geometry = self.constants, self.geometry
        if self._by_history:
            assert isinstance(constants, HistoryConstants)
            assert not isinstance(decay, Tensor)
            return history(constants, state, signals, decay)
        if self.executor == "step" or isinstance(constants, HistoryConstants):
            return geometry.split(step(constants, state, signals, decay))
        form = self.executor
        if form == "auto" and signals.pre.device.type != "cpu":  # the cost model is fitted on CPUs alone
            form = "fused" if isinstance(decay, Tensor) else "chunk"
        elif form == "auto":
            form = (self.plan if self.settled else cheapest(self._with_states, len(signals.pre))).form
        fits = is_for_numpy(signals.pre) or not signals.pre.is_cpu  # numba has no types of 16 bits
        loop = compiled_loop(signals.pre.device.type) if form == "fused" and fits else None
        if loop is not None:
            if self.td_error_line is None:  # the loop writes in place, before the step counts
                state.states, state.eligibility = cast(Tensor, state.states).clone(), state.eligibility.clone()
            return geometry.split(loop(constants, state, signals, decay))
        if isinstance(decay, Tensor):
            return geometry.split(step(constants, state, signals, decay))
        return geometry.split(chunk(constants, state, signals, decay))


def _check_decay(gamma_lam: Decay, geometry: Geometry) -> None:
    """Raise ValueError unless γλ lies in [0, 1) and, if a tensor, has the weight's shape."""
    if isinstance(gamma_lam, Tensor) and gamma_lam.shape != geometry.weight_shape:
        found = tuple(gamma_lam.shape)
        raise ValueError(f"gamma_lam per weight must have shape {geometry.weight_shape}, got {found}")
    values = torch.as_tensor(gamma_lam)
    if not bool(((values >= 0) & (values < 1)).all()):
        raise ValueError(f"gamma_lam must lie in [0, 1), got {gamma_lam}")


def _check_executor(executor: str, geometry: Geometry, *, per_weight: bool) -> None:
    """Raise ValueError unless there is such an executor and it can do the geometry and one γλ per weight."""
    if executor not in get_args(Executor):
        raise ValueError(f"executor must be one of {', '.join(get_args(Executor))}, got {executor!r}")
    if isinstance(geometry, Convolution) and executor in ("chunk", "fused"):
        raise ValueError(f"a convolution has no states for {executor!r}: use 'auto', or another one of them")
    if per_weight and executor in ("chunk", "history", "factored"):
        raise ValueError(f"one gamma_lam per weight breaks the closed form of {executor!r}: use 'fused' or 'step'")


@lru_cache
def compiled_loop(device_type: str) -> Loop | None:
    """Return the compiled loop for a kind of device; None where there is none.

    On CUDA it is compiled by Triton, which torch's builds for Windows do not bring along and which needs a C
    compiler. A warning says what is missing, once.
    """
    # Imported here: numba and Triton take a second to load and many runs never need them.
    if device_type == "cpu":
        from cet_rl.credit.fused import fused

        return fused
    if device_type != "cuda":
        return None
    try:
        from cet_rl.credit.fused_cuda import fused_cuda, require_driver

        require_driver()
    except Exception as problem:  # whatever it is: the other executors are as exact
        warnings.warn(
            f"no compiled loop on CUDA ({problem}): layers with one gamma_lam per weight take the slow definition",
            stacklevel=2,
        )
        return None
    return fused_cuda
