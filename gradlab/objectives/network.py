r"""The cross-entropy of a binarized network on a batch of real images, in chosen layers.

The parameters are the weights of the chosen layers, or a few coordinates of them; everything else
is held fixed, the statistics of BatchNorm included. What comes before the first chosen layer is
therefore computed once per batch, and central differences along the weights of one convolution are
affordable where those of the whole network are not.

A batch is a random subset of the training images, without augmentation. Batches by which steps are
judged (number ≥ 2³⁰) draw from a tenth of the images that no other batch draws from.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from gradlab import data, models
from gradlab._registry import unknown
from gradlab.binary import surrogates
from gradlab.evaluation import population as pop
from gradlab.evaluation.module.coordinates import module_differences
from gradlab.evaluation.module.evaluator import ModuleEvaluator
from gradlab.evaluation.module.noisy import NoisyPasses
from gradlab.evaluation.population import GaussianPopulation, LinePopulation, Params, Population
from gradlab.models.mlp import positive_integer
from gradlab.objectives import network_state as states
from gradlab.objectives.backpropagation import affordable_examples, draws, module_gradient
from gradlab.objectives.base import check_device, check_params, check_seed
from gradlab.objectives.network_state import Architecture, NetworkState

# Options that are handed on to the model where they are given.
MODEL_OPTIONS = (
    "width", "depth", "block", "weight", "scaling", "activation", "surrogate", "weight_surrogate",
)  # fmt: skip


class Network:
    """Mean cross-entropy of a network on one batch, as a function of chosen layers.

    Nothing is read or computed before it is asked for: making one checks its options alone.

    Args:
        dataset: one of :func:`gradlab.data.names`; its training images are used.
        model: a trainable one of :mod:`gradlab.models`.
        width: the model's width.
        depth: number of binary layers, of models that have the option.
        block: kind of residual block, likewise.
        weight: "binary" or "real".
        scaling: scale of binary weights; the model's own default if left out.
        activation: "binary", or another of :mod:`gradlab.binary.activations`.
        surrogate: derivative of the activations where the network itself is trained. It has no say
            in :meth:`surrogate_gradient`, which is told which derivative to use.
        weight_surrogate: likewise of the sign of a weight.
        layers: a list of positions among the binarized layers (0 first, -1 last) and names of
            parameters; all binarized layers if left out.
        coordinates: parameters are vectors of so many seeded coordinates of each layer.
        batch_size: number of images.
        seed: fixes a fresh network's weights.
        batch: which batch.
        device: where everything lives.
        weights: a safetensors file of a trained network with its statistics; otherwise a fresh one,
            with statistics from 1,024 training images.

    Attributes:
        architecture: the network.
        layer_names: the chosen layers, from input to output.

    Raises:
        ValueError: an unknown data set, model, option or layer, or a value out of range; when first
            evaluated, a data set or weights file that is missing or damaged.

    >>> objective = Network("mnist", "lenet", width=2, layers=[0, -1], batch_size=16)
    >>> objective.layer_names
    ('features.4.weight', 'classifier.3.weight')
    >>> Network("mnist", "lenet", width=2, block="bireal")
    Traceback (most recent call last):
    ValueError: unknown option of model lenet 'block'. Valid: ...
    """

    def __init__(
        self,
        dataset: str = "cifar10",
        model: str = "xnor_resnet18",
        width: int = 8,
        depth: int | None = None,
        block: str | None = None,
        weight: str = "binary",
        scaling: str | None = None,
        activation: str = "binary",
        surrogate: str | Mapping[str, Any] | None = None,
        weight_surrogate: str | Mapping[str, Any] | None = None,
        layers: Sequence[int | str] | None = None,
        coordinates: int | None = None,
        batch_size: int = 256,
        seed: int = 0,
        batch: int = 0,
        device: str = "cpu",
        weights: str | None = None,
    ) -> None:
        given = (width, depth, block, weight, scaling, activation, surrogate, weight_surrogate)
        options = dict(zip(MODEL_OPTIONS, given, strict=True))
        binarized = [n for n in models.names() if "weight_surrogate" in models.REGISTRY.options(n)]
        if model not in binarized:
            raise ValueError(unknown("model", str(model), binarized))
        self.architecture: Architecture = states.architecture(dataset, model, options)
        self.layer_names = states.chosen_layers(self.architecture, layers)
        # of the published number of images; those that are there are counted when they are read
        states.check_batch_size(dict(data.find(dataset).sizes)["train"], batch_size)
        check_seed("seed", seed)
        check_seed("batch", batch)
        if coordinates is not None:
            positive_integer("coordinates", coordinates)
        if weights is not None and not isinstance(weights, str):
            raise ValueError(f"weights is {weights!r}: give the path of a safetensors file.")
        self.dataset = dataset
        self.coordinates = coordinates
        self.batch_size = batch_size
        self.seed = seed
        self.batch = batch
        self.device = check_device(device)
        self.weights = weights

    @property
    def inputs(self) -> Tensor:
        """The normalized images, ``(B, C, H, W)`` float32."""
        return self.evaluator.inputs

    @property
    def targets(self) -> Tensor:
        """Their classes, ``(B,)`` int64."""
        return self.evaluator.targets

    @property
    def params(self) -> Params:
        """The network's own weights in the chosen layers or coordinates, copied."""
        return self._picked(self._state.params)

    @functools.cached_property
    def evaluator(self) -> ModuleEvaluator:
        """What evaluates populations of the whole network on this batch."""
        images = states.images(self.dataset, self.device, self.seed)
        index = states.batch_indices(len(images), self.batch_size, self.seed, self.batch)
        index = index.to(self.device)
        return self._state.on(images.batch(index), images.labels[index])

    @functools.cached_property
    def _state(self) -> NetworkState:
        return states.network_state(
            self.architecture, self.dataset, self.seed, self.device, self.weights
        )

    @functools.cached_property
    def _index(self) -> dict[str, Tensor] | None:
        """The chosen flat coordinates of each layer, if not all are."""
        if self.coordinates is None:
            return None
        found = states.chosen_coordinates(
            self.architecture, self.layer_names, self.coordinates, self.seed
        )
        return {name: index.to(self.device) for name, index in found.items()}

    @functools.cached_property
    def _shapes(self) -> dict[str, torch.Size]:
        if self._index is not None:
            return {name: index.shape for name, index in self._index.items()}
        return {name: self.architecture.shapes[name] for name in self.layer_names}

    def initial_params(self, seed: int) -> Params:
        """The chosen layers as a fresh network of this seed has them.

        Those of the objective's own seed belong to its network; :attr:`params` are those of the
        network as it is, trained or not.
        """
        check_seed("seed", seed)
        network = states.initialized(self.architecture, seed)
        fresh = {name: w.detach().to(self.device) for name, w in network.named_parameters()}
        return self._picked(fresh)

    def loss(self, params: Params) -> Tensor:
        """Mean loss over the batch, ``()`` float64; NaN if anything is NaN."""
        check_params(params, self._shapes)
        return self.losses({name: tensor[None] for name, tensor in params.items()})[0]

    def losses(self, population: Population) -> Tensor:
        """Mean loss of every member, ``(P,)`` float64, in bounded memory."""
        return self.evaluator.losses(self._whole(population), self._base)

    def decreases(self, params: Params, population: Population) -> Tensor:
        """loss(params) - loss(member), ``(P,)`` float64, differences taken per example."""
        check_params(params, self._shapes)
        everything = {**self._state.params, **self._put(params)}
        if self._index is not None and isinstance(population, GaussianPopulation):
            # made in float64, as the evaluator makes populations of whole layers
            mean = {name: tensor.double() for name, tensor in population.mean.items()}
            population = replace(population, mean=mean)
        return self.evaluator.decreases(everything, self._whole(population))

    def surrogate_gradient(
        self, params: Params, surrogate: Any, weight_surrogate: Any = None
    ) -> Params:
        """Backpropagation to the chosen layers with a surrogate derivative for every sign.

        Args:
            params: one parameter dict.
            surrogate: derivative of the activations, see :mod:`gradlab.binary.surrogates`.
            weight_surrogate: derivative of the sign of a chosen weight; hardtanh if left out, so
                that a threshold of the activations is no threshold of the weights.
        """
        check_params(params, self._shapes)
        rule = weight_surrogate or surrogates.create("hardtanh")
        block = self.batch_size if draws(surrogate, weight_surrogate) else self._block
        found = module_gradient(
            self.evaluator, self._put(params), surrogate, rule, block, self._state.params
        )
        return self._picked(found)

    @functools.cached_property
    def _block(self) -> int:
        """Examples that are backpropagated at a time."""
        return affordable_examples(self.evaluator, self._state.params)

    def coordinate_differences(self, params: Params, epsilon: float) -> Params:
        """Loss differences over ±epsilon of every weight, float64, re-evaluating what changes."""
        check_params(params, self._shapes)
        everything = {**self._state.params, **self._put(params)}
        return module_differences(
            self.evaluator, everything, epsilon, self.layer_names, coordinates=self._index
        )

    def noisy_passes(
        self, params: Params, names: Sequence[str], sigma: float, noise: str = "weights"
    ) -> NoisyPasses:
        """Forward passes with noise of every example's own, as those of :class:`Classification`.

        Raises:
            ValueError: parameters are single coordinates, whose noise is not that of a layer.
        """
        if self._index is not None:
            raise ValueError(
                "noise of every example's own perturbs whole layers, and objective.coordinates "
                "chooses single weights: leave coordinates out, or use nes."
            )
        check_params(params, self._shapes)
        return NoisyPasses(self.evaluator, params, names, sigma=sigma, noise=noise, base=self._base)

    @property
    def _base(self) -> Params:
        chosen = set(self.layer_names)
        return {name: w for name, w in self._state.params.items() if name not in chosen}

    def _picked(self, weights: Mapping[str, Tensor]) -> Params:
        """The chosen coordinates of whole layers, copied."""
        if self._index is None:
            return {name: weights[name].clone() for name in self.layer_names}
        return {name: weights[name].flatten()[index] for name, index in self._index.items()}

    def _put(self, params: Params) -> Params:
        """Whole layers, with the parameters in their places."""
        if self._index is None:
            return {name: params[name] for name in self.layer_names}
        return _scattered(params, self._index, self._state.params)

    def _whole(self, population: Population) -> Population:
        """A population of whole layers from one of coordinates."""
        if self._index is None:
            return population
        if isinstance(population, LinePopulation):
            zero = {name: torch.zeros_like(w) for name, w in self._state.params.items()}
            return replace(
                population,
                origin=self._put(population.origin),
                direction=_scattered(population.direction, self._index, zero),
            )
        if isinstance(population, GaussianPopulation):
            base = self._put(population.mean)
        else:
            base = {name: self._state.params[name] for name in self._index}
        # what the evaluator asks of a population are its names and shapes, its size and its parts
        return cast(Population, _Scattered(population, self._index, base))


@dataclass(frozen=True)
class _Scattered:
    """A population of a few coordinates as one of whole layers, made a few members at a time."""

    few: GaussianPopulation | Params
    index: dict[str, Tensor]
    mean: Params

    def __len__(self) -> int:
        return pop.size(self.few)

    def part(self, start: int, stop: int) -> _Scattered:
        """Members ``start`` … ``stop - 1``."""
        few: Any = pop.part(self.few, start, stop)
        return replace(self, few=few)

    def members(self) -> Params:
        """The members as a dict of tensors ``(P, ...)``."""
        return _scattered(pop.members(self.few), self.index, self.mean)


def _scattered(few: Params, index: Mapping[str, Tensor], whole: Mapping[str, Tensor]) -> Params:
    """Copies of whole layers with ``few[name]`` at the flat coordinates ``index[name]``.

    With ``few[name]`` of shape ``(P, n)`` there are P copies.
    """
    found = {}
    for name, places in index.items():
        values, tensor = few[name], whole[name]
        leading = values.shape[:-1]
        flat = tensor.flatten().to(values.dtype).expand(*leading, tensor.numel())
        found[name] = flat.index_copy(-1, places, values).reshape(*leading, *tensor.shape)
    return found
