"""The outcome of a search: the table of trials, importances, and the best configuration."""

from __future__ import annotations

import csv
import io
import math
import sys
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cet_rl.runs.config import Mark
from cet_rl.runs.config_files import dump_yaml
from cet_rl.runs.files import replacing
from cet_rl.runs.task_kinds import options_marked
from cet_rl.tuning.file import SearchFile
from cet_rl.tuning.study import SearchFolder

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

SHOWN = 20
"""Trials in a printed table."""
ENOUGH = 10
"""Finished trials that it takes to tell which options matter."""
WIDTH = 140
"""Width of a table that is not printed to a terminal."""

_STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "open", "WAITING": "open"}


def best_trial(study: Study) -> FrozenTrial | None:
    """Return the best of the finished trials; None without any."""
    from optuna.study import StudyDirection
    from optuna.trial import TrialState

    ended = [trial for trial in study.get_trials(deepcopy=False) if trial.state == TrialState.COMPLETE]
    sign = -1 if study.direction == StudyDirection.MAXIMIZE else 1
    return min(ended, key=lambda trial: (sign * (trial.value or 0.0), trial.number), default=None)


def params_of(search: SearchFile, trial: FrozenTrial) -> dict[str, Any]:
    """Return the values of a trial's options."""
    return {name: search.space[name].value(value) for name, value in trial.params.items() if name in search.space}


def describe_params(params: Mapping[str, Any]) -> str:
    """Return parameters in words: "lr 0.0012, units 8"."""
    return ", ".join(f"{name} {_text(value)}" for name, value in params.items())


def write_best(folder: SearchFolder, search: SearchFile, study: Study) -> None:
    """Write best.yaml, a configuration file: all settings of the best trial, without seed and machine.

    Raises:
        OSError: if it cannot be written.
    """
    best = best_trial(study)
    if best is None:
        return
    params = params_of(search, best)
    # What chooses hyper-parameters tests on images held out; who trains with them tests on the test set.
    left_out = {"seed", "validation", *(key for key in options_marked(Mark.MACHINE) if key not in search.fixed)}
    values = search.sweep(params).jobs[0].values
    ordered = {key: values[key] for key in ("task", *params)}
    ordered |= {key: value for key, value in values.items() if key not in left_out}
    seeds = f"seed{'s' * (len(search.seeds) > 1)} {', '.join(map(str, search.seeds))}"
    trials = len(study.get_trials(deepcopy=False))
    head = f"# The best of {trials} trials: {search.metric} {best.value:.6g} over {seeds}"
    text = dump_yaml(ordered)
    with replacing(folder.best_file) as stream:
        stream.write(f"{head} (trial {best.number}).\n# Searched: {describe_params(params)}.\n{text}".encode())


def write_table(folder: SearchFolder, search: SearchFile, study: Study) -> None:
    """Write trials.csv: number, state, score, parameters and why it ended, a row for each trial.

    Raises:
        OSError: if it cannot be written.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "state", search.metric, *search.space, "reason"])
    for trial in study.get_trials(deepcopy=False):
        params = params_of(search, trial)
        values = [_text(params[name]) if name in params else "" for name in search.space]
        score = "" if trial.value is None or trial.state.name != "COMPLETE" else repr(trial.value)
        reason = trial.user_attrs.get("reason", "")
        writer.writerow([trial.number, _STATES[trial.state.name], score, *values, reason])
    with replacing(folder.table_file) as stream:
        stream.write(text.getvalue().encode())


def importances(study: Study) -> dict[str, float]:
    """Return how much of the difference between good and other trials each option explains, largest first.

    The shares sum to one. Empty with less than two options or too few trials to tell.
    """
    if sum(trial.state.name == "COMPLETE" for trial in study.get_trials(deepcopy=False)) < ENOUGH:
        return {}
    from optuna.exceptions import ExperimentalWarning
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            warnings.simplefilter("ignore", ExperimentalWarning)
            found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    except (UserWarning, ValueError, RuntimeError, ZeroDivisionError):  # too few trials, or all alike
        return {}
    return found if len(found) > 1 and all(map(math.isfinite, found.values())) else {}


def print_outcome(folder: SearchFolder, search: SearchFile, study: Study) -> None:
    """Print the best trials, the importances and where the best configuration is, to stdout."""
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
    trials = study.get_trials(deepcopy=False)
    sign = -1 if search.direction == "maximize" else 1
    order = ("COMPLETE", "RUNNING", "PRUNED", "FAIL", "WAITING")

    def place(trial: FrozenTrial) -> tuple[float, ...]:
        complete = trial.state.name == "COMPLETE" and trial.value is not None
        return order.index(trial.state.name), sign * trial.value if complete and trial.value else 0.0, trial.number

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("trial", "state", search.metric, *search.space):
        table.add_column(name)
    for trial in sorted(trials, key=place)[:SHOWN]:
        params = params_of(search, trial)
        score = f"{trial.value:.6g}" if trial.state.name == "COMPLETE" and trial.value is not None else ""
        values = [escape(_text(params[name])) if name in params else "" for name in search.space]
        table.add_row(str(trial.number), _STATES[trial.state.name], score, *values)
    console.print(table)
    if len(trials) > SHOWN:
        console.print(f"and {len(trials) - SHOWN} more in {folder.table_file}", markup=False, highlight=False)
    weights = importances(study)
    if weights:
        shares = ", ".join(f"{name} {weight:.2f}" for name, weight in weights.items())
        console.print(f"importance: {shares}", markup=False, highlight=False)
    if folder.best_file.is_file():
        line = f"best: cet-rl train {search.fixed['task']} --config {folder.best_file}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _text(value: Any) -> str:
    """Return a value in a few characters."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
