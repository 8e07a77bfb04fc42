"""Gradient sources against closed forms of a linear network with a quadratic loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradlab.evaluation.module.evaluator import ModuleEvaluator
from gradlab.evaluation.module.noisy import NoisyPasses
from gradlab.evaluation.population import Params, Population
from gradlab.studies import noise_gradients
from gradlab.studies.noise_gradients import Pathwise, ScoreFunction, Source, reference_of

SIGMA, DRAWS, LIMIT = 0.5, 600, 5.0


class Smoothed:
    """A module's mean squared error on one batch, as far as gradient sources look."""

    def __init__(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> None:
        self.evaluator = ModuleEvaluator(model, inputs, targets, loss="mse")

    def losses(self, population: Population) -> Tensor:
        return self.evaluator.losses(population)

    def noisy_passes(
        self, params: Params, names: tuple[str, ...], sigma: float, noise: str
    ) -> NoisyPasses:
        return NoisyPasses(self.evaluator, params, names, sigma=sigma, noise=noise)


def linear() -> tuple[Smoothed, Params, Tensor, Tensor]:
    """w·x with its batch: inputs of unequal length, targets."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(6, 3, generator=generator) * torch.tensor([1.0, 0.5, 2.0])
    targets = torch.randn(6, 1, generator=generator)
    model = nn.Sequential(nn.Linear(3, 1, bias=False))
    params = {"0.weight": torch.tensor([[0.7, -1.1, 0.4]])}
    return Smoothed(model, inputs, targets), params, inputs.double(), targets.double()


def drawn(source: Source, objective: Any, params: Params, draws: int = DRAWS) -> Tensor:
    """Estimates, ``(draws, weights)``."""
    draw = source.prepare(objective, params)
    generator = torch.Generator().manual_seed(1)
    rows = [torch.cat([g.flatten() for g in draw(generator).gradient.values()]).double()
            for _ in range(draws)]  # fmt: skip
    return torch.stack(rows)


def z_scores(gradients: Tensor, expected: Tensor) -> Tensor:
    error = gradients.std(dim=0) / math.sqrt(len(gradients))
    return (gradients.mean(dim=0) - expected) / error


def total_variance(gradients: Tensor) -> float:
    return float(gradients.var(dim=0).sum())


@pytest.mark.parametrize("noise", ["weights", "flipout", "preactivations"])
def test_additive_noise_against_the_closed_forms(noise: str) -> None:
    objective, params, x, t = linear()
    gradients = drawn(Pathwise(noise, sigma=SIGMA), objective, params)
    w = params["0.weight"].double()
    second = x.T @ x / len(x)
    expected = (2 * (second @ w.T) - 2 * (x * t).mean(0)[:, None]).flatten()
    assert z_scores(gradients, expected).abs().max() < LIMIT
    # one weight for all examples: 4σ²‖S‖²; independent pre-activations: 4σ² Σ‖x‖⁴/B²
    shared = 4 * SIGMA**2 * float(second.square().sum())
    apart = 4 * SIGMA**2 * float(x.square().sum(1).square().sum()) / len(x) ** 2
    assert apart < 0.7 * shared
    found = total_variance(gradients)
    assert found == pytest.approx(shared if noise == "weights" else apart, rel=0.2)


@pytest.mark.parametrize("noise", ["weights", "preactivations"])
def test_noise_in_proportion_is_held_fixed_or_moves_along(noise: str) -> None:
    objective, params, x, t = linear()
    w = params["0.weight"].double().flatten()
    second = x.T @ x / len(x)
    fixed = 2 * second @ w - 2 * (x * t).mean(0)
    moving = fixed + 2 * SIGMA**2 * second.diagonal() * w
    found = {
        scale: drawn(Pathwise(noise, scale, SIGMA), objective, params)
        for scale in ("relative", "multiplicative")
    }
    assert z_scores(found["relative"], fixed).abs().max() < LIMIT
    assert z_scores(found["multiplicative"], moving).abs().max() < LIMIT
    # each is told from the other
    assert z_scores(found["relative"], moving).abs().max() > 2 * LIMIT
    assert total_variance(found["multiplicative"]) > 1.05 * total_variance(found["relative"])
    if noise == "weights":  # 4 S diag(σ²θ²) S, summed
        exact = 4 * SIGMA**2 * float((second.square() @ w.square()).sum())
        assert total_variance(found["relative"]) == pytest.approx(exact, rel=0.2)


@pytest.mark.parametrize("source", [
    ScoreFunction("weights", population=20, sigma=SIGMA),
    ScoreFunction("examples", passes=4, sigma=SIGMA),
    ScoreFunction("preactivations", passes=4, sigma=SIGMA),
], ids=lambda source: source.noise)  # fmt: skip
def test_score_functions_have_the_same_expectation(source: ScoreFunction) -> None:
    objective, params, x, t = linear()
    gradients = drawn(source, objective, params, 200)
    w = params["0.weight"].double()
    expected = 2 * (x * (x @ w.T - t)).mean(0)
    # local NES differentiates the output layer, whose mirrored passes leave no noise here
    error = gradients.std(0) / math.sqrt(len(gradients))
    assert ((gradients.mean(0) - expected).abs() < LIMIT * error + 1e-5).all()
    assert (float(error.max()) > 1e-3) == (source.noise == "weights")


def hidden() -> tuple[Smoothed, Params]:
    """Two layers with tanh between them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 10, bias=False), nn.Tanh(), nn.Linear(10, 3, bias=False))
    generator = torch.Generator().manual_seed(2)
    inputs, targets = (torch.randn(32, n, generator=generator) for n in (8, 3))
    params = {name: w.detach() for name, w in model.named_parameters() if w.dim() > 1}
    return Smoothed(model, inputs, targets), params


def test_variance_falls_from_weights_to_flipout_to_preactivations() -> None:
    objective, params = hidden()
    found = {
        noise: drawn(Pathwise(noise, sigma=0.3), objective, params, 200)
        for noise in noise_gradients.PATHWISE_NOISES
    }
    weights, flipout, local = (
        total_variance(found[noise]) for noise in ("weights", "flipout", "preactivations")
    )
    assert 1.5 * local < flipout < weights / 1.5
    reference = drawn(Pathwise("preactivations", sigma=0.3, passes=10), objective, params, 40)
    for gradients in found.values():
        gap = gradients.mean(0) - reference.mean(0)
        error = gradients.var(0) / len(gradients) + reference.var(0) / len(reference)
        assert (gap / error.sqrt()).abs().max() < LIMIT
    assert total_variance(reference) == pytest.approx(local / 10, rel=0.3)
    score = drawn(ScoreFunction(population=2, sigma=0.3), objective, params, 40)
    assert total_variance(score) > 10 * weights


def test_estimates_are_a_function_of_the_generator_and_leave_torchs_own_alone() -> None:
    objective, params = hidden()
    before, kept = torch.get_rng_state(), {name: w.clone() for name, w in params.items()}
    first, again = (drawn(Pathwise(), objective, params, 3) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(first[0], first[1])
    assert all(torch.equal(params[name], kept[name]) for name in params)
    own = objective.evaluator.model.get_parameter("0.weight")
    assert torch.equal(own.detach(), params["0.weight"])


def test_where_the_gradient_is_taken() -> None:
    objective, params = hidden()
    moved = {name: w + 1 for name, w in params.items()}
    tiny = Pathwise(sigma=1e-6)
    assert not torch.allclose(
        drawn(tiny, objective, params, 1), drawn(tiny, objective, moved, 1), rtol=1e-3
    )


def test_costs_count_linear_maps() -> None:
    objective, params = hidden()
    generator = torch.Generator().manual_seed(0)

    def cost(source: Source) -> tuple[float, float]:
        (found,) = source.estimates(objective, params, generator=generator)
        return found.forward_passes, found.backward_passes

    assert cost(Pathwise()) == (1, 1)
    assert cost(Pathwise("flipout", passes=3)) == (6, 6)
    assert cost(ScoreFunction(population=8)) == (8, 0)


@pytest.mark.parametrize(("source", "expected"), [
    (Pathwise("weights"), "flipout"),
    (Pathwise("preactivations"), "preactivations"),
    (Pathwise("weights", "multiplicative"), "weights"),
    (ScoreFunction("examples"), "flipout"),
    (ScoreFunction("preactivations"), "preactivations"),
], ids=lambda value: value if isinstance(value, str) else value.label())  # fmt: skip
def test_a_convolution_has_two_smoothings(source: Source, expected: str) -> None:
    assert reference_of(source, {"w": torch.ones(2, 1, 3, 3)}).noise == expected
    assert reference_of(source, {"w": torch.ones(2, 3)}).noise == "preactivations"


@pytest.mark.parametrize(("make", "words"), [
    (lambda: Pathwise("weight"), "did you mean 'weights'"),
    (lambda: Pathwise(noise_scale="relativ"), "did you mean 'relative'"),
    (lambda: Pathwise(sigma=0.0), "sigma is 0.0"),
    (lambda: Pathwise(passes=0), "passes"),
    (lambda: Pathwise("flipout", "multiplicative"), 'use noise_scale = "relative"'),
    (lambda: ScoreFunction("flipout"), "unknown noise 'flipout'"),
    (lambda: ScoreFunction(population=7), "give 8"),
], ids=["noise", "scale", "sigma", "passes", "flipout", "score", "odd"])  # fmt: skip
def test_bad_options_are_refused(make: Callable[[], Source], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
