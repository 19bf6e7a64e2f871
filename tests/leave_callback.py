"""A callback of Stable-Baselines3 that leaves learning in the middle of a rollout."""

from stable_baselines3.common.callbacks import BaseCallback


class Leave(BaseCallback):
    """Leave learning at a step or after a rollout, by asking or by an exception; keep whole rollouts' starts."""

    def __init__(self, at=None, error=None, *, at_end=False):
        super().__init__()
        self.at, self.error, self.at_end, self.starts = at, error, at_end, []

    def _on_step(self):
        if self.n_calls == self.at and self.error and not self.at_end:
            raise self.error
        return self.n_calls != self.at or self.at_end

    def _on_rollout_end(self):
        self.starts.append(self.model._rollout.starts.clone())
        if self.at_end:
            raise self.error
