"""Ordinary models made to learn from late credit: what changes, what must not, and what cannot be."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.prune import random_unstructured
from vision_loop import Case, assert_same

from cet_rl import CET, ET, Legendre, Optimal, PerfectMemory
from cet_rl.traces.registry import TraceConfig
from cet_rl.vision.conversion import convert
from cet_rl.vision.layers import TracedConv2d, TracedLinear, traced_layers
from cet_rl.vision.models import image_network


def perceptron():
    return image_network((1, 4, 4), 3, hidden=(7, 6), generator=torch.Generator().manual_seed(0))


def convolutional():
    return image_network((1, 8, 8), 3, (4, 5), (6,), generator=torch.Generator().manual_seed(0))


def normalised():
    """Layers that remember batches, that draw random numbers, and activations of all kinds, some by themselves."""
    torch.manual_seed(0)
    features = [nn.Conv2d(1, 3, 3, padding="same"), nn.BatchNorm2d(3), nn.ReLU()]
    features += [nn.Conv2d(3, 4, 2, 2, bias=False), nn.Tanh()]
    head = [nn.Linear(64, 6), nn.Sigmoid(), nn.Dropout(0.3), nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 3)]
    return nn.Sequential(nn.Sequential(*features), nn.Flatten(), nn.Sequential(*head))


def kinds(layers):
    return [type(layer) for layer in layers]


MODELS = pytest.mark.parametrize(
    ("build", "in_shape"), [(perceptron, (1, 4, 4)), (convolutional, (1, 8, 8)), (normalised, (1, 8, 8))]
)
LATE = {"delay": 0.4, "error_at": "activation"}


def train(model, in_shape, steps=10):
    """So many steps of AdamW: the gradients, the outputs and the state afterwards."""
    torch.manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    seen = []
    for _ in range(steps):
        images, labels = torch.randn(16, *in_shape), torch.randint(3, (16,))
        outputs = model(images)
        optimizer.zero_grad()
        cross_entropy(outputs, labels).backward()
        seen += [outputs, *(parameter.grad.clone() for parameter in model.parameters())]
        optimizer.step()
    return seen, model.state_dict()


def assert_equal(found, expected):
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@MODELS
def test_without_a_delay_nothing_changes(build, in_shape):
    plain, converted = build(), convert(build())
    assert not any(layer.traced for layer in traced_layers(converted).values())
    assert len(traced_layers(converted)) == sum(
        isinstance(each, nn.Linear | nn.Conv2d) for each in plain.modules()
    )
    (found, state), (expected, plain_state) = train(converted, in_shape), train(plain, in_shape)
    assert_equal(found, expected)
    assert list(state) == list(plain_state)
    assert_equal(state.values(), plain_state.values())


@MODELS
def test_with_a_delay_only_gradients_change(build, in_shape):
    plain, converted = build(), convert(build(), **LATE)
    assert list(converted.state_dict()) == list(plain.state_dict())
    x = torch.randn(16, *in_shape)
    plain.load_state_dict(converted.state_dict())
    assert torch.equal(converted.eval()(x), plain.eval()(x))
    (found, _), (expected, _) = train(converted.train(), in_shape, 1), train(plain.train(), in_shape, 1)
    assert torch.equal(found[0], expected[0])
    for name, a, b in zip(dict(plain.named_parameters()), found[1:], expected[1:], strict=True):
        if name.rpartition(".")[0] in traced_layers(converted):
            assert not torch.equal(a, b)
        else:  # of a normalisation: what is passed down is the true gradient
            torch.testing.assert_close(a, b)


@MODELS
def test_the_model_given_stays_as_it_is(build, in_shape):
    model, same = build(), build()
    train(convert(model, **LATE), in_shape)
    assert not traced_layers(model)
    assert repr(model) == repr(same)
    assert_equal(model.state_dict().values(), same.state_dict().values())


@MODELS
def test_copies_and_states_of_converted_models(build, in_shape):
    model = convert(build(), **LATE)
    copy = deepcopy(model)
    expected, state = train(model, in_shape, 3)
    assert_equal(train(copy, in_shape, 3)[0], expected)
    other = convert(build(), **LATE)
    other.load_state_dict(state)
    assert_equal(train(model, in_shape, 2)[0], train(other, in_shape, 2)[0])


def test_delays_add_up_from_the_output():
    names = {"0.0": 12, "0.3": 9, "2.0": 6, "2.3": 3, "2.5": 0}
    layers = traced_layers(convert(normalised(), delay=0.6, stacked=True, error_at="activation"))
    assert {name: layer.rule.delay_steps for name, layer in layers.items()} == names
    assert [layer.rule.trace for layer in layers.values()] == [*(CET(5, d) for d in (12, 9, 6, 3)), None]
    assert [layer.traced for layer in layers.values()] == [True] * 4 + [False]
    layers = traced_layers(convert(normalised(), "et", delay=0.6, error_at="activation"))
    assert list(layers) == list(names)
    assert {(layer.rule.delay_steps, layer.rule.trace) for layer in layers.values()} == {(3, ET.from_delay(3))}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, CET(5, 3)),
        ({"trace": "cet", "order": 3, "normalization": "peak"}, CET(3, 3, "peak")),
        ({"trace": "legendre", "order": 4}, Legendre(4, 3)),
        ({"trace": "et", "decay": 0.7}, ET(0.7)),
        ({"order": 1}, ET.from_delay(3)),
        ({"trace": TraceConfig("perfect")}, PerfectMemory(3, "peak")),
        ({"trace": CET(4, 3, "peak")}, CET(4, 3, "peak")),
    ],
)
def test_traces_by_name(options, expected):
    assert convert(nn.Linear(2, 3), delay=0.6, **options).rule.trace == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trace": "best", "delay": 0.6}, "unknown trace 'best'"),
        ({"order": 3}, "order belongs to a delay, and there is none"),
        *[(o, "without a delay") for o in ({"jitter": 0.5}, {"derivative_memory": "trace", "delay": 0.0})],
        ({"trace": "perfect", "order": 3, "delay": 0.6}, "order 3 has no meaning for trace 'perfect'"),
        ({"trace": TraceConfig("cet"), "order": 3, "delay": 0.6}, "has order, decay and normalization of its own"),
    ],
)
def test_traces_that_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        convert(nn.Linear(2, 3), **options)


def test_the_step_duration_counts():
    [layer] = traced_layers(convert(nn.Linear(2, 3), delay=0.6, step_duration=0.3)).values()
    assert layer.rule.delay_steps == 2
    with pytest.raises(ValueError, match=r"nearest valid delays are 0.4 s and 0.6 s"):
        convert(nn.Linear(2, 3), delay=0.5)


def test_activations_become_part_of_the_layer():
    model = convert(normalised(), **LATE)
    features, _, head = model
    assert [layer.rule.activation for layer in traced_layers(model).values()] == [
        *("identity", "tanh", "sigmoid", "identity", "identity")
    ]
    assert kinds(features) == [TracedConv2d, nn.BatchNorm2d, nn.ReLU, TracedConv2d, nn.Identity]
    assert kinds(head) == [TracedLinear, nn.Identity, nn.Dropout, TracedLinear, nn.GELU, TracedLinear]


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.activation, self.second = nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)

    def forward(self, x):
        return self.second(self.activation(self.first(x)))


class Residual(nn.Sequential):
    """A sequence with a forward pass of its own, which uses the activation in its own way."""

    def forward(self, x):
        first = self[0](x)
        return self[2](self[1](first)) + first


def test_only_a_plain_sequence_tells_that_an_activation_follows():
    by_instance = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    by_instance.forward = lambda x: by_instance[0](x)
    for plain in (Branches(), Residual(*Branches().children()), by_instance):
        x = torch.randn(5, 4)
        assert torch.equal(convert(plain)(x), plain(x))
        late = convert(plain, delay=0.2)
        assert torch.equal(late(x), plain(x))
        assert kinds(late.children()) == [TracedLinear, nn.Tanh, TracedLinear]
        assert next(late.children()).rule.activation == "identity"


def test_a_hooked_activation_is_kept():
    plain, seen = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), []
    plain[1].register_forward_hook(lambda _, inputs, output: seen.append((inputs[0] < 0).any()))
    convert(plain, delay=0.2)(torch.randn(9, 4))
    assert seen == [True]


def test_a_shared_activation_is_kept_where_it_is_needed():
    relu = nn.ReLU(inplace=True)
    model = convert(nn.Sequential(nn.Linear(2, 3), relu, nn.LayerNorm(3), relu, nn.Linear(3, 2), relu), delay=0.2)
    assert kinds(model) == [TracedLinear, nn.Identity, nn.LayerNorm, nn.ReLU, TracedLinear, nn.Identity]
    model(torch.randn(5, 2)).sum().backward()


@pytest.mark.parametrize("kind", ["cet", "perfect", "sharp"])
@pytest.mark.parametrize("error_at", ["preactivation", "activation"])
def test_every_layer_of_a_network_is_that_of_the_loop(kind, error_at):
    """What is passed down is the true gradient, so that each layer's images and errors are those of torch."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3))
    plain = plain.double()
    model = convert(plain, TraceConfig(kind), delay=0.4, stacked=True, error_at=error_at)
    signals = {}
    for name in ("0", "3", "5"):
        layer, after = plain[int(name)], plain[int(name) + 1] if name != "5" else plain[5]
        layer.register_forward_pre_hook(lambda _, inputs, name=name: signals.update({name: [inputs[0].detach()]}))
        after.register_forward_hook(
            lambda _, inputs, output, name=name: output.retain_grad() or watch(name, output)
        )

    def watch(name, output):
        signals[name].append(output)

    x, labels = torch.randn(9, 1, 4, 4, dtype=torch.float64), torch.arange(9) % 3
    for network in (plain, model):
        cross_entropy(network(x), labels).backward()
    for name, layer in traced_layers(model).items():
        case = Case(
            *(layer.weight.shape[1::-1]),
            layer.rule.trace,
            layer.rule.delay_steps,
            kernel_size=3 if name == "0" else None,
            activation=layer.rule.activation,
            error_at=error_at,
        )
        case.plain.load_state_dict(plain[int(name)].state_dict())
        seen, output = signals[name]
        assert_same([layer.weight.grad, layer.bias.grad], case.split(case.gradients(seen, output.grad, 9).sum(0)))


@pytest.mark.parametrize(
    ("options", "stride", "padding"),
    [
        ({"padding": "same"}, 1, 1),
        ({"padding": "valid"}, 1, 0),
        ({"padding": 1}, 1, 1),
        ({"padding": (2, 2)}, 1, 2),
        ({"stride": 2, "padding": "valid", "bias": False}, 2, 0),
    ],
)
def test_paddings_and_strides(options, stride, padding):
    plain = nn.Conv2d(2, 3, 3, **options)
    traced = convert(plain, delay=0.2)
    assert (traced.stride, traced.padding) == ((stride, stride), (padding, padding))
    assert (traced.bias is None) == (plain.bias is None)
    x = torch.randn(4, 2, 6, 5)
    assert torch.equal(traced(x), plain(x))


@pytest.mark.parametrize(
    "options",
    [
        {"groups": 2},
        {"dilation": 2},
        {"kernel_size": (3, 1)},
        {"kernel_size": (3, 5), "padding": "same"},
        {"kernel_size": 2, "padding": "same"},
        {"dilation": 2, "padding": "same"},
        {"stride": (1, 2)},
        {"padding": (0, 1)},
        {"padding": 1, "padding_mode": "circular"},
        {"padding": "same", "padding_mode": "reflect"},
    ],
)
@pytest.mark.parametrize("late", [{}, {"delay": 0.2}])
def test_convolutions_that_synapses_cannot_follow(options, late):
    model = nn.Sequential(
        nn.ReLU(), nn.Conv2d(**{"in_channels": 2, "out_channels": 4, "kernel_size": 3, **options})
    )
    with pytest.raises(ValueError, match="layer '1' is a convolution that traced layers do not support"):
        convert(model, **late)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (nn.Sequential(nn.Flatten(), nn.ReLU()), {}, "no Linear or Conv2d layer to convert"),
        (convert(perceptron()), {}, "layer '1' is traced already"),
        (
            perceptron(),
            {"derivative_memory": "trace", "streaming": True},
            "derivative_memory='trace' does not go with streaming",
        ),
        (perceptron(), {"streams": 0}, "streams must be at least 1"),
        (perceptron(), {"trace": 3.5}, r"trace must be one of .* or a TraceConfig, got 3.5"),
        ("mlp", {}, "convert takes a torch module, got 'mlp'"),
    ],
)
def test_models_and_options_that_cannot_be(model, options, message):
    with pytest.raises(ValueError, match=message):
        convert(model, delay=0.4, **options)


class Scaled(nn.Linear):
    """Not what nn.Linear computes."""

    def forward(self, x):
        return 100 * super().forward(x)


class Orthogonal(nn.Linear):
    """What nn.Linear computes, begun elsewhere."""

    def reset_parameters(self):
        nn.init.orthogonal_(self.weight)
        nn.init.zeros_(self.bias)


class Flipped(nn.Conv2d):
    """Not what nn.Conv2d computes, but with its forward."""

    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight.flip(-1), bias)


def hooked(kind):
    layer = nn.Linear(4, 4)
    getattr(layer, f"register_{kind}")(lambda *_: None)
    return layer


def carrying(**more):
    """A layer with buffers, parameters, modules or attributes of its own."""
    layer = nn.Linear(4, 4)
    for name, value in more.items():
        if isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter):
            layer.register_buffer(name, value)
        else:
            setattr(layer, name, value)
    return layer


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (Scaled(4, 4), "'0' is a Scaled with a forward of its own: convert knows Linear's"),
        (nn.MultiheadAttention(4, 2), "'0' is an attention"),
        (nn.TransformerEncoderLayer(4, 2, 8), "'0.self_attn' is an attention"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), "parametrised weight"),
        (nn.utils.spectral_norm(nn.Linear(4, 4)), "has hooks, which would be lost"),
        (random_unstructured(nn.Linear(4, 4), "weight", 0.5), "has hooks, which would be lost"),
        *[(hooked(kind), "has hooks") for kind in ("forward_hook", "forward_pre_hook", "full_backward_hook")],
        (nn.LazyLinear(4), "has no shape yet"),
        (Flipped(4, 4, 1), "'0' is a Flipped with a forward of its own: convert knows Conv2d's"),
        (carrying(forward=lambda x: x), "with a forward of its own"),
        (carrying(mask=torch.ones(4)), "'0' has mask besides weight and bias, which would be lost"),
        (carrying(gain=nn.Parameter(torch.ones(4))), "'0' has gain besides weight and bias"),
        (carrying(adapter=nn.Flatten()), "'0' has adapter besides weight and bias"),
        (carrying(times=3), "'0' has an attribute 'times', which means something else"),
    ],
    ids=str,
)
@pytest.mark.parametrize("delay", [0.0, 0.2])
def test_layers_that_no_other_can_stand_in_for(layer, message, delay):
    with pytest.raises(ValueError, match=message):
        convert(nn.Sequential(layer, nn.Linear(4, 3)), delay=delay)


@pytest.mark.parametrize("delay", [0.0, 0.6, 0.8])
def test_traces_are_taken_as_they_are(delay):
    """Without a delay it is theirs; with another one they are made for the wrong one."""
    layers = traced_layers(convert(perceptron(), Optimal(3, 4, tolerance=0.3), delay=delay)).values()
    assert {layer.rule.trace for layer in layers} == {Optimal(3, 4, tolerance=0.3)}
    assert {layer.rule.delay_steps for layer in layers} == {3 if delay == 0.6 else 4}


def test_attributes_stay_with_their_layer():
    assert convert(nn.Sequential(carrying(role="first")), delay=0.2)[0].role == "first"


def test_subclasses_that_compute_the_same_are_converted():
    layer, x = Orthogonal(4, 4), torch.randn(5, 4)
    assert torch.equal(convert(layer, delay=0.2)(x), layer(x))


def test_traces_of_the_wrong_kind():
    with pytest.raises(TypeError, match="unknown argument 'dely'; did you mean delay"):
        convert(nn.Linear(4, 3), dely=2.0)
    with pytest.raises(ValueError, match="trace must be a trace such as"):
        TracedLinear(4, 3, trace="cet", delay_steps=3)


def test_frozen_layers_stay_frozen_and_modes_are_kept():
    model = normalised()
    model[0][0].requires_grad_(False)
    model[2].eval()
    converted = convert(model, **LATE)
    assert [p.requires_grad for p in converted.parameters()] == [p.requires_grad for p in model.parameters()]
    for old, new in zip(model.modules(), converted.modules(), strict=True):
        assert isinstance(new, nn.Identity) or new.training == old.training


def test_a_layer_in_two_places():
    """It would have one trace for what happens in both."""
    shared = nn.Linear(3, 3)
    with pytest.raises(ValueError, match="used in two places"):
        convert(nn.Sequential(shared, nn.ReLU(), shared), delay=0.2)


def test_an_activation_in_place_after_a_layer():
    """torch allows it after its own layers, which do not need their output."""
    convert(nn.Linear(3, 2), delay=0.2)(torch.randn(4, 3)).relu_().sum().backward()
