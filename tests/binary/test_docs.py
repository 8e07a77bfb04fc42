"""docs/surrogates.md and its figure show everything there is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch

from docs import plot_surrogates
from gradlab.binary import activations, surrogates

DOCS = Path(plot_surrogates.__file__).parent


def test_the_tables_list_every_surrogate_and_activation() -> None:
    listed = re.findall(r"^\| `(\w+)`", (DOCS / "surrogates.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted([*surrogates.names(), *activations.names()])


def test_the_figure_shows_every_surrogate() -> None:
    assert sorted(plot_surrogates.SURROGATES) == surrogates.names()
    figure = plot_surrogates.plot()
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles[::2] == [*plot_surrogates.SURROGATES, *plot_surrogates.ACTIVATIONS]
    plt.close(figure)


def test_the_example_runs() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (DOCS / "surrogates.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(example, names)
    x = names["x"]
    assert torch.equal(x.grad, (x.detach().abs() <= 0.5).float())
