"""The store: whole transactions, JSON rows, and clear words about files that are none."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from gradlab.sweep.store import Store, StoreError, prepare

CONFIG = {"seed": 0}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.sqlite"


def test_what_is_saved_comes_back(path: Path) -> None:
    rows = [{"lr": 0.1, "label": "STE", "population": 500, "fresh": True, "best": None},
            {"lr": float("inf"), "label": "CDG", "extra": 3}]  # fmt: skip
    with Store(path, writable=True) as store:
        store.save("aa", CONFIG, {"loss": rows, "other": []}, {"seconds": 2.0})
    with Store(path) as store:
        frame = store.table("loss")
        assert store.finished() == {"aa"}
        assert store.cells() == [{"hash": "aa", "status": "done", "config": CONFIG,
                                  "provenance": {"seconds": 2.0}}]  # fmt: skip
        assert store.table_names() == ["loss", "other"]
        assert store.table("other").empty
        assert store.table("nothing").empty
    assert list(frame) == ["lr", "label", "population", "fresh", "best", "extra", "cell"]
    assert frame["lr"].tolist()[0] == 0.1
    assert pd.isna(frame["lr"][1])
    assert frame["label"].tolist() == ["STE", "CDG"]
    assert pd.isna(frame["population"][1])
    assert frame["cell"].tolist() == ["aa", "aa"]


def test_floats_come_back_to_the_last_bit(path: Path) -> None:
    values = np.random.default_rng(0).standard_normal(100) * 10.0 ** np.arange(-150, 150, 3)
    with Store(path, writable=True) as store:
        store.save("aa", CONFIG, {"t": [{"x": value} for value in values]})
        assert store.table("t")["x"].to_numpy().tobytes() == values.tobytes()


def test_scalars_of_numpy_and_torch_are_stored_as_numbers(path: Path) -> None:
    import torch

    with Store(path, writable=True) as store:
        store.save(
            "aa", CONFIG, {"t": [{"a": np.float32(0.5), "b": np.int64(3), "c": torch.tensor(2.0)}]}
        )
        assert store.table("t").iloc[0].tolist()[:3] == [0.5, 3, 2.0]


def test_a_row_that_is_no_row_of_scalars_is_refused_and_nothing_is_kept(path: Path) -> None:
    with Store(path, writable=True) as store:
        with pytest.raises(TypeError, match="column 'x' holds \\[1\\]: a table takes numbers"):
            store.save("aa", CONFIG, {"t": [{"x": [1]}]})
        assert store.finished() == set()


def test_a_selection_decides_what_tables_hold_and_in_which_order(path: Path) -> None:
    with Store(path, writable=True) as store:
        for key in ("aa", "bb", "cc"):
            store.save(key, CONFIG, {"t": [{"x": key}]})
        assert store.table("t")["x"].tolist() == ["aa", "bb", "cc"]
        store.select([("cc", CONFIG), ("dd", CONFIG), ("aa", CONFIG)], spec={"name": "s"})
        assert store.table("t")["x"].tolist() == ["cc", "aa"]
        assert store.table("t", hashes=["bb"])["x"].tolist() == ["bb"]
        assert [key for key, _ in store.selection()] == ["cc", "dd", "aa"]
        assert [cell["hash"] for cell in store.cells()] == ["cc", "aa", "bb"]
        assert store.fact("spec") == {"name": "s"}
        assert store.fact("nothing", 1) == 1


def test_a_failure_is_replaced_by_success_and_the_other_way_round(path: Path) -> None:
    with Store(path, writable=True) as store:
        store.select([("aa", CONFIG)])
        store.save_failure("aa", CONFIG, "Traceback …", {"seconds": 1.0})
        (failure,) = store.failures()
        assert failure == {"hash": "aa", "config": CONFIG, "provenance": {"seconds": 1.0},
                           "traceback": "Traceback …"}  # fmt: skip
        store.save("aa", CONFIG, {"t": [{"x": 1}]})
        assert (store.finished(), store.failures()) == ({"aa"}, [])
        store.save_failure("aa", CONFIG, "again")
        assert store.table("t").empty


def test_a_copy_of_the_file_alone_is_whole(path: Path, tmp_path: Path) -> None:
    with Store(path, writable=True) as store:
        store.save("aa", CONFIG, {"t": [{"x": 1}]})
        shutil.copy(path, tmp_path / "copy.sqlite")
        assert sorted(p.name for p in tmp_path.iterdir()) == ["copy.sqlite", "store.sqlite"]
    with Store(tmp_path / "copy.sqlite") as copy:
        assert len(copy.table("t")) == 1


def test_reading_goes_on_while_another_writes(path: Path) -> None:
    with Store(path, writable=True) as writer, Store(path) as reader:
        writer.save("aa", CONFIG, {"t": [{"x": 1}]})
        assert reader.finished() == {"aa"}


def test_rows_are_plain_json(path: Path) -> None:
    with Store(path, writable=True) as store:
        store.save("aa", CONFIG, {"t": [{"x": 1}]})
    with sqlite3.connect(path) as database:
        ((content,),) = database.execute("SELECT content FROM results").fetchall()
    database.close()
    assert json.loads(content) == {"columns": ["x"], "rows": [[1]]}


def make(path: Path, statement: str) -> None:
    database = sqlite3.connect(path)
    database.execute(statement)
    database.commit()
    database.close()


def test_foreign_newer_and_damaged_files_are_refused_in_one_sentence(path: Path) -> None:
    with pytest.raises(StoreError, match=r"there is no store at .*`gradlab run` makes one"):
        Store(path)
    path.write_text("this is no database, and it is longer than a header of SQLite" * 40)
    with pytest.raises(StoreError, match="is not a store of gradlab: move it away"):
        Store(path, writable=True)
    path.unlink()
    make(path, "CREATE TABLE other (x)")
    with pytest.raises(StoreError, match="is not a store of gradlab: move it away"):
        Store(path, writable=True)
    path.unlink()
    with Store(path, writable=True) as store:
        store.save("aa", CONFIG, {"t": [{"x": "y" * 100_000}]})
    make(path, "PRAGMA user_version = 99")
    with pytest.raises(StoreError, match="written by a newer gradlab"):
        Store(path)
    make(path, "PRAGMA user_version = 1")
    content = bytearray(path.read_bytes())
    content[4096:8192] = b"\xff" * 4096
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"is damaged \(.*restore it from a copy"):
        Store(path)
    with pytest.raises(StoreError, match="cannot be opened"):
        Store(path / "below" / "a-file.sqlite", writable=True)


def test_an_empty_file_left_by_a_crash_is_a_new_store(path: Path) -> None:
    path.touch()
    with pytest.raises(StoreError, match="there is no store at"):
        Store(path)
    with Store(path, writable=True) as store:
        store.save("aa", CONFIG, {})
        assert store.finished() == {"aa"}


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"results cannot be written to .*file.study \("):
        prepare(tmp_path / "file" / "study")
    prepare(tmp_path / "new" / "study")
    assert list((tmp_path / "new" / "study").iterdir()) == []
