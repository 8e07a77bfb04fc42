r"""Noise on weights: w ~ N(θ, α θ²), a random number of mean 1 times every weight.

=============== ============================================================ =================
method          KL term, summed over all weights of the layer                range of ln α
=============== ============================================================ =================
gaussian_w      none; α = p/(1 − p) is fixed (Wang and Manning 2013, "Fast
                dropout training", ICML)
variational_b   log-uniform prior, the cubic fit for α ≤ 1 (Kingma et al.    [−8, 0]
                2015, arXiv 1506.02557, section 3.2: "independent weight
                noise", type B)
sparse          log-uniform prior, a fit for every α (Molchanov et al. 2017, [−8, 8]
                arXiv 1701.05369, equation 14)
hierarchical    a prior that learns its width: ½ ln(1 + 1/α) (Liu et al.     [−8, 8]
(ard)           2018, arXiv 1811.07533, and Kharitonov et al. 2018, arXiv
                1811.00596, which come to the same)
=============== ============================================================ =================

``weight`` is θ. Noise is drawn in one of two ways that have the same mean and variance of every
pre-activation:

- ``preactivations``: each is drawn from
  :math:`N(\sum_i x_i \theta_i, \sum_i x_i^2 \sigma_i^2)`, the local reparameterization trick
  (Kingma et al. 2015, equation 6): independent for every example (and, in a convolution, for every
  position, which the weights themselves are not), at the cost of a second linear map.
- ``weights``: one weight for each forward pass, or group of samples, shared by its examples.

Biases have no noise. The learned parameter is one of two:

- ``log_sigma2``, ln σ², whence ln α = ln σ² − ln(θ² + 1e-8). The noise is then additive, and the
  gradient in θ is spared the factor ε that multiplicative noise puts on it, which is what lets α
  grow large (Molchanov et al. 2017, "additive noise reparameterization").
- ``log_alpha``, ln α itself, whence σ² = α θ².

:func:`gradlab.variational.project` holds ln α in its range after each step. For ``log_sigma2`` it
moves σ², not θ: the bounds are at ln(θ² + 1e-8) − 8 and + 8. (The 1e-8 keeps a weight of exactly
zero from pulling its σ² to zero as well; it could never leave.)

``removal`` says when a weight beyond the threshold stops to take part: "afterwards", when the
network is pruned, or "while_training". Then it has neither mean nor variance from the moment at
which its ln α crosses the threshold, and only the KL term still moves it, away from the network: no
data brings it back. What is trained is what is kept, and removed weights add no noise, whereas
afterwards thousands of them do until they are gone. (The authors' programs remove while training
too, the means in linear layers and all in convolutions.)

``mode="faithful"`` does what the first comparison of these methods did, with two known mistakes.
(1) Noise on pre-activations is no local reparameterization there: every output has a single α, its
value is multiplied by 1 + √α ε, and the KL term counts once for each output instead of once for
each weight. Such a layer is one of :mod:`gradlab.variational.units`, with the noise on its outputs.
(2) ln α is clamped in the forward pass, so that beyond a bound it has no gradient and stays there.

>>> layer = Sparse().linear(3, 2)
>>> [name for name, _ in layer.named_parameters()], layer(torch.ones(4, 3)).shape
(['weight', 'bias', 'log_sigma2'], torch.Size([4, 2]))
>>> bool(layer.kl() > 0), bool(layer.mask().all())
(True, True)
>>> GaussianW(p=0.2).conv2d(1, 2, 3).kl()
tensor(0.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gradlab.estimators.base import finite, one_of, probability
from gradlab.evaluation.noise import compiled_problem
from gradlab.variational.base import Conv2dMap, Handover, LinearMap, StochasticLayer
from gradlab.variational.draws import standard_normal
from gradlab.variational.methods import REGISTRY
from gradlab.variational.units import (
    INITIAL_LOG_ALPHA,
    MODES,
    SMALLEST_LOG_ALPHA,
    HierarchicalA,
    LearnedOnUnits,
    Prior,
    SparseA,
    VariationalA,
)

NOISES = ("preactivations", "weights")
PARAMETERIZATIONS = ("log_sigma2", "log_alpha")
REMOVALS = ("afterwards", "while_training")
INITIAL_LOG_SIGMA2 = -10.0
# added to θ² wherever it is divided by, or its logarithm taken
_SMALLEST_SQUARE = 1e-8


class _OnWeights:
    """Makes the layers of all methods here, which are frozen dataclasses with a ``noise``."""

    noise: str

    def linear(self, *args: Any, **options: Any) -> StochasticLayer:
        """A layer in place of ``torch.nn.Linear(*args, **options)``."""
        return WeightNoiseLinear(*args, method=self, **options)

    def conv2d(self, *args: Any, **options: Any) -> StochasticLayer:
        """A layer in place of ``torch.nn.Conv2d(*args, **options)``."""
        return WeightNoiseConv2d(*args, method=self, **options)


@REGISTRY.register("gaussian_w")
@dataclass(frozen=True)
class GaussianW(_OnWeights):
    """Gaussian dropout on weights, with one fixed α.

    Args:
        p: of the Bernoulli dropout with the same variance, α = p/(1 − p).
        noise: "preactivations" or "weights".

    Raises:
        ValueError: an option out of range.
    """

    p: float = 0.5
    noise: str = "preactivations"

    def __post_init__(self) -> None:
        probability("p", self.p)
        one_of("noise", self.noise, NOISES)

    @property
    def alpha(self) -> float:
        """Variance over squared mean."""
        return self.p / (1 - self.p)


@dataclass(frozen=True)
class _Learned(_OnWeights):
    noise: str = "preactivations"
    parameterization: str = "log_sigma2"
    initial: float | None = None
    mode: str = "correct"
    units: ClassVar[type[LearnedOnUnits]]

    def __post_init__(self) -> None:
        one_of("noise", self.noise, NOISES)
        one_of("parameterization", self.parameterization, PARAMETERIZATIONS)
        one_of("mode", self.mode, MODES)
        if self.initial is not None:
            finite("initial", self.initial)
        if self.direct:
            self.prior.check_initial(self.start)

    @property
    def prior(self) -> Prior:
        """What α costs."""
        return self.units.prior

    @property
    def on_outputs(self) -> bool:
        """Whether this is faithful mode's noise on pre-activations."""
        return self.mode == "faithful" and self.noise == "preactivations"

    @property
    def direct(self) -> bool:
        """Whether the parameter is ln α."""
        return self.parameterization == "log_alpha" or self.on_outputs

    @property
    def start(self) -> float:
        """The parameter's initial value."""
        if self.initial is not None:
            return self.initial
        return INITIAL_LOG_ALPHA if self.direct else INITIAL_LOG_SIGMA2

    def linear(self, *args: Any, **options: Any) -> StochasticLayer:
        """A layer in place of ``torch.nn.Linear(*args, **options)``."""
        maker: Any = self.of_outputs() if self.on_outputs else super()
        made: StochasticLayer = maker.linear(*args, **options)
        return made

    def conv2d(self, *args: Any, **options: Any) -> StochasticLayer:
        """A layer in place of ``torch.nn.Conv2d(*args, **options)``."""
        maker: Any = self.of_outputs() if self.on_outputs else super()
        made: StochasticLayer = maker.conv2d(*args, **options)
        return made

    def of_outputs(self) -> LearnedOnUnits:
        """The method with one α for each output, in faithful mode."""
        return self.units("output", self.start, self.mode)


@REGISTRY.register("variational_b")
@dataclass(frozen=True)
class VariationalB(_Learned):
    """Variational dropout, type B: a learned α ≤ 1 for each weight.

    Args:
        noise: "preactivations" or "weights".
        parameterization: "log_alpha" or "log_sigma2". With the latter, weights near zero start
            above the bound, where this KL term means nothing: ``to_variational`` projects them,
            and so must whoever loads other weights into the layer.
        initial: the parameter's value at the start; -3 for ln α, -10 for ln σ².
        mode: "correct" or "faithful", see the module's docstring. Noise on pre-activations is
            always parameterized by ln α in faithful mode.

    Raises:
        ValueError: an option out of range.
    """

    parameterization: str = "log_alpha"
    units = VariationalA


@REGISTRY.register("sparse")
@dataclass(frozen=True)
class Sparse(_Learned):
    """Sparse variational dropout.

    Args:
        noise: "preactivations" or "weights".
        parameterization: "log_sigma2" or "log_alpha".
        initial: the parameter's value at the start; -10 for ln σ², -3 for ln α.
        mode: "correct" or "faithful", see the module's docstring. Noise on pre-activations is
            always parameterized by ln α in faithful mode.
        threshold: weights with ln α above it are removed by the mask.
        removal: "afterwards" or "while_training", see the module's docstring.

    Raises:
        ValueError: an option out of range, or removal while training of outputs' noise.
    """

    threshold: float = 3.0
    removal: str = "afterwards"
    units: ClassVar[type[SparseA]] = SparseA

    def __post_init__(self) -> None:
        super().__post_init__()
        finite("threshold", self.threshold)
        one_of("removal", self.removal, REMOVALS)
        if self.removes and self.on_outputs:
            raise ValueError(
                'removal = "while_training" is of weights, and with mode = "faithful" and '
                'noise = "preactivations" the noise is on outputs: use mode = "correct" or '
                'noise = "weights".'
            )

    @property
    def removes(self) -> bool:
        """Whether weights beyond the threshold take no part in training."""
        return self.removal == "while_training"

    def of_outputs(self) -> SparseA:
        """The method with one α for each output, in faithful mode."""
        return self.units("output", self.start, self.mode, self.threshold)


@REGISTRY.register("ard")
@REGISTRY.register("hierarchical")
@dataclass(frozen=True)
class Hierarchical(Sparse):
    """Hierarchical variational dropout, alias automatic relevance determination.

    Its options are those of :class:`Sparse`, its prior learns its width.
    """

    units = HierarchicalA


class _WeightNoise(StochasticLayer):
    def __init__(self, *args: Any, method: _OnWeights | None = None, **torch_options: Any) -> None:
        super().__init__(*args, **torch_options)
        self.method = method or Sparse()
        self.log_sigma2: Any = None  # a parameter, where the method has it
        self.weight_log_alpha: Any = None
        self._divergence = Handover()
        if isinstance(self.method, _Learned):
            start = nn.Parameter(torch.full_like(self.weight, self.method.start))
            if self.method.direct:
                self.weight_log_alpha = start
            else:
                self.log_sigma2 = start

    def noisy_forward(self, x: Tensor) -> Tensor:
        """With a draw of pre-activations, or of weights."""
        kept = self._kept()
        if self.method.noise == "preactivations":
            variance = self._spread()
            if kept is not None:
                variance = variance * kept
            return self.local_draw(x, self.mean_weight(), variance)
        noise = standard_normal((self.samples, *self.weight.shape), self.weight)
        drawn = self.weight + self.deviation() * noise
        return self.apply_weights(x, drawn if kept is None else drawn * kept, self.bias)

    def mean_weight(self) -> Tensor:
        """θ, of the weights that are kept where others are removed while training."""
        kept = self._kept()
        return self.weight if kept is None else self.weight * kept

    def variance(self) -> Tensor:
        """σ² of every weight."""
        return torch.exp(self.log_sigma2) if self._additive() else self.deviation().square()

    def deviation(self) -> Tensor:
        """What ε is multiplied by: σ of every weight, with the sign of θ where it is √α θ."""
        if self._additive():
            return torch.exp(self.log_sigma2 / 2)
        return torch.exp(self.log_alpha() / 2) * self.weight

    def kl(self) -> Tensor:
        """Summed over the weights."""
        if not isinstance(self.method, _Learned):
            return super().kl()
        if self.log_sigma2 is not None:
            on_the_way = self._divergence.take(self.weight, self.log_sigma2)
            if on_the_way is not None:
                return on_the_way
        fit = self.method.prior.divergence
        kernel = self._compiled()
        if kernel is not None and fit in kernel.FITS:
            found: Tensor = kernel.divergence(self.weight, self.log_sigma2, fit)
            return found
        return fit(self.log_alpha()).sum()

    def log_alpha(self) -> Tensor:
        """Of every weight, or one for all, ``()``, where it is fixed."""
        if isinstance(self.method, GaussianW):
            return self.weight.new_tensor(math.log(self.method.alpha))
        assert isinstance(self.method, _Learned)
        if self.log_sigma2 is not None:
            found = self.log_sigma2 - _log_square(self.weight)
        else:
            found = self.weight_log_alpha
        return self.method.prior.clamp(found) if self._clamps() else found

    def mask(self) -> Tensor | None:
        """The weights with ln α at most the threshold."""
        if not isinstance(self.method, Sparse):
            return None
        return self.log_alpha() <= self.method.threshold

    @torch.no_grad()
    def _kept(self) -> Tensor | None:
        """Which weights take part in training, 1 or 0; None where all do."""
        if not isinstance(self.method, Sparse) or not self.method.removes:
            return None
        return (self.log_alpha() <= self.method.threshold).to(self.weight.dtype)

    @torch.no_grad()
    def project(self) -> None:
        """Hold ln α within its range by moving σ²; nothing in faithful mode."""
        if not isinstance(self.method, _Learned) or self._clamps():
            return
        if self.log_sigma2 is None:
            self.weight_log_alpha.copy_(self.method.prior.clamp(self.weight_log_alpha))
            return
        low, high = SMALLEST_LOG_ALPHA, self.method.prior.largest
        kernel = self._compiled()
        if kernel is not None:
            kernel.bound(self.weight, self.log_sigma2, low, high)
        else:
            centre = _log_square(self.weight)
            torch.clamp(self.log_sigma2, centre + low, centre + high, out=self.log_sigma2)

    def _spread(self) -> Tensor:
        """The variances, and where it costs little the divergence on the way."""
        kernel = self._compiled() if torch.is_grad_enabled() else None
        fit = self.method.prior.divergence if isinstance(self.method, _Learned) else None
        if kernel is None or fit not in kernel.FITS:
            return self.variance()
        variance, divergence = kernel.spread(self.weight, self.log_sigma2, fit)
        self._divergence.give(divergence, self.weight, self.log_sigma2)
        found: Tensor = variance
        return found

    def _compiled(self) -> Any:
        """Compiled loops, if they serve here."""
        if not self._additive() or compiled_problem() is not None:
            return None
        from gradlab.variational import divergence_kernel as kernel

        return kernel if kernel.serves(self.weight, self.log_sigma2) else None

    def _additive(self) -> bool:
        """Whether the noise is that of a σ² of its own."""
        return self.log_sigma2 is not None and not self._clamps()

    def _clamps(self) -> bool:
        return isinstance(self.method, _Learned) and self.method.mode == "faithful"


class WeightNoiseLinear(_WeightNoise, LinearMap):
    """``torch.nn.Linear`` with noise on its weights."""


class WeightNoiseConv2d(_WeightNoise, Conv2dMap):
    """``torch.nn.Conv2d`` with noise on its weights."""


def _log_square(weight: Tensor) -> Tensor:
    return torch.log(weight.square() + _SMALLEST_SQUARE)
