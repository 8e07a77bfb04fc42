"""The order of the rooms: each imports only from those above it, and figures stay light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import gradlab

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "gradlab"

# From the top: a room may import from those before it. Modules whose name starts with an
# underscore, such as gradlab._registry, belong to every room and import from none.
ROOMS = [
    "binary",
    "models",
    "data",
    "evaluation",
    "objectives",
    "estimators",
    "search",
    "variational",
    "training",
    "studies",
    "sweep",
    "reporting",
    "diagnosis",
    "cli",
]
# What figures may import of gradlab: the rooms that do without torch.
LIGHT = {"reporting"}


def imports(tree: ast.Module, package: str) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of everything imported, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                parents = parents[: len(parents) - node.level + 1]
                base = ".".join([*parents, base]).rstrip(".")
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"


def imported_rooms(source: str, package: str) -> Iterator[tuple[int, str]]:
    """Line and name of every part of gradlab that ``source`` imports."""
    for line, name in imports(ast.parse(source), package):
        parts = name.split(".")
        if parts[0] == "gradlab" and len(parts) > 1:
            yield line, parts[1]


def violations(source: str, room: str, package: str, where: str) -> list[str]:
    """One sentence for each import that runs down the list of rooms."""
    allowed = ROOMS[: ROOMS.index(room) + 1] if room in ROOMS else []
    return [
        f"{where}:{line}: {room} must not import gradlab.{other}, which comes after it"
        for line, other in imported_rooms(source, package)
        if other in ROOMS and other not in allowed
    ]


def modules() -> list[Path]:
    """Every module but gradlab/__init__.py, whose lazy imports have tests of their own."""
    return sorted(set(PACKAGE.rglob("*.py")) - {PACKAGE / "__init__.py"})


def package_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).parent.parts)


def room_of(path: Path) -> str:
    """The room a module lies in; ``__main__`` is the command line."""
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "cli" if first == "__main__" else first


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_up_the_list_of_rooms(path: Path) -> None:
    where = str(path.relative_to(ROOT))
    assert violations(path.read_text(), room_of(path), package_of(path), where) == []


def test_every_folder_is_a_known_room() -> None:
    folders = {path.parent.relative_to(PACKAGE).parts[0] for path in PACKAGE.glob("*/__init__.py")}
    assert folders <= set(ROOMS)
    public = {path.stem for path in PACKAGE.glob("*.py") if not path.stem.startswith("_")}
    assert public <= set(ROOMS)


@pytest.mark.parametrize(
    "source",
    [
        "import gradlab.sweep",
        "from gradlab import sweep",
        "from gradlab.sweep.store import Store",
        "from ..sweep import store",
        "def f():\n    from gradlab.sweep import store",
    ],
)
def test_the_check_sees_every_way_to_import(source: str) -> None:
    assert len(violations(source, "binary", "gradlab.binary", "x.py")) == 1
    assert violations(source, "cli", "gradlab.cli", "x.py") == []


COMPILERS = r"numba(.*\.(n?jit|(gu)?vectorize|cfunc|stencil|decorators|\*))?"


def compiled_elsewhere(source: str) -> list[int]:
    """Lines that import one of Numba's compilers, or all of it, or that pass ``cache=True``.

    Numba's own cache mixes up the functions of several processes, see gradlab/_kernels.py.
    """
    tree = ast.parse(source)
    keywords = [node for node in ast.walk(tree) if isinstance(node, ast.keyword)]
    cached = [each.lineno for each in keywords if ast.unparse(each) == "cache=True"]
    return cached + [line for line, name in imports(tree, "") if re.fullmatch(COMPILERS, name)]


def test_numba_compiles_only_what_goes_through_kernel_function() -> None:
    found = {str(path.relative_to(ROOT)): compiled_elsewhere(path.read_text())
             for path in modules()}  # fmt: skip
    assert {where for where, lines in found.items() if lines} == {"gradlab/_kernels.py"}


@pytest.mark.parametrize(
    "source",
    [
        "from numba import njit",
        "from numba import prange, vectorize as fast",
        "from numba.core.decorators import jit",
        "import numba as nb\n@nb.njit\ndef f(x): ...",
        "from numba import *",
        "@kernel_function(cache=True)\ndef f(x): ...",
    ],
)
def test_the_check_sees_every_way_to_compile(source: str) -> None:
    assert len(compiled_elsewhere(source)) == 1
    fine = "import triton\nfrom numba import types\n@triton.jit\ndef f(x): ..."
    assert compiled_elsewhere(fine) == []


@pytest.mark.parametrize(
    "path", sorted((ROOT / "figures").glob("*.py")), ids=lambda path: path.name
)
def test_figures_import_neither_torch_nor_rooms_that_need_it(path: Path) -> None:
    source = path.read_text()
    names = {name.split(".")[0] for _, name in imports(ast.parse(source), "figures")}
    assert "torch" not in names
    assert {room for _, room in imported_rooms(source, "figures")} <= LIGHT


def loaded_after(code: str) -> set[str]:
    """The top-level packages that a fresh interpreter has loaded after ``code``."""
    script = f"{code}\nimport sys\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


def test_import_gradlab_is_light() -> None:
    loaded = loaded_after("import gradlab; dir(gradlab); gradlab.__version__")
    assert "gradlab" in loaded
    assert loaded.isdisjoint({"torch", "numpy", "pandas", "matplotlib", "pydantic"})


def test_loading_the_figures_leaves_torch_alone() -> None:
    figures = sorted(path.stem for path in (ROOT / "figures").glob("*.py"))
    lines = "\n".join(f"import figures.{name}" for name in figures)
    loaded = loaded_after(f"import gradlab.reporting\n{lines}")
    assert {"figures", "matplotlib"} <= loaded
    assert "torch" not in loaded


def test_submodules_load_when_first_used() -> None:
    assert "torch" in loaded_after("import gradlab; gradlab.binary.sign")


def test_what_gradlab_offers_is_there() -> None:
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    offered = set(gradlab.__all__)
    assert folders - {"cli"} == offered & set(ROOMS)
    assert offered <= set(dir(gradlab))
    for name in offered:
        assert getattr(gradlab, name) is not None


def test_an_unknown_attribute_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'surrogate'"):
        gradlab.surrogate  # noqa: B018
