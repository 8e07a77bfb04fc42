"""The networks that commands are given: their files, their images, and how sure they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from gradlab._registry import unknown
from gradlab.cli.common import UsageError, print_table

if TYPE_CHECKING:
    from torch import nn

    from gradlab.data import Dataset

DRAWS = "variational.evaluation_samples"
WORDS = {"mean": "mean weights", "sample": "one draw", "pruned": "kept weights"}
COLUMNS = {
    "accuracy": "accuracy", "negative_log_likelihood": "loss",
    "calibration_error": "calibration error", "predictive_entropy": "entropy",
    "mutual_information": "mutual info.",
}  # fmt: skip


def weights_of(given: str, results: Path, ema: bool = False) -> Path:
    """The folder or file of weights that were given as a path or as a run's name."""
    for place in (Path(given), results / given):
        if place.exists():
            if ema and not place.is_dir():
                raise UsageError(f"--ema chooses among the weights in a run's folder, and {place} "
                                 "is a file: leave it out.")  # fmt: skip
            return place
    runs = sorted(path.parent.name for path in results.glob("*/spec.json"))
    raise UsageError(unknown(f"run in {results}", given, runs))


def network_of(
    place: Path, ema: bool = False, overrides: Sequence[str] = ()
) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a run, a weights file or a compressed file, and what the file says of it."""
    from gradlab import training
    from gradlab.variational.exported import is_exported, load_exported

    if not is_exported(place):
        return training.build(place, ema=ema, overrides=overrides)
    if overrides:
        raise UsageError(f"'{overrides[0]}' changes noise, and the compressed network in {place} "
                         "has none: leave it out, or give the run it was made of.")  # fmt: skip
    network = load_exported(place)
    return network, network.facts


def device_of(device: str, model: nn.Module) -> str:
    """The device that was asked for; a compressed network knows the processor alone."""
    from gradlab.training.setup import resolve_device
    from gradlab.variational.exported import Exported

    if device == "auto" and isinstance(model, Exported):
        return "cpu"
    try:
        chosen = resolve_device(device)
    except ValueError as error:
        raise UsageError(str(error).replace("loop.", "")) from None
    if chosen != "cpu" and isinstance(model, Exported):
        raise UsageError("a compressed network predicts on the processor: leave out --device.")
    return chosen


def check_images(name: str, option: str, takes: Sequence[int] | None, place: Path) -> None:
    """Refuse a set that does not exist, or of images that the network does not take."""
    from gradlab import data as sets

    try:
        shape = sets.find(name).image_shape
    except ValueError as error:
        raise UsageError(str(error)) from None
    if takes is not None and tuple(takes) != shape:
        raise UsageError(
            f"images of {name} are {shape} (channels, height, width), and the network in {place} "
            f"takes {tuple(takes)}: give {option} a set of such images."
        )


def words(kind: str, found: dict[str, Any]) -> str:
    """How a prediction was made."""
    from gradlab.sweep.units import counted

    return WORDS.get(kind) or counted(found["samples"], "draw")


def fewer(times: float | None) -> str:
    """How much is pruned; ``None`` is what JSON makes of infinitely much."""
    if times is None or math.isinf(times):
        return "no weight is kept"
    return f"{times:.1f} times fewer weights"


def require_noise(facts: dict[str, Any], option: str, place: Path) -> None:
    """Refuse an option that a network without noise has no use for."""
    if not facts.get("variational"):
        raise UsageError(f"{option} is for networks with noise ([variational]), and the one in "
                         f"{place} has none: leave it out.")  # fmt: skip


def draws_of(
    samples: int | None, overrides: Sequence[str], facts: dict[str, Any], place: Path
) -> int | None:
    """How many draws were asked for, by ``--samples`` or an override; ``None`` if by neither."""
    asked = any(text.partition("=")[0].strip() == DRAWS for text in overrides)
    if samples is None:
        return facts["variational"]["evaluation_samples"] if asked else None
    require_noise(facts, "--samples", place)
    if asked:
        raise UsageError(f"--samples and {DRAWS} both say how many draws: give one of them.")
    return samples


def changes(facts: dict[str, Any]) -> str | None:
    """One sentence on what overrides changed; ``None`` without overrides."""
    if "changed" not in facts:
        return None
    listed = ", ".join(facts["changed"]) or "nothing, for the weights say the same"
    return f"Changed: {listed}."


def uncertainty(
    model: nn.Module, data: Dataset, outside: Dataset | None, samples: int, seed: int
) -> dict[str, Any]:
    """Predictions by how they are made, and how well another data set is told apart."""
    from gradlab.training import uncertainty as noisy

    found: dict[str, Any] = {"predictions": noisy.predictions(model, data, samples, seed)}
    if outside is not None:
        scores = noisy.out_of_distribution(model, data, outside, samples, seed)
        found["out_of_distribution"] = {"data": outside.name, "auroc": scores}
    return found


def print_uncertainty(found: dict[str, Any]) -> None:
    """Print what :func:`uncertainty` found."""
    rows = [
        [words(kind, numbers), *(f"{numbers[key]:.4f}" for key in COLUMNS)]
        for kind, numbers in found["predictions"].items()
    ]
    typer.echo()
    print_table(["prediction", *COLUMNS.values()], rows, left=1)
    other = found.get("out_of_distribution")
    if other is not None:
        scores = ", ".join(f"{name.replace('_', ' ')} {value:.4f}"
                           for name, value in other["auroc"].items())  # fmt: skip
        typer.echo(f"\n{other['data']} told apart, AUROC by score: {scores}.")
