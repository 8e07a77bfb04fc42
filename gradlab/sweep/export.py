"""A study's tables as CSV and Parquet files, and the comparison of two studies."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradlab.sweep.cells import describe
from gradlab.sweep.store import FILE, Store, StoreError

if TYPE_CHECKING:
    import pandas as pd

UNREPEATABLE = ("seconds", "device")
"""Measurements that differ between two runs of the same cell."""


def export(folder: str | Path) -> list[Path]:
    """Write every table of a study to ``tables/<name>.csv`` and ``.parquet``.

    Returns:
        The files written.

    Raises:
        StoreError: there is no store, or the files cannot be written.
    """
    target = Path(folder) / "tables"
    written = []
    with Store(Path(folder) / FILE) as store:
        for name in store.table_names():
            frame = tidy(store.table(name))
            try:
                target.mkdir(exist_ok=True)
                for suffix in ("csv", "parquet"):
                    path = target / f"{name}.{suffix}"
                    # A reader never sees half a file, and a full disk leaves the old one.
                    partial = path.with_suffix(f".{suffix}.part")
                    if suffix == "csv":
                        frame.to_csv(partial, index=False)
                    else:
                        frame.to_parquet(partial, index=False)
                    os.replace(partial, path)
                    written.append(path)
            except OSError as error:
                reason = (error.strerror or str(error)).lower()
                raise StoreError(f"{target} cannot be written ({reason}): free some space or "
                                 "change its permissions.") from None  # fmt: skip
    return written


def tidy(frame: pd.DataFrame) -> pd.DataFrame:
    """A frame whose columns each have one type: whole numbers stay whole beside missing ones.

    >>> import pandas as pd
    >>> frame = tidy(pd.DataFrame({"population": [500.0, None], "sigma": [0.1, None]}))
    >>> [str(dtype) for dtype in frame.dtypes]
    ['Int64', 'float64']
    """
    import pandas as pd

    frame = frame.copy()
    for column in frame:
        values = frame[column]
        known = values.dropna()
        if values.dtype == object and known.map(type).nunique() > 1:
            frame[column] = values.map(lambda v: v if pd.isna(v) else describe(v))
        elif pd.api.types.is_float_dtype(values) and 0 < len(known) < len(values):
            whole = (known % 1 == 0) & (known.abs() < 2**53)
            frame[column] = values.astype("Int64") if whole.all() else values
    return frame


@dataclass(frozen=True)
class Difference:
    """How one column differs between two studies.

    Attributes:
        table: name of the table.
        column: name of the measurement.
        rows: number of rows in both studies.
        differing: number of them that differ.
        absolute: largest absolute difference; ``None`` where the values are not numbers.
        relative: largest relative difference.
        where: the row with the largest difference, in words.
    """

    table: str
    column: str
    rows: int
    differing: int
    absolute: float | None
    relative: float | None
    where: str


@dataclass(frozen=True)
class Comparison:
    """What two studies have in common and where they differ.

    Attributes:
        rows: number of rows in both, over all tables.
        only_left: number of cells that only the first has.
        only_right: number of cells that only the second has.
        differences: the columns that differ.
    """

    rows: int
    only_left: int
    only_right: int
    differences: list[Difference]

    @property
    def same(self) -> bool:
        """Whether both studies have the same cells and the same numbers."""
        return not (self.only_left or self.only_right or self.differences)


def compare(left: str | Path, right: str | Path, tolerance: float = 0.0) -> Comparison:
    """Compare two studies cell by cell: rows are joined on cell and place within the cell.

    A cell's hash stands for all its keys, so the join is exact, and what one code version calls a
    key and another a measurement does not matter.

    Args:
        left: a study's folder.
        right: another one.
        tolerance: relative difference up to which two numbers count as equal.

    Raises:
        StoreError: one of them cannot be read.
    """
    with Store(Path(left) / FILE) as a, Store(Path(right) / FILE) as b:
        mine, theirs = _finished(a), _finished(b)
        common = [key for key in mine if key in set(theirs)]
        differences: list[Difference] = []
        rows = 0
        for name in sorted({*a.table_names(), *b.table_names()}):
            one, two = (_keyed(store.table(name, common)) for store in (a, b))
            rows += len(one.index.intersection(two.index))
            differences += _differences(name, one, two, tolerance)
    return Comparison(
        rows=rows,
        only_left=len(set(mine) - set(theirs)),
        only_right=len(set(theirs) - set(mine)),
        differences=differences,
    )


def _finished(store: Store) -> list[str]:
    done = store.finished()
    return [key for key, _ in store.selection() if key in done]


def _keyed(frame: pd.DataFrame) -> pd.DataFrame:
    place = frame.groupby("cell").cumcount()
    return frame.assign(row=place).set_index(["cell", "row"])


def _differences(
    name: str, one: pd.DataFrame, two: pd.DataFrame, tolerance: float
) -> list[Difference]:
    import numpy as np
    import pandas as pd

    found = []
    if len(one) != len(two):
        found.append(Difference(name, "number of rows", max(len(one), len(two)),
                                abs(len(one) - len(two)), None, None, ""))  # fmt: skip
    common = one.index.intersection(two.index)
    one, two = one.loc[common], two.loc[common]
    for column in dict.fromkeys([*one.columns, *two.columns]):
        if column in UNREPEATABLE or len(common) == 0:
            continue
        if column not in one or column not in two:
            here = "first" if column in one else "second"
            found.append(Difference(name, column, len(common), len(common), None, None,
                                    f"only the {here} has this column"))  # fmt: skip
            continue
        x, y = one[column], two[column]
        missing = x.isna() & y.isna()
        if _numeric(x) and _numeric(y):
            x, y = x.astype(float), y.astype(float)
            gap = (x - y).abs().where(x.isna() == y.isna(), np.inf).fillna(0.0)
            scale = np.maximum(x.abs(), y.abs()).fillna(0.0)
            relative = (gap / scale.where(scale > 0, 1.0)).where(gap > 0, 0.0)
            differ = (relative > tolerance) & ~missing
            if differ.any():
                worst = relative.where(differ).idxmax()
                found.append(Difference(
                    name, column, len(common), int(differ.sum()), float(gap[differ].max()),
                    float(relative[differ].max()), _place(one.loc[worst]),
                ))  # fmt: skip
        else:
            differ = (x.astype(object) != y.astype(object)) & ~missing
            if differ.any():
                worst = pd.Index(differ[differ].index)[0]
                found.append(Difference(name, column, len(common), int(differ.sum()), None, None,
                                        _place(one.loc[worst])))  # fmt: skip
    return found


def _numeric(values: pd.Series[Any]) -> bool:
    import pandas as pd

    return pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)


def _place(row: pd.Series[Any]) -> str:
    """The keys a person needs to find a row again."""
    keys = ("num_dim", "student", "init", "batch", "repeat", "label", "estimator", "layer", "lr",
            "step")  # fmt: skip
    shown = {key: row[key] for key in keys if key in row and row[key] == row[key]}
    if "label" in shown:
        shown.pop("estimator", None)
    return ", ".join(f"{key}={describe(value)}" for key, value in shown.items())
