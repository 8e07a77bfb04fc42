"""Counter-based noise and its weighted sums on a GPU, see :mod:`gradlab.evaluation.gpu`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gradlab.evaluation import noise as reference
from gradlab.evaluation import population as pop
from gradlab.evaluation.gpu.launch import ceil, halves, launch, modules
from gradlab.evaluation.population import GaussianPopulation

# Weighted sums that fit a thread's registers.
_ROWS_OF_WEIGHTS = 9
# Bytes of their partial sums.
_PARTIAL_BYTES = 2**26


def units_of(population: GaussianPopulation) -> tuple[int, int]:
    """First unit of noise and number of units: members, or the mirrored pairs they belong to."""
    if not population.antithetic:
        return population.start, len(population)
    first = population.start // 2
    return first, ceil(population.stop, 2) - first


def normal(
    key: int,
    members: tuple[int, int],
    coordinates: tuple[int, int],
    *,
    stream: int = reference.POPULATION_STREAM,
    device: torch.device | str,
) -> Tensor:
    """What :func:`gradlab.evaluation.noise.normal` returns, the same bits, from one kernel.

    Args:
        key: 64-bit key.
        members: half-open range of member indices below 2⁶⁴.
        coordinates: half-open range of coordinates below 2³².
        stream: an independent noise field under the same key.
        device: see :func:`available`.

    Returns:
        float32 tensor ``(members, coordinates)``.
    """
    device = torch.device(device)
    first, last = coordinates[0] // 4, ceil(coordinates[1], 4)
    rows, blocks = members[1] - members[0], last - first
    out = torch.empty(rows, 4 * blocks, device=device)
    # 16 × 16 blocks of four: eight normals a thread, stored in runs of 256 bytes.
    grid = ceil(rows, 16), ceil(blocks, 16)
    if out.numel():
        launch(
            modules()[0].normal_kernel, grid, device,
            out, *halves(key), *halves(members[0]), first, stream, rows, blocks,
            block_rows=16, block_columns=16, num_warps=4,
        )  # fmt: skip
    return out[:, coordinates[0] - 4 * first : coordinates[1] - 4 * first]


def weighted_noise(
    population: GaussianPopulation, weights: Tensor, *, second: bool
) -> tuple[Tensor, Tensor | None]:
    r""":math:`\sum_i w_i\varepsilon_i` and, if asked, :math:`\sum_i w_i(\varepsilon_i^2 - 1)`.

    The contract of :func:`gradlab.estimators.nes.weighted_noise`; sums are float64 throughout.

    Args:
        population: whose noise.
        weights: ``(R, P)``: R weighted sums at once.
        second: whether to return the second sum.

    Returns:
        ``(R, d)`` float64 each.
    """
    if len(weights) > _ROWS_OF_WEIGHTS:
        parts = [
            weighted_noise(population, weights[low:high], second=second)
            for low, high in pop.chunks(len(weights), _ROWS_OF_WEIGHTS)
        ]
        squares = [square for _, square in parts if square is not None]
        return torch.cat([total for total, _ in parts]), torch.cat(squares) if second else None
    first_unit, units = units_of(population)
    weights = weights.double()
    signed = squared = weights.contiguous()
    if population.antithetic:
        before, after = population.start % 2, population.stop % 2
        pairs = F.pad(weights, (before, after)).reshape(len(weights), units, 2)
        signed = (pairs[..., 0] - pairs[..., 1]).contiguous()
        squared = (pairs[..., 0] + pairs[..., 1]).contiguous()
    rows, size = len(weights), pop.num_coordinates(population.mean)
    # Enough segments to fill a GPU, few enough that their partial sums stay small.
    segments = min(ceil(units, 64), max(1, _PARTIAL_BYTES // (8 * rows * size)))
    segment = ceil(units, segments)
    segments = ceil(units, segment)
    shape = (segments, rows, size)
    firsts = torch.empty(shape, dtype=torch.float64, device=weights.device)
    seconds = torch.empty(shape if second else (1,), dtype=torch.float64, device=weights.device)
    # One block of four coordinates a thread: Philox's ten rounds are a chain, so what hides their
    # latency is the number of warps, 36 a multiprocessor at 56 registers (three sums).
    blocks = 64
    launch(
        modules()[0].weighted_noise_kernel, (ceil(size, 4 * blocks), segments), weights.device,
        signed, squared, firsts, seconds, *halves(population.key), *halves(first_unit),
        units, size, rows=rows, second=second, segment=segment, blocks=blocks, num_warps=2,
    )  # fmt: skip
    return firsts.sum(dim=0), seconds.sum(dim=0) if second else None
