"""Many runs of one network at once: the cells of a sweep as one batched model.

A GPU is idle most of the time while one small network learns on it. Cells that differ in trace, order, delay,
learning rate, weight decay or seed have the same shapes, so their parameters are stacked and every operation is
mapped over them (`torch.func.vmap`); the matrix of each layer's kernel is one more stacked tensor. Every cell has
its own order of images, clipped gradient and optimiser, and learns what it would have learned alone.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional

from cet_rl.runs.folder import RunFolder, Status, checkpoint_interval, default_path
from cet_rl.runs.interrupt import Interruption
from cet_rl.runs.machine import set_threads
from cet_rl.runs.session import LEAST_POINTS, RunLog
from cet_rl.runs.task_kinds import VISION
from cet_rl.vision.batchable import check_cells
from cet_rl.vision.config import VisionConfig
from cet_rl.vision.layers import traced_layers
from cet_rl.vision.learner import EVALUATED_AT_ONCE, ImageLearner, rate_at
from cet_rl.vision.training import load_data, resolve


class CellBatch:
    """Learners that take their steps together.

    Args:
        learners: freshly made or loaded, all at the same step. They stand still meanwhile; `give_back` brings them
            to where the batch is.

    Raises:
        ValueError: if there are none, or they differ in more than options marked as batchable, are streaming,
            salient, remember f' at the soma through a trace, or are not at the same step.
    """

    def __init__(self, learners: Sequence[ImageLearner]) -> None:
        check_cells([learner.config for learner in learners])
        if len({learner.step for learner in learners}) > 1:
            raise ValueError("cells must all be at the same step")
        self.learners = list(learners)
        self.step = learners[0].step
        first = learners[0]
        self.config, self.data = first.config, first.data
        networks = [deepcopy(learner.network) for learner in self.learners]
        for network in networks:
            for layer in traced_layers(network).values():
                layer.use_matrix(self.config.batch_size)
                layer.traced = True  # layers that do not wait have the unit matrix
        self._base = networks[0]
        self.parameters, self.buffers = stack_module_state(networks)
        self._adam = {name: self._stack_adam(name) for name in self.parameters}
        configs = [learner.config for learner in self.learners]
        like = next(iter(self.parameters.values()))
        self._weight_decay = like.new_tensor([config.weight_decay for config in configs])
        self._max_norm = like.new_tensor([config.max_grad_norm for config in configs])
        self.loss_sums = torch.stack([learner.loss_sum for learner in self.learners])
        self.losses = first.losses

    def _stack_adam(self, name: str) -> tuple[Tensor, Tensor]:
        states = [
            learner.optimizer.state.get(dict(learner.network.named_parameters())[name], {})
            for learner in self.learners
        ]
        zero = torch.zeros_like(self.parameters[name][0])
        mean, square = (
            torch.stack([state.get(key, zero) for state in states]) for key in ("exp_avg", "exp_avg_sq")
        )
        return mean, square

    def _forward(self, x: Tensor, *, shared: bool = False) -> Tensor:
        """Logits, (C, N, classes), of (C, N, …) or, shared by all cells, (N, …) images."""

        def one(parameters: dict[str, Tensor], buffers: dict[str, Tensor], images: Tensor) -> Tensor:
            logits: Tensor = functional_call(self._base, (parameters, buffers), (images,))
            return logits

        half = self.config.precision == "bf16" and not shared  # tests are in float32
        with torch.autocast(self.config.device, torch.bfloat16, enabled=half):
            logits = vmap(one, in_dims=(0, 0, None if shared else 0))(self.parameters, self.buffers, x)
        result: Tensor = logits.float() if half else logits
        return result

    def advance(self) -> Tensor:
        """Every cell learns from a batch of its own; their mean losses before it, (C,)."""
        batches = [next(learner.batches) for learner in self.learners]
        x = torch.stack([images for images, _ in batches])
        y = torch.stack([labels for _, labels in batches])
        logits = self._forward(x)
        losses = (
            functional.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").view(y.shape).mean(1)
        )
        names = list(self.parameters)
        gradients = torch.autograd.grad(losses.sum(), [self.parameters[name] for name in names])
        self._step(dict(zip(names, gradients, strict=True)))
        self.step += 1
        self.loss_sums += losses.detach()
        self.losses += 1
        return losses.detach()

    def take_losses(self) -> list[float]:
        """Each cell's mean loss since this was last asked for."""
        means: list[float] = (self.loss_sums / self.losses).tolist()
        self.loss_sums, self.losses = torch.zeros_like(self.loss_sums), 0
        return means

    @torch.no_grad()
    def _step(self, gradients: dict[str, Tensor]) -> None:
        """Clip and AdamW as torch has them, with numbers of its own for each cell."""
        square = torch.stack([g.flatten(1).norm(dim=1).square() for g in gradients.values()]).sum(0)
        shrink = (self._max_norm / (square.sqrt() + 1e-6)).clamp(max=1.0)
        configs = [learner.config for learner in self.learners]
        rates = shrink.new_tensor([c.lr * rate_at(self.step, c.total_steps, c.warmup) for c in configs])
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
        """Accuracy and mean loss of each cell on the test set, or on what is held out."""
        images, labels = self.data.test.images, self.data.test.labels
        cells = len(self.learners)
        right = torch.zeros(cells, device=images.device)
        loss = torch.zeros(cells, device=images.device)
        self._base.eval()
        try:
            for x, y in zip(
                torch.split(images, EVALUATED_AT_ONCE), torch.split(labels, EVALUATED_AT_ONCE), strict=True
            ):
                logits = self._forward(x, shared=True)
                right += (logits.argmax(2) == y).sum(1)
                repeated = y.expand(cells, -1).flatten()
                each = functional.cross_entropy(logits.flatten(0, 1), repeated, reduction="none")
                loss += each.view(cells, -1).sum(1)
        finally:
            self._base.train()
        return [(float(a) / len(labels), float(b) / len(labels)) for a, b in zip(right, loss, strict=True)]

    @torch.no_grad()
    def give_back(self) -> None:
        """Bring every learner to where the batch is: it can be saved, tested, or go on alone. So can the batch."""
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
            learner.step, learner.losses = self.step, self.losses
            learner.loss_sum = self.loss_sums[number].clone()


def train_cells(
    configs: Sequence[VisionConfig], folders: Sequence[str | Path] | None = None, *, quiet: bool = False
) -> list[Path]:
    """Train many runs at once; each leaves a run folder as if it had been alone.

    Two things differ: alignment is not logged, and speeds are those of the batch, tests included.

    Cells that are finished are left alone, interrupted ones go on. One whose loss is not finite at the end has
    failed, and its summary says so; the others have not.

    Args:
        configs: of the cells, see `cet_rl.vision.batchable.check_cells`.
        folders: of the runs; None for those of `default_path`.
        quiet: print nothing.

    Returns:
        The run folders.

    Raises:
        ValueError, OSError: for what cannot be, before any work is lost.
        KeyboardInterrupt: when interrupted, with all checkpoints written.
    """
    configs = [resolve(config) for config in configs]
    check_cells(configs)
    assert configs[0].threads is not None
    set_threads(configs[0].threads)
    paths = [Path(folder) for folder in folders or map(default_path, configs)]
    if len(paths) != len(configs) or len(set(paths)) < len(configs):
        raise ValueError("every cell needs a folder of its own")
    cells = [(config, RunFolder(path, VISION.checkpoint)) for config, path in zip(configs, paths, strict=True)]
    # Everything that can be refused is refused before a folder is touched.
    for config, folder in cells:
        folder.check(config.as_data(), resume=True)
    cells = [(config, folder) for config, folder in cells if folder.status != "finished"]
    if not cells:
        return paths
    data = load_data(configs[0])
    learners = [ImageLearner(config, data) for config, _ in cells]
    ready: dict[int, list[tuple[ImageLearner, RunFolder]]] = {}
    for learner, (config, folder) in zip(learners, cells, strict=True):
        state = folder.claim(config.as_data(), resume=True)
        if state == "resumed":
            learner.load(folder.checkpoint_file)
        ready.setdefault(learner.step, []).append((learner, folder))
    for _, together in sorted(ready.items()):
        _CellRun(together, quiet=quiet).go()
    return paths


class _CellRun:
    """One go at cells that are at the same step."""

    def __init__(self, cells: list[tuple[ImageLearner, RunFolder]], *, quiet: bool) -> None:
        self.cells, self.quiet = cells, quiet
        self.batch = CellBatch([learner for learner, _ in cells])
        self.began, self.steps_before = time.monotonic(), self.batch.step
        self.finite = [True] * len(cells)
        self.held_out = self.batch.config.held_out

    def go(self) -> None:
        interruption = Interruption()
        self.logs = [RunLog(folder, self.batch.step) for _, folder in self.cells]
        try:
            for log, (learner, _) in zip(self.logs, self.cells, strict=True):
                log.describe(learner.config, f"{self.held_out}_accuracy")
            with interruption.watched():
                self._learn(interruption)
            self._finish()
        finally:
            for log in self.logs:
                log.close()

    def _learn(self, interruption: Interruption) -> None:
        batch, total = self.batch, self.batch.config.total_steps
        log_every, save_every = max(1, total // LEAST_POINTS), checkpoint_interval(total, None)
        while batch.step < total:
            if interruption.wanted:
                self._save()
                for cell in range(len(self.cells)):
                    self._summarise(cell, "interrupted", {})
                raise KeyboardInterrupt
            batch.advance()
            if batch.step % log_every == 0 or batch.step == total:
                self._log()
            if batch.step % save_every == 0 and batch.step < total:
                self._save()

    def _log(self) -> None:
        batch = self.batch
        found, losses = batch.test(), batch.take_losses()
        for cell, (_, loss) in enumerate(found):
            self.finite[cell] &= math.isfinite(losses[cell]) and math.isfinite(loss)
        for cell, (accuracy, loss) in enumerate(found):
            learner, _ = self.cells[cell]
            config = learner.config
            self.logs[cell].add(
                {
                    "train/loss": losses[cell],
                    f"{self.held_out}/accuracy": accuracy,
                    f"{self.held_out}/loss": loss,
                    "train/learning_rate": config.lr * rate_at(batch.step - 1, config.total_steps, config.warmup),
                },
                batch.step,
            )
        if not self.quiet:
            mean = sum(accuracy for accuracy, _ in found) / len(found)
            speed = (batch.step - self.steps_before) * len(found) / (time.monotonic() - self.began)
            made = f"{batch.step:>12,} of {batch.config.total_steps:,} updates of {len(found)} cells"
            print(f"{made}   mean accuracy {mean:.4f}   {speed:,.0f} updates/s", file=sys.stderr, flush=True)

    def _save(self) -> None:
        self.batch.give_back()
        for (learner, folder), finite in zip(self.cells, self.finite, strict=True):
            if finite and math.isfinite(float(learner.loss_sum)):
                folder.save_checkpoint(learner.save)

    def _finish(self) -> None:
        found = self.batch.test()
        self._save()
        for cell, (accuracy, loss) in enumerate(found):
            metrics = {f"{self.held_out}_accuracy": accuracy, f"{self.held_out}_loss": loss}
            if self.finite[cell]:
                self.logs[cell].add({f"eval/{name}": value for name, value in metrics.items()}, self.batch.step)
                self._summarise(cell, "finished", metrics)
            else:
                config = self.cells[cell][0].config
                problem = f"FloatingPointError: the loss is not finite: use a smaller --lr ({config.lr:g} now)"
                self._summarise(cell, "failed", {}, problem)

    def _summarise(self, cell: int, status: Status, metrics: dict[str, float], error: str | None = None) -> None:
        learner, folder = self.cells[cell]
        seconds = time.monotonic() - self.began
        folder.write_summary(
            task=learner.config.task,
            agent=learner.config.network,
            seed=learner.config.seed,
            status=status,
            steps=self.batch.step,
            wall_seconds=seconds,
            steps_per_second=(self.batch.step - self.steps_before) / seconds,
            metrics=metrics,
            error=error,
        )
