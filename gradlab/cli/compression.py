"""The command that makes a pruned network smaller: compress."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
from gradlab.cli.training import weights_of
from gradlab.cli.variational import require_noise


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
    """Write a pruned network as a smaller one that predicts the same."""
    from gradlab import training, variational
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
