"""A sampler whose draws depend on the trial, not on the process that asks for it.

Processes that share a study would draw the same from streams that begin alike, and a search that goes on would
draw other values than one that was never interrupted. A trial's number is unique in its study, so each draw has a
stream of its own, seeded with that number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.samplers import BaseSampler, RandomSampler, TPESampler

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial


class TrialSampler(BaseSampler):
    """Draws as one of Optuna's samplers does, begun anew for each trial and option.

    Args:
        kind: tpe or random.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """The options that are drawn together."""
        return self._begun(trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: Mapping[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Values of the options that are drawn together."""
        return self._begun(trial).sample_relative(study, trial, dict(search_space))

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The value of an option that is drawn by itself."""
        return self._begun(trial, param_name).sample_independent(study, trial, param_name, param_distribution)

    def _begun(self, trial: FrozenTrial, option: str = "") -> BaseSampler:
        entropy = [trial.number, *option.encode()]
        seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        # Trials that are under way count as bad ones, so that those side by side do not crowd together.
        return RandomSampler(seed) if self.kind == "random" else TPESampler(seed=seed, constant_liar=True)
