"""What this machine can do: bench."""

from __future__ import annotations

import itertools
import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gradlab.cli.common import (
    RESULTS,
    Jobs,
    Json,
    Overrides,
    Results,
    UsageError,
    app,
    print_json,
    print_table,
)

if TYPE_CHECKING:
    from gradlab.sweep.machine import MachineRates
    from gradlab.sweep.plan import Plan
    from gradlab.sweep.spec import Spec

# What the libraries behind NumPy's products read, once, when they are loaded.
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


@app.command(epilog="Example: gradlab bench quickstart inits=1 --quick")
def bench(
    spec: Annotated[
        str | None,
        typer.Argument(metavar="SPEC", show_default=False,
                       help="Also say how long this sweep takes here: a file or a shipped sweep."),
    ] = None,
    overrides: Overrides = None,
    device: Annotated[str, typer.Option(metavar="NAME", help="cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(min=1, metavar="N", help="Torch threads.")] = 1,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer sizes, less time.")] = False,
    results: Results = RESULTS,
    jobs: Jobs = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Measure how fast this machine evaluates populations."""
    if "numpy" not in sys.modules:
        os.environ.update(dict.fromkeys(_THREAD_VARIABLES, str(threads)))
    from gradlab import sweep
    from gradlab.objectives.base import check_device

    try:
        check_device(device)
    except ValueError as error:
        raise UsageError(str(error)) from None
    read = None if spec is None else sweep.read_spec(spec, overrides or ())
    from gradlab.sweep import machine

    planned = None if read is None else sweep.plan(read, results, jobs)
    rates = machine.measure(device, threads, quick=quick)
    if as_json:
        print_json(_json(rates, read, planned))
        return
    _print_rates(rates)
    if read is not None and planned is not None:
        _print_plan(read, planned)


def _json(rates: MachineRates, spec: Spec | None, planned: Plan | None) -> dict[str, Any]:
    from dataclasses import asdict

    found = asdict(rates)
    for row, rate in zip(found["paths"], rates.paths, strict=True):
        row["share_of_peak"] = rates.share(rate)
    found["peak"] = asdict(rates.peak)
    if spec is not None and planned is not None:
        found["spec"] = {
            "name": spec.name, "missing": planned.count("missing"), "jobs": planned.jobs,
            "seconds": planned.seconds, "work_seconds": planned.work,
            "longest_cell_seconds": planned.longest,
            "start_seconds": planned.start,
            "expenses": [asdict(expense) for expense in planned.expenses],
        }  # fmt: skip
    return found


def _print_rates(rates: MachineRates) -> None:
    from gradlab.sweep.machine import DEFAULT, DEPTH
    from gradlab.sweep.units import counted

    peak = rates.peak
    place = counted(rates.threads, "thread") if rates.device == "cpu" else _accelerator(rates)
    _say(f"{rates.environment['machine']}; {place}.")
    _say(f"{DEFAULT}: {rates.path}.")
    _say(f"float32 peak: {peak.gflops:,.0f} GFLOP/s, {peak.library} of {peak.size}³.")
    others = [each for each in rates.products if each.dtype != "float32"]
    if others:
        _say("Beside it: " + ", ".join(f"{each.dtype} {each.gflops:,.0f} ({each.library})"
                                       for each in others) + ".")  # fmt: skip
    typer.echo()
    rows: list[list[str]] = []
    for num_dim, group in itertools.groupby(rates.paths, key=lambda rate: rate.num_dim):
        rows += [[""] * 5] if rows else []
        rows += [
            [str(num_dim) if number == 0 else "", rate.path, f"{rate.milliseconds:.3g}",
             f"{rate.gflops:,.0f}" if rate.gflops > 100 else f"{rate.gflops:.3g}",
             f"{100 * rates.share(rate):,.0f} %"]
            for number, rate in enumerate(group)
        ]  # fmt: skip
    header = ["num_dim", "path", "ms per member", "GFLOP/s", "share of peak"]
    print_table(header, rows, left=2)
    typer.echo()
    _say(f"{rates.batch_size:,} examples, {DEPTH} sign layers; members are held as tensors, "
         f"drawing them is not included. Medians of {rates.rounds} rounds in which all paths and "
         "products take turns: the machine may be shared, and then all are slower. GFLOP/s count "
         "the products that a member stands for, 2·B·(2n² + n); look-up tables and bits do "
         "without most of them, so a share can exceed 100 %.")  # fmt: skip
    if rates.device == "cpu" and rates.threads == 1:
        _say("One thread is one core alone, as each worker of a sweep has it.")


def _accelerator(rates: MachineRates) -> str:
    return ", ".join(rates.environment["accelerators"]) or rates.device


def _print_plan(spec: Spec, planned: Plan) -> None:
    from gradlab.sweep.units import about, counted, seconds_text

    typer.echo()
    if not planned.count("missing"):
        _say(f"{spec.name}: nothing is missing.")
        return
    _say(f"{spec.name}: {counted(planned.count('missing'), 'cell')} to run, "
         f"{about(planned.seconds)} on {counted(planned.jobs, 'worker')}. What they do, with "
         f"{counted(spec.threads, 'thread')} each:")  # fmt: skip
    typer.echo()
    rows = [
        [expense.kind, f"{expense.count:,.0f}", _between(expense.fastest, expense.slowest),
         seconds_text(expense.seconds)]
        for expense in planned.expenses
    ]  # fmt: skip
    rows.append(["total", "", "", seconds_text(planned.work)])
    print_table(["work", "times", "ms each", "together"], rows, left=1)
    typer.echo()
    shared = f"{seconds_text(planned.work)} on {counted(planned.jobs, 'worker')}"
    if planned.longest > planned.work / planned.jobs:
        shared = f"the longest cell takes {seconds_text(planned.longest)}"
    _say(f"Each kind of work was done here on a part of the batch and of the population, and "
         f"scaled; {shared}, and about {planned.start:.0f} s for workers to start. Students that "
         "train are taken to train to the end, and kernels to be compiled.")  # fmt: skip


def _between(low: float, high: float) -> str:
    """Milliseconds, or from what to what.

    >>> _between(0.001, 0.0010001), _between(0.001, 0.25)
    ('1', '1 – 250')
    """
    first, last = f"{1000 * low:.3g}", f"{1000 * high:.3g}"
    return first if first == last else f"{first} – {last}"


def _say(text: str) -> None:
    """A paragraph, wrapped at the terminal's width but never wider than one reads."""
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    console.print(text, width=min(console.width, 100))
