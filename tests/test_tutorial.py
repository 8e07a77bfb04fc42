"""docs/add_an_estimator.md works as it stands: its files and commands, in their order."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "add_an_estimator.md"
Block = tuple[str, str]


def blocks() -> list[Block]:
    """Language and text of every code block."""
    return re.findall(r"^```(\w+)\n(.*?)^```", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)


class Reader:
    """Somebody who follows the page in an empty folder, without network."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.printed = folder, ""

    def do(self, language: str, text: str) -> None:
        """Write a file, run code or commands, or compare what was printed last."""
        first, _, rest = text.partition("\n")
        if language == "text":
            lines = [" ".join(line.split()) for line in self.printed.splitlines()]
            assert " ".join(text.split()) in lines
        elif language == "sh":
            for line in text.splitlines():
                self.command(*shlex.split(line))
        elif first == "# python":
            self.run_here(rest)
        else:
            path = self.folder / first.removeprefix("# ")
            with path.open("a", encoding="utf-8") as file:
                file.write(f"\n\n{rest}" if path.exists() and path.stat().st_size else rest)

    def command(self, name: str, *arguments: str) -> None:
        if name == "pip":
            assert arguments == ("install", "-e", ".")
            self.install()
        elif name == "gradlab":
            workers = ["-j", "1"] if arguments[0] == "run" else []
            self.run(sys.executable, "-m", "gradlab", *arguments, *workers)
        else:
            assert name == "python"
            self.run(sys.executable, *arguments)

    def install(self) -> None:
        """What pip leaves of a package: its metadata, beside the module."""
        project = tomllib.loads((self.folder / "pyproject.toml").read_text("utf-8"))["project"]
        info = self.folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
        info.mkdir()
        named = f"Name: {project['name']}\nVersion: {project['version']}\n"
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\n{named}", "utf-8")
        groups = [
            "\n".join([f"[{group}]", *(f"{name} = {where}" for name, where in points.items())])
            for group, points in project["entry-points"].items()
        ]
        (info / "entry_points.txt").write_text("\n".join(groups) + "\n", "utf-8")

    def run_here(self, code: str) -> None:
        """In this process, which has torch loaded already."""
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stdout(io.StringIO()) as out,
        ):
            patch.chdir(self.folder)
            patch.syspath_prepend(self.folder)
            exec(code, {})
        sys.modules.pop("orthogonal_es", None)
        self.printed = out.getvalue()

    def run(self, *command: str) -> None:
        path = os.pathsep.join([str(self.folder), str(ROOT), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {"PYTHONPATH": path, "COLUMNS": "100"}
        done = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        self.printed = done.stdout


def test_the_page_runs_to_its_end_and_the_new_estimator_is_compared(tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    for block in blocks():
        reader.do(*block)
    for name in ("orthogonal differences 32 ε=0.6", "SPSA 64", "NES 64", "CDG"):
        assert name in reader.printed  # by the last block, of the table


@pytest.mark.parametrize("mistake", [("size / count * ", ""), ("-directions", "directions")])
def test_its_referees_see_the_mistakes_that_the_page_names(
    monkeypatch: pytest.MonkeyPatch, mistake: tuple[str, str]
) -> None:
    code = next(text for _, text in blocks() if text.startswith("# orthogonal_es.py"))
    tests = next(text for _, text in blocks() if text.startswith("# test_orthogonal_es.py"))
    assert code.count(mistake[0]) == 1
    failed = []
    for text in (code, code.replace(*mistake)):
        module = ModuleType("orthogonal_es")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(text, module.__dict__)
        names: dict[str, Any] = {}
        exec(tests, names)
        referees = [names[name] for name in re.findall(r"^def (test_\w+)", tests, re.MULTILINE)]
        failed.append(sum(fails(referee) for referee in referees))
    assert failed[0] == 0 < failed[1]


def fails(test: Callable[[], None]) -> bool:
    try:
        test()
    except AssertionError:
        return True
    return False
