"""A reinforcement-learning run from configuration to summary."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import Figure, HParam, Logger, TensorBoardOutputFormat

from cet_rl.agents import AgentKind, CETActorCritic
from cet_rl.agents.registry import find_agent
from cet_rl.callbacks import Checkpointing, LiveDisplay, TableWriter, recent_return
from cet_rl.config import RLConfig
from cet_rl.envs import find_task, make_vec_env
from cet_rl.interruption import Interruption
from cet_rl.machine import on_this_machine, set_threads
from cet_rl.plots import kernel_figure
from cet_rl.run_config import flag, tuned_defaults
from cet_rl.runs import MetricsTable, RunFolder, Status, default_path

if TYPE_CHECKING:
    from cet_rl.cli.evaluate import EvalArguments

OF_TRACED_AGENTS = (
    "order",
    "trace",
    "stacked",
    "decay",
    "normalization",
    "random_lam",
    "error_at",
    "feedback",
    "discretization",
    "actor",
    "critic",
    "alignment",
)
"""Options that only our own kind of agent can follow."""

LOG_EVERY = 10_000
"""Samples between two logged points of a long run."""
LEAST_POINTS = 50
"""Logged in a short one."""
CHECKPOINT_EVERY = 100_000
"""Samples between two checkpoints."""
EVALUATION_EPISODES = 100
"""That `cet-rl eval` plays unless told otherwise."""
EVALUATION_SEED_OFFSET = 1_000_003
"""Added to a run's seed for its evaluation episodes, so that they are none it has learned from."""


def resolve(config: RLConfig) -> RLConfig:
    """The configuration with nothing left to choose: trace and order, device and threads of this machine.

    Raises:
        ValueError: for a device that is not there, or a thread count in the environment that is none.
    """
    config = on_this_machine(config)
    return config.with_trace() if find_agent(config.agent).delays_credit else _without_traces(config)


def _without_traces(config: RLConfig) -> RLConfig:
    """The configuration of an agent that has no synaptic traces.

    Raises:
        ValueError: if an option of theirs is set to something else than what the task's tuned defaults say.
    """
    tuned = tuned_defaults(config.task, RLConfig)
    defaults: dict[str, Any] = {
        item.name: item.default for item in fields(RLConfig) if item.name in OF_TRACED_AGENTS
    }
    for name, default in defaults.items():
        if getattr(config, name) not in (default, tuned.get(name, default)):
            raise ValueError(
                f"{flag(name)} has no meaning for agent {config.agent}, which has no synaptic traces: leave it out"
            )
    return replace(config, **defaults)


def train(
    config: RLConfig, run_dir: str | Path | None = None, *, resume: bool = False, quiet: bool = False
) -> Status:
    """Run a configuration in a run folder: learn, evaluate, summarise.

    Args:
        config: what to run.
        run_dir: the run folder itself; None for that of `default_path`.
        resume: go on from the checkpoint of an interrupted run; without one, start afresh.
        quiet: print nothing.

    Returns:
        "finished" or "interrupted".

    Raises:
        ValueError, OSError: for what cannot be, before any work is lost.
        FloatingPointError: if an environment gives a number that is not finite; the summary says "failed".
    """
    config = resolve(config)
    assert config.threads is not None
    set_threads(config.threads)
    # Everything that can be refused is refused before the folder is touched.
    kind = find_agent(config.agent)
    agent = kind.build(config)
    folder = RunFolder(run_dir or default_path(config))
    state = folder.claim(config.as_data(), resume=resume)
    say = _silent if quiet else _say
    if state == "finished":
        say(f"{folder.path} is finished; its results are in {folder.summary_file}")
        return "finished"
    if state == "resumed":
        agent = kind.restore(config, folder.checkpoint_file, True)
        say(f"resuming at {agent.num_timesteps:,} samples; environments start fresh episodes")
    say(f"run folder {folder.path}")
    if config.delay and not kind.delays_credit:
        say(f"{config.agent} bridges no delay: rewards arrive {config.delay:g} s late in the environment")
    return _Run(config, folder, kind, agent, quiet=quiet).go()


class _Run:
    """One go at a run: from wherever the agent stands to the summary."""

    def __init__(
        self, config: RLConfig, folder: RunFolder, kind: AgentKind, agent: BaseAlgorithm, *, quiet: bool
    ) -> None:
        self.config, self.folder, self.agent, self.quiet = config, folder, agent, quiet
        self.interruption = Interruption()
        self.checkpointing = Checkpointing(kind.save, folder.checkpoint_file, CHECKPOINT_EVERY, self.interruption)
        self.display = LiveDisplay(config.total_steps)
        self.began = time.monotonic()
        self.learning_seconds = 0.0
        self.steps_before = agent.num_timesteps

    def go(self) -> Status:
        writers = [
            TensorBoardOutputFormat(str(self.folder.path)),
            TableWriter(MetricsTable(self.folder.metrics_file, self.steps_before)),
        ]
        self.agent.set_logger(Logger(str(self.folder.path), writers))
        try:
            with self.interruption.watched():
                return self._learn_and_evaluate()
        except KeyboardInterrupt:
            self._summarise("interrupted", {})
            return "interrupted"
        except Exception as error:
            self._summarise("failed", {}, error=f"{type(error).__name__}: {error}")
            raise
        finally:
            self.display.close()
            self.agent.logger.close()

    def _learn_and_evaluate(self) -> Status:
        self._describe()
        left = self.config.total_steps - self.agent.num_timesteps
        if left > 0:
            callbacks: list[BaseCallback] = [self.checkpointing]
            if not self.quiet:
                callbacks.append(self.display)
            per_update = self.config.n_steps * self.config.num_envs
            began = time.monotonic()
            try:
                self.agent.learn(
                    left,
                    callbacks,
                    log_interval=max(
                        1, round(min(LOG_EVERY, self.config.total_steps / LEAST_POINTS) / per_update)
                    ),
                    reset_num_timesteps=self.steps_before == 0,
                )
            finally:
                self.learning_seconds = time.monotonic() - began
        train_return = {"train_return_mean": recent_return(self.agent)}
        if self.checkpointing.stopped:
            return self._interrupted(train_return)
        self.checkpointing.model = self.agent
        self.checkpointing.save()
        try:
            mean, deviation = evaluate(self.agent, self.config, stop=self.interruption)
        except KeyboardInterrupt:
            return self._interrupted(train_return)
        self.agent.logger.record("eval/mean_reward", mean)
        self.agent.logger.dump(self.agent.num_timesteps)
        found = {
            "eval_return_mean": mean,
            "eval_return_std": deviation,
            "eval_episodes": self.config.eval_episodes,
        }
        self._summarise("finished", {**found, **train_return})
        recent = train_return["train_return_mean"]
        self._say(
            f"evaluation: {mean:.1f} ± {deviation:.1f} over {self.config.eval_episodes} episodes"
            + (f"; last 100 training episodes: {recent:.1f}" if recent is not None else "")
            + (f"; {self._speed():,.0f} samples/s" if self.learning_seconds else "")
        )
        self._say(f"curves: tensorboard --logdir {self.folder.path}")
        return "finished"

    def _interrupted(self, metrics: dict[str, Any]) -> Status:
        self._summarise("interrupted", metrics)
        self._say(f"interrupted at {self.checkpointing.steps_saved:,} samples; go on with --resume")
        return "interrupted"

    def _describe(self) -> None:
        """Hyper-parameters and kernels for TensorBoard."""
        logger = self.agent.logger
        metrics: dict[str, float] = {"rollout/ep_rew_mean": 0, "eval/mean_reward": 0}
        logger.record("hparams", HParam(self.config.as_hyperparameters(), metrics), exclude=("csv",))
        if isinstance(self.agent, CETActorCritic) and self.config.delay:
            timing = self.agent.timing
            traces = [self.agent.learner_config.trace.build(delay) for delay in timing.layer_delays]
            figure = kernel_figure(traces, timing.layer_delays, timing.step_duration)
            logger.record("credit/kernel", Figure(figure, close=True), exclude=("csv",))
        logger.dump(self.agent.num_timesteps)

    def _speed(self) -> float | None:
        made = self.agent.num_timesteps - self.steps_before
        return made / self.learning_seconds if self.learning_seconds else None

    def _summarise(self, status: Status, metrics: dict[str, Any], error: str | None = None) -> None:
        saved = self.checkpointing.steps_saved if status == "interrupted" else None
        self.folder.write_summary(
            task=self.config.task,
            agent=self.config.agent,
            seed=self.config.seed,
            status=status,
            steps=self.agent.num_timesteps if saved is None else saved,
            wall_seconds=time.monotonic() - self.began,
            steps_per_second=self._speed(),
            metrics=metrics,
            error=error,
        )

    def _say(self, text: str) -> None:
        self.display.close()
        if not self.quiet:
            _say(text)


def evaluate(
    agent: BaseAlgorithm,
    config: RLConfig,
    episodes: int | None = None,
    seed: int | None = None,
    stop: Interruption | None = None,
) -> tuple[float, float]:
    """Mean and standard deviation of the return over deterministic episodes on environments of their own.

    Args:
        agent: to evaluate.
        config: of its run.
        episodes: how many; None for the configuration's number.
        seed: of the environments; None for one that follows from the run's.
        stop: asked before every step.

    Raises:
        KeyboardInterrupt: if `stop` says so.
    """

    def check(*_: object) -> None:
        if stop is not None and stop.wanted:
            raise KeyboardInterrupt

    episodes = episodes or config.eval_episodes
    seed = config.seed + EVALUATION_SEED_OFFSET if seed is None else seed
    cap = None if find_task(config.task).max_episode_steps else config.eval_max_steps
    env = make_vec_env(config.task, min(episodes, 20), seed, config.step_duration, max_episode_steps=cap)
    returns, _ = evaluate_policy(
        agent, env, episodes, deterministic=True, callback=check, return_episode_rewards=True
    )
    env.close()
    return float(np.mean(returns)), float(np.std(returns))


def evaluate_run(folder: RunFolder, values: Mapping[str, Any], options: EvalArguments) -> str:
    """`cet-rl eval`: play the policy of a run's last checkpoint without exploring.

    Args:
        folder: of the run.
        values: of its configuration.
        options: of the command.

    Returns:
        The line that says what came out.
    """
    if options.agent is not None:
        values = {**values, "agent": options.agent}
    config = resolve(RLConfig(**{**values, "device": "auto"}))
    assert config.threads is not None
    set_threads(config.threads)
    agent = find_agent(config.agent).restore(config, folder.checkpoint_file, False)
    episodes = options.episodes or EVALUATION_EPISODES
    mean, deviation = evaluate(agent, config, episodes, options.seed)
    return f"{config.task}: return {mean:.1f} ± {deviation:.1f} over {episodes} episodes"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _silent(text: str) -> None:
    pass
