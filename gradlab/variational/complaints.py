"""What has gone wrong with the noise of a network, in sentences.

Noise that is stuck is easily mistaken for noise that was learned, so training says so once.

>>> from gradlab.variational import to_variational
>>> noisy = to_variational(nn.Linear(3, 2), "sparse", parameterization="log_alpha", initial=5.0)
>>> complaints(noisy)
['no weight of the model is kept: pruned, its output is a constant.']
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gradlab.variational.base import stochastic_layers
from gradlab.variational.units import SMALLEST_LOG_ALPHA, Prior

# Of a layer's noise, how much has to stand at a bound.
_NEARLY_ALL = 0.99
_MANY = 0.05


def complaints(model: nn.Module) -> list[str]:
    """One sentence for everything that is wrong now, naming the layer; empty if nothing is.

    - log α is no number;
    - it has collapsed: nearly all of it stands at its lower bound, and the noise does nothing;
    - it has exploded: nearly all of it stands at its upper bound, or a layer keeps no weight;
    - it is dead: in faithful mode the clamp's gradient is zero where it is crossed.

    Args:
        model: with stochastic layers.
    """
    found = []
    for name, layer in stochastic_layers(model).items():
        where = f"layer {name}" if name else "the model"
        value = layer.log_alpha()
        if value is not None and bool(value.isnan().any()):
            found.append(f"the noise of {where} is no number: try a lower lr, or loop.clip.")
            continue
        mask = layer.mask()
        if mask is not None and not bool(mask.any()):
            found.append(f"no weight of {where} is kept: pruned, its output is a constant.")
        prior: Prior | None = getattr(getattr(layer, "method", None), "prior", None)
        if value is not None and isinstance(prior, Prior):
            found += _at_bounds(where, layer, value.detach(), prior)
    return found


def _at_bounds(where: str, layer: Any, log_alpha: Tensor, prior: Prior) -> list[str]:
    low, high = _share(log_alpha <= SMALLEST_LOG_ALPHA), _share(log_alpha >= prior.largest)
    if layer.method.mode == "faithful":
        if low + high < _MANY:
            return []
        return [f"the noise of {where} has crossed the clamp of faithful mode in many places, "
                "where it gets no gradient any more."]  # fmt: skip
    if low >= _NEARLY_ALL:
        return [f"nearly all noise of {where} stands at its lower bound: it does nothing any more."]
    if high >= _NEARLY_ALL:
        return [f"nearly all noise of {where} stands at its upper bound."]
    return []


def _share(which: Tensor) -> float:
    return float(which.to(torch.float32).mean())
