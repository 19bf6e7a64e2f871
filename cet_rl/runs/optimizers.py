"""Torch's Adam and AdamW without `torch._dynamo`, whose import takes a second and 70 MB of memory.

Torch imports it when an optimiser is made and when it steps, to tell its compiler to leave optimisers alone.
Nothing here compiles one, so these call the functions of torch that lie within.
"""

from __future__ import annotations

from inspect import unwrap

import torch


class Adam(torch.optim.Adam):
    """Step as torch's class of this name does, bit for bit."""

    add_param_group = unwrap(torch.optim.Adam.add_param_group)
    zero_grad = unwrap(torch.optim.Adam.zero_grad)
    state_dict = unwrap(torch.optim.Adam.state_dict)
    load_state_dict = unwrap(torch.optim.Adam.load_state_dict)
    step = torch.no_grad()(unwrap(torch.optim.Adam.step))


class AdamW(Adam, torch.optim.AdamW):
    """Step as torch's class of this name does, bit for bit; torch's, too, takes its methods from Adam."""
