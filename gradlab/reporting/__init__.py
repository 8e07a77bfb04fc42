"""From stored results to tables, figures and one page: nothing here computes or imports torch.

- :func:`write` does everything: tables, figures, ``report.html``;
- :func:`export` writes the tables and their summaries;
- :func:`draw` draws the figures again, :func:`draw_figures` says more about each;
- :mod:`~gradlab.reporting.summaries` has the means, intervals and paired comparisons,
  :mod:`~gradlab.reporting.findings` the sentences, :mod:`~gradlab.reporting.published` the
  published numbers.
"""

from __future__ import annotations

from gradlab.reporting.drawing import draw, draw_figures
from gradlab.reporting.page import write
from gradlab.reporting.tables import export

__all__ = ["draw", "draw_figures", "export", "write"]
