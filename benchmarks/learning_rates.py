"""What do fifty learning rates cost, where one would do?

The gradient does not depend on the learning rate: a ``loss_decrease`` cell estimates once and takes
every rate as one member of a population. Timed: whole cells (data, student, estimate, judging) with
50 rates and with one, interleaved, for NES 100 and 500, judged on the same batch alone and on a
fresh one too. Bar: a ratio below 2.

Counted, in a run that is not timed, by wrapping the evaluator: the estimates; the members that were
asked for; and the members that really went through the hidden layers, in forward passes of a full
batch, whatever the implementation adds on the way. Bars: no further estimate, and at most 50
forward passes more for each judged batch.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import _common

from gradlab.estimators import NES
from gradlab.evaluation import MLPEvaluator
from gradlab.evaluation import population as pop
from gradlab.evaluation.fused import FusedMLPEvaluator
from gradlab.studies.loss_decrease import LossDecrease
from gradlab.sweep import expand
from gradlab.sweep.spec import from_dict

RATES: dict[int, Any] = {1: [0.01], 50: {"start": 1e-5, "stop": 1.0, "num": 50}}


@dataclass
class Count:
    """What one cell asked for and did."""

    estimates: int = 0
    asked: int = 0
    evaluated: float = 0.0


def main() -> int:
    """Every population, num_dim and judging, with 50 rates against one."""
    parser = _common.parser(__doc__)
    options = parser.parse_args()
    _common.start(options)
    dims, batch, rounds = [2, 8, 32], 16384, options.rounds
    if options.quick:
        dims, batch, rounds = [2, 8], 1024, 1
    rows, bars = [], []
    with tempfile.TemporaryDirectory() as scratch:
        for population in (100, 500):
            for num_dim in dims:
                for fresh in (False, True):
                    row = measure(options, population, num_dim, batch, fresh, Path(scratch), rounds)
                    rows.append(row)
                    name = f"NES {population}, num_dim {num_dim}" + ", fresh" * fresh
                    bars.append(_common.bar(f"time ratio, {name}", row["ratio"]["median"], below=2))
                    print(
                        f"NES {population}, num_dim {num_dim}, fresh {str(fresh).lower()}: "
                        f"{_common.words(row['ratio'])} times one rate's time, "
                        f"{row['added_forward_passes_per_batch']:.4g} more forward passes per "
                        f"judged batch, {row['added_estimates']} more estimates"
                    )
    for what in ("added_estimates", "added_forward_passes_per_batch"):
        worst = max(row[what] for row in rows)
        limit = 0 if what == "added_estimates" else 50
        bars.append(_common.bar(f"{what.replace('_', ' ')}, worst", worst, at_most=limit))
    return _common.finish("learning_rates", options, rows, bars)


def measure(
    options: Any,
    population: int,
    num_dim: int,
    batch: int,
    fresh: bool,
    scratch: Path,
    rounds: int,
) -> dict[str, Any]:
    """One row: times and counts of 50 rates and of one."""
    study = LossDecrease()
    cells = {
        number: cell_of(population, num_dim, batch, fresh, rates, options)
        for number, rates in RATES.items()
    }
    cases = {str(number): partial(study.run, cell, scratch) for number, cell in cells.items()}
    counts = {}
    for number, case in cases.items():
        with counted(batch) as count:
            case()
        counts[number] = count
    seconds = _common.interleaved(cases, rounds, options.device)
    batches = 2 if fresh else 1
    added = counts["50"].evaluated - counts["1"].evaluated
    asked = counts["50"].asked - counts["1"].asked
    return {
        "population": population,
        "num_dim": num_dim,
        "batch_size": batch,
        "fresh": fresh,
        "seconds": seconds,
        "ratio": _common.ratio(seconds["50"], seconds["1"]),
        "counts": {number: vars(count) for number, count in counts.items()},
        "added_estimates": counts["50"].estimates - counts["1"].estimates,
        "added_members_asked_per_batch": asked / batches,
        "added_forward_passes_per_batch": added / batches,
    }


def cell_of(
    population: int, num_dim: int, batch: int, fresh: bool, rates: Any, options: Any
) -> dict[str, Any]:
    """A cell as a sweep would make it, every default filled in."""
    spec = {
        "name": "learning_rates",
        "study": "loss_decrease",
        "threads": options.threads,
        "objective": {
            "name": "teacher_student",
            "num_dim": num_dim,
            "batch_size": batch,
            "device": options.device,
        },
        "settings": {"lr": rates, "fresh": fresh},
        "estimators": [{"name": "nes", "population": population}],
    }
    (cell,) = expand(from_dict(spec))
    return cell.config


@contextmanager
def counted(batch: int) -> Iterator[Count]:
    """Count what happens inside; the teacher's own pass for the targets is not judging."""
    count = Count()
    depth = 0

    def estimates(method: Callable[..., Any], self: NES, *args: Any, **options: Any) -> Any:
        count.estimates += 1
        return method(self, *args, **options)

    def judged(method: Callable[..., Any], self: MLPEvaluator, *args: Any) -> Any:
        nonlocal depth
        # The last argument is the population. A method that calls another one asks once.
        count.asked += 0 if depth else pop.size(args[-1])
        depth += 1
        try:
            return method(self, *args)
        finally:
            depth -= 1

    def compiled(
        method: Callable[..., Any], self: FusedMLPEvaluator, kind: int, weights: Any, *args: Any
    ) -> Any:
        if depth:
            count.evaluated += len(weights) * len(self.inputs) / batch
        return method(self, kind, weights, *args)

    with ExitStack() as stack:
        for owner, name, wrapper in (
            (NES, "estimates", estimates),
            (MLPEvaluator, "losses", judged),
            (MLPEvaluator, "decreases", judged),
            (FusedMLPEvaluator, "_call", compiled),
        ):
            method = getattr(owner, name)
            stack.enter_context(mock.patch.object(owner, name, _bound(wrapper, method)))
        yield count


def _bound(wrapper: Callable[..., Any], method: Callable[..., Any]) -> Callable[..., Any]:
    # A plain function, so that it binds to the instance as the method did.
    def wrapped(self: Any, *args: Any, **options: Any) -> Any:
        return wrapper(method, self, *args, **options)

    return wrapped


if __name__ == "__main__":
    sys.exit(main())
