"""The example of docs/diagnose.md runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gradlab

PAGE = Path(__file__).parents[2] / "docs" / "diagnose.md"


def test_the_network_of_the_page_is_diagnosed() -> None:
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code[0], names)
    found = gradlab.diagnose(
        *names["build"](), ["conv2"], ["own", "reste", "identity"], max_forward_passes=200,
        coordinates=64,
    )  # fmt: skip
    cdg = found.table.query("reference == 'cdg'").set_index("estimator")["cosine"]
    assert cdg["STE reste"] > cdg["STE identity"]  # as the page says
