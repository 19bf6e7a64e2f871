"""Traced convolutions against the dense definition on unfolded patches, a plain loop, and autograd."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from late_credit import CONVOLUTIONS, DENSE, Problem, dense_eligibility, problems
from torch.nn.functional import conv2d, pad, unfold
from vision_loop import assert_same

from cet_rl import CET, ET, Legendre, PerfectMemory
from cet_rl.credit import Convolution, Dense, Synapses, factored, geometry
from cet_rl.credit.alignment import AlignmentProbe, cosine

CONVOLVING = problems(CONVOLUTIONS, 12, decays=(0.0, 0.5, 0.94))


def patches(shape, pre):
    """Return each position's inputs as a dense layer would have them, with a bias one more that is 1."""
    maps = pre.reshape(-1, *shape.pre_shape)
    found = unfold(maps, shape.kernel_size, padding=shape.padding, stride=shape.stride).mT
    found = pad(found, (0, int(shape.bias)), value=1.0)
    return found.reshape(*pre.shape[:-3], *found.shape[1:])


class OnPatches:
    """The dense definition, every position an environment of its own: the reference."""

    def __init__(self, problem, decay=None):
        self.shape = problem.geometry
        self.positions = self.shape.post_shape[1] * self.shape.post_shape[2]
        channels, *kernel = self.shape.weight_shape
        self.synapses = Synapses(
            n_in=torch.Size(kernel).numel(),
            n_out=channels,
            trace=problem.trace,
            delay_steps=problem.delay_steps,
            gamma_lam=problem.decay if decay is None else decay.flatten(1),
            num_envs=problem.num_envs * self.positions,
            executor="step",
            dtype=torch.float64,
        )

    def __call__(self, pre, derivative, error, td_error, start):
        update = self.synapses(
            patches(self.shape, pre).flatten(1, 2),
            *(maps.flatten(-2).mT.flatten(1, 2) for maps in (derivative, error)),
            *(scalar.repeat_interleave(self.positions, dim=1) for scalar in (td_error, start)),
        )
        return update.view(self.shape.weight_shape)

    @property
    def eligibility(self):
        each = self.synapses.eligibility.view(-1, self.positions, *self.synapses.eligibility.shape[1:])
        return each.sum(1).view(-1, *self.shape.weight_shape)


@pytest.mark.parametrize("executor", ["auto", "history", "factored", "step"])
@given(problem=CONVOLVING)
def test_a_convolution_is_the_dense_definition_on_patches(executor, problem):
    parts, found, reference = problem.signals(), problem.layer(executor), OnPatches(problem)
    assert_same([found(*part) for part in parts], [reference(*part) for part in parts])
    if problem.decay:  # without one, nothing of e is carried over
        assert_same([dense_eligibility(found)], [reference.eligibility])


@given(problem=CONVOLVING)
def test_one_decay_per_weight(problem):
    parts, decay = problem.signals(), problem.decay_per_weight()
    found, reference = problem.layer(gamma_lam=decay), OnPatches(problem, decay)
    assert_same([found(*part) for part in parts], [reference(*part) for part in parts])


@pytest.mark.parametrize(
    ("trace", "delay_steps", "options"),
    [
        (None, 0, {}),
        (CET(3, 4, "peak"), 4, {"padding": 1}),
        (ET(0.5), 2, {"stride": 2}),
        (Legendre(3, 3), 3, {"kernel_size": 2, "padding": 1, "stride": 2}),
        (PerfectMemory(2), 3, {"kernel_size": 1}),
    ],
)
def test_a_convolution_equals_its_formula(trace, delay_steps, options):
    """Every position and offset by itself."""
    shape = replace(Convolution(2, 3, 3, (3, 4)), **options)
    (channels, height, width), (_, rows, columns) = shape.pre_shape, shape.post_shape

    def outer(post, pre):
        total = torch.zeros(shape.weight_shape, dtype=torch.float64)
        for row in range(rows):
            for column in range(columns):
                patch = torch.zeros(channels, shape.kernel_size, shape.kernel_size, dtype=torch.float64)
                for i in range(shape.kernel_size):
                    for j in range(shape.kernel_size):
                        y = row * shape.stride + i - shape.padding
                        x = column * shape.stride + j - shape.padding
                        if 0 <= y < height and 0 <= x < width:
                            patch[:, i, j] = pre[:, y, x]
                total += post[:, row, column, None, None, None] * patch
        return total

    problem = Problem(shape, 2, trace, delay_steps, chunks=[3, 5], decay=0.8, seed=3)
    parts, synapses = problem.signals(), problem.layer()
    assert_same([sum(synapses(*part) for part in parts)], [problem.updates_by_formula(parts, outer)])


@given(problem=CONVOLVING)
def test_without_delay_or_trace_it_is_the_gradient_of_the_weights(problem):
    problem = replace(problem, trace=None, delay_steps=0, decay=0.0)
    shape, synapses = problem.geometry, problem.layer()
    for pre, derivative, error, td_error, start in problem.signals():
        weight = torch.zeros(shape.weight_shape, dtype=torch.float64, requires_grad=True)
        kernels, bias = shape.split(weight)
        z = conv2d(pre.flatten(0, 1), kernels, bias, stride=shape.stride, padding=shape.padding).view(error.shape)
        (expected,) = torch.autograd.grad((td_error[..., None, None, None] * error * derivative * z).sum(), weight)
        assert_same([synapses(pre, derivative, error, td_error, start)], [expected])


@given(problem=CONVOLVING, block=st.integers(1, 500), executor=st.sampled_from(["history", "factored"]))
def test_memory_formats_and_blocks_do_not_matter(problem, block, executor):
    parts, plain, other = problem.signals(), problem.layer("history"), problem.layer(executor)
    expected = [plain(*part) for part in parts]

    def channels_last(maps):
        return maps.movedim(-3, -1).contiguous().movedim(-1, -3)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(geometry, "_LARGEST_UNFOLDED", 1)
        patch.setattr(factored, "_BLOCK", block)
        found = [other(*map(channels_last, part[:3]), *part[3:]) for part in parts]
    assert_same(found, expected)


@given(shape=CONVOLUTIONS, seed=st.integers(0, 2**31))
def test_patches_times_the_weight_are_the_convolution(shape, seed):
    generator = torch.Generator().manual_seed(seed)
    pre = torch.randn(2, 3, *shape.pre_shape, generator=generator, dtype=torch.float64)
    weight = torch.randn(shape.weight_shape, generator=generator, dtype=torch.float64)
    kernels, bias = shape.split(weight)
    expected = conv2d(pre.flatten(0, 1), kernels, bias, stride=shape.stride, padding=shape.padding)
    assert shape.post_shape == expected.shape[1:]
    assert_same([(patches(shape, pre) @ weight.flatten(1).T).mT.reshape(expected.shape)], [expected])


@given(shape=CONVOLUTIONS | DENSE)
def test_sums_of_outer_products(shape):
    generator = torch.Generator().manual_seed(0)
    pre = torch.randn(4, 3, *shape.pre_shape, generator=generator, dtype=torch.float64)
    post = torch.randn(4, 3, *shape.post_shape, generator=generator, dtype=torch.float64)
    given = shape.unflatten_pre(shape.flatten(pre))
    assert torch.equal(given[..., : shape.pre_shape[-1]], pre)
    assert torch.equal(shape.unflatten_post(shape.flatten(post)), post)
    sums = shape.outer_sum_by_env(post, given)
    by_position = post.reshape(4, 3, shape.weight_shape[0], -1)
    inputs = shape.with_bias_input(given)[..., None, :] if isinstance(shape, Dense) else patches(shape, given)
    expected = torch.einsum("seop,sepi->eoi", by_position, inputs).view(3, *shape.weight_shape)
    assert_same([sums, shape.outer_sum(post, given)], [expected, expected.sum(0)])


@given(problem=CONVOLVING)
def test_float32_sees_all_of_the_kernel_that_it_can(problem):
    """The past is shorter in float32; the update is that of float64 to float32's rounding."""
    exact, small = problem.layer(), problem.layer(dtype=torch.float32)
    assert len(small.past_pre) <= len(exact.past_pre)
    for part in problem.signals():
        expected = exact(*part)
        found = small(*(signal.float() for signal in part))
        assert found.dtype == torch.float32
        assert (found - expected).abs().max() <= 1e-4 * max(1.0, expected.abs().max())


def test_alignment_replays_a_convolution():
    problem = Problem(Convolution(2, 3, 3, (4, 4), padding=1), 2, PerfectMemory(3), 3, [6, 6, 6], 0.5)
    synapses, options = problem.layer(), {"num_envs": 2, "rollout": 6, "dtype": torch.float64}
    probe = AlignmentProbe(problem.geometry, delay_steps=3, gamma_lam=0.5, **options)
    for part in problem.signals():
        update = synapses(*part)
        probe.record(*part)
    assert probe.true_gradient(6).shape == update.shape
    assert cosine(update, probe.true_gradient(6)) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_channels": 0}, "in_channels must be at least 1"),
        ({"kernel_size": 0}, "kernel_size must be at least 1"),
        ({"kernel_size": (3, 3)}, "kernel_size must be a whole number"),
        ({"stride": 0}, "stride must be at least 1"),
        ({"padding": -1}, "padding must be at least 0, got -1"),
        ({"in_size": 4}, r"in_size must be \(height, width\), got 4"),
        ({"kernel_size": 5, "in_size": (4, 9)}, "does not fit an input of 4 × 9"),
    ],
)
def test_bad_convolutions_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        replace(Convolution(2, 3, 3, (4, 4)), **options)
