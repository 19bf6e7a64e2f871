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

from cet_rl import categorical
from cet_rl.alignment import AlignmentProbe
from cet_rl.credit import Synapses, lambda_sums
from cet_rl.credit.blas import outer_sum
from cet_rl.networks import Activity, Actor, Critic
from cet_rl.timing import CreditTiming
from cet_rl.traces.registry import TraceConfig

ErrorAt = Literal["preactivation", "activation"]


@dataclass
class Rollout:
    """T steps of E environments, as they happened.

    Attributes:
        observations: s_t as the networks see them, (T, E, n).
        actions: a_t counted from zero, (T, E), int64.
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
        for name, value in {"gamma": self.gamma, "lam": self.lam}.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {value:g}")
        highest = self.lam
        if self.random_lam is not None:
            low, highest = self.random_lam
            if not 0 <= low <= highest <= 1:
                raise ValueError(
                    f"random_lam must be two numbers with 0 <= low <= high <= 1, got {self.random_lam}"
                )
        if self.gamma * max(highest, self.lam) >= 1:
            raise ValueError("gamma times lam must stay below 1: nothing would ever be forgotten")
        for name, value in {"entropy_coef": self.entropy_coef, "value_coef": self.value_coef}.items():
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be finite and not negative, got {value:g}")
        if not 0 < self.max_grad_norm < float("inf"):
            raise ValueError(f"max_grad_norm must be positive and finite, got {self.max_grad_norm:g}")
        if self.error_at not in get_args(ErrorAt):
            raise ValueError(f"error_at must be one of {', '.join(get_args(ErrorAt))}, got {self.error_at!r}")


class ActorCriticLearner(nn.Module):
    """Turns rollouts into gradients of an actor and a critic. Networks, traces and lines are in `state_dict`.

    Args:
        actor: its weights are updated through the synapses.
        critic: trained by backpropagation.
        timing: when credit reaches each of the actor's layers.
        config: see `LearnerConfig`.
        num_envs: E.
        rollout: T, steps of a usual rollout.
        generator: draws the λ of each weight.
    """

    def __init__(
        self,
        actor: Actor,
        critic: Critic,
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
        for layer, ((n_in, n_out), delay) in enumerate(zip(actor.shapes, timing.layer_delays, strict=True)):
            gamma_lam: float | Tensor = config.gamma * config.lam
            if config.random_lam is not None:
                low, high = config.random_lam
                gamma_lam = config.gamma * (low + (high - low) * torch.rand(n_out, n_in, generator=generator))
            trace = config.trace.build(delay)
            self.synapses.append(
                Synapses(
                    n_in, n_out, trace, delay_steps=delay, gamma_lam=gamma_lam, num_envs=num_envs, rollout=rollout
                )
            )
            # Without a delay the update is the true gradient; with λ per weight there is no such thing.
            if config.alignment and delay and config.random_lam is None:
                self.probes[str(layer)] = AlignmentProbe(
                    n_in,
                    n_out,
                    delay_steps=delay,
                    gamma_lam=config.gamma * config.lam,
                    num_envs=num_envs,
                    rollout=rollout,
                )

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

        activity = self.actor.activity(observations)
        each_entropy, entropy_gradient = categorical.entropy(activity.output)
        score = categorical.score(activity.output, rollout.actions.flatten())
        if rollout.valid is not None:
            mask = rollout.valid.flatten()[:, None]
            score, entropy_gradient = score * mask, entropy_gradient * mask
        updates = self._assign_credit(rollout, activity, score, td_error)
        self._set_actor_gradient(activity, updates, entropy_gradient, samples)

        norm = nn.utils.clip_grad_norm_(list(self.trained_parameters()), self.config.max_grad_norm)
        if not torch.isfinite(norm):
            raise FloatingPointError("learning has diverged: a gradient is not finite; lower the learning rate")
        if not statistics:
            return {}
        found = {
            "train/value_loss": value_loss.item(),
            "train/entropy_loss": -each_entropy.mean().item(),
            "train/gradient_norm": norm.item(),
            "train/explained_variance": _explained_variance(values.detach(), returns),
        }
        for layer, probe in self.probes.items():
            assert isinstance(probe, AlignmentProbe)
            found[f"credit/alignment/{layer}"] = probe.cosine(updates[int(layer)], steps).item()
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
        self, rollout: Rollout, activity: Activity, score: Tensor, td_error: Tensor
    ) -> list[Tensor]:
        """Feed each layer's synapses; ΔW of each layer, uphill, summed over steps and environments."""
        shape = rollout.rewards.shape
        errors = self.actor.backpropagate(activity, score)
        updates = []
        for layer, (pre, derivative, error) in enumerate(
            zip(activity.pre, activity.derivative, errors, strict=True)
        ):
            if self.config.error_at == "preactivation":
                error = error * derivative
            if rollout.valid is not None:
                derivative = derivative * rollout.valid.flatten()[:, None]
            signals = (
                *(signal.view(*shape, -1) for signal in (pre, derivative, error)),
                td_error,
                rollout.starts,
            )
            synapses = self.synapses[layer]
            assert isinstance(synapses, Synapses)
            updates.append(synapses(*signals))
            if str(layer) in self.probes:
                probe = self.probes[str(layer)]
                assert isinstance(probe, AlignmentProbe)
                probe.record(*signals)
        return updates

    def _set_actor_gradient(
        self, activity: Activity, updates: list[Tensor], entropy_gradient: Tensor, samples: int
    ) -> None:
        entropy_errors = self.actor.backpropagate(activity, entropy_gradient)
        for weight, update, error, derivative, pre in zip(
            self.actor.weights, updates, entropy_errors, activity.derivative, activity.pre, strict=True
        ):
            # The entropy bonus is the policy's own affair and waits for nothing.
            bonus = outer_sum(error * derivative, pre)
            weight.grad = (update + self.config.entropy_coef * bonus) / -samples


def _explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 - Var[R - V] / Var[R]; nan if the returns do not vary."""
    variance = returns.var(correction=0)
    return float("nan") if variance == 0 else (1 - (returns - values).var(correction=0) / variance).item()
