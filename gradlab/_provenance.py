"""What made a result: versions and machine, without anything that names its owner."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from gradlab import __version__

# Rooms that decide how results are kept and shown, not what they are.
_NOT_COMPUTING = {"sweep", "reporting", "cli", "cli.py", "__main__.py", "_shipped.py", "_toml.py",
                  "_provenance.py"}  # fmt: skip


@cache
def code_digest() -> str:
    """A digest of gradlab's computing sources: other digits mean other code made the result.

    It needs no git, and a change in the command line or the report does not show in it.
    """
    package = Path(__file__).resolve().parents[0]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        place = path.relative_to(package)
        if place.parts[0] not in _NOT_COMPUTING:
            digest.update(place.as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


@cache
def git_commit() -> str | None:
    """The commit of the checkout gradlab runs from, with ``+`` if it has changes; else ``None``."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return commit + ("+" if _git(root, "status", "--porcelain", "--", "gradlab") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=10
    ).stdout.strip()


@cache
def version_of(package: str) -> str | None:
    """The installed version of a package, without importing it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@cache
def code() -> dict[str, Any]:
    """The part of the provenance that is the same for every cell of a run."""
    return {
        "gradlab": __version__,
        "code": code_digest(),
        "commit": git_commit(),
        "torch": version_of("torch"),
        "python": platform.python_version(),
        "machine": machine(),
    }


@cache
def machine() -> str:
    """The machine in words: system, processor, cores. No name of host or user."""
    return f"{platform.system()} {platform.machine()}, {_processor()}, {cores()} cores"


def cores() -> int:
    """The number of cores this process may use."""
    if hasattr(os, "process_cpu_count"):  # Python ≥ 3.13
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory() -> int | None:
    """The machine's memory in bytes, where the system says."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown processor"


def environment() -> dict[str, Any]:
    """Everything about where a run happens, for ``environment.json``."""
    packages = ("numpy", "scipy", "pandas", "numba", "triton", "joblib")
    return {
        **code(),
        "system": platform.platform(),
        "cores": cores(),
        "memory_bytes": memory(),
        "accelerators": _accelerators(),
        "packages": {name: version_of(name) for name in packages},
    }


def _accelerators() -> list[str]:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
