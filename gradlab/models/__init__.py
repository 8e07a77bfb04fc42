"""Network architectures: the teacher-student network as a pure function, and trainable classifiers.

``mlp`` is a pure function of a parameter dict, for the fused kernels; the others are an
``nn.Module`` each (:class:`gradlab.models.networks.Network`), with binarized layers or, those of
:mod:`gradlab.models.plain`, in full precision.

>>> create("mlp", num_dim=4, depth=2).layer_names
('layers.0.weight', 'layers.1.weight', 'layers.2.weight')
>>> create("xnor_resnet18", width=8).input_shape
(3, 32, 32)
"""

from __future__ import annotations

from typing import Any

from gradlab._registry import Registry
from gradlab.models.mlp import BinarizedMLP
from gradlab.models.networks import Network
from gradlab.models.plain import (
    VGG,
    AlexNet,
    ConvNet,
    FullyConnected,
    LeNet5Caffe,
    ThreeConvThreeFC,
)
from gradlab.models.small import XNORMLP, LeNet
from gradlab.models.xnor_resnet import XNORResNet18

REGISTRY: Registry[Any] = Registry("model", group="gradlab.models")
REGISTRY.register("mlp")(BinarizedMLP)
REGISTRY.register("lenet")(LeNet)
REGISTRY.register("xnor_mlp")(XNORMLP)
REGISTRY.register("xnor_resnet18")(XNORResNet18)
REGISTRY.register("alexnet")(AlexNet)
REGISTRY.register("conv_net")(ConvNet)
REGISTRY.register("fully_connected")(FullyConnected)
REGISTRY.register("lenet5_caffe")(LeNet5Caffe)
REGISTRY.register("three_conv_three_fc")(ThreeConvThreeFC)
REGISTRY.register("vgg")(VGG)

__all__ = [
    "REGISTRY",
    "VGG",
    "XNORMLP",
    "AlexNet",
    "BinarizedMLP",
    "ConvNet",
    "FullyConnected",
    "LeNet",
    "LeNet5Caffe",
    "Network",
    "ThreeConvThreeFC",
    "XNORResNet18",
    "create",
    "names",
]


def names() -> list[str]:
    """The registered models, sorted."""
    return REGISTRY.names()


def create(name: str, **options: Any) -> Any:
    """The model called ``name``: a :class:`Network`, or for "mlp" a :class:`BinarizedMLP`.

    Raises:
        ValueError: unknown name or option, or an option out of range.

    >>> create("xnor_resnet")
    Traceback (most recent call last):
    ValueError: unknown model 'xnor_resnet': did you mean 'xnor_resnet18'? Valid: alexnet, ...
    """
    return REGISTRY.create(name, **options)
