r"""Noise on units: every input or output of a layer is multiplied by a random number of mean 1.

With h a unit, ε ~ N(0, 1) and m ~ Bernoulli(1 − p), drawn for every example and unit (in a
convolution for every position too, as ``torch.nn.Dropout`` does):

============== ================= ==============================================================
method         noise             α
============== ================= ==============================================================
none           h
bernoulli      h m/(1 − p)       Srivastava et al. 2014, JMLR 15
gaussian_s     h (1 + √α ε)      p/(1 − p), so that the variance is that of bernoulli (same paper)
variational_a  h (1 + √α ε)      learned, one per unit, with the KL term of a log-uniform prior on
                                 the noise, for α ≤ 1 (Kingma et al. 2015, arXiv 1506.02557,
                                 section 3.2: "correlated weight noise", type A)
sparse_a       h (1 + √α ε)      likewise for every α (Molchanov et al. 2017, arXiv 1701.05369)
hierarchical_a h (1 + √α ε)      likewise under a prior that learns its width (Liu et al. 2018,
                                 arXiv 1811.07533)
============== ================= ==============================================================

A learned α belongs to a feature, or to a channel of a convolution, and its KL term counts **once**
for each of them. Noise on the outputs acts on the layer's result, bias included, before whatever
nonlinearity follows. The mean weight is the weight itself, so that a network without noise computes
what torch's layers would.

The parameter is ln α, and :func:`gradlab.variational.project` holds it in [−8, 8] (variational_a:
[−8, 0]) after each step. With ``mode="faithful"`` the forward pass clamps it instead, as the first
comparison of these methods did: where it has once crossed a bound its gradient is zero, and it
stays there for good.

>>> layer = GaussianS(p=0.2).linear(3, 2)
>>> layer(torch.ones(4, 3)).shape, float(layer.log_alpha().exp())
(torch.Size([4, 2]), 0.25)
>>> sparse = SparseA(side="output").conv2d(3, 8, 5)
>>> sparse.log_alpha().shape, bool(sparse.kl() > 0), bool(sparse.mask().all())
(torch.Size([8]), True, True)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradlab.estimators.base import finite, one_of, probability
from gradlab.variational.base import Conv2dMap, LinearMap, StochasticLayer
from gradlab.variational.kl import ard, log_uniform, log_uniform_cubic
from gradlab.variational.methods import REGISTRY

SIDES = ("input", "output")
MODES = ("correct", "faithful")
SMALLEST_LOG_ALPHA = -8.0
# ln α where a layer's parameter is ln α itself: noise of a fifth of the unit's size, about where
# ln σ² = −10 starts a weight of torch's initialization at a fan-in of 200
INITIAL_LOG_ALPHA = -3.0


@dataclass(frozen=True)
class Prior:
    """What a learned α costs.

    Attributes:
        divergence: elementwise, from ln α to nats, see :mod:`gradlab.variational.kl`.
        largest: ln α above which the divergence means nothing, or the noise nothing any more.
    """

    divergence: Callable[[Tensor], Tensor]
    largest: float

    def clamp(self, log_alpha: Tensor) -> Tensor:
        """Into the prior's range; the gradient is zero beyond."""
        return log_alpha.clamp(SMALLEST_LOG_ALPHA, self.largest)

    def check_initial(self, initial: float) -> None:
        """Refuse an initial ln α beyond the range, in one sentence."""
        finite("initial", initial)
        if not SMALLEST_LOG_ALPHA <= initial <= self.largest:
            raise ValueError(
                f"initial is {initial!r}: give a log alpha from {SMALLEST_LOG_ALPHA:g} to "
                f"{self.largest:g}."
            )


CUBIC = Prior(log_uniform_cubic, 0.0)
LOG_UNIFORM = Prior(log_uniform, 8.0)
HIERARCHICAL = Prior(ard, 8.0)


@REGISTRY.register("none")
@dataclass(frozen=True)
class NoNoise:
    """No noise: layers that compute what torch's do, for comparisons."""

    def linear(self, *args: Any, **options: Any) -> LinearMap:
        """A layer in place of ``torch.nn.Linear(*args, **options)``."""
        return LinearMap(*args, **options)

    def conv2d(self, *args: Any, **options: Any) -> Conv2dMap:
        """A layer in place of ``torch.nn.Conv2d(*args, **options)``."""
        return Conv2dMap(*args, **options)


class _OnUnits:
    """Makes the layers of all methods here, which are frozen dataclasses with a ``side``."""

    side: str

    def linear(self, *args: Any, **options: Any) -> UnitNoiseLinear:
        """A layer in place of ``torch.nn.Linear(*args, **options)``."""
        return UnitNoiseLinear(*args, method=self, **options)

    def conv2d(self, *args: Any, **options: Any) -> UnitNoiseConv2d:
        """A layer in place of ``torch.nn.Conv2d(*args, **options)``."""
        return UnitNoiseConv2d(*args, method=self, **options)


@dataclass(frozen=True)
class _FixedOnUnits(_OnUnits):
    p: float = 0.5
    side: str = "input"

    def __post_init__(self) -> None:
        probability("p", self.p)
        one_of("side", self.side, SIDES)


@REGISTRY.register("bernoulli")
@dataclass(frozen=True)
class Bernoulli(_FixedOnUnits):
    """Dropout: units are dropped, and the others scaled up.

    Args:
        p: probability of dropping.
        side: "input" or "output" of the layer.

    Raises:
        ValueError: an option out of range.
    """


@REGISTRY.register("gaussian_s")
@dataclass(frozen=True)
class GaussianS(_FixedOnUnits):
    """Gaussian dropout on units.

    Args:
        p: of the Bernoulli dropout with the same variance, α = p/(1 − p).
        side: "input" or "output" of the layer.

    Raises:
        ValueError: an option out of range.
    """


@dataclass(frozen=True)
class LearnedOnUnits(_OnUnits):
    """What the methods with a learned α for each unit share."""

    side: str = "input"
    initial: float = INITIAL_LOG_ALPHA
    mode: str = "correct"
    prior: ClassVar[Prior]

    def __post_init__(self) -> None:
        one_of("side", self.side, SIDES)
        one_of("mode", self.mode, MODES)
        self.prior.check_initial(self.initial)


@REGISTRY.register("variational_a")
@dataclass(frozen=True)
class VariationalA(LearnedOnUnits):
    """Variational dropout, type A: a learned α ≤ 1 for each unit.

    Args:
        side: "input" or "output" of the layer.
        initial: ln α at the start.
        mode: "correct", or "faithful": α is clamped in the forward pass, see the module's
            docstring.

    Raises:
        ValueError: an option out of range.
    """

    prior = CUBIC


@REGISTRY.register("sparse_a")
@dataclass(frozen=True)
class SparseA(LearnedOnUnits):
    """Sparse variational dropout of units.

    Args:
        side: "input" or "output" of the layer.
        initial: ln α at the start.
        mode: "correct", or "faithful": α is clamped in the forward pass, see the module's
            docstring.
        threshold: the weights of units with ln α above it are removed by the mask; biases stay.

    Raises:
        ValueError: an option out of range.
    """

    threshold: float = 3.0
    prior = LOG_UNIFORM

    def __post_init__(self) -> None:
        super().__post_init__()
        finite("threshold", self.threshold)


@REGISTRY.register("hierarchical_a")
@dataclass(frozen=True)
class HierarchicalA(SparseA):
    """Hierarchical variational dropout (automatic relevance determination) of units.

    Its options are those of :class:`SparseA`, its prior learns its width.
    """

    prior = HIERARCHICAL


class _UnitNoise(StochasticLayer):
    def __init__(self, *args: Any, method: _OnUnits | None = None, **torch_options: Any) -> None:
        super().__init__(*args, **torch_options)
        self.method = method or Bernoulli()
        self.unit_log_alpha: nn.Parameter | None = None
        if isinstance(self.method, LearnedOnUnits):
            units = self.input_units() if self.method.side == "input" else self.output_units()
            self.unit_log_alpha = nn.Parameter(self.weight.new_full((units,), self.method.initial))

    def noisy_forward(self, x: Tensor) -> Tensor:
        """With noise on inputs or outputs."""
        if self.method.side == "input":
            return self.mean_forward(self._multiplied(x, self.over_inputs))
        return self._multiplied(self.mean_forward(x), self.over_outputs)

    def kl(self) -> Tensor:
        """Summed over the units whose α is learned."""
        if not isinstance(self.method, LearnedOnUnits):
            return super().kl()
        return self.method.prior.divergence(self.log_alpha()).sum()

    def log_alpha(self) -> Tensor:
        """Of every unit, ``(units,)``, or one for all, ``()``, where it is fixed."""
        if isinstance(self.method, _FixedOnUnits):
            return self.weight.new_tensor(math.log(self.method.p / (1 - self.method.p)))
        assert isinstance(self.method, LearnedOnUnits)
        assert self.unit_log_alpha is not None
        if self.method.mode == "faithful":
            return self.method.prior.clamp(self.unit_log_alpha)
        return self.unit_log_alpha

    def mask(self) -> Tensor | None:
        """The weights of units whose ln α is at most the threshold."""
        if not isinstance(self.method, SparseA):
            return None
        kept = self.log_alpha() <= self.method.threshold
        if self.method.side == "input":
            kept = self._of_inputs(kept)
        return kept.reshape(*kept.shape, *[1] * (self.weight.dim() - kept.dim())).expand_as(
            self.weight
        )

    def project(self) -> None:
        """Hold ln α within its prior's range; nothing in faithful mode."""
        if isinstance(self.method, LearnedOnUnits) and self.method.mode == "correct":
            assert self.unit_log_alpha is not None
            with torch.no_grad():
                self.unit_log_alpha.copy_(self.method.prior.clamp(self.unit_log_alpha))

    def _multiplied(self, h: Tensor, over_units: Callable[[Tensor], Tensor]) -> Tensor:
        if isinstance(self.method, Bernoulli):
            return F.dropout(h, self.method.p)
        sigma = (self.log_alpha() / 2).exp()
        return h * (1 + (over_units(sigma) if sigma.dim() else sigma) * torch.randn_like(h))

    def _of_inputs(self, values: Tensor) -> Tensor:
        """A value for each input unit, in the shape of the weight's first two dimensions."""
        outputs, inputs = self.weight.shape[:2]
        groups = len(values) // inputs
        of_groups = values.reshape(groups, 1, inputs).expand(groups, outputs // groups, inputs)
        return of_groups.reshape(outputs, inputs)


class UnitNoiseLinear(_UnitNoise, LinearMap):
    """``torch.nn.Linear`` with noise on its inputs or outputs."""


class UnitNoiseConv2d(_UnitNoise, Conv2dMap):
    """``torch.nn.Conv2d`` with noise on its inputs or outputs."""
