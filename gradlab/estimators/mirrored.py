r"""Mirrored pairs along any directions: what estimators of random differences share.

Such an estimator draws steps :math:`\delta_k`, evaluates :math:`f(w \pm \delta_k)` and averages
:math:`\tfrac12 (f(w + \delta_k) - f(w - \delta_k))\,s(\delta_k)`; they differ in how :math:`\delta`
is drawn and in the linear map s. Whatever is even in δ cancels within a pair, the constant and the
curvature included, so no baseline is needed and a quadratic f is as good as a linear one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gradlab.estimators.base import GradientEstimate, split_half_diagnostics
from gradlab.evaluation import population as pop
from gradlab.evaluation.population import Params
from gradlab.objectives.base import Objective

# Floats of steps made at a time: 32 MiB of float64.
MEMBER_FLOATS = 2**22


def nested_sizes(population: object) -> tuple[int, ...]:
    """Nested population sizes from one even number or an ascending list of them.

    Raises:
        ValueError: anything else, in one sentence.

    >>> nested_sizes(500), nested_sizes([10, 100])
    ((500,), (10, 100))
    """
    sizes = tuple(population) if isinstance(population, list | tuple) else (population,)
    for size in sizes:
        if isinstance(size, bool) or not isinstance(size, int) or size < 2:
            raise ValueError(f"population is {size!r}: give an even number of at least 2.")
        if size % 2:
            raise ValueError(
                f"population is {size}: mirrored pairs need an even number; give {size + 1}."
            )
    if not sizes or list(sizes) != sorted(set(sizes)):
        raise ValueError(
            f"population is {population!r}: give one number, or different numbers in ascending "
            "order."
        )
    return sizes


def like(flat: Tensor, params: Params) -> Params:
    """A flat vector as a dict with the shapes and dtypes of the parameters."""
    return {name: part.to(params[name].dtype) for name, part in pop.unflatten(flat, params).items()}


def surroundings(params: Params, steps: Tensor) -> Params:
    """The population w + step, ``(n, ...)``, of flat float64 steps ``(n, d)``."""
    flat = pop.flatten(params)
    return pop.unflatten(flat + steps.to(flat.dtype), params)


def mirrored_estimates(
    objective: Objective,
    params: Params,
    sizes: tuple[int, ...],
    steps: Callable[[int, int], Tensor],
    scores: Callable[[Tensor], Tensor],
    *,
    forward_passes: float = 0.0,
    backward_passes: float = 0.0,
) -> list[GradientEstimate]:
    r"""Means of :math:`\tfrac12(f(w + \delta) - f(w - \delta))\,s(\delta)`, for nested sizes.

    Args:
        objective: whose loss.
        params: w, finite.
        sizes: numbers of evaluations, two per pair, ascending.
        steps: the steps of pairs ``start`` … ``stop - 1``, ``(n, d)`` float64, a pure function of
            the indices.
        scores: the linear map s, ``(n, d)`` to ``(n, d)``.
        forward_passes: on top of one per evaluation.
        backward_passes: of every estimate.
    """
    width = pop.num_coordinates(params)
    device = next(iter(params.values())).device
    # of even and odd pairs apart, for the split-half diagnostics
    halves = torch.zeros(2, width, dtype=torch.float64, device=device)
    estimates, done = [], 0
    for size in sizes:
        pairs = size // 2
        for low, high in pop.chunks(pairs - done, MEMBER_FLOATS // (2 * width)):
            low, high = low + done, high + done
            drawn = steps(low, high)
            losses = objective.losses(surroundings(params, torch.cat((drawn, -drawn))))
            differences = (losses[: high - low] - losses[high - low :]) / 2
            odd = torch.arange(low, high, device=device) % 2
            halves += torch.stack((differences * (1 - odd), differences * odd)) @ scores(drawn)
        done = pairs
        diagnostics = {}
        if size >= 8:
            means = halves / torch.tensor([[-(-pairs // 2)], [pairs // 2]], device=device)
            first, second = (pop.unflatten(mean, params) for mean in means)
            diagnostics = split_half_diagnostics((first, second), size)
        estimates.append(
            GradientEstimate(
                like(halves.sum(dim=0) / pairs, params),
                forward_passes=forward_passes + size,
                backward_passes=backward_passes,
                diagnostics=diagnostics,
            )
        )
    return estimates
