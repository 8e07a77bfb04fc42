r"""Counter-based Gaussian noise: a number is a function of (key, stream, member, coordinate).

Nothing here has a state, so a member's noise is the same whatever the chunk it is drawn in, the
worker, or the device (up to rounding of ``log``, ``cos`` and ``sin``), and a gradient
:math:`\sum_i f_i \varepsilon_i` regenerates :math:`\varepsilon` instead of storing it.

The bits come from Philox-4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy
as 1, 2, 3", SC 2011): counter word 0 is the coordinate divided by four, words 1 and 2 are the low
and high halves of the member index, word 3 is the stream; the 64-bit key is the two key words. Four
output words become four normals by two Box-Muller transforms.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIER_0, _MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
_WEYL_0, _WEYL_1 = 0x9E3779B9, 0xBB67AE85
_TWO_PI = 6.283185307179586
# Words are turned into normals about this many at a time: 64-bit integers of one block then stay
# in a core's second-level cache through all ten rounds (up to three times faster than whole arrays;
# benchmarks/noise.py measures it).
_BLOCK = 32768

POPULATION_STREAM = 0
"""Stream of weight-space search distributions."""
ACTIVATION_STREAM = 1
"""First stream of activation-space noise; layer ``l`` uses ``ACTIVATION_STREAM + l``."""


def draw_key(generator: torch.Generator) -> int:
    """One 64-bit key from a generator: all the state that a sampled estimate takes from it.

    >>> import torch
    >>> draw_key(torch.Generator().manual_seed(0)) == draw_key(torch.Generator().manual_seed(0))
    True
    """
    halves = torch.randint(0, 2**32, (2,), generator=generator, device=generator.device)
    return int(halves[0]) | (int(halves[1]) << 32)


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: int) -> list[Tensor]:
    """Philox-4x32-10 of broadcastable int64 counter words (each in [0, 2**32)), elementwise.

    Returns four int64 tensors of the broadcast shape with values in [0, 2**32).

    >>> zero = torch.zeros(1, dtype=torch.int64)
    >>> [hex(int(word)) for word in philox((zero, zero, zero, zero), 0)]
    ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    word_0, word_1, word_2, word_3 = counter
    key_0, key_1 = key & _MASK, (key >> 32) & _MASK
    for _ in range(10):
        # The product of two 32-bit words overflows int64's sign bit: the shift is arithmetic, so
        # its upper half is masked back to 32 bits.
        product_0 = word_0 * _MULTIPLIER_0
        product_1 = word_2 * _MULTIPLIER_1
        word_0 = ((product_1 >> 32) & _MASK) ^ word_1 ^ key_0
        word_1 = product_1 & _MASK
        word_2 = ((product_0 >> 32) & _MASK) ^ word_3 ^ key_1
        word_3 = product_0 & _MASK
        key_0 = (key_0 + _WEYL_0) & _MASK
        key_1 = (key_1 + _WEYL_1) & _MASK
    # after three rounds every word has met all four counters, and so has the broadcast shape
    return [word_0, word_1, word_2, word_3]


def _unit_interval(word: Tensor) -> Tensor:
    # 23 bits and a half: every value is exact in float32 and strictly inside (0, 1).
    return ((word >> 9).to(torch.float32) + 0.5) * 2.0**-23


def _box_muller(words: list[Tensor]) -> Tensor:
    """Four words to four standard normals, stacked in a new last dimension."""
    normals = []
    for first, second in ((words[0], words[1]), (words[2], words[3])):
        radius = torch.sqrt(-2.0 * torch.log(_unit_interval(first)))
        angle = _TWO_PI * _unit_interval(second)
        normals += [radius * torch.cos(angle), radius * torch.sin(angle)]
    return torch.stack(normals, dim=-1)


def normal(
    key: int,
    members: tuple[int, int],
    coordinates: tuple[int, int],
    *,
    stream: int = POPULATION_STREAM,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Standard normal noise of members ``start..stop-1`` at coordinates ``start..stop-1``.

    Args:
        key: 64-bit key, see :func:`draw_key`.
        members: half-open range of member indices (a member may also be an example).
        coordinates: half-open range of coordinates.
        stream: an independent noise field under the same key.
        device: where to compute.

    Returns:
        float32 tensor ``(members, coordinates)``.

    >>> whole = normal(7, (0, 6), (0, 10))
    >>> torch.equal(whole[2:5, 3:9], normal(7, (2, 5), (3, 9)))
    True
    """
    first, last = coordinates
    low, high = first // 4, -(-last // 4)
    blocks = torch.arange(low, high, device=device)
    rows = torch.arange(members[0], members[1], device=device)
    zero = torch.zeros((), dtype=torch.int64, device=device)
    out = torch.empty(len(rows), high - low, 4, device=device)
    step = len(rows) if blocks.is_cuda else max(1, _BLOCK // max(1, high - low))
    for row in range(0, len(rows), max(1, step)):
        part = rows[row : row + step, None]
        words = philox((blocks[None, :], part & _MASK, part >> 32, zero + stream), key)
        out[row : row + step] = _box_muller(words)
    return out.flatten(1)[:, first - 4 * low : last - 4 * low]
