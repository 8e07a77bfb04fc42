"""What does a counter-based normal cost against torch.randn?

``gradlab.evaluation.noise.normal``, compiled on a processor and a Triton kernel on a GPU, and the
same bits by tensor operations in blocks of several sizes (64-bit words of one block stay in cache
through all ten rounds). Timed against ``torch.randn`` of the same shape, interleaved: nanoseconds
per normal. The shapes are what the evaluator draws at once at num_dim 2 and at num_dim 32. On a GPU
there are no blocks.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import _common
import torch
from torch import Tensor

from gradlab.evaluation import noise

BLOCKS = [2**power for power in (11, 13, 15, 17, 20)]


def main() -> int:
    """Both shapes, every block size."""
    parser = _common.parser(__doc__)
    options = parser.parse_args()
    _common.start(options)
    size, blocks = (2**14, BLOCKS[:2]) if options.quick else (2**20, BLOCKS)
    if options.device != "cpu":
        size, blocks = 2**26, [noise._BLOCK]
    rows = []
    for coordinates in (14, 3104):
        members = max(1, size // coordinates)
        cases: dict[str, Callable[[], Tensor]] = {
            "torch.randn": lambda m=members, c=coordinates: torch.randn(m, c, device=options.device)
        }
        cases["gradlab"] = lambda m=members, c=coordinates: noise.normal(
            7, (0, m), (0, c), device=options.device
        )
        for block in blocks:
            cases[f"tensors {block}"] = _drawn(members, coordinates, block, options.device)
        alone = [case() for name, case in cases.items() if name != "torch.randn"]
        assert all(torch.equal(alone[0], other) for other in alone), "the bits differ"
        seconds = _common.interleaved(cases, options.rounds, options.device)
        for name, values in seconds.items():
            per_normal = [1e9 * value / (members * coordinates) for value in values]
            row: dict[str, Any] = {
                "members": members,
                "coordinates": coordinates,
                "case": name,
                "nanoseconds_per_normal": _common.spread(per_normal),
                "times_torch_randn": _common.ratio(values, seconds["torch.randn"]),
            }
            rows.append(row)
            print(
                f"{members:6d} x {coordinates:4d}  {name:>15s} "
                f"{_common.words(row['nanoseconds_per_normal'])} ns per normal, "
                f"{_common.words(row['times_torch_randn'])} times torch.randn"
            )
    return _common.finish("noise", options, rows)


def _drawn(members: int, coordinates: int, block: int, device: str) -> Callable[[], Tensor]:
    def draw() -> Tensor:
        with mock.patch.object(noise, "_BLOCK", block):
            return noise.normal_by_tensors(7, (0, members), (0, coordinates), device=device)

    return draw


if __name__ == "__main__":
    sys.exit(main())
