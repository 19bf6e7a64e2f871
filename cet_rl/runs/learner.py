"""Define the learner of a run, and learners that take their steps together; `cet_rl.runs.session` drives them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from torch import Tensor, zeros_like

from cet_rl.runs import archive
from cet_rl.runs.values import in_a_line


class Learner(ABC):
    """Learn in one run; `step` counts what has been done, in the unit of the configuration's `total_steps`.

    `loss_sum` is the sum of all losses since the last `take_loss`, and `losses` their number.
    """

    config: Any
    step: int
    loss_sum: Tensor
    losses: int

    @abstractmethod
    def advance(self, limit: int, *, measure: bool = False) -> object:
        """Learn at least one step, not beyond `limit`; with `measure`, prepare `measurements` for that step."""

    def take_loss(self) -> float:
        """Return the mean loss since the last call; nan without any."""
        mean = float(self.loss_sum) / self.losses if self.losses else math.nan
        self.loss_sum, self.losses = zeros_like(self.loss_sum), 0
        return mean

    @abstractmethod
    def measurements(self) -> Mapping[str, float]:
        """Return what else to log, by TensorBoard tag; nan where there is nothing."""

    @abstractmethod
    def evaluate(self) -> Mapping[str, float]:
        """Return the results by their names in summary.json."""

    @abstractmethod
    def contents(self) -> dict[str, Any]:
        """Return what resuming needs beside the step and the losses, as `archive.write` takes it."""

    @abstractmethod
    def restore(self, saved: Mapping[str, Any]) -> None:
        """Restore what `contents` has returned."""

    def state(self) -> dict[str, Any]:
        """Return everything that resuming needs, as `archive.write` takes it."""
        return {"step": self.step, "loss_sum": self.loss_sum, "losses": self.losses, **self.contents()}

    def load(self, file: Path) -> None:
        """Restore a file's state; raise ValueError or OSError if it cannot be read, or is of another network."""
        saved = archive.read(file, what="network")
        try:
            self.restore(saved)
            self.loss_sum = saved["loss_sum"].to(self.loss_sum)
            self.step, self.losses = int(saved["step"]), int(saved["losses"])
        except (KeyError, RuntimeError, TypeError, AttributeError) as error:
            raise ValueError(f"{file} does not fit this configuration: {in_a_line(error)}") from None


L = TypeVar("L", bound=Learner)


class LearnerBatch(Generic[L]):
    """Let learners at the same step take their steps one after the other; a subclass may take them all at once.

    What methods return has an element for each of the learners.
    """

    def __init__(self, learners: Sequence[L]) -> None:
        self.learners, self.step = list(learners), learners[0].step

    def advance(self, limit: int, *, measure: bool) -> Any:
        """Let all learn, see `Learner.advance`."""
        for learner in self.learners:
            learner.advance(limit, measure=measure)
        self.step = self.learners[0].step

    def loss_sums(self) -> list[float]:
        """Return the sums of all losses since the last `take_losses`."""
        return [float(learner.loss_sum) for learner in self.learners]

    def take_losses(self) -> list[float]:
        """Return the mean losses since the last call."""
        return [learner.take_loss() for learner in self.learners]

    def measurements(self) -> Sequence[Mapping[str, float]]:
        """Return what else to log."""
        return [learner.measurements() for learner in self.learners]

    def evaluate(self) -> Sequence[Mapping[str, float]]:
        """Return the results."""
        return [learner.evaluate() for learner in self.learners]

    def states(self) -> Sequence[dict[str, Any]]:
        """Return everything that resuming needs."""
        return [learner.state() for learner in self.learners]
