"""A network of torch's layers made noisy, and back.

>>> import torch
>>> network = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
>>> noisy = to_variational(network, "sparse", layers=["0"], threshold=2.0)
>>> [type(module).__name__ for module in noisy], noisy[0].method.threshold
(['WeightNoiseLinear', 'ReLU', 'Linear'], 2.0)
>>> x = torch.ones(1, 4)
>>> torch.equal(noisy.eval()(x), network(x)), torch.equal(to_plain(noisy)(x), network(x))
(True, True)
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from typing import Any

from torch import nn

from gradlab._registry import unknown
from gradlab.variational.base import Conv2dMap, LinearMap, StochasticLayer, stochastic_layers
from gradlab.variational.methods import REGISTRY, Method

_KINDS: dict[str, tuple[type[nn.Module], ...]] = {
    "all": (nn.Linear, nn.Conv2d),
    "linear": (nn.Linear,),
    "conv": (nn.Conv2d,),
}


def to_variational(
    model: nn.Module,
    method: str | Method,
    *,
    layers: str | Sequence[str] = "all",
    in_place: bool = False,
    **options: Any,
) -> nn.Module:
    """The network with noise in its linear layers and convolutions.

    Every ``torch.nn.Linear`` and ``torch.nn.Conv2d`` becomes the method's layer with the same
    weights, name, device, dtype and mode; a module that is used twice stays one, and weights that
    are tied stay tied. Subclasses of the two stay what they are, for they may compute something
    else.

    Args:
        model: with layers of torch.
        method: a method, or its name.
        layers: "all", "linear", "conv", or names of layers. By name, layers of one model can get
            different methods, one call for each.
        in_place: change ``model`` itself, so that an optimizer that holds its parameters still
            does; otherwise a copy.
        options: of the method, where it is given by name.

    Returns:
        The network; ``model`` itself if ``in_place``.

    Raises:
        ValueError: an unknown method, option or layer; a layer that cannot be converted; nothing to
            convert; or layers of another method, without layers given by name.
    """
    if isinstance(method, str):
        maker = REGISTRY.create(method, **options)
    elif options:
        raise ValueError(
            f"options {', '.join(options)} come with a method that is made already: give them to "
            "it, or give the method by name."
        )
    else:
        maker = method
    names = _by_kind(model, layers, maker) if isinstance(layers, str) else _by_name(model, layers)
    for name in names:
        _check_hooks(name, model.get_submodule(name))
    return _replaced(model, names, lambda layer: _noisy(layer, maker), in_place)


def to_plain(model: nn.Module, *, in_place: bool = False) -> nn.Module:
    """The network with layers of torch in place of stochastic ones, at their mean weights.

    Args:
        model: with stochastic layers.
        in_place: change ``model`` itself; otherwise a copy.

    Returns:
        The network; ``model`` itself if ``in_place``.

    Raises:
        ValueError: no stochastic layer, or one that is neither a linear map nor a convolution.
    """
    found = stochastic_layers(model)
    if not found:
        raise ValueError("the model has no stochastic layer: it is plain already.")
    for name, layer in found.items():
        if not isinstance(layer, LinearMap | Conv2dMap):
            raise ValueError(
                f"layer {name or '(the model)'} is a {type(layer).__name__}: only linear maps and "
                "convolutions have a plain counterpart."
            )
    return _replaced(model, found, _plain, in_place)


def _by_kind(model: nn.Module, kind: str, method: Method) -> list[str]:
    if kind not in _KINDS:
        raise ValueError(unknown("kind of layers", kind, _KINDS) + " Names of layers go in a list.")
    for name, layer in stochastic_layers(model).items():
        if getattr(layer, "method", None) != method:
            raise ValueError(
                f"layer {name or '(the model)'} is a {type(layer).__name__} already, and layers "
                f"= '{kind}' mixes methods: name the layers, or begin with to_plain(model)."
            )
    # subclasses are passed over
    names = [name for name, module in model.named_modules() if type(module) in _KINDS[kind]]
    if not names:
        wanted = " or ".join(f"torch.nn.{each.__name__}" for each in _KINDS[kind])
        raise ValueError(
            f"the model has no layer of type {wanted} left to convert: give another network, or "
            "make its layers of those types (subclasses are not converted)."
        )
    return names


def _by_name(model: nn.Module, names: Sequence[str]) -> list[str]:
    modules = dict(model.named_modules(remove_duplicate=False))
    if not names:
        raise ValueError("layers is empty: name at least one layer, or give 'all'.")
    for name in names:
        if name not in modules:
            known = [key for key, module in modules.items() if type(module) in _KINDS["all"]]
            raise ValueError(unknown("layer", name, known))
        kind = type(modules[name])
        if isinstance(modules[name], StochasticLayer):
            raise ValueError(
                f"layer {name} is a {kind.__name__} already: leave it out, or begin with "
                "to_plain(model)."
            )
        if kind not in _KINDS["all"]:
            raise ValueError(
                f"layer {name} is a {kind.__module__}.{kind.__qualname__}: only torch.nn.Linear "
                "and torch.nn.Conv2d themselves are supported, no subclass and no other layer."
            )
    return list(names)


def _check_hooks(name: str, layer: nn.Module) -> None:
    hooks = (layer._forward_hooks, layer._forward_pre_hooks,
             layer._backward_hooks, layer._backward_pre_hooks)  # fmt: skip
    if any(hooks):
        raise ValueError(
            f"layer {name or '(the model)'} has hooks, which a new layer would not have: remove "
            "them and register them again after converting."
        )


def _replaced(
    model: nn.Module,
    names: Collection[str],
    replacement: Callable[[Any], nn.Module],
    in_place: bool,
) -> nn.Module:
    if in_place and "" in names:
        raise ValueError("the model is itself the layer to replace: give in_place = false.")
    if not in_place:
        model = copy.deepcopy(model)
    made: dict[nn.Module, nn.Module] = {}
    for name in names:
        layer = model.get_submodule(name)
        if layer not in made:
            made[layer] = replacement(layer)
    if model in made:
        return made[model]
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child in made:
                parent._modules[name] = made[child]
    return model


def _arguments(layer: Any) -> dict[str, Any]:
    """With which torch would make a layer of the same shape."""
    if isinstance(layer, nn.Linear):
        names = ["in_features", "out_features"]
    else:
        names = ["in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation",
                 "groups", "padding_mode"]  # fmt: skip
    found = {name: getattr(layer, name) for name in names}
    return found | {"bias": layer.bias is not None, "device": layer.weight.device,
                    "dtype": layer.weight.dtype}  # fmt: skip


def _noisy(layer: nn.Linear | nn.Conv2d, method: Method) -> nn.Module:
    make = method.linear if isinstance(layer, nn.Linear) else method.conv2d
    new = make(**_arguments(layer))
    # the parameters themselves: tied weights stay tied, and optimizers keep what they hold
    new.weight, new.bias = layer.weight, layer.bias
    start_from = getattr(new, "start_from", None)
    if start_from is not None:  # its ``weight`` is not a mean, but made from one
        start_from(layer.weight)
    new.project()
    return new.train(layer.training)


def _plain(layer: LinearMap | Conv2dMap) -> nn.Module:
    mean = layer.mean_weight()
    kind = nn.Linear if isinstance(layer, LinearMap) else nn.Conv2d
    new: Any = kind(**_arguments(layer) | {"device": "meta"})
    if mean is not layer.weight:
        mean = nn.Parameter(mean.detach().clone(), layer.weight.requires_grad)
    new.weight, new.bias = mean, layer.bias
    return new.train(layer.training)  # type: ignore[no-any-return]
