r"""What it costs in variance to sample weights or pre-activations, pathwise or by score function.

The smoothed loss :math:`J(\mu) = E\,L(\mu + \sigma\varepsilon)` of one network on one batch has one
gradient, and the methods of :mod:`gradlab.studies.noise_gradients` estimate it. A sweep lists them
as ``[[methods]]``; the objective ``classifier`` says which network and images. Only the weights of
its layers are noisy, never biases.

A row of the table ``gradient_variance`` is of one layer (``depth_index`` noisy layers stand before
it), or of ``all``, over ``repeats`` estimates
with mean ḡ and summed variance V (``gradient_variance``), against a reference gradient r:

- ``relative_variance``: V/‖r‖², ``signal_to_noise`` ‖r‖/√V; ``relative_variance_per_pass``: times
  the estimate's passes, the variance where all may spend the same. Passes are the sum of
  ``forward_passes`` and ``backward_passes``, in units of the whole network on the whole batch, a
  backward pass counted as one, as budgets of the study ``trajectory`` count them. The second linear
  map of local reparameterization and flipout counts as a pass of its own
  (:class:`gradlab.studies.noise_gradients.Pathwise`). ``seconds`` is the time of one estimate.
- ``cosine``: of single estimates to r, averaged;
- ``relative_bias``: ‖E ḡ - r‖/‖r‖ with the noise of both taken out, cut off at 0, and ``bias_z``,
  its square over the standard error that this has without bias: the two-sample test of Chen and Qin
  ("A two-sample test for high-dimensional data with applications to gene-set testing", Annals of
  Statistics 38, 2010). It is nearly standard normal where the noise has many directions, and skewed
  to the right where it has few. Every method here is unbiased, so that the study checks itself.

The reference is the mean of ``reference_passes`` passes of the pathwise estimator of least variance
with the same expectation, in eight independent blocks, on random numbers of its own; ‖r‖² is the
mean product of different blocks, which has no noise in it. In convolutions pre-activations drawn at
every position are another smoothing, and multiplicative noise is another function of the weights:
both are compared with a reference of their own, which ``reference`` names.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, cast

import pydantic
import torch
from filelock import FileLock
from torch import Tensor

from gradlab import data, training
from gradlab.evaluation import Params
from gradlab.objectives.classifier import named
from gradlab.objectives.network_state import require_images
from gradlab.studies import cells, networks, noise_gradients
from gradlab.studies.base import Cell, Row, Settings, Tables, derived_seed, number
from gradlab.studies.clock import now
from gradlab.studies.noise_gradients import Pathwise, Source
from gradlab.studies.students import cached

BLOCKS = 8
TRAINING = {"lr": 1e-3, "batch_size": 100}
# Coordinates whose products are summed at a time, in float64.
_COORDINATES = 2**16


class GradientVarianceSettings(Settings):
    """Settings of the study.

    Attributes:
        repeats: independent estimates on the same batch.
        reference_passes: pathwise passes of the reference, in eight blocks.
        train_epochs: of Adam at lr 1e-3 with batches of 100, without noise, before gradients are
            taken; 0 for a fresh network.
    """

    repeats: Annotated[int, pydantic.Field(ge=4)] = 64
    reference_passes: Annotated[int, pydantic.Field(ge=8, multiple_of=8)] = 1024
    train_epochs: Annotated[int, pydantic.Field(ge=0)] = 0


class GradientVariance:
    """The study."""

    name = "gradient_variance"
    settings_model = GradientVarianceSettings
    entries = noise_gradients.REGISTRY

    def validate(self, cell: Cell) -> None:
        """Refuse combinations that cannot run, before anything is measured."""
        objective = cell["objective"]
        if objective["name"] != "classifier":
            raise ValueError(
                f"gradient_variance goes by networks on images, and the objective is "
                f'{objective["name"]}: use name = "classifier".'
            )
        if cell["student"]["state"] != "fresh":
            raise ValueError(
                "gradient_variance trains its network by settings.train_epochs: leave out "
                "[student]."
            )
        if objective.get("weights") is not None and cell["settings"]["train_epochs"]:
            raise ValueError(
                "settings.train_epochs trains a network, and objective.weights names one that is "
                "trained: leave out one of them."
            )
        require_images(objective["dataset"])
        if cell["settings"]["train_epochs"]:
            training.check(training_spec(cell))
        _rehearse(json.dumps([objective, cell["estimator"]], sort_keys=True))

    def forward_passes(self, cell: Cell) -> float:
        """The repeats and half the reference: cells of one init and batch share it."""
        settings, options = cell["settings"], cell["estimator"]
        one = 4.0 * options["passes"]
        if options.get("population") is not None and options["noise"] == "weights":
            one = float(options["population"])
        return float(settings["repeats"] * one + settings["reference_passes"] * 2)

    def run(self, cell: Cell, scratch: Path) -> Tables:
        """A row for every layer, and one for all."""
        settings = GradientVarianceSettings.model_validate(cell["settings"])
        key = cells.key_columns(cell, leave_out=("repeats", "reference_passes", "train_epochs"))
        if settings.train_epochs:
            epochs = settings.train_epochs
            key["student"] = f"trained ({epochs} epoch{'s' if epochs > 1 else ''})"
        # of the two sizes of score functions only the one that was used is a column
        unused = {"weights": "passes"}.get(cell["estimator"]["noise"], "population")
        if "population" in key:
            del key[unused]
        start = trained_weights(cell, scratch)
        if start is not None:
            cell = {**cell, "objective": {**cell["objective"], "weights": str(start)}}
        objective: Any = cells.objective_of(cell)
        params: Params = objective.params
        source = cast(Source, cells.estimator_of(cell))
        reference = noise_gradients.reference_of(source, params)
        blocks = _reference(cell, settings, reference, objective, params, scratch)
        draw = source.prepare(objective, params)
        draw(cells.generator_of(cell, repeat=_WARM_UP))  # what is compiled once takes no time here
        estimates, seconds = [], 0.0
        for repeat in range(settings.repeats):
            clock = now()
            estimates.append(draw(cells.generator_of(cell, repeat)))
            seconds += now() - clock
        cost = estimates[0].forward_passes, estimates[0].backward_passes
        measured = {
            "reference": reference.label(),
            "forward_passes": cost[0],
            "backward_passes": cost[1],
            "seconds": seconds / settings.repeats,
        }
        gradients = [estimate.gradient for estimate in estimates]
        grams = {name: gram(gradients, blocks, name) for name in params}
        grams["all"] = sum(grams.values(), torch.zeros(()).double())
        depths = dict(zip(params, range(len(params)), strict=True))
        rows: list[Row] = [
            {
                **key,
                "layer": layer,
                "depth_index": depths.get(layer),
                **Products(products, BLOCKS).row(sum(cost)),
                **measured,
            }
            for layer, products in grams.items()
        ]
        return {"gradient_variance": rows}


_REFERENCE, _WARM_UP = 2**30, 2**29  # streams that no repeat reaches


def gram(estimates: Sequence[Params], blocks: Sequence[Params], name: str) -> Tensor:
    """Products of all pairs of one layer's estimates and reference blocks, float64.

    >>> gram([{"w": torch.ones(2)}], [{"w": torch.tensor([3.0, 0.0])}], "w").tolist()
    [[2.0, 3.0], [3.0, 9.0]]
    """
    rows = torch.stack([gradient[name].flatten() for gradient in (*estimates, *blocks)])
    parts = (part.double() for part in torch.split(rows, _COORDINATES, dim=1))
    return functools.reduce(torch.add, (part @ part.T for part in parts))


@dataclass(frozen=True)
class Products:
    """Everything that is measured is a function of products between gradients.

    Args:
        gram: ``(R + K, R + K)``, of R estimates and then K blocks of the reference.
        blocks: K, at least 4, as R is.
    """

    gram: Tensor
    blocks: int

    @functools.cached_property
    def _parts(self) -> tuple[Tensor, Tensor, Tensor]:
        repeats = len(self.gram) - self.blocks
        own, other = slice(repeats), slice(repeats, None)
        return self.gram[own, own], self.gram[other, other], self.gram[own, other]

    @property
    def variance(self) -> float:
        """Summed over coordinates, of one estimate."""
        return _variance(self._parts[0])

    @property
    def reference_square(self) -> float:
        """Squared length of the reference without its noise; 0 where noise is all there is."""
        return max(_mean_product(self._parts[1]), 0.0)

    @property
    def bias(self) -> tuple[float, float]:
        """The squared distance of expectations, unbiased, and its standard error without bias."""
        own, other, across = self._parts
        n, k = len(own), len(other)
        distance = _mean_product(own) + _mean_product(other) - 2 * float(across.mean())
        centred = across - across.mean(0) - across.mean(1, keepdim=True) + across.mean()
        common = float(centred.square().sum()) / ((n - 1) * (k - 1))
        variance = 4 * common / (n * k)
        for part in (own, other):
            variance += 2 * max(_squared_covariance(part), 0.0) / (len(part) * (len(part) - 1))
        return distance, math.sqrt(variance)

    def row(self, passes: float) -> Row:
        """The measurements, ``passes`` being what one estimate takes."""
        own, other, across = self._parts
        square, variance = self.reference_square, self.variance
        distance, error = self.bias
        relative = variance / square if square > 0 else math.nan
        lengths = own.diagonal().sqrt() * math.sqrt(max(float(other.mean()), 0.0))
        first, second = self.blocks // 2, slice(self.blocks // 2, None)
        halves = float(other[:first, second].sum()) / math.sqrt(
            float(other[:first, :first].sum()) * float(other[second, second].sum()) or math.inf
        )
        return {
            "relative_variance": number(relative),
            "relative_variance_per_pass": number(relative * passes),
            "signal_to_noise": number(math.sqrt(square / variance) if variance > 0 else math.inf),
            "cosine": number(float((across.mean(1) / lengths).mean())),
            "relative_bias": number(
                math.sqrt(max(distance, 0.0) / square) if square > 0 else math.nan
            ),
            "bias_z": number(distance / error if error > 0 else math.nan),
            "gradient_variance": number(variance),
            "reference_norm": number(math.sqrt(square)),
            "reference_split_half_cosine": number(halves),
        }


def _mean_product(gram: Tensor) -> float:
    """Of different vectors: the squared length of their expectation, without bias."""
    n = len(gram)
    return float(gram.sum() - gram.diagonal().sum()) / (n * (n - 1))


def _variance(gram: Tensor) -> float:
    """The trace of the sample covariance."""
    n = len(gram)
    return max(float(gram.diagonal().sum() - gram.mean() * n), 0.0) / (n - 1)


def _squared_covariance(gram: Tensor) -> float:
    """The trace of Σ² without bias, whatever the distribution, from at least four vectors.

    Himeno and Yamada, "Estimations for some functions of covariance matrix in high dimension under
    non-normality and its applications", Journal of Multivariate Analysis 130, 2014.
    """
    n = len(gram)
    centred = gram - gram.mean(0) - gram.mean(1, keepdim=True) + gram.mean()
    squares, trace = float(centred.square().sum()) / (n - 1) ** 2, _variance(gram)
    fourth = float(centred.diagonal().square().sum()) / (n - 1)
    return (n - 1) / (n * (n - 2) * (n - 3)) * (
        (n - 1) * (n - 2) * squares + trace**2 - n * fourth
    )  # fmt: skip


@functools.lru_cache(maxsize=1024)
def _rehearse(text: str) -> None:
    """One estimate on four images: what a method asks of a network is its own affair."""
    objective, options = json.loads(text)
    few = {"passes": 1} | ({"passes": 2, "population": 2} if "population" in options else {})
    cell = {
        "study": GradientVariance.name, "seed": 0, "init": 0, "batch": 0,
        "objective": {**objective, "batch_size": min(4, objective["batch_size"])},
        "estimator": {**options, **few},
    }  # fmt: skip
    small: Any = cells.objective_of(cell)
    cells.estimator_of(cell).estimate(small, small.params, generator=cells.generator_of(cell))


def _reference(
    cell: Cell,
    settings: GradientVarianceSettings,
    source: Pathwise,
    objective: Any,
    params: Params,
    scratch: Path,
) -> list[Params]:
    """The independent blocks of the reference, computed once for all cells that share it."""
    identity = {key: cell[key] for key in ("seed", "threads", "objective", "init", "batch")}
    identity |= settings.model_dump(include={"reference_passes", "train_epochs"})
    if settings.train_epochs:  # the same wherever the scratch folder lies
        identity["objective"] = {**cell["objective"], "weights": None}
    identity["source"] = [source.noise, source.noise_scale, source.sigma]

    def drawn() -> Params:
        many = replace(source, passes=settings.reference_passes // BLOCKS)
        draw = many.prepare(objective, params)
        found: Params = {}
        for block in range(BLOCKS):
            gradient = draw(cells.generator_of(cell, _REFERENCE + block)).gradient
            found |= {f"{block}/{name}": tensor for name, tensor in gradient.items()}
        return found

    stored = cached(scratch, "smoothed", identity, drawn)
    return [
        {name: stored[f"{block}/{name}"].to(w.device) for name, w in params.items()}
        for block in range(BLOCKS)
    ]


def trained_weights(cell: Cell, scratch: Path) -> Path | None:
    """The weights of the cell's network after its training; None for a fresh one.

    All methods on the same (init, network) share them; two workers take turns.
    """
    if not cell["settings"]["train_epochs"]:
        return None
    spec = training_spec(cell)
    text = json.dumps(spec.identity(), sort_keys=True)
    folder = scratch / f"plain-{hashlib.sha256(text.encode()).hexdigest()[:20]}"
    scratch.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        return training.run(spec, folder).weights


def training_spec(cell: Cell) -> training.TrainingSpec:
    """How the cell's network is trained.

    Raises:
        ValueError: what does not make a training spec.
    """
    objective, epochs = cell["objective"], cell["settings"]["train_epochs"]
    return training.from_dict(
        {
            "name": "plain",
            "seed": derived_seed(cell, 0, cell["init"]),
            "threads": cell["threads"],
            "data": {"name": objective["dataset"], "crop": 0, "flip": False,
                     "evaluation_examples": 200},
            "model": named(objective["model"]),
            "optimizer": {"name": "adam", "lr": TRAINING["lr"]},
            "schedule": {"name": "constant"},
            "loop": {"epochs": epochs, "batch_size": TRAINING["batch_size"],
                     "device": objective["device"]},
            "checkpoint": {"every": epochs},
        },
        source="settings.train_epochs",
    )  # fmt: skip


def reference_entry(cell: Cell, passes: int) -> Row:
    """The reference with so many passes as an entry of ``[[methods]]``."""
    shapes = networks.shapes_of(cell).items()
    params = {name: torch.empty(shape, device="meta") for name, shape in shapes}
    source = noise_gradients.reference_of(cast(Source, cells.estimator_of(cell)), params)
    return {"name": "pathwise", **asdict(source), "passes": passes}


def training_steps(cell: Cell) -> float:
    """Steps of the cell's training, of the published number of images."""
    images = dict(data.find(cell["objective"]["dataset"]).sizes)["train"]
    return float(cell["settings"]["train_epochs"] * math.ceil(images / TRAINING["batch_size"]))


def bytes_of_gradients(cell: Cell) -> int:
    """What all estimates and blocks of the reference hold, in float32."""
    weights = sum(shape.numel() for shape in networks.shapes_of(cell).values())
    return int(4 * weights * (cell["settings"]["repeats"] + BLOCKS))
