"""Claims: each can come out either way on made-up runs of its own sweeps; what counts as a run; statistics."""

import csv
import dataclasses
import json
import re
import runpy
import shutil
from functools import cache, partial
from itertools import permutations, product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
import yaml
from scipy.optimize import linprog

from cet_rl.cli import main
from cet_rl.recurrent.audit.probes import Order
from cet_rl.recurrent.config import RecurrentConfig
from cet_rl.report.claims import CLAIMS, PaperClaim, exact, examine, examine_folders
from cet_rl.report.claims.judging import rows_of
from cet_rl.report.claims.model import ALPHA, MEASURES, Check, RunFilter
from cet_rl.report.reading import ALIGNMENT, Run
from cet_rl.report.statistics import DRAWS, contrast, holm, presentation, trend_test
from cet_rl.rl.config import RLConfig
from cet_rl.runs.config_files import package_configs
from cet_rl.runs.folder import MetricsTable
from cet_rl.runs.paper import paper_tables
from cet_rl.runs.task_kinds import task_kind_of
from cet_rl.sweeps.build import build, configuration
from cet_rl.sweeps.file import read_sweep
from cet_rl.vision.config import VisionConfig

BY_NAME = {claim.name: claim for claim in CLAIMS}
BY_RUNS = [claim.name for claim in CLAIMS if claim.checks]
EXACT = [claim.name for claim in CLAIMS if claim.exact]
AUDITED = {name for name in EXACT if BY_NAME[name].exact in ("failing", "memory")}
RATES = BY_NAME["mnist-orders"].free
ROWS = 9
"""Rows of a made-up metrics.csv: three in each third of the run."""
SPREAD = 1e-3
"""Difference between seeds of the first arm; those of the others differ more."""
ROOM = 0.1
"""Distance of made-up means from the ends of the values for which a claim is right."""

GAIN = "alignment in the last third minus that in the first"
LAST_LAYER = "alignment of the last delayed layer"
DEPTH = f"{LAST_LAYER} minus that of the first"
OVER_TRAINING = "mean accuracy over training"

# -------------------- made-up runs


@cache
def jobs(sweeps):
    return [configuration(job) for sweep in sweeps for job in build(read_sweep(sweep)).jobs]


def score_of(config):
    """Return the score that reports compare the runs of a configuration on."""
    return task_kind_of(config.task).scores[0].on(getattr(config, "held_out", ""))


def made_up(task_kind, config, wanted):
    """Return metrics and columns of a run whose measures, by title, are what is wanted."""
    shows, score = presentation(task_kind, getattr(config, "held_out", "")), score_of(config)
    titles = ("training return", "test accuracy", "test loss")
    metrics = {score.key: sum(wanted.get(title, 0.0) for title in titles) / (100 if score.percent else 1)}
    if wanted.keys() <= set(titles):
        return metrics, {}  # the summary has it
    curve = np.linspace(0.0, 90.0, ROWS) if (mean := wanted.get(OVER_TRAINING)) is None else np.full(ROWS, mean)
    steps = np.linspace(1, config.total_steps, ROWS).round()
    columns = {MetricsTable.STEP: steps, shows.curve: curve / shows.curve_factor}
    delayed = [layer for layer, delay in enumerate(config.timing.layer_delays) if delay]
    for place, layer in enumerate(delayed):
        last = wanted.get(f"{LAST_LAYER} at equal return", wanted.get(DEPTH)) if layer == delayed[-1] else None
        first = wanted.get("alignment of the first layer") if not place else None
        of_layer = [v for title, v in wanted.items() if title.startswith(f"alignment of layer {place} ")]
        of_all = [wanted.get(f"alignment{where}") for where in ("", " at equal accuracy", " at equal return")]
        (value, *_) = [v for v in (last, first, *of_layer, *of_all) if v is not None] or [0.0]
        columns[f"{ALIGNMENT}{layer}"] = np.full(ROWS, value)
        columns[f"{ALIGNMENT}{layer}"][-ROWS // 3 :] += wanted.get(GAIN, 0.0)
    return metrics, columns


def means_for(claim, against=()):
    """Return a mean for each measure and arm, for which all checks are so, but the opposite of those at places."""
    keys = list(dict.fromkeys((check.measure.title, arm.name) for check in claim.checks for arm in check.filters))
    rows, ends = [], []
    for number, check in enumerate(claim.checks):
        arms = [(check.measure.title, arm.name) for arm in check.filters]
        sums = [check.weights] if check.weights else np.diff(np.eye(len(arms)), axis=0)
        sign = 1 if check.above != (number in against) else -1
        for weights in sums:
            row = dict(zip(arms, weights, strict=True))
            rows.append([-sign * row.get(key, 0.0) for key in keys])
            ends.append(-sign * check.bound - ROOM)
    found = linprog(np.zeros(len(keys)), A_ub=rows, b_ub=ends, bounds=(-1000, 1000))
    assert found.success, "these checks contradict each other"
    return dict(zip(keys, found.x, strict=True))


def made_up_runs(claim, against=(), swapped=None):
    """Return runs of a claim's sweeps that make it so, but for some checks, or with two arms' data swapped."""
    means = means_for(claim, against)
    arms = {arm.name: arm for check in claim.checks for arm in check.filters}
    if swapped:
        other = dict(zip(swapped, reversed(swapped), strict=True))
        means = {(title, name): means[title, other.get(name, name)] for title, name in means}
    spread = {name: SPREAD * (1 + place / len(arms)) for place, name in enumerate(arms)}
    runs = []
    for number, (task_kind, config) in enumerate(jobs(claim.sweeps)):
        own = {(title, name): mean for (title, name), mean in means.items() if arms[name].selects(config)}
        if own and config.seed < 3:
            wanted = {title: mean + spread[name] * (config.seed - 1) for (title, name), mean in own.items()}
            metrics, columns = made_up(task_kind, config, wanted)
            path = Path("made", str(number))
            runs.append(Run(path, "finished", "", task_kind, config, metrics=metrics, columns=columns))
    return runs


def write(folder, run):
    folder.mkdir(parents=True)
    config = run.config
    (folder / "config.yaml").write_text(yaml.dump(config.as_data(), Dumper=yaml.CSafeDumper))
    summary = {"task": config.task, "seed": config.seed, "status": run.status, "steps": config.total_steps}
    (folder / "summary.json").write_text(json.dumps({**summary, "metrics": run.metrics}))
    if run.columns:
        with open(folder / "metrics.csv", "w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(run.columns)
            writer.writerows(zip(*run.columns.values(), strict=True))
    return folder


# -------------------- each claim, all ways


@pytest.mark.parametrize("name", ["retrograde-mnist-alignment", "spaceinvaders-sooner", "late-add-orders"])
def test_folders_of_runs_decide_a_claim_if_there_are_enough(name, tmp_path):
    claim = BY_NAME[name]
    folders = [write(tmp_path / str(number), run) for number, run in enumerate(made_up_runs(claim))]
    (found,) = examine_folders([tmp_path], [claim])
    assert found.verdict == "supported", found.numbers
    assert not found.lacking
    shutil.rmtree(folders[0])
    (found,) = examine_folders([tmp_path], [claim])
    assert found.verdict in ("undecided", "not run")
    assert f"cet-rl sweep {' or '.join(claim.sweeps)})" in found.numbers
    assert "needs 3 seeds of" in found.numbers
    assert "found 2" in found.numbers


@pytest.mark.parametrize("name", BY_RUNS)
def test_every_check_of_a_claim_can_support_and_refute_it_and_swapped_data_turn_it(name):
    claim = BY_NAME[name]
    (found,) = examine(made_up_runs(claim), [claim])
    assert found.verdict == "supported", found.numbers
    assert len(found.results) == len(claim.checks)
    for number in range(len(claim.checks)):
        (found,) = examine(made_up_runs(claim, (number,)), [claim])
        assert found.verdict == "contradicted", found.numbers
    for arms in [check.filters for check in claim.checks if check.weights in ((), (1, -1))][:1]:
        (found,) = examine(made_up_runs(claim, swapped=(arms[0].name, arms[-1].name)), [claim])
        assert found.verdict != "supported", found.numbers


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in AUDITED)) for n in EXACT])
def test_exact_claims_are_computed_from_the_code(name, monkeypatch):
    claim = BY_NAME[name]
    (found,) = examine([], [claim])
    assert (found.verdict, found.statistic, found.lacking) == ("supported", "exact", ())
    assert any(character.isdigit() for character in found.numbers) or claim.exact == "failing"


def test_exact_claims_can_fail(monkeypatch):
    for function, options in [
        ("narrowing", {"delay": 50, "orders": [10, 2]}),
        ("recent_weight", {"delay": 50, "order": 2}),
    ]:
        claim = PaperClaim("c", "Ours", "So.", exact=function, options=options)
        assert examine([], [claim])[0].verdict == "contradicted"
    monkeypatch.setitem(exact.TRACES, "CET", exact.Optimal)
    assert examine([], [BY_NAME["sharpness"]])[0].verdict == "contradicted"
    monkeypatch.setattr(exact, "ROUNDING", -1.0)
    for found in (exact.bounded([3], [10]), exact.unbiased(["uoro"], steps=2), exact.forgiving(3, 20, 0.0)):
        assert not found[0]
    verdicts = [SimpleNamespace(criterion=name, passes=name != "ii") for name in ("ii", "iv")]
    monkeypatch.setattr(exact, "_audit", lambda _: SimpleNamespace(verdicts=verdicts, memory=Order.parse("n²")))
    assert [exact.failing(rflo=named)[0] for named in (["ii"], ["iv"], [])] == [True, False, False]
    assert [exact.memory(rflo=degree)[0] for degree in (2, 3)] == [True, False]


def test_each_claim_is_complete_and_says_what_it_needs():
    assert len(BY_NAME) == len(CLAIMS)
    for claim in CLAIMS:
        arms = {arm.name: arm for check in claim.checks for arm in check.filters}
        assert all(arms[arm.name] == arm for check in claim.checks for arm in check.filters)
        assert claim.place.startswith(("CET paper, ", "Audit paper, ", "Ours"))
        assert claim.words.endswith(".")
        assert set(claim.sweeps) <= set(package_configs())
        assert bool(claim.checks) == bool(claim.sweeps)
        assert bool(claim.checks) + bool(claim.exact) == 1
    claims = [claim for claim in CLAIMS if not claim.exact]
    for claim, found in zip(claims, examine([], claims), strict=True):
        assert (found.verdict, found.seeds_shown) == ("not run", "–")
        if claim.checks:
            assert found.numbers.startswith("(needs 3 seeds of ")
            assert "found none" in found.numbers


def test_the_papers_claims_leave_free_what_its_tables_vary():
    varied = set()
    for rows in (table.rows for table in paper_tables()):
        names = {name for row in rows for name in row.values}
        varied |= {name for name in names if len({row.values.get(name) for row in rows}) > 1}
    assert set(RATES) == varied - {"delay", "order"}


# -------------------- what counts


def run_of(config, score, status="finished"):
    task_kind, metrics = task_kind_of(config.task), {score_of(config).key: score}
    return Run(
        Path("made", f"{config.label}-{config.seed}"), status, task_kind=task_kind, config=config, metrics=metrics
    )


def cartpole(order, seed, score, status="finished", **options):
    return run_of(RLConfig("CartPole-v1", delay=8.0, order=order, seed=seed, **options), score, status)


def seeds(order, scores, **options):
    return [cartpole(order, seed, score, **options) for seed, score in enumerate(scores)]


HIGH, LOW = (300, 310, 320), (200, 210, 220)
FIVE = RunFilter.of(task="CartPole-v1", order=5, delay=8.0)
ONE = RunFilter.of(task="CartPole-v1", order=1, delay=8.0)


def better(by=0.0, **options):
    """Claim that five states are better than one by more than `by`."""
    check = Check("five - one", (FIVE, ONE), MEASURES["training return"], (1.0, -1.0), by)
    return PaperClaim("c", "Ours", "Five states are better.", ("quick",), (check,), **options)


HIGHER, LOWER, FREE, LONG = seeds(5, HIGH), seeds(1, LOW), {"free": RATES}, {"total_steps": 2_000_000}
NOT_ENOUGH, NOT = "not run", "contradicted"


@pytest.mark.parametrize(
    ("options", "runs", "expected", "told"),
    [
        # chance would hardly bring it about, or the opposite, or neither is so
        ({}, [HIGHER, LOWER], "supported", "100.0 [77.3, 122.7], above 0: p = 0.00013"),
        ({}, [seeds(5, (200, 310, 320)), seeds(1, (210, 300, 220))], "undecided", ""),
        ({}, [seeds(5, LOW), seeds(1, HIGH)], NOT, "against it 0.00013"),
        ({"by": 60}, [HIGHER, LOWER], "supported", ""),
        ({"by": 90}, [HIGHER, LOWER], "undecided", ""),
        ({"by": 140}, [HIGHER, LOWER], NOT, ""),
        # only finished runs of three seeds count, with the measure
        *(
            ({}, [HIGHER, LOWER[:2], [cartpole(1, 2, 220, status)]], NOT_ENOUGH, "found 2")
            for status in ("interrupted", "failed", "unfinished", "waiting")
        ),
        ({}, [HIGHER, LOWER[:2], [cartpole(1, 1, 220)]], NOT_ENOUGH, "needs 3 seeds of ET at 8 s, found 2"),
        ({}, [HIGHER, LOWER, [cartpole(1, 3, 0, "failed")]], "supported", "1 run failed and left out"),
        (
            {},
            [HIGHER, LOWER[:2], [dataclasses.replace(LOWER[2], metrics={})]],
            NOT_ENOUGH,
            "ET at 8 s with training return, found 2",
        ),
        # runs of different settings never meet; that with most arms counts, then that of the largest budget
        *(
            ({}, [HIGHER, seeds(1, LOW, **option)], NOT_ENOUGH, "found")
            for option in ({"total_steps": 500_000}, {"n_steps": 64}, {"hidden": (64,)}, {"step_ms": 100.0})
        ),
        (
            {},
            [HIGHER, LOWER, seeds(5, HIGH, **LONG), seeds(1, (400, 410, 420), **LONG)],
            NOT,
            "2,000,000 steps, runs in made; corrected p = 0.00013; other settings with runs: 1,000,000 steps",
        ),
        ({}, [HIGHER, LOWER, seeds(5, (1, 2, 3), **LONG)], "supported", "1,000,000 steps"),
        # rates may differ where a claim leaves them free: those of the tables, else those with the most seeds
        ({}, [seeds(5, HIGH, lr=1e-3), seeds(1, LOW, lr=2e-3, decay=0.5)], NOT_ENOUGH, "found"),
        (FREE, [seeds(5, HIGH, lr=1e-3), seeds(1, LOW, lr=2e-3, decay=0.5)], "supported", ""),
        (FREE, [seeds(5, (*HIGH, 330)), seeds(5, (1, 2, 3), lr=2e-3), LOWER], "supported", ""),
        (FREE, [HIGHER, seeds(5, (1, 2, 3), lr=2e-3), LOWER], NOT_ENOUGH, "needs one setting of CET 5 at 8 s"),
        (FREE, [seeds(5, HIGH, lr=2.5e-4), seeds(5, (1, 2, 3, 4, 5)), LOWER], "supported", ""),
        (FREE, [seeds(5, HIGH[:2], lr=2.5e-4), seeds(5, (1, 2, 3, 4, 5)), LOWER], NOT, ""),
    ],
)
def test_what_counts_and_what_is_told(options, runs, expected, told):
    (found,) = examine([run for each in runs for run in each], [better(**options)])
    assert found.verdict == expected
    assert told in found.numbers


def test_seeds_that_draw_the_task_are_compared_pair_by_pair():
    losses = {"rflo": (0.10, 0.20, 0.302), "fixed-w": (0.12, 0.221, 0.32)}
    runs = [
        run_of(RecurrentConfig("mimic", rule=rule, seed=seed), loss)
        for rule, of_seed in losses.items()
        for seed, loss in enumerate(of_seed)
    ]
    arms = tuple(RunFilter.of(task="mimic", rule=rule) for rule in losses)
    check = Check("rflo - fixed-W", arms, MEASURES["test loss"], (1.0, -1.0), above=False)
    claim = PaperClaim("c", "Ours", "Lower.", ("quick",), (check,), ("rule_options",))
    paired = dataclasses.replace(claim, paired=True)
    for one, kept, expected in (
        (claim, runs, "undecided"),
        (paired, runs, "supported"),
        (paired, [*runs[2::-1], *runs[3:]], "supported"),  # in whatever order runs are read
        (paired, runs[1:], NOT_ENOUGH),
    ):
        assert examine(kept, [one])[0].verdict == expected


def test_the_checks_of_a_claim_share_its_level():
    one, two = better(125), better()
    both = dataclasses.replace(one, checks=one.checks + two.checks)
    found = [examine([*HIGHER, *LOWER], [claim])[0].verdict for claim in (one, both)]
    assert found == ["contradicted", "undecided"]


def test_the_number_of_claims_tested_is_corrected_for():
    claims = [dataclasses.replace(better(), name=str(number)) for number in range(60)]
    runs = [*seeds(5, (300, 315, 330)), *LOWER]
    assert {found.verdict for found in examine(runs, claims[:1])} == {"supported"}
    assert {found.verdict for found in examine(runs, claims)} == {"undecided"}
    assert holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])


def test_arms_select_by_the_trace_that_is_built_and_by_whether_delays_add_up():
    one, two = (RunFilter.of(task="digits", order=order, delay=2.0) for order in (1, 2))
    assert [one.name, two.name] == ["ET at 2 s", "CET 2 at 2 s"]
    for config, expected in [
        (VisionConfig("digits", delay=2.0, order=1), (True, False)),
        (VisionConfig("digits", delay=2.0, trace="et"), (True, False)),
        (VisionConfig("digits", delay=2.0, order=2), (False, True)),
        (VisionConfig("digits", delay=2.0, order=2, stacked=True), (False, False)),
        (VisionConfig("digits", delay=4.0, order=2), (False, False)),
    ]:
        assert (one.selects(config), two.selects(config)) == expected


# -------------------- statistics and measures

ARMS = tuple(RunFilter.of(task="digits", order=order, delay=2.0) for order in (1, 2, 6, 10))
ACCURACY = MEASURES["test accuracy"]
RISES, EVERY = Check("", ARMS, ACCURACY), Check("", ARMS, ACCURACY, every_step=True)


def test_contrasts_are_those_of_scipy():
    generator = np.random.default_rng(0)
    a, b, c = generator.normal(0, 1, 3), generator.normal(1, 3, 5), generator.normal(0, 1, 5)
    welch = partial(scipy.stats.ttest_ind, equal_var=False)
    for samples, test, paired in (((a, b), welch, False), ((b, c), scipy.stats.ttest_rel, True)):
        found = contrast(samples, (1, -1), paired=paired)
        interval = test(*samples).confidence_interval()
        expected = [test(*samples, alternative=side).pvalue for side in ("greater", "less")]
        assert [found.above, found.below, found.low, found.high] == pytest.approx([*expected, *interval])
    found, expected = contrast([b], (2,), 1.0), scipy.stats.ttest_1samp(2 * b, 1.0, alternative="greater").pvalue
    assert found.above == pytest.approx(expected)
    same = contrast([np.full(3, 500.0), np.full(3, 480.0)], (1, -1))  # no t: one of the twenty permutations
    assert (same.above, same.below, same.low, same.high) == (1 / 20, 1.0, 20.0, 20.0)
    same = contrast([np.array([1.5, 2.5, 3.5]), np.array([1.0, 2.0, 3.0])], (1, -1), paired=True)
    assert (same.above, same.below) == (1 / 8, 1.0)  # one of the eight choices of signs


@pytest.mark.parametrize("values", [(0, 3, 1, 5, 4, 6, 2), (0, 3, 3, 5, 4, 6, 6)], ids=["exact", "with ties"])
def test_order_is_tested_by_permutations(values):
    def excess(drawn):
        a, b, c = np.split(np.array(drawn), [2, 5])
        return sum(np.sign(np.subtract.outer(late, early)).sum() for early, late in ((a, b), (a, c), (b, c)))

    chance = np.array([excess(drawn) for drawn in permutations(values)])
    found = trend_test(np.split(np.array(values, float), [2, 5]))
    expected = [(chance >= excess(values)).mean(), (chance <= excess(values)).mean()]
    assert [found.rising, found.falling] == pytest.approx(expected, abs=0.0 if len({*values}) == 7 else 0.01)
    assert found.share == pytest.approx((1 + excess(values) / 16) / 2)
    assert trend_test([np.zeros(6), np.ones(6), np.full(6, 2.0)]) == (1.0, 1 / (DRAWS + 1), 1.0)  # never 0


@pytest.mark.parametrize(
    ("check", "means", "expected"),
    [
        *[(check, (88.0, 89.0, 90.0, 92.0), "supported") for check in (RISES, EVERY)],
        (RISES, (88.2, 90.0, 89.6, 92.3), "contradicted"),  # a slope would pass both
        (RISES, (0.3, 0.1, 0.5, 0.6), "contradicted"),
        (EVERY, (88.2, 90.0, 90.01, 92.3), "undecided"),
        (EVERY, (0.3, 0.1, 0.5, 0.6), "contradicted"),
        (RISES, (92.0, 90.0, 89.0, 88.0), "contradicted"),
        (RISES, (90.0, 90.04, 90.0, 90.04), "undecided"),
    ],
)
def test_one_step_back_is_not_a_rise(check, means, expected):
    result = check.evaluate([mean + np.array([-0.04, 0.0, 0.05]) * (1 + k / 9) for k, mean in enumerate(means)])
    if result.p_against <= ALPHA:
        assert expected == "contradicted"
    else:
        assert expected == ("supported" if result.p_for <= ALPHA else "undecided")


@pytest.mark.parametrize("count", [3, 5, 20])
def test_equal_arms_are_hardly_ever_told_apart(count):
    """The rates of false verdicts, nominally 2.5 % each, also where spreads differ or one seed in four fails."""
    generator, repeats = np.random.default_rng(count), 400
    spreads = {
        "equal": lambda arms: generator.normal(size=(arms, count)),
        "unequal": lambda arms: generator.normal(size=(arms, count)) * np.array([1, 4, 1, 0.5])[:arms, None],
        "failing": lambda arms: generator.normal(10.0 * (generator.random((arms, count)) > 0.25)),
    }
    checks = {"difference": Check("", ARMS[:2], ACCURACY, (1.0, -1.0)), "rises": RISES, "every step": EVERY}
    for (name, draw), (kind, check) in product(spreads.items(), checks.items()):
        results = [check.evaluate(list(draw(len(check.filters)))) for _ in range(repeats)]
        for side in ("p_for", "p_against"):
            rate = np.mean([getattr(result, side) <= ALPHA for result in results])
            assert rate <= 0.025 + 3.5 * (0.025 / repeats) ** 0.5, (name, kind, side, rate)


def test_alignment_is_compared_where_scores_are_equal():
    """Two runs whose alignment is the same function of accuracy, one of which learns twice as fast."""
    config = VisionConfig("digits", delay=2.0, order=2, hidden=(8, 8))
    steps = np.arange(1.0, 42.0)

    def run(speed, offset, seed):
        accuracy = np.minimum(steps * speed, 1.0)
        columns = {MetricsTable.STEP: steps, "test/accuracy": accuracy}
        columns |= {f"{ALIGNMENT}{layer}": 0.9 - 0.5 * accuracy + offset * layer for layer in range(3)}
        return dataclasses.replace(run_of(dataclasses.replace(config, seed=seed), 0.0), columns=columns)

    slow, fast = run(0.0125, 0.0, 0), run(0.025, 0.1, 1)
    over_time, at_equal = MEASURES["alignment"], MEASURES["alignment at equal accuracy"].among([slow, fast])
    assert over_time.value(fast) - over_time.value(slow) < 0.05
    assert at_equal(fast) - at_equal(slow) == pytest.approx(0.1, abs=0.02)
    third = MEASURES["alignment of layer 2 at equal accuracy"].among([slow, fast])
    assert third(fast) - third(slow) == pytest.approx(0.2, abs=0.02)
    assert MEASURES["alignment of layer 3 at equal accuracy"].among([slow, fast])(slow) is None
    apart = [run(0.001, 0.0, 0), dataclasses.replace(fast, columns={k: v[30:] for k, v in fast.columns.items()})]
    assert MEASURES["alignment at equal accuracy"].among(apart)(apart[0]) is None


def test_alignment_is_that_of_layers_that_wait():
    config = VisionConfig("digits", delay=2.0, order=2, stacked=True, batch_size=128, hidden=(8, 8))
    first = np.linspace(0.0, 0.8, 9)
    layers = {f"{ALIGNMENT}{layer}": values for layer, values in enumerate((first, np.full(9, 0.9), np.ones(9)))}
    columns = {MetricsTable.STEP: np.arange(1.0, 10.0), **layers}
    run = dataclasses.replace(run_of(config, 0.0), columns=columns)
    expected = {
        "alignment": (first.mean() + 0.9) / 2,
        GAIN: (first[6:].mean() - first[:3].mean()) / 2,
        "alignment of the first layer": first.mean(),
        DEPTH: 0.9 - first.mean(),
    }
    assert {title: MEASURES[title].value(run) for title in expected} == pytest.approx(expected)


def test_the_mean_over_training_is_weighed_by_steps():
    run = run_of(VisionConfig("digits", delay=2.0, order=2), 0.0)
    columns = {MetricsTable.STEP: np.array([0.0, 1.0, 10.0]), "test/accuracy": np.array([0.0, 1.0, 1.0])}
    run = dataclasses.replace(run, columns=columns)
    assert MEASURES["mean accuracy over training"].value(run) == pytest.approx(95.0)


def test_what_was_not_logged_is_none():
    run = run_of(VisionConfig("digits", delay=2.0, order=2), 0.0)
    for title in ("mean accuracy over training", "alignment", GAIN, DEPTH, "alignment at equal accuracy"):
        assert MEASURES[title].among([run])(run) is None


# -------------------- the command


def test_the_command_prints_every_claim_and_writes_them(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("failing", "memory"):  # the audit takes seconds
        monkeypatch.setitem(exact.EXACT, name, lambda **_: (False, "so"))
    for number, run in enumerate(made_up_runs(BY_NAME["late-add-orders"])):
        write(tmp_path / "runs" / str(number), run)

    assert main(["report", "--claims", str(tmp_path / "runs"), "--out", str(tmp_path / "new" / "out")]) == 0

    printed = capsys.readouterr().out
    page = (tmp_path / "new" / "out" / "claims.md").read_text(encoding="utf-8")
    assert "contradicted" in printed
    for name in BY_NAME:
        assert name in printed
        assert f"`{name}`" in page
    assert page.count("\n- `") == len(CLAIMS)
    before, _, after = page.partition("`late-add-orders`")
    assert "<summary>" not in before  # claims without runs come last
    assert "100,000 steps, runs in runs" in after.splitlines()[1]
    assert after.splitlines()[2] == "    - paired t, seeds 3 (0–2), sweep `late-add`"
    assert not (tmp_path / "runs" / "claims.md").exists()
    assert not (tmp_path / "new" / "out" / "report.html").exists()


def test_of_runs_that_are_alike_the_one_that_has_logged_most_counts():
    claim = BY_NAME["own-alignment"]
    runs = made_up_runs(claim)
    bare = [
        dataclasses.replace(run, columns={name: values * np.nan for name, values in run.columns.items()})
        for run in runs
    ]
    for given in ([*bare, *runs], [*runs, *bare]):
        assert examine(given, [claim])[0].verdict == "supported"


def test_the_pages_of_the_documentation_say_what_its_numbers_give():
    """If not, `python docs/claims.py` writes the page again; docs/results.md has the counts."""
    docs = Path(__file__).parents[1] / "docs"
    page, script = (docs / "claims.md").read_text(encoding="utf-8"), runpy.run_path(str(docs / "claims.py"))
    rows = examine(script["runs"](), [claim for claim in CLAIMS if claim.checks])
    for row in rows_of(rows):
        head = "<summary>" if row["verdict"] == "not run" else f"## {row['verdict'].capitalize()}"
        part = page.split(head)[1].split("## ")[0].partition(f"- `{row['claim']}` ")[2].split("\n- ")[0]
        assert all(row[name] in part for name in ("place", "statement", "numbers", "test"))
    assert page.count("\n- `") == len(CLAIMS)
    counts = re.search(r"(\d+ supported, .* not run)", page)[1]
    assert (
        f"Of {len(CLAIMS)} [claims](claims.md) of both papers and of ours: {counts}."
        in (docs / "results.md").read_text()
    )
