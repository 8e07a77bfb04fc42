r"""Exact central differences along every weight of a binarized MLP, by sparse flips.

Changing one weight :math:`W_{ij}` of a layer moves one pre-activation, :math:`z_i \pm \varepsilon
h_j`, and the network notices only where that crosses a threshold :math:`\tau_k` of the activation.
Writing the activation as a staircase, the loss of one example is

.. math:: \ell(z_i) = \ell_0 + \sum_k 1[z_i \ge \tau_k]\,(\ell_k - \ell_{k-1}),

where :math:`\ell_k` is its loss with neuron i forced to level k, whichever weight caused it. So it
takes one suffix evaluation per neuron, level and *candidate* example (:math:`|z_i - \tau_k| \le
\varepsilon\max_j|h_j|`), instead of two network evaluations per weight and example. The result is
exact but for examples within floating-point rounding of a threshold. A continuous activation has no
thresholds: there the changed rows are propagated one by one from the cached prefix.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from gradlab.binary import sign
from gradlab.evaluation import population as pop
from gradlab.evaluation.population import Params
from gradlab.models.mlp import BinarizedMLP

# Floats of one batch of perturbed activations on the dense path: 32 MiB.
_BATCH_FLOATS = 2**23


def mlp_differences(
    model: BinarizedMLP,
    inputs: Tensor,
    targets: Tensor,
    params: Params,
    epsilon: float,
    loss: str = "mse",
) -> Params:
    r""":math:`L(w + \varepsilon e_i) - L(w - \varepsilon e_i)` of every coordinate, in float64.

    By tensor operations, on any device; ``MLPEvaluator.coordinate_differences`` chooses compiled
    kernels where they can run.

    Args:
        model: the architecture.
        inputs: ``(B, num_inputs)``.
        targets: ``(B, num_outputs)``, or labels ``(B,)`` int64 for cross-entropy.
        params: one parameter dict; must be finite.
        epsilon: the half-width, above zero.
        loss: "mse" or "cross_entropy".

    Returns:
        A dict like ``params``, float64.
    """
    weights = model.effective_weights(params)
    names = model.layer_names
    hidden = [inputs.T.contiguous()]
    pre_activations = []
    for name in names[:-1]:
        pre_activations.append(weights[name] @ hidden[-1])
        hidden.append(model.activation_function.forward(pre_activations[-1]))
    outputs = weights[names[-1]].double() @ hidden[-1].double()
    losses = _Losses(loss, targets)

    out = {}
    for layer, name in enumerate(names[:-1]):
        up, down = (step.double() for step in steps(model, params, name, epsilon))
        suffix = _Suffix(model, weights, layer, hidden[layer + 1], losses, pre_activations)
        differences = _sparse if model.activation_function.thresholds is not None else _dense
        out[name] = differences(suffix, pre_activations[layer], hidden[layer], up, down)
    out[names[-1]] = _output_differences(losses, outputs, hidden[-1], epsilon)
    return {name: difference / len(inputs) for name, difference in out.items()}


def steps(model: BinarizedMLP, params: Params, name: str, epsilon: float) -> tuple[Tensor, Tensor]:
    """What ±epsilon adds to the weights that multiply, up and down, shaped like the weight.

    With binary weights sign(w ± epsilon) - sign(w): only latent weights within epsilon of zero do
    anything.
    """
    weight = params[name]
    if model.weight == "real":
        # Steps as such: (w + eps) - w would be eps with a rounding error.
        return torch.full_like(weight, epsilon), torch.full_like(weight, -epsilon)
    present = sign(weight)
    return sign(weight + epsilon) - present, sign(weight - epsilon) - present


@dataclass(frozen=True)
class _Losses:
    """Per-example losses of outputs, and their differences in full precision."""

    kind: str
    targets: Tensor

    def change(self, after: Tensor, before: Tensor, examples: Tensor | slice) -> Tensor:
        """loss(after) - loss(before): outputs ``(..., m, c)`` float64 to ``(..., c)``."""
        targets = self.targets[examples]
        if self.kind == "mse":
            both = after + before - 2 * targets.T.double()
            return ((after - before) * both).mean(dim=-2)
        label = targets.expand(*after.shape[:-2], 1, -1)

        def losses(outputs: Tensor) -> Tensor:
            found = outputs.expand_as(after)
            return outputs.logsumexp(dim=-2) - found.gather(-2, label)[..., 0, :]

        return losses(after) - losses(before)


def _output_differences(losses: _Losses, outputs: Tensor, hidden: Tensor, epsilon: float) -> Tensor:
    """Summed loss differences ``(m, n)`` of the output weights, without cancellation."""
    hidden = hidden.double()
    if losses.kind == "mse":
        # The loss is quadratic in the output weights: 4 eps mean(error h).
        error = outputs - losses.targets.T.double()
        return 4 * epsilon * (error @ hidden.T) / len(outputs)
    # log Σ exp moves by log(1 + p (exp(±eps h) - 1)) where class c has probability p.
    out = torch.zeros(len(outputs), len(hidden), dtype=torch.float64, device=hidden.device)
    for a, b in pop.chunks(hidden.shape[1], max(1, _BATCH_FLOATS // (4 * out.numel()))):
        step, probability = epsilon * hidden[None, :, a:b], outputs[:, a:b].softmax(dim=0)
        raised = torch.log1p(probability[:, None] * torch.expm1(step))
        lowered = torch.log1p(probability[:, None] * torch.expm1(-step))
        own = one_hot(losses.targets[a:b], len(outputs)).T[:, None]
        out += (raised - lowered - 2 * step * own).sum(dim=-1)
    return out


class _Suffix:
    """The rest of the network behind one hidden layer, with one neuron's output replaced."""

    def __init__(
        self,
        model: BinarizedMLP,
        weights: Params,
        layer: int,
        hidden: Tensor,
        losses: _Losses,
        pre_activations: list[Tensor],
    ) -> None:
        self.activate = model.activation_function.forward
        self.levels = model.activation_function.levels
        self.thresholds = model.activation_function.thresholds
        self.hidden = hidden
        self.losses = losses
        names = model.layer_names
        self.next = weights[names[layer + 1]]
        self.later = [weights[name] for name in names[layer + 2 :]]
        self.next_pre_activation = pre_activations[layer + 1] if self.later else self.next @ hidden

    def outputs(self, neuron: int, output: Tensor | float, examples: Tensor) -> Tensor:
        """Network outputs ``(..., m, c)`` float64 with ``neuron`` set to ``output``.

        ``output`` is a level or a tensor ``(..., c)``; ``examples`` are c indices.
        """
        change = output - self.hidden[neuron, examples]
        z = self.next_pre_activation[:, examples]
        z = z + self.next[:, neuron, None] * change.unsqueeze(-2)
        for weight in self.later:
            z = weight @ self.activate(z)
        return z.double()


def _sparse(suffix: _Suffix, z: Tensor, hidden: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Summed loss differences ``(rows, columns)`` of one layer, for an activation with levels."""
    assert suffix.levels is not None
    assert suffix.thresholds is not None
    out = torch.zeros_like(up)
    largest = hidden.abs().amax(dim=0)
    for neuron in range(len(z)):
        reach = torch.maximum(up[neuron].abs().max(), down[neuron].abs().max()).to(z.dtype)
        if reach == 0:
            continue
        for k, threshold in enumerate(suffix.thresholds):
            # A hair more than the reach: a candidate too many costs nothing but its evaluation.
            near = (z[neuron] - threshold).abs() <= reach * largest * (1 + 1e-5)
            examples = near.nonzero()[:, 0]
            if not len(examples):
                continue
            high = suffix.outputs(neuron, suffix.levels[k + 1], examples)
            low = suffix.outputs(neuron, suffix.levels[k], examples)
            jump = suffix.losses.change(high, low, examples)
            column = hidden[:, examples]
            row = z[neuron, examples]
            raised = row + up[neuron, :, None].to(z.dtype) * column >= threshold
            lowered = row + down[neuron, :, None].to(z.dtype) * column >= threshold
            crossed = raised.to(torch.int8) - lowered.to(torch.int8)
            out[neuron] += crossed.double() @ jump
    return out


def _dense(suffix: _Suffix, z: Tensor, hidden: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """The same for a continuous activation: every changed row is propagated."""
    out = torch.zeros_like(up)
    examples = min(z.shape[1], 4096)
    columns = max(1, _BATCH_FLOATS // (examples * len(z)))
    for a, b in pop.chunks(z.shape[1], examples):
        indices = torch.arange(a, b, device=z.device)
        for neuron in range(len(z)):
            for low, high in pop.chunks(len(hidden), columns):
                raised, lowered = (
                    suffix.outputs(
                        neuron,
                        suffix.activate(
                            z[neuron, a:b]
                            + step[neuron, low:high, None].to(z.dtype) * hidden[low:high, a:b]
                        ),
                        indices,
                    )
                    for step in (up, down)
                )
                change = suffix.losses.change(raised, lowered, indices)
                out[neuron, low:high] += change.sum(dim=-1)
    return out
