"""What late credit costs: a training step with traces over the same step without, in time and in memory.

    python benchmarks/vision.py [--device cpu] [--repeats 15] [--streaming]

Steps of both kinds alternate; the ratio is that of the medians. One thread on a CPU, in its processor time.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

import torch
from torch import nn
from torch.nn import functional

from cet_rl.traces.registry import TraceConfig
from cet_rl.vision.conversion import convert
from cet_rl.vision.layers import traced_layers
from cet_rl.vision.models import image_network

SHAPES = {"mlp": (1, 28, 28), "cnn": (3, 32, 32)}
LAYERS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "mlp": ((), (512, 512)),
    "cnn": ((32, 64, 128), (512,)),
}
KINDS = {
    "CET 1": TraceConfig("cet", 1, normalization="area"),
    "CET 2": TraceConfig("cet", 2, normalization="area"),
    "CET 6": TraceConfig("cet", 6, normalization="area"),
    "CET 10": TraceConfig("cet", 10, normalization="area"),
    "SharpCET 10": TraceConfig("sharp", 10, normalization="area"),
    "Legendre 10": TraceConfig("legendre", 10, normalization="area"),
    "perfect": TraceConfig("perfect", normalization="area"),
}
DELAYS = (0.2, 1.0, 4.0, 10.0)
BATCH = 128


class Step:
    """A training step of one network: forward, backward, clip, AdamW."""

    def __init__(self, network: nn.Module, model: str, device: str) -> None:
        shape = SHAPES[model]
        last = torch.channels_last if model == "cnn" else torch.contiguous_format
        self.network = network.to(device, memory_format=last)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-3, fused=True)
        self.x = torch.randn(BATCH, *shape, device=device).contiguous(memory_format=last)
        self.y = torch.randint(10, (BATCH,), device=device)

    def __call__(self) -> float:
        """Take the step; seconds, on a CPU of the processor."""
        clock = time.perf_counter if self.x.is_cuda else time.process_time
        begin = clock()
        self.optimizer.zero_grad()
        functional.cross_entropy(self.network(self.x), self.y).backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 0.5)
        self.optimizer.step()
        if self.x.is_cuda:
            torch.cuda.synchronize()
        return clock() - begin


def build(model: str, device: str, trace: TraceConfig | None, delay: float, streaming: bool) -> Step:
    torch.manual_seed(0)
    network = image_network(SHAPES[model], 10, *LAYERS[model])
    if trace is not None:
        network = convert(network, trace, delay=delay, streaming=streaming, record_alignment=streaming)
        if device == "cuda" and not streaming:  # as `ImageLearner` does
            for layer in traced_layers(network.to(device)).values():
                layer.use_matrix(BATCH)
    return Step(network, model, device)


def peak(model: str, device: str, kind: str | None, delay: float) -> float:
    """Megabytes that learning takes at its peak: network, optimiser, images, and what a step needs."""
    step = build(model, device, KINDS[kind] if kind else None, delay, False)
    step(), step()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated() / 2**20
    return peak_of_cpu(step)


def peak_of_cpu(step: Step) -> float:
    """The same on a CPU: what is there before a step, and the most that it takes of torch's allocator."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        step()
    network, moments = step.network, step.optimizer.state.values()
    there = [step.x, *network.parameters(), *network.buffers(), *(t for state in moments for t in state.values())]
    held = highest = sum(tensor.nbytes for tensor in there)
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            highest = max(highest, held)
    return highest / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--streaming", action="store_true")
    parser.add_argument("--model", choices=SHAPES)
    parser.add_argument("--peak", nargs=3, metavar=("MODEL", "KIND", "DELAY"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peak:
        model, kind, delay = options.peak
        print(peak(model, options.device, kind if kind != "plain" else None, float(delay)))
        return

    def memory(model: str, kind: str, delay: float) -> float:
        command = [sys.executable, __file__, "--device", options.device, "--peak", model, kind, str(delay)]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    for model in [options.model] if options.model else SHAPES:
        plain = build(model, options.device, None, 0.0, False)
        plain_memory = memory(model, "plain", 0.0)
        milliseconds = statistics.median(plain() for _ in range(9)) * 1e3
        print(f"\n{model}, plain step {milliseconds:.1f} ms, {plain_memory:.0f} MB")
        print(f"{'':12}" + "".join(f"{delay:>8g} s" for delay in DELAYS) + "   memory at 10 s")
        for kind, trace in KINDS.items():
            ratios = []
            for delay in DELAYS:
                traced = build(model, options.device, trace, delay, options.streaming)
                plain(), traced(), traced()
                pairs = [(plain(), traced()) for _ in range(options.repeats)]
                ratios.append(statistics.median(b for _, b in pairs) / statistics.median(a for a, _ in pairs))
            share = "" if options.streaming else f"{memory(model, kind, DELAYS[-1]) / plain_memory:10.2f}"
            print(f"{kind:12}" + "".join(f"{ratio:10.2f}" for ratio in ratios) + share, flush=True)


if __name__ == "__main__":
    main()
