"""The actor-critic with cascading eligibility traces as a Stable-Baselines3 algorithm."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Any, ClassVar, Self

import numpy as np
import torch
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv

from cet_rl.agents import storage
from cet_rl.agents.policy import CETPolicy, check_spaces
from cet_rl.agents.recording import Recording
from cet_rl.agents.stored import StoredAlgorithm
from cet_rl.categorical import gumbel
from cet_rl.learner import ActorCriticLearner, ErrorAt, LearnerConfig
from cet_rl.timing import BEHAVIOURAL_STEP, CreditTiming
from cet_rl.traces.base import Normalization
from cet_rl.traces.registry import TraceConfig


class CETActorCritic(StoredAlgorithm):
    """Online actor-critic that learns from credit arriving `delay` seconds late (paper, Algorithm 1).

    Example:
        >>> model = CETActorCritic("MlpPolicy", "CartPole-v1", delay=8.0, order=5)
        >>> model.learn(1_000_000)

    Args:
        policy: "MlpPolicy", or a subclass of `CETPolicy`.
        env: a Gymnasium environment, its id, or a Stable-Baselines3 `VecEnv`; discrete actions, vectors to see.
        delay: T, in seconds, after which the credit for an action reaches the actor's synapses.
        order: number of trace states (cet, sharp, legendre); None for 5; 1 is the classical trace.
        trace: "cet", "sharp", "legendre", "et", "ltp-ltd", "perfect" or "none"; None for "cet", or for "none"
            without a delay.
        normalization: of the trace's kernel, "peak" or "area".
        decay: β of the classical trace per step; None for exp(-1/D).
        stacked: whether delays add up from the output layer down (retrograde signalling).
        step_duration: seconds one environment step stands for; None for the environment's own clock
            (`cet_rl.envs.StepClock`), or 0.2 where it has none.
        learning_rate: of Adam, for actor and critic: a number, `ConstantSchedule` or `LinearSchedule`. The
            default falls from 5e-4 to zero over the run.
        n_steps: steps of each environment between updates; 1 is an update after every step.
        gamma: discount.
        lam: λ of the RL eligibility trace and of the critic's returns.
        random_lam: (low, high): one λ per weight of the actor instead, drawn uniformly once.
        ent_coef: weight of the policy's entropy.
        vf_coef: weight of the critic's loss.
        max_grad_norm: joint clip of both gradients.
        error_at: "preactivation" or "activation", see `LearnerConfig`.
        alignment: whether to log `credit/alignment/<layer>`.
        stats_window_size, tensorboard_log, policy_kwargs, verbose, seed, device: as in Stable-Baselines3;
            `policy_kwargs` takes `net_arch`, `activation` and `split_observations` of `CETPolicy`.

    Raises:
        ValueError: naming the option that cannot be and what would be right.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": CETPolicy}
    policy: CETPolicy  # type: ignore[assignment]
    learner: ActorCriticLearner
    optimizer: torch.optim.Adam

    def __init__(
        self,
        policy: str | type[CETPolicy],
        env: GymEnv | str | None,
        delay: float = 0.0,
        order: int | None = None,
        trace: str | None = None,
        normalization: Normalization = "peak",
        decay: float | None = None,
        stacked: bool = False,
        step_duration: float | None = None,
        learning_rate: float | Schedule = LinearSchedule(5e-4, 0.0, 1.0),  # noqa: B008 - stateless
        n_steps: int = 128,
        gamma: float = 0.99,
        lam: float = 0.95,
        random_lam: tuple[float, float] | None = None,
        ent_coef: float = 0.01,
        vf_coef: float = 0.25,
        max_grad_norm: float = 0.5,
        error_at: ErrorAt = "preactivation",
        alignment: bool = True,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        n_steps = int(n_steps)
        if n_steps < 1:
            raise ValueError(f"n_steps must be at least 1, got {n_steps}")
        storage.check_rate(learning_rate)
        self.learner_config = LearnerConfig(
            trace=TraceConfig.for_delay(delay, trace, order, decay, normalization, stacked=stacked),
            gamma=float(gamma),
            lam=float(lam),
            random_lam=None if random_lam is None else (float(random_lam[0]), float(random_lam[1])),
            entropy_coef=float(ent_coef),
            value_coef=float(vf_coef),
            max_grad_norm=float(max_grad_norm),
            error_at=error_at,
            alignment=bool(alignment),
        )
        self.delay, self.stacked = float(delay), bool(stacked)
        super().__init__(
            policy=policy,  # type: ignore[arg-type]
            env=env,  # type: ignore[arg-type]
            learning_rate=learning_rate,
            n_steps=n_steps,
            gamma=gamma,
            gae_lambda=lam,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            use_sde=False,
            sde_sample_freq=-1,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=storage.check_data("policy_kwargs", policy_kwargs or {}),
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=False,
        )
        if step_duration is None:
            step_duration = BEHAVIOURAL_STEP if self.env is None else _clock_of(self.env)
        self.step_duration = float(step_duration)
        CreditTiming(self.delay, self.step_duration)  # refuses what is no whole number of steps
        storage.check_data("the agent's arguments", self.constructor_arguments())  # rather now than after learning
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        check_spaces(self.observation_space, self.action_space)
        self._setup_lr_schedule()
        self.set_random_seed(self.seed)
        # The agent's own stream, so that nothing else that draws numbers can change its actions.
        self.generator = torch.Generator()
        if self.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(self.seed)
        try:
            self.policy = self.policy_class(  # type: ignore[assignment]
                self.observation_space, self.action_space, self.lr_schedule, **self.policy_kwargs
            )
        except TypeError as error:
            raise ValueError(f"policy_kwargs {self.policy_kwargs} do not fit the policy: {error}") from None
        self.timing = CreditTiming(
            self.delay, self.step_duration, stacked=self.stacked, layers=len(self.policy.actor.weights)
        )
        self.learner = ActorCriticLearner(
            self.policy.actor,
            self.policy.critic,
            self.timing,
            self.learner_config,
            num_envs=self.n_envs,
            rollout=self.n_steps,
            generator=self.generator,
        )
        self.policy.to(self.device)
        self.learner.to(self.device)
        self.optimizer = torch.optim.Adam(
            list(self.learner.trained_parameters()), lr=self.lr_schedule(1), eps=1e-5, fused=True
        )
        self.rollout_buffer = None  # type: ignore[assignment]  # the recording takes its place
        self._recording = Recording(self.n_steps, self.n_envs, self.policy.num_features)
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
            ValueError: if the run is over before any credit has arrived.
            FloatingPointError: if an environment gives a reward or observation that is not finite; the weights
                are then those of the last update.
        """
        total = total_timesteps + (0 if reset_num_timesteps else self.num_timesteps)
        self.timing.check_run(total, self.n_envs)
        self._statistics_every = log_interval or sys.maxsize
        self._updates_at_start = self._n_updates
        return super().learn(
            total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar
        )

    # What is not finite is refused with the name of the environment it came from, once the rollout is complete.
    @np.errstate(invalid="ignore", over="ignore")
    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """Act for `n_rollout_steps` steps with the callback protocol of Stable-Baselines3.

        Values and log-probabilities are not needed to act; the learner computes them in one batch afterwards.
        `rollout_buffer` is not used.

        Returns:
            False if a callback asked to stop.
        """
        assert self._last_obs is not None
        assert self._last_episode_starts is not None
        self.policy.set_training_mode(False)
        recording, policy, first_action = self._recording, self.policy, self.policy.first_action
        recording.begin()
        noise = gumbel((n_rollout_steps, env.num_envs, policy.num_actions), self.generator).numpy()
        on_cpu = self.device.type == "cpu"
        numpy_actor = policy.actor.numpy_forward() if on_cpu else None
        resetting = getattr(env, "resetting", None)  # see cet_rl.envs.GymnasiumVecEnv

        callback.on_rollout_start()
        for step in range(n_rollout_steps):
            features = recording.features[step]
            policy.write_features(self._last_obs, features)  # type: ignore[arg-type]
            recording.starts[step] = self._last_episode_starts
            if resetting is not None:
                recording.valid[step] = ~resetting
            logits = numpy_actor(features) if numpy_actor else self._logits(features)
            actions = recording.actions[step] = (logits + noise[step]).argmax(-1)
            new_obs, rewards, dones, infos = env.step(actions + first_action)
            self.num_timesteps += env.num_envs

            callback.update_locals(locals())
            if not callback.on_step():
                return False

            self._update_info_buffer(infos, dones)
            recording.rewards[step] = rewards
            if dones.any():
                self._record_ends(step, dones, infos)
            self._last_obs, self._last_episode_starts = new_obs, dones  # type: ignore[assignment]
        policy.write_features(self._last_obs, recording.features[n_rollout_steps])  # type: ignore[arg-type]
        recording.check(self.num_timesteps // env.num_envs - n_rollout_steps)

        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def _logits(self, features: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, np.dtype[np.float32]]:
        with torch.no_grad():
            logits = self.policy.actor(torch.from_numpy(features).to(self.device))
        result: np.ndarray[Any, np.dtype[np.float32]] = logits.cpu().numpy()
        return result

    def _record_ends(self, step: int, dones: np.ndarray[Any, Any], infos: list[dict[str, Any]]) -> None:
        recording = self._recording
        for env in np.flatnonzero(dones):
            if infos[env].get("TimeLimit.truncated", False):
                recording.truncated[step, env] = 1
                final = np.zeros(recording.features.shape[2], np.float32)
                self.policy.write_features(np.asarray(infos[env]["terminal_observation"]), final)
                recording.finals.append((step, int(env), final))
            else:
                recording.terminated[step, env] = 1

    def train(self) -> None:
        """Update the networks from the rollout just collected."""
        self._update_learning_rate(self.optimizer)
        # Statistics are written out after the next rollout: only the update before that needs to compute them.
        updates = self._n_updates - self._updates_at_start
        wanted = (updates + 2) % self._statistics_every == 0 or self._statistics_every == 1
        found = self.learner.accumulate(self._recording.rollout(self.device), statistics=wanted)
        self.optimizer.step()
        self._n_updates += 1
        if wanted:
            self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
            for name, value in found.items():
                self.logger.record(name, value)

    def check_environment(self) -> None:
        """Raise ValueError if the environment's clock is not the one the delays were counted with."""
        assert self.env is not None
        if self.env.has_attr("step_duration") and _clock_of(self.env) != self.step_duration:
            raise ValueError(
                f"the agent counts its delays in steps of {self.step_duration:g} s, "
                f"the environment's clock says {_clock_of(self.env):g} s"
            )

    @property
    def synapses(self) -> torch.nn.ModuleList:
        """The actor's synapses, input side first: traces, delay lines, λ per weight."""
        return self.learner.synapses

    @property
    def probes(self) -> torch.nn.ModuleDict:
        """What measures alignment, for each layer that waits."""
        return self.learner.probes

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "synapses", "probes", "optimizer"], []

    @property
    def per_environment_parts(self) -> tuple[str, ...]:
        """Traces and recordings belong to the environments they came from."""
        return ("synapses", "probes")

    def constructor_arguments(self) -> dict[str, Any]:
        """What `load` passes to the constructor, as plain data."""
        config = asdict(self.learner_config)
        trace = config.pop("trace")
        return {
            "delay": self.delay,
            "order": trace["order"],
            "trace": trace["kind"],
            "normalization": trace["normalization"],
            "decay": trace["decay"],
            "stacked": self.stacked,
            "step_duration": self.step_duration,
            "learning_rate": storage.schedule_to_data(self.learning_rate),
            "n_steps": self.n_steps,
            "ent_coef": config.pop("entropy_coef"),
            "vf_coef": config.pop("value_coef"),
            **config,
            "stats_window_size": self._stats_window_size,
            "policy_kwargs": self.policy_kwargs,
            "seed": self.seed,
        }


def _clock_of(env: VecEnv) -> float:
    """Seconds a step of the environment stands for, by its own clock if it has one."""
    return float(env.get_attr("step_duration")[0]) if env.has_attr("step_duration") else BEHAVIOURAL_STEP
