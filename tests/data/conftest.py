"""What the tests of data share: sets for the occasion, a web server, and real data."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gradlab.data import download
from gradlab.data.sets import SETS, ImageSet
from tests.data.web import Web, serving


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Callable[[ImageSet], ImageSet]:
    """Lets a tiny set stand in for the real one of its name."""

    def put(info: ImageSet) -> ImageSet:
        monkeypatch.setitem(SETS, info.name, info)
        return info

    return put


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """A server on this machine; contents are added by the test."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "PAUSE", 0.0)
    monkeypatch.setattr(download, "TIMEOUT", 5.0)
    with serving({}) as server:
        yield server


@pytest.fixture
def real_data() -> Path:
    """The folder of real data."""
    folder = os.environ.get("GRADLAB_DATA")
    if not folder:
        pytest.skip("real data: $GRADLAB_DATA names no folder")
    return Path(folder)
