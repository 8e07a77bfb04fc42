r"""Layers of binarized networks: binary convolutions, binary linear layers, binary activations.

A binary layer keeps a *latent* real weight W and multiplies by

.. math:: \hat W_o = \alpha_o\,\mathrm{sign}(W_o)

where o counts outputs. The scale α is the mean absolute weight of its output (``channel``,
XNOR-Net, Rastegari et al. 2016, arXiv 1603.05279), of the whole layer (``layer``), a
parameter of its own that starts there (``learned``, as in XNOR-Net++, Bulat and Tzimiropoulos
2019, arXiv 1909.13863), or 1 (``none``). No gradient flows through a mean. With ``weight="real"``
the layer is an ordinary one: the network then has binary activations alone.

Derivatives are those of the surrogates that the layers are given
(:mod:`gradlab.binary.surrogates`). Two of them move while a network is trained, unless their option
is fixed: ``ede`` and ``reste`` follow the fraction of training done, which :func:`set_progress`
tells all layers of a network (:mod:`gradlab.binary.moving`).

>>> layer = BinaryLinear(3, 2)
>>> _ = torch.nn.init.constant_(layer.weight, -0.5)
>>> layer(torch.tensor([[1.0, 1.0, -1.0]])).tolist()
[[-0.5, -0.5]]
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradlab._registry import unknown
from gradlab.binary import activations, surrogates
from gradlab.binary.moving import MOVING
from gradlab.binary.straight_through import Rule, fused_straight_through

WEIGHTS = ("binary", "real")
SCALINGS = ("channel", "layer", "learned", "none")

Choice = str | Mapping[str, Any]


def choose(choice: Choice) -> surrogates.Surrogate:
    """A surrogate from its name, or from a mapping of its name and options.

    Args:
        choice: ``"hardtanh"`` or ``{"name": "hardtanh", "threshold": 1.3}``.

    Raises:
        ValueError: no name, or one that is not registered, or a wrong option.

    >>> choose({"name": "hardtanh", "threshold": 1.3})
    Hardtanh(threshold=1.3)
    """
    name, options = name_and_options(choice)
    return surrogates.create(name, **options)


def name_and_options(choice: Choice) -> tuple[str, dict[str, Any]]:
    """What a name or a mapping says, apart; a ``ValueError`` where it says no name."""
    if isinstance(choice, str):
        return choice, {}
    if isinstance(choice, Mapping) and isinstance(choice.get("name"), str):
        return choice["name"], {key: value for key, value in choice.items() if key != "name"}
    raise ValueError(
        f"surrogate is {choice!r}: give a name or a table such as "
        '{name = "hardtanh", threshold = 0.5}.'
    )


def set_progress(network: nn.Module, progress: float) -> None:
    """Tell every layer of a network which fraction of training is done.

    Raises:
        ValueError: the fraction is not in [0, 1].
    """
    surrogates.between("progress", progress, 0, 1)
    for layer in network.modules():
        if isinstance(layer, _WithSurrogate) and layer.progress is not None:
            layer.progress.fill_(progress)


def set_fused(network: nn.Module, fused: bool) -> None:
    """Have the signs of activations computed by compiled loops, which is quicker on a processor.

    For eager training alone, see :func:`gradlab.binary.straight_through.fused_straight_through`:
    switch it off before the network is copied, traced or compiled as a whole.
    """
    for layer in network.modules():
        if isinstance(layer, BinaryActivation):
            layer.fused = fused


class _WithSurrogate(nn.Module):
    """A module with a surrogate that may move while it is trained."""

    progress: Tensor | None

    def __init__(self, choice: Choice) -> None:
        super().__init__()
        name, options = name_and_options(choice)
        self._rule = choose(choice)
        self._moving = None if options else MOVING.get(name)
        # a tensor, not a number: compiled code then sees it change without being compiled again
        start = None if self._moving is None else torch.tensor(1.0)
        self.register_buffer("progress", start, persistent=False)

    @property
    def surrogate(self) -> Rule:
        """The surrogate as it is now."""
        if self._moving is None or self.progress is None:
            return self._rule
        return self._moving(self.progress)


class BinaryActivation(_WithSurrogate):
    """An activation of few levels: sign, unless another one is named.

    Args:
        surrogate: its derivative; of "binary" alone, the others have their own.
        activation: any of :mod:`gradlab.binary.activations`; "full" is clip(x, 0, 1).

    Raises:
        ValueError: an unknown activation or surrogate, or two that do not go together.

    >>> BinaryActivation()(torch.tensor([-0.5, 0.0]))
    tensor([-1.,  1.])
    """

    def __init__(self, surrogate: Choice = "hardtanh", activation: str = "binary") -> None:
        super().__init__(surrogate)
        self.activation = activations.create(activation)
        self.fused = False
        self._surrogate_fits = activation in ("binary", "decoupled_ternary")
        if self._surrogate_fits:
            self.activation.check(self.surrogate)

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same shape."""
        surrogate = self.surrogate if self._surrogate_fits else None
        if self.fused and isinstance(self.activation, activations.Binary):
            assert surrogate is not None
            return fused_straight_through(x, surrogate)
        return self.activation.apply(x, surrogate)

    def extra_repr(self) -> str:
        """The activation and its derivative."""
        return f"{self.activation}, {self.surrogate}"


class _Binarized(_WithSurrogate):
    """What binary convolutions and linear layers share: a latent weight, its sign and scale."""

    weight: nn.Parameter

    def __init__(
        self, shape: tuple[int, ...], weight: str, scaling: str, surrogate: Choice
    ) -> None:
        super().__init__(surrogate)
        if weight not in WEIGHTS:
            raise ValueError(unknown("weight", str(weight), WEIGHTS))
        if scaling not in SCALINGS:
            raise ValueError(unknown("scaling", str(scaling), SCALINGS))
        self.binary = weight == "binary"
        self.scaling = scaling if self.binary else "none"
        self.weight = nn.Parameter(torch.empty(shape))
        self._of_one_output = tuple(range(1, len(shape)))
        self.scale: nn.Parameter | None = None
        if self.scaling == "learned":
            self.scale = nn.Parameter(torch.empty(shape[0], *[1] * (len(shape) - 1)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """U(±1/√fan_in), torch's own default; a learned scale starts at the channel's mean."""
        with torch.no_grad():
            bound = 1 / math.sqrt(self.weight[0].numel())
            self.weight.uniform_(-bound, bound)
            if self.scale is not None:
                self.scale.copy_(self._mean_size())

    def effective_weight(self) -> Tensor:
        """The weight that multiplies, shaped like ``weight``."""
        if not self.binary:
            return self.weight
        binary = surrogates.binarize(self.weight, self.surrogate)
        if self.scaling == "none":
            return binary
        if self.scale is not None:
            return binary * self.scale
        if self.scaling == "layer":
            return binary * self.weight.detach().abs().mean()
        return binary * self._mean_size()

    def extra_repr(self) -> str:
        """Shape, kind of weight, scale and derivative."""
        kind = f"binary weights, scaling={self.scaling}" if self.binary else "real weights"
        return f"{tuple(self.weight.shape)}, {kind}, {self.surrogate}"

    def _mean_size(self) -> Tensor:
        return self.weight.detach().abs().mean(dim=self._of_one_output, keepdim=True)


class BinaryLinear(_Binarized):
    """A linear layer without bias.

    Args:
        inputs: number of input features.
        outputs: number of output features.
        weight: "binary" or "real".
        scaling: of binary weights: "channel", "layer", "learned" or "none".
        surrogate: the derivative of sign(W).

    Raises:
        ValueError: an unknown kind of weight, scaling or surrogate.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        weight: str = "binary",
        scaling: str = "channel",
        surrogate: Choice = "hardtanh",
    ) -> None:
        super().__init__((outputs, inputs), weight, scaling, surrogate)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, inputs)`` to ``(B, outputs)``."""
        return F.linear(x, self.effective_weight())


class BinaryConv2d(_Binarized):
    """A convolution without bias; zeros pad it, as in every network compared with here.

    Args:
        inputs: number of input channels.
        outputs: number of output channels.
        size: height and width of the filters; padding is half of it.
        stride: of the filters.
        weight: "binary" or "real".
        scaling: of binary weights: "channel", "layer", "learned" or "none".
        surrogate: the derivative of sign(W).

    Raises:
        ValueError: an unknown kind of weight, scaling or surrogate.

    >>> BinaryConv2d(3, 8, stride=2)(torch.ones(1, 3, 32, 32)).shape
    torch.Size([1, 8, 16, 16])
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int = 3,
        stride: int = 1,
        *,
        weight: str = "binary",
        scaling: str = "channel",
        surrogate: Choice = "hardtanh",
    ) -> None:
        super().__init__((outputs, inputs, size, size), weight, scaling, surrogate)
        self.stride = stride
        self.padding = size // 2

    def forward(self, x: Tensor) -> Tensor:
        """``(B, inputs, H, W)`` to ``(B, outputs, H', W')``."""
        return F.conv2d(x, self.effective_weight(), None, self.stride, self.padding)
