"""A callback of Stable-Baselines3 that leaves learning in the middle of a rollout."""

from stable_baselines3.common.callbacks import BaseCallback


class Leave(BaseCallback):
    """Leave learning at a step, by asking or by an exception; keep the episode starts of whole rollouts."""

    def __init__(self, at=None, error=None):
        super().__init__()
        self.at, self.error, self.starts = at, error, []

    def _on_step(self):
        if self.n_calls == self.at and self.error:
            raise self.error
        return self.n_calls != self.at

    def _on_rollout_end(self):
        self.starts.append(self.model._rollout.starts.clone())
