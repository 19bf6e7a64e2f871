"""Traced layers against their definition: a loop over images in which every synapse keeps a trace of its own."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from cet_rl import CET, ET, LTPLTD, Legendre, PerfectMemory, SharpCET
from cet_rl.vision.layers import TracedConv2d, TracedLinear

FUNCTIONS = {"relu": torch.relu, "identity": lambda z: z, "tanh": torch.tanh, "sigmoid": torch.sigmoid}


def remember(trace, times, signals, total):
    """c of each step 0 … total - 1, when `signals` enter at `times` and nothing does in between."""
    given = dict(zip(map(int, times), signals, strict=True))
    nothing = torch.zeros(signals.shape[1:], dtype=signals.dtype)
    inputs = [given.get(time, nothing) for time in range(total)]
    if trace is None:
        return inputs
    if isinstance(trace, PerfectMemory):
        return ([nothing] * trace.delay_steps + inputs)[:total]
    M, K, C = (torch.from_numpy(part.copy()) for part in vars(trace.transition()).values())
    state, outputs = torch.zeros(*nothing.shape, len(K), dtype=signals.dtype), []
    for value in inputs:
        state = state @ M.T + value[..., None] * K
        outputs.append(state @ C)
    return outputs


def patches(x, case):
    """What each position's synapses see of each image, (N, positions, inputs), the bias's 1 last."""
    if case.kernel_size is None:
        seen = x[:, None]
    else:
        k, padding, stride = case.kernel_size, case.padding, case.stride
        x = functional.pad(x, (padding,) * 4)
        rows, columns = (range(0, size - k + 1, stride) for size in x.shape[2:])
        seen = torch.stack([x[:, :, i : i + k, j : j + k].flatten(1) for i in rows for j in columns], 1)
    return torch.cat([seen, torch.ones_like(seen[..., :1])], -1) if case.bias else seen


def by_position(signal):
    """(N, units) or (N, units, H, W) to (N, positions, units)."""
    return signal[:, None] if signal.ndim == 2 else signal.flatten(2).mT


def learn(case, images, times, total, delays=None):
    """The gradient of each step, (total, units, inputs), the bias last: Σ over positions of δ ⊙ c.

    Every synapse, at each position of a map, has its own state of the trace, driven by its own f' x; δ of an image
    arrives D after it, or its own delay.
    """
    hebbian = images.derivative[..., None] * images.patches[..., None, :]
    traces = remember(case.trace, times, hebbian, total)
    gradients = torch.zeros(total, *hebbian.shape[2:], dtype=hebbian.dtype)
    delays = [case.delay_steps] * len(images.error) if delays is None else delays
    for time, error, delay in zip(map(int, times), images.error, delays, strict=True):
        if time + delay < total:
            gradients[time + delay] += (error[..., None] * traces[time + delay]).sum(0)
    return gradients


def arrived(case, images, times, first, last):
    """Σ f' δ x without a bias, undelayed, of the images whose error arrives in [first, last)."""
    due = torch.as_tensor([first <= int(time) + case.delay_steps < last for time in times], dtype=torch.bool)
    seen = images.patches[..., :-1] if case.bias else images.patches
    return torch.einsum("tpo,tpi->oi", (images.derivative * images.error)[due], seen[due])


class Images(NamedTuple):
    """What a layer's synapses and units know of the images of one sequence, (N, positions, …)."""

    patches: torch.Tensor
    derivative: torch.Tensor
    error: torch.Tensor


@dataclass(frozen=True)
class Case:
    """A layer, a trace, a delay and a source of images.

    `kernel_size` is None for a dense layer.
    """

    n_in: int = 2
    n_out: int = 3
    trace: Any = None
    delay_steps: int = 0
    kernel_size: int | None = None
    stride: int = 1
    padding: int = 0
    size: tuple[int, int] = (3, 4)
    bias: bool = True
    activation: str = "relu"
    error_at: str = "preactivation"
    streams: int = 1
    seed: int = 0
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def in_shape(self):
        return (self.n_in,) if self.kernel_size is None else (self.n_in, *self.size)

    def _layer(self, dense, convolution, **options):
        torch.manual_seed(self.seed)
        options |= {"bias": self.bias, "dtype": torch.float64}
        if self.kernel_size is None:
            return dense(self.n_in, self.n_out, **options)
        return convolution(
            self.n_in, self.n_out, self.kernel_size, stride=self.stride, padding=self.padding, **options
        )

    def layer(self, **more):
        """The traced layer."""
        names = ("trace", "delay_steps", "activation", "error_at", "streams")
        options = {name: getattr(self, name) for name in names}
        return self._layer(TracedLinear, TracedConv2d, **options | self.more | more)

    @cached_property
    def plain(self):
        """The same layer of torch, with the same parameters and no activation."""
        return self._layer(nn.Linear, nn.Conv2d)

    def batch(self, steps, seed=0):
        """(x, ∂L/∂y) of a batch, the latter with zeros for some units as from a max-pooling layer."""
        torch.manual_seed(self.seed + 1 + seed)
        x = torch.randn(steps * self.streams, *self.in_shape, dtype=torch.float64)
        y = self.plain(x).detach()
        return x, torch.randn_like(y) * (torch.rand_like(y) > 0.2)

    def backpropagate(self, x, grad):
        """Of the plain layer and f: the gradients of weight, bias and x."""
        x = x.clone().requires_grad_()
        y = FUNCTIONS[self.activation](self.plain(x))
        return torch.autograd.grad(y, (*self.plain.parameters(), x), grad)

    def derivative(self, x):
        z = self.plain(x).detach().requires_grad_()
        return torch.autograd.grad(FUNCTIONS[self.activation](z).sum(), z)[0]

    def images(self, x, grad, stream=0, remembered=None):
        """What synapses know of one of the streams' images; `remembered` in place of f' in δ where given."""
        derivative = self.derivative(x)
        error = grad
        if self.error_at == "preactivation":
            error = grad * (derivative if remembered is None else remembered)
        seen = patches(x, self), by_position(derivative), by_position(error)
        return Images(*(signal[stream :: self.streams] for signal in seen))

    def split(self, gradient):
        """(units, inputs) to the gradients of weight and bias; only the former for a layer without bias."""
        weight = gradient[:, : -1 if self.bias else None]
        return [weight.reshape(self.plain.weight.shape), *([gradient[:, -1]] if self.bias else [])]

    def gradients(self, x, grad, total, remembered=None):
        """Of all streams, each step apart: (total, units, inputs). The images are seen one after another."""
        each = [self.images(x, grad, stream, remembered) for stream in range(self.streams)]
        return sum(learn(self, images, range(len(images.error)), total) for images in each)


def use(layer, x, grad):
    """One forward and backward pass: the gradients of the layer's parameters and of x."""
    x = x.clone().requires_grad_()
    layer.zero_grad()
    layer(x).backward(grad)
    return [parameter.grad.clone() for parameter in layer.parameters()], x.grad


def assert_same(found, expected, tolerance=1e-10):
    """Lists of tensors, equal to rounding."""
    assert len(found) == len(expected)
    for number, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert a.shape == b.shape
        assert torch.isfinite(a).all()
        difference, scale = (t.abs().max().item() if t.numel() else 0.0 for t in (a - b, b))
        assert difference <= tolerance * max(1.0, scale), f"tensor {number}"


def cosine(a, b):
    a, b = a.flatten().tolist(), b.flatten().tolist()
    lengths = [sum(value * value for value in vector) ** 0.5 for vector in (a, b)]
    product = sum(p * q for p, q in zip(a, b, strict=True))
    return product / lengths[0] / lengths[1] if all(lengths) else float("nan")


def traces(longest=6):
    steps, order = st.integers(1, longest), st.integers(2, 5)
    normalization = st.sampled_from(["area", "peak"])
    return st.one_of(
        st.none(),
        st.builds(CET, order, steps, normalization),
        st.builds(ET, st.floats(0.05, 0.9), normalization),
        st.builds(LTPLTD, steps, st.floats(1.2, 4), normalization),
        st.builds(SharpCET, order, steps, normalization),
        st.builds(Legendre, order, steps, normalization),
        st.builds(PerfectMemory, st.integers(0, longest)),
    )


@st.composite
def cases(draw, longest=6, most_streams=3):
    dense = {"n_in": st.integers(1, 4), "n_out": st.integers(1, 4)}
    convolution = {
        "n_in": st.integers(1, 2),
        "n_out": st.integers(1, 3),
        "kernel_size": st.integers(1, 3),
        "stride": st.integers(1, 2),
        "padding": st.integers(0, 2),
        "size": st.tuples(st.integers(3, 4), st.integers(3, 5)),
    }
    shape = draw(st.fixed_dictionaries(draw(st.sampled_from([dense, convolution]))))
    error_at = draw(st.sampled_from(["preactivation", "activation"]))
    activations = ["relu", "identity", "tanh", "sigmoid"]
    return Case(
        **shape,
        trace=draw(traces(longest)),
        delay_steps=draw(st.integers(0, longest)),
        bias=draw(st.booleans()),
        error_at=error_at,
        activation=draw(st.sampled_from(activations[:2] if error_at == "preactivation" else activations)),
        streams=draw(st.integers(1, most_streams)),
        seed=draw(st.integers(0, 2**20)),
    )
