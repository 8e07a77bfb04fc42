r"""Adaptation sampling: would the last step have been better with a larger learning rate?

Wierstra et al., "Natural Evolution Strategies", JMLR 15, 2014, section 3. Beside the
distribution q that the population comes from stands a hypothetical one, q', where the last step of
the width would have led with a learning rate larger by half. Members weighted by q'/q are a sample
of q', at no further evaluation. If a weighted Mann-Whitney test gives q' no advantage, the rate
falls back a little towards its initial value, otherwise it grows:

.. math:: \eta \leftarrow \begin{cases} (1 - c)\,\eta + c\,\eta_0 & \Phi(u) < \rho \\
    \min(1, (1 + c)\,\eta) & \text{otherwise}\end{cases} \qquad
    c = \tfrac1{10}, \quad \rho = \tfrac12 - \tfrac1{3(d + 1)}

with u the test's statistic in standard deviations, large where q' has the lower losses: of P
members against P' = Σ w, U has the mean PP'/2 and the variance PP'(P + P' + 1)/12. A
population too small or too far off for the test, whose weights vanish or overflow, counts as no
advantage.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

RATE_OF_CHANGE = 0.1
"""c of the formula."""


def advantage(losses: Tensor, weights: Tensor) -> float:
    """Φ of the weighted Mann-Whitney statistic: above ½ where weights favour low losses.

    Args:
        losses: ``(P,)``.
        weights: importance weights of the same members.

    >>> losses = torch.tensor([1.0, 2.0, 3.0, 4.0])
    >>> advantage(losses, torch.ones(4))
    0.5
    >>> advantage(losses, torch.tensor([2.0, 1.0, 1.0, 0.0])) > 0.5
    True
    """
    ordered = losses.sort().values
    below = torch.searchsorted(ordered, losses, right=False)
    up_to = torch.searchsorted(ordered, losses, right=True)
    size, total = len(losses), float(weights.sum())
    # of every pair that a loss forms with all: one point for a win, half a point for a tie
    points = float((weights * (size - (below + up_to).to(weights.dtype) / 2)).sum())
    deviation = math.sqrt(size * total * (size + total + 1) / 12)
    return 0.5 * math.erfc((size * total / 2 - points) / deviation / math.sqrt(2))


def log_weights(noise: Tensor, ratio: Tensor) -> Tensor:
    """Logarithms of q'/q of members with noise ``(P, n)`` under q; q' is ``ratio`` as wide.

    >>> log_weights(torch.zeros(1, 2), torch.tensor([2.0, 2.0])).exp().tolist()
    [0.25]
    """
    ratio = ratio.expand(noise.shape[1])
    return 0.5 * noise.square() @ (1 - ratio**-2) - ratio.log().sum()


def adapted(rate: float, initial: float, losses: Tensor, weights: Tensor, size: int) -> float:
    """The learning rate for the next step.

    Args:
        rate: the present one.
        initial: the one that it falls back to.
        losses: of the present population.
        weights: importance weights of its members in the hypothetical distribution.
        size: the number of coordinates.
    """
    threshold = 0.5 - 1 / (3 * (size + 1))
    testable = 0 < float(weights.sum()) < math.inf
    if testable and advantage(losses, weights) >= threshold:
        return min(1.0, (1 + RATE_OF_CHANGE) * rate)
    return (1 - RATE_OF_CHANGE) * rate + RATE_OF_CHANGE * initial
