"""Traced convolutions against the dense definition on unfolded patches, a plain loop, and autograd."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import conv2d, pad, unfold

from cet_rl import CET, ET, Legendre, PerfectMemory
from cet_rl.credit import Convolution, Dense, Synapses, factored, geometry
from cet_rl.credit.alignment import AlignmentProbe, cosine

TRACES = st.one_of(
    st.none(),
    st.builds(CET, st.integers(2, 5), st.integers(1, 8), st.sampled_from(["area", "peak"])),
    st.builds(Legendre, st.integers(2, 5), st.integers(1, 8)),
    st.builds(ET, st.floats(0.05, 0.9)),
    st.builds(PerfectMemory, st.integers(0, 8)),
)


@st.composite
def geometries(draw):
    return Convolution(
        in_channels=draw(st.integers(1, 3)),
        out_channels=draw(st.integers(1, 3)),
        kernel_size=draw(st.integers(1, 3)),
        in_size=(draw(st.integers(3, 5)), draw(st.integers(3, 5))),
        stride=draw(st.integers(1, 2)),
        padding=draw(st.integers(0, 1)),
        bias=draw(st.booleans()),
    )


@st.composite
def problems(draw):
    """A convolution and several chunks of signals for it."""
    return {
        "geometry": draw(geometries()),
        "num_envs": draw(st.integers(1, 3)),
        "trace": draw(TRACES),
        "delay_steps": draw(st.integers(0, 10)),
        "chunks": draw(st.lists(st.integers(1, 12), min_size=1, max_size=4)),
        "decay": draw(st.sampled_from([0.0, 0.5, 0.94])),
        "block": draw(st.integers(1, 500)),
        "seed": draw(st.integers(0, 2**31)),
    }


def signals(problem, steps, generator):
    """Random maps with ReLU derivatives, episode starts, and steps that are no transition."""
    shape, envs = problem["geometry"], problem["num_envs"]

    def normal(*sizes):
        return torch.randn(steps, envs, *sizes, generator=generator, dtype=torch.float64)

    valid = (torch.rand(steps, envs, generator=generator) > 0.1).double()
    on_maps = valid[..., None, None, None]
    derivative = (normal(*shape.post_shape) > 0).double() * on_maps
    error = normal(*shape.post_shape) * on_maps
    start = (torch.rand(steps, envs, generator=generator) < 0.15).double()
    return normal(*shape.pre_shape), derivative, error, normal() * valid, start


def all_signals(problem, repeats=1):
    generator = torch.Generator().manual_seed(problem["seed"])
    return [signals(problem, steps, generator) for steps in problem["chunks"] * repeats]


def layer(problem, executor="auto", decay=None):
    return Synapses(
        trace=problem["trace"],
        delay_steps=problem["delay_steps"],
        gamma_lam=problem["decay"] if decay is None else decay,
        num_envs=problem["num_envs"],
        rollout=problem["chunks"][0],
        executor=executor,
        dtype=torch.float64,
        geometry=problem["geometry"],
    )


def patches(shape, pre):
    """Return each position's inputs as a dense layer would have them, with a bias one more that is 1."""
    maps = pre.reshape(-1, *shape.pre_shape)
    found = unfold(maps, shape.kernel_size, padding=shape.padding, stride=shape.stride).mT
    found = pad(found, (0, int(shape.bias)), value=1.0)
    return found.reshape(*pre.shape[:-3], *found.shape[1:])


class OnPatches:
    """The dense definition, every position an environment of its own: the reference."""

    def __init__(self, problem, decay=None):
        self.shape = problem["geometry"]
        self.positions = self.shape.post_shape[1] * self.shape.post_shape[2]
        channels, *kernel = self.shape.weight_shape
        self.synapses = Synapses(
            n_in=torch.Size(kernel).numel(),
            n_out=channels,
            trace=problem["trace"],
            delay_steps=problem["delay_steps"],
            gamma_lam=problem["decay"] if decay is None else decay.flatten(1),
            num_envs=problem["num_envs"] * self.positions,
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


def assert_same(found, expected):
    for chunk, (a, b) in enumerate(zip(found, expected, strict=True)):
        scale = max(1.0, b.abs().max().item())
        assert torch.isfinite(a).all()
        assert a.shape == b.shape
        assert (a - b).abs().max().item() <= 1e-10 * scale, f"chunk {chunk}"


@pytest.mark.parametrize("executor", ["auto", "history", "step"])
@given(problem=problems())
def test_a_convolution_is_the_dense_definition_on_patches(executor, problem):
    parts = all_signals(problem)
    found, reference = layer(problem, executor), OnPatches(problem)
    assert_same([found(*part) for part in parts], [reference(*part) for part in parts])
    if problem["decay"]:  # without one, nothing of e is carried over
        assert_same([found.eligibility], [reference.eligibility])


@given(problem=problems())
def test_one_decay_per_weight(problem):
    generator = torch.Generator().manual_seed(problem["seed"])
    decay = torch.rand(problem["geometry"].weight_shape, generator=generator, dtype=torch.float64)
    parts = all_signals(problem)
    found, reference = layer(problem, decay=decay), OnPatches(problem, decay)
    assert_same([found(*part) for part in parts], [reference(*part) for part in parts])


def plain_loop(problem, parts):
    """The definition once more, from its formulas and the kernel alone: every position and offset by itself."""
    pre, derivative, error, td_error, start = (torch.cat(kind) for kind in zip(*parts, strict=True))
    total, envs = td_error.shape
    shape, D, trace = problem["geometry"], problem["delay_steps"], problem["trace"]
    (channels, height, width), (_, rows, columns) = shape.pre_shape, shape.post_shape
    kernel = torch.ones(1, dtype=torch.float64) if trace is None else trace.kernel(total)
    gradient = torch.zeros(shape.weight_shape, dtype=torch.float64)
    for env in range(envs):
        e = torch.zeros_like(gradient)
        for t in range(D, total):
            e *= problem["decay"] * (1 - start[t - D, env])
            for lag in range(min(t + 1, len(kernel))):
                then = t - lag
                for row in range(rows):
                    for column in range(columns):
                        post = error[t - D, env, :, row, column] * derivative[then, env, :, row, column]
                        patch = torch.zeros(channels, shape.kernel_size, shape.kernel_size, dtype=torch.float64)
                        for i in range(shape.kernel_size):
                            for j in range(shape.kernel_size):
                                y = row * shape.stride + i - shape.padding
                                x = column * shape.stride + j - shape.padding
                                if 0 <= y < height and 0 <= x < width:
                                    patch[:, i, j] = pre[then, env, :, y, x]
                        e += kernel[lag] * post[:, None, None, None] * patch
            gradient += td_error[t - D, env] * e
    return gradient


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
    problem = {
        "geometry": replace(Convolution(2, 3, 3, (3, 4)), **options),
        "num_envs": 2,
        "trace": trace,
        "delay_steps": delay_steps,
        "chunks": [3, 5],
        "decay": 0.8,
        "seed": 3,
    }
    parts = all_signals(problem)
    synapses = layer(problem)
    assert_same([sum(synapses(*part) for part in parts)], [plain_loop(problem, parts)])


@given(problem=problems())
def test_without_delay_or_trace_it_is_the_gradient_of_the_weights(problem):
    problem |= {"trace": None, "delay_steps": 0, "decay": 0.0}
    parts, synapses = all_signals(problem), layer(problem)
    shape = problem["geometry"]
    for pre, derivative, error, td_error, start in parts:
        weight = torch.zeros(shape.weight_shape, dtype=torch.float64, requires_grad=True)
        kernels, bias = shape.split(weight)
        z = conv2d(pre.flatten(0, 1), kernels, bias, stride=shape.stride, padding=shape.padding).view(error.shape)
        objective = (td_error[..., None, None, None] * error * derivative * z).sum()
        (expected,) = torch.autograd.grad(objective, weight)
        assert_same([synapses(pre, derivative, error, td_error, start)], [expected])


@given(problem=problems())
def test_chunk_boundaries_do_not_matter(problem):
    parts = all_signals(problem)
    apart, together = layer(problem), layer(problem)
    total = sum(apart(*part) for part in parts)
    assert_same([together(*(torch.cat(kind) for kind in zip(*parts, strict=True)))], [total])
    if problem["decay"]:
        assert_same([together.eligibility], [apart.eligibility])


@given(problem=problems())
def test_saved_state_continues_exactly(problem):
    parts = all_signals(problem, repeats=2)
    whole = layer(problem)
    expected = [whole(*part) for part in parts]
    first, second = layer(problem), layer(problem)
    half = len(parts) // 2
    found = [first(*part) for part in parts[:half]]
    second.load_state_dict(first.state_dict())
    found += [second(*part) for part in parts[half:]]
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


@given(problem=problems())
def test_memory_formats_and_blocks_do_not_matter(problem):
    parts = all_signals(problem)
    plain, other = layer(problem), layer(problem)
    expected = [plain(*part) for part in parts]

    def channels_last(maps):
        return maps.movedim(-3, -1).contiguous().movedim(-1, -3)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(geometry, "_LARGEST_UNFOLDED", 1)
        patch.setattr(factored, "_BLOCK", problem["block"])
        found = [other(*map(channels_last, part[:3]), *part[3:]) for part in parts]
    assert_same(found, expected)


@given(shape=geometries(), seed=st.integers(0, 2**31))
def test_patches_times_the_weight_are_the_convolution(shape, seed):
    generator = torch.Generator().manual_seed(seed)
    pre = torch.randn(2, 3, *shape.pre_shape, generator=generator, dtype=torch.float64)
    weight = torch.randn(shape.weight_shape, generator=generator, dtype=torch.float64)
    kernels, bias = shape.split(weight)
    expected = conv2d(pre.flatten(0, 1), kernels, bias, stride=shape.stride, padding=shape.padding)
    assert shape.post_shape == expected.shape[1:]
    found = (patches(shape, pre) @ weight.flatten(1).T).mT.reshape(expected.shape)
    assert_same([found], [expected])


@given(shape=st.one_of(geometries(), st.builds(Dense, st.integers(1, 4), st.integers(1, 4), st.booleans())))
def test_sums_of_outer_products(shape):
    generator = torch.Generator().manual_seed(0)
    pre = torch.randn(4, 3, *shape.pre_shape, generator=generator, dtype=torch.float64)
    post = torch.randn(4, 3, *shape.post_shape, generator=generator, dtype=torch.float64)
    given_pre = shape.pre(shape.flatten(pre))
    assert torch.equal(given_pre[..., : shape.pre_shape[-1]], pre)
    assert torch.equal(shape.post(shape.flatten(post)), post)
    sums = shape.outer_sums(post, given_pre)
    channels = shape.weight_shape[0]
    by_position = post.reshape(4, 3, channels, -1)
    inputs = shape.inputs(given_pre)[..., None, :] if isinstance(shape, Dense) else patches(shape, given_pre)
    expected = torch.einsum("seop,sepi->eoi", by_position, inputs).view(3, *shape.weight_shape)
    assert_same([sums, shape.outer_sum(post, given_pre)], [expected, expected.sum(0)])


@given(problem=problems())
def test_float32_sees_all_of_the_kernel_that_it_can(problem):
    """The past is shorter in float32; the update is that of float64 to float32's rounding."""
    parts = all_signals(problem)
    exact, rounded = layer(problem), layer(problem)
    small = Synapses(
        trace=problem["trace"],
        delay_steps=problem["delay_steps"],
        gamma_lam=problem["decay"],
        num_envs=problem["num_envs"],
        geometry=problem["geometry"],
    )
    assert len(small.past_pre) <= len(rounded.past_pre)
    for part in parts:
        expected = exact(*part)
        found = small(*(signal.float() for signal in part))
        assert found.dtype == torch.float32
        assert (found - expected).abs().max() <= 1e-4 * max(1.0, expected.abs().max())


def test_a_dense_layer_by_its_geometry():
    by_name, by_geometry = Synapses(n_in=2, n_out=3, trace=ET(0.5)), Synapses(geometry=Dense(2, 3), trace=ET(0.5))
    given = (torch.rand(4, 1, 2), torch.rand(4, 1, 3), torch.rand(4, 1, 3), torch.rand(4, 1), torch.zeros(4, 1))
    assert torch.equal(by_name(*given), by_geometry(*given))


def test_alignment_replays_a_convolution():
    problem = {
        "geometry": Convolution(2, 3, 3, (4, 4), padding=1),
        "num_envs": 2,
        "trace": PerfectMemory(3),
        "delay_steps": 3,
        "chunks": [6, 6, 6],
        "decay": 0.5,
        "seed": 0,
    }
    synapses = layer(problem)
    probe = AlignmentProbe(
        geometry=problem["geometry"],
        delay_steps=3,
        gamma_lam=0.5,
        num_envs=2,
        rollout=6,
        dtype=torch.float64,
    )
    for part in all_signals(problem):
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
        ({"padding": -1}, "padding must not be negative"),
        ({"in_size": 4}, r"in_size must be \(height, width\), got 4"),
        ({"kernel_size": 5, "in_size": (4, 9)}, "does not fit an input of 4 × 9"),
    ],
)
def test_bad_convolutions_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        replace(Convolution(2, 3, 3, (4, 4)), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"executor": "chunk"}, "a convolution has no states for 'chunk'"),
        ({"executor": "fused"}, "a convolution has no states for 'fused'"),
        ({"gamma_lam": torch.full((3, 18), 0.5)}, r"shape \(3, 2, 3, 3\)"),
        ({"gamma_lam": torch.full((3, 2, 3, 3), 0.5), "executor": "history"}, "breaks the closed form"),
        ({"n_in": 4}, "either n_in and n_out, or geometry"),
        ({"geometry": None}, "either n_in and n_out, or geometry"),
        ({"num_envs": 0}, "num_envs"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Synapses(**{"geometry": Convolution(2, 3, 3, (4, 4)), **options})


def test_mismatched_maps_are_named():
    synapses = Synapses(geometry=Convolution(2, 3, 3, (4, 5)), num_envs=2)
    ones = torch.ones
    maps, scalars = ones(4, 2, 3, 2, 3), ones(4, 2)
    with pytest.raises(ValueError, match=r"expected pre of shape \(T, 2, 2, 4, 5\) and error of shape"):
        synapses(ones(4, 2, 2, 5, 4), maps, maps, scalars, scalars)
    with pytest.raises(ValueError, match=r"error of shape \(T, 2, 3, 2, 3\)"):
        synapses(ones(4, 2, 2, 4, 5), maps, ones(4, 2, 3, 6), scalars, scalars)
    with pytest.raises(ValueError, match=r"error has shape \(4, 2, 3, 2, 3\), expected \(4, 2, 3\)"):
        synapses(ones(4, 2, 2, 4, 5), ones(4, 2, 3), maps, scalars, scalars)


@pytest.mark.cuda
@pytest.mark.parametrize("executor", ["auto", "step"])
@given(problem=problems())
def test_cuda_equals_cpu(executor, problem):
    parts, reference = all_signals(problem), OnPatches(problem)
    synapses = layer(problem, executor).cuda()
    found = [synapses(*(signal.cuda() for signal in part)).cpu() for part in parts]
    assert_same(found, [reference(*part) for part in parts])
