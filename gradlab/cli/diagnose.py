"""The command that looks at one's own network: diagnose."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gradlab.cli.common import Json, UsageError, WorkError, app, print_json, print_table, tell

if TYPE_CHECKING:
    import pandas as pd

    from gradlab.diagnosis import Diagnosis

# What stands in the place of a cosine, by how its status begins.
_WORDS = {"noise": "noise", "unknown": "unknown", "not measured": "unknown", "not run": "not run",
          "refused": "refused", "the estimate is zero": "none"}  # fmt: skip
_CLASHES = "gradlab_diagnosed_"  # so that no file of the user's passes for an installed module


@app.command(epilog="Example: gradlab diagnose network.py:build --layer conv2 --seconds 30")
def diagnose(
    build: Annotated[
        str,
        typer.Argument(metavar="FILE:FUNCTION",
                       help="Returns (model, loss_fn, batch); batch is (inputs, targets)."),
    ],
    batch: Annotated[
        Path | None,
        typer.Option(metavar="FILE", show_default=False,
                     help="An .npz file with inputs and targets, in place of the function's."),
    ] = None,
    layer: Annotated[
        list[str] | None,
        typer.Option("--layer", metavar="NAME", show_default=False,
                     help="A layer or parameter; repeat it [default: all weights]."),
    ] = None,
    estimator: Annotated[
        list[str] | None,
        typer.Option("--estimator", metavar="NAME", show_default=False,
                     help="An estimator, a surrogate, or own; repeat it."),
    ] = None,
    epsilon: Annotated[
        float | None,
        typer.Option(metavar="NUMBER", show_default=False, help="Half-width of differences."),
    ] = None,
    sigma: Annotated[
        float | None,
        typer.Option(metavar="NUMBER", show_default=False, help="Width of the smoothing."),
    ] = None,
    coordinates: Annotated[
        int, typer.Option(min=1, metavar="N", help="Of every layer, for differences.")
    ] = 128,
    passes: Annotated[
        float, typer.Option(metavar="N", help="Budget in forward passes.")
    ] = 20_000,
    seconds: Annotated[float, typer.Option(metavar="N", help="Budget in seconds.")] = 60,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of samples.")] = 0,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder of table and figure.")
    ] = Path("diagnosis"),
    as_json: Json = False,
) -> None:  # fmt: skip
    """Say which gradient estimator follows the loss of your network."""
    function = _function(build)
    from gradlab.diagnosis import DEFAULT_ESTIMATORS
    from gradlab.diagnosis import diagnose as measure

    model, loss_fn, examples = _built(build, function, batch)
    try:
        found = measure(
            model, loss_fn, examples, layer or None, estimator or DEFAULT_ESTIMATORS,
            coordinates=coordinates, epsilon=epsilon, sigma=sigma, max_forward_passes=passes,
            max_seconds=seconds, seed=seed,
        )  # fmt: skip
    except ValueError as error:
        raise UsageError(str(error)) from None
    written = _write(found, out)
    if as_json:
        rows = found.table.astype(object).where(found.table.notna(), None)
        files = [str(path) for path in written]
        print_json({"table": rows.to_dict("records"), "recommendation": found.recommendation,
                    "settings": found.settings, "files": files})  # fmt: skip
        return
    _print(found.table)
    typer.echo()
    for paragraph in found.recommendation.split("\n\n"):
        _say(paragraph)
    for path in written:
        tell(str(path))


def _function(given: str) -> Callable[[], Any]:
    """The function that FILE:FUNCTION names."""
    place, colon, name = given.rpartition(":")
    if not colon or not place or not name:
        raise UsageError(
            f"{given} names no function: write FILE:FUNCTION, such as network.py:build."
        )
    path = Path(place)
    if not path.is_file():
        raise UsageError(f"there is no file {path}: write FILE:FUNCTION, such as network.py:build.")
    spec = importlib.util.spec_from_file_location(_CLASHES + path.stem, path)
    if spec is None or spec.loader is None:
        raise UsageError(
            f"{path} is no Python file: write FILE:FUNCTION, such as network.py:build."
        )
    module = importlib.util.module_from_spec(spec)
    # what lies beside the file may be imported by it, as if it were run
    sys.path.insert(0, str(path.resolve().parent))
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the file is the user's: it may raise anything
        raise WorkError(
            f"{path} fails when imported ({_one_line(error)}): try `python {path}`."
        ) from error
    finally:
        sys.path.remove(str(path.resolve().parent))
    found = getattr(module, name, None)
    if not callable(found):
        from gradlab._registry import unknown

        own = {key for key, value in vars(module).items()
               if callable(value) and getattr(value, "__module__", "") == spec.name}  # fmt: skip
        raise UsageError(unknown(f"function in {path}", name, own))
    function: Callable[[], Any] = found
    return function


def _built(given: str, function: Callable[[], Any], batch: Path | None) -> tuple[Any, Any, Any]:
    """Model, loss and batch."""
    try:
        found = function()
    except Exception as error:  # the function is the user's: it may raise anything
        raise WorkError(
            f"{given} fails ({_one_line(error)}): call it yourself to see why."
        ) from error
    wanted = 2 if batch is not None else 3
    if not isinstance(found, tuple) or len(found) not in (wanted, 3):
        raise UsageError(
            f"{given} returns {type(found).__name__}: return (model, loss_fn, batch), with batch = "
            "(inputs, targets)."
        )
    return found[0], found[1], found[2] if batch is None else _read(batch)


def _read(path: Path) -> tuple[Any, Any]:
    """Inputs and targets from a file of arrays; pickled objects are refused."""
    import zipfile

    import numpy as np
    import torch

    try:
        with np.load(path, allow_pickle=False) as arrays:
            return torch.from_numpy(arrays["inputs"]), torch.from_numpy(arrays["targets"])
    except OSError as error:
        raise UsageError(
            f"--batch: {path} cannot be read ({error.strerror or error}): give an .npz file."
        ) from None
    except (KeyError, ValueError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise UsageError(
            f"--batch: {path} does not hold the arrays inputs and targets ({_one_line(error)}): "
            "write it with numpy.savez(path, inputs=…, targets=…)."
        ) from None


def _one_line(error: BaseException) -> str:
    lines = str(error).strip().strip("'\"").splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _write(found: Diagnosis, folder: Path) -> list[Path]:
    from gradlab.reporting.drawing import render

    folder.mkdir(parents=True, exist_ok=True)
    table, figure, words = (folder / name for name in
                            ("table.csv", "diagnosis.png", "recommendation.txt"))  # fmt: skip
    found.table.to_csv(table, index=False)
    words.write_text(found.recommendation + "\n", encoding="utf-8")
    figure.write_bytes(render(found.figure(), "png", {"Title": "diagnosis"}))
    return [table, figure, words]


def _print(table: pd.DataFrame) -> None:
    """Per layer a line for every estimator: its cosine to both references, and its best step."""
    from gradlab.reporting.layers import layer_name

    rows: list[list[str]] = []
    for layer, group in table.groupby("layer", sort=False):
        rows += [[""] * 6] if rows else []
        exact = bool(group["exact"].iloc[0])
        rows.append([layer_name(str(layer)) + (" (exact)" if exact else ""), *[""] * 5])
        for name, both in group.groupby("estimator", sort=False):
            cells = {row["reference"]: row for _, row in both.iterrows()}
            first = both.iloc[0]
            passes, norms = first["forward_passes"], both["norm_ratio"].bfill()
            rows.append([
                f"  {name}", *(_cosine(cells.get(kind)) for kind in ("cdg", "smoothed")),
                _number(norms.iloc[0], "{:.2g}"), _number(first["loss_decrease"], "{:.3g}"),
                "" if math.isnan(passes) else f"{passes:,.0f}",
            ])  # fmt: skip
    header = ["layer, estimator", "cos CDG", "cos smoothed", "norm", "decrease", "passes"]
    print_table(header, rows, left=1)


def _cosine(row: Any) -> str:
    """``.72 ±.05``, or in a word why there is none."""
    if row is None:
        return ""
    status = str(row["status"])
    if status != "ok":
        found = [word for start, word in _WORDS.items() if status.startswith(start)]
        return found[0] if found else "–"
    half = (row["cosine_high"] - row["cosine_low"]) / 2
    return f"{row['cosine']:.2f} ±{half:.2f}" if math.isfinite(half) else f"{row['cosine']:.2f}"


def _number(value: float, form: str) -> str:
    return form.format(value) if math.isfinite(value) else ""


def _say(paragraph: str) -> None:
    import textwrap

    from rich.console import Console

    width = min(100, Console().width)
    typer.echo(textwrap.fill(paragraph, width, break_long_words=False) + "\n")
