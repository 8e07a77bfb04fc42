r"""Separable natural evolution strategies: one standard deviation for each coordinate.

Members are :math:`x_i = \mu + \sigma \odot \varepsilon_i`. In the natural coordinates of a Gaussian
with diagonal covariance (Wierstra et al., "Natural Evolution Strategies", JMLR 15, 2014,
section 4.2, after Schaul, Glasmachers and Schmidhuber, "High dimensions and heavy tails for natural
evolution strategies", GECCO 2011),

.. math:: \mu \leftarrow \mu + \eta_\mu\,\sigma \odot \sum_i u_i\varepsilon_i, \qquad
    \sigma \leftarrow \sigma \odot \exp\Bigl(\tfrac{\eta_\sigma}{2}
    \sum_i u_i(\varepsilon_i^2 - 1)\Bigr)

with utilities u, largest for the lowest loss, :math:`\eta_\mu = 1`,
:math:`\eta_\sigma = (3 + \ln d)/(5\sqrt d)` and 4 + ⌊3 ln d⌋ members. Time and memory grow as d:
the method for networks. It follows axes of unlike scale, and cannot follow a valley that lies
slantwise (:mod:`gradlab.search.xnes`).

On a quadratic :math:`f = \tfrac12 x^THx` with raw fitness (u = -f/P) the expected steps have a
closed form: :math:`-\eta_\mu\,\sigma_j^2(H\mu)_j` for the mean and
:math:`-\tfrac12\eta_\sigma\,\sigma_j^2H_{jj}` for :math:`\ln\sigma_j`.

>>> from gradlab.objectives import TestFunction
>>> objective = TestFunction("quadratic", num_dim=5)
>>> method = SNES(sigma=0.5)
>>> state = method.initial(objective.initial_params(0), generator=torch.Generator().manual_seed(0))
>>> for _ in range(100):
...     state = method.tell(state, objective.losses(method.ask(state)))
>>> float(state.best_loss) < 1e-6, state.evaluations
(True, 800)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from gradlab.search.natural import NaturalSearch, Step


@dataclass(frozen=True, kw_only=True)
class SNES(NaturalSearch):
    """Separable natural evolution strategies; options: see :class:`NaturalSearch`."""

    def _default_rate(self, dims: int) -> float:
        return (3 + math.log(dims)) / (5 * math.sqrt(dims))

    def _first_spread(self, dims: int) -> Tensor:
        return torch.full((dims,), float(self.sigma), dtype=torch.float64)

    def _offsets(self, spread: Tensor, noise: Tensor) -> Tensor:
        return spread * noise

    def _noise_of(self, spread: Tensor, offsets: Tensor) -> Tensor:
        return offsets / spread

    def _log_scale(self, spread: Tensor) -> Tensor:
        return spread.log().sum()

    def _step(self, spread: Tensor, first: Tensor, second: Tensor, rate: float) -> Step:
        return Step(
            mean=self.learning_rate * spread * first,
            spread=spread * torch.exp(0.5 * rate * second),
            ratio=torch.exp(0.25 * rate * second),
        )
