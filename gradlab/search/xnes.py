r"""Exponential natural evolution strategies: a full covariance matrix, moved along exp.

Members are :math:`x_i = \mu + Az_i`, the covariance is :math:`AA^T`. In the natural coordinates
:math:`(\delta, M)` with :math:`\mu + A\delta` and :math:`A\exp(M/2)` (Glasmachers, Schaul, Yi,
Wierstra and Schmidhuber, "Exponential natural evolution strategies", GECCO 2010; Wierstra et al.,
JMLR 15, 2014, algorithm 5)

.. math:: G_\delta = \sum_i u_iz_i, \qquad G_M = \sum_i u_i(z_iz_i^T - I), \qquad
    g = \tfrac1d\,\mathrm{tr}\,G_M, \qquad G_B = G_M - gI

.. math:: \mu \leftarrow \mu + \eta_\mu AG_\delta, \qquad
    A \leftarrow A\,e^{\eta_\sigma g/2}\,\mathrm{expm}\bigl(\tfrac12\eta_BG_B\bigr)

with the *matrix* exponential, and :math:`\eta_\sigma = \eta_B = (9 + 3\ln d)/(5d\sqrt d)`, at most
1. The trace moves the size of the distribution, the rest its shape: steps of A are volume
preserving but for the first factor, the covariance stays positive definite, and the search is
invariant under rotation of the space but for its sample. (With an elementwise exponential every
entry that should stay zero becomes one, and the distribution never turns into a slanting valley.)

Time grows as d³ and memory as d²: for up to some hundreds of coordinates searched together. With
layer-wise updates the matrix has one block per tensor.

On a quadratic :math:`f = \tfrac12 x^THx` with raw fitness (u = -f/P) the expected natural gradients
are :math:`E\,G_\delta = -A^TH\mu` and :math:`E\,G_M = -A^THA`.

>>> from gradlab.objectives import TestFunction
>>> objective = TestFunction("rosenbrock", num_dim=2)
>>> method = XNES(sigma=1.0)
>>> state = method.initial(objective.initial_params(0), generator=torch.Generator().manual_seed(0))
>>> for _ in range(300):
...     state = method.tell(state, objective.losses(method.ask(state)))
>>> float(state.best_loss) < 1e-6, state.evaluations
(True, 1800)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gradlab.estimators.base import above_zero
from gradlab.search.natural import NaturalSearch, Step


@dataclass(frozen=True, kw_only=True)
class XNES(NaturalSearch):
    """Exponential natural evolution strategies.

    Args:
        learning_rate_shape: of the covariance's shape, the traceless part; the rate of its size is
            ``learning_rate_sigma``, whose default it shares.

    The other options are those of :class:`gradlab.search.natural.NaturalSearch`.
    """

    learning_rate_shape: float | None = None
    _matrix: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.learning_rate_shape is not None:
            above_zero("learning_rate_shape", self.learning_rate_shape)

    def covariance(self, spread: Tensor) -> Tensor:
        """The covariance ``(n, n)`` of a block's width, as a state holds it.

        >>> XNES().covariance(torch.tensor([1.0, 2.0, 0.0, 1.0])).tolist()
        [[5.0, 2.0], [2.0, 1.0]]
        """
        root = _square(spread)
        return root @ root.mT

    def _default_rate(self, dims: int) -> float:
        return min(1.0, (9 + 3 * math.log(dims)) / (5 * dims * math.sqrt(dims)))

    def _first_spread(self, dims: int) -> Tensor:
        return (float(self.sigma) * torch.eye(dims, dtype=torch.float64)).flatten()

    def _offsets(self, spread: Tensor, noise: Tensor) -> Tensor:
        return noise @ _square(spread).mT

    def _noise_of(self, spread: Tensor, offsets: Tensor) -> Tensor:
        solved: Tensor = torch.linalg.solve(_square(spread), offsets.mT)
        return solved.mT

    def _log_scale(self, spread: Tensor) -> Tensor:
        logarithm: Tensor = torch.linalg.slogdet(_square(spread)).logabsdet
        return logarithm

    def _principal(self, spread: Tensor) -> Tensor:
        found: Tensor = torch.linalg.svdvals(_square(spread))
        return found

    def _step(self, spread: Tensor, first: Tensor, second: Tensor, rate: float) -> Step:
        root = _square(spread)
        size = second.trace() / len(first)
        shape = second - size * torch.eye(len(first), dtype=second.dtype, device=second.device)
        shape_rate = self.learning_rate_shape or self._default_rate(len(first))
        turned = root @ torch.linalg.matrix_exp(0.5 * shape_rate * shape)
        return Step(
            mean=self.learning_rate * (root @ first),
            spread=(torch.exp(0.5 * rate * size) * turned).flatten(),
            ratio=torch.exp(0.25 * rate * size).reshape(1),
        )


def _square(spread: Tensor) -> Tensor:
    side = math.isqrt(len(spread))
    return spread.reshape(side, side)
