"""The configuration of a reinforcement-learning run, and where its values come from.

Precedence: defaults of the dataclass < tuned defaults of the task < configuration file < command line.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
import yaml

from cet_rl.hyperparameters import check_hyperparameters
from cet_rl.timing import CreditTiming
from cet_rl.traces.base import Normalization
from cet_rl.traces.registry import TraceConfig

CONVOLUTIONS = 3
"""Of a convolutional actor: `cet_rl.networks.CHANNELS`, which need not be imported for this."""


@dataclass(frozen=True)
class RLConfig:
    """What to learn, and how."""

    # Everything that is needed to repeat a run; ValueError for values that cannot be or do not fit together.
    task: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="TASK")]
    """Gymnasium id, such as CartPole-v1; module:Id-v0 imports the module that registers it."""
    agent: str = "cet"
    """A name that `cet-rl list agents` shows, or module:Class."""
    delay: float = 0.0
    """Seconds until credit reaches the actor's synapses; for agents without synaptic traces, until the environment
    hands out rewards. 0: no delay."""
    order: int | None = None
    """States of a trace (cet, sharp, legendre). Default 5; 1 is the classical trace."""
    trace: str | None = None
    """A name that `cet-rl list traces` shows. Default cet, or none without a delay."""
    stacked: bool = False
    """Add up delays from the output layer down (retrograde signalling)."""
    step_ms: float = 200.0
    """Milliseconds that one environment step stands for."""
    normalization: Normalization = "peak"
    """Scale of the trace's kernel: largest value one, or area one."""
    decay: float | None = None
    """Decay of the classical trace per step, in (0, 1). Default exp(-1/D), D the delay in steps."""
    lam: float = 0.95
    """Lambda of the RL eligibility trace and of the critic's returns."""
    random_lam: tuple[float, float] | None = None
    """LOW HIGH: one lambda per weight of the actor, drawn uniformly once."""
    error_at: Literal["preactivation", "activation"] = "preactivation"
    """What hidden layers' errors are derivatives with respect to."""
    feedback: Literal["backprop", "fa", "dfa"] = "backprop"
    """How credit reaches hidden layers: backpropagation, feedback alignment, direct feedback alignment."""
    discretization: Literal["exact", "official"] = "exact"
    """Of a cascade: Eq. 8, or as in the authors' code, where a step's input enters the first state only."""
    gamma: float = 0.99
    """Discount."""
    lr: float = 5e-4
    """Learning rate of Adam."""
    anneal_lr: bool = True
    """Let the learning rate fall linearly to zero over the run."""
    entropy_coef: float = 0.01
    """Weight of the policy's entropy."""
    value_coef: float = 0.25
    """Weight of the critic's loss."""
    max_grad_norm: float = 0.5
    """Joint norm that the gradients are clipped to."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the dense hidden layers of the actor, and of a dense critic."""
    actor: Literal["mlp", "conv"] = "mlp"
    """Dense (maps are flattened) or with three convolutions first, for maps (MinAtar)."""
    critic: Literal["auto", "mlp", "conv"] = "auto"
    """Dense or convolutional; auto is convolutional for maps (MinAtar)."""
    activation: Literal["relu", "identity", "tanh", "sigmoid"] = "relu"
    """Of the actor's hidden layers. tanh and sigmoid need --error-at activation."""
    total_steps: int = 1_000_000
    """Environment samples to learn from, all environments counted."""
    num_envs: int = 4
    """Environments side by side."""
    n_steps: int = 128
    """Steps of each environment between updates; 1 updates after every step."""
    seed: int = 0
    """Of networks, actions and environments."""
    device: str = "auto"
    """auto, cpu or cuda."""
    threads: int | None = None
    """CPU threads. Default OMP_NUM_THREADS, else 1; more rarely help and change the last digits."""
    alignment: bool = True
    """Log the cosine between each layer's update and the true gradient for the same data."""
    eval_episodes: int = 100
    """Deterministic episodes at the end of the run."""
    eval_max_steps: int = 10_000
    """Step cap of an evaluation episode in a task that has none."""

    def __post_init__(self) -> None:
        positive = ("total_steps", "num_envs", "n_steps", "eval_episodes", "eval_max_steps", "threads")
        for name in positive:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{_flag(name)} must be at least 1, got {value}")
            if value is not None and value > 10**12:
                raise ValueError(f"{_flag(name)} is too large")
        check_seed(self.seed)
        check_hyperparameters(self)
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ValueError(f"--lr must be positive and finite, got {self.lr:g}")
        if not self.hidden or min(self.hidden) < 1 or max(self.hidden) > 100_000:
            raise ValueError(f"--hidden must list widths from 1 to 100,000, got {self.hidden}")
        if self.threads is not None and self.threads > 1024:
            raise ValueError(f"--threads must be at most 1024, got {self.threads}")
        _ = self.trace_config
        self.timing.check_run(self.total_steps, self.num_envs)

    @property
    def step_duration(self) -> float:
        """Seconds one step stands for."""
        return self.step_ms / 1000

    @property
    def timing(self) -> CreditTiming:
        """When credit reaches each of the actor's layers."""
        layers = len(self.hidden) + 1 + (CONVOLUTIONS if self.actor == "conv" else 0)
        return CreditTiming(self.delay, self.step_duration, self.stacked, layers)

    @property
    def trace_config(self) -> TraceConfig:
        """Kind, order, decay and normalisation of the trace, the kind's default filled in."""
        return TraceConfig.for_delay(
            self.delay,
            self.trace,
            self.order,
            self.decay,
            self.normalization,
            stacked=self.stacked,
            discretization=self.discretization,
        )

    @property
    def label(self) -> str:
        """Short name of the arm for folders and legends: cet5-8s, none, legendre10-120s-stacked, sb3-a2c-8s."""
        parts = [] if self.agent == "cet" else [re.sub(r"\W+", "-", self.agent)]
        if self.agent == "cet" or self.trace is not None:
            parts.append(self.trace_config.label)
        parts += [self.feedback] * (self.feedback != "backprop")
        parts += ["random-lam"] * (self.random_lam is not None) + ["conv"] * (self.actor == "conv")
        parts += [f"{self.delay:g}s"] * bool(self.delay) + ["stacked"] * self.stacked
        return "-".join(parts)

    @classmethod
    def unchecked(cls, values: Mapping[str, Any]) -> RLConfig:
        """Values to start from that may not fit together yet; whatever is built from them is checked."""
        config = object.__new__(cls)
        for item in dataclasses.fields(cls):
            object.__setattr__(config, item.name, values.get(item.name, item.default))
        return config

    def as_data(self) -> dict[str, Any]:
        """Plain data, as written to config.yaml."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(self).items()}


def check_seed(seed: int) -> None:
    """Raise ValueError unless numpy, torch and Gymnasium can all be seeded with it."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"--seed must lie in [0, 2^32), got {seed}")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def package_configs() -> dict[str, Traversable]:
    """The configuration files that come with the package, by name."""
    folder = resources.files("cet_rl") / "configs"
    return {f.name.removesuffix(".yaml"): f for f in folder.iterdir() if f.name.endswith(".yaml")}


def read_config(source: str) -> dict[str, Any]:
    """A configuration file, by path or by the name of one that comes with the package.

    Raises:
        ValueError: if there is none, or it is no YAML mapping with keys of `RLConfig`.
    """
    known = package_configs()
    path: Traversable = Path(source)
    if not path.is_file():
        if source not in known:
            near = difflib.get_close_matches(source, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known names: {', '.join(sorted(known))}"
            raise ValueError(f"there is no configuration file {source!r} and none of that name; {hint}")
        path = known[source]
    return parse_config(_read_text(path, source), source)


def _read_text(path: Traversable, source: str) -> str:
    """The text of a file; ValueError that names it if it is none."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{source} is no UTF-8 text") from None


def tuned_defaults(task: str) -> dict[str, Any]:
    """The tuned defaults of a task, or of its namespace (MinAtar/…); empty if there are none."""
    folder = resources.files("cet_rl") / "configs" / "tuned"
    for name in (task.replace("/", "-"), task.split("/")[0]):
        path = folder / f"{name}.yaml"
        if path.is_file():
            return parse_config(_read_text(path, path.name), path.name)
    return {}


def parse_config(text: str, source: str) -> dict[str, Any]:
    """YAML text to values of `RLConfig`, checked for type.

    Raises:
        ValueError: naming the file and the key.
    """
    try:
        data = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        place = getattr(error, "problem_mark", None)
        where = f" at line {place.line + 1}" if place else ""
        raise ValueError(f"{source} is no valid YAML{where}") from None
    if data is None:
        return {}
    if not isinstance(data, Mapping):
        raise ValueError(f"{source} must hold a mapping of keys to values")
    hints = typing.get_type_hints(RLConfig)  # without the annotations that are tyro's
    values = {}
    for key, value in data.items():
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{source}: unknown key {key!r}{hint}")
        values[key] = _coerce(value, hints[key], f"{source}: {key}")
    return values


def _coerce(value: Any, hint: Any, where: str) -> Any:
    """`value` as the type `hint`, if it is one in all but notation."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return _coerce(value, next(a for a in arguments if a is not type(None)), where)
    if origin is Literal:
        if value in arguments:
            return value
        raise ValueError(f"{where} must be one of {', '.join(map(str, arguments))}, got {value!r}")
    if origin is tuple:
        endless = arguments[-1] is Ellipsis
        if isinstance(value, list) and (endless or len(value) == len(arguments)):
            return tuple(_coerce(item, arguments[0], where) for item in value)
        raise ValueError(f"{where} must be a list{'' if endless else f' of {len(arguments)}'}, got {value!r}")
    if (
        hint is float and isinstance(value, (str, int)) and not isinstance(value, bool)
    ):  # YAML 1.1 reads 5e-4 as a string
        try:
            return float(value)
        except (ValueError, OverflowError):
            raise ValueError(f"{where} must be of type float, got {str(value)[:40]!r}") from None
    fits = isinstance(value, (int, float) if hint is float else hint)
    if not fits or (isinstance(value, bool) and hint is not bool):
        raise ValueError(f"{where} must be of type {hint.__name__}, got {value!r}")
    return value
