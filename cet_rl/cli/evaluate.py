"""`cet-rl eval`: what a run has learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from cet_rl.cli.options import parse
from cet_rl.config import RLConfig, check_seed, read_config
from cet_rl.runs import RunFolder


@dataclass(frozen=True)
class EvalArguments:
    """What to evaluate, and how."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """Run folder, as `cet-rl train` leaves it."""
    episodes: int = 100
    """Deterministic episodes."""
    agent: str | None = None
    """The agent, if the run's configuration names one that is called otherwise now; as for `cet-rl train`."""
    seed: int | None = None
    """Of the evaluation's environments. Default: follows from the run's."""

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise ValueError(f"--episodes must be at least 1, got {self.episodes}")
        if self.seed is not None:
            check_seed(self.seed)


def run(arguments: Sequence[str]) -> int:
    """Run the command; its exit status."""
    parsed = parse(
        EvalArguments,
        arguments,
        prog="cet-rl eval",
        description="Play the policy of a run's last checkpoint without exploring, and print its mean return.",
    )
    from cet_rl.training import evaluate, resolve, set_threads

    folder = RunFolder(parsed.run)
    if not folder.config_file.is_file():
        raise ValueError(f"{folder.path} is no run folder: it has no config.yaml")
    if not folder.checkpoint_file.is_file():
        raise ValueError(f"{folder.path} has no checkpoint yet: nothing to evaluate")
    values = read_config(str(folder.config_file))
    if "task" not in values:
        raise ValueError(f"{folder.config_file} is damaged: it names no task")
    if parsed.agent is not None:
        values["agent"] = parsed.agent
    config = resolve(RLConfig(**{**values, "device": "auto"}))
    assert config.threads is not None
    set_threads(config.threads)
    from cet_rl.agents.registry import find_agent

    agent = find_agent(config.agent).restore(config, folder.checkpoint_file, False)
    mean, deviation = evaluate(agent, config, parsed.episodes, parsed.seed)
    print(f"{config.task}: return {mean:.1f} ± {deviation:.1f} over {parsed.episodes} episodes")
    return 0
