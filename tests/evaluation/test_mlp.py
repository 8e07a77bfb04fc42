"""Every path of the population evaluator against a plain float64 loop over members."""

from __future__ import annotations

import itertools
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import Tensor

from gradlab.evaluation import (
    GaussianPopulation,
    LinePopulation,
    MLPEvaluator,
    Params,
    fused,
    mlp_tensors,
)
from gradlab.evaluation.fused import FusedMLPEvaluator
from gradlab.models import BinarizedMLP
from gradlab.models.mlp import ACTIVATIONS, WEIGHTS
from gradlab.objectives import TeacherStudent

every_network = pytest.mark.parametrize(
    ("activation", "weight", "depth"), list(itertools.product(ACTIVATIONS, WEIGHTS, (1, 2, 4)))
)


@pytest.fixture(params=["tables", "vectors", "tensors"], autouse=True)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Look-up tables where the processor has them, its plain vectors, tensor operations."""
    if request.param == "tensors":
        monkeypatch.setattr(MLPEvaluator, "_choice", ("tensors", "this test asks for them"))
    if request.param == "vectors":
        monkeypatch.setattr(
            MLPEvaluator,
            "_fused",
            property(
                lambda self: FusedMLPEvaluator(
                    self.model, self.inputs, self.targets, self.loss, tables=False
                )
            ),
        )
    if request.param == "tables" and not fused.HAS_TABLES:
        pytest.skip("this processor has no AVX-512, so no look-up tables")
    chosen: str = request.param
    return chosen


def plain_forward(model: BinarizedMLP, member: Params, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs (B, m) in float64, and how near each example comes to a threshold."""
    hidden = inputs.double()
    distance = torch.full((len(inputs),), torch.inf, dtype=torch.float64)
    thresholds = model.activation_function.thresholds or ()
    for name in model.layer_names[:-1]:
        weight = member[name].double()
        if model.weight == "binary":
            weight = torch.where(weight >= 0, 1.0, torch.where(weight < 0, -1.0, weight)).double()
        z = hidden @ weight.T
        for threshold in thresholds:
            distance = torch.minimum(distance, (z - threshold).abs().min(dim=1).values)
        if model.activation == "binary":
            hidden = torch.where(z >= 0, 1.0, torch.where(z < 0, -1.0, z)).double()
        elif model.activation == "full":
            hidden = z.clamp(0, 1)
        else:
            steps = {"ternary": 2, "decoupled_ternary": 2, "2bit": 3}[model.activation]
            hidden = torch.floor(z.clamp(0, 1) * steps + 0.5) / steps
    return hidden @ member[model.layer_names[-1]].double().T, distance


def random_network(
    activation: str, weight: str, depth: int, members: int, num_dim: int = 5, batch_size: int = 700
) -> tuple[MLPEvaluator, Params]:
    model = BinarizedMLP(num_dim, depth, activation, weight)
    generator = torch.Generator().manual_seed(depth)
    inputs = torch.randn(batch_size, num_dim, generator=generator)
    targets = torch.randn(batch_size, 1, generator=generator)
    population = {
        name: torch.randn(members, *w.shape, generator=generator)
        for name, w in model.initial_params(generator).items()
    }
    return MLPEvaluator(model, inputs, targets), population


def one(population: Params, member: int) -> Params:
    return {name: w[member] for name, w in population.items()}


@every_network
@pytest.mark.parametrize("num_dim", [1, 3, 5, 8, 9, 22])
def test_losses_are_those_of_exact_arithmetic(
    activation: str, weight: str, depth: int, num_dim: int
) -> None:
    # No example is left out: one sign on the other side would change a loss by some 1e-3.
    evaluator, population = random_network(activation, weight, depth, 9, num_dim, batch_size=333)
    losses = evaluator.losses(population)
    assert losses.dtype == torch.float64
    for member, loss in enumerate(losses.tolist()):
        outputs, _ = plain_forward(evaluator.model, one(population, member), evaluator.inputs)
        expected = float((outputs - evaluator.targets).square().mean())
        assert loss == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("activation", ["binary", "ternary", "2bit"])
def test_pre_activations_within_rounding_of_a_threshold_are_decided_exactly(
    activation: str,
) -> None:
    # z = x + y - (x + y - τ) with large x and y: what float32 says of it is noise
    model = BinarizedMLP(3, 1, activation)
    generator = torch.Generator().manual_seed(1)
    size, large = 4000, 3e4
    edge = (model.activation_function.thresholds or ())[0]
    inputs = torch.randn(size, 3, generator=generator) * large
    inputs[:, 2] = (
        edge - (inputs[:, 0] + inputs[:, 1]) + torch.randn(size, generator=generator) / 99
    )
    population = {"layers.0.weight": torch.ones(1, 3, 3), "layers.1.weight": torch.ones(1, 1, 3)}
    targets = torch.zeros(size, 1)
    evaluator = MLPEvaluator(model, inputs, targets)
    exact, _ = plain_forward(model, one(population, 0), inputs)
    assert float(evaluator.losses(population)[0]) == pytest.approx(
        float(exact.square().mean()), rel=1e-6
    )
    rounded = model.forward(one(population, 0), inputs)
    assert ((rounded[:, 0].double() - exact[:, 0]).abs() > 0.1).sum() > 20


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_many_inputs_and_outputs(activation: str, loss: str) -> None:
    model = BinarizedMLP(11, 2, activation, num_inputs=37, num_outputs=4)
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(300, 37, generator=generator)
    targets = torch.randn(300, 4, generator=generator)
    if loss == "cross_entropy":
        targets = targets.argmax(dim=1)
    evaluator = MLPEvaluator(model, inputs, targets, loss)
    members = [model.initial_params(generator) for _ in range(5)]
    population = {name: torch.stack([m[name] for m in members]) for name in members[0]}
    expected = []
    for member in members:
        outputs, _ = plain_forward(model, member, inputs)
        assert evaluator.outputs(member).shape == (300, 4)
        torch.testing.assert_close(
            evaluator.outputs(member).double(), outputs, rtol=1e-5, atol=1e-6
        )
        function = (
            torch.nn.functional.mse_loss if loss == "mse" else torch.nn.functional.cross_entropy
        )
        goal = targets.double() if loss == "mse" else targets
        expected.append(float(function(outputs, goal)))
    assert evaluator.losses(population).tolist() == pytest.approx(expected, rel=1e-6)
    decreases = evaluator.decreases(members[0], population)
    assert decreases[0] == 0
    changes = [expected[0] - after for after in expected]
    assert decreases.tolist() == pytest.approx(changes, rel=1e-5, abs=1e-9)


def test_bad_batches_are_refused_in_one_sentence() -> None:
    model = BinarizedMLP(4, 1, num_inputs=6, num_outputs=3)
    inputs, targets, labels = torch.randn(5, 6), torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    MLPEvaluator(model, inputs, targets)
    MLPEvaluator(model, inputs, labels, "cross_entropy")
    for arguments, sentence in [
        ((inputs[:, :4], targets), "takes .B, 6."),
        ((inputs, targets[:, :1]), "takes .5, 3."),
        ((inputs, targets, "cross_entropy"), "takes .5,."),
        ((inputs, labels + 1, "cross_entropy"), "labels go from 1 to 3"),
        ((inputs, labels.float(), "cross_entropy"), "int64"),
        ((inputs, targets, "mae"), "mse"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            MLPEvaluator(model, *arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("weight", WEIGHTS)
def test_pre_activations_on_a_threshold_belong_to_the_upper_level(
    activation: str, weight: str
) -> None:
    # quarters times whole numbers: every sum is exact, and many are on a threshold
    model = BinarizedMLP(3, 2, activation, weight)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(-4, 5, (500, 3), generator=generator) / 4
    targets = torch.randint(-2, 3, (500, 1), generator=generator) / 4
    population = {
        name: torch.randint(-1, 2, (8, *w.shape), generator=generator).float()
        for name, w in model.initial_params(generator).items()
    }
    population["layers.0.weight"][0] = 0  # sign(0) = +1, whatever the input
    population["layers.1.weight"][1] = -0.0
    losses = MLPEvaluator(model, inputs, targets).losses(population)
    touching = 0
    for member, loss in enumerate(losses):
        outputs, distance = plain_forward(model, one(population, member), inputs)
        touching += int((distance == 0).sum())
        expected = (outputs - targets).square().mean()
        # thirds, of 2 bits, are the one thing here that float32 rounds
        tolerance = 1e-6 if activation == "2bit" else 1e-14
        assert float(loss) == pytest.approx(float(expected), rel=tolerance)
    assert activation == "full" or activation == "2bit" or touching > 500


def test_zero_weights_output_their_sum_of_plus_ones() -> None:
    model = BinarizedMLP(3, 1)
    evaluator = MLPEvaluator(model, torch.randn(10, 3), torch.zeros(10, 1))
    for zero in (0.0, -0.0):
        params = {
            "layers.0.weight": torch.full((3, 3), zero),
            "layers.1.weight": torch.tensor([[1.0, 2.0, 3.0]]),
        }
        assert evaluator.outputs(params).flatten().tolist() == [6.0] * 10


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_nan_in_one_member_is_the_loss_of_that_member_alone(
    activation: str, weight: str, layer: int
) -> None:
    evaluator, population = random_network(activation, weight, 2, members=20)
    clean = evaluator.losses(population)
    population[f"layers.{layer}.weight"][13, 0, 1] = torch.nan
    losses = evaluator.losses(population)
    assert losses.isnan().nonzero().flatten().tolist() == [13]
    others = torch.arange(20) != 13
    assert torch.equal(losses[others], clean[others])
    origin = {name: w[0] for name, w in population.items()}
    decreases = evaluator.decreases(origin, population)
    assert decreases.isnan().nonzero().flatten().tolist() == [13]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("size", [1e20, torch.inf])
def test_huge_weights_give_the_right_loss_or_none(activation: str, size: float) -> None:
    evaluator, population = random_network(activation, "real", 2, members=4)
    population["layers.0.weight"][1, 2] *= size
    population["layers.1.weight"][2, 0, 0] = size
    population["layers.2.weight"][3, 0, 0] = size
    for member, loss in enumerate(evaluator.losses(population)):
        outputs, _ = plain_forward(evaluator.model, one(population, member), evaluator.inputs)
        expected = float((outputs - evaluator.targets).square().mean())
        unknown = not loss.isfinite()
        assert unknown or float(loss) == pytest.approx(expected, rel=1e-4)
        assert not unknown or expected != expected or expected > 1e30


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_in_the_inputs_is_the_loss_of_every_member(activation: str) -> None:
    evaluator, population = random_network(activation, "real", 2, members=3)
    inputs = evaluator.inputs.clone()
    inputs[17, 2] = torch.nan
    broken = MLPEvaluator(evaluator.model, inputs, evaluator.targets)
    assert broken.losses(population).isnan().all()


@every_network
def test_block_sizes_change_nothing_but_rounding(
    activation: str, weight: str, depth: int, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluator, population = random_network(activation, weight, depth, members=23)
    whole = evaluator.losses(population)
    step = one(population, 0)
    line = LinePopulation(one(population, 1), step, tuple(0.01 * i for i in range(11)))
    decreases = evaluator.decreases(line.origin, line)
    monkeypatch.setattr(mlp_tensors, "block_sizes", lambda *_: (93, 4))
    monkeypatch.setattr(mlp_tensors, "line_block_sizes", lambda *_: (71, 3))
    monkeypatch.setattr(mlp_tensors, "_MEMBER_FLOATS", 300)
    monkeypatch.setattr(fused, "_CHUNK_MEMBERS", 3)
    again = evaluator.losses(population), evaluator.decreases(line.origin, line)
    torch.testing.assert_close(again[0], whole, rtol=1e-6, atol=0)
    torch.testing.assert_close(again[1], decreases, rtol=1e-5, atol=1e-9)
    if path != "tensors":
        assert torch.equal(again[0], whole)
        assert activation == "full" or torch.equal(again[1], decreases)


@pytest.mark.parametrize("antithetic", [True, False])
def test_a_population_that_is_not_held_has_the_losses_of_its_members(antithetic: bool) -> None:
    evaluator, population = random_network("binary", "real", 3, members=1)
    gaussian = GaussianPopulation(one(population, 0), 0.2, 5, 3, 60, antithetic=antithetic)
    assert torch.equal(evaluator.losses(gaussian), evaluator.losses(gaussian.members()))
    line = LinePopulation(one(population, 0), one(population, 0), (0.0, 0.1, 0.3))
    assert torch.equal(evaluator.losses(line), evaluator.losses(line.members()))


@every_network
def test_decreases_of_small_steps_are_those_of_float64(
    activation: str, weight: str, depth: int
) -> None:
    evaluator, population = random_network(activation, weight, depth, members=2, batch_size=2000)
    origin = one(population, 0)
    # a real descent direction, so that the decrease is not a cancelling sum
    inputs, targets = evaluator.inputs, evaluator.targets
    leaves = {name: w.clone().requires_grad_() for name, w in origin.items()}
    outputs = evaluator.model.surrogate_forward(leaves, inputs, None)
    gradients = torch.autograd.grad((outputs - targets).square().mean(), list(leaves.values()))
    direction = {n: g / g.norm() for n, g in zip(origin, gradients, strict=True)}
    lrs = (0.0, 1e-6, 1e-5, 1e-4, 1e-2, 1.0)
    decreases = evaluator.decreases(origin, LinePopulation(origin, direction, lrs))
    assert decreases[0] == 0

    def errors(lr: float) -> tuple[Tensor, Tensor]:
        member = {n: w.double() - lr * direction[n].double() for n, w in origin.items()}
        outputs, distance = plain_forward(evaluator.model, member, inputs)
        return (outputs - targets.double()).square()[:, 0], distance

    before, near_before = errors(0.0)
    for lr, decrease in zip(lrs[1:], decreases[1:].tolist(), strict=True):
        after, near_after = errors(lr)
        expected = float((before - after).mean())
        # Examples within rounding of a threshold: far fewer than the step itself moves across, and
        # with these seeds none on the other side in float32.
        touching = torch.minimum(near_before, near_after) < 1e-7
        assert weight == "binary" or int(touching.sum()) <= 2
        # levels of thirds are rounded in float32
        assert decrease == pytest.approx(expected, rel=1e-6 if activation != "2bit" else 1e-5)


def test_a_step_below_the_rounding_of_the_weights_is_seen_in_the_first_layer() -> None:
    # 1 − 2.9e-8 is 1 in float32, but z = 2⁻²⁴ goes down by four such steps, below zero
    model = BinarizedMLP(4, 1)
    evaluator = MLPEvaluator(model, torch.tensor([[1, 1, 1, 1 - 2.0**-24]]), torch.ones(1, 1))
    origin = {
        "layers.0.weight": torch.tensor([[1.0, 1, -1, -1]]).repeat(4, 1),
        "layers.1.weight": torch.tensor([[1.0, 0, 0, 0]]),
    }
    direction = {
        "layers.0.weight": torch.ones(4, 4),
        "layers.1.weight": torch.zeros(1, 4),
    }
    line = LinePopulation(origin, direction, (0.0, 2.9e-8))
    assert torch.equal(line.members()["layers.0.weight"][1], origin["layers.0.weight"])
    assert evaluator.decreases(origin, line).tolist() == [0.0, -4.0]


def test_decreases_of_a_line_and_of_its_members_agree_for_large_steps() -> None:
    evaluator, population = random_network("binary", "real", 2, members=2)
    origin, direction = one(population, 0), one(population, 1)
    line = LinePopulation(origin, direction, (0.0, 0.1, 0.5, 2.0))
    of_line = evaluator.decreases(origin, line)
    of_members = evaluator.decreases(origin, line.members())
    torch.testing.assert_close(of_line, of_members, rtol=1e-5, atol=1e-7)
    losses = evaluator.losses(line)
    torch.testing.assert_close(of_line, losses[0] - losses, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_dim", [1, 2, 7, 33, 64])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_teachers_own_loss_is_exactly_zero(num_dim: int, activation: str) -> None:
    objective = TeacherStudent(num_dim, 1111, seed=4, activation=activation)
    assert objective.loss(objective.teacher) == 0
    # one or two neurons behind a clip may be silent, teacher and student alike
    assert num_dim <= 2 or objective.loss(objective.initial_params(4)) > 0


def test_memory_does_not_grow_with_the_population() -> None:
    # 3,000 members of 12,352 weights would be 148 MB
    script = textwrap.dedent("""
        import resource, torch
        torch.set_num_threads(1)
        from gradlab.estimators import create
        from gradlab.objectives import TeacherStudent

        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

        objective = TeacherStudent(64, 64, seed=0)
        params = objective.initial_params(0)
        def run(population):
            nes = create("nes", population=population)
            nes.estimate(objective, params, generator=torch.Generator().manual_seed(0))
        run(200)
        before = peak()
        run(3000)
        print(peak() - before)
    """)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 60  # MB


def test_a_step_that_overflows_leaves_the_others_as_exact_as_alone() -> None:
    evaluator, population = random_network("binary", "real", 3, members=2, batch_size=500)
    origin, step = one(population, 0), one(population, 1)
    alone = evaluator.decreases(origin, LinePopulation(origin, step, (1e-5, 0.1)))
    beside = evaluator.decreases(origin, LinePopulation(origin, step, (1e-5, 1e30, 0.1)))
    assert torch.equal(beside[[0, 2]], alone)


@pytest.mark.parametrize("num_dim", [3, 8, 17, 40])
@pytest.mark.parametrize("activation", ["binary", "ternary"])  # thirds of 8-bit weights tie at ½
def test_rounded_members_multiply_exactly(num_dim: int, activation: str) -> None:
    model = BinarizedMLP(num_dim, 2, activation, num_inputs=13)
    generator = torch.Generator().manual_seed(num_dim)
    inputs = torch.randn(300, 13, generator=generator).bfloat16().float()
    evaluator = MLPEvaluator(model, inputs, torch.randn(300, 1, generator=generator))
    mean = model.initial_params(generator)
    rounded = GaussianPopulation(mean, 0.1, 4, 0, 20, rounded=True)
    exact = GaussianPopulation(mean, 0.1, 4, 0, 20)
    for name, members in rounded.members().items():
        assert torch.equal(members, exact.members()[name].bfloat16().float())
    losses = evaluator.losses(rounded)
    for member, loss in enumerate(losses.tolist()):
        outputs, _ = plain_forward(model, one(rounded.members(), member), inputs)
        expected = float((outputs - evaluator.targets).square().mean())
        assert loss == pytest.approx(expected, rel=1e-6)
    assert not torch.equal(losses, evaluator.losses(exact))


def test_what_runs_is_told_in_a_line(path: str) -> None:
    evaluator, population = random_network("binary", "real", 2, members=2)
    assert evaluator.path.count("\n") == 0
    if path == "tensors":
        assert evaluator.path == "tensor operations: this test asks for them"
        with pytest.raises(ValueError, match="does not count"):
            evaluator.settled(population)
    else:
        assert evaluator.path.startswith("compiled")
        assert evaluator.settled(population).tolist() == [0, 0]


def test_parameters_that_do_not_fit_are_refused_and_their_order_is_free() -> None:
    evaluator, population = random_network("binary", "real", 2, members=4)
    losses = evaluator.losses(population)
    backwards = dict(reversed(population.items()))
    assert torch.equal(evaluator.losses(backwards), losses)
    origin, turned = one(population, 0), one(backwards, 0)
    decreases = evaluator.decreases(origin, population)
    assert torch.equal(evaluator.decreases(turned, backwards), decreases)
    found = evaluator.coordinate_differences(turned, 0.1)
    for name, each in evaluator.coordinate_differences(origin, 0.1).items():
        assert torch.equal(found[name], each)
    first = "layers.0.weight"
    for broken in (
        {first: population[first]},
        {**population, "layers.7.weight": population[first]},
        {**population, first: population[first][:, :, :4]},
        {**population, first: population[first][:3]},
    ):
        with pytest.raises(ValueError, match="do not fit this network: layers"):
            evaluator.losses(broken)
    for call in (
        lambda: evaluator.outputs({first: origin[first]}),
        lambda: evaluator.decreases({first: origin[first]}, population),
        lambda: evaluator.coordinate_differences({first: origin[first]}, 0.1),
        lambda: evaluator.losses(GaussianPopulation({first: origin[first]}, 0.1, 1, 0, 2)),
        lambda: evaluator.losses(LinePopulation(origin, {first: origin[first]}, (0.1,))),
    ):
        with pytest.raises(ValueError, match="do not fit this network: layers"):
            call()
