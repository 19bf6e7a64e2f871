"""What is read off one run: a number that says how well it learned, how soon, or how true its updates were."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

from cet_rl.report.plots import ALIGNMENT as PREFIX
from cet_rl.report.plots import FloatArray
from cet_rl.report.presentation import PRESENTATIONS, Presentation
from cet_rl.report.reading import Run, held_out
from cet_rl.report.text import number
from cet_rl.runs.folder import MetricsTable

PARTS = 3
"""Early is the first third of a run, late the last."""


@dataclass(frozen=True)
class Measure:
    """One number of a finished run.

    Attributes:
        title: in words.
        function: the number; None for a run that does not have it.
        digits: decimals that are shown.
        unit: of the number; "" for none.
    """

    title: str
    function: Callable[[Run], float | None]
    digits: int = 1
    unit: str = ""

    def show(self, value: float) -> str:
        """A value with its unit: "92.30 %"."""
        return f"{number(value, self.digits)}{f' {self.unit}' * bool(self.unit)}"


def score(run: Run) -> float | None:
    """Return what the report compares arms of this kind of task on, in the unit that it shows."""
    measure = _presented(run).score
    value = run.metrics.get(measure.key)
    return None if value is None else measure.factor * value


def over_training(run: Run) -> float | None:
    """Return the mean of the learning curve over the run, in the unit that the report shows: who learns soon."""
    presentation = _presented(run)
    steps, values = _column(run, presentation.curve)
    if len(steps) < 2 or steps[-1] <= steps[0]:
        return None
    return presentation.curve_factor * float(np.trapezoid(values, steps) / (steps[-1] - steps[0]))


def alignment(run: Run) -> float | None:
    """The mean cosine with the true gradient, over training and all layers that wait for credit."""
    return _mean([_aligned(run, layer) for layer in _waiting(run)])


def early_alignment(run: Run) -> float | None:
    """`alignment` in the first third of the run."""
    return _mean([_aligned(run, layer, 1, 1) for layer in _waiting(run)])


def late_alignment(run: Run) -> float | None:
    """`alignment` in the last third of the run."""
    return _mean([_aligned(run, layer, PARTS, PARTS) for layer in _waiting(run)])


def alignment_gain(run: Run) -> float | None:
    """`late_alignment` less `early_alignment`."""
    return _difference(late_alignment(run), early_alignment(run))


def last_waiting_alignment(run: Run) -> float | None:
    """`alignment` of the layer nearest the output among those that wait for credit."""
    layers = _waiting(run)
    return _aligned(run, layers[-1]) if layers else None


def depth_loss(run: Run) -> float | None:
    """How much better the last waiting layer is aligned than the first; None with fewer than two such layers."""
    layers = _waiting(run)
    if len(layers) < 2:
        return None
    return _difference(last_waiting_alignment(run), _aligned(run, layers[0]))


def plausible(run: Run) -> float | None:
    """1 if the audit of the run's learning rule finds nothing that a brain could not do, else 0."""
    rule = getattr(run.config, "rule", None)
    return None if rule is None else float(_audited(rule))


@cache
def _audited(rule: str) -> bool:
    from cet_rl.recurrent.audit.audit import audit_rule  # seconds: only where a claim has its runs
    from cet_rl.recurrent.rules import find_rule

    return audit_rule(find_rule(rule).kind).plausible


def _presented(run: Run) -> Presentation:
    assert run.task_kind is not None
    assert run.config is not None
    return PRESENTATIONS[run.task_kind.name].filled(held_out(run.config))


def _waiting(run: Run) -> list[int]:
    """The layers that wait for credit and whose alignment is logged, input side first."""
    assert run.config is not None
    delays = run.config.timing.layer_delays
    return [layer for layer, delay in enumerate(delays) if delay and f"{PREFIX}{layer}" in run.columns]


def _aligned(run: Run, layer: int, first: int = 1, last: int = PARTS) -> float | None:
    """Mean alignment of a layer, in the run's thirds from the first to the last that are given."""
    steps, values = _column(run, f"{PREFIX}{layer}")
    if not len(steps) or steps[-1] <= 0:
        return None
    third = np.ceil(steps * PARTS / run.columns[MetricsTable.STEP][-1]).clip(1, PARTS)
    inside = values[(third >= first) & (third <= last)]
    return float(inside.mean()) if len(inside) else None


def _column(run: Run, name: str) -> tuple[FloatArray, FloatArray]:
    """Steps and values of a column, where it has values."""
    if name not in run.columns or MetricsTable.STEP not in run.columns:
        return np.empty(0), np.empty(0)
    values = run.columns[name]
    there = np.isfinite(values)
    return run.columns[MetricsTable.STEP][there], values[there]


def _mean(values: list[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return sum(found) / len(found) if found else None


def _difference(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second


RETURN = Measure("training return", score)
ACCURACY = Measure("test accuracy", score, digits=2, unit="%")
LOSS = Measure("test loss", score, digits=4)
SOONER = Measure("mean accuracy over training", over_training, digits=2, unit="%")
ALIGNED = Measure("alignment", alignment, digits=3)
ALIGNED_EARLY = Measure("alignment in the first third", early_alignment, digits=3)
ALIGNED_LATE = Measure("alignment in the last third", late_alignment, digits=3)
ALIGNED_MORE = Measure("alignment in the last third less that in the first", alignment_gain, digits=3)
ALIGNED_LAST = Measure("alignment of the last waiting layer", last_waiting_alignment, digits=3)
DEPTH = Measure("alignment of the last waiting layer less that of the first", depth_loss, digits=3)
PLAUSIBLE = Measure("plausible by the audit", plausible, digits=0)
