"""Local NES on a GPU, see :mod:`gradlab.evaluation.gpu`."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from gradlab.evaluation import population as pop
from gradlab.evaluation.gpu.launch import (
    LARGE,
    ceil,
    halves,
    launch,
    modules,
    sizes,
    triton_half,
    width,
)
from gradlab.evaluation.population import Params
from gradlab.models.mlp import BinarizedMLP

# The gradients of all layers stay in registers, or near them.
_WIDTH, _DEPTH, _TILE = 64, 4, 64


def local_nes_unsupported(model: BinarizedMLP, inputs: Tensor, params: Params) -> str | None:
    """None if :func:`local_nes_gradient` can compute this, else why not, in one line."""
    num_inputs, num_outputs = sizes(model)
    if model.activation != "binary" or model.weight != "real" or num_outputs != 1:
        return "the kernel takes binary activations, real weights and one output."
    if max(num_inputs, model.num_dim) > _WIDTH or model.depth > _DEPTH:
        return f"layers are at most {_WIDTH} wide and {_DEPTH} deep."
    if any(tensor.dtype != torch.float32 for tensor in (inputs, *params.values())):
        return "inputs and weights are float32."
    largest = torch.stack([t.abs().amax() for t in (inputs, *params.values())]).amax()
    return None if float(largest) < LARGE else "inputs and weights are finite and below 1e15."


def local_nes_gradient(
    model: BinarizedMLP,
    inputs: Tensor,
    targets: Tensor,
    params: Params,
    *,
    key: int,
    sigma: float,
    passes: int,
    antithetic: bool = True,
    baseline: str = "noise_free",
    first_example: int = 0,
) -> Params:
    r"""Local NES of the squared error, summed over examples and averaged over passes, float64.

    What :class:`gradlab.estimators.nes_local.NESLocal` adds up, from the same noise, with every
    layer perturbed and the last hidden layer in closed form: one kernel samples the hidden layers,
    takes losses, scores and the pathwise gradients of the two closed-form layers, and accumulates
    ``(score · reward)ᵀ @ inputs``; only each program's sums are written. The score is :math:`s
    \lambda(-s a) / \text{spread}` with the sampled sign s, :math:`a` the mean in units of the
    spread and :math:`\lambda(t) = \varphi(t) / (1 - \Phi(t))`. Products are exact as in
    :func:`mlp_losses`.

    Args:
        model: binary activations, real weights, one output.
        inputs: ``(B, num_inputs)`` float32.
        targets: ``(B, 1)`` float32.
        params: one parameter dict.
        key: 64-bit key of the noise.
        sigma: standard deviation of every weight.
        passes: noisy passes.
        antithetic: passes 2k and 2k + 1 use noise of opposite sign.
        baseline: "noise_free" or "none".
        first_example: index of the first of ``inputs`` in the batch, which its noise belongs to.

    Raises:
        ValueError: what :func:`local_nes_unsupported` names, or another baseline.
    """
    reason = local_nes_unsupported(model, inputs, params)
    if reason is not None:
        raise ValueError(f"this network cannot use the kernel of local NES: {reason}")
    if baseline not in ("noise_free", "none"):
        raise ValueError(f"baseline is {baseline!r}: give noise_free or none.")
    num_inputs, _ = sizes(model)
    k_in, k = width(num_inputs), width(model.num_dim)
    examples, device = len(inputs), inputs.device
    tiles = 4  # 625 programs for 160,000 examples: a few for each of 132 multiprocessors
    programs = ceil(examples, tiles * _TILE)
    missing = programs * tiles * _TILE - examples
    ordered = {name: params[name] for name in model.layer_names}
    weights = pop.flatten(ordered)
    partial = torch.empty(programs, len(weights), device=device)
    launch(
        modules()[2].local_nes_kernel, (programs,), device,
        F.pad(inputs, (0, k_in - num_inputs, 0, missing)).contiguous(),
        F.pad(targets.flatten(), (0, missing)), weights, partial,
        sigma, sigma * math.sqrt(model.num_dim), sigma**2 * model.num_dim, *halves(key),
        first_example, examples, passes,
        num_inputs=num_inputs, num_dim=model.num_dim, depth=model.depth, k_in=k_in, k=k,
        antithetic=antithetic, noise_free=baseline == "noise_free",
        half=triton_half(), tile=_TILE, tiles=tiles, num_warps=4 if k <= 32 else 8,
    )  # fmt: skip
    return pop.unflatten(partial.sum(dim=0, dtype=torch.float64) / passes, ordered)
