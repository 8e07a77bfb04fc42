"""What every command shares: the app, its arguments, its errors, and how it prints."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from gradlab._registry import unknown

app = typer.Typer(
    name="gradlab",
    help="Which gradient estimator points downhill, how far, at what cost, and how sure is that?",
    epilog="Example: gradlab run quickstart",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)

SpecArgument = Annotated[
    str, typer.Argument(metavar="SPEC", help="A TOML file, or the name of a shipped sweep.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Change keys of the spec, such as seed=1 or 'objective.num_dim=[2,4]'.",
        show_default=False,
    ),
]
StudyArgument = Annotated[
    str, typer.Argument(metavar="STUDY", help="A study's folder or name, or its spec.")
]
Results = Annotated[
    Path, typer.Option("--results", metavar="DIR", help="Folder with one folder per study.")
]
Jobs = Annotated[
    int | None,
    typer.Option("--jobs", "-j", min=1, show_default=False,
                 help="Number of workers [default: one per core and thread of a cell]."),
]  # fmt: skip
Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
Ema = Annotated[bool, typer.Option("--ema", help="Take the averaged weights.")]
NoReport = Annotated[bool, typer.Option("--no-report", help="Skip figures and report.")]
RESULTS = Path("results")


class WorkError(Exception):
    """Work failed; the message is one sentence. Exit status 1."""


class UsageError(Exception):
    """The command was wrong; the message is one sentence with the fix. Exit status 2."""


def study_folder(given: str, results: Path) -> Path:
    """The folder of a study that was given as a folder, a name, or a spec."""
    from gradlab.sweep import spec as specs
    from gradlab.sweep.store import FILE, exists

    for folder in (Path(given), results / given):
        if exists(folder / FILE):
            return folder
    path = Path(given)
    if path.is_file() or given in specs.shipped_sweeps():
        name = specs.load(given).name
        if exists(results / name / FILE):
            return results / name
        raise UsageError(f"{results / name} holds no results: `gradlab run {given}` makes them.")
    studies = sorted(p.parent.name for p in results.glob(f"*/{FILE}"))
    raise UsageError(unknown(f"study in {results}", given, studies))


def call(folder: Path) -> str:
    """How to name a study's folder on the command line."""
    return folder.name if folder == RESULTS / folder.name else str(folder)


def write_report(folder: Path) -> None:
    """Draw the figures and write the report of a study, without torch."""
    from gradlab import reporting

    page = reporting.write(folder)
    tell(f"figures: {folder / 'figures'}")
    tell(f"report:  {page}")


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]], left: int) -> None:
    """A table as wide as it needs to be, at most as wide as the terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), show_edge=False)
    for number, name in enumerate(header):
        table.add_column(name, justify="left" if number < left else "right", overflow="fold",
                         no_wrap=number >= left)  # fmt: skip
    for row in rows:
        table.add_row(*row)
    Console(highlight=False, markup=False, soft_wrap=False).print(table)


def print_json(value: Any) -> None:
    """Indented JSON on stdout; numbers that are not finite become null."""
    try:
        text = json.dumps(value, indent=2, default=str, allow_nan=False)
    except ValueError:  # only then, for it imports torch
        from gradlab.training.files import finite

        text = json.dumps(finite(value), indent=2, default=str)
    typer.echo(text)


def tell(sentence: str) -> None:
    """One line about the work, on stderr: stdout is for what was asked."""
    print(sentence, file=sys.stderr, flush=True)
