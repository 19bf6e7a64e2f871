"""RL Baselines3 Zoo with cet-rl's agent as --algo cet, the default.

    python -m cet_rl.rl.zoo train --env CartPole-v1 [-params delay:8.0 order:5 …]  learn; all options: train --help
    python -m cet_rl.rl.zoo enjoy --env CartPole-v1 -f logs [--no-render]          play what was learned

`train` and `enjoy` are the zoo's own. Hyper-parameters come from configs/zoo/cet.yaml of this package, or from the
file after -conf. In a program, `register()` is enough. Needs `pip install "cet-rl[zoo]"`.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from cet_rl import agents
from cet_rl.cli import EXIT_BAD_INPUT, prepare_output, refuse
from cet_rl.runs.archive import File
from cet_rl.runs.process import set_threads
from cet_rl.runs.values import unknown

if TYPE_CHECKING:
    import optuna

NAME = "cet"
COMMANDS = ("train", "enjoy")


class CETActorCritic(agents.CETActorCritic):
    """Adapt the agent to the zoo. This class and `cet_rl.agents.CETActorCritic` load each other's files."""

    @classmethod
    def load(cls, path: File, *args: Any, **kwargs: Any) -> Self:  # type: ignore[override]
        """Load an agent, ignoring the zoo's `custom_objects`, which replace unpickled objects."""
        kwargs.pop("custom_objects", None)
        return super().load(path, *args, **kwargs)


def sample_hyperparameters(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """Sample arguments of `CETActorCritic` for the zoo's `-optimize`; only `trial` is used.

    Delay, trace and order are not sampled: they define the study. The learning rate is constant over a run.
    """
    return {
        "learning_rate": trial.suggest_float("learning_rate", 1e-5, 2e-3, log=True),
        "ent_coef": trial.suggest_float("ent_coef", 1e-4, 0.1, log=True),
        "lam": trial.suggest_float("lam", 0.8, 0.99),
        "n_steps": trial.suggest_categorical("n_steps", [32, 64, 128, 256]),
        "normalization": trial.suggest_categorical("normalization", ["peak", "area"]),
    }


def register() -> None:
    """Register the algorithm "cet" with the zoo, and our environments with Gymnasium, in this process."""
    try:
        from rl_zoo3.hyperparams_opt import HYPERPARAMS_CONVERTER, HYPERPARAMS_SAMPLER
        from rl_zoo3.utils import ALGOS
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "rl_zoo3":  # a package that the zoo needs is missing
            raise
        raise ImportError('RL Baselines3 Zoo is not installed: pip install "cet-rl[zoo]"') from None
    importlib.import_module("cet_rl.envs")  # registers MinAtar
    ALGOS[NAME] = CETActorCritic
    HYPERPARAMS_SAMPLER[NAME] = sample_hyperparameters
    HYPERPARAMS_CONVERTER[NAME] = lambda sampled_params: sampled_params  # they need no conversion


def main(arguments: Sequence[str] | None = None) -> int:
    """Register the agent, run the zoo's `train` or `enjoy`, and return the exit status: 2 for bad input."""
    if arguments is None:
        arguments = sys.argv[1:]
        prepare_output()
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__, end="")
        return 0 if arguments else EXIT_BAD_INPUT
    command, *options = arguments
    if command not in COMMANDS:
        return refuse(str(unknown("command", command, COMMANDS)))
    before = sys.argv
    try:
        register()
        sys.argv = [f"python -m cet_rl.rl.zoo {command}", *defaults(command, options), *options]
        getattr(importlib.import_module(f"rl_zoo3.{command}"), command)()
    except (ImportError, ValueError, TypeError, NameError, OSError, ArithmeticError, AssertionError) as error:
        if os.environ.get("CET_RL_TRACEBACK"):
            raise
        return refuse(" ".join(str(error).split()) or type(error).__name__)
    finally:
        sys.argv = before
    return 0


def defaults(command: str, options: Sequence[str]) -> list[str]:
    """Return default options to put before the given ones, which override them."""
    parser = argparse.ArgumentParser(prog=f"python -m cet_rl.rl.zoo {command}", add_help=False)
    parser.add_argument("--algo", default=NAME)
    if parser.parse_known_args(options)[0].algo != NAME:
        return []
    if "OMP_NUM_THREADS" not in os.environ:  # as in `cet-rl train`: one thread is fastest for such small networks
        set_threads(1)
    file = Path(__file__).parents[1] / "configs" / "zoo" / "cet.yaml"
    return ["--algo", NAME, *(["--conf-file", str(file)] if command == "train" else [])]


if __name__ == "__main__":
    sys.exit(main())
