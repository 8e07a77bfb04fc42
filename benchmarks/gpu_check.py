"""Do the CPU and the GPU say the same?

The same seeds on both, num_dim 8 and 32, 16,384 examples, three sign layers: the noise's bits, its
normals, losses, decreases along a line, every kind of estimator, and one small cell of every study
(run twice, so that its caches are read as well as written). Bits must be equal; everything else
agrees up to rounding, and a pre-activation that rounds to the other side of a threshold flips its
sign: such examples are counted. A check that raises is reported with its traceback's last line, and
the others go on.
"""

from __future__ import annotations

import math
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _common
import torch
from torch import Tensor

from gradlab import estimators
from gradlab.evaluation import GaussianPopulation, LinePopulation, noise
from gradlab.evaluation import population as pop
from gradlab.objectives import TeacherStudent, TestFunction
from gradlab.studies import cells, create
from gradlab.sweep import expand
from gradlab.sweep.spec import from_dict

# Each with the largest relative difference that boundary examples are allowed to make.
ESTIMATORS: list[tuple[str, dict[str, Any], float]] = [
    *(("ste", {"surrogate": s}, 1e-3) for s in ("hardtanh", "steep", "swish_sign", "polynomial")),
    ("ste", {"surrogate": "matched"}, 1e-2),
    ("cdg", {}, 1e-2),
    ("cdg", {"epsilon": 1.0}, 1e-2),
    ("nes", {"population": 200, "sigma_gradient": "log_sigma"}, 1e-2),
    ("nes", {"population": 200, "fitness": "centered_rank"}, 5e-2),
    ("nes", {"population": 200, "fitness": "utilities", "antithetic": False}, 5e-2),
    ("nes", {"population": 200, "gradient": "empirical_fisher_per_tensor"}, 5e-2),
    ("nes_local", {"passes": 2}, 1e-2),
    ("nes_local", {"passes": 2, "condition_last": False, "baseline": "none"}, 1e-2),
    ("sr_ste", {"samples": 2}, 1e-2),
]
STUDIES: dict[str, dict[str, Any]] = {
    "loss_decrease": {"lr": [0.01, 0.1], "step_layers": ["all", "hidden"]},
    "gradient_quality": {"reference": "smoothed", "reference_passes": 8, "repeats": 2},
    "trajectory": {"steps": 3},
}
Check = tuple[float, float]


def main() -> int:
    """Every check; the exit status says whether all of them hold."""
    parser = _common.parser(__doc__)
    parser.set_defaults(device="cuda")
    options = parser.parse_args()
    _common.start(options)
    batch = 1024 if options.quick else 16384
    dims = (8,) if options.quick else (8, 32)
    checks: dict[str, Callable[[], Check]] = {
        "noise bits": lambda: noise_bits(options.device),
        "normals": lambda: normals(options.device),
        "test function": lambda: test_function(options.device),
    }
    for num_dim in dims:
        checks |= network_checks(num_dim, batch, options.device)
    for name, settings in STUDIES.items():
        for state in ("fresh", "converged"):
            checks[f"{name}, {state}"] = _study(name, settings, state, options.device)
    rows = [outcome(name, check) for name, check in checks.items()]
    bad = [row["check"] for row in rows if not row["met"]]
    print(f"{len(rows) - len(bad)} of {len(rows)} checks hold" + (f"; not {bad}" if bad else ""))
    return max(_common.finish("gpu_check", options, rows), int(bool(bad)))


def outcome(name: str, check: Callable[[], Check]) -> dict[str, Any]:
    """Run one check; whatever it raises is part of the outcome."""
    try:
        value, limit = check()
        error = None
    except Exception:
        value, limit, error = math.nan, math.nan, traceback.format_exc().splitlines()[-1]
    met = error is None and value <= limit
    print(f"{'PASS' if met else 'FAIL'}  {name}: {error or f'{value:.2e} (at most {limit:g})'}")
    numbers = {} if error else {"difference": value, "at_most": limit}
    return {"check": name, "met": met, "error": error, **numbers}


def noise_bits(device: str) -> Check:
    """Philox words that differ between the devices: none may."""
    words = []
    for place in ("cpu", device):
        count = torch.arange(2**16, device=place)
        counter = (count, count * 7919 % 2**32, count >> 3, torch.zeros_like(count))
        words.append([word.cpu() for word in noise.philox(counter, key=0x9E3779B97F4A7C15)])
    return float(sum(int((a != b).sum()) for a, b in zip(*words, strict=True))), 0.0


def normals(device: str) -> Check:
    """Largest difference of the normals: log, cos and sin may round differently."""
    here, there = (noise.normal(5, (0, 500), (0, 999), device=d) for d in ("cpu", device))
    return float((here - there.cpu()).abs().max()), 5e-6


def test_function(device: str) -> Check:
    """NES on Rosenbrock, relative difference."""
    gradients = []
    for place in ("cpu", device):
        objective = TestFunction("rosenbrock", num_dim=10, device=place)
        estimate = estimators.create("nes", population=200).estimate(
            objective, objective.initial_params(0), generator=torch.Generator().manual_seed(0)
        )
        gradients.append(pop.flatten(estimate.gradient))
    return difference(*gradients), 1e-5


def network_checks(num_dim: int, batch: int, device: str) -> dict[str, Callable[[], Check]]:
    """The checks on one width."""
    pair = [TeacherStudent(num_dim, batch, seed=0, device=place) for place in ("cpu", device)]
    params = [objective.initial_params(0) for objective in pair]
    name = f"num_dim {num_dim}"

    def flipped() -> Check:
        outputs = [o.model.forward(p, o.inputs).cpu() for o, p in zip(pair, params, strict=True)]
        # One flipped sign moves the output by twice an output weight.
        return float(((outputs[0] - outputs[1]).abs() > 1e-4).sum()), batch * 1e-3

    def teacher() -> Check:
        return float(pair[1].loss(pair[1].teacher)), 0.0

    def losses() -> Check:
        both = [
            o.losses(GaussianPopulation(p, 0.1, key=3, start=0, stop=100, antithetic=True))
            for o, p in zip(pair, params, strict=True)
        ]
        return float(((both[0] - both[1].cpu()) / both[0]).abs().max()), 1e-3

    def decreases() -> Check:
        both = []
        for objective, start in zip(pair, params, strict=True):
            direction = {n: w / w.norm() for n, w in objective.teacher.items()}
            line = LinePopulation(start, direction, (1e-5, 1e-3, 0.1, 1.0))
            both.append(objective.decreases(start, line))
        return difference(*both), 1e-2

    checks = {
        f"{name}, examples on the other side of a threshold": flipped,
        f"{name}, teacher's own loss": teacher,
        f"{name}, losses": losses,
        f"{name}, decreases": decreases,
    }
    for estimator, settings, limit in ESTIMATORS:
        check = _estimate(estimator, settings, limit, pair, params)
        checks[f"{name}, {estimators.label(estimator, settings)}"] = check
    return checks


def _estimate(
    name: str,
    settings: dict[str, Any],
    limit: float,
    pair: list[TeacherStudent],
    params: list[dict[str, Tensor]],
) -> Callable[[], Check]:
    def check() -> Check:
        gradients = []
        for objective, start in zip(pair, params, strict=True):
            generator = torch.Generator().manual_seed(1)
            estimator = estimators.create(name, **settings)
            estimate = estimator.estimate(objective, start, generator=generator)
            whole = {**estimate.gradient}
            whole |= {f"sigma/{k}": v for k, v in (estimate.sigma_gradient or {}).items()}
            gradients.append(whole)
        return max(difference(gradients[0][k], gradients[1][k]) for k in gradients[0]), limit

    return check


def _study(name: str, settings: dict[str, Any], state: str, device: str) -> Callable[[], Check]:
    def check() -> Check:
        spec = {
            "name": "gpu_check",
            "study": name,
            "student": {"state": state},
            "objective": {"name": "teacher_student", "num_dim": 8, "device": device}
            | {"batch_size": 1024},
            "settings": settings,
            "estimators": [{"name": "nes", "population": 100}, {"name": "ste"}, {"name": "cdg"}],
        }
        if state == "converged":
            spec["student"] = {"state": state, "steps": 50, "batch_size": 1024}
        differ = 0
        with tempfile.TemporaryDirectory() as folder:
            for cell in expand(from_dict(spec)):
                runs = [create(name).run(cell.config, Path(folder)) for _ in range(2)]
                differ += _without_seconds(runs[0]) != _without_seconds(runs[1])
                assert cells.key_columns(cell.config)["device"] == device
        return float(differ), 0.0

    return check


def _without_seconds(tables: dict[str, list[dict[str, Any]]]) -> list[Any]:
    return [[{**row, "seconds": 0} for row in rows] for rows in tables.values()]


def difference(first: Tensor, second: Tensor) -> float:
    """‖first - second‖ / ‖first‖."""
    first, second = first.double().cpu(), second.double().cpu()
    return float((first - second).norm() / first.norm())


if __name__ == "__main__":
    sys.exit(main())
