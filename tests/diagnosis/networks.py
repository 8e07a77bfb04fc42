"""Small networks with signs, written by hand and of gradlab's own layers."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradlab import models


class MLP(nn.Module):
    """Two sign layers with BatchNorm, the second beside a residual, and a real output."""

    def __init__(self, sign: Callable[[Tensor], Tensor] = torch.sign, width: int = 6) -> None:
        super().__init__()
        self.sign = sign
        self.first = nn.Linear(5, width)
        self.norm = nn.BatchNorm1d(width)
        self.second = nn.Linear(width, width, bias=False)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x))
        x = x + self.second(self.sign(x))
        out: Tensor = self.head(self.sign(x))
        return out


class ConvNet(nn.Module):
    """Two convolutions, signs of both kinds, BatchNorm and a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 3, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(3)
        self.conv2 = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(3)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.conv1(x))
        x = self.norm2(self.conv2(x.sign())) + x
        x = F.avg_pool2d(torch.where(x >= 0, 1.0, -1.0).to(x.dtype), 2)
        out: Tensor = self.head(x.flatten(1))
        return out


def settled(model: nn.Module, inputs: Tensor) -> nn.Module:
    """In evaluation mode, with statistics from the inputs."""
    with torch.no_grad():
        for _ in range(5):
            model(inputs)
    return model.eval()


def example(kind: str, size: int = 96) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """A network of a kind and a batch that it could learn."""
    torch.manual_seed(3)
    shape = {"mlp": (5,), "conv": (1, 4, 4), "xnor": (1, 4, 4)}[kind]
    inputs = torch.randn(size, *shape)
    teacher = torch.randn(inputs[0].numel(), 3)
    model: nn.Module
    if kind == "mlp":
        model = MLP()
    elif kind == "conv":
        model = ConvNet()
    else:
        model = models.create("xnor_mlp", width=6, depth=1, num_classes=3, input_shape=(1, 4, 4))
    return settled(model, inputs), (inputs, (inputs.flatten(1) @ teacher).argmax(1))
