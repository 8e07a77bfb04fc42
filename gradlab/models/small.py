"""Small binarized classifiers of images: a multilayer perceptron and LeNet.

Both quantize what comes out of BatchNorm, leave their first and last layer in full precision (as
XNOR-Net does, Rastegari et al. 2016, arXiv 1603.05279) and binarize the layers between.

>>> XNORMLP(width=16, depth=2).layers()
('hidden.0.linear.weight', 'hidden.1.linear.weight')
>>> LeNet(width=4).layers()
('features.4.weight', 'classifier.0.weight', 'classifier.3.weight')
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from gradlab.binary.layers import BinaryActivation, BinaryConv2d, BinaryLinear, Choice
from gradlab.models.networks import Network, check_sizes, image_shape


class XNORMLP(Network):
    """A full-precision layer, ``depth`` binary layers, and a full-precision head.

    Args:
        width: neurons of every hidden layer.
        depth: number of binary layers (width × width each).
        num_classes: number of logits.
        weight: "binary", or "real" for binary activations alone.
        scaling: α of binary weights: "channel", "layer", "learned" or "none".
        activation: "binary", or another of :mod:`gradlab.binary.activations`.
        surrogate: derivative of the binary activations.
        weight_surrogate: derivative of sign(W).
        input_shape: of one image.

    Raises:
        ValueError: a size that is no whole number above zero, or an unknown word.
    """

    def __init__(
        self,
        width: int = 1024,
        depth: int = 2,
        num_classes: int = 10,
        weight: str = "binary",
        scaling: str = "none",
        activation: str = "binary",
        surrogate: Choice = "hardtanh",
        weight_surrogate: Choice = "hardtanh",
        input_shape: Sequence[int] = (1, 28, 28),
    ) -> None:
        super().__init__()
        check_sizes(width=width, depth=depth, num_classes=num_classes)
        self.input_shape = image_shape(input_shape)
        self.num_classes = num_classes
        self.first = nn.Linear(math.prod(self.input_shape), width, bias=False)
        self.norm = nn.BatchNorm1d(width)
        self.hidden = nn.Sequential(
            *(
                _Hidden(
                    BinaryActivation(surrogate, activation),
                    BinaryLinear(
                        width, width, weight=weight, scaling=scaling, surrogate=weight_surrogate
                    ),
                )
                for _ in range(depth)
            )
        )
        self.sign = BinaryActivation(surrogate, activation)
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images ``(B, C, H, W)`` to logits ``(B, num_classes)``."""
        x = self.norm(self.first(images.flatten(1)))
        logits: Tensor = self.head(self.sign(self.hidden(x)))
        return logits


class _Hidden(nn.Module):
    """Sign, binary layer, BatchNorm."""

    def __init__(self, sign: BinaryActivation, linear: BinaryLinear) -> None:
        super().__init__()
        self.sign = sign
        self.linear = linear
        self.norm = nn.BatchNorm1d(linear.weight.shape[0])

    def forward(self, x: Tensor) -> Tensor:
        """``(B, width)`` to ``(B, width)``."""
        out: Tensor = self.norm(self.linear(self.sign(x)))
        return out


class LeNet(Network):
    """LeNet-5 (LeCun et al. 1998) with its second convolution and first linear layer binary.

    Convolutions of 5 × 5 with ``width`` and 2.5 × ``width`` filters, each followed by BatchNorm
    and 2 × 2 max pooling; then layers of 20 × ``width`` and 14 × ``width`` neurons and the head.
    The first convolution and the head are in full precision.

    Args:
        width: filters of the first convolution, an even number (6 is LeNet-5).
        num_classes: number of logits.
        weight: "binary", or "real" for binary activations alone.
        scaling: α of binary weights: "channel", "layer", "learned" or "none".
        activation: "binary", or another of :mod:`gradlab.binary.activations`.
        surrogate: derivative of the binary activations.
        weight_surrogate: derivative of sign(W).
        input_shape: of one image; height and width are multiples of 4.

    Raises:
        ValueError: a size that is no whole number above zero, an odd width, images that cannot be
            halved twice, or an unknown word.
    """

    def __init__(
        self,
        width: int = 6,
        num_classes: int = 10,
        weight: str = "binary",
        scaling: str = "channel",
        activation: str = "binary",
        surrogate: Choice = "hardtanh",
        weight_surrogate: Choice = "hardtanh",
        input_shape: Sequence[int] = (1, 28, 28),
    ) -> None:
        super().__init__()
        check_sizes(width=width, num_classes=num_classes)
        if width % 2:
            raise ValueError(
                f"width is {width}, and the second convolution has 2.5 times as many filters: "
                "give an even number."
            )
        self.input_shape = image_shape(input_shape)
        channels, height, breadth = self.input_shape
        if height % 4 or breadth % 4:
            raise ValueError(
                f"images of {height} × {breadth} pixels cannot be halved twice: pad or resize them "
                "to multiples of 4."
            )
        self.num_classes = num_classes
        filters, last = 5 * width // 2, 14 * width
        convolution = partial(
            BinaryConv2d, weight=weight, scaling=scaling, surrogate=weight_surrogate
        )
        linear = partial(BinaryLinear, weight=weight, scaling=scaling, surrogate=weight_surrogate)
        self.features = nn.Sequential(
            nn.Conv2d(channels, width, 5, padding=2, bias=False),
            nn.MaxPool2d(2),
            nn.BatchNorm2d(width),
            BinaryActivation(surrogate, activation),
            convolution(width, filters, 5),
            nn.MaxPool2d(2),
            nn.BatchNorm2d(filters),
            BinaryActivation(surrogate, activation),
        )
        inputs = filters * (height // 4) * (breadth // 4)
        self.classifier = nn.Sequential(
            linear(inputs, 20 * width),
            nn.BatchNorm1d(20 * width),
            BinaryActivation(surrogate, activation),
            linear(20 * width, last),
            nn.BatchNorm1d(last),
            BinaryActivation(surrogate, activation),
        )
        self.head = nn.Linear(last, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images ``(B, C, H, W)`` to logits ``(B, num_classes)``."""
        logits: Tensor = self.head(self.classifier(self.features(images).flatten(1)))
        return logits
