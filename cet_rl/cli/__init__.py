"""The command line: a module for each command, imported when it is called."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from cet_rl import __version__
from cet_rl.runs.values import unknown

USAGE = """\
cet-rl: learning when credit arrives late

  cet-rl train TASK [--delay S] [--order N] [--trace KIND] …   learn; every option: cet-rl train TASK --help
  cet-rl sweep FILE [--workers N] [--quick] [--status]         many runs from one file, resumed when typed again
  cet-rl tune FILE [--trials N] [--workers N] [--storage URL]  search for hyper-parameters, with Optuna
  cet-rl eval RUN [--episodes N] [--seed N]                    evaluate what a run has learned
  cet-rl report RUNS... [--out DIR] [--claims]                 figures and tables of many runs as one HTML file, or
                                                               what they say of the papers' claims
  cet-rl list [agents|envs|datasets|tasks|rules|traces|configs]
                                                               show what there is
  cet-rl rules [RULE ...] [--format F] [--output FILE]         audit learning rules of recurrent networks
  cet-rl --version

Example: CartPole across an eight-second credit delay, five states a synapse
  cet-rl train CartPole-v1 --delay 8 --order 5
"""

COMMANDS = {
    "train": "cet_rl.cli.train",
    "sweep": "cet_rl.cli.sweep",
    "tune": "cet_rl.cli.tune",
    "eval": "cet_rl.cli.evaluate",
    "report": "cet_rl.cli.report",
    "list": "cet_rl.cli.listing",
    "rules": "cet_rl.cli.rules",
}

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: without the program's name; None for those of the process.

    Returns:
        The exit status: 0, 1 if cells of a sweep have failed, 2 for bad input (with one line on stderr), 130 after
        Ctrl-C.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0 if arguments else EXIT_BAD_INPUT
    if arguments[0] in ("-V", "--version"):
        print(f"cet-rl {__version__}")
        return 0
    command = arguments[0]
    if command not in COMMANDS:
        return refuse(str(unknown("command", command, COMMANDS)))
    try:
        status: int = importlib.import_module(COMMANDS[command]).run(arguments[1:])
        return status
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, ArithmeticError, MemoryError) as error:
        if os.environ.get("CET_RL_TRACEBACK"):
            raise
        return refuse(" ".join(str(error).split()))


def refuse(reason: str) -> int:
    """Print one line on stderr; the exit status for bad input."""
    print(f"cet-rl: error: {reason}", file=sys.stderr)
    return EXIT_BAD_INPUT
