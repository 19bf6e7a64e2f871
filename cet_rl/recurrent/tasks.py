"""Add and Mimic: endless streams of inputs and labels for networks that learn online.

Both are driven by fair bits, called symbols here. Time is rescaled to the network's: each symbol, and with it the
label of Add, is held for 1/α steps.
"""

from __future__ import annotations

import importlib
import math
import operator
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from statistics import fmean
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cet_rl.recurrent.cell import Output, RNNCell
from cet_rl.recurrent.config import TASKS
from cet_rl.runs.plugins import load_plugins
from cet_rl.runs.values import unknown

MAX_LAG = 1000
"""Longest lag of Add, in symbols."""

Array = NDArray[np.float64]


class Stream(ABC):
    """Inputs and labels of B sequences side by side, without end.

    What comes out does not depend on how it is cut: `take(5)` and `take(7)` give what `take(12)` gives, bit for
    bit.
    """

    @abstractmethod
    def take(self, steps: int) -> tuple[Tensor, Tensor]:
        """Return the next T steps.

        Args:
            steps: T.

        Returns:
            Inputs x of shape (T, B, n_in) and labels y* of shape (T, B, n_out), on the CPU.

        Raises:
            ValueError: unless T is a whole number, 1 or more.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return where it stands: tensors and plain numbers."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from where another stream of the same task stood, bit for bit, with that one's seed.

        Raises:
            ValueError: if it is no such state, or one of another number of sequences.
        """


class SequenceTask(ABC):
    """Define what a recurrent network is to learn from streams of inputs and labels.

    Attributes:
        inputs: n_in.
        outputs: n_out.
        output: what the network's `RNNCell.output` is to be.
    """

    inputs: int
    outputs: int
    output: Output

    @property
    @abstractmethod
    def baselines(self) -> Mapping[str, float]:
        """Return the least loss of predictors that lack something, by a few words; unit of `RNNCell.loss`."""

    @abstractmethod
    def stream(self, seed: int, batch: int, dtype: torch.dtype = torch.float32) -> Stream:
        """Return a new stream. Its sequences are independent of each other, and of those of other seeds.

        Args:
            seed: of the symbols; 0 or more.
            batch: B.
            dtype: of inputs and labels, which are drawn alike for all.

        Raises:
            ValueError: for a seed or batch that is no such number, or a type that is not of real numbers.
        """


def symbol_steps(alpha: float) -> int:
    """Return 1/α, the steps for which a symbol is held.

    Args:
        alpha: α. Six digits are enough: 0.333333 holds for 3 steps.

    Raises:
        ValueError: unless α lies in (0, 1] and 1/α is a whole number.
    """
    if not (math.isfinite(alpha) and 0 < alpha <= 1):
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
    """Tell the probability y(t) = 0.5 + 0.5 x(t - t1) - 0.25 x(t - t2) from one bit x(t) at a time.

    Inputs are [x, 1 - x], labels [y, 1 - y]. Symbols before the first step are drawn like all others.

    Attributes:
        lags: t1 and t2, in symbols, not steps.
        alpha: α of the network; a symbol is held 1/α steps.

    Raises:
        ValueError: unless lags are two whole numbers from 0 to `MAX_LAG`, and 1/α is a whole number.
    """

    lags: tuple[int, int] = (3, 5)
    alpha: float = 0.5

    inputs: ClassVar[int] = 2  # type: ignore[misc]
    outputs: ClassVar[int] = 2  # type: ignore[misc]
    output: ClassVar[Output] = "softmax"  # type: ignore[misc]

    def __post_init__(self) -> None:
        try:
            first, second = (_whole("a lag", lag) for lag in self.lags)
        except (TypeError, ValueError):
            raise ValueError(f"lags must be two whole numbers, 0 or more, got {self.lags!r}") from None
        if max(first, second) > MAX_LAG:
            raise ValueError(f"lags must be at most {MAX_LAG} symbols, got {self.lags!r}")
        object.__setattr__(self, "lags", (first, second))  # a list from YAML would not hash
        symbol_steps(self.alpha)

    @cached_property
    def baselines(self) -> Mapping[str, float]:
        """Return losses in nats of predictors that know the present symbol, and those at no, one or both lags."""
        first, second = self.lags
        known = {"no history": (), "t2 only": (second,), "t1 only": (first,), "both": self.lags}
        return {name: self._baseline({0, *lags}) for name, lags in known.items()}

    def _baseline(self, known: set[int]) -> float:
        # The best prediction is the mean of labels that look alike; labels here are equally likely.
        lags = sorted(set(self.lags))
        bits = np.array(list(product((0.0, 1.0), repeat=len(lags))))
        labels = add_label(*(bits[:, lags.index(lag)] for lag in self.lags))
        alike: dict[tuple[float, ...], list[float]] = defaultdict(list)
        for seen, label in zip(bits[:, [lag in known for lag in lags]], labels, strict=True):
            alike[tuple(seen)].append(float(label))
        return fmean(_entropy(fmean(labels)) for labels in alike.values())

    def stream(self, seed: int, batch: int, dtype: torch.dtype = torch.float32) -> Stream:
        """See `SequenceTask.stream`."""
        return _AddStream(self, seed, batch, dtype)


@dataclass(frozen=True)
class Mimic(SequenceTask):
    """Give the outputs of a fixed random network of the same kind for the same independent bits.

    Attributes:
        seed: of that network's weights. They are unlike those that `RNNCell.initial_weights` draws from a
            generator of this seed: a learner of the same seed would have nothing to learn.
        alpha: α of both networks; a symbol is held 1/α steps.
        inputs: n_in, bits per symbol.
        units: n of the fixed network.
        outputs: n_out.

    Raises:
        ValueError: for a negative seed, counts below one, or an α of which 1/α is no whole number.
    """

    seed: int
    alpha: float = 0.5
    inputs: int = 32
    units: int = 32
    outputs: int = 32

    output: ClassVar[Output] = "linear"  # type: ignore[misc]

    def __post_init__(self) -> None:
        _whole("seed", self.seed)
        for name in ("inputs", "units", "outputs"):
            _whole(name, getattr(self, name), least=1)
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
        """Half the variance of the labels, mean over outputs: what the best constant scores.

        It is an estimate, within about 2 %, from 200 symbols of 64 sequences, always the same ones.
        """
        stream, hold = self.stream(0, 64, torch.float64), symbol_steps(self.alpha)
        for _ in range(20):  # from r_0 = 0 to the usual
            stream.take(hold)
        total = squares = torch.zeros(self.outputs, dtype=torch.float64)
        for _ in range(200):
            label = stream.take(hold)[1]
            total, squares = total + label.mean((0, 1)), squares + label.square().mean((0, 1))
        return {"mean label": 0.5 * float((squares / 200 - (total / 200) ** 2).mean())}

    def stream(self, seed: int, batch: int, dtype: torch.dtype = torch.float32) -> Stream:
        """See `SequenceTask.stream`. Labels are computed in float64 whatever the type."""
        return _MimicStream(self, seed, batch, dtype)


def add_label(early: Array, late: Array) -> Array:
    """Return y = 0.5 + 0.5 x(t - t1) - 0.25 x(t - t2) of bits that far back."""
    return 0.5 + 0.5 * early - 0.25 * late


class TaskSettings(Protocol):
    """Hold the part of a run's configuration that a task is built from."""

    @property
    def lags(self) -> tuple[int, int]:
        """Lags of Add, in symbols."""

    @property
    def alpha(self) -> float:
        """α of the network."""

    @property
    def seed(self) -> int:
        """Seed of the run."""


def build_task(name: str, settings: TaskSettings) -> SequenceTask:
    """Build the task of a name, third parties' included.

    Args:
        name: a key of `TASKS`.
        settings: the run's configuration.

    Raises:
        ValueError: for an unknown name, with the nearest or all names, or settings that the task refuses.
    """
    load_plugins()
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    build = TASKS[name].build
    if isinstance(build, str):
        module, _, function = build.partition(":")
        build = getattr(importlib.import_module(module), function)
    task: SequenceTask = build(settings)
    return task


def build_add(settings: TaskSettings) -> Add:
    """Build `Add` for a run's configuration."""
    return Add(settings.lags, settings.alpha)


def build_mimic(settings: TaskSettings) -> Mimic:
    """Build `Mimic` for a run's configuration."""
    return Mimic(settings.seed, settings.alpha)


class _HeldStream(Stream):
    """Draw fair bits, each a function of the seed and its place alone (Philox), and what follows from them."""

    def __init__(self, task: Add | Mimic, seed: int, batch: int, dtype: torch.dtype, width: int) -> None:
        if not dtype.is_floating_point:
            raise ValueError(f"dtype must be one of real numbers, such as torch.float32, got {dtype}")
        self._seed, self._batch = _whole("seed", seed), _whole("batch", batch, least=1)
        self._dtype, self._width, self._hold = dtype, width, symbol_steps(task.alpha)
        self._steps = 0

    @abstractmethod
    def _produce(self, first: int, last: int, index: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Inputs and labels of steps, given the range of their symbols and which of it each step has."""

    def take(self, steps: int) -> tuple[Tensor, Tensor]:
        """See `Stream.take`."""
        symbols = (self._steps + np.arange(_whole("steps", steps, least=1))) // self._hold
        first, last = int(symbols[0]), int(symbols[-1]) + 1
        x, y = self._produce(first, last, symbols - first)
        self._steps += steps
        return x.to(self._dtype), y.to(self._dtype)

    def _bits(self, first: int, last: int) -> NDArray[np.uint8]:
        """Symbols of some range, from -`MAX_LAG` on: shape (last - first, B, width)."""
        count = self._batch * self._width
        blocks = -(-count // 256)  # what Philox makes of one value of its counter
        key = np.random.SeedSequence(self._seed).generate_state(2, np.uint64)
        random = np.random.Philox(key=key, counter=(first + MAX_LAG) * blocks)
        words = random.random_raw((last - first) * blocks * 4).astype("<u8", copy=False)
        rows = words.view(np.uint8).reshape(last - first, -1)
        return np.unpackbits(rows, axis=1, count=count).reshape(last - first, self._batch, self._width)

    def state_dict(self) -> dict[str, Any]:
        """See `Stream.state_dict`."""
        return {"seed": self._seed, "batch": self._batch, "steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `Stream.load_state_dict`."""
        if set(state) != set(self.state_dict()):
            raise ValueError(
                f"the state of this stream holds {', '.join(self.state_dict())}, got {', '.join(state) or 'none'}"
            )
        if state["batch"] != self._batch:
            raise ValueError(f"this stream has {self._batch} sequences, its state is of {state['batch']}")
        seed, steps = _whole("seed", state["seed"]), _whole("steps", state["steps"])
        self._seed, self._steps = seed, steps


class _AddStream(_HeldStream):
    def __init__(self, task: Add, seed: int, batch: int, dtype: torch.dtype) -> None:
        super().__init__(task, seed, batch, dtype, width=1)
        self._lags = task.lags

    def _produce(self, first: int, last: int, index: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        longest = max(self._lags)
        bits = self._bits(first - longest, last).astype(np.float64)
        now, early, late = (bits[longest - lag : len(bits) - lag] for lag in (0, *self._lags))
        label = add_label(early, late)
        x, y = (np.concatenate([each, 1 - each], axis=2)[index] for each in (now, label))
        return torch.from_numpy(x), torch.from_numpy(y)


class _MimicStream(_HeldStream):
    # numpy, not torch: a step takes half the time. Matrices are applied to one step or symbol at a time
    # (what `@` does with three axes), because a product of another size may be rounded in another way.

    def __init__(self, task: Mimic, seed: int, batch: int, dtype: torch.dtype) -> None:
        super().__init__(task, seed, batch, dtype, width=task.inputs)
        weight, weight_out = (each.numpy() for each in task.weights)
        parts = weight[:, : task.units], weight[:, task.units : -1], weight_out[:, :-1]
        self._recurrent, self._entering, self._reading = (np.ascontiguousarray(part.T) for part in parts)
        self._bias, self._bias_out, self._alpha = weight[:, -1], weight_out[:, -1], task.alpha
        self._rates = np.zeros((self._batch, task.units))

    def _produce(self, first: int, last: int, index: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        bits = self._bits(first, last).astype(np.float64)
        drive = bits @ self._entering + self._bias
        path = np.empty((len(index), *self._rates.shape))
        rates = self._rates
        for now, symbol in zip(path, index.tolist(), strict=True):
            np.matmul(rates, self._recurrent, out=now)
            now += drive[symbol]
            np.tanh(now, out=now)
            now -= rates
            now *= self._alpha
            now += rates
            rates = now
        self._rates = rates.copy()
        return torch.from_numpy(bits[index]), torch.from_numpy(path @ self._reading + self._bias_out)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "rates": torch.from_numpy(self._rates.copy())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        rates, shape = state.get("rates"), self._rates.shape
        if not isinstance(rates, Tensor) or rates.shape != shape:
            raise ValueError(f"the state of this stream holds rates, a tensor of shape {shape}")
        super().load_state_dict(state)
        self._rates = rates.to("cpu", torch.float64, copy=True).numpy()


def _whole(name: str, value: Any, *, least: int = 0) -> int:
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least:
        raise ValueError(f"{name} must be a whole number, {least} or more, got {value!r}")
    return number


def _entropy(probability: float) -> float:
    """Return the entropy of a coin, in nats."""
    return -sum(p * math.log(p) for p in (probability, 1 - probability) if p > 0)
