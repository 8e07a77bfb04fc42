r"""Moment propagation: a gradient of the smoothed loss without any sampling.

The loss smoothed over weights N(μ, σ²), with fresh noise for every example as
:mod:`nes_local <gradlab.estimators.nes_local>` has it, is approximated by propagated means and
variances (:mod:`gradlab.estimators.moments`), and backpropagation takes the derivative of that:
every sign has become the error function of a normal variable as wide as the noise of its own
weights *and* of all units below it. The matched STE has the former alone, at sampled signs.

Nothing is drawn, so that there is no variance, and the bias is what is left: none with one hidden
layer of real weights, and the less, the wider the others are, because pre-activations are taken as
normal and units as independent but for what the outputs see of them. At 32 units in three hidden
layers the cosine to the smoothed gradient of a batch is .99 in every layer, however small the batch
is, where unbiased estimates of the same cost need 100,000 examples (``benchmarks/moment_nes.py``).
In 8 units it is .92 to .98, and **in three or four it may point anywhere**. To be rid of the bias,
use :mod:`moment_nes <gradlab.estimators.moment_nes>`, which has this approximation as its control
variate.

Any activation with moments will do, and weights may be binary: their signs have moments of their
own. Pre-activations are then taken as normal in the first layer too, so that no depth is exact.

It needs a layered objective.
``forward_passes`` and ``backward_passes`` count multiplications, in units of those that a forward
pass takes, and of twice as many.

>>> from gradlab.objectives import TeacherStudent
>>> objective = TeacherStudent(num_dim=8, batch_size=64, seed=0)
>>> params = objective.initial_params(seed=0)
>>> generator = torch.Generator().manual_seed(0)
>>> first, second = (
...     MomentPropagation().estimate(objective, params, generator=generator).gradient
...     for _ in range(2)
... )
>>> all(torch.equal(first[name], second[name]) for name in params)
True
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gradlab.estimators.base import GradientEstimate, OneEstimate, above_zero, require_finite
from gradlab.estimators.bernoulli import binary_weights
from gradlab.estimators.matched import example_blocks
from gradlab.estimators.moments import Weight, expected_losses, through
from gradlab.evaluation.population import Params
from gradlab.objectives.base import LayeredObjective, Objective


@dataclass(frozen=True)
class MomentPropagation(OneEstimate):
    """Backpropagation through propagated moments.

    Args:
        sigma: standard deviation of every weight.

    Raises:
        ValueError: sigma out of range, or an objective without layers.
    """

    sigma: float = 0.1

    def __post_init__(self) -> None:
        above_zero("sigma", self.sigma)

    def estimate(
        self, objective: Objective, params: Params, *, generator: torch.Generator
    ) -> GradientEstimate:
        """The gradient; the generator is not used."""
        if not isinstance(objective, LayeredObjective):
            raise ValueError(
                "moment_propagation goes through the layers of a layered model, which "
                f"{type(objective).__name__} is not: use ste."
            )
        params = require_finite(params)
        binary, _ = binary_weights(objective)
        leaves = {name: w.clone().requires_grad_() for name, w in params.items()}
        total = {name: torch.zeros_like(w) for name, w in params.items()}
        size = len(objective.inputs)
        for start, stop in example_blocks(size, objective.inputs):
            inputs, targets = objective.inputs[start:stop], objective.targets[start:stop]
            first, *later = (
                Weight.of(leaves[name], self.sigma, binary=name in binary)
                for name in objective.layer_names
            )
            activation = objective.activation
            mean, second, _ = through(activation, first, inputs, inputs.square())
            losses = expected_losses(objective, later, mean, second, targets).losses
            gradients = torch.autograd.grad(losses.sum() / size, list(leaves.values()))
            for name, gradient in zip(leaves, gradients, strict=True):
                total[name] += gradient
        # behind the first layer means, variances and slopes of the outputs, each with two products
        # on the way back
        sizes = [params[name].numel() for name in objective.layer_names]
        behind, extra = 3 * sum(sizes[1:]), sizes[0] * (objective.layer_names[0] in binary)
        return GradientEstimate(
            total,
            forward_passes=(sizes[0] + extra + behind) / sum(sizes),
            backward_passes=(sizes[0] + extra + 2 * behind) / (2 * sum(sizes)),
        )

    def label(self) -> str:
        """``moment propagation``, with sigma where it is not 0.1."""
        return "moment propagation" + ("" if self.sigma == 0.1 else f" σ={self.sigma:g}")
