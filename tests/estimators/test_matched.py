"""The matched STE: exact where one layer is smoothed, nearly so behind several."""

from __future__ import annotations

import pytest
import torch

from gradlab.estimators import cosine, create
from gradlab.evaluation import Params
from gradlab.objectives import TeacherStudent
from tests.estimators import referees

SIGMA = 0.5


def matched(objective: referees.Layers, params: Params, seed: int = 0) -> Params:
    estimator = create("ste", surrogate={"name": "matched", "sigma": SIGMA})
    generator = torch.Generator().manual_seed(seed)
    return estimator.estimate(objective, params, generator=generator).gradient


def test_one_sign_layer_is_the_derivative_of_the_error_function_closed_form() -> None:
    # E(y − t)² = (Σ w₂ m − t)² + Σ w₂²(1 − m²) + σ²n with m_j = erf(W_j·x/(σ‖x‖√2)), written out
    # here a second time, by hand
    objective, params = referees.problem(3, 1, examples=20)
    first, second = (w.double().requires_grad_() for w in params.values())
    inputs, targets = objective.inputs.double(), objective.targets.double()
    norm = inputs.norm(dim=1, keepdim=True)
    m = torch.erf(inputs @ first.T / (SIGMA * norm * referees.ROOT_2))
    loss = ((m @ second.T - targets) ** 2 + (1 - m**2) @ second.T**2 + SIGMA**2 * 3).mean()
    by_hand = torch.autograd.grad(loss, [first, second])
    enumerated, _ = referees.exact_gradients(referees.smoothed_loss, objective, params, SIGMA)
    for name, hand in zip(params, by_hand, strict=True):
        torch.testing.assert_close(hand, enumerated[name], rtol=1e-9, atol=1e-12)
        got = matched(objective, params)[name].double()
        torch.testing.assert_close(got, hand, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("activation", ["binary", "ternary", "decoupled_ternary", "2bit", "full"])
def test_at_depth_one_it_is_exact_for_every_activation(activation: str) -> None:
    objective, params = referees.problem(2, 1, activation, examples=20)
    exact, _ = referees.exact_gradients(referees.smoothed_loss, objective, params, SIGMA)
    got = referees.flat(matched(objective, params))
    assert (got - referees.flat(exact)).norm() < 1e-5 * referees.flat(exact).norm()


@pytest.mark.parametrize("activation", ["binary", "ternary", "full"])
def test_the_last_two_layers_are_unbiased(activation: str) -> None:
    objective, params = referees.problem(2, 2, activation)
    exact, _ = referees.exact_gradients(referees.smoothed_loss, objective, params, SIGMA)
    late = ["layers.1.weight", "layers.2.weight"]
    gradients = [matched(objective.repeated(400), params, seed) for seed in range(40)]
    chosen = [{name: gradient[name] for name in late} for gradient in gradients]
    truth = {name: exact[name] for name in late}
    assert referees.z_scores(chosen, truth).abs().max() < 4.5
    assert referees.relative_standard_error(chosen, truth) < 0.03


def test_one_pass_of_a_wide_network_is_close_in_every_layer() -> None:
    objective = TeacherStudent(16, 8192, seed=0, depth=3)
    params = objective.initial_params(0)
    generator = torch.Generator().manual_seed(0)
    reference = create("nes_local", passes=100).estimate(objective, params, generator=generator)
    got = create("ste", surrogate="matched").estimate(objective, params, generator=generator)
    vanilla = create("ste").estimate(objective, params, generator=generator)
    cosines = [cosine(got.gradient[n], reference.gradient[n]) for n in params]
    assert min(cosines) > 0.95
    assert min(cosine(vanilla.gradient[n], reference.gradient[n]) for n in params) < min(cosines)
    norms = [float(got.gradient[n].norm() / reference.gradient[n].norm()) for n in params]
    assert all(0.8 < norm < 1.25 for norm in norms)


def test_what_it_cannot_smooth_is_refused() -> None:
    objective, params = referees.problem(2, 1, weight="binary")
    with pytest.raises(ValueError, match="the matched STE needs real weights"):
        matched(objective, params)
    for surrogate, sentence in [
        ({"name": "matched", "sigma": 0}, "sigma is 0: give a finite number above 0."),
        ({"name": "matched", "width": 1}, "unknown option of surrogate matched 'width'"),
        ("mached", "unknown surrogate 'mached': did you mean 'matched'|Valid: matched"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            create("ste", surrogate=surrogate)
    with pytest.raises(ValueError, match="matched smooths pre-activations, not weights"):
        create("ste", weight_surrogate="matched")
