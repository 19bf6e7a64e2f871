"""What the command line adds to a run, as Stable-Baselines3 callbacks and log writers."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter

from cet_rl.runs import MetricsTable


class Interruption:
    """Turns the first SIGINT or SIGTERM into a wish to stop; a second SIGINT stops at once."""

    def __init__(self) -> None:
        self.wanted = False

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.wanted and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.wanted = True

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Listen for as long as the block runs. Only a process's main thread can."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self._ask) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Checkpointing(BaseCallback):
    """Saves the agent every so many samples, and stops the run between two updates when asked to.

    A checkpoint is taken before a rollout begins, when nothing is half done.

    Args:
        save: writes an agent to a file, in one stroke.
        file: where to.
        every: samples between checkpoints.
        interruption: says when to stop.
    """

    def __init__(
        self, save: Callable[[BaseAlgorithm, Path], None], file: Path, every: int, interruption: Interruption
    ) -> None:
        super().__init__()
        self._write, self.file, self.every, self.interruption = save, file, every, interruption
        self.stopped = False
        self.steps_saved: int | None = None
        self._next = 0

    def _on_training_start(self) -> None:
        self._next = self.model.num_timesteps + self.every

    def _on_rollout_start(self) -> None:
        self.stopped = self.interruption.wanted
        if self.stopped or self.model.num_timesteps >= self._next:
            self.save()

    def save(self) -> None:
        """Save the agent as it is now."""
        self._write(self.model, self.file)
        self.steps_saved = self.model.num_timesteps
        self._next = self.model.num_timesteps + self.every

    def _on_step(self) -> bool:
        return not self.stopped


def recent_return(model: Any) -> float | None:
    """Mean return of the last 100 training episodes; None before the first has ended."""
    episodes = model.ep_info_buffer
    return float(np.mean([episode["r"] for episode in episodes])) if episodes else None


class LiveDisplay(BaseCallback):
    """Progress, return, speed and time left: a bar in a terminal, a line every tenth elsewhere.

    Args:
        total: samples of the whole run.
    """

    def __init__(self, total: int) -> None:
        super().__init__()
        self.total = total
        self._shown = 0.0
        self._bar: Progress | None = None

    def _on_training_start(self) -> None:
        self._began, self._first = time.monotonic(), self.model.num_timesteps
        self._next_line = self._first + self.total / 10
        if sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TextColumn("return {task.fields[recent]}"),
                TextColumn("{task.fields[speed]:,.0f} samples/s"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task("learning", total=self.total, recent="-", speed=0.0)
            self._bar.start()

    def _on_rollout_end(self) -> None:
        now, steps = time.monotonic(), self.model.num_timesteps
        speed = (steps - self._first) / max(now - self._began, 1e-9)
        recent = recent_return(self.model)
        shown = "-" if recent is None else f"{recent:.1f}"
        if self._bar is not None:
            if now - self._shown > 0.1 or steps >= self.total:
                self._shown = now
                self._bar.update(self._task, completed=min(steps, self.total), recent=shown, speed=speed)
        elif steps >= self._next_line:
            self._next_line += self.total / 10
            made = min(steps, self.total)
            left = (self.total - made) / speed
            print(
                f"{made:>12,} of {self.total:,} samples   return {shown:>7}   {speed:,.0f} samples/s"
                f"   {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )

    def _on_training_end(self) -> None:
        self.close()

    def close(self) -> None:
        """Leave the terminal as it should be, however the run ended."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _on_step(self) -> bool:
        return True


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
