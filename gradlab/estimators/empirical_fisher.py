r"""Dividing by a Fisher information that was estimated from the same sample.

With noise rows :math:`E` (``P x d``) and fitness weights w, the empirical Fisher of μ is
:math:`E^\top E/(\sigma^2 P)` and the plain gradient :math:`E^\top w/(\sigma P)`, so the quotient is
:math:`\sigma E^{+} w`: least squares, of minimum norm where P < d. It is solved through the smaller
of the ``P x P`` Gram matrix and the ``d x d`` second-moment matrix.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gradlab.evaluation import population as pop
from gradlab.evaluation.population import GaussianPopulation

# Floats of the smaller of Gram and second-moment matrix: 1 GiB in float64.
_LARGEST = 2**27
_ROWS = 2**22


def minimum_norm(
    population: GaussianPopulation, weights: Tensor, power: int, *, per_tensor: bool, ridge: float
) -> tuple[Tensor, dict[str, int]]:
    r"""Minimum-norm solution x of :math:`D x = w`, D the noise (power 1) or noise² - 1 (power 2).

    Args:
        population: whose noise.
        weights: ``(P,)`` shaped fitness.
        power: 1 for the mean's scores, 2 for the width's.
        per_tensor: solve each tensor's block alone.
        ridge: added to the empirical Fisher, in units of the true one.

    Returns:
        x, ``(d,)`` float64, and the rank of each solved block ("all" for the joint one).

    Raises:
        ValueError: the smaller dimension is too large to solve.
    """
    ranges = pop.coordinate_ranges(population.mean)
    blocks = ranges if per_tensor else {"all": (0, pop.num_coordinates(population.mean))}
    parts, ranks = [], {}
    for name, coordinates in blocks.items():
        width = coordinates[1] - coordinates[0]
        if min(width, len(population)) ** 2 > _LARGEST:
            raise ValueError(
                f"the empirical Fisher of {width} coordinates and {len(population)} members is too "
                'large to solve: use gradient = "empirical_fisher_per_tensor" or "natural", or a '
                "smaller population."
            )
        solve = _by_gram if len(population) < width else _by_moments
        solution, ranks[name] = solve(population, coordinates, weights, power, ridge)
        parts.append(solution)
    return torch.cat(parts), ranks


def _scores(population: GaussianPopulation, coordinates: tuple[int, int], power: int) -> Tensor:
    noise = population.noise(coordinates).double()
    return noise if power == 1 else noise.square() - 1


def _true_fisher(power: int) -> float:
    return 1.0 if power == 1 else 2.0


def _solve(matrix: Tensor, right: Tensor, shift: float) -> tuple[Tensor, int]:
    """(matrix + shift I)^+ right for a symmetric positive semidefinite matrix, and the rank."""
    values, vectors = torch.linalg.eigh(matrix)
    cutoff = values[-1].clamp_min(0) * len(values) * torch.finfo(values.dtype).eps
    kept = values > cutoff
    inverse = torch.where(kept, 1 / (values + shift), torch.zeros_like(values))
    return vectors @ (inverse * (vectors.T @ right)), int(kept.sum())


def _by_gram(
    population: GaussianPopulation,
    coordinates: tuple[int, int],
    weights: Tensor,
    power: int,
    ridge: float,
) -> tuple[Tensor, int]:
    size = len(population)
    step = max(1, _ROWS // size)
    pieces = [
        (coordinates[0] + low, coordinates[0] + high)
        for low, high in pop.chunks(coordinates[1] - coordinates[0], step)
    ]
    gram = weights.new_zeros(size, size)
    for piece in pieces:
        scores = _scores(population, piece, power)
        gram += scores @ scores.T
    dual, rank = _solve(gram, weights, ridge * _true_fisher(power) * size)
    return torch.cat([_scores(population, piece, power).T @ dual for piece in pieces]), rank


def _by_moments(
    population: GaussianPopulation,
    coordinates: tuple[int, int],
    weights: Tensor,
    power: int,
    ridge: float,
) -> tuple[Tensor, int]:
    width = coordinates[1] - coordinates[0]
    moments = weights.new_zeros(width, width)
    right = weights.new_zeros(width)
    for low, high in pop.chunks(len(population), max(1, _ROWS // width)):
        scores = _scores(population.part(low, high), coordinates, power)
        moments += scores.T @ scores
        right += scores.T @ weights[low:high]
    return _solve(moments, right, ridge * _true_fisher(power) * len(population))
