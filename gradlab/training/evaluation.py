"""Loss, accuracy and calibration of a network on a set of images, and predictions.

>>> from gradlab.data import Dataset
>>> images = torch.zeros(4, 1, 2, 2, dtype=torch.uint8)
>>> labels = torch.tensor([0, 0, 0, 1])
>>> data = Dataset("tiny", "test", images, labels, ("no", "yes"), (0.5,), (0.25,), {})
>>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
>>> _ = nn.init.zeros_(model[1].weight), nn.init.zeros_(model[1].bias)
>>> found = evaluate(model, data, details=True)
>>> round(found["loss"], 4), found["accuracy"], found["class_accuracy"], found["calibration_error"]
(0.6931, 0.75, {'no': 1.0, 'yes': 0.0}, 0.25)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradlab.data import Dataset
from gradlab.variational.metrics import calibration_error
from gradlab.variational.prediction import evaluating


def evaluate(
    model: nn.Module, data: Dataset, batch_size: int = 500, *, details: bool = False
) -> dict[str, Any]:
    """Evaluate a network, in float32 and with the statistics of BatchNorm as they are.

    Args:
        model: takes ``(B, C, H, W)``; afterwards each of its modules is in the mode it was in.
        data: on the model's device.
        batch_size: images at a time; it changes no result but for rounding.
        details: also the accuracy of every class and the calibration error.

    Returns:
        ``loss`` (mean cross-entropy), ``accuracy`` and ``examples``; with details also
        ``class_accuracy`` (by class name) and ``calibration_error``, the expected calibration error
        over 15 bins of confidence (Guo et al. 2017, "On calibration of modern neural networks",
        arXiv 1706.04599, equation 3).

    Raises:
        ValueError: no images, images of another shape, or more classes than the network has.
    """
    if not len(data):
        raise ValueError(f"{data.name} ({data.split}) has no images: there is nothing to evaluate.")
    loss = torch.zeros((), dtype=torch.float64, device=data.images.device)
    confidences, predictions = [], []
    for start, logits in _logits(model, data, batch_size):
        labels = data.labels[start : start + len(logits)]
        _check_classes(logits, data)
        loss += F.cross_entropy(logits.double(), labels, reduction="sum")
        confidence, prediction = logits.softmax(1).max(1)
        confidences.append(confidence)
        predictions.append(prediction)
    hits = (torch.cat(predictions) == data.labels).double()
    found: dict[str, Any] = {
        "loss": float(loss) / len(data),
        "accuracy": float(hits.mean()),
        "examples": len(data),
    }
    if details:
        found["class_accuracy"] = _by_class(hits, data)
        found["calibration_error"] = calibration_error(torch.cat(confidences), hits)
    return found


def _by_class(hits: Tensor, data: Dataset) -> dict[str, float | None]:
    count = torch.bincount(data.labels, minlength=data.num_classes).double()
    right = torch.zeros_like(count).scatter_add_(0, data.labels, hits)
    shares = zip(data.classes, right.tolist(), count.tolist(), strict=True)
    return {name: r / n if n else None for name, r, n in shares}


def predict(model: nn.Module, data: Dataset, batch_size: int = 500) -> Tensor:
    """Class probabilities ``(N, K)`` of every image, float32, on the processor.

    Args:
        model: takes ``(B, C, H, W)``; afterwards each of its modules is in the mode it was in.
        data: images with the normalization that the network was trained with; labels do not matter.
        batch_size: images at a time.

    Raises:
        ValueError: images of another shape than the network takes.
    """
    parts = [logits.softmax(1).cpu() for _, logits in _logits(model, data, batch_size)]
    return torch.cat(parts)


def _logits(model: nn.Module, data: Dataset, batch_size: int) -> Iterator[tuple[int, Tensor]]:
    """Where a batch starts, and its logits ``(b, K)``."""
    shape = getattr(model, "input_shape", data.image_shape)
    if tuple(shape) != data.image_shape:
        raise ValueError(
            f"images are {_size(data.image_shape)}, and the network takes {_size(shape)}: give "
            "images of that size."
        )
    with evaluating(model):
        for start in range(0, len(data), batch_size):
            with torch.inference_mode():
                logits: Tensor = model(data.batch(slice(start, start + batch_size))).float()
            yield start, logits


def _size(shape: Any) -> str:
    channels, height, width = shape
    return f"{channels} × {height} × {width}"


def _check_classes(logits: Tensor, data: Dataset) -> None:
    if data.num_classes > logits.shape[1]:
        raise ValueError(
            f"{data.name} has {data.num_classes} classes, and the network {logits.shape[1]} "
            "outputs: give another data set or network."
        )
