r"""Convolutions of a whole population: every member has filters of its own.

``torch.func.vmap`` turns them into one grouped convolution over members times channels. On one core
(float32, 3 × 3 filters, widths 8 to 64, maps of 8² to 32², 8 to 64 examples, 8 to 32 members) that
is up to nearly five times faster than a loop over members while the result stays within a few
megabytes, and up to almost four times slower beyond, where every call pays for fresh pages.
Unfolded patches and a batched matrix product were slower than the loop at nearly all of these
sizes, by up to 14 times. So members are grouped as many at a time as keep a call small, one at a
time for 1 × 1 filters, which gain nothing from grouping. Inputs that all members share need no
groups: one convolution with the filters of all members.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from gradlab.evaluation.population import chunks

# Numbers that one grouped call reads or writes on the CPU, whichever are more: two megabytes.
_CALL_FLOATS = 2**19

Pair = int | tuple[int, int]


def members_per_call(floats: int, kernel: tuple[int, int], device: str = "cpu") -> int | None:
    """How many members share one grouped convolution; None for all.

    Args:
        floats: size of one member's input or output, whichever is larger.
        kernel: height and width of the filters.
        device: "cpu", or a GPU, where every call has its launch to pay: all members.

    >>> members_per_call(8 * 8 * 32 * 32, (3, 3)), members_per_call(8 * 8 * 32 * 32, (1, 1))
    (8, 1)
    """
    if device != "cpu":
        return None
    return 1 if kernel == (1, 1) else max(1, _CALL_FLOATS // max(1, floats))


def population_conv2d(
    inputs: Tensor,
    weights: Tensor,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> Tensor:
    """The convolution of every member's inputs with its own filters.

    Args:
        inputs: ``(B, C, H, W)`` shared by all members, or ``(P, B, C, H, W)``.
        weights: ``(P, O, C / groups, kh, kw)``.
        stride: as in ``torch.nn.functional.conv2d``.
        padding: likewise, as numbers.
        dilation: likewise.
        groups: likewise, within each member.

    Returns:
        ``(P, B, O, H', W')``, not always contiguous.

    Raises:
        ValueError: shapes that do not fit each other.

    >>> inputs, weights = torch.ones(2, 3, 5, 5), torch.ones(4, 6, 3, 3, 3)
    >>> outputs = population_conv2d(inputs, weights)
    >>> outputs.shape, float(outputs[0, 0, 0, 0, 0])
    (torch.Size([4, 2, 6, 3, 3]), 27.0)
    """
    shared = inputs.dim() == 4
    if weights.dim() != 5 or inputs.dim() not in (4, 5):
        raise ValueError(
            f"inputs {tuple(inputs.shape)} and weights {tuple(weights.shape)}: give (B, C, H, W) "
            "or (P, B, C, H, W) and (P, O, C / groups, kh, kw)."
        )
    size, rows = weights.shape[:2]
    if not shared and len(inputs) != size:
        raise ValueError(f"inputs of {len(inputs)} members, weights of {size}: give equal numbers.")
    options = (stride, padding, dilation)
    if shared and groups == 1:
        outputs = F.conv2d(inputs, weights.flatten(0, 1), None, *options)
        return _members(outputs, size)
    each = inputs if shared else inputs[0]
    if rows % groups or each.shape[1] != groups * weights.shape[2]:
        raise ValueError(
            f"{each.shape[1]} channels and filters {tuple(weights.shape[1:])} do not make "
            f"{groups} groups: give groups times {weights.shape[2]} channels."
        )
    floats = each.numel() // each.shape[1] * max(each.shape[1], rows)
    kernel = (weights.shape[3], weights.shape[4])
    held = members_per_call(floats, kernel, weights.device.type) or size
    parts = []
    for low, high in chunks(size, held):
        part = inputs.expand(high - low, *inputs.shape) if shared else inputs[low:high]
        if high - low == 1:
            parts.append(F.conv2d(part[0], weights[low], None, *options, groups)[None])
            continue
        joined = part.transpose(0, 1).flatten(1, 2)
        filters = weights[low:high].flatten(0, 1)
        outputs = F.conv2d(joined, filters, None, *options, groups * (high - low))
        parts.append(_members(outputs, high - low))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _members(outputs: Tensor, size: int) -> Tensor:
    """``(B, P O, H, W)`` as ``(P, B, O, H, W)``."""
    return outputs.reshape(len(outputs), size, -1, *outputs.shape[2:]).transpose(0, 1)


class _Convolution(torch.autograd.Function):
    """``conv2d`` whose rule under vmap is :func:`population_conv2d`; it has no derivative."""

    @staticmethod
    def forward(
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Any,
        padding: Any,
        dilation: Any,
        groups: int,
    ) -> Tensor:
        return F.conv2d(inputs, weight, bias, stride, padding, dilation, groups)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> tuple[Tensor, int]:
        inputs, weight, bias = (
            arg if dim is None else arg.movedim(dim, 0)
            for arg, dim in zip(args[:3], in_dims[:3], strict=True)
        )
        options = args[3:]
        if in_dims[1] is not None:
            outputs = population_conv2d(inputs, weight, *options)
        elif in_dims[0] is not None:
            flat = F.conv2d(inputs.flatten(0, 1), weight, None, *options)
            outputs = flat.reshape(info.batch_size, -1, *flat.shape[1:])
        else:
            outputs = F.conv2d(inputs, weight, None, *options)[None]
        if bias is not None:
            outputs = outputs + bias[..., None, :, None, None]
        return outputs, 0


class PopulationOperations(TorchFunctionMode):
    """Inside it vmap meets operations that it can batch, or can batch well.

    ``conv2d`` with numbers for its padding goes by :func:`population_conv2d`. ``batch_norm`` that
    normalizes by the batch leaves the running statistics alone: they have no say in the result, and
    one buffer cannot hold what many members make of it.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Replace the two functions, pass on all others."""
        kwargs = kwargs or {}
        if func is torch.conv2d:
            found = _convolution_arguments(*args, **kwargs)
            if found is not None:
                return _Convolution.apply(*found)  # type: ignore[no-untyped-call]
        if func is F.batch_norm:
            return _batch_norm(*args, **kwargs)
        return func(*args, **kwargs)


def _convolution_arguments(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> tuple[Any, ...] | None:
    """Arguments in the order of conv2d; None where it has to go by torch's own rule."""
    if isinstance(padding, str) or input.dim() != 4:
        return None
    return input, weight, bias, stride, padding, dilation, groups


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if training:
        running_mean = running_var = None
    return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
