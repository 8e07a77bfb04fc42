"""What does an estimate by NES cost beyond the evaluation of its members?

``NES(population=5000)`` (antithetic, centred, with its split-half diagnostics) at batch 16,384, two
sign layers, against ``losses`` of the very same 5,000 members held as tensors. The difference is
the estimator's overhead: members drawn twice, once to be evaluated and once for the gradient, the
weighted sum of the noise, and the diagnostics. The parts, each timed alone in the same rounds:

- ``noise``: the members' noise once, 256 members at a time;
- ``weighted_noise``: noise drawn again and its sum, for the whole sample and its two halves;
- ``losses_with_noise``: the evaluation that draws its members itself, as the estimator calls it.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import _common
import torch

from gradlab.estimators.nes import NES, weighted_noise
from gradlab.evaluation import GaussianPopulation
from gradlab.evaluation import population as pop
from gradlab.evaluation.noise import draw_key
from gradlab.objectives import TeacherStudent

# Members whose noise is drawn at a time: a megabyte or less.
_CHUNK = 256


def main() -> int:
    """Every num_dim."""
    parser = _common.parser(__doc__)
    parser.set_defaults(rounds=9)
    parser.add_argument("--population", type=int, default=5000, help="forward passes [5000]")
    parser.add_argument("--batch-size", type=int, default=16384)
    options = parser.parse_args()
    _common.start(options)
    if options.quick:
        options.batch_size, options.population, options.rounds = 1024, 200, 2
    rows = []
    for num_dim in (2, 8, 32):
        rows.append(measure(num_dim, options))
        row = rows[-1]
        parts = ", ".join(
            f"{name} {_common.words(values)}" for name, values in row["share_of_losses"].items()
        )
        print(
            f"num_dim {num_dim:2d}: overhead {_common.words(row['overhead'])} of "
            f"{_common.words(row['milliseconds']['losses'])} ms; parts: {parts}"
        )
    bars = [
        _common.bar(
            f"num_dim {row['num_dim']}: overhead of NES over its evaluations",
            row["overhead"]["median"],
            at_most=0.05,
        )
        for row in rows
    ]
    return _common.finish("overhead", options, rows, bars)


def measure(num_dim: int, options: argparse.Namespace) -> dict[str, Any]:
    """One row: the overhead and its parts, relative to the evaluation."""
    objective = TeacherStudent(num_dim, options.batch_size, seed=0, depth=2, device=options.device)
    params = objective.initial_params(0)
    nes = NES(population=options.population)
    key = draw_key(torch.Generator().manual_seed(0))
    population = GaussianPopulation(
        params, nes.sigma, key, 0, options.population, antithetic=nes.antithetic
    )
    members = population.members()
    losses = objective.losses(members)
    if not torch.equal(losses, objective.losses(population)):
        raise SystemExit("members held as tensors have other losses than those drawn.")
    weights = torch.stack([losses - losses.mean()] * 3)

    def estimate() -> None:
        nes.estimate(objective, params, generator=torch.Generator().manual_seed(0))

    def noise() -> None:
        for start, stop in pop.chunks(options.population, _CHUNK):
            population.part(start, stop).noise()

    cases = {
        "losses": lambda: objective.losses(members),
        "estimate": estimate,
        "noise": noise,
        "weighted_noise": lambda: weighted_noise(population, weights, second=False),
        "losses_with_noise": lambda: objective.losses(population),
    }
    seconds = _common.interleaved(cases, options.rounds, options.device)
    base = seconds["losses"]
    beyond = [whole - part for whole, part in zip(seconds["estimate"], base, strict=True)]
    drawn = [whole - part for whole, part in zip(seconds["losses_with_noise"], base, strict=True)]
    parts = {
        "noise": seconds["noise"],
        "weighted_noise": seconds["weighted_noise"],
        "losses_with_noise_beyond_losses": drawn,
    }
    return {
        "num_dim": num_dim,
        "milliseconds": {
            name: _common.spread([1000 * value for value in values])
            for name, values in seconds.items()
        },
        "overhead": _common.ratio(beyond, base),
        "share_of_losses": {name: _common.ratio(each, base) for name, each in parts.items()},
    }


if __name__ == "__main__":
    sys.exit(main())
