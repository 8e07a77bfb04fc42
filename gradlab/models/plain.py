"""Full-precision networks: what variational dropout and Bayes by Backprop are tried on.

Features (convolutions and pooling), flattened, then a classifier of linear layers. Nothing in them
is binarized, so :meth:`Network.layers` and :meth:`Network.latent_weights` are empty, and nothing is
random: a method of :mod:`gradlab.variational` brings the noise, dropout included.

>>> network = FullyConnected()
>>> sum(parameter.numel() for parameter in network.parameters()), network.layers()
(266610, ())
>>> ConvNet(scale=1.5).classifier[0]
Linear(in_features=4704, out_features=192, bias=True)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from gradlab._registry import unknown
from gradlab.models.networks import Network, check_sizes, image_shape

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}


class _Plain(Network):
    """Features, flattened, and a classifier, which the network's own constructor makes."""

    features: nn.Sequential
    classifier: nn.Sequential

    def __init__(self, num_classes: int, input_shape: Sequence[int]) -> None:
        super().__init__()
        check_sizes(num_classes=num_classes)
        self.input_shape = image_shape(input_shape)
        self.num_classes = num_classes

    def _classify(
        self,
        hidden: Sequence[int],
        act: Callable[[], nn.Module] | None,
        norm: Callable[[int], nn.Module] | None = None,
    ) -> None:
        """A classifier of linear layers behind the features, with norms and activations, if any."""
        widths = [_size_after(self.features, self.input_shape), *hidden, self.num_classes]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            if layers and act is not None:
                layers.append(act())
            layers.append(nn.Linear(inputs, outputs))
            if norm is not None:
                layers.append(norm(outputs))
        self.classifier = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """Images ``(B, C, H, W)`` to logits ``(B, num_classes)``."""
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        return logits


class FullyConnected(_Plain):
    """Linear layers with an activation between them.

    By default LeNet-300-100 (LeCun et al. 1998), the network of MNIST's pruning literature.

    Args:
        hidden: width of each hidden layer.
        activation: "relu", "softplus" or "tanh".
        batch_norm: BatchNorm behind every linear layer, the last included, which binary weights
            need (Courbariaux et al. 2015, arXiv 1511.00363).
        affine: whether BatchNorm learns scales and shifts.
        num_classes: number of logits.
        input_shape: of one image.

    Raises:
        ValueError: a width that is no whole number above zero, or an unknown activation.
    """

    def __init__(
        self,
        hidden: Sequence[int] = (300, 100),
        activation: str = "relu",
        batch_norm: bool = False,
        affine: bool = True,
        num_classes: int = 10,
        input_shape: Sequence[int] = (1, 28, 28),
    ) -> None:
        super().__init__(num_classes, input_shape)
        _true_or_false(batch_norm=batch_norm, affine=affine)
        self.features = nn.Sequential()
        norm = partial(nn.BatchNorm1d, affine=affine) if batch_norm else None
        self._classify(_widths("hidden", hidden), _activation(activation), norm)


class LeNet5Caffe(_Plain):
    """LeNet-5 with the sizes of Caffe's example: 20 and 50 filters, 500 hidden neurons.

    Two convolutions of 5 × 5 without padding, each followed by an activation and 2 × 2 max
    pooling, then linear layers. Molchanov et al. (2017, arXiv 1701.05369) sparsify it; like theirs
    it has an activation after every layer, where Caffe has one after the first linear layer only.
    LeNet-5 proper is ``filters=(6, 16), hidden=(120, 84)``.

    Args:
        filters: of the two convolutions.
        hidden: width of each hidden linear layer.
        activation: "relu", "softplus" or "tanh".
        num_classes: number of logits.
        input_shape: of one image.

    Raises:
        ValueError: a size that is no whole number above zero, other than two convolutions, images
            that are too small, or an unknown activation.
    """

    def __init__(
        self,
        filters: Sequence[int] = (20, 50),
        hidden: Sequence[int] = (500,),
        activation: str = "relu",
        num_classes: int = 10,
        input_shape: Sequence[int] = (1, 28, 28),
    ) -> None:
        super().__init__(num_classes, input_shape)
        act = _activation(activation)
        sizes = _widths("filters", filters)
        if len(sizes) != 2:
            raise ValueError(f"filters is {list(filters)!r}: give two numbers, such as [20, 50].")
        first, second = sizes
        self.features = nn.Sequential(
            nn.Conv2d(self.input_shape[0], first, 5), act(), nn.MaxPool2d(2),
            nn.Conv2d(first, second, 5), act(), nn.MaxPool2d(2),
        )  # fmt: skip
        self._classify(_widths("hidden", hidden), act)


class ConvNet(_Plain):
    """The network on which dropout methods are compared on CIFAR-10.

    Two convolutions of 3 × 3 with stride 2 and no padding (32·scale and 64·scale filters, softplus
    after each), which leave 7 × 7 of 32 × 32 pixels, then linear layers 64·scale·49 → 128·scale →
    128·scale → classes **without** activation between them.

    Args:
        scale: multiplies all widths; the comparison has 1.0, 1.5 and 2.0.
        num_classes: number of logits.
        input_shape: of one image.

    Raises:
        ValueError: a scale that makes no whole number of filters, a size that is no whole number
            above zero, or images that are too small.
    """

    def __init__(
        self,
        scale: float = 1.0,
        num_classes: int = 10,
        input_shape: Sequence[int] = (3, 32, 32),
    ) -> None:
        super().__init__(num_classes, input_shape)
        number = isinstance(scale, int | float) and not isinstance(scale, bool)
        if not (number and 0 < scale < math.inf and (32 * scale).is_integer()):
            raise ValueError(
                f"scale is {scale!r}: give a number above 0 with a whole number of 32·scale "
                "filters, such as 1.5."
            )
        unit = int(32 * scale)
        self.features = nn.Sequential(
            nn.Conv2d(self.input_shape[0], unit, 3, stride=2), nn.Softplus(),
            nn.Conv2d(unit, 2 * unit, 3, stride=2), nn.Softplus(),
        )  # fmt: skip
        self._classify([4 * unit, 4 * unit], None)


class VGG(_Plain):
    """VGG for CIFAR-10 (Zagoruyko 2015), with BatchNorm and without dropout.

    Thirteen convolutions of 3 × 3 in five stages of 1, 2, 4, 8 and 8 times ``width`` filters, each
    followed by BatchNorm and ReLU, each stage by 2 × 2 max pooling (rounded up, so that 28 × 28
    pixels pass too); then a hidden layer of 8·width neurons with BatchNorm and ReLU, and the head.
    Molchanov et al. (2017, arXiv 1701.05369) sparsify it; their scale k is ``width`` / 64.

    Args:
        width: filters of the first stage.
        num_classes: number of logits.
        input_shape: of one image.

    Raises:
        ValueError: a size that is no whole number above zero.
    """

    def __init__(
        self,
        width: int = 64,
        num_classes: int = 10,
        input_shape: Sequence[int] = (3, 32, 32),
    ) -> None:
        super().__init__(num_classes, input_shape)
        check_sizes(width=width)
        layers: list[nn.Module] = []
        channels = self.input_shape[0]
        for times, convolutions in ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3)):
            for _ in range(convolutions):
                layers += [
                    nn.Conv2d(channels, times * width, 3, padding=1),
                    nn.BatchNorm2d(times * width, eps=1e-3),
                    nn.ReLU(),
                ]
                channels = times * width
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(_size_after(self.features, self.input_shape), channels),
            nn.BatchNorm1d(channels),
            nn.ReLU(),
            nn.Linear(channels, num_classes),
        )


class AlexNet(_Plain):
    """AlexNet for images of 32 × 32 pixels, as Shridhar et al. (2019, arXiv 1901.02731) shrink it.

    Five convolutions of 64, 192, 384, 256 and 128 filters (11 × 11 with stride 4, 5 × 5, then
    3 × 3), an activation after each, 2 × 2 max pooling after the first, second and fifth (rounded
    up, which changes nothing for 32 × 32 and lets 28 × 28 pass), and one linear layer.

    Args:
        activation: "softplus", "relu" or "tanh".
        num_classes: number of logits.
        input_shape: of one image.

    Raises:
        ValueError: a size that is no whole number above zero, or an unknown activation.
    """

    def __init__(
        self,
        activation: str = "softplus",
        num_classes: int = 10,
        input_shape: Sequence[int] = (3, 32, 32),
    ) -> None:
        super().__init__(num_classes, input_shape)
        act = _activation(activation)
        self.features = nn.Sequential(
            nn.Conv2d(self.input_shape[0], 64, 11, stride=4, padding=5), act(),
            nn.MaxPool2d(2, ceil_mode=True),
            nn.Conv2d(64, 192, 5, padding=2), act(),
            nn.MaxPool2d(2, ceil_mode=True),
            nn.Conv2d(192, 384, 3, padding=1), act(),
            nn.Conv2d(384, 256, 3, padding=1), act(),
            nn.Conv2d(256, 128, 3, padding=1), act(),
            nn.MaxPool2d(2, ceil_mode=True),
        )  # fmt: skip
        self._classify([], None)


class ThreeConvThreeFC(_Plain):
    """Three convolutions and three linear layers (Shridhar et al. 2019, arXiv 1901.02731).

    Convolutions of 5 × 5 with 32, 64 and 128 filters, an activation and 3 × 3 max pooling of stride
    2 after each, then two hidden layers of 1,000 neurons and the head.

    Args:
        activation: "softplus", "relu" or "tanh".
        num_classes: number of logits.
        input_shape: of one image.

    Raises:
        ValueError: a size that is no whole number above zero, images that are too small, or an
            unknown activation.
    """

    def __init__(
        self,
        activation: str = "softplus",
        num_classes: int = 10,
        input_shape: Sequence[int] = (3, 32, 32),
    ) -> None:
        super().__init__(num_classes, input_shape)
        act = _activation(activation)
        self.features = nn.Sequential(
            nn.Conv2d(self.input_shape[0], 32, 5, padding=2), act(), nn.MaxPool2d(3, 2),
            nn.Conv2d(32, 64, 5, padding=2), act(), nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 128, 5, padding=1), act(), nn.MaxPool2d(3, 2),
        )  # fmt: skip
        self._classify([1000, 1000], act)


def _activation(name: str) -> Callable[[], nn.Module]:
    if name not in ACTIVATIONS:
        raise ValueError(unknown("activation", str(name), ACTIVATIONS))
    return ACTIVATIONS[name]


def _widths(name: str, given: object) -> list[int]:
    """Whole numbers above zero, in a list; anything else is refused in one sentence."""
    if not isinstance(given, list | tuple):
        raise ValueError(f"{name} is {given!r}: give a list of whole numbers, such as [300, 100].")
    check_sizes(**{f"{name}[{place}]": width for place, width in enumerate(given)})
    return list(given)


def _true_or_false(**given: object) -> None:
    for name, value in given.items():
        if not isinstance(value, bool):
            raise ValueError(f"{name} is {value!r}: give true or false.")


@torch.no_grad()
def _size_after(features: nn.Module, shape: tuple[int, int, int]) -> int:
    """The number of features of one image, found by sending one through."""
    features.eval()  # so that statistics of BatchNorm do not see it
    try:
        found = features(torch.zeros(1, *shape)).numel()
    except RuntimeError:
        raise ValueError(
            f"images of {shape[1]} × {shape[2]} pixels are too small for this network's "
            "convolutions: pad or enlarge them."
        ) from None
    features.train()
    return int(found)
