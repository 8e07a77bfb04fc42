"""The Triton kernels against float64 references: on a GPU, or else in Triton's interpreter."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gradlab.binary.activations import Activation
from gradlab.estimators.nes_local import NESLocal, _Block
from gradlab.evaluation import GaussianPopulation, LinePopulation, Params, gpu, noise
from gradlab.evaluation import population as pop
from gradlab.evaluation.gpu.launch import modules
from gradlab.models import BinarizedMLP
from gradlab.models.mlp import ACTIVATIONS, WEIGHTS


def usable_device() -> tuple[str | None, str]:
    """A device on which kernels run in this process, or why there is none."""
    if torch.cuda.is_available():
        reason = gpu.available("cuda")
        assert reason is None, reason  # on a machine with a GPU that is a failure, not a skip
        return "cuda", ""
    # Triton reads the variable when it is imported, some of it with the first launch; later, no
    # other test shall see it.
    with mock.patch.dict(os.environ, {"TRITON_INTERPRET": "1"}):
        reason = gpu.available("cpu")
        if reason is None:
            gpu.normal(0, (0, 1), (0, 1), device="cpu")
    return (None, reason) if reason else ("cpu", "")


DEVICE, REASON = usable_device()
INSTALLED = "cannot be imported" not in REASON
kernels = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE is None, reason=f"no GPU, no interpreter: {REASON}"),
]
# 1e-5 is some 50 roundings of a float32 pre-activation of order one
NEAR = 1e-5
KEY = 2**63 + 2**31 + 12345


def on_kernels(test: Any) -> Any:
    for mark in kernels:
        test = mark(test)
    return test


@pytest.mark.skipif(DEVICE is not None or not INSTALLED, reason="the others run in this process")
def test_the_kernels_in_a_process_of_their_own() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        command, env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def to_device(params: Params) -> Params:
    return {name: tensor.to(DEVICE) for name, tensor in params.items()}


def plain_outputs(model: BinarizedMLP, member: Params, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs (B, m) in float64, and how near each example comes to a threshold."""
    hidden = inputs.double()
    distance = torch.full((len(inputs),), torch.inf, dtype=torch.float64)
    for name in model.layer_names[:-1]:
        weight = member[name].double()
        if model.weight == "binary":
            weight = torch.where(weight >= 0, 1.0, -1.0).double()
        z = hidden @ weight.T
        for threshold in model.activation_function.thresholds or ():
            distance = torch.minimum(distance, (z - threshold).abs().amin(dim=1))
        hidden = model.activation_function.forward(z)
    return hidden @ member[model.layer_names[-1]].double().T, distance


def plain_losses(outputs: Tensor, targets: Tensor, loss: str) -> Tensor:
    if loss == "mse":
        return (outputs - targets).square().mean(dim=1)
    return torch.nn.functional.cross_entropy(outputs, targets, reduction="none")


def problem(
    model: BinarizedMLP, members: int, batch: int, loss: str = "mse"
) -> tuple[Tensor, Tensor, Params]:
    generator = torch.Generator().manual_seed(model.num_dim + model.depth)
    inputs = torch.randn(batch, model.num_inputs or model.num_dim, generator=generator)
    targets = torch.randn(batch, model.num_outputs, generator=generator)
    if loss != "mse":
        targets = torch.randint(0, model.num_outputs, (batch,), generator=generator)
    params = model.initial_params(generator)
    if members:
        params = {
            name: torch.randn(members, *w.shape, generator=generator) for name, w in params.items()
        }
    return inputs, targets, params


def kernel_losses(
    model: BinarizedMLP, inputs: Tensor, targets: Tensor, population: Any, **options: Any
) -> Tensor:
    if isinstance(population, GaussianPopulation):
        population = replace(population, mean=to_device(population.mean))
    elif isinstance(population, dict):
        population = to_device(population)
    found = gpu.mlp_losses(model, inputs.to(DEVICE), targets.to(DEVICE), population, **options)
    assert found.dtype == torch.float64
    return found.cpu()


def compare(
    model: BinarizedMLP,
    batch: tuple[Tensor, Tensor],
    members: Params,
    found: Tensor,
    loss: str = "mse",
) -> int:
    """Check the losses member by member; the number of examples within rounding of a threshold."""
    inputs, targets = batch
    boundary = 0
    assert len(found) == pop.size(members)
    for member, value in enumerate(found):
        one = {name: w[member] for name, w in members.items()}
        outputs, distance = plain_outputs(model, one, inputs)
        losses = plain_losses(outputs, targets, loss)
        near = int((distance < NEAR).sum())
        boundary += near
        # an example at a threshold may be on either side of it: as much as any example's loss
        allowed = 3e-6 * float(losses.mean()) + near * 4 * float(losses.max()) / len(losses)
        assert abs(float(value) - float(losses.mean())) <= allowed
    return boundary


# ------------------------------------------------------------------------------------------ noise


@on_kernels
@settings(max_examples=8)
@given(
    key=st.integers(0, 2**64 - 1),
    member=st.sampled_from([0, 2**31 - 2, 2**32 - 3, 2**40 + 17, 2**62]),
    members=st.integers(1, 20),
    coordinate=st.integers(0, 9),
    coordinates=st.integers(1, 70),
    stream=st.integers(0, 4),
)
def test_noise_has_the_bits_of_the_reference(
    key: int, member: int, members: int, coordinate: int, coordinates: int, stream: int
) -> None:
    rows, columns = (member, member + members), (coordinate, coordinate + coordinates)
    found = gpu.normal(key, rows, columns, stream=stream, device=DEVICE or "cpu")
    expected = noise.normal_by_tensors(key, rows, columns, stream)
    assert torch.equal(found.cpu().view(torch.int32), expected.view(torch.int32))


@on_kernels
@pytest.mark.parametrize(
    ("start", "stop", "width", "rows", "antithetic", "second"),
    [
        (0, 4, 300, 2, False, True),
        (0, 4, 300, 2, True, False),
        (2**33 - 1, 2**33 + 4, 10, 11, True, True),
        (3, 70, 10, 1, False, False),
    ],
)
def test_weighted_noise_is_that_of_stored_noise(
    start: int, stop: int, width: int, rows: int, antithetic: bool, second: bool
) -> None:
    mean = {"a": torch.zeros(3, 9), "b": torch.zeros(1, width)}
    population = GaussianPopulation(mean, 0.1, KEY, start, stop, antithetic=antithetic)
    weights = torch.randn(rows, stop - start, dtype=torch.float64)
    drawn = population.noise().double()
    first, squares = gpu.weighted_noise(
        replace(population, mean=to_device(mean)), weights.to(DEVICE), second=second
    )
    torch.testing.assert_close(first.cpu(), weights @ drawn, rtol=1e-12, atol=1e-12)
    assert (squares is not None) == second
    if squares is not None:
        # the kernel squares in float32, as the estimator always did
        expected = weights @ (population.noise().square() - 1).double()
        torch.testing.assert_close(squares.cpu(), expected, rtol=1e-12, atol=1e-12)


# ----------------------------------------------------------------------------------------- losses


@on_kernels
@pytest.mark.parametrize(
    ("num_dim", "depth", "batch", "activation", "weight"),
    [
        *((2, 1, 64, *kind) for kind in itertools.product(ACTIVATIONS, WEIGHTS)),
        *((3, 3, 100, *kind) for kind in itertools.product(ACTIVATIONS, ("real",))),
        (33, 2, 71, "binary", "real"),
        (33, 2, 71, "2bit", "binary"),
        (33, 2, 71, "full", "real"),
    ],
)
def test_losses_are_those_of_a_plain_loop(
    num_dim: int, depth: int, batch: int, activation: str, weight: str
) -> None:
    model = BinarizedMLP(num_dim, depth, activation, weight)
    inputs, targets, members = problem(model, members=3, batch=batch)
    found = kernel_losses(model, inputs, targets, members)
    near = compare(model, (inputs, targets), members, found)
    # Behind binary weights and ±1 inputs z is a whole number, exactly zero or far from it.
    exact_zeros = weight == "binary" and activation == "binary" and depth > 1
    assert near == 0 or exact_zeros


@on_kernels
@pytest.mark.parametrize(
    ("num_dim", "depth", "activation", "weight", "antithetic"),
    [
        (16, 3, "binary", "real", True),
        (8, 2, "binary", "real", False),
        (8, 2, "ternary", "real", True),
        (8, 2, "2bit", "binary", True),
        (3, 2, "full", "real", True),
        (3, 2, "full", "real", False),
        (3, 2, "binary", "binary", False),
    ],
)
def test_a_population_drawn_in_the_kernel_has_the_losses_of_its_members(
    num_dim: int, depth: int, activation: str, weight: str, antithetic: bool
) -> None:
    model = BinarizedMLP(num_dim, depth, activation, weight)
    inputs, targets, params = problem(model, members=0, batch=100)
    whole = GaussianPopulation(params, 0.3, KEY, 1, 6, antithetic=antithetic)
    found = kernel_losses(model, inputs, targets, whole)
    near = compare(model, (inputs, targets), whole.members(), found)
    # a threshold has some 20,000 pre-activations here, of which one in 100,000 is that near
    assert near <= 2 or weight == "binary"
    # the same bits, alone or among others
    part = kernel_losses(model, inputs, targets, whole.part(2, 4))
    assert torch.equal(part, found[2:4])


@on_kernels
def test_members_that_exceed_shared_memory_are_read_again_and_again() -> None:
    model = BinarizedMLP(100, depth=3)
    inputs, targets, params = problem(model, members=0, batch=40)
    whole = GaussianPopulation(params, 0.1, KEY, 0, 3, antithetic=True)
    found = kernel_losses(model, inputs, targets, whole)
    assert compare(model, (inputs, targets), whole.members(), found) <= 3


@on_kernels
def test_a_line_has_the_losses_of_its_members() -> None:
    model = BinarizedMLP(5, depth=2)
    inputs, targets, params = problem(model, members=0, batch=50)
    direction = {name: torch.ones_like(w) for name, w in params.items()}
    line = LinePopulation(params, direction, (0.0, 0.01, 1.0))
    moved = LinePopulation(to_device(params), to_device(direction), line.steps)
    found = kernel_losses(model, inputs, targets, moved)
    assert compare(model, (inputs, targets), line.members(), found) == 0


@on_kernels
def test_noise_follows_the_order_of_the_parameters() -> None:
    model = BinarizedMLP(4, depth=2)
    inputs, targets, params = problem(model, members=0, batch=50)
    turned = {name: params[name] for name in reversed(model.layer_names)}
    whole = GaussianPopulation(turned, 0.3, KEY, 0, 4, antithetic=True)
    found = kernel_losses(model, inputs, targets, whole)
    assert compare(model, (inputs, targets), whole.members(), found) == 0


@on_kernels
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
@pytest.mark.parametrize(
    ("activation", "weight", "num_inputs", "num_outputs"),
    [("binary", "real", 20, 10), ("ternary", "binary", 7, 3), ("full", "real", 5, 16)],
)
def test_networks_of_other_inputs_and_outputs(
    loss: str, activation: str, weight: str, num_inputs: int, num_outputs: int
) -> None:
    model = BinarizedMLP(9, 2, activation, weight, num_inputs=num_inputs, num_outputs=num_outputs)
    inputs, targets, params = problem(model, members=0, batch=90, loss=loss)
    whole = GaussianPopulation(params, 0.2, KEY, 0, 4, antithetic=True)
    for population in (whole, whole.members()):
        found = kernel_losses(model, inputs, targets, population, loss=loss)
        near = compare(model, (inputs, targets), whole.members(), found, loss)
        assert near == 0 or weight == "binary"


@on_kernels
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("weight", WEIGHTS)
def test_pre_activations_on_a_threshold_belong_to_the_upper_level(
    activation: str, weight: str
) -> None:
    # quarters times whole numbers: every sum is exact, and many are on a threshold
    model = BinarizedMLP(3, 2, activation, weight)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(-4, 5, (300, 3), generator=generator) / 4
    targets = torch.randint(-2, 3, (300, 1), generator=generator) / 4
    members = {
        name: torch.randint(-1, 2, (4, *shape), generator=generator).float()
        for name, shape in model.shapes.items()
    }
    if activation != "2bit":  # halves put sums of levels on thresholds; thirds round
        members["layers.1.weight"] /= 2
    members["layers.0.weight"][0] = 0  # sign(0) = +1, whatever the input
    members["layers.1.weight"][1] = -0.0
    found = kernel_losses(model, inputs, targets, members)
    touching = 0
    for member, loss in enumerate(found):
        one = {name: w[member] for name, w in members.items()}
        outputs, distance = plain_outputs(model, one, inputs)
        touching += int((distance == 0).sum())
        # thirds, of 2 bits, are the one thing here that float32 rounds
        tolerance = 1e-6 if activation == "2bit" else 1e-14
        expected = float((outputs - targets).square().mean())
        assert float(loss) == pytest.approx(expected, rel=tolerance)
    assert activation == "full" or activation == "2bit" or touching > 100


@on_kernels
@pytest.mark.parametrize("kind", ["stored", "drawn", "pairs"])
def test_the_last_bit_of_a_hidden_weight_decides(kind: str) -> None:
    # behind signs, w1 h1 + w2 h2 with w2 = -(w1 plus or minus one unit in the last place)
    model = BinarizedMLP(2, depth=2)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    targets = torch.tensor([[0.5], [0.25], [-1.0], [2.0]])
    for _ in range(6):
        first = torch.rand(2, generator=generator) + 0.5
        other = torch.nextafter(first, first * torch.tensor([2.0, 0.5]))
        params = {
            "layers.0.weight": torch.eye(2),
            "layers.1.weight": torch.stack((first, -other), dim=1),
            "layers.2.weight": torch.tensor([[1.0, 3.0]]),
        }
        population: Any = {name: w[None] for name, w in params.items()}
        if kind != "stored":  # so near to the mean that they round to it
            population = GaussianPopulation(params, 1e-12, KEY, 0, 2, antithetic=kind == "pairs")
        outputs, _ = plain_outputs(model, params, inputs)
        expected = float((outputs - targets).square().mean())
        found = kernel_losses(model, inputs, targets, population)
        torch.testing.assert_close(found, torch.full_like(found, expected), rtol=1e-9, atol=0)


@on_kernels
def test_the_first_layer_keeps_float32() -> None:
    # x1 w1 + x2 w2 cancels but for 2^-20 of either: some sixteen roundings, too few for less than
    # the six products of parts
    model = BinarizedMLP(2, depth=1)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(1, 2, generator=generator) + 0.5
    first = torch.rand(40, 2, 1, generator=generator) + 0.5
    moved = torch.tensor([1 + 2.0**-20, 1 - 2.0**-20])[:, None].double()
    second = -(first.double() * inputs[0, 0].double() / inputs[0, 1].double()) * moved
    members = {
        "layers.0.weight": torch.cat((first, second.float()), dim=2),
        "layers.1.weight": torch.tensor([[1.0, 3.0]]).repeat(40, 1, 1),
    }
    targets = torch.zeros(1, 1)
    # rows are negative and positive, so that all outputs are -1 + 3
    assert kernel_losses(model, inputs, targets, members).tolist() == [4.0] * 40


@on_kernels
@pytest.mark.parametrize(
    ("layer", "bad", "activation"),
    [
        *((layer, bad, "binary") for layer in range(3) for bad in (torch.nan, torch.inf, -1e20)),
        (1, torch.inf, "full"),
    ],
)
def test_members_that_are_not_finite_are_alone_with_it(
    layer: int, bad: float, activation: str
) -> None:
    model = BinarizedMLP(4, 2, activation)
    inputs, targets, members = problem(model, members=5, batch=60)
    clean = kernel_losses(model, inputs, targets, members)
    members[f"layers.{layer}.weight"][3, 0, 1] = bad
    found = kernel_losses(model, inputs, targets, members)
    outputs = model.forward({name: w[3] for name, w in members.items()}, inputs)
    expected = (outputs - targets).double().square().mean()
    torch.testing.assert_close(found[3], expected, equal_nan=True, rtol=1e-6, atol=0)
    assert torch.equal(found[[0, 1, 2, 4]], clean[[0, 1, 2, 4]])


@on_kernels
@pytest.mark.parametrize("where", ["mean", "inputs"])
def test_nan_in_the_mean_or_the_inputs_is_the_loss_of_every_member(where: str) -> None:
    model = BinarizedMLP(4, 2)
    inputs, targets, params = problem(model, members=0, batch=60)
    (params["layers.1.weight"] if where == "mean" else inputs)[1, 1] = torch.nan
    whole = GaussianPopulation(params, 0.1, KEY, 0, 4, antithetic=True)
    assert kernel_losses(model, inputs, targets, whole).isnan().all()


@on_kernels
def test_a_nan_target_is_the_loss_of_every_member() -> None:
    model = BinarizedMLP(4, 2)
    inputs, targets, members = problem(model, members=2, batch=60)
    targets[59] = torch.nan
    assert kernel_losses(model, inputs, targets, members).isnan().all()


@on_kernels
def test_rounded_members_are_members_rounded() -> None:
    model = BinarizedMLP(8, depth=3)
    inputs, targets, params = problem(model, members=0, batch=100)
    whole = GaussianPopulation(params, 0.2, KEY, 0, 5)
    found = kernel_losses(model, inputs, targets, whole, precision="rounded")
    members = whole.members()
    for name in model.layer_names[:-1]:
        members[name] = members[name].bfloat16().float()
    assert compare(model, (inputs, targets), members, found) <= 2
    assert not torch.equal(found, kernel_losses(model, inputs, targets, whole))


@on_kernels
def test_rounded_pairs_have_a_rounded_first_step() -> None:
    model = BinarizedMLP(8, depth=2)
    inputs, targets, params = problem(model, members=0, batch=100)
    whole = GaussianPopulation(params, 0.2, KEY, 0, 6, antithetic=True)
    found = kernel_losses(model, inputs, targets, whole, precision="rounded")
    members = whole.members()
    drawn = pop.unflatten(whole.noise(), params)["layers.0.weight"].bfloat16().float()
    members["layers.0.weight"] = params["layers.0.weight"] + 0.2 * drawn
    members["layers.1.weight"] = members["layers.1.weight"].bfloat16().float()
    assert compare(model, (inputs, targets), members, found) <= 2


def test_rounding_over_sigma_grows_as_sigma_falls() -> None:
    params = BinarizedMLP(32).initial_params(torch.Generator().manual_seed(0))
    found = [
        gpu.rounding_over_sigma(GaussianPopulation(params, sigma, 1, 0, 100, antithetic=True))
        for sigma in (0.1, 0.01, 0.001)
    ]
    assert found[0] < 0.01 < found[1] < found[2]
    assert gpu.rounding_over_sigma(params) == float("inf")


# -------------------------------------------------------------------------------------- local NES


@dataclass
class Layered:
    """The objective that local NES asks for: squared errors of a layered model."""

    model: BinarizedMLP
    inputs: Tensor
    targets: Tensor

    @property
    def layer_names(self) -> tuple[str, ...]:
        return self.model.layer_names

    @property
    def activation(self) -> Activation:
        return self.model.activation_function

    def expected_losses(self, mean: Tensor, variance: Tensor, targets: Tensor) -> Tensor:
        return ((mean - targets).square() + variance)[:, 0]


@on_kernels
@pytest.mark.parametrize(
    ("num_dim", "depth", "passes", "antithetic", "baseline"),
    [
        (3, 1, 2, True, "noise_free"),
        (8, 2, 3, True, "noise_free"),
        (8, 2, 2, True, "none"),
        (16, 3, 2, False, "noise_free"),
        (33, 2, 1, True, "noise_free"),
        (4, 4, 2, True, "none"),
    ],
)
def test_local_nes_is_the_estimator(
    num_dim: int, depth: int, passes: int, antithetic: bool, baseline: str
) -> None:
    model = BinarizedMLP(num_dim, depth)
    inputs, targets, params = problem(model, members=0, batch=300)
    estimator = NESLocal(sigma=0.2, passes=passes, antithetic=antithetic, baseline=baseline)
    start = 13
    # the referee in float64, fed with the same float32 noise
    objective = Layered(model, inputs.double(), targets.double())
    doubles = {name: w.double() for name, w in params.items()}
    expected = {name: torch.zeros_like(w) for name, w in doubles.items()}
    _Block(estimator, objective, doubles, set(params), KEY, (start, 300)).add_to(expected)
    found = gpu.local_nes_gradient(
        model,
        inputs[start:].to(DEVICE),
        targets[start:].to(DEVICE),
        to_device(params),
        key=KEY,
        sigma=0.2,
        passes=passes,
        antithetic=antithetic,
        baseline=baseline,
        first_example=start,
    )
    assert list(found) == list(params)
    near = near_samples(objective, doubles, passes, antithetic, start)
    assert near == 0  # else a sample may be on the other side of its threshold
    for name, gradient in found.items():
        error = (gradient.cpu() - expected[name]).norm() / expected[name].norm()
        assert float(error) < 3e-6, name


def near_samples(
    objective: Layered, params: Params, passes: int, antithetic: bool, start: int
) -> int:
    """Pre-activations within rounding of zero, of noisy and noise-free passes."""
    inputs = objective.inputs[start:]
    examples = (start, start + len(inputs))
    near = 0
    for number in range(-1, passes):
        hidden = inputs
        for layer, name in enumerate(objective.layer_names[:-2]):
            z = hidden @ params[name].T
            if number >= 0:
                pair = number // 2 if antithetic else number
                drawn = noise.normal(
                    KEY,
                    (pair * 2**32 + examples[0], pair * 2**32 + examples[1]),
                    (0, z.shape[1]),
                    stream=noise.ACTIVATION_STREAM + layer,
                )
                sign = -1 if antithetic and number % 2 else 1
                z = z + 0.2 * hidden.norm(dim=1, keepdim=True) * sign * drawn
            near += int((z.abs() < NEAR / 10).sum())
            hidden = torch.where(z >= 0, 1.0, -1.0).double()
    return near


@on_kernels
def test_the_hazard_keeps_its_digits_in_both_tails() -> None:
    t = torch.linspace(-9, 9, 4001)
    place = t.to(DEVICE)
    out = torch.empty_like(place)
    modules()[2].hazard_kernel[(4,)](place, out, len(t), block=1024)
    wide = t.double()
    tail = 0.5 * torch.special.erfc(wide / 2**0.5)
    expected = torch.exp(-0.5 * wide.square()) / (2 * torch.pi) ** 0.5 / tail
    error = ((out.cpu().double() - expected) / expected).abs()
    # exp of -40 in float32 is off by forty roundings of its argument
    assert float(error[t >= 0].max()) < 1e-6
    assert float(error.max()) < 1e-5


# ---------------------------------------------------------------------------------------- refusals


def test_what_the_kernels_cannot_do_is_said() -> None:
    wide = BinarizedMLP(200, depth=1)
    inputs, targets, members = problem(wide, members=1, batch=5)
    with pytest.raises(ValueError, match="at most 128 wide"):
        gpu.mlp_losses(wide, inputs, targets, members)
    model = BinarizedMLP(4, depth=1)
    inputs, targets, members = problem(model, members=1, batch=5)
    assert gpu.unsupported(model, inputs, members) is None
    assert gpu.unsupported(model, inputs.double(), members) is not None
    with pytest.raises(ValueError, match="cross_entropy"):
        gpu.mlp_losses(model, inputs, targets, members, loss="cross_entrpy")
    with pytest.raises(ValueError, match="rounded"):
        gpu.mlp_losses(model, inputs, targets, members, precision="round")
    with pytest.raises(ValueError, match="Gaussian population"):
        gpu.mlp_losses(model, inputs, targets, members, precision="rounded")


def test_what_the_kernel_of_local_nes_cannot_do_is_said() -> None:
    options: dict[str, Any] = {"key": 1, "sigma": 0.1, "passes": 2}
    for model in (BinarizedMLP(4, 1, "ternary"), BinarizedMLP(4, 1, weight="binary")):
        inputs, targets, params = problem(model, members=0, batch=5)
        with pytest.raises(ValueError, match="binary activations, real weights"):
            gpu.local_nes_gradient(model, inputs, targets, params, **options)
    model = BinarizedMLP(4, 1)
    inputs, targets, params = problem(model, members=0, batch=5)
    with pytest.raises(ValueError, match="mean_field"):
        gpu.local_nes_gradient(model, inputs, targets, params, baseline="mean_field", **options)
    inputs[2, 2] = torch.nan
    with pytest.raises(ValueError, match="finite"):
        gpu.local_nes_gradient(model, inputs, targets, params, **options)


@on_kernels
@pytest.mark.parametrize("wrong", [None, "normal", "mlp_losses", "weighted_noise"])
def test_the_self_check_finds_what_is_wrong(
    wrong: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if wrong is not None:
        right = getattr(gpu, wrong)

        def almost(*args: Any, **options: Any) -> Any:
            found = right(*args, **options)
            return (found[0] * 1.1, found[1]) if isinstance(found, tuple) else found * 1.1

        monkeypatch.setattr(gpu, wrong, almost)
    failure = gpu._self_check(torch.device(DEVICE or "cpu"))
    words = {"normal": "bits of noise", "mlp_losses": "losses", "weighted_noise": "sums"}
    assert failure is None if wrong is None else words[wrong] in str(failure)


def test_a_device_without_kernels_says_why() -> None:
    assert gpu.available("meta") is not None
    if not torch.cuda.is_available():
        assert "sees no GPU" in str(gpu.available("cuda"))


def test_without_triton_there_is_a_reason_and_no_error() -> None:
    script = (
        "import sys; sys.modules['triton'] = None\n"
        "import os; os.environ['TRITON_INTERPRET'] = '1'\n"
        "from gradlab.evaluation import gpu\n"
        "print(gpu.available('cpu'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert "cannot be imported" in done.stdout
