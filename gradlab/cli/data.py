"""Image sets: list, fetch and check."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gradlab.cli.common import (
    Json,
    UsageError,
    WorkError,
    app,
    print_json,
    print_table,
    tell,
)

if TYPE_CHECKING:
    from gradlab.data import FileState, ImageSet
    from gradlab.data.download import Progress

LINE_EVERY = 10.0  # seconds between plain lines about a download

commands = typer.Typer(
    name="data",
    help="List, download and check image sets.",
    epilog="Example: gradlab data fetch mnist",
    rich_markup_mode=None,
)
app.add_typer(commands)

Folder = Annotated[
    Path | None,
    typer.Option("--data", metavar="DIR", show_default=False,
                 help="Data folder [default: $GRADLAB_DATA, or else the user's cache]."),
]  # fmt: skip
Names = Annotated[
    list[str], typer.Argument(metavar="NAME", help="Sets, such as mnist.", show_default=False)
]


@commands.callback(invoke_without_command=True)
def _data(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@commands.command("list", epilog="Example: gradlab data list")
def list_sets(data: Folder = None, as_json: Json = False) -> None:
    """List the sets, their terms, and what of them is here."""
    from gradlab.data import data_root, find, names, splits_here
    from gradlab.sweep.units import bytes_text

    root = data_root(data)
    sets = [find(name) for name in names()]
    here = {info.name: splits_here(info.name, root) for info in sets}
    if as_json:
        print_json({"folder": str(root), "sets": [_entry(i, root, here[i.name]) for i in sets]})
        return
    rows = [
        [info.name, ", ".join(here[info.name]) or "no",
         *(f"{size:,}" for _, size in info.sizes), "×".join(map(str, info.image_shape)),
         str(info.num_classes), bytes_text(info.download_size)]
        for info in sets
    ]  # fmt: skip
    print_table(["set", "here", "train", "test", "image", "classes", "download"], rows, left=2)
    _say(f"\nThe data folder is {root}.")
    for info in sets:
        _say(f"\n{info.title}: {info.terms}.\n{info.citation}")


@commands.command(epilog="Example: gradlab data fetch mnist cifar10")
def fetch(chosen: Names, data: Folder = None, as_json: Json = False) -> None:
    """Download what is missing of sets, and verify it."""
    from gradlab.data import fetch as fetch_set

    folders = {}
    for info in _known(chosen):
        with _progress() as progress:
            folders[info.name] = str(fetch_set(info.name, data, progress=progress))
        if not as_json:
            typer.echo(folders[info.name])
    if as_json:
        print_json(folders)


@commands.command(epilog="Example: gradlab data check mnist")
def check(chosen: Names, data: Folder = None, as_json: Json = False) -> int:
    """Verify the checksums of what is here.

    The exit status is 1 if a file is damaged, or nothing of a set is here.
    """
    from gradlab.data import check as check_set
    from gradlab.data import data_root

    root = data_root(data)
    found = {info.name: check_set(info.name, root) for info in _known(chosen)}
    if as_json:
        from dataclasses import asdict

        print_json({name: [asdict(each) for each in states] for name, states in found.items()})
    else:
        for states in found.values():
            for each in states:
                typer.echo(f"{each.path}: {_verdict(each)}")
    bad = sorted(name for name, states in found.items()
                 if any(each.state == "damaged" for each in states))  # fmt: skip
    absent = sorted(name for name, states in found.items()
                    if all(each.state == "missing" for each in states))  # fmt: skip
    where = f" --data {data}" if data is not None else ""
    if bad:
        raise WorkError(f"{_listed(bad)} damaged in {root}: `gradlab data fetch "
                        f"{' '.join(bad)}{where}` replaces what is.")  # fmt: skip
    if absent:
        raise WorkError(f"{_listed(absent)} not in {root}: `gradlab data fetch "
                        f"{' '.join(absent)}{where}` downloads it.")  # fmt: skip
    return 0


def _say(text: str) -> None:
    """Paragraphs, wrapped at the terminal's width but never wider than one reads."""
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    console.print(text, width=min(console.width, 100))


def _known(chosen: list[str]) -> list[ImageSet]:
    from gradlab.data import find

    try:
        return [find(name) for name in dict.fromkeys(chosen)]
    except ValueError as error:
        raise UsageError(str(error)) from None


def _listed(names: list[str]) -> str:
    return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'}"


def _entry(info: ImageSet, root: Path, here: list[str]) -> dict[str, Any]:
    return {
        "name": info.name, "title": info.title, "here": here, "folder": str(root / info.folder),
        "sizes": dict(info.sizes), "image_shape": info.image_shape,
        "num_classes": info.num_classes, "mean": info.mean, "std": info.std,
        "download_bytes": info.download_size, "terms": info.terms, "citation": info.citation,
        "addresses": [url for item in info.downloads for url in item.urls],
    }  # fmt: skip


def _verdict(state: FileState) -> str:
    if state.state == "missing":
        return "missing"
    if state.state == "damaged":
        return state.problem or (f"damaged: {state.verified} {state.found}, "
                                 f"not {state.expected}")  # fmt: skip
    if state.verified == "content":
        return f"content as it should be (no checksum is published; sha256 {state.found})"
    return f"{state.verified} as published"


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar on a terminal; elsewhere a line now and then. Both on stderr."""
    from gradlab.sweep.units import bytes_text

    if not sys.stderr.isatty():
        said: dict[str, float] = {}

        def say(path: str, done: int, total: int) -> None:
            now = time.monotonic()
            if path not in said or (now - said[path] >= LINE_EVERY and done < total):
                said[path] = now
                tell(f"{path}: {bytes_text(done)} of {bytes_text(total)}")

        yield say
        return
    from rich import progress as rich
    from rich.console import Console

    with rich.Progress(
        rich.TextColumn("{task.description}"),
        rich.BarColumn(bar_width=20),
        rich.DownloadColumn(binary_units=True),
        rich.TransferSpeedColumn(),
        rich.TimeRemainingColumn(),
        console=Console(stderr=True),
    ) as bar:
        tasks: dict[str, rich.TaskID] = {}

        def show(path: str, done: int, total: int) -> None:
            if path not in tasks:
                tasks[path] = bar.add_task(path.rpartition("/")[2], total=total)
            bar.update(tasks[path], completed=done)

        yield show
