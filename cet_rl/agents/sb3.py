"""The actor-critic with cascading eligibility traces as a Stable-Baselines3 algorithm."""

from __future__ import annotations

import sys
from dataclasses import replace
from inspect import signature
from typing import Any, ClassVar, Self

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv

from cet_rl.agents.config import (
    ABSENT,
    LEARNING_OPTIONS,
    LearnerConfig,
    learner_config,
    network_keywords,
    our_keywords,
    refuse_absent,
)
from cet_rl.agents.export import TorchPolicy
from cet_rl.agents.learner import ActorCriticLearner, Rollout
from cet_rl.agents.policy import CETPolicy, check_spaces
from cet_rl.agents.rollouts import collect
from cet_rl.agents.saving import MADE_FOR_NON_NEGATIVE, StoredAlgorithm, schedule_from_data, schedule_to_data
from cet_rl.envs.vector import shared_attribute
from cet_rl.runs import archive
from cet_rl.runs.optimizers import Adam
from cet_rl.traces.base import Trace, check_whole
from cet_rl.traces.registry import TraceConfig, implied_delay
from cet_rl.traces.timing import BEHAVIOURAL_STEP, CreditTiming, same_time


class _Option:
    """Expose a field of the agent's `LearnerConfig`; a new value applies from the next update, unless `fixed`."""

    def __init__(self, field: str, *, fixed: bool = False) -> None:
        self._field, self._fixed = field, fixed

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, agent: CETActorCritic | None, owner: type | None = None) -> Any:
        return self if agent is None else getattr(agent.learner_config, self._field)

    def __set__(self, agent: CETActorCritic, value: float) -> None:
        config = getattr(agent, "learner_config", None)
        if config is None:  # the base class's constructor assigns it before ours has made the configuration
            return
        if self._fixed and value != getattr(config, self._field):
            raise AttributeError(f"{self._name} is built into the agent's traces: make a new agent to change it")
        agent.learner_config = replace(config, **{self._field: value})
        if hasattr(agent, "learner"):
            agent.learner.config = agent.learner_config


class CETActorCritic(StoredAlgorithm):
    """Learn online with an actor-critic whose credit arrives `delay` seconds late (paper, Algorithm 1).

    Args:
        policy: "MlpPolicy", or a subclass of `CETPolicy`.
        env: A Gymnasium environment, its id, or a Stable-Baselines3 `VecEnv`, with spaces that `CETPolicy` takes.
        delay: T, in seconds, after which the credit for an action reaches the actor's synapses; None for that of
            the environment (`cet_rl.envs.DelayedCredit`), or no delay if it has none.
        trace: A name that `cet-rl list traces` shows; None for "cet", or for "none" without a delay. Or a trace
            such as `CET(5, 40)`, whose delay in steps is then the default of `delay`; or a `TraceConfig`.
        stacked: Whether delays add up from the output layer down (retrograde signalling); None for that of the
            environment, or False.
        step_duration: Seconds that one environment step stands for; None for the environment's own clock
            (`cet_rl.envs.StepClock`), or 0.2 if it has none.
        learning_rate: Learning rate of Adam, for actor and critic: a number, `LinearSchedule`, or any function of
            the remaining progress that is a straight line. The default falls from 5e-4 to zero over the run.
        n_steps: Steps of each environment between updates; 1 is an update after every step.
        policy_kwargs: Fields of `cet_rl.agents.NetworkConfig`, such as `net_arch`; `activation_fn` may be one of
            torch's classes ReLU, Tanh, Sigmoid and Identity.
        order, **learning: See `cet_rl.agents.config.learner_config`: `normalization`, `decay`, `discretization`,
            `trace_delay`, `trace_options`; `gamma`, `lam` or `gae_lambda`, `random_lam`, `ent_coef`, `vf_coef`,
            `max_grad_norm`, `error_at`, `alignment`.
        stats_window_size, tensorboard_log, verbose, seed, device: As in Stable-Baselines3.

    Attributes:
        learner_config: The options of learning. `ent_coef`, `vf_coef` and `max_grad_norm` may be set at any time;
            `gamma` and `gae_lambda` (λ) are read-only.
        learner: The `ActorCriticLearner`, with its `synapses` and `probes`.

    Raises:
        ValueError: for spaces, options or a delay that the agent cannot take.
        TypeError: for an unknown argument.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": CETPolicy}
    policy: CETPolicy  # type: ignore[assignment]
    learner_config: LearnerConfig
    learner: ActorCriticLearner
    ent_coef = _Option("entropy_coef")
    vf_coef = _Option("value_coef")
    max_grad_norm = _Option("max_grad_norm")
    gamma = _Option("gamma", fixed=True)
    gae_lambda = _Option("lam", fixed=True)

    def __init__(
        self,
        policy: str | type[CETPolicy],
        env: GymEnv | str | None,
        delay: float | None = None,
        order: int | None = None,
        trace: str | Trace | TraceConfig | None = None,
        *,
        stacked: bool | None = None,
        step_duration: float | None = None,
        learning_rate: float | Schedule = LinearSchedule(5e-4, 0.0, 1.0),  # noqa: B008 - stateless
        n_steps: int = 128,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
        **learning: Any,
    ) -> None:
        known = [*signature(CETActorCritic).parameters, *LEARNING_OPTIONS]
        learning = our_keywords(learning, known, "help(CETActorCritic) shows all")
        if isinstance(policy, str) and policy not in self.policy_aliases:
            raise ValueError(
                f"policy must be 'MlpPolicy', or a class derived from CETPolicy, got {policy!r}; maps can have "
                "policy_kwargs={'actor': 'conv'}, a Dict gymnasium.wrappers.FlattenObservation"
            )
        check_whole(n_steps, "n_steps", at_least=1)
        if env is None and _init_setup_model:
            raise ValueError("env is missing: give an environment, its id, or a VecEnv")
        learning_rate = schedule_from_data(schedule_to_data(learning_rate))
        super().__init__(
            # The zeros stand for options of learning, which `learner_config` holds.
            *(policy, env, learning_rate, n_steps, 0, 0, 0, 0, 0),  # type: ignore[arg-type]
            use_sde=False,
            sde_sample_freq=-1,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=network_keywords(policy_kwargs),
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=False,
        )
        self._usual_steps = n_steps  # the traces are made for it; `n_steps` may be changed later
        clock, env_timing = None, CreditTiming()
        if self.env is not None:
            clock = shared_attribute(self.env, "step_duration")
            env_timing = shared_attribute(self.env, "credit_timing") or env_timing
        seconds = (clock or BEHAVIOURAL_STEP) if step_duration is None else step_duration
        delay = (env_timing.delay or implied_delay(trace, seconds)) if delay is None else delay
        self.timing = CreditTiming(delay, seconds, bool(env_timing.stacked if stacked is None else stacked))
        self.learner_config = learner_config(self.timing, trace, order=order, **learning)
        if self.env is not None:
            self.check_environment()
        archive.encode(self.constructor_arguments(), {})  # raises now, not after hours of learning
        if _init_setup_model:
            self._setup_model()

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        if not isinstance(env, gym.Env | VecEnv):
            raise ValueError(
                f"env must be an environment or a VecEnv, got {env!r}; in cet_rl.envs, make_vec_env makes one of "
                "an id or a function, GymnasiumVecEnv of a VectorEnv"
            )
        wrapped = StoredAlgorithm._wrap_env(env, verbose, monitor_wrapper)
        check_spaces(wrapped.observation_space, wrapped.action_space)
        return wrapped

    def _setup_model(self) -> None:
        if self._vec_normalize_env is not None and self._vec_normalize_env.norm_obs:
            # Normalised observations can be negative, even where the bounds of the space are not.
            self.policy_kwargs = {"split_observations": True, **self.policy_kwargs}
        self._setup_lr_schedule()
        # A generator of its own: other code that draws random numbers cannot change the agent's actions.
        self.generator = torch.Generator()
        self.generator.seed()
        self.set_random_seed(self.seed)
        try:
            self.policy = self.policy_class(  # type: ignore[assignment]
                self.observation_space, self.action_space, self.lr_schedule, **self.policy_kwargs
            )
        except TypeError as error:
            raise ValueError(f"policy_kwargs do not fit the policy: {error}") from None
        self.policy_kwargs = {**self.policy_kwargs, "split_observations": self.policy.splits}  # None is resolved
        self.timing = replace(self.timing, layers=len(self.policy.actor.weights))
        self.learner = ActorCriticLearner(
            *(self.policy.actor, self.policy.critic, self.timing, self.learner_config),
            num_envs=self.n_envs,
            rollout=self.n_steps,
            generator=self.generator,
        )
        self.synapses, self.probes = self.learner.synapses, self.learner.probes
        self.policy.to(self.device)
        self.learner.to(self.device)
        parameters = list(self.learner.trained_parameters())
        self.policy.optimizer = Adam(parameters, lr=self.lr_schedule(1), eps=1e-5, fused=True)
        self._rollout: Rollout
        self._recorded = self._steps_before = 0  # steps in `_rollout`, and `learner.steps` when it began
        self._statistics_every = 1
        self._updates_at_start = self._n_updates

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 100,
        tb_log_name: str = "CETActorCritic",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> Self:
        """Learn for `total_timesteps` samples, all environments counted; arguments as in Stable-Baselines3.

        Raises:
            ValueError: if there is no environment, or the run would end before credit has reached all layers.
            FloatingPointError: if a reward, observation, signal or gradient is not finite; the weights are those
                of the last update.
        """
        callback = self.start_learning(
            total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar
        )
        assert self.env is not None
        while self.num_timesteps < self._total_timesteps:
            if not self.collect_rollouts(self.env, callback, self.rollout_buffer, n_rollout_steps=self.n_steps):
                break
            self.learn_from_rollout()
        callback.on_training_end()
        return self

    def start_learning(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 100,
        tb_log_name: str = "CETActorCritic",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> BaseCallback:
        """Prepare a run as `learn` does before its first rollout, and return the callback.

        For callers with a loop of their own: call `collect_rollouts` and `learn_from_rollout` in turn.
        """
        if (self.policy.actor, self.policy.critic) != (self.learner.actor, self.learner.critic):
            raise ValueError("traces belong to the policy that was replaced: use policy.load_state_dict instead")
        if self.env is None:
            raise ValueError("there is no environment to learn in: use set_env, or load(path, env)")
        self.timing.check_run(total_timesteps + (0 if reset_num_timesteps else self.num_timesteps), self.n_envs)
        self._statistics_every = log_interval or sys.maxsize
        if reset_num_timesteps:
            self._updates_at_start = self._n_updates
        total_timesteps, callback = self._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar
        )
        callback.on_training_start(locals(), globals())
        return callback

    def dump_logs(self, iteration: int = 0) -> None:
        """Write the log after every `log_interval`-th rollout; called after each rollout, before its update."""
        iteration = self._n_updates - self._updates_at_start + 1
        if iteration % self._statistics_every == 0:
            super().dump_logs(iteration)

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """Act for `n_rollout_steps` steps without `rollout_buffer`; return False if a callback asked to stop."""
        (outcome,) = collect([self], [env], [callback], n_rollout_steps)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def flush_rollout(self) -> None:
        """Advance the traces by the recorded steps, if no update has processed them. The weights do not change."""
        if not self._recorded or self.learner.steps > self._steps_before:
            return
        rollout = self._rollout.first(self._recorded)
        try:
            rollout.check_finite(0)
            self.learner.accumulate(rollout.to(self.device))
        except FloatingPointError:  # these steps cannot be processed: new episodes begin, with empty eligibility
            self._last_episode_starts, self._recorded = np.ones(self.n_envs, bool), 0
        self.policy.optimizer.zero_grad()

    def learn_from_rollout(self) -> None:
        """Log, and update the networks from the rollout just collected."""
        self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
        self.dump_logs()
        self.train()

    def train(self) -> None:
        """Update the networks from the rollout just collected."""
        self._update_learning_rate(self.policy.optimizer)
        # The log is written after the next rollout: only the last update before it computes statistics.
        updates = self._n_updates - self._updates_at_start
        wanted = (updates + 2) % self._statistics_every == 0 or self._statistics_every == 1
        statistics = self.learner.accumulate(self._rollout.to(self.device), statistics=wanted)
        self.policy.optimizer.step()
        self._n_updates += 1
        if wanted:
            self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
            for name, value in statistics.items():
                self.logger.record(name, value)

    def check_environment(self) -> None:
        """Raise ValueError if the environment's clock or delay differs from the agent's."""
        assert self.env is not None
        ours, clock = self.timing, shared_attribute(self.env, "step_duration")
        theirs = shared_attribute(self.env, "credit_timing")
        if clock is not None and not same_time(clock, ours.step_duration):
            raise ValueError(
                f"the agent counts its delays in steps of {ours.step_duration:g} s, the environment's clock says "
                f"{clock:g} s"
            )
        if theirs is not None and not same_time(theirs.step_duration, ours.step_duration):
            raise ValueError(
                f"the environment counts its delay in steps of {theirs.step_duration:g} s, but its outermost "
                f"clock says {ours.step_duration:g} s: give it one clock (step_duration)"
            )
        if theirs and not theirs.same_delay(ours):
            raise ValueError(
                f"the agent's credit is {ours} late, the environment says {theirs}: leave the agent's delay out "
                "to take the environment's"
            )

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """Set another environment with the same spaces, clock and `num_envs`; the traces keep their contents."""
        before = self.env, self._vec_normalize_env
        super().set_env(env, force_reset)
        try:
            self.check_environment()
            normalized = self._vec_normalize_env
            if normalized and normalized.norm_obs and before[1] is None and not self.policy.splits:
                raise ValueError(MADE_FOR_NON_NEGATIVE)
        except ValueError:
            self.env, self._vec_normalize_env = before
            raise

    def __repr__(self) -> str:
        """Return trace, delay, layer sizes from input to output, and the number of samples so far."""
        timing, trace, actor = self.timing, self.learner_config.trace, self.policy.actor
        layers = " → ".join(str(size) for size in (actor.layers[0].n_pre, *(each.n_post for each in actor.layers)))
        return (
            f"{type(self).__name__}(trace={trace.build(max(timing.layer_delays))}, "
            f"delay={str(timing)!r}, delay_steps={timing.layer_delays}, actor={layers!r}, "
            f"num_envs={self.n_envs}, n_steps={self.n_steps}, num_timesteps={self.num_timesteps})"
        )

    def to_torch(self) -> TorchPolicy:
        """Return the deterministic policy as a torch module on the CPU, a `TorchPolicy` with copied weights."""
        return TorchPolicy(self.policy)

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seed all generators, as in Stable-Baselines3, and the agent's own."""
        super().set_random_seed(seed)
        if seed is not None:
            self.generator.manual_seed(seed)

    def to(self, device: torch.device | str) -> Self:
        """Move networks, traces, delay lines and optimiser to another device."""
        self.device = torch.device(device)
        self.policy.to(self.device)
        self.learner.to(self.device)
        optimizer = self.policy.optimizer
        optimizer.load_state_dict(optimizer.state_dict())  # moves its state to the parameters' device
        return self

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "synapses", "probes", "policy.optimizer"], []

    def constructor_arguments(self) -> dict[str, Any]:
        """Return the arguments that `load` passes to the constructor, as plain data."""
        return {
            **vars(self.learner_config),
            "executors": self.learner.executors if hasattr(self, "learner") else None,
            **self.learner_config.trace.as_keywords(self.timing.delay),
            **{name: getattr(self.timing, name) for name in ("delay", "stacked", "step_duration")},
            "learning_rate": schedule_to_data(self.learning_rate),
            "n_steps": self._usual_steps,
            "stats_window_size": self._stats_window_size,
            "policy_kwargs": self.policy_kwargs,
            "seed": self.seed,
        }


for _absent in ABSENT:  # also as attributes, which Stable-Baselines3's A2C and PPO mostly have
    _refuse = property(lambda _: None, lambda _, value, name=_absent: refuse_absent(name, value))  # type: ignore[misc]
    setattr(CETActorCritic, _absent, _refuse)
