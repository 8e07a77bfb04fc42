r"""Maximum pooling of random values.

The greatest of several is found two at a time, as if they were independent. Of two signs with means
a and b it is a sign with the mean :math:`1 - (1 - a)(1 - b)/2`; of two normal values with
variances u and v, with :math:`\theta^2 = u + v` and :math:`\alpha = (a - b)/\theta`,

.. math:: E\max = a\Phi(\alpha) + b\Phi(-\alpha) + \theta\varphi(\alpha), \qquad
    E\max{}^2 = (a^2 + u)\Phi(\alpha) + (b^2 + v)\Phi(-\alpha) + (a + b)\theta\varphi(\alpha),

whose slope in a is :math:`\Phi(\alpha)` (Clark, "The greatest of a finite set of random variables",
Operations Research 1961).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Node

_ORDER = {
    "avg": (
        "kernel_size",
        "stride",
        "padding",
        "ceil_mode",
        "count_include_pad",
        "divisor_override",
    ),
    "max": ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices"),
    "adaptive": ("output_size", "return_indices"),
}
_DEFAULTS = {
    "stride": None, "padding": 0, "dilation": 1, "ceil_mode": False, "count_include_pad": True,
    "divisor_override": None, "return_indices": False,
}  # fmt: skip


class Maximum(NamedTuple):
    """Of every window.

    Attributes:
        mean: of the greatest.
        variance: of the greatest.
        inherited: what of it follows linearly from the values' own.
        moved: from deviations of the values to that of the greatest, to first order.
    """

    mean: Tensor
    variance: Tensor
    inherited: Tensor
    moved: Callable[[Tensor], Tensor]


def pooling_options(module: nn.Module | None, node: Node) -> dict[str, Any]:
    """The options of a pooling layer, by name; sizes as pairs."""
    named = type(module).__name__ if module is not None else str(node.target)
    named = getattr(node.target, "__name__", named).lower() if module is None else named.lower()
    order = _ORDER["adaptive" if "adaptive" in named else "max" if "max" in named else "avg"]
    if module is not None:
        found = {key: getattr(module, key, None) for key in order}
    else:
        given = dict(zip(order, node.args[1:], strict=False))
        found = {**{key: _DEFAULTS.get(key) for key in order}, **given, **node.kwargs}
    found["stride"] = found.get("stride") or found.get("kernel_size")
    for key in ("kernel_size", "stride", "padding", "dilation"):
        value = found.get(key)
        if value is not None:
            found[key] = (value, value) if isinstance(value, int) else tuple(value)
    return found


def winners(sample: Tensor, options: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    """A function that takes from every window the entry that is the greatest in ``sample``."""
    with torch.no_grad():
        if "output_size" in options:
            _, index = F.adaptive_max_pool2d(sample, options["output_size"], return_indices=True)
        else:
            keys = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
            _, index = F.max_pool2d(
                sample, **{key: options[key] for key in keys}, return_indices=True
            )

    def take(values: Tensor) -> Tensor:
        return values.flatten(2).gather(2, index.flatten(2)).reshape(index.shape)

    return take


def maximum(mean: Tensor, variance: Tensor, options: dict[str, Any], *, signs: bool) -> Maximum:
    """The greatest of every window of independent values.

    Args:
        mean: ``(B, C, H, W)``.
        variance: likewise.
        options: from :func:`pooling_options`, without padding.
        signs: values are ±1.

    >>> options = {"kernel_size": (1, 2), "stride": (1, 2), "dilation": (1, 1)}
    >>> mean = torch.zeros(1, 1, 1, 2)
    >>> found = maximum(mean, torch.ones_like(mean), options, signs=True)
    >>> found.mean.flatten().tolist(), found.variance.flatten().tolist()
    ([0.5], [0.75])
    """
    size, stride, dilation = (options[key] for key in ("kernel_size", "stride", "dilation"))

    def windows(values: Tensor) -> Tensor:
        """``(places, B, C, H', W')``."""
        places = [
            values[..., i * dilation[0] :, j * dilation[1] :][
                ..., : (shape[0] - 1) * stride[0] + 1 : stride[0],
                : (shape[1] - 1) * stride[1] + 1 : stride[1],
            ]
            for i in range(size[0]) for j in range(size[1])
        ]  # fmt: skip
        return torch.stack(places)

    shape = [
        (length - step * (k - 1) - 1) // by + 1
        for length, k, by, step in zip(mean.shape[2:], size, stride, dilation, strict=True)
    ]
    means, variances = windows(mean), windows(variance)
    a, u = means[0], variances[0]
    slopes = [torch.ones_like(a)]
    for b, v in zip(means[1:], variances[1:], strict=True):
        if signs:
            one, other = (1 - b) / 2, (1 - a) / 2
            a = 1 - (1 - a) * one
            u = 1 - a.square()
        else:
            width = (u + v).clamp_min(1e-24).sqrt()
            z = (a - b) / width
            one, other = torch.special.ndtr(z), torch.special.ndtr(-z)
            bump = width * torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)
            second = (a.square() + u) * one + (b.square() + v) * other + (a + b) * bump
            a = a * one + b * other + bump
            u = second - a.square()
        slopes = [each * one for each in slopes] + [other]
    slope = torch.stack(slopes)
    inherited = (slope.square() * variances).sum(0)
    return Maximum(a, u, inherited, lambda deviations: (slope * windows(deviations)).sum(0))
