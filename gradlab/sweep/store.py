"""The results of a study: one SQLite file, written by the driver alone.

Each finished cell is one transaction: its configuration, its rows and its provenance are there
together or not at all, so a killed run loses the cells in flight and nothing else. The rollback
journal with full synchronization is chosen over WAL: between two transactions the file is whole
by itself, so it can be copied, and no side file has to travel with it.

Rows are JSON, never pickles: any version of gradlab, or any other program, can read them.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

FILE = "store.sqlite"
APPLICATION_ID = 0x67726C62  # "grlb": tells a store from any other SQLite file
VERSION = 1
_SCHEMA = """
CREATE TABLE cells (
    hash TEXT PRIMARY KEY, status TEXT NOT NULL CHECK (status IN ('done', 'failed')),
    config TEXT NOT NULL, provenance TEXT NOT NULL, traceback TEXT
);
CREATE TABLE results (
    hash TEXT NOT NULL REFERENCES cells (hash) ON DELETE CASCADE,
    name TEXT NOT NULL, content TEXT NOT NULL, PRIMARY KEY (hash, name)
);
CREATE TABLE selection (position INTEGER PRIMARY KEY, hash TEXT NOT NULL, config TEXT NOT NULL);
CREATE TABLE facts (key TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


class StoreError(RuntimeError):
    """The results cannot be read or written; the message is one sentence with the fix."""


class Store:
    """The cells of one study and their rows.

    Args:
        path: the SQLite file; made if it is missing and ``writable``.
        writable: whether cells will be saved; ``False`` never changes the file.

    Raises:
        StoreError: the file is no store of gradlab, damaged, newer than this gradlab, or cannot
            be written.

    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> with Store(Path(folder.name) / "store.sqlite", writable=True) as store:
    ...     store.save("ab12", {"seed": 0}, {"loss": [{"lr": 0.1, "loss": 1.5}]})
    ...     store.table("loss")
        lr  loss  cell
    0  0.1   1.5  ab12
    >>> folder.cleanup()
    """

    def __init__(self, path: str | Path, *, writable: bool = False) -> None:
        self.path = Path(path)
        if not writable and not exists(self.path):
            raise StoreError(f"there is no store at {self.path}: `gradlab run` makes one.")
        try:
            fresh = not exists(self.path)
            mode = "rwc" if writable else "rw"  # a reader may have to roll back a killed writer
            if not writable and not os.access(self.path, os.W_OK):
                mode = "ro"
            self._db = sqlite3.connect(
                f"{self.path.resolve().as_uri()}?mode={mode}", uri=True, timeout=30
            )
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"{self.path} cannot be opened ({error}): check that its folder "
                             "exists and that you may write there.") from None  # fmt: skip
        try:
            self._prepare(fresh and writable)
        except StoreError:
            self._db.close()
            raise
        except sqlite3.Error as error:
            self._db.close()
            raise _explain(error, self.path) from None

    def _prepare(self, fresh: bool) -> None:
        # Every transaction is opened by hand, see _transaction.
        self._db.isolation_level = None
        if fresh:
            with self._transaction():
                for statement in filter(str.strip, _SCHEMA.split(";")):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                self._db.execute(f"PRAGMA user_version = {VERSION}")
        (application,) = self._db.execute("PRAGMA application_id").fetchone()
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if application != APPLICATION_ID:
            raise StoreError(f"{self.path} is not a store of gradlab: move it away, or choose "
                             "another folder with --results.")  # fmt: skip
        if version > VERSION:
            raise StoreError(f"{self.path} was written by a newer gradlab (store version "
                             f"{version}, this one reads {VERSION}): upgrade gradlab.")  # fmt: skip
        (verdict,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("PRAGMA foreign_keys = ON")

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    # --- writing -----------------------------------------------------------------------------

    def save(
        self,
        cell_hash: str,
        config: Mapping[str, Any],
        tables: Mapping[str, Sequence[Mapping[str, Any]]],
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        """Keep a finished cell, in one transaction; a former failure of it is replaced.

        Args:
            cell_hash: the identity of the cell.
            config: its configuration.
            tables: rows of JSON scalars by table name; a number that is not finite is kept as
                missing.
            provenance: what made it: versions, machine, seconds.

        Raises:
            StoreError: the disk is full or the file cannot be written; the store is as before.
        """
        contents = {name: _pack(rows) for name, rows in tables.items()}
        with self._transaction():
            self._replace(cell_hash, "done", config, provenance, None)
            self._db.executemany(
                "INSERT INTO results VALUES (?, ?, ?)",
                [(cell_hash, name, content) for name, content in contents.items()],
            )

    def save_failure(
        self,
        cell_hash: str,
        config: Mapping[str, Any],
        traceback: str,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        """Keep the failure of a cell with its traceback, in one transaction."""
        with self._transaction():
            self._replace(cell_hash, "failed", config, provenance, traceback)

    def _replace(
        self,
        cell_hash: str,
        status: str,
        config: Mapping[str, Any],
        provenance: Mapping[str, Any] | None,
        traceback: str | None,
    ) -> None:
        self._db.execute("DELETE FROM cells WHERE hash = ?", (cell_hash,))
        self._db.execute(
            "INSERT INTO cells VALUES (?, ?, ?, ?, ?)",
            (cell_hash, status, json.dumps(config), json.dumps(provenance or {}), traceback),
        )

    def select(self, cells: Iterable[tuple[str, Mapping[str, Any]]], **facts: Any) -> None:
        """Say which cells the study consists of now; others stay stored but are left out.

        Args:
            cells: (hash, configuration) in the order in which tables list them.
            facts: JSON values to keep beside, such as the spec and the environment.
        """
        with self._transaction():
            self._db.execute("DELETE FROM selection")
            self._db.executemany(
                "INSERT INTO selection VALUES (?, ?, ?)",
                [(i, key, json.dumps(config)) for i, (key, config) in enumerate(cells)],
            )
            self._db.executemany(
                "INSERT OR REPLACE INTO facts VALUES (?, ?)",
                [(key, json.dumps(value)) for key, value in facts.items()],
            )

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # SQLite may have rolled back by itself
                    self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise _explain(error, self.path) from None

    # --- reading -----------------------------------------------------------------------------

    def finished(self) -> set[str]:
        """The hashes of all cells that are done, selected or not."""
        return {key for (key,) in self._query("SELECT hash FROM cells WHERE status = 'done'")}

    def failed(self) -> set[str]:
        """The hashes of all cells that failed, selected or not."""
        return {key for (key,) in self._query("SELECT hash FROM cells WHERE status = 'failed'")}

    def selection(self) -> list[tuple[str, dict[str, Any]]]:
        """(hash, configuration) of the cells that the study consists of, finished or not."""
        rows = self._query("SELECT hash, config FROM selection ORDER BY position")
        return [(key, json.loads(config)) for key, config in rows]

    def cells(self) -> list[dict[str, Any]]:
        """Every stored cell: ``hash, status, config, provenance``, the study's own first."""
        rows = self._query(
            "SELECT hash, status, cells.config, provenance FROM cells LEFT JOIN selection "
            "USING (hash) ORDER BY position IS NULL, position, hash"
        )
        return [
            {"hash": key, "status": status, "config": json.loads(config),
             "provenance": json.loads(provenance)}
            for key, status, config, provenance in rows
        ]  # fmt: skip

    def failures(self) -> list[dict[str, Any]]:
        """The study's failed cells: ``hash, config, provenance, traceback``."""
        rows = self._query(
            "SELECT hash, cells.config, provenance, traceback FROM cells JOIN selection "
            "USING (hash) WHERE status = 'failed' ORDER BY position"
        )
        return [
            {"hash": key, "config": json.loads(config), "provenance": json.loads(provenance),
             "traceback": traceback}
            for key, config, provenance, traceback in rows
        ]  # fmt: skip

    def fact(self, key: str, default: Any = None) -> Any:
        """A value kept by :meth:`select`, such as ``spec`` or ``environment``."""
        rows = self._query("SELECT value FROM facts WHERE key = ?", (key,))
        return json.loads(rows[0][0]) if rows else default

    def table_names(self) -> list[str]:
        """The names of all tables that the study's finished cells have rows in."""
        join = "JOIN selection USING (hash)" if self._has_selection() else ""
        return [n for (n,) in self._query(f"SELECT DISTINCT name FROM results {join} ORDER BY 1")]

    def table(self, name: str, hashes: Iterable[str] | None = None) -> pd.DataFrame:
        """The rows of one table as a frame, in the order of the study's cells.

        Args:
            name: one of :meth:`table_names`; another name gives an empty frame.
            hashes: the cells to take, in this order; ``None`` takes those the study consists of
                (all that are stored where no run has said which).

        Returns:
            One row per measurement. The last column, ``cell``, is the first twelve digits of the
            cell's hash.
        """
        import pandas as pd

        stored = dict(self._query("SELECT hash, content FROM results WHERE name = ?", (name,)))
        if hashes is None:
            hashes = [key for key, _ in self.selection()] or sorted(stored)
        columns: dict[str, None] = {}
        rows: list[dict[str, Any]] = []
        for key in hashes:
            if key in stored:
                content = json.loads(stored[key])
                columns |= dict.fromkeys(content["columns"])
                rows += [
                    dict(zip(content["columns"], row, strict=True), cell=key[:12])
                    for row in content["rows"]
                ]
        return pd.DataFrame(rows, columns=[*columns, "cell"])

    def _has_selection(self) -> bool:
        return bool(self._query("SELECT 1 FROM selection LIMIT 1"))

    def _query(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        try:
            return self._db.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise _explain(error, self.path) from None


def exists(path: Path) -> bool:
    """Whether there is a store; a run that has just begun has made an empty file."""
    return path.is_file() and path.stat().st_size > 0


def _pack(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = [[_scalar(key, row.get(key)) for key in columns] for row in rows]
    return json.dumps({"columns": columns, "rows": table}, allow_nan=False)


def _scalar(column: str, value: Any) -> str | int | float | bool | None:
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:  # numpy and torch scalars
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise TypeError(f"column '{column}' holds {value!r}: a table takes numbers, text, true, "
                    "false and missing.")  # fmt: skip


def _explain(error: sqlite3.Error, path: Path) -> StoreError:
    """The one sentence for what SQLite says."""
    text = " ".join(str(error).replace("*** in database main ***", "").split())
    if "full" in text:
        return StoreError(f"no space left for {path}: the cells finished so far are kept, free "
                          "some space and run again.")  # fmt: skip
    if "locked" in text:
        return StoreError(f"{path} is in use by another program: close it and run again.")
    if "readonly" in text or "read-only" in text:
        return StoreError(f"{path} cannot be written: change its permissions, or choose another "
                          "folder with --results.")  # fmt: skip
    if "disk I/O" in text:
        return StoreError(f"{path} cannot be read or written ({text}): check the disk and run "
                          "again.")  # fmt: skip
    if "not a database" in text:
        return StoreError(f"{path} is not a store of gradlab: move it away, or choose another "
                          "folder with --results.")  # fmt: skip
    return StoreError(f"{path} is damaged ({text}): restore it from a copy, or move it away and "
                      "run again.")  # fmt: skip


def prepare(folder: Path) -> None:
    """Make a study's folder and make sure that it can be written, before any work is done.

    Raises:
        StoreError: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"\0" * 65_536)
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise StoreError(f"results cannot be written to {folder} ({reason}): choose another "
                         "folder with --results.") from None  # fmt: skip


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Keep a second run out of a study's folder; the lock dies with its process.

    Raises:
        StoreError: another run holds it.
    """
    import filelock

    held = filelock.FileLock(folder / ".lock")
    try:
        held.acquire(timeout=0)
    except filelock.Timeout:
        raise StoreError(f"another `gradlab run` is writing to {folder}: wait for it to end, or "
                         "choose another folder with --results.") from None  # fmt: skip
    try:
        yield
    finally:
        held.release()
