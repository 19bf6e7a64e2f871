"""Report on a run: progress on stderr, and numbers in TensorBoard's files and in metrics.csv."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from cet_rl.runs.config import RunConfig
from cet_rl.runs.files import naming
from cet_rl.runs.folder import EVALUATED, MetricsTable, RunFolder
from cet_rl.runs.task_kinds import TaskKind
from cet_rl.runs.tracking import Tracker
from cet_rl.traces.plot import kernel_figure


class Display:
    """Show progress, a number that says how well the run goes, speed and time left, on stderr.

    In a terminal this is a bar, elsewhere a line for every tenth of the run.
    """

    def __init__(self, total: int, kind: TaskKind, *, quiet: bool) -> None:
        self.total, self.unit, self.score, self.quiet = total, kind.unit, kind.progress, quiet
        self._bar: Progress | None = None

    def start(self, first: int) -> None:
        """Begin at step `first`."""
        self._next_line = first + self.total / 10
        if sys.stderr.isatty() and not self.quiet:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TextColumn(f"{self.score.word} {{task.fields[number]}}"),
                TextColumn(f"{{task.fields[speed]}} {self.unit}/s"),
                TimeRemainingColumn(),
                TextColumn("left"),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task("learning", total=self.total, number="-", speed="-")
            self._bar.start()

    def update(self, step: int, number: float | None, speed: float | None) -> None:
        """Show step, number and steps per second, as far as they are known."""
        shown = "-" if number is None else self.score.show(number)
        per_second = "-" if speed is None else f"{speed:,.0f}"
        made = min(step, self.total)
        if self._bar is not None:
            self._bar.update(self._task, completed=made, number=shown, speed=per_second)
        elif step >= self._next_line and not self.quiet:
            self._next_line += self.total / 10
            line = f"{made:>12,} of {self.total:,} {self.unit}   {self.score.word} {shown:>7}"
            if speed is not None:
                left = timedelta(seconds=round((self.total - made) / speed))
                line += f"   {per_second} {self.unit}/s   {left} left"
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Restore the terminal, however the run ended."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class RunLog:
    """Write the numbers of a run to TensorBoard, metrics.csv and a tracker, if it has one.

    TensorBoard is told to ignore points after `last_step`, at which a resumed run starts. It can do so only by
    their steps, so the evaluation at the end, which may be repeated at its step, has an event file of its own.
    """

    _EVALUATION = ".evaluation"

    def __init__(self, folder: RunFolder, last_step: int | None = None, tracker: Tracker | None = None) -> None:
        self._folder, self.resumed, self.tracker = folder.path, last_step is not None, tracker
        for file in folder.path.glob(f"events.out.tfevents.*{self._EVALUATION}"):
            file.unlink()
        self.table = MetricsTable(folder.metrics_file, last_step or 0)
        with naming(folder.path):
            self.writer = SummaryWriter(str(folder.path), purge_step=None if last_step is None else last_step + 1)

    def describe(self, config: RunConfig, scores: Sequence[str], *, kernels: bool) -> None:
        """Write hyper-parameters, with the tags of scores, and kernels for TensorBoard, if the run is new."""
        if self.resumed:
            return
        writer: Any = self.writer.file_writer
        plain = (int, float, str, bool)  # what TensorBoard takes
        values = {key: v if isinstance(v, plain) else str(v) for key, v in config.as_data().items()}
        for summary in hparams(values, dict.fromkeys(scores, 0.0)):  # type: ignore[no-untyped-call]
            writer.add_summary(summary)
        if kernels and config.delay:
            delays = config.timing.layer_delays
            traces = [config.trace_config.build(delay) for delay in delays]
            self.writer.add_figure("credit/kernel", kernel_figure(traces, delays, config.step_duration))

    def add(self, values: Mapping[str, float], step: int, writer: SummaryWriter | None = None) -> None:
        """Log numbers by TensorBoard tag; those that are not finite are left out."""
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        with naming(self._folder):
            for name, value in finite.items():
                (writer or self.writer).add_scalar(name, value, step)
        self.tabulate(finite, step)

    def tabulate(self, values: Mapping[str, Any], step: int) -> None:
        """Write to metrics.csv and to the tracker what TensorBoard has been given."""
        self.table.add({MetricsTable.STEP: step, **values})
        try:
            if self.tracker is not None:
                self.tracker.log({name: v for name, v in values.items() if math.isfinite(v)}, step)
        except Exception as error:  # a network that fails must not end a run
            print(f"the tracker has failed, the run goes on without: {error}", file=sys.stderr, flush=True)
            self.tracker = None

    def add_evaluation(self, values: Mapping[str, float], step: int) -> None:
        """Log the results of the evaluation at the end of the run, by name without the prefix."""
        with naming(self._folder), SummaryWriter(str(self._folder), filename_suffix=self._EVALUATION) as writer:
            self.add({f"{EVALUATED}{name}": value for name, value in values.items()}, step, writer)

    def flush(self) -> None:
        """Hand everything to the operating system, which keeps it should this process be killed."""
        with naming(self._folder):
            self.writer.flush()

    def close(self) -> None:
        """Close the files."""
        with naming(self._folder):
            self.writer.close()
