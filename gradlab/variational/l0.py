r"""L0 regularization: weights times gates that can be exactly zero, and whose number costs.

(Louizos, Welling and Kingma, "Learning Sparse Neural Networks through L0 Regularization", ICLR
2018, arXiv 1712.01312.) A gate is hard concrete (equations 10-11): for u ~ U(0, 1) and γ = −0.1,
ζ = 1.1,

.. math:: s = \operatorname{sigmoid}\big((\operatorname{logit} u + \log\alpha)/\tau\big), \qquad
    z = \min(1, \max(0, s (\zeta - \gamma) + \gamma)),

so that P(z ≠ 0) = sigmoid(log α − τ ln(−γ/ζ)) (equation 12). ``log_odds`` is log α. Without noise
the gate is that of the paper's test time, min(1, max(0, sigmoid(log α)(ζ − γ) + γ)) (equation 13),
and :meth:`mask` is where it is not 0. Gates belong to single weights, to input units (features or
channels, the default; the paper's choice for linear layers) or to output units (its choice for
convolutions). One set of gates is drawn per forward pass (per group of samples), shared by the
batch, as in the paper.

:meth:`kl` is the paper's complexity, Σ P(z ≠ 0)(λ + ½ ``weight_decay`` w²) over weights: a gate of
m weights costs m λ. It is a KL only in the paper's appendix, but enters the loss like one, divided
by N, so ``penalty`` is N times the λ of the paper's equation 9 and the λ of its code. Biases have
neither gate nor cost.

Training must call :meth:`project`, which holds log α in ±ln 100 after each step, as the paper's
code does.

>>> layer = L0(penalty=0.1).linear(3, 2)
>>> round(layer.nonzero_probability()[0].item(), 3), layer.gates().tolist()
(0.832, [0.5, 0.5, 0.5])
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradlab.estimators.base import above_zero, at_least_zero, one_of, probability
from gradlab.variational.base import Conv2dMap, LinearMap, StochasticLayer
from gradlab.variational.concrete import logistic
from gradlab.variational.methods import REGISTRY

GROUPS = ("weights", "inputs", "outputs")
STRETCH = (-0.1, 1.1)
"""γ and ζ: the interval that the concrete variable is stretched to before it is clipped to 0…1."""
LARGEST_LOG_ODDS = math.log(100)


@REGISTRY.register("l0")
@dataclass(frozen=True)
class L0:
    """Hard concrete gates.

    Args:
        groups: what a gate belongs to: "weights" (each its own), "inputs" or "outputs".
        penalty: λ, the cost of a weight that is not zero, in nats.
        weight_decay: half of it is the cost of the square of a weight that is not zero, in nats.
        droprate_init: every gate starts with log α = ln((1 − droprate_init)/droprate_init); without
            noise 0.5 halves the weights, and up to 1/12 leaves them as they are.
        temperature: τ.

    Raises:
        ValueError: an option out of range.
    """

    groups: str = "inputs"
    penalty: float = 1.0
    weight_decay: float = 0.0
    droprate_init: float = 0.5
    temperature: float = 2 / 3

    def __post_init__(self) -> None:
        one_of("groups", self.groups, GROUPS)
        at_least_zero("penalty", self.penalty)
        at_least_zero("weight_decay", self.weight_decay)
        probability("droprate_init", self.droprate_init)
        above_zero("temperature", self.temperature)

    def linear(self, *args: Any, **options: Any) -> L0Linear:
        """A layer in place of ``torch.nn.Linear(*args, **options)``."""
        return L0Linear(*args, method=self, **options)

    def conv2d(self, *args: Any, **options: Any) -> L0Conv2d:
        """A layer in place of ``torch.nn.Conv2d(*args, **options)``."""
        return L0Conv2d(*args, method=self, **options)


class _L0(StochasticLayer):
    def __init__(self, *args: Any, method: L0 | None = None, **torch_options: Any) -> None:
        super().__init__(*args, **torch_options)
        self.method = method or L0()
        sizes = {"inputs": (self.input_units(),), "outputs": (self.output_units(),)}
        shape = sizes.get(self.method.groups, tuple(self.weight.shape))
        rate = self.method.droprate_init
        start = torch.full(shape, math.log((1 - rate) / rate))
        self.log_odds = nn.Parameter(start.to(self.weight))

    def noisy_forward(self, x: Tensor) -> Tensor:
        """With gates drawn for each group of samples."""
        noise = logistic([self.samples, *self.log_odds.shape], self.weight)
        s = torch.sigmoid((noise + self.log_odds) / self.method.temperature)
        return self.apply_weights(x, self.weight * self._over_weight(stretched(s)), self.bias)

    def gates(self) -> Tensor:
        """The gates without noise, in 0…1, one for each weight or unit."""
        return stretched(torch.sigmoid(self.log_odds))

    def nonzero_probability(self) -> Tensor:
        """P(z ≠ 0) of every gate."""
        low, high = STRETCH
        return torch.sigmoid(self.log_odds - self.method.temperature * math.log(-low / high))

    def mean_weight(self) -> Tensor:
        """The weight times the gate without noise: the paper's estimator, not the exact mean."""
        return self.weight * self._over_weight(self.gates())

    def kl(self) -> Tensor:
        """The expected cost of the weights that are not zero."""
        cost = self.method.penalty + self.method.weight_decay / 2 * self.weight.square()
        return (self._over_weight(self.nonzero_probability()) * cost).sum()

    def mask(self) -> Tensor:
        """Where the gate without noise is not 0."""
        return (self._over_weight(self.gates()) > 0).expand_as(self.weight)

    def project(self) -> None:
        """Hold log α in ±ln 100."""
        with torch.no_grad():
            self.log_odds.clamp_(-LARGEST_LOG_ODDS, LARGEST_LOG_ODDS)

    def _over_weight(self, values: Tensor) -> Tensor:
        """Values of gates ``(…, gates)`` in a shape that multiplies the weight."""
        if self.method.groups == "weights":
            return values
        if self.method.groups == "outputs":
            by_weight = values[..., None]
        else:
            # in a grouped convolution output o sees the inputs of its own group only
            groups = getattr(self, "groups", 1)
            by_group = values.reshape(*values.shape[:-1], groups, -1)
            by_weight = by_group.repeat_interleave(self.output_units() // groups, -2)
        return by_weight.reshape(*by_weight.shape, *[1] * (self.weight.dim() - 2))


class L0Linear(_L0, LinearMap):
    """``torch.nn.Linear`` with hard concrete gates."""


class L0Conv2d(_L0, Conv2dMap):
    """``torch.nn.Conv2d`` with hard concrete gates."""


def stretched(s: Tensor) -> Tensor:
    """min(1, max(0, s(ζ − γ) + γ)).

    >>> stretched(torch.tensor([0.05, 0.5, 0.99])).tolist()
    [0.0, 0.5, 1.0]
    """
    low, high = STRETCH
    return (s * (high - low) + low).clamp(0, 1)
