r"""PSA: path sample-analytic gradients, backpropagation of what flips do on average.

Under W ~ N(μ, σ²) with noise of each example's own, a sign layer with input h is a layer of
independent Bernoulli units, :math:`P(x_j = +1 \mid h) = \Phi(a_j)` with
:math:`a_j = \mu_j h/(\sigma\lVert h\rVert)`, and the smoothed loss of
:mod:`gradlab.estimators.nes_local` is that of a stochastic binary network (Shekhovtsov, Yanush and
Flach, "Path sample-analytic gradient estimators for stochastic binary networks", NeurIPS 2020,
arXiv 2006.03143). Of one layer of such units the derivative of an expectation is

.. math:: \frac{\partial}{\partial\mu_j} E f(x) =
    E\left[\frac{\partial P(x_j)}{\partial\mu_j}\,\bigl(f(x) - f(x_{\downarrow j})\bigr)\right],

where :math:`x_{\downarrow j}` is x with unit j flipped: the sum over both states of one unit, the
others sampled. f is what the later layers make of x on average, and a flip of one unit i changes
the probabilities of all units of the next layer at once, a difference of two products. PSA keeps
the terms of that difference in which one factor changes,
:math:`\Delta_{ij} = P(x_j \mid h) - P(x_j \mid h_{\downarrow i})`, and leaves the others at their
sampled states:

.. math:: D_i \approx \sum_j \Delta_{ij} D_j, \qquad D_i = f(h) - f(h_{\downarrow i}),

from layer to layer, a sum over paths of products of Δ. In terms of the slopes
:math:`\delta_i = D_i/(2h_i)` that is backpropagation,

.. math:: \delta_i = \sum_j \frac{m_j(h) - m_j(h_{\downarrow i})}{2 h_i}\,\delta_j, \qquad
    \frac{\partial J}{\partial\mu_j} \approx \delta_j\,\frac{2\varphi(a_j)}{\sigma\lVert h\rVert} h,

with the **secant** of the mean activation :math:`m_j = \operatorname{erf}(a_j/\sqrt 2)` over the
flip. Replace the secant by the tangent, :math:`2\varphi(a_j)\mu_{ji}/(\sigma\lVert h\rVert)`, and
it is the matched STE (:mod:`gradlab.estimators.ste`), which the paper derives in the same way. The
two part where a flip moves a pre-activation, by :math:`2|\mu_{ji}|`, as far as its width
:math:`\sigma\lVert h\rVert` or farther: narrow layers, small σ. (These forms were derived anew for
Gaussian noise; read beside the authors' program, which has logistic noise, they are the same.)

The last hidden layer is not sampled: its and the output layer's noise are taken in closed form, as
in the matched STE, and the layer before gets the differences of that closed form under its flips
without linearization, one layer more than in the paper, at the same cost.

**Unbiased** for the smoothed loss in the last three layers of weights, at any depth: one or two
hidden layers are exact in expectation, one without any variance. Before them it is biased by the
products of two or more Δ of the same flip, a bias of second order in what a flip does to the next
layer's probabilities, while the matched STE is off to second order in the flip's size for every
connection alone, two hidden layers included. In the first of three hidden layers of 2 or 3 units,
weights N(0, 1), σ = .5, the biases in the tests are 47, 13 and 1 % of the gradient's norm where
those of the matched STE are 97, 89 and 59 %. (With one unit in the layer behind, or a loss that
adds up over that layer's units, there are no products, and no bias.)

**Cost** in multiplications of matrices: one forward and one backward pass for each of ``passes``,
which is what ``forward_passes`` and ``backward_passes`` count. Besides, it evaluates an error
function for every connection behind the first layer, n² for an example and a layer where the
matched STE has n, and these take most of the time, the more, the wider the layers are. Memory:
blocks of examples, n² numbers for each.

Works on the perceptrons with real weights and sign activations.

>>> from gradlab.objectives import TeacherStudent
>>> objective = TeacherStudent(num_dim=4, batch_size=256, seed=0)
>>> params = objective.initial_params(seed=0)
>>> generator = torch.Generator().manual_seed(0)
>>> estimate = PSA().estimate(objective, params, generator=generator)
>>> estimate.gradient["layers.0.weight"].shape, estimate.forward_passes, estimate.backward_passes
(torch.Size([4, 4]), 1.0, 1.0)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradlab.binary import sign
from gradlab.estimators.base import GradientEstimate, OneEstimate, above_zero, require_finite
from gradlab.estimators.matched import (
    closed_form_losses,
    draw_noise,
    require_layered,
    require_signs,
    spread_of,
)
from gradlab.evaluation import population as pop
from gradlab.evaluation.noise import draw_key
from gradlab.evaluation.population import Params
from gradlab.models.mlp import positive_integer
from gradlab.objectives.base import LayeredObjective, Objective

_ROOT_2 = math.sqrt(2.0)
# Floats of one layer's flips in flight: a megabyte each, a handful at a time; on a GPU, where every
# block has its launches to pay, half a gigabyte.
_BLOCK_FLOATS = 2**18
_GPU_BLOCK_FLOATS = 2**27


@dataclass(frozen=True)
class PSA(OneEstimate):
    """One sampled forward pass, and the mean effect of every flip carried back through it.

    Args:
        sigma: standard deviation of every weight.
        passes: sampled passes to average over.

    Raises:
        ValueError: an option out of range; an objective without layers, with binary weights or with
            other activations than signs; a parameter that is not finite.
    """

    sigma: float = 0.1
    passes: int = 1

    def __post_init__(self) -> None:
        above_zero("sigma", self.sigma)
        positive_integer("passes", self.passes)

    def estimate(
        self, objective: Objective, params: Params, *, generator: torch.Generator
    ) -> GradientEstimate:
        """The mean over ``passes`` sampled passes."""
        layered = require_layered(objective, "psa")
        require_signs(layered, "psa")
        params = require_finite(params)
        key = draw_key(generator)
        total = {name: torch.zeros_like(w) for name, w in params.items()}
        for examples in _blocks(layered, params):
            for index in range(self.passes):
                _add_gradient(total, layered, params, self.sigma, key, index, examples)
        count = len(layered.inputs) * self.passes
        return GradientEstimate(
            {name: summed / count for name, summed in total.items()},
            forward_passes=float(self.passes),
            backward_passes=float(self.passes),
        )

    def label(self) -> str:
        """``PSA``, with options that are not the default."""
        text = "PSA" if self.passes == 1 else f"PSA ({self.passes} passes)"
        return text if self.sigma == 0.1 else f"{text} σ={self.sigma:g}"


def _blocks(objective: LayeredObjective, params: Params) -> Sequence[tuple[int, int]]:
    """Half-open ranges of examples whose flips are held together."""
    # behind the first layer, whose inputs do not flip
    connections = [params[name].numel() for name in objective.layer_names[1:]]
    floats = _GPU_BLOCK_FLOATS if objective.inputs.is_cuda else _BLOCK_FLOATS
    return pop.chunks(len(objective.inputs), max(1, floats // max(connections)))


def _add_gradient(
    total: Params,
    objective: LayeredObjective,
    params: Params,
    sigma: float,
    key: int,
    index: int,
    examples: tuple[int, int],
) -> None:
    """Add the gradients of a range of examples in one pass, summed over them, to ``total``."""
    *sampled, last, output = objective.layer_names
    dtype = params[last].dtype
    hidden = objective.inputs[slice(*examples)].to(dtype)
    targets = objective.targets[slice(*examples)].to(dtype)
    # inputs, the spread of the pre-activations and their means in units of it, layer by layer
    steps: list[tuple[str, Tensor, Tensor, Tensor]] = []
    for layer, name in enumerate(sampled):
        spread = spread_of(objective.activation, hidden, sigma, first=layer == 0)
        mean = hidden @ params[name].T / spread
        steps.append((name, hidden, spread, mean))
        drawn = draw_noise(key, layer, index, examples, mean.shape[1], mean.device)
        hidden = objective.activation.forward(mean + drawn)
    head = [params[name].detach().clone().requires_grad_() for name in (last, output)]
    losses = closed_form_losses(
        objective, hidden, (head[0], head[1]), targets, sigma, first=not sampled
    )
    gradients = torch.autograd.grad(losses.sum(), head)
    for name, gradient in zip((last, output), gradients, strict=True):
        total[name] += gradient
    if not sampled:
        return
    flipped = _losses_of_flips(objective, hidden, (params[last], params[output]), targets, sigma)
    slope = 0.5 * hidden * (losses.detach()[:, None] - flipped)
    for layer in reversed(range(len(steps))):
        name, inputs, spread, mean = steps[layer]
        derivative = torch.exp(-0.5 * mean.square()) * math.sqrt(2 / math.pi) / spread
        total[name] += (slope * derivative).T @ inputs
        if layer:
            slope = 0.5 * inputs * _secants(mean, inputs, params[name], spread, slope)


def after_flips(
    mean: Tensor, inputs: Tensor, weight: Tensor, spread: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Where the means of a layer's pre-activations go when one input flips.

    Args:
        mean: of the pre-activations, over ``spread``, ``(B, out)``.
        inputs: signs, ``(B, in)``.
        weight: ``(out, in)``.
        spread: standard deviation of the pre-activations, ``(B, 1)``.

    Returns:
        The sign of ``mean`` and, for every input's flip, the new mean times that sign over
        :math:`\sqrt 2`, ``(B, out, in)``. So the mean activation of unit j is
        ``side[:, j] * erf(moved[:, j, i])`` with input i flipped.

    >>> side, moved = after_flips(torch.tensor([[-1.0]]), torch.ones(1, 2),
    ...                           torch.tensor([[-3.0, 2.0]]), torch.ones(1, 1))
    >>> side.tolist(), (2**0.5 * moved).round(decimals=4).tolist()
    ([[-1.0]], [[[-5.0, 5.0]]])
    """
    side = sign(mean)
    start = (side * mean / _ROOT_2)[:, :, None]
    moves = weight * inputs[:, None, :]
    return side, torch.addcmul(start, (side / spread)[:, :, None], moves, value=-_ROOT_2)


def _secants(mean: Tensor, inputs: Tensor, weight: Tensor, spread: Tensor, slope: Tensor) -> Tensor:
    """How far the sum of slope times mean activation falls when an input flips, ``(B, in)``."""
    side, moved = after_flips(mean, inputs, weight, spread)
    # as tails on the side where the mean was, which keep their digits
    before = torch.special.erfc(side * mean / _ROOT_2)
    falls: Tensor = torch.special.erfc(moved, out=moved) - before[:, :, None]
    return ((side * slope)[:, None, :] @ falls)[:, 0]


def _losses_of_flips(
    objective: LayeredObjective,
    hidden: Tensor,
    weights: tuple[Tensor, Tensor],
    targets: Tensor,
    sigma: float,
) -> Tensor:
    """Expected losses over the last two layers' noise with one unit of ``hidden`` flipped.

    Returns:
        One for every example and unit, ``(B, n)``.
    """
    spread = spread_of(objective.activation, hidden, sigma, first=False)
    side, moved = after_flips(hidden @ weights[0].T / spread, hidden, weights[0], spread)
    size = torch.erf(moved, out=moved)
    means = (side[:, None, :] * weights[1]) @ size
    # the output layer's own noise, of every unit's square, and what is left of the hidden ones'
    noise = sigma**2 * weights[1].shape[1] + weights[1].square().sum(dim=1)[:, None]
    variances = noise - weights[1].square() @ size.square()
    pairs = [moment.transpose(1, 2).flatten(0, 1) for moment in (means, variances)]
    repeated = targets.repeat_interleave(hidden.shape[1], dim=0)
    return objective.expected_losses(pairs[0], pairs[1], repeated).view(hidden.shape)
