"""How many milliseconds does the population evaluator take per member?

Against what one would write first, interleaved, on a network with two sign layers and 16,384
examples:

- ``evaluator``: ``TeacherStudent.losses`` of members held as tensors;
- ``evaluator_with_noise``: the same of a ``GaussianPopulation``, whose members it draws itself;
- ``loop``: one member after another, two lines of plain torch (``torch.sign``).
"""

from __future__ import annotations

import sys
from typing import Any

import _common
import torch
from torch import Tensor

from gradlab.evaluation import GaussianPopulation, Params
from gradlab.objectives import TeacherStudent


def main() -> int:
    """Every num_dim."""
    parser = _common.parser(__doc__)
    parser.add_argument("--members", type=int, default=64, help="members of the population [64]")
    parser.add_argument("--batch-size", type=int, default=16384)
    parser.add_argument("--depth", type=int, default=2, help="sign layers [2]")
    options = parser.parse_args()
    _common.start(options)
    dims = [2, 4, 8, 16, 32, 64]
    if options.quick:
        dims, options.batch_size, options.members = [2, 8], 1024, 8
    rows = []
    for num_dim in dims:
        rows.append(measure(num_dim, options))
        row = rows[-1]
        print(
            f"num_dim {num_dim:2d}: "
            + ", ".join(
                f"{name} {_common.words(values)} ms"
                for name, values in row["milliseconds_per_member"].items()
            )
            + f"; the loop takes {_common.words(row['times_faster'])} times as long"
        )
    return _common.finish("population", options, rows)


def measure(num_dim: int, options: Any) -> dict[str, Any]:
    """One row: milliseconds per member."""
    objective = TeacherStudent(
        num_dim, options.batch_size, seed=0, depth=options.depth, device=options.device
    )
    gaussian = GaussianPopulation(
        objective.initial_params(0), 0.1, key=1, start=0, stop=options.members
    )
    members = gaussian.members()
    cases = {
        "evaluator": lambda: objective.losses(members),
        "evaluator_with_noise": lambda: objective.losses(gaussian),
        "loop": lambda: loop(members, objective.inputs, objective.targets),
    }
    losses = {name: case().double() for name, case in cases.items()}
    seconds = _common.interleaved(cases, options.rounds, options.device)
    return {
        "num_dim": num_dim,
        "milliseconds_per_member": {
            name: _common.spread([1000 * value / options.members for value in values])
            for name, values in seconds.items()
        },
        "times_faster": _common.ratio(seconds["loop"], seconds["evaluator"]),
        "times_faster_with_noise": _common.ratio(seconds["loop"], seconds["evaluator_with_noise"]),
        "largest_relative_difference": float(
            ((losses["loop"] - losses["evaluator"]) / losses["evaluator"]).abs().max()
        ),
    }


def loop(members: Params, inputs: Tensor, targets: Tensor) -> Tensor:
    """One member after another."""
    losses = []
    for weights in zip(*members.values(), strict=True):
        hidden = inputs
        for weight in weights[:-1]:
            hidden = torch.sign(hidden @ weight.T)
        losses.append((hidden @ weights[-1].T - targets).square().mean())
    return torch.stack(losses)


if __name__ == "__main__":
    sys.exit(main())
