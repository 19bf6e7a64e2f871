"""A CSV of finished runs: every sweep adds to it, and runs that it has are not made again."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import assert_refused, here
from sweep_fakes import fake, launcher_of, plan, ran, rows_of

import cet_rl
from cet_rl.cli import main
from cet_rl.report.reading import read_runs
from cet_rl.sweeps.build import build
from cet_rl.sweeps.file import read_sweep
from cet_rl.sweeps.folder import SweepFolder
from cet_rl.sweeps.known import KnownRun, KnownRuns, commit, fingerprint
from cet_rl.sweeps.scheduler import run_sweep

STUDY = "task: digits\ndelay: 1\nhidden: [8]\ntotal_steps: 20\nseeds: 0-1\ngrid: {order: [2, 3]}\n"


def known_run(metrics, seed=0):
    options = {"task": "fake", "seed": seed, "total_steps": 1}
    return KnownRun(
        "arm",
        options,
        {"agent": "a", "steps": 1, "steps_per_second": 7.0, "wall_seconds": 0.0, "metrics": metrics},
    )


def test_finished_runs_add_rows_at_once_and_are_skipped_wherever_they_were_made(tmp_path, monkeypatch, capsys):
    known, first, second = tmp_path / "known.csv", tmp_path / "first", tmp_path / "second"
    plan(first, {1: "stop"})
    assert run_sweep(fake(0, 1), SweepFolder(first), launcher_of(first), quiet=True) == 1  # without the file
    plan(first, {})
    assert run_sweep(fake(0, 1), SweepFolder(first, known), launcher_of(first), quiet=True) == 0
    rows = rows_of(known)
    assert list(rows[0])[:6] == ["task", "agent", "arm", "seed", "budget", "steps"]
    assert list(rows[0])[6:] == ["test_loss", "threads", "steps_per_second", "seconds", "commit", "options"]
    assert [(row["seed"], row["budget"], row["test_loss"]) for row in rows] == [(s, "100", f"{s}.0") for s in "01"]
    assert json.loads(rows[1]["options"]) == {"task": "fake", "total_steps": 100, "seed": 1}
    assert [row["commit"] for row in rows] == ["", commit()]
    monkeypatch.setattr(cet_rl, "__file__", str(tmp_path / "__init__.py"))
    assert commit.__wrapped__() == f"version {cet_rl.__version__}"  # where there is no repository

    assert run_sweep(fake(0, 1, 2), SweepFolder(second, known), launcher_of(second), quiet=True) == 0
    assert ran(second) == {2: 1}
    assert [row["test_loss"] for row in rows_of(second / "results.csv")] == ["0.0", "1.0", "2.0"]
    assert [row["seed"] for row in rows_of(known)] == ["0", "1", "2"]
    before = known.read_bytes()
    assert run_sweep(fake(0, 1, 2), SweepFolder(second), launcher_of(second), quiet=True) == 0  # it is remembered
    assert known.read_bytes() == before
    SweepFolder(second).known_file.write_text("/another/machine/known.csv\n")
    assert SweepFolder(second).known is None
    assert "known.txt is left aside: --known: there is no folder /another/machine" in capsys.readouterr().err


def test_processes_add_rows_to_one_file_and_columns_join(tmp_path):
    known, reader = (KnownRuns(tmp_path / "known.csv") for _ in range(2))
    last = fingerprint(known_run({}, 7).options)
    assert not reader.summary(last)

    def add(seed):
        known.add([known_run({f"metric{seed % 2}": 0.1 * seed}, seed)])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, [*range(7), *range(7)]))
    link = tmp_path / "link.csv"
    link.symlink_to(known.file)
    KnownRuns(link).add([known_run({"metric1": 0.1 * 7, "episodes": 100}, 7)])
    link.unlink()  # would fail if a file of its own had taken its place
    runs = {run.options["seed"]: run for run in known.read()}
    assert str(runs[7].summary["metrics"].pop("episodes")) == "100"  # as in a folder
    for seed, run in runs.items():
        assert run.summary["metrics"] == {f"metric{seed % 2}": 0.1 * seed}
        assert run.summary["steps_per_second"] == 7.0  # not steps over seconds, of which some went into start-up
    assert (len(rows_of(known.file)), reader.summary(last)["seed"]) == (8, 7)
    assert [path.name for path in tmp_path.iterdir()] == ["known.csv"]


def test_the_command_goes_on_from_the_file_and_reports_draw_it(elsewhere, capsys):
    Path("study.yaml").write_text(STUDY)
    metrics = {"test_accuracy": 0.5, "test_loss": 1.5}
    summary = {"agent": "mlp", "steps": 20, "wall_seconds": 1.0, "metrics": metrics}
    jobs = build(read_sweep("study.yaml")).jobs
    KnownRuns("known.csv").add(KnownRun(job.arm, job.values, summary) for job in jobs)
    command = ["sweep", "study.yaml", "--known", "known.csv", "--quiet"]
    text = Path("known.csv").read_text()
    assert '""trace_delay"":null,' in text  # as if made before the code had it, and saved by a spreadsheet
    Path("known.csv").write_text(text.replace('""trace_delay"":null,', ""), encoding="utf-8-sig")
    KnownRuns("known.csv").add(KnownRun(job.arm, job.values, summary) for job in jobs)
    assert len(rows_of("known.csv")) == 4  # each is there already
    assert main([*command, "--run-dir", "two"]) == 0
    assert not list(Path("two").glob("*/summary.json"))
    assert [row["test_loss"] for row in rows_of("two/results.csv")] == ["1.5"] * 4
    runs, _ = read_runs(["two"])
    assert [(run.status, bool(run.metrics), bool(run.columns)) for run in runs] == [("finished", True, False)] * 4
    head, first, *_ = text.splitlines()
    for rows, said in (([], "has no rows"), ([first, first.replace(",1.5,", ",2.5,")], "line 3.* run in line 2")):
        Path("other.csv").write_text("\n".join([head, *rows]))
        assert re.search(said, assert_refused(here("report", "other.csv")))
    Path("KNOWN.CSV").write_bytes(Path("known.csv").read_bytes())  # as other systems write a suffix
    assert main(["report", "KNOWN.CSV", "--quiet"]) == 0
    page = Path("report.html").read_text()
    assert "4 runs: 4 finished" in page
    assert "Of 4 finished runs only the final numbers are there: learning curves and alignment need" in page
    Path("study.yaml").write_text(STUDY.replace("20", "30"))
    assert main([*command, "--run-dir", "three", "--status"]) == 0
    assert "4 waiting" in capsys.readouterr().out
    Path("known.csv").write_text("no table")
    assert "known.csv is damaged" in read_runs(["two"])[1][0]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("options", "choices", "it has no column options: name one that --known has written"),
        ("fake,", "fake,,", "line 2: mend the row or remove it: it has more cells than columns"),
        *[("0.25", text, f"score must hold finite numbers, got '{text}'") for text in ("good", "nan", "9" * 400)],
        ('""seed"":0', '""seed"":1', "its seed is 0, that of its options 1"),
        ('""seed"":0', "seed", "line 2: "),
        ('""task""', '""job""', "its options lack 'task'"),
        ("fake", "\xff", "known.csv is damaged: "),
    ],
)
def test_a_damaged_file_is_one_clear_line(elsewhere, old, new, words):
    Path("study.yaml").write_text(STUDY)
    KnownRuns("known.csv").add([known_run({"score": 0.25})])
    text = Path("known.csv").read_text()
    assert old in text
    Path("known.csv").write_bytes(text.replace(old, new, 1).encode("latin-1"))
    for command in (["sweep", "study.yaml", "--known", "known.csv"], ["report", "known.csv"]):
        assert_refused(here(*command), words)
