r"""Gradients of the smoothed loss of any ``nn.Module`` by its moments.

A graph's means and variances (:mod:`gradlab.estimators.moments_graph`) give each example's outputs
as a normal variable with mean :math:`\bar y` and covariance C. For a loss :math:`\ell` of normal
outputs the derivatives of its expectation are those of Bonnet and Price (Price 1958; Rezende,
Mohamed and Wierstra, ICML 2014, section 4),

.. math:: \nabla_{\bar y} E\ell = E\nabla\ell, \qquad \nabla_C E\ell = \tfrac12 E\nabla^2\ell,

so that the gradient is that of :math:`E\nabla\ell\cdot\bar y + \tfrac12\operatorname{tr}(E\nabla^2
\ell\;C)` with the expectations held. They are means over mirrored, scrambled Sobol points of the
outputs, 64 of them and four for each output, with covariance exactly one: exact for squared errors.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gradlab.estimators.base import GradientEstimate, require_finite
from gradlab.estimators.moments_graph import Propagation
from gradlab.estimators.moments_tape import Moments, Normals
from gradlab.evaluation import noise as counter_based
from gradlab.evaluation import population as pop
from gradlab.evaluation.module.noisy import NoisyPasses
from gradlab.evaluation.population import Params
from gradlab.objectives.backpropagation import affordable_examples
from gradlab.objectives.base import NoisyObjective

_PAIRS = 32  # at least, and two for each output
_BYTES = 2**28


def estimate(
    objective: NoisyObjective,
    params: Params,
    sigma: float,
    what: str,
    *,
    key: int | None = None,
    shared: bool = True,
) -> GradientEstimate:
    """The gradient of the mean loss by propagated moments.

    Args:
        objective: gives the module and its batch.
        params: one parameter dict; all of it is noisy.
        sigma: standard deviation of the noise.
        what: name of the estimator, for complaints.
        key: 64-bit noise key: what other nonlinear functions lie behind is then sampled, with the
            derivative of its mean (the matched STE). Without it all is propagated.
        shared: see :class:`gradlab.estimators.moments_graph.Propagation`.

    Returns:
        The gradient, with its cost in products of the whole network: mean, variance and noise of
        every layer; of the layers whose moments reach the outputs, deviations once, and of each
        output the slopes in their inputs and in their weights. The way back takes as many.

    Raises:
        ValueError: a module without a graph, with an operation that there is no rule for, or whose
            examples interact, or a loss of the user's own that may have no derivative.
    """
    params = require_finite(params)
    noisy = objective.noisy_passes(params, tuple(params), sigma, "weights")
    program = noisy.program
    if program.graph is None:
        raise ValueError(
            f"{what} follows the module's operations, and its forward pass cannot be traced "
            f"({program.untraced}): use nes_local."
        )
    if not noisy.smooth_loss:
        raise ValueError(
            f"{what} differentiates the loss twice, which is known of cross_entropy and mse alone: "
            "use one of these, or nes_local."
        )
    leaves = {name: w.detach().clone().requires_grad_() for name, w in params.items()}
    total = {name: torch.zeros_like(w) for name, w in params.items()}
    inputs, targets = noisy.evaluator.inputs, noisy.evaluator.targets
    outputs = program.forward(inputs[:1], noisy.params).numel()
    for low, high in pop.chunks(noisy.size, _examples(noisy, outputs)):
        state = program.state({**noisy.params, **leaves})
        normals = None if key is None else _normals(key, (low, high), inputs.device)
        propagation = Propagation(
            program.graph, state, leaves, sigma, what, normals=normals, shared=shared
        )
        with torch.enable_grad():
            found = propagation.run(program.cast(inputs[low:high]))
            if isinstance(found, Moments):
                mean, covariance = found.mean, propagation.tape.covariance(found)
            else:
                mean, covariance = found, found.new_zeros(high - low, outputs, outputs)
            if not mean.requires_grad:
                continue
            value = expected_loss(program.loss, mean, covariance, targets[low:high])
            gradients = torch.autograd.grad(
                value / noisy.size, list(leaves.values()), allow_unused=True
            )
        for name, gradient in zip(leaves, gradients, strict=True):
            if gradient is not None:
                total[name] += gradient
    behind = propagation.unsampled_layers / max(1, propagation.layers)
    passes = 3 + behind * (1 + 2 * outputs)
    return GradientEstimate(total, forward_passes=passes, backward_passes=passes)


def expected_loss(
    loss: Callable[[Tensor, Tensor], Tensor], mean: Tensor, covariance: Tensor, targets: Tensor
) -> Tensor:
    """A number whose gradient is that of the examples' summed expected losses.

    Args:
        loss: per-example losses of outputs and targets, twice differentiable.
        mean: of the outputs, ``(B, ...)``.
        covariance: ``(B, K, K)``, K outputs of each example.
        targets: of the examples.

    >>> mean = torch.tensor([[1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    >>> def squares(outputs, targets):
    ...     return (outputs - targets).square().sum(1)
    >>> value = expected_loss(squares, mean, torch.eye(2)[None], torch.zeros(1, 2))
    >>> [round(each, 6) for each in torch.autograd.grad(value, mean)[0][0].tolist()]
    [2.0, 4.0]
    """
    slope, curvature = _derivatives(loss, mean.detach(), covariance.detach(), targets)
    linear = (slope * mean.reshape(slope.shape)).sum()
    return linear + 0.5 * (curvature * covariance).sum()


def _derivatives(
    loss: Callable[[Tensor, Tensor], Tensor], mean: Tensor, covariance: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """E of the loss's gradient ``(B, K)`` and Hessian ``(B, K, K)``."""
    size, count = covariance.shape[:2]
    # NaN outputs have NaN losses, with any covariance
    values, vectors = torch.linalg.eigh(covariance.double().nan_to_num())
    root = (vectors * values.clamp_min(0).sqrt()[:, None]) @ vectors.mT
    points = _normal_points(count).to(root)
    outputs = mean.double().reshape(size, count) + torch.einsum("nk,bkl->nbl", points, root)
    with torch.enable_grad():
        y = outputs.reshape(-1, *mean.shape[1:]).requires_grad_()
        repeated = targets.repeat(len(points), *[1] * (targets.dim() - 1))
        (slope,) = torch.autograd.grad(loss(y, repeated).sum(), y, create_graph=True)
        slope = slope.reshape(-1, count)
        if not slope.requires_grad:  # a linear loss
            slope = slope + 0 * y.reshape(-1, count)
        rows = [
            torch.autograd.grad(each.sum(), y, retain_graph=True)[0].reshape(-1, count)
            for each in slope.unbind(1)
        ]
    curvature = torch.stack(rows, dim=1).reshape(-1, size, count, count).mean(0)
    return slope.detach().reshape(-1, size, count).mean(0).to(mean), curvature.to(mean)


@functools.lru_cache(maxsize=8)
def _normal_points(count: int) -> Tensor:
    """Points ``(n, count)`` that stand for independent normals."""
    # unscrambled, a few points of many dimensions depend on each other
    engine = torch.quasirandom.SobolEngine(count, scramble=True, seed=0)  # type: ignore[no-untyped-call]
    pairs = 2 ** math.ceil(math.log2(max(_PAIRS, 2 * count)))
    half = torch.special.ndtri(engine.draw(pairs, dtype=torch.float64).clamp(1e-9, 1 - 1e-9))
    root = torch.linalg.cholesky(half.T @ half / pairs)
    half = torch.linalg.solve_triangular(root, half.T, upper=False).T
    return torch.cat((half, -half))


def _normals(key: int, examples: tuple[int, int], device: torch.device) -> Normals:
    def draw(stream: int, numbers: int) -> Tensor:
        return counter_based.normal(
            key, examples, (0, numbers), stream=counter_based.ACTIVATION_STREAM + stream,
            device=device,
        )  # fmt: skip

    return draw


def _examples(noisy: NoisyPasses, outputs: int) -> int:
    """How many examples fit into the memory."""
    evaluator = noisy.evaluator
    plain = evaluator.memory_bytes / affordable_examples(evaluator, noisy.params)
    weights = sum(w.numel() * w.element_size() for w in noisy.params.values())
    # a dozen tensors for each of the module's own, and slopes of every output in all of them and in
    # the weights
    needed: Any = plain * (12 + 3 * outputs) + 3 * outputs * weights
    return max(1, min(noisy.size, int(min(evaluator.memory_bytes, _BYTES) // needed)))
