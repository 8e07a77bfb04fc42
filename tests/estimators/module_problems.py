"""Small modules and the least of an objective around them, for estimators that follow a graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradlab.binary import sign
from gradlab.binary.layers import BinaryActivation, BinaryLinear
from gradlab.evaluation import Params
from gradlab.evaluation.module.evaluator import ModuleEvaluator
from gradlab.evaluation.module.noisy import NoisyPasses
from gradlab.evaluation.module.program import Program, mean_squared_error
from tests.estimators import referees


class Squares:
    """The mean squared error of a module; noise on the parameters that it is asked about alone."""

    def __init__(
        self, model: nn.Module, inputs: Tensor, targets: Tensor, memory_bytes: int = 2**28
    ) -> None:
        self.evaluator = ModuleEvaluator(model, inputs, targets, "mse", memory_bytes)

    def noisy_passes(
        self, params: Params, names: Sequence[str], sigma: float, noise: str
    ) -> NoisyPasses:
        own = self.evaluator.params
        base = {name: w for name, w in own.items() if name not in params}
        return NoisyPasses(self.evaluator, params, names, sigma=sigma, noise=noise, base=base)


def layers_as_module(
    num_dim: int, depth: int, activation: str, weight: str
) -> tuple[referees.Layers, Params, Squares, Params]:
    """A layered problem in float64, and the same network as a module, each with its parameters."""
    layered, params = referees.problem(num_dim, depth, activation, weight, examples=20)
    layered.inputs, layered.targets = layered.inputs.double(), layered.targets.double()
    params = {name: w.double() for name, w in params.items()}
    parts: list[nn.Module] = []
    for _ in range(depth):
        parts.append(BinaryLinear(num_dim, num_dim, weight=weight, scaling="none"))
        parts.append(BinaryActivation(activation=activation))
    model = nn.Sequential(*parts, BinaryLinear(num_dim, 1, weight="real")).double()
    names = [name for name, _ in model.named_parameters()]
    own = dict(zip(names, params.values(), strict=True))
    return layered, params, Squares(model, layered.inputs, layered.targets), own


class Residual(nn.Module):
    """A binarized convolutional network with all that such networks are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.third = nn.Conv2d(8, 8, 3, stride=2, groups=2, bias=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = x + F.conv2d(torch.sign(x - 0.3), sign(self.second.weight) * 0.1, None, 1, 1)
        x = F.avg_pool2d(sign(self.third(torch.tanh(x))), 3)
        outputs: Tensor = self.head(x.view(x.size(0), -1))
        return outputs


def images(size: int, seed: int = 0, side: int = 8) -> Tensor:
    """Neighbouring pixels are alike, as in images."""
    x = torch.randn(size, 1, side, side, generator=torch.Generator().manual_seed(seed))
    return x + 2 * F.avg_pool2d(x, 3, 1, 1)


def drawn_outputs(
    model: nn.Module, inputs: Tensor, names: Sequence[str], sigma: float, draws: int
) -> Tensor:
    """Outputs ``(draws, B, K)`` of a module with noise on some of its parameters."""
    program = Program(model, mean_squared_error)
    generator = torch.Generator().manual_seed(0)

    def one(noise: Params) -> Tensor:
        moved = {name: program.params[name] + noise[name] for name in names}
        found: Tensor = torch.func.functional_call(
            model, {**program.params, **program.buffers, **moved}, (inputs,)
        )
        return found.flatten(1)

    noise: dict[str, Any] = {
        name: sigma * torch.randn(draws, *program.params[name].shape, generator=generator).to(
            program.params[name]
        )
        for name in names
    }  # fmt: skip
    with torch.no_grad():
        found: Tensor = torch.func.vmap(one, chunk_size=500)(noise)
    return found
