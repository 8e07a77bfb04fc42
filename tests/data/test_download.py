"""A download is resumed, verified and renamed in one step, whatever the mirrors do."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path
from types import SimpleNamespace

import pytest

from gradlab.data import DataError, download
from gradlab.data.download import download as bring
from gradlab.data.sets import Download
from tests.data.tiny import sha256
from tests.data.web import Web

CONTENT = random.Random(0).randbytes(5000)
PATH = "set/file.bin"
AGAIN = "`gradlab data fetch set`"


def item(web: Web, *behaviours: str) -> Download:
    web.contents[PATH] = CONTENT
    urls = tuple(f"{web.mirror(behaviour)}/{PATH}" for behaviour in behaviours)
    return Download(PATH, urls, len(CONTENT), sha256(CONTENT))


def partial(root: Path, content: bytes) -> Path:
    place = root / f"{PATH}.partial"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(content)
    return place


def complete(root: Path) -> bool:
    """The file is there, and nothing else."""
    return (root / PATH).read_bytes() == CONTENT and os.listdir(root / "set") == ["file.bin"]


def test_a_file_is_downloaded_with_its_progress(web: Web, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    place = bring(item(web, "ranges"), tmp_path, AGAIN, lambda *progress: seen.append(progress))
    assert place == tmp_path / PATH
    assert complete(tmp_path)
    assert seen[0] == (PATH, 0, 5000)
    assert seen[-1] == (PATH, 5000, 5000)
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)


def test_it_goes_on_where_it_stopped(web: Web, tmp_path: Path) -> None:
    partial(tmp_path, CONTENT[:1234])
    bring(item(web, "ranges"), tmp_path, AGAIN)
    assert complete(tmp_path)
    assert web.asked == [("ranges", PATH, "bytes=1234-")]


def test_a_server_without_ranges_sends_it_whole(web: Web, tmp_path: Path) -> None:
    partial(tmp_path, CONTENT[:1234])
    bring(item(web, "whole"), tmp_path, AGAIN)
    assert complete(tmp_path)
    assert len(web.asked) == 1


@pytest.mark.parametrize("length", [1, 1234, 4999, 5000, 6000])
def test_a_partial_file_of_something_else_is_dropped(web: Web, tmp_path: Path, length: int) -> None:
    partial(tmp_path, b"x" * length)
    bring(item(web, "ranges"), tmp_path, AGAIN)
    assert complete(tmp_path)
    assert web.asked[-1] == ("ranges", PATH, None)


def test_a_complete_partial_file_needs_no_connection(web: Web, tmp_path: Path) -> None:
    partial(tmp_path, CONTENT)
    bring(item(web, "missing"), tmp_path, AGAIN)
    assert complete(tmp_path)
    assert web.asked == []


def test_a_connection_that_is_cut_is_taken_up_again(web: Web, tmp_path: Path) -> None:
    bring(item(web, "cut"), tmp_path, AGAIN)
    assert complete(tmp_path)
    ranges = [asked for _, _, asked in web.asked]
    assert ranges == [None, "bytes=1000-", "bytes=2000-", "bytes=3000-", "bytes=4000-"]


def test_what_one_mirror_sent_another_continues(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "CONNECTIONS", 2)
    bring(item(web, "cut", "ranges"), tmp_path, AGAIN)
    assert complete(tmp_path)
    assert web.asked[-1] == ("ranges", PATH, "bytes=2000-")


@pytest.mark.parametrize("bad", ["missing", "corrupt", "longer", "stuck"])
def test_the_next_mirror_is_tried(web: Web, tmp_path: Path, bad: str) -> None:
    bring(item(web, bad, "ranges"), tmp_path, AGAIN)
    assert complete(tmp_path)
    assert web.behaviours_asked == [bad, "ranges"]


def test_a_server_that_falls_silent_is_left(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    with pytest.raises(DataError, match=r"no answer for 0\.2 s"):
        bring(item(web, "silent"), tmp_path, AGAIN)
    bring(item(web, "silent", "ranges"), tmp_path, AGAIN)
    assert complete(tmp_path)


def test_an_answer_with_another_part_means_starting_over(web: Web, tmp_path: Path) -> None:
    partial(tmp_path, CONTENT[:1234])
    bring(item(web, "beside"), tmp_path, AGAIN)
    assert complete(tmp_path)
    assert [asked for _, _, asked in web.asked] == ["bytes=1234-", None]


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        ("missing", "HTTP status 404"),
        ("corrupt", f"its SHA-256 is {sha256(CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]))}, not"),
        ("longer", "it has 5,004 bytes, not 5,000"),
        ("stuck", "the connection keeps being cut off"),
    ],
)
def test_without_a_good_mirror_the_sentence_says_how_to_do_without(
    web: Web, tmp_path: Path, behaviour: str, words: str
) -> None:
    wanted = item(web, behaviour)
    with pytest.raises(DataError) as caught:
        bring(wanted, tmp_path, AGAIN)
    sentence = str(caught.value)
    assert words in sentence
    assert sentence.startswith(f"{PATH} cannot be downloaded (http://127.0.0.1")
    assert f"put the file into {tmp_path / 'set'} by hand" in sentence
    assert AGAIN in sentence
    assert len(sentence.splitlines()) == 1
    assert not (tmp_path / PATH).exists()


def test_offline_every_address_is_named_with_its_reason(tmp_path: Path) -> None:
    # Nothing listens on the discard port of this machine.
    urls = ("http://127.0.0.1:9/a/file.bin", "http://127.0.0.1:9/b/file.bin")
    with pytest.raises(DataError) as caught:
        bring(Download(PATH, urls, 5000, sha256(CONTENT)), tmp_path, AGAIN)
    assert all(f"{url}: Connection refused" in str(caught.value) for url in urls)


def test_a_corrupt_mirror_never_leaves_a_file_or_a_remnant(web: Web, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        bring(item(web, "corrupt"), tmp_path, AGAIN)
    assert os.listdir(tmp_path / "set") == []


def test_a_damaged_file_is_replaced(web: Web, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / PATH).write_bytes(b"damaged")
    bring(item(web, "ranges"), tmp_path, AGAIN)
    assert complete(tmp_path)


def test_a_full_disk_is_noticed_before_anything_is_sent(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = partial(tmp_path, CONTENT[:1000])
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=3_999))
    with pytest.raises(DataError, match=r"has no space left for file\.bin, of which 4,000 bytes"):
        bring(item(web, "ranges"), tmp_path, AGAIN)
    assert web.asked == []
    assert place.read_bytes() == CONTENT[:1000]


def test_a_disk_that_fills_up_keeps_the_partial_file(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = partial(tmp_path, CONTENT[:1000])

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(DataError, match="has no space left") as caught:
        bring(item(web, "ranges"), tmp_path, AGAIN)
    assert f"{AGAIN} goes on where it stopped" in str(caught.value)
    assert place.read_bytes()[:1000] == CONTENT[:1000]
    monkeypatch.undo()
    bring(item(web, "ranges"), tmp_path, AGAIN)
    assert complete(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(web: Web, tmp_path: Path) -> None:
    (tmp_path / "set").write_text("a file where a folder belongs")
    with pytest.raises(DataError, match=r"set cannot be written .*choose another folder"):
        bring(item(web, "ranges"), tmp_path, AGAIN)
