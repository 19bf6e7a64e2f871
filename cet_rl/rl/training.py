"""A reinforcement-learning run from configuration to summary."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Figure, HParam, Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from cet_rl.agents import CETActorCritic
from cet_rl.agents.progress import log_every, pending, restore_pending
from cet_rl.agents.stored_algorithm import StoredAlgorithm
from cet_rl.rl.agent_registry import AgentKind, find_agent
from cet_rl.rl.callbacks import Checkpointing, EventWriter, LiveDisplay, TableWriter, recent_return
from cet_rl.rl.config import RLConfig
from cet_rl.rl.evaluation import evaluate
from cet_rl.runs.config import Mark, marked
from cet_rl.runs.config_files import tuned_defaults
from cet_rl.runs.ending import to_its_end
from cet_rl.runs.events import purge_events
from cet_rl.runs.folder import MetricsTable, RunFolder, Status, checkpoint_interval, default_path
from cet_rl.runs.interrupt import Interruption
from cet_rl.runs.machine import on_this_machine, set_threads
from cet_rl.runs.values import flag
from cet_rl.traces.plot import kernel_figure

LOG_EVERY = 10_000
"""Samples between two logged points of a long run."""
LEAST_POINTS = 50
"""Logged in a short one."""
CHECKPOINT_EVERY = 100_000
"""Samples between two checkpoints at most, unless told otherwise."""
EVALUATION_EPISODES = 100
"""That `cet-rl eval` plays unless told otherwise."""


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
        item.name: item.default for item in fields(RLConfig) if item.name in marked(RLConfig, Mark.TRACED)
    }
    for name, default in defaults.items():
        if getattr(config, name) not in (default, tuned.get(name, default)):
            raise ValueError(
                f"{flag(name)} has no meaning for agent {config.agent}, which has no synaptic traces: leave it out"
            )
    return replace(config, **defaults)


def train(
    config: RLConfig,
    run_dir: str | Path | None = None,
    *,
    resume: bool = False,
    checkpoint_every: int | None = None,
    quiet: bool = False,
) -> Status:
    """Run a configuration in a run folder: learn, evaluate, summarise.

    Args:
        config: what to run.
        run_dir: the run folder itself; None for that of `default_path`.
        resume: go on from the checkpoint of an interrupted run, with the same result as if there had been no
            interruption (what cannot be carried on is named); without a checkpoint, start afresh.
        checkpoint_every: samples from one checkpoint to the next; None for ten in the run, more if it has over a
            over a million samples.
        quiet: print nothing.

    Returns:
        "finished" or "interrupted".

    Raises:
        ValueError, OSError: for what cannot be, before any work is lost.
        FloatingPointError: if an environment gives a number that is not finite; the summary says "failed".
        OSError: if a file cannot be written on the way; the summary says "failed", if that can be.
    """
    config = resolve(config)
    assert config.threads is not None
    set_threads(config.threads)
    # Everything that can be refused is refused before the folder is touched.
    save_every = checkpoint_interval(config.total_steps, checkpoint_every)
    if checkpoint_every is None:
        save_every = min(save_every, CHECKPOINT_EVERY)
    kind = find_agent(config.agent)
    agent = kind.build(config)
    folder = RunFolder(run_dir or default_path(config))
    say = _silent if quiet else _say
    folder.check(config.as_data(), resume=resume)
    if folder.status == "finished":
        say(f"{folder.path} is finished; its results are in {folder.summary_file}")
        return "finished"
    with folder.locked():
        resumed, carried = folder.claim(config.as_data(), resume=resume) == "resumed", None
        if resumed:
            agent, carried = _resume(config, folder, kind, say)
        say(f"run folder {folder.path}")
        if config.delay and not kind.delays_credit:
            say(f"{config.agent} bridges no delay: rewards arrive {config.delay:g} s late in the environment")
        return _Run(config, folder, kind, agent, save_every, resumed=resumed, carried=carried, quiet=quiet).go()


def _resume(
    config: RLConfig, folder: RunFolder, kind: AgentKind, say: Callable[[str], None]
) -> tuple[BaseAlgorithm, dict[str, Any] | None]:
    """The agent of the newest good checkpoint, and what its run carried besides; None if nothing.

    Raises:
        ValueError: if the checkpoint does not fit the configuration.
    """
    file = folder.checkpoint_file
    agent = kind.restore(config, file, True)
    carried = folder.checkpoints.carried(file)
    say(f"resuming at {agent.num_timesteps:,} samples")
    environments = f"environments of {config.task}"
    if carried is None or kind.carry_on is None:
        say(f"{environments} are not in the checkpoint: they start fresh episodes")
        return agent, None
    try:
        kind.carry_on(agent, carried["agent"])
        restore_pending(Logger(None, []), carried["log"])  # in earnest once there is a logger
        gaps = [str(gap) for gap in carried["agent"]["gaps"]]
    except (KeyError, TypeError, AttributeError, ValueError, IndexError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{file} does not fit this configuration: {reason}") from None
    for gap in gaps:
        say(f"{environments} {gap}" if gap.startswith("cannot be captured") else gap)
    return agent, carried


class _Run:
    """One go at a run: from wherever the agent stands to the summary."""

    def __init__(
        self,
        config: RLConfig,
        folder: RunFolder,
        kind: AgentKind,
        agent: BaseAlgorithm,
        save_every: int,
        *,
        resumed: bool,
        carried: dict[str, Any] | None,
        quiet: bool,
    ) -> None:
        self.config, self.folder, self.kind, self.agent, self.quiet = config, folder, kind, agent, quiet
        self.resumed, self.carried = resumed, carried
        self.interruption = Interruption()
        self.checkpointing = Checkpointing(self._save, save_every, self.interruption)
        self.checkpointing.steps_saved = agent.num_timesteps if resumed else None
        self.display = LiveDisplay(config.total_steps)
        self.began = time.monotonic()
        self.learning_seconds = 0.0
        self.steps_before = agent.num_timesteps

    def go(self) -> Status:
        purge_events(self.folder.path, self.steps_before)
        writers = [
            EventWriter(self.folder.path),
            TableWriter(MetricsTable(self.folder.metrics_file, self.steps_before)),
        ]
        self.agent.set_logger(Logger(str(self.folder.path), writers))
        return to_its_end(self._learn_and_evaluate, self.interruption, self._summarise, self._close)

    def _close(self) -> None:
        self.display.close()
        self.agent.logger.close()

    def _save(self, agent: BaseAlgorithm) -> None:
        """Write a checkpoint: the agent, and all that a run carries besides."""
        carried = None
        if self.kind.carry is not None:
            carried = {"agent": self.kind.carry(agent), "log": pending(agent.logger)}
        self.folder.save_checkpoint(partial(self.kind.save, agent), carried)

    def _learn_and_evaluate(self) -> Status:
        if not self.resumed:
            self._describe()
        elif self.carried is not None:
            restore_pending(self.agent.logger, self.carried["log"])
        left = self.config.total_steps - self.agent.num_timesteps
        if left > 0:
            callbacks: list[BaseCallback] = [self.checkpointing]
            if not self.quiet:
                callbacks.append(self.display)
            began = time.monotonic()
            try:
                self.agent.learn(
                    left, callbacks, log_interval=self._log_interval(), reset_num_timesteps=not self.resumed
                )
            finally:
                self.learning_seconds = time.monotonic() - began
        train_return = {"train_return_mean": recent_return(self.agent)}
        if self.checkpointing.stopped:
            return self._interrupted(train_return)
        # What the last update has to tell belongs before the checkpoint, the evaluation after it.
        self.agent.logger.dump(self.agent.num_timesteps)
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

    def _log_interval(self) -> int:
        """Of `learn`: rollouts from one log to the next."""
        per_update = self.config.n_steps * self.config.num_envs
        interval = max(1, round(min(LOG_EVERY, self.config.total_steps / LEAST_POINTS) / per_update))
        if isinstance(self.agent, OnPolicyAlgorithm) and not isinstance(self.agent, StoredAlgorithm):
            log_every(self.agent, interval)  # ours, and the wrapped one of Tianshou's, know to count on
            return 1
        return interval

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


def evaluate_run(
    values: Mapping[str, Any],
    checkpoint: Path,
    *,
    episodes: int = EVALUATION_EPISODES,
    agent: str | None = None,
    seed: int | None = None,
) -> str:
    """Play the policy of a run's checkpoint without exploring, for `cet-rl eval`.

    Args:
        values: of the run's configuration.
        checkpoint: the file.
        episodes: number of episodes.
        agent: name of the agent, if the configuration names one that is called otherwise now.
        seed: of the environments; None to derive it from that of the run.

    Returns:
        A line with the result.
    """
    if agent is not None:
        values = {**values, "agent": agent}
    config = resolve(RLConfig(**{**values, "device": "auto"}))
    assert config.threads is not None
    set_threads(config.threads)
    restored = find_agent(config.agent).restore(config, checkpoint, False)
    mean, deviation = evaluate(restored, config, episodes, seed)
    return f"{config.task}: return {mean:.1f} ± {deviation:.1f} over {episodes} episodes"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _silent(text: str) -> None:
    pass
