"""Steps of a recurrent network per second while it learns online, beside those of its forward pass alone.

    python benchmarks/recurrent.py [--batch 1 64] [--units 32] [--repeats 7] [--rules rflo uoro] [--delay 10]

The definition (torch, step by step) and the compiled loop, one core, float32, an update every step, two inputs,
two outputs. All arms of a batch take turns, and the table gives medians; "× forward" compares with a forward pass
of the same executor in the same run. With a delay, rules that separate bridge it by CET 10, others are left out.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import numba
import numpy as np
import torch
from threadpoolctl import threadpool_limits

from cet_rl.recurrent import compiled
from cet_rl.recurrent.cell import RNNCell
from cet_rl.recurrent.compiled.network import advance, concatenate, read
from cet_rl.recurrent.delayed import Readout, delay_rule
from cet_rl.recurrent.online import Online
from cet_rl.recurrent.rules import RULES
from cet_rl.recurrent.rules.base import SeparableRule
from cet_rl.recurrent.rules.built_in import FixedW
from cet_rl.traces.cascade import CET

SECONDS = 0.2
"""About how long an arm's turn takes."""


@numba.njit(fastmath={"contract", "reassoc", "nsz"}, error_model="numpy")
def network_only(weight, weight_out, inputs, rates, slope, extended, z, alpha, xs):
    for t in range(xs.shape[0]):
        concatenate(inputs, rates, xs[t])
        advance(weight, inputs, rates, slope, alpha, True)
        read(weight_out, rates, extended, z)


def compiled_forward(cell: RNNCell, batch: int) -> Callable[[int], None]:
    n, m, outputs = cell.units, cell.columns, cell.outputs
    weight, weight_out = (tensor.numpy() for tensor in cell.initial_weights())
    arrays = (
        np.ascontiguousarray(weight.T),
        weight_out,
        *(np.zeros((batch, width), np.float32) for width in (m, n, n, n + 1, outputs)),
        np.float32(cell.alpha),
    )
    return lambda steps: network_only(*arrays, np.ones((steps, batch, cell.inputs), np.float32))


def defined_forward(cell: RNNCell, batch: int) -> Callable[[int], None]:
    weight, weight_out = cell.initial_weights()
    x = torch.ones(batch, cell.inputs)

    def forward(steps: int) -> None:
        rates = torch.zeros(batch, cell.units)
        with torch.no_grad():
            for _ in range(steps):
                rates = cell.advance(weight, rates, x).rates
                cell.read(weight_out, rates)

    return forward


def learning(cell: RNNCell, batch: int, name: str, delay: int, executor: str) -> Callable[[int], None]:
    trace = CET(10, delay, "area") if delay else None
    online = Online(cell, delay_rule(RULES[name].kind(cell), trace, delay), Readout(trace, delay), lr=1e-4)
    memory = online.begin(*cell.initial_weights(), torch.zeros(batch, cell.units))
    run = partial(compiled.run, online) if executor == "compiled" else online.run
    noise = online.rule.draw(batch, 1)

    def learn(steps: int) -> None:
        # One step's numbers again and again: drawing them is not what is measured.
        x = torch.ones(1, batch, cell.inputs).expand(steps, -1, -1)
        label = torch.full((1, batch, cell.outputs), 0.5).expand(steps, -1, -1)
        run(memory, 0, x, label, None if noise is None else noise.expand(steps, *noise.shape[1:]))

    return learn


def seconds(arm: Callable[[int], None], steps: int) -> float:
    begin = time.process_time()
    arm(steps)
    return time.process_time() - begin


def enough_steps(arm: Callable[[int], None]) -> int:
    """Steps that take about `SECONDS`, after a warm-up that compiles."""
    arm(40)
    steps = 40
    while (taken := seconds(arm, steps)) < SECONDS / 4:
        steps *= 4
    return max(1, round(steps * SECONDS / taken))


def suits(name: str, delay: int) -> bool:
    return not delay or issubclass(RULES[name].kind, SeparableRule | FixedW)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--units", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES), metavar="RULE")
    parser.add_argument("--delay", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    cell = RNNCell(options.units, inputs=2, outputs=2)
    print("| rule | batch | definition | × forward | compiled | × forward | × definition |")
    print("|---|---|---|---|---|---|---|")
    with threadpool_limits(1):
        for batch in options.batch:
            table(cell, batch, options)


def table(cell: RNNCell, batch: int, options: argparse.Namespace) -> None:
    arms: dict[tuple[str, str], Callable[[int], None]] = {
        ("forward", "definition"): defined_forward(cell, batch),
        ("forward", "compiled"): compiled_forward(cell, batch),
    }
    for name in filter(lambda name: suits(name, options.delay), options.rules):
        for executor in ("definition", "compiled"):
            arms[name, executor] = learning(cell, batch, name, options.delay, executor)
    steps = {key: enough_steps(arm) for key, arm in arms.items()}
    rounds = [{key: seconds(arm, steps[key]) for key, arm in arms.items()} for _ in range(options.repeats)]
    rate = {key: batch * steps[key] / statistics.median(turn[key] for turn in rounds) for key in arms}
    for name in dict.fromkeys(name for name, _ in arms):
        cells = [name, str(batch)]
        for executor in ("definition", "compiled"):
            ratio = rate["forward", executor] / rate[name, executor]
            cells += [f"{rate[name, executor]:,.0f}", f"{ratio:.1f}"]
        print(f"| {' | '.join(cells)} | {rate[name, 'compiled'] / rate[name, 'definition']:.0f} |", flush=True)


if __name__ == "__main__":
    main()
