r"""Guided evolution strategies: a search distribution stretched along surrogate gradients.

The straight-through gradients of k surrogates span a subspace with orthonormal basis U
(``n x k``; by orthogonalization of the gradients, dependent ones left out), and the search
distribution has the covariance

.. math:: \sigma^2\Sigma, \qquad
    \Sigma = \tfrac{\alpha}{n} I + \tfrac{1 - \alpha}{k} U U^\top

(Maheswaranathan, Metz, Tucker, Choi and Sohl-Dickstein, "Guided evolutionary strategies: augmenting
random search with surrogate gradients", ICML 2019, arXiv 1806.10230). Σ has trace 1: a step has
length σ in the root mean square, whatever n, so that the sigma of NES corresponds to
:math:`\sigma\sqrt n` here. With mirrored pairs :math:`\pm\varepsilon_i`, the ``form`` is

- ``biased``, the paper's: :math:`\frac{\beta}{\sigma^2 P} \sum_i \varepsilon_i
  (f(w + \varepsilon_i) - f(w - \varepsilon_i))` over P/2 pairs, of expectation
  :math:`\beta\Sigma\nabla J`: the gradient shrunk by α/n outside of the subspace, by
  α/n + (1 - α)/k within. Less variance where the surrogates are right, and the wrong length
  everywhere unless β makes up for it;
- ``unbiased``: :math:`\Sigma^{-1}\varepsilon_i` in the place of :math:`\varepsilon_i`, by Stein's
  identity unbiased for :math:`\nabla J`.

J is the loss smoothed by the search distribution. With ``density="gaussian"`` that is
:math:`N(0, \sigma^2\Sigma)`. With ``density="uniform"`` steps are drawn uniformly on the ellipsoid
surface :math:`\varepsilon = \sigma\sqrt n\,\Sigma^{1/2}u`, u on the unit sphere, and J is the loss
averaged uniformly over that ellipsoid's *interior*: :math:`\nabla E_{v \in \text{ball}} F(v) = n\,
E_{u \in \text{sphere}} F(u) u` (Flaxman, Kalai and McMahan, SODA 2005, lemma 2.1), substituted
through :math:`\sqrt n\,\sigma\,\Sigma^{1/2}`, gives the same formula for the estimate. (No score
exists inside of the ball, where the density is flat.) For linear and quadratic f both densities
have :math:`\nabla J = \nabla f`.

``alpha=0`` searches in the space that the straight-through directions span and nowhere else: Σ has
rank k, its inverse is :math:`k\,UU^\top`, u lives on the sphere of the span, and the unbiased form
is unbiased for the projection :math:`UU^\top\nabla J`. ``alpha=1`` is ordinary mirrored NES of
standard deviation :math:`\sigma/\sqrt n`.

Cost: P forward passes, and one forward and one backward pass for each surrogate.

>>> from gradlab.objectives import TeacherStudent
>>> objective = TeacherStudent(num_dim=4, batch_size=256, seed=0)
>>> params = objective.initial_params(seed=0)
>>> estimator = GuidedES(surrogates=["hardtanh", "identity"], population=100)
>>> estimate = estimator.estimate(objective, params, generator=torch.Generator().manual_seed(0))
>>> estimate.forward_passes, estimate.backward_passes, estimate.diagnostics["guiding_directions"]
(102.0, 2.0, 2.0)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gradlab.binary.layers import Choice
from gradlab.estimators.base import (
    GradientEstimate,
    NestedEstimates,
    above_zero,
    at_least_zero,
    one_of,
    require_finite,
)
from gradlab.estimators.mirrored import mirrored_estimates, nested_sizes
from gradlab.estimators.ste import STE, surrogate_label
from gradlab.evaluation import noise
from gradlab.evaluation import population as pop
from gradlab.evaluation.population import Params
from gradlab.objectives.base import Objective

FORMS = ("biased", "unbiased")
DENSITIES = ("gaussian", "uniform")
# What is left of a unit vector, orthogonal to the others, before rounding of float32 gradients
# passes for a direction.
_INDEPENDENT = 1e-5


@dataclass(frozen=True)
class GuidedES(NestedEstimates):
    """Evolution strategies guided by straight-through gradients.

    Args:
        surrogates: one or several, each as for ``ste``; their gradients span the subspace.
        population: number of evaluations, two per pair, or an ascending list of nested populations.
        sigma: root mean square length of a step, in units of the weights.
        alpha: share of the variance that goes to all directions; 0 searches in the span alone.
        beta: factor of the biased form.
        form: "biased" or "unbiased".
        density: "gaussian" or "uniform".

    Raises:
        ValueError: an option out of range, or a parameter or a surrogate's gradient is not finite.
    """

    surrogates: Sequence[Choice] = ("hardtanh", "identity", "polynomial")
    population: int | Sequence[int] = 500
    sigma: float = 0.1
    alpha: float = 0.5
    beta: float = 1.0
    form: str = "biased"
    density: str = "gaussian"

    def __post_init__(self) -> None:
        if not isinstance(self.surrogates, list | tuple) or not self.surrogates:
            raise ValueError(
                f"surrogates is {self.surrogates!r}: give a list of at least one surrogate."
            )
        for surrogate in self.surrogates:
            STE(surrogate)
        nested_sizes(self.population)
        above_zero("sigma", self.sigma)
        at_least_zero("alpha", self.alpha)
        if self.alpha > 1:
            raise ValueError(f"alpha is {self.alpha}: give a number from 0 to 1.")
        above_zero("beta", self.beta)
        one_of("form", self.form, FORMS)
        one_of("density", self.density, DENSITIES)
        if self.form == "unbiased" and self.beta != 1:
            raise ValueError(
                f'beta is {self.beta}: the unbiased form has no free factor; use form = "biased", '
                "or leave beta out."
            )

    def estimates(
        self, objective: Objective, params: Params, *, generator: torch.Generator
    ) -> list[GradientEstimate]:
        """One estimate for each nested population, all from one sample."""
        params = require_finite(params)
        guides = [
            pop.flatten(STE(choice).estimate(objective, params, generator=generator).gradient)
            for choice in self.surrogates
        ]
        basis = orthonormal_basis(guides)
        key = noise.draw_key(generator)
        covariance = _Covariance(basis, float(self.alpha))

        def steps(low: int, high: int) -> Tensor:
            columns = (0, covariance.dimensions)
            drawn = noise.normal(key, (low, high), columns, device=basis.device).double()
            if self.density == "uniform":
                length = drawn.norm(dim=1, keepdim=True).clamp_min(1e-30)
                drawn = drawn * (math.sqrt(covariance.dimensions) / length)
            return self.sigma * covariance.root(drawn)

        def scores(drawn: Tensor) -> Tensor:
            if self.form == "unbiased":
                return covariance.inverse(drawn) / self.sigma**2
            return self.beta / self.sigma**2 * drawn

        used = float(len(self.surrogates))
        found = mirrored_estimates(
            objective,
            params,
            nested_sizes(self.population),
            steps,
            scores,
            forward_passes=used,
            backward_passes=used,
        )
        more = {"guiding_directions": float(basis.shape[1])}
        return [replace(each, diagnostics=each.diagnostics | more) for each in found]

    def label(self) -> str:
        """``guided ES 500 hardtanh+identity``, with options that are not the default."""
        text = "guided ES " + "/".join(str(size) for size in nested_sizes(self.population))
        text += " " + "+".join(surrogate_label(choice) for choice in self.surrogates)
        for name, symbol in (("sigma", "σ"), ("alpha", "α"), ("beta", "β")):
            value = getattr(self, name)
            text += "" if value == getattr(GuidedES, name) else f" {symbol}={value:g}"
        text += "" if self.form == "biased" else " unbiased"
        return text + ("" if self.density == "gaussian" else " uniform")


def orthonormal_basis(directions: Sequence[Tensor]) -> Tensor:
    """An orthonormal basis of the span of flat directions, ``(n, k)`` float64.

    Zeros and directions that depend on those before them, but for float32 rounding, are left out.

    Raises:
        ValueError: a direction is not finite.

    >>> first, second = torch.tensor([3.0, 0.0, 4.0]), torch.tensor([0.0, 2.0, 0.0])
    >>> orthonormal_basis([first, 2 * first, second]).shape
    torch.Size([3, 2])
    """
    basis = directions[0].new_zeros(len(directions[0]), 0, dtype=torch.float64)
    for direction in directions:
        if not direction.isfinite().all():
            raise ValueError("a surrogate's gradient has NaN or infinite entries: leave it out.")
        rest = direction.double()
        if not rest.any():
            continue
        rest = rest / rest.norm()
        for _ in range(2):  # once leaves the rounding of the first subtraction
            rest = rest - basis @ (basis.T @ rest)
        if rest.norm() > _INDEPENDENT:
            basis = torch.cat((basis, (rest / rest.norm())[:, None]), dim=1)
    return basis


@dataclass(frozen=True)
class _Covariance:
    """Σ, by its eigenvalue in the span of the basis and that outside of it."""

    basis: Tensor
    alpha: float

    @property
    def dimensions(self) -> int:
        """Dimensions of the space that is searched."""
        return int(self.basis.shape[0 if self.alpha > 0 else 1])

    def _eigenvalues(self) -> tuple[float, float]:
        size, rank = self.basis.shape
        # surrogates whose gradients are all zero guide nowhere
        outside = (self.alpha if rank else 1.0) / size
        return outside, outside + (1 - self.alpha) / max(rank, 1)

    def root(self, whitened: Tensor) -> Tensor:
        """The square root of Σ times white noise ``(P, dimensions)``: ``(P, n)``."""
        if self.alpha == 0:
            return whitened @ self.basis.T / math.sqrt(max(self.basis.shape[1], 1))
        outside, inside = (math.sqrt(value) for value in self._eigenvalues())
        return outside * whitened + (inside - outside) * self._projected(whitened)

    def inverse(self, steps: Tensor) -> Tensor:
        """The (pseudo-)inverse of Σ times steps ``(P, n)`` of the searched space."""
        if self.alpha == 0:
            return steps * self.basis.shape[1]
        outside, inside = self._eigenvalues()
        return steps / outside + (1 / inside - 1 / outside) * self._projected(steps)

    def _projected(self, steps: Tensor) -> Tensor:
        return (steps @ self.basis) @ self.basis.T
