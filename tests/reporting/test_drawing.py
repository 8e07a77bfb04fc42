from __future__ import annotations

import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from gradlab import reporting
from gradlab.reporting import drawing
from gradlab.reporting.stored import StoredStudy, load
from gradlab.sweep.store import StoreError
from tests.reporting import synthetic, synthetic_networks

SMALL = {"num_dims": [8], "batches": 1, "lrs": [0.03, 0.1, 0.3]}
FIGURE = '''"""A dot.

What it shows.
"""
from ._style import COLOUR
TABLES = ("loss_decrease",)
def draw(tables):
    from matplotlib.figure import Figure
    figure = Figure()
    figure.subplots().plot([1], [1], color=COLOUR)
    return figure, tables["loss_decrease"].head(1)
'''


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results") / "quickstart"
    methods = [synthetic.CDG, synthetic.STES[0]]
    rows = synthetic.loss_decrease(methods, **SMALL)
    return synthetic.store(folder, {"loss_decrease": rows}, figures=["best_loss_decrease"])


def test_a_figure_is_saved_three_times_over_with_its_numbers(study: Path) -> None:
    files = reporting.draw(study)
    assert [path.name for path in files] == [
        f"best_loss_decrease.{e}" for e in ("png", "svg", "csv")
    ]
    assert all(path.parent == study / "figures" for path in files)
    numbers = pd.read_csv(files[2])
    assert {"num_dim", "method", "mean", "low", "high", "n", "best_lr"} <= set(numbers)


def test_drawing_again_gives_the_same_bytes(study: Path) -> None:
    before = {path.name: path.read_bytes() for path in reporting.draw(study)}
    shutil.rmtree(study / "figures")
    after = {path.name: path.read_bytes() for path in reporting.draw(study)}
    assert before == after


def test_png_and_svg_say_where_they_come_from(study: Path) -> None:
    reporting.export(study)
    png, svg, _ = reporting.draw(study)
    digest = load(study).digests["loss_decrease"]
    words = Image.open(png).text
    assert words["Software"].startswith("gradlab ")
    assert words["Source"] == "quickstart"
    assert digest in words["Description"]
    assert f"gradlab figures {study}" in words["Description"]
    metadata = "".join(ET.parse(svg).getroot().itertext())
    assert digest in metadata
    assert "gradlab figures" in metadata


def test_the_digest_is_that_of_the_exported_csv(study: Path) -> None:
    import hashlib

    reporting.export(study)
    content = (study / "tables" / "loss_decrease.csv").read_bytes()
    assert hashlib.sha256(content).hexdigest() == load(study).digests["loss_decrease"]


def test_a_figure_with_nothing_to_draw_says_why(study: Path) -> None:
    found = drawing.draw_figures(load(study), ["trajectory", "hyperparameter"])
    assert [figure.files for figure in found] == [(), ()]
    assert found[0].problem == "this study has no table 'trajectory'."
    assert found[1].problem.startswith("no estimator has more than one epsilon")


def test_figures_nobody_asked_for_are_left_out_in_silence(study: Path) -> None:
    without = load(study, {**synthetic.SPEC, "figures": None})
    names = [figure.name for figure in drawing.draw_figures(without)]
    assert names == ["loss_decrease_groups", "best_loss_decrease", "loss_decrease_by_lr"]


def test_every_figure_of_a_kind_of_study_exists() -> None:
    kinds = {name for listed in drawing.BY_KIND.values() for name in listed}
    assert kinds <= set(drawing.names())
    assert {"training_run", "loss_slice"} <= set(drawing.BY_KIND)


def test_a_network_is_drawn_by_depth_and_a_small_one_by_layer(tmp_path: Path) -> None:
    def drawn(rows: pd.DataFrame) -> list[str]:
        study = StoredStudy(tmp_path, {"study": "gradient_quality"}, {"gradient_quality": rows})
        return [figure.name for figure in drawing.draw_figures(study)]

    methods = [synthetic.STES[0]]
    network = synthetic_networks.gradient_quality(methods, students=["fresh"], depth=3)
    assert drawn(network) == ["gradient_by_depth", "cosine_by_forward_passes"]
    assert drawn(synthetic.gradient_quality(methods)) == [
        "cosine_by_layer", "cosine_by_forward_passes",
    ]  # fmt: skip


def test_a_misspelt_figure_gets_a_suggestion(study: Path) -> None:
    with pytest.raises(ValueError, match="did you mean 'best_loss_decrease'"):
        reporting.draw(study, figures=["best_los_decrease"])


def test_adding_a_figure_is_adding_a_file(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "_style.py").write_text('COLOUR = "red"\n')
    (tmp_path / "dot.py").write_text(FIGURE)
    monkeypatch.setattr(drawing._shipped, "folder", lambda kind: tmp_path)
    assert drawing.names() == ["dot"]
    (drawn,) = drawing.draw_figures(load(study), ["dot"])
    assert (drawn.title, drawn.caption) == ("A dot.", "What it shows.")
    assert drawn.files[0].is_file()


def test_a_figure_without_a_draw_function_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.py").write_text('"""Nothing."""\n')
    with pytest.raises(ValueError, match="needs TABLES"):
        drawing.load_figure("empty", tmp_path)
    # the shipped ones load again after another folder was read
    assert drawing.load_figure("trajectory").TABLES == ("trajectory",)


def test_a_folder_without_results_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no store"):
        reporting.draw(tmp_path)


def test_a_full_or_forbidden_folder_is_one_sentence(study: Path, tmp_path: Path) -> None:
    copy = tmp_path / "study"
    shutil.copytree(study, copy)
    shutil.rmtree(copy / "figures", ignore_errors=True)
    (copy / "figures").write_text("in the way")
    with pytest.raises(StoreError, match="cannot be written"):
        reporting.draw(copy)


def test_report_and_figures_never_import_torch(study: Path) -> None:
    code = f"""
import sys
from gradlab import reporting
from gradlab.reporting import drawing
for name in drawing.names():
    drawing.load_figure(name)
reporting.write({str(study)!r})
print([name for name in ("torch", "joblib") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
