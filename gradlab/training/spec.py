"""A training spec: the TOML file that says how one network is trained.

Tables ``[data]``, ``[model]``, ``[estimator]``, ``[optimizer]``, ``[schedule]``, ``[loop]``,
``[init]``, ``[checkpoint]``, ``[variational]``, and any number of ``[[switch]]``. Whatever is
wrong, the complaint is one sentence that names the file, the key, the mistake and the fix.

This module knows the shape of a spec and never imports torch;
:mod:`gradlab.training.setup` checks the rest against models, data and optimizers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import pydantic
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

from gradlab import _toml
from gradlab._toml import SpecError

EXAMPLES: dict[str, str] = {
    "name": 'name = "mnist_mlp"',
    "title": 'title = "A binary network on MNIST"',
    "description": 'description = "What is trained."',
    "seed": "seed = 0",
    "threads": "threads = 1",
    "data": '[data] with name = "cifar10"',
    "model": '[model] with name = "xnor_resnet18"',
    "estimator": '[estimator] with name = "nes"',
    "switch": '[[switch]] with epoch = 20 and estimator = {name = "nes"}',
    "optimizer": '[optimizer] with name = "adam" and lr = 1e-3',
    "schedule": '[schedule] with name = "cosine"',
    "loop": "[loop] with epochs = 20",
    "epochs": "epochs = 20",
    "clip": "clip = 5.0",
    "ema": "ema = 0.999",
    "examples": "examples = 1000",
    "evaluation_examples": "evaluation_examples = 1000",
    "epoch": "epoch = 20",
    "lr": "lr = 1e-4",
    "init": '[init] with weights = "results/first_stage"',
    "weights": 'weights = "results/first_stage"',
    "checkpoint": "[checkpoint] with keep = [5, 10]",
    "variational": '[variational] with method = {name = "sparse"}',
    "method": 'method = {name = "sparse"}',
    "kl_weight": 'kl_weight = {name = "linear", start = 5, length = 15}',
    "samples": "samples = 1",
    "compile": 'compile = "auto"',
}

# What a run is called and why it was made does not change it.
_WORDS = ("name", "title", "description")


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


_T = TypeVar("_T", bound=_Table)


class DataSpec(_Table):
    """``[data]``: what is learned, and how it is augmented.

    Attributes:
        name: one of ``gradlab.data.names()``.
        validation: fraction of the training set that is set aside, stratified, chosen by the run's
            seed; with 0 the test set is evaluated in every epoch.
        crop: pad by so many pixels and crop back at random.
        flip: mirror half of the images.
        cutout: side of a square that is cut out.
        mixup: α of mixup; 0 for none.
        padding: what crops are padded with, "zero" (black) or "reflect".
        examples: use only the first so many of a seeded permutation of the training set.
        evaluation_examples: likewise of the images evaluated in every epoch.
        pixels: "standardized" by the data set's mean and standard deviation, "symmetric" (from -1
            to 1) or "unit" (from 0 to 1).
        random_labels: shuffle the labels of the training images, seeded: there is nothing to learn
            but each image by heart (Zhang et al. 2017, arXiv 1611.03530).
    """

    name: str
    validation: float = Field(default=0.0, ge=0, lt=1)
    crop: int = Field(default=4, ge=0)
    flip: bool = True
    cutout: int = Field(default=0, ge=0)
    mixup: float = Field(default=0.0, ge=0)
    padding: str = "zero"
    examples: int | None = Field(default=None, ge=1)
    evaluation_examples: int | None = Field(default=None, ge=1)
    pixels: Literal["standardized", "symmetric", "unit"] = "standardized"
    random_labels: bool = False


class LoopSpec(_Table):
    """``[loop]``: how steps are made.

    Attributes:
        epochs: passes over the training set.
        batch_size: examples of a step; what is left at the end of an epoch waits for another one.
        precision: "float32", or "bfloat16" for matrix products and convolutions in bfloat16
            (torch's autocast).
        channels_last: memory format of images and convolutions.
        compile: true, false, or "auto": if the run is long enough to pay for it, the whole of
            backpropagation on a GPU, and signs with their derivatives on a processor.
        clip: largest norm of the whole gradient; left out, it is not clipped.
        clamp: keep latent weights in [−1, 1] after each step.
        ema: decay of the exponential moving average of the weights; left out, there is none.
        label_smoothing: share of the target that is spread over all classes.
        gradient_norms: also store each parameter's mean gradient norm per epoch.
        device: "cpu", "cuda", or "auto" for a GPU where there is one.
    """

    epochs: int = Field(ge=1)
    batch_size: int = Field(default=256, ge=1)
    precision: Literal["float32", "bfloat16"] = "float32"
    channels_last: bool = True
    compile: bool | Literal["auto"] = "auto"
    clip: float | None = Field(default=None, gt=0)
    clamp: bool = True
    ema: float | None = Field(default=None, gt=0, lt=1)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    gradient_norms: bool = False
    device: str = "auto"


class SwitchSpec(_Table):
    """One ``[[switch]]``: another estimator from an epoch on.

    Attributes:
        epoch: the first epoch (they count from 1) of the new estimator.
        estimator: its name and options; left out, backpropagation with the model's own surrogates.
        lr: what the schedule starts from instead of the optimizer's lr, from that epoch on.
    """

    epoch: int = Field(ge=2)
    estimator: dict[str, Any] | None = None
    lr: float | None = Field(default=None, gt=0)


class InitSpec(_Table):
    """``[init]``: where the weights start.

    Attributes:
        weights: weights of the same architecture: a safetensors file, or the folder of a run.
        ema: of a folder, take the averaged weights.
    """

    weights: str
    ema: bool = False


class CheckpointSpec(_Table):
    """``[checkpoint]``: what is kept.

    Attributes:
        every: write a checkpoint after so many epochs (and after the last).
        keep: epochs whose weights are kept as ``weights-epoch-0005.safetensors``.
    """

    every: int = Field(default=1, ge=1)
    keep: list[int] = Field(default_factory=list)


class VariationalSpec(_Table):
    """``[variational]``: noise on weights or activations, see :mod:`gradlab.variational`.

    Attributes:
        method: name and options of a variational method. One method serves all layers.
        layers: which layers it converts: "all", "linear", "conv", a list of names, or "auto", see
            :func:`gradlab.variational.convert`.
        kl_weight: name and options of a schedule of the KL term's weight β. The loss is the mean
            negative log-likelihood + β · KL / N, with the KL summed over weights and N training
            images.
        samples: noise samples per image and step.
        evaluation_samples: samples of the Monte Carlo predictions at the end, and of
            ``gradlab evaluate``.
    """

    method: dict[str, Any]
    layers: str | list[str] = "auto"
    kl_weight: dict[str, Any] = Field(default_factory=lambda: {"name": "constant"})
    samples: int = Field(default=1, ge=1)
    evaluation_samples: int = Field(default=10, ge=1)


_TABLES: dict[str, type[_Table]] = {
    "data": DataSpec, "loop": LoopSpec, "init": InitSpec, "checkpoint": CheckpointSpec,
    "variational": VariationalSpec,
}  # fmt: skip


class TrainingSpec(BaseModel):
    """How one network is trained.

    Attributes:
        name: a slug; the run's folder is ``results/<name>/``. Not part of what the run is.
        title: heading of the figure.
        description: what is asked.
        seed: fixes every random number of the run.
        threads: torch threads; the last bits of a result depend on it. Left out, torch's default.
        data: what is learned.
        model: name and options of a model; ``num_classes`` and ``input_shape`` are those of the
            data where they are left out.
        estimator: name and options; left out, backpropagation with the model's own surrogates.
        switch: later estimators.
        optimizer: name, lr, and further options of any ``torch.optim`` class. Weight decay is the
            optimizer's own and excludes nothing.
        schedule: name and options of a learning-rate schedule.
        loop: how steps are made.
        init: where the weights start, if not at random.
        checkpoint: what is kept.
        variational: noise on weights or activations, if there is any.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=80)
    title: str = ""
    description: str = ""
    seed: int = Field(default=0, ge=0)
    threads: int | None = Field(default=None, ge=1)
    data: DataSpec
    model: dict[str, Any]
    estimator: dict[str, Any] | None = None
    switch: list[SwitchSpec] = Field(default_factory=list)
    optimizer: dict[str, Any]
    schedule: dict[str, Any] = Field(default_factory=lambda: {"name": "constant"})
    loop: LoopSpec
    init: InitSpec | None = None
    checkpoint: CheckpointSpec = Field(default_factory=CheckpointSpec)
    variational: VariationalSpec | None = None

    _source: str = PrivateAttr(default="the spec")

    @property
    def source(self) -> str:
        """Where this spec came from, as error messages name it."""
        return self._source

    def error(self, message: str) -> SpecError:
        """A complaint about this spec: ``source: message``."""
        return SpecError(f"{self._source}: {message}")

    def identity(self) -> dict[str, Any]:
        """Everything that the numbers of the run depend on, as JSON has it."""
        whole: dict[str, Any] = json.loads(self.model_dump_json())
        # Options that came later: a run from before they existed goes on.
        if whole["variational"] is None:
            del whole["variational"]
        for key in ("pixels", "random_labels"):
            if whole["data"][key] == DataSpec.model_fields[key].default:
                del whole["data"][key]
        return {key: value for key, value in whole.items() if key not in _WORDS}

    def digest(self) -> str:
        """SHA-256 of :meth:`identity`."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()


def shipped_trainings() -> dict[str, Path]:
    """The training specs that travel with gradlab, by name."""
    return _toml.shipped("sweeps", "*.toml", "training")


def load(path_or_name: str | Path, overrides: Sequence[str] = ()) -> TrainingSpec:
    """Read a spec and its overrides, and check their shape.

    Args:
        path_or_name: a TOML file, the bare name of a shipped training, or the folder of a run,
            whose own spec is then taken.
        overrides: ``key=value`` texts, such as ``loop.epochs=5`` or ``model.width=8``.

    Raises:
        SpecError: one sentence, see the module's docstring.
    """
    stored = Path(path_or_name) / "spec.json"
    if stored.is_file():
        path, raw = stored, _stored(stored)
    else:
        path = _toml.find(path_or_name, shipped_trainings(), "training", "a training spec")
        raw = _toml.read(path)
    for text in overrides:
        parts, value = _toml.parse_override(text, TrainingSpec.model_fields)
        _toml.assign(raw, text, parts, value)
    return from_dict(raw, source=_toml.with_overrides(path, overrides))


def _stored(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SpecError(
            f"{path} cannot be read ({error}): give the TOML file of the run."
        ) from None
    if not isinstance(raw, dict):
        raise SpecError(f"{path} is not the spec of a training run: give its TOML file.")
    return without_missing(raw)


def without_missing(table: Mapping[str, Any]) -> dict[str, Any]:
    """A table without the keys that have no value, as TOML would write it.

    >>> without_missing({"seed": 0, "init": None, "loop": {"clip": None, "epochs": 2}})
    {'seed': 0, 'loop': {'epochs': 2}}
    """
    return {
        key: without_missing(value) if isinstance(value, Mapping) else value
        for key, value in table.items()
        if value is not None
    }


def from_dict(raw: Mapping[str, Any], source: str = "the spec") -> TrainingSpec:
    """A spec from the content of a TOML file.

    Raises:
        SpecError: unknown or missing key, wrong type, a number out of range or not finite,
            switches out of order.
    """
    tables: dict[str, Any] = dict(raw)
    for key, model in _TABLES.items():
        if isinstance(tables.get(key), Mapping):
            tables[key] = _table(model, tables[key], f"{key}.", source)
    if isinstance(tables.get("switch"), list):
        tables["switch"] = [
            _table(SwitchSpec, entry, "switch.", source) if isinstance(entry, Mapping) else entry
            for entry in tables["switch"]
        ]
    try:
        spec = TrainingSpec.model_validate(tables)
    except pydantic.ValidationError as error:
        raise SpecError(f"{source}: {_toml.sentence(error, TrainingSpec, EXAMPLES)}") from None
    spec._source = source
    for key, value in spec.model_dump().items():
        complaint = _toml.not_finite(key, value)
        if complaint:
            raise spec.error(complaint)
    _check(spec)
    return spec


def _table(model: type[_T], value: Mapping[str, Any], prefix: str, source: str) -> _T:
    try:
        return model.model_validate(dict(value))
    except pydantic.ValidationError as error:
        raise SpecError(f"{source}: {_toml.sentence(error, model, EXAMPLES, prefix)}") from None


def variational_from_dict(raw: Mapping[str, Any], source: str) -> VariationalSpec:
    """A ``[variational]`` on its own, as that of weights that are trained.

    Raises:
        SpecError: as :func:`from_dict`.
    """
    noise = _table(VariationalSpec, raw, "variational.", source)
    complaint = _toml.not_finite("variational", noise.model_dump())
    if complaint:
        raise SpecError(f"{source}: {complaint}")
    _check_name("variational.method", noise.method, source)
    return noise


def _check(spec: TrainingSpec) -> None:
    """Refuse what the tables cannot see alone."""
    entries: list[tuple[str, Mapping[str, Any] | None]] = [
        ("model", spec.model), ("optimizer", spec.optimizer), ("schedule", spec.schedule),
        ("estimator", spec.estimator), *(("switch.estimator", s.estimator) for s in spec.switch),
    ]  # fmt: skip
    if spec.variational is not None:
        entries += [("variational.method", spec.variational.method),
                    ("variational.kl_weight", spec.variational.kl_weight)]  # fmt: skip
        if spec.estimator is not None or spec.switch:
            raise spec.error("variational noise is trained by backpropagation: leave out "
                             "[variational], or the estimators.")  # fmt: skip
    for key, entry in entries:
        if entry is not None:
            _check_name(key, entry, spec.source)
    epochs = spec.loop.epochs
    before = 1
    for switch in spec.switch:
        if not before < switch.epoch <= epochs:
            when = "early" if switch.epoch <= before else "late"
            raise spec.error(f"switch.epoch {switch.epoch} comes too {when}: give rising epochs "
                             f"from 2 to {epochs}.")  # fmt: skip
        before = switch.epoch
    for epoch in spec.checkpoint.keep:
        if not 1 <= epoch <= epochs:
            raise spec.error(f"checkpoint.keep lists epoch {epoch}, and the run has {epochs}: give "
                             f"epochs from 1 to {epochs}.")  # fmt: skip


def _check_name(key: str, entry: Mapping[str, Any], source: str) -> None:
    if not isinstance(entry.get("name"), str):
        raise SpecError(f"{source}: {key} has no name: write for example {_named(key)}.")


def _named(key: str) -> str:
    return f'{key.rpartition(".")[2]} = {{name = "{_NAMES.get(key, "nes")}"}}'


_NAMES = {
    "model": "xnor_resnet18", "optimizer": "adam", "schedule": "cosine",
    "variational.method": "sparse", "variational.kl_weight": "constant",
}  # fmt: skip


def differences(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs between two nested tables, each as ``key (before, after)``.

    >>> differences({"seed": 0, "loop": {"epochs": 3}}, {"seed": 0, "loop": {"epochs": 5}})
    ['loop.epochs (3, now 5)']
    """
    found = []
    for key in dict.fromkeys([*before, *after]):
        old, new = before.get(key), after.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key} ({_shown(old)}, now {_shown(new)})")
    return found


def _shown(value: Any) -> str:
    text = "none" if value is None else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "…"
