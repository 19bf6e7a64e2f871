"""Run reinforcement learning: from configuration to summary."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Unpack, cast

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from cet_rl.agents.rollouts import collect
from cet_rl.agents.saving import StoredAlgorithm
from cet_rl.agents.sb3 import CETActorCritic
from cet_rl.envs.vector import choose_vectorization, vectorised_form
from cet_rl.rl.agent_registry import find_agent
from cet_rl.rl.config import RLConfig
from cet_rl.rl.evaluation import evaluate
from cet_rl.rl.log import LogWriter, log_every, pending, recent_mean, restore_pending
from cet_rl.runs.config import Mark, marked
from cet_rl.runs.config_files import tuned_defaults
from cet_rl.runs.folder import Status, checkpoint_interval
from cet_rl.runs.process import set_threads
from cet_rl.runs.session import (
    LOGGED_POINTS,
    Session,
    SessionOptions,
    SharedTime,
    batch_sessions,
    opened,
    run_and_summarize,
)
from cet_rl.runs.task_kinds import RL
from cet_rl.runs.values import flag, in_a_line

LOG_EVERY = 10_000  # samples between two logged points at most; a short run has `LOGGED_POINTS`
CHECKPOINT_EVERY = 100_000  # samples between two checkpoints at most by default
EVALUATION_EPISODES = 100  # that `cet-rl eval` plays by default

MEAN_RETURN, MEAN_LENGTH = "rollout/ep_rew_mean", "rollout/ep_len_mean"
"""Stable-Baselines3's tags of the mean return and length of the last 100 training episodes."""


def resolve(config: RLConfig) -> RLConfig:
    """Return the configuration with trace, order, device and threads filled in."""
    config, delays_credit = config.on_this_machine(), find_agent(config.agent).delays_credit
    if config.vectorization == "numpy":
        vectorised_form(config.task, wrapped=not delays_credit)  # or one line that says why not
    return config.resolved() if delays_credit else _without_traces(config)


def _chosen(config: RLConfig) -> RLConfig:
    """Return a resolved configuration with the choice of vectorisation made, if it is open."""
    if config.vectorization != "auto":
        return config
    wrapped = not find_agent(config.agent).delays_credit
    return replace(config, vectorization=choose_vectorization(config.task, config.num_envs, wrapped=wrapped))


def _without_traces(config: RLConfig) -> RLConfig:
    """Return the configuration for an agent without them; raise ValueError if a trace option was asked for."""
    tuned = tuned_defaults(config.task, RLConfig)
    defaults: dict[str, Any] = {name: getattr(RLConfig, name, None) for name in marked(RLConfig, Mark.TRACED)}
    for name, default in sorted(defaults.items()):
        if (value := getattr(config, name)) not in (default, tuned.get(name, default)):
            option = flag(name, value)
            raise ValueError(
                f"{option} has no meaning for agent {config.agent}, which has no synaptic traces: leave it out"
            )
    return replace(config, **defaults)


def train(config: RLConfig, run_dir: str | Path | None = None, **options: Unpack[SessionOptions]) -> Status:
    """Run a configuration in a run folder: learn, evaluate, summarise.

    Args:
        config: what to run.
        run_dir: the run folder itself; None for that of `default_path`.
        **options: `resume=True` resumes from the checkpoint of an interrupted run, if there is one, with the same
            result as if there had been no interruption (what cannot be restored is named). `checkpoint_every` is
            how many samples there are from one checkpoint to the next, by default a tenth of the run, at most
            100,000. `quiet=True` prints nothing. `track="wandb"` or `"mlflow"` also sends configuration and
            numbers to a tracker, which needs its package.

    Raises:
        ValueError, OSError: for input that cannot be used, before any work is lost.
        FloatingPointError, OSError: if an environment gives a number that is not finite, or a file cannot be
            written any more; the summary says "failed".
    """
    return _run([_session(resolve(config), run_dir, **options)])


def train_batch(
    configs: Sequence[RLConfig], folders: Sequence[str | Path] | None = None, *, quiet: bool = False
) -> list[Path]:
    """Train many runs in lock step, and return their folders, which they leave as if each had been alone.

    All act and step in one call, and each learns by itself from what it has seen. They need not be at the same
    step, or be equally long. Speeds are a run's own share. Finished runs are left alone, interrupted ones are
    resumed. A run that fails leaves a summary that says so; the others go on.

    Args:
        configs: of the agent cet, alike but for what `cet_rl.runs.config.check_batch` lets differ.
        folders: of the runs; None for those of `default_path`.

    Raises:
        ValueError, OSError: for input that cannot be used, before any work is lost.
        KeyboardInterrupt: when interrupted, after all checkpoints have been written.
    """
    configs = [resolve(config) for config in configs]
    sessions = batch_sessions(configs, folders, partial(_session, quiet=quiet))
    if _run(sessions) == "interrupted":
        raise KeyboardInterrupt
    return [session.folder.path for session in sessions]


def _session(
    config: RLConfig, run_dir: str | Path | None, *, checkpoint_every: int | None = None, **options: Any
) -> Session:
    """Return the session of a run, with the choice of vectorisation made."""
    if checkpoint_every is None:
        checkpoint_every = min(checkpoint_interval(config.total_steps, None), CHECKPOINT_EVERY)
    session = Session(config, RL, run_dir, config.agent, checkpoint_every=checkpoint_every, **options)
    session.config = _chosen(cast(RLConfig, session.config))
    return session


def _run(sessions: Sequence[Session]) -> Status:
    """Run one session, or many in lock step, each from the beginning or from its last checkpoint."""
    clock = Stopwatch()
    with opened(sessions, lambda session: Training(session, clock), lambda _, training: training.load()) as runs:
        if not runs:
            return "finished"
        trainings, shared_time = [training for _, training in runs], SharedTime(len(runs))
        for number, training in enumerate(trainings):
            begin = partial(training.begin, shared_time, shown=number == 0, alone=len(sessions) == 1)
            training.session.attempt(begin)
        learn = trainings[0].learn_and_evaluate if len(sessions) == 1 else partial(learn_together, trainings)
        return run_and_summarize([training.session for training in trainings], learn)


def learn_together(trainings: Sequence[Training]) -> Status:
    """Learn runs in lock step, rollout by rollout; each ends, or fails, by itself."""
    for training in trainings:
        training.session.attempt(training.start)
    while going := [training for training in trainings if training.session.status is None]:
        agents = [training.agent for training in going]
        outcomes = collect(agents, [agent.env for agent in agents], going, agents[0].n_steps)
        for training, outcome in zip(going, outcomes, strict=True):
            training.session.attempt(training.go_on, outcome)
    return "interrupted" if any(one.session.status == "interrupted" for one in trainings) else "finished"


class Stopwatch:
    """Measure the time that runs take to learn, without that of their checkpoints."""

    def __init__(self) -> None:
        self._stopped = 0.0

    def seconds(self) -> float:
        """Return the seconds since some moment that have not been spent within `stopped`."""
        return time.monotonic() - self._stopped

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Stop while the block runs."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._stopped += time.monotonic() - began


class Training(BaseCallback):
    """Drive a session with Stable-Baselines3's training loop, or in lock step with others by `learn_together`.

    A checkpoint is saved before a rollout begins, when nothing is half done; there an interruption stops the run.
    Runs in lock step share a clock.
    """

    def __init__(self, session: Session, clock: Stopwatch) -> None:
        super().__init__()
        self.session, self.config, self.clock = session, cast(RLConfig, session.config), clock
        self.kind = find_agent(self.config.agent)
        self.agent: Any = self.kind.build(self.config)
        if isinstance(self.agent, CETActorCritic):
            session.config = self.config = replace(self.config, executors=self.agent.learner.executors)
        self.stopped = False
        self._log_state: dict[str, Any] | None = None
        self._began: float | None = None  # when the last rollout began

    def load(self) -> None:
        """Load the agent of the newest good checkpoint, and the pending numbers of its log, if they are known."""
        session, file = self.session, self.session.folder.checkpoint_file
        self.agent = self.kind.load(self.config, file)
        state = session.folder.runtime_state(file)
        session.say(f"resuming at {self.agent.num_timesteps:,} samples")
        environments = f"environments of {self.config.task}"
        if state is None or self.kind.restore is None:
            session.say(f"{environments} are not in the checkpoint: they start fresh episodes")
            return
        try:
            self.kind.restore(self.agent, state["agent"])
            self._log_state = state["log"]
            restore_pending(Logger(None, []), self._log_state)  # to check it; the agent's logger is made later
            not_restored = [str(line) for line in state["agent"]["not_restored"]]
        except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RuntimeError) as error:
            raise ValueError(f"{file} does not fit this configuration: {in_a_line(error)}") from None
        for line in not_restored:
            session.say(f"{environments} {line}" if line.startswith("cannot be captured") else line)

    def begin(self, shared_time: SharedTime, *, alone: bool, shown: bool) -> None:
        """Begin the session of a run that learns alone or with others, of which one is shown."""
        session, config = self.session, self.config
        session.begin(lambda: self.agent.num_timesteps, shared_time)
        session.display.quiet |= not shown
        self._name = "" if alone else f"{session.folder.path}: "
        if config.delay and not self.kind.delays_credit:
            session.say(
                f"{config.agent} bridges no delay: rewards arrive {config.delay:g} s late in the environment"
            )
        self.agent.set_logger(Logger(str(session.folder.path), [LogWriter(session.log)]))
        if self._log_state is not None:
            restore_pending(self.agent.logger, self._log_state)

    def _on_training_start(self) -> None:
        self.session.display.start(self.agent.num_timesteps)

    def _on_rollout_start(self) -> None:
        self._count()
        self.stopped = self.session.interruption.wanted
        if self.stopped or self.agent.num_timesteps >= self.session.next_save:
            self._save()
        self._began = self.clock.seconds()

    def _on_step(self) -> bool:
        return not self.stopped

    def _on_training_end(self) -> None:
        if not self.stopped:
            self._count()
        self.session.display.close()

    def _count(self) -> None:
        """Count the rollout that has been made and learned from, if there is one."""
        if self._began is not None:
            self.session.count(self.clock.seconds() - self._began)
            self.session.show(recent_mean(self.agent))

    def _save(self) -> None:
        """Save a checkpoint: the agent's contents and its runtime state."""
        state = None
        if self.kind.runtime_state is not None:
            state = {"agent": self.kind.runtime_state(self.agent), "log": pending(self.agent.logger)}
        with self.clock.stopped():
            self.session.save(self.kind.state(self.agent), state)

    def learn_and_evaluate(self) -> Status:
        """Learn until the end or an interruption, and write the summary of either."""
        if left := self._left():
            self.agent.learn(left, self, **self._options())
        return self._conclude()

    def start(self) -> None:
        """Begin to learn in lock step with others."""
        if left := self._left():
            self.agent.start_learning(left, self, **self._options())
        else:
            self._conclude()

    def go_on(self, outcome: bool | Exception) -> None:
        """Learn from a rollout that has been collected; summarise the run if it was the last."""
        if isinstance(outcome, Exception):
            raise outcome
        if outcome:
            self.agent.learn_from_rollout()
        if self.stopped or self.agent.num_timesteps >= self.config.total_steps:
            self.on_training_end()
            self._conclude()

    def _left(self) -> int:
        """Return the samples that are left to learn from, once hyper-parameters are logged."""
        self.session.log.describe(self.config, (MEAN_RETURN, "eval/mean_reward"), kernels=self.kind.delays_credit)
        return max(self.config.total_steps - int(self.agent.num_timesteps), 0)

    def _options(self) -> dict[str, Any]:
        """Return the options of `learn`."""
        return {"log_interval": self._log_interval(), "reset_num_timesteps": not self.session.log.resumed}

    def _conclude(self) -> Status:
        """Evaluate, unless interrupted, and write the summary."""
        session, agent, config = self.session, self.agent, self.config
        recent = recent_mean(agent)
        if self.stopped:
            return session.interrupted({"train_return_mean": recent})
        self._log_last()
        self._save()  # before the evaluation, which takes long
        try:
            with self.clock.stopped():
                mean, deviation = evaluate(agent, config, stop=session.interruption)
        except KeyboardInterrupt:
            return session.interrupted({"train_return_mean": recent})
        session.log.add_evaluation({"mean_reward": mean}, agent.num_timesteps)
        found = {"eval_return_mean": mean, "eval_return_std": deviation, "eval_episodes": config.eval_episodes}
        return session.finished(
            {**found, "train_return_mean": recent},
            f"{self._name}evaluation: {mean:.1f} ± {deviation:.1f} over {config.eval_episodes} episodes"
            + (f"; last 100 training episodes: {recent:.1f}" if recent is not None else ""),
        )

    def _log_last(self) -> None:
        """Log what the last update recorded, and the returns of the summary if they have not been logged."""
        agent = self.agent
        if not self.session.log.table.has(MEAN_RETURN, agent.num_timesteps):
            for name, key in ((MEAN_RETURN, "r"), (MEAN_LENGTH, "l")):
                mean = recent_mean(agent, key)
                if mean is not None:
                    agent.logger.record(name, mean)
        agent.logger.dump(agent.num_timesteps)

    def _log_interval(self) -> int:
        """Return the `log_interval` of `learn`: rollouts from one log to the next."""
        per_update = self.config.n_steps * self.config.num_envs
        interval = max(1, round(min(LOG_EVERY, self.config.total_steps / LOGGED_POINTS) / per_update))
        if isinstance(self.agent, OnPolicyAlgorithm) and not isinstance(self.agent, StoredAlgorithm):
            log_every(self.agent, interval)  # ours counts from the run's first rollout by itself
            return 1
        return interval


def evaluate_run(
    values: Mapping[str, Any],
    checkpoint: Path,
    *,
    episodes: int | None = None,
    agent: str | None = None,
    seed: int | None = None,
    video: str | None = None,
    render: bool = False,
) -> str:
    """Play the policy of a run's checkpoint without exploring, for `cet-rl eval`, and return the result in a line.

    `values` are the run's configuration, which names the agent where `agent` is None. The episodes are shown in
    the file `video`, or in a window if `render`.
    """
    shown = bool(video or render)
    episodes = episodes or (1 if shown else EVALUATION_EPISODES)
    if agent is not None:
        values = {**values, "agent": agent}
    config = resolve(RLConfig(**{**values, "device": "auto"}))
    set_threads(config.threads)
    restored = find_agent(config.agent).load(config, checkpoint)
    film = Path(video) if video else None
    mean, deviation = evaluate(restored, config, episodes, seed, shown=shown, video=film)
    played = f"{episodes} episode{'s' * (episodes > 1)}" + f"; film: {video}" * bool(video)
    return f"{config.task}: return {mean:.1f} ± {deviation:.1f} over {played}"
