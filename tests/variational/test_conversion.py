"""Converting networks: what is kept, what is replaced, what is refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradlab.variational.base import LinearMap, StochasticLayer, stochastic_layers
from gradlab.variational.conversion import to_plain, to_variational
from gradlab.variational.methods import REGISTRY
from gradlab.variational.units import Bernoulli, UnitNoiseLinear
from gradlab.variational.weights import Sparse, WeightNoiseConv2d, WeightNoiseLinear


class Convolutional(nn.Module):
    """A network that is not a plain chain, with modules in modules."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 4, 3, stride=2, padding=(2, 1), padding_mode="reflect", **options),
            nn.BatchNorm2d(4, **options),
        )
        self.block = nn.ModuleDict(
            {
                "conv": nn.Conv2d(
                    4, 4, 3, padding="same", dilation=2, groups=2, bias=False, **options
                )
            }
        )
        self.head = nn.Linear(4, 5, **options)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.head((x + self.block["conv"](x)).mean((2, 3)))


def images(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(3, 3, 9, 8, dtype=dtype)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))


def kinds(model: nn.Module) -> dict[str, str]:
    return {name: type(layer).__name__ for name, layer in stochastic_layers(model).items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_noise_a_converted_network_computes_what_it_did(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = Convolutional(dtype=dtype).eval()
    before = copy.deepcopy(model.state_dict())
    noisy = to_variational(model, "sparse")
    x = images(dtype)
    assert torch.equal(noisy(x), model(x))
    assert kinds(noisy) == {
        "stem.0": "WeightNoiseConv2d", "block.conv": "WeightNoiseConv2d",
        "head": "WeightNoiseLinear",
    }  # fmt: skip
    assert not torch.equal(noisy.train()(x), model.train()(x))
    state = noisy.state_dict()
    assert {key: value.dtype for key, value in state.items() if "log_sigma2" in key} == {
        f"{name}.log_sigma2": dtype for name in kinds(noisy)
    }
    assert {key for key in state if "log_sigma2" not in key} == set(before)
    # BatchNorm has learned from the batch above; parameters have not moved
    assert all(torch.equal(state[key], before[key]) for key in before if "running" not in key
               and "num_batches" not in key)  # fmt: skip
    assert not stochastic_layers(model)


def test_layers_can_be_chosen() -> None:
    model = Convolutional()
    assert list(kinds(to_variational(model, "bernoulli", layers="linear"))) == ["head"]
    assert list(kinds(to_variational(model, "bernoulli", layers="conv"))) == [
        "stem.0",
        "block.conv",
    ]
    named = to_variational(model, Sparse(threshold=1.0), layers=["block.conv"])
    assert kinds(named) == {"block.conv": "WeightNoiseConv2d"}
    assert named.get_submodule("block.conv").method == Sparse(threshold=1.0)


def test_names_allow_several_methods() -> None:
    model = to_variational(mlp(), "bernoulli", layers=["0"], p=0.2)
    model = to_variational(model, "sparse", layers=["4"])
    assert kinds(model) == {"0": "UnitNoiseLinear", "4": "WeightNoiseLinear"}
    assert model[0].method == Bernoulli(p=0.2)
    with pytest.raises(ValueError, match="layer 0 is a UnitNoiseLinear already, and layers = 'all' "
                       "mixes methods: name the layers"):  # fmt: skip
        to_variational(model, "sparse")


def test_what_one_method_has_left_can_follow() -> None:
    model = to_variational(Convolutional(), "sparse", layers="conv")
    assert len(kinds(to_variational(model, "sparse", layers="linear"))) == 3
    with pytest.raises(ValueError, match="mixes methods"):
        to_variational(model, "sparse", layers="linear", threshold=2.0)


@pytest.mark.parametrize("in_place", [False, True])
def test_a_module_that_is_used_twice_stays_one(in_place: bool) -> None:
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.Sequential(shared))
    noisy = to_variational(model, "sparse", in_place=in_place)
    assert noisy[0] is noisy[2] is noisy[3][0]
    assert isinstance(noisy[0], WeightNoiseLinear)
    assert (noisy is model) == in_place
    assert (shared is model[0]) != in_place
    plain = to_plain(noisy)
    assert plain[0] is plain[2] is plain[3][0]
    by_other_name = to_variational(nn.Sequential(shared, shared), "sparse", layers=["1", "0"])
    assert by_other_name[0] is by_other_name[1]
    # whose layers make their parameter from a plain weight, which must happen once
    once = to_variational(shared, "bernoulli_weights")
    by_other_name = to_variational(
        nn.Sequential(shared, shared), "bernoulli_weights", layers=["1", "0"]
    )
    assert torch.equal(by_other_name[0].weight, once.weight)


def test_tied_weights_stay_tied_and_frozen_ones_frozen() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    model[0].weight.requires_grad_(False)
    noisy = to_variational(model, "sparse")
    assert noisy[0].weight is noisy[1].weight is not model[0].weight
    assert not noisy[0].weight.requires_grad
    assert noisy[0].log_sigma2.requires_grad


def test_in_place_keeps_the_parameters_that_an_optimizer_holds() -> None:
    model = mlp()
    held = list(model.parameters())
    assert to_variational(model, "sparse", in_place=True) is model
    assert {id(p) for p in held} < {id(p) for p in model.parameters()}


def test_modes_are_kept_one_by_one() -> None:
    model = mlp()
    model[2].eval()
    noisy = to_variational(model, "sparse")
    assert [noisy[i].training for i in (0, 2, 4)] == [True, False, True]
    assert [to_plain(noisy)[i].training for i in (0, 2, 4)] == [True, False, True]


def test_a_layer_is_a_model() -> None:
    layer = nn.Linear(3, 2)
    noisy = to_variational(layer, "sparse")
    assert isinstance(noisy, WeightNoiseLinear)
    assert type(to_plain(noisy)) is nn.Linear
    with pytest.raises(ValueError, match="the model is itself the layer to replace"):
        to_variational(layer, "sparse", in_place=True)


def test_variances_start_within_their_range_for_the_given_weights() -> None:
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0, 1e-3, 1.0], [100.0, 1e-6, 0.1]]))
    options = {"parameterization": "log_sigma2"}
    found = to_variational(model, "variational_b", **options).log_alpha()
    assert float(found.detach().min()) >= -8.0001
    assert float(found.detach().max()) <= 0.0001


@pytest.mark.parametrize("name", REGISTRY.names())
def test_there_and_back(name: str) -> None:
    torch.manual_seed(0)
    model = Convolutional().eval()
    noisy = to_variational(model, name)
    assert len(kinds(noisy)) == 3
    plain = to_plain(noisy)
    assert not stochastic_layers(plain)
    assert kinds(noisy)
    x = images()
    assert torch.equal(plain(x), noisy(x))
    assert [type(m) for m in plain.modules()] == [type(m) for m in model.modules()]
    if all(layer.mean_weight() is layer.weight for layer in stochastic_layers(noisy).values()):
        assert torch.equal(plain(x), model(x))


def test_plain_weights_are_means_and_a_copy() -> None:
    noisy = to_variational(mlp(), "normal_jeffreys")
    nn.init.constant_(noisy[0].z_mean, 2.0)
    plain = to_plain(noisy)
    assert torch.equal(plain[0].weight, 2 * noisy[0].weight)
    with torch.no_grad():
        plain[0].weight.zero_()
    assert (noisy[0].weight != 0).all()
    assert to_plain(noisy, in_place=True) is noisy
    assert type(noisy[0]) is nn.Linear


class Odd(nn.Linear):
    pass


class OddLayer(StochasticLayer):
    pass


def test_subclasses_are_passed_over_unless_named() -> None:
    model = nn.Sequential(nn.Linear(2, 2), Odd(2, 2))
    noisy = to_variational(model, "sparse")
    assert type(noisy[1]) is Odd
    assert isinstance(noisy[0], WeightNoiseLinear)
    with pytest.raises(ValueError, match=r"^layer 1 is a .*Odd: only torch.nn.Linear "
                       r"and torch.nn.Conv2d themselves are supported, no subc"):  # fmt: skip
        to_variational(model, "sparse", layers=["1"])


@pytest.mark.parametrize(
    ("model", "arguments", "sentence"),
    [
        (nn.ReLU(), {}, "the model has no layer of type torch.nn.Linear or torch.nn.Conv2d left"),
        (Odd(2, 2), {}, "the model has no layer of type torch.nn.Linear"),
        (mlp(), {"layers": "conv"}, "the model has no layer of type torch.nn.Conv2d left"),
        (mlp(), {"layers": "convs"}, "unknown kind of layers 'convs': did you mean 'conv'?"),
        (mlp(), {"layers": ["5"]}, "unknown layer '5'. Valid: 0, 2, 4."),
        (mlp(), {"layers": ["1"]}, "layer 1 is a torch.nn.modules.activation.ReLU: only torch.nn."),
        (mlp(), {"layers": []}, "layers is empty: name at least one layer, or give 'all'."),
        (mlp(), {"method": "sparce"}, "unknown variational method 'sparce': did you mean 'sparse'"),
        (mlp(), {"p": 0.5}, "unknown option of variational method sparse 'p'"),
        (
            mlp(),
            {"method": Sparse(), "threshold": 2.0},
            "options threshold come with a method that",
        ),
        (LinearMap(2, 2), {"layers": [""]}, "is a LinearMap already: leave it out, or begin with"),
    ],
)
def test_what_cannot_be_converted_is_refused_in_one_sentence(
    model: nn.Module, arguments: dict[str, Any], sentence: str
) -> None:
    before = [id(module) for module in model.modules()]
    with pytest.raises(ValueError) as refusal:  # noqa: PT011 - the sentence follows
        to_variational(model, **{"method": "sparse", "in_place": True} | arguments)
    assert str(refusal.value).find(sentence) >= 0, str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert [id(module) for module in model.modules()] == before


def test_hooks_are_not_dropped_in_silence() -> None:
    model = mlp()
    handle = model[2].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="layer 2 has hooks, which a new layer would not have"):
        to_variational(model, "sparse")
    handle.remove()
    assert len(kinds(to_variational(model, "sparse"))) == 3


def test_to_plain_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="no stochastic layer: it is plain already"):
        to_plain(mlp())
    with pytest.raises(ValueError, match="layer 0 is a OddLayer: only linear maps and convolutio"):
        to_plain(nn.Sequential(OddLayer()))


def test_types() -> None:
    noisy = to_variational(Convolutional(), "none")
    assert isinstance(noisy.head, LinearMap)
    assert not isinstance(noisy.head, UnitNoiseLinear)
    assert isinstance(to_variational(Convolutional(), "sparse").stem[0], WeightNoiseConv2d)
