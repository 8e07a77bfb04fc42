"""The full-precision networks: their sizes by hand, their maps written out, what they refuse."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gradlab import models
from gradlab.objectives.network_state import architecture

CIFAR = (3, 32, 32)
MNIST = (1, 28, 28)


def linear(*widths: int) -> int:
    return sum((n + 1) * m for n, m in pairwise(widths))


def convolution(inputs: int, outputs: int, size: int) -> int:
    return (inputs * size * size + 1) * outputs


def conv_net(unit: int) -> int:
    features = convolution(3, unit, 3) + convolution(unit, 2 * unit, 3)
    return features + linear(2 * unit * 49, 4 * unit, 4 * unit, 10)


def vgg(width: int) -> int:
    stages = [3, *(times * width for times in (1, 1, 2, 2, 4, 4, 4, 8, 8, 8, 8, 8, 8))]
    features = sum(convolution(n, m, 3) + 2 * m for n, m in pairwise(stages))
    return features + linear(8 * width, 8 * width, 10) + 2 * 8 * width


ALEXNET = (
    convolution(3, 64, 11) + convolution(64, 192, 5) + convolution(192, 384, 3)
    + convolution(384, 256, 3) + convolution(256, 128, 3) + linear(128, 10)
)  # fmt: skip
THREE = convolution(3, 32, 5) + convolution(32, 64, 5) + convolution(64, 128, 5)

SIZES: list[tuple[str, dict[str, Any], int]] = [
    ("fully_connected", {}, 266_610),
    ("fully_connected", {"hidden": [300]}, linear(784, 300, 10)),
    ("fully_connected", {"hidden": [1200, 1200]}, linear(784, 1200, 1200, 10)),
    ("fully_connected", {"hidden": []}, 7_850),
    ("fully_connected", {"hidden": [8], "batch_norm": True}, linear(784, 8, 10) + 2 * 18),
    ("fully_connected", {"hidden": [8], "batch_norm": True, "affine": False}, linear(784, 8, 10)),
    ("lenet5_caffe", {}, 431_080),
    # 28 pixels without padding: 24, halved 12, then 8, halved 4
    ("lenet5_caffe", {"filters": [6, 16], "hidden": [120, 84]},
     convolution(1, 6, 5) + convolution(6, 16, 5) + linear(16 * 4 * 4, 120, 84, 10)),
    ("conv_net", {}, conv_net(32)),
    ("conv_net", {"scale": 1.5}, conv_net(48)),
    ("conv_net", {"scale": 2.0}, conv_net(64)),
    ("vgg", {}, 14_991_946),
    ("vgg", {"width": 8}, vgg(8)),
    ("alexnet", {}, ALEXNET),
    ("three_conv_three_fc", {}, THREE + linear(2 * 2 * 128, 1000, 1000, 10)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "options", "size"), SIZES, ids=[f"{name}-{size}" for name, _, size in SIZES]
)
def test_parameters_number_what_the_layers_say(
    name: str, options: dict[str, Any], size: int
) -> None:
    with torch.device("meta"):
        network = models.create(name, **options)
    assert sum(parameter.numel() for parameter in network.parameters()) == size


def images(number: int, shape: tuple[int, int, int]) -> torch.Tensor:
    return torch.randn(number, *shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [MNIST, CIFAR], ids=["28", "32"])
@pytest.mark.parametrize(
    ("name", "options"),
    [("fully_connected", {"hidden": [6], "batch_norm": True}), ("lenet5_caffe", {}),
     ("conv_net", {"scale": 0.125}), ("vgg", {"width": 2}), ("alexnet", {}),
     ("three_conv_three_fc", {})],
    ids=["fully_connected", "lenet5_caffe", "conv_net", "vgg", "alexnet", "three_conv_three_fc"],
)  # fmt: skip
def test_every_parameter_learns_and_nothing_is_binarized(
    name: str, options: dict[str, Any], shape: tuple[int, int, int]
) -> None:
    torch.manual_seed(0)
    network = models.create(name, num_classes=3, input_shape=list(shape), **options)
    assert all(part.training for part in network.modules())
    x = network.check(images(6, shape))
    F.cross_entropy(network(x), torch.arange(6) % 3).backward()
    for key, parameter in network.named_parameters():
        # BatchNorm takes away what a bias before it adds: rounding is left
        assert parameter.grad is not None, key
    assert all(layer.weight.grad.abs().sum() > 0 for layer in network.modules()
               if isinstance(layer, nn.Linear | nn.Conv2d))  # fmt: skip
    assert network.layers() == ()
    assert network.latent_weights() == {}


def test_making_a_network_leaves_the_statistics_of_batch_norm_alone() -> None:
    network = models.create("vgg", width=2)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d | nn.BatchNorm1d):
            assert int(part.num_batches_tracked) == 0
            assert torch.equal(part.running_var, torch.ones_like(part.running_var))


def weights(network: nn.Module) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(layer.weight, layer.bias) for layer in network.modules()
            if isinstance(layer, nn.Linear | nn.Conv2d)]  # fmt: skip


@pytest.mark.parametrize(
    ("activation", "function"),
    [("relu", torch.relu), ("softplus", F.softplus), ("tanh", torch.tanh)],
    ids=["relu", "softplus", "tanh"],
)
def test_a_fully_connected_network_written_out(activation: str, function: Any) -> None:
    network = models.create("fully_connected", hidden=[5, 4], activation=activation)
    first, second, last = weights(network)
    x = images(3, MNIST)
    hidden = function(F.linear(function(F.linear(x.flatten(1), *first)), *second))
    torch.testing.assert_close(network(x), F.linear(hidden, *last))


def test_binary_weights_get_batch_norm_behind_every_layer() -> None:
    network = models.create("fully_connected", hidden=[5], batch_norm=True, affine=False)
    first, last = weights(network)
    x = images(7, MNIST)
    hidden = F.batch_norm(F.linear(x.flatten(1), *first), None, None, training=True)
    out = F.batch_norm(F.linear(hidden.relu(), *last), None, None, training=True)
    torch.testing.assert_close(network(x), out)


def test_lenet_written_out() -> None:
    network = models.create("lenet5_caffe")
    first, second, third, last = weights(network)
    x = images(2, MNIST)
    x = F.max_pool2d(F.conv2d(x, *first).relu(), 2)
    x = F.max_pool2d(F.conv2d(x, *second).relu(), 2)
    out = F.linear(F.linear(x.flatten(1), *third).relu(), *last)
    torch.testing.assert_close(network(images(2, MNIST)), out)


def test_the_conv_net_has_no_nonlinearity_between_its_linear_layers() -> None:
    network = models.create("conv_net", scale=0.25)
    first, second, *linears = weights(network)
    x = F.softplus(F.conv2d(images(2, CIFAR), *first, stride=2))
    x = F.softplus(F.conv2d(x, *second, stride=2))
    assert x.shape == (2, 16, 7, 7)
    x = x.flatten(1)
    for weight, bias in linears:
        x = F.linear(x, weight, bias)
    torch.testing.assert_close(network(images(2, CIFAR)), x)


def test_three_conv_three_fc_written_out() -> None:
    network = models.create("three_conv_three_fc", activation="relu")
    x = images(2, CIFAR)
    parts = weights(network)
    for (weight, bias), padding in zip(parts[:3], (2, 2, 1), strict=True):
        x = F.max_pool2d(F.conv2d(x, weight, bias, padding=padding).relu(), 3, 2)
    assert x.shape == (2, 128, 2, 2)
    x = F.linear(F.linear(x.flatten(1), *parts[3]).relu(), *parts[4]).relu()
    torch.testing.assert_close(network(images(2, CIFAR)), F.linear(x, *parts[5]))


def test_alexnet_written_out() -> None:
    network = models.create("alexnet")
    x = images(2, CIFAR)
    *convolutions, last = weights(network)
    settings = [(4, 5), (1, 2), (1, 1), (1, 1), (1, 1)]
    for place, (weight, bias) in enumerate(convolutions):
        stride, padding = settings[place]
        x = F.softplus(F.conv2d(x, weight, bias, stride, padding))
        x = F.max_pool2d(x, 2) if place in (0, 1, 4) else x
    assert x.shape == (2, 128, 1, 1)
    torch.testing.assert_close(network(images(2, CIFAR)), F.linear(x.flatten(1), *last))


def test_vgg_pools_after_each_of_its_five_stages() -> None:
    network = models.create("vgg", width=2).eval()
    shapes = []
    for part in network.modules():
        if isinstance(part, nn.MaxPool2d):
            part.register_forward_hook(lambda _, args, out: shapes.append(tuple(out.shape[1:])))
    network(images(1, CIFAR))
    assert shapes == [(2, 16, 16), (4, 8, 8), (8, 4, 4), (16, 2, 2), (16, 1, 1)]
    kinds = [type(part).__name__ for part in network.features]
    assert kinds[:3] == ["Conv2d", "BatchNorm2d", "ReLU"]


def test_a_network_can_be_described_without_computing() -> None:
    assert "features.0.weight" in architecture("cifar10", "vgg", {"width": 2}).shapes


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fully_connected", {"hidden": [300, 0]}, r"hidden\[1\] is 0: give a whole number"),
        ("fully_connected", {"hidden": 300}, "hidden is 300: give a list of whole numbers"),
        ("fully_connected", {"activation": "rleu"}, "did you mean 'relu'"),
        ("fully_connected", {"batch_norm": "no"}, "batch_norm is 'no': give true or false"),
        ("fully_connected", {"input_shape": [28, 28]}, "input_shape is"),
        ("lenet5_caffe", {"filters": [20]}, r"filters is \[20\]: give two numbers"),
        ("lenet5_caffe", {"input_shape": [1, 12, 12]}, "12 × 12 pixels are too small"),
        ("conv_net", {"scale": 0}, "scale is 0: give a number above 0"),
        ("conv_net", {"scale": 1.01}, "scale is 1.01: give a number above 0 with a whole number"),
        ("conv_net", {"scale": True}, "scale is True"),
        ("conv_net", {"input_shape": [3, 6, 6]}, "6 × 6 pixels are too small"),
        ("vgg", {"width": -1}, "width is -1"),
        ("vgg", {"num_classes": 0}, "num_classes is 0"),
        ("alexnet", {"activation": "soft"}, "did you mean 'softplus'"),
        ("three_conv_three_fc", {"input_shape": [3, 16, 16]}, "16 × 16 pixels are too small"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value)),
)
def test_wrong_options_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        models.create(name, **options)
    assert str(caught.value).count("\n") == 0
