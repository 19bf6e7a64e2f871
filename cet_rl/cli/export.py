"""`cet-rl export`: write the policy of a run to a file that needs no cet-rl."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import tyro

from cet_rl.cli import parse
from cet_rl.runs.files import check_file, replacing
from cet_rl.runs.folder import read_run

SUFFIXES = {"torch": ".pt2", "onnx": ".onnx"}


@dataclass(frozen=True)
class ExportArguments:
    """Write the policy of a run's last checkpoint, from observations to deterministic actions and logits.

    The observations are what the environment gives, images with their channels first.
    """

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """Run folder of the agent cet, as `cet-rl train` leaves it."""
    format: Literal["torch", "onnx"]
    """torch: for torch.export.load, without cet-rl; onnx: for other software, needs the extra onnx."""
    out: str
    """FILE.pt2 for torch, FILE.onnx for onnx."""


def run(arguments: Sequence[str]) -> int:
    """Run the command, and return its exit status."""
    parsed = parse(ExportArguments, arguments, "cet-rl export")
    file = check_file("--out", Path(parsed.out), SUFFIXES[parsed.format])
    if parsed.format == "onnx" and (find_spec("onnxscript") is None or find_spec("onnx") is None):
        raise ValueError('--format onnx needs pip install "cet-rl[onnx]"')
    task_kind, folder, values = read_run(parsed.run)
    if task_kind.name != "rl":
        raise ValueError(f"only policies can be exported: {folder.path} is a run of {task_kind.title}")
    if values.get("agent", "cet") != "cet":
        raise ValueError(f"only our agent can be exported: {folder.path} has learned with {values['agent']}")
    checkpoint = folder.require_checkpoint("export")
    from cet_rl.agents.export import write_policy
    from cet_rl.agents.sb3 import CETActorCritic

    model = CETActorCritic.load(checkpoint, device="cpu")
    with replacing(file) as stream:
        write_policy(model.to_torch(), model.policy.observation_space, stream, parsed.format)
    print(f"{file}: {values['task']}, {model.num_timesteps:,} samples")
    return 0
