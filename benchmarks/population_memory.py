"""How much memory does a population of 50,000 take at batch 160,000, num_dim 32?

Peak resident memory while ``TeacherStudent.losses`` evaluates a ``GaussianPopulation``, above what
was resident right before, in a fresh process for each size. Bar: 1 GiB.

Why the peak does not depend on the number of members: a member is a function of (key, index) and is
regenerated where it is needed, so a population is a mean, a width and two integers. The evaluator
draws about 2²⁰ floats of members at a time (337 members here, four megabytes, and a few times that
while the noise is made of 64-bit counters), takes eight of them at once and 1,024 examples at a
time, one megabyte of activations, and adds the squared errors to one float64 per member: the only
thing that grows, 400 kB at 50,000. As tensors these members would be 621 MB, and their activations
on the whole batch 20 MB each.
"""

from __future__ import annotations

import argparse
import json
import sys
import time

import _common
import torch

from gradlab.evaluation import GaussianPopulation
from gradlab.objectives import TeacherStudent

GIB = 2**30
SIZES = [500, 5000, 50000]


def main() -> int:
    """Each size in its own process."""
    parser = _common.parser(__doc__)
    parser.add_argument("--members", type=int, nargs="+", help="populations [500 5000 50000]")
    parser.add_argument("--num-dim", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=160_000)
    parser.add_argument("--child", action="store_true", help="measure in this process")
    options = parser.parse_args()
    if options.members is None:
        options.members = [20, 200] if options.quick else SIZES
    if options.quick:
        options.batch_size = min(options.batch_size, 8192)
    _common.start(options)
    if options.child:
        print(json.dumps(measure(options)))
        return 0
    rows = []
    for members in options.members:
        arguments = ["--members", members, "--num-dim", options.num_dim]
        arguments += ["--batch-size", options.batch_size, "--threads", options.threads]
        arguments += ["--device", options.device]
        row = _common.in_fresh_process(__file__, [str(argument) for argument in arguments])
        rows.append(row)
        print(
            f"{members:6d} members: {row['peak_above_start'] / 2**20:.0f} MiB above the start, "
            f"{row['milliseconds_per_member']:.2f} ms per member"
        )
    largest = max(rows, key=lambda row: row["members"])
    what = f"GiB above the start, {largest['members']:,} members"
    bars = [_common.bar(what, largest["peak_above_start"] / GIB, below=1.0)]
    return _common.finish("population_memory", options, rows, bars)


def measure(options: argparse.Namespace) -> dict[str, float | int | str]:
    """One population in this process."""
    imported = _common.resident()
    objective = TeacherStudent(
        options.num_dim, options.batch_size, seed=0, depth=3, device=options.device
    )
    (members,) = options.members
    population = GaussianPopulation(objective.initial_params(0), 0.1, key=1, start=0, stop=members)
    with _common.PeakMemory() as memory:
        clock = time.perf_counter()
        losses = objective.losses(population)
        _common.synchronize(options.device)
        seconds = time.perf_counter() - clock
    row = {
        "members": members,
        "resident_after_imports": imported,
        "resident_at_start": memory.at_entry,
        "peak": memory.peak,
        "peak_above_start": memory.above_entry,
        "peak_above_imports": memory.peak - imported,
        "memory_method": memory.method,
        "seconds": seconds,
        "milliseconds_per_member": 1000 * seconds / members,
        "mean_loss": float(losses.mean()),
    }
    if options.device != "cpu":
        row["peak_on_the_gpu"] = torch.cuda.max_memory_allocated()
    return row


if __name__ == "__main__":
    sys.exit(main())
