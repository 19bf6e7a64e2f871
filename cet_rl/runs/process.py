"""The process of a run: threads, Ctrl-C, and random numbers as plain data."""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits


def set_threads(threads: int | None) -> None:
    """Limit the threads of torch and of numpy's BLAS; one is best for networks as small as ours."""
    import torch

    torch.set_num_threads(threads or 1)
    threadpool_limits(threads or 1)


class Interruption:
    """Turn the first SIGINT or SIGTERM into a request to stop; a second SIGINT raises KeyboardInterrupt."""

    wanted = False
    """Whether the run has been asked to stop."""

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.wanted and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.wanted = True

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Listen while the block runs; only in the main thread of a process, as others get no signals."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def generator_state(generator: np.random.Generator | np.random.RandomState) -> dict[str, Any]:
    """Return the state of a numpy generator, old style or new."""
    is_old = isinstance(generator, np.random.RandomState)
    state: Any = generator.get_state(legacy=False) if is_old else generator.bit_generator.state  # type: ignore[union-attr]
    return dict(state)


def generator_from(state: dict[str, Any]) -> np.random.Generator:
    """Return a generator with a state that `generator_state` returned; raise ValueError for an unknown kind."""
    name = state.get("bit_generator")
    kind = getattr(np.random, str(name), None)
    if kind not in np.random.BitGenerator.__subclasses__():
        raise ValueError(f"there is no bit generator {name!r}")
    generator = np.random.Generator(kind())
    generator.bit_generator.state = state
    return generator


def process_state(device: str = "cpu") -> dict[str, Any]:
    """Return the states of torch's, numpy's and Python's global generators, and CUDA's if that is the device."""
    import torch

    state = {
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state(legacy=False),
        "python": random.getstate(),
    }
    return state | ({"cuda": torch.cuda.get_rng_state_all()} if device == "cuda" else {})


def restore_process_state(state: dict[str, Any]) -> None:
    """Restore what `process_state` returned, CUDA's only if the number of devices is the same."""
    import torch

    torch.set_rng_state(state["torch"])
    np.random.set_state(state["numpy"])
    random.setstate(state["python"])
    if len(state.get("cuda", ())) == torch.cuda.device_count() > 0:
        torch.cuda.set_rng_state_all(state["cuda"])
