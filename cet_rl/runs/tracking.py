"""Experiment trackers to which a run's numbers also go: Weights & Biases, MLflow. Imported only if asked for."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

from cet_rl.runs.files import write_text
from cet_rl.runs.values import in_a_line, unknown

TrackerName = Literal["wandb", "mlflow"]

PROJECT = "cet-rl"  # of W&B and experiment of MLflow, unless WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME names another


class Tracker(NamedTuple):
    """Hold a run of a tracker: `log` takes finite numbers by tag and a step, `close` the status of a summary."""

    id: str
    log: Callable[[dict[str, float], int], None]
    close: Callable[[str | None], None]


def _wandb(config: Mapping[str, Any], name: str, known: str | None) -> Tracker:
    import wandb

    project, settings = os.environ.get("WANDB_PROJECT", PROJECT), wandb.Settings(console="off", silent=True)
    run = wandb.init(project=project, name=name, config=config, id=known, resume="allow", settings=settings)
    return Tracker(
        run.id,
        lambda values, step: run.log(values, step=step),
        lambda status: run.finish(exit_code=int(status != "finished")),
    )


def _mlflow(config: Mapping[str, Any], name: str, known: str | None) -> Tracker:
    import mlflow

    mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT))
    run = mlflow.start_run(run_id=known, run_name=name)
    if known is None:  # parameters may not change
        mlflow.log_params(config)
    ends = {"finished": "FINISHED", "interrupted": "KILLED"}
    return Tracker(
        run.info.run_id,
        lambda values, step: mlflow.log_metrics(values, step=step),
        lambda status: mlflow.end_run(ends.get(str(status), "FAILED")),
    )


TRACKERS: Mapping[str, Callable[..., Tracker]] = {"wandb": _wandb, "mlflow": _mlflow}


def check_tracker(name: str | None) -> None:
    """Raise ValueError unless there is such a tracker and its package is installed; None is none."""
    if name is None:
        return
    if name not in TRACKERS:
        raise unknown("tracker", name, TRACKERS)
    if find_spec(name) is None:
        raise ValueError(f'--track {name} needs pip install "cet-rl[{name}]"')


def start_tracker(name: str | None, config: Mapping[str, Any], folder: Path, *, resumed: bool) -> Tracker | None:
    """Start a run in a tracker, or go on with that of the folder; raise ValueError if the tracker cannot.

    The folder's tracker.json holds the run's id. Without a name there is no tracker.
    """
    if name is None:
        return None
    file = folder / "tracker.json"
    known = json.loads(file.read_text(encoding="utf-8")) if resumed and file.is_file() else {}
    try:
        tracker = TRACKERS[name](config, folder.name, known.get(name))
    except Exception as error:  # without an account, a network, a store: each has errors of its own
        raise ValueError(f"--track {name}: {in_a_line(error)}") from error
    write_text(file, json.dumps({**known, name: tracker.id}) + "\n")
    return tracker
