"""Tianshou's A2C as an agent to compare with, in the shape our runs know: that of a Stable-Baselines3 algorithm.

Networks, updates, collection and training loop are Tianshou's own. Needs the extra `tianshou`.
"""

from __future__ import annotations

import time
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback, ProgressBarCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.utils import get_device, is_vectorized_observation, set_random_seed
from tianshou.algorithm.algorithm_base import TrainingStats
from tianshou.algorithm.modelfree.a2c import A2C
from tianshou.algorithm.modelfree.reinforce import DiscreteActorPolicy, ProbabilisticActorPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory, LRSchedulerFactory
from tianshou.data import Batch, Collector, VectorReplayBuffer
from tianshou.data.batch import TArr
from tianshou.data.collector import CollectActionBatchProtocol, CollectStats
from tianshou.data.types import RolloutBatchProtocol
from tianshou.env import DummyVectorEnv
from tianshou.trainer import OnPolicyTrainer, OnPolicyTrainerParams
from tianshou.utils.net.common import MLP, Net
from tianshou.utils.net.continuous import ContinuousActorProbabilistic
from tianshou.utils.net.discrete import DiscreteActor
from tianshou.utils.torch_utils import policy_within_training_step
from torch.distributions import Independent, Normal
from torch.optim.lr_scheduler import LambdaLR

from cet_rl.agents.policy import check_observations
from cet_rl.agents.saving import check_rate
from cet_rl.envs.snapshot import capture, register_snapshot, restore
from cet_rl.runs import typed_json
from cet_rl.runs.rng import process_state, restore_process_state

Array = npt.NDArray[Any]


class TianshouA2C:
    """Tianshou's A2C with Adam (ε = 1e-5), separate networks for actor and critic, and no delay of its own.

    As Stable-Baselines3 does, it seeds the random numbers of the whole process when it is made.

    Args:
        build_env: makes one environment: a `Box` to look at; discrete actions, or a `Box` of vectors.
        num_envs: how many, side by side.
        n_steps: steps of each of them between updates.
        gamma: discount.
        lam: λ of the generalised advantage estimate.
        lr: learning rate.
        anneal_lr: whether the rate falls linearly to zero over the run.
        ent_coef: weight of the policy's entropy.
        vf_coef: weight of the critic's loss.
        max_grad_norm: joint clip of both gradients.
        hidden: widths of the hidden layers of actor and critic.
        activation: module after each of them.
        seed: of networks, actions and environments; the environments' count on from it.
        device: as in Stable-Baselines3.

    Attributes:
        algorithm: Tianshou's `A2C`.
        policy: Tianshou's policy, with the actor.
        num_timesteps: samples so far, all environments counted.
        ep_info_buffer: {"r": return, "l": length} of the last 100 training episodes.

    Raises:
        ValueError: naming what cannot be and what would be right.
    """

    ep_info_buffer: deque[dict[str, Any]]

    def __init__(
        self,
        build_env: Callable[[], gym.Env[Any, Any]],
        num_envs: int,
        *,
        n_steps: int = 128,
        gamma: float = 0.99,
        lam: float = 0.95,
        lr: float = 5e-4,
        anneal_lr: bool = True,
        ent_coef: float = 0.01,
        vf_coef: float = 0.25,
        max_grad_norm: float = 0.5,
        hidden: Sequence[int] = (256, 256),
        activation: type[torch.nn.Module] = torch.nn.ReLU,
        seed: int | None = None,
        device: torch.device | str = "auto",
    ) -> None:
        for name, count in {"num_envs": num_envs, "n_steps": n_steps}.items():
            if count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        for name, share in {"gamma": gamma, "lam": lam}.items():
            if not 0 <= share <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {share:g}")
        check_rate(lr)
        self.n_envs, self.n_steps = num_envs, n_steps
        self.device = get_device(device)
        if seed is not None:
            set_random_seed(seed, using_cuda=self.device.type == "cuda")
        self._envs = envs = [_Silent(build_env()) for _ in range(num_envs)]
        self.observation_space, self.action_space = envs[0].observation_space, envs[0].action_space
        self.policy = _make_policy(self.observation_space, self.action_space, hidden, activation)
        self.env = _Environments([lambda env=env: env for env in envs])  # type: ignore[misc]
        if seed is not None:
            self.env.seed(seed)

        self._rate = _ShareOfRate()
        optim = AdamOptimizerFactory(lr=lr, eps=1e-5)
        if anneal_lr:
            optim.with_lr_scheduler_factory(self._rate)
        self.algorithm = A2C(
            policy=self.policy,
            critic=MLP(
                input_dim=_size(self.observation_space), output_dim=1, hidden_sizes=hidden, activation=activation
            ),
            optim=optim,
            vf_coef=vf_coef,
            ent_coef=ent_coef,
            max_grad_norm=max_grad_norm,
            gae_lambda=lam,
            gamma=gamma,
        ).to(self.device)
        self._collector: Collector[CollectStats] = Collector(
            self.policy,
            self.env,
            VectorReplayBuffer(n_steps * num_envs, num_envs),
            on_step_hook=self._on_step,
        )
        self.num_timesteps = 0
        self.ep_info_buffer = deque(maxlen=100)
        self._returns, self._lengths = np.zeros(num_envs), np.zeros(num_envs, int)
        self._logger = Logger(folder=None, output_formats=[])
        self._callback: BaseCallback = ConvertCallback(None)
        self._total, self._steps_made, self._steps_at_start, self._began = 0, 0, 0, 0.0
        self._updates = 0
        self._carried: dict[str, Any] | None = None

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int | None = 100,
        tb_log_name: str = "TianshouA2C",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """Learn for `total_timesteps` samples, in episodes that start afresh but after `carry_on`.

        Args:
            total_timesteps: samples, all environments counted.
            callback: as in Stable-Baselines3; `locals` holds `rewards` and `dones` of the step.
            log_interval: updates between two logged points, counted from the first of the run; None for none.
            tb_log_name: part of the interface; where to log is the logger's business.
            reset_num_timesteps: whether this is a new run, or one that goes on.
            progress_bar: whether to show one.
        """
        if reset_num_timesteps:
            self.num_timesteps = self._updates = 0
            self.ep_info_buffer.clear()
        self._total = self.num_timesteps + total_timesteps
        self._callback = _as_callback(callback, progress_bar)
        self._callback.init_callback(self)  # type: ignore[arg-type]  # it has what callbacks use
        self._returns[:], self._lengths[:] = 0, 0
        self._rate.set(self._remaining)
        self._began, self._steps_at_start = time.monotonic(), self.num_timesteps
        trainer = self._make_trainer()
        trainer.reset(reset_collector_buffers=True)
        self._take_over()
        self._carried = None

        self._callback.on_training_start({"self": self, "total_timesteps": self._total}, {})
        try:
            while self.num_timesteps < self._total:
                stats = trainer.execute_epoch().training_stat
                self._updates += 1
                if log_interval and self._updates % log_interval == 0:
                    assert stats is not None
                    self._log(stats)
        except _Stopped:
            pass
        self._callback.on_training_end()
        return self

    def _make_trainer(self) -> OnPolicyTrainer:
        collection = self.n_steps * self.n_envs
        params = OnPolicyTrainerParams(
            training_collector=self._collector,
            training_fn=self._on_collection_start,
            epoch_num_steps=collection,  # an epoch is an update
            collection_step_num_env_steps=collection,
            batch_size=None,
            verbose=False,
            show_progress=False,
        )
        return OnPolicyTrainer(self.algorithm, params)

    def _on_collection_start(self, epoch: int, env_step: int) -> None:
        self._steps_made = 0
        self._callback.on_rollout_start()

    def _on_step(self, action_batch: CollectActionBatchProtocol, rollout_batch: RolloutBatchProtocol) -> None:
        """After each step of all environments, before Tianshou's collector resets those that are done."""
        self.num_timesteps += self.n_envs
        rewards = np.asarray(rollout_batch.rew, float)
        dones = np.asarray(rollout_batch.terminated) | np.asarray(rollout_batch.truncated)
        self._callback.update_locals({"rewards": rewards, "dones": dones})
        if not self._callback.on_step():
            raise _Stopped
        self._returns += rewards
        self._lengths += 1
        for env in np.flatnonzero(dones):
            self.ep_info_buffer.append({"r": float(self._returns[env]), "l": int(self._lengths[env])})
        self._returns[dones], self._lengths[dones] = 0, 0
        self._steps_made += 1
        if self._steps_made == self.n_steps:
            self._rate.share = self._remaining
            self._callback.on_rollout_end()

    @property
    def _remaining(self) -> float:
        """Share of the run that is left."""
        return max(0.0, 1 - self.num_timesteps / self._total) if self._total else 1.0

    def _log(self, stats: TrainingStats) -> None:
        """Under the names that Stable-Baselines3 uses."""
        found, logger = stats.get_loss_stats_dict(), self.logger
        logger.record("train/policy_loss", found["actor_loss"])
        logger.record("train/value_loss", found["vf_loss"])
        logger.record("train/entropy_loss", -found["ent_loss"])  # Tianshou's is the entropy itself
        optimizer = self.algorithm.optim.state_dict()
        logger.record("train/learning_rate", optimizer["param_groups"][0]["lr"])
        if self.ep_info_buffer:
            for name, key in {"rollout/ep_rew_mean": "r", "rollout/ep_len_mean": "l"}.items():
                logger.record(name, float(np.mean([episode[key] for episode in self.ep_info_buffer])))
        elapsed = max(time.monotonic() - self._began, 1e-9)
        logger.record("time/fps", int((self.num_timesteps - self._steps_at_start) / elapsed))
        logger.record("time/iterations", self._updates, exclude="tensorboard")
        logger.record("time/time_elapsed", int(elapsed), exclude="tensorboard")
        logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        logger.dump(self.num_timesteps)

    def carry(self) -> dict[str, Any]:
        """What a run carries beside networks, optimiser and counters; see `cet_rl.agents.AgentKind`.

        To be called between two collections, as a callback's `on_rollout_start` is.
        """
        state: dict[str, Any] = {"gaps": [], "updates": self._updates, "environments": None}
        try:
            state["environments"] = [capture(env) for env in self._envs]
            typed_json.encode(state["environments"], {})
        except ValueError as error:
            state["gaps"].append(f"cannot be captured ({error}): they start fresh episodes")
            state["environments"] = None
        observations = self._collector._pre_collect_obs_RO
        state["observations"] = None if observations is None else np.array(observations)
        state["returns"], state["lengths"] = self._returns.copy(), self._lengths.copy()
        state["random"] = process_state(self.device.type)
        return state

    def carry_on(self, state: dict[str, Any]) -> None:
        """Take over what `carry` gave when learning goes on.

        Raises:
            KeyError, TypeError, ValueError: if it does not fit.
        """
        self._updates = int(state["updates"])
        self._carried = state
        self._take_over()

    def _take_over(self) -> None:
        """Put everything into the carried state; once more after Tianshou has begun episodes that nobody wants."""
        state = self._carried
        if state is None:
            return
        if state["environments"] is not None and state["observations"] is not None:
            for env, saved in zip(self._envs, state["environments"], strict=True):
                restore(env, saved)
            self._collector._pre_collect_obs_RO = state["observations"]
            self._returns[:], self._lengths[:] = state["returns"], state["lengths"]
        restore_process_state(state["random"])

    def predict(
        self,
        observation: Array,
        state: tuple[Array, ...] | None = None,
        episode_start: Array | None = None,
        deterministic: bool = False,
    ) -> tuple[Array, tuple[Array, ...] | None]:
        """Actions for one observation, or for several stacked ones.

        Args:
            observation: (*shape) or (N, *shape).
            state: handed back; nothing here is recurrent.
            episode_start: part of the interface, not used.
            deterministic: whether to take the most probable action rather than to draw one.

        Returns:
            What the environment takes, one action or N of them, and the state.

        Raises:
            ValueError: for another shape.
        """
        observation = np.asarray(observation)
        several = is_vectorized_observation(observation, self.observation_space)
        batch = Batch(obs=observation if several else observation[None], info={})
        # Within a training step Tianshou's policy draws, otherwise it takes the mode.
        with torch.no_grad(), policy_within_training_step(self.policy, enabled=not deterministic):
            actions = self.policy.map_action(self.policy(batch).act)
        return actions if several else actions.squeeze(0), state

    @property
    def logger(self) -> Logger:
        """Where numbers go."""
        return self._logger

    def set_logger(self, logger: Logger) -> None:
        """Log to this from now on."""
        self._logger = logger

    def get_env(self) -> DummyVectorEnv:
        """Tianshou's vector environment."""
        return self.env

    def get_vec_normalize_env(self) -> None:
        """None: observations and rewards are not normalised."""

    def _parts(self) -> dict[str, Any]:
        return {"policy": self.policy, "critic": self.algorithm.critic, "optimizer": self.algorithm.optim}

    def get_parameters(self) -> dict[str, dict[str, Any]]:
        """State of `policy`, `critic` and `optimizer`: tensors and plain numbers, nothing else."""
        return {name: part.state_dict() for name, part in self._parts().items()}

    def set_parameters(
        self,
        load_path_or_dict: Mapping[str, dict[str, Any]],
        exact_match: bool = True,
        device: torch.device | str = "auto",
    ) -> None:
        """Take over parameters.

        Args:
            load_path_or_dict: what `get_parameters` gives; files are the caller's business.
            exact_match: whether all three parts must be there.
            device: part of the interface; parameters go where this agent's are.

        Raises:
            ValueError: for a part that is not known, or that is missing.
            RuntimeError: from torch, for tensors of other names or shapes.
        """
        parts = self._parts()
        unknown, missing = load_path_or_dict.keys() - parts.keys(), parts.keys() - load_path_or_dict.keys()
        if unknown or (exact_match and missing):
            raise ValueError(f"parameters must be {', '.join(parts)}, got {', '.join(load_path_or_dict)}")
        for name, state in load_path_or_dict.items():
            parts[name].load_state_dict(state)


class _Stopped(Exception):  # noqa: N818 - a wish, not an error
    """A callback wants learning to end."""


class _Environments(DummyVectorEnv):
    """Tianshou's, with what Stable-Baselines3's callbacks ask of theirs."""

    @property
    def num_envs(self) -> int:
        return self.env_num


class _Silent(gym.Wrapper[Any, Any, Any, Any]):
    """Leaves out `info`, which Tianshou would keep in its buffer for every step."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        return self.env.reset(seed=seed, options=options)[0], {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        return *self.env.step(action)[:4], {}


class _ShareOfRate(LRSchedulerFactory):
    """A learning rate that is a share of what it began with; Tianshou renews it after every update.

    Tianshou's own schedule counts updates from zero, and would begin anew when a run goes on.
    """

    def __init__(self) -> None:
        self.share = 1.0
        self._scheduler: LambdaLR | None = None

    def create_scheduler(self, optim: torch.optim.Optimizer) -> LambdaLR:
        self._scheduler = LambdaLR(optim, lambda _: self.share)
        return self._scheduler

    def set(self, share: float) -> None:
        """Renew it at once."""
        self.share = share
        if self._scheduler is not None:
            for group in self._scheduler.optimizer.param_groups:
                group["lr"] = group["initial_lr"] * share


class _FromFirst(DiscreteActorPolicy):
    """Counts actions from zero, and hands them to the environment from its first one on."""

    def map_action(self, act: TArr) -> Array:
        assert isinstance(self.action_space, spaces.Discrete)
        actions: Array = super().map_action(act) + self.action_space.start
        return actions


register_snapshot(_Silent)


def _make_policy(
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    hidden: Sequence[int],
    activation: type[torch.nn.Module],
) -> ProbabilisticActorPolicy:
    shape = check_observations(observation_space).shape
    trunk = Net(state_shape=shape, hidden_sizes=hidden, activation=activation)
    if isinstance(action_space, spaces.Discrete):
        return _FromFirst(
            actor=DiscreteActor(preprocess_net=trunk, action_shape=int(action_space.n), softmax_output=False),
            deterministic_eval=True,
            action_space=action_space,
            observation_space=observation_space,
        )
    if isinstance(action_space, spaces.Box) and len(action_space.shape) == 1:
        actor = ContinuousActorProbabilistic(preprocess_net=trunk, action_shape=action_space.shape, unbounded=True)
        bounded = action_space.is_bounded()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Tianshou warns of a bound that an unbounded actor does not have
            return ProbabilisticActorPolicy(
                actor=actor,
                dist_fn=lambda mean_and_std: Independent(Normal(*mean_and_std), 1),
                deterministic_eval=True,
                action_space=action_space,
                observation_space=observation_space,
                action_scaling=bounded,
                action_bound_method="clip" if bounded else None,
            )
    raise ValueError(
        f"Tianshou's A2C needs discrete actions or a Box of vectors, this environment has {action_space}"
    )


def _size(space: spaces.Space[Any]) -> int:
    return int(np.prod(check_observations(space).shape))


def _as_callback(callback: MaybeCallback, progress_bar: bool) -> BaseCallback:
    """One callback, of whatever Stable-Baselines3 takes."""
    if isinstance(callback, list):
        callback = CallbackList(callback)
    if not isinstance(callback, BaseCallback):
        callback = ConvertCallback(callback)
    return CallbackList([callback, ProgressBarCallback()]) if progress_bar else callback
