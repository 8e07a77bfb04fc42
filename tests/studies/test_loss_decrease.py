"""One step of every learning rate, against the same written out by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gradlab import studies
from gradlab.binary import sign
from gradlab.estimators import CDG, NES
from gradlab.evaluation import Params, noise, population
from gradlab.objectives import TeacherStudent
from gradlab.studies import cells
from tests.studies import configs
from tests.studies.configs import rows_of

LRS = [1e-4, 0.03, 0.5]


def loss_decrease(*arguments: Any, **settings: Any) -> dict[str, Any]:
    return configs.cell("loss_decrease", *arguments, **{"lr": LRS, **settings})


def problem(config: dict[str, Any]) -> tuple[TeacherStudent, Params, Params]:
    """Objective, student and estimated gradient of a cell with a fresh student."""
    objective = cells.objective_of(config)
    assert isinstance(objective, TeacherStudent)
    params = objective.initial_params(cells.derived_seed(config, 0, config["init"]))
    estimator = cells.estimator_of(config)
    estimate = estimator.estimate(objective, params, generator=cells.generator_of(config))
    return objective, params, estimate.gradient


def normalized(gradient: Params, normalize: str) -> Params:
    """The formula of each normalization, written out."""
    whole = configs.joined(gradient).norm()
    length = {"tensor": lambda g: g.double().norm(), "global": lambda _: whole}
    if normalize == "none":
        return gradient
    return {name: g.double() / (length[normalize](g) + 1e-8) for name, g in gradient.items()}


@pytest.mark.parametrize("estimator", [configs.STE, configs.NES, configs.LOCAL, configs.CDG])
def test_a_cell_is_a_pure_function(estimator: dict[str, Any], tmp_path: Path) -> None:
    config = loss_decrease(estimator)
    torch.manual_seed(0)
    first = configs.run(config, tmp_path / "a")
    torch.manual_seed(1)
    again = configs.run(config, tmp_path / "b")
    assert configs.without_seconds(first) == configs.without_seconds(again)
    assert all(row["seconds"] > 0 for row in first)
    measured = [(row["loss_before"], row["loss_decrease"]) for row in first]
    for other in ({"seed": 1}, {"init": 1}, {"batch": 1}):
        rows = configs.run(loss_decrease(estimator, **other), tmp_path)
        assert not set(measured) & {(row["loss_before"], row["loss_decrease"]) for row in rows}


def test_the_table_has_the_columns_that_figures_read(tmp_path: Path) -> None:
    nested = {**configs.NES, "population": [8, 24]}
    rows = configs.run(loss_decrease(nested, seed=3, init=1, batch=2, lr=[0.1]), tmp_path)
    for row, size in zip(rows, (8, 24), strict=True):
        expected = {
            "study": "loss_decrease", "num_dim": 4, "depth": 2, "activation": "binary",
            "weight": "real", "batch_size": 256, "student": "fresh", "init": 1, "batch": 2,
            "estimator": "nes", "label": f"NES {size}", "population": size, "sigma": 0.1,
            "fitness": "centered", "gradient": "plain", "normalize": "tensor", "update": "joint",
            "final": "mean", "final_sigma": 0.1, "step_layers": "all", "lr": 0.1,
            "forward_passes": float(size), "backward_passes": 0.0, "device": "cpu",
        }  # fmt: skip
        assert {key: row[key] for key in expected} == expected
        measured = {"loss_before", "loss_after", "loss_decrease", "loss_decrease_fresh", "seconds"}
        assert all(isinstance(row[key], float) for key in measured)
        assert all(value is not None for value in row.values())


class Calls:
    """How often a method was called, and with how many members each time."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self.members: list[int] = []
        self.method = method

    def replacement(self) -> Callable[..., Any]:
        def counted(itself: Any, params: Params, members: Any = None, **options: Any) -> Any:
            self.members.append(1 if members is None else population.size(members))
            more = () if members is None else (members,)
            return self.method(itself, params, *more, **options)

        return counted


@pytest.mark.parametrize("num", [1, 50])
def test_learning_rates_cost_one_forward_pass_each_and_no_estimate(
    num: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged, evaluated = Calls(TeacherStudent.decreases), []
    losses, estimates, keys = TeacherStudent.losses, NES.estimates, []
    monkeypatch.setattr(TeacherStudent, "decreases", judged.replacement())
    monkeypatch.setattr(
        TeacherStudent,
        "losses",
        lambda self, members: evaluated.append(population.size(members)) or losses(self, members),
    )

    def estimate_once(self: NES, *arguments: Any, generator: torch.Generator) -> Any:
        keys.append(generator.initial_seed())
        return estimates(self, *arguments, generator=generator)

    monkeypatch.setattr(NES, "estimates", estimate_once)
    lrs = [0.001 * (i + 1) for i in range(num)]
    rows = configs.run(loss_decrease(configs.NES, lr=lrs), tmp_path)
    assert len(rows) == num
    assert len(keys) == 1
    # the loss before the step, and the estimate's own population
    assert sorted(evaluated) == [1, 24]
    # on the same batch, and on the fresh one
    assert judged.members == [num, num]


@pytest.mark.parametrize("normalize", ["tensor", "global", "none"])
@pytest.mark.parametrize("weight", ["real", "binary"])
def test_decreases_are_those_of_an_independent_evaluation(
    normalize: str, weight: str, tmp_path: Path
) -> None:
    config = loss_decrease(
        configs.STE, {**configs.TEACHER, "weight": weight}, normalize=normalize, init=2
    )
    objective, params, gradient = problem(config)
    fresh = cells.objective_of(config, batch=cells.FRESH_BATCHES)
    assert isinstance(fresh, TeacherStudent)
    move = normalized(gradient, normalize)
    rows = configs.run(config, tmp_path)
    assert [row["lr"] for row in rows] == LRS
    for row in rows:
        end = configs.stepped(params, move, row["lr"])
        for column, judge in (("loss_decrease", objective), ("loss_decrease_fresh", fresh)):
            expected = float(configs.loss64(judge, params) - configs.loss64(judge, end))
            assert row[column] == pytest.approx(expected, rel=1e-6, abs=1e-9)
        before = float(configs.loss64(objective, params))
        assert row["loss_before"] == pytest.approx(before, rel=1e-6)
        assert row["loss_after"] == row["loss_before"] - row["loss_decrease"]
    assert len({row["loss_decrease"] for row in rows}) == len(LRS)


@pytest.mark.parametrize("normalize", ["tensor", "global", "none"])
def test_hidden_and_output_layers_step_alone(normalize: str, tmp_path: Path) -> None:
    layers = ["hidden", "all", "output"]
    config = loss_decrease(configs.STE, normalize=normalize, step_layers=layers)
    objective, params, gradient = problem(config)
    *hidden, output = params
    moving = {"hidden": hidden, "all": [*hidden, output], "output": [output]}
    rows = configs.run(config, tmp_path)
    assert len(rows) == 3 * len(LRS)
    for row in rows:
        # what does not move does not count towards the norm either
        part = {name: gradient[name] for name in moving[row["step_layers"]]}
        step = normalized(part, normalize)
        move = {name: step.get(name, torch.zeros_like(w)) for name, w in params.items()}
        end = configs.stepped(params, move, row["lr"])
        expected = configs.loss64(objective, params) - configs.loss64(objective, end)
        assert row["loss_decrease"] == pytest.approx(float(expected), rel=1e-6, abs=1e-9)
    decreases = [[r["loss_decrease"] for r in rows_of(rows, step_layers=name)] for name in layers]
    assert decreases[0] != decreases[1] != decreases[2] != decreases[0]


def test_nested_populations_are_those_of_separate_runs(tmp_path: Path) -> None:
    nested = configs.run(loss_decrease({**configs.NES, "population": [8, 24]}), tmp_path)
    assert [row["population"] for row in nested] == [8, 8, 8, 24, 24, 24]
    for size in (8, 24):
        alone = configs.run(loss_decrease({**configs.NES, "population": size}), tmp_path)
        for one, other in zip(rows_of(nested, population=size), alone, strict=True):
            for key in set(one) - {"seconds", "loss_after", "loss_decrease", "loss_decrease_fresh"}:
                assert one[key] == other[key]
            # the weighted sum of the noise may be rounded otherwise in another product
            for key in ("loss_decrease", "loss_decrease_fresh"):
                assert one[key] == pytest.approx(other[key], rel=1e-4, abs=1e-7)
    small, large = (rows_of(nested, population=size)[0]["seconds"] for size in (8, 24))
    assert small == pytest.approx(large * 8 / 24)


def by_hand(config: dict[str, Any], lr: float) -> Params:
    """Weights after stepping piece by piece: every estimate whole, its piece alone taken."""
    objective = cells.objective_of(config)
    current = objective.initial_params(cells.derived_seed(config, 0, config["init"]))
    layerwise = config["settings"]["update"] == "layerwise"
    for name, tensor in list(current.items()):
        for index in range(1 if layerwise else tensor.numel()):
            estimator = cells.estimator_of(config)
            generator = cells.generator_of(config)
            gradient = estimator.estimate(objective, current, generator=generator).gradient
            move = normalized(gradient, config["settings"]["normalize"])[name]
            mask = torch.ones_like(tensor)
            if not layerwise:
                mask = torch.zeros(tensor.numel()).index_fill(0, torch.tensor([index]), 1.0)
                mask = mask.reshape(tensor.shape)
            current = {**current, name: (current[name] - lr * mask * move).float()}
    return current


@pytest.mark.parametrize("normalize", ["tensor", "global"])
@pytest.mark.parametrize("update", ["layerwise", "coordinate"])
@pytest.mark.parametrize("estimator", [configs.STE, {**configs.NES, "population": 8}])
def test_weights_move_one_after_the_other(
    update: str, estimator: dict[str, Any], normalize: str, tmp_path: Path
) -> None:
    small = {**configs.TEACHER, "num_dim": 2}
    config = loss_decrease(estimator, small, update=update, normalize=normalize, lr=[0.05, 0.3])
    objective, params, _ = problem(config)
    rows = configs.run(config, tmp_path)
    pieces = {"layerwise": 3, "coordinate": 2 * 4 + 2}[update]
    passes = {"ste": (1.0, 1.0), "nes": (8.0, 0.0)}[estimator["name"]]
    for row in rows:
        end = by_hand(config, row["lr"])
        expected = configs.loss64(objective, params) - configs.loss64(objective, end)
        assert row["loss_decrease"] == pytest.approx(float(expected), rel=1e-5, abs=1e-8)
        assert (row["forward_passes"], row["backward_passes"]) == (
            pieces * passes[0],
            pieces * passes[1],
        )
    joint = configs.run({**config, "settings": config["settings"] | {"update": "joint"}}, tmp_path)
    assert [r["loss_decrease"] for r in rows] != [r["loss_decrease"] for r in joint]


def test_samples_around_the_stepped_weights_are_judged(tmp_path: Path) -> None:
    objective_options = {**configs.TEACHER, "weight": "binary"}
    config = loss_decrease(
        configs.STE, objective_options, final="sample", final_samples=6, final_sigma=0.3, init=1
    )
    objective, params, gradient = problem(config)
    move = normalized(gradient, "tensor")
    key = cells.derived_seed(config, 2, 1, 0)
    size = population.num_coordinates(params)
    rows = configs.run(config, tmp_path)
    for row in rows:
        mean = configs.joined(configs.stepped(params, move, row["lr"]))
        losses = []
        for member in range(6):
            drawn = noise.normal(key, (member, member + 1), (0, size))[0]
            weights = population.unflatten((mean + 0.3 * drawn).float(), params)
            losses.append(configs.loss64(objective, weights))
        expected = float(configs.loss64(objective, params) - torch.stack(losses).mean())
        assert row["loss_decrease"] == pytest.approx(expected, rel=1e-5)
        assert row["loss_after"] == row["loss_before"] - row["loss_decrease"]
    assert all(isinstance(row["loss_decrease_fresh"], float) for row in rows)


def test_the_mean_is_what_a_small_final_sigma_converges_to(tmp_path: Path) -> None:
    settings = {"lr": [0.1], "final_samples": 2, "final_sigma": 1e-9}
    (mean,) = configs.run(loss_decrease(**settings), tmp_path)
    (sample,) = configs.run(loss_decrease(**settings, final="sample"), tmp_path)
    assert sample["loss_decrease"] == pytest.approx(mean["loss_decrease"], rel=1e-4)


@pytest.mark.parametrize("objective", [configs.TEACHER, configs.QUADRATIC])
@pytest.mark.parametrize("update", ["joint", "coordinate"])
def test_a_step_too_far_is_stored_as_missing(
    objective: dict[str, Any], update: str, tmp_path: Path
) -> None:
    config = loss_decrease(configs.CDG, objective, lr=[1e-3, 1e300], normalize="none",
                           update=update)  # fmt: skip
    near, far = configs.run(config, tmp_path)
    assert near["loss_decrease"] > 0
    assert far["loss_before"] == near["loss_before"]
    assert far["loss_after"] is far["loss_decrease"] is far["loss_decrease_fresh"] is None


def test_without_a_fresh_batch_the_column_is_empty(tmp_path: Path) -> None:
    with_fresh = configs.run(loss_decrease(), tmp_path)
    without = configs.run(loss_decrease(fresh=False), tmp_path)
    assert list(without[0]) == list(with_fresh[0])
    assert [row["loss_decrease_fresh"] for row in without] == [None] * len(LRS)
    assert all(row["loss_decrease_fresh"] != row["loss_decrease"] for row in with_fresh)


def test_the_gradient_of_a_quadratic_falls_as_calculus_says(tmp_path: Path) -> None:
    config = loss_decrease(configs.CDG, configs.QUADRATIC, normalize="none", lr=[0.05])
    (row,) = configs.run(config, tmp_path)
    x = cells.objective_of(config).initial_params(cells.derived_seed(config, 0, 0))["x"]
    c = torch.linspace(1, 10, 5, dtype=torch.float64)
    after: Tensor = 0.5 * c * (x - 0.05 * c * x) ** 2
    assert row["loss_after"] == pytest.approx(float(after.sum()), rel=1e-9)
    assert row["loss_decrease_fresh"] == pytest.approx(row["loss_decrease"])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"update": "layerwise", "estimator": {**configs.NES, "population": [8, 16]}},
            "give nes one population instead of a nested list",
        ),
        ({"update": "coordinate", "final": "sample"}, 'settings.update = "joint" only'),
        ({"update": "layerwise", "step_layers": ["hidden"]}, 'settings.update = "joint" only'),
        (
            {"objective": configs.QUADRATIC, "step_layers": ["all", "hidden"]},
            "a test function has no layers",
        ),
    ],
)
def test_impossible_combinations_are_refused(options: dict[str, Any], sentence: str) -> None:
    config = loss_decrease(
        options.pop("estimator", configs.STE), options.pop("objective", configs.TEACHER), **options
    )
    with pytest.raises(ValueError, match=sentence):
        studies.create("loss_decrease").validate(config)


def test_the_estimate_of_work_follows_the_settings() -> None:
    study = studies.create("loss_decrease")

    def passes(**settings: Any) -> float:
        return study.forward_passes(loss_decrease(configs.CDG, **settings))

    assert passes(lr=[0.1] * 20) > passes(lr=[0.1] * 10)
    assert passes(final="sample") > passes(lr=LRS * 10)
    one = passes(update="layerwise", lr=[0.1])
    # three layers: two more estimates per lr
    assert passes(update="layerwise", lr=[0.1, 0.2]) - one > 2 * cells.estimator_work(
        loss_decrease(configs.CDG)
    )
    assert passes(update="coordinate") > passes(update="layerwise") > passes()


def test_cdg_costs_two_passes_per_weight_whatever_the_implementation(tmp_path: Path) -> None:
    assert configs.run(loss_decrease(CDG().__dict__ | configs.CDG), tmp_path)[0][
        "forward_passes"
    ] == 2.0 * (2 * 16 + 4)


def test_binary_weights_step_through_their_signs(tmp_path: Path) -> None:
    config = loss_decrease(configs.STE, {**configs.TEACHER, "weight": "binary"}, lr=[1e-6],
                           step_layers=["hidden"])  # fmt: skip
    _, params, gradient = problem(config)
    move = normalized({n: g for n, g in gradient.items() if n != "layers.2.weight"}, "tensor")
    assert all(torch.equal(sign(params[n]), sign(params[n] - 1e-6 * g)) for n, g in move.items())
    # no sign changes, so nothing does
    assert configs.run(config, tmp_path)[0]["loss_decrease"] == 0.0
