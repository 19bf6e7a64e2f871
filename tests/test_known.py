"""A CSV of finished runs: every sweep adds to it, and runs that it has are not made again."""

from __future__ import annotations

import csv
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sweep_fakes import fake, launcher_of, plan, ran, rows_of

from cet_rl.cli import main
from cet_rl.sweeps.folder import SweepFolder
from cet_rl.sweeps.known import KnownRun, KnownRuns
from cet_rl.sweeps.scheduler import run_sweep

STUDY = "task: digits\ndelay: 1\nhidden: [8]\ntotal_steps: 20\nseeds: 0-1\ngrid: {order: [2, 3]}\n"


def test_finished_runs_add_rows_at_once_and_are_skipped_wherever_they_were_made(tmp_path):
    known, first, second = tmp_path / "known.csv", tmp_path / "first", tmp_path / "second"
    plan(first, {1: "stop"})
    assert run_sweep(fake(0, 1), SweepFolder(first), launcher_of(first), quiet=True) == 1  # without the file
    plan(first, {})
    assert run_sweep(fake(0, 1), SweepFolder(first, known), launcher_of(first), quiet=True) == 0
    rows = rows_of(known)
    assert list(rows[0])[:6] == ["task", "agent", "arm", "seed", "budget", "steps"]
    assert list(rows[0])[6:] == ["test_loss", "threads", "seconds", "commit", "options"]
    assert [(row["seed"], row["budget"], row["test_loss"]) for row in rows] == [
        ("0", "100", "0.0"),
        ("1", "100", "1.0"),
    ]
    assert json.loads(rows[1]["options"]) == {"task": "fake", "total_steps": 100, "seed": 1}
    assert [bool(row["commit"]) for row in rows] == [False, Path(__file__).parents[1].joinpath(".git").exists()]

    assert run_sweep(fake(0, 1, 2), SweepFolder(second, known), launcher_of(second), quiet=True) == 0
    assert ran(second) == {2: 1}
    assert [row["test_loss"] for row in rows_of(second / "results.csv")] == ["0.0", "1.0", "2.0"]
    assert [row["seed"] for row in rows_of(known)] == ["0", "1", "2"]
    before = known.read_bytes()
    assert run_sweep(fake(0, 1, 2), SweepFolder(second), launcher_of(second), quiet=True) == 0  # it is remembered
    assert known.read_bytes() == before


def test_processes_add_rows_to_one_file_and_columns_join(tmp_path):
    known = KnownRuns(tmp_path / "known.csv")

    def add(seed):
        options = {"task": "fake", "seed": seed, "total_steps": 1}
        known.add([KnownRun("arm", options, "a", 1, {f"metric{seed % 2}": 0.1 * seed}, 1.0)])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, [*range(8), *range(8)]))
    runs = {run.options["seed"]: run for run in known.read()}
    assert {seed: run.metrics for seed, run in runs.items()} == {s: {f"metric{s % 2}": 0.1 * s} for s in range(8)}
    assert len(rows_of(known.file)) == 8
    assert [path.name for path in tmp_path.iterdir()] == ["known.csv"]


def test_the_command_goes_on_from_the_file_and_reports_draw_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("study.yaml").write_text(STUDY)
    command = ["sweep", "study.yaml", "--known", "known.csv", "--quiet"]
    assert main([*command, "--launcher", "batch", "--run-dir", "one"]) == 0
    with open("known.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    for row in rows:  # made before the code had an option
        options = json.loads(row["options"])
        del options["trace_delay"]
        row["options"] = json.dumps(options)
    with open("known.csv", "w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    assert main([*command, "--run-dir", "two"]) == 0
    assert not list(Path("two").glob("*/summary.json"))
    assert rows_of("two/results.csv") == rows_of("one/results.csv")
    for runs, name in (("known.csv", "report.html"), ("two", "two/report.html")):
        assert main(["report", runs, "--quiet"]) == 0
        page = Path(name).read_text()
        assert "4 runs: 4 finished" in page
        assert "Of 4 finished runs only the final numbers are there: learning curves and alignment need" in page
    Path("study.yaml").write_text(STUDY.replace("20", "30"))
    assert main([*command, "--run-dir", "three", "--status"]) == 0
    assert "4 waiting" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("options", "choices", "has no column options: name a CSV that --known has written"),
        ("fake,", "fake,,", "line 2: it has more cells than there are columns"),
        ("0.25", "good", "line 2: its score is no number: 'good'"),
        ('""seed"":0', '""seed"":1', "line 2: its seed is 0, that of its options 1"),
        ('""seed"":0', "seed", "line 2: "),
        ('""task""', '""job""', "line 2: its options lack 'task'"),
        ("fake", "\xff", "is no text"),
    ],
)
def test_a_damaged_file_is_one_clear_line(tmp_path, monkeypatch, capsys, old, new, words):
    monkeypatch.chdir(tmp_path)
    Path("study.yaml").write_text(STUDY)
    options = {"task": "fake", "seed": 0, "total_steps": 1}
    KnownRuns("known.csv").add([KnownRun("arm", options, "a", 1, {"score": 0.25}, 1.0)])
    text = Path("known.csv").read_text()
    assert old in text
    Path("known.csv").write_bytes(text.replace(old, new, 1).encode("latin-1"))
    for command in (["sweep", "study.yaml", "--known", "known.csv"], ["report", "known.csv"]):
        assert main(command) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line


@pytest.mark.parametrize("name", ["known.txt", "missing/known.csv"])
def test_a_file_that_cannot_be_is_refused(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    Path("study.yaml").write_text(STUDY)
    assert main(["sweep", "study.yaml", "--known", name]) == 2
    assert "--known" in capsys.readouterr().err
