"""Gradients of a step: backpropagation against autograd, estimators against their own contract."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradlab import estimators, models
from gradlab.binary import surrogates
from gradlab.objectives import Classification
from gradlab.training.gradients import (
    Backpropagation,
    Estimated,
    calibrate,
    loss_and_correct,
)
from tests.training import tiny


def batch(number: int = 16, seed: int = 0) -> tuple[Tensor, Tensor]:
    data = tiny.images(number, seed)
    return data.batch(), data.labels


def network(**options: Any) -> nn.Module:
    torch.manual_seed(1)
    shape: dict[str, Any] = {"input_shape": tiny.SHAPE, "num_classes": 3, "width": 8, "depth": 1}
    model: nn.Module = models.create("xnor_mlp", **{**shape, **options})
    return model


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_the_loss_is_cross_entropy_of_labels_and_of_soft_targets() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    loss, correct = loss_and_correct(logits, labels, 0.0)
    soft, soft_correct = loss_and_correct(logits, F.one_hot(labels, 3).float(), 0.0)
    assert float(loss) == pytest.approx(float(soft))
    assert int(correct) == int(soft_correct) == int((logits.argmax(1) == labels).sum())
    smoothed, _ = loss_and_correct(logits, labels, 0.3)
    by_hand = 0.7 * loss + 0.3 * -logits.log_softmax(1).mean()
    assert float(smoothed) == pytest.approx(float(by_hand))


def test_backpropagation_is_autograds() -> None:
    images, labels = batch()
    model, other = network(), network()
    loss, correct = Backpropagation(model)(images, labels, 0)
    logits = other(images)
    expected = F.cross_entropy(logits, labels)
    expected.backward()
    assert torch.equal(loss, expected.detach())
    assert int(correct) == int((logits.argmax(1) == labels).sum())
    assert tiny.same(gradients(model), gradients(other))
    assert tiny.same(model.state_dict(), other.state_dict())


def test_bfloat16_is_autocast() -> None:
    images, labels = batch()
    model, exact = network(), network()
    loss, _ = Backpropagation(model, precision="bfloat16")(images, labels, 0)
    wanted, _ = Backpropagation(exact)(images, labels, 0)
    assert loss.dtype == torch.float32
    assert float(loss) != float(wanted)
    assert float(loss) == pytest.approx(float(wanted), rel=0.2)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_estimated_ste_is_backpropagation_of_the_network_in_evaluation_mode(
    smoothing: float,
) -> None:
    images, labels = batch()
    model, other = network(surrogate="polynomial"), network(surrogate="polynomial")
    ste = estimators.create("ste", surrogate="polynomial", weight_surrogate="hardtanh")
    loss, correct = Estimated(model, ste, smoothing)(images, labels, 0)

    other.train()
    with torch.no_grad():
        logits = other(images)
    expected = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    assert float(loss) == pytest.approx(float(expected))
    assert int(correct) == int((logits.argmax(1) == labels).sum())
    F.cross_entropy(other.eval()(images), labels, label_smoothing=smoothing).backward()
    found, wanted = gradients(model), gradients(other)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)


def test_an_estimated_step_moves_statistics_once_and_parameters_not_at_all() -> None:
    images, labels = batch()
    model, other = network(), network()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    by_nes = Estimated(model, estimators.create("nes", population=6))
    for step in range(3):
        by_nes(images, labels, step)
        other(images)
    assert tiny.same(before, dict(model.named_parameters()))
    assert tiny.same(dict(model.named_buffers()), dict(other.named_buffers()))
    assert by_nes.cost == (7.0, 0.0)
    assert by_nes.label == "NES 6"


def test_a_step_sees_its_own_batch_and_statistics() -> None:
    """Programs are shared between steps; the estimate must be that of a fresh objective."""
    model = network()
    nes = estimators.create("nes", population=10)
    shared = Estimated(model, nes, seed=5)
    for step, number in enumerate((16, 16, 9)):
        images, labels = batch(number, seed=step)
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        shared(images, labels, step)
        found = gradients(model)
        model.load_state_dict(state)
        Estimated(model, nes, seed=5)(images, labels, step)
        assert tiny.same(found, gradients(model))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01)


def test_the_noise_of_a_step_is_its_own() -> None:
    images, labels = batch()
    nes = estimators.create("nes", population=4)
    found = []
    for seed, step in ((0, 0), (0, 0), (0, 1), (1, 0)):
        model = network()
        Estimated(model, nes, seed=seed)(images, labels, step)
        found.append(gradients(model))
    assert tiny.same(found[0], found[1])
    assert not tiny.same(found[0], found[2])
    assert not tiny.same(found[0], found[3])


def test_compiled_signs_do_not_reach_an_estimator(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(x: Tensor, rule: Any) -> Tensor:
        calls.append(1)
        return torch.sign(x)

    calls: list[int] = []
    module = sys.modules["gradlab.binary.straight_through"]
    monkeypatch.setattr(module, "_compiled", lambda: (forward, None))
    images, labels = batch()
    model = network()
    Backpropagation(model, fused=True)
    model(images)
    assert calls
    calls.clear()
    by_nes = Estimated(model, estimators.create("nes", population=4))
    by_nes(images, labels, 0)
    assert not calls
    assert by_nes._objective is not None
    assert by_nes._objective.evaluator.path.startswith("traced graph")


def test_a_loss_that_is_no_number_is_given_back_without_an_estimate() -> None:
    images, labels = batch()
    model = network()
    nn.init.constant_(model.head.weight, torch.nan)
    loss, _ = Estimated(model, estimators.create("nes", population=4))(images, labels, 0)
    assert torch.isnan(loss)
    assert not gradients(model)


def test_a_compiler_that_fails_is_replaced_without_a_trace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(function: Any, **_: Any) -> Any:
        def run(*arguments: Any) -> Any:
            function(*arguments)[0].backward()  # fails late: statistics and gradients have moved
            raise RuntimeError("no C++ compiler\nfound")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    images, labels = batch()
    notes: list[str] = []
    model, other = network(), network()
    compiled = Backpropagation(model, compiled=True, note=notes.append)
    for step in range(2):
        model.zero_grad()
        other.zero_grad()
        compiled(images, labels, step)
        Backpropagation(other)(images, labels, step)
        assert tiny.same(gradients(model), gradients(other))
        assert tiny.same(model.state_dict(), other.state_dict())
    assert notes == ["torch.compile failed (no C++ compiler): running without it."]


def test_what_compiles_runs_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counting(function: Any, **_: Any) -> Any:
        def run(*arguments: Any) -> Any:
            calls.append(1)
            return function(*arguments)

        return run

    monkeypatch.setattr(torch, "compile", counting)
    images, labels = batch()
    compiled = Backpropagation(network(), compiled=True)
    for step in range(3):
        compiled(images, labels, step)
    assert len(calls) == 3


def test_the_network_compiles() -> None:
    """Traced by torch.compile without a graph break, and the same but for rounding."""
    images, labels = batch()
    model, other = network(surrogate="ede"), network(surrogate="ede")
    torch.compile(model, backend="aot_eager", fullgraph=True)(images)
    model.load_state_dict(other.state_dict())
    compiled = Backpropagation(model)
    compiled.compiled = torch.compile(compiled._forward, backend="aot_eager", fullgraph=True)
    notes: list[str] = []
    compiled.note = notes.append
    compiled(images, labels, 0)
    Backpropagation(other)(images, labels, 0)
    assert not notes
    for name, gradient in gradients(other).items():
        torch.testing.assert_close(gradients(model)[name], gradient)


def test_calibrated_statistics_are_the_mean_over_batches() -> None:
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(36, 3))
    batches = [batch(16, seed) for seed in range(3)]
    calibrate(model, batches)
    means = torch.stack([images.mean() for images, _ in batches])
    assert float(model[0].running_mean) == pytest.approx(float(means.mean()), rel=1e-5)
    assert model[0].momentum == 0.1
    calibrate(model, batches, number=1)
    assert float(model[0].running_mean) == pytest.approx(float(means[0]), rel=1e-5)
    calibrate(nn.Linear(2, 2), [])  # nothing to do


class TestOnAnotherBatch:
    """``Classification.on`` and ``ModuleEvaluator.on`` against objectives made anew."""

    def test_losses_are_those_of_a_fresh_objective(self) -> None:
        model = network()
        images, labels = batch(16, 0)
        model(images)
        first = Classification(model.eval(), images, labels)
        params = first.initial_params(3)
        before = first.loss(params)
        model.train()(batch(32, 1)[0])  # other statistics
        model.eval()
        for number in (16, 7):
            others, targets = batch(number, 2)
            moved = first.on(others, targets, dict(model.named_buffers()))
            fresh = Classification(model, others, targets)
            assert torch.equal(moved.loss(params), fresh.loss(params))
            steps = {name: torch.stack([w, w + 0.01]) for name, w in params.items()}
            assert torch.equal(moved.decreases(params, steps), fresh.decreases(params, steps))
            rule = surrogates.create("hardtanh")
            found, wanted = (o.surrogate_gradient(params, rule) for o in (moved, fresh))
            assert tiny.same(found, wanted)
        assert torch.equal(first.loss(params), before)

    def test_buffers_that_are_left_out_stay(self) -> None:
        model = network()
        images, labels = batch(16, 0)
        first = Classification(model.eval(), images, labels)
        params = first.initial_params(3)
        loss = first.loss(params)
        model.train()(images)
        assert torch.equal(first.on(images, labels).loss(params), loss)
        buffers = dict(model.named_buffers())
        assert not torch.equal(first.on(images, labels, buffers).loss(params), loss)

    @pytest.mark.parametrize(
        ("change", "words"),
        [("shape", "the new inputs are .* make another evaluator"),
         ("dtype", "the new inputs are .*float64"),
         ("count", "inputs and .* labels: give equally many"),
         ("label", "labels go from .* to 3, and the network has 3 outputs"),
         ("buffer", "the buffer nothing has shape .* no such buffer"),
         ("buffer shape", "the buffer norm.running_mean has shape .* one of shape")],
    )  # fmt: skip
    def test_what_does_not_fit_is_refused(self, change: str, words: str) -> None:
        images, labels = batch(16, 0)
        objective = Classification(network().eval(), images, labels)
        buffers: dict[str, Tensor] = {}
        if change == "shape":
            images = images[..., :3]
        if change == "dtype":
            images = images.double()
        if change == "count":
            labels = labels[:3]
        if change == "label":
            labels = torch.full_like(labels, 3)
        if change == "buffer":
            buffers = {"nothing": torch.zeros(2)}
        if change == "buffer shape":
            buffers = {"norm.running_mean": torch.zeros(2)}
        with pytest.raises(ValueError, match=words):
            objective.on(images, labels, buffers)
