r"""Moment propagation: a gradient of the smoothed loss without any sampling.

The loss smoothed over weights N(μ, σ²), with fresh noise for every example as
:mod:`nes_local <gradlab.estimators.nes_local>` has it, is approximated by propagated means and
variances (:mod:`gradlab.estimators.moments`), and backpropagation takes the derivative of that:
every sign has become the error function of a normal variable as wide as the noise of its own
weights *and* of all units below it. The matched STE has the former alone, at sampled signs.

Nothing is drawn, so that there is no variance, and the bias is what is left: none with one hidden
layer of real weights, and the less, the wider the others are, because pre-activations are taken as
normal and units as independent but for what the outputs see of them. At 32 and 64 units in three
hidden layers, with fresh weights, the cosine to the smoothed gradient of a batch is about .99 in
every layer, however small the batch is; with trained ones it falls to .96 where little of the
gradient is left (``benchmarks/moment_nes.py``). **In three or four units it may point anywhere**.
To be rid of the bias, use :mod:`moment_nes <gradlab.estimators.moment_nes>`, which has this
approximation as its control variate.

Any activation with moments will do, and weights may be binary: their signs have moments of their
own. Pre-activations are then taken as normal in the first layer too, so that no depth is exact.

**Of any** ``nn.Module`` **that can be traced** all parameters are noisy, as in
:mod:`nes_local <gradlab.estimators.nes_local>`: linear layers and convolutions, signs and other
elementwise activations, binary weights with or without scales, BatchNorm in evaluation mode,
pooling, residual connections; :mod:`gradlab.estimators.moments_graph` has the rules and says which
dependences they ignore. An operation without a rule is refused by its name. Logits have their
covariance, and cross-entropy its expected gradient and curvature over them
(:mod:`gradlab.estimators.moments_module`). **Positions of a convolution share the noise of their
weights**, so that they do not average it away as independent ones would: the covariance of the
outputs counts that to first order, by the outputs' slopes in every single weight, squared after the
sum over positions. Beyond the first order signs of patches that are alike have more in common; the
variance is then too small. The gradient is exact where a single layer is noisy, what lies behind it
is linear, and the loss a mean square.

In two binarized convolutions of 4 and 8 channels on 64 images of 8 × 8, σ = .1 and fresh weights,
all cosines to the smoothed gradient are .999 or more, with or without that correction; where the
output layer is eight times as large, so that the variance of the logits matters, it takes the first
layer from .989 to .999, and from .925 to 1.00 at σ = .3 (``benchmarks/moments_conv.py``).

``forward_passes`` and ``backward_passes`` count multiplications, in units of those that a forward
pass takes, and of twice as many; with K outputs a module takes 4 + 2K of each.

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

from gradlab.estimators import moments_module
from gradlab.estimators.base import GradientEstimate, OneEstimate, above_zero, require_finite
from gradlab.estimators.bernoulli import binary_weights
from gradlab.estimators.matched import example_blocks
from gradlab.estimators.moments import Weight, expected_losses, through
from gradlab.evaluation.population import Params
from gradlab.objectives.base import LayeredObjective, NoisyObjective, Objective


@dataclass(frozen=True)
class MomentPropagation(OneEstimate):
    """Backpropagation through propagated moments.

    Args:
        sigma: standard deviation of every weight.

    Raises:
        ValueError: sigma out of range; an objective without layers or module, a module that cannot
            be traced, has an operation without a rule or couples examples, a loss of one's own.
    """

    sigma: float = 0.1

    def __post_init__(self) -> None:
        above_zero("sigma", self.sigma)

    def estimate(
        self, objective: Objective, params: Params, *, generator: torch.Generator
    ) -> GradientEstimate:
        """The gradient; the generator is not used."""
        if isinstance(objective, NoisyObjective) and not isinstance(objective, LayeredObjective):
            return moments_module.estimate(objective, params, self.sigma, "moment_propagation")
        if not isinstance(objective, LayeredObjective):
            raise ValueError(
                "moment_propagation goes through the layers of a layered model, which "
                f"{type(objective).__name__} is not: use ste."
            )
        params = require_finite(params)
        binary, scaled = binary_weights(objective)
        if scaled:
            raise ValueError(
                f"moment_propagation knows no scale of binary weights, which {min(scaled)} has: "
                "use ste."
            )
        leaves = {name: w.clone().requires_grad_() for name, w in params.items()}
        total = {name: torch.zeros_like(w) for name, w in params.items()}
        size = len(objective.inputs)
        for start, stop in example_blocks(size, objective.inputs):
            dtype = params[objective.layer_names[0]].dtype
            inputs = objective.inputs[start:stop].to(dtype)
            targets = objective.targets[start:stop].to(dtype)
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
        # behind the first layer means, variances and the slope of the outputs, each with two
        # products on the way back; the variances of binary weights are another product
        forward = backward = 0
        for layer, name in enumerate(objective.layer_names):
            products, size = (3 if layer else 1) + (name in binary), params[name].numel()
            forward += products * size
            backward += (2 * products if layer else products) * size
        whole = sum(params[name].numel() for name in objective.layer_names)
        return GradientEstimate(
            total, forward_passes=forward / whole, backward_passes=backward / (2 * whole)
        )

    def label(self) -> str:
        """``moment propagation``, with sigma where it is not 0.1."""
        return "moment propagation" + ("" if self.sigma == 0.1 else f" σ={self.sigma:g}")
