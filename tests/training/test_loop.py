"""The loop against one written out by hand, and what must not happen inside a step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from gradlab.training import loop
from gradlab.training.loop import Diverged, Moment, first_not_finite, train_epoch
from gradlab.training.setup import Setup, initialize, prepare
from gradlab.training.state import State
from tests.training import tiny


def ready(**changes: Any) -> tuple[Setup, State]:
    return prepare(tiny.spec(**changes), tiny.datasets())


def epochs(setup: Setup, state: State, number: int, heard: list[Moment] | None = None) -> None:
    heard = [] if heard is None else heard
    for _ in range(number):
        entry, _ = setup.phase(state.epoch + 1)
        gradients = setup.gradients(entry, state.model, lambda _: None)
        train_epoch(state, setup, gradients, heard.append)


def test_the_loop_is_this_one() -> None:
    """Clipping, clamping, schedule and Adam, written out with torch's own functions."""
    changes = {
        "loop": {"clip": 0.5, "label_smoothing": 0.1, "epochs": 2},
        "schedule": {"name": "linear", "final_lr": 0.001},
        "optimizer": {"weight_decay": 0.01, "lr": 0.1},
        "data": {"crop": 1, "flip": True},
    }
    setup, state = ready(**changes)
    _, other = ready(**changes)
    epochs(setup, state, 2)

    model = other.model
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1, weight_decay=0.01)
    step, losses = 0, []
    for epoch in (1, 2):
        for images, labels in setup.batches.epoch(epoch):
            for group in optimizer.param_groups:
                group["lr"] = 0.1 + (0.001 - 0.1) * step / 6
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels, label_smoothing=0.1)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            for weight in model.latent_weights().values():
                weight.data.clamp_(-1, 1)
            losses.append(float(loss.detach()))
            step += 1
    assert step == state.step == 6
    assert state.rows[0]["train_loss"] == pytest.approx(sum(losses[:3]) / 3, rel=1e-5)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(state.model.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)


def test_it_learns() -> None:
    setup, state = ready(loop={"epochs": 8, "ema": 0.9})
    epochs(setup, state, 8)
    first, last = state.rows[0], state.rows[-1]
    # chance is 1/3
    assert last["train_accuracy"] > 0.85
    assert last["val_accuracy"] > 0.75
    assert last["ema_accuracy"] > 0.75
    assert last["train_loss"] < first["train_loss"]


class _Calls(TorchDispatchMode):
    """The operations that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal.")


def test_nothing_in_a_step_waits_for_the_device() -> None:
    """No operation whose result the processor must see: on a GPU each would stop the queue."""
    setup, state = ready(
        loop={"clip": 1.0, "ema": 0.9, "gradient_norms": True, "label_smoothing": 0.1}
    )
    gradients = setup.gradients(None, state.model, lambda _: None)
    latent = loop._latent_weights(state.model)
    tally = loop.empty_tally(state.model, setup)
    assert latent
    batches = list(setup.batches.epoch(1))
    loop.take_step(state, setup, gradients, batches[0], latent, (tally, 0))
    with _Calls() as calls:
        loop.take_step(state, setup, gradients, batches[1], latent, (tally, 1))
    assert any("addmm" in name or "mm" in name for name in calls.names)
    assert not [name for name in calls.names if any(word in name for word in WAITING)]


@pytest.mark.gpu
def test_no_step_synchronizes_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU here")
    changed = {"device": "cuda", "clip": 1.0, "ema": 0.9, "compile": False}
    setup, state = ready(loop=changed)
    gradients = setup.gradients(None, state.model, lambda _: None)
    latent = loop._latent_weights(state.model)
    tally = loop.empty_tally(state.model, setup)
    batches = list(setup.batches.epoch(1))
    loop.take_step(state, setup, gradients, batches[0], latent, (tally, 0))
    torch.cuda.set_sync_debug_mode("error")
    try:
        loop.take_step(state, setup, gradients, batches[1], latent, (tally, 1))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_latent_weights_stay_between_minus_one_and_one_unless_told_otherwise() -> None:
    for clamp in (True, False):
        setup, state = ready(optimizer={"name": "sgd", "lr": 50.0}, loop={"clamp": clamp})
        epochs(setup, state, 1)
        largest = max(float(w.detach().abs().max()) for w in state.model.latent_weights().values())
        assert (largest <= 1) is clamp
        assert float(state.model.head.weight.detach().abs().max()) > 1  # never clamped


def test_the_flip_ratio_counts_signs_that_changed() -> None:
    setup, state = ready(optimizer={"name": "sgd", "lr": 5.0})
    before = {name: w.detach() >= 0 for name, w in state.model.latent_weights().items()}
    epochs(setup, state, 1)
    changed = [
        (before[name] != (w.detach() >= 0)).flatten()
        for name, w in state.model.latent_weights().items()
    ]
    expected = float(torch.cat(changed).double().mean())
    assert state.rows[0]["flip_ratio"] == pytest.approx(expected)
    assert expected > 0

    setup, state = ready(model={"weight": "real"})
    epochs(setup, state, 1)
    assert state.rows[0]["flip_ratio"] is None


def test_gradient_norms_are_means_over_steps_before_clipping() -> None:
    setup, state = ready(
        optimizer={"name": "sgd", "lr": 1e-300}, loop={"clip": 1e-3, "gradient_norms": True}
    )
    sums: dict[str, float] = {}
    total = 0.0
    _, other = ready()
    for images, labels in setup.batches.epoch(1):
        other.model.zero_grad()
        F.cross_entropy(other.model(images), labels).backward()
        norms = {n: float(p.grad.norm()) for n, p in other.model.named_parameters()}
        sums = {name: sums.get(name, 0.0) + norm for name, norm in norms.items()}
        total += sum(norm**2 for norm in norms.values()) ** 0.5
    epochs(setup, state, 1)
    steps = setup.batches.steps
    assert state.rows[0]["gradient_norm"] == pytest.approx(total / steps, rel=1e-4)
    found = {row["layer"]: row["gradient_norm"] for row in state.norms}
    assert found == pytest.approx({n: norm / steps for n, norm in sums.items()}, rel=1e-4)
    assert [row["position"] for row in state.norms] == list(range(len(sums)))
    assert {row["epoch"] for row in state.norms} == {1}


def test_surrogates_hear_which_fraction_of_training_is_done() -> None:
    setup, state = ready(loop={"epochs": 4})
    told: list[float] = []
    state.model.surrogate_progress = told.append
    epochs(setup, state, 4)
    assert told == [0.0, 0.25, 0.5, 0.75]


def test_a_moving_surrogate_moves() -> None:
    setup, state = ready(model={"surrogate": "ede"}, loop={"epochs": 2})
    epochs(setup, state, 2)
    assert state.model.sign.surrogate.progress == 0.5


def test_a_switch_changes_estimator_and_lr_at_its_epoch() -> None:
    setup, state = ready(
        loop={"epochs": 4},
        switch=[{"epoch": 2, "estimator": {"name": "nes", "population": 8}, "lr": 0.002},
                {"epoch": 4}],
    )  # fmt: skip
    epochs(setup, state, 4)
    assert [row["gradient"] for row in state.rows] == [
        "backpropagation", "NES 8", "NES 8", "backpropagation"]  # fmt: skip
    assert [row["lr"] for row in state.rows] == [0.01, 0.002, 0.002, 0.002]
    assert [row["forward_passes"] for row in state.rows] == [3, 27, 27, 3]
    assert [row["backward_passes"] for row in state.rows] == [3, 0, 0, 3]


@pytest.mark.parametrize("estimator", ["ste", "nes", "nes_local", "cdg", "sr_ste"])
def test_any_estimator_can_drive(estimator: str) -> None:
    options: dict[str, Any] = {"nes": {"population": 20}}.get(estimator, {})
    if estimator in ("sr_ste", "cdg"):
        options = {}
    setup, state = ready(
        estimator={"name": estimator, **options}, data={"examples": 32},
        model={"name": "xnor_mlp", "width": 4, "depth": 1}, loop={"batch_size": 16},
    )  # fmt: skip
    before = {name: p.detach().clone() for name, p in state.model.named_parameters()}
    epochs(setup, state, 1)
    moved = [name for name, p in state.model.named_parameters() if not torch.equal(p, before[name])]
    assert "head.weight" in moved
    assert "hidden.0.linear.weight" in moved
    assert state.rows[0]["train_loss"] > 0


def test_statistics_are_measured_before_an_estimator_sees_the_network() -> None:
    def mean(**changes: Any) -> Tensor:
        setup, state = ready(**changes)
        initialize(setup, state)
        return state.model.norm.running_mean

    assert float(mean().abs().max()) == 0.0
    late = [{"epoch": 2, "estimator": {"name": "nes"}}]
    assert float(mean(switch=late).abs().max()) == 0.0
    setup, state = ready(estimator={"name": "nes"})
    initialize(setup, state)
    inputs = torch.cat([images for images, _ in setup.batches.epoch(0)])
    first = inputs.flatten(1) @ state.model.first.weight.detach().T
    torch.testing.assert_close(state.model.norm.running_mean, first.mean(0), rtol=1e-3, atol=1e-4)


def test_dropout_is_the_epochs_own_and_leaves_torchs_generator_alone() -> None:
    def with_dropout() -> tuple[Setup, State]:
        setup, state = ready()
        state.model.sign = nn.Sequential(state.model.sign, nn.Dropout(0.3))
        return setup, state

    setup, state = with_dropout()
    before = torch.random.get_rng_state()
    epochs(setup, state, 1)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(5)
    again, other = with_dropout()
    epochs(again, other, 1)
    assert tiny.same(state.model.state_dict(), other.model.state_dict())


class _Failing:
    """Gradients whose loss is NaN at one step."""

    label = "failing"
    cost = (1.0, 1.0)

    def __init__(self, model: nn.Module, at: int) -> None:
        self.model, self.at = model, at

    def __call__(self, images: Tensor, targets: Tensor, step: int) -> tuple[Tensor, Tensor]:
        for parameter in self.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        loss = torch.tensor(torch.inf if step == self.at else 1.0)
        return loss, torch.tensor(0)

    def measured(self) -> dict[str, float]:
        return {}


@pytest.mark.parametrize("look", [1, 2, 50])
@pytest.mark.parametrize("at", [0, 3, 5])
def test_divergence_is_found_at_its_step_however_seldom_one_looks(
    at: int, look: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup, state = ready()
    if look > 1:
        monkeypatch.setattr(loop, "STEPS_BETWEEN_LOOKS", look)
        setup = Setup(**{**vars(setup), "device": "meta"})
        monkeypatch.setattr(
            loop, "empty_tally",
            lambda model, setup, made=loop.empty_tally: made(
                model, Setup(**{**vars(setup), "device": "cpu"})),
        )  # fmt: skip
        monkeypatch.setattr(loop, "_seeded", lambda seed, device: torch.no_grad())
    failing = _Failing(state.model, at)
    for _ in range(at // 3):
        train_epoch(state, setup, failing, lambda _: None)
    with pytest.raises(Diverged) as caught:
        train_epoch(state, setup, failing, lambda _: None)
    diverged = caught.value
    assert (diverged.step, diverged.epoch) == (at + 1, at // 3 + 1)
    assert f"at step {at + 1}, in epoch {at // 3 + 1}" in str(diverged)
    assert [row["diverged"] for row in diverged.rows] == [False] * (at // 3) + [True]
    assert diverged.rows[-1]["step"] == at + 1
    assert diverged.rows[-1]["train_loss"] is None
    assert set(diverged.rows[-1]) == set(diverged.rows[0])


def test_the_first_bad_loss_is_the_one_named() -> None:
    losses = torch.tensor([1.0, torch.nan, torch.inf, 1.0])
    assert first_not_finite(losses, 0, 4) == 1
    assert first_not_finite(losses, 2, 4) == 2
    assert first_not_finite(losses, 3, 4) is None


def test_progress_counts_steps_and_epochs() -> None:
    heard: list[Moment] = []
    setup, state = ready(loop={"epochs": 2})
    epochs(setup, state, 2, heard)
    assert [(m.epoch, m.step, m.steps) for m in heard] == [
        (1, 1, 3), (1, 2, 3), (1, 3, 3), (2, 1, 3), (2, 2, 3), (2, 3, 3)]  # fmt: skip
