"""A policy over discrete actions: what the learner needs of it, in closed form."""

from __future__ import annotations

import torch
from torch import Tensor


def score(logits: Tensor, actions: Tensor) -> Tensor:
    """∂ log π(a) / ∂ logits = onehot(a) - π; (N, A) and (N,) to (N, A)."""
    gradient = -torch.softmax(logits, dim=-1)
    gradient[torch.arange(len(actions), device=actions.device), actions] += 1
    return gradient


def entropy(logits: Tensor) -> tuple[Tensor, Tensor]:
    """H = -Σ π log π of each row, and ∂H / ∂ logits = -π (log π + H); (N, A) to (N,) and (N, A)."""
    log_probabilities = torch.log_softmax(logits, dim=-1)
    probabilities = log_probabilities.exp()
    each = -(probabilities * log_probabilities).sum(-1)
    return each, -probabilities * (log_probabilities + each[:, None])


def gumbel(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Noise that turns `argmax(logits + noise)` into a sample of the policy."""
    return -torch.empty(shape).exponential_(generator=generator).log_()
