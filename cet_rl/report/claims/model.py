"""Filters that select the runs of an arm at a delay, and measures of a run, for claims to compare."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from cet_rl.report.reading import ALIGNMENT, FloatArray, Run
from cet_rl.report.statistics import Measure, presentation_of
from cet_rl.runs.config import RunConfig
from cet_rl.runs.folder import MetricsTable
from cet_rl.traces.timing import RELATIVE_TOLERANCE

# -------------------- which runs are compared

TRACE_NAMES = {"cet": "CET", "sharp": "SharpCET", "legendre": "Legendre", "et": "ET", "perfect": "perfect memory"}

RULE_NAMES = {
    "fixed-w": "fixed-W",
    "rflo": "RFLO",
    "dni": "DNI",
    "dni-b": "DNI(b)",
    "bptt": "BPTT",
    "rtrl": "RTRL",
}


@dataclass(frozen=True)
class RunFilter:
    """Select the runs of one arm at one delay by their configurations.

    Attributes:
        name: name for people: "CET 10 at 8 s".
        where: values that a run's configuration has. `trace` and `order` are those of the trace that it builds: a
            cascade of one state is the classical trace, and has no order.
    """

    name: str
    where: Mapping[str, Any]

    def selects(self, config: RunConfig) -> bool:
        """Return whether it selects runs of this configuration."""
        return all(_equal(_value(config, name), wanted) for name, wanted in self.where.items())


def with_trace(
    task: str, trace: str, order: int | None = None, delay: float = 0.0, name: str | None = None, **options: Any
) -> RunFilter:
    """Select the runs of a task with a trace.

    Args:
        task: name of a task, or Gymnasium id.
        trace: a kind that `cet-rl list traces` shows; "none" goes with no delay.
        order: number of states, for kinds that have a choice.
        delay: delay in seconds.
        name: name for people; None for trace, order and delay.
        options: further values of the configuration; delays are uniform unless these say `stacked`.
    """
    states = "" if order is None else f" {order}"
    default = f"{TRACE_NAMES[trace]}{states} at {delay:g} s" if delay else "no delay"
    where: dict[str, Any] = {"task": task, "trace": trace, "delay": delay, "stacked": False, **options}
    if order is not None:
        where["order"] = order
    return RunFilter(name or default, where)


def with_cascade(task: str, order: int, delay: float, **options: Any) -> RunFilter:
    """Select the runs of a task with the paper's trace of some order; order 1 is the classical trace."""
    return with_trace(task, "et" if order == 1 else "cet", None if order == 1 else order, delay, **options)


def with_rule(task: str, rule: str, **options: Any) -> RunFilter:
    """Select the runs of a sequence task with a learning rule and no delay."""
    return RunFilter(RULE_NAMES[rule], {"task": task, "rule": rule, "delay": 0.0, **options})


def _value(config: RunConfig, name: str) -> object:
    """Return an option, or kind and order of the trace that is built."""
    trace = config.trace_config
    if name == "trace":
        return "et" if trace.kind == "cet" and trace.states == 1 else trace.kind
    if name == "order":
        return trace.states
    return getattr(config, name, None)


def _equal(found: object, wanted: object) -> bool:
    if isinstance(found, float) and isinstance(wanted, (int, float)):
        return math.isclose(found, wanted, rel_tol=RELATIVE_TOLERANCE)
    return found == wanted


# -------------------- what is measured on a run

PARTS = 3
"""Thirds of a run: "early" is the first, "late" the last."""


def score(run: Run) -> float | None:
    """Return the number that reports compare arms on, in the unit that they show."""
    return presentation_of(run).score.value(run)


def over_training(run: Run) -> float | None:
    """Return the mean of the run's curve over training, in the unit that reports show: high for fast learners."""
    shows = presentation_of(run)
    steps, values = _column(run, shows.curve)
    if len(steps) < 2 or steps[-1] <= steps[0]:
        return None
    return shows.curve_factor * float(np.trapezoid(values, steps) / (steps[-1] - steps[0]))


def alignment(run: Run) -> float | None:
    """Return the mean cosine with the true gradient, over training and all layers with delayed credit."""
    return _mean([_aligned(run, layer) for layer in _delayed_layers(run)])


def early_alignment(run: Run) -> float | None:
    """Return `alignment` in the first third of the run."""
    return _mean([_aligned(run, layer, 1, 1) for layer in _delayed_layers(run)])


def late_alignment(run: Run) -> float | None:
    """Return `alignment` in the last third of the run."""
    return _mean([_aligned(run, layer, PARTS, PARTS) for layer in _delayed_layers(run)])


def alignment_gain(run: Run) -> float | None:
    """Return `late_alignment` minus `early_alignment`."""
    return _difference(late_alignment(run), early_alignment(run))


def last_delayed_alignment(run: Run) -> float | None:
    """Return `alignment` of the layer nearest the output among those with delayed credit."""
    layers = _delayed_layers(run)
    return _aligned(run, layers[-1]) if layers else None


def depth_loss(run: Run) -> float | None:
    """Return by how much the last delayed layer is aligned better than the first; None if there is only one."""
    layers = _delayed_layers(run)
    return _difference(last_delayed_alignment(run), _aligned(run, layers[0])) if len(layers) > 1 else None


def plausible(run: Run) -> float | None:
    """Return 1 if the audit finds the run's learning rule biologically plausible, else 0."""
    rule = getattr(run.config, "rule", None)
    return None if rule is None else float(_audited(rule))


@cache
def _audited(rule: str) -> bool:
    from cet_rl.recurrent.audit.audit import audit_rule  # takes seconds: only where a claim has its runs
    from cet_rl.recurrent.rules import find_rule

    return audit_rule(find_rule(rule).kind).plausible


def _delayed_layers(run: Run) -> list[int]:
    """Return the layers with delayed credit whose alignment is logged, input side first."""
    assert run.config is not None
    delays = run.config.timing.layer_delays
    return [layer for layer, delay in enumerate(delays) if delay and f"{ALIGNMENT}{layer}" in run.columns]


def _aligned(run: Run, layer: int, first: int = 1, last: int = PARTS) -> float | None:
    """Return the mean alignment of a layer from the run's `first` third to its `last`, both included."""
    steps, values = _column(run, f"{ALIGNMENT}{layer}")
    if not len(steps) or steps[-1] <= 0:
        return None
    third = np.ceil(steps * PARTS / run.columns[MetricsTable.STEP][-1]).clip(1, PARTS)
    inside = values[(third >= first) & (third <= last)]
    return float(inside.mean()) if len(inside) else None


def _column(run: Run, name: str) -> tuple[FloatArray, FloatArray]:
    """Return steps and values of a column where it has values."""
    if name not in run.columns or MetricsTable.STEP not in run.columns:
        return np.empty(0), np.empty(0)
    values = run.columns[name]
    logged = np.isfinite(values)
    return run.columns[MetricsTable.STEP][logged], values[logged]


def _mean(values: list[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return sum(found) / len(found) if found else None


def _difference(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second


TRAINING_RETURN = Measure("training return", score)
TEST_ACCURACY = Measure("test accuracy", score, digits=2, unit="%")
TEST_LOSS = Measure("test loss", score, digits=4, higher_is_better=False)
MEAN_ACCURACY = Measure("mean accuracy over training", over_training, digits=2, unit="%")
ALIGNED = Measure("alignment", alignment, digits=3)
ALIGNED_EARLY = Measure("alignment in the first third", early_alignment, digits=3)
ALIGNED_LATE = Measure("alignment in the last third", late_alignment, digits=3)
ALIGNED_MORE = Measure("alignment in the last third minus that in the first", alignment_gain, digits=3)
ALIGNED_LAST = Measure("alignment of the last delayed layer", last_delayed_alignment, digits=3)
DEPTH_LOSS = Measure("alignment of the last delayed layer minus that of the first", depth_loss, digits=3)
PLAUSIBLE = Measure("plausible by the audit", plausible, digits=0)
