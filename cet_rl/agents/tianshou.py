"""The actor-critic with cascading eligibility traces in Tianshou's shape: a policy and an on-policy algorithm.

Tianshou's own trainer, collector, buffers and loggers run the two. All learning is that of
`cet_rl.agents.learner.ActorCriticLearner`, as under `CETActorCritic`: the same transitions give the same gradient.
Needs the extra `tianshou`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from tianshou.algorithm.algorithm_base import Algorithm, OnPolicyAlgorithm, Policy, TrainingStats
from tianshou.algorithm.optim import AdamOptimizerFactory, OptimizerFactory
from tianshou.data import Batch, ReplayBuffer
from tianshou.data.batch import BatchProtocol, TArr
from tianshou.data.types import DistBatchProtocol, ObsBatchProtocol, RolloutBatchProtocol
from tianshou.trainer import OnPolicyTrainer, OnPolicyTrainerParams
from tianshou.utils.net.common import ActorCritic

from cet_rl.agents.learner import ActorCriticLearner, ErrorAt, LearnerConfig, Rollout
from cet_rl.agents.policy import CETPolicy
from cet_rl.agents.recording import Recording
from cet_rl.traces.base import Normalization
from cet_rl.traces.cascade import Discretization
from cet_rl.traces.registry import TraceConfig
from cet_rl.traces.timing import BEHAVIOURAL_STEP, CreditTiming

Array = npt.NDArray[Any]


class CETTianshouPolicy(Policy):
    """Acts for `CETTianshou`, with the networks of a `CETPolicy`.

    Actions in Tianshou's buffers are those that the learner counts with: from zero, or reals not yet clipped.
    `map_action` turns them into the environment's.

    Args:
        observation_space: what `CETPolicy` can look at.
        action_space: what `CETPolicy` can act in.
        deterministic_eval: whether to take the most probable action outside of training, as elsewhere in Tianshou.
        **networks: the other arguments of `CETPolicy`: `net_arch`, `activation`, `split_observations`, `actor`,
            `critic`, `feedback`, `log_std`.

    Attributes:
        networks: the `CETPolicy`, actor and critic.

    Raises:
        ValueError: for spaces or sizes it cannot take.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        *,
        deterministic_eval: bool = False,
        **networks: Any,
    ) -> None:
        super().__init__(action_space, observation_space, action_scaling=False, action_bound_method=None)
        self.networks = CETPolicy(observation_space, action_space, lambda _: 0.0, **networks)
        self.deterministic_eval = deterministic_eval

    @torch.no_grad()
    def forward(
        self,
        batch: ObsBatchProtocol,
        state: dict[str, Any] | BatchProtocol | Array | None = None,
        **kwargs: Any,
    ) -> DistBatchProtocol:
        """Choose actions.

        Args:
            batch: with `obs`, (N, *shape).
            state: handed back as it is; nothing here is recurrent.
            **kwargs: part of Tianshou's interface, not used.

        Returns:
            A batch with `act`, (N, *action_shape), `dist`, π(· | obs), and `state`.
        """
        observations = torch.as_tensor(batch.obs, device=self.networks.device)
        distribution = self.networks.get_distribution(observations)
        deterministic = self.deterministic_eval and not self.is_within_training_step
        actions = distribution.get_actions(deterministic=deterministic)
        return cast(DistBatchProtocol, Batch(act=actions, dist=distribution.distribution, state=state))

    def map_action(self, act: TArr) -> Array:
        """Actions as the environment takes them: counted from its first, or clipped to its box."""
        return self.networks.to_environment(self._action_to_numpy(act))

    def map_action_inverse(self, act: TArr) -> Array:
        """Actions of the environment as the learner counts them."""
        actions = self._action_to_numpy(act)
        return actions - self.action_space.start if isinstance(self.action_space, spaces.Discrete) else actions


@dataclass(kw_only=True)
class CETTrainingStats(TrainingStats):
    """What an update tells; `TensorboardLogger` has it as `update/train/…` and `update/credit/alignment/<layer>`.

    Attributes:
        train: losses, entropy and norms by name.
        credit: "alignment/<layer>": cosine between the layer's update and the true gradient for the same data.
    """

    train: dict[str, float] = field(default_factory=dict)
    credit: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, found: dict[str, float]) -> CETTrainingStats:
        """From what `ActorCriticLearner.accumulate` found.

        What is no number yet, such as the cosine with an update of zero, is left out: Tianshou averages over
        updates, and one of them would spoil the next hundred.
        """

        def under(part: str) -> dict[str, float]:
            return {
                path.removeprefix(part): value
                for path, value in found.items()
                if path.startswith(part) and math.isfinite(value)
            }

        return cls(train=under("train/"), credit=under("credit/"))

    def get_loss_stats_dict(self) -> dict[str, float]:
        """All numbers by path, for Tianshou's averages."""
        return {f"{part}/{name}": v for part in ("train", "credit") for name, v in getattr(self, part).items()}


class CETTianshou(OnPolicyAlgorithm[CETTianshouPolicy]):
    """Online actor-critic that learns from credit arriving `delay` seconds late (paper, Algorithm 1).

    An update takes a whole collection at once, `n_steps` steps of each of `num_envs` environments, one time:

        OnPolicyTrainerParams(collection_step_num_env_steps=n_steps * num_envs, batch_size=None, …)

    Args:
        policy: acts, and holds actor and critic.
        num_envs: environments that the collector steps side by side.
        n_steps: steps of each of them in a collection.
        optim: makes the optimiser of both networks, and the schedule of its rate; None for Adam with a constant
            rate of 5e-4 and ε = 1e-5.
        delay: T, in seconds, after which the credit for an action reaches the actor's synapses.
        order, trace, normalization, decay, discretization, trace_options: of the trace, as in `CETActorCritic`.
        stacked: whether delays add up from the output layer down (retrograde signalling).
        step_duration: seconds one environment step stands for.
        gamma: discount.
        lam: λ of the RL eligibility trace and of the critic's returns.
        random_lam: (low, high): one λ per weight of the actor instead, drawn uniformly once.
        ent_coef: weight of the policy's entropy.
        vf_coef: weight of the critic's loss.
        max_grad_norm: joint clip of both gradients.
        error_at: "preactivation" or "activation", see `LearnerConfig`.
        alignment: whether to measure `credit/alignment/<layer>`.

    Attributes:
        learner: the networks' synapses and everything they remember, part of `state_dict`.

    Raises:
        ValueError: naming what cannot be and what would be right.
    """

    last_features: torch.Tensor
    last_done: torch.Tensor

    class Optimizer(Algorithm.Optimizer):
        """Applies gradients that are there already."""

        def apply(self) -> None:
            """One step. The learner has set the gradients and clipped them."""
            self._optim.step()

        def state_dict(self) -> dict[str, Any]:
            """Tensors and plain numbers; Tianshou's schedules leave numpy's, which `torch.load` refuses."""
            state = super().state_dict()
            for group in state["param_groups"]:
                group.update({key: v.item() for key, v in group.items() if isinstance(v, np.generic)})
            return state

    def __init__(
        self,
        *,
        policy: CETTianshouPolicy,
        num_envs: int,
        n_steps: int = 128,
        optim: OptimizerFactory | None = None,
        delay: float = 0.0,
        order: int | None = None,
        trace: str | None = None,
        normalization: Normalization = "peak",
        decay: float | None = None,
        discretization: Discretization = "exact",
        trace_options: Mapping[str, Any] | None = None,
        stacked: bool = False,
        step_duration: float = BEHAVIOURAL_STEP,
        gamma: float = 0.99,
        lam: float = 0.95,
        random_lam: tuple[float, float] | None = None,
        ent_coef: float = 0.01,
        vf_coef: float = 0.25,
        max_grad_norm: float = 0.5,
        error_at: ErrorAt = "preactivation",
        alignment: bool = True,
    ) -> None:
        super().__init__(policy=policy)
        if n_steps < 1:
            raise ValueError(f"n_steps must be at least 1, got {n_steps}")
        networks = policy.networks
        self.num_envs, self.n_steps = num_envs, n_steps
        self.timing = CreditTiming(delay, step_duration, stacked, layers=len(networks.actor.weights))
        config = LearnerConfig(
            trace=TraceConfig.for_delay(
                delay,
                trace,
                order,
                decay,
                normalization,
                stacked=stacked,
                discretization=discretization,
                options=trace_options,
            ),
            gamma=gamma,
            lam=lam,
            random_lam=random_lam,
            entropy_coef=ent_coef,
            value_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            error_at=error_at,
            alignment=alignment,
        )
        self.learner = ActorCriticLearner(
            networks.actor, networks.critic, self.timing, config, num_envs=num_envs, rollout=n_steps
        )
        factory = optim or AdamOptimizerFactory(lr=5e-4, eps=1e-5)
        self.optim = self._create_optimizer(ActorCritic(networks.actor, networks.critic), factory)
        self._recording = Recording(n_steps, num_envs, networks.num_features, networks.actor.head)
        self._steps_made = 0
        # What the last collection ended with tells whether the next one goes on from there.
        self.register_buffer("last_features", torch.zeros(num_envs, networks.num_features))
        self.register_buffer("last_done", torch.ones(num_envs, dtype=torch.bool))

    def create_trainer(self, params: OnPolicyTrainerParams) -> OnPolicyTrainer:
        """Tianshou's trainer, if its parameters fit this algorithm.

        Raises:
            ValueError: if they do not, or the run is over before any credit has arrived.
        """
        _check_update(params.batch_size, params.update_step_num_repetitions)
        collected, wanted = params.collection_step_num_env_steps, self.n_steps * self.num_envs
        if collected != wanted:
            raise ValueError(
                f"collection_step_num_env_steps must be n_steps × num_envs = {self.n_steps} × {self.num_envs} = "
                f"{wanted}, got {collected}"
            )
        self.timing.check_run(params.max_epochs * params.epoch_num_steps, self.num_envs)
        return super().create_trainer(params)

    def _preprocess_batch(
        self, batch: RolloutBatchProtocol, buffer: ReplayBuffer, indices: Array
    ) -> RolloutBatchProtocol:
        """See that the batch is what one collection has brought, all of it, one environment after the other."""
        if buffer.options["ignore_obs_next"] or buffer.options["stack_num"] != 1:
            raise ValueError("the buffer must keep obs and obs_next as they are: no ignore_obs_next, no stack_num")
        edges = buffer.subbuffer_edges
        counts = np.bincount(np.searchsorted(edges, indices, side="right") - 1, minlength=1)
        counts = counts[counts > 0]
        if len(counts) != self.num_envs:
            raise ValueError(
                f"the collection comes from {len(counts)} environments, the algorithm was made for num_envs="
                f"{self.num_envs}"
            )
        if (counts != self.n_steps).any():
            raise ValueError(
                f"a collection must be n_steps={self.n_steps} steps of each environment, "
                f"{self.n_steps * self.num_envs} in all, got {', '.join(map(str, counts))}: collect by steps, not "
                "by episodes, into a buffer with room for all, and empty it after each update"
            )
        if not np.array_equal(indices, (edges[: self.num_envs, None] + np.arange(self.n_steps)).ravel()):
            raise ValueError(
                "the batch must be all of one collection in the order of time: use update(), and a buffer with "
                f"room for {self.n_steps} steps of each environment"
            )
        return batch

    def _update_with_batch(
        self, batch: RolloutBatchProtocol, batch_size: int | None, repeat: int
    ) -> CETTrainingStats:
        """Advance the synapses by the collection, and take one step with the gradient they give.

        Raises:
            ValueError: for minibatches, or more than one repetition.
            FloatingPointError: if a reward, an observation or a gradient is not finite; the weights are then those
                of the last update.
        """
        _check_update(batch_size, repeat)
        found = self.learner.accumulate(self._rollout(batch), statistics=True)
        assert isinstance(self.optim, CETTianshou.Optimizer)
        self.optim.apply()
        return CETTrainingStats.of(found)

    # What is not finite is refused with the name of the environment it came from.
    @np.errstate(invalid="ignore", over="ignore")
    def _rollout(self, batch: RolloutBatchProtocol) -> Rollout:
        """The collection as T steps of E environments.

        Tianshou's collector resets an environment in the step that ends its episode, and `obs_next` is from before
        the reset: every step is one to learn from, and time limits bootstrap from `obs_next`.
        """
        networks, recording = self.policy.networks, self._recording
        steps, envs = self.n_steps, self.num_envs

        def by_time(values: Any) -> Array:
            grid = np.asarray(values)
            return grid.reshape(envs, steps, *grid.shape[1:]).swapaxes(0, 1)

        observations, following = by_time(batch.obs), by_time(batch.obs_next)
        recording.begin()
        networks.write_features(observations, recording.features[:-1].reshape(steps * envs, -1))
        networks.write_features(following[-1], recording.features[-1])
        recording.actions[:], recording.rewards[:] = by_time(batch.act), by_time(batch.rew)
        terminated = by_time(batch.terminated).astype(bool)
        truncated = by_time(batch.truncated).astype(bool) & ~terminated
        recording.terminated[:], recording.truncated[:] = terminated, truncated
        for step, env in np.argwhere(truncated):
            final = np.zeros((1, networks.num_features), np.float32)
            networks.write_features(following[step, env][None], final)
            recording.finals.append((int(step), int(env), final[0]))
        recording.check(self._steps_made)
        self._steps_made += steps

        done = terminated | truncated
        # Whoever resets the collector ends an episode that no step has ended.
        elsewhere = (recording.features[0] != self.last_features.cpu().numpy()).any(-1)
        recording.starts[0] = self.last_done.cpu().numpy() | elsewhere
        recording.starts[1:] = done[:-1]
        self.last_features.copy_(torch.from_numpy(recording.features[-1]))
        self.last_done.copy_(torch.from_numpy(done[-1]))
        return recording.rollout(networks.device)


def _check_update(batch_size: int | None, repeat: int) -> None:
    """Raise ValueError unless an update takes the whole collection, one time."""
    if batch_size is not None:
        raise ValueError(
            f"an update takes the whole collection at once: batch_size must be None, got {batch_size}"
        )
    if repeat != 1:
        raise ValueError(
            f"an update takes a collection one time: update_step_num_repetitions must be 1, got {repeat}"
        )
