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
from gradlab.training.setup import Setup, prepare
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


def test_symmetric_pixels_lie_between_minus_one_and_one() -> None:
    setup, _ = prepare(spec(data={"pixels": "symmetric"}), tiny.datasets(test=True))
    for images in (setup.datasets.train, setup.datasets.evaluation, setup.datasets.test):
        assert images is not None
        torch.testing.assert_close(images.batch(), images.images.float() / 127.5 - 1)


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
