r"""Concrete dropout: dropout of the inputs with a probability p that is learned, one per layer.

(Gal, Hron and Kendall, "Concrete Dropout", NeurIPS 2017, arXiv 1705.07832.) The mask is relaxed,

.. math:: z = \operatorname{sigmoid}\big((\operatorname{logit} p + \operatorname{logit} u)/t\big),
    \qquad y = W \frac{x (1 - z)}{1 - p} + b, \qquad u \sim U(0, 1)

(equation 5), one z for each example and input feature; in convolutions for each example and input
channel, all positions together. z exceeds ½ with probability p at every temperature t, and is
Bernoulli as t → 0. Without noise the layer is W x + b: what was divided by 1 − p needs no
correction. (The published code uses t = 0.1, as here, and 2/3 for convolutions.)

**Which objective this is.** With dropped columns of W/(1 − p) as posterior and N(0, 1/l²) as prior,
the paper's equation 3 is, up to a constant,

.. math:: \mathrm{KL} = \frac{l^2}{2} \frac{\|W\|^2}{1 - p} - K \, H(p), \qquad
    H(p) = -p \ln p - (1 - p) \ln(1 - p),

for K input units, and its objective is mean NLL + KL/N. That is the loss of gradlab's training, so
:meth:`kl` returns this KL, which is N times the terms that the paper's code adds to the mean loss,
:math:`w_r \|W\|^2/(1 - p) - d_r K H(p)`: here :math:`w_r = l^2/(2N)` and :math:`d_r = 1/N`. (For
a squared error of precision τ that code adds them to NLL·2/τ, hence its :math:`w_r = l^2/(\tau N)`
and :math:`d_r = 2/(\tau N)`, which is the same objective.) ``weight_regularizer`` replaces
:math:`N w_r` and ``dropout_regularizer`` is :math:`N d_r`. The KL can be negative, for its constant
is missing. Biases have no KL.

>>> layer = Concrete(initial=0.2, length_scale=1.0).linear(3, 2)
>>> round(layer.dropout().item(), 6), layer(torch.ones(4, 3)).shape
(0.2, torch.Size([4, 2]))
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradlab.estimators.base import above_zero, probability
from gradlab.variational.base import Conv2dMap, LinearMap, StochasticLayer
from gradlab.variational.kl import concrete_entropy
from gradlab.variational.methods import REGISTRY


@REGISTRY.register("concrete")
@dataclass(frozen=True)
class Concrete:
    """Dropout of input units with a learned probability.

    Args:
        initial: dropout probability at the start.
        temperature: of the relaxed mask; small is close to ordinary dropout.
        length_scale: l of the prior N(0, 1/l²) on weights.
        weight_regularizer: factor of ‖W‖²/(1 − p) in the KL, N times the paper's w_r; left out, it
            is l²/2.
        dropout_regularizer: factor of −K·H(p) in the KL, N times the paper's d_r.

    Raises:
        ValueError: an option out of range.
    """

    initial: float = 0.1
    temperature: float = 0.1
    length_scale: float = 0.01
    weight_regularizer: float | None = None
    dropout_regularizer: float = 1.0

    def __post_init__(self) -> None:
        probability("initial", self.initial)
        above_zero("temperature", self.temperature)
        above_zero("length_scale", self.length_scale)
        above_zero("dropout_regularizer", self.dropout_regularizer)
        if self.weight_regularizer is not None:
            above_zero("weight_regularizer", self.weight_regularizer)

    def linear(self, *args: Any, **options: Any) -> ConcreteLinear:
        """A layer in place of ``torch.nn.Linear(*args, **options)``."""
        return ConcreteLinear(*args, method=self, **options)

    def conv2d(self, *args: Any, **options: Any) -> ConcreteConv2d:
        """A layer in place of ``torch.nn.Conv2d(*args, **options)``."""
        return ConcreteConv2d(*args, method=self, **options)


class _Concrete(StochasticLayer):
    def __init__(self, *args: Any, method: Concrete | None = None, **torch_options: Any) -> None:
        super().__init__(*args, **torch_options)
        self.method = method or Concrete()
        initial = self.method.initial
        self.logit_p = nn.Parameter(self.weight.new_tensor(math.log(initial / (1 - initial))))

    def dropout(self) -> Tensor:
        """The probability p that an input unit is dropped, ``()``."""
        return torch.sigmoid(self.logit_p)

    def noisy_forward(self, x: Tensor) -> Tensor:
        """With a relaxed mask on the inputs."""
        log_odds = self.logit_p + logistic(self.unit_shape(x), self.weight)
        # 1 − sigmoid(a) is sigmoid(−a), without the cancellation
        kept = torch.sigmoid(-log_odds / self.method.temperature) / torch.sigmoid(-self.logit_p)
        return self.mean_forward(x * kept)

    def kl(self) -> Tensor:
        """N times the paper's regularizer, see the module's docstring."""
        by_length_scale = self.method.length_scale**2 / 2
        given = self.method.weight_regularizer
        factor = by_length_scale if given is None else given
        on_weights = factor * self.weight.square().sum() / torch.sigmoid(-self.logit_p)
        entropy = self.input_units() * concrete_entropy(self.dropout())
        return on_weights - self.method.dropout_regularizer * entropy

    def log_alpha(self) -> Tensor:
        """ln(p/(1 − p)), ``()``: exact for a mask that is not relaxed."""
        return self.logit_p


class ConcreteLinear(_Concrete, LinearMap):
    """``torch.nn.Linear`` with concrete dropout of its inputs."""


class ConcreteConv2d(_Concrete, Conv2dMap):
    """``torch.nn.Conv2d`` with concrete dropout of its input channels."""


def logistic(shape: list[int], like: Tensor) -> Tensor:
    """Standard logistic noise logit(u), with u held off 0 and 1 by 1e-6.

    >>> logistic([2, 3], torch.ones(1)).shape
    torch.Size([2, 3])
    """
    u = torch.empty(shape, device=like.device, dtype=like.dtype)
    return torch.logit(u.uniform_(1e-6, 1 - 1e-6))
