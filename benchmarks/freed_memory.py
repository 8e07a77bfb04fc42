"""How much of a training step goes to memory that is freed and taken again?

A step (loss, gradient, fused Adam) of Caffe's LeNet-5 on random images, batches of 100, plain and
with sparse variational dropout, in fresh processes that keep what they freed, as gradlab's own do,
and in ones that give it back, A B, B A, …; each reports the median of its steps and the page faults
of one. Linux with glibc only. The ratio depends on what a page fault costs, which is most in
virtual machines.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time

import _common
import torch
import torch.nn.functional as F

from gradlab import models
from gradlab._memory import keep_freed_memory
from gradlab.variational import kl_divergence, to_variational

WARM_UP, STEPS, BATCH, IMAGES = 20, 60, 100, 60_000


def one_process(options: argparse.Namespace) -> None:
    """Print the seconds and the page faults of a step of this process."""
    if options.keep and not keep_freed_memory():
        raise SystemExit("this process's allocator cannot be told to keep freed memory.")
    torch.manual_seed(0)
    network = models.create("lenet5_caffe", num_classes=10, input_shape=(1, 28, 28))
    if options.noisy:
        network = to_variational(network, "sparse")
    network = network.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)
    images = torch.rand(BATCH, 1, 28, 28).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (BATCH,))
    seconds, faults = [], []
    for _ in range(3 if options.quick else WARM_UP + STEPS):
        before, clock = _faults(), time.perf_counter()
        optimizer.zero_grad()
        loss = F.cross_entropy(network(images), labels)
        if options.noisy:
            loss = loss + kl_divergence(network) / IMAGES
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - clock)
        faults.append(_faults() - before)
    late = slice(-STEPS, None)
    found = {"seconds": statistics.median(seconds[late]), "faults": statistics.mean(faults[late])}
    print(json.dumps(found))


def _faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def main() -> int:
    """Measure, print, write; the exit status."""
    parser = _common.parser(__doc__)
    for option in ("child", "keep", "noisy"):
        parser.add_argument(f"--{option}", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    _common.start(options)
    if options.child:
        one_process(options)
        return 0
    results = {}
    for name in ("plain", "sparse"):
        rows: dict[str, list[dict[str, float]]] = {"kept": [], "given back": []}
        for number in range(1 if options.quick else options.rounds):
            for how in list(rows)[:: 1 if number % 2 == 0 else -1]:
                flags = ["--keep"] * (how == "kept") + ["--noisy"] * (name == "sparse")
                flags += ["--quick"] * options.quick + ["--threads", str(options.threads)]
                rows[how].append(_common.in_fresh_process(__file__, flags))
        seconds = {how: [row["seconds"] for row in found] for how, found in rows.items()}
        faults = {
            how: _common.spread([row["faults"] for row in found]) for how, found in rows.items()
        }
        ratio = _common.ratio(seconds["given back"], seconds["kept"])
        print(
            f"{name}: a step takes {_common.words(ratio)} times as long if memory is given back, "
            f"with {_common.words(faults['given back'])} page faults instead of "
            f"{_common.words(faults['kept'])}",
            flush=True,
        )
        milliseconds = {
            how: _common.spread([1000 * each for each in values]) for how, values in seconds.items()
        }
        results[name] = {"milliseconds": milliseconds, "ratio": ratio, "faults": faults}
    return _common.finish("freed_memory", options, results)


if __name__ == "__main__":
    sys.exit(main())
