"""Model what an update of one layer costs by executor, in operations and numbers moved, to choose an executor.

Nothing is timed during a run: the same layer takes the same path on every machine, and so does a resumed run.
`cet-rl bench` fits the constants to the machine at hand and says where the choice would differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

Form = Literal["chunk", "fused", "history", "factored"]  # executors that "auto" chooses from
FORMS: tuple[Form, ...] = get_args(Form)

NANOSECONDS = {"products": 0.032, "states": 0.11, "numbers": 0.12, "calls": 4900.0, "loop": 0.0188}
"""Time of a multiply-add of a matrix product, of one of a product over a unit's states, of a number read or
written in a pass over a tensor, of a call of torch, and of a term of the compiled loop."""

_SKIPPED_AT_ONCE = 64  # rows in which zeros of a banded product cannot be skipped


@dataclass(frozen=True)
class Plan:
    """Describe one way to compute a layer's update, and what its cost depends on, for E environments."""

    form: Form
    n_pre: int
    n_post: int
    weights: int
    positions: int  # at which each weight is used in a sample: one, but for a convolution
    envs: int
    eligible: bool  # whether γλ > 0
    order: int  # n, states of a synapse
    couplings: int  # entries of M, K and C that are not zero
    onset: int  # steps that x and f' are delayed beforehand
    past: int  # L, earlier steps that the kernel still sees
    window: int  # R, earlier steps that e still sees

    @property
    def name(self) -> str:
        """Return the form and the steps by which inputs are delayed beforehand: "fused", "history+40"."""
        return f"{self.form}+{self.onset}" if self.onset else self.form

    @property
    def is_factored(self) -> bool:
        """Tell whether synapses keep the factors of their past, x and f', in the place of states."""
        return self.form in ("history", "factored")

    def state_shapes(self, weight_shape: tuple[int, ...]) -> dict[str, tuple[int, ...] | None]:
        """Return the shape of each tensor of `SynapseState`; None for those that this form does not keep."""
        envs, factored, weighs_past = self.envs, self.is_factored, self.form == "factored" and self.eligible
        window = self.window if weighs_past else self.past
        return {
            "eligibility": (envs, 0) if weighs_past else (envs, *weight_shape),
            "states": None if factored else (envs, self.n_post, self.order, weight_shape[1]),
            "past_pre": (window, envs, self.n_pre) if factored else None,
            "past_derivative": (self.past, envs, self.n_post) if factored else None,
            "past_eligibility": (window, envs, self.n_post) if weighs_past else None,
        }

    def count(self, steps: int) -> dict[str, float]:
        """Return how much of each of `NANOSECONDS` a chunk of T steps takes."""
        form, samples, sums = self.form, self.envs * steps, 1 + self.eligible
        narrow = max(1.0, 16 / self.n_pre, 16 / self.n_post)  # as slow as a wider one
        outer = self.weights * self.positions * narrow  # multiply-adds of Σ post ⊗ pre, a step and environment
        kept = self.envs * self.weights  # numbers of e
        lines = 4 * samples * (self.n_pre + self.n_post) if self.onset else 0
        signals = samples * (self.n_pre + 4 * sums * self.n_post) + lines
        if form == "fused":
            by_input = rows_are_inputs(self.n_pre, self.n_post)
            rows, length = (self.n_pre, self.n_post) if by_input else (self.n_post, self.n_pre)
            each = -(-length // 16) * 16 * (self.couplings + 4 + self.order) + 48 + 8 * self.order
            passes = (1 + self.order) * (3 if by_input else 1)
            return {"loop": samples * rows * each, "numbers": signals + kept * passes, "calls": 10 + 10 * by_input}
        if form == "chunk":
            credited = sums * self.n_post * (steps + self.order)
            states = kept * self.order
            return {
                "products": samples * (credited + outer * (sums + self.order)),
                "states": states * (self.order + sums),
                "numbers": signals + 4 * states + 4 * self.eligible * kept + 2 * samples * self.order * self.n_pre,
                "calls": 20 + 40 * self.eligible + self.envs * (10 + 0.2 * self.n_post),
            }
        total = self.past + steps
        near = steps * min(steps, (steps + _SKIPPED_AT_ONCE) // 2)
        far = self.order * total if has_factors(self.order, self.past, steps) else steps * self.past
        band = min(near + far, steps * (self.past + 1 + _SKIPPED_AT_ONCE)) if self.past else 0
        copied = 2 * (self.past + steps) * self.envs * (self.n_pre + self.n_post) if self.past else 0
        credited = self.envs * self.n_post * (sums * band)
        factors = 2 * sums * self.envs * total * self.n_post
        if form == "history":
            return {
                "products": credited + sums * self.envs * total * outer,
                "numbers": signals + copied + factors + 5 * self.eligible * kept + 4 * self.weights,
                "calls": 20 + 40 * self.eligible,
            }
        older = self.envs * (self.window - self.past)
        return {
            "products": credited + self.envs * (self.window + steps) * outer,
            "numbers": signals + copied + factors + older * (2 * self.n_pre + 6 * self.n_post) + 6 * self.weights,
            "calls": 60,
        }

    def nanoseconds(self, steps: int, constants: Mapping[str, float] = NANOSECONDS) -> float:
        """Return the cost of a chunk of T steps."""
        return sum(constants[kind] * number for kind, number in self.count(steps).items())


def has_factors(order: int, past: int, steps: int) -> bool:
    """Return whether what errors of T steps add to L earlier ones is computed through the n states of a trace."""
    return 2 * order * (past + steps) < past * steps


def rows_are_inputs(n_pre: int, n_post: int) -> bool:
    """Return whether the compiled loop on a CPU takes the synapses of an input at once, not those of a unit."""
    return n_pre < min(32, n_post)


def cheapest(plans: Iterable[Plan], steps: int, constants: Mapping[str, float] = NANOSECONDS) -> Plan:
    """Return the plan with the least cost for chunks of T steps; the first of equals."""
    return min(plans, key=lambda plan: plan.nanoseconds(steps, constants))
