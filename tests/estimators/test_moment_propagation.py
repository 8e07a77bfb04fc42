"""Propagated moments against enumeration of all activation patterns."""

from __future__ import annotations

import pytest
import torch

from gradlab.binary import activations
from gradlab.estimators import create
from gradlab.estimators.base import cosine
from gradlab.estimators.moment_propagation import MomentPropagation
from gradlab.estimators.moments import Weight, expected_losses
from gradlab.evaluation import smoothing
from gradlab.objectives import TeacherStudent, TestFunction
from tests.estimators import referees

SIGMA = 0.5
ACTIVATIONS = ["binary", "ternary", "decoupled_ternary", "2bit", "full"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_one_hidden_layer_is_exact(activation: str) -> None:
    objective, params = referees.problem(3, 1, activation)
    exact, _ = referees.exact_gradients(referees.smoothed_loss, objective, params, SIGMA)
    found = MomentPropagation(sigma=SIGMA).estimate(objective, params, generator=generator())
    for name, gradient in found.gradient.items():
        torch.testing.assert_close(gradient.double(), exact[name].double(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_last_layers_of_narrow_networks_are_close(activation: str, seed: int) -> None:
    """Three units, as far from normal as sums can be: a sign more or less is much in layer 1."""
    objective, params = referees.problem(3, 2, activation, seed=seed)
    exact, _ = referees.exact_gradients(referees.smoothed_loss, objective, params, SIGMA)
    found = MomentPropagation(sigma=SIGMA).estimate(objective, params, generator=generator())
    last = list(params)[1:]
    assert all(cosine(found.gradient[name], exact[name]) > 0.93 for name in last)


def test_wide_networks_are_closer_than_the_matched_ste() -> None:
    objective = TeacherStudent(32, 1024, seed=0)
    params = objective.initial_params(1)
    options = {"passes": 4, "draws": 8, "flip_every": 2}
    unbiased = [
        create("moment_nes", **options).estimate(objective, params, generator=generator(seed))
        for seed in range(8)
    ]
    ours = MomentPropagation().estimate(objective, params, generator=generator()).gradient
    ste = create("ste", surrogate="matched")
    matched = ste.estimate(objective, params, generator=generator()).gradient
    for name in params:
        exact = torch.stack([each.gradient[name] for each in unbiased]).mean(0)
        assert cosine(ours[name], exact) > 0.98
        assert 1 - cosine(ours[name], exact) < 0.5 * (1 - cosine(matched[name], exact))


def test_it_is_the_derivative_of_the_expected_loss() -> None:
    objective, params = referees.problem(3, 3)
    wide = {name: w.double() for name, w in params.items()}
    inputs = objective.inputs.double()

    def loss(tensors: list[torch.Tensor]) -> torch.Tensor:
        weights = [Weight.of(w, SIGMA) for w in tensors]
        targets = objective.targets.double()
        return expected_losses(objective, weights, inputs, inputs**2, targets).losses.mean()

    found = MomentPropagation(sigma=SIGMA).estimate(objective, params, generator=generator())
    names = list(objective.layer_names)
    for name in names:
        for index in range(wide[name].numel()):
            ends = []
            for step in (1e-5, -1e-5):
                moved = {n: w.clone() for n, w in wide.items()}
                moved[name].view(-1)[index] += step
                ends.append(loss([moved[n] for n in names]))
            slope = float(ends[0] - ends[1]) / 2e-5
            entry = float(found.gradient[name].view(-1)[index])
            assert entry == pytest.approx(slope, rel=1e-3, abs=1e-5)


def test_slope_is_the_derivative_of_the_first_moment() -> None:
    mean = torch.randn(50, generator=generator(), dtype=torch.float64, requires_grad=True)
    spread = torch.rand(50, generator=generator(1), dtype=torch.float64) + 0.1
    for name in ACTIVATIONS:
        activation = activations.create(name)
        first, _ = smoothing.moments(activation, mean, spread)
        (wanted,) = torch.autograd.grad(first.sum(), mean)
        torch.testing.assert_close(smoothing.slope(activation, mean.detach(), spread), wanted)


def test_binary_weights_have_moments_too() -> None:
    """Against an enumeration of all their signs, in networks of three units."""
    cosines = []
    for seed in range(4):
        objective, params = referees.problem(3, 1, weight="binary", seed=seed)
        exact, _ = referees.exact_gradients(
            referees.smoothed_loss_of_signs, objective, params, SIGMA
        )
        found = MomentPropagation(sigma=SIGMA).estimate(objective, params, generator=generator())
        cosines.append([cosine(found.gradient[name], exact[name]) for name in params])
    first, last = torch.tensor(cosines).mean(0).tolist()
    assert first > 0.85
    assert last > 0.99


def test_moments_of_binary_weights_are_those_of_signs() -> None:
    latent = torch.tensor([[0.3, -0.05, 0.0]], dtype=torch.float64)
    weight = Weight.of(latent, 0.1, binary=True)
    drawn = latent + 0.1 * torch.randn(400_000, 3, generator=generator(), dtype=torch.float64)
    signs = torch.where(drawn >= 0, 1.0, -1.0).double()
    torch.testing.assert_close(weight.mean[0], signs.mean(0), atol=5e-3, rtol=0)
    assert isinstance(weight.variance, torch.Tensor)
    torch.testing.assert_close(weight.variance[0], signs.var(0), atol=5e-3, rtol=0)
    inputs = torch.tensor([[1.0, -1.0, 2.0]], dtype=torch.float64)
    sums = signs @ inputs[0]
    noise = weight.noise(inputs**2)
    assert float(noise) == pytest.approx(float(sums.var()), rel=0.01)


def test_what_has_no_layers_and_a_sigma_of_zero_are_refused() -> None:
    function = TestFunction("quadratic", num_dim=3)
    with pytest.raises(ValueError, match="layers of a layered model, which TestFunction is not"):
        MomentPropagation().estimate(function, function.initial_params(0), generator=generator())
    with pytest.raises(ValueError, match="sigma is 0"):
        MomentPropagation(sigma=0)
    assert MomentPropagation(sigma=0.2).label() == "moment propagation σ=0.2"
