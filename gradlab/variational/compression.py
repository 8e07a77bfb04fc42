"""What of a network is pruned: sparsity, compression, log α and the pixels that are still seen.

A layer that can be pruned has a :meth:`~gradlab.variational.StochasticLayer.mask`; a layer of torch
keeps everything. Biases count nowhere, as in the literature. The bias of a unit of which no
outgoing weight is kept has no influence; export removes it with its unit.

Tables are lists of rows, each a dict.

>>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
>>> layer_rows(model)[1]
{'layer': '2', 'weights': 6, 'kept': 6, 'sparsity': 0.0}
>>> compression(model), masked(model)
(1.0, False)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gradlab.binary.layers import BinaryConv2d, BinaryLinear
from gradlab.variational.base import StochasticLayer, stochastic_layers

Row = dict[str, Any]


def masked(model: nn.Module) -> bool:
    """Whether a layer of the model can be pruned."""
    return any(layer.mask() is not None for layer in stochastic_layers(model).values())


def layer_rows(model: nn.Module, threshold: float | None = None) -> list[Row]:
    """What is kept of every linear and convolutional layer, in the model's order.

    Args:
        model: whose layers.
        threshold: of log α, above which a weight is removed; ``None`` for each layer's own. Layers
            that are pruned by something else keep their own mask.

    Returns:
        ``layer`` (its name), ``weights``, ``kept`` and ``sparsity`` (the fraction removed).

    Raises:
        ValueError: the threshold is not finite.
    """
    rows = []
    for name, layer in _weighted(model):
        weights = layer.weight.numel()
        keeps = mask(layer, threshold)
        kept = weights if keeps is None else int(keeps.sum())
        row = {"layer": name, "weights": weights, "kept": kept, "sparsity": 1 - kept / weights}
        rows.append(row)
    return rows


def compression(model: nn.Module, threshold: float | None = None) -> float:
    """All weights over kept weights; infinite where none is kept.

    Raises:
        ValueError: the threshold is not finite.
    """
    rows = layer_rows(model, threshold)
    kept = sum(row["kept"] for row in rows)
    return sum(row["weights"] for row in rows) / kept if kept else math.inf


def mask(layer: nn.Module, threshold: float | None = None) -> Tensor | None:
    """The mask of a layer, or what it would be with another threshold of log α.

    Raises:
        ValueError: the threshold is not finite.
    """
    if threshold is not None and not math.isfinite(threshold):
        raise ValueError(f"threshold is {threshold}: give a finite bound for log alpha, such as 3.")
    if not isinstance(layer, StochasticLayer):
        return None
    with _threshold(layer, threshold):
        return layer.mask()


def masked_weight(layer: StochasticLayer, kept: Tensor | None) -> Tensor:
    """The mean weight where it is kept, 0 elsewhere, detached."""
    weight = layer.mean_weight().detach()
    return weight if kept is None else torch.where(kept, weight, 0.0)


@contextmanager
def pruned(model: nn.Module, threshold: float | None = None) -> Iterator[None]:
    """Without noise, layers compute with their mean weight where it is kept and 0 elsewhere.

    The weights and masks are those of the moment of entry; afterwards the model is as it was.

    Args:
        model: whose layers.
        threshold: of log α; ``None`` for each layer's own.

    Raises:
        ValueError: the threshold is not finite.
    """
    changed: list[tuple[Row, Row]] = []
    try:
        for layer in stochastic_layers(model).values():
            kept = mask(layer, threshold)
            if kept is not None:
                own = vars(layer)  # what the instance has comes before its class's method
                changed.append((own, {key: own[key] for key in ("mean_weight",) if key in own}))
                own["mean_weight"] = partial(_itself, masked_weight(layer, kept))
        yield
    finally:
        for own, before in changed:
            del own["mean_weight"]
            own.update(before)


def log_alpha_histogram(
    model: nn.Module, bins: int = 40, low: float = -10.0, high: float = 10.0
) -> list[Row]:
    """Histograms of log α of every layer that has one.

    Args:
        model: whose layers.
        bins: equal parts of [low, high]; what lies beyond is counted in the first and last.
        low: left edge of the first bin.
        high: right edge of the last.

    Returns:
        ``layer``, ``low``, ``high`` and ``count`` of every bin, and a row without edges if some
        log α is NaN.

    Raises:
        ValueError: no bins, or an empty range.
    """
    if bins < 1 or not -math.inf < low < high < math.inf:
        raise ValueError(f"{bins} bins from {low} to {high} make no histogram: give at least one "
                         "bin and low < high.")  # fmt: skip
    edges = torch.linspace(low, high, bins + 1, dtype=torch.float64)
    bounds: list[float] = edges.tolist()
    rows: list[Row] = []
    for name, layer in stochastic_layers(model).items():
        found = layer.log_alpha()
        if found is None:
            continue
        values = found.detach().double().cpu().flatten()
        numbers = values[~values.isnan()].clamp(low, high)
        places = torch.bucketize(numbers, edges[1:-1], right=True)
        counts = torch.bincount(places, minlength=bins).tolist()
        rows += [
            {"layer": name, "low": bounds[i], "high": bounds[i + 1], "count": counts[i]}
            for i in range(bins)
        ]
        if len(numbers) < len(values):
            missing = len(values) - len(numbers)
            rows.append({"layer": name, "low": None, "high": None, "count": missing})
    return rows


def kept_inputs(
    model: nn.Module, shape: Sequence[int] | None = None, threshold: float | None = None
) -> list[Row]:
    """How many weights of the first layer are kept for every pixel: which pixels are still seen.

    Args:
        model: its first layer should be linear, for only there has every pixel weights of its own.
        shape: of an image, ``(C, H, W)``; ``None`` for the model's ``input_shape``.
        threshold: of log α; ``None`` for the layer's own.

    Returns:
        ``channel``, ``row``, ``column`` and ``kept`` of every pixel; no rows if the first layer is
        a convolution or cannot be pruned.

    Raises:
        ValueError: no shape, or one of another number of pixels than the layer has inputs, or a
            threshold that is not finite.
    """
    first = next((layer for _, layer in _weighted(model)), None)
    kept = None if first is None else mask(first, threshold)
    if not isinstance(first, nn.Linear) or kept is None:
        return []
    size = tuple(shape if shape is not None else getattr(model, "input_shape", ()))
    if len(size) != 3 or math.prod(size) != first.in_features:
        raise ValueError(f"images of shape {size} have not the {first.in_features} pixels that the "
                         "first layer takes: give shape = (channels, height, width).")  # fmt: skip
    counts = kept.sum(0).reshape(size).cpu()
    return [
        {"channel": channel, "row": row, "column": column, "kept": count}
        for channel, rows in enumerate(counts.tolist())
        for row, columns in enumerate(rows)
        for column, count in enumerate(columns)
    ]


def _weighted(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, layer in model.named_modules():
        if isinstance(layer, StochasticLayer | nn.Linear | nn.Conv2d | BinaryLinear | BinaryConv2d):
            yield name, layer


def _itself(weight: Tensor) -> Tensor:
    return weight


@contextmanager
def _threshold(layer: Any, threshold: float | None) -> Iterator[None]:
    """Another threshold among the options of the layer's method, if it has one there."""
    method: Any = getattr(layer, "method", None)
    if threshold is None or not hasattr(method, "threshold"):
        yield
        return
    layer.method = dataclasses.replace(method, threshold=threshold)
    try:
        yield
    finally:
        layer.method = method
