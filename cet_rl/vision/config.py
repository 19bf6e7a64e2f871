"""Configure an image classification run."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, Self

from cet_rl.runs.config import LayeredConfig, Mark
from cet_rl.runs.values import flag, unknown
from cet_rl.traces.base import Normalization
from cet_rl.traces.cascade import Discretization
from cet_rl.traces.timing import check_jitter, longest_steps
from cet_rl.vision.datasets import DATASETS, Network, summaries

HIDDEN = {"mlp": (512, 512), "cnn": (512,)}  # widths of the dense hidden layers unless told otherwise


@dataclass(frozen=True)
class VisionConfig(LayeredConfig):
    """Configure which data set a network learns, with which delay, trace and hyper-parameters."""

    delay: float = 0.0
    """Seconds until credit reaches the synapses; an image is shown for --step-ms. 0: backpropagation."""
    normalization: Normalization = "area"
    """Scale of the trace's kernel: area one, or largest value one."""
    step_ms: float = 200.0
    """Milliseconds for which one image is shown."""
    lr: float = 1e-3
    """Largest learning rate of AdamW."""
    total_steps: int = 20_000
    """Updates, one for each batch."""
    model: Literal["auto", "mlp", "cnn"] = "auto"
    """auto is an MLP for digits and grey images, three convolutions for CIFAR-10 and CIFAR-100."""
    hidden: tuple[int, ...] | None = None
    """Widths of the dense hidden layers. Default 512 512 for the MLP, 512 for the CNN."""
    channels: tuple[int, ...] = (32, 64, 128)
    """Channels of the CNN's convolutions."""
    batch_size: int = 128
    """Images in a batch, which is a stretch of time: each image is one step."""
    streams: int = 1
    """Sequences side by side in a batch."""
    streaming: bool = False
    """Carry traces and errors from batch to batch; otherwise errors that arrive after a batch's end are lost."""
    salience: float | None = None
    """Share of a batch, the images with the largest losses, that leave traces and cause errors. Default: all."""
    soma: Literal["exact", "trace"] = "exact"
    """Memory of an image's f' until its error arrives: exact, or through the trace itself."""
    jitter: float = 0.0
    """J: an error arrives after D (1 + J u) steps, u drawn from [-1, 1] for each image; the trace is for D."""
    weight_decay: Annotated[float, Mark.BATCHABLE] = 1e-3
    """Weight decay of AdamW."""
    warmup: Annotated[float, Mark.BATCHABLE] = 0.1
    """Share of the run in which the learning rate rises; it then falls to a tenth along a cosine."""
    max_grad_norm: Annotated[float, Mark.BATCHABLE] = 0.5
    """Norm that the gradient is clipped to."""
    data_dir: Annotated[str | None, Mark.MACHINE] = None
    """Folder with the data set's Parquet files. Default: the Hugging Face hub, or its cache."""
    validation: bool = False
    """Hold out a tenth of the training set and test on that, to choose hyper-parameters."""
    precision: Literal["float32", "bf16"] = "float32"
    """Type of activations; bf16 is for GPUs."""
    compile: Annotated[bool, Mark.NEUTRAL] = False
    """Compile the network with torch.compile; pays on GPUs in long runs."""

    def __post_init__(self) -> None:
        known = summaries()
        if self.task not in known:
            raise unknown("data set", self.task, known)
        super().__post_init__()
        self.check_counts("batch_size", "streams")
        for name, widths in {"--hidden": self.hidden or (), "--channels": self.channels}.items():
            if any(width < 1 or width > 100_000 for width in widths):
                raise ValueError(f"{name} must list widths from 1 to 100,000, got {widths}")
        if self.network == "cnn" and not self.channels:
            raise ValueError("--channels must list at least one width")
        if self.network == "mlp" and self.channels not in ((), VisionConfig.channels):
            raise ValueError("--channels is for convolutions, an MLP has none: leave it out, or add --model cnn")
        salience = 1.0 if self.salience is None else self.salience
        for name, fits, needed in (
            ("warmup", 0 <= self.warmup < 1, "lie in [0, 1)"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "be zero or positive"),
            ("max_grad_norm", 0 < self.max_grad_norm < math.inf, "be positive"),
            ("salience", 0 < salience <= 1, "lie in (0, 1]"),
        ):
            if not fits:
                raise ValueError(f"{flag(name)} must {needed}, got {getattr(self, name):g}")
        check_jitter("--jitter", self.jitter)
        self._check_time()

    def _check_time(self) -> None:
        steps, rest = divmod(self.batch_size, self.streams)
        longest, through_trace = longest_steps(max(self.timing.layer_delays), self.jitter), self.soma == "trace"
        if self.jitter and (through_trace or not self.delay):
            raise ValueError("--jitter needs a delay, and does not go with --soma trace")
        if rest:
            raise ValueError(f"a batch of {self.batch_size} images does not divide into {self.streams} streams")
        if self.salience is not None and self.streams > 1:
            raise ValueError("--salience needs --streams 1")
        if self.salience is not None and round(self.salience * self.batch_size) < 1:
            raise ValueError(f"--salience {self.salience:g} leaves no image of a batch of {self.batch_size}")
        if through_trace and self.streaming:
            raise ValueError("--soma trace needs images after the batch, which --streaming does not wait for")
        if self.compile and not self.is_one_matrix:
            raise ValueError("--compile does not go with --streaming, --salience, --jitter or --soma trace")
        if through_trace and not self.delay:
            raise ValueError("--soma trace belongs to a delay, and there is none: give a delay")
        if self.executors is not None and (self.salience is not None or not self.streaming):
            raise ValueError("--executors is for --streaming without --salience: leave it out")
        if self.streaming and longest >= steps * self.total_steps:
            raise ValueError(
                f"the longest delay is {longest:,} steps, but the run is only {steps * self.total_steps:,} long: "
                "learn for longer (--total-steps) or use a shorter delay"
            )
        if self.salience is None and not self.streaming and longest >= steps:
            raise ValueError(
                f"the longest delay is {longest:,} steps, but a batch is only {steps:,} long and forgets "
                "everything at its end: use a larger --batch-size, a shorter delay, or --streaming"
            )

    def learning_rate(self, step: int) -> float:
        """Return the learning rate at a step: linear warm-up, then a cosine to a tenth (App. C)."""
        rise = int(self.total_steps * self.warmup)
        if step < rise:
            return self.lr * ((step + 1) / rise)
        progress = (step - rise) / max(self.total_steps - rise, 1)
        return self.lr * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress)))

    @property
    def is_one_matrix(self) -> bool:
        """Tell whether a layer's credit is a product with one constant matrix, the same for every batch."""
        return not (self.streaming or self.salience is not None or self.soma != "exact" or self.jitter)

    @property
    def trace_discretization(self) -> Discretization:
        """Return the discretization of a cascade; the authors' code has one of its own for images."""
        return "exact" if self.discretization == "exact" else "official-images"

    @property
    def network(self) -> Network:
        """Return the network, mlp or cnn."""
        return DATASETS[self.task].network if self.model == "auto" else self.model

    @property
    def held_out(self) -> str:
        """Return the name that metrics give to the images that are tested on: test or validation."""
        return "validation" if self.validation else "test"

    @property
    def widths(self) -> tuple[int, ...]:
        """Return the widths of the dense hidden layers."""
        return HIDDEN[self.network] if self.hidden is None else self.hidden

    def resolved(self) -> Self:
        """Return the configuration with trace, network and data folder filled in."""
        data_dir = None if self.data_dir is None else str(Path(self.data_dir).expanduser().resolve())
        return replace(super().resolved(), model=self.network, hidden=self.widths, data_dir=data_dir)

    @property
    def layers(self) -> int:
        """Return the number of layers with weights."""
        return len(self.widths) + 1 + (len(self.channels) if self.network == "cnn" else 0)

    @property
    def arm(self) -> tuple[str, ...]:
        """Return the words of `label` that name what learns: cet5, streaming."""
        parts = [self.trace_config.label]
        parts += [self.network] * (self.network != DATASETS[self.task].network)
        parts += ["streaming"] * self.streaming + ["salient"] * (self.salience is not None)
        parts += ["soma"] * (self.soma != "exact") + [f"jitter{self.jitter:g}"] * bool(self.jitter)
        return tuple(parts)

    def check_batchable(self) -> None:
        """Raise ValueError unless the run can learn in one batch with others that are alike."""
        if self.compile or not self.is_one_matrix:
            options = "streaming, salience, jitter, soma='trace' or compile"
            raise ValueError(f"run {self.label}: it cannot be batched with {options}; train it alone")
