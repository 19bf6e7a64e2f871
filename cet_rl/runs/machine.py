"""The machine that a run is on: its device and its threads."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TypeVar

import torch
from threadpoolctl import threadpool_limits

from cet_rl.runs.config import RunConfig

C = TypeVar("C", bound=RunConfig)


def on_this_machine(config: C) -> C:
    """The configuration with device and threads of this machine.

    Raises:
        ValueError: for a device that is not there, or a thread count in the environment that is none.
    """
    if config.device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"--device must be auto, cpu or cuda, got {config.device!r}")
    available = torch.cuda.is_available()
    if config.device == "cuda" and not available:
        raise ValueError("--device cuda: torch finds no CUDA device here; use --device cpu")
    device = ("cuda" if available else "cpu") if config.device == "auto" else config.device
    threads = config.threads
    if threads is None:
        named = os.environ.get("OMP_NUM_THREADS", "1")
        if not named.isdigit() or int(named) < 1:
            raise ValueError(f"OMP_NUM_THREADS must be a positive number, got {named!r}; or use --threads")
        threads = int(named)
    return replace(config, device=device, threads=threads)


def set_threads(threads: int) -> None:
    """Bound the threads of torch and of the BLAS under numpy; on networks this small one is best."""
    torch.set_num_threads(threads)
    threadpool_limits(threads)
