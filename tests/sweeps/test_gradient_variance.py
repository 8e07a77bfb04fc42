"""The shipped sweeps of gradient variance are valid, and a tiny version of the small one runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradlab import studies, sweep
from gradlab.sweep.spec import load
from tests.objectives.images import small_images

__all__ = ["small_images"]

TINY = [
    "inits=1", "objective.batch_size=4", "settings.repeats=4", "settings.reference_passes=8",
    "settings.train_epochs=0", "methods.score_function.population=2",
]  # fmt: skip


@pytest.mark.parametrize("name", ["gradient_variance", "gradient_variance_small"])
@pytest.mark.usefixtures("small_images")
def test_a_shipped_sweep_is_valid(name: str, tmp_path: Path) -> None:
    full = load(name)
    assert full.name == name
    assert full.title
    assert full.description.strip()
    spec = sweep.read_spec(name, TINY)
    assert {entry["name"] for entry in full.methods} == {"pathwise", "score_function"}
    study = studies.create(spec.study)
    for cell in sweep.expand(spec):
        assert study.forward_passes(cell.config) > 0
        assert studies.bytes_needed(cell.config) < 4 * 2**30
        if name.endswith("small"):
            (rows,) = study.run(cell.config, tmp_path).values()
            assert [row["layer"] for row in rows][-1] == "all"
