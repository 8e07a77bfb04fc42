"""What the commands say of noisy networks: predictions and uncertainty."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import typer

from gradlab.cli.common import (
    UsageError,
    print_table,
)

if TYPE_CHECKING:
    from torch import nn

    from gradlab.data import Dataset

WORDS = {"mean": "mean weights", "sample": "one draw of the noise", "pruned": "kept weights"}
COLUMNS = {
    "accuracy": "accuracy", "negative_log_likelihood": "loss",
    "calibration_error": "calibration error", "predictive_entropy": "entropy",
    "mutual_information": "mutual information",
}  # fmt: skip


def words(kind: str, found: dict[str, Any]) -> str:
    """How a prediction was made."""
    return WORDS.get(kind, f"mean of {found.get('samples')} draws")


def require_noise(facts: dict[str, Any], option: str) -> None:
    """Refuse an option that an ordinary network has no use for."""
    if not facts.get("variational"):
        raise UsageError(f"{option} is for networks trained with noise ([variational]): leave it "
                         "out.")  # fmt: skip


def uncertainty(
    model: nn.Module, data: Dataset, samples: int, against: str | None
) -> dict[str, Any]:
    """Predictions by how they are made, and how well another data set is told apart."""
    from gradlab import data as sets
    from gradlab.training import uncertainty as noisy

    found: dict[str, Any] = {"predictions": noisy.predictions(model, data, samples)}
    if against is not None:
        device = str(data.images.device)
        try:
            sets.find(against)
        except ValueError as error:
            raise UsageError(str(error)) from None
        outside = sets.load(against, "test", device=device)
        if outside.image_shape != data.image_shape:
            raise UsageError(f"images of {against} are {outside.image_shape}, and those of "
                             f"{data.name} {data.image_shape}: give --against a set of such "
                             "images.")  # fmt: skip
        outside = replace(outside, mean=data.mean, std=data.std)
        scores = noisy.out_of_distribution(model, data, outside, samples)
        found["out_of_distribution"] = {"data": against, "auroc": scores}
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
