"""The trainable networks: their shapes, their blocks written out by hand, what they refuse."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gradlab import models
from gradlab.evaluation.module import ModuleEvaluator
from gradlab.models.xnor_resnet import BLOCKS


def _images(number: int = 2, shape: tuple[int, ...] = (3, 16, 16)) -> torch.Tensor:
    return torch.randn(number, *shape, generator=torch.Generator().manual_seed(0))


def _settled(network: nn.Module, images: torch.Tensor) -> nn.Module:
    """In evaluation mode, with the statistics and random affine maps of a network in use."""
    generator = torch.Generator().manual_seed(1)
    for part in network.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            part.weight.data = 0.5 + torch.rand(part.weight.shape, generator=generator)
            part.bias.data = torch.randn(part.bias.shape, generator=generator) / 2
    network.train()
    network(images)
    return network.eval()


@pytest.mark.parametrize("block", BLOCKS)
def test_sixteen_convolutions_see_binary_inputs(block):
    network = models.create("xnor_resnet18", width=2, block=block, input_shape=(3, 16, 16))
    seen = []
    for layer in network.modules():
        if type(layer).__name__ == "BinaryConv2d":
            layer.register_forward_pre_hook(lambda layer, args: seen.append(args[0]))
    network(_images())
    # of xnor, three are halved into two each
    assert len(seen) == (19 if block == "xnor" else 16) == len(network.layers())
    assert all(set(x.unique().tolist()) <= {-1.0, 0.0, 1.0} for x in seen)
    assert sum((x == 0).any().item() for x in seen) <= 3  # a moved image is padded with a zero row


@pytest.mark.parametrize("block", BLOCKS)
def test_channels_double_where_images_are_halved(block):
    network = models.create("xnor_resnet18", width=4, block=block, input_shape=(3, 16, 16))
    shapes = []
    for cell in network.cells:
        cell.register_forward_hook(lambda cell, args, out: shapes.append(tuple(out.shape[1:])))
    network(_images())
    assert shapes == [
        (4, 16, 16), (4, 16, 16), (8, 8, 8), (8, 8, 8),
        (16, 4, 4), (16, 4, 4), (32, 2, 2), (32, 2, 2),
    ]  # fmt: skip


def _sign(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x >= 0, 1.0, -1.0)


def _norm(norm: nn.BatchNorm2d, x: torch.Tensor) -> torch.Tensor:
    shape = (1, -1, 1, 1)
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return (x - norm.running_mean.view(shape)) * scale.view(shape) + norm.bias.view(shape)


def _binary(weight: torch.Tensor) -> torch.Tensor:
    return _sign(weight) * weight.abs().mean((1, 2, 3), keepdim=True)


def test_an_xnor_cell_of_stride_one_is_what_the_protocol_says():
    network = models.create("xnor_resnet18", width=4, input_shape=(3, 16, 16))
    cell = _settled(network, _images(8)).cells[0]
    x = torch.randn(2, 4, 16, 16)
    inner = x
    for op in (cell.first, cell.second):
        y = _norm(op.norm, inner)
        z = F.conv2d(_sign(y), _binary(op.convolution.weight), padding=1)
        inner = F.relu(z + y) + inner
    torch.testing.assert_close(cell(x), inner, rtol=1e-4, atol=1e-5)


def test_an_xnor_cell_of_stride_two_is_what_the_protocol_says():
    network = models.create("xnor_resnet18", width=4, input_shape=(3, 16, 16))
    cell = _settled(network, _images(8)).cells[2]
    x = torch.randn(2, 4, 16, 16)
    y = _norm(cell.first.norm, x)
    b = _sign(y)
    moved = torch.zeros_like(b)
    moved[:, :, :-1, :-1] = b[:, :, 1:, 1:]
    even = F.conv2d(b, _binary(cell.first.even.weight), stride=2, padding=1)
    odd = F.conv2d(moved, _binary(cell.first.odd.weight), stride=2, padding=1)
    half = y.reshape(2, 4, 8, 2, 8, 2).mean((3, 5))
    op1 = F.relu(torch.cat((even, odd), 1) + torch.cat((half, half), 1))
    skip = F.relu(_norm(cell.skip[1], F.conv2d(x, cell.skip[0].weight, stride=2)))
    inner = op1 + skip
    y2 = _norm(cell.second.norm, inner)
    op2 = F.relu(F.conv2d(_sign(y2), _binary(cell.second.convolution.weight), padding=1) + y2)
    torch.testing.assert_close(cell(x), op2 + inner, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("number", [0, 2], ids=["stride1", "stride2"])
def test_a_bireal_cell_has_a_shortcut_around_every_convolution(number):
    network = models.create("xnor_resnet18", width=4, block="bireal", input_shape=(3, 16, 16))
    cell = _settled(network, _images(8)).cells[number]
    x = torch.randn(2, 4, 16, 16)
    stride = 2 if number else 1
    shortcut = x
    if number:
        pooled = x.reshape(2, 4, 8, 2, 8, 2).mean((3, 5))
        shortcut = _norm(cell.shortcut[2], F.conv2d(pooled, cell.shortcut[1].weight))
    z = F.conv2d(_sign(x), _binary(cell.convolution1.weight), stride=stride, padding=1)
    inner = _norm(cell.norm1, z) + shortcut
    z = F.conv2d(_sign(inner), _binary(cell.convolution2.weight), padding=1)
    torch.testing.assert_close(cell(x), _norm(cell.norm2, z) + inner, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("number", [0, 2], ids=["stride1", "stride2"])
def test_a_bmxnet_cell_has_one_shortcut_and_no_scale(number):
    network = models.create("xnor_resnet18", width=4, block="bmxnet", input_shape=(3, 16, 16))
    cell = _settled(network, _images(8)).cells[number]
    x = torch.randn(2, 4, 16, 16)
    stride = 2 if number else 1
    shortcut = x
    if number:
        shortcut = _norm(cell.shortcut[1], F.conv2d(x, cell.shortcut[0].weight, stride=2))
    z = F.conv2d(_sign(x), _sign(cell.convolution1.weight), stride=stride, padding=1)
    z = F.conv2d(_sign(_norm(cell.norm1, z)), _sign(cell.convolution2.weight), padding=1)
    torch.testing.assert_close(cell(x), _norm(cell.norm2, z) + shortcut, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *(
            ("xnor_resnet18", {"width": 2, "block": block, "input_shape": (3, 16, 16)})
            for block in BLOCKS
        ),
        ("xnor_mlp", {"width": 8, "input_shape": (3, 16, 16)}),
        ("lenet", {"width": 2, "input_shape": (3, 16, 16)}),
    ],
    ids=[*BLOCKS, "mlp", "lenet"],
)
@pytest.mark.parametrize("weight", ["binary", "real"])
def test_every_network_learns_through_every_layer(name, options, weight):
    torch.manual_seed(0)
    network = models.create(name, num_classes=3, weight=weight, **options)
    logits = network(network.check(_images(8)))
    assert logits.shape == (8, 3)
    F.cross_entropy(logits, torch.arange(8) % 3).backward()
    parameters = dict(network.named_parameters())
    assert set(network.layers()) <= set(parameters)
    assert all(parameters[layer].grad.abs().sum() > 0 for layer in network.layers())
    latent = set(network.layers()) if weight == "binary" else set()
    assert set(network.latent_weights()) == latent


@pytest.mark.parametrize("weight", ["binary", "real"])
@pytest.mark.parametrize("surrogate", ["hardtanh", "ede"])
def test_populations_of_a_resnet_are_traced_and_batched(weight, surrogate):
    torch.manual_seed(0)
    network = models.create(
        "xnor_resnet18", width=2, weight=weight, surrogate=surrogate, input_shape=(3, 16, 16)
    )
    images, labels = _images(4), torch.arange(4)
    evaluator = ModuleEvaluator(_settled(network, images), images, labels)
    assert evaluator.path == "traced graph, prefixes cached, members batched"
    own = F.cross_entropy(network(images), labels)
    stacked = {name: w[None] for name, w in evaluator.params.items()}
    torch.testing.assert_close(
        evaluator.losses(stacked)[0].float(), own.detach(), rtol=1e-5, atol=0
    )


def test_defaults_are_the_protocols():
    network = models.create("xnor_resnet18", width=2)
    op = network.cells[0].first
    assert op.sign.surrogate.threshold == 1.3
    assert op.convolution.scaling == "channel"
    assert (
        models.create("xnor_resnet18", width=2, block="bmxnet").cells[0].convolution1.scaling
        == "none"
    )
    full = sum(p.numel() for p in models.create("xnor_resnet18", width=64).parameters())
    assert 10e6 < full < 12e6


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("xnor_resnet18", {"width": 0}, "width is 0"),
        ("xnor_resnet18", {"width": 12.5}, "width is 12.5"),
        ("xnor_resnet18", {"block": "birael"}, "did you mean 'bireal'"),
        ("xnor_resnet18", {"input_shape": (1, 28, 28)}, "28 × 28 pixels cannot be halved three"),
        ("xnor_resnet18", {"input_shape": (32, 32)}, "input_shape is"),
        ("xnor_resnet18", {"surrogate": "stee"}, "did you mean 'ste"),
        ("xnor_resnet18", {"weight_surrogate": "stee"}, "did you mean 'ste"),
        ("lenet", {"width": 5}, "2.5 times as many filters: give an even number"),
        ("lenet", {"input_shape": (1, 27, 28)}, "cannot be halved twice"),
        ("xnor_mlp", {"depth": 0}, "depth is 0"),
        ("xnor_mlp", {"num_classes": -1}, "num_classes is -1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value)),
)
def test_wrong_options_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        models.create(name, **options)


def test_images_of_another_size_are_refused():
    network = models.create("lenet", width=2)
    with pytest.raises(
        ValueError, match=r"images have shape \(3, 32, 32\), and the network takes \(1, 28, 28\)"
    ):
        network.check(torch.zeros(1, 3, 32, 32))
