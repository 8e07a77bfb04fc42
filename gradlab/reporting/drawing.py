"""Drawing a study's figures from its stored tables, and saving them so that they can be traced.

A figure is one Python file in the figures folder. It names the tables it needs (``TABLES``) and
has ``draw(tables)``, which returns a matplotlib Figure and the frame of exactly the numbers it
drew. Files whose names begin with an underscore are no figures. Saving adds a CSV of those
numbers, and to the PNG's and SVG's metadata the study, the version of gradlab, the digest of every
table it was drawn from and the command that draws it again. Drawing the same tables again gives
the same bytes.
"""

from __future__ import annotations

import importlib
import inspect
import io
import re
import sys
import types
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradlab import _shipped
from gradlab._registry import unknown
from gradlab.reporting.stored import StoredStudy, load
from gradlab.reporting.tables import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PACKAGE = "gradlab_figures"
DPI = 200
BY_KIND = {
    "loss_decrease": ["loss_decrease_groups", "best_loss_decrease", "loss_decrease_by_lr",
                      "hyperparameter", "settings_comparison"],
    "gradient_quality": ["gradient_by_depth", "cosine_by_layer", "cosine_by_forward_passes"],
    "trajectory": ["trajectory"],
    "search_run": ["search_progress"],
    "training_run": ["training_curves", "accuracy_by_weight_decay"],
    "variational_run": ["accuracy_by_method", "training_curves", "sparsity", "error_by_compression",
                        "log_alpha", "kept_inputs"],
    "loss_slice": ["loss_slice"],
    "gradient_variance": ["gradient_variance"],
}  # fmt: skip
"""The figures of each kind of study where its spec names none; those that do not apply are left
out without a word."""
INSTEAD = {"gradient_by_depth": "cosine_by_layer"}
"""Figures that show what another one shows, and more: nobody needs both who asked for neither."""


@dataclass(frozen=True)
class Drawn:
    """One figure that was asked for.

    Attributes:
        name: the figure's name.
        title: its headline.
        caption: what it shows, from the docstring of its file.
        note: what its marks mean, with n; written under the figure too.
        files: PNG, SVG and CSV; empty if there was nothing to draw.
        embedded: the SVG for the report, without the note, which its caption repeats.
        problem: why there was nothing to draw, in one sentence.
    """

    name: str
    title: str = ""
    caption: str = ""
    note: str = ""
    files: tuple[Path, ...] = ()
    embedded: bytes = b""
    problem: str = ""

    @property
    def alt(self) -> str:
        """A short description for those who do not see it."""
        return f"{self.title or self.name}. {self.caption.splitlines()[0] if self.caption else ''}"


def names(folder: str | Path | None = None) -> list[str]:
    """The figures there are, sorted.

    >>> "best_loss_decrease" in names()
    True
    """
    place = Path(folder) if folder else _shipped.folder("figures")
    return sorted(path.stem for path in place.glob("*.py") if not path.stem.startswith("_"))


def load_figure(name: str, folder: str | Path | None = None) -> types.ModuleType:
    """The module of one figure.

    Args:
        name: the file's name without its ending.
        folder: where the figures lie; by default those that travel with gradlab.

    Raises:
        ValueError: there is no such figure, or it lacks ``TABLES`` or ``draw``.
    """
    place = (Path(folder) if folder else _shipped.folder("figures")).resolve()
    if name not in names(place):
        raise ValueError(unknown("figure", name, names(place)))
    package = sys.modules.get(PACKAGE)
    if package is None or list(package.__path__) != [str(place)]:
        for loaded in [m for m in sys.modules if m == PACKAGE or m.startswith(PACKAGE + ".")]:
            del sys.modules[loaded]
        package = types.ModuleType(PACKAGE)
        package.__path__ = [str(place)]
        sys.modules[PACKAGE] = package
    module = importlib.import_module(f"{PACKAGE}.{name}")
    if not hasattr(module, "TABLES") or not hasattr(module, "draw"):
        raise ValueError(f"the figure '{name}' needs TABLES, the names of the tables it reads, and "
                         "draw(tables).")  # fmt: skip
    return module


def draw(
    study_folder: str | Path, spec: Any = None, figures: Sequence[str] | None = None
) -> list[Path]:
    """Draw a study's figures again from its stored tables.

    Args:
        study_folder: the folder with the store.
        spec: the study's spec; it is read from the store by default.
        figures: which ones; by default those the spec names, or those of its kind of study.

    Returns:
        The files written: a PNG, an SVG and a CSV each.

    Raises:
        ValueError: there is no such figure.
        StoreError: there is no store, or a file cannot be written.
    """
    drawn = draw_figures(load(study_folder, spec), figures)
    return [path for figure in drawn for path in figure.files]


def draw_figures(study: StoredStudy, figures: Sequence[str] | None = None) -> list[Drawn]:
    """Draw and save a study's figures.

    Args:
        study: the study, as :func:`gradlab.reporting.stored.load` reads it.
        figures: which ones; by default those the spec names, or those of its kind of study.

    Returns:
        One entry per figure; those that found nothing to draw say why if they were asked for, and
        are left out otherwise.
    """
    asked = list(figures if figures is not None else study.spec.get("figures") or [])
    known = names()
    for name in asked:
        if name not in known:
            raise ValueError(unknown("figure", name, known))
    wanted = asked or [n for n in BY_KIND.get(study.kind, known) if n in known]
    drawn: list[Drawn] = []
    for name in dict.fromkeys(wanted):
        better = {INSTEAD.get(figure.name) for figure in drawn if figure.files}
        if asked or name not in better:
            drawn.append(draw_one(name, study))
    return [figure for figure in drawn if figure.files or asked]


def draw_one(name: str, study: StoredStudy) -> Drawn:
    """Draw and save one figure; a figure without anything to draw says so in ``problem``."""
    module = load_figure(name)
    headline, _, caption = inspect.cleandoc(module.__doc__ or name).partition("\n\n")
    title, caption = " ".join(headline.split()), " ".join(caption.split())
    absent = [table for table in module.TABLES if table not in study.tables]
    if absent:
        return Drawn(name, title, caption, problem=f"this study has no table '{absent[0]}'.")
    try:
        figure, frame = module.draw({table: study.tables[table] for table in module.TABLES})
    except ValueError as error:
        return Drawn(name, title, caption, problem=str(error))
    described = {
        ending: _metadata(ending, name, title, study, module.TABLES) for ending in ("png", "svg")
    }
    files = {ending: render(figure, ending, facts) for ending, facts in described.items()}
    files["csv"] = frame.to_csv(index=False).encode()
    paths = tuple(study.folder / "figures" / f"{name}.{ending}" for ending in files)
    for path, content in zip(paths, files.values(), strict=True):
        write_bytes(path, content)
    note = str(frame.attrs.get("note", ""))
    embedded = _without_note(figure, files["svg"])
    return Drawn(name, title, caption, note, paths, embedded)


def render(figure: Figure, ending: str, metadata: dict[str, Any]) -> bytes:
    """A figure's bytes, the same for the same figure and metadata."""
    import matplotlib as mpl

    # Text as outlines: the page looks the same whatever fonts the reader has.
    settings: dict[Any, Any] = {"svg.hashsalt": "gradlab", "svg.fonttype": "path"}
    buffer = io.BytesIO()
    with mpl.rc_context(settings):
        figure.savefig(buffer, format=ending, dpi=DPI, metadata=metadata)
    figure.set_layout_engine("none")  # the layout is made once, and stays
    return buffer.getvalue()


def _without_note(figure: Figure, svg: bytes) -> bytes:
    """The SVG cut off above the note at the figure's foot."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    note = next((text for text in figure.texts if text.get_gid() == "note"), None)
    size = re.search(rb'height="([\d.]+)pt" viewBox="0 0 ([\d.]+) [\d.]+"', svg)
    if note is None or size is None or not note.get_text():
        return svg
    renderer: Any = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    foot = 72 * note.get_window_extent(renderer).y1 / figure.dpi
    height = f"{float(size[1]) - foot - 2:.2f}".encode()
    head = b'height="%bpt" viewBox="0 0 %b %b"' % (height, size[2], height)
    return svg[: size.start()] + head + svg[size.end() :]


def _metadata(
    ending: str, name: str, title: str, study: StoredStudy, tables: Sequence[str]
) -> dict[str, Any]:
    digests = ", ".join(f"{t} sha256:{study.digests[t]}" for t in tables)
    software = f"gradlab {study.version}"
    description = (f"Study {study.name}, figure {name}. Tables: {digests}. "
                   f"Draw it again: gradlab figures {study.address}")  # fmt: skip
    if ending == "png":
        return {"Title": title, "Software": software, "Description": description,
                "Source": study.name}  # fmt: skip
    # Without a date, so that the same tables give the same bytes.
    return {"Title": title, "Creator": software, "Description": description,
            "Source": study.name, "Date": None}  # fmt: skip
