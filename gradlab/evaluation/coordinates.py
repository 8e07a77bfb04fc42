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

import torch
from torch import Tensor

from gradlab.evaluation import population as pop
from gradlab.evaluation.population import Params
from gradlab.models.mlp import BinarizedMLP

# Floats of one batch of perturbed activations on the dense path: 32 MiB.
_BATCH_FLOATS = 2**23


def mlp_differences(
    model: BinarizedMLP, inputs: Tensor, targets: Tensor, params: Params, epsilon: float
) -> Params:
    r""":math:`L(w + \varepsilon e_i) - L(w - \varepsilon e_i)` of every coordinate, in float64.

    Args:
        model: the architecture.
        inputs: ``(B, num_dim)``.
        targets: ``(B, 1)``.
        params: one parameter dict; must be finite.
        epsilon: the half-width, above zero.

    Returns:
        A dict like ``params``, float64.
    """
    # What the perturbed weights multiply with: for binary weights sign(w + eps), so that only
    # latent weights within epsilon of zero do anything.
    weights = model.effective_weights(params)
    raised = model.effective_weights({k: w + epsilon for k, w in params.items()})
    lowered = model.effective_weights({k: w - epsilon for k, w in params.items()})
    names = model.layer_names
    hidden = [inputs.T.contiguous()]
    pre_activations = []
    for name in names[:-1]:
        pre_activations.append(weights[name] @ hidden[-1])
        hidden.append(model.activation_function.forward(pre_activations[-1]))
    target = targets[:, 0]

    out = {}
    for layer, name in enumerate(names[:-1]):
        # Steps as such where weights are real: (w + eps) - w would be eps with a rounding error.
        if model.weight == "real":
            up = torch.full_like(weights[name], epsilon)
            down = -up
        else:
            up, down = raised[name] - weights[name], lowered[name] - weights[name]
        suffix = _Suffix(model, weights, layer, hidden[layer + 1], target, pre_activations)
        differences = _sparse if model.activation_function.thresholds is not None else _dense
        out[name] = differences(
            suffix, pre_activations[layer], hidden[layer], up.double(), down.double()
        )
    error = weights[names[-1]].double() @ hidden[-1].double() - target.double()
    # The loss is quadratic in the output weights: 4 eps mean(error h), without rounding.
    out[names[-1]] = 4 * epsilon * (error @ hidden[-1].double().T)
    return {name: difference / len(inputs) for name, difference in out.items()}


class _Suffix:
    """The rest of the network behind one hidden layer, with one neuron's output replaced."""

    def __init__(
        self,
        model: BinarizedMLP,
        weights: Params,
        layer: int,
        hidden: Tensor,
        target: Tensor,
        pre_activations: list[Tensor],
    ) -> None:
        self.activate = model.activation_function.forward
        self.levels = model.activation_function.levels
        self.thresholds = model.activation_function.thresholds
        self.hidden = hidden
        self.target = target
        names = model.layer_names
        self.next = weights[names[layer + 1]]
        self.later = [weights[name] for name in names[layer + 2 :]]
        self.next_pre_activation = pre_activations[layer + 1] if self.later else self.next @ hidden

    def errors(self, neuron: int, output: Tensor | float, examples: Tensor) -> Tensor:
        """Output minus target, ``(..., c)`` float64, with ``neuron`` set to ``output``.

        ``output`` is a level or a tensor ``(..., c)``; ``examples`` are c indices.
        """
        change = output - self.hidden[neuron, examples]
        z = self.next_pre_activation[:, examples]
        z = z + self.next[:, neuron, None] * change.unsqueeze(-2)
        for weight in self.later:
            z = weight @ self.activate(z)
        return z.squeeze(-2).double() - self.target[examples].double()


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
            high = suffix.errors(neuron, suffix.levels[k + 1], examples)
            low = suffix.errors(neuron, suffix.levels[k], examples)
            jump = (high - low) * (high + low)
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
                errors = [
                    suffix.errors(
                        neuron,
                        suffix.activate(
                            z[neuron, a:b]
                            + step[neuron, low:high, None].to(z.dtype) * hidden[low:high, a:b]
                        ),
                        indices,
                    )
                    for step in (up, down)
                ]
                change = (errors[0] - errors[1]) * (errors[0] + errors[1])
                out[neuron, low:high] += change.sum(dim=-1)
    return out
