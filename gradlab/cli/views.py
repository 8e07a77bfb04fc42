"""Commands that read results: export, figures, report; and the list of names."""

from __future__ import annotations

import importlib
from typing import Annotated, Any

import typer

from gradlab._registry import unknown
from gradlab.cli.common import (
    RESULTS,
    Json,
    Results,
    StudyArgument,
    UsageError,
    app,
    print_json,
    study_folder,
    write_report,
)

REQUIRED = "required"


@app.command(epilog="Example: gradlab export quickstart")
def export(study: StudyArgument, results: Results = RESULTS) -> None:
    """Write every table of a study, and summaries."""
    from gradlab import reporting

    for path in reporting.export(study_folder(study, results)):
        typer.echo(path)


@app.command(epilog="Example: gradlab figures quickstart best_loss_decrease")
def figures(
    study: StudyArgument,
    chosen: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FIGURE",
            help="Which to draw [default: those of the study].",
            show_default=False,
        ),
    ] = None,
    results: Results = RESULTS,
) -> None:
    """Draw the figures again from the stored tables."""
    from gradlab import reporting

    for path in reporting.draw(study_folder(study, results), figures=chosen or None):
        typer.echo(path)


@app.command(epilog="Example: gradlab report quickstart")
def report(study: StudyArgument, results: Results = RESULTS) -> None:
    """Write tables, figures and report.html again."""
    write_report(study_folder(study, results))


@app.command("list", epilog="Example: gradlab list estimators")
def list_names(
    kind: Annotated[str, typer.Argument(metavar="KIND", show_default=False,
                                        help="estimators, methods, searches, surrogates, "
                                             "objectives, models, data, studies, sweeps, "
                                             "trainings or figures.")],
    as_json: Json = False,
) -> None:  # fmt: skip
    """List what a spec can name, with options and defaults."""
    from gradlab.sweep.cells import describe

    found = _listing(kind)
    if as_json:
        print_json(found)
        return
    for name, options in found.items():
        words = [f"{key}={'…' if value == REQUIRED else describe(value)}"
                 for key, value in options.items()]  # fmt: skip
        typer.echo("  ".join([name, *words]))
        if kind == "estimators" and name in (about := _about_estimators()):
            typer.echo(f"    unbiased for {about[name].unbiased_for}; "
                       f"forward passes: {about[name].cost}")  # fmt: skip
        if kind == "searches":
            typer.echo(f"    {_about_searches()[name]}")


def _about_estimators() -> dict[str, Any]:
    from gradlab.estimators.about import ABOUT

    return ABOUT


def _about_searches() -> dict[str, str]:
    from gradlab.studies.searches import ABOUT

    return ABOUT


def _listing(kind: str) -> dict[str, dict[str, Any]]:
    """Names, each with its options and their defaults."""
    from gradlab import _toml
    from gradlab.sweep import spec as specs

    files = {
        "sweeps": specs.shipped_sweeps,
        "trainings": lambda: _toml.shipped("sweeps", "*.toml", "training"),
        "figures": specs.shipped_figures,
    }
    if kind in files:
        return {name: {} for name in files[kind]()}
    homes = {
        "data": "gradlab.data",
        "estimators": "gradlab.estimators",
        "methods": "gradlab.variational",
        "searches": "gradlab.studies.searches",
        "surrogates": "gradlab.binary.surrogates",
        "objectives": "gradlab.objectives",
        "models": "gradlab.models",
        "studies": "gradlab.studies",
    }
    if kind not in homes:
        raise UsageError(unknown("kind", kind, [*homes, *files]))
    home = importlib.import_module(homes[kind])
    registry = getattr(home, "REGISTRY", None)
    if registry is None or kind == "studies":
        return {name: {} for name in home.names()}
    given = {"seed", "batch"} if kind == "objectives" else set()  # by the study, to every cell
    return {
        name: {
            option: registry.defaults(name).get(option, REQUIRED)
            for option in registry.options(name)
            if option not in given
        }
        for name in home.names()
    }
