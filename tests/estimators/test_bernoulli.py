"""What estimators for binary weights share: which weights are binary, and what of the others."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradlab.binary.layers import BinaryActivation, BinaryLinear
from gradlab.estimators import create
from gradlab.estimators.bernoulli import SignDistribution, binary_weights, check_population
from gradlab.evaluation import Params
from gradlab.models import BinarizedMLP
from gradlab.objectives import Classification, Network, TeacherStudent, TestFunction
from tests.estimators import referees
from tests.objectives.images import small_images

__all__ = ["small_images"]

UNBIASED: dict[str, dict[str, Any]] = {
    "rao_blackwell_nes": {"population": 100},
    "reinforce": {"population": 100},
    "arm": {"population": 100},
    "disarm": {"population": 100},
    "local_expectation": {"samples": 10},
    "nes_cdg": {"samples": 10},
}
RELAXED: dict[str, dict[str, Any]] = {
    "gumbel_softmax": {"straight_through": True, "temperature": 1.0},
    "reinmax": {},
}
unbiased = pytest.mark.parametrize("name", UNBIASED)
every_name = pytest.mark.parametrize("name", [*UNBIASED, *RELAXED])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def logits_of_signs(scaling: str) -> Classification:
    """Five examples, three classes, six signs."""
    inputs = torch.randn(5, 2, generator=generator(1))
    layer = BinaryLinear(2, 3, scaling=scaling)
    return Classification(layer, inputs, torch.tensor([0, 1, 2, 0, 1]))


def exact_held(objective: Classification, params: Params, sigma: float) -> Tensor:
    """Gradient of Σ P(b) f(α b) with the scales α of the latent weights held, by enumeration."""
    weight = params["weight"].double().requires_grad_()
    scale = 1.0 if objective.model.scaling == "none" else weight.detach().abs().mean(1, True)
    total = torch.zeros((), dtype=torch.float64)
    for pattern in itertools.product((-1.0, 1.0), repeat=weight.numel()):
        signs = torch.tensor(pattern, dtype=torch.float64).reshape(weight.shape)
        loss = F.cross_entropy(objective.inputs.double() @ (scale * signs).T, objective.targets)
        total = total + referees.distribution(signs * weight / sigma).prod() * loss
    return torch.autograd.grad(total, weight)[0]


@unbiased
@pytest.mark.parametrize("scaling", ["none", "channel"])
def test_a_module_is_unbiased_with_its_scales_held(name: str, scaling: str) -> None:
    objective, sigma = logits_of_signs(scaling), 0.4
    params = {"weight": 0.5 * torch.randn(3, 2, generator=generator(2))}
    estimator = create(name, sigma=sigma, **UNBIASED[name])
    if (name, scaling) == ("nes_cdg", "channel"):
        with pytest.raises(ValueError, match=r"nes_cdg chooses the size of latent weights, which "):
            estimator.estimate(objective, params, generator=generator())
        return
    found = referees.repeated_estimates(estimator, objective, params, 40)
    gradients, exact = [e.gradient for e in found], {"weight": exact_held(objective, params, sigma)}
    assert referees.z_scores(gradients, exact).abs().max() < 4.5
    assert referees.relative_standard_error(gradients, exact) < 0.15


@unbiased
def test_two_binary_layers_agree_with_enumeration(name: str) -> None:
    # 60 seeds, t with 59 degrees of freedom, 10 coordinates for each estimator
    objective = TeacherStudent(2, 24, seed=1, depth=2, weight="binary")
    params = {n: 0.5 * w for n, w in objective.initial_params(3).items()}
    layers = referees.Layers(objective.model, objective.inputs, objective.targets)
    exact, _ = referees.exact_gradients(referees.smoothed_loss_of_signs, layers, params, 0.3)
    estimator = create(name, sigma=0.3, **UNBIASED[name])
    found = referees.repeated_estimates(estimator, objective, params, 60)
    gradients = [each.gradient for each in found]
    assert referees.z_scores(gradients, exact).abs().max() < 4.5
    assert referees.relative_standard_error(gradients, exact) < 0.25


@every_name
def test_networks_without_binary_weights_are_refused_in_one_sentence(name: str) -> None:
    for objective in (TeacherStudent(2, 8, seed=0), TestFunction("quadratic", num_dim=2)):
        with pytest.raises(
            ValueError, match=rf"^{name} draws the signs of binary weights, and t"
        ) as e:
            create(name).estimate(objective, objective.initial_params(0), generator=generator())
        assert str(e.value).endswith('has none: use nes, or weight = "binary".')


def test_binary_weights_are_found_wherever_they_are_declared() -> None:
    mlp = Classification(
        BinarizedMLP(3, depth=2, weight="binary", num_outputs=2),
        torch.zeros(4, 3),
        torch.tensor([0, 1, 0, 1]),
    )
    hidden = {"layers.0.weight", "layers.1.weight"}
    assert binary_weights(mlp) == (hidden, set())
    module = nn.Sequential(
        BinaryLinear(3, 4, scaling="learned"),
        BinaryActivation(),
        BinaryLinear(4, 4, scaling="layer"),
        BinaryLinear(4, 4, weight="real"),
        nn.Linear(4, 2),
    )
    wrapped = Classification(module, torch.zeros(4, 3), mlp.targets)
    assert binary_weights(wrapped) == ({"0.weight", "2.weight"}, {"2.weight"})
    assert binary_weights(TestFunction("linear", num_dim=2)) == (set(), set())


@pytest.mark.usefixtures("small_images")
@every_name
def test_a_network_of_images_has_a_gradient_in_its_binary_layers(name: str) -> None:
    objective = Network("mnist", "xnor_mlp", width=4, depth=2, batch_size=16, coordinates=6)
    options = UNBIASED.get(name, RELAXED.get(name, {}))
    found = create(name, **options).estimate(objective, objective.params, generator=generator())
    assert [g.shape for g in found.gradient.values()] == [(6,)] * len(objective.layer_names)
    assert any(g.any() for g in found.gradient.values())


@pytest.mark.parametrize("temperature", [1.0, 1e-4])
def test_relaxed_weights_of_a_module_are_evaluated_between_the_signs(temperature: float) -> None:
    # at 1e-4 every relaxed weight rounds to a sign, and must not be taken for one
    objective = logits_of_signs("none")
    params = {"weight": 0.5 * torch.randn(3, 2, generator=generator(2))}
    estimator = create("gumbel_softmax", sigma=0.4, temperature=temperature)
    found = estimator.estimate(objective, params, generator=generator())
    assert found.gradient["weight"].isfinite().all()
    assert found.gradient["weight"].any() == (temperature == 1.0)
    with pytest.raises(ValueError, match=r"^gumbel_softmax chooses the size of latent weights, wh"):
        estimator.estimate(logits_of_signs("channel"), params, generator=generator())


# but for ARM, whose noise grows with the weight
@pytest.mark.parametrize("name", sorted({*UNBIASED, *RELAXED} - {"arm"}))
def test_weights_far_from_zero_have_next_to_no_gradient(name: str) -> None:
    objective = TeacherStudent(2, 24, seed=1, depth=1, weight="binary")
    params = {n: 100 * w for n, w in objective.initial_params(0).items()}
    params["layers.0.weight"][0, 0] = 0.0
    options = UNBIASED.get(name, RELAXED.get(name, {}))
    variants = [{}, {"gradient": "natural"}] if name == "rao_blackwell_nes" else [{}]
    for more in variants:
        found = create(name, **options, **more).estimate(objective, params, generator=generator())
        gradient = found.gradient["layers.0.weight"]
        assert gradient.isfinite().all()
        assert gradient.flatten()[1:].abs().max() < 1e-6
        assert gradient[0, 0] != 0


def test_magnitudes_are_held_or_chosen_and_never_zero() -> None:
    mean = {"w": torch.tensor([0.0, -2.0]), "v": torch.tensor([3.0])}
    drawn = torch.tensor([-1.0, 0.0, 5.0])
    own = SignDistribution(mean, 0.1, frozenset({"w"})).network_weights(drawn)
    held = SignDistribution(mean, 0.1, frozenset({"w"}), frozenset({"w"})).network_weights(drawn)
    chosen = SignDistribution(mean, 0.1, frozenset({"w"})).network_weights(drawn, size=0.5)
    tiny = torch.finfo(torch.float32).tiny
    assert own["w"].tolist() == [-1.0, tiny]
    assert held["w"].tolist() == [-tiny, 2.0]
    assert chosen["w"].tolist() == [-0.5, 0.5]
    assert own["v"].tolist() == held["v"].tolist() == chosen["v"].tolist() == [5.0]


@pytest.mark.parametrize("population", [0, 1.5, True, "a", None])
def test_a_population_that_is_no_number_of_evaluations_is_refused(population: object) -> None:
    with pytest.raises(
        ValueError, match=r"^population is .*: give a whole number of at least 2\.$"
    ):
        check_population(population, mirrored=False)
