r"""XNOR-ResNet18: a residual network whose sixteen 3 × 3 convolutions have binary inputs.

A full-precision 3 × 3 stem, four stages of two cells of width × (1, 2, 4, 8) channels, a
full-precision linear head. A cell has two binary convolutions; stages but the first begin with
stride 2. Three kinds of cell:

``xnor``
    op(x) = ReLU(α·conv(sign(y)) + shortcut(y)) with y = BatchNorm(x), and of two ops
    inner = op₁(x) + skip(x), out = op₂(inner) + inner. Where the stride is 2, op₁ joins two
    convolutions of half the channels, the second of them on sign(y) moved by a pixel, its shortcut
    averages 2 × 2 pixels and repeats the channels, and skip is a full-precision 1 × 1
    convolution, BatchNorm and ReLU.
``bireal``
    x + BatchNorm(conv(sign(x))) for each convolution (Bi-Real Net, Liu et al. 2018, arXiv
    1808.00278); where the stride is 2, the shortcut is an average of 2 × 2 pixels, a
    full-precision 1 × 1 convolution and BatchNorm.
``bmxnet``
    sign, convolution, BatchNorm, twice, beside a shortcut, as in BMXNet (Yang et al. 2017, arXiv
    1705.09864), without ReLU and without scale; where the stride is 2, the shortcut is a
    full-precision 1 × 1 convolution of stride 2 and BatchNorm.

>>> network = XNORResNet18(width=8)
>>> len(network.layers()), network(torch.zeros(2, 3, 32, 32)).shape
(19, torch.Size([2, 10]))

(Sixteen convolutions are nineteen weights, since each of the three halved ones has two.)
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradlab._registry import unknown
from gradlab.binary.layers import BinaryActivation, BinaryConv2d, Choice
from gradlab.models.networks import Network, check_sizes, image_shape

BLOCKS = ("bireal", "bmxnet", "xnor")
_STAGES = (1, 2, 4, 8)


class XNORResNet18(Network):
    """The network.

    Args:
        width: channels of the first stage.
        num_classes: number of logits.
        block: "xnor", "bireal" or "bmxnet", see the module's docstring.
        weight: "binary", or "real" for binary activations alone.
        scaling: α of binary weights: "channel", "layer", "learned" or "none"; left out, it is
            "channel" for xnor and bireal, and "none" for bmxnet.
        activation: "binary", or another of :mod:`gradlab.binary.activations` ("full" is the
            network that is not quantized at all).
        surrogate: derivative of the binary activations, a name or a mapping of name and options.
        weight_surrogate: derivative of sign(W).
        input_shape: of one image; height and width are multiples of 8.

    Raises:
        ValueError: a size that is no whole number above zero, images that stride 2 does not
            divide thrice, or an unknown word.
    """

    def __init__(
        self,
        width: int = 64,
        num_classes: int = 10,
        block: str = "xnor",
        weight: str = "binary",
        scaling: str | None = None,
        activation: str = "binary",
        surrogate: Choice | None = None,
        weight_surrogate: Choice = "hardtanh",
        input_shape: Sequence[int] = (3, 32, 32),
    ) -> None:
        super().__init__()
        check_sizes(width=width, num_classes=num_classes)
        if block not in BLOCKS:
            raise ValueError(unknown("block", str(block), BLOCKS))
        self.input_shape = image_shape(input_shape)
        if self.input_shape[1] % 8 or self.input_shape[2] % 8:
            raise ValueError(
                f"images of {self.input_shape[1]} × {self.input_shape[2]} pixels cannot be halved "
                "three times: pad or resize them to multiples of 8."
            )
        self.num_classes = num_classes
        self.width = width
        cell = {"xnor": _XNORCell, "bireal": _BiRealCell, "bmxnet": _BMXNetCell}[block]
        if scaling is None:
            scaling = "none" if block == "bmxnet" else "channel"
        if surrogate is None:
            surrogate = {"name": "hardtanh", "threshold": 1.3}
        convolution = partial(
            BinaryConv2d, weight=weight, scaling=scaling, surrogate=weight_surrogate
        )
        quantize = partial(BinaryActivation, surrogate, activation)
        self.stem = nn.Conv2d(self.input_shape[0], width, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(width)
        cells: list[nn.Module] = []
        channels = width
        for stage, times in enumerate(_STAGES):
            for number in range(2):
                halve = stage > 0 and number == 0
                parts = _Parts(channels, width * times, halve, convolution, quantize)
                cells.append(cell(parts))
                channels = width * times
        self.cells = nn.Sequential(*cells)
        self.head = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images ``(B, C, H, W)`` to logits ``(B, num_classes)``."""
        x = F.relu(self.stem_norm(self.stem(images)))
        x = self.cells(x)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


class _Parts(NamedTuple):
    """What a cell, or an op of one, is made of.

    Attributes:
        inputs: channels that it takes.
        outputs: channels that it gives.
        halve: whether its stride is 2.
        convolution: makes a binary convolution of inputs, outputs and stride.
        quantize: makes an activation.
    """

    inputs: int
    outputs: int
    halve: bool
    convolution: partial[BinaryConv2d]
    quantize: partial[BinaryActivation]

    def widen(self, stride: int) -> tuple[nn.Module, nn.Module]:
        """A full-precision 1 × 1 convolution and BatchNorm, for shortcuts between stages."""
        pointwise = nn.Conv2d(self.inputs, self.outputs, 1, stride, bias=False)
        return pointwise, nn.BatchNorm2d(self.outputs)


class _XNOROp(nn.Module):
    """BatchNorm, sign, convolution, plus a shortcut from behind BatchNorm, and ReLU."""

    def __init__(self, parts: _Parts) -> None:
        super().__init__()
        inputs, outputs, halve, convolution, quantize = parts
        self.norm = nn.BatchNorm2d(inputs)
        self.sign = quantize()
        self.halve = halve
        if halve:
            self.even = convolution(inputs, outputs // 2, stride=2)
            self.odd = convolution(inputs, outputs // 2, stride=2)
        else:
            self.convolution = convolution(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, inputs, H, W)`` to ``(B, outputs, H', W')``."""
        y = self.norm(x)
        binary = self.sign(y)
        if not self.halve:
            return F.relu(self.convolution(binary) + y)
        moved = F.pad(binary, (-1, 1, -1, 1))  # one pixel up and to the left
        half = F.avg_pool2d(y, 2)
        both = torch.cat((self.even(binary), self.odd(moved)), dim=1)
        return F.relu(both + torch.cat((half, half), dim=1))


class _XNORCell(nn.Module):
    """Two ops, with a skip connection around each."""

    def __init__(self, parts: _Parts) -> None:
        super().__init__()
        self.first = _XNOROp(parts)
        self.second = _XNOROp(parts._replace(inputs=parts.outputs, halve=False))
        self.skip: nn.Module = nn.Identity()
        if parts.halve:
            self.skip = nn.Sequential(*parts.widen(stride=2), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """``(B, inputs, H, W)`` to ``(B, outputs, H', W')``."""
        inner = self.first(x) + self.skip(x)
        out: Tensor = self.second(inner) + inner
        return out


class _TwoConvolutions(nn.Module):
    """What Bi-Real and BMXNet cells are made of; their shortcuts and ways differ."""

    pooled = False

    def __init__(self, parts: _Parts) -> None:
        super().__init__()
        inputs, outputs, halve, convolution, quantize = parts
        self.sign1, self.sign2 = quantize(), quantize()
        self.convolution1 = convolution(inputs, outputs, stride=2 if halve else 1)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.convolution2 = convolution(outputs, outputs)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if halve and self.pooled:
            self.shortcut = nn.Sequential(nn.AvgPool2d(2), *parts.widen(stride=1))
        elif halve:
            self.shortcut = nn.Sequential(*parts.widen(stride=2))


class _BiRealCell(_TwoConvolutions):
    """Sign, convolution and BatchNorm, each with a shortcut around it."""

    pooled = True

    def forward(self, x: Tensor) -> Tensor:
        """``(B, inputs, H, W)`` to ``(B, outputs, H', W')``."""
        inner = self.norm1(self.convolution1(self.sign1(x))) + self.shortcut(x)
        out: Tensor = self.norm2(self.convolution2(self.sign2(inner))) + inner
        return out


class _BMXNetCell(_TwoConvolutions):
    """Sign, convolution and BatchNorm, twice, beside one shortcut."""

    def forward(self, x: Tensor) -> Tensor:
        """``(B, inputs, H, W)`` to ``(B, outputs, H', W')``."""
        inner = self.norm1(self.convolution1(self.sign1(x)))
        out: Tensor = self.norm2(self.convolution2(self.sign2(inner))) + self.shortcut(x)
        return out
