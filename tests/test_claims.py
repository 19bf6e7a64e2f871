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

from cet_rl.cli import main
from cet_rl.recurrent.config import RecurrentConfig
from cet_rl.report.claims import CLAIMS, PaperClaim, checks, examine, examine_folders, model
from cet_rl.report.claims.checks import RATES
from cet_rl.report.claims.judging import as_markdown
from cet_rl.report.claims.model import (
    TEST_ACCURACY,
    TEST_LOSS,
    TRAINING_RETURN,
    with_cascade,
    with_rule,
    with_trace,
)
from cet_rl.report.reading import ALIGNMENT, Run
from cet_rl.report.statistics import presentation
from cet_rl.rl.config import RLConfig
from cet_rl.runs.config_files import package_configs
from cet_rl.runs.folder import MetricsTable
from cet_rl.runs.task_kinds import task_kind_of
from cet_rl.sweeps.build import build, configuration
from cet_rl.sweeps.file import read_sweep
from cet_rl.vision.config import VisionConfig

NAMES = [claim.name for claim in CLAIMS]
ROWS = 9
"""Of a made-up metrics.csv: three in each third of the run."""
SPREAD = 1e-3
"""Between seeds."""
ROOM = 0.05
"""That made-up means keep from the ends of the values for which a claim is right."""

by_name = {claim.name: claim for claim in CLAIMS}

# -------------------- made-up runs


@cache
def cells(config):
    return [configuration(job) for job in build(read_sweep(config)).jobs]


def runs_needed(claim, seeds=3):
    """The task_kind and configuration of the runs of its sweep that a claim looks at."""
    sides = [each for check in claim.checks for each in check.filters]
    return [
        (task_kind, config)
        for task_kind, config in cells(claim.config)
        if config.seed < seeds and any(each.selects(config) for each in sides)
    ]


def made_up(task_kind, config, wanted):
    """Metrics and columns of a run whose measures are what is wanted."""
    held_out = getattr(config, "held_out", "")
    shows, score = presentation(task_kind, held_out), task_kind.scores[0].on(held_out)
    metrics = {score.key: wanted.get(model.score, 0.0) / (100 if score.percent else 1)}
    steps = np.linspace(1, config.total_steps, ROWS).round()
    curve = np.full(ROWS, wanted.get(model.over_training, 0.0) / shows.curve_factor)
    columns = {MetricsTable.STEP: steps, shows.curve: curve}
    delays = config.timing.layer_delays
    waiting = [layer for layer, delay in enumerate(delays) if delay]
    for layer in waiting:
        values = np.full(ROWS, wanted.get(model.alignment, 0.0))
        early, late = steps <= config.total_steps / 3, steps >= config.total_steps * 2 / 3
        values[early] = wanted.get(model.early_alignment, values[0])
        values[late] = wanted.get(model.late_alignment, values[-1])
        values[late] = wanted.get(model.alignment_gain, values[-1])
        if layer == waiting[-1]:
            values[:] = wanted.get(model.last_delayed_alignment, values)
            values[:] = wanted.get(model.depth_loss, values)
        columns[f"{ALIGNMENT}{layer}"] = values
    return metrics, columns


def means_for(claim, against=()):
    """A mean for each side and measure for which the checks pass, but for those at some places, which fail.

    All statistics are linear in the means: each is moved to where it should be, in turns, until all are there.
    """
    keys = list(
        dict.fromkeys((check.measure.value, each.name) for check in claim.checks for each in check.filters)
    )
    means = np.full(len(keys), 0.5)
    wanted = [number for number in range(len(claim.checks)) if number not in against]
    for _ in range(2_000):
        moved = False
        for number in [*wanted, *against]:
            check = claim.checks[number]
            places = [keys.index((check.measure.value, each.name)) for each in check.filters]
            low, high = check.above, check.below
            if number in against:  # on the far side of the end that there is
                low, high = (high, np.inf) if np.isfinite(high) else (-np.inf, low)
            slopes = np.array([check.statistic(row) for row in np.eye(len(places))])
            value = float(check.statistic(means[places]))
            target = min(max(value, low + ROOM), high - ROOM)
            if abs(target - value) > 1e-9:
                means[places] += slopes * (target - value) / (slopes @ slopes)
                moved = True
        if not moved:
            return dict(zip(keys, means, strict=True))
    raise AssertionError("these checks contradict each other")


def made_up_runs(claim, against=(), seeds=3):
    """Runs of the claim's sweep, as folders would have them."""
    means = means_for(claim, against)
    runs = []
    for number, (task_kind, config) in enumerate(runs_needed(claim, seeds)):
        wanted = {}
        for check in claim.checks:
            for each in check.filters:
                if each.selects(config):
                    mean = means[check.measure.value, each.name]
                    wanted[check.measure.value] = mean + SPREAD * (config.seed - 1)
        metrics, columns = made_up(task_kind, config, wanted)
        if wanted.keys() == {model.score}:
            columns = {}  # the summary has it
        runs.append(Run(number, "finished", "", task_kind, config, metrics=metrics, columns=columns))
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


@pytest.fixture
def audits(monkeypatch):
    """An audit that finds what the made-up runs of a claim say."""
    verdicts = {}

    def set_from(claim, against=()):
        for (function, name), mean in means_for(claim, against).items():
            if function is model.plausible:
                rules = {each.name: each.where["rule"] for check in claim.checks for each in check.filters}
                verdicts[rules[name]] = mean > 0.5

    monkeypatch.setattr(model, "_audited", verdicts.__getitem__)
    return set_from


# -------------------- each claim, all three ways


@pytest.mark.parametrize("name", NAMES)
def test_folders_of_runs_decide_a_claim_all_three_ways(name, tmp_path, audits):
    claim = by_name[name]
    for case, against in (("right", ()), ("wrong", (0,))):
        audits(claim, against)
        folders = [
            write(tmp_path / case / str(number), run) for number, run in enumerate(made_up_runs(claim, against))
        ]
        (found,) = examine_folders([tmp_path / case], [claim])
        assert found.verdict == ("does not hold" if against else "holds"), found.numbers
        assert not found.lacking
        assert len(found.results) == len(claim.checks)

        shutil.rmtree(folders[0])
        (found,) = examine_folders([tmp_path / case], [claim])
        if not against or len(claim.checks) == 1:
            assert found.verdict == "not enough data"
        assert f"cet-rl sweep {claim.config})" in found.numbers
        assert "needs 3 seeds of" in found.numbers
        assert "found 2" in found.numbers


@pytest.mark.parametrize("name", [claim.name for claim in CLAIMS if len(claim.checks) > 1])
def test_every_check_of_a_claim_can_refute_it(name, audits):
    claim = by_name[name]
    for number in range(len(claim.checks)):
        one = dataclasses.replace(claim, checks=(claim.checks[number],))
        for against, verdict in (((), "holds"), ((0,), "does not hold")):
            audits(one, against)
            (found,) = examine(made_up_runs(one, against), [one])
            assert found.verdict == verdict


@pytest.mark.parametrize("name", NAMES)
def test_without_runs_a_claim_says_what_it_needs(name):
    (found,) = examine([], [by_name[name]])

    assert found.verdict == "not enough data"
    assert found.numbers.startswith("(needs 3 seeds of ")
    assert "found none" in found.numbers
    assert found.seeds is None


def test_each_claim_has_a_name_a_place_words_and_a_configuration_of_its_own_package():
    assert len(set(NAMES)) == len(NAMES) >= 15
    for claim in CLAIMS:
        assert claim.place.startswith(("CET paper, ", "Audit paper, ", "Ours"))
        assert claim.words.endswith(".")
        assert claim.config in package_configs()
        assert claim.checks


# -------------------- what counts


def run_of(config, score, status="finished"):
    task_kind = task_kind_of(config.task)
    key = task_kind.scores[0].on(getattr(config, "held_out", "")).key
    return Run(f"{config.label}-{config.seed}", status, task_kind=task_kind, config=config, metrics={key: score})


def cartpole(order, seed, score, status="finished", **options):
    return run_of(RLConfig("CartPole-v1", delay=8.0, order=order, seed=seed, **options), score, status)


def better_claim(by=0.0, **options):
    sides = with_cascade("CartPole-v1", 5, 8.0), with_cascade("CartPole-v1", 1, 8.0)
    return PaperClaim(
        "c", "Ours", "Five states are better.", "quick", (checks.higher(*sides, TRAINING_RETURN, by),), **options
    )


def seeds(order, scores, **options):
    return [cartpole(order, seed, score, **options) for seed, score in enumerate(scores)]


def verdict(runs, claim=None):
    (found,) = examine(runs, [claim or better_claim()])
    return found.verdict


def test_an_interval_that_holds_the_bound_does_not_show_the_claim():
    assert verdict([*seeds(5, (300, 310, 320)), *seeds(1, (200, 210, 220))]) == "holds"
    assert verdict([*seeds(5, (200, 310, 320)), *seeds(1, (210, 300, 220))]) == "does not hold"
    assert verdict([*seeds(5, (200, 210, 220)), *seeds(1, (300, 310, 320))]) == "does not hold"


def test_a_margin_has_to_be_exceeded():
    runs = [*seeds(5, (300, 310, 320)), *seeds(1, (200, 210, 220))]

    assert verdict(runs, better_claim(by=80.0)) == "holds"
    assert verdict(runs, better_claim(by=120.0)) == "does not hold"


@pytest.mark.parametrize("status", ["interrupted", "failed", "unfinished", "waiting"])
def test_only_finished_runs_count(status):
    runs = [*seeds(5, (300, 310, 320)), *seeds(1, (200, 210)), cartpole(1, 2, 220, status)]

    assert verdict(runs) == "not enough data"


def test_runs_that_failed_are_left_out_and_told():
    runs = [*seeds(5, (300, 310, 320)), *seeds(1, (200, 210, 220)), cartpole(1, 3, 0, "failed")]
    (found,) = examine(runs, [better_claim()])

    assert found.verdict == "holds"
    assert found.seeds == (3, 3)
    assert found.numbers.endswith("1 run failed and left out")


def test_repeats_of_a_seed_are_not_more_seeds():
    runs = [*seeds(5, (300, 310, 320)), *seeds(1, (200, 210)), cartpole(1, 1, 220)]

    assert verdict(runs) == "not enough data"


def test_runs_without_the_measure_do_not_count():
    runs = [*seeds(5, (300, 310, 320)), *seeds(1, (200, 210, 220))]
    runs[-1] = dataclasses.replace(runs[-1], metrics={})
    (found,) = examine(runs, [better_claim()])

    assert found.verdict == "not enough data"
    assert "ET at 8 s with training return, found 2" in found.numbers


@pytest.mark.parametrize(
    "option", [{"total_steps": 500_000}, {"n_steps": 64}, {"hidden": (64,)}, {"step_ms": 100.0}]
)
def test_runs_of_different_settings_never_meet(option):
    assert verdict([*seeds(5, (300, 310, 320)), *seeds(1, (200, 210, 220), **option)]) == "not enough data"


def test_rates_may_differ_between_sides_where_a_claim_leaves_them_free():
    runs = [*seeds(5, (300, 310, 320), lr=1e-3), *seeds(1, (200, 210, 220), lr=2e-3, decay=0.5)]

    assert verdict(runs) == "not enough data"
    assert verdict(runs, better_claim(free=RATES)) == "holds"


def test_of_several_rates_those_with_the_most_seeds_are_taken_and_none_of_a_tie():
    runs = [*seeds(5, (300, 310, 320, 330)), *seeds(5, (100, 110, 120), lr=2e-3), *seeds(1, (200, 210, 220))]

    assert verdict(runs, better_claim(free=RATES)) == "holds"
    (found,) = examine(runs[1:], [better_claim(free=RATES)])
    assert found.verdict == "not enough data"
    assert "needs one setting of CET 5 at 8 s" in found.numbers


def test_of_several_rates_those_of_the_papers_tables_are_taken_if_they_have_three_seeds():
    paper = seeds(5, (300, 310, 320), lr=2.5e-4)
    others = [*seeds(5, (100, 110, 120, 130, 140)), *seeds(1, (200, 210, 220))]

    assert verdict([*paper, *others], better_claim(free=RATES)) == "holds"
    assert verdict([*paper[1:], *others], better_claim(free=RATES)) == "does not hold"


def test_the_largest_budget_decides_and_others_are_told():
    short = [*seeds(5, (300, 310, 320)), *seeds(1, (200, 210, 220))]
    long = {"total_steps": 2_000_000}
    runs = [*short, *seeds(5, (300, 310, 320), **long), *seeds(1, (400, 410, 420), **long)]
    (found,) = examine(runs, [better_claim()])

    assert found.verdict == "does not hold"
    assert found.steps == 2_000_000
    assert found.numbers.endswith("2,000,000 steps; with 1,000,000 steps: holds")


def test_a_budget_that_decides_nothing_gives_way_to_one_that_does():
    short = [*seeds(5, (300, 310, 320)), *seeds(1, (200, 210, 220))]

    assert verdict([*short, *seeds(5, (1, 2, 3), total_steps=2_000_000)]) == "holds"


def test_seeds_that_draw_the_task_are_compared_pair_by_pair():
    def mimic(rule, losses):
        return [run_of(RecurrentConfig("mimic", rule=rule, seed=seed), loss) for seed, loss in enumerate(losses)]

    check = checks.lower(with_rule("mimic", "rflo"), with_rule("mimic", "fixed-w"), TEST_LOSS)
    runs = [*mimic("rflo", (0.10, 0.20, 0.30)), *mimic("fixed-w", (0.11, 0.21, 0.31))]
    claim = PaperClaim("c", "Ours", "Lower.", "quick", (check,), ("rule_options",))

    assert verdict(runs, claim) == "does not hold"
    assert verdict(runs, dataclasses.replace(claim, paired=True)) == "holds"
    assert verdict(runs[1:], dataclasses.replace(claim, paired=True)) == "not enough data"


def test_a_cascade_of_one_state_is_the_classical_trace():
    classical = with_cascade("digits", 1, 2.0)

    assert classical.selects(VisionConfig("digits", delay=2.0, order=1))
    assert classical.selects(VisionConfig("digits", delay=2.0, trace="et"))
    assert not classical.selects(VisionConfig("digits", delay=2.0, order=2))
    assert not with_trace("digits", "cet", 1, 2.0).selects(VisionConfig("digits", delay=2.0, order=1))


def test_stacked_delays_are_another_side():
    uniform = with_cascade("digits", 2, 2.0)

    assert uniform.selects(VisionConfig("digits", delay=2.0, order=2))
    assert not uniform.selects(VisionConfig("digits", delay=2.0, order=2, stacked=True))


# -------------------- statistics


PAIR = with_trace("digits", "none"), with_cascade("digits", 2, 2.0)
ORDERS = [with_cascade("digits", order, 2.0) for order in (1, 2, 6, 10)]


@pytest.mark.parametrize(
    ("check", "means", "value"),
    [
        (checks.higher(*PAIR, TEST_ACCURACY), (3.0, 5.0), -2.0),
        (checks.more_than_share(*PAIR, TEST_ACCURACY, 0.5), (3.0, 5.0), 0.5),
        (checks.at_least(PAIR[0], TEST_ACCURACY, 1.0), (3.0,), 3.0),
        (checks.rises(ORDERS[:3], TEST_ACCURACY), (1.0, 4.0, 3.0), 1.0),
        (checks.falls(ORDERS, TEST_ACCURACY), (0.0, 1.0, 4.0, 9.0), 3.0),
    ],
)
def test_statistics_are_what_their_names_say(check, means, value):
    assert float(check.statistic(np.array(means))) == pytest.approx(value, abs=1e-12)


def test_intervals_are_the_same_each_time_and_widen_with_the_spread():
    check = checks.higher(*PAIR, TEST_ACCURACY)
    wide = [np.array([1.0, 2.0, 3.0]), np.array([0.0, 1.0, 2.0])]
    first, second = check.evaluate(wide), check.evaluate(wide)
    narrow = check.evaluate([values / 10 for values in wide])

    assert (first.low, first.high) == (second.low, second.high)
    assert first.low < first.centre == 1.0 < first.high
    assert narrow.high - narrow.low == pytest.approx((first.high - first.low) / 10)


# -------------------- measures


def with_columns(config, **columns):
    steps = np.arange(1.0, 10.0)
    columns = {f"{ALIGNMENT}{name[1:]}" if name[0] == "l" else name: np.array(v) for name, v in columns.items()}
    return dataclasses.replace(run_of(config, 0.0), columns={MetricsTable.STEP: steps, **columns})


def test_alignment_is_that_of_layers_that_wait():
    config = VisionConfig("digits", delay=2.0, order=2, stacked=True, batch_size=128, hidden=(8, 8))
    first, second = np.linspace(0.0, 0.8, 9), np.full(9, 0.9)
    run = with_columns(config, l0=first, l1=second, l2=np.full(9, 1.0))

    assert model.alignment(run) == pytest.approx((first.mean() + 0.9) / 2)
    assert model.last_delayed_alignment(run) == pytest.approx(0.9)
    assert model.depth_loss(run) == pytest.approx(0.9 - first.mean())
    assert model.early_alignment(run) == pytest.approx((first[:3].mean() + 0.9) / 2)
    assert model.late_alignment(run) == pytest.approx((first[6:].mean() + 0.9) / 2)
    assert model.alignment_gain(run) == pytest.approx((first[6:].mean() - first[:3].mean()) / 2)


def test_the_mean_over_training_is_weighed_by_steps():
    run = run_of(VisionConfig("digits", delay=2.0, order=2), 0.0)
    columns = {MetricsTable.STEP: np.array([0.0, 1.0, 10.0]), "test/accuracy": np.array([0.0, 1.0, 1.0])}

    assert model.over_training(dataclasses.replace(run, columns=columns)) == pytest.approx(95.0)


def test_what_was_not_logged_is_none():
    run = run_of(VisionConfig("digits", delay=2.0, order=2), 0.0)

    for function in (model.alignment, model.alignment_gain, model.depth_loss, model.over_training):
        assert function(run) is None
    assert model.plausible(run) is None


# -------------------- the command


def test_the_command_prints_every_claim_and_writes_them(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    claim = by_name["late-add-orders"]
    for number, run in enumerate(made_up_runs(claim)):
        write(tmp_path / "runs" / str(number), run)

    assert main(["report", "--claims", str(tmp_path / "runs"), "--out", str(tmp_path / "new" / "out")]) == 0

    printed = capsys.readouterr().out
    page = (tmp_path / "new" / "out" / "claims.md").read_text(encoding="utf-8")
    assert "holds 1, does not hold 0" in printed
    for name in NAMES:
        assert name in printed
        assert f"`{name}`" in page
    row = next(line for line in page.splitlines() if "`late-add-orders`" in line)
    assert "**holds**" in row
    assert row.endswith("| 3 |")
    assert not (tmp_path / "runs" / "claims.md").exists()
    assert not (tmp_path / "new" / "out" / "report.html").exists()


def test_the_page_has_the_same_cells_in_every_row():
    page = as_markdown(examine([], CLAIMS), ["runs"])
    rows = [line for line in page.splitlines() if line.startswith("|")]

    assert len(rows) == len(CLAIMS) + 2
    assert {line.count(" | ") for line in rows} == {5}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing"], "there is no folder"),
        (["."], "there is no run folder in ."),
        ([], "name run folders"),
        ([".", "--title", "T"], "--title"),
    ],
)
def test_folders_without_runs_are_one_clear_error(arguments, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)

    assert main(["report", "--claims", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.splitlines()) == 1
