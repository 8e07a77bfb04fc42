"""From a spec to everything that a run needs, checked before any work starts."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from gradlab import data, estimators, models, variational
from gradlab._registry import unknown
from gradlab.data import Augmentation, Dataset
from gradlab.objectives.base import check_device
from gradlab.training import optimizers, schedules, weights
from gradlab.training.average import WeightAverage
from gradlab.training.batches import Batches
from gradlab.training.gradients import (
    Backpropagation,
    Estimated,
    Gradients,
    NoisyBackpropagation,
    calibrate,
)
from gradlab.training.noise import KEYS
from gradlab.training.schedules import Schedule
from gradlab.training.spec import TrainingSpec
from gradlab.training.state import INIT, SUBSET, State, derived, generator
from gradlab.variational import kl_weight

# Compiling takes a minute or two, signs alone some seconds: "auto" leaves shorter runs alone.
STEPS_THAT_PAY = {"cuda": 2_000, "cpu": 500}

# Pixels that do not go by the data set's own mean and standard deviation: what takes their place.
_SCALES = {"symmetric": (0.5, 0.5), "unit": (0.0, 1.0)}

# An optimizer whose rule has the KL term in it.
_HAS_OWN_KL = "bayes_binn"


@dataclass(frozen=True)
class Datasets:
    """What a run learns from and is judged on.

    Attributes:
        train: the training set.
        evaluation: evaluated in every epoch.
        test: evaluated once, at the end; ``None`` where the test set is evaluated in every epoch.
    """

    train: Dataset
    evaluation: Dataset
    test: Dataset | None = None

    @property
    def records(self) -> dict[str, Any]:
        """Where the images come from."""
        return {"train": self.train.record, "evaluation": self.evaluation.record}


@dataclass(frozen=True)
class Setup:
    """What does not change while a network trains.

    Attributes:
        spec: the spec.
        model: name and options of the model, every one that the data decide filled in.
        datasets: on the device.
        batches: of the training set.
        schedule: the learning rate's.
        device: "cpu" or "cuda".
        compiled: whether backpropagation is compiled as a whole.
        fused: whether signs and their derivatives are compiled loops, on a processor.
    """

    spec: TrainingSpec
    model: dict[str, Any]
    datasets: Datasets
    batches: Batches
    schedule: Schedule
    device: str
    compiled: bool
    fused: bool

    def phase(self, epoch: int) -> tuple[dict[str, Any] | None, float]:
        """The estimator of an epoch (``None`` for backpropagation) and what its lr starts from."""
        chosen, lr = self.spec.estimator, float(self.spec.optimizer["lr"])
        for switch in self.spec.switch:
            if epoch >= switch.epoch:
                chosen, lr = switch.estimator, switch.lr or lr
        return chosen, lr

    def gradients(
        self, entry: dict[str, Any] | None, model: nn.Module, note: Callable[[str], None]
    ) -> Gradients:
        """Where the gradients of a phase come from."""
        loop, noise = self.spec.loop, self.spec.variational
        if entry is None:
            options: dict[str, Any] = {
                "label_smoothing": loop.label_smoothing, "precision": loop.precision,
                "compiled": self.compiled, "fused": self.fused, "note": note,
            }  # fmt: skip
            if noise is None:
                return Backpropagation(model, **options)
            beta = _named("variational.kl_weight", noise.kl_weight, kl_weight.create)
            size, steps = len(self.datasets.train), self.batches.steps
            return NoisyBackpropagation(
                model, beta, size, steps, loop.epochs, noise.samples,
                self.spec.optimizer["name"] != _HAS_OWN_KL, **options,
            )  # fmt: skip
        return Estimated(model, _estimator(entry), loop.label_smoothing, self.spec.seed)


def resolve_device(device: str) -> str:
    """The device behind "auto"; others are checked.

    Raises:
        ValueError: torch does not know it, or this machine does not have it.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return check_device(device)
    except ValueError as error:
        raise ValueError(f"loop.{str(error).replace('give cpu', 'give auto, cpu')}") from None


def prepare(spec: TrainingSpec, datasets: Datasets | None = None) -> tuple[Setup, State]:
    """Check a spec against models, data and optimizers, and make the network.

    Args:
        spec: what to train.
        datasets: images to use instead of those that the spec names.

    Raises:
        SpecError: an unknown name or option, or parts that do not fit each other; one sentence.
    """
    try:
        return _prepare(spec, datasets)
    except ValueError as error:
        raise spec.error(str(error)) from None


def check(spec: TrainingSpec) -> None:
    """Check a spec as :func:`prepare` does, without reading any image.

    Raises:
        SpecError: as there.
    """
    try:
        _checked(spec, None)
    except ValueError as error:
        raise spec.error(str(error)) from None


def _checked(
    spec: TrainingSpec, datasets: Datasets | None
) -> tuple[str, Schedule, Augmentation, dict[str, Any], nn.Module]:
    """The parts that can be had without reading images."""
    device = resolve_device(spec.loop.device)
    schedule = _named("schedule", spec.schedule, schedules.create)
    schedule.check(spec.loop.epochs)
    _check_optimizer(spec)
    _check_estimators(spec)
    _check_precision(spec, device)
    augmentation = Augmentation(
        crop=spec.data.crop, flip=spec.data.flip, cutout=spec.data.cutout,
        mixup=float(spec.data.mixup), padding=spec.data.padding,
    )  # fmt: skip
    shape, classes = _images(spec, datasets)
    entry, model = _model(spec, shape, classes)
    if spec.variational is not None:
        _named("variational.kl_weight", spec.variational.kl_weight, kl_weight.create)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived(spec.seed, INIT, 1))
            model = variational.convert(model, noise_of(spec))
    _optimizer(spec, model, 1)  # whether it fits the network
    if spec.variational is not None:
        _check_own_kl(spec)
    return device, schedule, augmentation, entry, model


def _prepare(spec: TrainingSpec, datasets: Datasets | None) -> tuple[Setup, State]:
    device, schedule, augmentation, entry, model = _checked(spec, datasets)
    # reading images takes longest, so it comes last
    loaded = load_datasets(spec, device) if datasets is None else _moved(datasets, device)
    loaded = _limited(spec, loaded)
    batches = Batches(
        loaded.train, augmentation, spec.loop.batch_size, spec.seed, spec.loop.channels_last
    )
    model = model.to(device)
    if spec.loop.channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = _optimizer(spec, model, len(loaded.train))
    average = None if spec.loop.ema is None else WeightAverage(model, spec.loop.ema)
    compiled, fused = _compiled(spec, device, batches.steps)
    setup = Setup(spec, entry, loaded, batches, schedule, device, compiled, fused)
    return setup, State(model, optimizer, average)


def noise_of(spec: TrainingSpec) -> dict[str, Any]:
    """What weights must know of ``[variational]`` to be used again."""
    assert spec.variational is not None
    return spec.variational.model_dump(include=set(KEYS))


def initialize(setup: Setup, state: State) -> None:
    """Where a run starts that has no checkpoint: the weights of ``[init]``, and statistics.

    Where an estimator drives the first epoch, BatchNorm gets the statistics of a few batches, see
    :func:`gradlab.training.gradients.calibrate`.

    Raises:
        SpecError: weights that are missing, damaged or of another network.
    """
    init = setup.spec.init
    if init is not None:
        try:
            weights.load_weights(state.model, init.weights, ema=init.ema, plain=True)
        except ValueError as error:
            raise setup.spec.error(f"init.weights: {error}") from None
    elif setup.phase(1)[0] is not None:
        calibrate(state.model, setup.batches.epoch(0))
    variational.project(state.model)
    if state.average is not None:
        state.average.model.load_state_dict(state.model.state_dict())


def _named(kind: str, entry: dict[str, Any], create: Callable[..., Any]) -> Any:
    options = {key: value for key, value in entry.items() if key != "name"}
    try:
        return create(entry["name"], **options)
    except TypeError as error:
        raise ValueError(f"{kind}: an option has the wrong type ({error}).") from None


def _estimator(entry: dict[str, Any]) -> estimators.Estimator:
    made: estimators.Estimator = _named("estimator", entry, estimators.create)
    return made


def _check_optimizer(spec: TrainingSpec) -> None:
    name, lr = spec.optimizer["name"], spec.optimizer.get("lr")
    if lr is None:
        raise ValueError("optimizer.lr is missing: write for example lr = 1e-3.")
    if isinstance(lr, bool) or not isinstance(lr, int | float) or lr <= 0:
        raise ValueError(f"optimizer.lr is {lr!r}: give a number above 0.")
    options = _optimizer_options(spec)
    valid = optimizers.defaults(name)
    for option in options:
        if option not in valid:
            raise ValueError(unknown(f"option of optimizer {name}", option, valid))
    optimizers.create(name, [nn.Parameter(torch.zeros(2, 2))], float(lr), train_size=1, **options)


def _optimizer_options(spec: TrainingSpec) -> dict[str, Any]:
    return {key: value for key, value in spec.optimizer.items() if key not in ("name", "lr")}


def _optimizer(spec: TrainingSpec, model: nn.Module, train_size: int) -> torch.optim.Optimizer:
    name, lr = spec.optimizer["name"], float(spec.optimizer["lr"])
    options = _optimizer_options(spec)
    return optimizers.create(
        name, model.parameters(), lr, model=model, train_size=train_size, **options
    )


def _check_estimators(spec: TrainingSpec) -> None:
    entries = [spec.estimator, *(switch.estimator for switch in spec.switch)]
    asked = [entry for entry in entries if entry is not None]
    for entry in asked:
        _estimator(entry)
    if asked and spec.data.mixup:
        raise ValueError("data.mixup makes soft targets, and estimators take labels: leave out "
                         "mixup, or the estimators.")  # fmt: skip
    if asked and spec.loop.precision != "float32":
        raise ValueError("loop.precision is bfloat16, and estimators evaluate in float32: leave "
                         "out precision, or the estimators.")  # fmt: skip


def _check_own_kl(spec: TrainingSpec) -> None:
    assert spec.variational is not None
    own, noise = spec.optimizer["name"] == _HAS_OWN_KL, spec.variational
    if own and noise.kl_weight != {"name": "constant"}:
        raise ValueError("the optimizer bayes_binn has the KL term in its own rule: leave out "
                         "variational.kl_weight, and give optimizer.kl_weight.")  # fmt: skip
    prior = noise.method.get("prior", 0.0)
    if own and prior != spec.optimizer.get("prior", 0.0):
        raise ValueError(f"the optimizer's prior is {spec.optimizer.get('prior', 0.0)} and the "
                         f"method's {prior}: give both the same.")  # fmt: skip


def _check_precision(spec: TrainingSpec, device: str) -> None:
    on_gpu = device.startswith("cuda")
    if spec.loop.precision == "bfloat16" and on_gpu and not torch.cuda.is_bf16_supported():
        raise ValueError("loop.precision is bfloat16, which this GPU does not have: give "
                         'precision = "float32".')  # fmt: skip


def _images(spec: TrainingSpec, datasets: Datasets | None) -> tuple[tuple[int, int, int], int]:
    """Shape of an image and number of classes, without reading any."""
    if datasets is not None:
        return datasets.train.image_shape, datasets.train.num_classes
    info = data.find(spec.data.name)
    return info.image_shape, info.num_classes


def _model(
    spec: TrainingSpec, shape: tuple[int, int, int], classes: int
) -> tuple[dict[str, Any], nn.Module]:
    """The model with its options, at its seeded start."""
    name = spec.model["name"]
    valid = inspect.signature(models.REGISTRY.factory(name)).parameters
    known = {"num_classes": classes, "input_shape": list(shape)}
    filled = {key: value for key, value in known.items() if key in valid}
    entry = {"name": name, **filled, **spec.model}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived(spec.seed, INIT))
        model = _named("model", entry, models.create)
    if not isinstance(model, nn.Module):
        raise ValueError(f"the model {name} is a function of parameters, not a torch.nn.Module: "
                         "train xnor_mlp instead.")  # fmt: skip
    own = tuple(getattr(model, "input_shape", shape))
    if own != shape:
        raise ValueError(f"images of {spec.data.name} are {shape} (channels, height, width), and "
                         f"model.input_shape is {own}: leave it out.")  # fmt: skip
    outputs = getattr(model, "num_classes", classes)
    if outputs < classes:
        raise ValueError(f"{spec.data.name} has labels from 0 to {classes - 1}, and "
                         f"model.num_classes is {outputs}: leave it out.")  # fmt: skip
    return entry, model


def load_datasets(spec: TrainingSpec, device: str) -> Datasets:
    """The images that a spec names, read onto a device.

    Raises:
        ValueError: a file is missing or damaged.
    """
    options: dict[str, Any] = {"device": device, "seed": spec.seed}
    share = float(spec.data.validation)
    train = data.load(spec.data.name, "train", validation=share, **options)
    test = data.load(spec.data.name, "test", **options)
    if not share:
        return Datasets(train, test)
    return Datasets(
        train, data.load(spec.data.name, "validation", validation=share, **options), test
    )


def _moved(datasets: Datasets, device: str) -> Datasets:
    """The same images on a device."""

    def moved(images: Dataset) -> Dataset:
        pixels, labels = images.images.to(device), images.labels.to(device)
        return replace(images, images=pixels, labels=labels)

    test = None if datasets.test is None else moved(datasets.test)
    return Datasets(moved(datasets.train), moved(datasets.evaluation), test)


def _limited(spec: TrainingSpec, datasets: Datasets) -> Datasets:
    """The first so many of a seeded permutation of the images."""
    train = _first(datasets.train, spec.data.examples, spec.seed, "examples", 0)
    if spec.data.random_labels:
        order = torch.randperm(len(train), generator=generator(spec.seed, SUBSET, 2))
        record = {**train.record, "labels": "shuffled"}
        train = replace(train, labels=train.labels[order.to(train.labels.device)], record=record)
    wanted = spec.data.evaluation_examples
    evaluation = _first(datasets.evaluation, wanted, spec.seed, "evaluation_examples", 1)
    found = Datasets(train, evaluation, datasets.test)
    return (
        found if spec.data.pixels == "standardized" else _scaled(found, *_SCALES[spec.data.pixels])
    )


def _scaled(datasets: Datasets, mean: float, std: float) -> Datasets:
    """The same images with other numbers to normalize by."""

    def scaled(images: Dataset) -> Dataset:
        channels = images.image_shape[0]
        return replace(images, mean=(mean,) * channels, std=(std,) * channels)

    test = None if datasets.test is None else scaled(datasets.test)
    return Datasets(scaled(datasets.train), scaled(datasets.evaluation), test)


def _first(images: Dataset, number: int | None, seed: int, key: str, counter: int) -> Dataset:
    if number is None:
        return images
    if number > len(images):
        raise ValueError(f"data.{key} is {number:,}, and there are {len(images):,} images "
                         f"({images.split}): give fewer, or leave it out.")  # fmt: skip
    order = torch.randperm(len(images), generator=generator(seed, SUBSET, counter))
    return images.subset(order[:number].to(images.images.device))


def _compiled(spec: TrainingSpec, device: str, steps: int) -> tuple[bool, bool]:
    """Whether backpropagation is compiled as a whole, and whether its signs are.

    On a processor compiled convolutions and BatchNorm are no faster than torch's own, and signs
    many times.
    """
    if isinstance(spec.loop.compile, bool):
        return spec.loop.compile, False
    pays = steps * spec.loop.epochs >= STEPS_THAT_PAY[device.partition(":")[0]]
    return (pays, False) if device.startswith("cuda") else (False, pays)
