"""How the kernels of :mod:`gradlab.evaluation.gpu` are found and started, and their shapes."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType
from typing import Any

import torch

from gradlab.models.mlp import BinarizedMLP

# Shared memory of a program on Hopper, for the interpreter, and the least that a GPU of compute
# capability 8.0 or more has.
_HOPPER_SHARED = 227 * 2**10
_LEAST_SHARED = 99 * 2**10
LARGE = 1e15
"""Pre-activations of factors smaller than this cannot overflow."""


@functools.cache
def modules() -> tuple[ModuleType, ModuleType, ModuleType]:
    """The kernels of noise, losses and local NES; importing them imports Triton."""
    names = ("kernels_noise", "kernels_mlp", "kernels_local")
    noise, losses, local = (importlib.import_module(f"{__package__}.{n}") for n in names)
    return noise, losses, local


def interpreted() -> bool:
    """Whether Triton interprets; both it and the kernels were imported under that setting."""
    kernels = modules()[1]
    found = (type(kernels.losses_kernel).__name__, type(kernels.tl.sum).__name__)
    return found == ("InterpretedFunction", "InterpretedFunction")


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    device: torch.device,
    *args: Any,
    registers: int | None = None,
    **options: Any,
) -> None:
    """Run a kernel, with products and sums rounded apart, at most ``registers`` per thread.

    The noise's bits and the signs of weights depend on the roundings.
    """
    if device.type == "cuda":
        with torch.cuda.device(device):
            kernel[grid](*args, **options, maxnreg=registers, enable_fp_fusion=False)
    else:
        kernel[grid](*args, **options)


@functools.cache
def shared_bytes(device: torch.device) -> int:
    """Shared memory that one program may take."""
    if device.type != "cuda":
        return _HOPPER_SHARED
    properties = torch.cuda.get_device_properties(device)
    return int(getattr(properties, "shared_memory_per_block_optin", _LEAST_SHARED))


def halves(number: int) -> tuple[int, int]:
    """The low and high word of a 64-bit number as signed 32-bit numbers, one type for all."""
    words = number & 0xFFFFFFFF, number >> 32 & 0xFFFFFFFF
    low, high = (word - 2**32 if word >= 2**31 else word for word in words)
    return low, high


def ceil(a: int, b: int) -> int:
    """``a / b`` rounded up."""
    return -(-a // b)


def width(size: int) -> int:
    """The power of two, at least 16, that tensor cores take.

    >>> [width(size) for size in (1, 16, 17, 128)]
    [16, 16, 32, 128]
    """
    return max(16, 1 << (size - 1).bit_length())


def sizes(model: BinarizedMLP) -> tuple[int, int]:
    """Numbers of inputs and outputs."""
    return model.num_inputs or model.num_dim, model.num_outputs


def torch_half() -> torch.dtype:
    """The type of a part, see :mod:`gradlab.evaluation.gpu.kernels_mlp`."""
    return torch.float32 if interpreted() else torch.bfloat16


def triton_half() -> Any:
    """The same as Triton calls it."""
    language = modules()[1].tl
    return language.float32 if interpreted() else language.bfloat16
