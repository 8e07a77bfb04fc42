r"""REINFORCE for the signs of binary weights, with a leave-one-out baseline.

Signs :math:`b_i = \pm 1` are drawn with :math:`p_i = \Phi(\mu_i/\sigma)`, and each member's loss
multiplies the score of its signs,

.. math:: \frac{1}{P}\sum_k (f(b^k) - c_k)\,\nabla_\mu \log P(b^k), \qquad
    \frac{\partial\log P(b_i)}{\partial\mu_i} = \frac{b_i\,\varphi(a_i)}{\sigma\,\Phi(b_i a_i)},

with :math:`c_k` the mean loss of the *other* members (Williams, "Simple statistical
gradient-following algorithms for connectionist reinforcement learning", Machine Learning 8, 1992;
leave-one-out: Salimans and Knowles 2014; Kool, van Hoof and Welling, "Buy 4 REINFORCE samples, get
a baseline for free!", 2019). Unbiased for the gradient of the loss smoothed by N(μ, σ²), with or
without the baseline; without it the loss's own size multiplies the noise. With ``population=2``
this is the two-sample RLOO, :math:`\tfrac12(f(b) - f(b'))(\nabla\log P(b) - \nabla\log P(b'))`,
the independent counterpart of :mod:`DisARM's <gradlab.estimators.arm>` mirrored pair.

Costs ``population`` forward passes. The members are those of NES with ``antithetic=False``, so the
two can be compared sample by sample; this is
:mod:`rao_blackwell_nes <gradlab.estimators.rao_blackwell_nes>` without mirrored pairs.

>>> from gradlab.objectives import TeacherStudent
>>> objective = TeacherStudent(num_dim=4, batch_size=64, seed=0, depth=1, weight="binary")
>>> params = objective.initial_params(seed=0)
>>> generator = torch.Generator().manual_seed(0)
>>> REINFORCE(population=2).estimate(objective, params, generator=generator).forward_passes
2.0
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gradlab.estimators.base import GradientEstimate, OneEstimate, above_zero, one_of
from gradlab.estimators.bernoulli import check_population, label_of, score_estimate
from gradlab.evaluation.population import Params
from gradlab.objectives.base import Objective


@dataclass(frozen=True)
class REINFORCE(OneEstimate):
    """The score-function estimator of Bernoulli signs.

    Args:
        population: number of evaluations; 2 is two-sample RLOO.
        sigma: standard deviation of the latent weights, which sets the probabilities.
        baseline: "leave_one_out" or "none".

    Raises:
        ValueError: an option out of range, or, when estimating, no binary weights.
    """

    population: int = 500
    sigma: float = 0.1
    baseline: str = "leave_one_out"

    def __post_init__(self) -> None:
        above_zero("sigma", self.sigma)
        one_of("baseline", self.baseline, ("leave_one_out", "none"))
        least = 2 if self.baseline == "leave_one_out" else 1
        check_population(self.population, mirrored=False, least=least)

    def estimate(
        self, objective: Objective, params: Params, *, generator: torch.Generator
    ) -> GradientEstimate:
        """One estimate."""
        return score_estimate(
            objective,
            params,
            generator,
            estimator="reinforce",
            score="bernoulli",
            population=self.population,
            sigma=self.sigma,
            baseline=self.baseline == "leave_one_out",
        )

    def label(self) -> str:
        """``REINFORCE 500``, with options that are not the default."""
        text = label_of("REINFORCE", self.population, self.sigma)
        return text + ("" if self.baseline == "leave_one_out" else " no baseline")
