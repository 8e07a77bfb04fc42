r"""Gaussian weights seen from behind their layer: noise on pre-activations, and its score.

A layer that multiplies the patches :math:`H` of one example, ``(positions, K)``, by its weights
``(O, K)`` turns independent noise :math:`\sigma\varepsilon_i` on the weights of output i into
Gaussian noise :math:`\sigma H\varepsilon_i` on that output's pre-activations. With
:math:`H^\top = QR` this is :math:`\sigma R^\top\xi`, where :math:`\xi = Q^\top\varepsilon_i` has as
many independent normals as there are positions, and :math:`E[\varepsilon_i \mid \xi] = Q\xi`. So
where positions are fewer than weights, noise is cheaper to draw behind the layer, and the score
:math:`Q\xi/\sigma` has less variance than :math:`\varepsilon_i/\sigma`, for the same smoothing. A
linear layer has one position: :math:`R = \lVert h\rVert`, the local reparameterization.

Noise that is independent in every position, of the same width
:math:`\sigma\lVert h_p\rVert`, is another matter: for more than one position it belongs to no noise
on the weights, and smooths the loss differently.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight
from torch.overrides import TorchFunctionMode

from gradlab.binary import activations
from gradlab.evaluation import smoothing
from gradlab.evaluation.module.graph import State
from gradlab.evaluation.population import Params

SIGN = activations.create("binary")
# Stride, padding, dilation and groups.
Convolution: TypeAlias = tuple[tuple[int, int], tuple[int, int], tuple[int, int], int]
Traces: TypeAlias = dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Call:
    """A call of ``linear`` or ``conv2d``.

    Attributes:
        inputs: what is multiplied.
        weight: by what.
        bias: what is added, if anything.
        convolution: stride, padding, dilation and groups; None for ``linear``.
    """

    inputs: Tensor
    weight: Tensor
    bias: Tensor | None
    convolution: Convolution | None

    @classmethod
    def of(
        cls, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Call | None:
        """The call, None if it is one of another function or of unusual arguments."""
        if func is F.linear:
            return _linear(*args, **kwargs)
        return _conv2d(*args, **kwargs) if func is torch.conv2d else None


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Call | None:
    return Call(input, weight, bias, None) if input.dim() > 1 and weight.dim() == 2 else None


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Call | None:
    steps, dilations = _pair(stride), _pair(dilation)
    if padding == "same":
        extents = [d * (k - 1) for d, k in zip(dilations, weight.shape[2:], strict=True)]
        if any(extent % 2 for extent in extents):
            return None
        padding = [extent // 2 for extent in extents]
    sides = _pair(0 if padding == "valid" else padding)
    if input.dim() != 4:
        return None
    return Call(input, weight, bias, (steps, sides, dilations, groups))


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


@dataclass(frozen=True)
class NoisyLayer:
    """A linear layer or convolution that has its noise behind it.

    Attributes:
        weight: name of the weight whose noise this is, if it is noisy.
        bias: likewise.
        shape: of the weight.
        convolution: see :class:`Call`.
        positions: pre-activations of one example and output channel.
        joint: positions share the noise of the weights; otherwise each has its own.
        conditioned: the network sees nothing but the sign of the pre-activations.
        is_output: they are the network's outputs.
    """

    weight: str | None
    bias: str | None
    shape: torch.Size
    convolution: Convolution | None
    positions: int
    joint: bool
    conditioned: bool = False
    is_output: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters whose noise this is."""
        return tuple(name for name in (self.weight, self.bias) if name is not None)

    @property
    def name(self) -> str:
        """The first of them."""
        return self.names[0]

    @property
    def numbers(self) -> int:
        """Independent normals for one example."""
        return self.positions * self.shape[0]

    def factors(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """What shapes the noise: Q and R where positions share it, otherwise the norms."""
        if not self.joint:
            return (self._norms(inputs),)
        if self.convolution is None:
            patches = inputs.flatten(1, -2).mT
        else:
            stride, padding, dilation, _ = self.convolution
            size = (self.shape[2], self.shape[3])
            patches = F.unfold(inputs, size, dilation, padding, stride)
        if self.bias is not None:
            patches = torch.cat((patches, torch.ones_like(patches[:, :1])), dim=1)
        q, r = torch.linalg.qr(patches)
        return q, r

    def _norms(self, inputs: Tensor) -> Tensor:
        """Of every patch, to be broadcast to the layer's output."""
        squares = inputs.square()
        if self.convolution is None:
            found = squares.sum(-1, keepdim=True)
        else:
            groups = self.convolution[3]
            ones = squares.new_ones(groups, *self.shape[1:])
            found = F.conv2d(squares, ones, None, *self.convolution)
            if groups > 1:
                found = found.repeat_interleave(self.shape[0] // groups, 1)
        if self.weight is None:
            found = torch.zeros_like(found)
        if self.bias is not None:
            found = found + 1.0
        # a patch of zeros has no noise, and none of its own score reaches the weights
        return found.clamp_min(1e-24).sqrt()

    def sample(
        self, mean: Tensor, factors: tuple[Tensor, ...], drawn: Tensor, sigma: float
    ) -> tuple[Tensor, Tensor]:
        """Noisy pre-activations, and the score of their noise.

        Args:
            mean: pre-activations without noise, ``(n, ..., O)`` or ``(n, O, H, W)``.
            factors: see :meth:`factors`.
            drawn: standard normals ``(n, numbers)``.
            sigma: standard deviation of the weights.

        Returns:
            The pre-activations, and the score: like them, or ``(n, positions, O)`` if joint.
        """
        if not self.joint:
            spread, drawn = sigma * factors[0], drawn.reshape(mean.shape)
            value = mean + spread * drawn
            if self.conditioned:
                return value, smoothing.score(SIGN, mean, spread, drawn)
            return value, drawn / spread
        drawn = drawn.reshape(len(mean), self.positions, self.shape[0])
        noise = sigma * (factors[1].mT @ drawn)
        if self.convolution is not None:
            noise = noise.mT
        return mean + noise.reshape(mean.shape), drawn / sigma

    def gradient(self, operand: Tensor, score: Tensor, rewards: Tensor) -> Params:
        """The sum over examples of rewards times scores, by parameter.

        Args:
            operand: Q if joint, otherwise the layer's inputs.
            score: from :meth:`sample`.
            rewards: ``(n,)``.
        """
        score = score * rewards.to(score.dtype).reshape(-1, *[1] * (score.dim() - 1))
        found = {}
        if self.joint:
            rows = torch.einsum("nkp,npo->ok", operand, score)
            columns = math.prod(self.shape[1:])
            if self.weight is not None:
                found[self.weight] = rows[:, :columns].reshape(self.shape)
            if self.bias is not None:
                found[self.bias] = rows[:, columns]
        elif self.convolution is None:
            score = score.flatten(0, -2)
            if self.weight is not None:
                found[self.weight] = score.T @ operand.flatten(0, -2)
            if self.bias is not None:
                found[self.bias] = score.sum(0)
        else:
            if self.weight is not None:
                found[self.weight] = conv2d_weight(  # type: ignore[no-untyped-call]
                    operand, self.shape, score, *self.convolution
                )
            if self.bias is not None:
                found[self.bias] = score.sum((0, 2, 3))
        return found


class NoisyCalls(TorchFunctionMode):
    """Inside it chosen layers are noisy; what their gradients need is kept.

    Args:
        layers: which.
        state: their parameters, recognized by identity.
        drawn: standard normals of every layer ``(n, numbers)``, by name.
        sigma: standard deviation of the weights.
        known: inputs, mean and factors of earlier calls; used again where the inputs are the same
            tensor.

    Attributes:
        traces: operand and score by name, see :meth:`NoisyLayer.gradient`.
    """

    def __init__(
        self,
        layers: Iterable[NoisyLayer],
        state: State,
        drawn: State,
        sigma: float,
        known: dict[str, tuple[Tensor, Tensor, tuple[Tensor, ...]]],
    ) -> None:
        super().__init__()
        self.layers = {id(state[layer.name]): layer for layer in layers}
        self.drawn = drawn
        self.sigma = sigma
        self.known = known
        self.traces: Traces = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Add noise behind the chosen layers, pass on everything else."""
        kwargs = kwargs or {}
        call = Call.of(func, args, kwargs)
        if call is None:
            return func(*args, **kwargs)
        layer = self.layers.get(id(call.weight)) or self.layers.get(id(call.bias))
        if layer is None:
            return func(*args, **kwargs)
        name, inputs = layer.name, call.inputs
        if name not in self.known or self.known[name][0] is not inputs:
            self.known[name] = (inputs, func(*args, **kwargs), layer.factors(inputs))
        _, mean, factors = self.known[name]
        value, score = layer.sample(mean, factors, self.drawn[name], self.sigma)
        self.traces[name] = (factors[0] if layer.joint else inputs, score)
        return value
