r"""How far a gradient agrees with a reference on one layer, with an interval.

A reference is given by two independent halves :math:`r_1, r_2` (equal ones where nothing is
sampled). Its own noise would make every estimate look worse than it is; the product of the halves
has none on average, so with :math:`r = (r_1 + r_2)/2`

.. math:: \mathrm{cosine} = \frac{g\cdot r}{\lVert g\rVert\sqrt{r_1\cdot r_2}}, \qquad
    \mathrm{norm\ ratio} = \frac{\lVert g\rVert}{\sqrt{r_1\cdot r_2}},

cut off at ±1. Intervals are percentiles over bootstrap samples of the layer's coordinates (of
random groups of them, where there are many); all estimators see the same samples, so that their
differences have intervals too.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from torch import Tensor

RESAMPLES = 1000
GROUPS = 256


@dataclass(frozen=True, eq=False)
class Reference:
    """What gradients of one layer are compared with.

    Attributes:
        kind: "cdg" or "smoothed".
        layer: name of the parameter.
        coordinates: flat coordinates ``(n,)`` of the layer; None for all.
        halves: two independent estimates ``(n,)``, float64.
        problem: why nothing can be compared with it, if so.
        self_cosine: cosine of the halves; NaN where nothing is sampled.
        forward_passes: what it cost.
    """

    kind: str
    layer: str
    coordinates: Tensor | None
    halves: tuple[Tensor, Tensor] | None
    problem: str = ""
    self_cosine: float = math.nan
    forward_passes: float = 0.0


@dataclass(frozen=True, eq=False)
class Agreement:
    """Numbers of one gradient on one layer.

    Attributes:
        cosine: to the reference.
        low: lower end of its 95 % interval.
        high: upper end.
        norm_ratio: length in units of the reference's.
        sign_agreement: share of equal signs where the reference is not zero.
        resampled: cosines of the bootstrap samples ``(RESAMPLES,)``.
    """

    cosine: float
    low: float
    high: float
    norm_ratio: float
    sign_agreement: float
    resampled: np.ndarray


def agreement(gradient: Tensor, reference: Reference) -> Agreement:
    """Compare the gradient of a layer with its reference.

    Args:
        gradient: of the layer's shape.
        reference: with halves.

    >>> import torch
    >>> half = torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64)
    >>> found = agreement(2 * half, Reference("cdg", "w", None, (half, half)))
    >>> round(found.cosine, 6), round(found.norm_ratio, 6), found.sign_agreement
    (1.0, 2.0, 1.0)
    """
    assert reference.halves is not None
    first, second = (half.double().cpu().numpy() for half in reference.halves)
    flat = gradient.detach().flatten()
    chosen = flat if reference.coordinates is None else flat[reference.coordinates.to(flat.device)]
    values = chosen.double().cpu().numpy()
    mean = (first + second) / 2
    parts = np.stack([values * mean, values**2, first * second])
    parts = _grouped(parts)
    cosine, ratio = _numbers(parts.sum(axis=1))
    resampled, _ = _numbers(parts @ _draws(parts.shape[1]))
    known = resampled[np.isfinite(resampled)]
    enough = math.isfinite(float(cosine)) and len(known) > RESAMPLES / 2
    low, high = np.percentile(known, [2.5, 97.5]) if enough else (math.nan, math.nan)
    signed = mean != 0
    same = np.sign(values[signed]) == np.sign(mean[signed])
    return Agreement(
        float(cosine), float(low), float(high), float(ratio),
        float(same.mean()) if len(same) else math.nan, resampled,
    )  # fmt: skip


@functools.cache
def _draws(size: int) -> np.ndarray:
    """How often each of ``size`` is in each bootstrap sample ``(size, RESAMPLES)``."""
    draws = np.random.default_rng(0).multinomial(size, np.full(size, 1 / size), RESAMPLES)
    return draws.T.astype(float)


def _grouped(parts: np.ndarray) -> np.ndarray:
    """Sums over at most ``GROUPS`` random groups of coordinates ``(3, n)``."""
    size = parts.shape[1]
    if size <= GROUPS:
        return parts
    owner = np.random.default_rng(size).permutation(size) % GROUPS
    return np.stack([np.bincount(owner, row, GROUPS) for row in parts])


def _numbers(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and norm ratio from sums ``(3, ...)``; NaN where a norm is not above zero."""
    product, square, signal = sums
    with np.errstate(divide="ignore", invalid="ignore"):
        known = (square > 0) & (signal > 0)
        cosine = np.where(known, product / np.sqrt(square * np.abs(signal)), np.nan)
        ratio = np.where(signal > 0, np.sqrt(square / np.abs(signal)), np.nan)
    return np.clip(cosine, -1, 1), ratio
