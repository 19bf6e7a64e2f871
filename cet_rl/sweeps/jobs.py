"""The jobs of a sweep, and what has become of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from cet_rl.runs.task_kinds import identity

State = Literal["finished", "running", "partial", "failed", "waiting"]

DIGITS = 8
"""Length of the fingerprint in a job's name."""


@dataclass(frozen=True)
class Job:
    """Describe one run of a sweep.

    Attributes:
        name: of its run folder: TASK-LABEL-SEED-FINGERPRINT.
        arm: its name in legends; all seeds of an arm share it.
        values: its full configuration as plain data, resolved but for device and threads.
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
    """Describe all that a sweep runs.

    Attributes:
        title: in a few words.
        jobs: in the order of the file, seed by seed.
        made_from: digest of all that the jobs follow from; empty if unknown.
    """

    title: str
    jobs: tuple[Job, ...]
    made_from: str = ""


@dataclass(frozen=True)
class JobState:
    """Say what has become of one job.

    Attributes:
        state: finished; running, in this sweep or another; partial, begun and not running; failed; waiting.
        step: how far it has come, in its own unit; None if unknown.
        score: how good it is, in words: "return 203.4".
        speed: steps per second; None if unknown.
        error: why it has failed; empty if it has not.
        owner: the process that runs it; empty if none does.
    """

    state: State
    step: int | None = None
    score: str = ""
    speed: float | None = None
    error: str = ""
    owner: str = ""


def fingerprint(values: Mapping[str, Any]) -> str:
    """Return eight hexadecimal digits of a configuration: SHA-256 of its identity as sorted JSON without spaces.

    Args:
        values: plain data; floats must be finite.
    """
    text = json.dumps(identity(values), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


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
