"""The actor-critic with cascading eligibility traces as a Tianshou policy and on-policy algorithm.

Tianshou's own trainer, collector, buffers and loggers run the two. `cet_rl.agents.learner` does the learning, as
in `CETActorCritic`: the same transitions give the same gradient. Needs the extra `tianshou`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from inspect import signature
from typing import Any, cast

import numpy as np
import torch
from gymnasium import spaces
from tianshou.algorithm.algorithm_base import Algorithm, OnPolicyAlgorithm, Policy, TrainingStats
from tianshou.algorithm.optim import AdamOptimizerFactory, OptimizerFactory
from tianshou.data import Batch, ReplayBuffer
from tianshou.data.batch import BatchProtocol, TArr
from tianshou.data.types import DistBatchProtocol, ObsBatchProtocol, RolloutBatchProtocol
from tianshou.trainer import OnPolicyTrainer, OnPolicyTrainerParams
from tianshou.utils.net.common import ActorCritic

from cet_rl.agents.config import LEARNING_OPTIONS, learner_config, our_keywords
from cet_rl.agents.distributions import Array
from cet_rl.agents.learner import ActorCriticLearner, Rollout
from cet_rl.agents.policy import CETPolicy
from cet_rl.traces.base import Trace, check_whole
from cet_rl.traces.registry import TraceConfig, implied_delay
from cet_rl.traces.timing import BEHAVIOURAL_STEP, CreditTiming


class CETTianshouPolicy(Policy):
    """Act for `CETTianshou`, with the networks of a `CETPolicy`.

    Tianshou's buffers hold the learner's actions: counted from zero, or reals that are not clipped. `map_action`
    turns them into the environment's.

    Args:
        observation_space, action_space, **networks: Arguments of the `CETPolicy` in `networks`.
        deterministic_eval: Whether to take the most probable action outside of training, as elsewhere in Tianshou.
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
        self.networks = CETPolicy(observation_space, action_space, **networks)
        self.deterministic_eval = deterministic_eval

    @torch.no_grad()
    def forward(
        self, batch: ObsBatchProtocol, state: dict[str, Any] | BatchProtocol | Array | None = None, **kwargs: Any
    ) -> DistBatchProtocol:
        """Return a batch with `act`, (N, *action_shape), `dist`, π(· | obs), and an unchanged `state`."""
        observations = torch.as_tensor(batch.obs, device=self.networks.device)
        distribution = self.networks.get_distribution(observations)
        deterministic = self.deterministic_eval and not self.is_within_training_step
        actions = distribution.get_actions(deterministic=deterministic)
        return cast(DistBatchProtocol, Batch(act=actions, dist=distribution.distribution, state=state))

    def map_action(self, act: TArr) -> Array:
        """Return the environment's actions for the learner's."""
        return self.networks.to_environment(self._action_to_numpy(act))

    def map_action_inverse(self, act: TArr) -> Array:
        """Return the learner's actions for the environment's."""
        actions = self._action_to_numpy(act)
        return actions - self.action_space.start if isinstance(self.action_space, spaces.Discrete) else actions


@dataclass(kw_only=True)
class CETTrainingStats(TrainingStats):
    """Hold an update's statistics, which `TensorboardLogger` logs as `update/train/…` and `update/credit/…`."""

    train: dict[str, float] = field(default_factory=dict)
    credit: dict[str, float] = field(default_factory=dict)

    def get_loss_stats_dict(self) -> dict[str, float]:
        """Return all numbers by path; Tianshou averages them over updates."""
        return {f"{part}/{name}": v for part in ("train", "credit") for name, v in getattr(self, part).items()}


class CETTianshou(OnPolicyAlgorithm[CETTianshouPolicy]):
    """Learn online with an actor-critic whose credit arrives `delay` seconds late (paper, Algorithm 1).

    An update uses a whole collection, `n_steps` steps in each of `num_envs` environments, exactly once:

        OnPolicyTrainerParams(collection_step_num_env_steps=n_steps * num_envs, batch_size=None, …)

    Args:
        policy: Acts, and holds actor and critic.
        num_envs: Number of environments that the collector steps side by side.
        n_steps: Steps in each environment of a collection.
        optim: Factory of the optimiser of both networks and of its learning-rate schedule; None for Adam with a
            constant rate of 5e-4 and ε = 1e-5.
        delay, stacked, step_duration, trace, **learning: See `CETActorCritic`.

    Attributes:
        learner: The `ActorCriticLearner`; `state_dict` includes its traces and delay lines.

    Raises:
        ValueError, TypeError: for counts, options or a delay that it cannot take; for an unknown argument.
    """

    last_features: torch.Tensor
    last_done: torch.Tensor

    class Optimizer(Algorithm.Optimizer):
        """Apply gradients that the learner has computed and clipped."""

        def apply(self) -> None:
            """Take one step."""
            self._optim.step()

        def state_dict(self) -> dict[str, Any]:
            """Return tensors and Python numbers; `torch.load` refuses the NumPy ones of Tianshou's schedules."""
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
        stacked: bool = False,
        step_duration: float = BEHAVIOURAL_STEP,
        trace: str | Trace | TraceConfig | None = None,
        **learning: Any,
    ) -> None:
        super().__init__(policy=policy)
        check_whole(n_steps, "n_steps", at_least=1)
        check_whole(num_envs, "num_envs", at_least=1)
        networks = policy.networks
        self.num_envs, self.n_steps = num_envs, n_steps
        delay = delay or implied_delay(trace, step_duration)
        self.timing = CreditTiming(delay, step_duration, stacked, layers=len(networks.actor.weights))
        known = [*signature(CETTianshou).parameters, *LEARNING_OPTIONS]
        config = learner_config(self.timing, trace, **our_keywords(learning, known, "help(CETTianshou) shows all"))
        self.learner = ActorCriticLearner(
            networks.actor, networks.critic, self.timing, config, num_envs=num_envs, rollout=n_steps
        )
        factory = optim or AdamOptimizerFactory(lr=5e-4, eps=1e-5)
        self.optim = self._create_optimizer(ActorCritic(networks.actor, networks.critic), factory)
        self._rollout = Rollout.empty(n_steps, num_envs, networks.num_features, networks.actor.head)
        # The end of the last collection shows whether the next one continues its episodes or starts others.
        self.register_buffer("last_features", torch.zeros(num_envs, networks.num_features))
        self.register_buffer("last_done", torch.ones(num_envs, dtype=torch.bool))

    def create_trainer(self, params: OnPolicyTrainerParams) -> OnPolicyTrainer:
        """Return Tianshou's trainer; raise ValueError if the parameters do not fit, or the run is too short."""
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
        """Raise ValueError unless the batch is one whole collection, one environment after the other."""
        if buffer.options["ignore_obs_next"] or buffer.options["stack_num"] != 1:
            raise ValueError("the buffer must keep obs and obs_next as they are: no ignore_obs_next, no stack_num")
        edges = buffer.subbuffer_edges
        expected = edges[: self.num_envs, None] + np.arange(self.n_steps)
        if not np.array_equal(indices, expected.ravel()):
            counts = np.bincount(np.searchsorted(edges, indices, side="right") - 1)
            raise ValueError(
                f"a collection must be n_steps={self.n_steps} steps of each of num_envs={self.num_envs} "
                f"environments in order, got {', '.join(map(str, counts[counts > 0]))}: collect by steps, not by "
                "episodes, into a buffer with room for all, use update(), and empty the buffer after it"
            )
        return batch

    def _update_with_batch(
        self, batch: RolloutBatchProtocol, batch_size: int | None, repeat: int
    ) -> CETTrainingStats:
        """Advance the synapses by the collection, and take one step with the resulting gradient."""
        _check_update(batch_size, repeat)
        last_done, steps_before = self._record(batch), self.learner.steps
        try:
            statistics = self.learner.accumulate(self._rollout.to(self.policy.networks.device), statistics=True)
        finally:
            if self.learner.steps > steps_before:  # else the traces have not seen the end of this collection
                self.last_features.copy_(self._rollout.last_observations)
                self.last_done.copy_(last_done)
        assert isinstance(self.optim, CETTianshou.Optimizer)
        self.optim.apply()

        def under(part: str) -> dict[str, float]:
            # Tianshou averages over updates: one nan, such as the cosine with a zero update, would make all nan.
            values = {path.removeprefix(part): v for path, v in statistics.items() if path.startswith(part)}
            return {name: value for name, value in values.items() if math.isfinite(value)}

        return CETTrainingStats(train=under("train/"), credit=under("credit/"))

    # NumPy need not warn of numbers that are not finite: `Rollout.check_finite` raises, and names the environment.
    @np.errstate(invalid="ignore", over="ignore")
    def _record(self, batch: RolloutBatchProtocol) -> torch.Tensor:
        """Write the collection into the rollout; return whether each environment's episode has ended, (E,).

        Tianshou's collector resets an environment in the step that ends its episode, and `obs_next` is from before
        the reset: every step is a transition, and truncations bootstrap from `obs_next`.
        """
        networks, rollout, arrays = self.policy.networks, self._rollout, self._rollout.arrays()
        steps, envs = self.n_steps, self.num_envs

        def steps_first(values: Any) -> Array:
            grid = np.asarray(values)
            return grid.reshape(envs, steps, *grid.shape[1:]).swapaxes(0, 1)

        observations, following = steps_first(batch.obs), steps_first(batch.obs_next)
        networks.write_features(observations, arrays["observations"].reshape(steps * envs, -1))
        networks.write_features(following[-1], arrays["last_observations"])
        arrays["actions"][:], arrays["rewards"][:] = steps_first(batch.act), steps_first(batch.rew)
        terminated = steps_first(batch.terminated).astype(bool)
        truncated = steps_first(batch.truncated).astype(bool) & ~terminated
        arrays["terminated"][:], arrays["truncated"][:] = terminated, truncated
        final = np.zeros((int(truncated.sum()), networks.num_features), np.float32)
        networks.write_features(following[truncated], final)
        rollout.final_observations = torch.from_numpy(final)
        rollout.check_finite(self.learner.steps)
        done = terminated | truncated
        # A reset of the collector ends an episode that no step has ended.
        was_reset = (arrays["observations"][0] != self.last_features.cpu().numpy()).any(-1)
        arrays["starts"][0] = self.last_done.cpu().numpy() | was_reset
        arrays["starts"][1:] = done[:-1]
        return torch.from_numpy(done[-1])


def _check_update(batch_size: int | None, repeat: int) -> None:
    """Raise ValueError unless an update uses the whole collection exactly once."""
    for name, value, right in (("batch_size", batch_size, None), ("update_step_num_repetitions", repeat, 1)):
        if value != right:
            raise ValueError(f"an update takes the whole collection once: {name} must be {right}, got {value}")
