"""Train a network to classify images from credit that arrives late."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cet_rl.runs.learner import Learner
from cet_rl.runs.optimizers import AdamW
from cet_rl.runs.values import in_a_line
from cet_rl.traces.timing import jitter_draws
from cet_rl.vision.config import VisionConfig
from cet_rl.vision.conversion import convert, prepare
from cet_rl.vision.data import Batches
from cet_rl.vision.datasets import ImageData
from cet_rl.vision.layers import jittered, measured, seen_at, traced_layers
from cet_rl.vision.models import image_network

EVALUATED_AT_ONCE = 1000  # images of the test set in one forward pass


def named(result: tuple[float, float], prefix: str) -> dict[str, float]:
    """Return accuracy and loss by their names in logs and summaries."""
    return {f"{prefix}{name}": value for name, value in zip(("accuracy", "loss"), result, strict=True)}


def build_network(config: VisionConfig, data: ImageData) -> nn.Module:
    """Return the network with traced layers, on the CPU; raise ValueError if images are too small for it."""
    generator = torch.Generator().manual_seed(config.seed)
    channels = config.channels if config.network == "cnn" else ()
    return convert(
        image_network(data.in_shape, data.classes, channels, config.widths, generator=generator),
        config.trace_config,
        delay=config.delay,
        step_duration=config.step_duration,
        stacked=config.stacked,
        error_at=config.error_at,
        derivative_memory=config.soma,
        streaming=config.streaming,
        streams=config.streams,
        record_alignment=config.streaming and config.alignment and not config.jitter,
        jitter=config.jitter,
    )


def _check_compiler(device: str) -> None:
    """Raise ValueError where torch.compile does not work, before a run has begun."""
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2, device=device))
    except Exception as error:  # of the compiler, the linker or torch itself
        raise ValueError(f"--compile does not work here ({in_a_line(error)}): leave it out") from error


class ImageLearner(Learner):
    """Hold a network, its optimiser and its stream of batches, and learn step by step.

    The configuration is resolved, and the data are on its device.
    """

    def __init__(self, config: VisionConfig, data: ImageData) -> None:
        self.config, self.data, self.step = config, data, 0
        self.loss_sum, self.losses = torch.zeros((), device=config.device), 0
        self._format = torch.channels_last if config.network == "cnn" else torch.contiguous_format
        self.network = build_network(config, data).to(config.device, memory_format=self._format)  # type: ignore[call-overload]
        self.batches = Batches(data.train, config.batch_size, config.seed, flips=data.flips)
        self.optimizer = AdamW(
            self.network.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True
        )
        if config.streaming:
            self._prepare(data.in_shape)
        if config.is_one_matrix and (config.device == "cuda" or config.compile):  # which run that form fastest
            for layer in traced_layers(self.network).values():
                if layer.traced:
                    layer.use_matrix(config.batch_size)
        if config.compile:
            _check_compiler(config.device)
        self._compute = torch.compile(self.network) if config.compile else self.network

    def _prepare(self, in_shape: tuple[int, ...]) -> None:
        """Create what is carried from batch to batch, with the configured executors or those of the cost model."""
        config, layers = self.config, [layer for layer in traced_layers(self.network).values() if layer.traced]
        if config.executors is not None and len(config.executors) != len(layers):
            raise ValueError(f"--executors names {len(config.executors)}, but {len(layers)} layers are traced")
        for layer, executor in zip(layers, config.executors or (), strict=False):
            layer.executor = executor
        prepare(self.network, in_shape, salient=config.salience is not None)
        chosen = tuple(layer.stream.synapses.choice for layer in layers if layer.stream is not None)
        self.config = replace(config, executors=chosen or None)

    def advance(self, limit: int | None = None, *, measure: bool = False) -> Tensor:
        """Learn from one batch, and return its mean loss before the update, or that of its salient images.

        Alignment is measured if `measure` and the configuration ask for it and this is update `limit`, if given.
        """
        config = self.config
        measure = measure and config.alignment and limit in (None, self.step + 1)
        x, y = next(self.batches)
        x = x.contiguous(memory_format=self._format)
        times: Tensor | None = None
        if config.salience is not None:
            times = self._salient(x, y)
            x, y = x[times].contiguous(memory_format=self._format), y[times]
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate(self.step)
        self.optimizer.zero_grad()
        with (
            measured(self.network) if measure else nullcontext(),
            nullcontext() if times is None else seen_at(self.network, times.cpu().numpy(), config.batch_size),
            jittered(self.network, jitter_draws(config.seed, self.step, len(x)))
            if config.jitter
            else nullcontext(),
        ):
            loss = functional.cross_entropy(self._logits(x, whole=measure), y)
            loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), config.max_grad_norm)
        self.optimizer.step()
        self.step += 1
        self.loss_sum += loss.detach()
        self.losses += 1
        return loss.detach()

    @torch.no_grad()
    def _salient(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the increasing positions, in the batch, of the images with the largest losses."""
        assert self.config.salience is not None
        count = round(self.config.salience * len(y))
        losses = functional.cross_entropy(self._logits(x), y, reduction="none")
        return losses.topk(count).indices.sort().values

    def _logits(self, x: Tensor, *, whole: bool = False) -> Tensor:
        half = self.config.precision == "bf16"
        with torch.autocast(self.config.device, torch.bfloat16, enabled=half):
            # Compiled code does not measure.
            logits: Tensor = self.network(x) if whole else self._compute(x)
        return logits.float() if half else logits

    def measurements(self) -> dict[str, float]:
        """Return test accuracy and loss, the learning rate, and each layer's last alignment."""
        layers = enumerate(traced_layers(self.network).values())
        return {
            **named(self.test(), f"{self.config.held_out}/"),
            "train/learning_rate": float(self.optimizer.param_groups[0]["lr"]),
            **{f"credit/alignment/{number}": layer.alignment for number, layer in layers if layer.traced},
        }

    def evaluate(self) -> dict[str, float]:
        """Return accuracy and mean loss on the test set, or on the images held out for validation."""
        return named(self.test(), f"{self.config.held_out}_")

    @torch.no_grad()
    def test(self) -> tuple[float, float]:
        """Return the share of test images classified correctly, and their mean loss."""
        self.network.eval()
        right, loss = 0.0, 0.0
        try:
            for x, y in self.data.test.split(EVALUATED_AT_ONCE):
                logits = self.network(x.contiguous(memory_format=self._format))
                right += float((logits.argmax(1) == y).sum())
                loss += float(functional.cross_entropy(logits, y, reduction="sum"))
        finally:
            self.network.train()
        return right / len(self.data.test), loss / len(self.data.test)

    def contents(self) -> dict[str, Any]:
        """Return the state of network, optimiser and stream of batches."""
        parts = {"network": self.network, "optimizer": self.optimizer, "batches": self.batches}
        return {name: part.state_dict() for name, part in parts.items()}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Restore what `contents` has returned."""
        self.network.load_state_dict(saved["network"])
        self.optimizer.load_state_dict(saved["optimizer"])
        for parameter, state in self.optimizer.state.items():
            # As the parameter lies in memory: the fused optimiser takes both as rows of numbers.
            for key in ("exp_avg", "exp_avg_sq"):
                state[key] = torch.empty_like(parameter).copy_(state[key])
        self.batches.load_state_dict(saved["batches"])
