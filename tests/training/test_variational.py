"""Training with noise: the objective by hand, what is logged, resuming, loading, refusing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gradlab import training, variational
from gradlab.training import weights
from gradlab.training.folder import run
from gradlab.training.loop import train_epoch
from gradlab.training.setup import Setup, check, initialize, prepare
from gradlab.training.spec import SpecError
from gradlab.training.state import MODULE, State, derived
from tests.training import tiny

PLAIN: dict[str, Any] = {"model": {"name": "fully_connected", "hidden": [8]}}
SPARSE: dict[str, Any] = {"method": {"name": "sparse", "initial": -3.0}}


def spec(noise: dict[str, Any] | None = None, **changes: Any) -> training.TrainingSpec:
    parts = {**PLAIN, **changes}
    if noise is not None:
        parts["variational"] = noise
    return tiny.spec(**parts)


def ready(noise: dict[str, Any], **changes: Any) -> tuple[Setup, State]:
    return prepare(spec(noise, **changes), tiny.datasets())


def test_the_objective_is_likelihood_plus_weighted_kl_over_the_size_of_the_training_set() -> None:
    noise = {**SPARSE, "samples": 2, "kl_weight": {"name": "linear", "start": 1, "length": 2}}
    setup, state = ready(noise, loop={"epochs": 3})
    _, other = ready(noise, loop={"epochs": 3})
    gradients = setup.gradients(None, state.model, lambda _: None)
    for _ in range(3):
        train_epoch(state, setup, gradients, lambda _: None)

    model, size = other.model, len(setup.datasets.train)
    optimizer = torch.optim.Adam(model.parameters(), lr=float(setup.spec.optimizer["lr"]))
    for layer in variational.stochastic_layers(model).values():
        layer.samples = 2
    for epoch in (1, 2, 3):
        losses, kls = [], []
        torch.manual_seed(derived(setup.spec.seed, MODULE, epoch))
        for images, labels in setup.batches.epoch(epoch):
            optimizer.zero_grad()
            logits = model.train()(torch.cat([images, images]))
            likelihood = F.cross_entropy(logits, torch.cat([labels, labels]))
            divergence = sum(layer.kl() for layer in model.modules()
                             if isinstance(layer, variational.StochasticLayer))  # fmt: skip
            (likelihood + {1: 0.0, 2: 0.5, 3: 1.0}[epoch] * divergence / size).backward()
            optimizer.step()
            variational.project(model)
            losses.append(float(likelihood.detach()))
            kls.append(float(divergence.detach()))
        row = state.rows[epoch - 1]
        assert row["train_nll"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)
        assert row["kl"] == pytest.approx(sum(kls) / len(kls), rel=1e-4)
        assert row["kl_weight_now"] == {1: 0.0, 2: 0.5, 3: 1.0}[epoch]
        whole = row["train_nll"] + row["kl_weight_now"] * row["kl"] / size
        assert row["train_loss"] == pytest.approx(whole, rel=1e-5)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(state.model.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)


def test_an_epoch_says_what_the_mean_one_draw_and_the_kept_weights_do() -> None:
    setup, state = ready({"method": {"name": "sparse", "initial": -3.0, "threshold": 1.5}})
    gradients = setup.gradients(None, state.model, lambda _: None)
    row = train_epoch(state, setup, gradients, lambda _: None)
    evaluation = setup.datasets.evaluation
    assert row["val_accuracy"] == training.evaluate(state.model, evaluation)["accuracy"]
    with variational.pruned(state.model):
        assert row["pruned_loss"] == training.evaluate(state.model, evaluation)["loss"]
    assert row["sample_loss"] != row["val_loss"] != row["pruned_loss"]
    kept = sum(int(layer.mask().sum())  # type: ignore[union-attr]
               for layer in variational.stochastic_layers(state.model).values())  # fmt: skip
    assert kept
    whole = sum(layer["weights"] for layer in state.layers)
    assert row["compression"] == pytest.approx(whole / kept)
    assert [each["epoch"] for each in state.layers] == [1, 1]


@pytest.mark.parametrize("method", [
    {"name": "sparse"},
    {"name": "bayes_by_backprop", "estimator": "weights", "prior": "mixture"},
    {"name": "bernoulli"},
    {"name": "l0"},
], ids=lambda method: method["name"])  # fmt: skip
def test_an_interrupted_run_ends_with_the_same_bits(method: dict[str, Any], tmp_path: Path) -> None:
    given = spec({"method": method, "samples": 2}, loop={"epochs": 3})
    whole = run(given, tmp_path / "whole", datasets=tiny.datasets())
    run(given, tmp_path / "parts", datasets=tiny.datasets(), stop_after=1)
    resumed = run(given, tmp_path / "parts", datasets=tiny.datasets())
    assert tiny.same(tiny.weights(whole.weights), tiny.weights(resumed.weights))
    assert whole.layers == resumed.layers
    for name in ("log_alpha.csv", "kept_inputs.csv"):
        written = tmp_path / "parts" / name
        assert written.exists() == (tmp_path / "whole" / name).exists()
        if method["name"] == "sparse":
            assert written.read_text().startswith("layer,low" if "alpha" in name else "channel,row")
    final = resumed.final["predictions"]
    assert set(final) >= {"mean", "sample", "monte_carlo"}
    assert final["monte_carlo"]["samples"] == 10


def test_weights_say_what_noise_they_belong_to(tmp_path: Path) -> None:
    result = run(spec(SPARSE, loop={"epochs": 1}), tmp_path, datasets=tiny.datasets())
    model, facts = training.build(tmp_path)
    assert facts["variational"]["method"] == SPARSE["method"]
    data = tiny.datasets().evaluation
    found = training.evaluate(model, data)["accuracy"]
    assert found == result.epochs[-1]["val_accuracy"]


def test_plain_weights_start_a_noisy_network(tmp_path: Path) -> None:
    plain = run(spec(loop={"epochs": 2}), tmp_path / "plain", datasets=tiny.datasets())
    start = {"init": {"weights": str(tmp_path / "plain")}, "optimizer": {"lr": 1e-12}}
    noisy = run(spec(SPARSE, loop={"epochs": 1}, **start), tmp_path / "noisy",
                datasets=tiny.datasets())  # fmt: skip
    assert noisy.epochs[0]["val_accuracy"] == plain.epochs[-1]["val_accuracy"]
    before, _ = training.build(plain.weights)
    after, _ = training.build(noisy.weights)
    for name, tensor in before.state_dict().items():
        torch.testing.assert_close(after.state_dict()[name], tensor)


def test_weights_of_sampled_weights_load_into_local_reparameterization(tmp_path: Path) -> None:
    def bayes(estimator: str) -> dict[str, Any]:
        return {"method": {"name": "bayes_by_backprop", "estimator": estimator}}

    sampled = run(spec(bayes("weights"), loop={"epochs": 1}), tmp_path, datasets=tiny.datasets())
    _, local = ready(bayes("local"))
    weights.load_weights(local.model, sampled.weights)
    found, _ = training.build(sampled.weights)
    for name, tensor in found.state_dict().items():
        assert torch.equal(local.model.state_dict()[name], tensor)


def test_noise_that_another_method_cannot_have_is_brought_into_its_range(tmp_path: Path) -> None:
    run(spec(SPARSE, loop={"epochs": 1}), tmp_path, datasets=tiny.datasets())
    change = ["variational.method.name=variational_b",
              "variational.method.parameterization=log_sigma2"]  # fmt: skip
    found = [training.build(tmp_path, overrides=overrides)[0] for overrides in ([], change)]
    before, after = (variational.stochastic_layers(model)["classifier.0"] for model in found)
    assert torch.equal(before.weight, after.weight)
    with torch.no_grad():
        kept, bounded = before.log_alpha(), after.log_alpha()
    assert kept is not None
    assert bounded is not None
    assert float(kept.max()) > 0.1
    torch.testing.assert_close(bounded, kept.clamp(max=0.0), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("file", "network", "words"), [
    ("bernoulli_weights", "sparse", "natural parameters of the method bernoulli_weights"),
    ("bernoulli_weights", None, "natural parameters of the method bernoulli_weights"),
    ("bayes_binn", "bernoulli_weights", "natural parameters of the method bayes_binn"),
    ("bernoulli_weights", "bernoulli_weights", None),
    ("bernoulli", "bernoulli_weights", None),
    (None, "bernoulli_weights", None),
])  # fmt: skip
def test_natural_parameters_are_not_taken_for_weights(
    file: str | None, network: str | None, words: str | None, tmp_path: Path
) -> None:
    def noise(name: str | None) -> dict[str, Any] | None:
        return None if name is None else {"method": {"name": name}}

    source = run(spec(noise(file), loop={"epochs": 1}), tmp_path, datasets=tiny.datasets())
    start = spec(noise(network), init={"weights": str(source.weights)})
    setup, state = prepare(start, tiny.datasets())
    if words is not None:
        with pytest.raises(SpecError, match=words):
            initialize(setup, state)
        return
    initialize(setup, state)
    before, _ = training.build(source.weights)
    layer: Any = state.model.get_submodule("classifier.0")
    given = before.get_submodule("classifier.0").weight
    if file == network:
        assert torch.equal(layer.weight, given)
    else:  # probabilities between .05 and .95, on the side of each weight's sign
        assert float(layer.weight.detach().abs().max()) <= 3
        clear = given.abs() > given.std() * 0.1
        assert torch.equal(layer.weight[clear] > 0, given[clear] > 0)


def test_noise_does_not_decay() -> None:
    setup, state = ready(SPARSE, optimizer={"name": "sgd", "lr": 0.1, "weight_decay": 0.5})
    before = {name: p.detach().clone() for name, p in state.model.named_parameters()}
    for parameter in state.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    state.optimizer.step()
    assert setup.spec.optimizer["weight_decay"] == 0.5
    for name, parameter in state.model.named_parameters():
        factor = 1.0 if "log_sigma2" in name else 0.95
        torch.testing.assert_close(parameter.detach(), factor * before[name])


@pytest.mark.parametrize(("noise", "optimizer", "words"), [
    (SPARSE, {"name": "bop"}, "bop flips binary weights, and the model has none"),
    (SPARSE, {"name": "bayes_binn"}, "needs weights of the method bayes_binn"),
    ({"method": {"name": "bayes_binn"}, "kl_weight": {"name": "linear"}}, {"name": "bayes_binn"},
     "leave out variational.kl_weight"),
    ({"method": {"name": "bayes_binn", "prior": 1.0}}, {"name": "bayes_binn"}, "both the same"),
    (None, {"name": "adam", "betas": [0.9]}, "see torch.optim.Adam"),
    (None, {"name": "adam", "train_size": 5}, "unknown option of optimizer adam 'train_size'"),
])  # fmt: skip
def test_an_optimizer_that_does_not_fit_is_refused_before_any_image_is_read(
    noise: dict[str, Any] | None, optimizer: dict[str, Any], words: str
) -> None:
    with pytest.raises(SpecError, match=words):
        check(spec(noise, optimizer=optimizer))


def test_the_kl_of_bayes_binn_is_the_optimizers_affair() -> None:
    setup, state = ready({"method": {"name": "bayes_binn"}}, optimizer={"name": "bayes_binn"})
    gradients = setup.gradients(None, state.model, lambda _: None)
    row = train_epoch(state, setup, gradients, lambda _: None)
    assert row["kl_weight_now"] is None
    assert row["train_loss"] == pytest.approx(row["train_nll"])
    assert row["kl"] > 0


def test_random_labels_are_the_same_labels_in_another_order() -> None:
    shuffled, _ = prepare(spec(data={"random_labels": True}), tiny.datasets())
    true, _ = prepare(spec(), tiny.datasets())
    again, _ = prepare(spec(data={"random_labels": True}), tiny.datasets())
    labels = shuffled.datasets.train.labels
    assert not torch.equal(labels, true.datasets.train.labels)
    assert torch.equal(labels.bincount(), true.datasets.train.labels.bincount())
    assert torch.equal(labels, again.datasets.train.labels)
    assert torch.equal(shuffled.datasets.evaluation.labels, true.datasets.evaluation.labels)
    assert shuffled.datasets.records != true.datasets.records


@pytest.mark.parametrize(("pixels", "low"), [("symmetric", -1.0), ("unit", 0.0)])
def test_pixels_lie_between_fixed_numbers(pixels: str, low: float) -> None:
    setup, _ = prepare(spec(data={"pixels": pixels}), tiny.datasets(test=True))
    for images in (setup.datasets.train, setup.datasets.evaluation, setup.datasets.test):
        assert images is not None
        expected = low + (1 - low) * images.images.float() / 255
        torch.testing.assert_close(images.batch(), expected)


def test_a_run_from_before_these_options_keeps_its_identity() -> None:
    assert "variational" not in spec().identity()
    assert not {"random_labels", "pixels"} & set(spec().identity()["data"])
    assert spec(SPARSE).digest() != spec().digest()


@pytest.mark.parametrize(("noise", "changes", "words"), [
    ({"method": {"name": "sparce"}}, {}, "unknown variational method 'sparce': did you mean 'spar"),
    ({"method": {}}, {}, "variational.method has no name"),
    ({"method": {"name": "sparse", "threshold": float("nan")}}, {}, "threshold"),
    ({**SPARSE, "kl_weight": {"name": "constant", "scale": -1.0}}, {}, "scale is -1"),
    ({**SPARSE, "kl_weight": {"name": "constent"}}, {}, "did you mean 'constant'"),
    ({**SPARSE, "layers": ["nothing"]}, {}, "unknown layer 'nothing'"),
    ({**SPARSE, "samples": 0}, {}, "variational.samples"),
    ({"method": [{"name": "sparse"}, {"name": "l0"}]}, {}, "variational.method"),
    (SPARSE, {"estimator": {"name": "nes"}}, "noise is trained by backpropagation"),
    (SPARSE, {"model": {"name": "xnor_mlp", "width": 8, "depth": 1},
              "variational": {**SPARSE, "layers": ["hidden.0.linear"]}},
     "hidden.0.linear is a .*BinaryLinear: only torch.nn.Linear and torch.nn.Conv2d"),
])  # fmt: skip
def test_mistakes_are_told_in_one_sentence(
    noise: dict[str, Any], changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(SpecError, match=words) as caught:
        prepare(spec(changes.pop("variational", noise), **changes), tiny.datasets())
    assert "\n" not in str(caught.value)


def test_no_noise_is_plain_backpropagation(tmp_path: Path) -> None:
    plain = run(spec(loop={"epochs": 2}), tmp_path / "plain", datasets=tiny.datasets())
    none = run(spec({"method": {"name": "none"}}, loop={"epochs": 2}), tmp_path / "none",
               datasets=tiny.datasets())  # fmt: skip
    one, other = (nn.ModuleDict({"model": training.build(r.weights)[0]}) for r in (plain, none))
    for name, tensor in one.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor)
    assert none.epochs[0]["kl"] == 0
