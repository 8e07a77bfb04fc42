r"""Fitness shaping: how the losses of a population become the weights of its noise.

Every shaping returns one weight per member; a gradient is
:math:`\frac1P\sum_i w_i\,\nabla\log\pi_i`.
All of them weigh *losses*, so the gradient points uphill of the loss whatever the shaping.
Rank-based weights are invariant under monotone transformations of the loss, and no longer estimate
the gradient of the smoothed loss but a direction.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

FITNESS = ("raw", "centered", "z_score", "centered_rank", "utilities")


def shape(losses: Tensor, fitness: str, *, antithetic: bool) -> Tensor:
    """Weights of the members.

    - ``raw``: the loss itself. Unbiased, and noisy: its mean multiplies the noise.
    - ``centered``: the loss minus the mean of the other members (of the other pairs, if
      antithetic): leaving one out keeps the gradient unbiased, which subtracting the mean of
      all would shrink by 1 - 1/P.
    - ``z_score``: the loss minus the mean, divided by the standard deviation.
    - ``centered_rank``: ranks spread evenly over [-1/2, 1/2] (Salimans et al. 2017).
    - ``utilities``: minus P times the NES utilities max(0, ln(P/2 + 1) - ln k)/Σ - 1/P, best k = 1
      (Wierstra et al. 2014, section 3.1).

    Equal losses get equal weights: ranks and utilities are averaged over ties.

    Args:
        losses: ``(P,)``.
        fitness: one of the names above.
        antithetic: members 2k and 2k + 1 are a mirrored pair.

    >>> shape(torch.tensor([1.0, 2.0, 6.0]), "centered", antithetic=False).tolist()
    [-3.0, -1.5, 4.5]
    >>> shape(torch.tensor([5.0, 1.0, 1.0]), "centered_rank", antithetic=False).tolist()
    [0.5, -0.25, -0.25]
    """
    losses = losses.double()
    size = len(losses)
    if fitness == "raw":
        return losses
    if fitness == "centered":
        if not antithetic:
            return (losses - losses.mean()) * (size / (size - 1))
        pairs = losses.reshape(-1, 2)
        means = pairs.mean(dim=1)
        others = (means.sum() - means) / (len(means) - 1) if len(means) > 1 else means
        return (pairs - others[:, None]).flatten()
    if fitness == "z_score":
        # Less the first loss, so that a flat population is exactly zero: its mean may be rounded.
        losses = losses - losses[0]
        deviation = losses.std(correction=0)
        # A flat population says nothing; zero weights say so, a division by zero would not. A NaN
        # among the losses is no flat population: it reaches every weight.
        return torch.zeros_like(losses) if deviation == 0 else (losses - losses.mean()) / deviation
    if fitness == "centered_rank":
        ranks = torch.arange(size, dtype=torch.float64, device=losses.device)
        return _by_rank(losses, ranks / max(size - 1, 1) - 0.5)
    ranks = torch.arange(1, size + 1, dtype=torch.float64, device=losses.device)
    utilities = (math.log(size / 2 + 1) - ranks.log()).clamp_min(0)
    return _by_rank(losses, -size * (utilities / utilities.sum() - 1 / size))


def _by_rank(losses: Tensor, weights: Tensor) -> Tensor:
    """Hand out ``weights``, smallest loss first, averaged over ties; NaN makes all of them NaN."""
    if losses.isnan().any():
        return torch.full_like(losses, math.nan)
    _, group, counts = torch.unique(losses, return_inverse=True, return_counts=True)
    order = torch.argsort(losses)
    sums = torch.zeros(len(counts), dtype=weights.dtype, device=weights.device)
    sums.index_add_(0, group[order], weights)
    averages: Tensor = sums / counts
    return averages[group]
