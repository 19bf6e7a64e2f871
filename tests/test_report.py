"""Reports: what is read, put together, averaged, drawn and written."""

import base64
import csv
import io
import itertools
import json
import multiprocessing
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from html.parser import HTMLParser
from urllib.parse import unquote

import numpy as np
import pytest
import scipy.stats
import yaml
from conftest import assert_refused, here, run_python
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from matplotlib.cm import viridis
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from mutations import changes, damage
from PIL import Image

from cet_rl.cli import main
from cet_rl.cli.train import parse_arguments
from cet_rl.recurrent.config import RecurrentConfig
from cet_rl.report import page, palette, write_report
from cet_rl.report.drawing import (
    DPI,
    Picture,
    as_files,
    baselines_of,
    drawing,
    legend,
    loss_limit,
    render,
    some_delays,
    styles,
)
from cet_rl.report.grouping import ArmAtDelay, group_runs
from cet_rl.report.improvement import improvement_matrix, improvements, probability
from cet_rl.report.kernels import (
    describe_traces,
    filtered,
    kernels,
    memory,
    pulses,
    sampled_kernel,
    sampled_states,
)
from cet_rl.report.palette import Identity
from cet_rl.report.plots import RETURN, Curve, alignment, draw_curves, learning_curves
from cet_rl.report.reading import ALIGNMENT, STATES, RunLocation, find_runs, read_columns, read_run, read_runs
from cet_rl.report.scores import heatmap, scores
from cet_rl.report.statistics import estimate, interquartile_mean, mean, presentation
from cet_rl.report.tables import escape, results_csv, results_tex
from cet_rl.report.text import clean, number
from cet_rl.rl.config import RLConfig
from cet_rl.runs.folder import MetricsTable, RunFolder
from cet_rl.runs.task_kinds import RL, task_kind_of
from cet_rl.sweeps.folder import Job, Sweep, SweepFolder
from cet_rl.sweeps.known import fingerprint
from cet_rl.traces import CET, Legendre, PerfectMemory
from cet_rl.traces.registry import TraceConfig
from cet_rl.vision.config import VisionConfig

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


@pytest.fixture(scope="module", autouse=True)
def looks_of_a_report():
    with drawing():
        yield


# -------------------- made-up runs


def rl(task="CartPole-v1", **options):
    return RLConfig(task, device="cpu", threads=1, total_steps=10_000, **options).resolved()


def vision(task="digits", **options):
    config = VisionConfig(task, device="cpu", threads=1, total_steps=100, **options).resolved()
    return replace(config, model=config.network, hidden=config.widths)


def recurrent(task="add", **options):
    config = RecurrentConfig(task, device="cpu", threads=1, total_steps=1_000, **options).resolved()
    return replace(config, rule_options=config.all_rule_options)


def write_run(path, config, score=None, *, status="finished", error=None, points=8):
    """Write a run folder as a run could have left it; without a summary if there is no status."""
    path.mkdir(parents=True)
    folder, task_kind, held_out = RunFolder(path), task_kind_of(config.task), getattr(config, "held_out", "")
    folder.config_file.write_text(yaml.safe_dump(config.as_data(), sort_keys=False))
    with open(folder.metrics_file, "w", newline="") as stream:
        writer = csv.writer(stream)
        curve = task_kind.curve.on(held_out).key
        writer.writerow([MetricsTable.STEP, curve, f"{ALIGNMENT}0", f"{ALIGNMENT}1", "time/fps"])
        for place in range(1, points + 1):
            value = (score or 0.0) * place / points
            writer.writerow([config.total_steps * place // points, value, 0.9 - 0.01 * place, 0.5, 100.0])
    if status:
        metrics = {task_kind.scores[0].on(held_out).key: score}
        rest = {"wall_seconds": 1.0, "steps_per_second": 500.0, "metrics": metrics, "error": error}
        common = {"task": config.task, "agent": "any", "seed": config.seed, "steps": config.total_steps}
        folder.write_summary(status=status, **common, **rest)
    return path


def read(root):
    return read_runs([root])[0]


def one_comparison(root):
    (comparison,) = group_runs(read(root))
    return comparison


def compare(root, *runs):
    """Write runs, configurations or pairs of one and its score, and return their comparison."""
    for place, run in enumerate(runs):
        config, score = run if isinstance(run, tuple) else (run, 1.0)
        write_run(root / f"run-{place:02}", config, score)
    return one_comparison(root)


class Page(HTMLParser):
    """Elements, attributes and texts of a page."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.texts, self.scripts, self.styles, self._inside = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in ("meta", "img"):
            self._inside.append(tag)

    def handle_endtag(self, tag):
        assert self._inside.pop() == tag

    def handle_data(self, data):
        {"script": self.scripts, "style": self.styles}.get((self._inside or [""])[-1], self.texts).append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


# -------------------- statistics


def test_the_interquartile_mean_is_scipys_trimmed_mean():
    assert interquartile_mean(np.array([5.0, 1.0, 2.0, 3.0, 100.0])) == pytest.approx(10 / 3, abs=1e-12)
    for count in range(1, 13):
        values = np.random.default_rng(count).normal(size=(2, count))
        assert interquartile_mean(values) == pytest.approx(scipy.stats.trim_mean(values, 0.25, axis=1), abs=1e-12)


def test_an_interval_is_reproducible_and_as_wide_as_theory_says():
    values = np.random.default_rng(0).normal(5.0, 2.0, size=400)
    found = estimate([values], mean)
    assert found == estimate([values], mean)
    assert values.min() <= found.low <= found.centre <= found.high <= values.max()
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std(ddof=1) / np.sqrt(len(values)), rel=0.08)


def test_an_interval_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(1)
    found = [estimate([generator.normal(size=20)], mean) for _ in range(150)]
    assert 0.86 <= np.mean([each.low <= 0.0 <= each.high for each in found]) <= 0.99


def test_too_few_values_have_no_interval():
    two = estimate([np.array([1.0, 3.0])])
    assert (two.centre, two.low, two.high, two.count) == (2.0, None, None, 2)
    assert estimate([np.ones(3), np.ones(2)]).low is None
    with pytest.raises(ValueError, match="at least one value"):
        estimate([np.empty(0)])


def test_strata_are_resampled_within_themselves():
    low, high = np.full(3, 0.0), np.full(3, 10.0)
    apart = estimate([low, high], mean)
    assert (apart.low, apart.centre, apart.high) == (5.0, 5.0, 5.0)
    together = estimate([np.concatenate([low, high])], mean)
    assert together.low < 3.0 < 7.0 < together.high


# -------------------- what is put together


def test_seeds_of_one_configuration_are_one_arm(tmp_path):
    seeds = [(0, "cpu", 10.0), (1, "cuda", 20.0), (7, "cuda", 60.0)]
    configs = [replace(rl(delay=2.0, seed=n, alignment=bool(n)), device=d, threads=n + 1) for n, d, _ in seeds]
    comparison = compare(tmp_path, *zip(configs, (score for *_, score in seeds), strict=True))
    (arm,) = comparison.arms
    found = comparison.estimate(arm, 2.0)
    assert (arm.label, found.count, found.centre, found.least, found.most) == ("CET 5", 3, 30.0, 10.0, 60.0)


def test_options_that_go_with_the_delay_make_no_arms(tmp_path):
    comparison = compare(tmp_path / "rate", rl(delay=2.0, lr=1e-3), rl(delay=8.0, lr=5e-4))
    (arm,) = comparison.arms
    assert (arm.label, list(arm.at), arm.following) == ("CET 5", [2.0, 8.0], ("lr",))
    assert comparison.differing == {("CET 5", 2.0): "lr 0.001", ("CET 5", 8.0): "lr 0.0005"}
    runs = rl(delay=2.0, decay=0.5, lr=1e-3, trace="et"), rl(delay=8.0, decay=0.9, lr=5e-4, lam=0.9, trace="et")
    (arm,) = compare(tmp_path / "decay and rates", *runs).arms
    assert (arm.label, list(arm.at), arm.following) == ("ET", [2.0, 8.0], ("decay", "lr", "lam"))


ET = {"trace": "et"}
RATES = (1e-3, 5e-4)
LONG = "module_with_a_name_that_goes_on_and_on:Agent"


@pytest.mark.parametrize(
    ("options", "labels"),
    [
        (
            [*({"order": n, "lr": lr} for n in (10, 2) for lr in RATES), ET, {"delay": 0.0}],
            ["no delay", "CET 2 (lr 0.0005)", "CET 2 (lr 0.001)", "CET 10 (lr 0.0005)", "CET 10 (lr 0.001)", "ET"],
        ),
        ([{"agent": LONG, "lr": lr} for lr in RATES], [f"{LONG[:38]} [1]", f"{LONG[:38]} [2]"]),
        (
            [{"agent": LONG + "s" * n, "delay": 2.0 * n} for n in (1, 2)],
            [f"{LONG[:38]}-Agen…", f"{LONG[:38]} [1]"],
        ),
        # decays at one delay are compared
        (
            [{**ET, "decay": 0.5}, {**ET, "decay": 0.9}, {**ET, "decay": 0.9, "delay": 8.0}],
            ["ET (decay 0.5)", "ET (decay 0.9)"],
        ),
        (
            [ET, {**ET, "decay": 0.9}, {**ET, "decay": 0.5, "delay": 8.0}],
            ["ET", "ET (decay 0.5)", "ET (decay 0.9)"],
        ),
        ([{**ET, "decay": 0.9}, {**ET, "decay": 0.9, "delay": 8.0}], ["ET (decay 0.9)"]),
    ],
)
def test_arms_are_named_by_the_options_in_which_they_differ(tmp_path, options, labels):
    comparison = compare(tmp_path, *(rl(**{"delay": 2.0, **each}) for each in options))
    assert ([arm.label for arm in comparison.arms], comparison.changes) == (labels, ())


def test_a_decay_that_goes_with_the_delay_makes_no_arms(tmp_path):
    classical = [rl(delay=d, decay=decay, **ET) for d, decay in [(2.0, 0.5), (4.0, 0.9), (8.0, None), (32.0, 0.5)]]
    comparison = compare(tmp_path, *classical, *(rl(delay=delay) for delay in (2.0, 4.0, 8.0)))
    assert [(arm.label, arm.following) for arm in comparison.arms] == [("CET 5", ()), ("ET", ("decay",))]
    assert (list(comparison.arms[1].at), comparison.missing) == ([2.0, 4.0, 8.0, 32.0], ["CET 5 at 32 s"])
    assert comparison.changes == ("ET: decay 0.5 at 2, 32 s; 0.9 at 4 s; its default at 8 s.",)
    assert all(comparison.changes[0] in figure(comparison)[0].caption for figure in (heatmap, learning_curves))
    assert comparison.differing["ET", 4.0] == "decay 0.9"


def test_kernels_of_two_decays_at_one_delay_are_both_drawn(tmp_path):
    stacked = {"stacked": True, "trace": "et", "hidden": (8, 8)}
    runs = [vision(delay=delay, decay=decay, **stacked) for delay, decay in [(2.0, 0.5), (4.0, 0.9)]]
    found = describe_traces(compare(tmp_path, *runs))
    assert set(found[2.0]) == {"ET"}
    decays = {label: trace.options["decay"] for label, (trace, _, _) in found[4.0].items()}
    assert decays == {"ET": 0.5, "ET (decay 0.9)": 0.9}


def test_tasks_test_sets_and_stacked_delays_are_comparisons_of_their_own(tmp_path):
    write_run(tmp_path / "a", rl("LunarLander-v3"), 1.0)
    write_run(tmp_path / "b", vision(delay=2.0), 0.9)
    write_run(tmp_path / "c", vision(delay=2.0, validation=True), 0.8)
    write_run(tmp_path / "d", vision(delay=2.0, stacked=True), 0.7)
    found = {comparison.title: comparison for comparison in group_runs(read(tmp_path))}
    validated = "digits, tested on a validation set"
    assert list(found) == ["LunarLander-v3", "digits", "digits, stacked delays", validated]
    assert found[validated].presentation.score.title == "validation accuracy"
    assert found[validated].estimate(found[validated].arms[0], 2.0).centre == pytest.approx(80.0)


def test_a_seed_counts_once(tmp_path):
    write_run(tmp_path / "a", rl(delay=2.0), 99.0, status="interrupted")
    write_run(tmp_path / "aa", rl(delay=2.0), 70.0, points=0)
    write_run(tmp_path / "b", rl(delay=2.0), 10.0)
    write_run(tmp_path / "c", rl(delay=2.0000000000000004), 90.0)
    comparison = one_comparison(tmp_path)
    (at_delay,) = comparison.arms[0].at.values()
    assert [run.path.name for run in at_delay.runs] == ["b"]  # a finished one with its curve, the first by name
    assert [run.path.name for run in at_delay.repeats] == ["c", "aa", "a"]
    assert comparison.estimate(comparison.arms[0], 2.0).centre == 10.0


def test_what_is_missing_stays_missing(tmp_path):
    write_run(tmp_path / "failed", rl(delay=8.0, order=5), 7.0, status="failed", error="broken")
    given = [(2.0, 2, 0), (8.0, 2, 0), (2.0, 5, 0), (2.0, 5, 1), (0.0, None, 0)]
    comparison = compare(tmp_path, *(rl(delay=delay, order=order, seed=seed) for delay, order, seed in given))
    assert comparison.missing == ["CET 5 at 8 s"]
    assert comparison.delays == (2.0, 8.0)  # the arm without delay is no column
    (picture,) = heatmap(comparison)
    assert "Hatched, without a result: CET 5 at 8 s." in picture.caption
    assert "interquartile mean over the seeds of finished runs, n = 1 to 2, in brackets" in picture.caption
    cell = comparison.estimate(comparison.compared[1], 2.0)
    assert cell.deviation == pytest.approx((cell.most - cell.least) / 2**0.5)  # n - 1 in the denominator
    assert f"(2)\n± {cell.deviation:.1f}" in "".join(text.get_text() for text in picture.figure.axes[0].texts)
    assert "±: standard deviation over seeds." in picture.caption
    assert comparison.over_delays(comparison.compared[0]).count == 2
    assert comparison.over_delays(comparison.compared[1]) is None


def test_delays_are_pooled_only_with_as_many_seeds(tmp_path):
    runs = [(rl(delay=delay, seed=seed), 10.0 * delay) for seed in (0, 1) for delay in (2.0, 8.0)]
    for name, some, centre in (("three", runs[:3], None), ("four", runs, 50.0)):
        comparison = compare(tmp_path / name, *some)
        assert getattr(comparison.over_delays(comparison.arms[0]), "centre", None) == centre


def test_the_best_arms_are_those_with_the_lowest_loss(tmp_path):
    losses = [("rflo", 0.6), ("uoro", 0.7), ("rtrl", 0.5)]
    comparison = compare(tmp_path, *((recurrent(rule=rule), loss) for rule, loss in losses))
    assert [arm.label for arm in comparison.best(comparison.arms, 2)] == ["RFLO", "RTRL"]


def planned(root, name="y", arm="classical trace"):
    """Return the jobs, none of which has run, of a sweep over three delays of one arm whose decays differ."""
    jobs = []
    for delay, decay in [(2.0, 0.5), (8.0, 0.9), (32.0, 0.9)]:
        config = rl(delay=delay, trace="et", decay=decay)
        values = {key: value for key, value in config.as_data().items() if key != "threads"}
        jobs.append((Job(f"CartPole-v1-{config.label}-0-{fingerprint(values)}", arm, values), config))
    SweepFolder(root / name).open_for(Sweep("title", tuple(job for job, _ in jobs)))
    return jobs


def test_a_sweep_names_its_arms_and_what_it_waits_for(tmp_path):
    jobs = planned(tmp_path)
    for job, config in jobs[:2]:
        write_run(tmp_path / "y" / job.name, config, 3.0)
    write_run(tmp_path / "copy", jobs[0][1], 4.0)  # of the same configuration, outside of the sweep
    assert sorted(run.status for run in read(tmp_path)) == ["finished"] * 3 + ["waiting"]
    comparison = one_comparison(tmp_path)
    assert [(arm.label, list(arm.at)) for arm in comparison.arms] == [("classical trace", [2.0, 8.0, 32.0])]
    assert comparison.missing == ["classical trace at 32 s"]
    assert comparison.differing["classical trace", 8.0] == "decay 0.9"
    assert [len(at.repeats) for _, at in comparison.all_runs] == [1, 0, 0]
    SweepFolder(tmp_path / "y").note_failure(jobs[2][0].name, "killed by SIGKILL")
    assert [run.problem for run in read(tmp_path) if run.status == "failed"] == ["killed by SIGKILL"]


def test_a_damaged_sweep_leaves_its_runs(tmp_path):
    jobs = planned(tmp_path)
    write_run(tmp_path / "y" / jobs[0][0].name, jobs[0][1], 3.0)
    (tmp_path / "y" / "sweep.yaml").write_text("jobs: [1, 2")
    places, problems = find_runs([tmp_path])
    assert len(places) == 1
    assert "sweep.yaml is damaged" in problems[0]
    (tmp_path / "y" / "sweep.yaml").unlink()
    planned(tmp_path / "y", "z")
    escaping = (tmp_path / "y" / "z" / "sweep.yaml").read_text().replace("CartPole-v1-et", "../../CartPole-v1-et")
    (tmp_path / "y" / "z" / "sweep.yaml").write_text(escaping)
    assert len(find_runs([tmp_path])[0]) == 1


# -------------------- what is read


def test_run_folders_are_found_at_any_depth_and_once(tmp_path):
    write_run(tmp_path / "a" / "b" / "run", rl())
    write_run(tmp_path / "other", rl(seed=1))
    write_run(tmp_path / ".hidden", rl(seed=2))
    (tmp_path / "a" / "loop").symlink_to(tmp_path, target_is_directory=True)
    places, problems = find_runs([tmp_path, tmp_path / "other"])
    assert (sorted(place.path.name for place in places), problems) == (["other", "run"], [])


def test_runs_are_read_in_every_state(tmp_path):
    write_run(tmp_path / "a", rl(), 1.0)
    write_run(tmp_path / "b", rl(), status="interrupted")
    write_run(tmp_path / "c", rl(), status="failed", error="FloatingPointError: the loss\nis not finite")
    write_run(tmp_path / "d", rl(), status=None)
    found = read(tmp_path)
    assert [run.status for run in found] == ["finished", "interrupted", "failed", "unfinished"]
    assert [run.problem for run in found] == ["", "", "FloatingPointError: the loss is not finite", ""]
    assert (found[0].metrics, found[0].speed, found[3].steps) == ({"train_return_mean": 1.0}, 500.0, 10_000)
    assert ArmAtDelay(0.0, (found[0], replace(found[0], speed=600.0))).speed == 550.0


DAMAGE = {
    "lost": ("config.yaml", None, "there is no config.yaml"),
    "no task": ("config.yaml", "delay: 2\n", "names no task"),
    "no mapping": ("config.yaml", "- 1\n- 2\n", "no mapping"),
    "another key": ("config.yaml", "task: CartPole-v1\nlamda: 0.9\n", "unknown key 'lamda'"),
    "a bad value": ("config.yaml", "task: CartPole-v1\nlr: -1\n", "--lr must be positive"),
    "an odd tag": ("config.yaml", "task: !!bool perhaps\n", "config.yaml"),
    "not text": ("config.yaml", b"\xff\xfe\x00", "config.yaml"),
    "half a summary": ("summary.json", '{"task": "CartPole-v1", ', "summary.json"),
    "a summary of another run": ("summary.json", {"seed": 5}, "its seed is 5, that of config.yaml 0"),
    "a summary of another task": ("summary.json", {"task": "digits"}, "its task is 'digits'"),
    "an unknown state": ("summary.json", {"status": "done"}, "its status is 'done'"),
    "a score in words": ("summary.json", {"metrics": {"train_return_mean": "high"}}, "'high' is no number"),
    "an endless score": ("summary.json", {"metrics": {"train_return_mean": float("inf")}}, "is not finite"),
    "a huge number": ("summary.json", {"steps": 10**400}, "summary.json"),
    "deep": ("summary.json", "[" * 100_000, "summary.json"),
}


@pytest.mark.parametrize(("file", "content", "problem"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_run_says_what_is_wrong(tmp_path, file, content, problem):
    path = write_run(tmp_path / "run", rl(), 1.0) / file
    if isinstance(content, dict):
        content = json.dumps({**json.loads(path.read_text()), **content})
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    (run,) = read(tmp_path)
    assert run.status == "damaged"
    assert problem in run.problem
    assert file in run.problem.split(": ")[0]
    assert group_runs([run]) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("time/total_timesteps,rollout/ep_rew_mean\n5,1\n3,2\n", "its steps do not increase"),
        ("a,b\n1,2\n", "no column time/total_timesteps"),
        ("time/total_timesteps\nnan\n", "its steps do not increase"),
        ("time/total_timesteps," + "x" * 200_000 + "\n", "metrics.csv"),
    ],
)
def test_a_run_with_damaged_curves_keeps_its_score(tmp_path, text, problem):
    (write_run(tmp_path / "run", rl(), 7.0) / "metrics.csv").write_text(text)
    (run,) = read(tmp_path)
    assert (run.status, dict(run.columns)) == ("finished", {})
    assert problem in run.problem
    assert one_comparison(tmp_path).all_runs[0][1].scores(presentation(RL).score).tolist() == [7.0]


def test_columns_are_read_thinned_and_without_a_cut_row(tmp_path):
    file = tmp_path / "metrics.csv"
    file.write_text("step,value,rest\n" + "".join(f"{row},{row / 2},x\n" for row in range(101)) + "101,5,0")
    columns = read_columns(file, lambda name: name != "rest")
    assert {name: len(values) for name, values in columns.items()} == {"step": 101, "value": 101}
    assert read_columns(file, most=5)["step"].tolist() == [0, 25, 50, 75, 100]
    assert np.isnan(read_columns(file)["rest"]).all()
    file.write_text("step\n")
    assert read_columns(file) == {}


def test_nothing_in_a_folder_is_run(tmp_path, elsewhere):
    trap = tmp_path / "trap"
    for name in ("evil_env", "evil_agent", "evil_rule"):
        (tmp_path / f"{name}.py").write_text(f"open({str(trap)!r}, 'w')\n")
    write_run(tmp_path / "runs" / "a", rl("evil_env:Task-v0", agent="evil_agent:Agent"), 1.0)
    write_run(tmp_path / "runs" / "b", recurrent(rule="evil_rule:Rule"), 1.0)
    path = write_run(tmp_path / "runs" / "c", rl(), 1.0)
    (path / "config.yaml").write_text(f"task: !!python/object/apply:os.system ['touch {trap}']\n")
    (path / "checkpoint").mkdir()
    (path / "checkpoint" / "agent.zip").write_bytes(b"cos\nsystem\n(S'touch trap'\ntR.")
    report = write_report(["runs"])
    assert [run.status for run in report.runs] == ["finished", "finished", "damaged"]
    assert "evil_env:Task-v0" in Page(report.page.read_text()).text
    assert not trap.exists()
    assert not {"evil_env", "evil_agent", "evil_rule"} & set(sys.modules)


def mutations():
    """Changes to one of a run's files."""
    numbers = [b"1e15", b"-3", b"0", b"7", b"1e308", b"nan", b"64", b"1e-9", b"null", b"[]"]
    return st.tuples(st.sampled_from(["config.yaml", "summary.json", "metrics.csv"]), changes(numbers, 4))


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    root = tmp_path_factory.mktemp("sound")
    write_run(root / "a", rl(delay=2.0, trace="legendre"), 5.0)
    write_run(root / "b", vision(delay=2.0), 0.5)
    write_run(root / "c", recurrent(rule="dni", delay=2.0), 0.5)
    return root


@settings(max_examples=200)
@given(name=st.sampled_from("abc"), mutation=mutations())
def test_mutated_files_are_used_or_named(sound, tmp_path_factory, name, mutation):
    path = tmp_path_factory.mktemp("fuzz") / "run"
    shutil.copytree(sound / name, path)
    damage(path / mutation[0], mutation[1])
    run = read_run(RunLocation(path))
    assert run.status in STATES
    if run.status == "damaged":
        assert run.problem.startswith(mutation[0]) or mutation[0] == "config.yaml"
        assert group_runs([run]) == []
    else:
        (comparison,) = group_runs([run])
        assert comparison.all_runs[0][1].runs == (run,)


@settings(max_examples=6, phases=[Phase.explicit, Phase.generate])
@given(several=st.lists(st.tuples(st.sampled_from("abc"), mutations()), min_size=4, max_size=4))
def test_a_report_on_mutated_files_is_written(sound, tmp_path_factory, several):
    root = tmp_path_factory.mktemp("fuzz")
    for place, (name, mutation) in enumerate(several):
        shutil.copytree(sound / name, root / f"run-{place}")
        damage(root / f"run-{place}" / mutation[0], mutation[1])
    report = write_report([root])
    page = Page(report.page.read_text())
    assert len(report.runs) == 4
    for run in report.runs:
        assert run.path.name in page.text
        assert clean(run.problem) in page.text


# -------------------- what is drawn


def test_sampled_kernels_are_the_traces_kernels():
    for trace, delay in [(CET(10, 40), 40), (Legendre(8, 400), 400), (CET(3, 7, "peak"), 7)]:
        lags, values = sampled_kernel(trace, delay)
        assert np.abs(values - trace.kernel(3 * delay + 1).numpy()[lags.astype(int)]).max() < 1e-10
    assert [values.tolist() for values in sampled_kernel(PerfectMemory(5), 5)] == [[5, 5], [0, 1]]
    lags, values = sampled_kernel(CET(10, 40), 40)
    assert lags[values.argmax()] == 40


def test_a_trace_whose_class_fails_does_not_fail_the_report(tmp_path, monkeypatch):
    found = compare(tmp_path, rl(delay=2.0, trace="legendre", order=3), rl(delay=2.0, order=3))
    build = TraceConfig.build

    def failing(described, delay):
        if described.kind == "legendre":
            raise RuntimeError("as a trace of one's own may")
        return build(described, delay)

    monkeypatch.setattr(TraceConfig, "build", failing)
    (picture,) = kernels(found)
    assert picture.caption.endswith("Too long or too large to draw: Legendre 3 at 2 s.")


def test_kernels_that_cannot_be_drawn_are_named(tmp_path):
    runs = [rl(delay=2.0, order=3), rl(delay=2.0, order=65), rl(delay=2.0, agent="sb3:a2c")]
    (picture,) = kernels(compare(tmp_path / "kernels", *runs))
    assert picture.caption.endswith("Too long or too large to draw: CET 65 at 2 s.")
    (held,) = memory(compare(tmp_path / "memory", *runs[:2], rl(delay=2.0, trace="perfect")))
    assert [axes.get_title() for axes in held.figure.axes] == ["states of CET 3", "responses to a signal"]
    assert [text.get_text() for text in held.figure.legends[0].get_texts()] == ["CET 3", "perfect memory"]
    both = rl(delay=4.8, trace="perfect"), rl(delay=4.8, trace="legendre", order=10, step_ms=400.0)
    lines = memory(compare(tmp_path / "steps", *both))[0].figure.axes[-1].lines[1:]
    rises = [line.get_xdata()[np.argmax(line.get_ydata() > 0.5)] for line in lines]
    assert abs(rises[0] - rises[1]) < 1 < min(rises) - 4  # seconds


@pytest.mark.parametrize("trace", [CET(4, 30), Legendre(6, 30)])
def test_what_is_drawn_of_memory_is_what_the_recursion_holds(trace):
    times, signal = pulses(30)
    lags, states = sampled_states(trace, 30)
    event, output = np.zeros(len(signal)), []
    event[0] = 1
    transition = trace.transition()
    for entering, kept in ((signal, output), (event, found := [])):
        state = np.zeros(len(transition.K))
        for value in entering:
            state = transition.M @ state + transition.K * value
            kept.append(state)
    np.testing.assert_allclose(filtered(signal, trace), np.array(output) @ transition.C, atol=1e-12)
    np.testing.assert_allclose(states.T, np.array(found)[lags.astype(int)] / np.abs(found).max(), atol=1e-10)
    assert {*signal} == {0.0, 1.0}
    assert len(times) == len(signal) == 120


def test_a_picture_is_what_was_drawn():
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([0, 1], [1, 0], color=palette.INK)
    written = Image.open(io.BytesIO(render(figure, "png")))
    assert (written.size, written.mode) == ((2 * DPI, DPI), "RGB")
    assert written.info["dpi"] == pytest.approx((DPI, DPI), rel=1e-3)  # kept as dots a metre
    assert set(written.info) == {"dpi"}  # neither a date nor a version
    shown = np.asarray(figure.canvas.buffer_rgba())
    assert (np.asarray(written) == shown[..., :3]).all()
    assert (shown[..., 3] == 255).all()
    for form, start in (("svg", b"<?xml"), ("pdf", b"%PDF")):
        file = render(figure, form)
        assert file.startswith(start)
        assert file == render(figure, form)
        assert b"Date" not in file.replace(b"dc:date", b"")
    shown = as_files(Picture("a", figure, "", ""), "svg").svg
    assert palette.INK not in shown.partition("</style>")[2]
    assert f"stroke: var(--c{palette.INK[1:]})" in shown
    assert "@media(prefers-color-scheme:dark){:root{" in shown


def figures(comparison, *functions):
    return [picture.figure for function in functions for picture in function(comparison)]


def two_arms(root):
    """Compare two arms at two delays, one of them without a result at 8 s, and one arm without delay."""
    arms = [(0.0, None), (2.0, 2), (2.0, 5), (8.0, 5)]
    runs = [
        (rl(delay=delay, order=order, seed=seed), delay + 10.0 * (order or 0) + seed**2)
        for delay, order in arms
        for seed in range(7)
    ]
    return compare(root, *runs)


def test_scores_are_drawn_where_they_are_and_hollow_without_delay_beside_others(tmp_path):
    comparison = two_arms(tmp_path)
    (figure,) = figures(comparison, scores)
    at_two, at_eight = figure.axes
    assert at_two.get_shared_x_axes().joined(at_two, at_eight)
    rows = {label.get_text(): place for place, label in enumerate(at_two.get_yticklabels())}
    assert rows == {"no delay": 0, "CET 2": 1, "CET 5": 2}
    looks_of = styles(comparison)
    for axes, delay, labels in [(at_two, 2.0, rows), (at_eight, 8.0, ["no delay", "CET 5"])]:
        seeds, points, ends = set(), {}, {}
        for drawn in axes.collections:
            if hasattr(drawn, "get_segments"):
                shown = zip(drawn.get_segments(), drawn.get_edgecolors(), strict=True)
                ends |= {tuple(map(tuple, place.tolist())): to_hex(color) for place, color in shown}
            elif drawn.get_sizes()[0] > 30:
                seeds.update(map(tuple, drawn.get_offsets().tolist()))
            else:
                shown = zip(drawn.get_offsets(), drawn.get_edgecolors(), drawn.get_facecolors(), strict=True)
                points |= {tuple(place.tolist()): (to_hex(edge), to_hex(face)) for place, edge, face in shown}
        arms = {
            arm.label: (arm, 0.0 if arm.undelayed else delay) for arm in comparison.arms if arm.label in labels
        }
        found = {label: comparison.estimate(arm, own) for label, (arm, own) in arms.items()}
        assert all(each.least < each.low < each.high < each.most for each in found.values())
        color = {label: looks_of[label]["color"] for label in labels}
        inside = {**color, "no delay": palette.PAPER}
        assert points == {
            (each.centre, rows[label]): (color[label], inside[label]) for label, each in found.items()
        }
        assert ends == {
            ((each.low, rows[label]), (each.high, rows[label])): color[label] for label, each in found.items()
        }
        score = comparison.presentation.score
        assert seeds == {
            (value, rows[label]) for label, (arm, own) in arms.items() for value in arm.at[own].scores(score)
        }


def test_a_heatmaps_numbers_stand_in_their_frames(tmp_path):
    (axes,) = figures(two_arms(tmp_path), heatmap)[0].axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["no delay", "CET 2", "CET 5"]
    written = {text.get_position(): text.get_text() for text in axes.texts}
    spread = f"\n± {np.std(np.arange(7) ** 2, ddof=1):.1f}"
    known = {(0.5, 0): "11.0", (0, 1): "33.0", (0, 2): "63.0", (1, 2): "69.0"}
    assert written == {(1, 1): "–", **{place: score + spread for place, score in known.items()}}
    (frames,) = axes.collections
    boxes = [tuple(path.get_extents().extents) for path in frames.get_paths()]
    assert boxes[0] == (-0.5, -0.5, 1.5, 0.5)
    assert boxes[1:] == [(x - 0.5, y - 0.5, x + 0.5, y + 0.5) for x, y in ((0, 1), (1, 1), (0, 2), (1, 2))]
    low, high = (to_hex(viridis(end)) for end in (0.0, 1.0))
    shades = [to_hex(color, keep_alpha=True) for color in frames.get_facecolors()]
    assert (shades[0], shades[2], shades[4]) == (f"{low}ff", "#00000000", f"{high}ff")
    (hatched,) = axes.patches
    assert hatched.get_extents().extents == pytest.approx(
        axes.transData.transform([[0.5, 1.5], [1.5, 0.5]]).ravel()
    )


def looks(figure):
    """Colour and dash of each arm's lines, by label: one if they are all alike."""
    found = {}
    for axes in figure.axes:
        for line in axes.lines:
            if not line.get_label().startswith("_"):
                found.setdefault(line.get_label(), set()).add((line.get_color(), str(line._unscaled_dash_pattern)))
    return found


def test_an_arm_looks_the_same_in_all_figures_and_its_neighbours_differ(tmp_path):
    missing = [
        (2, 8.0),
        (3, 2.0),
    ]  # the first arm where alignment would be the longest, and one at the first delay
    given = [(order, delay) for order in (2, 3, 5, 7) for delay in (2.0, 8.0) if (order, delay) not in missing]
    runs = [rl(delay=delay, order=order) for order, delay in given]
    runs += [rl(delay=8.0, order=11, lr=lr) for lr in (1e-3, 5e-4)]  # two of one trace, whose kernel has its name
    drawn = figures(compare(tmp_path, *runs, rl()), learning_curves, alignment, kernels)
    curves, over_training, over_return, kernel = map(looks, drawn)
    labels = ["CET 2", "CET 3", "CET 5", "CET 7", "CET 11 (lr 0.0005)", "CET 11 (lr 0.001)"]
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == [*labels, "no delay"]
    for other in (over_training, over_return):
        assert {label: curves[label] for label in labels} == other
    assert all(len(each) == 1 for each in (*curves.values(), *kernel.values()))
    assert {label: curves[label] for label in labels[:4]}.items() <= kernel.items()
    assert len({min(each) for each in curves.values()}) == len(curves)
    alone = compare(tmp_path / "alone", rl(delay=8.0, order=5), rl(delay=8.0, trace="legendre", order=10))
    assert looks(figures(alone, learning_curves)[0])["CET 5"] == curves["CET 5"]


def test_arms_can_be_told_apart_in_print_and_whoever_looks():
    def lightness(color):
        return to_rgb(color) @ np.array([0.2126, 0.7152, 0.0722])

    def confused(color):  # by deuteranopia: Machado et al. (2009), in linear light
        linear = np.array(to_rgb(color)) ** 2.2
        seen = [[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]] @ linear
        return seen.clip(0, 1) ** (1 / 2.2)

    found = palette.looks({f"{kind} {order}": Identity(kind, order) for kind in "abcdefgh" for order in range(9)})
    assert len({(each["color"], str(each["linestyle"])) for each in found.values()}) == 56  # all there are
    assert len({each["marker"] for each in found.values()}) == len(palette.COLORS)
    crowd = palette.looks({f"CET {order}": Identity("cet", order) for order in range(2, 22)})
    assert ([*crowd][8], palette.looks({"CET 10": Identity("cet", 10)})) == ("CET 10", {"CET 10": crowd["CET 10"]})
    for kinds, orders in ((("cet", "et", "legendre", "optimal", "sharp"), [10]), (("cet",), [2, 5, 10, 20])):
        several = palette.looks({f"{kind}{order}": Identity(kind, order) for kind in kinds for order in orders})
        assert len({(look["marker"], str(look["linestyle"])) for look in several.values()}) == len(several)
    colors = [[*palette.COLORS][palette.KINDS[kind][0]] for kind in ("cet", "et", "legendre", "optimal", "sharp")]
    for ground in (colors, [palette.DARK[color] for color in colors]):
        for first, second in itertools.combinations(ground, 2):
            assert np.linalg.norm(confused(first) - confused(second)) > 0.15
    paper, night = lightness(palette.PAPER), lightness(palette.DARK[palette.PAPER])
    assert all(paper - lightness(color) > 0.3 for color in palette.COLORS)
    assert all(lightness(color) - night > 0.3 for color in palette.COLORS.values())


def test_an_arm_whose_name_begins_with_an_underscore_is_in_every_legend(tmp_path):
    for job, config in planned(tmp_path, arm="_x"):
        write_run(tmp_path / "y" / job.name, config, 3.0)
    drawn = figures(one_comparison(tmp_path), learning_curves, alignment, kernels)
    assert len(drawn) == 4
    assert all([text.get_text() for text in figure.legends[0].get_texts()] == ["_x"] for figure in drawn)


def test_a_legend_cuts_no_name_down_to_that_of_another():
    alike = [f"optimal 10 (tolerance {tolerance}, delay ×1.05)" for tolerance in (0.05, 0.1)]
    figure = Figure()
    for labels, shown in ((alike, alike), (["a" * 40], [f"{'a' * 14}…{'a' * 14}"])):
        legend(figure, {name: Line2D([], []) for name in labels})
        assert [text.get_text() for text in figure.legends[-1].get_texts()] == shown


@pytest.mark.parametrize("stacked", [False, True])
def test_alignment_of_images_is_drawn_over_accuracy_in_per_cent(tmp_path, stacked):
    _, picture = alignment(compare(tmp_path, (vision(delay=2.0, stacked=stacked), 0.8)))
    assert (picture.name, "over the accuracy that went with it" in picture.caption) == ("alignment-accuracy", True)
    first = picture.figure.axes[0]
    x, y = next(line for line in first.lines if line.get_label() == "CET 5").get_data()
    assert first.get_xlabel() == "test accuracy, %"
    assert 10.0 <= x.min() < x.max() <= 80.0
    assert 0.82 <= y.min() < y.max() <= 0.89


def test_alignment_has_a_row_for_each_of_the_longest_delays(tmp_path):
    runs = [replace(rl(delay=delay), total_steps=1000 * int(delay)) for delay in (2.0, 4.0, 8.0, 32.0)]
    pictures = alignment(compare(tmp_path, *runs))
    for figure in (picture.figure for picture in pictures):
        grid = [axes for axes in figure.axes if axes.get_visible()]
        titles = [axes.get_title() for axes in grid]
        assert titles == [f"{delay} s, layer {layer}" for delay in (4, 8, 32) for layer in (0, 1)]
        assert [axes.get_subplotspec().rowspan.start for axes in grid] == [0, 0, 1, 1, 2, 2]
    ends = [
        max(line.get_xdata().max() for line in axes.lines if line.get_label() == "CET 5")
        for axes in pictures[0].figure.axes
    ]
    assert (ends, len(pictures)) == ([4000, 4000, 8000, 8000, 32000, 32000], 2)
    for picture in pictures:
        assert "the same data, 4 s, 8 s and 32 s, over" in picture.caption
        assert "Also logged, not drawn: 2 s." in picture.caption


@pytest.mark.parametrize(
    ("highs", "expected"),
    [
        ([0.6, 0.5, 16.0, 0.62], 0.62),
        ([0.6, 0.5, 0.9, 0.62], None),  # the axis is three times as long, not five
        ([0.6, 0.5, 16.0], None),  # too few to say which are usual
        ([0.6, 0.5, 16.0, 15.0, 0.62], None),  # two of five: no exception
        ([0.5 + 0.01 * place for place in range(18)] + [16.0, 15.0], 0.67),
        ([0.5 + 0.01 * place for place in range(18)] + [1e6, 16.0], 0.67),
        ([0.5 + 0.01 * place for place in range(19)] + [16.0], 0.68),
        ([0.5, 0.5, 0.5, 0.5, 16.0], None),  # nothing is left to show
        ([-16.0, 0.5, 0.6, 0.62], None),
        ([], None),
    ],
)
def test_few_diverging_runs_do_not_set_an_axis(highs, expected):
    assert loss_limit(highs) == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("make", "values"),
    [
        (recurrent, [0.5, 0.55, 0.4, 0.45, 0.42, 0.6, 0.65, 0.62, 16.0]),
        *((make, [0.95, 0.96, 0.97, 0.955, 0.1]) for make in (rl, vision)),
        *((make, [0.1, 0.11, 0.12, 0.105, 0.95]) for make in (rl, vision)),
    ],
)
def test_a_loss_that_diverges_is_beyond_the_axis_and_no_other_score(tmp_path, make, values):
    comparison = compare(tmp_path, *((make(seed=seed), score) for seed, score in enumerate(values)))
    (points,), (curves,) = scores(comparison), learning_curves(comparison)
    at_scores, at_curves = (picture.figure.axes[0] for picture in (points, curves))
    across = [limit / (100 if make is vision else 1) for limit in at_scores.get_xlim()]
    beyond = make is recurrent
    for low, high in (across, at_curves.get_ylim()):
        assert low < min(values)
        assert (0.65 < high < 1.0) if beyond else max(values) < high
    assert ("Some losses lie beyond the axis" in points.caption) == beyond
    assert ("1 run diverged and went beyond the axis." in curves.caption) == beyond


def test_baselines_are_those_of_the_task(tmp_path):
    comparison = compare(tmp_path, (recurrent(rule="rflo"), 0.6), (recurrent(rule="rtrl"), 0.5))
    found = baselines_of(comparison)
    assert found["no history"] == pytest.approx(0.6616, abs=1e-4)
    assert found["both"] == pytest.approx(0.4545, abs=1e-4)
    (picture,) = scores(comparison)
    assert "Lower is better. Dotted: the losses of the best predictors" in picture.caption
    write_run(tmp_path / "c", recurrent(rule="bptt", lags=(2, 4)), 0.5)
    assert baselines_of(one_comparison(tmp_path)) == found  # other lags, the same sums
    write_run(tmp_path / "d", recurrent(rule="bptt", lags=(2, 2)), 0.5)
    assert baselines_of(one_comparison(tmp_path)) == {}


def test_delays_are_chosen_evenly():
    assert some_delays([1.0, 2.0, 3.0], 6) == [1.0, 2.0, 3.0]
    assert some_delays([float(delay) for delay in range(11)], 6) == [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]


def test_seeds_without_a_common_stretch_are_not_drawn():
    steps_of = [np.array([1.0, 2.0]), np.array([5.0, 6.0])]
    curves = [Curve("a", seed, {MetricsTable.STEP: at, RETURN: at}) for seed, at in enumerate(steps_of)]
    axes = Figure().subplots()
    assert list(draw_curves(axes, curves[:1], styles={"a": {"linestyle": "--"}})) == ["a"]
    assert (draw_curves(axes, curves), len(axes.lines)) == ({}, 1)


# -------------------- pairs of arms, and tables for a paper


def test_the_probability_of_improvement_is_that_of_agarwal_et_al():
    """P(X > Y) is the mean over tasks of Mann and Whitney's U divided by the number of pairs."""
    x, y = [np.array([1.0, 2.0, 2.0, 5.0]), np.array([7.0, 8.0, 9.0])], [np.array([2.0, 0.5]), np.array([8.0] * 3)]
    both = list(zip(x, y, strict=True))
    expected = np.mean([scipy.stats.mannwhitneyu(a, b).statistic / (len(a) * len(b)) for a, b in both])
    assert probability(x, y) == pytest.approx(expected)
    assert probability(x, y) == pytest.approx((6 / 8 + 1.5 / 3) / 2)  # ties count half
    assert probability(y, x) == pytest.approx(1 - expected)
    assert probability([np.stack([each, each]) for each in x], [np.stack([each, each]) for each in y]).shape == (
        2,
    )


@pytest.mark.parametrize(("make", "sign"), [(rl, 1), (recurrent, -1)])
def test_pairs_of_arms_are_compared_over_the_delays_that_both_have(tmp_path, make, sign):
    generator = np.random.default_rng(3)
    scores_of = {(order, delay): generator.normal(0.3 * order, 1, 12) for order in (2, 5) for delay in (2.0, 8.0)}
    runs = [
        (make(delay=delay, order=order, seed=seed), sign * score + 10)
        for (order, delay), scores in scores_of.items()
        for seed, score in enumerate(scores)
    ]
    comparison = compare(tmp_path, *runs, (make(delay=2.0, order=9), sign * 99.0))
    names = [arm.label for arm in comparison.arms]
    pairs = {(each.first, each.second): each for each in improvements(comparison)}
    found, single = pairs[names[0], names[1]], pairs[names[0], names[2]]
    low, high = ([scores_of[order, delay] for delay in (2.0, 8.0)] for order in (2, 5))
    assert (len(pairs), found.delays, found.probability) == (3, 2, pytest.approx(float(probability(low, high))))
    drawn = [
        float(probability(*([generator.choice(values, 12) for values in arm] for arm in (low, high))))
        for _ in range(500)
    ]
    assert (found.low, found.high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.04)
    assert (found.decided, single.decided) == (True, False)
    assert (single.delays, single.probability, single.low) == (1, 0.0, None)
    (picture,) = improvement_matrix(comparison)
    written = {text.get_position(): (text.get_text(), text.get_weight()) for text in picture.figure.axes[0].texts}
    assert written[1, 0] == (f"{found.probability:.2f}", "bold")
    assert (written[0, 1], written[0, 2]) == ((f"{1 - found.probability:.2f}", "bold"), ("1.00", "normal"))
    at_two, at_eight = page.summarize(comparison)
    assert (at_two[:2], at_two[2].second, at_two[2].probability) == ((2.0, comparison.arms[2]), names[1], 1.0)
    assert (at_eight[:2], at_eight[2].second) == ((8.0, comparison.arms[1]), names[0])


def test_tables_are_read_by_latex_and_by_spreadsheets(tmp_path):
    runs = [
        (rl(delay=d, order=n, seed=seed), 10 * n + seed) for d in (2.0, 8.0) for n in (2, 5) for seed in range(3)
    ]
    perfect = [(rl(delay=2.0, trace="perfect"), 99.0), (rl(), 100.0)]
    comparison = compare(tmp_path, *runs[:-3], *perfect)
    assert results_tex(comparison).splitlines()[1:] == [
        r"% \usepackage{booktabs}",
        r"\begin{tabular}{lcc}",
        r"\toprule",
        r" & 2 s & 8 s \\",
        r"\midrule",
        r"no delay & 100.0 & 100.0 \\",
        r"CET 2 & 21.0 {\scriptsize [20.0, 22.0]} & \textbf{21.0 {\scriptsize [20.0, 22.0]}} \\",
        r"CET 5 & \textbf{51.0 {\scriptsize [50.0, 52.0]}} & -- \\",
        r"perfect memory & 99.0 & -- \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]
    small = compare(tmp_path / "small", *((recurrent(seed=seed), -1e-6) for seed in range(3)))
    assert r"$-$1$\times 10^{-6}$ {\scriptsize [$-$1$\times 10^{-6}$, $-$1$\times 10^{-6}$]}" in results_tex(small)
    rows = list(csv.DictReader(io.StringIO(results_csv(comparison))))
    assert [(row["arm"], row["delay in s"], row["n"]) for row in rows][:3] == [
        ("no delay", "0", "1"),
        ("CET 2", "2", "3"),
        ("CET 2", "8", "3"),
    ]
    assert list(rows[1].values())[3:8] == ["21", "20", "22", "20", "22"]
    assert escape("a_b & 50 % $x$ {~^\\} <λ>[1]") == (
        r"a\_b \& 50 \% \$x\$ \{\textasciitilde{}\textasciicircum{}\textbackslash{}\} $<$$\lambda$$>${[}1{]}"
    )


# -------------------- by how many processes


def in_process(comparison):
    figure = Figure()
    figure.text(0, 0, f"process {os.getpid()}")
    return [Picture(comparison, figure, "", "")]


def killed(comparison):
    if multiprocessing.parent_process():
        os.kill(os.getpid(), signal.SIGKILL)
    return in_process(comparison)


@pytest.mark.skipif(sys.platform != "linux", reason="forking is safe on Linux only")
@pytest.mark.parametrize(("figure", "here"), [(in_process, False), (killed, True)])
def test_several_processes_draw_and_if_one_is_killed_this_one_does(monkeypatch, figure, here):
    monkeypatch.setattr(page, "processors", lambda: 3)
    monkeypatch.setattr(page, "FIGURES", (figure,))
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    monkeypatch.delitem(sys.modules, "torch", raising=False)  # as in a command that has not loaded it
    pictures = [picture for (picture,) in page.draw_all("abcde")]
    assert [picture.name for picture in pictures] == [*"abcde"]
    assert {f"process {os.getpid()}" in picture.svg for picture in pictures} == {here}
    monkeypatch.setattr(threading, "active_count", lambda: 2)
    assert f"process {os.getpid()}" in page.draw_all("ab")[0][0].svg


REPORT = """
import resource, sys
from cet_rl.report import page, write_report
page.processors = lambda: 2
write_report(sys.argv[1:2], sys.argv[2])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime > 0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="forking is safe on Linux only")
def test_a_report_is_the_same_however_many_processes_draw(tmp_path):
    for seed in range(3):
        write_run(tmp_path / "runs" / f"rl-{seed}", rl(delay=2.0, seed=seed), 1.0 + seed)
    write_run(tmp_path / "runs" / "vision", vision(delay=2.0), 0.5)
    write_run(tmp_path / "runs" / "add", recurrent(), 0.5)  # baselines: torch is loaded where they are drawn
    one, two = (tmp_path / count for count in ("one", "two"))
    done = run_python("-c", REPORT, tmp_path / "runs", two, succeeds=True)
    assert (done.stdout.strip(), done.stderr) == ("True", "")
    write_report([tmp_path / "runs"], one)  # torch is here, beside which nothing is forked
    one, two = ({file.name: file.read_bytes() for file in folder.iterdir()} for folder in (one, two))
    assert (len(one), one) == (22, two)
    assert len(list((tmp_path / "runs").iterdir())) == 5  # as before


# -------------------- the report


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """Runs of all kinds of tasks in all states, with names that want to be more, and the report on them."""
    root = tmp_path_factory.mktemp("everything") / "runs & <more>"
    for delay, order, seed in [(2.0, 2, 0), (2.0, 2, 1), (2.0, 2, 2), (8.0, 2, 0), (2.0, 5, 0), (0.0, None, 0)]:
        write_run(root / f"rl-{delay:g}-{order}-{seed}", rl(delay=delay, order=order, seed=seed), 10.0 + seed)
    write_run(root / "failed", rl(delay=8.0, order=5), status="failed", error="E: <script>alert(1)</script> & \"'")
    write_run(root / "stopped", rl(delay=8.0, order=9), 3.0, status="interrupted")
    write_run(root / "going", rl(delay=8.0, order=7), status=None)
    (write_run(root / "bad 100%#?'\"<b>", rl(), 1.0) / "summary.json").write_text('"<img src=x onerror=alert(1)>')
    write_run(root / "odd", rl('<script src="http://x.y/z.js">$\\frac{</script>"-v0'), 1.0)
    write_run(root / "vision", vision(delay=2.0), 0.875)
    write_run(root / "recurrent", recurrent(delay=2.0, rule="dni"), 0.5)
    report = write_report([root], title="Title <i>&amp;")
    return root, report, Page(report.page.read_text())


def test_the_report_holds_everything(everything):
    root, report, page = everything
    assert report.page == root / "report.html"
    for text in (
        "13 runs: 9 finished; 1 interrupted (stopped before the end; continues with --resume); 1 failed",
        "Title <i>&amp;",
        "Missing, without any result: CET 5 at 8 s, CET 7 at 2 s, CET 7 at 8 s, CET 9 at 2 s, CET 9 at 8 s.",
        "Failed: failed: E: <script>alert(1)</script> & \"'",
        "Not among the results: 1 interrupted, 1 failed, 1 unfinished.",
        "Test accuracy (%). Points: mean over the seeds of finished runs (n = 1)",
        "training return (last 100 episodes), interquartile mean over 1 to 3 seeds: at 2 s CET 2 is best with",
        "Dotted: the losses of the best predictors",
        "87.50",
        "n too small",
        f"cet-rl train --config '{root / 'rl-2-2-1' / 'config.yaml'}'",
    ):
        assert text in page.text
    kinds = {re.sub(r".*-", "", file.stem) for file in report.pictures}
    assert kinds == {"heatmap", "scores", "curves", "alignment", "return", "accuracy", "kernels", "memory"}
    pictures = [attributes for tag, attributes in page.elements if tag == "img"]
    assert len(pictures) == len(report.pictures)
    for attributes, file in zip(pictures, report.pictures, strict=True):
        assert len(attributes["alt"]) > 10
        assert file.read_bytes().startswith(b"\x89PNG")
        shown = base64.b64decode(attributes["src"].removeprefix("data:image/svg+xml;base64,"))
        assert shown.startswith(b"<?xml")
        assert b"<script" not in re.sub(b"<!--.*?-->", b"", shown, flags=re.DOTALL)


def test_nothing_from_a_folder_becomes_an_element(everything):
    *_, page = everything
    (script,) = page.scripts
    assert "table.sortable" in script
    known = "html head meta title style body script h1 h2 p nav ul li a b figure img figcaption div table thead"
    known += " tbody tr th td details summary pre"
    assert {tag for tag, _ in page.elements} <= set(known.split())
    known = "alt src href class id scope data-value lang charset name content"
    assert {name for _, attributes in page.elements for name in attributes} <= set(known.split())


def test_the_report_loads_nothing_and_links_to_what_is_there(everything):
    root, report, page = everything
    ids = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    linked = set()
    for _, attributes in page.elements:
        assert attributes.get("src", "data:").startswith("data:image/svg+xml;base64,") or "src" not in attributes
        href = attributes.get("href", "#runs")
        if href.startswith("#"):
            assert href[1:] in ids
        else:
            assert ":" not in href
            target = root / unquote(href)
            assert target.exists()
            linked.add(target.resolve())
    assert {run.path.resolve() for run in report.runs} <= linked
    (style,) = page.styles
    assert "url(" not in style
    assert "@import" not in style


def test_the_command(tmp_path, capsys):
    write_run(tmp_path / "runs" / "a", recurrent(), 0.5)
    assert main(["report", str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--format", "pdf"]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        f"{tmp_path / 'out' / 'report.html'}: 1 run (1 finished)",
        "3 figures beside it: report-add-scores.pdf, report-add-curves.pdf, report-add-alignment.pdf",
        "2 tables beside it: report-add-results.csv, report-add-results.tex",
    ]
    assert all(file.read_bytes().startswith(b"%PDF") for file in (tmp_path / "out").glob("*.pdf"))
    assert (main(["report", str(tmp_path / "runs"), "--quiet"]), capsys.readouterr().out) == (0, "")
    assert "<h1>runs</h1>" in (tmp_path / "runs" / "report.html").read_text()
    for arguments, line in [
        ([], "name run folders"),
        *[([str(tmp_path / name)], f"{name} is no folder") for name in ("none", "out/report.html")],
        ([str(tmp_path / "runs"), "--claims", "--format", "pdf"], "--claims draws nothing: leave out --format"),
        ([str(tmp_path / "out")], "there is no run folder in"),
        ([str(tmp_path), "--titel", "x"], "--titel"),
        ([str(tmp_path), "--format", "gif"], "png"),
    ]:
        assert_refused(here("report", *arguments), line)


def test_commands_repeat_runs(tmp_path):
    configs = [
        rl(delay=8.0, trace="et", decay=0.99, seed=3),
        rl("LunarLander-v3", delay=2.0, trace="legendre", lr=1e-5 / 3, random_lam=(0.1, 0.9), hidden=(3,)),
        recurrent(rule="bptt", rule_options=("window=10",), lags=(2, 4)),
        vision("mnist", delay=120.0, stacked=True, salience=0.0125, batch_size=1280),
    ]
    for place, config in enumerate(configs):
        write_run(tmp_path / f"it's run {place}", config, 0.5)
    text = Page(write_report([tmp_path]).page.read_text()).text
    lines = re.findall(r"cet-rl train --config .*?config\.yaml\S*", text)
    assert [parse_arguments(shlex.split(line)[2:]).config for line in lines] == configs


def test_text_is_made_fit_to_be_shown():
    assert clean("a\n b\tc") == "a b c"
    assert clean("a\x00b\ud800") == "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}"
    assert clean("x" * 400) == "x" * 299 + "…"
    values = None, float("nan"), 1234.56, 0.0, 0.001, -3e9
    assert [number(value, 1) for value in values] == ["–", "–", "1,234.6", "0.0", "0.001", "-3e+09"]


# -------------------- in a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A function that opens a page in a headless browser and returns its elements after scripts have run."""
    found = os.environ.get("CHROME_BIN") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if not found:
        pytest.skip(f"no browser here: none of {', '.join(BROWSERS)} is installed, and CHROME_BIN is not set")
    home = tmp_path_factory.mktemp("browser")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={home}", "--dump-dom"]

    def show(page):
        done = subprocess.run([found, *options, page.as_uri()], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    return show


def test_every_column_has_a_button(everything, browser):
    heads = re.findall(r"<th[^>]*>.*?</th>", browser(everything[1].page))
    assert len(heads) == 54
    assert all("<button" in head for head in heads)


@pytest.mark.parametrize(
    ("column", "clicks", "order"),
    [
        (0, 1, ["a2", "a10", "b"]),
        (0, 2, ["b", "a10", "a2"]),
        (1, 1, ["b", "a2", "a10"]),
        (1, 2, ["a2", "b", "a10"]),
    ],
)
def test_a_click_sorts_a_table(tmp_path, browser, column, clicks, order):
    values = [("a10", ""), ("b", 9.5), ("a2", 10.0)]
    cells = (f'<tr><td>{name}</td><td data-value="{value}">{value} s</td></tr>' for name, value in values)
    click = f"document.querySelectorAll('th button')[{column}].click();"
    text = page.render().replace("<tbody>", f"<tbody>{''.join(cells)}")
    (tmp_path / "page.html").write_text(text.replace("</script>", click * clicks + "</script>"))
    assert re.findall(r"<tr[^>]*><td>(\w+)</td>", browser(tmp_path / "page.html")) == order
