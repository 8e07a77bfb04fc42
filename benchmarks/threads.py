"""How much faster is the population evaluator on two threads than on one?

``TeacherStudent.losses`` of members held as tensors, two sign layers, 16,384 examples. The number
of torch threads is changed between the interleaved calls; the compiled evaluator takes as many.
Members are independent, so the losses must be equal bit for bit.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any

import _common
import torch
from torch import Tensor

from gradlab.evaluation import GaussianPopulation
from gradlab.objectives import TeacherStudent

# A call on one thread takes a tenth of a second or more.
MEMBERS = {8: 8192, 32: 1024, 64: 256}


def main() -> int:
    """Every num_dim."""
    parser = _common.parser(__doc__)
    parser.set_defaults(threads=2, rounds=9)
    parser.add_argument("--batch-size", type=int, default=16384)
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if options.threads > (cores or 1):
        raise SystemExit(f"--threads {options.threads}: this machine lends {cores} cores.")
    _common.start(options)
    if options.quick:
        options.batch_size, options.rounds = 1024, 2
    rows = []
    for num_dim, members in MEMBERS.items():
        rows.append(measure(num_dim, members, options))
        row = rows[-1]
        print(
            f"num_dim {num_dim:2d}: {_common.words(row['milliseconds_per_member']['one'])} ms per "
            f"member on one thread, {_common.words(row['times_faster'])} times faster on "
            f"{options.threads}"
        )
    bars = [
        _common.bar(
            f"num_dim {row['num_dim']}: times faster on {options.threads} threads",
            row["times_faster"]["median"],
            at_least=0.9 * options.threads,
        )
        for row in rows
    ]
    return _common.finish("threads", options, rows, bars)


def measure(num_dim: int, members: int, options: argparse.Namespace) -> dict[str, Any]:
    """One row: milliseconds per member on one and on several threads."""
    objective = TeacherStudent(num_dim, options.batch_size, seed=0, depth=2)
    mean = objective.initial_params(0)
    population = GaussianPopulation(mean, 0.1, key=1, start=0, stop=members).members()

    def on(threads: int) -> Callable[[], Tensor]:
        def evaluate() -> Tensor:
            torch.set_num_threads(threads)
            return objective.losses(population)

        return evaluate

    cases = {"one": on(1), "several": on(options.threads)}
    if not torch.equal(cases["one"](), cases["several"]()):
        raise SystemExit("the losses depend on the number of threads.")
    seconds = _common.interleaved(cases, options.rounds)
    return {
        "num_dim": num_dim,
        "members": members,
        "milliseconds_per_member": {
            name: _common.spread([1000 * value / members for value in values])
            for name, values in seconds.items()
        },
        "times_faster": _common.ratio(seconds["one"], seconds["several"]),
    }


if __name__ == "__main__":
    sys.exit(main())
