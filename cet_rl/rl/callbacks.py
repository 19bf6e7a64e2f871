"""What the command line adds to a run, as Stable-Baselines3 callbacks and log writers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, TensorBoardOutputFormat

from cet_rl.runs.files import naming
from cet_rl.runs.folder import MetricsTable
from cet_rl.runs.interrupt import Interruption
from cet_rl.runs.progress import Display


class Checkpointing(BaseCallback):
    """Saves the agent every so many samples, and stops the run between two updates when asked to.

    A checkpoint is taken before a rollout begins, when nothing is half done.

    Args:
        save: writes a checkpoint of an agent.
        every: samples between checkpoints.
        interruption: says when to stop.
    """

    def __init__(self, save: Callable[[BaseAlgorithm], None], every: int, interruption: Interruption) -> None:
        super().__init__()
        self._write, self.every, self.interruption = save, every, interruption
        self.stopped = False
        self.steps_saved: int | None = None
        self._next = 0

    def _on_training_start(self) -> None:
        self._next = self._following()

    def _following(self) -> int:
        """The next multiple of the interval, so that a resumed run writes checkpoints where any run does."""
        return self.model.num_timesteps - self.model.num_timesteps % self.every + self.every

    def _on_rollout_start(self) -> None:
        self.stopped = self.interruption.wanted
        if self.stopped or self.model.num_timesteps >= self._next:
            self.save()

    def save(self) -> None:
        """Save the agent as it is now."""
        self._write(self.model)
        self.steps_saved = self.model.num_timesteps
        self._next = self._following()

    def _on_step(self) -> bool:
        return not self.stopped


def recent_return(model: Any) -> float | None:
    """Mean return of the last 100 training episodes; None before the first has ended."""
    episodes = model.ep_info_buffer
    return float(np.mean([episode["r"] for episode in episodes])) if episodes else None


class LiveDisplay(BaseCallback):
    """Progress, return, speed and time left.

    Args:
        total: samples of the whole run.
    """

    def __init__(self, total: int) -> None:
        super().__init__()
        self._display = Display(total, unit="samples", shows="return", digits=1)

    def _on_training_start(self) -> None:
        self._display.start(self.model.num_timesteps)

    def _on_rollout_end(self) -> None:
        self._display.update(self.model.num_timesteps, recent_return(self.model))

    def _on_training_end(self) -> None:
        self.close()

    def close(self) -> None:
        """Leave the terminal as it should be, however the run ended."""
        self._display.close()

    def _on_step(self) -> bool:
        return True


class EventWriter(TensorBoardOutputFormat):
    """Writes what is logged for TensorBoard.

    Args:
        folder: of the run. A file there that cannot be written is an OSError that names it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with naming(folder):
            super().__init__(str(folder))

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """The numbers and figures of one step."""
        with naming(self._folder):
            super().write(key_values, key_excluded, step)

    def close(self) -> None:
        """Finish the file."""
        with naming(self._folder):
            super().close()


class TableWriter(KVWriter):
    """Writes what is logged into metrics.csv."""

    def __init__(self, table: MetricsTable) -> None:
        self.table = table

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """One row of the numbers among `key_values`."""
        row = {
            name: float(value) if isinstance(value, (float, np.floating)) else value
            for name, value in key_values.items()
            if isinstance(value, (int, float, np.number)) and "csv" not in key_excluded[name]
        }
        if row:
            self.table.add({MetricsTable.STEP: step, **row})

    def close(self) -> None:
        """Nothing is held open."""
