"""Configure a recurrent network's run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Self

from cet_rl.runs.config import Mark, RunConfig
from cet_rl.runs.plugins import load_plugins
from cet_rl.runs.task_kinds import check_new_task
from cet_rl.runs.values import unknown
from cet_rl.traces.base import Normalization
from cet_rl.traces.timing import check_jitter


@dataclass(frozen=True)
class Task:
    """Describe a sequence task that can be learned."""

    summary: str  # one line for `cet-rl list`
    build: Callable[[Any], Any]
    """Returns the `cet_rl.recurrent.tasks.SequenceTask` of a configuration; raises ValueError if there is none."""


def _add(config: Any) -> Any:
    from cet_rl.recurrent.tasks import Add  # torch: a second to load

    return Add(config.lags, config.alpha)


def _mimic(config: Any) -> Any:
    from cet_rl.recurrent.tasks import Mimic

    return Mimic(config.seed, config.alpha)


TASKS: dict[str, Task] = {
    "add": Task("the sum of two past bits, as a probability: 0.5 + 0.5 x(t - t1) - 0.25 x(t - t2)", _add),
    "late-add": Task("Add whose error comes late", _add),
    "mimic": Task("the outputs of a fixed random recurrent network, from its inputs", _mimic),
}
"""The sequence tasks by name."""


def register_task(name: str, summary: str, build: Callable[[Any], Any]) -> None:
    """Add a sequence task to those that `cet-rl train` knows, under a name; see `Task` for the other arguments.

    A package registers its own in the function that its entry point names (`cet_rl.runs.plugins`). Raises
    ValueError if the name is that of another task, or could be a Gymnasium id.
    """
    check_new_task("task", name)
    TASKS[name] = Task(summary, build)


def summaries() -> dict[str, str]:
    """Return a line about each task by name, those of plugins included."""
    load_plugins()
    return {name: task.summary for name, task in TASKS.items()}


TASK_RULE_OPTIONS = {"mimic": {"dni": ("rate=0.001",), "dni-b": ("rate=0.001",)}}
"""Options of rules with which a task is learned better than with the rule's own defaults."""

LAGS = (3, 5)  # lags of Add, as in Fig. 1 of the paper


@dataclass(frozen=True)
class RecurrentConfig(RunConfig):
    """Choose what to learn, and how."""

    rule: Annotated[str, Mark.LABELLED] = "rflo"
    """Learning rule of the recurrent weights: a name that `cet-rl list rules` shows, or module:Class."""
    delay: float = 0.0
    """Seconds until the error reaches the synapses; a time step stands for --step-ms. 0: no delay."""
    jitter: float = 0.0
    """J: an error arrives after D (1 + J u) steps, u drawn from [-1, 1] for each step; the trace is for D."""
    normalization: Normalization = "area"
    """Scale of the trace's kernel: area one, or largest value one."""
    lr: float = 1e-3
    """Learning rate of plain gradient descent."""
    total_steps: int = 100_000
    """Time steps."""
    lags: tuple[int, int] = LAGS
    """T1 T2: how many symbols ago the two inputs were that Add's label depends on."""
    units: int = 32
    """Hidden units."""
    alpha: float = 0.5
    """Inverse time constant of the units, in (0, 1]; symbols are held 1/alpha steps."""
    activation: Literal["tanh", "identity"] = "tanh"
    """Activation of the hidden units."""
    batch_size: int = 1
    """Sequences side by side; gradients are means over them."""
    update_every: int = 1
    """Steps between updates, each with the sum of the gradients since the last."""
    feedback: Literal["symmetric", "random"] = "symmetric"
    """Route of the output's error to hidden units: the output weights, or fixed random ones."""
    rule_options: tuple[str, ...] = ()
    """NAME=VALUE ...: options of the rule, such as window=10 of bptt; `cet-rl list rules` shows them."""
    precision: Literal["float32", "float64"] = "float32"
    """Type of all numbers."""
    executor: Annotated[Literal["auto", "step", "compiled"], Mark.NEUTRAL] = "auto"
    """The definition, step by step, or a compiled loop, on CPUs and for the rules that come with the package."""

    def __post_init__(self) -> None:
        known = summaries()
        if self.task not in known:
            raise unknown("sequence task", self.task, known)
        super().__post_init__()
        self.check_counts("units", "batch_size", "update_every")
        if self.units > 10_000:
            raise ValueError(f"--units must be at most 10,000, got {self.units}")
        if not 0 < self.alpha <= 1:
            raise ValueError(f"--alpha must lie in (0, 1], got {self.alpha:g}")
        check_jitter("--jitter", self.jitter)
        if self.jitter and not self.delay:
            raise ValueError("--jitter needs a delay")
        if self.stacked and self.rule == "fixed-w":
            raise ValueError("fixed-w learns the output layer, which --stacked does not delay: use --delay alone")
        if self.lags != LAGS and self.task == "mimic":
            raise ValueError("--lags belongs to Add; mimic has none: leave it out")
        if min(self.lags) < 0:
            raise ValueError(f"--lags must not be negative, got {self.lags[0]} {self.lags[1]}")
        if not self.last_update:
            raise ValueError(
                f"the run ends after {self.total_steps:,} steps, before its first update (--update-every "
                f"{self.update_every:,}): learn for longer (--total-steps) or update more often"
            )
        self.timing.check_run(self.last_update, 1, self.jitter)

    @property
    def last_update(self) -> int:
        """Return the step of the last update; 0 if there is none."""
        return self.total_steps - self.total_steps % self.update_every

    def resolved(self) -> Self:
        """Return the configuration with trace and options of the rule filled in."""
        return replace(super().resolved(), rule_options=self.all_rule_options)

    @property
    def layers(self) -> int:
        """Return 2: the recurrent layer and the output layer."""
        return 2

    @property
    def all_rule_options(self) -> tuple[str, ...]:
        """Return the rule's options: those that are given, and those of `TASK_RULE_OPTIONS` for the others."""
        given = {word.partition("=")[0] for word in self.rule_options}
        usual = TASK_RULE_OPTIONS.get(self.task, {}).get(self.rule, ())
        return (*(word for word in usual if word.partition("=")[0] not in given), *self.rule_options)

    @property
    def arm(self) -> tuple[str, ...]:
        """Return the words of `label` that name what learns: rflo, or rflo and cet10."""
        parts = [self.rule.replace(":", "-")]
        if self.delay:
            parts.append(self.trace_config.label)
        parts += [f"jitter{self.jitter:g}"] * bool(self.jitter)
        parts += ["random-feedback"] * (self.feedback != "symmetric")
        return tuple(parts)
