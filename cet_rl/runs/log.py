"""The log of a run: the same numbers in TensorBoard's files and in metrics.csv."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from cet_rl.runs.config import RunConfig
from cet_rl.runs.files import naming
from cet_rl.runs.folder import EVALUATED, MetricsTable, RunFolder
from cet_rl.traces.plot import kernel_figure


class RunLog:
    """Write the numbers of a run to TensorBoard and metrics.csv.

    TensorBoard is told to ignore earlier points that a resumed run logs again. It can do so only by their steps,
    so the evaluation at the end, which may be repeated without a new step, has an event file of its own.

    Args:
        folder: of the run.
        last_step: step of the checkpoint that a resumed run starts from; None for a new run.
    """

    _EVALUATION = ".evaluation"

    def __init__(self, folder: RunFolder, last_step: int | None = None) -> None:
        self._folder, self.resumed = folder.path, last_step is not None
        for file in folder.path.glob(f"events.out.tfevents.*{self._EVALUATION}"):
            file.unlink()
        with naming(folder.path):
            self.writer = SummaryWriter(str(folder.path), purge_step=None if last_step is None else last_step + 1)
        self.table = MetricsTable(folder.metrics_file, last_step or 0)

    def describe(self, config: RunConfig, scores: Sequence[str], *, kernels: bool) -> None:
        """Write hyper-parameters and kernels for TensorBoard, unless the run is resumed and has them already.

        Args:
            config: of the run.
            scores: tags that the table of hyper-parameters shows.
            kernels: whether to draw the kernels of the configuration's traces.
        """
        if self.resumed:
            return
        writer: Any = self.writer.file_writer
        for summary in hparams(config.as_hyperparameters(), dict.fromkeys(scores, 0.0)):  # type: ignore[no-untyped-call]
            writer.add_summary(summary)
        if kernels and config.delay:
            delays = config.timing.layer_delays
            traces = [config.trace_config.build(delay) for delay in delays]
            self.writer.add_figure("credit/kernel", kernel_figure(traces, delays, config.step_duration))

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Log numbers by TensorBoard tag; those that are not finite are left out."""
        self._add(self.writer, values, step)

    def add_evaluation(self, values: Mapping[str, float], step: int) -> None:
        """Log the results of the evaluation at the end of the run, by name without the prefix."""
        with naming(self._folder), SummaryWriter(str(self._folder), filename_suffix=self._EVALUATION) as writer:
            self._add(writer, {f"{EVALUATED}{name}": value for name, value in values.items()}, step)

    def _add(self, writer: SummaryWriter, values: Mapping[str, float], step: int) -> None:
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        with naming(self._folder):
            for name, value in finite.items():
                writer.add_scalar(name, value, step)
        self.table.add({MetricsTable.STEP: step, **finite})

    def flush(self) -> None:
        """Hand everything to the operating system, which keeps it should this process be killed."""
        with naming(self._folder):
            self.writer.flush()

    def close(self) -> None:
        """Close the files."""
        with naming(self._folder):
            self.writer.close()
