"""The command that makes a pruned network smaller: compress."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gradlab.cli.common import (
    RESULTS,
    Ema,
    Json,
    Results,
    UsageError,
    app,
    print_json,
    print_table,
    tell,
)
from gradlab.cli.variational import fewer, network_of, weights_of

FACTS = ("name", "data")  # of the weights, that predictions need or tell


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
    ema: Ema = False,
    results: Results = RESULTS,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Write a pruned network as a smaller one that predicts the same."""
    from gradlab import variational
    from gradlab.training.weights import weights_file
    from gradlab.variational.exported import Exported

    place = weights_file(weights_of(run, results, ema), ema=ema)
    model, facts = network_of(place)
    if not variational.masked(model):
        why = ("it was compressed before" if isinstance(model, Exported) else
               "it was trained without noise that prunes ([variational] with a method such as "
               "sparse)")  # fmt: skip
        raise UsageError(f"nothing of the network in {place} can be left out: {why}.")
    averaged = "-ema" if ema else ""
    path = out or place.with_name(f"compressed-{format}{averaged}.safetensors")
    if path.exists() and path.samefile(place):
        raise UsageError(f"--out is {path}, the weights themselves: give another file.")
    before = place.stat().st_size
    try:
        variational.export(
            model, path, format, threshold=threshold,
            facts={key: facts[key] for key in FACTS if key in facts},
        )  # fmt: skip
    except ValueError as error:
        raise UsageError(str(error)) from None
    layers = variational.layer_rows(model, threshold)
    times, after = variational.compression(model, threshold), path.stat().st_size
    empty = [row["layer"] for row in layers if not row["kept"]]
    if empty:
        tell(f"no weight of {', '.join(empty)} is kept: every image gets the same prediction.")
    if as_json:
        print_json({"path": str(path), "compression": times, "layers": layers,
                    "bytes": after, "bytes_before": before})  # fmt: skip
        return
    rows = [[row["layer"], f"{row['weights']:,}", f"{row['kept']:,}", f"{row['sparsity']:.4f}"]
            for row in layers]  # fmt: skip
    print_table(["layer", "weights", "kept", "sparsity"], rows, left=1)
    tell(f"{fewer(times)}; {before:,} bytes with all variances, {after:,} now.")
    tell(f"network: {path}")
