"""Commands that run sweeps and look after them: run, retry, plan, status, failed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from gradlab._registry import unknown
from gradlab.cli.common import (
    RESULTS,
    Jobs,
    Json,
    NoReport,
    Overrides,
    Results,
    SpecArgument,
    StudyArgument,
    UsageError,
    WorkError,
    app,
    call,
    print_json,
    print_table,
    study_folder,
    tell,
    write_report,
)

if TYPE_CHECKING:
    from gradlab.sweep.plan import Group
    from gradlab.sweep.run import Backend, Summary


@app.command(epilog="Example: gradlab run quickstart seed=1 'objective.num_dim=[2,4]' -j 2")
def run(
    spec: SpecArgument,
    overrides: Overrides = None,
    results: Results = RESULTS,
    jobs: Jobs = None,
    no_report: NoReport = False,
    backend: Annotated[
        str, typer.Option(help="loky: processes here; dask: a cluster.", metavar="NAME")
    ] = "loky",
    scheduler: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Dask scheduler [default: workers on this machine]."),
    ] = None,
) -> int:
    """Run what is missing of a sweep, then draw and report."""
    from gradlab import sweep

    if backend not in ("loky", "dask"):
        raise UsageError(unknown("backend", backend, ("loky", "dask")))
    checked = sweep.read_spec(spec, overrides or ())

    def work() -> Summary:
        chosen = cast("Backend", backend)
        summary = sweep.run(checked, results, jobs=jobs, backend=chosen, scheduler=scheduler)
        if summary.ran and checked.objective.get("name") == "teacher_student":
            _tell_path(checked.objective.get("device", "cpu"))
        return summary

    return _run(work, report=not no_report)


@app.command(epilog="Example: gradlab retry quickstart 3fa9c1")
def retry(
    study: StudyArgument,
    cells: Annotated[
        list[str] | None,
        typer.Argument(metavar="CELL", show_default=False,
                       help="First digits of the cells to run again [default: all that failed]."),
    ] = None,
    stale: Annotated[
        bool, typer.Option("--stale", help="Run the cells again that other code made.")
    ] = False,
    results: Results = RESULTS,
    jobs: Jobs = None,
    no_report: NoReport = False,
) -> int:  # fmt: skip
    """Run failed cells again."""
    from gradlab.sweep.run import retry as run_again

    folder = study_folder(study, results)
    return _run(
        lambda: run_again(folder, cells or (), stale=stale, jobs=jobs), report=not no_report
    )


def _tell_path(devices: Any) -> None:
    """Say which path evaluated populations on the device or the axis of devices."""
    from gradlab.evaluation.mlp import describe_path

    for device in devices if isinstance(devices, list) else [devices]:
        tell(f"populations: {describe_path(device)}")


def _run(work: Any, report: bool) -> int:
    """Do the work, then export, draw and report; the exit status."""
    from gradlab.sweep.export import export
    from gradlab.sweep.units import counted, seconds_text

    try:
        summary: Summary = work()
    except KeyboardInterrupt as interrupt:
        raise WorkError(str(interrupt) or "interrupted: the same command continues.") from interrupt
    tell(f"{counted(summary.ran, 'cell')} run in {seconds_text(summary.seconds)}; "
          f"{summary.done:,} of {summary.total:,} done.")  # fmt: skip
    if summary.warnings:
        note, count = next(iter(summary.warnings.items()))
        more = f" ({len(summary.warnings) - 1:,} other kinds)" if len(summary.warnings) > 1 else ""
        tell(f"{counted(count, 'cell')} warned: {note}{more}.")
    if summary.stale:
        name = summary.folder.name
        tell(f"{counted(summary.stale, 'finished cell')} made by other code than this: "
             f"`gradlab retry {name} --stale` runs them again.")  # fmt: skip
    try:
        if report:
            write_report(summary.folder)
        else:
            export(summary.folder)
            tell(f"tables:  {summary.folder / 'tables'}")
    except KeyboardInterrupt as interrupt:
        name = call(summary.folder)
        raise WorkError("interrupted: all cells are kept, "
                      f"`gradlab report {name}` writes the report.") from interrupt  # fmt: skip
    if summary.failed:
        name = call(summary.folder)
        raise WorkError(f"{counted(summary.failed, 'cell')} failed: `gradlab failed {name}` shows "
                      f"why, `gradlab retry {name}` runs them again.")  # fmt: skip
    return 0


@app.command(epilog="Example: gradlab plan lr_by_num_dim inits=1 -j 16")
def plan(
    spec: SpecArgument,
    overrides: Overrides = None,
    results: Results = RESULTS,
    jobs: Jobs = None,
    as_json: Json = False,
) -> None:
    """Show what a sweep will run, how long, in what memory."""
    from gradlab import sweep
    from gradlab.sweep import provenance
    from gradlab.sweep.units import about, bytes_text, counted

    planned = sweep.plan(sweep.read_spec(spec, overrides or ()), results, jobs)
    if as_json:
        print_json({"groups": [_group(g) for g in planned.groups], "jobs": planned.jobs,
                     "seconds": planned.seconds, "bytes": planned.bytes})  # fmt: skip
        return
    _print_groups(planned.groups)
    if not planned.count("missing"):
        typer.echo("Nothing is missing.")
        return
    typer.echo(f"{counted(planned.count('missing'), 'cell')} to run: "
               f"{about(planned.seconds)} on {counted(planned.jobs, 'worker')}, "
               f"about {bytes_text(planned.bytes)} of memory.")  # fmt: skip
    available = provenance.memory()
    if available is not None and planned.bytes > available:
        typer.echo(f"This machine has {bytes_text(available)} of memory: use fewer workers (-j).")


@app.command(epilog="Example: gradlab status quickstart --stale")
def status(
    study: StudyArgument,
    stale: Annotated[
        bool, typer.Option("--stale", help="List the cells that other code made.")
    ] = False,
    results: Results = RESULTS,
    as_json: Json = False,
) -> None:
    """Count the cells that are done, failed or missing."""
    from gradlab.sweep.cells import title
    from gradlab.sweep.plan import group
    from gradlab.sweep.run import stale_cells
    from gradlab.sweep.store import FILE, Store

    with Store(study_folder(study, results) / FILE) as store:
        if stale:
            found = stale_cells(store)
            if as_json:
                print_json(found)
                return
            for cell in found:
                made = cell["provenance"]
                typer.echo(f"{cell['hash'][:12]}  gradlab {made.get('gradlab')} "
                           f"code {made.get('code')}  {title(cell['config'])}")  # fmt: skip
            typer.echo(f"{len(found):,} of the finished cells were made by other code.")
            return
        groups = group(store.selection(), {cell["hash"]: cell for cell in store.cells()})
    if as_json:
        print_json([_group(g) for g in groups])
    else:
        _print_groups(groups)


@app.command(epilog="Example: gradlab failed quickstart")
def failed(study: StudyArgument, results: Results = RESULTS, as_json: Json = False) -> None:
    """Show failed cells, why, and how to run them again."""
    from gradlab.sweep.cells import title
    from gradlab.sweep.store import FILE, Store

    folder = study_folder(study, results)
    with Store(folder / FILE) as store:
        failures = store.failures()
    if as_json:
        print_json(failures)
        return
    for failure in failures:
        typer.echo(f"{failure['hash'][:12]}  {title(failure['config'])}")
        typer.echo(failure["traceback"].rstrip())
        typer.echo(f"Run it again: gradlab retry {call(folder)} {failure['hash'][:12]}\n")
    typer.echo(f"{len(failures):,} failed.")


def _group(group: Group) -> dict[str, Any]:
    from dataclasses import asdict

    return {**asdict(group), "missing": group.missing}


def _print_groups(groups: Sequence[Group]) -> None:
    from gradlab.sweep.units import seconds_text

    timed = any(group.seconds is not None for group in groups)
    header = ["problem", "estimator", "cells", "done", "failed", "missing"]
    rows = [
        [g.problem, g.estimator, *(f"{n:,}" for n in (g.total, g.done, g.failed, g.missing)),
         *([seconds_text(g.seconds or 0) if g.missing else ""] if timed else [])]
        for g in groups
    ]  # fmt: skip
    total = ["total", "", *(f"{sum(getattr(g, kind) for g in groups):,}"
                            for kind in ("total", "done", "failed", "missing"))]  # fmt: skip
    if timed:
        header.append("work")
        total.append(seconds_text(sum(g.seconds or 0 for g in groups)))
    print_table(header, [*rows, total], left=2)
