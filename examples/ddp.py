"""Train a network with traced layers in two processes, which share their gradients but not their traces.

    python examples/ddp.py --processes 2

Each process sees a stream of digits of its own, one every 200 ms, whose errors come two seconds late, so each
keeps its own traces: `broadcast_buffers=False` tells torch's DistributedDataParallel not to overwrite them with
those of rank 0. Gradients are averaged as usual, and all processes end with the same weights. With
`--backend nccl` and a GPU each it is the same program (which has not been tried).
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from cet_rl.vision import convert


def learn(rank: int, options: argparse.Namespace, meeting: str) -> None:
    """Learn in one of the processes; rank 0 reports."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        options.backend, init_method=f"file://{meeting}", rank=rank, world_size=options.processes
    )
    device = torch.device("cuda", rank) if options.backend == "nccl" else torch.device("cpu")
    pictures, labels = (torch.as_tensor(part, device=device) for part in load_digits(return_X_y=True))
    pictures = pictures.float() / 8 - 1
    held_out = torch.arange(len(labels)) % 6 == 0
    shown = (~held_out).nonzero()[:, 0]

    torch.manual_seed(0)  # the same weights everywhere
    plain = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))
    model = convert(plain, "legendre", delay=options.delay, order=6, streaming=True).to(device)
    # torch deprecates the argument, and says to keep it where ranks have buffers of their own.
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
    parallel = DistributedDataParallel(model, broadcast_buffers=False)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    stream = torch.Generator().manual_seed(rank)  # other images in every process
    for _ in range(options.updates):
        batch = shown[torch.randint(len(shown), (64,), generator=stream)]
        optimizer.zero_grad()
        nn.functional.cross_entropy(parallel(pictures[batch]), labels[batch]).backward()
        optimizer.step()

    weights = nn.utils.parameters_to_vector(model.parameters()).detach()
    gathered = [torch.empty_like(weights) for _ in range(options.processes)]
    distributed.all_gather(gathered, weights)
    if rank == 0:
        model.eval()
        right = model(pictures[held_out]).argmax(1) == labels[held_out]
        same = all(torch.equal(weights, other) for other in gathered)
        print(f"{right.float().mean():.1%} of the held-out digits right; the same weights everywhere: {same}")
    distributed.destroy_process_group()


def main(arguments: list[str] | None = None) -> None:
    """Start the processes and wait for them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=2, help="processes that learn together")
    parser.add_argument("--backend", choices=("gloo", "nccl"), default="gloo", help="how they talk to each other")
    parser.add_argument("--delay", type=float, default=2.0, help="seconds until an error reaches the synapses")
    parser.add_argument("--updates", type=int, default=300, help="updates of the weights")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        meeting = str(Path(folder) / "meeting")
        torch.multiprocessing.spawn(learn, (options, meeting), nprocs=options.processes)


if __name__ == "__main__":
    main()
