"""Measures of a run that claims compare."""

from __future__ import annotations

from functools import cache, partial

import numpy as np

from cet_rl.report.reading import ALIGNMENT, Run, logged
from cet_rl.report.statistics import Measure, presentation_of
from cet_rl.runs.folder import MetricsTable

PARTS = 3
"""Parts of a run: thirds."""

LAST = slice(-1, None)
"""The layer nearest the output among those with delayed credit."""


def score(run: Run) -> float | None:
    """Return the number that reports compare arms on, in the unit that they show."""
    return presentation_of(run).score.value(run)


def over_training(run: Run) -> float | None:
    """Return the mean of the run's curve over training, in the unit that reports show: high for fast learners."""
    shows = presentation_of(run)
    steps, values = logged(run.columns, MetricsTable.STEP, shows.curve)
    if len(steps) < 2 or steps[-1] <= steps[0]:
        return None
    return shows.curve_factor * float(np.trapezoid(values, steps) / (steps[-1] - steps[0]))


def alignment(run: Run, first: int = 1, last: int = PARTS, layers: slice = slice(None)) -> float | None:
    """Return the mean cosine with the true gradient, over layers and time.

    Args:
        run: run that has logged alignment.
        first: first third of the run that counts, from 1.
        last: last one.
        layers: which of the layers with delayed credit count, input side first.
    """
    found = []
    for layer in _delayed_layers(run)[layers]:
        steps, values = logged(run.columns, MetricsTable.STEP, f"{ALIGNMENT}{layer}")
        third = np.ceil(steps * PARTS / max(run.columns[MetricsTable.STEP][-1], 1)).clip(1, PARTS)
        inside = values[(third >= first) & (third <= last)]
        found += [float(inside.mean())] if len(inside) else []
    return sum(found) / len(found) if found else None


def alignment_gain(run: Run) -> float | None:
    """Return `alignment` in the last third of the run minus that in the first."""
    return _difference(alignment(run, first=PARTS), alignment(run, last=1))


def depth_loss(run: Run) -> float | None:
    """Return by how much the last delayed layer is aligned better than the first; None if there is only one."""
    if len(_delayed_layers(run)) < 2:
        return None
    return _difference(alignment(run, layers=LAST), alignment(run, layers=slice(1)))


def plausible(run: Run) -> float | None:
    """Return 1 if the audit finds the run's learning rule biologically plausible, else 0."""
    rule = getattr(run.config, "rule", None)
    return None if rule is None else float(_audited(rule))


@cache
def _audited(rule: str) -> bool:
    from cet_rl.recurrent.audit import audit_rule  # takes seconds: only where a claim has its runs
    from cet_rl.recurrent.rules import find_rule

    return audit_rule(find_rule(rule).kind).plausible


def _delayed_layers(run: Run) -> list[int]:
    """Return the layers with delayed credit whose alignment is logged, input side first."""
    assert run.config is not None
    delays = run.config.timing.layer_delays
    return [layer for layer, delay in enumerate(delays) if delay and f"{ALIGNMENT}{layer}" in run.columns]


def _difference(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second


MEASURES = {
    measure.title: measure
    for measure in (
        Measure("training return", score),
        Measure("test accuracy", score, digits=2, unit="%"),
        Measure("test loss", score, digits=4, higher_is_better=False),
        Measure("mean accuracy over training", over_training, digits=2, unit="%"),
        Measure("alignment", alignment, digits=3),
        Measure("alignment in the first third", partial(alignment, last=1), digits=3),
        Measure("alignment in the last third", partial(alignment, first=PARTS), digits=3),
        Measure("alignment in the last third minus that in the first", alignment_gain, digits=3),
        Measure("alignment of the last delayed layer", partial(alignment, layers=LAST), digits=3),
        Measure("alignment of the last delayed layer minus that of the first", depth_loss, digits=3),
        Measure("plausible by the audit", plausible, digits=0),
    )
}
"""The measures by title."""
