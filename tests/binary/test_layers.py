"""Binary layers: what they multiply by, what they pass back, and what they refuse."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gradlab.binary import layers, sign, surrogates
from gradlab.binary.moving import MovingEDE, MovingReSTE
from gradlab.binary.straight_through import fused_straight_through

MOVING = {
    "ede": (MovingEDE, "progress", lambda p: p),
    "reste": (MovingReSTE, "o", lambda p: 1 + 2 * p),
}


def _weights(layer: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator))
    return layer


def test_the_effective_weight_is_sign_times_the_mean_size_of_its_output():
    layer = _weights(layers.BinaryConv2d(3, 4))
    for output in range(4):
        latent = layer.weight[output].detach()
        expected = torch.where(latent >= 0, 1.0, -1.0) * latent.abs().sum() / latent.numel()
        torch.testing.assert_close(layer.effective_weight()[output].detach(), expected)


def test_scalings_differ_by_what_they_average_over():
    made = {
        scaling: _weights(layers.BinaryLinear(5, 3, scaling=scaling)) for scaling in layers.SCALINGS
    }
    made["learned"].scale.data.copy_(torch.tensor([[1.0], [2.0], [3.0]]))
    sizes = {name: layer.effective_weight().detach().abs() for name, layer in made.items()}
    latent = made["none"].weight.detach().abs()
    torch.testing.assert_close(sizes["none"], torch.ones(3, 5))
    torch.testing.assert_close(sizes["layer"], latent.mean().expand(3, 5))
    torch.testing.assert_close(sizes["channel"], latent.mean(1, keepdim=True).expand(3, 5))
    torch.testing.assert_close(sizes["learned"], torch.tensor([[1.0], [2.0], [3.0]]).expand(3, 5))


def test_a_learned_scale_starts_at_the_mean_size_and_is_learned():
    layer = layers.BinaryLinear(6, 2, scaling="learned")
    torch.testing.assert_close(
        layer.scale.detach(), layer.weight.detach().abs().mean(1, keepdim=True)
    )
    layer(torch.ones(1, 6)).sum().backward()
    expected = sign(layer.weight.detach()).sum(1, keepdim=True)
    torch.testing.assert_close(layer.scale.grad, expected)


def test_the_latent_weight_gets_the_surrogate_derivative_and_none_through_the_mean():
    layer = layers.BinaryLinear(3, 1, surrogate={"name": "hardtanh", "threshold": 0.5})
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.2, -0.4, 0.9]]))
    layer(torch.tensor([[1.0, 10.0, 100.0]])).sum().backward()
    alpha = (0.2 + 0.4 + 0.9) / 3
    torch.testing.assert_close(layer.weight.grad, alpha * torch.tensor([[1.0, 10.0, 0.0]]))


def test_a_real_layer_is_an_ordinary_one():
    layer = _weights(layers.BinaryConv2d(2, 3, stride=2, weight="real"))
    x = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight, stride=2, padding=1))
    assert layer.scale is None


@pytest.mark.parametrize("name", sorted(MOVING))
@pytest.mark.parametrize("progress", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_a_moving_surrogate_is_the_fixed_one_of_that_moment(name, progress):
    moving, option, value = MOVING[name]
    x = torch.linspace(-3, 3, 241)
    fixed = surrogates.create(name, **{option: value(progress)})
    rule = moving(torch.tensor(progress))
    torch.testing.assert_close(rule.derivative(x), fixed.derivative(x), rtol=2e-5, atol=1e-7)
    torch.testing.assert_close(rule.forward(x), fixed.forward(x), rtol=0, atol=0)
    assert rule.derivative(torch.tensor([float("nan")])).isnan().all()


def test_progress_reaches_every_layer_and_moves_only_what_is_not_fixed():
    network = nn.Sequential(
        layers.BinaryActivation("ede"),
        layers.BinaryLinear(2, 2, surrogate="reste"),
        layers.BinaryActivation({"name": "ede", "progress": 0.25}),
        layers.BinaryActivation("hardtanh"),
    )
    x = torch.linspace(-2, 2, 9)
    before = [part.surrogate.derivative(x) for part in network]
    layers.set_progress(network, 0.5)
    after = [part.surrogate.derivative(x) for part in network]
    same = [torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert same == [False, False, True, True]
    torch.testing.assert_close(after[1], surrogates.create("reste", o=2.0).derivative(x))
    assert "progress" not in network.state_dict()
    with pytest.raises(ValueError, match=r"progress must be a number from 0 to 1, not 1\.5"):
        layers.set_progress(network, 1.5)


@pytest.mark.parametrize("name", [name for name in surrogates.names() if name != "magnitude_aware"])
def test_fused_signs_equal_plain_ones(name):
    rule = surrogates.create(name)
    x = (
        torch.linspace(-2, 2, 4 * 6 * 6)
        .reshape(1, 4, 6, 6)
        .contiguous(memory_format=torch.channels_last)
    )
    x[0, 0, 0, 0] = 0.0
    slopes = []
    values = []
    for apply in (surrogates.binarize, fused_straight_through):
        leaf = x.clone().requires_grad_()
        value = apply(leaf, rule)
        value.mul(torch.arange(6.0)).sum().backward()
        slopes.append(leaf.grad)
        values.append(value.detach())
    assert torch.equal(values[0], values[1])
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-5, atol=1e-7)


def test_fused_signs_follow_a_number_that_changes():
    # torch turns such a number into a symbol and then gets its powers wrong, unless told not to
    x = torch.linspace(-2, 2, 64)
    for o in (1.0, 1.3, 1.7, 2.2, 3.0):
        rule = surrogates.create("reste", o=o)
        leaf = x.clone().requires_grad_()
        fused_straight_through(leaf, rule).sum().backward()
        torch.testing.assert_close(leaf.grad, rule.derivative(x), rtol=1e-5, atol=1e-7)


def test_fused_signs_of_a_moving_surrogate_follow_it():
    layer = layers.BinaryActivation("reste")
    layers.set_fused(layer, True)
    x = torch.linspace(-2, 2, 64)
    for progress in (0.0, 0.2, 0.7, 1.0):
        layers.set_progress(layer, progress)
        leaf = x.clone().requires_grad_()
        layer(leaf).sum().backward()
        expected = surrogates.create("reste", o=1 + 2 * progress).derivative(x)
        torch.testing.assert_close(leaf.grad, expected, rtol=1e-5, atol=1e-6)


def test_nan_passes_through_a_fused_sign():
    out = fused_straight_through(torch.tensor([float("nan"), -1.0]), surrogates.create("hardtanh"))
    assert out.isnan().tolist() == [True, False]


def test_networks_compile_as_a_whole_and_follow_progress():
    network = nn.Sequential(
        layers.BinaryActivation("ede"), layers.BinaryLinear(6, 3, surrogate="ede")
    )
    compiled = torch.compile(network, fullgraph=True)
    x = torch.linspace(-1, 1, 12).reshape(2, 6)
    for progress in (0.1, 0.4, 0.8):
        layers.set_progress(network, progress)
        gradients = []
        for each in (network, compiled):
            leaf = x.clone().requires_grad_()
            network.zero_grad()
            each(leaf).square().sum().backward()
            gradients.append((leaf.grad, network[1].weight.grad.clone()))
        torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


def test_a_layer_can_be_copied_and_keeps_its_own_progress():
    layer = layers.BinaryActivation("ede")
    other = copy.deepcopy(layer)
    layers.set_progress(layer, 0.0)
    x = torch.tensor([0.3])
    assert layer.surrogate.derivative(x) != other.surrogate.derivative(x)


def test_other_activations_have_their_own_derivative():
    layer = layers.BinaryActivation("ede", activation="2bit")
    x = torch.tensor([-0.5, 0.4, 1.5], requires_grad=True)
    y = layer(x)
    y.sum().backward()
    torch.testing.assert_close(y.detach(), torch.tensor([0.0, 1 / 3, 1.0]))
    assert x.grad.tolist() == [0.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: layers.BinaryLinear(2, 2, weight="binry"), "did you mean 'binary'"),
        (lambda: layers.BinaryLinear(2, 2, scaling="chanel"), "did you mean 'channel'"),
        (lambda: layers.BinaryLinear(2, 2, surrogate="hardtan"), "did you mean 'hardtanh'"),
        (lambda: layers.BinaryLinear(2, 2, surrogate={"threshold": 1.0}), "give a name or a table"),
        (lambda: layers.BinaryActivation("magnitude_aware"), "for weights, not for activations"),
        (lambda: layers.BinaryActivation(activation="bool"), "unknown activation 'bool'"),
    ],
    ids=["weight", "scaling", "surrogate", "nameless", "weights_only", "activation"],
)
def test_wrong_options_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
