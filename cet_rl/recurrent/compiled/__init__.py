"""Online learning as one compiled loop: what `cet_rl.recurrent.online` defines, without its cost per operation.

`run` takes the place of `Online.run` where `supports` says so: for the built-in rules on a CPU. One loop over
steps, compiled by numba for float32 or float64, goes through the network, calls a kernel of the rule and one of
the output layer, and takes the steps of gradient descent, all on one core. All rules' kernels have one signature,
so that the loop is compiled once for all of them.
"""

from __future__ import annotations

from cet_rl.recurrent.compiled.execute import run, supports

__all__ = ["run", "supports"]
