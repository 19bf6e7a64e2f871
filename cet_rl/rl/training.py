"""Train and evaluate agents in run folders, one run alone or many in lockstep."""

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

LOG_EVERY = 10_000  # most samples between two logged points; a short run has `LOGGED_POINTS` points
CHECKPOINT_EVERY = 100_000  # most samples between two checkpoints by default
EVALUATION_EPISODES = 100  # default number of episodes of `cet-rl eval`

MEAN_RETURN, MEAN_LENGTH = "rollout/ep_rew_mean", "rollout/ep_len_mean"
"""Stable-Baselines3's tags for the mean return and length of the last 100 training episodes."""


def resolve(config: RLConfig) -> RLConfig:
    """Return the configuration with trace, order, device and threads filled in."""
    config, delays_credit = config.on_this_machine(), find_agent(config.agent).delays_credit
    if config.vectorization == "numpy":
        vectorised_form(config.task, wrapped=not delays_credit)  # raises ValueError if there is none
    return config.resolved() if delays_credit else _without_traces(config)


def _without_traces(config: RLConfig) -> RLConfig:
    """Return the configuration of an agent without traces; raise ValueError if it sets an option of traces."""
    tuned = tuned_defaults(config.task, RLConfig)
    defaults: dict[str, Any] = {name: getattr(RLConfig, name, None) for name in marked(RLConfig, Mark.TRACED)}
    for name, default in sorted(defaults.items()):
        if (value := getattr(config, name)) not in (default, tuned.get(name, default)):
            option = flag(name, value)
            raise ValueError(f"{option} has no meaning for agent {config.agent}, without traces: leave it out")
    return replace(config, **defaults)


def train(config: RLConfig, run_dir: str | Path | None = None, **options: Unpack[SessionOptions]) -> Status:
    """Run a configuration in a run folder: learn, evaluate, write the summary.

    Args:
        config: the configuration of the run.
        run_dir: the run folder itself; None for that of `default_path`.
        **options: `resume=True` resumes from the checkpoint of an interrupted run, if there is one, with the same
            result as without an interruption (a message names what cannot be restored). `checkpoint_every` is the
            number of samples between checkpoints, by default a tenth of the run, at most 100,000. `quiet=True`
            prints nothing. `track="wandb"` or `"mlflow"` also sends configuration and numbers to a tracker, which
            needs its package.

    Returns:
        "finished", or "interrupted" if Ctrl-C or SIGTERM ended the run early.

    Raises:
        ValueError, OSError: for input that cannot be used, before learning begins.
        FloatingPointError, OSError: if an environment gives a number that is not finite, or a file can no longer
            be written; the summary then says "failed".
    """
    return _run([_session(resolve(config), run_dir, **options)])


def train_batch(
    configs: Sequence[RLConfig], folders: Sequence[str | Path] | None = None, *, quiet: bool = False
) -> list[Path]:
    """Train many runs in lockstep, and return their folders, with the same results as if each had run alone.

    All agents act and step in one call; each learns from its own rollout. Runs may be at different steps, and have
    different lengths. Finished runs are skipped, interrupted ones resumed. A run that fails gets a summary that
    says so, and the others continue. The speed in a summary is the run's share of that of the batch.

    Args:
        configs: configurations of the agent cet, equal but for what `cet_rl.runs.config.check_batch` lets differ.
        folders: a run folder for each; None for those of `default_path`.

    Raises:
        ValueError, OSError: for input that cannot be used, before learning begins.
        KeyboardInterrupt: after an interruption, once all checkpoints are written.
    """
    sessions = batch_sessions([resolve(config) for config in configs], folders, partial(_session, quiet=quiet))
    if _run(sessions) == "interrupted":
        raise KeyboardInterrupt
    return [session.folder.path for session in sessions]


def _session(
    config: RLConfig, run_dir: str | Path | None, *, checkpoint_every: int | None = None, **options: Any
) -> Session:
    """Return the session of a run, with its vectorisation chosen."""
    if checkpoint_every is None:
        checkpoint_every = min(checkpoint_interval(config.total_steps, None), CHECKPOINT_EVERY)
    session = Session(config, RL, run_dir, config.agent, checkpoint_every=checkpoint_every, **options)
    config = cast(RLConfig, session.config)
    if config.vectorization == "auto":
        wrapped = not find_agent(config.agent).delays_credit
        chosen = choose_vectorization(config.task, config.num_envs, wrapped=wrapped)
        session.config = replace(config, vectorization=chosen)
    return session


def _run(sessions: Sequence[Session]) -> Status:
    """Run one session, or many in lockstep, each from its beginning or its last checkpoint."""
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
    """Train runs in lockstep, rollout by rollout, until each has ended or failed."""
    for training in trainings:
        training.session.attempt(training.start)
    while active := [training for training in trainings if training.session.status is None]:
        agents = [training.agent for training in active]
        outcomes = collect(agents, [agent.env for agent in agents], active, agents[0].n_steps)
        for training, outcome in zip(active, outcomes, strict=True):
            training.session.attempt(training.update, outcome)
    return "interrupted" if any(one.session.status == "interrupted" for one in trainings) else "finished"


class Stopwatch:
    """Measure the time that learning takes, without checkpoints and evaluation."""

    def __init__(self) -> None:
        self._stopped = 0.0

    def seconds(self) -> float:
        """Return seconds since an arbitrary moment, without those spent in `stopped`."""
        return time.monotonic() - self._stopped

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Stop the clock while the block runs."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._stopped += time.monotonic() - began


class Training(BaseCallback):
    """Drive a session from Stable-Baselines3's training loop, or from `learn_together` in lockstep with others.

    Checkpoints are saved, and interruptions stop the run, before a rollout begins: no update is pending there.
    Runs in lockstep share a clock.
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
        """Load the agent, its runtime state and the pending numbers of its log from the last good checkpoint."""
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
            restore_pending(Logger(None, []), self._log_state)  # only a check: the agent's logger is made later
            not_restored = [str(line) for line in state["agent"]["not_restored"]]
        except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RuntimeError) as error:
            raise ValueError(f"{file} does not fit this configuration: {in_a_line(error)}") from None
        for line in not_restored:
            session.say(f"{environments} {line}" if line.startswith("cannot be captured") else line)

    def begin(self, shared_time: SharedTime, *, alone: bool, shown: bool) -> None:
        """Begin the session of a run: `alone` or in a batch, in which one run is `shown` by the display."""
        session, config = self.session, self.config
        session.begin(lambda: self.agent.num_timesteps, shared_time)
        session.display.quiet |= not shown
        self._name = "" if alone else f"{session.folder.path}: "
        if config.delay and not self.kind.delays_credit:
            session.say(f"{config.agent} bridges no delay: the environment's rewards are {config.delay:g} s late")
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
        """Add the last rollout and its update, if there was one, to the session's time, and show the progress."""
        if self._began is not None:
            self.session.count(self.clock.seconds() - self._began)
            self.session.show(recent_mean(self.agent))

    def _save(self) -> None:
        """Save a checkpoint: the agent's state and its runtime state."""
        state = None
        if self.kind.runtime_state is not None:
            state = {"agent": self.kind.runtime_state(self.agent), "log": pending(self.agent.logger)}
        with self.clock.stopped():
            self.session.save(self.kind.state(self.agent), state)

    def learn_and_evaluate(self) -> Status:
        """Learn until the end or an interruption, then evaluate and write the summary."""
        if left := self._samples_left():
            self.agent.learn(left, self, **self._options())
        return self._conclude()

    def start(self) -> None:
        """Begin to learn in lockstep with others; conclude at once if all steps are made."""
        if left := self._samples_left():
            self.agent.start_learning(left, self, **self._options())
        else:
            self._conclude()

    def update(self, outcome: bool | Exception) -> None:
        """Learn from a collected rollout, and conclude the run if it was the last one; raise a failed outcome."""
        if isinstance(outcome, Exception):
            raise outcome
        if outcome:
            self.agent.learn_from_rollout()
        if self.stopped or self.agent.num_timesteps >= self.config.total_steps:
            self.on_training_end()
            self._conclude()

    def _samples_left(self) -> int:
        """Log the hyper-parameters, and return the number of samples that are left to learn from."""
        self.session.log.describe(self.config, (MEAN_RETURN, "eval/mean_reward"), kernels=self.kind.delays_credit)
        return max(self.config.total_steps - int(self.agent.num_timesteps), 0)

    def _options(self) -> dict[str, Any]:
        """Return keyword arguments of the agent's `learn`."""
        return {"log_interval": self._log_interval(), "reset_num_timesteps": not self.session.log.resumed}

    def _conclude(self) -> Status:
        """Evaluate, unless interrupted, and write the summary."""
        session, agent, config = self.session, self.agent, self.config
        recent = recent_mean(agent)
        if self.stopped:
            return session.interrupt({"train_return_mean": recent})
        self._log_last()
        self._save()  # the evaluation takes long, and may be interrupted
        try:
            with self.clock.stopped():
                mean, deviation = evaluate(agent, config, stop=session.interruption)
        except KeyboardInterrupt:
            return session.interrupt({"train_return_mean": recent})
        session.log.add_evaluation({"mean_reward": mean}, agent.num_timesteps)
        evaluated = {"eval_return_mean": mean, "eval_return_std": deviation, "eval_episodes": config.eval_episodes}
        return session.finish(
            {**evaluated, "train_return_mean": recent},
            f"{self._name}evaluation: {mean:.1f} ± {deviation:.1f} over {config.eval_episodes} episodes"
            + (f"; last 100 training episodes: {recent:.1f}" if recent is not None else ""),
        )

    def _log_last(self) -> None:
        """Log the numbers of the last update, and the training return if it is not logged for this step yet."""
        agent = self.agent
        if not self.session.log.table.has(MEAN_RETURN, agent.num_timesteps):
            for name, key in ((MEAN_RETURN, "r"), (MEAN_LENGTH, "l")):
                mean = recent_mean(agent, key)
                if mean is not None:
                    agent.logger.record(name, mean)
        agent.logger.dump(agent.num_timesteps)

    def _log_interval(self) -> int:
        """Return the `log_interval` of `learn`, in rollouts."""
        per_update = self.config.n_steps * self.config.num_envs
        interval = max(1, round(min(LOG_EVERY, self.config.total_steps / LOGGED_POINTS) / per_update))
        if isinstance(self.agent, OnPolicyAlgorithm) and not isinstance(self.agent, StoredAlgorithm):
            log_every(self.agent, interval)  # our agent counts from the run's first rollout without it
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
    """Evaluate the deterministic policy of a checkpoint for `cet-rl eval`, and return a line with the result.

    Args:
        values: the run's configuration; `agent` replaces its agent's name if that has changed.
        episodes, seed: as in `evaluate`; the default is 100 episodes, or 1 if they are shown.
        video, render: a file to show the episodes in, or whether to open a window.
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
