"""Which hyper-parameters of learning can be, whoever learns with them."""

from __future__ import annotations

import math
from typing import Protocol


class Hyperparameters(Protocol):
    """What the configuration of a run and that of our learner have in common."""

    @property
    def gamma(self) -> float: ...  # noqa: D102
    @property
    def lam(self) -> float: ...  # noqa: D102
    @property
    def random_lam(self) -> tuple[float, float] | None: ...  # noqa: D102
    @property
    def entropy_coef(self) -> float: ...  # noqa: D102
    @property
    def value_coef(self) -> float: ...  # noqa: D102
    @property
    def max_grad_norm(self) -> float: ...  # noqa: D102


def check_hyperparameters(values: Hyperparameters) -> None:
    """Raise ValueError, naming it, for a value that cannot be or that forgets nothing."""
    for name in ("gamma", "lam"):
        value = getattr(values, name)
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must lie in [0, 1], got {value:g}")
    highest = values.lam
    if values.random_lam is not None:
        pair = values.random_lam
        if not (len(pair) == 2 and 0 <= pair[0] <= pair[1] <= 1):
            raise ValueError(f"random_lam must be two numbers with 0 <= low <= high <= 1, got {pair}")
        highest = max(highest, pair[1])
    if values.gamma * highest >= 1:
        raise ValueError("gamma times lam must stay below 1: nothing would ever be forgotten")
    for name in ("entropy_coef", "value_coef"):
        value = getattr(values, name)
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be finite and not negative, got {value:g}")
    if not 0 < values.max_grad_norm < math.inf:
        raise ValueError(f"max_grad_norm must be positive and finite, got {values.max_grad_norm:g}")
