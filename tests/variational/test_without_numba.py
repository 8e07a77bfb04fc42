"""Where Numba cannot be loaded, noise works by torch, and export says what is missing."""

from __future__ import annotations

import subprocess
import sys
import textwrap

SCRIPT = textwrap.dedent("""
    import sys
    sys.modules["numba"] = None
    import torch
    from torch import nn
    from gradlab import variational

    model = variational.to_variational(nn.Sequential(nn.Linear(4, 3)), "sparse", initial=-2.0)
    loss = model(torch.ones(2, 4)).sum() + variational.kl_divergence(model)
    loss.backward()
    variational.project(model)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    try:
        variational.export(model, threshold=1.0)(torch.ones(2, 4))
    except RuntimeError as error:
        print(error)
""")


def test_noise_goes_by_torch_and_export_says_why_it_cannot() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("an exported network adds in compiled loops, and Numba cannot be")
    assert done.stdout.count("\n") == 1
