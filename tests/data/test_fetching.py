"""A set is brought whole, by one process at a time; what is intact is left alone."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from gradlab.data import DataError, check, fetch, fetching, load, splits_here
from gradlab.data.sets import ImageSet
from tests.data.tiny import (
    cifar_set,
    idx_set,
    npz,
    uc_merced_archive,
    uc_merced_arrays,
    uc_merced_set,
    write,
)
from tests.data.web import Web

Registered = Callable[[ImageSet], ImageSet]


def test_the_files_of_an_idx_set_are_downloaded(
    web: Web, registered: Registered, tmp_path: Path
) -> None:
    info, contents = idx_set((web.mirror("ranges"),))
    registered(info)
    web.contents.update(contents)
    assert splits_here("mnist", tmp_path) == []
    assert fetch("mnist", tmp_path) == tmp_path / "mnist"
    assert {file.state for file in check("mnist", tmp_path)} == {"intact"}
    assert splits_here("mnist", tmp_path) == ["train", "test"]
    assert len(load("mnist", "test", root=tmp_path)) == 20


def test_what_is_intact_is_left_alone_and_what_is_damaged_replaced(
    web: Web, registered: Registered, tmp_path: Path
) -> None:
    info, contents = idx_set((web.mirror("ranges"),))
    registered(info)
    web.contents.update(contents)
    damaged, absent, *rest = contents
    write(tmp_path, {path: contents[path] for path in rest} | {damaged: b"damaged"})
    before = {path: (tmp_path / path).stat().st_mtime_ns for path in rest}
    assert [file.state for file in check("mnist", tmp_path)][:2] == ["damaged", "missing"]
    fetch("mnist", tmp_path)
    assert {path for _, path, _ in web.asked} == {damaged, absent}
    assert {path: (tmp_path / path).stat().st_mtime_ns for path in rest} == before
    assert {file.state for file in check("mnist", tmp_path)} == {"intact"}


def test_a_complete_set_needs_neither_network_nor_a_writable_folder(
    registered: Registered, tmp_path: Path
) -> None:
    info, contents = idx_set()
    registered(info)
    write(tmp_path, contents)
    before = sorted(tmp_path.rglob("*"))
    fetch("mnist", tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("hundred", [False, True])
def test_an_archive_of_cifar_is_unpacked(
    web: Web, registered: Registered, tmp_path: Path, hundred: bool
) -> None:
    info, contents, archive = cifar_set(hundred, (web.mirror("ranges"),))
    registered(info)
    web.contents.update(archive)
    fetch(info.name, tmp_path)
    assert all((tmp_path / path).read_bytes() == content for path, content in contents.items())
    states = check(info.name, tmp_path)
    assert {file.state for file in states} == {"intact"}
    assert {file.verified for file in states} == ({"md5", "sha256"} if hundred else {"sha256"})
    fetch(info.name, tmp_path)
    assert len(web.asked) == 1


def test_an_archive_that_was_put_there_by_hand_is_unpacked(
    registered: Registered, tmp_path: Path
) -> None:
    info, contents, archive = cifar_set()
    registered(info)
    write(tmp_path, archive)
    assert splits_here("cifar10", tmp_path) == ["train", "test"]
    assert [file.path for file in check("cifar10", tmp_path)] == list(archive)
    fetch("cifar10", tmp_path)
    assert all((tmp_path / path).read_bytes() == content for path, content in contents.items())


def test_the_archive_of_uc_merced_is_averaged(
    web: Web, registered: Registered, tmp_path: Path
) -> None:
    arrays = uc_merced_arrays()
    archive = uc_merced_archive(arrays)
    info = registered(uc_merced_set((web.mirror("ranges"),), archive))
    web.contents[info.downloads[0].path] = archive
    fetch("uc_merced", tmp_path)
    with np.load(tmp_path / "uc_merced/uc_merced_64.npz") as made:
        assert all((made[key] == arrays[key]).all() for key in arrays)
        assert (made["orig_hw"] == 128).all()
        assert made["archive_sha256"] == info.downloads[0].sha256
    assert [file.state for file in check("uc_merced", tmp_path)] == ["intact", "intact"]
    assert len(load("uc_merced", root=tmp_path)) == 160


def test_a_damaged_npz_is_made_anew(registered: Registered, tmp_path: Path) -> None:
    arrays = uc_merced_arrays()
    archive = uc_merced_archive(arrays)
    info = registered(uc_merced_set((), archive))
    wrong = npz({**arrays, "labels": arrays["labels"][::-1]})
    write(tmp_path, {info.downloads[0].path: archive, info.files[0].path: wrong})
    (state, _) = check("uc_merced", tmp_path)
    assert (state.state, state.verified) == ("damaged", "content")
    assert "names and labels disagree" in str(state.problem)
    fetch("uc_merced", tmp_path)
    assert [file.state for file in check("uc_merced", tmp_path)] == ["intact", "intact"]


PROCESS = """
import json, sys
from dataclasses import replace
from gradlab.data import fetch
from gradlab.data.sets import SETS, Checksum, Download, StoredFile
known = json.loads(sys.argv[2])
SETS["mnist"] = replace(
    SETS["mnist"],
    files=tuple(StoredFile(f["path"], tuple(f["splits"]), Checksum(**f["checksum"]))
                for f in known["files"]),
    downloads=tuple(Download(**{**d, "urls": tuple(d["urls"])}) for d in known["downloads"]),
)
fetch("mnist", sys.argv[1])
"""


def test_two_processes_at_once_download_once(
    web: Web, registered: Registered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "_POLL", 0.02)
    info, contents = idx_set((web.mirror("slow"),))
    registered(info)
    web.contents.update(contents)
    known = {"files": [asdict(file) for file in info.files],
             "downloads": [asdict(item) for item in info.downloads]}  # fmt: skip
    command = [sys.executable, "-c", PROCESS, str(tmp_path), json.dumps(known)]
    seen = []
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as other:
        for _ in range(600):  # until the other one is at it
            if web.asked or other.poll() is not None:
                break
            time.sleep(0.1)
        fetch("mnist", tmp_path, progress=lambda *progress: seen.append(progress))
        assert other.communicate(timeout=60)[1] == ""
    assert other.returncode == 0
    assert sorted(path for _, path, _ in web.asked) == sorted(contents)
    assert all((tmp_path / path).read_bytes() == content for path, content in contents.items())
    assert seen  # how far the other one had come
    assert all(0 <= done <= total for _, done, total in seen)


def test_a_folder_that_cannot_be_made_is_one_sentence(
    registered: Registered, tmp_path: Path
) -> None:
    registered(idx_set()[0])
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file cannot be written .*choose another folder"):
        fetch("mnist", tmp_path / "file")


def test_the_command_in_a_sentence_names_the_folder(registered: Registered, tmp_path: Path) -> None:
    registered(idx_set(("http://127.0.0.1:9",))[0])
    with pytest.raises(DataError) as caught:
        fetch("mnist", tmp_path)
    assert f"`gradlab data fetch mnist --data {tmp_path}`" in str(caught.value)
