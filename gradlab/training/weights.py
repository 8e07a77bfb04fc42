"""Trained weights in a file that says which network they belong to.

A weights file holds the model's ``state_dict`` and, as JSON in its header, the model's name and
options and what its inputs are (data set, classes, normalization), so that :func:`build` makes the
same network of it again, without the data.

>>> import tempfile, torch
>>> from gradlab import models
>>> model = models.create("xnor_mlp", width=8, depth=1)
>>> with tempfile.TemporaryDirectory() as folder:
...     path = Path(folder) / "weights.safetensors"
...     save_weights(model, path, {"model": {"name": "xnor_mlp", "width": 8, "depth": 1}})
...     same, facts = build(path)
>>> torch.equal(same.head.weight, model.head.weight), facts["model"]["width"]
(True, 8)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from gradlab import _toml, models, variational
from gradlab._toml import SpecError
from gradlab.training import files, noise
from gradlab.training.files import FileProblem

FILE = "weights.safetensors"
EMA_FILE = "weights-ema.safetensors"
_SHOWN = 3


def save_weights(model: nn.Module, path: str | Path, facts: Mapping[str, Any]) -> None:
    """Write a model's parameters and buffers, whole or not at all.

    Args:
        model: whose weights.
        path: the file.
        facts: what to know about them, as JSON; ``model`` (name and options) lets :func:`build`
            make the network again.

    Raises:
        FileProblem: it cannot be written.
    """
    files.write(Path(path), files.packed(model.state_dict(), facts))


def load_weights(
    model: nn.Module, path: str | Path, *, ema: bool = False, plain: bool = False
) -> dict[str, Any]:
    """Give a model the weights of a file.

    Args:
        model: of the same architecture.
        path: a weights file, or the folder of a run.
        ema: of a folder, take the averaged weights.
        plain: stochastic layers also take the weights of an ordinary network, and keep what they
            have of their own (variances, say) as it is.

    Returns:
        The file's facts.

    Raises:
        FileProblem: no such file, a damaged one, the weights of another architecture, or natural
            parameters (of binary weights) where weights are wanted.
    """
    place = weights_file(path, ema=ema)
    tensors, facts = files.unpacked(place)
    own = model.state_dict()
    if plain:
        tensors = {**{name: own[name] for name in variational.own_parameters(model)}, **tensors}
    complaint = misfit(tensors, own)
    if complaint:
        raise FileProblem(
            f"{place} holds the weights of another network ({complaint}): create the model with "
            f"the options it was trained with{_options(facts)}."
        )
    natural = [each for each in variational.stochastic_layers(model).values() if each.natural]
    kept = _natural_method(facts) if plain else None
    if kept is not None and not _all_of(natural, type(kept)):
        name = facts["variational"]["method"]["name"]
        raise FileProblem(f"{place} holds natural parameters of the method {name}, which are no "
                          "weights: start from a network of that method, or from a plain one."
                          )  # fmt: skip
    model.load_state_dict(tensors)
    if plain and kept is None:
        for layer in natural:
            layer.start_from(layer.weight)
    return facts


def _all_of(layers: list[Any], method: type) -> bool:
    return bool(layers) and all(type(layer.method) is method for layer in layers)


def _natural_method(facts: Mapping[str, Any]) -> variational.Method | None:
    """The method of a file's weights, if these are natural parameters and no weights."""
    entry = facts.get("variational")
    if not entry:
        return None
    options = dict(entry["method"])
    method = variational.create(options.pop("name"), **options)
    return method if method.linear(1, 1).natural else None


def build(
    path: str | Path, *, ema: bool = False, overrides: Sequence[str] = ()
) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a weights file or of a run's folder, in evaluation mode, and its facts.

    Args:
        path: a weights file, or the folder of a run.
        ema: of a folder, take the averaged weights.
        overrides: ``key=value`` texts that change how noise is drawn, such as
            ``variational.method.estimator=local``, see :mod:`gradlab.training.noise`. The facts
            are then those of the changed network, and ``changed`` among them lists the changes.

    Raises:
        FileProblem: no such file, a damaged one, or one that does not say what network it is.
        SpecError: an override that the network cannot have.
        ValueError: a model that is not registered here.
    """
    place = weights_file(path, ema=ema)
    _, facts = files.unpacked(place)
    entry = facts.get("model")
    if not isinstance(entry, Mapping) or "name" not in entry:
        raise FileProblem(f"{place} does not name its model: load it with load_weights(model, …).")
    options = {key: value for key, value in entry.items() if key != "name"}
    model: nn.Module = models.create(entry["name"], **options)
    trained = facts.get("variational")
    if overrides and not trained:
        raise SpecError(f"'{overrides[0]}' is for networks with noise ([variational]), and the one "
                        f"in {place} has none: leave it out.")  # fmt: skip
    if trained:
        source = _toml.with_overrides(place, overrides)
        facts["variational"] = table = noise.changed(trained, overrides, source)
        if overrides:
            model = _changed(model, trained, table, source)
            facts["changed"] = noise.differences(trained, table)
        else:
            model = variational.convert(model, table)
    load_weights(model, place)
    if facts.get("changed"):
        variational.project(model)  # another method may allow less noise
    return model.eval(), facts


def _changed(
    model: nn.Module, trained: Mapping[str, Any], table: Mapping[str, Any], source: str
) -> nn.Module:
    """The plain network with changed noise, refused if the parameters are no longer the same."""
    before = variational.convert(model, trained)
    try:
        after = variational.convert(model, table)
    except (ValueError, TypeError) as error:
        raise SpecError(f"{source}: {error}") from None
    complaint = misfit(before.state_dict(), after.state_dict())
    if complaint is None and _natural_layers(before) != _natural_layers(after):
        complaint = "a natural parameter of binary weights has another meaning"
    if complaint:
        raise SpecError(
            f"{source}: the stored weights are no parameters of such a network ({complaint}): "
            "change only how their noise is drawn, by options such as estimator, noise or p."
        )
    return after


def _natural_layers(model: nn.Module) -> dict[str, type]:
    """The method of every layer whose ``weight`` is a natural parameter."""
    layers = variational.stochastic_layers(model)
    return {name: type(layer.method) for name, layer in layers.items() if layer.natural}


def weights_file(path: str | Path, *, ema: bool = False) -> Path:
    """The weights file of a run's folder, or the path itself.

    Raises:
        FileProblem: there is none.
    """
    place = Path(path)
    if not place.is_dir():
        return place
    found = place / (EMA_FILE if ema else FILE)
    if found.is_file():
        return found
    if ema and (place / FILE).is_file():
        raise FileProblem(f"{place} has no averaged weights: train with loop.ema = 0.999, or leave "
                          "out --ema.")  # fmt: skip
    raise FileProblem(f"{place} holds no {found.name}: its training has not ended, or it is not "
                      "the folder of a run.")  # fmt: skip


def misfit(given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str | None:
    """How the names and shapes of weights differ from a network's own, in words.

    >>> import torch
    >>> one, two = torch.zeros(1), torch.zeros(2)
    >>> misfit({"a": two, "c": one}, {"a": one, "b": one})
    'missing: b; unexpected: c; of another shape: a (2,) instead of (1,)'
    """
    parts = []
    for word, absent in (("missing", set(own) - set(given)), ("unexpected", set(given) - set(own))):
        if absent:
            parts.append(f"{word}: {_listed(sorted(absent))}")
    shapes = [
        f"{name} {tuple(given[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in given and given[name].shape != tensor.shape
    ]
    if shapes:
        parts.append(f"of another shape: {_listed(shapes)}")
    return "; ".join(parts) or None


def _listed(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(listed[:_SHOWN]) + more


def _options(facts: Mapping[str, Any]) -> str:
    entry = facts.get("model")
    if not isinstance(entry, Mapping):
        return ""
    words = ", ".join(f"{key}={value!r}" for key, value in entry.items())
    return f" ({words})"
