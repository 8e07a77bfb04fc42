r"""Optimizers for binary weights: BayesBiNN and Bop. What is not binary gets Adam.

**BayesBiNN** (Meng, Bachmann and Khan, ICML 2020, arXiv 2002.10778, equations 6 to 9) steps the
natural parameter λ of weights that :mod:`gradlab.variational.binary_weights` draws, along the
natural gradient of N · mean loss + KL:

.. math:: G = \frac{N g}{1 - \tanh^2\lambda + 10^{-10}} + \kappa (\lambda - \lambda_0), \quad
          M \leftarrow \beta M + (1 - \beta) G, \quad
          \lambda \leftarrow \lambda - \eta\, M / (1 - \beta^t).

Here g is ``.grad`` of λ after ``backward`` of a **mean** loss. It already holds (1 − w² + 10⁻¹⁰)/τ
and the mean over samples that share a batch; what is left of the authors' scale s is the
denominator. The KL term stands in G, so the loss must have none. tanh is squared as their code does
it: from about \|λ\| = 9 on it is 1 in float32, the denominator 10⁻¹⁰, and the step is that of a
straight-through estimator whose latent weight decays by 1 − η. Their logged results come from
there, with β = 0. Unlike in their code the denominator takes the λ of the drawn weights, not the λ
of one step before.

**Bop** (Helwegen, Widdicombe, Geiger, Liu, Cheng and Nusselder, "Latent Weights Do Not Exist",
NeurIPS 2019, arXiv 1906.02107, algorithm 1) has no latent weights. It averages gradients,
:math:`m \leftarrow (1 - \gamma) m + \gamma g`, and flips a weight w = ±1 where w·m > threshold. In
gradlab's binary layers ``weight`` then holds ±1 itself (the first step sees to it). So
``scaling = "channel"`` is a scale of 1, and the surrogate must let gradients pass at ±1, as
hardtanh does and polynomial does not.

>>> weight = nn.Parameter(torch.tensor([1.0, -1.0, 1.0]))
>>> optimizer = Bop([weight], lr=0.1, gamma=0.5, threshold=0.1)
>>> weight.grad = torch.tensor([1.0, 1.0, 0.1])
>>> _ = optimizer.step()
>>> weight.tolist()
[-1.0, -1.0, 1.0]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from gradlab.binary.layers import BinaryConv2d, BinaryLinear
from gradlab.binary.sign import sign
from gradlab.estimators.base import above_zero, at_least_zero, finite, true_or_false
from gradlab.variational.binary_weights import GUARD, BayesBiNNConv2d, BayesBiNNLinear


class _BesideAdam(torch.optim.Optimizer):
    """Its own step for groups with ``binary = True``, which is the default, and Adam for others.

    Adam's learning rate keeps its ratio to the group's when a schedule moves that.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        adam_lr: float | None,
        adam_betas: tuple[float, float],
        weight_decay: float,
        own: dict[str, Any],
    ) -> None:
        above_zero("lr", lr)
        ratio = 1.0 if adam_lr is None else above_zero("adam_lr", adam_lr) / lr
        # Adam checks its own options; its groups and state are those of this optimizer
        self._adam = torch.optim.Adam(
            [torch.zeros(1)], lr, betas=adam_betas, weight_decay=weight_decay
        )
        defaults = {**self._adam.defaults, "binary": True, "adam_lr_ratio": ratio, **own}
        super().__init__(params, defaults)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_adam": self._adam}

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step of everything that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"] if group["binary"] else ():
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group, self.state[parameter])
        self._adam.state = self.state
        self._adam.param_groups = [
            {**group, "lr": group["lr"] * group["adam_lr_ratio"]}
            for group in self.param_groups if not group["binary"]
        ]  # fmt: skip
        self._adam.step()
        return loss

    def _move(
        self, parameter: Tensor, grad: Tensor, group: dict[str, Any], state: dict[str, Any]
    ) -> None:
        raise NotImplementedError


class BayesBiNN(_BesideAdam):
    """The Bayesian learning rule for binary weights, see the module's docstring.

    Args:
        params: natural parameters; or groups of parameters, of which those with ``binary = False``
            get Adam.
        lr: η; the authors take 1e-4 on MNIST and 3e-4 on CIFAR-10, with a cosine schedule.
        train_size: N, the number of training examples.
        momentum: β.
        prior: λ₀.
        kl_weight: κ, which the authors leave at 1; a group's may change while training.
        adam_lr: initial learning rate of what is not binary; ``lr`` if left out.
        adam_betas: of Adam.
        weight_decay: of Adam.

    Raises:
        ValueError: an option out of range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        *,
        train_size: int,
        momentum: float = 0.0,
        prior: float = 0.0,
        kl_weight: float = 1.0,
        adam_lr: float | None = None,
        adam_betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
    ) -> None:
        above_zero("train_size", train_size)
        if not 0 <= finite("momentum", momentum) < 1:
            raise ValueError(f"momentum is {momentum}: give a number from 0 to below 1.")
        finite("prior", prior)
        at_least_zero("kl_weight", kl_weight)
        own = {"train_size": train_size, "momentum": momentum, "prior": prior,
               "kl_weight": kl_weight}  # fmt: skip
        super().__init__(params, lr, adam_lr, adam_betas, weight_decay, own)

    def _move(
        self, parameter: Tensor, grad: Tensor, group: dict[str, Any], state: dict[str, Any]
    ) -> None:
        if not state:
            state["step"] = 0
            state["momentum"] = torch.zeros_like(parameter)
        mean = torch.tanh(parameter)
        natural = grad * (group["train_size"] / (1 - mean * mean + GUARD))
        natural += group["kl_weight"] * (parameter - group["prior"])
        beta = group["momentum"]
        state["step"] += 1
        state["momentum"].mul_(beta).add_(natural, alpha=1 - beta)
        corrected = 1 - beta ** state["step"]
        parameter.sub_(state["momentum"], alpha=group["lr"] / corrected)


class Bop(_BesideAdam):
    """The binary optimizer, see the module's docstring.

    Args:
        params: binary weights; or groups of parameters, of which those with ``binary = False`` get
            Adam.
        lr: of Adam. A weight that flips knows none.
        gamma: γ, the share of the newest gradient; 1e-4 is the authors' for CIFAR-10, where they
            divide it by ten every hundred epochs.
        threshold: τ; theirs is 1e-8.
        gamma_follows_lr: multiply γ, too, by what a schedule makes of the learning rate.
        adam_betas: of Adam.
        weight_decay: of Adam.

    Raises:
        ValueError: an option out of range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        *,
        gamma: float = 1e-4,
        threshold: float = 1e-8,
        gamma_follows_lr: bool = False,
        adam_betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
    ) -> None:
        above_zero("gamma", gamma)
        if gamma > 1:
            raise ValueError(f"gamma is {gamma}: give a share of at most 1.")
        at_least_zero("threshold", threshold)
        true_or_false("gamma_follows_lr", gamma_follows_lr)
        own = {"gamma": gamma, "threshold": threshold, "gamma_follows_lr": gamma_follows_lr}
        super().__init__(params, lr, None, adam_betas, weight_decay, own)

    def _move(
        self, parameter: Tensor, grad: Tensor, group: dict[str, Any], state: dict[str, Any]
    ) -> None:
        if not state:
            state["average"] = torch.zeros_like(parameter)
        gamma = group["gamma"]
        if group["gamma_follows_lr"]:
            gamma *= group["lr"] / self.defaults["lr"]
        weight, average = sign(parameter), state["average"]
        average.lerp_(grad, gamma)
        parameter.copy_(torch.where(weight * average > group["threshold"], -weight, weight))


def groups_for(optimizer: type[_BesideAdam], model: nn.Module) -> list[dict[str, Any]]:
    """A model's parameters, apart: those that an optimizer of binary weights moves, and others.

    For :class:`BayesBiNN` the weights of layers of the method "bayes_binn", for :class:`Bop` those
    of gradlab's binary layers.

    Args:
        optimizer: the class.
        model: what it is to train.

    Returns:
        One or two groups, with ``binary`` set.

    Raises:
        ValueError: the model has no such weight, or its surrogate lets no gradient pass at ±1.

    >>> from gradlab import models
    >>> model = models.create("xnor_mlp", width=4, depth=1)
    >>> [(group["binary"], len(group["params"])) for group in groups_for(Bop, model)]
    [(True, 1), (False, 7)]
    """
    binary = _relaxed(model) if issubclass(optimizer, BayesBiNN) else _flippable(model)
    known = {id(weight) for weight in binary}
    others = [parameter for parameter in model.parameters() if id(parameter) not in known]
    groups: list[dict[str, Any]] = [{"params": binary, "binary": True}]
    return [*groups, {"params": others, "binary": False}] if others else groups


def _relaxed(model: nn.Module) -> list[Tensor]:
    layers = [part for part in model.modules()
              if isinstance(part, BayesBiNNLinear | BayesBiNNConv2d)]  # fmt: skip
    if not layers:
        raise ValueError("the optimizer bayes_binn needs weights of the method bayes_binn, and the "
                         'model has none: give [variational] method = "bayes_binn".')  # fmt: skip
    return [layer.weight for layer in layers]


def _flippable(model: nn.Module) -> list[Tensor]:
    layers = [part for part in model.modules()
              if isinstance(part, BinaryLinear | BinaryConv2d) and part.binary]  # fmt: skip
    if not layers:
        raise ValueError("the optimizer bop flips binary weights, and the model has none: choose a "
                         'model with weight = "binary", or another optimizer.')  # fmt: skip
    for layer in layers:
        slopes = layer.surrogate.derivative(torch.tensor([-1.0, 1.0], device=layer.weight.device))
        if not bool((slopes > 0).all()):
            raise ValueError(
                f"the weight_surrogate {layer.surrogate} lets no gradient pass at ±1, where the "
                'optimizer bop keeps its weights: give weight_surrogate = "hardtanh".'
            )
    return [layer.weight for layer in layers]
