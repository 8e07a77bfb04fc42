"""Whole searches in a study, against the loop of gradlab.search and descent written out by hand."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from gradlab import search, studies, sweep
from gradlab.estimators import NES, STE
from gradlab.search import GaussianES, Metropolis, Particles
from gradlab.studies import cells, searches
from gradlab.studies.base import Row
from tests.studies import configs

BINARY = {**configs.TEACHER, "weight": "binary"}
ROSENBROCK = {"name": "test_function", "function": "rosenbrock", "num_dim": 4}
SNES = {"name": "snes"}
SMALL: dict[str, dict[str, Any]] = {
    "descent": {"lr": 0.1},
    "gaussian_es": {"population": 10},
    "metropolis": {"chains": 2, "temperature": [0.01, 0.1]},
    "particles": {"population": 8, "stages": 4},
    "pgpe": {"population": 8},
    "snes": {},
    "xnes": {},
}


def run_of(
    method: dict[str, Any] = SNES, objective: dict[str, Any] = configs.TEACHER, **settings: Any
) -> dict[str, Any]:
    settings = {"budget": 100, "points": 1000, **settings}
    return configs.cell("search_run", method, objective, **settings)


def start_of(config: dict[str, Any], **options: Any) -> tuple[Any, Any]:
    objective = cells.objective_of(config, **options)
    return objective, objective.initial_params(cells.derived_seed(config, 0, config["init"]))


def test_every_method_is_tried_and_has_its_line() -> None:
    assert set(SMALL) == set(searches.names()) == set(searches.ABOUT)
    assert set(searches.names()) == {*search.names(), "descent"}


@pytest.mark.parametrize("objective", [configs.TEACHER, BINARY, ROSENBROCK], ids=str)
@pytest.mark.parametrize("name", sorted(SMALL))
def test_every_method_runs_within_its_budget(
    name: str, objective: dict[str, Any], tmp_path: Path
) -> None:
    entry = {"name": name, **SMALL[name]}
    if name == "descent" and objective is ROSENBROCK:
        entry["estimator"] = "cdg"
    config = run_of(entry, objective, init=1)
    study = studies.create("search_run")
    study.validate(config)
    assert study.forward_passes(config) > 0
    rows = configs.run(config, tmp_path)
    assert configs.without_seconds(rows) == configs.without_seconds(configs.run(config, tmp_path))
    spent = [row["forward_passes"] + row["backward_passes"] for row in rows]
    assert spent == sorted(spent)
    # the next generation would have overrun it
    assert 100 - max(spent[-1] - spent[-2], 1) < spent[-1] <= 100
    best = [row["best_loss"] for row in rows]
    assert best == sorted(best, reverse=True)
    assert best[-1] < rows[0]["loss"] == best[0]
    assert all(row["best_loss"] <= row["loss"] for row in rows)
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows


def test_a_search_is_that_of_minimize(tmp_path: Path) -> None:
    config = run_of(SNES, budget=70)
    objective, params = start_of(config)
    unseen, _ = start_of(config, batch=cells.FRESH_BATCHES)
    method = search.create("snes")
    # the start, and four generations of 4 + 3 ln 36 members and the mean
    trace = search.minimize(objective, params, method, 4, cells.generator_of(config))
    rows = configs.run(config, tmp_path)
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    for row, own in zip(rows, trace.rows, strict=True):
        assert (row["loss"], row["best_loss"]) == (own.loss, own.best_loss)
        assert (row["width_mean"], row["forward_passes"]) == (own.sigma, own.evaluations)
        assert row["width_min"] <= 1.001 * row["width_mean"] <= 1.01 * row["width_max"]
        assert row["acceptance_rate"] is None
    assert rows[-1]["width_min"] == float(trace.state.spread.min())
    assert rows[-1]["best_loss_fresh"] == float(unseen.loss(trace.state.best))
    assert rows[-1]["best_loss_fresh"] != rows[-1]["best_loss"]


def test_a_descent_is_that_by_hand(tmp_path: Path) -> None:
    config = run_of({"name": "descent", "lr": 0.1, "normalize": "global"}, budget=12)
    objective, params = start_of(config)
    rows, lowest = configs.run(config, tmp_path), math.inf
    # one forward and one backward pass each, on one batch
    assert [row["forward_passes"] for row in rows] == [0, 1, 2, 3, 4, 5, 6]
    for row in rows:
        loss = float(objective.loss(params))
        lowest = min(lowest, loss)
        assert row["loss"] == pytest.approx(loss, rel=1e-6)
        assert row["best_loss"] == pytest.approx(lowest, rel=1e-6)
        assert row["surrogate"] == "hardtanh"
        assert row["lr"] == 0.1
        gradient = STE().estimate(objective, params, generator=torch.Generator()).gradient
        norm = configs.joined(gradient).norm()
        params = {name: w - 0.1 * gradient[name] / norm for name, w in params.items()}


def test_losses_that_no_gradient_brings_along_are_counted(tmp_path: Path) -> None:
    entry = {"name": "descent", "estimator": {"name": "nes", "population": 10}, "lr": 0.1}
    config = run_of(entry, budget=30)
    objective, params = start_of(config)
    rows = configs.run(config, tmp_path)
    assert [row["forward_passes"] for row in rows] == [0, 11, 22]
    assert rows[0]["label"] == "NES 10 descent"
    first = NES(population=10).estimate(
        objective, params, generator=cells.generator_of(config)
    ).gradient  # fmt: skip
    stepped = {k: w - 0.1 * first[k] / first[k].double().norm() for k, w in params.items()}
    assert rows[1]["loss"] == pytest.approx(float(objective.loss(stepped)), rel=1e-5)


@pytest.mark.parametrize("name", ["metropolis", "particles"])
def test_walks_flip_the_binary_weights_of_the_objective(name: str) -> None:
    objective, _ = start_of(run_of(objective=BINARY))
    plain, _ = start_of(run_of())
    method: Any = search.create(name)
    hidden = ("layers.0.weight", "layers.1.weight")
    found: Any = searches.fitted(method, objective)
    assert found.binary_weights == hidden
    assert searches.fitted(method, plain) == method
    chosen: Any = searches.fitted(search.create(name, binary_weights=hidden[:1]), objective)
    assert chosen.binary_weights == hidden[:1]


def test_acceptance_is_that_of_the_walk(tmp_path: Path) -> None:
    config = run_of({"name": "metropolis", **SMALL["metropolis"]}, BINARY)
    objective, params = start_of(config)
    method: Any = searches.fitted(Metropolis(chains=2, temperature=[0.01, 0.1]), objective)
    rows = configs.run(config, tmp_path)
    trace = search.minimize(objective, params, method, len(rows) - 1, cells.generator_of(config))
    assert rows[0]["acceptance_rate"] is rows[1]["acceptance_rate"] is None  # no choice as yet
    assert rows[-1]["acceptance_rate"] == method.acceptance_rate(trace.state)[0]
    assert 0 < rows[-1]["acceptance_rate"] < 1
    assert {row["width_mean"] for row in rows} == {0.1}


def test_points_are_even_in_the_logarithm(tmp_path: Path) -> None:
    rows = configs.run(run_of(SNES, budget=2000, points=10), tmp_path)
    assert len(rows) < 11
    spent = [row["forward_passes"] for row in rows[2:-1]]
    ratios = [later / earlier for earlier, later in itertools.pairwise(spent)]
    # the tenth root of 2,001, rounded to whole generations
    assert min(ratios) > 1.3
    assert max(ratios) < 2.6
    assert rows[-1]["forward_passes"] > 1985


def test_a_diverged_descent_ends_with_what_it_had(tmp_path: Path) -> None:
    entry = {"name": "descent", "estimator": "cdg", "lr": 1e200, "normalize": "none"}
    rows = configs.run(run_of(entry, configs.QUADRATIC, budget=1000), tmp_path)
    assert rows[-1]["loss"] is None
    assert rows[-1]["best_loss"] == rows[0]["loss"]
    assert rows[-1]["forward_passes"] < 1000


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("snes", {}, "SNES"),
        ("snes", {"importance_mixing": 0.2, "adaptation_sampling": True},
         "SNES importance mixing=0.2 adaptation sampling"),
        ("metropolis", {"temperature": [0.01], "binary_weights": []}, "Metropolis"),
        ("metropolis", {"temperature": [0.01, 0.1]}, "Metropolis T=0.01/0.1"),
        ("pgpe", {"normalized": False, "population": 10}, "PGPE not normalized P=10"),
        ("descent", {"lr": 1.0, "normalize": "none"}, "STE hardtanh descent normalize=none"),
    ],
)  # fmt: skip
def test_labels_say_what_is_unusual(name: str, options: dict[str, Any], expected: str) -> None:
    assert searches.label(name, options) == expected


def test_widths_are_those_of_the_distribution() -> None:
    objective, params = start_of(run_of(objective=ROSENBROCK))
    generator = torch.Generator().manual_seed(0)
    xnes = search.create("xnes", sigma=0.5)
    state = search.minimize(objective, params, xnes, 20, generator).state
    covariance = search.XNES().covariance(state.spread)
    principal = torch.linalg.eigvalsh(covariance).sqrt()
    torch.testing.assert_close(xnes.widths(state).sort().values, principal)
    mean = float(xnes.widths(state).log().mean().exp())
    assert mean == pytest.approx(xnes.sigma_of(state))
    assert mean != pytest.approx(0.5)
    walk = Particles(sigma=0.3)
    for method in (GaussianES(sigma=0.3), walk):  # of one width
        state = method.initial(params, generator=generator)
        assert method.widths(state).tolist() == pytest.approx([0.3])


SPEC = """
name = "bad"
study = "search_run"
[objective]
name = "teacher_student"
num_dim = 4
batch_size = 64
depth = 2
{more}
[settings]
budget = {budget}
[[{kind}]]
{method}
"""


@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        ('name = "sens"', "unknown search method 'sens': did you mean 'snes'"),
        ('name = "snes"\nsigm = 0.1', "option of methods.snes 'sigm': did you mean 'sigma'"),
        ('name = "snes"\nsigma = 0', "sigma is 0"),
        ('name = "pgpe"\npopulation = 7', "mirrored pairs need an even number; give 8"),
        ('name = "gaussian_es"', "one generation of Gaussian ES takes 102: raise the budget"),
        ('name = "particles"\npopulation = 10\nstages = 20',
         "all stages of particles P=10 take 232"),
        ('name = "metropolis"\nbinary_weights = ["layers.0.weight"]',
         r'layers.0.weight, which is not among the binary weights of this objective \(none\)'),
        ('name = "metropolis"\nflips = 3', "flips = 3 is how many signs .* has real weights"),
        ('name = "metropolis"\ntemperature = [0.1, 0.01]', "ascending order"),
        ('name = "descent"\nestimator = "sle"', "unknown estimator 'sle': did you mean 'ste'"),
        ('name = "descent"\nestimator = "cdg"', "one step of CDG descent takes 73"),
        ('name = "descent"\nestimator = {name = "disarm"}', "draws the signs of binary weights"),
        ('name = "descent"\nestimator = {name = "nes", population = [8, 16]}', "one population"),
        ('name = "descent"\nlr = 0', "lr is 0"),
        ('name = "descent"\nnormalize = "layer"', "normalize"),
    ],
)  # fmt: skip
def test_what_cannot_run_is_one_sentence(method: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(SPEC.format(more="", budget=60, kind="methods", method=method))
    with pytest.raises(ValueError, match=sentence) as caught:
        sweep.read_spec(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert text.endswith(".")
    assert "\n" not in text


def test_estimators_are_no_search_methods(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(SPEC.format(more="", budget=60, kind="estimators", method='name = "ste"'))
    with pytest.raises(ValueError, match=r"write \[\[methods\]\] instead"):
        sweep.read_spec(path)


def test_lists_are_axes_but_for_temperatures(tmp_path: Path) -> None:
    path = tmp_path / "good.toml"
    method = 'name = "metropolis"\nsigma = [0.1, 0.2]\ntemperature = [0.01, 0.1]'
    path.write_text(SPEC.format(more="", budget=100, kind="methods", method=method))
    entries = [cell.config["estimator"] for cell in sweep.expand(sweep.read_spec(path))]
    assert [(entry["sigma"], entry["temperature"]) for entry in entries] == [
        (0.1, [0.01, 0.1]),
        (0.2, [0.01, 0.1]),
    ]


TINY = ["inits=1", "objective.num_dim=2", "objective.batch_size=64", "settings.budget=70",
        "methods.gaussian_es.population=20", "methods.particles.population=10",
        "methods.particles.stages=4", "methods.descent.lr=[0.01, 0.1]"]  # fmt: skip


@pytest.mark.parametrize("name", ["search_methods", "search_methods_small"])
def test_shipped_sweeps_are_valid_and_run(name: str, tmp_path: Path) -> None:
    full = sweep.read_spec(name)
    assert full.name == name
    assert full.title
    assert full.description.strip()
    assert {entry["name"] for entry in full.methods} == set(SMALL)
    study = studies.create(full.study)
    assert all(study.forward_passes(cell.config) > 0 for cell in sweep.expand(full))
    tiny = sweep.read_spec(name, [*TINY, "settings.budget=110"])
    rows: list[Row] = []
    for cell in sweep.expand(tiny):
        rows += configs.run(cell.config, tmp_path)
    assert {row["estimator"] for row in rows} == set(SMALL)
    measured = {"loss", "best_loss", "best_loss_fresh", "seconds", "forward_passes",
                "backward_passes", "width_mean", "width_min", "width_max",
                "acceptance_rate"}  # fmt: skip
    keys = {json.dumps({k: v for k, v in row.items() if k not in measured}) for row in rows}
    assert len(keys) == len(rows)


def test_the_spec_of_the_documentation_is_valid(tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "search.md"
    path = tmp_path / "valley.toml"
    path.write_text(page.read_text(encoding="utf-8").split("```toml\n")[1].split("```")[0],
                    encoding="utf-8")  # fmt: skip
    spec = sweep.read_spec(path)
    assert {entry["name"] for entry in spec.methods} == {"xnes", "metropolis", "descent"}
    # two widths, a ladder of temperatures, three learning rates
    assert len(sweep.expand(spec)) == 5 * (2 + 1 + 3)
