"""Layers with a mask that a test chooses, and noise that it can recognize."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gradlab.variational.base import Conv2dMap, LinearMap, StochasticLayer


class _Pruned(StochasticLayer):
    """Weight noise of a tenth of the weight; kept is what the buffer ``keep`` says."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.register_buffer("keep", torch.ones_like(self.weight, dtype=torch.bool))

    def noisy_forward(self, x: Tensor) -> Tensor:
        noise = torch.randn(self.samples, *self.weight.shape, dtype=self.weight.dtype)
        return self.apply_weights(x, self.weight * (1 + 0.1 * noise), self.bias)

    def log_alpha(self) -> Tensor:
        return torch.where(self.keep, -2.0, 5.0)

    def mask(self) -> Tensor:
        return self.keep


class PrunedLinear(_Pruned, LinearMap):
    pass


class PrunedConv2d(_Pruned, Conv2dMap):
    pass


def prune(model: nn.Module, sparsity: float, seed: int = 0) -> nn.Module:
    """Random masks; biases and statistics of BatchNorm that matter; in eval()."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, _Pruned):
            module.keep.copy_(torch.rand(module.keep.shape, generator=generator) >= sparsity)
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, generator=generator)
            nn.init.uniform_(module.running_var, 0.5, 2.0, generator=generator)
            if module.affine:
                nn.init.normal_(module.weight, generator=generator)
                nn.init.normal_(module.bias, generator=generator)
    return model.eval()


def equal_bits(first: Tensor, second: Tensor) -> bool:
    """Every bit, so that −0 is not 0 and a NaN is itself."""
    return torch.equal(first.view(torch.int32), second.view(torch.int32))
