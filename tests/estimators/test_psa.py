"""PSA: exact for two hidden layers, and its expectation by enumeration behind three."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from gradlab.estimators import PSA, cosine, create
from gradlab.estimators import psa as module
from gradlab.evaluation import Params
from gradlab.objectives import TeacherStudent, TestFunction
from tests.estimators import referees

SIGMA = 0.5


def estimate(objective: Any, params: Params, seed: int = 0, name: str = "psa") -> Params:
    options: Any = {"sigma": SIGMA}
    if name == "matched":
        name, options = "ste", {"surrogate": {"name": "matched", "sigma": SIGMA}}
    generator = torch.Generator().manual_seed(seed)
    return create(name, **options).estimate(objective, params, generator=generator).gradient


def several(objective: Any, params: Params, name: str = "psa") -> list[Params]:
    copies = objective.repeated(400)
    return [estimate(copies, params, seed, name) for seed in range(30)]


def exact(objective: referees.Layers, params: Params) -> dict[str, Tensor]:
    return referees.exact_gradients(referees.smoothed_loss, objective, params, SIGMA)[0]


def chances(state: Tensor, hidden: Tensor, weight: Tensor) -> Tensor:
    """P(x_j = state_j | hidden) of every unit, (..., n)."""
    mean = hidden @ weight.T / (SIGMA * hidden.norm(dim=-1, keepdim=True))
    return referees.distribution(state * mean)


def flips(state: Tensor) -> list[Tensor]:
    signs = 1 - 2 * torch.eye(len(state), dtype=state.dtype)
    return list(state * signs)


def expectation(objective: referees.Layers, params: Params) -> dict[str, Tensor]:
    """Of PSA with three hidden layers: every pattern of the first two, every flip of each.

    It is the derivative of a sum in which all that PSA holds fixed is detached.
    """
    leaves = {name: w.double().requires_grad_() for name, w in params.items()}
    first, second, third, output = leaves.values()
    inputs, targets = objective.inputs.double(), objective.targets.double()[:, 0]
    states = list(torch.tensor(list(itertools.product((-1.0, 1.0), repeat=len(first)))).double())

    def behind(state: Tensor) -> Tensor:
        """The expected loss of every example given the second layer, (B,)."""
        parts = [chances(s, state, third).prod() * (s @ output[0] - targets) ** 2 for s in states]
        return torch.stack(parts).sum(dim=0)

    total = torch.zeros((), dtype=torch.float64)
    for a, b in itertools.product(states, states):
        p_a, p_b = chances(a, inputs, first), chances(b, a, second)
        weight = (p_a.prod(dim=1) * p_b.prod()).detach()
        late = torch.stack([behind(b) - behind(flip) for flip in flips(b)]).detach()
        moved = torch.stack([p_b - chances(b, flip, second) for flip in flips(a)]).detach()
        early = moved @ late
        total = total + (weight * (behind(b) + p_b @ late + (p_a.T * early).sum(dim=0))).sum()
    gradients = torch.autograd.grad(total / len(inputs), list(leaves.values()))
    return dict(zip(params, gradients, strict=True))


def test_one_hidden_layer_is_exact_without_variance() -> None:
    objective, params = referees.problem(3, 1, examples=20)
    truth, got = exact(objective, params), estimate(objective, params)
    for name, tensor in got.items():
        torch.testing.assert_close(tensor.double(), truth[name], rtol=1e-4, atol=1e-6)
    again = estimate(objective, params, seed=1)
    assert all(torch.equal(got[name], again[name]) for name in got)


@pytest.mark.parametrize("num_dim", [2, 3])
def test_two_hidden_layers_are_exact_in_expectation(num_dim: int) -> None:
    objective, params = referees.problem(num_dim, 2)
    truth, found = exact(objective, params), several(objective, params)
    assert referees.z_scores(found, truth).abs().max() < 4.5
    assert referees.relative_standard_error(found, truth) < 0.02
    # of which the matched STE's linearization is not capable
    biased = several(objective, params, "matched")
    assert referees.z_scores(biased, truth).abs().max() > 10


@pytest.mark.parametrize(("num_dim", "seed"), [(2, 0), (3, 0), (3, 1)])
def test_behind_three_its_expectation_is_the_enumerated_one(num_dim: int, seed: int) -> None:
    objective, params = referees.problem(num_dim, 3, seed=seed)
    truth, enumerated = exact(objective, params), expectation(objective, params)
    found = several(objective, params)
    assert referees.z_scores(found, enumerated).abs().max() < 4.5
    assert referees.relative_standard_error(found, enumerated) < 0.03
    late = ["layers.1.weight", "layers.2.weight", "layers.3.weight"]
    for name in late:
        torch.testing.assert_close(enumerated[name], truth[name], rtol=1e-9, atol=1e-12)
    # the first layer alone is biased, and less than that of the matched STE
    name = "layers.0.weight"
    bias = float((enumerated[name] - truth[name]).norm() / truth[name].norm())
    biased = torch.stack([g[name].double() for g in several(objective, params, "matched")])
    other = float((biased.mean(dim=0) - truth[name]).norm() / truth[name].norm())
    error = float(biased.std(dim=0).norm() / 30**0.5 / truth[name].norm())
    assert 1e-6 < bias < 0.6 * (other - 3 * error)


def test_it_is_closer_than_the_matched_ste_in_a_network_of_common_width() -> None:
    objective = TeacherStudent(8, 4096, seed=0, depth=3)
    params = objective.initial_params(0)
    generator = torch.Generator().manual_seed(0)
    reference = create("nes_local", passes=400).estimate(objective, params, generator=generator)
    found = {}
    for name, options in {"psa": {"passes": 8}, "ste": {"surrogate": "matched"}}.items():
        got = create(name, **options).estimate(objective, params, generator=generator)
        found[name] = [
            cosine(got.gradient[n], reference.gradient[n]) for n in objective.layer_names
        ]
    assert min(found["psa"]) > 0.98
    assert min(found["psa"]) > min(found["ste"])


def test_after_a_flip_the_means_are_those_that_are_computed_again() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randint(0, 2, (50, 3), generator=generator) * 2.0 - 1.0
    weight = torch.randn(4, 3, generator=generator)
    spread = torch.rand(50, 1, generator=generator) + 0.5
    side, moved = module.after_flips(hidden @ weight.T / spread, hidden, weight, spread)
    for index in range(3):
        flipped = hidden * (1 - 2 * torch.eye(3)[index])
        again = flipped @ weight.T / spread / 2**0.5
        torch.testing.assert_close(side * moved[:, :, index], again)


@pytest.mark.parametrize(("mean", "near", "far"), [(6.4, 5.6, 6.4), (-6.4, 6.4, 7.2)])
def test_differences_keep_their_digits_far_from_zero(mean: float, near: float, far: float) -> None:
    # chances within 1e-7 of one, whose difference in float32 would be noise
    inputs, weight, one = torch.ones(1, 2), torch.tensor([[0.4, 0.0]]), torch.ones(1, 1)
    got = module._secants(torch.tensor([[mean]]), inputs, weight, one, one)
    truth = math.erfc(near / 2**0.5) - math.erfc(far / 2**0.5)
    assert got.tolist() == [[pytest.approx(truth, rel=1e-4), 0.0]]


def test_weights_in_double_precision_give_the_same_numbers() -> None:
    objective = TeacherStudent(4, 500, seed=0)
    params = objective.initial_params(0)
    single = estimate(objective, params)
    double = estimate(objective, {name: w.double() for name, w in params.items()})
    for name, tensor in double.items():
        assert tensor.dtype == torch.float64
        assert (tensor - single[name]).norm() < 1e-4 * tensor.norm()


def test_flips_are_held_by_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = TeacherStudent(8, 1000, seed=0)
    params, sizes = objective.initial_params(0), []
    after = module.after_flips

    def seen(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        found = after(*tensors)
        sizes.append(found[1].numel())
        return found

    monkeypatch.setattr(module, "after_flips", seen)
    estimator = module.PSA()

    def run() -> Params:
        generator = torch.Generator().manual_seed(0)
        return estimator.estimate(objective, params, generator=generator).gradient

    whole = run()
    assert sizes == [64 * 1000] * 2
    monkeypatch.setattr(module, "_BLOCK_FLOATS", 6400)
    pieces = run()
    assert sizes[2:] == [6400] * 20
    for name, tensor in whole.items():
        assert (tensor - pieces[name]).norm() < 1e-5 * tensor.norm()


def test_what_it_cannot_flip_is_refused() -> None:
    for objective, sentence in [
        (TeacherStudent(2, 10, seed=0, weight="binary"), "psa needs real weights"),
        (TeacherStudent(2, 10, seed=0, activation="ternary"), "psa flips signs, and the activ"),
        (TestFunction("quadratic", num_dim=2), "psa perturbs .* TestFunction is not: use nes"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            estimate(objective, objective.initial_params(0))
    with pytest.raises(ValueError, match="sigma is 0: give a finite number above 0"):
        PSA(sigma=0)
    with pytest.raises(ValueError, match="passes is 0: give a whole number of at least 1"):
        PSA(passes=0)


def test_label() -> None:
    assert PSA().label() == "PSA"
    assert PSA(sigma=0.2, passes=3).label() == "PSA (3 passes) σ=0.2"
