"""Define what learns in a run, and runs that take their steps together; `cet_rl.runs.session` drives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor


class Learner(Protocol):
    """Learn one run; `step` counts what has been done, in the unit of the configuration's `total_steps`."""

    config: Any
    step: int

    def advance(self, limit: int, *, measure: bool) -> object:
        """Learn at least one step, not beyond `limit`; with `measure`, prepare `measurements` for that step."""

    @property
    def loss_sum(self) -> Tensor:
        """Sum of all losses since the last `take_loss`."""

    def take_loss(self) -> float:
        """Return the mean loss since the last call."""

    def measurements(self) -> Mapping[str, float]:
        """Return what else to log, by TensorBoard tag; nan where there is nothing."""

    def evaluate(self) -> Mapping[str, float]:
        """Return the results by their names in summary.json."""

    def state(self) -> dict[str, Any]:
        """Return everything that resuming needs, for a checkpoint."""

    def load(self, file: Path) -> None:
        """Restore the state of a checkpoint."""


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
