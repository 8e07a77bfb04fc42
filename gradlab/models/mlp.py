r"""The teacher-student multilayer perceptron with binarized hidden layers.

``depth`` hidden layers :math:`h_{l+1} = a(W_l h_l)` of shape ``(num_dim, num_dim)`` and a
full-precision output layer ``(1, num_dim)``, no bias; other numbers of inputs and outputs, for
instance to classify, if asked for. The activation is the sign (binary), a
quantized clip (ternary, 2bit) or the clip itself (full); with binary weights the hidden layers use
sign(W), without scale. Weights start from U(±gain/√fan_in), gain 1 if left out.

This is the network on which BinaryDuo (Kim et al. 2020, section 3) compares gradient estimators.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradlab._registry import unknown
from gradlab.binary import activations, sign, surrogates

ACTIVATIONS = ("binary", "ternary", "decoupled_ternary", "2bit", "full")
WEIGHTS = ("real", "binary")


def positive_integer(name: str, value: object) -> None:
    """Refuse anything but a whole number above zero, in one sentence."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}: give a whole number of at least 1.")


@functools.cache
def _activation(name: str) -> activations.Activation:
    # looked up for every chunk of a population: reading the registry's signatures takes a while
    return activations.create(name)


@dataclass(frozen=True)
class BinarizedMLP:
    """A fully connected network with quantized activations.

    Args:
        num_dim: width of the input and of every hidden layer.
        depth: number of hidden layers.
        activation: "binary", "ternary", "decoupled_ternary", "2bit" or "full".
        weight: "real", or "binary" for sign(W) in the hidden layers.
        gain: initial weights are U(±gain/√fan_in); √3 keeps the variance of ±1 inputs.
        num_inputs: width of the input, where it is not ``num_dim``.
        num_outputs: number of output neurons.

    Raises:
        ValueError: a size below one, an unknown activation or weight, or a gain not above zero.

    >>> model = BinarizedMLP(num_dim=2, depth=1)
    >>> params = {"layers.0.weight": torch.eye(2), "layers.1.weight": torch.tensor([[1.0, 3.0]])}
    >>> model.forward(params, torch.tensor([[0.5, -2.0], [0.0, 1.0]])).tolist()
    [[-2.0], [4.0]]
    """

    num_dim: int
    depth: int = 3
    activation: str = "binary"
    weight: str = "real"
    gain: float = 1.0
    num_inputs: int | None = None
    num_outputs: int = 1

    def __post_init__(self) -> None:
        positive_integer("num_dim", self.num_dim)
        positive_integer("depth", self.depth)
        positive_integer("num_outputs", self.num_outputs)
        if self.num_inputs is not None:
            positive_integer("num_inputs", self.num_inputs)
        if self.activation not in ACTIVATIONS:
            raise ValueError(unknown("activation", self.activation, ACTIVATIONS))
        if self.weight not in WEIGHTS:
            raise ValueError(unknown("weight", self.weight, WEIGHTS))
        number = isinstance(self.gain, int | float) and not isinstance(self.gain, bool)
        if not (number and 0 < self.gain < math.inf):
            raise ValueError(f"gain is {self.gain!r}: give a finite number above 0.")

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Parameter names, hidden layers first, the output layer last."""
        return tuple(f"layers.{layer}.weight" for layer in range(self.depth + 1))

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Shape (outputs, inputs) of every layer's weight.

        >>> BinarizedMLP(8, depth=1, num_inputs=784, num_outputs=10).shapes
        {'layers.0.weight': (8, 784), 'layers.1.weight': (10, 8)}
        """
        widths = [self.num_inputs or self.num_dim, *[self.num_dim] * self.depth, self.num_outputs]
        pairs = zip(widths[1:], widths[:-1], strict=True)
        return dict(zip(self.layer_names, pairs, strict=True))

    @property
    def activation_function(self) -> activations.Activation:
        """The activation between the layers."""
        return _activation(self.activation)

    def initial_params(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Weights drawn from U(±gain/√fan_in), float32, on the CPU."""
        return {
            name: (2 * torch.rand(shape, generator=generator) - 1)
            * (self.gain / math.sqrt(shape[1]))
            for name, shape in self.shapes.items()
        }

    def effective_weights(self, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights that multiply: sign(W) in the hidden layers if weights are binary.

        Works for any leading dimensions.
        """
        if self.weight == "real":
            return dict(params)
        output = self.layer_names[-1]
        return {name: w if name == output else sign(w) for name, w in params.items()}

    def forward(self, params: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """The exact network: inputs ``(B, num_inputs)`` to outputs ``(B, num_outputs)``."""
        weights = self.effective_weights(params)
        hidden = inputs
        for name in self.layer_names[:-1]:
            hidden = self.activation_function.forward(hidden @ weights[name].T)
        return hidden @ weights[self.layer_names[-1]].T

    def surrogate_forward(
        self,
        params: Mapping[str, Tensor],
        inputs: Tensor,
        surrogate: Any,
        weight_surrogate: Any = None,
    ) -> Tensor:
        """The same values as :meth:`forward`, differentiable with a surrogate derivative.

        Args:
            params: differentiable weights.
            inputs: ``(B, num_inputs)``.
            surrogate: derivative of the activations.
            weight_surrogate: derivative of sign(W) for binary weights; hardtanh if left out.

        Raises:
            ValueError: a weight surrogate that scales sign(W), where that changes the outputs.
        """
        if getattr(weight_surrogate, "weights_only", False) and self.activation != "binary":
            # behind a sign a positive scale per output is nothing
            raise ValueError(
                f"{type(weight_surrogate).__name__} scales the weights, which changes a network of "
                f"{self.activation} activations: choose another weight_surrogate, e.g. hardtanh."
            )
        hidden = inputs
        for name in self.layer_names[:-1]:
            weight = params[name]
            if self.weight == "binary":
                rule = weight_surrogate or surrogates.create("hardtanh")
                weight = surrogates.binarize(weight, rule)
            hidden = self.activation_function.apply(hidden @ weight.T, surrogate)
        return hidden @ params[self.layer_names[-1]].T
