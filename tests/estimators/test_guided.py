"""Guided evolution strategies against exact expectations, and two published mistakes."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gradlab.binary import surrogates
from gradlab.estimators import create, guided
from gradlab.estimators.guided import orthonormal_basis
from gradlab.evaluation import Params
from gradlab.objectives import TeacherStudent, TestFunction
from tests.estimators import referees

DIRECTIONS = {
    "hardtanh": torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64),
    "identity": torch.tensor([0.3, 1.0, -1.0, 1.0], dtype=torch.float64),
    "polynomial": torch.zeros(4, dtype=torch.float64),
}
START = {"x": torch.tensor([0.3, -0.2, 0.55, 0.1], dtype=torch.float64)}


class Steered(TestFunction):
    """A function whose surrogates have gradients of our choice."""

    def surrogate_gradient(self, params: Params, surrogate: Any = None, **_: Any) -> Params:
        for name, direction in DIRECTIONS.items():
            if surrogate == surrogates.create(name):
                return {"x": direction.clone()}
        raise AssertionError(surrogate)


def covariance(names: list[str], alpha: float) -> Tensor:
    """Σ by torch's own QR."""
    basis, _ = torch.linalg.qr(torch.stack([DIRECTIONS[name] for name in names], dim=1))
    return alpha / 4 * torch.eye(4).double() + (1 - alpha) / len(names) * basis @ basis.T


def smoothed_rosenbrock_gradient(cov: Tensor, density: str, dimensions: int) -> Tensor:
    """∇J exactly: the gradient is cubic, so that 3 Gauss-Hermite nodes a dimension are exact.

    Its even part in the step is quadratic, and a uniform density's second moment is that of the
    surface, as wide as the Gaussian, times n/(n + 2).
    """
    objective = TestFunction("rosenbrock", num_dim=4)
    values, vectors = torch.linalg.eigh(cov)
    root = vectors @ torch.diag(values.clamp_min(0).sqrt()) @ vectors.T
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    weights = weights / weights.sum()
    total = torch.zeros(4, dtype=torch.float64)
    for index in itertools.product(range(3), repeat=4):
        at = START["x"] + root @ torch.tensor(nodes[list(index)])
        total += float(weights[list(index)].prod()) * objective.surrogate_gradient({"x": at})["x"]
    if density == "uniform":
        exact = objective.surrogate_gradient(START)["x"]
        total = exact + dimensions / (dimensions + 2) * (total - exact)
    return total


def sample(function: str, seeds: int = 60, **options: Any) -> list[dict[str, Tensor]]:
    objective = Steered(function, num_dim=4)
    estimator = create("guided", **{"population": 400, "sigma": 0.5} | options)
    found = referees.repeated_estimates(estimator, objective, START, seeds)
    return [estimate.gradient for estimate in found]


def worst(gradients: list[dict[str, Tensor]], expected: Tensor) -> float:
    return float(referees.z_scores(gradients, {"x": expected}).abs().max())


# Fixed seeds and the bound 4.5: by t with 59 degrees of freedom an unbiased coordinate exceeds it
# with probability 3e-5, and there are about 120 coordinates here.
@pytest.mark.parametrize("density", ["gaussian", "uniform"])
@pytest.mark.parametrize("form", ["biased", "unbiased"])
@pytest.mark.parametrize("alpha", [0, 0.3, 1])
@pytest.mark.parametrize("names", [["identity"], ["hardtanh", "identity"]], ids=["one", "two"])
def test_expectation_on_rosenbrock(density: str, form: str, alpha: float, names: list[str]) -> None:
    cov = covariance(names, alpha)
    expected = smoothed_rosenbrock_gradient(0.5**2 * cov, density, 4 if alpha > 0 else len(names))
    beta = {}
    if form == "biased":
        expected, beta = 2 * cov @ expected, {"beta": 2}
    elif alpha == 0:
        expected = len(names) * cov @ expected  # projected on the span
    gradients = sample(
        "rosenbrock", population=800, surrogates=names, alpha=alpha, form=form, density=density,
        **beta,
    )  # fmt: skip
    assert worst(gradients, expected) < 4.5
    assert referees.relative_standard_error(gradients, {"x": expected}) < 0.05


def test_expectation_on_a_linear_function_is_the_papers() -> None:
    gradient = torch.linspace(1, 10, 4).double()
    names = ["hardtanh", "identity"]
    expected = 3 * covariance(names, 0.5) @ gradient
    gradients = sample("linear", surrogates=names, beta=3)
    assert worst(gradients, expected) < 4.5
    assert referees.relative_standard_error(gradients, {"x": expected}) < 0.02


def test_the_published_mistakes_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    gradient = torch.linspace(1, 10, 4).double()
    expected = covariance(["hardtanh"], 0.3) @ gradient

    def transposed(directions: list[Tensor]) -> Tensor:
        # QR of (1, n) is ±1, which broadcasts to the same step in every coordinate
        basis, _ = torch.linalg.qr(torch.stack(directions).double())
        return basis * torch.ones(4, 1, dtype=torch.float64)

    options: dict[str, Any] = {"surrogates": ["hardtanh"], "alpha": 0.3}
    assert worst(sample("linear", **options), expected) < 4.5
    with monkeypatch.context() as patch:
        patch.setattr(guided, "orthonormal_basis", transposed)
        assert worst(sample("linear", **options), expected) > 20
    sums = [{"x": 200 * g["x"]} for g in sample("linear", **options)]  # without 1/P
    assert worst(sums, expected) > 20


def test_uniform_steps_have_one_length_in_the_span() -> None:
    seen = []

    class Watched(Steered):
        def losses(self, population: Any) -> Tensor:
            seen.append(population["x"] - START["x"])
            return super().losses(population)

    estimator = create(
        "guided", surrogates=["hardtanh", "identity"], alpha=0, density="uniform", sigma=0.2
    )
    estimator.estimate(Watched("linear", 4), START, generator=torch.Generator().manual_seed(0))
    steps = torch.cat(seen)
    assert torch.allclose(steps.norm(dim=1), torch.full((500,), 0.2).double())
    assert torch.linalg.matrix_rank(steps, rtol=1e-9) == 2


def test_fewer_passes_than_nes_where_the_surrogates_are_right() -> None:
    # what the search is for: at the same cost, a better direction than ordinary NES
    objective = TeacherStudent(8, 2000, seed=0, depth=2)
    params = objective.initial_params(0)
    reference = create("nes", population=40_000, sigma=0.2).estimate(
        objective, params, generator=torch.Generator().manual_seed(100)
    )
    truth = referees.flat(reference.gradient)
    cosines: dict[str, list[float]] = {"guided": [], "nes": []}
    for seed in range(5):
        for name, options in {"guided": {"sigma": 1.0}, "nes": {"sigma": 0.1}}.items():
            estimate = create(name, population=50, **options).estimate(
                objective, params, generator=torch.Generator().manual_seed(seed)
            )
            found = referees.flat(estimate.gradient)
            cosines[name].append(float(found @ truth / found.norm() / truth.norm()))
    assert min(cosines["guided"]) > max(cosines["nes"])


def test_the_basis_spans_what_it_is_given_and_no_more() -> None:
    generator = torch.Generator().manual_seed(0)
    given = torch.randn(3, 50, generator=generator)
    nearly = given[0] * (1 + 1e-7 * torch.randn(50, generator=generator))
    basis = orthonormal_basis([*given, given[0] + given[1], nearly, torch.zeros(50)])
    assert basis.shape == (50, 3)
    torch.testing.assert_close(basis.T @ basis, torch.eye(3).double(), rtol=0, atol=1e-12)
    inside = basis @ (basis.T @ given.T.double())
    torch.testing.assert_close(inside, given.T.double(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("form", ["biased", "unbiased"])
def test_surrogates_without_a_gradient_guide_nowhere(form: str) -> None:
    gradient = torch.linspace(1, 10, 4).double()
    options: dict[str, Any] = {"surrogates": ["polynomial"], "form": form}
    share = 1 if form == "unbiased" else 1 / 4
    assert worst(sample("linear", **options), share * gradient) < 4.5
    assert not any(g["x"].any() for g in sample("linear", seeds=2, alpha=0, **options))


def test_a_gradient_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^a surrogate's gradient has NaN"):
        orthonormal_basis([torch.tensor([1.0, float("nan")])])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"surrogates": []}, r"surrogates is \[\]: give a list of at least one surrogate\."),
        ({"surrogates": "hardtanh"}, "surrogates is 'hardtanh': give a list of at least one"),
        ({"surrogates": ["hardtan"]}, "unknown surrogate 'hardtan': did you mean 'hardtanh'"),
        ({"surrogates": [3]}, "surrogate is 3: give a name or a table"),
        ({"alpha": 1.5}, "alpha is 1.5: give a number from 0 to 1."),
        ({"alpha": -0.1}, "alpha is -0.1: give a finite number of at least 0."),
        ({"beta": 0}, "beta is 0: give a finite number above 0."),
        ({"sigma": float("inf")}, "sigma is inf: give a finite number above 0."),
        ({"form": "unbaised"}, "unknown form 'unbaised': did you mean 'unbiased'"),
        ({"density": "gauss"}, "unknown density 'gauss': did you mean 'gaussian'"),
        ({"form": "unbiased", "beta": 2}, "beta is 2: the unbiased form has no free factor"),
    ],
)
def test_bad_options_are_refused_in_one_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}") as refusal:
        create("guided", **options)
    assert "\n" not in str(refusal.value)


def test_label() -> None:
    assert create("guided").label() == "guided ES 500 hardtanh+identity+polynomial"
    estimator = create(
        "guided", surrogates=["matched"], population=[10, 20], sigma=1, alpha=0, form="unbiased",
        density="uniform",
    )  # fmt: skip
    assert estimator.label() == "guided ES 10/20 matched σ=1 α=0 unbiased uniform"
