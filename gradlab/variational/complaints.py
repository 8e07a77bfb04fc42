"""What has gone wrong with the noise of a network, in sentences.

Noise that is stuck is easily mistaken for noise that was learned, so training says so once.

>>> from gradlab.variational import to_variational
>>> noisy = to_variational(nn.Linear(3, 2), "sparse", parameterization="log_alpha", initial=5.0)
>>> complaints(noisy)
['every weight of the model has a log alpha above the threshold: its output is a constant.']
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gradlab.variational.base import StochasticLayer, stochastic_layers
from gradlab.variational.units import SMALLEST_LOG_ALPHA

# Of a layer's noise, how much has to stand at its lower bound.
_NEARLY_ALL = 0.99
_MANY = 0.05


def complaints(model: nn.Module) -> list[str]:
    """One sentence for everything that is wrong now, naming the layer; empty if nothing is.

    - log α is no number;
    - it has collapsed: nearly all of it stands at its lower bound, and the noise does nothing;
    - it has exploded: a layer that is pruned by it keeps no weight;
    - it is dead: in faithful mode the clamp's gradient is zero where it is crossed.

    Args:
        model: with stochastic layers.
    """
    found = []
    for name, layer in stochastic_layers(model).items():
        value = layer.log_alpha()
        if value is not None and value.dim():
            where = f"layer {name}" if name else "the model"
            found += _of_layer(where, layer, value.detach())
    return found


def _of_layer(where: str, layer: StochasticLayer, log_alpha: Tensor) -> list[str]:
    if bool(log_alpha.isnan().any()):
        return [f"the noise of {where} is no number: try a lower lr, or loop.clip."]
    found = []
    if _share(log_alpha <= SMALLEST_LOG_ALPHA) >= _NEARLY_ALL:
        found.append(f"nearly all noise of {where} stands at its lower bound: it does nothing any "
                     "more.")  # fmt: skip
    mask = layer.mask()
    if mask is not None and not bool(mask.any()):
        found.append(f"every weight of {where} has a log alpha above the threshold: its output is "
                     "a constant.")  # fmt: skip
    method: Any = getattr(layer, "method", None)
    if getattr(method, "mode", "correct") == "faithful":
        prior = method.prior
        beyond = (log_alpha <= SMALLEST_LOG_ALPHA) | (log_alpha >= prior.largest)
        if _share(beyond) >= _MANY:
            found.append(f"the noise of {where} has crossed the clamp of faithful mode in many "
                         "places, where it gets no gradient any more.")  # fmt: skip
    return found


def _share(which: Tensor) -> float:
    return float(which.to(torch.float32).mean())
