r"""Does weight-space NES converge to the enumerated truth at the Monte Carlo rate?

With num_dim 2 and binary weights a network of three hidden layers is one of 2¹² = 4,096 sign
patterns, so the smoothed loss :math:`J(\mu, \sigma) = \sum_s \prod_i \Phi(s_i \mu_i / \sigma_i)
L(s)` is a finite sum (over the output layer's Gaussian weights in closed form), and autograd gives
its exact gradients in μ and in every σ. Measured: the relative error of NES's two gradients, root
mean square over repeats, for populations 10² … 10⁶ (nested in one sample), and its log-log slope.
Bar: within .05 of -1/2.
"""

from __future__ import annotations

import math
import sys

import _common
import numpy as np
import torch
from torch import Tensor

from gradlab.estimators import NES
from gradlab.evaluation import Params
from gradlab.evaluation import population as pop
from gradlab.objectives import TeacherStudent


def main() -> int:
    """Errors, and their slopes."""
    parser = _common.parser(__doc__)
    parser.add_argument("--repeats", type=int, default=10, help="independent samples [10]")
    parser.add_argument("--sigma", type=float, default=0.5, help="width of the smoothing [0.5]")
    options = parser.parse_args()
    _common.start(options)
    populations = [100, 1000, 10_000, 100_000, 1_000_000]
    if options.quick:
        populations, options.repeats = populations[:3], 3
    objective = TeacherStudent(2, 256, seed=0, weight="binary", device=options.device)
    params = objective.initial_params(0)
    exact = exact_gradients(objective, params, options.sigma)
    estimator = NES(population=populations, sigma=options.sigma, sigma_gradient="sigma")
    errors: dict[str, list[list[float]]] = {"mu": [], "sigma": []}
    for repeat in range(options.repeats):
        generator = torch.Generator().manual_seed(repeat)
        estimates = estimator.estimates(objective, params, generator=generator)
        errors["mu"].append([relative_error(e.gradient, exact[0]) for e in estimates])
        errors["sigma"].append(
            [relative_error(e.sigma_gradient or {}, exact[1]) for e in estimates]
        )
    gradients, bars = {}, []
    for name, values in errors.items():
        rms = np.sqrt(np.mean(np.square(values), axis=0))
        slope = float(np.polyfit(np.log(populations), np.log(rms), 1)[0])
        gradients[name] = {
            "relative_errors": values,
            "root_mean_square": rms.tolist(),
            "slope": slope,
        }
        print(f"{name}: slope {slope:.3f}")
        for size, error in zip(populations, rms, strict=True):
            print(f"{size:10,d} members: {error:.5f} of the gradient's norm")
        bars.append(_common.bar(f"{name}: |slope + 1/2|", abs(slope + 0.5), below=0.05))
    results = {"populations": populations, "gradients": gradients}
    return _common.finish("enumeration", options, results, bars)


def exact_gradients(
    objective: TeacherStudent, params: Params, sigma: float
) -> tuple[Tensor, Tensor]:
    """Gradients of the enumerated smoothed loss in μ and σ, flat, in the order of the parameters.

    The expectation is written out here, without a line of gradlab's evaluation.
    """
    device = objective.inputs.device
    names = objective.layer_names
    mean = pop.flatten(params).double().requires_grad_()
    width = torch.full_like(mean, sigma).requires_grad_()
    bits = sum(params[name].numel() for name in names[:-1])
    index = torch.arange(2**bits, device=device)[:, None]
    signs = ((index >> torch.arange(bits, device=device)) & 1).double() * 2 - 1
    hidden = objective.inputs.double().T.expand(len(signs), -1, -1)
    start = 0
    for name in names[:-1]:
        rows, columns = params[name].shape
        weights = signs[:, start : start + rows * columns].reshape(-1, rows, columns)
        hidden = torch.where(weights @ hidden >= 0, 1.0, -1.0).double()
        start += rows * columns
    # E (v·h - t)² over v ~ N(μ, σ²) is (μ·h - t)² + Σ σ_j² h_j².
    error = mean[bits:] @ hidden - objective.targets[:, 0].double()
    losses = (error.square() + width[bits:].square() @ hidden.square()).mean(dim=-1)
    chance = torch.special.ndtr(signs * mean[:bits] / width[:bits]).prod(dim=1)
    smoothed = chance @ losses
    in_mean, in_width = torch.autograd.grad(smoothed, (mean, width))
    return in_mean, in_width


def relative_error(estimate: Params, exact: Tensor) -> float:
    """‖estimate - exact‖ / ‖exact‖."""
    error = float((pop.flatten(estimate).double() - exact).norm() / exact.norm())
    if not math.isfinite(error):
        raise SystemExit("an error is not finite: the exact gradient must not vanish.")
    return error


if __name__ == "__main__":
    sys.exit(main())
