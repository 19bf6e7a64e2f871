"""Claims: each can come out all three ways on made-up runs of its own configuration, and what counts as a run."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from functools import cache

import numpy as np
import pytest
import yaml
from scipy.optimize import linprog

from cet_rl.cli import main
from cet_rl.recurrent.config import RecurrentConfig
from cet_rl.report.claims import CLAIMS, PaperClaim, examine, examine_folders, model
from cet_rl.report.claims.model import MEASURES, Check, RunFilter
from cet_rl.report.reading import ALIGNMENT, Run
from cet_rl.report.statistics import presentation
from cet_rl.rl.config import RLConfig
from cet_rl.runs.config_files import package_configs
from cet_rl.runs.folder import MetricsTable
from cet_rl.runs.paper import paper_tables
from cet_rl.runs.task_kinds import task_kind_of
from cet_rl.sweeps.build import build, configuration
from cet_rl.sweeps.file import read_sweep
from cet_rl.vision.config import VisionConfig

BY_NAME = {claim.name: claim for claim in CLAIMS}
RATES = BY_NAME["mnist-orders"].free
ROWS = 9
"""Rows of a made-up metrics.csv: three in each third of the run."""
SPREAD = 1e-3
"""Difference between seeds."""
ROOM = 0.05
"""Distance of made-up means from the ends of the values for which a claim is right."""

EARLY, LATE = "alignment in the first third", "alignment in the last third"
GAIN = f"{LATE} minus that in the first"
LAST_LAYER = "alignment of the last delayed layer"
DEPTH = f"{LAST_LAYER} minus that of the first"

# -------------------- made-up runs


@cache
def jobs(config):
    return [configuration(job) for job in build(read_sweep(config)).jobs]


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
    steps = np.linspace(1, config.total_steps, ROWS).round()
    curve = np.full(ROWS, wanted.get("mean accuracy over training", 0.0) / shows.curve_factor)
    columns = {MetricsTable.STEP: steps, shows.curve: curve}
    delayed = [layer for layer, delay in enumerate(config.timing.layer_delays) if delay]
    for layer in delayed:
        values = np.full(ROWS, wanted.get("alignment", 0.0))
        values[: ROWS // 3] = wanted.get(EARLY, values[0])
        values[-ROWS // 3 :] = wanted.get(LATE, wanted.get(GAIN, values[-1]))
        if layer == delayed[-1]:
            values[:] = wanted.get(LAST_LAYER, wanted.get(DEPTH, values))
        columns[f"{ALIGNMENT}{layer}"] = values
    return metrics, columns


def means_for(claim, against=()):
    """Return a mean for each measure and arm for which all checks pass but those at some places, which fail."""
    keys = list(dict.fromkeys((check.measure.title, arm.name) for check in claim.checks for arm in check.filters))
    rows, ends = [], []
    for number, check in enumerate(claim.checks):
        low, high = check.above, check.below
        if number in against:  # on the far side of the end that there is
            low, high = (high, np.inf) if np.isfinite(high) else (-np.inf, low)
        weights = dict(zip(((check.measure.title, arm.name) for arm in check.filters), check.weights, strict=True))
        for sign, end in ((-1, -low), (1, high)):
            if np.isfinite(end):
                rows.append([sign * weights.get(key, 0.0) for key in keys])
                ends.append(end - ROOM)
    found = linprog(np.zeros(len(keys)), A_ub=rows, b_ub=ends, bounds=(-1000, 1000))
    assert found.success, "these checks contradict each other"
    return dict(zip(keys, found.x, strict=True))


@pytest.fixture
def made_up_runs(monkeypatch):
    """Return a function that makes up the runs of a claim's sweep, and what the audit says of their rules."""

    def make(claim, against=()):
        means = means_for(claim, against)
        arms = {arm.name: arm for check in claim.checks for arm in check.filters}
        verdicts = {arms[name].where.get("rule"): mean > 0.5 for (_, name), mean in means.items()}
        monkeypatch.setattr(model, "_audited", verdicts.__getitem__)
        runs = []
        for number, (task_kind, config) in enumerate(jobs(claim.config)):
            found = {title: mean for (title, name), mean in means.items() if arms[name].selects(config)}
            wanted = {title: mean + SPREAD * (config.seed - 1) for title, mean in found.items()}
            if wanted and config.seed < 3:
                metrics, columns = made_up(task_kind, config, wanted)
                runs.append(Run(number, "finished", "", task_kind, config, metrics=metrics, columns=columns))
        return runs

    return make


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


# -------------------- each claim, all three ways


@pytest.mark.parametrize("name", BY_NAME)
def test_folders_of_runs_decide_a_claim_if_there_are_enough(name, tmp_path, made_up_runs):
    claim = BY_NAME[name]
    folders = [write(tmp_path / str(number), run) for number, run in enumerate(made_up_runs(claim))]
    (found,) = examine_folders([tmp_path], [claim])
    assert found.verdict == "holds", found.numbers
    assert not found.lacking
    assert len(found.results) == len(claim.checks)

    shutil.rmtree(folders[0])
    (found,) = examine_folders([tmp_path], [claim])
    assert found.verdict == "not enough data"
    assert f"cet-rl sweep {claim.config})" in found.numbers
    assert "needs 3 seeds of" in found.numbers
    assert "found 2" in found.numbers


@pytest.mark.parametrize("name", BY_NAME)
def test_every_check_of_a_claim_can_refute_it(name, made_up_runs):
    for number, check in enumerate(BY_NAME[name].checks):
        one = dataclasses.replace(BY_NAME[name], checks=(check,))
        for against, expected in (((), "holds"), ((0,), "does not hold")):
            (found,) = examine(made_up_runs(one, against), [one])
            assert found.verdict == expected
        (found,) = examine(made_up_runs(BY_NAME[name], (number,)), [BY_NAME[name]])
        assert found.verdict == "does not hold"


def test_each_claim_is_complete_and_says_what_it_needs():
    assert len(BY_NAME) == len(CLAIMS) >= 15
    for claim, found in zip(CLAIMS, examine([]), strict=True):
        assert claim.place.startswith(("CET paper, ", "Audit paper, ", "Ours"))
        assert claim.words.endswith(".")
        assert claim.config in package_configs()
        assert claim.checks
        assert (found.verdict, found.seeds_shown) == ("not enough data", "–")
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
    return Run(f"{config.label}-{config.seed}", status, task_kind=task_kind, config=config, metrics=metrics)


def cartpole(order, seed, score, status="finished", **options):
    return run_of(RLConfig("CartPole-v1", delay=8.0, order=order, seed=seed, **options), score, status)


def seeds(order, scores, **options):
    return [cartpole(order, seed, score, **options) for seed, score in enumerate(scores)]


HIGH, LOW = (300, 310, 320), (200, 210, 220)
FIVE = RunFilter.of(task="CartPole-v1", order=5, delay=8.0)
ONE = RunFilter.of(task="CartPole-v1", order=1, delay=8.0)


def better(by=0.0, **options):
    """Claim that five states are better than one by more than `by`."""
    check = Check.difference(FIVE, ONE, MEASURES["training return"], above=by)
    return PaperClaim("c", "Ours", "Five states are better.", "quick", (check,), **options)


HIGHER, LOWER, FREE, LONG = seeds(5, HIGH), seeds(1, LOW), {"free": RATES}, {"total_steps": 2_000_000}
NOT_ENOUGH, NOT = "not enough data", "does not hold"


@pytest.mark.parametrize(
    ("options", "runs", "expected", "told"),
    [
        # the whole interval has to exceed the margin
        ({}, [HIGHER, LOWER], "holds", ""),
        ({}, [seeds(5, (200, 310, 320)), seeds(1, (210, 300, 220))], NOT, ""),
        ({}, [seeds(5, LOW), seeds(1, HIGH)], NOT, ""),
        ({"by": 80}, [HIGHER, LOWER], "holds", ""),
        ({"by": 120}, [HIGHER, LOWER], NOT, ""),
        # only finished runs of three seeds count, with the measure
        *(
            ({}, [HIGHER, LOWER[:2], [cartpole(1, 2, 220, status)]], NOT_ENOUGH, "found 2")
            for status in ("interrupted", "failed", "unfinished", "waiting")
        ),
        ({}, [HIGHER, LOWER[:2], [cartpole(1, 1, 220)]], NOT_ENOUGH, "needs 3 seeds of ET at 8 s, found 2"),
        ({}, [HIGHER, LOWER, [cartpole(1, 3, 0, "failed")]], "holds", "1 run failed and left out"),
        (
            {},
            [HIGHER, LOWER[:2], [dataclasses.replace(LOWER[2], metrics={})]],
            NOT_ENOUGH,
            "ET at 8 s with training return, found 2",
        ),
        # runs of different settings never meet; the largest budget that decides is taken
        *(
            ({}, [HIGHER, seeds(1, LOW, **option)], NOT_ENOUGH, "found")
            for option in ({"total_steps": 500_000}, {"n_steps": 64}, {"hidden": (64,)}, {"step_ms": 100.0})
        ),
        (
            {},
            [HIGHER, LOWER, seeds(5, HIGH, **LONG), seeds(1, (400, 410, 420), **LONG)],
            NOT,
            "2,000,000 steps; with 1,000,000 steps: holds",
        ),
        ({}, [HIGHER, LOWER, seeds(5, (1, 2, 3), **LONG)], "holds", "1,000,000 steps"),
        # rates may differ where a claim leaves them free: those of the tables, else those with the most seeds
        ({}, [seeds(5, HIGH, lr=1e-3), seeds(1, LOW, lr=2e-3, decay=0.5)], NOT_ENOUGH, "found"),
        (FREE, [seeds(5, HIGH, lr=1e-3), seeds(1, LOW, lr=2e-3, decay=0.5)], "holds", ""),
        (FREE, [seeds(5, (*HIGH, 330)), seeds(5, (1, 2, 3), lr=2e-3), LOWER], "holds", ""),
        (FREE, [HIGHER, seeds(5, (1, 2, 3), lr=2e-3), LOWER], NOT_ENOUGH, "needs one setting of CET 5 at 8 s"),
        (FREE, [seeds(5, HIGH, lr=2.5e-4), seeds(5, (1, 2, 3, 4, 5)), LOWER], "holds", ""),
        (FREE, [seeds(5, HIGH[:2], lr=2.5e-4), seeds(5, (1, 2, 3, 4, 5)), LOWER], NOT, ""),
    ],
)
def test_what_counts_and_what_is_told(options, runs, expected, told):
    (found,) = examine([run for each in runs for run in each], [better(**options)])
    assert found.verdict == expected
    assert told in found.numbers


def test_seeds_that_draw_the_task_are_compared_pair_by_pair():
    losses = {"rflo": (0.10, 0.20, 0.30), "fixed-w": (0.11, 0.21, 0.31)}
    runs = [
        run_of(RecurrentConfig("mimic", rule=rule, seed=seed), loss)
        for rule, of_seed in losses.items()
        for seed, loss in enumerate(of_seed)
    ]
    arms = [RunFilter.of(task="mimic", rule=rule) for rule in losses]
    check = Check.difference(*arms, MEASURES["test loss"], below=0.0)
    claim = PaperClaim("c", "Ours", "Lower.", "quick", (check,), ("rule_options",))
    paired = dataclasses.replace(claim, paired=True)
    for one, kept, expected in ((claim, runs, NOT), (paired, runs, "holds"), (paired, runs[1:], NOT_ENOUGH)):
        assert examine(kept, [one])[0].verdict == expected


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

ARMS = [RunFilter.of(task="digits", order=order, delay=2.0) for order in (1, 2, 6, 10)]


@pytest.mark.parametrize(
    ("check", "means", "value"),
    [
        (Check.mean(ARMS[0], MEASURES["test accuracy"]), (3.0,), 3.0),
        (Check.difference(*ARMS[:2], MEASURES["test accuracy"]), (3.0, 5.0), -2.0),
        (Check.difference(*ARMS[:2], MEASURES["test accuracy"], share=0.5), (3.0, 5.0), 0.5),
        (Check.slope(ARMS[:3], MEASURES["test accuracy"]), (1.0, 4.0, 3.0), 1.0),
        (Check.slope(ARMS, MEASURES["test accuracy"]), (0.0, 1.0, 4.0, 9.0), 3.0),
    ],
)
def test_statistics_are_what_their_names_say(check, means, value):
    result = check.evaluate([np.full(3, mean) for mean in means])
    assert (result.low, result.centre, result.high) == pytest.approx((value,) * 3, abs=1e-12)


def test_alignment_is_that_of_layers_that_wait():
    config = VisionConfig("digits", delay=2.0, order=2, stacked=True, batch_size=128, hidden=(8, 8))
    first = np.linspace(0.0, 0.8, 9)
    layers = {f"{ALIGNMENT}{layer}": values for layer, values in enumerate((first, np.full(9, 0.9), np.ones(9)))}
    columns = {MetricsTable.STEP: np.arange(1.0, 10.0), **layers}
    run = dataclasses.replace(run_of(config, 0.0), columns=columns)
    expected = {
        "alignment": (first.mean() + 0.9) / 2,
        EARLY: (first[:3].mean() + 0.9) / 2,
        LATE: (first[6:].mean() + 0.9) / 2,
        GAIN: (first[6:].mean() - first[:3].mean()) / 2,
        LAST_LAYER: 0.9,
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
    for title in ("mean accuracy over training", "alignment", GAIN, LAST_LAYER, DEPTH, "plausible by the audit"):
        assert MEASURES[title].value(run) is None


# -------------------- the command


def test_the_command_prints_every_claim_and_writes_them(tmp_path, capsys, monkeypatch, made_up_runs):
    monkeypatch.setenv("COLUMNS", "200")
    for number, run in enumerate(made_up_runs(BY_NAME["late-add-orders"])):
        write(tmp_path / "runs" / str(number), run)

    assert main(["report", "--claims", str(tmp_path / "runs"), "--out", str(tmp_path / "new" / "out")]) == 0

    printed = capsys.readouterr().out
    page = (tmp_path / "new" / "out" / "claims.md").read_text(encoding="utf-8")
    assert "holds 1, does not hold 0" in printed
    for name in BY_NAME:
        assert name in printed
        assert f"`{name}`" in page
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert len(rows) == len(CLAIMS) + 2
    assert {line.count(" | ") for line in rows} == {5}
    row = next(line for line in rows if "`late-add-orders`" in line)
    assert "**holds**" in row
    assert row.endswith("| 3 |")
    assert not (tmp_path / "runs" / "claims.md").exists()
    assert not (tmp_path / "new" / "out" / "report.html").exists()


def test_a_title_of_claims_is_one_clear_error(capsys):
    assert main(["report", "--claims", ".", "--title", "T"]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert "--title" in error
