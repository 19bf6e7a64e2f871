"""The outcome of a search: the table of trials, importances, and the best configuration."""

from __future__ import annotations

import csv
import io
import math
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from cet_rl.runs.config import Mark
from cet_rl.runs.config_files import dump_yaml
from cet_rl.runs.files import write_text
from cet_rl.runs.task_kinds import options_marked
from cet_rl.tuning.file import SearchFile, plain
from cet_rl.tuning.study import SearchFolder

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

SHOWN = 20  # trials in a printed table
ENOUGH = 10  # finished trials that it takes to tell which options matter
WIDTH = 140  # of a table that is not printed to a terminal

STATES = {"COMPLETE": "complete", "RUNNING": "open", "PRUNED": "pruned", "FAIL": "failed", "WAITING": "open"}
"""The states of Optuna's trials, in the order of the printed table, and what they are called."""


def best_trial(study: Study) -> FrozenTrial | None:
    """Return the best of the finished trials, the first of those that are as good; None without any."""
    from optuna.trial import TrialState

    ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return min(ended, key=lambda trial: _rank(study, trial), default=None)


def _rank(study: Study, trial: FrozenTrial) -> tuple[float, ...]:
    """Return a key that sorts trials: those that finished, best first; then open, pruned and failed ones."""
    sign = -1 if study.direction.name == "MAXIMIZE" else 1
    ended = trial.state.name == "COMPLETE"
    return [*STATES].index(trial.state.name), sign * (trial.value or 0.0) if ended else 0.0, trial.number


def describe_params(params: Mapping[str, Any]) -> str:
    """Return parameters in words: "lr 0.0012, units 8"."""
    return ", ".join(f"{name} {_text(value)}" for name, value in params.items())


def write_outcome(folder: SearchFolder, search: SearchFile, study: Study) -> None:
    """Write trials.csv, a row for each trial, and best.yaml, if a trial has finished.

    best.yaml is a configuration file: all settings of the best trial, without seed and machine.
    """
    trials, best = study.get_trials(deepcopy=False), best_trial(study)
    table = io.StringIO(newline="")
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["trial", "state", search.metric.key, *search.space, "reason"])
    writer.writerows([*_row(search, trial, repr), trial.user_attrs.get("reason", "")] for trial in trials)
    write_text(folder.table_file, table.getvalue())
    if best is None:
        return
    # What chooses hyper-parameters tests on images held out; who trains with them tests on the test set.
    left_out = {"seed", "validation", *options_marked(Mark.MACHINE) - search.fixed.keys()}
    values = search.sweep(best.params).jobs[0].values
    ordered = {key: values[key] for key in ("task", *best.params)}
    ordered |= {key: value for key, value in values.items() if key not in left_out}
    seeds = f"seed{'s' * (len(search.seeds) > 1)} {', '.join(map(str, search.seeds))}"
    head = f"# The best of {len(trials)} trials: {search.metric.key} {best.value:.6g} over {seeds}"
    searched = f"# Searched: {describe_params(best.params)}."
    write_text(folder.best_file, f"{head} (trial {best.number}).\n{searched}\n{dump_yaml(ordered)}")


def _row(search: SearchFile, trial: FrozenTrial, number: Callable[[float], str]) -> list[str]:
    """Return number, state, score and parameters of a trial as text; `number` writes those that are not whole."""
    score = number(trial.value) if trial.state.name == "COMPLETE" and trial.value is not None else ""
    params = [_text(trial.params.get(name, ""), number) for name in search.space]
    return [str(trial.number), STATES[trial.state.name], score, *params]


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
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else WIDTH)
    trials = sorted(study.get_trials(deepcopy=False), key=lambda trial: _rank(study, trial))
    table = Table(
        "trial", "state", search.metric.key, *search.space, box=None, pad_edge=False, header_style="bold"
    )
    for trial in trials[:SHOWN]:
        table.add_row(*_row(search, trial, "{:.6g}".format))
    console.print(table)
    if len(trials) > SHOWN:
        console.print(f"and {len(trials) - SHOWN} more in {folder.table_file}")
    if weights := importances(study):
        console.print(f"importance: {', '.join(f'{name} {weight:.2f}' for name, weight in weights.items())}")
    if folder.best_file.is_file():
        console.print(f"best: cet-rl train {search.fixed['task']} --config {folder.best_file}", soft_wrap=True)


def _text(value: Any, number: Callable[[float], str] = "{:.4g}".format) -> str:
    """Return a value as the command line takes it."""
    value = plain(value)
    if isinstance(value, float):
        return number(value)
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
