r"""Where the gradient of a step comes from: backpropagation, or any registered estimator.

Backpropagation with the model's own surrogates is the fast loop: one forward and one backward pass.

An estimator asks for the loss of the network at other weights, thousands of times, and needs a
network that does not change under it. So a step by an estimator is

(a) one forward pass in training mode, without gradient, which updates the statistics of BatchNorm
    and gives the loss and accuracy that are logged;
(b) the estimate, on the network in evaluation mode with these statistics held fixed, of the mean
    loss of the same batch, for all parameters;
(c) the estimate in ``.grad``, for clipping and any optimizer.

BatchNorm in evaluation mode normalizes by running averages instead of by the batch, so the
gradient is that of another function than backpropagation's in training mode, which also goes
through the batch's mean and variance. That is the price of a loss that is a mean of per-example
losses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradlab import variational
from gradlab.binary.layers import set_fused
from gradlab.estimators import Estimator
from gradlab.evaluation.module.graph import one_line
from gradlab.objectives import Classification, Objective
from gradlab.training.state import ESTIMATOR, Row, generator
from gradlab.variational.kl_weight import KLWeight

BACKPROPAGATION = "backpropagation"


class Gradients(Protocol):
    """Fills ``.grad`` of a model's parameters for one batch."""

    @property
    def label(self) -> str:
        """How the log names it."""

    @property
    def cost(self) -> tuple[float, float]:
        """Forward and backward passes of the last step, in full-batch equivalents."""

    def __call__(self, images: Tensor, targets: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """The loss ``()`` and the number of correctly classified examples ``()``, on the device."""

    def measured(self) -> Row:
        """What else the log says of the steps since the last call."""


def loss_and_correct(
    logits: Tensor, targets: Tensor, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """Cross-entropy in float32 with labels ``(B,)`` or soft targets ``(B, K)``, and the hits.

    Of soft targets the largest one counts as the label.
    """
    loss = F.cross_entropy(logits.float(), targets, label_smoothing=label_smoothing)
    labels = targets if targets.dim() == 1 else targets.argmax(1)
    return loss, (logits.detach().argmax(1) == labels).sum()


class Backpropagation:
    """Backpropagation with the surrogates that the model's layers have.

    Args:
        model: in training mode during a step.
        label_smoothing: share of the target spread over all classes.
        precision: "float32" or "bfloat16" (autocast).
        compiled: by ``torch.compile``; where that fails, a note is made and the step runs eagerly.
        fused: signs alone are compiled, see :func:`gradlab.binary.layers.set_fused`; likewise.
        note: takes one sentence.
    """

    label = BACKPROPAGATION
    cost = (1.0, 1.0)

    def __init__(
        self,
        model: nn.Module,
        label_smoothing: float = 0.0,
        precision: str = "float32",
        compiled: bool = False,
        fused: bool = False,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.model = model
        self.label_smoothing = label_smoothing
        self.bfloat16 = precision == "bfloat16"
        self.note = note
        self.compiled: Any = torch.compile(self._forward, dynamic=False) if compiled else None
        self._tried = not (compiled or fused)
        set_fused(model, fused)

    def __call__(self, images: Tensor, targets: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """See :class:`Gradients`."""
        self.model.train()
        if self._tried:
            return self._run(self.compiled or self._forward, images, targets)
        return self._first(images, targets)

    def measured(self) -> Row:
        """Nothing."""
        return {}

    def _first(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The first compiled step, or an eager one that leaves no trace of the attempt."""
        before = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        drawn = torch.get_rng_state()
        self._tried = True
        try:
            return self._run(self.compiled or self._forward, images, targets)
        except Exception as error:  # a compiler fails in many ways
            self.note(f"torch.compile failed ({one_line(error)}): running without it.")
            self.compiled = None
            set_fused(self.model, False)
            self.model.load_state_dict(before)
            torch.set_rng_state(drawn)
            self.measured()  # forgets what the failed attempt counted
            self.model.zero_grad(set_to_none=True)
            return self._run(self._forward, images, targets)

    def _forward(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bfloat16):
            logits = self.model(images)
        return loss_and_correct(logits, targets, self.label_smoothing)

    def _run(self, forward: Any, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        loss, correct = forward(images, targets)
        loss.backward()
        return loss.detach(), correct


class NoisyBackpropagation(Backpropagation):
    """Backpropagation through sampled noise, of the likelihood and the KL term.

    The loss is the mean negative log-likelihood over a batch, and over ``samples`` draws of the
    noise for each image, plus β · KL / N: an unbiased estimate of minus the evidence lower bound
    per image where β is 1 (Kingma et al. 2015, arXiv 1506.02557, equation 3).

    Args:
        model: with stochastic layers, see :mod:`gradlab.variational`.
        kl_weight: the schedule of β.
        train_size: N, images in the training set.
        steps: of an epoch.
        epochs: of the run.
        samples: draws of the noise for each image.
        in_loss: whether the KL term belongs to the loss; BayesBiNN's optimizer has its own.
        others: options of :class:`Backpropagation`.
    """

    def __init__(
        self,
        model: nn.Module,
        kl_weight: KLWeight,
        train_size: int,
        steps: int,
        epochs: int,
        samples: int = 1,
        in_loss: bool = True,
        **others: Any,
    ) -> None:
        super().__init__(model, **others)
        self.kl_weight, self.train_size, self.samples = kl_weight, train_size, samples
        self.steps, self.epochs, self.in_loss = steps, epochs, in_loss
        self.cost = (float(samples), float(samples))
        for layer in variational.stochastic_layers(model).values():
            layer.samples = samples
        # A number that changes would make torch.compile specialize on each of its values.
        self._beta = torch.zeros((), device=next(model.parameters()).device)
        self._sums = {key: torch.zeros_like(self._beta) for key in ("train_nll", "kl")}
        self._done = 0

    def __call__(self, images: Tensor, targets: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """See :class:`Gradients`."""
        epoch, within = divmod(step, self.steps)
        self._weight = self.kl_weight.weight(epoch + 1, within, self.steps, self.epochs)
        self._beta.fill_(self._weight)
        if self.samples > 1:
            images = images.repeat(self.samples, *[1] * (images.dim() - 1))
            targets = targets.repeat(self.samples, *[1] * (targets.dim() - 1))
        loss, correct = super().__call__(images, targets, step)
        self._done += 1
        return loss, correct.float() / self.samples

    def measured(self) -> Row:
        """Means of ``train_nll`` and ``kl`` in nats, and the last ``kl_weight_now`` in the loss."""
        found = {key: float(value) / max(1, self._done) for key, value in self._sums.items()}
        for value in self._sums.values():
            value.zero_()
        self._done = 0
        return {**found, "kl_weight_now": self._weight if self.in_loss else None}

    def _forward(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        likelihood, correct = super()._forward(images, targets)
        divergence = variational.kl_divergence(self.model)
        self._sums["train_nll"] += likelihood.detach()
        self._sums["kl"] += divergence.detach()
        if not self.in_loss:
            return likelihood, correct
        return likelihood + self._beta * divergence / self.train_size, correct


class Estimated:
    """The estimate of a registered estimator, see the module's docstring.

    Args:
        model: whose parameters.
        estimator: any of :mod:`gradlab.estimators`.
        label_smoothing: share of the target spread over all classes.
        seed: of the run; the estimate's noise derives from it and the step.

    >>> from gradlab import estimators
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    >>> gradients = Estimated(model, estimators.create("nes", population=10))
    >>> loss, correct = gradients(torch.ones(3, 1, 2, 2), torch.tensor([0, 1, 0]), step=0)
    >>> model[1].weight.grad.shape, gradients.cost
    (torch.Size([2, 4]), (11.0, 0.0))
    """

    def __init__(
        self,
        model: nn.Module,
        estimator: Estimator,
        label_smoothing: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.model = model
        self.estimator = estimator
        self.label = estimator.label()
        self.label_smoothing = label_smoothing
        self.seed = seed
        self.cost = (0.0, 0.0)
        set_fused(model, False)  # compiled loops cannot be traced
        self._objective: Classification | None = None

    def __call__(self, images: Tensor, targets: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """See :class:`Gradients`."""
        self.model.train()
        with torch.no_grad():
            loss, correct = loss_and_correct(self.model(images), targets, self.label_smoothing)
        if not torch.isfinite(loss):
            return loss, correct  # the run has diverged, and says so after this step
        self.model.eval()
        objective = cast(Objective, self._objective_on(images, targets))
        params = {name: p.detach() for name, p in self.model.named_parameters()}
        estimate = self.estimator.estimate(
            objective, params, generator=generator(self.seed, ESTIMATOR, step)
        )
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                parameter.grad = estimate.gradient[name].to(parameter.dtype).clone()
        self.cost = (estimate.forward_passes + 1.0, estimate.backward_passes)
        return loss, correct

    def measured(self) -> Row:
        """Nothing."""
        return {}

    def _objective_on(self, images: Tensor, targets: Tensor) -> Classification:
        if self._objective is None:
            self._objective = Classification(self.model, images, targets, self._loss())
        else:
            buffers = dict(self.model.named_buffers())
            self._objective = self._objective.on(images, targets, buffers)
        return self._objective

    def _loss(self) -> Any:
        if not self.label_smoothing:
            return "cross_entropy"
        smoothing = self.label_smoothing

        def smoothed(logits: Tensor, labels: Tensor) -> Tensor:
            return F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")

        return smoothed


@torch.no_grad()
def calibrate(model: nn.Module, batches: Any, number: int = 20) -> None:
    """Give BatchNorm statistics of a few training batches before any step, in place.

    An estimator sees the network in evaluation mode, where fresh statistics (mean 0, variance 1)
    have nothing to do with the data. All batches count alike.

    Args:
        model: whose statistics.
        batches: an iterable of (images, targets).
        number: how many of them are used.
    """
    norms = [
        module for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
    ]  # fmt: skip
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average
    model.train()
    for index, (images, _) in enumerate(batches):
        if index == number:
            break
        model(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
