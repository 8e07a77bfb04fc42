from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from gradlab import reporting
from gradlab.reporting import page, page_tables, published, tables
from gradlab.reporting.stored import StoredStudy, load
from tests.reporting import synthetic, synthetic_networks

METHODS = [synthetic.CDG, synthetic.STES[0]]
SMALL = {"num_dims": [2, 8], "batches": 1, "lrs": [0.03, 0.1]}


class Page(HTMLParser):
    """The tags, ids, links and text of a page."""

    void = frozenset({"meta", "img", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words)).replace("\xa0", " ")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Page]:
    folder = tmp_path_factory.mktemp("results") / "quickstart"
    rows = synthetic.loss_decrease(METHODS, **SMALL)
    synthetic.store(
        folder,
        {"loss_decrease": rows},
        failed=1,
        missing=1,
        title="Is <script>alert(1)</script> downhill?",
        figures=["best_loss_decrease", "trajectory"],
    )
    path = reporting.write(folder)
    return path, Page(path.read_text(encoding="utf-8"))


def bare(**changes: Any) -> StoredStudy:
    fields: dict[str, Any] = {"folder": Path("results/bare"), "spec": dict(synthetic.SPEC)}
    return StoredStudy(**{**fields, "tables": {}, **changes})


def test_everything_is_written(report: tuple[Path, Page]) -> None:
    folder = report[0].parent
    assert report[0].name == "report.html"
    for name in ("tables/loss_decrease.csv", "tables/loss_decrease.parquet",
                 "tables/summary_loss_decrease.csv", "figures/best_loss_decrease.svg"):  # fmt: skip
        assert (folder / name).stat().st_size > 0
    assert json.loads((folder / "environment.json").read_text())["python"] == "3.11"
    assert not list(folder.rglob("*.part"))


def test_the_page_asks_the_network_for_nothing(report: tuple[Path, Page]) -> None:
    for _, attributes in report[1].tags:
        for name in ("src", "href", "action", "srcset"):
            target = attributes.get(name) or ""
            assert not target.startswith(("http", "//", "ftp")), target
    text = report[0].read_text(encoding="utf-8")
    assert "http://" not in text
    assert "https://" not in text
    assert "@import" not in text
    policy = next(a for t, a in report[1].tags if t == "meta" and "http-equiv" in a)
    assert policy["content"].startswith("default-src 'none'")


def test_links_lead_to_files_or_sections_that_exist(report: tuple[Path, Page]) -> None:
    path, parsed = report
    ids = {attributes["id"] for _, attributes in parsed.tags if "id" in attributes}
    links = [a["href"] for t, a in parsed.tags if t == "a"]
    assert len(links) > 5
    for link in links:
        assert link[1:] in ids if link.startswith("#") else (path.parent / link).is_file()


def test_names_and_tracebacks_are_escaped(report: tuple[Path, Page]) -> None:
    text = report[0].read_text(encoding="utf-8")
    assert "<script>alert" not in text
    assert "<b>bold</b>" not in text
    assert "Is <script>alert(1)</script> downhill?" in report[1].text
    assert "ValueError: <b>bold</b> & broken" in report[1].text


def test_failed_and_missing_cells_come_first_with_their_commands(report: tuple[Path, Page]) -> None:
    text = report[1].text
    folder = report[0].parent
    banner = text.index("1 cell failed and 1 cell has not been run, out of 12.")
    assert banner < text.index("Best estimator")
    assert "gradlab run quickstart.toml" in text
    assert f"gradlab retry {folder}" in text
    (failure,) = load(folder).failures
    assert f"gradlab retry {folder} {failure['hash'][:12]}" in text


def test_a_figure_that_was_asked_for_and_not_drawn_is_explained(report: tuple[Path, Page]) -> None:
    assert "trajectory was asked for and not drawn: this study has no table" in report[1].text


def test_figures_are_embedded_with_captions_that_state_n(report: tuple[Path, Page]) -> None:
    images = [a for t, a in report[1].tags if t == "img"]
    assert len(images) == 1
    assert images[0]["src"].startswith("data:image/svg+xml;base64,")
    assert images[0]["alt"].startswith("The best loss decrease of one step")
    assert "95 % bootstrap CI over inits, n = 2 to 3" in report[1].text


def test_writing_again_gives_the_same_page(report: tuple[Path, Page]) -> None:
    before = report[0].read_bytes()
    assert reporting.write(report[0].parent).read_bytes() == before


def test_the_specification_is_shown_as_it_can_be_run(report: tuple[Path, Page]) -> None:
    text = report[0].read_text(encoding="utf-8")
    assert "[[estimators]]\nname = &#34;cdg&#34;" in text
    assert "figures = " in text
    assert "threads = 1" in text


def test_a_complete_study_has_no_banner(tmp_path: Path) -> None:
    rows = synthetic.loss_decrease(METHODS, **SMALL)
    folder = synthetic.store(tmp_path / "s", {"loss_decrease": rows}, figures=["trajectory"])
    text = page.render(load(folder), [])
    assert "not complete" not in text
    assert 'id="failures"' not in text


def test_a_study_without_results_has_a_page_too() -> None:
    planned = [
        ("ab" * 32, {"objective": {"name": "x"}, "estimator": {"name": "y"}, "init": 0, "batch": 0})
    ]
    text = Page(page.render(bare(planned=planned), [])).text
    assert "1 cell has not been run" in text
    assert "No cell has finished yet" in text


@pytest.mark.parametrize("kind", ["gradient_quality", "trajectory"])
def test_other_kinds_of_study_are_reported(kind: str) -> None:
    rows = getattr(synthetic, kind)(num_dims=[32])
    study = bare(tables={kind: rows}, spec={**synthetic.SPEC, "study": kind})
    text = Page(page.render(study, [])).text
    heading = {
        "gradient_quality": "Cosine to the reference",
        "trajectory": "Where each budget ends",
    }
    assert heading[kind] in text
    assert ("Published and ours" in text) == (kind == "gradient_quality")


def test_an_unknown_kind_of_study_gets_what_can_be_said() -> None:
    study = bare(tables={"enumeration": pd.DataFrame({"value": [1.0]})}, spec={"name": "odd"})
    assert "enumeration" in Page(page.render(study, [])).text


def test_tables_sort_by_numbers_that_are_there(report: tuple[Path, Page]) -> None:
    values = [a["data-v"] for t, a in report[1].tags if t == "td" and "num" in a.get("class", "")]
    assert values
    for value in values:
        float(value)


@pytest.mark.parametrize(("spec", "command"), [({}, "gradlab run quickstart.toml")])
def test_a_changed_sweep_must_be_saved_first(spec: dict[str, Any], command: str) -> None:
    assert page._run_command(bare(spec={**synthetic.SPEC, **spec})) == command


def test_cells_made_by_different_code_are_told(tmp_path: Path) -> None:
    cells = [
        {"hash": str(i), "status": "done", "config": {},
         "provenance": {**synthetic.PROVENANCE, "code": code}}
        for i, code in enumerate(["old", "new", "new"])
    ]  # fmt: skip
    text = Page(page.render(bare(cells=cells), [])).text
    assert "cells differ in their code new (2 cells), old (1 cell)" in text


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Page]:
    folder = tmp_path_factory.mktemp("results") / "weight_decay"
    tables = {
        "training": synthetic_networks.training([8, 192], [0.0, 1e-5], epochs=2),
        "training_result": synthetic_networks.training_result([8, 192], [0.0, 1e-5]),
    }
    synthetic.store(folder, tables, study="training_run", objective={"name": "network"})
    path = reporting.write(folder)
    return path, Page(path.read_text(encoding="utf-8"))


def test_a_training_study_gets_its_figures_tables_and_published_numbers(
    network: tuple[Path, Page],
) -> None:
    path, parsed = network
    drawn = {file.stem for file in (path.parent / "figures").glob("*.svg")}
    assert drawn == {"training_curves", "accuracy_by_weight_decay"}
    assert "Trained networks" in parsed.text
    assert "width 192, weight decay 1e-05: validation accuracy 0.9121" in parsed.text
    assert "NOT COMPARABLE 20 of 200 epochs, 5,000 of 50,000 images" in parsed.text
    assert "6 NOT COMPARABLE 27 NOT RUN" in parsed.text
    assert published.TRAINING_RULE in parsed.text
    assert published.RULE not in parsed.text
    assert (path.parent / "tables" / "summary_published.csv").is_file()


def test_the_page_of_a_network_never_speaks_of_num_dim(network: tuple[Path, Page]) -> None:
    assert "num_dim" not in network[1].text


def test_a_page_of_steps_on_a_network_has_its_unit_and_cases(tmp_path: Path) -> None:
    rows = synthetic_networks.loss_decrease(METHODS, lrs=[0.03, 0.1, 0.3], students=["fresh"])
    quality = synthetic_networks.gradient_quality(METHODS, students=["fresh"])
    frames = tables.summarize({"loss_decrease": rows, "gradient_quality": quality})
    steps, gradients = page_tables.grids(frames)
    assert "MSE" not in steps.note
    assert "largest of its condition" in steps.note
    assert [name for name, _ in steps.header[:2]] == ["condition", "estimator"]
    named = [name for name, _ in gradients.header]
    assert named[1:4] == ["layer 0", "layer 3", "layer 6"]
    assert "all layers" in named
    assert "7 of 19 layers" in gradients.note
