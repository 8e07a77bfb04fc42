r"""Importance mixing: members of the last generation serve again where the distributions overlap.

Sun, Wierstra, Schaul and Schmidhuber, "Efficient natural evolution strategies", GECCO 2009: with
p the distribution that the old members came from, q the new one, and α the refresh rate,

1. an old member x is kept with probability min(1, (1 - α) q(x)/p(x));
2. every place that is left is filled by candidates x ~ q, each accepted with probability
   max(α, 1 - p(x)/q(x)).

The two add up to min(p, (1 - α)q) + max(αq, q - p) = q: a place holds exactly a draw of q,
whatever p was, so nothing needs to be weighted. At least a fraction α of all members is new on
average. (q depends on the old members through the last step; like the paper, we count on that
dependence being slight: with populations of a few it is not.)

An old member keeps its loss, so this is for objectives that return the same loss every time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Mixed(NamedTuple):
    """A new generation: which old members stay, the new ones, how many were drawn for it."""

    kept: Tensor
    fresh: Tensor
    drawn: int


def mix(
    samples: Tensor,
    log_old: Callable[[Tensor], Tensor],
    log_new: Callable[[Tensor], Tensor],
    candidates: Callable[[int], Tensor],
    log_uniform: Callable[[int, int], Tensor],
    refresh: float,
) -> Mixed:
    """Turn draws of an old distribution into as many of a new one.

    Args:
        samples: draws of the old distribution, ``(P, d)``.
        log_old: its log density, ``(n, d)`` to ``(n,)``; constants common to both may be left out.
        log_new: that of the new one.
        candidates: P draws of the new one, from the given number in its stream on.
        log_uniform: logarithms of P uniform numbers, from the given number on; the second
            argument tells two streams apart.
        refresh: α, between 0 and 1.

    Returns:
        Indices of the samples that are kept, the fresh ones ``(F, d)``, and how many candidates
        were drawn, a multiple of P; kept and fresh together are P.
    """
    size = len(samples)
    ratio = log_new(samples) - log_old(samples)
    kept = (log_uniform(0, 0) < math.log1p(-refresh) + ratio).nonzero()[:, 0]
    fresh, drawn = samples[:0], 0
    while len(kept) + len(fresh) < size:
        drawn_now = candidates(drawn)
        new = -torch.expm1(log_old(drawn_now) - log_new(drawn_now))
        accepted = log_uniform(drawn, 1).exp() < new.clamp_min(refresh)
        fresh = torch.cat((fresh, drawn_now[accepted]))
        drawn += size
    return Mixed(kept, fresh[: size - len(kept)], drawn)
