"""Write Stable-Baselines3's log to the log of a run, and save the numbers that it has not written yet."""

from __future__ import annotations

from typing import Any

import numpy as np
from stable_baselines3.common.logger import Logger, TensorBoardOutputFormat
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from cet_rl.runs.files import naming
from cet_rl.runs.log import RunLog


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
        """Leave the files open: the session closes them."""


def recent_mean(model: Any, key: str = "r") -> float | None:
    """Return the mean return ("r") or length ("l") of the last 100 training episodes; None before the first."""
    episodes = model.ep_info_buffer
    return float(np.mean([episode[key] for episode in episodes])) if episodes else None


def log_every(agent: OnPolicyAlgorithm, interval: int) -> None:
    """Make an algorithm of Stable-Baselines3 log after every `interval` rollouts, counted from the run's first.

    Its own `log_interval` counts from the call of `learn`, which a resumed run repeats; it must be one.
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
