r"""Counter-based Gaussian noise: a number is a function of (key, stream, member, coordinate).

Nothing here has a state, so a member's noise is the same whatever the chunk it is drawn in, the
worker, or the device, bit for bit, and a gradient :math:`\sum_i f_i \varepsilon_i` regenerates
:math:`\varepsilon` instead of storing it.

The bits come from Philox-4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy
as 1, 2, 3", SC 2011): counter word 0 is the coordinate divided by four, words 1 and 2 are the low
and high halves of the member index, word 3 is the stream; the 64-bit key is the two key words. Four
output words become four normals by two Box-Muller transforms. Their logarithm, sine and cosine are
polynomials of our own, a fixed sequence of float32 operations that every processor rounds alike;
an error of at most 7e-7 in 10 million normals.

On a processor a compiled kernel draws (:mod:`gradlab.evaluation.compiled.noise`); on other devices
the same operations run as tensor operations, which are also the kernel's referee.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIER_0, _MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
_WEYL_0, _WEYL_1 = 0x9E3779B9, 0xBB67AE85
# (ln(1 + x) - x + x²/2) / x³ on [√½ - 1, √2 - 1]; sin(πt/2) / t and cos(πt/2) in t², |t| ≤ ½:
# Chebyshev interpolants, rounded to float32 (errors 2e-8, 5e-8 and 7e-9).
LOG = (
    0.3333333134651184, -0.25000306963920593, 0.20001044869422913, -0.166412815451622,
    0.14214496314525604, -0.12998183071613312, 0.12622320652008057, -0.07902746647596359,
)  # fmt: skip
SINE = (1.5707963705062866, -0.6459634900093079, 0.07968021929264069, -0.004602149128913879)
COSINE = (
    1.0, -1.2337005138397217, 0.25366920232772827, -0.02086007036268711, 0.0009036280680447817,
)  # fmt: skip
# ln 2 in two parts: products of the first with an exponent are exact.
LN2_HIGH, LN2_LOW = 0.693145751953125, 1.428606765330187e-06
SQRT_HALF_BITS = 0x3F3504F3  # √½ as a float32
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


def _log_uniform(word: Tensor) -> Tensor:
    """ln((k + ½) / 2²³) of a word's upper 23 bits k."""
    # 2k + 1 is exact in float32; taking its exponent apart leaves a mantissa in [√½, √2).
    bits = ((word >> 9) * 2 + 1).to(torch.float32).view(torch.int32)
    exponent = (bits - SQRT_HALF_BITS) >> 23
    x = (bits - (exponent << 23)).view(torch.float32) - 1.0
    result: Tensor = add_exponent(x, polynomial(LOG, x), (exponent - 24).to(torch.float32))
    return result


def add_exponent(x: Any, series: Any, exponent: Any) -> Any:
    """ln(1 + x) + exponent · ln 2, ``series`` being (ln(1 + x) − x + x²/2) / x³."""
    square = x * x
    tail = square * x * series + exponent * LN2_LOW
    return exponent * LN2_HIGH + (x + (tail - 0.5 * square))


def polynomial(coefficients: tuple[float, ...], x: Any) -> Any:
    """Horner's rule, lowest coefficient first; product and sum are rounded apart."""
    total = coefficients[-1]
    for coefficient in coefficients[-2::-1]:
        total = total * x + coefficient
    return total


def _cosine_and_sine(word: Tensor) -> tuple[Tensor, Tensor]:
    """Of the angle 2π(k + ½)/2²³, k the word's upper 23 bits."""
    # The nearest multiple of a quarter turn, and what is left of it in units of a quarter turn.
    shifted = (word >> 9) + 2**20
    quarter = (shifted >> 21) & 3
    rest = (((shifted & (2**21 - 1)) - 2**20).to(torch.float32) + 0.5) * 2.0**-21
    square = rest * rest
    sine, cosine = rest * polynomial(SINE, square), polynomial(COSINE, square)
    odd = (quarter & 1) == 1
    first, second = torch.where(odd, sine, cosine), torch.where(odd, cosine, sine)
    first = torch.where((quarter == 1) | (quarter == 2), -first, first)
    return first, torch.where(quarter >= 2, -second, second)


def _box_muller(words: list[Tensor]) -> Tensor:
    """Four words to four standard normals, stacked in a new last dimension."""
    normals = []
    for first, second in ((words[0], words[1]), (words[2], words[3])):
        # by way of float64, since torch's own float32 root is not always the nearest number
        radius = torch.sqrt((-2.0 * _log_uniform(first)).double()).to(torch.float32)
        cosine, sine = _cosine_and_sine(second)
        normals += [radius * cosine, radius * sine]
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
    kind = torch.device(device).type
    if kind == "cpu" and compiled_problem() is None:
        from gradlab.evaluation.compiled import noise as _noise_kernel

        return _noise_kernel.normal(key, members, coordinates, stream)
    if kind == "cuda":
        from gradlab.evaluation import gpu

        if gpu.available(device) is None:
            return gpu.normal(key, members, coordinates, stream=stream, device=device)
    return normal_by_tensors(key, members, coordinates, stream, device)


def normal_by_tensors(
    key: int,
    members: tuple[int, int],
    coordinates: tuple[int, int],
    stream: int = POPULATION_STREAM,
    device: torch.device | str = "cpu",
) -> Tensor:
    """What :func:`normal` returns, by tensor operations on any device."""
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


@functools.cache
def compiled_problem() -> str | None:
    """Why compiled kernels cannot run on this machine, in a few words, or None."""
    try:
        from gradlab.evaluation.compiled import noise as _noise_kernel  # noqa: F401
    except Exception as error:  # a broken Numba fails in many ways, and none of them is fatal
        return f"Numba cannot be loaded ({type(error).__name__}: {error})"
    return None
