"""The command line: ``gradlab run quickstart`` measures, draws and reports.

Exit status 0: done; 1: work failed; 2: bad usage. Errors are one sentence on stderr; ``--debug``
adds the traceback. Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from gradlab import __version__
from gradlab._memory import keep_freed_memory

# Importing them registers their commands, in the order in which --help lists them.
from gradlab.cli import sweeps, views  # noqa: F401

# isort: split
from gradlab.cli import compare  # noqa: F401

# isort: split
from gradlab.cli import data, training  # noqa: F401

# isort: split
from gradlab.cli import compression  # noqa: F401

# isort: split
from gradlab.cli import diagnose  # noqa: F401

# isort: split
from gradlab.cli import machine  # noqa: F401
from gradlab.cli.common import UsageError, WorkError, app


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its status."""
    if arguments is None:  # the process is ours
        keep_freed_memory()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    sys.exit(_status([a for a in arguments if a != "--debug"], debug))


def _status(arguments: list[str], debug: bool) -> int:
    """The exit status of a command; every complaint is one sentence on stderr."""
    command = typer.main.get_command(app)
    try:
        result = command.main(arguments or ["--help"], prog_name="gradlab", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader (head, less) has what it wanted; Python's own flush at exit must not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except typer.Abort:
        return _interrupted()
    except Exception as error:
        if debug:
            traceback.print_exc()
        status, sentence = _explain(error)
        print(f"gradlab: {sentence}", file=sys.stderr)
        return status
    if result == 130:  # typer's own status for Ctrl-C
        return _interrupted()
    return result if isinstance(result, int) else 0


def _interrupted() -> int:
    print("gradlab: interrupted.", file=sys.stderr)
    return 1


def _explain(error: Exception) -> tuple[int, str]:
    """Exit status and sentence for what went wrong."""
    if hasattr(error, "format_message"):  # click's own complaints, also in typer's copy of click
        message = " ".join(error.format_message().split()).rstrip(".")
        return 2, f"{message[:1].lower()}{message[1:]}: see `gradlab --help`."
    if isinstance(error, UsageError):
        return 2, str(error)
    if isinstance(error, WorkError):
        return 1, str(error)
    # Names, not classes: `gradlab --help` must not import the sweeps.
    kind = type(error).__name__
    if kind == "SpecError":
        return 2, str(error)
    if kind == "StoreError":
        return 1, str(error)
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        return 1, f"{place}{error.strerror.lower()}: check the path, its permissions and the disk."
    if isinstance(error, ValueError):
        return 1, str(error)
    return 1, f"{kind}: {error} (run again with --debug for the traceback)."


@app.callback(invoke_without_command=True)
def _gradlab(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error (anywhere).")
    ] = False,
) -> None:
    if version:
        typer.echo(f"gradlab {__version__}")
        raise typer.Exit
