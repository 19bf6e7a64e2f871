"""Run reinforcement learning: from configuration to summary."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import Logger, TensorBoardOutputFormat
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from cet_rl.agents.saving import StoredAlgorithm
from cet_rl.envs import ActionsFromZero, find_task, make_vec_env
from cet_rl.envs.vector import choose_vectorization, vectorised_form
from cet_rl.rl.agent_registry import AgentKind, find_agent
from cet_rl.rl.config import RLConfig
from cet_rl.rl.video import watch
from cet_rl.runs.config import Mark, marked
from cet_rl.runs.config_files import tuned_defaults
from cet_rl.runs.files import naming
from cet_rl.runs.folder import RunFolder, Status, checkpoint_interval, default_path
from cet_rl.runs.log import RunLog
from cet_rl.runs.process import Interruption, set_threads
from cet_rl.runs.session import LOGGED_POINTS, Session, run_and_summarize
from cet_rl.runs.task_kinds import RL
from cet_rl.runs.tracking import TrackerName
from cet_rl.runs.values import flag

LOG_EVERY = 10_000  # samples between two logged points at most; a short run has `LOGGED_POINTS`
CHECKPOINT_EVERY = 100_000  # samples between two checkpoints at most by default
EVALUATION_EPISODES = 100  # that `cet-rl eval` plays by default
EVALUATION_SEED_OFFSET = (
    1_000_003  # from a run's seed to that of its evaluation, so that no episode was learned from
)

MEAN_RETURN, MEAN_LENGTH = "rollout/ep_rew_mean", "rollout/ep_len_mean"
"""Stable-Baselines3's tags of the mean return and length of the last 100 training episodes."""


def resolve(config: RLConfig) -> RLConfig:
    """Return the configuration with trace, order, device and threads filled in."""
    config, delays_credit = config.on_this_machine(), find_agent(config.agent).delays_credit
    if config.vectorization == "numpy":
        vectorised_form(config.task, wrapped=not delays_credit)  # or one line that says why not
    return config.resolved() if delays_credit else _without_traces(config)


def _chosen(config: RLConfig, folder: RunFolder) -> RLConfig:
    """Return a resolved configuration with its open choices made, as the folder's run has made them if it did."""
    config = folder.as_begun(config)
    if config.vectorization != "auto":
        return config
    wrapped = not find_agent(config.agent).delays_credit
    return replace(config, vectorization=choose_vectorization(config.task, config.num_envs, wrapped=wrapped))


def _without_traces(config: RLConfig) -> RLConfig:
    """Return the configuration for an agent without them; raise ValueError if a trace option was asked for."""
    tuned = tuned_defaults(config.task, RLConfig)
    defaults: dict[str, Any] = {name: getattr(RLConfig, name, None) for name in marked(RLConfig, Mark.TRACED)}
    for name, default in sorted(defaults.items()):
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
    track: TrackerName | None = None,
) -> Status:
    """Run a configuration in a run folder: learn, evaluate, summarise.

    Args:
        config: what to run.
        run_dir: the run folder itself; None for that of `default_path`.
        resume: resume from the checkpoint of an interrupted run, if there is one, with the same result as if there
            had been no interruption (what cannot be restored is named).
        checkpoint_every: samples from one checkpoint to the next; None for a tenth of the run, at most 100,000.
        quiet: print nothing.
        track: tracker that configuration and numbers also go to, "wandb" or "mlflow"; needs its package.

    Raises:
        ValueError, OSError: for input that cannot be used, before any work is lost.
        FloatingPointError, OSError: if an environment gives a number that is not finite, or a file cannot be
            written any more; the summary says "failed".
    """
    config = resolve(config)
    config = _chosen(config, RunFolder(run_dir or default_path(config)))
    set_threads(config.threads)
    if checkpoint_every is None:
        checkpoint_every = min(checkpoint_interval(config.total_steps, None), CHECKPOINT_EVERY)
    options: Any = {"checkpoint_every": checkpoint_every, "quiet": quiet, "track": track}
    session = Session(config, RL, run_dir, config.agent, resume=resume, **options)
    if session.is_finished():
        return "finished"
    kind = find_agent(config.agent)
    agent = kind.build(config)
    if learner := getattr(agent, "learner", None):
        session.config = config = replace(config, executors=learner.executors)
    with session.folder.locked():
        if session.is_finished():  # by another process, while this one waited
            return "finished"
        log_state = None
        if resumed := session.folder.open_for(config.as_data(), resume=resume):
            agent, log_state = _load(config, session, kind)
        session.begin(lambda: agent.num_timesteps, resumed=resumed)
        if config.delay and not kind.delays_credit:
            session.say(
                f"{config.agent} bridges no delay: rewards arrive {config.delay:g} s late in the environment"
            )
        training = Training(session, config, kind, agent)
        if log_state is not None:
            restore_pending(agent.logger, log_state)
        return run_and_summarize([session], training.learn_and_evaluate)


def _load(config: RLConfig, session: Session, kind: AgentKind) -> tuple[BaseAlgorithm, dict[str, Any] | None]:
    """Load the agent of the newest good checkpoint, and the pending numbers of its log, None if unknown."""
    file = session.folder.checkpoint_file
    agent = kind.load(config, file)
    state = session.folder.runtime_state(file)
    session.say(f"resuming at {agent.num_timesteps:,} samples")
    environments = f"environments of {config.task}"
    if state is None or kind.restore is None:
        session.say(f"{environments} are not in the checkpoint: they start fresh episodes")
        return agent, None
    try:
        kind.restore(agent, state["agent"])
        log_state: dict[str, Any] = state["log"]
        restore_pending(Logger(None, []), log_state)  # to check it; the agent's logger is made later
        not_restored = [str(line) for line in state["agent"]["not_restored"]]
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{file} does not fit this configuration: {reason}") from None
    for line in not_restored:
        session.say(f"{environments} {line}" if line.startswith("cannot be captured") else line)
    return agent, log_state


class Training(BaseCallback):
    """Drive a session, which has begun, with Stable-Baselines3's training loop.

    A checkpoint is saved before a rollout begins, when nothing is half done; there an interruption stops the run.
    """

    def __init__(self, session: Session, config: RLConfig, kind: AgentKind, agent: BaseAlgorithm) -> None:
        super().__init__()
        self.session, self.config, self.kind, self.agent, self.stopped = session, config, kind, agent, False
        self._began: float | None = None  # when the last rollout began
        agent.set_logger(Logger(str(session.folder.path), [LogWriter(session.log)]))

    def _on_training_start(self) -> None:
        self.session.display.start(self.agent.num_timesteps)

    def _on_rollout_start(self) -> None:
        self._count()
        self.stopped = self.session.interruption.wanted
        if self.stopped or self.agent.num_timesteps >= self.session.next_save:
            self._save()
        self._began = time.monotonic()

    def _on_step(self) -> bool:
        return not self.stopped

    def _on_training_end(self) -> None:
        if not self.stopped:
            self._count()
        self.session.display.close()

    def _count(self) -> None:
        """Count the rollout that has been made and learned from, if there is one."""
        if self._began is not None:
            self.session.count(time.monotonic() - self._began)
            self.session.show(recent_mean(self.agent))

    def _save(self) -> None:
        """Save a checkpoint: the agent's contents and its runtime state."""
        state = None
        if self.kind.runtime_state is not None:
            state = {"agent": self.kind.runtime_state(self.agent), "log": pending(self.agent.logger)}
        self.session.save(self.kind.state(self.agent), state)

    def learn_and_evaluate(self) -> Status:
        """Learn until the end or an interruption, and write the summary of either."""
        session, agent, config = self.session, self.agent, self.config
        session.log.describe(config, (MEAN_RETURN, "eval/mean_reward"), kernels=self.kind.delays_credit)
        left = config.total_steps - agent.num_timesteps
        if left > 0:
            new = not session.log.resumed
            agent.learn(left, self, log_interval=self._log_interval(), reset_num_timesteps=new)
        recent = recent_mean(agent)
        if self.stopped:
            return session.interrupted({"train_return_mean": recent})
        self._log_last()
        self._save()  # before the evaluation, which takes long
        try:
            mean, deviation = evaluate(agent, config, stop=session.interruption)
        except KeyboardInterrupt:
            return session.interrupted({"train_return_mean": recent})
        session.log.add_evaluation({"mean_reward": mean}, agent.num_timesteps)
        found = {"eval_return_mean": mean, "eval_return_std": deviation, "eval_episodes": config.eval_episodes}
        return session.finished(
            {**found, "train_return_mean": recent},
            f"evaluation: {mean:.1f} ± {deviation:.1f} over {config.eval_episodes} episodes"
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


# -------------------- evaluation


def evaluate(
    agent: BaseAlgorithm,
    config: RLConfig,
    episodes: int | None = None,
    seed: int | None = None,
    stop: Interruption | None = None,
) -> tuple[float, float]:
    """Return mean and standard deviation of the return over deterministic episodes on separate environments.

    The run's `config` says how many episodes, and the seed, where these are None. If an interruption, `stop`, is
    wanted, raise KeyboardInterrupt.
    """

    def check(*_: object) -> None:
        if stop is not None and stop.wanted:
            raise KeyboardInterrupt

    episodes = episodes or config.eval_episodes
    seed, options = _evaluation(agent, config, seed)
    env = make_vec_env(num_envs=min(episodes, 20), seed=seed, **options)
    returns, _ = evaluate_policy(
        agent, env, episodes, deterministic=True, callback=check, return_episode_rewards=True
    )
    env.close()
    return float(np.mean(returns)), float(np.std(returns))


def _evaluation(agent: BaseAlgorithm, config: RLConfig, seed: int | None) -> tuple[int, dict[str, Any]]:
    """Return the seed, and the keywords of `make_env`, of environments to evaluate on."""
    seed = (config.seed + EVALUATION_SEED_OFFSET) % 2**32 if seed is None else seed
    cap = None if find_task(config.task).max_episode_steps else config.eval_max_steps
    # The actions of our agent start where the environment's do; those of others, like their training's, from zero.
    wrappers: list[Any] = [] if getattr(agent.action_space, "start", 0) else [ActionsFromZero]
    clock = {"task": config.task, "step_duration": config.step_duration}
    return seed, {**clock, "max_episode_steps": cap, "wrappers": wrappers}


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
    if shown:
        seed, options = _evaluation(restored, config, seed)
        returns = watch(restored, options, episodes, seed, Path(video) if video else None)
        mean, deviation = float(np.mean(returns)), float(np.std(returns))
    else:
        mean, deviation = evaluate(restored, config, episodes, seed)
    played = f"{episodes} episode{'s' * (episodes > 1)}" + f"; film: {video}" * bool(video)
    return f"{config.task}: return {mean:.1f} ± {deviation:.1f} over {played}"


# -------------------- the log: when it is written, and the numbers it still holds


class LogWriter(TensorBoardOutputFormat):
    """Write what Stable-Baselines3's logger records to the log of a run: TensorBoard and metrics.csv."""

    def __init__(self, log: RunLog) -> None:
        self._log, self.writer, self._is_closed = log, log.writer, False

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Write the numbers and figures of one step; raise OSError naming a file that cannot be written."""
        with naming(self._log.table.path.parent):
            super().write(key_values, key_excluded, step)
        row = {
            name: float(value) if isinstance(value, (float, np.floating)) else value
            for name, value in key_values.items()
            if isinstance(value, (int, float, np.number)) and "csv" not in key_excluded[name]
        }
        if row:
            self._log.tabulate(row, step)

    def close(self) -> None:
        """Leave the files open for the session."""


def recent_mean(model: Any, key: str = "r") -> float | None:
    """Return the mean return ("r") or length ("l") of the last 100 training episodes, None without any."""
    episodes = model.ep_info_buffer
    return float(np.mean([episode[key] for episode in episodes])) if episodes else None


def log_every(agent: OnPolicyAlgorithm, interval: int) -> None:
    """Make an algorithm of Stable-Baselines3 log after every `interval` rollouts, counted from the run's first.

    Its own `log_interval` counts from the call of `learn`, which a resumed run repeats, and must be one.
    """
    write, per_rollout = agent.dump_logs, agent.n_steps * agent.n_envs

    def dump_logs(iteration: int = 0) -> None:
        iteration = agent.num_timesteps // per_rollout
        if iteration % interval == 0:
            write(iteration)

    agent.dump_logs = dump_logs  # type: ignore[method-assign]


_TABLES = ("name_to_value", "name_to_count", "name_to_excluded")


def pending(logger: Logger) -> dict[str, Any]:
    """Return the numbers that have been recorded but not written yet."""
    numbers = [name for name, value in logger.name_to_value.items() if isinstance(value, (int, float, np.number))]
    return {table: {name: getattr(logger, table)[name] for name in numbers} for table in _TABLES}


def restore_pending(logger: Logger, state: dict[str, Any]) -> None:
    """Record the numbers that `pending` returned."""
    for table in _TABLES:
        getattr(logger, table).update(state[table])
