"""What user scripts put around a model with traced layers, against the loop over images."""

from copy import deepcopy
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint
from vision_loop import Case, assert_same

from cet_rl import CET
from cet_rl.vision import convert

CASE = Case(n_in=4, n_out=3, trace=CET(3, 2), delay_steps=2, activation="relu")


def looped(case, batches, streaming):
    """The gradients of each batch from the loop: of time that goes on, or of batches apart."""
    if not streaming:
        return [case.split(case.gradients(x, e, len(x)).sum(0)) for x, e in batches]
    x, error = (torch.cat(signals) for signals in zip(*batches, strict=True))
    each = torch.split(case.gradients(x, error, len(x)), [len(x) for x, _ in batches])
    return [case.split(steps.sum(0)) for steps in each]


def shown(count=5):
    return [CASE.batch(6, number) for number in range(count)]


def plainly(layer, x, error):
    layer(x).backward(error)


def accumulated(layer, x, error):
    for rows in (slice(3), slice(3, 6)):
        (layer(x[rows]) * error[rows]).sum().backward()


def checkpointed(layer, x, error, reentrant=False):
    checkpoint(layer, x.clone().requires_grad_(), use_reentrant=reentrant).backward(error)


def compiled(layer, x, error):
    torch.compile(layer, backend="eager")(x).backward(error)


def asked_for(layer, x, error):
    found = torch.autograd.grad(layer(x), list(layer.parameters()), error)
    for parameter, gradient in zip(layer.parameters(), found, strict=True):
        parameter.grad = gradient


WAYS = [plainly, accumulated, checkpointed, partial(checkpointed, reentrant=True), compiled, asked_for]


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("way", WAYS, ids=["plain", "accumulated", "checkpoint", "reentrant", "compile", "grad"])
def test_ways_to_get_a_gradient(way, streaming):
    """Accumulation shows pieces of a batch, which batches apart would each begin with empty traces."""
    layer, batches = CASE.layer(streaming=streaming), shown()
    pieces = way is accumulated and not streaming
    for (x, error), expected in zip(batches, looped(CASE, batches, streaming), strict=True):
        layer.zero_grad()
        way(layer, x, error)
        if pieces:
            parts = looped(CASE, [(x[:3], error[:3]), (x[3:], error[3:])], streaming)
            expected = [sum(each) for each in zip(*parts, strict=True)]
        assert_same([p.grad for p in layer.parameters()], expected)


@pytest.mark.parametrize("streaming", [True, False])
def test_a_scaler_with_overflows_and_changing_scales(streaming):
    """Where a batch overflowed, its errors are missing, and nothing else."""
    layer, batches = CASE.layer(streaming=streaming), shown(9)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30, growth_interval=1)
    arriving = [(x, error * (number not in (2, 5))) for number, (x, error) in enumerate(batches)]
    scales = set()
    for number, expected in enumerate(looped(CASE, arriving, streaming)):
        x, error = batches[number]
        optimizer.zero_grad()
        loss = (layer(x) * error).sum() * (torch.inf if number in (2, 5) else 1.0)
        scaled, _ = scaler.scale([loss, loss.detach()])
        scaled.backward()
        scaler.unscale_(optimizer)
        if number not in (2, 5):
            assert_same([p.grad for p in layer.parameters()], expected)
        scaler.step(optimizer)
        scaler.update()
        scales.add(scaler.get_scale())
    assert len(scales) > 3


@pytest.mark.parametrize("streaming", [True, False])
def test_lbfgs_and_averaged_copies(streaming):
    """Each evaluation of a closure is time; averages are of parameters, made before or after the first batch."""
    layer, batches, seen, found = CASE.layer(streaming=streaming), shown(3), [], []
    optimizer = torch.optim.LBFGS(layer.parameters(), lr=1e-12, max_iter=3, tolerance_change=0.0)
    averages = [AveragedModel(layer, use_buffers=each) for each in (True, False)]
    for batch in batches:

        def closure(batch=batch):
            optimizer.zero_grad()
            loss = (layer(batch[0]) * batch[1]).sum()
            loss.backward()
            seen.append(batch)
            found.append([p.grad.clone() for p in layer.parameters()])
            return loss

        optimizer.step(closure)
        averages += [AveragedModel(layer), deepcopy(averages[0])]
        for average in averages:
            average.update_parameters(layer)
            if streaming and average.module.stream:  # a copy goes its own way
                plainly(average.module, *batch)
    assert len(seen) > len(batches)
    for gradients, expected in zip(found, looped(CASE, seen, streaming), strict=True):
        assert_same(gradients, expected, 1e-8)
    for average in averages:
        assert_same([*average.module.parameters()], [*layer.parameters()], 1e-9)


def rank(number, file, streaming):
    """One of two processes, each with images of its own."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=number, world_size=2)
    layer = nn.parallel.DistributedDataParallel(CASE.layer(streaming=streaming))
    mine = [[CASE.batch(6, seed) for seed in range(10 * each, 10 * each + 4)] for each in range(2)]
    both = zip(*(looped(CASE, batches, streaming) for batches in mine), strict=True)
    for batch, (first, second) in zip(mine[number], both, strict=True):
        layer.zero_grad()
        plainly(layer, *batch)
        mean = [(a + b) / 2 for a, b in zip(first, second, strict=True)]
        assert_same([p.grad for p in layer.parameters()], mean)
    torch.distributed.barrier()  # and an end at once: taking gloo down while the other leaves may hang


@pytest.mark.parametrize("streaming", [True, False])
def test_two_processes(streaming, tmp_path):
    """The gradient is the mean of those of both, each with traces of its own."""
    torch.multiprocessing.start_processes(rank, (str(tmp_path / "ranks"), streaming), 2, start_method="fork")


def test_what_streams_cannot_do_is_named():
    layer, (x, error) = CASE.layer(streaming=True), CASE.batch(6)
    plainly(layer, x, error)
    with pytest.raises(RuntimeError, match="use backward"):
        torch.func.grad(lambda values: torch.func.functional_call(layer, values, (x,)).sum())(
            dict(layer.named_parameters())
        )
    layer._is_replica = True
    with pytest.raises(RuntimeError, match="DistributedDataParallel"):
        layer(x)


def late_network():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    return convert(plain, delay=0.4, order=3), torch.randn(6, 4, dtype=torch.float64)


def test_an_ensemble_in_vmap_learns_from_late_credit():
    late, x = late_network()
    late(x).square().sum().backward()
    weights, buffers = torch.func.stack_module_state([late, late])
    losses = torch.func.vmap(lambda *state: torch.func.functional_call(late, state, (x,)).square().sum())
    both = torch.autograd.grad(losses(weights, buffers).sum(), list(weights.values()))
    for gradients, parameter in zip(both, late.parameters(), strict=True):
        torch.testing.assert_close(gradients, torch.stack([parameter.grad] * 2))


def test_a_frozen_model_within_torch_func_takes_a_batch_of_any_length():
    late, x = late_network()
    late.requires_grad_(False)
    torch.testing.assert_close(torch.func.vmap(lambda image: late(image[None])[0])(x), late(x))
    torch.testing.assert_close(torch.func.jacrev(late)(x[:1]), torch.autograd.functional.jacobian(late, x[:1]))


def test_a_model_is_exported_as_the_plain_network_that_it_computes():
    late, x = late_network()
    torch.testing.assert_close(torch.export.export(late, (x,)).module()(x), late(x))


def test_parametrised_weights_of_a_traced_layer_are_trained():
    late, x = late_network()
    weight = nn.utils.parametrizations.weight_norm(late[0]).weight.detach().clone()
    optimiser = torch.optim.SGD(late.parameters(), lr=0.1)
    late(x).square().sum().backward()
    optimiser.step()
    assert not torch.equal(late[0].weight, weight)
