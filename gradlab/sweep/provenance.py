"""What made a result: versions and machine, without anything that names its owner."""

from __future__ import annotations

import sys
from typing import Any

from gradlab import _provenance
from gradlab._provenance import code, code_digest, cores, git_commit, machine, memory, version_of

__all__ = ["code", "code_digest", "cores", "environment", "git_commit", "machine", "memory",
           "version_of"]  # fmt: skip


def environment() -> dict[str, Any]:
    """Everything about where a sweep runs, for ``environment.json``."""
    return {**_provenance.environment(), "populations": _populations()}


def _populations() -> str | None:
    """Which path evaluates populations on the processor, where torch is loaded."""
    if "torch" not in sys.modules:
        return None
    from gradlab.evaluation.mlp import describe_path

    return describe_path()
