"""How near do propagated moments and the matched STE come to a convolutional network's gradient?

Two convolutions behind signs, the mean over positions and a linear layer on ``EXAMPLES`` images of
8 × 8 correlated pixels: the cosine of every layer of an estimate to the gradient of the loss that
is smoothed by Gaussian noise on all weights. Moment propagation is also measured with noise of
every position its own in the covariance of the outputs, to see what sharing the weights changes;
the matched STE by one draw and by the mean of ``DRAWS``.

The reference is a score-function estimate of its own that shares no code with the estimators:
mirrored weights of every example's own, the second layer's against the first layer's sample. Its
halves are independent, so that ⟨first, second⟩ has the true squared norm as its expectation, and
⟨estimate, reference⟩ the true inner product: cosines need no correction, but are noisy by about a
hundredth in the second layer, and can pass 1. ``head`` multiplies the output layer's fresh weights:
with 8 the network is as sure of itself as a trained one.
"""

from __future__ import annotations

import math
import time
from typing import Any

import _common
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradlab.binary import sign
from gradlab.estimators import create, moments_module
from gradlab.evaluation import Params
from gradlab.objectives import Classification

EXAMPLES, DRAWS = 64, 8
CASES = ((1.0, 0.1), (8.0, 0.1), (8.0, 0.3))


class Network(nn.Module):
    """Two binarized convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.second = nn.Conv2d(4, 8, 3, stride=2, bias=False)
        self.head = nn.Linear(8, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(B, 1, 8, 8)`` to three logits."""
        outputs: Tensor = self.head(sign(self.second(sign(self.first(x)))).mean((2, 3)))
        return outputs


def reference(params: Params, x: Tensor, y: Tensor, sigma: float, passes: int, seed: int) -> Params:
    """The gradient of the smoothed loss, by passes with noise of every example's own."""
    generator = torch.Generator().manual_seed(seed)
    first, second, head = params.values()
    total = {name: torch.zeros_like(w, dtype=torch.float64) for name, w in params.items()}
    patches, size = F.unfold(x, 3, padding=1), len(x)
    mean = first.flatten(1) @ patches
    wanted = F.one_hot(y, 3)
    for _ in range(passes):
        one = torch.randn(size, *first.flatten(1).shape, generator=generator)
        two = torch.randn(size, *second.flatten(1).shape, generator=generator)
        last = torch.randn(size, 3, generator=generator)
        rewards = []
        for side in (1, -1):
            hidden = sign(mean + side * sigma * one @ patches).reshape(size, 4, 8, 8)
            columns = F.unfold(hidden, 3, stride=2)
            losses = []
            for other in (1, -1):
                signs = sign(second.flatten(1) @ columns + other * sigma * two @ columns)
                means = signs.mean(2)
                spread = sigma * means.norm(dim=1, keepdim=True) * last
                both = torch.zeros(size)
                for mirrored in (1, -1):
                    logits = means @ head.T + mirrored * spread
                    both += F.cross_entropy(logits, y, reduction="none") / 2
                    total["head.weight"] += (torch.softmax(logits, 1) - wanted).T @ means / 8
                losses.append(both)
            score = (losses[0] - losses[1]) / (4 * sigma)
            total["second.weight"] += (score @ two.flatten(1)).reshape(second.shape)
            rewards.append(losses[0] + losses[1])
        score = (rewards[0] - rewards[1]) / (4 * sigma)
        total["first.weight"] += (score @ one.flatten(1)).reshape(first.shape)
    return {name: each / (passes * size) for name, each in total.items()}


def measure(head: float, sigma: float, passes: int) -> list[dict[str, Any]]:
    """A row for every estimator."""
    torch.manual_seed(0)
    model = Network()
    model.head.weight.data *= head
    x = torch.randn(EXAMPLES, 1, 8, 8)
    x = x + 2 * F.avg_pool2d(x, 3, 1, 1)
    y = (x.mean((1, 2, 3)) > 0).long() + (x[:, 0, 2, 2] > 0).long()
    objective = Classification(model, x, y)
    params = {name: w.detach().clone() for name, w in model.named_parameters()}
    halves = [reference(params, x, y, sigma, passes, seed) for seed in (0, 1)]

    def matched(seeds: int) -> Params:
        estimator = create("ste", surrogate={"name": "matched", "sigma": sigma})
        several = [
            estimator.estimate(objective, params, generator=torch.Generator().manual_seed(seed))
            for seed in range(seeds)
        ]
        return {n: torch.stack([each.gradient[n] for each in several]).mean(0) for n in params}

    def moments(shared: bool) -> Params:
        return moments_module.estimate(objective, params, sigma, "", shared=shared).gradient

    makers = {
        "moment propagation": lambda: moments(True),
        "  with noise by position": lambda: moments(False),
        "matched STE": lambda: matched(1),
        f"  mean of {DRAWS}": lambda: matched(DRAWS),
        "STE hardtanh": lambda: (
            create("ste").estimate(objective, params, generator=torch.Generator()).gradient
        ),
    }
    rows = []
    for name, make in makers.items():
        clock = time.perf_counter()
        found = make()
        seconds = time.perf_counter() - clock
        cosines, norms = [], []
        for layer, gradient in found.items():
            norm = math.sqrt(max(1e-30, float((halves[0][layer] * halves[1][layer]).sum())))
            both = (halves[0][layer] + halves[1][layer]) / 2
            cosines.append(float((gradient * both).sum() / gradient.norm()) / norm)
            norms.append(float(gradient.norm()) / norm)
        rows.append({"estimator": name.strip(), "cosines": cosines, "norm_ratios": norms,
                     "seconds": seconds})  # fmt: skip
        words = " ".join(f"{c:.3f} ({n:.2f})" for c, n in zip(cosines, norms, strict=True))
        print(f"  {name:26s} {seconds:6.2f} s  {words}", flush=True)
    return rows


def main() -> int:
    """Measure and write the result; 1 if a bar is missed."""
    parser = _common.parser(__doc__)
    parser.add_argument("--passes", type=int, default=800, help="of each half [800]")
    options = parser.parse_args()
    _common.start(options)
    results, bars = [], []
    for head, sigma in CASES:
        print(f"head × {head:g}, σ = {sigma:g}: cosines (norm ratios) by layer")
        rows = measure(head, sigma, 20 if options.quick else options.passes)
        results += [{"head": head, "sigma": sigma} | row for row in rows]
        bars.append(_common.bar(f"head × {head:g}, σ = {sigma:g}: moments' smallest cosine",
                                min(rows[0]["cosines"]), at_least=0.95))  # fmt: skip
    return _common.finish("moments_conv", options, {"rows": results}, bars)


if __name__ == "__main__":
    raise SystemExit(main())
