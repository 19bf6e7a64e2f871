"""Algorithm 1: an online actor-critic whose actor learns from delayed credit. Plain torch, no RL framework.

    s_t, a_t, r_t   observation, action and reward of step t
    V               the critic
    η_t             TD error, r_t + γ V(s_{t+1}) - V(s_t); after a termination V(s_{t+1}) = 0, after a truncation
                    it is the value of the episode's final observation
    R_t             λ-return, V(s_t) + Σ_l (γλ)^l η_{t+l} within the episode and the rollout
    δ               credit signal at a layer: the gradient of log π(a_t | s_t), delayed
    e               RL eligibility trace of the actor, e ← γλ e + δ ⊙ (synaptic trace)

    actor    minimises  -Σ η e / N - entropy_coef · H      N = T · E samples of the rollout, H the mean entropy
    critic   minimises  value_coef · mean (V(s_t) - R_t)²

Each layer of the actor has its own `cet_rl.credit.Synapses`, which delay the credit, filter the Hebbian term and
accumulate Σ η e. One global norm clips both gradients together and one Adam applies them (paper, App. C, Table 5).
"""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cet_rl.agents.config import LearnerConfig
from cet_rl.agents.distributions import DiagonalGaussian, Distribution
from cet_rl.agents.networks import Actor, Critic
from cet_rl.credit import Synapses, lambda_sums
from cet_rl.credit.alignment import AlignmentProbe, cosine
from cet_rl.traces.timing import CreditTiming


@dataclass
class Rollout:
    """Hold T steps of E environments."""

    observations: Tensor  # s_t as the networks see them, (T, E, n)
    actions: Tensor  # a_t, (T, E, *action_shape): int64 counted from zero, or reals that are not clipped
    rewards: Tensor  # r_t, (T, E)
    starts: Tensor  # 1 where s_t is the first observation of an episode, (T, E)
    terminated: Tensor  # 1 where the episode terminated at t, (T, E)
    truncated: Tensor  # 1 where the episode was truncated at t, (T, E)
    last_observations: Tensor  # s_T, which follows the last step, (E, n)
    final_observations: Tensor  # of truncated episodes, in the order of `truncated.nonzero()`, (k, n)
    valid: Tensor | None = None  # 0 where a step is no transition (a reset), (T, E); None if all are transitions

    @classmethod
    def empty(cls, steps: int, envs: int, n: int, head: Distribution) -> Rollout:
        """Allocate a rollout of zeros on the CPU, to be filled through `arrays`; every step is valid."""

        def zeros(*shape: int, dtype: Any = np.float32) -> Tensor:  # NumPy allocates them faster than torch
            return torch.from_numpy(np.zeros(shape, dtype))

        return cls(
            observations=zeros(steps, envs, n),
            actions=zeros(steps, envs, *head.action_shape, dtype=head.action_dtype),
            **{name: zeros(steps, envs) for name in ("rewards", "starts", "terminated", "truncated")},
            last_observations=zeros(envs, n),
            final_observations=zeros(0, n),
        )

    def first(self, steps: int) -> Rollout:
        """Return the first `steps` steps; `last_observations` must be those that follow them."""
        kept = {"last_observations": None, "final_observations": int(self.truncated[:steps].sum())}
        return self._map(lambda name, tensor: tensor[: kept.get(name, steps)])

    def of_envs(self, envs: slice) -> Rollout:
        """Return the rollout of some environments, without final observations; it shares this one's memory."""
        by_env = {"last_observations": lambda x: x[envs], "final_observations": lambda x: x[:0]}
        return self._map(lambda name, tensor: by_env.get(name, lambda x: x[:, envs])(tensor))

    def to(self, device: torch.device) -> Rollout:
        """Return the rollout on a device."""
        return self._map(lambda _, tensor: tensor.to(device).contiguous())

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the fields of a rollout on the CPU as numpy arrays that share its memory."""
        return {name: tensor.numpy() for name, tensor in vars(self).items() if tensor is not None}

    def _map(self, change: Callable[[str, Tensor], Tensor]) -> Rollout:
        return Rollout(**{name: change(name, tensor) for name, tensor in vars(self).items() if tensor is not None})

    def check_finite(self, first_step: int) -> None:
        """Raise FloatingPointError naming the environment and step of a reward or observation that is not finite.

        `first_step` is the number of steps that each environment had made before this rollout.
        """
        # A sum is finite only if all its terms are, and takes one pass over the data.
        floats = (self.observations, self.last_observations, self.rewards, self.final_observations)
        if math.isfinite(sum(x.sum().item() for x in floats)):
            return
        following = torch.cat([self.observations, self.last_observations[None]])
        cuts = self.truncated.nonzero()
        for name, values, places in (
            ("an observation", following.flatten(0, 1), None),
            ("a reward", self.rewards.flatten()[:, None], None),
            ("an observation", self.final_observations, cuts + cuts.new_tensor([1, 0])),
        ):
            if not torch.isfinite(values).all():
                row = int((~torch.isfinite(values).all(-1)).nonzero()[0])
                step, env = divmod(row, self.rewards.shape[1]) if places is None else places[row].tolist()
                raise FloatingPointError(
                    f"environment {env} gave {name} that is not finite at its step {first_step + step}"
                )


class ActorCriticLearner(nn.Module):
    """Turn rollouts into gradients of an actor and a critic. `state_dict` holds networks, traces and delay lines.

    Args:
        actor: Its weights are updated through the synapses.
        critic: Trained by backpropagation; maps observations (N, n) to values (N,).
        timing: When credit reaches each of the actor's layers.
        config: The options of learning.
        num_envs, rollout: E, and the usual T; other rollouts may have other lengths.
        generator: Draws the λ of each weight, if `config.random_lam` is set.

    Attributes:
        synapses: One `Synapses` for each layer of the actor and each parameter of its distribution.
        probes: `AlignmentProbe` by layer name, for the layers whose alignment is measured.
        names: Layer names: "0", "1", …, then the distribution's own parameters, such as "log_std".
        steps: Steps of each environment that the synapses have processed since this object was made.
    """

    def __init__(
        self,
        actor: Actor,
        critic: nn.Module,
        timing: CreditTiming,
        config: LearnerConfig,
        *,
        num_envs: int,
        rollout: int,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if timing.layers != len(actor.weights):
            raise ValueError(f"timing is for {timing.layers} layers, the actor has {len(actor.weights)}")
        if config.error_at == "preactivation" and not actor.activation.binary:
            raise ValueError(
                "an error at the pre-activation contains f' already and needs an activation whose derivative is "
                "0 or 1 (relu, identity); use error_at='activation' (--error-at activation) with others"
            )
        self.actor, self.critic, self.config = actor, critic, config
        self.synapses, self.probes, self.steps = nn.ModuleList(), nn.ModuleDict(), 0
        # Parameters of the distribution, such as log σ, belong to the output layer and wait as long as it does.
        of_head = list(actor.head.own_weights)
        self.names = [*map(str, range(timing.layers)), *of_head]
        delays = [*timing.layer_delays, *[timing.layer_delays[-1]] * len(of_head)]
        executors = config.executors or [None] * len(self.names)
        if len(executors) != len(self.names):
            raise ValueError(f"{len(executors)} executors are named, the actor has {len(self.names)} layers")
        for name, geometry, delay, choice in zip(self.names, actor.geometries, delays, executors, strict=True):
            lam: float | Tensor = config.lam
            if config.random_lam is not None:
                low, high = config.random_lam
                lam = low + (high - low) * torch.rand(geometry.weight_shape, generator=generator)
            shared: dict[str, Any] = {"geometry": geometry, "delay_steps": delay, "gamma_lam": config.gamma * lam}
            shared |= {"num_envs": num_envs, "rollout": rollout}
            synapses = Synapses(trace=config.trace.build(delay), choice=choice, **shared)
            synapses.settled = True  # a resumed run then has the same executor
            self.synapses.append(synapses)
            # Without a delay, backpropagation gives the true gradient: there is nothing to measure.
            by_feedback = actor.feedback != "backprop" and len(self.synapses) < timing.layers
            if config.alignment and (delay or by_feedback):
                self.probes[name] = AlignmentProbe(largest_decay=config.gamma * config.largest_lam, **shared)

    @property
    def executors(self) -> tuple[str, ...]:
        """Return the executor of each layer, as `LearnerConfig.executors` names it."""
        return tuple(str(each.choice) for each in self.synapses)

    def trained_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters that one optimiser updates: the actor's and the critic's."""
        yield from self.actor.parameters()
        yield from self.critic.parameters()

    @torch.no_grad()
    def accumulate(self, rollout: Rollout, *, statistics: bool = False) -> dict[str, float]:
        """Advance the synapses by one rollout, and set and clip `.grad` of every parameter that requires one.

        The synapses of all layers advance, or none: Ctrl-C waits until the last one is done.

        Args:
            rollout: T steps; T may differ from the usual one (if longer, alignment sees less of the past).
            statistics: Whether to compute the numbers that are logged.

        Returns:
            The statistics by their tags: loss, entropy, gradient norm, alignment of each delayed layer. Empty
            unless `statistics` is set.

        Raises:
            FloatingPointError: if a signal or a gradient is not finite: learning has diverged. The weights do not
                change; neither do the traces if a signal is not finite.
        """
        config, samples = self.config, rollout.rewards.numel()

        # TD errors and λ-returns of the critic (Algorithm 1, line 7), and the gradient of its loss.
        values, td_error, backward = self._td_errors(rollout)
        advantages = lambda_sums(td_error, rollout.starts, config.gamma * config.lam)
        error = -advantages if rollout.valid is None else -advantages * rollout.valid
        value_loss = (error**2).sum() / samples
        self.critic.zero_grad(set_to_none=True)
        backward(error.flatten() * (2 * config.value_coef / samples))

        # The synapses' accumulated updates, Σ η e (lines 6 and 8), and the entropy bonus, which is not delayed.
        signals, true_signals, bonuses, entropies = self._signals(rollout, td_error)
        self._check_finite(value_loss, signals)
        with _interrupt_deferred():
            layers = zip(self.names, self.synapses, strict=True)
            updates = {name: each(*signals[name], bonuses.get(name)) for name, each in layers}
            for name, probe in self.probes.items():
                probe.record(*true_signals[name])  # type: ignore[operator]
            self.steps += len(rollout.rewards)
        for name, weight in zip(self.names, self.actor.synaptic_weights, strict=True):
            weight.grad = updates[name] / -samples if weight.requires_grad else None

        norm = nn.utils.clip_grad_norm_(list(self.trained_parameters()), config.max_grad_norm)
        if not torch.isfinite(norm):
            raise FloatingPointError("learning has diverged: a gradient is not finite; lower the learning rate")
        if not statistics:
            return {}
        numbers = {
            "train/value_loss": value_loss.item(),
            "train/entropy_loss": -entropies.mean().item(),
            "train/gradient_norm": norm.item(),
            "train/explained_variance": _explained_variance(values, values + advantages),
        }
        if isinstance(self.actor.head, DiagonalGaussian):
            numbers["train/std"] = self.actor.head.std.mean().item()
        for name, probe in self.probes.items():
            assert isinstance(probe, AlignmentProbe)
            bonus = probe.geometry.outer_sum(bonuses[name], signals[name][0]) if bonuses else 0.0
            truth = probe.true_gradient(len(rollout.rewards))
            numbers[f"credit/alignment/{name}"] = cosine(updates[name] - bonus, truth).item()
        return numbers

    def _td_errors(self, rollout: Rollout) -> tuple[Tensor, Tensor, Callable[[Tensor], None]]:
        """Return V(s_t) and η_t, each (T, E), and the function that backpropagates ∂ loss / ∂ V, (T · E,).

        η is zero where a step is no transition.
        """
        steps, envs = rollout.rewards.shape
        values, backward = self._evaluate(rollout.observations.flatten(0, 1))
        values = values.view(steps, envs)
        ends, _ = self._evaluate(torch.cat([rollout.last_observations, rollout.final_observations]))
        following = torch.cat([values[1:], ends[None, :envs]])
        if len(ends) > envs:
            following[rollout.truncated.bool()] = ends[envs:]
        td_error = rollout.rewards + self.config.gamma * (1 - rollout.terminated) * following - values
        if rollout.valid is not None:
            td_error = td_error * rollout.valid
        return values, td_error, backward

    def _evaluate(self, observations: Tensor) -> tuple[Tensor, Callable[[Tensor], None]]:
        """Return V(s), (N,), and the function that backpropagates its gradient; `Critic` needs no autograd."""
        critic = self.critic
        if type(critic) is Critic:
            values, inputs = critic.forward_layers(observations)
            return values, lambda gradient: critic.backward(inputs, gradient)
        with torch.enable_grad():
            values = critic(observations)
        return values.detach(), lambda gradient: values.backward(gradient) if values.requires_grad else None

    def _signals(
        self, rollout: Rollout, td_error: Tensor
    ) -> tuple[dict[str, list[Tensor]], dict[str, list[Tensor]], dict[str, Tensor], Tensor]:
        """Compute the signals of every layer.

        Returns:
            By layer name: x, f', δ, η and s as `Synapses` takes them; the same with the true δ; and the gradient
            of the entropy bonus with respect to the pre-activation, which is not delayed (empty without a bonus).
            Last, the entropies, (T · E,).
        """
        actor, shape = self.actor, rollout.rewards.shape

        def unflatten(signal: Tensor) -> Tensor:
            """Return (T · E, …) as (T, E, …)."""
            return signal.view(*shape, *signal.shape[1:])

        pre, derivative, output = actor.forward_layers(rollout.observations.flatten(0, 1))
        scores = actor.head.scores(output, rollout.actions.flatten(0, 1))
        entropies, entropy_scores = actor.head.entropy(output)
        valid = None if rollout.valid is None else rollout.valid.flatten()[:, None]
        if valid is not None:  # a step that is no transition has no credit and leaves no memory
            scores = [score * valid for score in scores]
            entropy_scores = [score * valid for score in entropy_scores]
        at, coefficient = self.config.error_at, self.config.entropy_coef
        errors = true_errors = actor.layer_errors(derivative, scores, actor.feedback, at)
        if self.probes and actor.feedback != "backprop":
            true_errors = actor.layer_errors(derivative, scores, "backprop", at)
        bonuses = {}
        if coefficient:
            entropy_scores = [score * coefficient for score in entropy_scores]
            found = actor.layer_errors(derivative, entropy_scores, actor.feedback, "preactivation")
            bonuses = {name: unflatten(error) for name, error in zip(self.names, found, strict=True)}

        signals, true_signals = {}, {}
        for layer, name in enumerate(self.names):
            slope = derivative[layer]
            if valid is not None:
                slope = slope * valid.view(-1, *[1] * (slope.ndim - 1))
            x, f_prime = unflatten(pre[layer]), unflatten(slope)
            signals[name] = [x, f_prime, unflatten(errors[layer]), td_error, rollout.starts]
            true_signals[name] = [x, f_prime, unflatten(true_errors[layer]), td_error, rollout.starts]
        return signals, true_signals, bonuses, entropies

    def _check_finite(self, value_loss: Tensor, signals: dict[str, list[Tensor]]) -> None:
        """Raise FloatingPointError naming layer and step of a signal that is not finite."""
        # x and δ suffice: f' is finite where they are, and η where the critic's loss is.
        sums = [signal.sum() for x, _, error, *_ in signals.values() for signal in (x, error)]
        if torch.isfinite(torch.stack([value_loss, *sums]).sum()):
            return
        for name, of_layer in signals.items():
            for what, each in zip(("input", "derivative", "error", "TD error"), of_layer, strict=False):
                for step, env, *_ in (~torch.isfinite(each)).nonzero().tolist():
                    raise FloatingPointError(
                        f"learning has diverged: the {what} of layer {name} is not finite at step {step} of the "
                        f"rollout in environment {env}; lower the learning rate"
                    )
        if not torch.isfinite(value_loss):
            raise FloatingPointError(
                "learning has diverged: the critic's loss is infinite; lower the learning rate"
            )


@contextmanager
def _interrupt_deferred() -> Iterator[None]:
    """Defer Ctrl-C to the end of a block, which would leave layers at different steps if it were interrupted."""
    received: list[Any] = []
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, lambda *given: received.append(given))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if received:
            handler(*received[0])


def _explained_variance(values: Tensor, returns: Tensor) -> float:
    """Return 1 - Var[R - V] / Var[R]; nan if the returns do not vary."""
    variance = returns.var(correction=0)
    return float("nan") if variance == 0 else (1 - (returns - values).var(correction=0) / variance).item()
