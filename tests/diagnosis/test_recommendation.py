"""What the words say, from tables and bootstrap samples made by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from gradlab.diagnosis.agreement import Agreement
from gradlab.diagnosis.recommendation import recommend

SETTINGS = {"epsilon": 0.1, "sigma": 0.2, "examples": 64, "left_out": {}}


def agreed(cosine: float, noise: np.ndarray) -> Agreement:
    return Agreement(cosine, cosine - 0.1, cosine + 0.1, 1.0, 0.6, cosine + noise)


def said(
    cosines: dict[str, dict[str, float]], noise: dict[str, np.ndarray] | None = None, **more: Any
) -> str:
    """Words for cosines by reference and estimator, on one layer."""
    rows, agreements = [], {}
    for reference, found in cosines.items():
        for name, cosine in found.items():
            samples = (noise or {}).get(name, np.linspace(-0.05, 0.05, 1000))
            rows.append({
                "estimator": name, "layer": "a.weight", "reference": reference, "exact": False,
                "cosine": cosine, "status": "ok", "loss_decrease": cosine / 10, "best_lr": 0.1,
                "forward_passes": 500.0 if name == "NES 500" else 1.0,
                "backward_passes": 0.0 if name == "NES 500" else 1.0, "seconds": 0.5,
                "reference_self_cosine": math.nan, "reference_forward_passes": 100.0, **more,
            })  # fmt: skip
            if math.isfinite(cosine):
                agreements[name, "a.weight", reference] = agreed(cosine, samples)
    return recommend(pd.DataFrame(rows), agreements, SETTINGS)


def test_the_best_is_named_with_what_lies_behind_it() -> None:
    text = said({"cdg": {"own backward": 0.2, "STE steep": 0.7, "STE relu": 0.4}})
    assert text.startswith(
        "Use STE steep: over 1 layer in front of a sign its mean cosine to the central differences "
        "(CDG) is 0.70 (95 % interval 0.65 to 0.75), for 1 forward pass and 1 backward (0.5 s "
        "here). Behind: STE relu 0.40, own backward 0.20."
    )
    assert "own backward pass has 0.20: STE steep follows the loss more" in text
    assert "STE steep in 1 of 1 (most by STE steep in a.weight, by 0.07 at a step of 0.1)" in text
    assert "STE steep achieves 100% of that on average." in text


def test_the_own_backward_pass_is_kept_unless_something_is_known_to_be_better() -> None:
    rng = np.random.default_rng(0)
    apart = {name: rng.normal(0, 0.1, 1000) for name in ("own backward", "STE steep")}
    text = said({"cdg": {"own backward": 0.65, "STE steep": 0.7}}, apart)
    assert text.startswith("Keep the network's own backward pass: over 1 layer")
    assert "Not told apart from the best: STE steep (0.70)." in text
    # of the same samples the difference has no noise left
    together = dict.fromkeys(("own backward", "STE steep"), rng.normal(0, 0.1, 1000))
    assert said({"cdg": {"own backward": 0.65, "STE steep": 0.7}}, together).startswith("Use STE s")


def test_a_dear_winner_is_named_beside_a_cheap_one() -> None:
    text = said({"cdg": {"NES 500": 0.9, "STE steep": 0.7}})
    assert text.startswith("Use NES 500")
    assert "for 500 forward passes (0.5 s here)" in text
    assert "a forward and a backward pass, STE steep agrees best: 0.70." in text


def test_references_that_differ_are_said_to() -> None:
    text = said({"cdg": {"STE steep": 0.9, "STE relu": 0.5},
                 "smoothed": {"STE steep": 0.5, "STE relu": 0.7}})  # fmt: skip
    words = (
        "The references differ: the central differences (CDG) prefer STE steep and the smoothed "
        "gradient prefers STE relu."
    )
    assert words in text


def test_what_points_nowhere_is_not_recommended() -> None:
    text = said({"cdg": {"STE steep": 0.01, "STE relu": -0.3}})
    assert text.startswith("None of these estimators is known to point uphill: the best, STE steep")


def test_unknown_layers_are_told_in_one_sentence_per_reference() -> None:
    text = said({"smoothed": {"STE steep": math.nan}}, status="unknown: after 9 passes",
                reference_self_cosine=0.1)  # fmt: skip
    assert text.startswith("No recommendation: in none of these layers did the budget suffice")
    assert "The smoothed gradient of a.weight is unknown: after 9 passes." in text


def test_steps_that_were_not_tried_are_named_but_not_those_of_a_zero_gradient() -> None:
    words = "The budget did not suffice for steps in a.weight."
    assert words in said({"cdg": {"STE steep": 0.7}}, loss_decrease=math.nan)
    text = said({"cdg": {"STE steep": math.nan}}, loss_decrease=math.nan,
                status="the estimate is zero: no gradient reaches this layer")  # fmt: skip
    assert "steps" not in text
