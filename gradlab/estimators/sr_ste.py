r"""Straight-through estimation through stochastic rounding, averaged over a few samples.

Each hidden pre-activation is rounded to ±1 at random instead of by its sign: positives are divided
by the layer's largest value, negatives by its smallest's magnitude, (A + 1)/2 is the probability of
+1, and the draw is relaxed at a temperature so that it can be backpropagated
(:mod:`gradlab.binary.stochastic_rounding`). The gradients of ``samples`` draws, each at unit norm
per tensor, are averaged. The loss that is reported, and stepped on, is the plain sign network's.

One forward and one backward pass per sample; biased, as every straight-through estimator.

>>> from gradlab.objectives import TeacherStudent
>>> objective = TeacherStudent(num_dim=4, batch_size=64, seed=0)
>>> params = objective.initial_params(seed=0)
>>> generator = torch.Generator().manual_seed(0)
>>> SRSTE(samples=3).estimate(objective, params, generator=generator).backward_passes
3.0
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gradlab.binary.stochastic_rounding import StochasticRounding
from gradlab.estimators.base import GradientEstimate, OneEstimate, above_zero, true_or_false
from gradlab.evaluation.noise import draw_key
from gradlab.evaluation.population import Params
from gradlab.models.mlp import positive_integer
from gradlab.objectives.base import Objective


@dataclass(frozen=True)
class SRSTE(OneEstimate):
    """Averaged gradients through stochastic rounding.

    Args:
        samples: how many draws are averaged.
        temperature: of the relaxed Bernoulli; small is nearly a hard draw.
        unit_norm: scale each draw's gradient to unit norm per tensor before averaging.

    Raises:
        ValueError: an option out of range, or activations that are not binary.
    """

    samples: int = 1
    temperature: float = 1.0
    unit_norm: bool = True

    def __post_init__(self) -> None:
        positive_integer("samples", self.samples)
        above_zero("temperature", self.temperature)
        true_or_false("unit_norm", self.unit_norm)

    def estimate(
        self, objective: Objective, params: Params, *, generator: torch.Generator
    ) -> GradientEstimate:
        """The mean over the draws."""
        key = draw_key(generator)
        total = {name: torch.zeros_like(tensor) for name, tensor in params.items()}
        # uniforms are drawn where the activations are, wherever the caller's generator lives
        device = next(iter(params.values())).device
        for sample in range(self.samples):
            draws = torch.Generator(device).manual_seed((key + sample) % 2**63)
            rounding = StochasticRounding(temperature=self.temperature, generator=draws)
            gradient = objective.surrogate_gradient(params, rounding)
            for name, tensor in gradient.items():
                norm = tensor.norm() if self.unit_norm else 1.0
                total[name] += tensor / (norm + 1e-30) / self.samples
        return GradientEstimate(
            total, forward_passes=float(self.samples), backward_passes=float(self.samples)
        )

    def label(self) -> str:
        """``sr-STE (10 samples)``, with options that are not the default."""
        text = f"sr-STE ({self.samples} sample{'s' if self.samples > 1 else ''})"
        text += "" if self.temperature == 1 else f" T={self.temperature:g}"
        return text + ("" if self.unit_norm else " unnormalized")
