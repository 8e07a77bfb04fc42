"""A study as it lies on disk, read once for tables, figures and report."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from gradlab.sweep import provenance
from gradlab.sweep.export import tidy
from gradlab.sweep.store import FILE, Store


@dataclass(frozen=True)
class StoredStudy:
    """What a study's folder holds.

    Attributes:
        folder: the study's folder.
        spec: the spec it was last run with, as a dict.
        tables: the rows of every table, columns of one type each.
        planned: (hash, configuration) of every cell the study consists of.
        cells: every stored cell with its status and provenance.
        failures: the failed cells with their tracebacks.
        environment: where it was last run.
    """

    folder: Path
    spec: dict[str, Any]
    tables: dict[str, pd.DataFrame]
    planned: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    cells: list[dict[str, Any]] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The study's slug."""
        return str(self.spec.get("name") or self.folder.resolve().name)

    @property
    def kind(self) -> str:
        """What was measured, such as loss_decrease."""
        return str(self.spec.get("study") or next(iter(self.tables), ""))

    @property
    def address(self) -> str:
        """How to name this study on the command line."""
        usual = self.folder == Path("results") / self.folder.name
        return self.folder.name if usual else str(self.folder)

    @cached_property
    def done(self) -> list[dict[str, Any]]:
        """The study's finished cells."""
        wanted = {key for key, _ in self.planned}
        return [c for c in self.cells
                if c["status"] == "done" and (not wanted or c["hash"] in wanted)]  # fmt: skip

    @cached_property
    def missing(self) -> list[tuple[str, dict[str, Any]]]:
        """The cells that neither finished nor failed."""
        stored = {cell["hash"] for cell in self.cells}
        return [(key, config) for key, config in self.planned if key not in stored]

    @cached_property
    def digests(self) -> dict[str, str]:
        """SHA-256 of each table, equal to that of ``tables/<name>.csv``."""
        return {
            name: hashlib.sha256(frame.to_csv(index=False).encode()).hexdigest()
            for name, frame in self.tables.items()
        }

    @property
    def version(self) -> str:
        """The version of gradlab that reads the study now."""
        return provenance.version_of("gradlab") or _source_version()


def _source_version() -> str:
    from gradlab import __version__

    return __version__


def load(folder: str | Path, spec: Any = None) -> StoredStudy:
    """Read a study's folder.

    Args:
        folder: where its store lies.
        spec: the spec as a mapping or a model; by default the one it was last run with.

    Raises:
        StoreError: there is no store, or it cannot be read.
    """
    folder = Path(folder)
    with Store(folder / FILE) as store:
        given = store.fact("spec", {}) if spec is None else spec
        if not isinstance(given, Mapping):
            given = given.model_dump(mode="json")
        return StoredStudy(
            folder=folder,
            spec=dict(given),
            tables={name: tidy(store.table(name)) for name in store.table_names()},
            planned=store.selection(),
            cells=store.cells(),
            failures=store.failures(),
            environment=store.fact("environment", {}),
        )
