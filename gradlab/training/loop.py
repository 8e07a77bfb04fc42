"""The one training loop: an epoch of steps, and what is measured of it.

Inside a step nothing waits for the device: losses and hits are written into tensors there and read
when the epoch is over. Whether the loss still is a number is looked up after every step where that
is free, on a processor, and every fifty steps on a GPU.

An epoch's row has ``epoch``; ``step`` (done so far); ``lr`` (of its last step); ``gradient`` (where
it comes from); ``train_loss`` and ``train_accuracy`` (means over its steps, of the loss that is
optimized: augmented images, smoothed or mixed targets, weights as they were at each step);
``val_loss``, ``val_accuracy``, ``ema_loss``, ``ema_accuracy`` (of the images that are evaluated,
in float32); ``flip_ratio`` (fraction of latent weights whose sign changed in the epoch);
``gradient_norm`` (mean over steps, before clipping); ``forward_passes`` and ``backward_passes`` (in
batches); ``images_per_second`` (of training alone); ``seconds``; ``diverged``.

With noise (``[variational]``) ``train_loss`` is the whole objective (the likelihood alone where the
optimizer has the KL term in its own rule, as that of BayesBiNN), and there are also
``train_nll`` and ``kl`` (its parts, the KL in nats, not divided by anything), ``kl_weight_now``;
``val_*`` are of the mean weights, ``sample_loss`` and ``sample_accuracy`` of one draw of the noise,
``pruned_loss``, ``pruned_accuracy`` and ``compression`` of the mean weights that are kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradlab import variational
from gradlab.training.evaluation import evaluate
from gradlab.training.gradients import Gradients
from gradlab.training.setup import Setup
from gradlab.training.state import JUDGED, MODULE, Row, State, derived

STEPS_BETWEEN_LOOKS = 50


class Diverged(ArithmeticError):  # noqa: N818 - what happened, not a mistake
    """The loss is no longer a number; the message says where, and what is left.

    Attributes:
        epoch: in which epoch.
        step: at which step of the run, counted from 1.
        rows: the log up to and with that epoch.
    """

    def __init__(self, message: str, epoch: int, step: int, rows: list[Row]) -> None:
        super().__init__(message)
        self.epoch = epoch
        self.step = step
        self.rows = rows


@dataclass(frozen=True)
class Moment:
    """How far a run is.

    Attributes:
        epoch: the epoch at work, counted from 1.
        epochs: of the run.
        step: steps done of this epoch.
        steps: of an epoch.
        row: the epoch's row of the log, once it is over.
        note: something to know, in one sentence.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    row: Row | None = None
    note: str | None = None


Progress = Callable[[Moment], None]


@dataclass
class Tally:
    """What the steps of an epoch leave on the device.

    Attributes:
        losses: ``(steps,)``.
        correct: hits of each step, ``(steps,)``.
        norm: sum over steps of the norm of the whole gradient.
        norms: likewise of each parameter's.
        forward_passes: in full-batch equivalents.
        backward_passes: likewise.
    """

    losses: Tensor
    correct: Tensor
    norm: Tensor
    norms: Tensor
    forward_passes: float = 0.0
    backward_passes: float = 0.0


def train_epoch(state: State, setup: Setup, gradients: Gradients, progress: Progress) -> Row:
    """Train one epoch; the state moves on, and gets the epoch's row.

    Args:
        state: what changes.
        setup: what does not.
        gradients: where the gradient comes from.
        progress: told how far it is.

    Returns:
        The row, which is also the last of ``state.rows``.

    Raises:
        Diverged: the loss is no longer a number; its row is marked.
    """
    spec, loop, steps = setup.spec, setup.spec.loop, setup.batches.steps
    epoch = state.epoch + 1
    _, lr = setup.phase(epoch)
    _tell_surrogates(state.model, (epoch - 1) / loop.epochs)
    latent = _latent_weights(state.model)
    signs = [weight.detach() >= 0 for weight in latent]
    tally = empty_tally(state.model, setup)
    look_every = 1 if setup.device == "cpu" else STEPS_BETWEEN_LOOKS
    first_step, rate, looked = state.step, lr, 0
    began = time.perf_counter()
    with _seeded(derived(spec.seed, MODULE, epoch), setup.device):
        for index, (images, targets) in enumerate(setup.batches.epoch(epoch)):
            rate = setup.schedule.rate(lr, state.step, steps, loop.epochs)
            for group in state.optimizer.param_groups:
                group["lr"] = rate
            take_step(state, setup, gradients, (images, targets), latent, (tally, index))
            done = index + 1
            if done % look_every == 0 or done == steps:
                bad = first_not_finite(tally.losses, looked, done)
                looked = done
                if bad is not None:
                    raise _diverged(state, epoch, first_step + bad, rate, gradients.label)
                progress(Moment(epoch, loop.epochs, done, steps))
    trained = time.perf_counter() - began
    seen = steps * setup.batches.batch_size
    row: Row = {
        "epoch": epoch,
        "step": state.step,
        "lr": rate,
        "gradient": gradients.label,
        "train_loss": float(tally.losses.double().mean()),
        "train_accuracy": float(tally.correct.double().sum()) / seen,
    }
    row |= gradients.measured()
    row |= _evaluated(state, setup)
    if spec.variational is not None:
        row |= _noise_measured(state, setup, epoch)
    row |= {
        "flip_ratio": _flip_ratio(signs, latent),
        "gradient_norm": float(tally.norm) / steps if _measures_norms(setup) else None,
        "forward_passes": tally.forward_passes,
        "backward_passes": tally.backward_passes,
        "images_per_second": seen / trained,
        "seconds": time.perf_counter() - began,
        "diverged": False,
    }
    if loop.gradient_norms:
        state.norms += _norm_rows(state.model, tally.norms / steps, epoch)
    state.epoch = epoch
    state.rows.append(row)
    return row


def take_step(
    state: State,
    setup: Setup,
    gradients: Gradients,
    batch: tuple[Tensor, Tensor],
    latent: list[Tensor],
    place: tuple[Tally, int],
) -> None:
    """One step on one batch, without waiting for the device."""
    loop, (tally, index) = setup.spec.loop, place
    state.optimizer.zero_grad(set_to_none=True)
    loss, correct = gradients(*batch, state.step)
    tally.losses[index] = loss
    tally.correct[index] = correct
    forward, backward = gradients.cost
    tally.forward_passes += forward
    tally.backward_passes += backward
    if _measures_norms(setup):
        _clip(state.model, loop.clip, tally)
    state.optimizer.step()
    if loop.clamp:
        with torch.no_grad():
            for weight in latent:
                weight.clamp_(-1, 1)
    if setup.spec.variational is not None:
        variational.project(state.model)
    if state.average is not None:
        state.average.update(state.step)
    state.step += 1


def first_not_finite(losses: Tensor, start: int, stop: int) -> int | None:
    """Where the first loss that is no finite number stands in ``[start, stop)``, if one does.

    >>> first_not_finite(torch.tensor([1.0, 2.0, float("nan")]), 1, 3)
    2
    """
    bad = ~torch.isfinite(losses[start:stop])
    if not bool(bad.any()):
        return None
    return start + int(bad.to(torch.int8).argmax())


def _measures_norms(setup: Setup) -> bool:
    return setup.spec.loop.clip is not None or setup.spec.loop.gradient_norms


@torch.no_grad()
def _clip(model: nn.Module, limit: float | None, tally: Tally) -> None:
    """Add up the norms of the gradient, and scale it down to ``limit``."""
    grads = [parameter.grad for parameter in _trained(model)]
    present = [grad for grad in grads if grad is not None]
    if not present:
        return
    each = torch.stack(torch._foreach_norm(present))
    total = each.norm()
    tally.norm += total
    places = torch.tensor([grad is not None for grad in grads])
    if len(present) == len(grads):
        tally.norms += each
    else:
        tally.norms[places.nonzero()[:, 0].to(each.device)] += each
    if limit is not None:
        # torch's own clip_grad_norm_, which would compute the norms again
        torch._foreach_mul_(present, (limit / (total + 1e-6)).clamp(max=1.0))


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def empty_tally(model: nn.Module, setup: Setup) -> Tally:
    """A tally of an epoch that has not begun."""
    steps, device = setup.batches.steps, setup.device
    return Tally(
        losses=torch.zeros(steps, device=device),
        correct=torch.zeros(steps, device=device),  # float32 is exact for counts of a batch
        norm=torch.zeros((), device=device),
        norms=torch.zeros(len(_trained(model)), device=device),
    )


def _norm_rows(model: nn.Module, norms: Tensor, epoch: int) -> list[Row]:
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    pairs = zip(names, norms.tolist(), strict=True)
    return [
        {"epoch": epoch, "position": position, "layer": name, "gradient_norm": norm}
        for position, (name, norm) in enumerate(pairs)
    ]


def _noise_measured(state: State, setup: Setup, epoch: int) -> Row:
    """What noise adds to an epoch's row; the state gets a row for each layer."""
    evaluation = setup.datasets.evaluation
    seed = derived(setup.spec.seed, JUDGED, epoch)
    with variational.sampling(state.model), _seeded(seed, setup.device):
        noisy = evaluate(state.model, evaluation)
    row: Row = {"sample_loss": noisy["loss"], "sample_accuracy": noisy["accuracy"]}
    layers = variational.layer_rows(state.model)
    state.layers += [
        {"epoch": epoch, "position": position, **each} for position, each in enumerate(layers)
    ]
    if variational.masked(state.model):
        with variational.pruned(state.model):
            found = evaluate(state.model, evaluation)
        row |= {
            "pruned_loss": found["loss"], "pruned_accuracy": found["accuracy"],
            "compression": variational.compression(state.model),
        }  # fmt: skip
    return row


def _evaluated(state: State, setup: Setup) -> Row:
    found = evaluate(state.model, setup.datasets.evaluation)
    row: Row = {"val_loss": found["loss"], "val_accuracy": found["accuracy"],
                "ema_loss": None, "ema_accuracy": None}  # fmt: skip
    if state.average is not None:
        averaged = evaluate(state.average.model, setup.datasets.evaluation)
        row |= {"ema_loss": averaged["loss"], "ema_accuracy": averaged["accuracy"]}
    return row


def _diverged(state: State, epoch: int, step: int, rate: float, label: str) -> Diverged:
    empty = dict.fromkeys(
        ("val_loss", "val_accuracy", "ema_loss", "ema_accuracy", "flip_ratio", "gradient_norm",
         "forward_passes", "backward_passes", "images_per_second", "seconds"))  # fmt: skip
    row: Row = {"epoch": epoch, "step": step + 1, "lr": rate, "gradient": label,
                "train_loss": None, "train_accuracy": None, **empty, "diverged": True}  # fmt: skip
    message = f"the loss is no longer a finite number at step {step + 1:,}, in epoch {epoch}"
    return Diverged(message, epoch, step + 1, [*state.rows, row])


def _latent_weights(model: nn.Module) -> list[Tensor]:
    found = getattr(model, "latent_weights", None)
    return [] if found is None else [weight.data for weight in found().values()]


def _tell_surrogates(model: nn.Module, progress: float) -> None:
    tell = getattr(model, "surrogate_progress", None)
    if tell is not None:
        tell(progress)


def _flip_ratio(signs: list[Tensor], latent: list[Tensor]) -> float | None:
    """The fraction of latent weights whose sign changed (Helwegen et al. 2019, 1906.02107)."""
    if not latent:
        return None
    pairs = zip(signs, latent, strict=True)
    changed = torch.stack([(sign != (weight >= 0)).sum() for sign, weight in pairs]).sum()
    return int(changed) / sum(weight.numel() for weight in latent)


@contextmanager
def _seeded(seed: int, device: str) -> Iterator[None]:
    """Torch's own generators seeded for modules that draw, and as they were afterwards."""
    with torch.random.fork_rng(devices=[torch.device(device)] if device != "cpu" else []):
        torch.manual_seed(seed)
        yield
