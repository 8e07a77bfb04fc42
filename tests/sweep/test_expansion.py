"""From a spec to its cells."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gradlab import sweep
from gradlab.sweep.spec import SpecError


def hashes(path: Path, *overrides: str) -> list[str]:
    return [cell.hash for cell in sweep.expand(sweep.read_spec(path, overrides))]


def test_the_cells_and_their_order(write_spec: Callable[..., Path]) -> None:
    cells = [cell.config for cell in sweep.expand(sweep.read_spec(write_spec()))]
    seen = [
        (c["init"], c["batch"], c["objective"]["num_dim"], c["estimator"]["name"],
         c["estimator"].get("surrogate"))
        for c in cells
    ]  # fmt: skip
    assert seen == [
        (init, batch, num_dim, name, surrogate)
        for init in (0, 1)
        for batch in (0, 1)
        for num_dim in (2, 4)
        for name, surrogate in [("ste", "hardtanh"), ("ste", "steep"), ("nes", None)]
    ]
    assert all(c["settings"]["lr"] == [0.1, 1.0] for c in cells)
    assert all(c["estimator"]["population"] == [20, 40] for c in cells[2::3])
    assert len({cell.hash for cell in sweep.expand(sweep.read_spec(write_spec()))}) == 24


def test_a_cell_holds_every_default(write_spec: Callable[..., Path]) -> None:
    from gradlab import estimators, objectives

    cell = sweep.expand(sweep.read_spec(write_spec()))[2].config
    assert set(cell) == {"schema", "study", "seed", "threads", "objective", "student", "estimator",
                         "init", "batch", "settings"}  # fmt: skip
    assert cell["settings"] == {"lr": [0.1, 1.0], "normalize": "tensor", "fault": "none",
                                "fault_init": 0}  # fmt: skip
    assert cell["student"] == {"state": "fresh"}
    assert set(estimators.defaults("nes")) <= set(cell["estimator"])
    assert cell["objective"]["depth"] == objectives.defaults("teacher_student")["depth"]
    assert not {"seed", "batch"} & set(cell["objective"])


@pytest.mark.parametrize(
    "written_out",
    [
        ("[[estimators]]\nname = \"nes\"", '[[estimators]]\nname = "nes"\nsigma = 0.1'),
        ("batch_size = 64", "batch_size = 64\ndepth = 3"),
        ("batch_size = 64", "batch_size = 64.0"),
        ("lr = [0.1, 1]", "lr = [0.1, 1.0]"),
        ("lr = [0.1, 1]", "lr = {start = 0.1, stop = 1, num = 2}"),
        ("lr = [0.1, 1]", 'lr = [0.1, 1]\nnormalize = "tensor"'),
        ("[settings]", '[student]\nstate = "fresh"\n[settings]'),
        ("inits = 2", "inits = 2\nseed = 0\nthreads = 1"),
        ('name = "tiny"', 'name = "other"\ntitle = "Other"'),
    ],
)  # fmt: skip
def test_writing_a_default_out_or_otherwise_changes_no_cell(
    write_spec: Callable[..., Path], written_out: tuple[str, str]
) -> None:
    plain = hashes(write_spec())
    assert hashes(write_spec(written_out)) == plain


@pytest.mark.parametrize(
    "override",
    ["seed=1", "threads=2", "settings.lr=[0.1]", "settings.normalize=none",
     "student.state=converged", "objective.depth=2", "objective.batch_size=65",
     "estimators.nes.sigma=0.2"],
)  # fmt: skip
def test_what_changes_the_numbers_changes_the_cells(
    write_spec: Callable[..., Path], override: str
) -> None:
    path = write_spec()
    cells = sweep.expand(sweep.read_spec(path, [override]))
    concerned = [
        c for c in cells if "nes.sigma" not in override or c.config["estimator"]["name"] == "nes"
    ]
    assert not {cell.hash for cell in concerned} & set(hashes(path))


def test_every_list_is_an_axis_but_those_of_list_options(write_spec: Callable[..., Path]) -> None:
    path = write_spec(("[settings]", '[student]\nstate = ["fresh", "converged"]\n[settings]'))
    cells = sweep.expand(sweep.read_spec(
        path, ["settings.normalize=[\"tensor\", \"none\"]", "estimators.nes.sigma=[0.1, 0.2]",
               "estimators.nes.population=[[20], [40]]", "inits=1", "batches=1"],
    ))  # fmt: skip
    assert len(cells) == 2 * 2 * 2 * (2 + 2 * 2)
    nes: list[dict[str, Any]] = [
        c.config["estimator"] for c in cells if "sigma" in c.config["estimator"]
    ]
    assert {(e["sigma"], *e["population"]) for e in nes} == {
        (0.1, 20),
        (0.1, 40),
        (0.2, 20),
        (0.2, 40),
    }


def test_one_population_is_a_list_of_one(write_spec: Callable[..., Path]) -> None:
    path = write_spec()
    assert hashes(path, "estimators.nes.population=20") == hashes(
        path, "estimators.nes.population=[20]"
    )


def test_complaints_come_before_a_heavy_objective_is_built(write_spec: Callable[..., Path]) -> None:
    # 10^12 examples would not fit in any memory: nothing may build them to check a spec.
    path = write_spec(("batch_size = 64", "batch_size = 1_000_000_000_000"))
    with pytest.raises(SpecError, match="surrogate"):
        sweep.read_spec(path, ["estimators.ste.surrogate=stepe"])
