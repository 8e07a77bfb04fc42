"""Objectives with known optima, and the methods and options that every test of the loop runs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradlab import search
from gradlab.evaluation import Params, Population
from gradlab.evaluation import population as pop
from gradlab.search import SearchMethod, SearchState


@dataclass
class Quadratic:
    """½ xᵀHx, the least that a search asks of an objective."""

    hessian: Tensor

    def loss(self, params: Params) -> Tensor:
        return self.losses({"x": params["x"][None]})[0]

    def losses(self, population: Population) -> Tensor:
        x = pop.members(population)["x"].double()
        return 0.5 * ((x @ self.hessian) * x).sum(-1)


def ellipsoid(dims: int, condition: float, *, rotated: bool) -> Quadratic:
    """Curvatures from 1 to ``condition``, along the axes or along others."""
    curvature = torch.logspace(0, math.log10(condition), dims, dtype=torch.float64)
    axes = torch.eye(dims, dtype=torch.float64)
    if rotated:
        generator = torch.Generator().manual_seed(0)
        axes = torch.linalg.qr(torch.randn(dims, dims, dtype=torch.float64, generator=generator)).Q
    return Quadratic((axes * curvature) @ axes.mT)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def started(method: SearchMethod, mean: list[float], seed: int = 0) -> SearchState:
    return method.initial({"x": torch.tensor(mean, dtype=torch.float64)}, generator=seeded(seed))


def noise_of(method: SearchMethod, state: SearchState, sigma: Any) -> Tensor:
    """The noise of the next generation, recovered from its members by arithmetic."""
    members = pop.members(method.ask(state))["x"].double()
    return (members - state.mean) / sigma


# Every method and every option that adds to the state or to how members are drawn.
METHODS: dict[str, SearchMethod] = {
    "snes": search.SNES(),
    "snes mixing": search.SNES(importance_mixing=0.1, population=12),
    "snes adaptation": search.SNES(adaptation_sampling=True),
    "snes layer-wise": search.SNES(update="layer_wise"),
    "snes parameter-wise": search.SNES(update="parameter_wise", block_size=5),
    "snes centered": search.SNES(fitness="centered", learning_rate=0.5),
    "xnes": search.XNES(),
    "xnes mixing adaptation": search.XNES(importance_mixing=0.2, adaptation_sampling=True),
    "xnes layer-wise": search.XNES(update="layer_wise"),
    "xnes parameter-wise": search.XNES(update="parameter_wise", block_size=3),
    "pgpe": search.PGPE(),
    "pgpe layer-wise": search.PGPE(update="layer_wise", normalized=False),
    "gaussian_es": search.GaussianES(population=20),
    "gaussian_es momentum": search.GaussianES(
        population=20, optimizer="sgd", optimizer_options={"momentum": 0.9}
    ),
    "metropolis": search.Metropolis(temperature=1e-3, sigma=0.03),
    "metropolis tempered": search.Metropolis(
        chains=3, temperature=[1e-3, 1e-2, 1e-1], sigma=0.03, prior_sigma=0.5
    ),
    "particles": search.Particles(population=30, temperature=1e-3, stages=8, prior_sigma=0.3),
    "particles moved": search.Particles(
        population=30, temperature=1e-3, stages=4, moves=3, prior_sigma=0.3, resample_below=1
    ),
}
