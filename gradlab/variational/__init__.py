"""Networks whose weights or activations are random: dropout, variational dropout, Bayes.

A method of :func:`names` says what kind of noise; :func:`to_variational` gives it to a network of
torch's layers, whose training minimizes

    mean negative log-likelihood + β · (KL(posterior ‖ prior), summed over weights) / N

with N training images (:mod:`gradlab.training` does so from a spec's ``[variational]``). In
``eval()`` a network computes with its mean weights and draws nothing; :func:`predict` also averages
over draws, :func:`pruned` leaves out what the method removes, :func:`export` writes it as a smaller
network.

>>> "sparse" in names()
True
>>> create("sparse", initial=-8.0).initial
-8.0
>>> create("sparce")
Traceback (most recent call last):
ValueError: unknown variational method 'sparce': did you mean 'sparse'? Valid: ard, ...
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from gradlab.variational import bayes as _bayes
from gradlab.variational import binary_weights as _binary_weights
from gradlab.variational import concrete as _concrete
from gradlab.variational import l0 as _l0
from gradlab.variational import normal_jeffreys as _normal_jeffreys
from gradlab.variational import units as _units
from gradlab.variational import weights as _weights
from gradlab.variational.base import (
    Conv2dMap,
    LinearMap,
    StochasticLayer,
    kl_divergence,
    own_parameters,
    project,
    sampling,
    stochastic_layers,
)
from gradlab.variational.compression import (
    compression,
    kept_inputs,
    layer_rows,
    log_alpha_histogram,
    masked,
    pruned,
)
from gradlab.variational.conversion import to_plain, to_variational
from gradlab.variational.export import export
from gradlab.variational.exported import load_exported
from gradlab.variational.labels import label
from gradlab.variational.methods import REGISTRY, Method
from gradlab.variational.prediction import predict

# They are imported for what they register.
_METHODS = (_bayes, _binary_weights, _concrete, _l0, _normal_jeffreys, _units, _weights)

__all__ = [
    "REGISTRY",
    "Conv2dMap",
    "LinearMap",
    "Method",
    "StochasticLayer",
    "compression",
    "convert",
    "create",
    "export",
    "kept_inputs",
    "kl_divergence",
    "label",
    "layer_rows",
    "load_exported",
    "log_alpha_histogram",
    "masked",
    "names",
    "own_parameters",
    "predict",
    "project",
    "pruned",
    "sampling",
    "stochastic_layers",
    "to_plain",
    "to_variational",
]


def names() -> list[str]:
    """The registered methods, sorted."""
    return REGISTRY.names()


def create(name: str, **options: Any) -> Method:
    """The method called ``name``.

    Raises:
        ValueError: unknown name or option, or an option out of range.
    """
    return REGISTRY.create(name, **options)


def convert(model: nn.Module, entry: Mapping[str, Any]) -> nn.Module:
    """:func:`to_variational` by a table: ``method`` (name and options) and ``layers``.

    ``layers = "auto"`` gives noise on units to the linear layers where it is on their inputs, and
    to the convolutions where it is on their outputs; every other method gets all layers.

    >>> table = {"method": {"name": "bernoulli", "p": 0.2}, "layers": "all"}
    >>> type(convert(nn.Sequential(nn.Linear(2, 2)), table)[0]).__name__
    'UnitNoiseLinear'
    """
    options = dict(entry["method"])
    method = create(options.pop("name"), **options)
    layers = entry.get("layers", "auto")
    if layers == "auto":
        layers = {"input": "linear", "output": "conv"}.get(getattr(method, "side", ""), "all")
    return to_variational(model, method, layers=layers)
