r"""Whole populations on a GPU by Triton kernels: noise, losses and noise-weighted sums.

One program evaluates a few members on many examples. It draws the members' weights, keeps them in
shared memory, and pushes one tile of examples after another through all layers, in registers and on
the tensor cores; nothing but summed losses is written. So a population costs no memory, and every
weight is drawn once for :data:`EXAMPLES` examples.

**Exactness.** A float32 is the sum of three bfloat16 numbers, 24 = 8 + 8 + 8 bits. Codes of
quantized activations (±1, or the number of thresholds reached) are exact in bfloat16, so their
products with the three parts are exact and share one float32 sum: ``precision="exact"``, three
products per layer. Real factors on both sides, in the first layer and behind a clip, need the six
products of parts above 2⁻²⁴. What remains is the rounding of a float32 sum, as in any float32
product: the sign of a pre-activation within rounding of a threshold may differ between devices.
``precision="rounded"`` keeps one part of each member's hidden weights, one product per layer; see
:func:`rounding_over_sigma`. The tensor cores' own float32 mode, tf32, is never used: it keeps 11
bits of both factors.

Mirrored pairs share their noise and, with real weights, their first layer: x @ μ is the same for
all members, x @ ε for both twins. Weights or inputs that are not finite, or so large that a sum
could overflow, go through torch operations, so that NaN and infinity come out as they would there.

Block shapes are functions of the network's shape and of the device's shared memory, and each
program owns its sums, so results depend neither on timing nor on the other members.

Nothing here needs Triton until it is called; :func:`available` says whether it can be.
"""

from __future__ import annotations

import functools
import os
import warnings

import torch

from gradlab.evaluation import noise as reference
from gradlab.evaluation import population as pop
from gradlab.evaluation.gpu.launch import interpreted, modules
from gradlab.evaluation.gpu.local import local_nes_gradient, local_nes_unsupported
from gradlab.evaluation.gpu.mlp import (
    EXAMPLES,
    mlp_losses,
    rounding_over_sigma,
    unsupported,
)
from gradlab.evaluation.gpu.noise import normal, weighted_noise
from gradlab.evaluation.mlp_tensors import TensorMLPEvaluator
from gradlab.evaluation.population import GaussianPopulation
from gradlab.models.mlp import BinarizedMLP

__all__ = [
    "EXAMPLES",
    "available",
    "local_nes_gradient",
    "local_nes_unsupported",
    "mlp_losses",
    "normal",
    "rounding_over_sigma",
    "unsupported",
    "weighted_noise",
]


def available(device: torch.device | str) -> str | None:
    """None where the kernels can run on tensors of ``device``, else one line that says why not.

    The first call for a GPU compiles small kernels and compares them with torch; if that fails, it
    warns once, and torch operations should serve. On a processor kernels run in Triton's
    interpreter, for tests, if ``TRITON_INTERPRET=1`` was set before Triton was imported.

    >>> available("meta")
    'the kernels run on cuda, not on meta.'
    """
    device = torch.device(device)
    if device.type == "cpu":
        return _interpreter()
    if device.type != "cuda":
        return f"the kernels run on cuda, not on {device.type}."
    if not torch.cuda.is_available():
        return "torch sees no GPU."
    return _compiler(torch.cuda.current_device() if device.index is None else device.index)


def _interpreter() -> str | None:
    if os.environ.get("TRITON_INTERPRET") != "1" and not modules.cache_info().currsize:
        return "the kernels run on cuda, not on cpu (but for tests, with TRITON_INTERPRET=1)."
    try:
        return None if interpreted() else "Triton was imported before TRITON_INTERPRET=1 was set."
    except ImportError as error:
        return f"Triton cannot be imported: {error}."


@functools.cache
def _compiler(index: int) -> str | None:
    device = torch.device("cuda", index)
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "the GPU is older than compute capability 8.0, the first with bfloat16 products."
    try:
        if interpreted():
            return "Triton interprets (TRITON_INTERPRET=1): unset it to compile for the GPU."
        failure = _self_check(device)
    except ImportError as error:
        return f"Triton cannot be imported: {error}."
    except Exception as error:  # whatever compiler, assembler or driver raise
        failure = f"{type(error).__name__}: {error}".splitlines()[0]
    if failure is None:
        return None
    failure = f"the Triton kernels fail on this GPU: {failure}."
    warnings.warn(f"{failure} Torch operations take their place.", stacklevel=4)
    return failure


def _self_check(device: torch.device) -> str | None:
    """Compile small kernels and compare them with torch: what differs, if anything.

    The noise of the comparison comes from tensors: ``noise.normal`` may itself ask whether the
    kernels are available.
    """
    found = normal(7, (2**32 - 3, 2**32 + 3), (1, 50), device=device)
    expected = reference.normal_by_tensors(7, (2**32 - 3, 2**32 + 3), (1, 50), device=device)
    if not torch.equal(found, expected):
        return "other bits of noise"
    model = BinarizedMLP(num_dim=16, depth=2)
    generator = torch.Generator().manual_seed(0)
    params = {name: w.to(device) for name, w in model.initial_params(generator).items()}
    inputs = torch.randn(300, 16, generator=generator).to(device)
    targets = torch.zeros(300, 1, device=device)
    whole = GaussianPopulation(params, 0.1, 3, 0, 4, antithetic=True)
    losses = mlp_losses(model, inputs, targets, whole)
    flat = pop.flatten(params)
    drawn = reference.normal_by_tensors(3, (0, 2), (0, len(flat)), device=device)
    mirrored = torch.stack((drawn, -drawn), dim=1).flatten(0, 1)
    members = pop.unflatten(flat + 0.1 * mirrored, params)
    expected = TensorMLPEvaluator(model, inputs, targets).losses(members)
    # two examples in 300 may be within rounding of a threshold
    if not bool(((losses - expected).abs() <= 0.02 * expected).all()):
        return "other losses"
    weights = torch.ones(1, 4, dtype=torch.float64, device=device)
    weights[:, 1::2] = 0
    total, _ = weighted_noise(whole, weights, second=False)
    expected = drawn.double().sum(dim=0)
    return None if torch.allclose(total[0], expected) else "other weighted sums"
