"""`cet-rl eval`: evaluate the last checkpoint of a run."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import tyro

from cet_rl.cli import parse
from cet_rl.runs.config import check_seed
from cet_rl.runs.files import check_file
from cet_rl.runs.folder import read_run
from cet_rl.runs.values import flag

DISPLAYS = ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")  # Linux can open a window if one of them is set


@dataclass(frozen=True)
class EvalArguments:
    """Evaluate a run's last checkpoint: a policy with deterministic actions, a network on unseen data.

    Examples:
      cet-rl eval runs/CartPole-v1-cet5-8s-0 --episodes 20
    """

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """Run folder, as `cet-rl train` leaves it."""
    episodes: int | None = None
    """Number of deterministic episodes. Default: 100, or 1 with --video or --render."""
    agent: str | None = None
    """The agent, as for `cet-rl train`, if it now has another name than in the run's configuration."""
    seed: int | None = None
    """Seed of the environments. Default: derived from that of the run."""
    video: str | None = None
    """FILE.gif or FILE.mp4: a film of the episodes. MP4 needs the extra video, cet-rl[video]."""
    render: bool = False
    """Show the episodes in a window."""
    data_dir: str | None = None
    """For image classification: folder with the data on this machine, in place of the run's."""

    def __post_init__(self) -> None:
        if self.episodes is not None and self.episodes < 1:
            raise ValueError(f"--episodes must be at least 1, got {self.episodes}")
        if self.seed is not None:
            check_seed(self.seed)
        if self.video is not None:
            if self.render:
                raise ValueError("--video and --render do not go together: leave out one of the two")
            file = check_file("--video", Path(self.video), ".gif", ".mp4")
            if file.suffix.lower() == ".mp4" and find_spec("imageio_ffmpeg") is None:
                raise ValueError('--video: MP4 needs pip install "cet-rl[video]"; a file named .gif needs nothing')
        elif self.render and sys.platform == "linux" and not any(map(os.environ.get, DISPLAYS)):
            raise ValueError("--render needs a display, and there is none here: --video FILE.gif makes a film")


def run(arguments: Sequence[str]) -> int:
    """Run the command, and return its exit status."""
    parsed = parse(EvalArguments, arguments, "cet-rl eval")
    task_kind, folder, values = read_run(parsed.run)
    given = asdict(parsed).items()
    options = {name: value for name, value in given if name != "run" and value is not None and value is not False}
    for name in options.keys() - set(task_kind.evaluation_options):
        raise ValueError(f"{flag(name)} does not apply to {values['task']} ({task_kind.title}): leave it out")
    if parsed.video:
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame fails where there is no display
    checkpoint = folder.require_checkpoint("evaluate")  # before training is imported, which takes seconds
    print(task_kind.training().evaluate_run(values, checkpoint, **options))
    return 0
