"""What noisy layers share: a weight, noise that can be switched, samples in one batch, a KL term.

A stochastic layer is ``torch.nn.Linear`` or ``torch.nn.Conv2d`` with noise on its inputs, weights
or outputs. It takes the arguments of torch's layer, has the same ``weight`` and ``bias`` (so that
weights of an ordinary network load), and is deterministic in ``eval()``: there it computes with its
mean weight. :func:`sampling` switches the noise on nevertheless, for Monte Carlo predictions.

Samples share a batch: with ``samples = n`` an input ``(n·B, …)`` is n groups of B examples, and a
layer that samples weights draws one for each group. Layers that draw noise per example do not need
to know.

>>> layer = LinearMap(3, 2)
>>> float(layer.kl()), layer(torch.ones(4, 3)).shape
(0.0, torch.Size([4, 2]))
>>> with sampling(layer, 2):
...     layer.noisy, layer.samples
(True, 2)
>>> layer.eval().noisy
False
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradlab.variational.local import local_linear, local_noise


class StochasticLayer(nn.Module):
    """A layer with noise; base of all of them.

    Attributes:
        weight: as torch's layer has it; for most methods the mean of the weight's distribution.
        bias: likewise; it never gets noise unless a method says so, for noise in the bias makes
            the variance of a convolution's pre-activation depend on nothing that can be summed.
        samples: groups in a batch, see the module's docstring.
        sampling: noise in ``eval()`` too.
        natural: ``weight`` is not a mean, but a natural parameter that ``start_from(weight)`` makes
            from one.
    """

    weight: Tensor
    bias: Any  # a Tensor or None: torch declares it differently for Linear and Conv2d
    samples: int = 1
    sampling: bool = False
    natural: bool = False

    @property
    def noisy(self) -> bool:
        """Whether the next forward pass draws noise."""
        return self.training or self.sampling

    def forward(self, x: Tensor) -> Tensor:
        """Inputs as torch's layer takes them."""
        return self.noisy_forward(x) if self.noisy else self.mean_forward(x)

    def noisy_forward(self, x: Tensor) -> Tensor:
        """With noise."""
        return self.mean_forward(x)

    def mean_forward(self, x: Tensor) -> Tensor:
        """Without noise: at the mean weight."""
        return self.apply_weight(x, self.mean_weight(), self.bias)

    def mean_weight(self) -> Tensor:
        """The weight that is used without noise, of the shape of ``weight``."""
        return self.weight

    def start_from(self, weight: Tensor) -> None:
        """Take over the weight of a plain layer, ``weight`` being it already."""

    def kl(self) -> Tensor:
        """KL(posterior ‖ prior) in nats, summed over the layer, ``()``; 0 where there is none."""
        return self.weight.new_zeros(())

    def log_alpha(self) -> Tensor | None:
        """Log of variance over squared mean of each noisy thing; ``None`` where there is none."""
        return None

    def mask(self) -> Tensor | None:
        """Which weights are kept, boolean, of the shape of ``weight``; ``None`` if not pruned."""
        return None

    def project(self) -> None:
        """Bring parameters back into their range, after a step of an optimizer.

        A clamp inside the forward pass would have gradient zero beyond it, and what once crossed
        it would never come back.
        """

    def apply_weight(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's own linear map with another weight and bias."""
        raise NotImplementedError

    def apply_weights(self, x: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
        """The linear map of group g of ``x (n·B, …)`` with weight g of ``weights (n, …)``."""
        if len(weights) == 1:
            return self.apply_weight(x, weights[0], bias)
        return self._apply_several(x, weights, bias)

    def _apply_several(self, x: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
        """As :meth:`apply_weights`, for more than one."""
        raise NotImplementedError

    def local_draw(self, x: Tensor, weight: Tensor, variance: Tensor) -> Tensor:
        """A draw of pre-activations, with the moments that those of the weights give them."""
        mean = self.apply_weight(x, weight, self.bias)
        return local_noise(mean, self.apply_weight(x * x, variance, None))

    def over_outputs(self, values: Tensor) -> Tensor:
        """A vector with a value for each output unit, in a shape that multiplies outputs."""
        raise NotImplementedError

    def over_inputs(self, values: Tensor) -> Tensor:
        """A vector with a value for each input unit, in a shape that multiplies inputs."""
        raise NotImplementedError

    def input_units(self) -> int:
        """Number of input features, or channels."""
        raise NotImplementedError

    def output_units(self) -> int:
        """Number of output features, or channels."""
        return int(self.weight.shape[0])

    def unit_shape(self, x: Tensor) -> list[int]:
        """Shape of noise that is drawn for each example and each unit of ``x``.

        ``x`` is an input or an output of the layer. The positions of one example share the noise,
        as they share the layer's weights.

        >>> Conv2dMap(3, 2, 1).unit_shape(torch.ones(5, 3, 4, 4))
        [5, 3, 1, 1]
        >>> LinearMap(3, 2).unit_shape(torch.ones(3))
        [3]
        """
        axis = 1 - self.weight.dim()
        shape = [1] * x.dim()
        shape[axis] = x.shape[axis]
        if x.dim() > -axis:
            shape[0] = x.shape[0]
        return shape

    def extra_repr(self) -> str:
        """Torch's, and the method, where there is one."""
        usual, method = super().extra_repr(), getattr(self, "method", None)
        return usual if method is None else f"{usual}, {method}"


class Handover:
    """A divergence that a forward pass computed on its way, for the next call of ``kl``.

    It is handed over once, and only while the parameters are those that it was computed from.
    Copies are empty, for it belongs to a graph.
    """

    def __init__(self) -> None:
        self._held: tuple[Tensor, list[tuple[int, int]]] | None = None

    def give(self, divergence: Tensor, *parameters: Tensor) -> None:
        """Keep it for :meth:`take`."""
        self._held = divergence, _state(parameters)

    def take(self, *parameters: Tensor) -> Tensor | None:
        """What was given for these parameters as they are; None if there is nothing."""
        held, self._held = self._held, None
        if held is None or held[1] != _state(parameters):
            return None
        return held[0] if held[0].requires_grad == torch.is_grad_enabled() else None

    def __reduce__(self) -> tuple[type[Handover], tuple[()]]:
        return Handover, ()


def _state(parameters: Sequence[Tensor]) -> list[tuple[int, int]]:
    return [(each.data_ptr(), each._version) for each in parameters]


class LinearMap(StochasticLayer, nn.Linear):
    """``torch.nn.Linear`` as a stochastic layer without noise."""

    def local_draw(self, x: Tensor, weight: Tensor, variance: Tensor) -> Tensor:
        """As everywhere, in one operation."""
        return local_linear(x, weight, self.bias, variance)

    def apply_weight(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """``(…, in)`` to ``(…, out)``."""
        return F.linear(x, weight, bias)

    def _apply_several(self, x: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
        """``(n·B, …, in)`` with ``(n, out, in)`` to ``(n·B, …, out)``."""
        grouped = x.reshape(len(weights), -1, x.shape[-1])
        out = torch.bmm(grouped, weights.mT)
        if bias is not None:
            out = out + bias
        return out.reshape(*x.shape[:-1], weights.shape[1])

    def over_outputs(self, values: Tensor) -> Tensor:
        """Unchanged."""
        return values

    def over_inputs(self, values: Tensor) -> Tensor:
        """Unchanged."""
        return values

    def input_units(self) -> int:
        """``in_features``."""
        return self.in_features


class Conv2dMap(StochasticLayer, nn.Conv2d):
    """``torch.nn.Conv2d`` as a stochastic layer without noise."""

    def apply_weight(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """``(B, in, H, W)`` to ``(B, out, H', W')``, with the layer's stride, padding and so on."""
        out: Tensor = self._conv_forward(x, weight, bias)
        return out

    def _apply_several(self, x: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
        """``(n·B, in, H, W)`` with ``(n, out, in/groups, h, w)`` to ``(n·B, out, H', W')``.

        One convolution whose groups are the samples.
        """
        n, channels = len(weights), self.in_channels
        if self.padding_mode != "zeros":
            x = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding: Any = 0
        else:
            padding = self.padding
        batch, height, width = len(x) // n, *x.shape[2:]
        side_by_side = x.reshape(n, batch, channels, height, width).transpose(0, 1)
        out = F.conv2d(
            side_by_side.reshape(batch, n * channels, height, width),
            weights.flatten(0, 1), None, self.stride, padding, self.dilation, n * self.groups,
        )  # fmt: skip
        out = out.reshape(batch, n, self.out_channels, *out.shape[2:]).transpose(0, 1).flatten(0, 1)
        return out if bias is None else out + self.over_outputs(bias)

    def over_outputs(self, values: Tensor) -> Tensor:
        """``(C,)`` to ``(C, 1, 1)``."""
        return values[:, None, None]

    def over_inputs(self, values: Tensor) -> Tensor:
        """``(C,)`` to ``(C, 1, 1)``."""
        return values[:, None, None]

    def input_units(self) -> int:
        """``in_channels``."""
        return self.in_channels


def stochastic_layers(model: nn.Module) -> dict[str, StochasticLayer]:
    """The stochastic layers of a model, by name, in the model's order."""
    return {
        name: module for name, module in model.named_modules()
        if isinstance(module, StochasticLayer)
    }  # fmt: skip


def own_parameters(model: nn.Module) -> list[str]:
    """Names in the ``state_dict`` that stochastic layers have and torch's layers do not.

    >>> own_parameters(nn.Sequential(LinearMap(2, 2)))
    []
    """
    return [
        ".".join(part for part in (name, key) if part)
        for name, layer in stochastic_layers(model).items()
        for key in layer.state_dict()
        if key not in ("weight", "bias")
    ]


def kl_divergence(model: nn.Module) -> Tensor:
    """KL(posterior ‖ prior) of a whole model in nats: the **sum** over its layers, ``()``.

    Raises:
        ValueError: the model has no stochastic layer.
    """
    layers = stochastic_layers(model).values()
    if not layers:
        raise ValueError("the model has no stochastic layer: convert it with "
                         "gradlab.variational.to_variational(model, method).")  # fmt: skip
    return torch.stack([layer.kl().float() for layer in layers]).sum()


def project(model: nn.Module) -> None:
    """Bring the parameters of all layers back into their range, after a step."""
    for layer in stochastic_layers(model).values():
        layer.project()


@contextmanager
def sampling(model: nn.Module, samples: int = 1) -> Iterator[None]:
    """Noise on, whatever the mode, for batches of ``samples`` groups; afterwards as before.

    Args:
        model: whose layers.
        samples: groups in every batch; group g of a layer that samples weights has its own weight.

    Raises:
        ValueError: fewer than one sample.
    """
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
        raise ValueError(f"samples is {samples!r}: give a whole number of at least 1.")
    layers = list(stochastic_layers(model).values())
    before = [(layer.sampling, layer.samples) for layer in layers]
    for layer in layers:
        layer.sampling, layer.samples = True, samples
    try:
        yield
    finally:
        for layer, (was, number) in zip(layers, before, strict=True):
            layer.sampling, layer.samples = was, number
