"""Define Add and Mimic: endless streams of inputs and labels for networks that learn online.

Both are driven by fair bits, called symbols here. Time is rescaled to the network's: each symbol, and with it the
label of Add, is held for 1/α steps.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from statistics import fmean
from typing import Any, ClassVar

import numpy as np
import scipy
import torch
from numpy.typing import NDArray
from torch import Tensor

from cet_rl.recurrent.cell import Output, RNNCell
from cet_rl.recurrent.config import TASKS
from cet_rl.runs.plugins import load_plugins
from cet_rl.runs.values import unknown
from cet_rl.traces.base import FloatArray, check_whole

MAX_LAG = 1000  # longest lag of Add, in symbols


class SequenceTask(ABC):
    """Define a task by its streams of inputs and labels, which are driven by fair bits.

    A task that is driven by something else overrides `stream`.
    """

    inputs: int  # n_in
    outputs: int  # n_out
    output: Output  # `RNNCell.output` of a network that learns the task
    alpha: float  # α of the network; a symbol is held 1/α steps
    width: int = 1  # bits of a symbol
    memory: int = 0  # earlier symbols that `respond` is given, at most `MAX_LAG`
    units: int = 0  # of the task's own network, if it has one

    @property
    @abstractmethod
    def baselines(self) -> Mapping[str, float]:
        """Return the least losses of predictors with limited information, by description; see `RNNCell.loss`."""

    @abstractmethod
    def respond(
        self, bits: FloatArray, index: NDArray[np.int64], rates: FloatArray
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return the inputs and labels of T steps.

        Args:
            bits: the symbols in order, `memory` earlier ones first, shape (memory + S, B, width).
            index: the number of each step's symbol among the last S, shape (T,).
            rates: rates of the task's own network before these steps, shape (B, units).

        Returns:
            Inputs of shape (T, B, n_in), labels of shape (T, B, n_out), and the rates after these steps.
        """

    def stream(self, seed: int, batch: int, dtype: torch.dtype = torch.float32) -> Stream:
        """Return a new stream of B sequences, independent of each other and of those of other seeds.

        Inputs and labels are drawn and computed alike for all types. ValueError for a seed < 0 or a batch < 1.
        """
        return Stream(self, seed, batch, dtype)


class Stream:
    """Draw inputs and labels of B sequences side by side, without end; see `SequenceTask.stream`.

    Bits are a function of the seed and their place alone (Philox). What comes out does not depend on how it is
    cut: `take(5)` and `take(7)` give what `take(12)` gives, bit for bit.
    """

    def __init__(self, task: SequenceTask, seed: int, batch: int, dtype: torch.dtype) -> None:
        check_whole(seed, "seed", at_least=0)
        check_whole(batch, "batch", at_least=1)
        if task.memory > MAX_LAG:
            raise ValueError(f"a task's memory must be at most {MAX_LAG} symbols, got {task.memory}")
        self._seed, self._batch = seed, batch
        self._task, self._dtype, self._hold = task, dtype, symbol_steps(task.alpha)
        self._steps, self._rates = 0, np.zeros((self._batch, task.units))

    def take(self, steps: int) -> tuple[Tensor, Tensor]:
        """Return x of shape (T, B, n_in) and y* of shape (T, B, n_out) for the next T ≥ 1 steps, on the CPU."""
        check_whole(steps, "steps", at_least=1)
        symbols = (self._steps + np.arange(steps)) // self._hold
        first, last = int(symbols[0]), int(symbols[-1]) + 1
        bits = self._bits(first - self._task.memory, last).astype(np.float64)
        found: Any = self._task.respond(bits, symbols - first, self._rates)
        if len(found) != 3 or not all(np.isfinite(part).all() for part in found):
            kind = type(self._task).__name__
            raise ValueError(f"respond of {kind} must return inputs, labels and rates, all finite")
        x, y, self._rates = found
        self._steps += steps
        return torch.from_numpy(x).to(self._dtype), torch.from_numpy(y).to(self._dtype)

    def _bits(self, first: int, last: int) -> NDArray[np.uint8]:
        """Return the symbols `first` … `last` - 1, of which there are from -`MAX_LAG` on: (S, B, width)."""
        count = self._batch * self._task.width
        blocks = -(-count // 256)  # of 256 bits, which Philox computes from one value of its counter
        key = np.random.SeedSequence(self._seed).generate_state(2, np.uint64)
        random = np.random.Philox(key=key, counter=(first + MAX_LAG) * blocks)
        words = random.random_raw((last - first) * blocks * 4).astype("<u8", copy=False)
        rows = words.view(np.uint8).reshape(last - first, -1)
        return np.unpackbits(rows, axis=1, count=count).reshape(last - first, self._batch, -1)

    def state_dict(self) -> dict[str, Any]:
        """Return its position as tensors and plain numbers."""
        return {"seed": self._seed, "steps": self._steps, "rates": torch.from_numpy(self._rates.copy())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue, bit for bit, at the position of another stream of the same task and batch, with its seed."""
        rates, seed, steps = state["rates"], state["seed"], state["steps"]
        check_whole(seed, "seed", at_least=0)
        check_whole(steps, "steps", at_least=0)
        if rates.shape != self._rates.shape:
            raise ValueError(f"rates of this stream must have the shape {self._rates.shape}, got {rates.shape}")
        self._seed, self._steps, self._rates = seed, steps, rates.to("cpu", torch.float64, copy=True).numpy()


def symbol_steps(alpha: float) -> int:
    """Return 1/α, the steps for which a symbol is held; six digits of α are enough: 0.333333 holds for 3 steps.

    ValueError unless α lies in (0, 1] and 1/α is a whole number.
    """
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha must lie in (0, 1], got {alpha:g}")
    steps = round(1 / alpha)
    if not math.isclose(1 / alpha, steps, rel_tol=1e-5):
        shorter = math.floor(1 / alpha)
        raise ValueError(
            f"alpha must be 1 over a whole number, since a symbol is held 1/alpha steps, got {alpha:g}; "
            f"the nearest are {1 / (shorter + 1):g} and {1 / shorter:g}"
        )
    return steps


@dataclass(frozen=True)
class Add(SequenceTask):
    """Learn the probability y(t) = 0.5 + 0.5 x(t - t1) - 0.25 x(t - t2) from one bit x(t) at a time.

    Inputs are [x, 1 - x], labels [y, 1 - y]. Symbols before the first step are drawn like all others. Lags t1 and
    t2 count symbols, not steps, from 0 to `MAX_LAG`.
    """

    lags: tuple[int, int] = (3, 5)
    alpha: float = 0.5

    inputs: ClassVar[int] = 2  # type: ignore[misc]
    outputs: ClassVar[int] = 2  # type: ignore[misc]
    output: ClassVar[Output] = "softmax"  # type: ignore[misc]

    def __post_init__(self) -> None:
        try:
            first, second = self.lags
            check_whole(first, "lag", at_least=0)
            check_whole(second, "lag", at_least=0)
        except (TypeError, ValueError):
            raise ValueError(f"lags must be two whole numbers, 0 or more, got {self.lags!r}") from None
        if max(first, second) > MAX_LAG:
            raise ValueError(f"lags must be at most {MAX_LAG} symbols, got {self.lags!r}")
        object.__setattr__(self, "lags", (int(first), int(second)))  # a list from YAML would not hash
        object.__setattr__(self, "memory", max(first, second))
        symbol_steps(self.alpha)

    @cached_property
    def baselines(self) -> Mapping[str, float]:
        """Return losses in nats of predictors that know the present symbol, and those at no, one or both lags."""
        early, late = self.lags
        known = {"no history": {0}, "t2 only": {0, late}, "t1 only": {0, early}, "both": {0, early, late}}
        losses = {}
        for name, seen in known.items():
            # The best prediction is the mean of labels that look alike; labels here are equally likely.
            alike: dict[tuple[float, ...], list[float]] = defaultdict(list)
            for bits in product((0.0, 1.0), repeat=len({*self.lags})):
                at = dict(zip({*self.lags}, bits, strict=True))
                alike[tuple(bit for lag, bit in at.items() if lag in seen)].append(
                    label_of_add(at[early], at[late])
                )
            losses[name] = fmean(scipy.special.entr([p, 1 - p]).sum() for p in map(fmean, alike.values()))
        return losses

    def respond(
        self, bits: FloatArray, index: NDArray[np.int64], rates: FloatArray
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        now, early, late = (bits[self.memory - lag : len(bits) - lag] for lag in (0, *self.lags))
        label = label_of_add(early, late)
        x, y = (np.concatenate([each, 1 - each], axis=2)[index] for each in (now, label))
        return x, y, rates


@dataclass(frozen=True)
class Mimic(SequenceTask):
    """Learn the outputs of a fixed random network of the same kind for the same independent bits.

    The seed is that of the fixed network's weights. They differ from those that `RNNCell.initial_weights` draws
    with the same seed, or a learner of that seed would have nothing to learn.
    """

    seed: int
    alpha: float = 0.5
    inputs: int = 32
    units: int = 32
    outputs: int = 32

    output: ClassVar[Output] = "linear"  # type: ignore[misc]

    def __post_init__(self) -> None:
        check_whole(self.seed, "seed", at_least=0)
        for name in ("inputs", "units", "outputs"):
            check_whole(getattr(self, name), name, at_least=1)
        object.__setattr__(self, "width", self.inputs)
        symbol_steps(self.alpha)

    @property
    def cell(self) -> RNNCell:
        """Return the fixed network; it starts at r_0 = 0."""
        return RNNCell(self.units, self.inputs, self.outputs, self.alpha, output="linear")

    @cached_property
    def weights(self) -> tuple[Tensor, Tensor]:
        """Return its W of shape (n, m) and W_out of shape (n_out, n + 1), float64."""
        seed = np.random.SeedSequence(self.seed, spawn_key=(1,)).generate_state(1)
        return self.cell.initial_weights(torch.Generator().manual_seed(int(seed[0])), torch.float64)

    @cached_property
    def baselines(self) -> Mapping[str, float]:
        """Return the loss of the best constant prediction: half the variance of the labels, mean over outputs.

        It is an estimate, within about 2 %, from 200 symbols of 64 sequences, always the same ones.
        """
        stream, hold = self.stream(0, 64, torch.float64), symbol_steps(self.alpha)
        for _ in range(20):  # until rates do not depend on r_0 = 0 any more
            stream.take(hold)
        total = squares = torch.zeros(self.outputs, dtype=torch.float64)
        for _ in range(200):
            label = stream.take(hold)[1]
            total, squares = total + label.mean((0, 1)), squares + label.square().mean((0, 1))
        return {"mean label": 0.5 * float((squares / 200 - (total / 200) ** 2).mean())}

    def respond(
        self, bits: FloatArray, index: NDArray[np.int64], rates: FloatArray
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        # numpy, not torch: a step takes half the time. Matrices are applied to one step or symbol at a time
        # (what `@` does with three axes), because a product of another size may be rounded in another way.
        weight, weight_out = (each.numpy() for each in self.weights)
        parts = weight[:, : self.units], weight[:, self.units : -1], weight_out[:, :-1]
        recurrent, entering, reading = (np.ascontiguousarray(part.T) for part in parts)
        bias, bias_out = weight[:, -1], weight_out[:, -1]
        drive, path = bits @ entering + bias, np.empty((len(index), *rates.shape))
        for now, symbol in zip(path, index.tolist(), strict=True):
            np.matmul(rates, recurrent, out=now)
            now += drive[symbol]
            np.tanh(now, out=now)
            now -= rates
            now *= self.alpha
            now += rates
            rates = now
        return bits[index], path @ reading + bias_out, rates.copy()


def label_of_add(early: Any, late: Any) -> Any:
    """Return y = 0.5 + 0.5 x(t - t1) - 0.25 x(t - t2) of bits that far back: numbers or arrays."""
    return 0.5 + 0.5 * early - 0.25 * late


def build_task(name: str, settings: Any) -> SequenceTask:
    """Return the task with this name in `TASKS`, for a run's configuration or another object with its fields.

    The tasks here need `lags`, `alpha` and `seed`. Raises ValueError for an unknown name or impossible settings.
    """
    load_plugins()
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    task: SequenceTask = TASKS[name].build(settings)
    if not isinstance(task, SequenceTask) or not hasattr(task, "alpha"):
        raise ValueError(f"task {name} must be a SequenceTask with inputs, outputs and alpha, got {task!r}")
    return task
