"""What does a pruned network save when it is exported: time and bytes?

LeNet-300-100 with random weights and random masks of the sparsities that Molchanov et al. (2017,
arXiv 1701.05369) report, 98.9-97.2-62.0 per cent. Seconds for a set of images:

- ``torch``: the network before pruning, its layers as torch multiplies them;
- ``masked``, ``dense``, ``csr``: the exported formats, which sum in order and are equal bit for
  bit (checked here; random masks leave nearly every unit a weight, so that ``dense`` is nearly as
  large as ``masked``; a trained network loses more of its units).

Bytes of safetensors files: ``parameters`` are those of the network while it is trained, which has a
variance beside each weight; ``torch`` the weights and biases alone.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import _common
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from gradlab import models, variational
from gradlab.variational.export import FORMATS

SPARSITY = (0.989, 0.972, 0.62)
# log α of what is kept and of what is removed, on both sides of the threshold of 3
KEPT, REMOVED = -4.0, 5.0


def main() -> int:
    """Every batch size."""
    parser = _common.parser(__doc__)
    parser.set_defaults(rounds=9)
    parser.add_argument("--images", type=int, default=10_000)
    options = parser.parse_args()
    _common.start(options)
    if options.quick:
        options.images, options.rounds = 500, 2
    torch.manual_seed(0)
    plain = models.create("fully_connected").eval()
    pruned = with_masks(plain)
    with tempfile.TemporaryDirectory() as folder:
        exported, sizes = files(plain, pruned, Path(folder))
    images = torch.rand(options.images, 1, 28, 28)
    rows = [measure(plain, exported, images, size, options) for size in (1, 100, options.images)]
    for row in rows:
        times = {case: _common.words(each) for case, each in row["times_faster"].items()}
        print(f"batches of {row['batch_size']}: times faster than torch: {times}")
    print(f"bytes: {sizes}")
    results = {
        "layers": variational.layer_rows(pruned),
        "compression": variational.compression(pruned),
        "bytes": sizes,
        "inference": rows,
    }
    bars = [
        _common.bar(
            f"csr against torch, batches of {row['batch_size']}: times faster",
            row["times_faster"]["csr"]["median"],
            at_least=1.0,
        )
        for row in rows[1:]
    ]
    return _common.finish("variational_export", options, results, bars)


def with_masks(plain: nn.Module) -> nn.Module:
    """The network with sparse variational layers, of which random weights are removed."""
    model = variational.to_variational(plain, variational.create("sparse")).eval()
    layers = variational.stochastic_layers(model).values()
    for layer, sparsity in zip(layers, SPARSITY, strict=True):
        removed = torch.rand_like(layer.weight) < sparsity
        log_alpha = torch.where(removed, REMOVED, KEPT)
        with torch.no_grad():
            layer.log_sigma2.copy_(log_alpha + torch.log(layer.weight.square() + 1e-8))
        if not torch.equal(layer.mask(), ~removed):
            raise SystemExit("the masks are not those that were drawn.")
    return model


def files(
    plain: nn.Module, pruned: nn.Module, folder: Path
) -> tuple[dict[str, nn.Module], dict[str, int]]:
    """The exported networks, read back, and the bytes of every file."""
    for name, model in (("parameters", pruned), ("torch", plain)):
        save_file(model.state_dict(), folder / name)
    for format in FORMATS:
        variational.export(pruned, folder / format, format)
    sizes = {name: (folder / name).stat().st_size for name in ("parameters", "torch", *FORMATS)}
    return {format: variational.load_exported(folder / format) for format in FORMATS}, sizes


@torch.inference_mode()
def measure(
    plain: nn.Module,
    exported: dict[str, nn.Module],
    images: Tensor,
    batch_size: int,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Seconds of every case for images in batches of one size."""
    # a hundred batches are enough of the small ones
    batches = images[: 100 * batch_size].split(batch_size)
    predictions = {
        format: torch.cat([network(batch) for batch in batches]).view(torch.int32)
        for format, network in exported.items()
    }
    if not all(torch.equal(found, predictions["masked"]) for found in predictions.values()):
        raise SystemExit("the exported formats differ.")
    cases = {
        name: lambda network=network: [network(batch) for batch in batches]
        for name, network in {"torch": plain, **exported}.items()
    }
    seconds = _common.interleaved(cases, options.rounds)
    return {
        "batch_size": batch_size,
        "images": sum(len(batch) for batch in batches),
        "seconds": {case: _common.spread(values) for case, values in seconds.items()},
        "times_faster": {
            case: _common.ratio(seconds["torch"], values)
            for case, values in seconds.items() if case != "torch"
        },
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
