"""What the objective ``network`` is made of: options, images, weights, statistics of BatchNorm.

Everything here is a pure function of names, seeds and files. What several cells of a sweep share is
kept per process: the images of a set, and a network with its traced forward pass.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gradlab import data, models
from gradlab._registry import unknown
from gradlab.data import Dataset
from gradlab.evaluation.module.evaluator import ModuleEvaluator
from gradlab.evaluation.population import Params, chunks
from gradlab.models.mlp import positive_integer

HELD_OUT = 2**30
"""Batches whose number has this bit draw from images that no other batch draws from."""

CALIBRATION = 1024
"""Images from which a fresh network gets the statistics of its BatchNorm layers."""

# Random streams of a seed. Its weights are those that a training run of the same seed starts from.
_WEIGHTS = (0, 0)
_BATCH, _SPLIT, _CALIBRATION, _COORDINATES = 1, 3, 4, 5


def numbers(seed: int, *stream: int) -> np.random.Generator:
    """The random numbers of one stream of a seed."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=stream))


@dataclass(frozen=True)
class Architecture:
    """A network as far as its options tell.

    Attributes:
        model: its name.
        options: what :func:`gradlab.models.create` is given.
        shapes: of every parameter, by name.
        layers: names of the weights of the binarized layers, from input to output.
    """

    model: str
    options: dict[str, Any]
    shapes: dict[str, torch.Size]
    layers: tuple[str, ...]

    def create(self) -> models.Network:
        """A network with weights of its own."""
        network: models.Network = models.create(self.model, **self.options)
        return network


def architecture(dataset: str, model: str, options: Mapping[str, Any]) -> Architecture:
    """The network that a model is for a data set, without computing or reading anything.

    Args:
        dataset: gives the shape of an image and the number of classes.
        model: a trainable one of :mod:`gradlab.models`.
        options: the model's; those that are None are left to its defaults.

    Raises:
        ValueError: an unknown data set, model or option, or an option out of range.

    >>> architecture("mnist", "xnor_mlp", {"width": 4, "depth": 1, "block": None}).layers
    ('hidden.0.linear.weight',)
    """
    info = data.find(dataset)
    trainable = [name for name in models.names() if name != "mlp"]
    if model not in trainable:
        raise ValueError(unknown("model", str(model), trainable))
    given = {
        **{key: value for key, value in options.items() if value is not None},
        "num_classes": info.num_classes,
        "input_shape": list(info.image_shape),
    }
    return _architecture(model, json.dumps(given, sort_keys=True))


@lru_cache(maxsize=256)
def _architecture(model: str, options: str) -> Architecture:
    given = json.loads(options)
    with torch.device("meta"):
        network = models.create(model, **given)
    if not isinstance(network, models.Network):
        raise ValueError(f"model {model} cannot be trained: choose xnor_resnet18, for example.")
    shapes = {name: weight.shape for name, weight in network.named_parameters()}
    return Architecture(model, given, shapes, network.layers())


def chosen_layers(built: Architecture, layers: Any) -> tuple[str, ...]:
    """Parameters named by ``layers``, in the order of the network.

    Args:
        built: the network.
        layers: None for all binarized layers; a position among them, counted from 0 or, negative,
            from the end; the name of any parameter; or a list of these.

    Raises:
        ValueError: a position or name that there is not, or the same layer twice.

    >>> built = architecture("cifar10", "xnor_resnet18", {"width": 2})
    >>> chosen_layers(built, [0, -2])
    ('cells.0.first.convolution.weight', 'cells.7.first.convolution.weight')
    """
    if layers is None:
        return built.layers
    given = list(layers) if isinstance(layers, list | tuple) else [layers]
    if not given:
        raise ValueError("layers is an empty list: name a layer, or leave it out for all.")
    found = [_one_layer(built, each) for each in given]
    for name in found:
        if found.count(name) > 1:
            raise ValueError(f"layers {given} name {name} twice: name it once.")
    return tuple(name for name in built.shapes if name in found)


def _one_layer(built: Architecture, layer: Any) -> str:
    count = len(built.layers)
    if isinstance(layer, int) and not isinstance(layer, bool):
        if not -count <= layer < count:
            raise ValueError(
                f"layer {layer} is not there: this network has {count} binarized layers, 0 to "
                f"{count - 1} from input to output, or -1 to -{count} from the end."
            )
        return built.layers[layer]
    if isinstance(layer, str) and layer in built.shapes:
        return layer
    if isinstance(layer, str) and f"{layer}.weight" in built.shapes:
        return f"{layer}.weight"
    raise ValueError(unknown("layer", str(layer), built.layers))


def chosen_coordinates(
    built: Architecture, names: tuple[str, ...], number: int, seed: int
) -> dict[str, Tensor]:
    """Seeded flat coordinates of each layer, ascending; all of a layer that has no more.

    A layer's own do not depend on which other layers are chosen.
    """
    positive_integer("coordinates", number)
    found = {}
    for place, (name, shape) in enumerate(built.shapes.items()):
        if name in names:
            drawn = numbers(seed, _COORDINATES, place).permutation(shape.numel())
            found[name] = torch.from_numpy(np.sort(drawn[:number]))
    return found


def images(name: str, device: str, seed: int) -> Dataset:
    """The training images of a set, read once per process.

    Args:
        name: the set.
        device: where they go.
        seed: chooses them where the set has no split of its own, as it does in training.

    Raises:
        DataError: a file of the set is missing or damaged.
    """
    info = data.find(name)
    own_split = info.needed("train") != info.needed("test")
    return _images(name, device, 0 if own_split else seed, str(data.data_root()))


@lru_cache(maxsize=2)
def _images(name: str, device: str, seed: int, root: str) -> Dataset:
    return data.load(name, "train", root=root, device=device, seed=seed)


def require_images(name: str) -> None:
    """Refuse a set whose training images are not on this machine; nothing is read.

    Raises:
        ValueError: one sentence with the command that fetches them.
    """
    if "train" not in data.splits_here(name):
        raise ValueError(
            f"the training images of {name} are not in {data.data_root()}: `gradlab data fetch "
            f"{name}` downloads them."
        )


def batch_indices(total: int, size: int, seed: int, batch: int) -> Tensor:
    """Which images make up a batch: a seeded random subset, without repetition.

    Args:
        total: number of images.
        size: images of a batch.
        seed: fixes which images are held out.
        batch: which batch; those with the bit ``HELD_OUT`` draw from a tenth of the images, or
            from one batch if that is more, from which no other batch draws.

    Returns:
        ``(size,)`` int64, in random order.

    Raises:
        ValueError: more than half of the images.

    >>> first, fresh = batch_indices(20, 5, 0, 0), batch_indices(20, 5, 0, HELD_OUT)
    >>> sorted({*first.tolist(), *fresh.tolist()}) == sorted([*first.tolist(), *fresh.tolist()])
    True
    """
    check_batch_size(total, size)
    order = _order(total, seed)
    held = max(total // 10, size)
    pool = order[:held] if batch & HELD_OUT else order[held:]
    drawn = numbers(seed, _BATCH, batch).choice(len(pool), size, replace=False)
    return torch.from_numpy(pool[drawn])


def check_batch_size(total: int, size: int) -> None:
    """Refuse batches of more than half of the images, in one sentence."""
    positive_integer("batch_size", size)
    if 2 * size > total:
        raise ValueError(
            f"batch_size is {size}, and there are {total:,} training images, of which at least as "
            f"many are held out: give at most {total // 2}."
        )


@lru_cache(maxsize=8)
def _order(total: int, seed: int) -> np.ndarray:
    return numbers(seed, _SPLIT).permutation(total)


@dataclass(frozen=True, eq=False)
class NetworkState:
    """A network whose weights and statistics are settled.

    Attributes:
        evaluator: of the network in evaluation mode, on a few images.
        params: all parameters, on the network's device.
    """

    evaluator: ModuleEvaluator
    params: Params
    _by_size: dict[int, ModuleEvaluator] = field(default_factory=dict)

    def on(self, inputs: Tensor, targets: Tensor) -> ModuleEvaluator:
        """The network on a batch; nothing is traced again, nor measured for a size seen before."""
        former = self._by_size.get(len(inputs), self.evaluator)
        found = former.on(inputs, targets)
        self._by_size[len(inputs)] = found
        return found


def network_state(
    built: Architecture, dataset: str, seed: int, device: str, weights: str | None
) -> NetworkState:
    """The network of a seed, or of a file of weights, kept for the cells that follow.

    Args:
        built: the architecture.
        dataset: the images that a fresh network's statistics come from.
        seed: fixes a fresh network's weights and those images.
        device: where it lives.
        weights: a safetensors file with every parameter and buffer, or None for a fresh network.

    Raises:
        ValueError: a file that is missing, is no safetensors file or is of another network.
    """
    options = json.dumps(built.options, sort_keys=True)
    # sums are rounded differently with another number of threads
    key = (built.model, options, dataset, seed, device, _identity(weights))
    return _network_state(*key, torch.get_num_threads(), str(data.data_root()))


def _identity(weights: str | None) -> tuple[str, int, int] | None:
    if weights is None:
        return None
    try:
        found = Path(weights).stat()
    except OSError as error:
        raise ValueError(
            f"weights: {weights} cannot be read ({error.strerror}): give a safetensors file."
        ) from None
    return weights, found.st_size, found.st_mtime_ns


@lru_cache(maxsize=3)
def _network_state(
    model: str,
    options: str,
    dataset: str,
    seed: int,
    device: str,
    weights: tuple[str, int, int] | None,
    threads: int,
    root: str,
) -> NetworkState:
    del threads, root  # they are part of the key alone
    built = _architecture(model, options)
    found = images(dataset, device, seed)
    if weights is None:
        network = fresh_network(built, found, seed, device)
    else:
        network = _loaded(built, weights[0]).to(device).eval()
    few = slice(0, 4)
    evaluator = ModuleEvaluator(network, found.batch(few), found.labels[few])
    params = {name: weight.detach() for name, weight in network.named_parameters()}
    return NetworkState(evaluator, params)


def fresh_network(built: Architecture, found: Dataset, seed: int, device: str) -> models.Network:
    """A network as its layers initialize it, with statistics of BatchNorm from training images.

    The statistics are the means over ``CALIBRATION`` images, passed through in training mode; a
    fresh network in evaluation mode would otherwise normalize by 0 and 1.
    """
    network = initialized(built, seed).to(device)
    norms = [each for each in network.modules() if isinstance(each, _BatchNorm)]
    if norms:
        size = min(CALIBRATION, len(found))
        index = numbers(seed, _CALIBRATION).choice(len(found), size, replace=False)
        momenta = [norm.momentum for norm in norms]
        with torch.no_grad():
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # the plain mean of all batches
            network.train()
            for low, high in chunks(size, 256):
                network(found.batch(torch.from_numpy(index[low:high]).to(device)))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    return network.eval()


def initialized(built: Architecture, seed: int) -> models.Network:
    """A network with the weights that a training run of this seed starts from, on the CPU."""
    state = np.random.SeedSequence(seed, spawn_key=_WEIGHTS).generate_state(1, np.uint64)
    with torch.random.fork_rng([]):
        torch.manual_seed(int(state[0] >> np.uint64(1)))
        return built.create()


def _loaded(built: Architecture, path: str) -> models.Network:
    try:
        stored = load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"weights: {path} is no safetensors file ({error}): give one that training saved."
        ) from None
    network = initialized(built, 0)
    own = network.state_dict()
    different = sorted(
        {*own, *stored} - {k for k in own if k in stored and own[k].shape == stored[k].shape}
    )
    if different:
        shown = ", ".join(different[:3]) + (", …" if len(different) > 3 else "")
        raise ValueError(
            f"weights: {path} is of another network than this {built.model} ({shown} differ): give "
            "the options that it was trained with."
        )
    network.load_state_dict(stored)
    return network


def module_state(network: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer of a network, on the CPU, as a weights file holds them."""
    return {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}
