"""Claims, what they measure on each run, the arms they compare, and their checks.

A check is a statistic of the arms' means, and where it has to lie. It passes if the whole 95 % bootstrap interval
lies there, over at least three seeds an arm. Seeds are drawn within each arm: independently, or together where the
seed draws the task as well and runs are compared seed by seed. With three seeds such an interval is narrow: it
says what these runs show, and more seeds say more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib import resources
from itertools import product
from typing import Any

import numpy as np

from cet_rl.report.reading import ALIGNMENT, FloatArray, Run, logged
from cet_rl.report.statistics import Measure, bootstrap_interval, presentation_of
from cet_rl.report.text import number
from cet_rl.runs.config import RunConfig
from cet_rl.runs.config_files import load_yaml
from cet_rl.runs.folder import MetricsTable
from cet_rl.traces.registry import find_trace
from cet_rl.traces.timing import RELATIVE_TOLERANCE

# -------------------- measures

PARTS = 3  # parts of a run: thirds
LAST = slice(-1, None)  # the layer nearest the output among those with delayed credit


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


# -------------------- arms and checks

TRACE_NAMES = {"cet": "CET", "sharp": "SharpCET", "legendre": "Legendre", "et": "ET", "perfect": "perfect memory"}
"""Names of traces for people; others are named as in a configuration."""

RULE_NAMES = {"fixed-w": "fixed-W", "dni-b": "DNI(b)", "kernl": "KeRNL"}
"""Names of learning rules for people; others are in capitals."""


@dataclass(frozen=True)
class RunFilter:
    """Select the runs of one arm at one delay by values of their configurations.

    `trace` and `order` are those of the trace that a configuration builds: a cascade of one state is the classical
    trace, and has no order.
    """

    name: str  # for people: "CET 10 at 8 s"
    where: Mapping[str, Any]  # the values

    @classmethod
    def of(cls, **options: Any) -> RunFilter:
        """Select by options of a configuration, the delay uniform and the trace a cascade unless these say more.

        Without `delay` there is none, and no trace; `name` replaces the usual name.
        """
        where = {"trace": "cet", "delay": 0.0, "stacked": False, **options}
        name = where.pop("name", None)
        if not where["delay"]:
            where["trace"] = "none"
        elif where["trace"] == "cet" and where.get("order") == 1:
            where["trace"] = "et"
        if not find_trace(where["trace"]).takes_order:
            where.pop("order", None)
        if where["delay"]:
            order = f" {where['order']}" if "order" in where else ""
            usual = f"{TRACE_NAMES.get(where['trace'], where['trace'])}{order} at {where['delay']:g} s"
        else:
            usual = RULE_NAMES.get(where["rule"], where["rule"].upper()) if "rule" in where else "no delay"
        return cls(name or usual, {key: tuple(v) if isinstance(v, list) else v for key, v in where.items()})

    def selects(self, config: RunConfig) -> bool:
        """Return whether it selects runs of this configuration."""
        return all(_equal(_value(config, name), wanted) for name, wanted in self.where.items())


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


@dataclass(frozen=True)
class Check:
    """Compare arms by a weighted sum of their means over seeds."""

    words: str  # what the sum is: "CET 10 at 8 s - ET at 8 s"
    filters: tuple[RunFilter, ...]  # of the arms' runs
    measure: Measure
    weights: tuple[float, ...]  # of the arms' means
    above: float = -math.inf  # what the sum has to be above, and below
    below: float = math.inf

    @classmethod
    def mean(cls, arm: RunFilter, measure: Measure, **bounds: float) -> Check:
        """Check the mean of an arm."""
        return cls(arm.name, (arm,), measure, (1.0,), **bounds)

    @classmethod
    def difference(
        cls, first: RunFilter, second: RunFilter, measure: Measure, share: float = 1.0, **bounds: float
    ) -> Check:
        """Check the mean of the first arm minus a share of that of the second."""
        words = f"{first.name} - {'' if share == 1 else f'{share:g} × '}{second.name}"
        return cls(words, (first, second), measure, (1.0, -share), **bounds)

    @classmethod
    def slope(cls, arms: Sequence[RunFilter], measure: Measure, **bounds: float) -> Check:
        """Check the change from arm to arm: the slope of the least-squares line through their means."""
        words = f"{measure.title}, change per step from {arms[0].name} to {arms[-1].name}"
        places = np.arange(len(arms)) - (len(arms) - 1) / 2
        return cls(words, tuple(arms), measure, tuple(places / (places**2).sum()), **bounds)

    @property
    def bound(self) -> str:
        """Return where the sum has to lie: "above 0"."""
        ends = {"above": self.above, "below": self.below}
        return " and ".join(
            f"{word} {number(end, 0) if end == int(end) else f'{end:g}'}"
            for word, end in ends.items()
            if math.isfinite(end)
        )

    def evaluate(self, samples: Sequence[FloatArray], *, paired: bool = False) -> CheckResult:
        """Evaluate the check on a value for each seed, of shape (seeds,), for each arm.

        If paired, equal places are equal seeds, which are drawn together.
        """

        def weighted(drawn: Sequence[FloatArray]) -> FloatArray:
            means = np.stack([values.mean(-1) for values in drawn], axis=-1)
            found: FloatArray = (means * self.weights).sum(-1)
            return found

        low, high = bootstrap_interval(samples, weighted, paired=paired)
        return CheckResult(self, tuple(samples), float(weighted(samples)), low, high)


@dataclass(frozen=True)
class CheckResult:
    """Hold the result of a check: values of each arm, of shape (seeds,), the weighted sum, and its interval."""

    check: Check
    samples: tuple[FloatArray, ...]
    centre: float
    low: float
    high: float

    @property
    def passed(self) -> bool:
        """True if the whole interval lies where the claim says."""
        return self.low > self.check.above and self.high < self.check.below

    def __str__(self) -> str:
        """Return the numbers: "CET 10 at 8 s - ET at 8 s: 4.20 % [3.90, 4.60], above 0: yes"."""
        low, high = map(self.check.measure.show, (self.low, self.high))
        answer = "yes" if self.passed else "no"
        return f"{self.check.words}: {self._with_unit(self.centre)} [{low}, {high}], {self.check.bound}: {answer}"

    def means(self) -> dict[str, str]:
        """Return the mean of each arm, as text, by the arm's name."""
        arms = zip(self.check.filters, self.samples, strict=True)
        return {arm.name: self._with_unit(float(values.mean())) for arm, values in arms}

    def _with_unit(self, value: float) -> str:
        measure = self.check.measure
        return f"{measure.show(value)} {measure.unit}".rstrip()


@dataclass(frozen=True)
class PaperClaim:
    """Hold a claim: what a paper, or this project, says comes out.

    Runs of different arms may differ in options of the checks' filters and in those that are `free`; in all others
    they have to agree.
    """

    name: str  # short and unique
    place: str  # where it is said: "CET paper, Fig. 3"
    words: str  # what is said, with the margins by which it is judged
    config: str  # name of the sweep that tests it
    checks: tuple[Check, ...]  # all have to pass
    free: tuple[str, ...] = ()
    paired: bool = False  # compare seed by seed, because the seed draws the task as well as the network


def _claims() -> Iterator[PaperClaim]:
    """Read claims.yaml, which explains its form."""
    text = (resources.files("cet_rl") / "report" / "claims" / "claims.yaml").read_text(encoding="utf-8")
    for source, group in load_yaml(text).items():
        for name, entry in group["claims"].items():
            yield PaperClaim(
                name=name,
                place=", ".join([source, *([entry["place"]] if "place" in entry else [])]),
                words=entry["words"],
                config=entry["config"],
                checks=tuple(_checks(entry)),
                free=tuple(entry.get("free", group.get("free", ()))),
                paired=entry.get("paired", False),
            )


def _checks(entry: Mapping[str, Any]) -> Iterator[Check]:
    """Return the checks of a claim's entry."""
    for form in entry["checks"]:
        each = form.get("each", {})
        for values in product(*each.values()):
            runs = {"measure": entry.get("measure"), **entry["runs"], **dict(zip(each, values, strict=True))}
            measure = MEASURES[runs.pop("measure")]
            rest = {name: float(form[name]) for name in ("above", "below", "share") if name in form}
            if "mean" in form:
                yield Check.mean(RunFilter.of(**{**runs, **form["mean"]}), measure, **rest)
            elif "difference" in form:
                first, second = (RunFilter.of(**{**runs, **arm}) for arm in form["difference"])
                yield Check.difference(first, second, measure, **rest)
            else:
                ((option, steps),) = form["slope"].items()
                arms = [RunFilter.of(**{**runs, option: value}) for value in steps]
                yield Check.slope(arms, measure, **rest)


CLAIMS = tuple(_claims())
"""All claims, in the order in which they are reported."""
