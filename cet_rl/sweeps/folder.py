"""Keep the folder of a sweep: its jobs, their states and their results.

sweep.yaml      the jobs: the settings that all share, and those of each
results.csv     a row for each job
NAME/           the run folder of a job
logs/NAME.log   the output of a job's process, if it has any
failures/NAME   why a job has failed
locks/          which process runs which job
slurm/          what was submitted to SLURM, if anything was
known.txt       path of the CSV that finished jobs are added to, if there is one
"""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from cet_rl.report.text import listed
from cet_rl.runs.config import Mark
from cet_rl.runs.config_files import dump_yaml, load_yaml
from cet_rl.runs.files import csv_text, holds, make_folder, write_text
from cet_rl.runs.folder import RunFolder, whole_lines
from cet_rl.runs.lock import lock_owners
from cet_rl.runs.task_kinds import TASK_KINDS, Score, differing, identity, options_marked
from cet_rl.sweeps.known import KnownRun, KnownRuns, commit, fingerprint

_DAMAGE = (yaml.YAMLError, RecursionError, AttributeError, TypeError, ValueError, KeyError)
"""Exceptions that reading a damaged file raises."""

SHOWN = 3  # names listed in a message
MOST_CHANGES = 5  # settings that may have been edited before a sweep counts as another one

LEADING = ("job", "arm", "task", "agent", "seed")
"""Columns that every results.csv has first; then come the other settings that not all jobs share."""

RESULTS = tuple(score.on(part) for kind in TASK_KINDS for score in kind.scores for part in ("test", "validation"))
"""Scores of finished runs, by metrics of their summaries; the first that a run has is shown."""

PROGRESS = tuple(kind.progress for kind in TASK_KINDS)
"""Scores of runs that are under way, by columns of their metrics.csv."""


State = Literal["finished", "running", "partial", "failed", "waiting"]


@dataclass(frozen=True)
class Job:
    """Describe one run of a sweep."""

    name: str  # of its run folder, TASK-LABEL-SEED-FINGERPRINT
    arm: str  # name in legends, which all seeds of an arm share
    values: Mapping[str, Any]  # its full configuration as plain data, resolved but for device and threads

    @property
    def readable(self) -> str:
        """Return the name without its fingerprint."""
        return self.name.rpartition("-")[0]


@dataclass(frozen=True)
class Sweep:
    """Describe all that a sweep runs."""

    title: str
    jobs: tuple[Job, ...]  # in the order of the file, seed by seed
    made_from: str = ""  # digest of all that they follow from; empty if unknown


@dataclass(frozen=True)
class JobState:
    """Describe the state of one job; it is "partial" if it has begun, but is neither finished nor running."""

    state: State
    step: int | None = None  # steps done, None if unknown
    score: str = ""  # in words: "return 203.4"
    speed: float | None = None  # steps a second
    error: str = ""  # why it has failed
    owner: str = ""  # the process that runs it


def settings_shared(jobs: Iterable[Job]) -> dict[str, Any]:
    """Return the settings that all jobs have in common."""
    first, *others = [job.values for job in jobs]
    absent = object()
    return {key: value for key, value in first.items() if all(other.get(key, absent) == value for other in others)}


def counts(states: Mapping[str, JobState]) -> dict[State, int]:
    """Count the jobs in each state."""
    found = [state.state for state in states.values()]
    return {state: found.count(state) for state in get_args(State)}


def describe_counts(states: Mapping[str, JobState]) -> str:
    """Return the counts in words: "3 finished, 2 running, 7 waiting"."""
    return ", ".join(f"{number} {state}" for state, number in counts(states).items() if number)


class SweepFolder:
    """Read and write the folder of one sweep.

    Jobs whose results are in `known`, a CSV file, count as finished, too. A folder that has been opened with such
    a file remembers it. `machine` are the options of this machine, as `open_for` finds them.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        known: str | os.PathLike[str] | None = None,
        machine: Mapping[str, Any] | None = None,
    ) -> None:
        self.path, self.machine = Path(path), dict(machine or {})
        self.known_file = self.path / "known.txt"
        self._known = None if known is None else KnownRuns(known)
        self.sweep_file = self.path / "sweep.yaml"
        self.results_file = self.path / "results.csv"
        self.failures = self.path / "failures"
        self.locks = self.path / "locks"

    @cached_property
    def known(self) -> KnownRuns | None:
        """Return the CSV of finished runs; None without one, or if the folder remembers one of another machine."""
        if self._known is None and self.known_file.is_file():
            try:
                return KnownRuns(self.known_file.read_text(encoding="utf-8").strip())
            except (ValueError, OSError) as error:
                print(f"{self.known_file} is left aside: {error}", file=sys.stderr, flush=True)
        return self._known

    def add_to_known(self, jobs: Iterable[Job], *, now: bool = False) -> None:
        """Add the jobs whose run folders are finished to the CSV, if there is one; OSError if that fails.

        With `now` the commit of this code is noted, as it has just run them.
        """
        if self.known is not None:
            found = ((job, RunFolder(self.run_path(job.name)).summary) for job in jobs)
            made_by = commit() if now else ""
            done = (pair for pair in found if pair[1].get("status") == "finished")
            self.known.add(KnownRun(job.arm, job.values, summary, made_by) for job, summary in done)

    def run_path(self, name: str) -> Path:
        """Return the run folder of a job."""
        return self.path / name

    def log_file(self, name: str) -> Path:
        """Return the file with what a job's process has printed."""
        return self.path / "logs" / f"{name}.log"

    def failure_file(self, name: str) -> Path:
        """Return the file that says why a job has failed; it exists only if the job has."""
        return self.failures / name

    def failure(self, name: str) -> str:
        """Return why a job has failed, "" if it has not."""
        file = self.failure_file(name)
        return (file.read_text(encoding="utf-8").strip() or "unknown") if file.is_file() else ""

    def read(self) -> Sweep:
        """Return the folder's sweep; ValueError if there is none, or sweep.yaml is damaged or has been edited."""
        if not self.sweep_file.is_file():
            raise ValueError(f"{self.path} is no sweep folder: it has no {self.sweep_file.name}")
        try:
            data = load_yaml(self.sweep_file.read_text(encoding="utf-8"))
            jobs = []
            for name, own in data["jobs"].items():
                values = {**data["common"], **own}
                jobs.append(Job(name, str(values.pop("arm")), values))
            edited = [job.readable for job in jobs if not job.name.endswith(f"-{fingerprint(job.values)}")]
            sweep = Sweep(str(data["title"]), tuple(jobs), str(data["made_from"]))
        except _DAMAGE:
            raise ValueError(f"{self.sweep_file} is damaged: choose another --run-dir") from None
        if edited:
            raise ValueError(f"{self.sweep_file} was edited ({listed(edited, SHOWN)}): choose another --run-dir")
        return sweep

    def check(self, sweep: Sweep) -> int:
        """Return how many jobs have been added to the folder's sweep, all of them if it is new; change nothing.

        Raises ValueError if the folder holds another sweep or something else, saying what differs.
        """
        if not holds(self.path, self.sweep_file.name, "sweep"):
            return len(sweep.jobs)
        earlier = self.read()
        there, here = ({job.name for job in one.jobs} for one in (earlier, sweep))
        missing = [job for job in earlier.jobs if job.name not in here]
        added = [job for job in sweep.jobs if job.name not in there]
        if not missing:
            self._check_runs(sweep.jobs)
            return len(added)
        if not added:
            names = listed([job.readable for job in missing], SHOWN)
            text = f"holds more jobs than asked for ({names}): put them back, or"
        else:
            changes = min((differing(missing[0].values, job.values) for job in added), key=len)
            more = f"; {len(missing)} of its jobs differ" if len(missing) > 1 else ""
            text = f"holds this sweep with other settings ({missing[0].readable} has {', '.join(changes)}{more}):"
            if len(missing) == len(earlier.jobs) and len(changes) > MOST_CHANGES:
                text = f"belongs to another sweep ({earlier.title!r}, not {sweep.title!r}):"
        raise ValueError(f"{self.path} {text} choose another --run-dir")

    def _check_runs(self, jobs: Iterable[Job]) -> None:
        """Raise ValueError for a run folder, of a finished run too, whose configuration is not that of its job."""
        for job in jobs:
            run = RunFolder(self.run_path(job.name))
            try:
                if run.config_file.is_file():
                    run.check_usable(job.values, resume=True)
            except ValueError as error:
                raise ValueError(f"{error}, or move its folder away") from None

    def open_for(self, sweep: Sweep) -> int:
        """Open the folder for a sweep, creating it if need be, and return how many jobs have been added.

        Raises ValueError as `check` does, and OSError if the folder cannot be written.
        """
        new = self.check(sweep)
        make_folder(self.path, "sweep")
        common = settings_shared(sweep.jobs)
        self.machine = {}
        for name in options_marked(Mark.MACHINE):  # not all jobs need have it
            values = {job.values[name] for job in sweep.jobs if name in job.values}
            if len(values) == 1:
                self.machine[name] = values.pop()
        own = {
            job.name: {"arm": job.arm, **{key: v for key, v in job.values.items() if key not in common}}
            for job in sweep.jobs
        }
        text = dump_yaml({"title": sweep.title, "made_from": sweep.made_from, "common": common})
        text += dump_yaml({"jobs": own}, default_flow_style=None, width=1_000_000)  # a line for each
        if not self.sweep_file.is_file() or self.sweep_file.read_text(encoding="utf-8") != text:
            write_text(self.sweep_file, text)
        if self.known is not None:
            write_text(self.known_file, f"{self.known.file}\n")
            # What was finished before there was such a file, or killed before it was added.
            self.add_to_known(sweep.jobs)
        return new

    def summary(self, name: str) -> dict[str, Any]:
        """Return the summary of a job's run, or what is known of it; empty if there is none that can be read."""
        own = RunFolder(self.run_path(name)).summary
        if self.known is None or own.get("status") == "finished":
            return own
        return dict(self.known.summary(name.rpartition("-")[2])) or own

    def state(self, name: str, owners: Mapping[str, object] | None = None) -> JobState:
        """Return the state of one job; `owners` are the processes that run jobs, by the names of the jobs."""
        summary = self.summary(name)
        status = summary.get("status")
        if status == "finished":
            score = _score(summary.get("metrics") or {}, RESULTS)
            return JobState("finished", summary.get("steps"), score, summary.get("steps_per_second"))
        if owners and name in owners:
            progress = _progress(self.run_path(name) / "metrics.csv")
            return JobState("running", *progress, owner=str(owners[name] or ""))
        if failure := self.failure(name):
            return JobState("failed", error=failure)
        if status == "failed":
            return JobState("failed", error=str(summary.get("error") or "unknown"))
        if (self.run_path(name) / "config.yaml").is_file():
            step, score, _ = _progress(self.run_path(name) / "metrics.csv")
            # An interrupted run has saved more than it has logged.
            return JobState("partial", summary.get("steps") if status == "interrupted" else step, score)
        return JobState("waiting")

    def states(self, jobs: Iterable[Job], earlier: Mapping[str, JobState] | None = None) -> dict[str, JobState]:
        """Return the states of all jobs by name; jobs that are finished in `earlier` are not looked at again."""
        owners = lock_owners(self.locks)
        begun = {*owners, *(path.name for folder in (self.path, self.failures) for path in folder.glob("*"))}
        states = {name: state for name, state in (earlier or {}).items() if state.state == "finished"}
        for job in jobs:
            if job.name not in states:
                seen = job.name in begun or self.known is not None
                states[job.name] = self.state(job.name, owners) if seen else JobState("waiting")
        return {job.name: states[job.name] for job in jobs}

    def note_failure(self, name: str, reason: str) -> None:
        """Write down why a job has failed; print the reason if the file cannot be written."""
        file = self.failure_file(name)
        try:
            file.parent.mkdir(exist_ok=True)
            write_text(file, f"{reason}\n")
        except OSError as error:
            text = f"cannot write {file}: {error.strerror}; {name} has failed: {reason}"
            print(text, file=sys.stderr, flush=True)

    def forget_failure(self, name: str) -> None:
        """Remove the files that say that a job has failed."""
        self.failure_file(name).unlink(missing_ok=True)
        if self.summary(name).get("status") == "failed":
            (self.run_path(name) / "summary.json").unlink(missing_ok=True)

    def write_results(self, jobs: Sequence[Job], states: Mapping[str, JobState]) -> None:
        """Write results.csv: a row for each job, in the order of the sweep's file, without anything timed.

        Columns are job, arm, task, agent, seed, the settings that not all jobs share, status, steps and the
        metrics of the summaries. Jobs that are not finished have neither steps nor metrics.
        """
        skipped = {*settings_shared(jobs), *LEADING}
        varied = dict.fromkeys(key for job in jobs for key in identity(job.values) if key not in skipped)
        rows: list[dict[str, Any]] = []
        metrics: dict[str, None] = {}
        for job in jobs:
            summary = self.summary(job.name) if states[job.name].state == "finished" else {}
            found: Mapping[str, Any] = summary.get("metrics") or {}
            metrics |= dict.fromkeys(found)
            row = {key: _text(job.values.get(key)) for key in varied}
            row |= {"job": job.name, "arm": job.arm, "task": job.values["task"], "seed": job.values["seed"]}
            row["agent"] = summary.get("agent") or job.values.get("agent", "")
            rows.append({**row, "status": states[job.name].state, "steps": summary.get("steps"), **found})
        columns = dict.fromkeys([*LEADING, *varied, "status", "steps", *metrics])
        write_text(self.results_file, csv_text(columns, rows))


def _progress(file: Path) -> tuple[int | None, str, float | None]:
    """Return step, score and speed from the last row of a metrics.csv."""
    try:
        with open(file, newline="", encoding="utf-8") as stream:
            *_, row = csv.DictReader(whole_lines(stream.read()).split("\n"))
        speed = float(row["time/fps"]) if row.get("time/fps") else None
        return int(float(row["time/total_timesteps"])), _score(row, PROGRESS), speed
    except (OSError, ValueError, KeyError, TypeError, csv.Error):  # not there yet, or half a row
        return None, "", None


def _score(values: Mapping[str, Any], scores: Iterable[Score]) -> str:
    for score in scores:
        if values.get(score.key) not in (None, ""):
            return f"{score.word} {score.show(float(values[score.key]))}"
    return ""


def _text(value: object) -> object:
    """Return a list as words, as the command line takes it; everything else as it is."""
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
