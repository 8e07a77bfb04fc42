"""What the commands say of noisy networks: predictions, uncertainty, smaller copies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gradlab.cli.common import (
    RESULTS,
    Json,
    Results,
    UsageError,
    app,
    print_json,
    print_table,
    tell,
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


@app.command(epilog="Example: gradlab compress results/mnist_sparse --format csr")
def compress(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A run's folder or name, or a weights file.")
    ],
    format: Annotated[
        str, typer.Option(metavar="NAME", help="dense: units that are left; csr: kept weights.")
    ] = "csr",
    threshold: Annotated[
        float | None,
        typer.Option(metavar="NUMBER", show_default=False,
                     help="Of log alpha [default: the method's own]."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", show_default=False,
                     help="Where to write it [default: beside the weights]."),
    ] = None,
    results: Results = RESULTS,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Write a pruned network as a smaller one with the same predictions."""
    from gradlab import training, variational
    from gradlab.cli.training import weights_of
    from gradlab.training.weights import weights_file

    place = weights_file(weights_of(run, results))
    model, facts = training.build(place)
    require_noise(facts, "compress")
    path = out or place.with_name(f"compressed-{format}.safetensors")
    try:
        variational.export(model, path, format, threshold=threshold)
    except ValueError as error:
        raise UsageError(str(error)) from None
    layers = variational.layer_rows(model, threshold)
    before, after = place.stat().st_size, path.stat().st_size
    times = variational.compression(model, threshold)
    if as_json:
        print_json({"path": str(path), "compression": times, "layers": layers,
                    "bytes": after, "bytes_before": before})  # fmt: skip
        return
    rows = [[row["layer"], f"{row['weights']:,}", f"{row['kept']:,}", f"{row['sparsity']:.4f}"]
            for row in layers]  # fmt: skip
    print_table(["layer", "weights", "kept", "sparsity"], rows, left=1)
    tell(f"{times:.1f} times fewer weights; {before:,} bytes with all variances, {after:,} now.")
    tell(f"network: {path}")
