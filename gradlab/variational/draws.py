"""Random numbers for layers: standard normals and signs, many at a time.

All of them follow torch's generators: the same ``torch.manual_seed`` gives the same draws, and a
run that goes on from a checkpoint draws what it would have drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gradlab.evaluation.noise import compiled_problem

# From here on drawing a key costs less than it saves.
_MANY = 4_096


def standard_normal(shape: Sequence[int], like: Tensor) -> Tensor:
    """Independent N(0, 1), of ``shape``, on the device and of the type of ``like``.

    Large float32 ones on a processor come from the counter-based generator of
    :mod:`gradlab.evaluation.noise`, whose key torch's generator draws: more than twice as fast.

    >>> _ = torch.manual_seed(0)
    >>> x = standard_normal((300, 200), torch.empty(0))
    >>> x.shape, bool(x.mean().abs() < 0.02), bool((x.std() - 1).abs() < 0.02)
    (torch.Size([300, 200]), True, True)
    """
    number = math.prod(shape)
    if (
        like.device.type != "cpu"
        or like.dtype != torch.float32
        or number < _MANY
        or torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or compiled_problem() is not None
    ):
        return torch.randn(*shape, device=like.device, dtype=like.dtype)
    from gradlab.evaluation.compiled.noise import normal

    key = int(torch.randint(2**63 - 1, ()))
    return normal(key, (0, 1), (0, number), 0).reshape(*shape)


def standard_normal_like(tensor: Tensor) -> Tensor:
    """As :func:`standard_normal`, in memory as ``tensor`` is, if that has no gaps."""
    noise = standard_normal(tensor.shape, tensor)
    if tensor.is_contiguous() or not dense(tensor):
        return noise
    return noise.as_strided(tensor.shape, tensor.stride())


def dense(tensor: Tensor) -> bool:
    """Whether it lies in memory without gaps, in one of torch's two formats for images."""
    return tensor.is_contiguous() or (
        tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    )


def in_order_of_memory(tensor: Tensor) -> Tensor:
    """All elements of a :func:`dense` tensor as a vector that shares their memory.

    >>> images = torch.arange(8).reshape(1, 2, 2, 2).to(memory_format=torch.channels_last)
    >>> in_order_of_memory(images)
    tensor([0, 4, 1, 5, 2, 6, 3, 7])
    """
    return tensor.as_strided((tensor.numel(),), (1,))


def random_signs(shape: Sequence[int], like: Tensor) -> Tensor:
    """Independent ±1 with equal chances, of ``shape``, on the device and of the type of ``like``.

    >>> _ = torch.manual_seed(0)
    >>> x = random_signs((300, 200), torch.empty(0))
    >>> x.unique(), bool(x.mean().abs() < 0.02)
    (tensor([-1.,  1.]), True)
    """
    number = math.prod(shape)
    words = torch.empty(-(-number // 32), dtype=torch.int32, device=like.device)
    words.random_(-(2**31), 2**31)
    masks = torch.ones(32, dtype=torch.int32, device=like.device) << torch.arange(
        32, dtype=torch.int32, device=like.device
    )
    up = (words[:, None] & masks).ne_(0).flatten()[:number].reshape(*shape)
    return up.to(like.dtype).mul_(2).sub_(1)
