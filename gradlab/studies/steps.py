"""A gradient as a step: normalization per tensor, over all tensors, or none."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic

from gradlab.evaluation.population import Params, flatten

Normalization = Literal["tensor", "global", "none"]
PositiveFloat = Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]


def direction(gradient: Params, normalize: str) -> Params:
    """The gradient divided by its norm + 1e-8: per ``tensor``, ``global`` over all, or ``none``.

    >>> import torch
    >>> direction({"w": torch.tensor([3.0, 4.0])}, "tensor")["w"]
    tensor([0.6000, 0.8000])
    """
    if normalize == "none":
        return dict(gradient)
    if normalize == "global":
        norm = flatten(gradient).double().norm().item()
        return {name: tensor / (norm + 1e-8) for name, tensor in gradient.items()}
    return {name: t / (t.double().norm().item() + 1e-8) for name, t in gradient.items()}
