"""Algorithm 1: an online actor-critic whose actor learns from credit that arrives late. Plain torch.

The actor's update is the one its synapses accumulate (`cet_rl.credit`): RL eligibility traces fed by policy
gradients that have passed through a synaptic trace. The critic is trained by backpropagation on λ-returns. One
global norm clips both gradients together and one Adam applies them (paper, App. C, Table 5).

    η_t = r_t + γ V(s_{t+1}) - V(s_t)        V(s_{t+1}) = 0 after a termination, the value of the final
                                             observation after a truncation
    actor    -Σ η e / N - entropy_coef ∇H    means over the N steps and environments of the rollout
    critic   value_coef · mean (V(s_t) - R_t)²,   R_t the λ-return
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from cet_rl.agents.distributions import DiagonalGaussian
from cet_rl.agents.hyperparameters import check_hyperparameters
from cet_rl.agents.networks import Actor
from cet_rl.credit import Synapses, lambda_sums
from cet_rl.credit.alignment import AlignmentProbe
from cet_rl.traces.registry import TraceConfig
from cet_rl.traces.timing import CreditTiming

ErrorAt = Literal["preactivation", "activation"]


@dataclass
class Rollout:
    """T steps of E environments, as they happened.

    Attributes:
        observations: s_t as the networks see them, (T, E, n).
        actions: a_t, (T, E, *action_shape) as the actor's distribution counts them: from zero, int64, or reals.
        rewards: r_t, (T, E).
        starts: 1 where s_t is the first of an episode, (T, E).
        terminated: 1 where the episode ended at t for good, (T, E).
        truncated: 1 where it was cut off at t, (T, E).
        last_observations: s_T, what follows the last step, (E, n).
        final_observations: the observation each truncated episode ended with, in the order of
            `truncated.nonzero()`, (k, n).
        valid: 0 where a step is none, an environment resetting itself, (T, E); None if all are.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    starts: Tensor
    terminated: Tensor
    truncated: Tensor
    last_observations: Tensor
    final_observations: Tensor
    valid: Tensor | None = None


@dataclass(frozen=True)
class LearnerConfig:
    """Everything about learning but the networks and the timing. Defaults: paper, Table 5.

    Attributes:
        trace: the synaptic trace that bridges the delay.
        gamma: γ, the discount, in [0, 1].
        lam: λ of the RL eligibility trace and of the critic's returns, in [0, 1]; γλ < 1.
        random_lam: (low, high): one λ per weight of the actor, drawn uniformly once; the critic keeps `lam`.
        entropy_coef: weight of the policy's entropy.
        value_coef: weight of the critic's loss.
        max_grad_norm: global norm the gradient is clipped to.
        error_at: what δ of a hidden layer is taken with respect to: "preactivation" holds f' already and needs
            an activation whose f' is 0 or 1; "activation" is Eq. 1 as printed.
        alignment: whether to measure each layer's alignment with the true gradient.
    """

    trace: TraceConfig = field(default_factory=TraceConfig)
    gamma: float = 0.99
    lam: float = 0.95
    random_lam: tuple[float, float] | None = None
    entropy_coef: float = 0.01
    value_coef: float = 0.25
    max_grad_norm: float = 0.5
    error_at: ErrorAt = "preactivation"
    alignment: bool = True

    def __post_init__(self) -> None:
        check_hyperparameters(self)
        if self.error_at not in get_args(ErrorAt):
            raise ValueError(f"error_at must be one of {', '.join(get_args(ErrorAt))}, got {self.error_at!r}")


class ActorCriticLearner(nn.Module):
    """Turns rollouts into gradients of an actor and a critic. Networks, traces and lines are in `state_dict`.

    Args:
        actor: its weights are updated through the synapses.
        critic: trained by backpropagation; observations (N, n) to values (N,).
        timing: when credit reaches each of the actor's layers.
        config: see `LearnerConfig`.
        num_envs: E.
        rollout: T, steps of a usual rollout.
        generator: draws the λ of each weight.
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
                "an error at the pre-activation holds f' already and needs an activation whose derivative is "
                "0 or 1 (relu, identity); use error_at='activation' (--error-at activation) with others"
            )
        self.actor, self.critic, self.config = actor, critic, config
        self.synapses, self.probes = nn.ModuleList(), nn.ModuleDict()
        # What the distribution has of its own, such as log σ, is at the output layer and waits as that does.
        own = list(actor.head.own_weights)
        self.names = [*map(str, range(timing.layers)), *own]
        delays = [*timing.layer_delays, *[timing.layer_delays[-1]] * len(own)]
        for name, geometry, delay in zip(self.names, actor.geometries, delays, strict=True):
            gamma_lam: float | Tensor = config.gamma * config.lam
            if config.random_lam is not None:
                low, high = config.random_lam
                gamma_lam = config.gamma * (
                    low + (high - low) * torch.rand(geometry.weight_shape, generator=generator)
                )
            trace = config.trace.build(delay)
            self.synapses.append(
                Synapses(
                    geometry=geometry,
                    trace=trace,
                    delay_steps=delay,
                    gamma_lam=gamma_lam,
                    num_envs=num_envs,
                    rollout=rollout,
                )
            )
            # Without a delay and along true derivatives, as at the output, the update is the true gradient.
            misled = actor.feedback != "backprop" and len(self.synapses) < timing.layers
            if config.alignment and (delay or misled):
                self.probes[name] = AlignmentProbe(
                    geometry=geometry,
                    delay_steps=delay,
                    gamma_lam=gamma_lam,
                    slowest=config.gamma * (config.lam if config.random_lam is None else config.random_lam[1]),
                    num_envs=num_envs,
                    rollout=rollout,
                )

        self._replays_truth = bool(self.probes) and actor.feedback != "backprop"

    def trained_parameters(self) -> Iterator[nn.Parameter]:
        """What one optimiser is to update: actor and critic."""
        yield from self.actor.parameters()
        yield from self.critic.parameters()

    def accumulate(self, rollout: Rollout, *, statistics: bool = False) -> dict[str, float]:
        """Advance the synapses by one rollout and set `.grad` of every parameter, clipped.

        Args:
            rollout: T steps; T may differ from the usual one (if longer, alignment sees less of the past).
            statistics: whether to compute what is worth logging.

        Raises:
            FloatingPointError: if a gradient is not finite: learning has diverged. The weights are untouched.

        Returns:
            The statistics: losses, entropy, norms, alignment of each delayed layer. Empty unless asked for.
        """
        steps, envs = rollout.rewards.shape
        samples = steps * envs
        observations = rollout.observations.flatten(0, 1)

        values, td_error = self._td_errors(rollout, observations)
        with torch.no_grad():
            decay = self.config.gamma * self.config.lam
            returns = values + lambda_sums(td_error, rollout.starts, decay)
        squared = (values - returns) ** 2
        if rollout.valid is not None:
            squared = squared * rollout.valid
        value_loss = squared.sum() / samples
        self.critic.zero_grad(set_to_none=True)
        (self.config.value_coef * value_loss).backward()  # type: ignore[no-untyped-call]

        entropies, updates = self._assign_credit(rollout, observations, td_error)

        norm = nn.utils.clip_grad_norm_(list(self.trained_parameters()), self.config.max_grad_norm)
        if not torch.isfinite(norm):
            raise FloatingPointError("learning has diverged: a gradient is not finite; lower the learning rate")
        if not statistics:
            return {}
        found = {
            "train/value_loss": value_loss.item(),
            "train/entropy_loss": -entropies.mean().item(),
            "train/gradient_norm": norm.item(),
            "train/explained_variance": _explained_variance(values.detach(), returns),
        }
        if isinstance(self.actor.head, DiagonalGaussian):
            found["train/std"] = self.actor.head.std.mean().item()
        for name, probe in self.probes.items():
            assert isinstance(probe, AlignmentProbe)
            found[f"credit/alignment/{name}"] = probe.cosine(updates[name], steps).item()
        return found

    def _td_errors(self, rollout: Rollout, observations: Tensor) -> tuple[Tensor, Tensor]:
        """V(s_t) with its graph, and η_t, each (T, E); η = 0 where a step is none."""
        steps, envs = rollout.rewards.shape
        rest = torch.cat([rollout.last_observations, rollout.final_observations])
        all_values = self.critic(torch.cat([observations, rest]))
        values = all_values[: steps * envs].view(steps, envs)
        with torch.no_grad():
            following = torch.cat([values[1:], all_values[None, steps * envs : (steps + 1) * envs]])
            following[rollout.truncated.bool()] = all_values[(steps + 1) * envs :]
            td_error = rollout.rewards + self.config.gamma * (1 - rollout.terminated) * following - values
            if rollout.valid is not None:
                td_error = td_error * rollout.valid
        return values, td_error

    def _assign_credit(
        self, rollout: Rollout, observations: Tensor, td_error: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Feed the synapses and set the actor's gradients.

        Returns:
            The entropy of each sample, (T · E,), and ΔW of each layer by name, uphill, summed over steps and
            environments.
        """
        actor, shape = self.actor, rollout.rewards.shape
        activity = actor.activity(observations)
        scores = actor.head.scores(activity.output, rollout.actions.flatten(0, 1))
        entropies, entropy_gradients = actor.head.entropy(activity.output)
        valid = None if rollout.valid is None else rollout.valid.flatten()[:, None]
        if valid is not None:  # a step that is none has no credit and leaves no memory
            scores = [score * valid for score in scores]
            entropy_gradients = [gradient * valid for gradient in entropy_gradients]
        errors = actor.assign(activity, scores)
        bonuses = actor.assign(activity, entropy_gradients)
        true_errors = actor.assign(activity, scores, "backprop") if self._replays_truth else None

        updates = {}
        layers = zip(self.names, actor.synaptic_weights, actor.geometries, strict=True)
        for layer, (name, weight, geometry) in enumerate(layers):
            pre, derivative = activity.pre[layer], activity.derivative[layer]
            remembered = derivative if valid is None else derivative * valid.view(-1, *[1] * (derivative.ndim - 1))
            gate = derivative if self.config.error_at == "preactivation" else 1.0

            def chunk(signal: Tensor) -> Tensor:
                return signal.view(*shape, *signal.shape[1:])

            signals = [chunk(pre), chunk(remembered), chunk(errors[layer] * gate), td_error, rollout.starts]
            synapses = self.synapses[layer]
            assert isinstance(synapses, Synapses)
            updates[name] = synapses(*signals)
            if name in self.probes:
                if true_errors is not None:
                    signals[2] = chunk(true_errors[layer] * gate)
                probe = self.probes[name]
                assert isinstance(probe, AlignmentProbe)
                probe.record(*signals)
            # The entropy bonus is the policy's own affair and waits for nothing.
            bonus = geometry.outer_sum(bonuses[layer] * derivative, pre)
            weight.grad = (updates[name] + self.config.entropy_coef * bonus) / -len(observations)
        return entropies, updates


def _explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 - Var[R - V] / Var[R]; nan if the returns do not vary."""
    variance = returns.var(correction=0)
    return float("nan") if variance == 0 else (1 - (returns - values).var(correction=0) / variance).item()
