r"""Where the variance of a network's outputs comes from, to first order.

An independent variable of variance v at one place of the network adds :math:`v\,gg^\top` to the
covariance of the outputs of an example, g their slopes there. Three kinds of place differ in what
is one variable:

- :func:`apart`: every entry is one of its own, as the rest of a sign that no line explains;
- :func:`of_parameter`: an entry of a bias or scale is one for all the places it is broadcast to;
- :func:`of_layer`: a weight is one for all positions of an example. With slopes :math:`\delta_p`
  and patches :math:`x_p` its own slope is :math:`G = \sum_p \delta_p x_p^\top`, summed over
  positions *before* it is squared: that is the correlation
  :math:`\sigma^2\langle x_p, x_q\rangle` of the pre-activations of two positions. Independent noise
  of every position would give :math:`\sum_p \delta_p^2\lVert x_p\rVert^2` instead.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Source = Callable[[Tensor], Tensor]
"""From slopes ``(K, B, ...)`` of K outputs, to the covariance of these ``(B, K, K)``."""


def _covariance(slopes: Tensor, variance: Tensor) -> Tensor:
    """Of slopes ``(K, B, n)`` in variables with these variances, ``(n,)`` or ``(B, n)``."""
    rows = slopes.transpose(0, 1)
    return (rows * variance.expand(rows[:, 0].shape)[:, None]) @ rows.mT


def apart(variance: Tensor) -> Source:
    """Every entry for itself; variances ``(B, ...)``, to be broadcast to the slopes'.

    >>> apart(torch.tensor([[1.0, 4.0]]))(torch.tensor([[[1.0, 1.0]], [[0.0, 2.0]]])).tolist()
    [[[5.0, 8.0], [8.0, 16.0]]]
    """

    def source(slopes: Tensor) -> Tensor:
        return _covariance(slopes.flatten(2), variance.expand(slopes[0].shape).flatten(1))

    return source


def of_parameter(shape: torch.Size, variance: Tensor, factor: Tensor | None = None) -> Source:
    """A parameter that is added, or multiplies ``factor``, in many places.

    Args:
        shape: of the parameter.
        variance: of its entries.
        factor: ``(B, ...)`` what it multiplies.
    """

    def source(slopes: Tensor) -> Tensor:
        if factor is not None:
            slopes = slopes * factor
        full = (1,) * (slopes.dim() - 1 - len(shape)) + tuple(shape)
        shared = [i + 1 for i, size in enumerate(full) if i and size == 1]
        summed = slopes.sum(shared, keepdim=True) if shared else slopes
        return _covariance(summed.flatten(2), variance.expand(shape).flatten())

    return source


def of_layer(patches: Tensor, variance: Tensor, channels_last: bool) -> Source:
    """The weights of a layer with many positions.

    Args:
        patches: what they multiply, ``(B, groups, K, positions)``.
        variance: of the weights, ``(O, ...)``, or of every one.
        channels_last: positions come before the channels, as behind a linear layer.
    """
    groups, columns = patches.shape[1:3]

    def source(slopes: Tensor) -> Tensor:
        rows = slopes.flatten(2, -2).mT if channels_last else slopes.flatten(3)
        rows = rows.reshape(*rows.shape[:2], groups, -1, rows.shape[3])
        slope = torch.einsum("kbgop,bgcp->kbgoc", rows, patches).flatten(2)
        width = rows.shape[2] * rows.shape[3] * columns
        return _covariance(slope, variance.expand(width) if not variance.dim() else
                           variance.flatten())  # fmt: skip

    return source
