"""`gradlab data`: what is here, what is fetched, what is intact."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gradlab import cli
from gradlab.data import download
from gradlab.data.sets import SETS
from tests.data.tiny import idx_set, sha256, write
from tests.data.web import Web, serving

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """Calls the command line; exit status, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit_:
            cli.main(["data", *(str(argument) for argument in arguments)])
        printed = capsys.readouterr()
        assert isinstance(exit_.value.code, int)
        return exit_.value.code, printed.out, printed.err

    return run


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """A server that has a tiny mnist."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "PAUSE", 0.0)
    with serving({}) as server:
        info, contents = idx_set((server.mirror("ranges"),))
        server.contents.update(contents)
        monkeypatch.setitem(SETS, "mnist", info)
        yield server


def test_without_a_command_there_is_help(call: Call) -> None:
    status, text, errors = call()
    assert (status, errors) == (0, "")
    assert (status, text, errors) == call("--help")
    assert all(f"\n  {command} " in text for command in ("list", "fetch", "check"))
    assert "Example: gradlab data fetch mnist" in text
    assert "..." not in text.partition("Commands:")[2]


@pytest.mark.parametrize("command", ["list", "fetch", "check"])
def test_every_command_has_an_example(call: Call, command: str) -> None:
    status, text, _ = call(command, "--help")
    assert status == 0
    assert f"Example: gradlab data {command}" in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_list_says_what_is_here_and_what_to_cite(call: Call, tmp_path: Path) -> None:
    status, text, _ = call("list", "--data", tmp_path)
    assert status == 0
    (line,) = [line for line in text.splitlines() if line.startswith("mnist ")]
    assert line.split() == ["mnist", "no", "60,000", "10,000", "1×28×28", "10", "11.1", "MiB"]
    assert "LeCun" in text
    assert str(tmp_path) in text.replace("\n", "")
    for path in ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"):
        write(tmp_path, {f"mnist/{path}": b"anything: the list verifies nothing"})
    (line,) = [x for x in call("list", "--data", tmp_path)[1].splitlines() if x[:6] == "mnist "]
    assert line.split()[1] == "test"


def test_the_list_for_scripts(call: Call, tmp_path: Path) -> None:
    listed = json.loads(call("list", "--data", tmp_path, "--json")[1])
    assert listed["folder"] == str(tmp_path)
    assert [each["name"] for each in listed["sets"]] == sorted(SETS)
    mnist = listed["sets"][3]
    assert mnist["here"] == []
    assert mnist["sizes"] == {"train": 60_000, "test": 10_000}
    assert mnist["citation"].startswith("Y. LeCun")
    assert all(address.startswith("https://") for address in mnist["addresses"])


def test_fetching_prints_the_folder_and_says_what_it_does(
    call: Call, web: Web, tmp_path: Path
) -> None:
    status, text, errors = call("fetch", "mnist", "--data", tmp_path)
    assert (status, text) == (0, f"{tmp_path / 'mnist'}\n")
    assert len(errors.splitlines()) == 4  # a line for each file, since stderr is no terminal
    assert "mnist/train-images-idx3-ubyte.gz: 0 B of " in errors
    assert len(web.asked) == 4
    assert call("fetch", "mnist", "--data", tmp_path) == (0, f"{tmp_path / 'mnist'}\n", "")
    status, text, _ = call("fetch", "mnist", "mnist", "--data", tmp_path, "--json")
    assert json.loads(text) == {"mnist": str(tmp_path / "mnist")}


def test_checking_says_what_is_intact_missing_and_damaged(
    call: Call, web: Web, tmp_path: Path
) -> None:
    images, labels, *_ = web.contents
    write(tmp_path, {path: content for path, content in web.contents.items() if path != images})
    status, text, errors = call("check", "mnist", "--data", tmp_path)
    assert (status, errors) == (0, "")
    assert text.splitlines()[:2] == [f"{images}: missing", f"{labels}: sha256 as published"]
    write(tmp_path, {labels: b"damaged"})
    status, text, errors = call("check", "mnist", "--data", tmp_path)
    assert status == 1
    assert f"{labels}: damaged: sha256 {sha256(b'damaged')}, not " in text
    fix = f"`gradlab data fetch mnist --data {tmp_path}` replaces what is"
    assert errors == f"gradlab: mnist is damaged in {tmp_path}: {fix}.\n"
    status, text, _ = call("check", "mnist", "--data", tmp_path, "--json")
    assert status == 1
    assert [each["state"] for each in json.loads(text)["mnist"]] == [
        "missing", "damaged", "intact", "intact",
    ]  # fmt: skip
    call("fetch", "mnist", "--data", tmp_path)
    assert call("check", "mnist", "--data", tmp_path)[0] == 0


def test_checking_what_is_not_here_fails(call: Call, tmp_path: Path) -> None:
    status, _, errors = call("check", "mnist", "cifar10", "--data", tmp_path)
    assert status == 1
    fix = f"`gradlab data fetch cifar10 mnist --data {tmp_path}` downloads it"
    assert errors == f"gradlab: cifar10, mnist are not in {tmp_path}: {fix}.\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fetch", "minst"], "unknown data set 'minst': did you mean 'mnist'"),
        (["check", "cifar"], "unknown data set 'cifar': did you mean 'cifar10'"),
        (["fetch"], "missing argument"),
        (["fech", "mnist"], "no such command 'fech'"),
    ],
    ids=["fetch", "check", "nothing", "command"],
)
def test_bad_usage_is_one_sentence(call: Call, arguments: list[str], words: str) -> None:
    status, text, errors = call(*arguments)
    assert (status, text) == (2, "")
    assert words in errors
    assert len(errors.splitlines()) == 1


def test_offline_is_one_sentence_and_status_1(
    call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(SETS, "mnist", idx_set(("http://127.0.0.1:9",))[0])
    status, text, errors = call("fetch", "mnist", "--data", tmp_path)
    assert (status, text) == (1, "")
    assert errors.startswith("gradlab: mnist/train-images-idx3-ubyte.gz cannot be downloaded")
    assert "by hand" in errors
    assert len(errors.splitlines()) == 1
