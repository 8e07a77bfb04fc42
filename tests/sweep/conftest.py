"""A fake study, known to this process, to its workers and to the programs it starts."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import gradlab

PLUGIN = Path(__file__).parent / "plugin"
ROOT = Path(gradlab.__file__).parents[1]

SPEC = """
name = "tiny"
study = "fake"
inits = 2
batches = 2
[objective]
name = "teacher_student"
num_dim = [2, 4]
batch_size = 64
[settings]
lr = [0.1, 1]
[[estimators]]
name = "ste"
surrogate = ["hardtanh", "steep"]
[[estimators]]
name = "nes"
population = [20, 40]
"""


@pytest.fixture(scope="session", autouse=True)
def _fake_study() -> Iterator[None]:
    """Install the fake study through the entry point of third parties."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        info = Path(folder) / "fake_study-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fake-study\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[gradlab.studies]\nfake = fake_study:FakeStudy\n")
        before = os.environ.get("PYTHONPATH", "")
        paths = [folder, str(PLUGIN), str(ROOT), *filter(None, [before])]
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        patch.syspath_prepend(folder)
        patch.syspath_prepend(str(PLUGIN))
        from gradlab import studies

        if "fake" not in studies.names():  # the entry points were read before
            import fake_study

            studies.REGISTRY.register("fake")(fake_study.FakeStudy)
        yield


@pytest.fixture
def write_spec(tmp_path: Path) -> Callable[..., Path]:
    """Writes the tiny spec, with lines of its TOML replaced."""

    def write(*replacements: tuple[str, str], text: str = SPEC) -> Path:
        for old, new in replacements:
            assert old in text, old
            text = text.replace(old, new)
        path = tmp_path / "tiny.toml"
        path.write_text(textwrap.dedent(text))
        return path

    return write


@pytest.fixture
def run_gradlab(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the command line in a process of its own, in an empty folder."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(*arguments), cwd=tmp_path, capture_output=True, text=True, timeout=60
        )

    return run


def command(*arguments: object) -> list[str]:
    """The command line as a list for subprocess."""
    return [sys.executable, "-m", "gradlab", *map(str, arguments)]
