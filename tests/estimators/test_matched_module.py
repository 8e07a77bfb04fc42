"""The matched STE of modules: exact behind one smoothed layer, sampled by shared weights before."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradlab.binary import sign
from gradlab.binary.layers import BinaryActivation
from gradlab.estimators import cosine, create
from gradlab.estimators.moments_graph import Propagation
from gradlab.estimators.moments_module import _normals
from gradlab.estimators.moments_tape import Moments
from gradlab.evaluation import Params
from gradlab.evaluation.module.graph import ModuleGraph
from gradlab.objectives import Classification
from tests.estimators import referees
from tests.estimators.module_problems import Residual, Squares, images, layers_as_module

SIGMA = 0.5


def matched(objective: Any, params: Params, seed: int = 0, sigma: float = SIGMA) -> Params:
    estimator = create("ste", surrogate={"name": "matched", "sigma": sigma})
    generator = torch.Generator().manual_seed(seed)
    return estimator.estimate(objective, params, generator=generator).gradient


@pytest.mark.parametrize("activation", ["binary", "ternary", "2bit", "full"])
def test_with_one_hidden_layer_it_is_the_enumerated_gradient(activation: str) -> None:
    layered, params, module, own = layers_as_module(3, 1, activation, "real")
    exact, _ = referees.exact_gradients(referees.smoothed_loss, layered, params, SIGMA)
    found = matched(module, own)
    for wanted, gradient in zip(exact.values(), found.values(), strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("activation", ["binary", "ternary", "full"])
def test_the_last_two_layers_are_unbiased(activation: str) -> None:
    layered, params, module, own = layers_as_module(2, 2, activation, "real")
    exact, _ = referees.exact_gradients(referees.smoothed_loss, layered, params, SIGMA)
    repeated = layered.repeated(100)
    many = Squares(module.evaluator.model, repeated.inputs, repeated.targets)
    late, names = list(params)[1:], list(own)[1:]
    gradients = []
    for seed in range(30):
        found = matched(many, own, seed)
        gradients.append({one: found[other] for one, other in zip(late, names, strict=True)})
    truth = {name: exact[name] for name in late}
    assert referees.z_scores(gradients, truth).abs().max() < 4.5
    assert referees.relative_standard_error(gradients, truth) < 0.06


class TwoSigns(nn.Module):
    def __init__(self, positions: bool) -> None:
        super().__init__()
        shape = (1, 2) if positions else (2, 3)
        self.first = nn.Conv2d(2, 4, shape)
        self.second = nn.Conv2d(4, 3, (2, 2) if positions else 1)
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.head(sign(self.second(sign(self.first(x)))).flatten(1))
        return outputs


class AsLinear(TwoSigns):
    """The same with one position, by linear layers."""

    def forward(self, x: Tensor) -> Tensor:
        x = sign(F.linear(x.flatten(1), self.first.weight.flatten(1), self.first.bias))
        x = sign(F.linear(x, self.second.weight.flatten(1), self.second.bias))
        outputs: Tensor = self.head(x)
        return outputs


def test_a_convolution_of_one_position_is_a_linear_layer() -> None:
    torch.manual_seed(0)
    inputs, targets = torch.randn(6, 2, 2, 3).double(), torch.randn(6, 2).double()
    models = [kind(positions=False).double() for kind in (TwoSigns, AsLinear)]
    models[1].load_state_dict(models[0].state_dict())
    params = {name: w.detach() for name, w in models[0].named_parameters()}
    one, other = (matched(Squares(model, inputs, targets), params) for model in models)
    for name in params:
        torch.testing.assert_close(one[name], other[name], rtol=1e-10, atol=1e-12)
        assert one[name].any()


def test_samples_of_positions_share_the_noise_of_the_weights() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 2, 2, groups=2), BinaryActivation(), nn.Conv2d(2, 1, 2),
                          BinaryActivation(), nn.Flatten()).double()  # fmt: skip
    image, draws = torch.randn(1, 2, 3, 3).double(), 20_000
    state = {name: w.detach() for name, w in model.named_parameters()}
    graph = ModuleGraph(model)
    propagation = Propagation(
        graph, state, list(state), SIGMA, "x", normals=_normals(5, (0, draws), image.device)
    )
    propagation.run(image.expand(draws, -1, -1, -1))
    signs = next(node for node in graph.nodes if node in propagation.sampled)
    convolution = signs.all_input_nodes[0]
    sample = propagation.values[convolution]
    assert isinstance(sample, Tensor)  # it has been seen
    flat = sample.flatten(1)
    slopes = torch.func.jacrev(
        lambda p: torch.func.functional_call(model[0], p, (image,)).flatten()
    )({"weight": state["0.weight"], "bias": state["0.bias"]})
    rows = torch.cat([each.flatten(1) for each in slopes.values()], dim=1)
    wanted = SIGMA**2 * rows @ rows.T
    found = torch.cov(flat.T)
    error = (wanted.diag()[:, None] * wanted.diag() + wanted.square()).sqrt() / draws**0.5
    assert ((found - wanted).abs() / error).max() < 4.5
    mean = model[0](image).flatten()
    assert ((flat.mean(0) - mean).abs() / (wanted.diag() / draws).sqrt()).max() < 4.5
    collapsed = propagation.values[signs]
    assert isinstance(collapsed, Moments)
    assert torch.equal(collapsed.mean.detach().sign(), flat.sign().reshape(collapsed.mean.shape))
    assert not collapsed.variance.any()


def test_rectified_networks_are_unbiased() -> None:
    """Their samples are differentiated as they are, and the last layer has its moments."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1))
    model = model.double()
    inputs, targets = torch.randn(3, 2).double(), torch.randn(3, 1).double()
    params = {name: w.detach() for name, w in model.named_parameters()}
    generator = torch.Generator().manual_seed(0)

    def loss(params: Params) -> Tensor:
        return F.mse_loss(torch.func.functional_call(model, params, (inputs,)), targets)

    draws = 20_000
    noisy = {
        name: w + SIGMA * torch.randn(draws, *w.shape, generator=generator).double()
        for name, w in params.items()
    }
    each = torch.func.vmap(torch.func.grad(loss))(noisy)
    copies = Squares(model, inputs.repeat(200, 1), targets.repeat(200, 1))
    ours = [matched(copies, params, seed) for seed in range(20)]
    for name in params:
        stacked = torch.stack([found[name] for found in ours])
        variance = each[name].var(0) / draws + stacked.var(0) / len(ours)
        distance = (each[name].mean(0) - stacked.mean(0)).abs() / variance.sqrt()
        # by t with at least 19 degrees of freedom exceeded with probability 6e-5
        assert distance.max() < 5


def test_it_is_near_the_propagated_gradient_of_a_convolutional_network() -> None:
    torch.manual_seed(0)
    model = Residual().eval()
    inputs = images(48)
    labels = (inputs.mean((1, 2, 3)) > 0).long() + (inputs[:, 0, 2, 2] > 0).long()
    objective = Classification(model, inputs, labels)
    params = {name: w.detach() for name, w in model.named_parameters()}
    wanted = create("moment_propagation").estimate(
        objective, params, generator=torch.Generator()
    ).gradient  # fmt: skip
    several = [matched(objective, params, seed, 0.1) for seed in range(6)]
    vanilla = create("ste").estimate(objective, params, generator=torch.Generator()).gradient
    for name in ("second.weight", "third.weight", "head.weight"):
        found = cosine(torch.stack([each[name] for each in several]).mean(0), wanted[name])
        assert found > 0.9
        assert cosine(vanilla[name], wanted[name]) < found
    assert not torch.equal(several[0]["second.weight"], several[1]["second.weight"])


def test_blocks_seeds_cost_and_nothing_is_changed() -> None:
    torch.manual_seed(0)
    model, inputs, labels = Residual().eval(), images(10), torch.arange(10) % 3
    objective = Classification(model, inputs, labels)
    params = objective.initial_params(0)
    before = {name: w.clone() for name, w in params.items()}
    estimator = create("ste", surrogate="matched")
    estimate, again, other = (
        estimator.estimate(objective, params, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    )
    small = Classification(model, inputs, labels, memory_bytes=2**20)
    blocks = matched(small, params, 0, 0.1)
    for name, gradient in estimate.gradient.items():
        assert gradient.shape == params[name].shape
        assert torch.equal(gradient, again.gradient[name])
        torch.testing.assert_close(blocks[name], gradient, rtol=1e-3, atol=1e-5)
        assert torch.equal(params[name], before[name])
    assert not torch.equal(estimate.gradient["stem.weight"], other.gradient["stem.weight"])
    # of four layers the last two have their moments followed to three outputs
    assert estimate.forward_passes == estimate.backward_passes == 3 + 7 / 2


def test_what_has_no_rule_is_refused_by_its_name() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 3))
    objective = Classification(model, torch.randn(3, 4), torch.arange(3))
    with pytest.raises(ValueError, match="the matched STE has no rule for layernorm"):
        matched(objective, objective.initial_params(0))
    normal = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 3))
    coupled = Classification(normal.train(), images(3), torch.arange(3))
    with pytest.raises(ValueError, match=r"couples the examples .* call model\.eval\(\)"):
        matched(coupled, coupled.initial_params(0))


def test_samples_have_the_variance_that_they_are_differentiated_with() -> None:
    """Also of noise in front of the first layer, which no sample brings along."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1), BinaryActivation(), nn.Linear(1, 1),
                          BinaryActivation(), nn.Linear(1, 1)).double().eval()  # fmt: skip
    inputs = torch.randn(1, 3).double().expand(20_000, 3)
    params = {name: w.detach() for name, w in model.named_parameters()}

    def normals(stream: int, numbers: int) -> Tensor:
        generator = torch.Generator().manual_seed(stream)
        return torch.randn(len(inputs), numbers, generator=generator).double()

    graph, state = ModuleGraph(model), {**params, **dict(model.named_buffers())}
    found = []
    for draws in (normals, None):
        propagation = Propagation(graph, state, list(params), 0.5, "x", normals=draws)
        propagation.run(inputs)
        found += [value for node, value in propagation.values.items() if node.target == "1"]
    sample, moments = found
    # its standard error is √(2/20,000) of it, a little more where it is not normal
    assert abs(float(sample.var()) / float(moments.variance[0, 0]) - 1) < 0.06
