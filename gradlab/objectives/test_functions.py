r"""Functions whose smoothed loss is known in closed form: the referees of the estimators.

Parameters are ``{"x": (num_dim,)}`` in float64. For :math:`x \sim N(\mu, \sigma^2 I)` every
function here has an analytic :math:`J(\mu, \sigma) = E f(x)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradlab._registry import unknown
from gradlab.evaluation import population as pop
from gradlab.evaluation.population import Params, Population
from gradlab.models.mlp import positive_integer
from gradlab.objectives.base import (
    check_device,
    check_params,
    check_seed,
    differences_by_population,
)

# Members evaluated at a time: 32 MiB of float64.
_CHUNK_FLOATS = 2**22


@dataclass(frozen=True)
class _Function:
    """A function of ``(..., d)``, its smoothed value, where it is smallest, how it starts."""

    value: Callable[[Tensor], Tensor]
    smoothed: Callable[[Tensor, float | Tensor], Tensor]
    optimum: Callable[[int], Tensor]
    start: Callable[[np.random.Generator, int], np.ndarray]
    even: bool = False


def _curvature(x: Tensor) -> Tensor:
    return torch.linspace(1.0, 10.0, x.shape[-1], dtype=x.dtype, device=x.device)


def _rosenbrock(x: Tensor) -> Tensor:
    first, second = x[..., 0::2], x[..., 1::2]
    return ((1 - first) ** 2 + 100 * (second - first**2) ** 2).sum(-1)


def _smoothed_rosenbrock(x: Tensor, sigma: float | Tensor) -> Tensor:
    # E x^2 = m^2 + s^2 and E x^4 = m^4 + 6 m^2 s^2 + 3 s^4 for x ~ N(m, s^2).
    first, second = x[..., 0::2], x[..., 1::2]
    spread = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).expand(x.shape)
    s_1, s_2 = spread[..., 0::2], spread[..., 1::2]
    square = first**2 + s_1**2
    fourth = first**4 + 6 * first**2 * s_1**2 + 3 * s_1**4
    valley = second**2 + s_2**2 - 2 * second * square + fourth
    return ((1 - first) ** 2 + s_1**2 + 100 * valley).sum(-1)


def _integers(generator: np.random.Generator, num_dim: int) -> np.ndarray:
    return generator.integers(-10, 11, num_dim).astype(np.float64)


def _normals(generator: np.random.Generator, num_dim: int) -> np.ndarray:
    return generator.standard_normal(num_dim)


def _zeros(num_dim: int) -> Tensor:
    return torch.zeros(num_dim, dtype=torch.float64)


FUNCTIONS: dict[str, _Function] = {
    "rosenbrock": _Function(
        _rosenbrock,
        _smoothed_rosenbrock,
        lambda d: torch.ones(d, dtype=torch.float64),
        _integers,
        even=True,
    ),
    "quadratic": _Function(
        lambda x: 0.5 * (_curvature(x) * x**2).sum(-1),
        lambda x, s: 0.5 * (_curvature(x) * (x**2 + s**2)).sum(-1),
        _zeros,
        _normals,
    ),
    "linear": _Function(
        lambda x: (_curvature(x) * x).sum(-1),
        lambda x, s: (_curvature(x) * x + 0 * s).sum(-1),
        lambda d: torch.full((d,), -math.inf, dtype=torch.float64),
        _normals,
    ),
    "rastrigin": _Function(
        lambda x: (10 + x**2 - 10 * torch.cos(2 * math.pi * x)).sum(-1),
        lambda x, s: (
            10
            + x**2
            + s**2
            - 10
            * torch.cos(2 * math.pi * x)
            * torch.exp(-2 * math.pi**2 * torch.as_tensor(s, dtype=x.dtype) ** 2)
        ).sum(-1),
        _zeros,
        _normals,
    ),
}


class TestFunction:
    r"""A function with an analytic smoothed gradient.

    ``rosenbrock`` is the sum over num_dim/2 independent pairs of (1 - x)² + 100(y - x²)²,
    starting at random integers in [-10, 10]; ``quadratic`` is ½ Σ cᵢxᵢ² and ``linear`` Σ cᵢxᵢ with
    cᵢ from 1 to 10; ``rastrigin`` is Σ 10 + x² - 10 cos 2πx.

    Args:
        function: which one.
        num_dim: number of coordinates (even for rosenbrock).
        seed: unused by the function, kept so that every objective is created alike.
        batch: likewise.
        device: where parameters live.

    Raises:
        ValueError: an unknown function, or a num_dim that it does not take.

    >>> objective = TestFunction("rosenbrock", num_dim=4)
    >>> float(objective.loss({"x": torch.ones(4, dtype=torch.float64)}))
    0.0
    """

    __test__ = False  # the name is a contract; pytest would collect it

    def __init__(
        self,
        function: str,
        num_dim: int = 2,
        seed: int = 0,
        batch: int = 0,
        device: str = "cpu",
    ) -> None:
        if function not in FUNCTIONS:
            raise ValueError(unknown("test function", function, FUNCTIONS))
        positive_integer("num_dim", num_dim)
        check_seed("seed", seed)
        check_seed("batch", batch)
        self._function = FUNCTIONS[function]
        if self._function.even and num_dim % 2:
            raise ValueError(
                f"num_dim is {num_dim}: {function} takes pairs, give an even number of coordinates."
            )
        self.function = function
        self.num_dim = num_dim
        self.device = check_device(device)
        self.optimum = {"x": self._function.optimum(num_dim).to(device)}
        self._shapes = {"x": torch.Size([num_dim])}

    def initial_params(self, seed: int) -> Params:
        """The starting point of ``seed``: integers in [-10, 10] for rosenbrock, else N(0, 1)."""
        check_seed("seed", seed)
        generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(2,)))
        start = self._function.start(generator, self.num_dim)
        return {"x": torch.as_tensor(start, device=self.device)}

    def loss(self, params: Params) -> Tensor:
        """The function's value, ``()`` float64."""
        check_params(params, self._shapes)
        return self._function.value(params["x"].double())

    def losses(self, population: Population) -> Tensor:
        """The value at every member, ``(P,)`` float64, in bounded memory."""
        parts = [
            self._function.value(pop.members(pop.part(population, low, high))["x"].double())
            for low, high in pop.chunks(pop.size(population), _CHUNK_FLOATS // self.num_dim)
        ]
        return torch.cat(parts)

    def decreases(self, params: Params, population: Population) -> Tensor:
        """loss(params) - loss(member), ``(P,)`` float64."""
        return self.loss(params) - self.losses(population)

    def surrogate_gradient(self, params: Params, surrogate: Any = None, **_: Any) -> Params:
        """The true gradient: there is nothing here for a surrogate to replace."""
        check_params(params, self._shapes)
        x = params["x"].detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(self._function.value(x), x)
        return {"x": gradient}

    def coordinate_differences(self, params: Params, epsilon: float) -> Params:
        """Value differences over ±epsilon of every coordinate, float64."""
        check_params(params, self._shapes)
        chunk = max(1, _CHUNK_FLOATS // (2 * self.num_dim))
        return differences_by_population(self, params, epsilon, chunk)

    def smoothed_loss(self, params: Params, sigma: float | Tensor) -> Tensor:
        """Exact E f(x), x ~ N(params, sigma²): ``()``; sigma one number or ``(num_dim,)``."""
        return self._function.smoothed(params["x"].double(), sigma)

    def smoothed_gradient(self, params: Params, sigma: float) -> tuple[Params, Params]:
        """Exact gradients of :meth:`smoothed_loss` in the mean and in each coordinate's sigma."""
        x = params["x"].detach().double().clone().requires_grad_()
        spread = torch.full_like(x, sigma).requires_grad_()
        loss = self._function.smoothed(x, spread)
        mean, width = torch.autograd.grad(loss, (x, spread))
        return {"x": mean}, {"x": width}
