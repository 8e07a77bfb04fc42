r"""Exact central differences along every weight of chosen layers of any module.

Changing one weight of a linear layer or convolution moves one channel of its output, in a way that
is known or shared with other weights (:mod:`gradlab.evaluation.module.moves`), so neither the
layers before it nor the layer itself are computed again. The move is followed through what comes
next as long as that treats channels apart: elementwise operations, BatchNorm in evaluation mode,
pooling, sign. If everything that the rest of the network sees is then what it was before, as it is
for most examples behind a sign when ε is small, the example's loss has not changed, and nothing
else is computed for it. Only changed pairs of a move and an example go through the rest of the
network, as one batch of examples, or, on a CPU, where its convolutions have inputs of few levels,
pair by pair and only as far as these change (:mod:`gradlab.evaluation.module.walk`). Where the
changed activations take few values, pairs that change the same single activation to the same value
share one evaluation: behind a linear layer all weights of a neuron do.

Parameters of other kinds, shared ones, modules that cannot be traced or that couple examples are
evaluated as populations (:class:`gradlab.evaluation.module.ModuleEvaluator`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gradlab.evaluation import population as pop
from gradlab.evaluation.module.evaluator import ModuleEvaluator
from gradlab.evaluation.module.following import Differences, LayerStats
from gradlab.evaluation.module.moves import find_moves
from gradlab.evaluation.population import Params

__all__ = ["DifferenceStats", "LayerStats", "module_differences"]


@dataclass
class DifferenceStats:
    """Filled by :func:`module_differences`: the work of each parameter."""

    layers: dict[str, LayerStats] = field(default_factory=dict)


def module_differences(
    evaluator: ModuleEvaluator,
    params: Params,
    epsilon: float,
    names: Sequence[str] | None = None,
    stats: DifferenceStats | None = None,
    coordinates: Mapping[str, Tensor] | None = None,
) -> Params:
    r""":math:`L(w + \varepsilon e_i) - L(w - \varepsilon e_i)` of every coordinate.

    Args:
        evaluator: the module and its batch.
        params: all parameters; must be finite.
        epsilon: the half-width, above zero.
        names: which parameters; all if left out.
        stats: filled with the number of examples evaluated and skipped.
        coordinates: of each name the flat coordinates ``(n,)`` that are wanted; all of those that
            it leaves out.

    Returns:
        A dict like ``params`` of the chosen names, or of vectors ``(n,)`` of the chosen
        coordinates, float64; NaN where the loss is.

    Raises:
        ValueError: an unknown name, or parameters that do not fit the module.

    >>> from torch import nn
    >>> evaluator = ModuleEvaluator(
    ...     nn.Linear(2, 1, bias=False), torch.tensor([[1.0, 2.0]]), torch.zeros(1, 1), loss="mse"
    ... )
    >>> differences = module_differences(evaluator, {"weight": torch.ones(1, 2)}, 0.5)
    >>> differences["weight"].tolist()  # of (w · x)², which is 4 ε (w · x) x
    [[6.0, 12.0]]
    """
    chosen = list(params) if names is None else list(names)
    unknown = sorted(set(chosen) - set(params))
    if unknown:
        raise ValueError(
            f"the module has no parameters {', '.join(unknown)}: choose among {', '.join(params)}."
        )
    evaluator.check_params(params)
    params = {name: tensor.detach() for name, tensor in params.items()}
    program, graph = evaluator.program, evaluator.program.graph
    out = {}
    for name in chosen:
        index = None if coordinates is None else coordinates.get(name)
        done = None
        if graph is not None and not evaluator.couples:
            with torch.no_grad():
                state, parameter = program.state(params), program.cast(params[name])
                moves = find_moves(graph, state, name, parameter, epsilon, index)
                if moves is not None:
                    done = Differences(evaluator, params, name, moves).run()
        if done is None:
            done = _by_population(evaluator, params, name, epsilon, index)
        elif index is not None:
            done = done[0].flatten()[index], done[1]
        out[name] = done[0].reshape(params[name].shape if index is None else (-1,))
        if stats is not None:
            stats.layers[name] = done[1]
    return out


def _by_population(
    evaluator: ModuleEvaluator, params: Params, name: str, epsilon: float, index: Tensor | None
) -> tuple[Tensor, LayerStats]:
    flat = params[name].flatten()
    places = torch.arange(len(flat), device=flat.device) if index is None else index
    out = torch.empty(len(places), dtype=torch.float64, device=flat.device)
    base = {other: tensor for other, tensor in params.items() if other != name}
    for low, high in pop.chunks(len(places), min(256, 2**22 // len(flat))):
        number = torch.arange(high - low, device=flat.device)
        steps = flat.new_zeros(2, high - low, len(flat))
        steps[0, number, places[low:high]] = epsilon
        steps[1, number, places[low:high]] = -epsilon
        members = (flat + steps).reshape(-1, *params[name].shape)
        losses = evaluator.losses({name: members}, base)
        out[low:high] = losses[: high - low] - losses[high - low :]
    pairs = 2 * len(places) * len(evaluator.inputs)
    return out, LayerStats("population", pairs, pairs, pairs)
