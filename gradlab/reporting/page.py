"""The report: one HTML file that needs nothing but itself.

Figures are embedded, styles and the few lines of script are inline, and a content security policy
forbids the page every request. What it says comes from :mod:`gradlab.reporting.findings` and the
tables; this module arranges it.
"""

from __future__ import annotations

import base64
import datetime
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from gradlab.reporting import findings, published, tables
from gradlab.reporting.drawing import Drawn, draw_figures
from gradlab.reporting.page_tables import grids, published_grids
from gradlab.reporting.stored import StoredStudy, load
from gradlab.reporting.toml import dumps
from gradlab.reporting.wording import count

LARGEST_SVG = 900_000  # bytes; a larger one is embedded as PNG


def write(study_folder: str | Path, spec: Any = None) -> Path:
    """Write a study's tables, figures, ``environment.json`` and ``report.html``.

    Args:
        study_folder: the folder with the store.
        spec: the study's spec; it is read from the store by default.

    Returns:
        The path of the report.

    Raises:
        ValueError: the spec names a figure that does not exist.
        StoreError: there is no store, or a file cannot be written.
    """
    tables.export(study_folder, spec)
    study = load(study_folder, spec)
    figures = draw_figures(study)
    environment = json.dumps(study.environment, indent=2, default=str) + "\n"
    tables.write_bytes(study.folder / "environment.json", environment.encode())
    path = study.folder / "report.html"
    tables.write_bytes(path, render(study, figures).encode())
    return path


def render(study: StoredStudy, figures: Sequence[Drawn]) -> str:
    """The report as HTML.

    Args:
        study: the study, as :func:`gradlab.reporting.stored.load` reads it.
        figures: its figures, as :func:`gradlab.reporting.drawing.draw_figures` drew them.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("gradlab.reporting", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["together"] = together
    environment.filters["whole_words"] = whole_words
    return environment.get_template("report.html.j2").render(**context(study, figures))


def together(text: str) -> str:
    r"""Spaces inside ``n = 3``, ``94 %``, ``num_dim 32`` and after a label made unbreakable.

    >>> together("94 % (n = 3 inits)").count("\xa0")
    3
    """
    pattern = (r"(?<=\d) (?=%)|(?<=\bn) (?==)|(?<=\bn =) (?=\d)|(?<=num_dim) (?=\d)"
               r"|(?<=NES) (?=\d)")  # fmt: skip
    return re.sub(pattern, "\u00a0", text)


def whole_words(text: str) -> str:
    r"""Hyphens made unbreakable, for a title: "LeNet-" at the end of a line reads like a typo.

    >>> whole_words("LeNet-5") == "LeNet\N{NON-BREAKING HYPHEN}5"
    True
    """
    return text.replace("-", "\N{NON-BREAKING HYPHEN}")


def context(study: StoredStudy, figures: Sequence[Drawn]) -> dict[str, Any]:
    """Everything the template shows."""
    spec, summary = study.spec, tables.summarize(study.tables)
    comparison = summary.pop("published", pd.DataFrame())
    inits = _inits(study)
    said = findings.write(study.tables) if study.tables else []
    return {
        "title": spec.get("title") or study.name,
        "description": [p for p in str(spec.get("description") or "").split("\n\n") if p.strip()],
        "name": study.name,
        "kind": study.kind.replace("_", " "),
        "version": study.version,
        "facts": _facts(study),
        "state": _state(study),
        "findings": said,
        "caution": findings.caution(inits) if said else "",
        "figures": [_figure(figure) for figure in figures if figure.files],
        "skipped": [figure for figure in figures if figure.problem],
        "grids": grids(summary),
        "published": published_grids(comparison),
        "verdicts": Counter(comparison["verdict"]) if len(comparison) else Counter(),
        "rule": published.rules(comparison),
        "run": _what_was_run(study),
        "environment": _environment(study),
        "commands": _commands(study),
        "spec_text": dumps({k: v for k, v in spec.items() if v not in (None, "", {}, [])}),
        "failures": [_failure(study, failure) for failure in study.failures],
        "missing": [_cell(key, config) for key, config in study.missing],
        "files": _files(study),
    }  # fmt: skip


def _inits(study: StoredStudy) -> int:
    """The smallest number of inits behind a mean of any table."""
    counts = [frame["init"].nunique() for frame in study.tables.values() if "init" in frame]
    return int(min(counts, default=1))


def _facts(study: StoredStudy) -> list[str]:
    spec, found = study.spec, []
    if study.planned or study.done:
        found.append(count(len(study.planned) or len(study.done), "cell"))
    if spec.get("inits"):
        found.append(f"{count(spec['inits'], 'init')} × {spec.get('batches', 1)} "
                     f"batch{'es' if spec.get('batches', 1) != 1 else ''}")  # fmt: skip
    seconds = sum(float(cell["provenance"].get("seconds") or 0) for cell in study.done)
    if seconds:
        found.append(f"{duration(seconds)} of computing")
    started = [str(cell["provenance"].get("started") or "") for cell in study.done]
    if any(started):
        day = datetime.datetime.fromisoformat(max(started))
        found.append(f"{day.day} {day:%B %Y}")
    return [*found, f"gradlab {study.version}"]


def duration(seconds: float) -> str:
    """Seconds in the largest fitting unit.

    >>> duration(42), duration(200), duration(9000)
    ('42 s', '3.3 min', '2.5 h')
    """
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 1 else f"{seconds:.1g} s"


def _state(study: StoredStudy) -> dict[str, Any]:
    """Whether the study is complete, and what to do if it is not."""
    failed, missing = len(study.failures), len(study.missing)
    rerun = []
    if missing:
        rerun.append(_run_command(study))
    if failed:
        rerun.append(f"gradlab retry {study.address}")
    parts = []
    if failed:
        parts.append(f"{count(failed, 'cell')} failed")
    if missing:
        parts.append(f"{count(missing, 'cell')} {'has' if missing == 1 else 'have'} not been run")
    total = len(study.planned) or len(study.done) + failed
    return {
        "complete": not parts,
        "words": f"{' and '.join(parts)}, out of {total:,}." if parts else "",
        "rerun": rerun,
        "failed": failed,
        "missing": missing,
    }


def _figure(figure: Drawn) -> dict[str, Any]:
    files = {path.suffix[1:]: path for path in figure.files}
    svg = figure.embedded
    size = re.search(rb'width="([\d.]+)pt" height="([\d.]+)pt"', svg)
    width, height = (float(size[1]), float(size[2])) if size else (640.0, 480.0)
    kind, content = ("svg+xml", svg)
    if len(svg) > LARGEST_SVG:
        kind, content = "png", files["png"].read_bytes()
    return {
        "name": figure.name,
        "title": figure.title.rstrip("."),
        "caption": figure.caption,
        "note": figure.note,
        "alt": figure.alt,
        "source": f"data:image/{kind};base64,{base64.b64encode(content).decode()}",
        "width": round(width * 4 / 3),
        "height": round(height * 4 / 3),
        "links": [(ending.upper(), f"figures/{path.name}") for ending, path in files.items()],
    }


def _what_was_run(study: StoredStudy) -> list[tuple[str, str]]:
    """The study in words, one line each."""
    spec = study.spec
    rows = [("study", study.kind.replace("_", " "))]
    rows += [(key, _words(spec[key])) for key in ("objective", "student", "settings")
             if spec.get(key)]  # fmt: skip
    for key in ("estimators", "methods"):
        entries = "; ".join(_words(entry) for entry in spec.get(key) or [])
        rows += [(key, entries)] if entries else []
    counts = ("inits", "batches", "seed", "threads")
    return rows + [(key, str(spec[key])) for key in counts if key in spec]


def _words(entry: Any) -> str:
    if not isinstance(entry, dict):
        return _plain(entry)
    name = [str(entry["name"])] if "name" in entry else []
    options = [f"{key} = {_plain(value)}" for key, value in entry.items() if key != "name"]
    return " ".join([*name, ", ".join(options)]).strip()


def _plain(value: Any) -> str:
    if isinstance(value, dict) and {"start", "stop", "num"} <= set(value):
        return f"{value['num']} values from {value['start']:g} to {value['stop']:g}, log-spaced"
    if isinstance(value, dict) and "name" in value:
        name, _, options = _words(value).partition(" ")
        return f"{name} ({options})" if options else name
    if isinstance(value, list):
        shown = [_plain(v) for v in value]
        return ", ".join(shown if len(shown) <= 12 else [*shown[:3], "…", *shown[-2:]])
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(value)


def _environment(study: StoredStudy) -> list[tuple[str, str]]:
    """Where it ran: the machine and versions, and a word if cells differ in them."""
    known = study.environment
    plain = ("machine", "system", "python", "torch")
    rows = [(key, str(known[key])) for key in plain if known.get(key)]
    if known.get("accelerators"):
        rows.append(("accelerators", ", ".join(map(str, known["accelerators"]))))
    if known.get("memory_bytes"):
        rows.append(("memory", f"{known['memory_bytes'] / 2**30:.0f} GiB"))
    packages = {k: v for k, v in (known.get("packages") or {}).items() if v}
    if packages:
        rows.append(("packages", ", ".join(f"{k} {v}" for k, v in sorted(packages.items()))))
    if known.get("commit"):
        rows.append(("commit", str(known["commit"])))
    for key in ("code", "machine"):
        made_by = Counter(str(c["provenance"].get(key)) for c in study.done)
        if len(made_by) > 1:
            words = ", ".join(f"{v} ({count(n, 'cell')})" for v, n in made_by.most_common())
            rows.append((f"cells differ in their {key}", words))
    notes = Counter(w for c in study.done for w in c["provenance"].get("warnings") or ())
    rows += [("warning", f"{words} ({count(n, 'cell')})") for words, n in notes.most_common(5)]
    return rows


def _run_command(study: StoredStudy) -> str:
    """``gradlab run NAME`` for an unchanged shipped sweep, else with the file to save."""
    from gradlab.sweep import spec as specs

    shipped = specs.shipped_sweeps()
    if study.name in shipped:
        try:
            if specs.load(study.name).model_dump(mode="json") == study.spec:
                return f"gradlab run {study.name}"
        except ValueError:
            pass
    return f"gradlab run {study.name}.toml"


def _commands(study: StoredStudy) -> list[tuple[str, str]]:
    run = _run_command(study)
    what = "run it; only what is missing is computed"
    if run.endswith(".toml"):
        what = f"run it, after saving the specification below as {study.name}.toml"
    return [
        (run, what),
        (f"gradlab figures {study.address}", "draw the figures again from the stored tables"),
        (f"gradlab report {study.address}", "write tables, figures and this page again"),
    ]


def _cell(key: str, config: dict[str, Any]) -> dict[str, str]:
    from gradlab.sweep.cells import title

    try:
        words = title(config)
    except (KeyError, TypeError):
        words = "a cell"
    return {"hash": key[:12], "title": words, "config": json.dumps(config, indent=2)}


def _failure(study: StoredStudy, failure: dict[str, Any]) -> dict[str, str]:
    lines = [line for line in str(failure["traceback"]).strip().splitlines() if line.strip()]
    return {
        **_cell(failure["hash"], failure["config"]),
        "error": lines[-1] if lines else "no message",
        "traceback": str(failure["traceback"]),
        "command": f"gradlab retry {study.address} {failure['hash'][:12]}",
    }


def _files(study: StoredStudy) -> list[tuple[str, str]]:
    """Relative links to the tables beside the page."""
    folder = study.folder / "tables"
    order: Iterable[Path] = sorted(folder.glob("*.*")) if folder.is_dir() else []
    return [(path.name, f"tables/{path.name}") for path in order if path.suffix != ".part"]
