"""Settings of every test run."""

from __future__ import annotations

import os

from hypothesis import settings

# One thread per pytest worker, so that workers do not fight for cores. Set before torch or numpy
# is imported, and inherited by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

# The same examples in every run: a failure in one is a failure in all. No deadline, because a
# busy machine is no bug.
settings.register_profile("gradlab", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("gradlab")
