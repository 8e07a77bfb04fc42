"""Optimizers: any class of ``torch.optim`` by its lower-case name, and two for binary weights.

Weight decay is the optimizer's own, with torch's meaning: ``adam`` and ``sgd`` add it to the
gradient, ``adamw`` decays the weights themselves. It applies to all parameters: latent weights,
scales of BatchNorm and biases alike, but for the parameters of noise (variances, rates of dropout,
probabilities of binary weights).

``bayes_binn`` and ``bop`` step binary weights by rules of their own and everything else by Adam
(:mod:`gradlab.variational.optimizers`), so they need the model, to know which is which.

>>> "adam" in names(), "bop" in names(), "lbfgs" in names()
(True, True, False)
>>> sorted(defaults("sgd"))[:3]
['dampening', 'foreach', 'fused']
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from gradlab import variational
from gradlab._registry import unknown
from gradlab.variational.optimizers import BayesBiNN, Bop, groups_for

# They need a closure or sparse gradients.
_UNFIT = {"LBFGS", "SparseAdam"}
# They change what a step means, serve CUDA graphs and double backward passes, or follow from data.
_HIDDEN = {"params", "maximize", "differentiable", "capturable", "train_size"}
# On every device faster than the rest, with the same results but for rounding.
_FUSED = {"adam", "adamw", "sgd"}
_OF_BINARY_WEIGHTS = {"bayes_binn": BayesBiNN, "bop": Bop}


def _classes() -> dict[str, type[torch.optim.Optimizer]]:
    found = {}
    for name, value in vars(torch.optim).items():
        if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer):
            found[name.lower()] = value
    fit = {
        name: cls
        for name, cls in found.items()
        if cls is not torch.optim.Optimizer and cls.__name__ not in _UNFIT
    }
    return {**fit, **_OF_BINARY_WEIGHTS}


def names() -> list[str]:
    """The optimizers there are, sorted."""
    return sorted(_classes())


def defaults(name: str) -> dict[str, Any]:
    """Every option of an optimizer with its default.

    Raises:
        ValueError: there is no such optimizer.
    """
    classes = _classes()
    if name not in classes:
        raise ValueError(unknown("optimizer", str(name), classes))
    parameters = inspect.signature(classes[name]).parameters
    found = {key: p.default for key, p in parameters.items() if key not in _HIDDEN}
    if name in _FUSED:
        found["fused"] = True
    return found


def create(
    name: str,
    params: Iterable[nn.Parameter],
    lr: float,
    *,
    model: nn.Module | None = None,
    train_size: int | None = None,
    **options: Any,
) -> torch.optim.Optimizer:
    """The optimizer called ``name``.

    ``adam``, ``adamw`` and ``sgd`` are fused unless options say otherwise: one kernel for all
    parameters, on processors too.

    Args:
        name: a class of ``torch.optim`` in lower case, "bayes_binn" or "bop".
        params: what it steps.
        lr: learning rate, which the schedule changes at every step.
        model: whose parameters they are; tells "bayes_binn" and "bop", which take all for binary
            weights where it is left out.
        train_size: number of training examples, for "bayes_binn".
        options: of the class; a list where it takes a tuple.

    Raises:
        ValueError: unknown name or option, one that the class refuses, or a model without the
            binary weights that the optimizer is for.

    >>> create("sgd", [nn.Parameter(torch.zeros(2))], lr=0.1, momentun=0.9)
    Traceback (most recent call last):
    ValueError: unknown option of optimizer sgd 'momentun': did you mean 'momentum'? Valid: ...
    """
    valid = defaults(name)
    for option in options:
        if option not in valid:
            raise ValueError(unknown(f"option of optimizer {name}", option, valid))
    given: Any = params
    if name in _FUSED and not options.get("foreach"):
        options = {"fused": True, **options}
    if name in _OF_BINARY_WEIGHTS and model is not None:
        given = groups_for(_OF_BINARY_WEIGHTS[name], model)
    elif model is not None and options.get("weight_decay", valid.get("weight_decay")):
        given = _decayed_and_not(model)
    if name == "bayes_binn":
        if train_size is None:
            raise ValueError("the optimizer bayes_binn needs the number of training examples: "
                             "give train_size=….")  # fmt: skip
        options = {"train_size": train_size, **options}
    tuples = {key: tuple(v) if isinstance(v, list) else v for key, v in options.items()}
    make: Any = _classes()[name]
    try:
        optimizer: torch.optim.Optimizer = make(given, lr=lr, **tuples)
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        place = make.__module__ if name in _OF_BINARY_WEIGHTS else "torch.optim"
        raise ValueError(f"{str(error).rstrip('.')}: see {place}.{make.__name__} "
                         "for what its options may be.") from None  # fmt: skip
    return optimizer


def _decayed_and_not(model: nn.Module) -> list[dict[str, Any]]:
    """A model's parameters, apart: what may decay, and what says how noise is distributed.

    Decay would pull variances towards one and probabilities towards a half.
    """
    noise = set(variational.own_parameters(model))
    layers = variational.stochastic_layers(model).items()
    noise |= {f"{name}.weight".lstrip(".") for name, layer in layers if layer.natural}
    parts: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
    for name, parameter in model.named_parameters():
        parts[name in noise].append(parameter)
    decayed, kept = parts
    if not kept:
        return [{"params": decayed}]
    return [{"params": decayed}, {"params": kept, "weight_decay": 0.0}]


def state_tensors(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What an optimizer remembers: tensors by name, and whatever is no tensor.

    Raises:
        ValueError: it remembers something that a checkpoint cannot hold.
    """
    tensors: dict[str, Tensor] = {}
    others: dict[str, Any] = {}
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{key}"] = value
            elif value is None or isinstance(value, bool | int | float | str):
                others[f"{index}.{key}"] = value
            else:
                raise ValueError(
                    f"{type(optimizer).__name__} remembers {key} as {type(value).__name__}, which "
                    "a checkpoint cannot hold: choose another optimizer, such as adam."
                )
    return tensors, others


def restore(
    optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], others: dict[str, Any]
) -> None:
    """Give an optimizer back what :func:`state_tensors` took from it."""
    state: dict[int, dict[str, Any]] = {}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for name, value in {**tensors, **others}.items():
        index, _, key = name.partition(".")
        parameter = parameters[int(index)]
        if isinstance(value, Tensor) and value.shape == parameter.shape and value.dim():
            # the memory format of its parameter, as fused kernels expect and bits depend on it
            value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
