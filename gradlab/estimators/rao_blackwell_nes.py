r"""Natural evolution strategies for binary weights, with the noise averaged out given the signs.

NES multiplies a member's loss by the score of its Gaussian noise, :math:`\varepsilon_i/\sigma`. A
network with binary weights sees of :math:`w_i = \mu_i + \sigma\varepsilon_i` the sign
:math:`b_i` alone, so the score may be replaced by its expectation given the sign,

.. math:: E\!\left[\frac{\varepsilon_i}{\sigma} \,\middle|\, b_i\right]
    = \frac{b_i\,\varphi(a_i)}{\sigma\,\Phi(b_i a_i)}, \qquad a = \mu/\sigma,

the mean of a truncated normal variable. The estimate stays unbiased for the gradient of the loss
smoothed by N(μ, σ²), and by the Rao-Blackwell theorem no coordinate's variance is above NES's. It
is also :math:`\partial\log P(b_i)/\partial\mu_i`: with independent members this *is*
:mod:`REINFORCE <gradlab.estimators.reinforce>` for Bernoulli signs.

With mirrored pairs (``antithetic``, as NES's own default) the noise is averaged given *both* signs
of the pair. Where they agree, :math:`|\varepsilon_i| \le |a_i|` evenly on both sides, which says
nothing: the coordinate gets zero. Where they differ, :math:`|\varepsilon_i| > |a_i|` and the score
is :math:`b_i\varphi(a_i)/(\sigma\Phi(-|a_i|))`. That *is* :mod:`DisARM <gradlab.estimators.arm>`,
which was found by the same step from the uniform number instead of the normal one.

``gradient="natural"`` divides by the Fisher information of the signs,
:math:`\varphi(a)^2/(\sigma^2 p(1 - p))`, not of the Gaussian noise (1/σ²): a weight far from zero,
whose sign hardly ever flips, is moved as if it were seen as often as the others. Its variance is
large in the same measure.

Costs ``population`` forward passes; real weights of the network get NES's own score. The formula
follows from the two definitions; the tests hold it to an enumeration of all signs. See
:mod:`gradlab.estimators.bernoulli` for which weights count as binary.

>>> from gradlab.objectives import TeacherStudent
>>> objective = TeacherStudent(num_dim=4, batch_size=64, seed=0, depth=1, weight="binary")
>>> params = objective.initial_params(seed=0)
>>> generator = torch.Generator().manual_seed(0)
>>> estimate = RaoBlackwellNES(population=100).estimate(objective, params, generator=generator)
>>> estimate.gradient["layers.0.weight"].shape, estimate.forward_passes
(torch.Size([4, 4]), 100.0)
>>> real = TeacherStudent(num_dim=4, batch_size=64, seed=0, depth=1)
>>> RaoBlackwellNES().estimate(real, params, generator=generator)
Traceback (most recent call last):
ValueError: rao_blackwell_nes draws the signs of binary weights, and this TeacherStudent has ...
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gradlab.estimators.base import GradientEstimate, OneEstimate, above_zero, one_of, true_or_false
from gradlab.estimators.bernoulli import check_population, label_of, score_estimate
from gradlab.evaluation.population import Params
from gradlab.objectives.base import Objective


@dataclass(frozen=True)
class RaoBlackwellNES(OneEstimate):
    """NES of binary weights with Rao-Blackwellized scores.

    Args:
        population: number of evaluations (antithetic: half as many pairs).
        sigma: standard deviation of the search distribution, in units of the latent weights.
        gradient: "plain" or "natural".
        antithetic: members come in mirrored pairs; otherwise each loss is compared with the mean
            of the others.

    Raises:
        ValueError: an option out of range, or, when estimating, no binary weights.
    """

    population: int = 500
    sigma: float = 0.1
    gradient: str = "plain"
    antithetic: bool = True

    def __post_init__(self) -> None:
        above_zero("sigma", self.sigma)
        one_of("gradient", self.gradient, ("plain", "natural"))
        true_or_false("antithetic", self.antithetic)
        check_population(self.population, mirrored=self.antithetic)

    def estimate(
        self, objective: Objective, params: Params, *, generator: torch.Generator
    ) -> GradientEstimate:
        """One estimate."""
        return score_estimate(
            objective,
            params,
            generator,
            estimator="rao_blackwell_nes",
            score="disarm" if self.antithetic else "bernoulli",
            population=self.population,
            sigma=self.sigma,
            natural=self.gradient == "natural",
        )

    def label(self) -> str:
        """``RB-NES 500``, with options that are not the default."""
        text = label_of("RB-NES", self.population, self.sigma)
        text += "" if self.gradient == "plain" else " natural"
        return text + ("" if self.antithetic else " not antithetic")
