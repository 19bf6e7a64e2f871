"""The jobs of a sweep, and what has become of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from cet_rl.runs.task_kinds import identity

State = Literal["finished", "running", "partial", "failed", "waiting"]


@dataclass(frozen=True)
class Job:
    """Describe one run of a sweep.

    Its name is that of its run folder, TASK-LABEL-SEED-FINGERPRINT; all seeds of an arm share the name in legends.
    Its values are its full configuration as plain data, resolved but for device and threads.
    """

    name: str
    arm: str
    values: Mapping[str, Any]

    @property
    def readable(self) -> str:
        """Return the name without its fingerprint."""
        return self.name.rpartition("-")[0]


@dataclass(frozen=True)
class Sweep:
    """Describe all that a sweep runs: jobs in the order of the file, seed by seed.

    `made_from` is a digest of all that they follow from; empty if unknown.
    """

    title: str
    jobs: tuple[Job, ...]
    made_from: str = ""


@dataclass(frozen=True)
class JobState:
    """Say what has become of one job: one is partial that has begun and that nobody runs.

    `step` is how far it has come, in its unit, and `speed` in steps a second, both None if unknown; `score` is
    in words, "return 203.4"; `error` says why it has failed, and `owner` which process runs it.
    """

    state: State
    step: int | None = None
    score: str = ""
    speed: float | None = None
    error: str = ""
    owner: str = ""


def fingerprint(values: Mapping[str, Any]) -> str:
    """Return eight hexadecimal digits of SHA-256 of a configuration's identity as sorted JSON without spaces."""
    text = json.dumps(identity(values), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


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
