"""`cet-rl eval`: evaluate what a run has learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated

import tyro

from cet_rl.cli import parse
from cet_rl.runs.config import check_seed
from cet_rl.runs.folder import read_run
from cet_rl.runs.values import flag


@dataclass(frozen=True)
class EvalArguments:
    """Evaluate a run's last checkpoint: a policy plays without exploring, a network is tested on unseen data."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """Run folder, as `cet-rl train` leaves it."""
    episodes: int | None = None
    """Deterministic episodes. Default 100."""
    agent: str | None = None
    """The agent, if it has another name now than in the run's configuration; as for `cet-rl train`."""
    seed: int | None = None
    """Seed of the environments. Default: derived from that of the run."""

    data_dir: str | None = None
    """For image classification: folder with the data on this machine, in place of the run's."""

    def __post_init__(self) -> None:
        if self.episodes is not None and self.episodes < 1:
            raise ValueError(f"--episodes must be at least 1, got {self.episodes}")
        if self.seed is not None:
            check_seed(self.seed)


def run(arguments: Sequence[str]) -> int:
    """Run the command, and return its exit status."""
    parsed = parse(EvalArguments, arguments, "cet-rl eval")
    task_kind, folder, values = read_run(parsed.run)
    options = {name: value for name, value in asdict(parsed).items() if name != "run" and value is not None}
    for name in options.keys() - set(task_kind.evaluation_options):
        raise ValueError(
            f"{flag(name)} does not apply to a run of {values['task']} ({task_kind.title}): leave it out"
        )
    checkpoint = folder.checkpoint_file
    if not checkpoint.is_file():
        raise ValueError(f"{folder.path} has no checkpoint yet: nothing to evaluate")
    print(task_kind.training().evaluate_run(values, checkpoint, **options))
    return 0
