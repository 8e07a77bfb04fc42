"""The command that compares: estimators in one setting, or the results of two studies."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gradlab._registry import unknown
from gradlab.cli.common import (
    RESULTS,
    Json,
    Results,
    UsageError,
    WorkError,
    app,
    print_json,
    print_table,
    study_folder,
    tell,
)

if TYPE_CHECKING:
    import pandas as pd

    from gradlab.sweep import Cell

WIDE = 120  # columns of a terminal in which the last column is words
SORTS = {"cosine": "cosine", "passes": "forward_passes", "seconds": "seconds"}
ALL = "all"
_COMMA = re.compile(r",(?![^\[]*\])(?![^{]*\})")  # but none inside a list or a table
_REFERENCES = {"real": "smoothed", "binary": "cdg"}  # smoothing signs takes many draws
_MEASURED = ["cosine", "low", "high", "n", "norm_ratio", "sign_agreement", "forward_passes",
             "backward_passes", "seconds"]  # fmt: skip


@app.command(epilog="Example: gradlab compare --num-dim 8 --estimators ste,nes,cdg")
def compare(
    given: Annotated[
        list[str] | None,
        typer.Argument(metavar="A B | KEY=VALUE", show_default=False,
                       help="Two studies, to say where their results differ; or keys of the "
                            "setting, such as settings.repeats=3."),
    ] = None,
    estimators: Annotated[
        str | None,
        typer.Option(metavar="NAMES", show_default=False,
                     help="Such as ste,nes:population=5000 [default: all]."),
    ] = None,
    num_dim: Annotated[
        int | None,
        typer.Option(min=1, max=1024, metavar="N", help="Units per layer [default: 8]."),
    ] = None,
    weight: Annotated[
        str | None, typer.Option(metavar="NAME", help="real or binary [default: real].")
    ] = None,
    student: Annotated[
        str | None, typer.Option(metavar="NAME", help="fresh or converged [default: fresh].")
    ] = None,
    inits: Annotated[
        int | None,
        typer.Option(min=1, max=1000, metavar="N", help="Teachers and students [default: 5]."),
    ] = None,
    layer: Annotated[
        str | None,
        typer.Option(metavar="NAME",
                     help="hidden, all, 1, 2, … or each, for every one [default: hidden]."),
    ] = None,
    sort: Annotated[
        str | None, typer.Option(metavar="NAME", help="cosine, passes or seconds.")
    ] = None,
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write all layers there.")
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(min=0.0, show_default=False,
                     help="Of two studies: relative difference that counts as equal."),
    ] = None,
    results: Results = RESULTS,
    as_json: Json = False,
) -> int:  # fmt: skip
    """Compare estimators in one setting, or two studies."""
    options = {"estimators": estimators, "num-dim": num_dim, "weight": weight, "student": student,
               "inits": inits, "layer": layer, "sort": sort, "csv": csv}  # fmt: skip
    studies = [word for word in given or () if "=" not in word]
    if studies:
        used = next((name for name, value in options.items() if value is not None), None)
        if len(given or ()) != 2 or len(studies) != 2:
            raise UsageError(f"compare takes two studies, or none to compare estimators, not "
                             f"{' '.join(given or ())}: see `gradlab compare --help`.")  # fmt: skip
        if used is not None:
            raise UsageError(f"--{used} is for comparing estimators: leave it out, or leave out "
                             "the studies.")  # fmt: skip
        return _studies(studies[0], studies[1], tolerance or 0.0, results, as_json)
    if tolerance is not None:
        raise UsageError("--tolerance is for comparing two studies: name them, or leave it out.")
    if sort is not None and sort not in SORTS:
        raise UsageError(unknown("order", sort, SORTS))
    problem = _problem(8 if num_dim is None else num_dim, weight or "real", student or "fresh",
                       5 if inits is None else inits)  # fmt: skip
    cells, refused = _cells(problem, given or (), ALL if estimators is None else estimators)
    layers = _layers(cells[0].config["objective"]["depth"], layer or "hidden")
    by = SORTS[sort or "cosine"]
    table = _measure(cells, refused if estimators == ALL else None)
    table = table.sort_values(by, ascending=by != "cosine", kind="stable", ignore_index=True)
    if csv is not None:
        from gradlab.reporting.tables import write_bytes

        write_bytes(csv, table.to_csv(index=False).encode())
    if as_json:
        rows = table.astype(object).where(table.notna(), None)
        setting = {key: value for key, value in cells[0].config.items() if key != "estimator"}
        print_json({"setting": setting, "table": rows.to_dict("records"), "left_out": refused})
        return 0
    _print(table, layers, cells[0].config, refused)
    if csv is not None:
        tell(str(csv))
    return 0


def _studies(left: str, right: str, tolerance: float, results: Path, as_json: bool) -> int:
    """Say where two studies differ; exit status 1 if they do."""
    from dataclasses import asdict

    from gradlab.sweep.export import compare as compare_studies
    from gradlab.sweep.units import counted

    found = compare_studies(study_folder(left, results), study_folder(right, results), tolerance)
    if as_json:
        print_json({"same": found.same, **asdict(found)})
        return 0 if found.same else 1
    for side, count in ((left, found.only_left), (right, found.only_right)):
        if count:
            typer.echo(f"{counted(count, 'cell')} only in {side}")
    for d in found.differences:
        line = f"{d.table}.{d.column}: {d.differing:,} of {counted(d.rows, 'row')} differ"
        if d.absolute is not None:
            line += f" by at most {d.absolute:.3g} (relative {d.relative:.3g})"
        typer.echo(line + (f", for example at {d.where}" if d.where else ""))
    typer.echo(f"{counted(found.rows, 'row')} in both, "
               f"{'all the same' if found.same else 'not the same'}.")  # fmt: skip
    return 0 if found.same else 1


def _problem(num_dim: int, weight: str, student: str, inits: int) -> dict[str, Any]:
    """The spec without its estimators."""
    return {
        "name": "comparison", "study": "gradient_quality", "inits": inits,
        "student": {"state": student},
        "objective": {"name": "teacher_student", "num_dim": num_dim, "batch_size": 4096,
                      "depth": 3, "weight": weight},
        "settings": {"reference": _REFERENCES.get(weight, "cdg")},
    }  # fmt: skip


def _cells(
    problem: Mapping[str, Any], overrides: Sequence[str], wanted: str
) -> tuple[list[Cell], dict[str, str]]:
    """The cells to measure; and, where all estimators are compared, why some are not.

    Raises:
        UsageError: an unknown name or option.
        SpecError: a size out of range, or an estimator that was named does not apply.
    """
    from gradlab import sweep
    from gradlab.estimators import names
    from gradlab.sweep.spec import from_dict, override

    entries = ([{"name": name} for name in names()] if wanted == ALL
               else [_entry(text, names()) for text in _COMMA.split(wanted)])  # fmt: skip
    if wanted == ALL:
        entries.append({"name": "ste", "surrogate": "matched"})
    raw: dict[str, Any] = {**problem, "estimators": entries}
    for text in overrides:
        override(raw, text)
    found: list[Cell] = []
    refused: dict[str, str] = {}
    if wanted != ALL:
        found, entries = sweep.expand(from_dict(raw, "compare")), []
    for entry in entries:
        try:
            found += sweep.expand(from_dict({**raw, "estimators": [entry]}, "compare"))
        except sweep.SpecError as error:
            name = " ".join(map(str, entry.values()))
            refused[name] = str(error).removeprefix("compare: ")
    if not found:  # then it is not the estimators
        sweep.expand(from_dict(raw, "compare"))
    first = found[0].config
    if (first["study"], first["objective"]["name"]) != (problem["study"], "teacher_student"):
        raise UsageError("compare measures the gradients of teacher-student networks: write a "
                         "sweep for another study or objective, or use `gradlab diagnose` for a "
                         "network of your own.")  # fmt: skip
    if any(cell.config[key] != first[key] for cell in found
           for key in ("objective", "student", "settings")):  # fmt: skip
        raise UsageError("compare measures in one setting: give one value of each key, or write a "
                         "sweep.")  # fmt: skip
    return found, refused


def _entry(text: str, names: Sequence[str]) -> dict[str, Any]:
    """``name:option=value:option=value`` as a spec has it.

    >>> _entry("nes:population=5000:sigma=0.1", ["nes"])
    {'name': 'nes', 'population': 5000, 'sigma': 0.1}
    """
    from gradlab._toml import parse_override

    name, *options = (part.strip() for part in text.split(":"))
    if name not in names:
        raise UsageError(unknown("estimator", name, names))
    entry: dict[str, Any] = {"name": name}
    for option in options:
        key = option.partition("=")[0].strip()
        entry[key] = parse_override(option, [key])[1]
    return entry


def _measure(cells: Sequence[Cell], refused: dict[str, str] | None) -> pd.DataFrame:
    """A row for every estimator and layer: means over inits, with an interval of the cosine.

    Estimators that fail are added to ``refused``; where that is None, one is enough to give up.
    """
    import pandas as pd

    from gradlab.estimators.about import ABOUT
    from gradlab.reporting import columns, summaries
    from gradlab.sweep.progress import Progress
    from gradlab.sweep.worker import run_cell

    rows: list[dict[str, Any]] = []
    count = len(cells)
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch,
        Progress(work=count, total=count, done=0) as progress,
    ):
        for cell in cells:
            outcome = run_cell(cell.hash, cell.config, scratch)
            if outcome.failure is not None:
                name = cell.config["estimator"]["name"]
                last = outcome.failure.strip().splitlines()[-1]
                if refused is None:
                    raise WorkError(f"{name} failed ({last}): leave it out, or run it in a sweep "
                                    "to see more.")  # fmt: skip
                refused[name] = f"{name} failed ({last})."
                continue
            rows += outcome.tables["gradient_quality"]
            progress.advance(1.0, outcome.provenance["seconds"], failed=False)
    frame = columns.annotate(pd.DataFrame(rows))
    by = ["method", "layer"]
    means = summaries.over_inits(frame, by, "cosine").rename(columns={"mean": "cosine"})
    groups = frame.groupby(by)
    rest = groups[[c for c in _MEASURED if c in frame and c not in ("cosine", "seconds")]].mean()
    # the first estimate of a kind also loads what it needs
    rest = rest.join(groups["seconds"].median()).join(groups["estimator"].first())
    table = means.merge(rest.reset_index(), on=by)
    table["unbiased_for"] = [
        ABOUT[name].unbiased_for if name in ABOUT else "" for name in table["estimator"]
    ]
    table = table.rename(columns={"method": "label"})
    return table[["estimator", "label", "layer", *_MEASURED, "unbiased_for"]]


def _layers(depth: int, wanted: str) -> list[str]:
    """The layers to print, of a network with ``depth`` hidden ones."""
    names = {str(number + 1): f"layers.{number}.weight" for number in range(depth + 1)}
    names |= {"hidden": "hidden", "all": "all"}
    if wanted == "each":
        return list(names.values())
    if wanted not in names:
        raise UsageError(unknown("layer", wanted, [*names, "each"]))
    return [names[wanted]]


def _print(
    table: pd.DataFrame, layers: Sequence[str], cell: Mapping[str, Any], refused: Mapping[str, str]
) -> None:
    """A table for every layer; what estimates are unbiased for as letters where it is narrow."""
    from rich.console import Console

    from gradlab.reporting.layers import layer_title
    from gradlab.reporting.wording import begin, sample

    wide = Console().width >= WIDE
    claims = dict.fromkeys(table.loc[table["layer"] == layers[0], "unbiased_for"])
    letters = {words: chr(ord("a") + place) for place, words in enumerate(filter(None, claims))}
    header = ["estimator", "unbiased for" if wide else "for", "cosine", "95 %", "norm", "passes",
              "back", "ms"]  # fmt: skip
    for layer in layers:
        rows = table[table["layer"] == layer].to_dict("records")
        typer.echo(f"{begin(layer_title(layer))}:")
        claim = (lambda words: words) if wide else (lambda words: letters.get(words, ""))
        print_table(header, [[row["label"], claim(row["unbiased_for"]), *_numbers(row)]
                             for row in rows], left=2)  # fmt: skip
        typer.echo()
    if letters and not wide:
        listed = "; ".join(f"({letter}) {words}" for words, letter in letters.items())
        _say(f"Unbiased for {listed}.")
    _say(f"{_setting(cell)} ({sample(float(table['n'].max()))}). norm: length, in units of the "
         "reference's; back: backward passes; ms: median time of an estimate here.")  # fmt: skip
    if refused:
        _say(f"Left out: {', '.join(refused)}. The first because {next(iter(refused.values()))}")


def _numbers(row: Mapping[Any, Any]) -> list[str]:
    from gradlab.reporting.wording import cosine, number

    known = row["low"] == row["low"]
    interval = f"{cosine(row['low'])} to {cosine(row['high'])}" if known else ""
    return [cosine(row["cosine"]), interval, number(row["norm_ratio"], 2),
            _passes(row["forward_passes"]), _passes(row["backward_passes"]),
            number(1000 * row["seconds"], 2)]  # fmt: skip


def _passes(count: float) -> str:
    """Whole passes as they are, parts of one with a decimal.

    >>> _passes(1600.0), _passes(2.58)
    ('1,600', '2.6')
    """
    return f"{count:,.0f}" if count == round(count) else f"{count:,.1f}"


def _setting(cell: Mapping[str, Any]) -> str:
    """The setting and what cosines are taken to, in words."""
    from gradlab.reporting.columns import reference_name
    from gradlab.reporting.problems import phrase
    from gradlab.studies.cells import student_label

    objective = cell["objective"]
    said = [f"num_dim {objective['num_dim']}", f"depth {objective['depth']}"]
    said += [phrase(key, objective[key]) for key in ("batch_size", "weight", "activation")]
    said.append(phrase("student", student_label(cell["student"])))
    settings = cell["settings"]
    reference = reference_name(settings["reference"])
    smoothed = settings["reference"] == "smoothed"
    width = f"σ = {settings['reference_sigma']:g}" if smoothed else (
        f"ε = {settings['reference_epsilon']:g}")  # fmt: skip
    return f"Cosines to {reference} ({width}): {', '.join(said)}"


def _say(text: str) -> None:
    """A paragraph, wrapped at the terminal's width but never wider than one reads."""
    import textwrap

    from rich.console import Console

    typer.echo(textwrap.fill(text, min(100, Console().width), break_long_words=False))
