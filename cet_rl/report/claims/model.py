"""Define claims: the measures on runs, the arms that are compared, and the checks.

A check compares a weighted sum of the arms' means with a bound, or tests whether the arms rise or fall. It gives
p-values for the claim and its opposite, which `judging` corrects: its `METHOD` names the tests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import resources
from itertools import pairwise, product
from typing import Any

import numpy as np

from cet_rl.report.names import rule_name
from cet_rl.report.reading import ALIGNMENT, Run, logged
from cet_rl.report.statistics import LEVEL, Contrast, Measure, Trend, contrast, presentation_of, trend_test
from cet_rl.report.text import number
from cet_rl.runs.config import RunConfig
from cet_rl.runs.config_files import load_yaml
from cet_rl.runs.folder import MetricsTable
from cet_rl.traces.base import FloatArray
from cet_rl.traces.registry import find_trace
from cet_rl.traces.timing import RELATIVE_TOLERANCE

ALPHA = (1 - LEVEL) / 2  # greatest probability of a false "supported", and of a false "contradicted"
PARTS = 3  # parts of a run: thirds
LAST = slice(-1, None)  # of the layers with delayed credit: the one nearest the output
MOST_LAYERS = 5  # most layers with delayed credit in the papers' networks
LEAST_ARMS = 3  # fewest arms in order
BINS = 10  # of the scores at which alignment is compared


def score(run: Run) -> float | None:
    """Return the score that reports compare arms on, in their unit."""
    return presentation_of(run).score.value(run)


def over_training(run: Run) -> float | None:
    """Return the mean of the learning curve over training, in the unit of reports: high for fast learners."""
    shows = presentation_of(run)
    steps, values = logged(run.columns, MetricsTable.STEP, shows.curve)
    if len(steps) < 2 or steps[-1] <= steps[0]:
        return None
    return shows.curve_factor * float(np.trapezoid(values, steps) / (steps[-1] - steps[0]))


def alignment(run: Run, part: int | None = None, layers: slice = slice(None)) -> float | None:
    """Return the mean alignment over steps and layers.

    `part` is the third of the run, 1 to 3, or None for all steps. `layers` selects among the layers with delayed
    credit, input side first.
    """
    found = []
    for layer in _delayed_layers(run)[layers]:
        steps, values = logged(run.columns, MetricsTable.STEP, f"{ALIGNMENT}{layer}")
        third = np.ceil(steps * PARTS / max(run.columns[MetricsTable.STEP][-1], 1)).clip(1, PARTS)
        inside = values if part is None else values[third == part]
        found += [float(inside.mean())] if len(inside) else []
    return sum(found) / len(found) if found else None


def alignment_gain(run: Run) -> float | None:
    """Return `alignment` in the last third of the run minus that in the first."""
    first, last = alignment(run, 1), alignment(run, PARTS)
    return None if first is None or last is None else last - first


def depth_loss(run: Run) -> float | None:
    """Return the alignment of the last delayed layer minus that of the first; None with fewer than two."""
    first, last = (alignment(run, layers=part) for part in (slice(1), LAST))
    return None if len(_delayed_layers(run)) < 2 or first is None or last is None else last - first


def _delayed_layers(run: Run) -> list[int]:
    """Return the layers with delayed credit whose alignment is logged, input side first."""
    assert run.config is not None
    delays = run.config.timing.layer_delays
    return [layer for layer, delay in enumerate(delays) if delay and f"{ALIGNMENT}{layer}" in run.columns]


@dataclass(frozen=True)
class AtEqualScore(Measure):
    """Measure alignment at equal scores of all compared runs, as the paper does (Figs. 5, 7 to 10).

    The range of scores that all runs pass through is cut into `BINS` equal parts. A run's value is the mean of its
    alignment over layers and over those parts in which all runs have logged alignment.
    """

    layer: int | None = None  # index among those with delayed credit, input side first, -1 the last; None for all

    def among(self, runs: Sequence[Run]) -> Callable[[Run], float | None]:
        """Return the function that measures each of these runs."""
        curves = {id(run): curve for run in runs if (curve := self._curve(run)) is not None}
        low = max((scores.min() for scores, _ in curves.values()), default=math.inf)
        high = min((scores.max() for scores, _ in curves.values()), default=-math.inf)
        if not low < high:
            return lambda run: None
        edges = np.linspace(low, high, BINS + 1)
        edges[-1] = np.nextafter(high, math.inf)
        found = {}
        for name, (scores, values) in curves.items():
            parts = np.digitize(scores, edges)
            found[name] = {part: float(values[parts == part].mean()) for part in {*parts} - {0, BINS + 1}}
        shared = set.intersection(*map(set, found.values()))
        means = {name: float(np.mean([of[part] for part in shared])) for name, of in found.items() if shared}
        return lambda run: means.get(id(run))

    def _curve(self, run: Run) -> tuple[FloatArray, FloatArray] | None:
        """Return scores and alignment (mean over layers) at the steps that have both; None without any."""
        layers = _delayed_layers(run)
        layers = layers if self.layer is None else layers[self.layer :][:1]
        if not layers:
            return None
        aligned = np.mean([run.columns[f"{ALIGNMENT}{layer}"] for layer in layers], axis=0)
        scores, values = logged({**run.columns, ALIGNMENT: aligned}, presentation_of(run).curve, ALIGNMENT)
        return (scores, values) if len(scores) else None


def _measures() -> Iterator[Measure]:
    yield Measure("training return", score)
    yield Measure("test accuracy", score, digits=2, unit="%")
    yield Measure("test loss", score, digits=4, higher_is_better=False)
    yield Measure("mean accuracy over training", over_training, digits=2, unit="%")
    yield Measure("alignment", alignment, digits=3)
    yield Measure("alignment in the last third minus that in the first", alignment_gain, digits=3)
    yield Measure("alignment of the last delayed layer minus that of the first", depth_loss, digits=3)
    yield Measure("alignment of the first layer", partial(alignment, layers=slice(1)), digits=3)
    for word in ("accuracy", "return"):
        yield AtEqualScore(f"alignment at equal {word}", score, digits=3)
        yield AtEqualScore(f"alignment of the last delayed layer at equal {word}", score, digits=3, layer=-1)
        for place in range(MOST_LAYERS):
            yield AtEqualScore(f"alignment of layer {place} at equal {word}", score, digits=3, layer=place)


MEASURES = {measure.title: measure for measure in _measures()}
"""The measures by title."""


# -------------------- arms and checks


@dataclass(frozen=True)
class RunFilter:
    """Select the runs of one arm at one delay by options of their configurations.

    `trace` and `order` are those of the trace that a configuration builds: a cascade of one state is the classical
    trace, and has no order.
    """

    name: str  # shown: "CET 10 at 8 s"
    where: Mapping[str, Any]  # the options

    @classmethod
    def of(cls, **options: Any) -> RunFilter:
        """Return the filter for options of a configuration.

        By default the trace is a cascade, the delay is uniform, and without `delay` there is neither delay nor
        trace. Two further options: `name` replaces the usual name, and `of_task` adds the task to that.
        """
        where = {"trace": "cet", "delay": 0.0, "stacked": False, **options}
        name, of_task = where.pop("name", None), where.pop("of_task", False)
        if not where["delay"]:
            where["trace"] = "none"
        elif where["trace"] == "cet" and where.get("order") == 1:
            where["trace"] = "et"
        if "order" not in find_trace(where["trace"]).options:
            where.pop("order", None)
        if where["delay"]:
            order = f" {where['order']}" if "order" in where else ""
            usual = f"{find_trace(where['trace']).title or where['trace']}{order} at {where['delay']:g} s"
        else:
            usual = rule_name(where["rule"]) if "rule" in where else "no delay"
        usual += f" on {where['task']}" if of_task else ""
        return cls(name or usual, {key: tuple(v) if isinstance(v, list) else v for key, v in where.items()})

    def selects(self, config: RunConfig) -> bool:
        """Return whether runs of a configuration are selected."""
        return all(_equal(_value(config, name), wanted) for name, wanted in self.where.items())


def _value(config: RunConfig, name: str) -> object:
    """Return an option; for "trace" and "order" those of the trace that is built."""
    trace = config.trace_config
    if name == "trace":
        return "et" if trace.kind == "cet" and trace.order_or_default == 1 else trace.kind
    if name == "order":
        return trace.order_or_default
    return getattr(config, name, None)


def _equal(found: object, wanted: object) -> bool:
    if isinstance(found, float) and isinstance(wanted, (int, float)):
        return math.isclose(found, wanted, rel_tol=RELATIVE_TOLERANCE)
    return found == wanted


@dataclass(frozen=True)
class Check:
    """Compare arms by a weighted sum of their means over seeds, or by their order."""

    words: str  # what is compared: "CET 10 at 8 s - ET at 8 s"
    filters: tuple[RunFilter, ...]  # one for each arm
    measure: Measure
    weights: tuple[float, ...] = ()  # of the arms' means; none to test the order of the arms
    bound: float = 0.0  # what the sum is compared with
    above: bool = True  # whether the sum must lie above the bound, or arms must rise; else below, or fall
    every_step: bool = False  # whether arms must rise or fall in every step, not only on the whole

    @property
    def uses_means(self) -> bool:
        """Tell whether means are compared, and not the order of all values."""
        return bool(self.weights) or self.every_step

    def among(self, there: Collection[str]) -> Check:
        """Return the check without the arms that have no runs, if it allows that, or else unchanged.

        Only a check of the order on the whole allows it, if the first, the last and one more arm have runs.
        """
        kept = tuple(arm for arm in self.filters if arm.name in there)
        enough = len(kept) >= LEAST_ARMS and (kept[0], kept[-1]) == (self.filters[0], self.filters[-1])
        return self if self.uses_means or not enough else replace(self, filters=kept)

    @property
    def claimed(self) -> str:
        """Return the condition as text: "above 0", "rises in every step"."""
        if not self.weights:
            where = "in every step" if self.every_step else "on the whole"
            return f"{'rises' if self.above else 'falls'} {where}"
        shown = number(self.bound, 0) if self.bound == int(self.bound) else f"{self.bound:g}"
        return f"{'above' if self.above else 'below'} {shown}"

    def evaluate(self, samples: Sequence[FloatArray], *, paired: bool = False) -> CheckResult:
        """Evaluate the check on a sample of shape (seeds,) for each arm; if paired, equal indices are one seed."""
        if self.weights:
            found = contrast(samples, self.weights, self.bound, paired=paired)
            return CheckResult(self, tuple(samples), found, *self._sided(found.above, found.below))
        steps = tuple(contrast([late, early], [1, -1], paired=paired) for early, late in pairwise(samples))
        forward, backward = zip(*(self._sided(step.above, step.below) for step in steps), strict=True)
        p_for, p_against, trend = max(forward), len(steps) * min(backward), None
        if not self.every_step:
            trend = trend_test(samples)
            onward, back = self._sided(trend.rising, trend.falling)
            # One opposite step is enough to contradict the trend; even if uncorrected, it rules out support.
            p_for, p_against = onward if min(backward) > ALPHA else 1.0, 2 * min(back, p_against)
        ends = contrast([samples[-1], samples[0]], [1, -1], paired=paired)
        return CheckResult(self, tuple(samples), ends, p_for, min(1.0, p_against), steps, trend)

    def _sided(self, above: float, below: float) -> tuple[float, float]:
        return (above, below) if self.above else (below, above)


@dataclass(frozen=True)
class CheckResult:
    """Hold the result of a check."""

    check: Check
    samples: tuple[FloatArray, ...]  # values of each arm, of shape (seeds,)
    effect: Contrast  # the weighted sum, or the last arm minus the first
    p_for: float  # p-value for the claim: small if chance alone would hardly produce what it says
    p_against: float  # p-value for its opposite
    steps: tuple[Contrast, ...] = ()  # from arm to arm, if their trend is tested
    trend: Trend | None = None  # if it is tested on the whole

    def __str__(self) -> str:
        """Return the numbers: "CET 10 at 8 s - ET at 8 s: 4.20 % [3.90, 4.60], above 0: p = 0.0021"."""
        check, show = self.check, self.check.measure.show
        size = f"{self._with_unit(self.effect.centre)} [{show(self.effect.low)}, {show(self.effect.high)}]"
        if self.steps:
            size = f"last minus first {size}, steps {', '.join(show(step.centre) for step in self.steps)}"
        if self.trend is not None:
            size += f", {self.trend.share:.0%} of pairs rise"
        p_values = f"p = {self.p_for:.2g}, against it {self.p_against:.2g}"
        return f"{check.words}: {size}, {check.claimed}: {p_values}"

    def means(self) -> dict[str, str]:
        """Return the mean of each arm, as text, by the arm's name."""
        arms = zip(self.check.filters, self.samples, strict=True)
        return {arm.name: self._with_unit(float(values.mean())) for arm, values in arms}

    def _with_unit(self, value: float) -> str:
        measure = self.check.measure
        return f"{measure.show(value)} {measure.unit}".rstrip()


@dataclass(frozen=True)
class PaperClaim:
    """Hold a claim of a paper or of this project."""

    name: str  # short and unique
    place: str  # its source: "CET paper, Fig. 3"
    words: str  # the claim, with the margins by which it is judged
    sweeps: tuple[str, ...] = ()  # names of the sweeps that test it; none for a claim that needs no runs
    checks: tuple[Check, ...] = ()  # all must hold
    free: tuple[str, ...] = ()  # options in which runs may differ, besides those of the checks' filters
    paired: bool = False  # compare seed by seed, because the seed draws the task as well as the network
    exact: str = ""  # name of the function that decides it from the code alone
    options: Mapping[str, Any] = field(default_factory=dict)  # of that function


def _claims() -> Iterator[PaperClaim]:
    """Yield the claims in claims.yaml, which explains its own format."""
    text = (resources.files("cet_rl") / "report" / "claims" / "claims.yaml").read_text(encoding="utf-8")
    for source, group in load_yaml(text).items():
        for name, entry in group["claims"].items():
            place = ", ".join([source, *([entry["place"]] if "place" in entry else [])])
            free, sweeps = tuple(entry.get("free", group.get("free", ()))), tuple(entry.get("sweep", "").split())
            given = {key: entry[key] for key in ("paired", "exact", "options") if key in entry}
            yield PaperClaim(name, place, entry["words"], sweeps, tuple(_checks(entry)), free, **given)


def _checks(entry: Mapping[str, Any]) -> Iterator[Check]:
    """Yield the checks of a claim's entry in claims.yaml."""
    for form in entry.get("checks", ()):
        each = form.get("each", {})
        for values in product(*each.values()):
            runs = {"measure": entry.get("measure"), **entry["runs"], **dict(zip(each, values, strict=True))}
            runs["of_task"] = "task" not in entry["runs"]
            yield _check(form, runs, MEASURES[runs.pop("measure")])


def _check(form: Mapping[str, Any], runs: Mapping[str, Any], measure: Measure) -> Check:
    """Return one check, of arms whose common options are `runs`."""
    for direction in ("rises", "falls"):
        if direction in form:
            ((option, values),) = form[direction].items()
            arms = tuple(RunFilter.of(**{**runs, option: value}) for value in values)
            words = f"{measure.title} from {arms[0].name} to {arms[-1].name}"
            every = form.get("every_step", False)
            return Check(words, arms, measure, above=direction == "rises", every_step=every)
    if "difference" in form:
        first, second = form["difference"]
        terms = [[1, first], [-form.get("share", 1), second]]
    else:
        terms = form["sum"] if "sum" in form else [[1, form["mean"]]]
    weights, arms = zip(*((float(weight), RunFilter.of(**{**runs, **arm})) for weight, arm in terms), strict=True)
    words = arms[0].name + "".join(
        f" {'-' if w < 0 else '+'} {'' if abs(w) == 1 else f'{abs(w):g} × '}{arm.name}"
        for w, arm in zip(weights[1:], arms[1:], strict=True)
    )
    above = "above" in form
    return Check(words, arms, measure, weights, float(form["above" if above else "below"]), above)


CLAIMS = tuple(_claims())
"""All claims, in the order of reports."""
