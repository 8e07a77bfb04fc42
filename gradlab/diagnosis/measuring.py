"""The diagnosis of one network: estimators against references, layer by layer, within a budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gradlab.diagnosis.agreement import Agreement, Reference, agreement
from gradlab.diagnosis.checks import checked_objective, undisturbed
from gradlab.diagnosis.entries import DEFAULT_ESTIMATORS, Entry, Given, entries
from gradlab.diagnosis.objective import BatchLoss, ModuleObjective
from gradlab.diagnosis.recommendation import recommend
from gradlab.diagnosis.references import (
    SIGNIFICANT,
    Budget,
    central_differences,
    smoothed_gradient,
    time_one_pass,
    typical_width,
)
from gradlab.estimators import GradientEstimate
from gradlab.estimators.base import above_zero
from gradlab.evaluation import Params
from gradlab.models.mlp import positive_integer
from gradlab.objectives.base import check_seed
from gradlab.studies.clock import now

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

COLUMNS = (
    "estimator", "layer", "cosine", "cosine_low", "cosine_high", "norm_ratio", "sign_agreement",
    "best_lr", "loss_decrease", "forward_passes", "seconds", "backward_passes", "reference",
    "status", "exact", "coordinates", "reference_self_cosine", "reference_forward_passes",
)  # fmt: skip
STEPS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Step lengths as shares of a layer's norm, where no learning rates are given."""
# Of the whole budget, what may have been spent after the references.
_AFTER_CDG, _AFTER_SMOOTHED, _AFTER_ESTIMATORS = 0.3, 0.6, 0.75


@dataclass(frozen=True)
class Diagnosis:
    """What :func:`diagnose` found.

    Attributes:
        table: one row per estimator, layer and reference (pandas).
        recommendation: which estimator to use, with the evidence, and what could not be known.
        settings: widths, loss, budget and what of it was spent.
    """

    table: pd.DataFrame
    recommendation: str
    settings: dict[str, Any] = field(default_factory=dict)

    def figure(self) -> Figure:
        """Cosine and loss decrease by layer; ``figures/diagnosis.py`` draws it."""
        from gradlab.reporting import drawing

        figure, _ = drawing.load_figure("diagnosis").draw({"diagnosis": self.table})
        drawn: Figure = figure
        return drawn


@dataclass(frozen=True)
class Measured:
    """One estimator's outcome.

    Attributes:
        entry: the estimator.
        estimate: None where it was not made.
        problem: why not.
        seconds: what it took.
        steps: per layer the best step length and its decrease of the loss.
    """

    entry: Entry
    estimate: GradientEstimate | None
    problem: str = ""
    seconds: float = math.nan
    steps: dict[str, tuple[float, float]] = field(default_factory=dict)


def diagnose(
    model: nn.Module,
    loss_fn: BatchLoss,
    batch: tuple[Tensor, Tensor],
    layers: Sequence[str] | None = None,
    estimators: Sequence[Given] = DEFAULT_ESTIMATORS,
    *,
    coordinates: int = 128,
    epsilon: float | None = None,
    sigma: float | None = None,
    lr: Sequence[float] | None = None,
    max_forward_passes: float = 20_000,
    max_seconds: float = 60.0,
    seed: int = 0,
    memory_bytes: int = 2**28,
) -> Diagnosis:
    r"""Measure which gradient estimator points downhill on your own network.

    In every layer each estimator is compared with two references: ``cdg``, central differences
    along random coordinates, and ``smoothed``, the gradient of the loss smoothed by N(0, σ²) on the
    chosen weights. Either may be unknown within the budget; ``status`` then says so, and its
    numbers are NaN. The module, its mode, hooks, gradients and all random numbers stay as they are.

    Args:
        model: any ``nn.Module`` with signs (``torch.sign``, comparisons, ``torch.where``,
            ``torch.heaviside``, an ``autograd.Function`` that is a sign, gradlab's layers), in
            evaluation mode. It takes one tensor and returns one, a row per example.
        loss_fn: of outputs and targets, a scalar such as ``nn.CrossEntropyLoss()`` gives.
        batch: inputs and targets, tensors with a row per example.
        layers: names of parameters or modules; all weights with two or more dimensions if left out.
        estimators: "own" (the module's own backward pass), names of estimators or surrogates,
            tables of a name and options, or estimators.
        coordinates: per layer, of the central differences.
        epsilon: their half-width; half the median layer's root mean square weight if left out.
        sigma: width of the smoothing; as epsilon if left out.
        lr: step lengths along each layer's normalized gradient; if left out, from .003 of
            the layer's norm to all of it.
        max_forward_passes: budget, in full-batch equivalents by definition (CDG: two per
            coordinate), whatever the implementation needs.
        max_seconds: budget, counted once the network has been tried out; what has begun is
            finished.
        seed: fixes coordinates and samples; how many of them fit into ``max_seconds`` is the
            machine's doing.
        memory_bytes: bound on what an evaluation holds at a time.

    Raises:
        ValueError: anything that cannot be diagnosed, in one sentence, before any work.

    >>> _ = torch.manual_seed(0)
    >>> class Sign(nn.Module):
    ...     def forward(self, x): return torch.sign(x)
    >>> model = nn.Sequential(nn.Linear(4, 6), Sign(), nn.Linear(6, 3)).eval()
    >>> batch = torch.randn(64, 4), torch.randint(3, (64,))
    >>> found = diagnose(model, nn.CrossEntropyLoss(), batch, estimators=["own", "hardtanh"])
    >>> found.table.query("reference == 'cdg'")[["estimator", "layer", "exact"]].values.tolist()
    [['own backward', '0.weight', False], ['own backward', '2.weight', True], ['STE hardtanh',
     '0.weight', False], ['STE hardtanh', '2.weight', True]]
    """
    for name, value in (("epsilon", epsilon), ("sigma", sigma)):
        if value is not None:
            above_zero(name, value)
    for name, value in (("max_forward_passes", max_forward_passes), ("max_seconds", max_seconds)):
        above_zero(name, value)
    positive_integer("coordinates", coordinates)
    check_seed("seed", seed)
    if lr is not None:
        if isinstance(lr, str | float | int) or not len(lr):
            raise ValueError(f"lr is {lr!r}: give a list of step lengths, or leave it out.")
        for each in lr:
            above_zero("lr", each)
    entries(estimators, sigma or 0.1, epsilon or 0.1)  # complains before the network is tried
    with undisturbed():
        objective = checked_objective(model, loss_fn, batch, layers, memory_bytes)
        epsilon = epsilon or typical_width(objective.params)
        sigma = sigma or typical_width(objective.params)
        budget = Budget(float(max_forward_passes), float(max_seconds))
        lengths = _lengths(objective.params, lr)
        chosen = entries(estimators, sigma, epsilon)
        return _measured(objective, chosen, coordinates, (epsilon, sigma), lengths, budget, seed)


def _lengths(params: Params, lr: Sequence[float] | None) -> dict[str, tuple[float, ...]]:
    if lr is not None:
        return dict.fromkeys(params, tuple(float(each) for each in lr))
    norms = {name: float(w.double().norm()) or 1.0 for name, w in params.items()}
    return {name: tuple(float(f"{s * n:.3g}") for s in STEPS) for name, n in norms.items()}


def _measured(
    objective: ModuleObjective,
    chosen: list[Entry],
    coordinates: int,
    widths: tuple[float, float],
    lengths: dict[str, tuple[float, ...]],
    budget: Budget,
    seed: int,
) -> Diagnosis:
    import pandas as pd

    epsilon, sigma = widths
    loss = float(objective.loss(objective.params))
    time_one_pass(objective, sigma, budget)
    exact = exact_layers(objective)
    budget.started = now()  # what is loaded and compiled once has been by now
    # those of a pass or two come first: they are the question, and cost next to nothing
    cheap = [e for e in chosen if e.forward_passes(objective) <= 2]
    measured = {e.label: _estimated(e, objective, budget, seed) for e in cheap}
    references = [
        central_differences(objective, epsilon, coordinates, budget, _AFTER_CDG, seed),
        # drawn with another seed than the estimates that they judge
        smoothed_gradient(
            objective, sigma, budget, _AFTER_SMOOTHED, seed + 2**31, set(objective.names) - exact
        ),
    ]
    for entry in chosen:
        if entry.label not in measured:
            measured[entry.label] = _estimated(entry, objective, budget, seed, _AFTER_ESTIMATORS)
    skipped = {
        label: each.problem
        for label, each in measured.items()
        if each.estimate is None and each.entry.optional and each.problem.startswith("refused")
    }
    kept = [measured[e.label] for e in chosen if e.label not in skipped]
    stepped = _stepped(kept, objective, lengths, budget)
    rows: list[dict[str, Any]] = []
    agreements: dict[tuple[str, str, str], Agreement] = {}
    for each in stepped:
        for name in objective.names:
            for reference in (kind[name] for kind in references):
                row, found = _row(each, name, reference, objective, name in exact)
                rows.append(row)
                if found is not None:
                    agreements[each.entry.label, name, reference.kind] = found
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    passes_left, seconds_left = budget.left()
    settings = {
        "loss": loss, "examples": len(objective.evaluator.inputs), "epsilon": epsilon,
        "sigma": sigma, "seed": seed, "layers": list(objective.names),
        "signs": objective.signs.activations, "weight_signs": objective.signs.weights,
        "evaluation": objective.evaluator.path,
        "whole_batch": objective.evaluator.couples,
        "max_forward_passes": budget.max_forward_passes, "max_seconds": budget.max_seconds,
        "forward_passes": budget.max_forward_passes - passes_left,
        "seconds": round(budget.max_seconds - seconds_left, 3), "left_out": skipped,
    }  # fmt: skip
    return Diagnosis(table, recommend(table, agreements, settings), settings)


class _Flat:
    """A sign without any derivative."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sign(x)

    def derivative(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


class _Unit(_Flat):
    """A sign whose derivative is 1."""

    def derivative(self, x: Tensor) -> Tensor:
        return torch.ones_like(x)


def exact_layers(objective: ModuleObjective) -> set[str]:
    """Layers behind the last sign: no derivative of a sign has a say in their gradient."""
    flat, unit = (
        objective.surrogate_gradient(objective.params, rule, rule) for rule in (_Flat(), _Unit())
    )
    return {
        name for name, g in unit.items() if bool((g != 0).any()) and torch.allclose(flat[name], g)
    }


def _estimated(
    entry: Entry, objective: Any, budget: Budget, seed: int, share: float = 1.0
) -> Measured:
    """One estimate, unless the budget does not reach or the estimator refuses the network."""
    passes = entry.forward_passes(objective)
    seconds = passes * budget.seconds_per_pass
    if passes > 2 and not budget.affords(passes, seconds, share):
        return Measured(entry, None, f"not run: {budget.too_dear(passes, seconds, share)}")
    generator = torch.Generator().manual_seed(seed)
    clock = now()
    try:
        found = entry.estimator.estimate(objective, objective.params, generator=generator)
    except ValueError as error:
        return Measured(entry, None, f"refused: {error}")
    budget.spent += found.forward_passes
    return Measured(entry, found, "", now() - clock)


def _stepped(
    measured: list[Measured],
    objective: ModuleObjective,
    lengths: dict[str, tuple[float, ...]],
    budget: Budget,
) -> list[Measured]:
    """With the best step of every layer that the budget reaches for all estimators alike."""
    steps: dict[str, dict[str, tuple[float, float]]] = {each.entry.label: {} for each in measured}
    made = [each for each in measured if each.estimate is not None]
    rate = budget.seconds_per_pass
    for name in objective.names:
        passes = len(made) * (len(lengths[name]) + 1)
        if not budget.affords(passes, passes * rate):
            continue
        clock = now()
        for each in made:
            assert each.estimate is not None
            found = objective.best_step({name: each.estimate.gradient[name]}, lengths)
            steps[each.entry.label] |= found
        budget.spent += passes
        # in float64, and with more or less of the network behind the layer
        rate = max(budget.seconds_per_pass, (now() - clock) / passes)
    return [replace(each, steps=steps[each.entry.label]) for each in measured]


def _row(
    measured: Measured,
    name: str,
    reference: Reference,
    objective: ModuleObjective,
    exact: bool,
) -> tuple[dict[str, Any], Agreement | None]:
    size = objective.whole[name].numel()
    estimate = measured.estimate
    best_lr, decrease = measured.steps.get(name, (math.nan, math.nan))
    row: dict[str, Any] = {
        **dict.fromkeys(COLUMNS, math.nan),
        "estimator": measured.entry.label, "layer": name, "best_lr": best_lr,
        "loss_decrease": decrease, "seconds": measured.seconds, "reference": reference.kind,
        "exact": exact, "reference_self_cosine": reference.self_cosine,
        "reference_forward_passes": reference.forward_passes,
        "coordinates": size if reference.coordinates is None else len(reference.coordinates),
    }  # fmt: skip
    if estimate is None:
        return {**row, "status": measured.problem}, None
    row["forward_passes"] = estimate.forward_passes
    row["backward_passes"] = estimate.backward_passes
    gradient = estimate.gradient[name]
    if not bool(torch.isfinite(gradient).all()):
        return {**row, "status": "the estimate is NaN or infinite"}, None
    if not bool((gradient != 0).any()):
        return {**row, "status": "the estimate is zero: no gradient reaches this layer"}, None
    if reference.problem or reference.halves is None:
        return {**row, "status": reference.problem}, None
    found = agreement(gradient, reference)
    row |= {"cosine_low": found.low, "cosine_high": found.high}
    noise = _noise(estimate, name, found, size)
    if noise:
        return {**row, "status": noise}, found
    row |= {"cosine": found.cosine, "norm_ratio": found.norm_ratio,
            "sign_agreement": found.sign_agreement, "status": "ok"}  # fmt: skip
    return row, found


def _noise(estimate: GradientEstimate, name: str, found: Agreement, size: int) -> str:
    """Why a sampled estimate says nothing about a layer, if so."""
    own = estimate.diagnostics.get(f"split_half_cosine/{name}")
    if own is None or found.low > 0 or own * math.sqrt(size) >= SIGNIFICANT:
        return ""
    return (
        f"noise: the halves of {estimate.forward_passes:,.0f} forward passes agree to a cosine of "
        f"{own:.2f}, and the interval of the cosine holds 0"
    )
