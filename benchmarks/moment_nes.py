"""How well does one estimate agree with the exact smoothed gradient, and at what cost?

Teacher-student networks with three hidden layers of signs, sigma .1, fresh weights and weights
after ``TRAINED`` steps of gradient descent: the cosine of every layer of a single estimate to the
gradient of the smoothed loss on its batch, for ``moment_nes``, ``nes_local``, the matched STE and
moment propagation. Two independent unbiased estimates of cosine c have the cosine c² with each
other, so that no referee is needed; the two that are biased are compared with the mean of
``REFEREES`` estimates of ``moment_nes``, four times as accurate as its default, without what their
noise takes from it. Cosines of small batches say what a training step sees: there the noise
decides.

``bias_z`` compares the means of ``moment_nes`` and ``nes_local`` over the estimates, as
:mod:`gradlab.studies.gradient_variance` tests a bias: about standard normal if there is none.
Backward passes count as one here, as in budgets of the study ``trajectory``; by multiplications
they are two.

Bars: .99 in every layer for at most 4 passes at 32 units and 8 at 64, forwards and backwards
together, with a batch of 160,000 and fresh weights.
"""

from __future__ import annotations

import math
import statistics
import time
from itertools import combinations
from typing import Any

import _common
import torch
from torch import Tensor

from gradlab.estimators import create
from gradlab.estimators.base import GradientEstimate, cosine
from gradlab.objectives import TeacherStudent
from gradlab.studies.gradient_variance import Products

ESTIMATORS: dict[str, tuple[str, dict[str, Any]]] = {
    "moment_nes": ("moment_nes", {}),
    "moment_nes, 4 draws": ("moment_nes", {"draws": 4}),
    "nes_local": ("nes_local", {}),
    "nes_local, 8 passes": ("nes_local", {"passes": 8}),
    "nes_local, mean field": ("nes_local", {"baseline": "mean_field"}),
    "matched STE": ("ste", {"surrogate": "matched"}),
    "moment propagation": ("moment_propagation", {}),
}
BIASED = ("matched STE", "moment propagation")
WIDTHS = (32, 64)
BATCHES = (256, 1_024, 160_000)
PASSES = {32: 4.0, 64: 8.0}
TRAINED, LR = 100, 0.3
REFEREES, ACCURATE = 8, {"draws": 8, "flip_every": 2, "passes": 2}


def trained(objective: TeacherStudent, params: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights after steps along estimates of the gradient."""
    estimator = create("moment_nes")
    for step in range(TRAINED):
        generator = torch.Generator().manual_seed(step)
        gradient = estimator.estimate(objective, params, generator=generator).gradient
        params = {name: w - LR * gradient[name] for name, w in params.items()}
    return params


def measure(objective: TeacherStudent, params: Any, repeats: int) -> list[dict[str, Any]]:
    """One row for each estimator."""
    rows, gradients = [], {}
    referees = stacked(objective, [
        create("moment_nes", **ACCURATE).estimate(
            objective, params, generator=torch.Generator().manual_seed(10_000 + seed)
        ) for seed in range(REFEREES)
    ])  # fmt: skip
    for label, (name, options) in ESTIMATORS.items():
        estimator, seconds, estimates = create(name, **options), [], []
        for seed in range(repeats):
            generator = torch.Generator().manual_seed(seed)
            clock = time.perf_counter()
            estimates.append(estimator.estimate(objective, params, generator=generator))
            seconds.append(time.perf_counter() - clock)
        gradients[label] = found = stacked(objective, estimates)
        passes = estimates[0].forward_passes + estimates[0].backward_passes
        row = {"estimator": label, "passes": passes, "seconds": statistics.median(seconds)}
        if label not in BIASED:
            row["cosines"] = [own_cosine(rows_) for rows_ in found.values()]
        else:
            row["cosines"] = [
                statistics.fmean(cosine(each, referees[layer].mean(0)) for each in rows_)
                / mean_cosine(referees[layer])
                for layer, rows_ in found.items()
            ]
        rows.append(row)
    rows[0]["bias_z"] = [
        bias_z(gradients["moment_nes"][layer], gradients["nes_local, 8 passes"][layer])
        for layer in objective.layer_names
    ]
    return rows


def stacked(objective: TeacherStudent, estimates: list[GradientEstimate]) -> dict[str, Tensor]:
    """Flat gradients of each layer, a row for each estimate."""
    return {
        layer: torch.stack([each.gradient[layer].flatten() for each in estimates]).double()
        for layer in objective.layer_names
    }


def own_cosine(rows: Tensor) -> float:
    """Of one estimate to the expectation, from pairs of independent ones; 0 where they disagree."""
    pairs = [cosine(rows[i], rows[j]) for i, j in combinations(range(len(rows)), 2)]
    return math.sqrt(max(statistics.fmean(pairs), 0.0))


def mean_cosine(rows: Tensor) -> float:
    """Of the mean of all estimates to the expectation, by their own agreement."""
    one = max(own_cosine(rows), 1e-6)
    noise = (1 / one**2 - 1) / len(rows)
    return 1 / math.sqrt(1 + noise)


def bias_z(ours: Tensor, theirs: Tensor) -> float:
    """The squared distance of the expectations over its standard error without a bias."""
    rows = torch.cat((ours, theirs))
    distance, error = Products(rows @ rows.T, len(theirs)).bias
    return distance / error


def main() -> int:
    """Measure and write the result; 1 if a bar is missed."""
    parser = _common.parser(__doc__)
    parser.add_argument("--repeats", type=int, default=8, help="estimates of each kind [8]")
    options = parser.parse_args()
    _common.start(options)
    widths, batches = (WIDTHS, BATCHES) if not options.quick else ((8,), (256,))
    results: list[dict[str, Any]] = []
    bars = []
    for width in widths:
        for state in ("fresh", "trained"):
            for batch in batches:
                objective = TeacherStudent(width, batch, seed=0, device=options.device)
                params = objective.initial_params(1)
                if state == "trained":
                    learnt = TeacherStudent(width, 16_384, seed=0, device=options.device)
                    params = trained(learnt, params)
                print(f"num_dim {width}, {state}, batch {batch:,}")
                for row in measure(objective, params, options.repeats):
                    results.append({"num_dim": width, "weights": state, "batch": batch} | row)
                    words = " ".join(f"{c:.4f}" for c in row["cosines"])
                    more = (
                        ""
                        if "bias_z" not in row
                        else "  bias z " + " ".join(f"{z:+.1f}" for z in row["bias_z"])
                    )
                    print(f"  {row['estimator']:24s} {row['passes']:5.2f} passes "
                          f"{row['seconds']:7.3f} s  {words}{more}", flush=True)  # fmt: skip
                    barred = state == "fresh" and batch == BATCHES[-1]
                    if barred and row["estimator"] == "moment_nes":
                        bars.append(_common.bar(f"num_dim {width}: passes", row["passes"],
                                                at_most=PASSES[width]))  # fmt: skip
                        bars.append(_common.bar(f"num_dim {width}: smallest cosine of a layer",
                                                min(row["cosines"]), at_least=0.99))  # fmt: skip
    return _common.finish("moment_nes", options, {"rows": results}, bars)


if __name__ == "__main__":
    raise SystemExit(main())
