"""Weight-space NES against enumeration and analytic smoothed gradients."""

from __future__ import annotations

import math

import pytest
import torch

from gradlab.estimators import create
from gradlab.estimators.nes import weighted_noise
from gradlab.evaluation import GaussianPopulation
from gradlab.objectives import TeacherStudent, TestFunction
from tests.estimators import referees

SIGMA = 0.5


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Fixed seeds and the bound 4.5 throughout: by t with 79 degrees of freedom a coordinate of an
# unbiased estimator exceeds it with probability 2e-5, and there are about 600 coordinates here.
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize(
    ("gradient", "sigma_gradient", "antithetic", "fitness"),
    [
        ("plain", "sigma", True, "centered"),
        ("plain", "log_sigma", False, "raw"),
        ("natural", "sigma", False, "centered"),
        ("natural", "log_sigma", True, "raw"),
    ],
)
def test_binary_weights_agree_with_enumeration_of_all_sign_patterns(
    depth: int, gradient: str, sigma_gradient: str, antithetic: bool, fitness: str
) -> None:
    objective, params = referees.problem(2, depth, weight="binary", examples=8)
    mean, width = referees.exact_gradients(
        referees.smoothed_loss_of_signs, objective, params, SIGMA
    )
    # sigma: as enumerated; log sigma: the chain rule; natural: over 1/σ², 2/σ² and 2 (JMLR 15)
    in_width = 1.0 if sigma_gradient == "sigma" else SIGMA
    if gradient == "natural":
        mean = {name: SIGMA**2 * g for name, g in mean.items()}
        in_width *= SIGMA**2 / 2 if sigma_gradient == "sigma" else 1 / 2
    width = {name: in_width * g for name, g in width.items()}
    estimator = create(
        "nes",
        population=1000,
        sigma=SIGMA,
        gradient=gradient,
        sigma_gradient=sigma_gradient,
        antithetic=antithetic,
        fitness=fitness,
    )
    estimates = referees.repeated_estimates(estimator, objective, params, 80)
    means = [estimate.gradient for estimate in estimates]
    widths = [estimate.sigma_gradient or {} for estimate in estimates]
    assert referees.z_scores(means, mean).abs().max() < 4.5
    assert referees.z_scores(widths, width).abs().max() < 4.5
    assert referees.relative_standard_error(means, mean) < 0.03
    assert referees.relative_standard_error(widths, width) < 0.2


def test_error_falls_at_the_monte_carlo_rate() -> None:
    objective, params = referees.problem(2, 2, weight="binary", examples=8)
    mean, width = referees.exact_gradients(
        referees.smoothed_loss_of_signs, objective, params, SIGMA
    )
    estimator = create("nes", population=[500, 8000], sigma=SIGMA, sigma_gradient="sigma")
    errors = torch.zeros(2, 2, 40)
    for seed in range(40):
        pair = estimator.estimates(objective, params, generator=generator(seed))
        for index, estimate in enumerate(pair):
            for row, (got, exact) in enumerate(
                [(estimate.gradient, mean), (estimate.sigma_gradient, width)]
            ):
                assert got is not None
                errors[row, index, seed] = (referees.flat(got) - referees.flat(exact)).norm()
    root_mean_square = errors.square().mean(dim=-1).sqrt()
    ratios = root_mean_square[:, 0] / root_mean_square[:, 1]
    # √16 = 4; 40 repeats of 10 coordinates leave some 8 % of chance
    assert ((ratios > 3) & (ratios < 5.3)).all(), ratios


@pytest.mark.parametrize("activation", ["binary", "ternary", "2bit", "full"])
def test_real_weights_agree_with_enumeration_of_all_activations(activation: str) -> None:
    objective, params = referees.problem(2, 2, activation)
    mean, width = referees.exact_gradients(referees.smoothed_loss, objective, params, SIGMA)
    estimator = create("nes", population=2000, sigma=SIGMA, sigma_gradient="sigma")
    estimates = referees.repeated_estimates(estimator, objective, params, 80)
    means = [estimate.gradient for estimate in estimates]
    widths = [estimate.sigma_gradient or {} for estimate in estimates]
    assert referees.z_scores(means, mean).abs().max() < 4.5
    assert referees.z_scores(widths, width).abs().max() < 4.5
    assert referees.relative_standard_error(means, mean) < 0.06


@pytest.mark.parametrize(
    ("function", "sigma"),
    [("quadratic", 0.7), ("linear", 0.7), ("rosenbrock", 0.3), ("rastrigin", 0.2)],
)
@pytest.mark.parametrize("antithetic", [True, False])
def test_test_functions_agree_with_their_analytic_smoothed_gradients(
    function: str, sigma: float, antithetic: bool
) -> None:
    objective = TestFunction(function, num_dim=4)
    params = {"x": torch.tensor([0.3, -0.2, 0.55, 0.1], dtype=torch.float64)}
    mean, width = objective.smoothed_gradient(params, sigma)
    estimator = create(
        "nes", population=4000, sigma=sigma, sigma_gradient="sigma", antithetic=antithetic
    )
    estimates = referees.repeated_estimates(estimator, objective, params, 80)
    means = [estimate.gradient for estimate in estimates]
    widths = [estimate.sigma_gradient or {} for estimate in estimates]
    assert referees.z_scores(means, mean).abs().max() < 4.5
    assert referees.relative_standard_error(means, mean) < 0.05
    if function == "linear" and antithetic:  # mirrored pairs cancel: 0 but for rounding
        assert torch.stack([referees.flat(w) for w in widths]).abs().max() < 1e-5
        return
    assert referees.z_scores(widths, width).abs().max() < 4.5


def test_four_members_are_already_unbiased() -> None:
    # Subtracting the mean of all members, instead of the others', would shrink this by 3/4.
    objective = TestFunction("linear", num_dim=1)
    params = {"x": torch.tensor([0.0], dtype=torch.float64)}
    estimator = create("nes", population=4, antithetic=False)
    estimates = referees.repeated_estimates(estimator, objective, params, 600)
    gradients = [estimate.gradient for estimate in estimates]
    exact = {"x": torch.ones(1, dtype=torch.float64)}
    assert referees.z_scores(gradients, exact).abs().max() < 4.5
    assert referees.relative_standard_error(gradients, exact) < 0.25 / 5


def test_nes_is_a_weighted_average_of_coordinate_flips() -> None:
    # ∂J/∂μ_i = φ(a_i)/σ E[f(b_i = +) − f(b_i = −)], and with an epsilon beyond every latent weight
    # that difference is 2ε CDG_i: gradlab's CDG, averaged over all sign patterns, is the gradient.
    objective = TeacherStudent(2, 16, seed=0, depth=2, weight="binary")
    layers = referees.Layers(objective.model, objective.inputs, objective.targets)
    params = {
        name: torch.randn(w.shape, generator=generator())
        for name, w in objective.initial_params(0).items()
    }
    exact, _ = referees.exact_gradients(referees.smoothed_loss_of_signs, layers, params, SIGMA)
    hidden = objective.layer_names[:-1]
    mean = torch.cat([params[name].flatten() for name in hidden]).double()
    epsilon, averaged = 0.1, torch.zeros_like(mean)
    cdg = create("cdg", epsilon=epsilon)
    for index in range(2 ** len(mean)):
        bits = (torch.tensor(index) >> torch.arange(len(mean))) & 1
        signs = 2.0 * bits - 1
        chance = referees.distribution(signs.double() * mean / SIGMA).prod()
        latent = {
            name: 0.05 * signs[4 * layer : 4 * layer + 4].reshape(2, 2)
            for layer, name in enumerate(hidden)
        }
        # the output layer's mean; its noise adds σ²‖h‖², which no sign changes
        latent[objective.layer_names[-1]] = params[objective.layer_names[-1]]
        flips = cdg.estimate(objective, latent, generator=generator()).gradient
        averaged += chance * 2 * epsilon * torch.cat([flips[n].flatten().double() for n in hidden])
    identity = referees.density(mean / SIGMA) / SIGMA * averaged
    truth = torch.cat([exact[name].flatten() for name in hidden])
    torch.testing.assert_close(identity, truth, rtol=1e-5, atol=1e-6 * float(truth.norm()))


def test_nested_populations_are_prefixes_of_one_sample() -> None:
    objective, params = referees.problem(3, 2)
    nested = create("nes", population=[10, 60, 200], sigma_gradient="sigma").estimates(
        objective, params, generator=generator(5)
    )
    for size, inner in zip((10, 60, 200), nested, strict=True):
        alone = create("nes", population=size, sigma_gradient="sigma").estimate(
            objective, params, generator=generator(5)
        )
        assert inner.forward_passes == size
        for name in params:
            torch.testing.assert_close(inner.gradient[name], alone.gradient[name])
        assert inner.diagnostics == pytest.approx(alone.diagnostics, rel=1e-4)


@pytest.mark.parametrize(("start", "stop"), [(0, 50), (20, 50), (7, 50), (7, 8), (8, 31)])
@pytest.mark.parametrize("antithetic", [True, False])
def test_gradient_is_the_weighted_sum_of_the_populations_own_noise(
    antithetic: bool, start: int, stop: int
) -> None:
    _, params = referees.problem(3, 1)
    population = GaussianPopulation(params, 0.1, 17, start, stop, antithetic=antithetic)
    noise = population.noise().double()
    weights = torch.randn(2, stop - start, dtype=torch.float64, generator=generator())
    first, second = weighted_noise(population, weights, second=True)
    assert second is not None
    torch.testing.assert_close(first, weights @ noise, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(second, weights @ (noise**2 - 1), rtol=1e-5, atol=1e-5)


def test_rank_based_fitness_ignores_monotone_transformations_of_the_loss() -> None:
    objective, params = referees.problem(2, 2)

    class Cubed(referees.Layers):
        def losses(self, population: object) -> torch.Tensor:
            return super().losses(population) ** 3 + 7

    cubed = Cubed(objective.model, objective.inputs, objective.targets)
    for fitness, same in [("centered_rank", True), ("utilities", True), ("centered", False)]:
        estimator = create("nes", population=50, fitness=fitness)
        one = estimator.estimate(objective, params, generator=generator())
        two = estimator.estimate(cubed, params, generator=generator())
        assert all(torch.equal(one.gradient[n], two.gradient[n]) for n in params) == same


@pytest.mark.parametrize("fitness", ["raw", "centered", "z_score", "centered_rank", "utilities"])
def test_a_member_without_a_loss_makes_the_gradient_nan(fitness: str) -> None:
    objective, params = referees.problem(2, 1)

    class Broken(referees.Layers):
        def losses(self, population: object) -> torch.Tensor:
            losses = super().losses(population)
            losses[3] = math.nan
            return losses

    broken = Broken(objective.model, objective.inputs, objective.targets)
    estimate = create("nes", population=20, fitness=fitness).estimate(
        broken, params, generator=generator()
    )
    assert all(tensor.isnan().all() for tensor in estimate.gradient.values())


@pytest.mark.parametrize("fitness", ["centered", "z_score", "centered_rank", "utilities"])
def test_a_flat_population_gives_no_direction(fitness: str) -> None:
    objective, params = referees.problem(2, 1)

    class Flat(referees.Layers):
        def losses(self, population: object) -> torch.Tensor:
            return torch.full_like(super().losses(population), 0.1)

    flat = Flat(objective.model, objective.inputs, objective.targets)
    for antithetic in (True, False):
        estimate = create("nes", population=6, fitness=fitness, antithetic=antithetic).estimate(
            flat, params, generator=generator()
        )
        assert referees.flat(estimate.gradient).abs().max() < 1e-14


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"population": 0}, "population is 0: give a whole number of at least 1."),
        ({"population": [10, 2.5]}, "population is 2.5: give a whole number of at least 1."),
        ({"population": [10, "a"]}, "population is 'a': give a whole number of at least 1."),
        ({"population": "500"}, "population is '500': give a whole number of at least 1."),
        ({"population": None}, "population is None: give a whole number of at least 1."),
        ({"population": []}, r"population is \[\]: give one number, or .* in ascending order."),
        ({"population": [20, 10]}, r"population is \[20, 10\]: give one number, or"),
        ({"population": [20, 20]}, r"population is \[20, 20\]: give one number, or"),
        ({"population": 5}, "population is 5: mirrored pairs need an even number; give 6, or"),
        ({"population": 1, "antithetic": False}, "population is 1: centered fitness compares"),
        (
            {"population": 2, "sigma_gradient": "sigma"},
            "population is 2: one mirrored pair has no sigma gradient under centered fitness; use",
        ),
        ({"sigma": 0}, "sigma is 0: give a finite number above 0."),
        ({"sigma": -0.1}, "sigma is -0.1: give a finite number above 0."),
        ({"sigma": math.nan}, "sigma is nan: give a finite number above 0."),
        ({"sigma": "big"}, "sigma is 'big': give a number above 0."),
        ({"gradient": "natrual"}, "unknown gradient 'natrual': did you mean 'natural'. Valid:"),
        ({"fitness": "rank"}, "unknown fitness 'rank': .* Valid: .*centered_rank"),
        ({"sigma_gradient": "logsigma"}, "did you mean 'log_sigma'"),
        ({"antithetic": "false"}, "antithetic is 'false': give true or false."),
        ({"ridge": -1}, "ridge is -1: give a finite number above 0."),
        ({"populaton": 5}, "did you mean 'population'"),
    ],
)
def test_bad_options_are_refused_in_one_sentence(options: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as refusal:
        create("nes", **options)
    assert "\n" not in str(refusal.value)
