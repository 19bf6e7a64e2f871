"""Train many runs of one network at once, as one batched model.

A GPU is idle most of the time while one small network learns on it. Runs that differ in trace, order, delay,
learning rate, weight decay or seed have the same shapes, so their parameters are stacked and every operation is
mapped over them (`torch.func.vmap`); the matrix of each layer's kernel is one more stacked tensor. Every run has
its own order of images, clipped gradient and optimiser, and learns what it would have learned alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional

from cet_rl.runs.config import check_batch
from cet_rl.runs.learner import LearnerBatch
from cet_rl.vision.layers import traced_layers
from cet_rl.vision.learner import EVALUATED_AT_ONCE, ImageLearner, named


class BatchedLearner(LearnerBatch[ImageLearner]):
    """Let learners take their steps together; the learners themselves do not change until `write_back`.

    Parameters and buffers of all networks are stacked, by name, to (C, *shape) for C learners. Raises ValueError
    if the learners are not at the same step, or `check_batch` refuses their configurations.
    """

    def __init__(self, learners: Sequence[ImageLearner]) -> None:
        check_batch([learner.config for learner in learners])
        if len({learner.step for learner in learners}) > 1:
            raise ValueError("runs of one batch must all be at the same step")
        super().__init__(learners)
        first = learners[0]
        self.config, self.data = first.config, first.data
        networks = [deepcopy(learner.network) for learner in self.learners]
        for network in networks:
            for layer in traced_layers(network).values():
                layer.use_matrix(self.config.batch_size)
                layer.traced = True  # the matrix of layers without a delay is the unit matrix
        self._base = networks[0]
        self.parameters, self.buffers = stack_module_state(networks)
        self._adam = {name: self._stack_adam(name) for name in self.parameters}
        new_tensor = next(iter(self.parameters.values())).new_tensor
        self._weight_decay = new_tensor([learner.config.weight_decay for learner in learners])
        self._max_norm = new_tensor([learner.config.max_grad_norm for learner in learners])
        self._loss_sums = torch.stack([learner.loss_sum for learner in self.learners])
        self._losses = first.losses

    def _stack_adam(self, name: str) -> tuple[Tensor, Tensor]:
        zero = torch.zeros_like(self.parameters[name][0])
        states = [each.optimizer.state.get(each.network.get_parameter(name), {}) for each in self.learners]
        mean, square = (torch.stack([s.get(key, zero) for s in states]) for key in ("exp_avg", "exp_avg_sq"))
        return mean, square

    def _forward(self, x: Tensor, *, shared: bool = False) -> Tensor:
        """Return logits, (C, N, classes), of (C, N, …) images, or of (N, …) images shared by all networks."""
        half = self.config.precision == "bf16" and not shared  # tests are in float32
        forward = vmap(partial(functional_call, self._base), in_dims=((0, 0), None if shared else 0))
        with torch.autocast(self.config.device, torch.bfloat16, enabled=half):
            logits: Tensor = forward((self.parameters, self.buffers), x)
        return logits.float() if half else logits

    def advance(self, limit: int | None = None, *, measure: bool = False) -> Tensor:
        """Let every learner learn from a batch of its own, and return the mean losses before the update, (C,).

        The arguments have no effect: one update is made, and alignment is not measured.
        """
        batches = [next(learner.batches) for learner in self.learners]
        x = torch.stack([images for images, _ in batches])
        y = torch.stack([labels for _, labels in batches])
        logits = self._forward(x).flatten(0, 1)
        losses = functional.cross_entropy(logits, y.flatten(), reduction="none").view(y.shape).mean(1)
        gradients = torch.autograd.grad(losses.sum(), list(self.parameters.values()))
        self._step(dict(zip(self.parameters, gradients, strict=True)))
        self.step += 1
        self._loss_sums += losses.detach()
        self._losses += 1
        return losses.detach()

    def loss_sums(self) -> list[float]:
        """Return each learner's sum of losses since the last `take_losses`."""
        return [float(loss) for loss in self._loss_sums]

    def take_losses(self) -> list[float]:
        """Return each learner's mean loss since the last call."""
        means: list[float] = (self._loss_sums / self._losses).tolist()
        self._loss_sums, self._losses = torch.zeros_like(self._loss_sums), 0
        return means

    def _rates(self, step: int) -> list[float]:
        """Return each learner's learning rate."""
        return [learner.config.learning_rate(step) for learner in self.learners]

    @torch.no_grad()
    def _step(self, gradients: dict[str, Tensor]) -> None:
        """Clip gradients and apply AdamW as torch does, with each learner's own numbers."""
        square = torch.stack([g.flatten(1).norm(dim=1).square() for g in gradients.values()]).sum(0)
        shrink = (self._max_norm / (square.sqrt() + 1e-6)).clamp(max=1.0)
        rates = shrink.new_tensor(self._rates(self.step))
        group = self.learners[0].optimizer.param_groups[0]
        (beta1, beta2), eps = group["betas"], group["eps"]
        taken = self.step + 1
        for name, gradient in gradients.items():
            each = (-1, *(1 for _ in gradient.shape[1:]))
            parameter, (mean, square_mean) = self.parameters[name], self._adam[name]
            rate = rates.view(each)
            gradient = gradient * shrink.view(each)
            parameter.mul_(1 - rate * self._weight_decay.view(each))
            mean.lerp_(gradient, 1 - beta1)
            square_mean.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
            spread = (square_mean.sqrt() / (1 - beta2**taken) ** 0.5).add_(eps)
            parameter.sub_(rate / (1 - beta1**taken) * mean / spread)

    @torch.no_grad()
    def test(self) -> list[tuple[float, float]]:
        """Return accuracy and mean loss of each learner on the test set, or on the images held out."""
        test, count = self.data.test, len(self.learners)
        right, loss = torch.zeros(2, count, device=test.labels.device)
        self._base.eval()
        try:
            for x, y in test.split(EVALUATED_AT_ONCE):
                logits = self._forward(x, shared=True)
                right += (logits.argmax(2) == y).sum(1)
                repeated = y.expand(count, -1).flatten()
                each = functional.cross_entropy(logits.flatten(0, 1), repeated, reduction="none")
                loss += each.view(count, -1).sum(1)
        finally:
            self._base.train()
        return [(float(a) / len(test), float(b) / len(test)) for a, b in zip(right, loss, strict=True)]

    def measurements(self) -> list[dict[str, float]]:
        """Return test accuracy and loss and the learning rate of each learner."""
        results = zip(self._rates(self.step - 1), self.test(), strict=True)
        held_out = self.config.held_out
        return [{**named(result, f"{held_out}/"), "train/learning_rate": rate} for rate, result in results]

    def evaluate(self) -> list[dict[str, float]]:
        """Return accuracy and mean loss of each learner by their names in summary.json."""
        return [named(result, f"{self.config.held_out}_") for result in self.test()]

    def states(self) -> Sequence[dict[str, Any]]:
        """Return everything that each learner needs to resume."""
        self.write_back()
        return super().states()

    @torch.no_grad()
    def write_back(self) -> None:
        """Write the state of the batch to the learners, which can then be saved, tested or continue alone."""
        for number, learner in enumerate(self.learners):
            for name, parameter in learner.network.named_parameters():
                parameter.copy_(self.parameters[name][number])
                mean, square = self._adam[name]
                learner.optimizer.state[parameter] = {
                    "step": torch.tensor(float(self.step), device=parameter.device),
                    "exp_avg": torch.empty_like(parameter).copy_(mean[number]),
                    "exp_avg_sq": torch.empty_like(parameter).copy_(square[number]),
                }
            for name, buffer in learner.network.named_buffers():
                buffer.copy_(self.buffers[name][number])
            learner.step, learner.losses = self.step, self._losses
            learner.loss_sum = self._loss_sums[number].clone()
