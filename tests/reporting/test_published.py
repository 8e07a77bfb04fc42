from __future__ import annotations

import pandas as pd
import pytest

from gradlab.reporting import published
from tests.reporting import synthetic

STE = [dict(synthetic.STES[0], quality=1.0)]


def measured(cosine: float, inits: int = 3, **columns: object) -> pd.DataFrame:
    rows = synthetic.gradient_quality(STE, inits=inits, noise=0.0, **columns)
    return rows.assign(cosine=cosine + 0.001 * rows["init"])


def verdicts(frame: pd.DataFrame) -> dict[str, str]:
    table = published.compare(frame)
    return dict(zip(table["what"], table["verdict"], strict=True))


def test_the_published_value_passes_and_another_fails() -> None:
    # published for binary activations: .8934 in layer 1, .9629 in layer 3
    found = verdicts(measured(0.8934))
    assert found["cosine of STE to CDG, binary activations, layer 1"] == "PASS"
    assert found["cosine of STE to CDG, binary activations, layer 3"] == "FAIL"


@pytest.mark.parametrize(("cosine", "verdict"), [(0.912, "PASS"), (0.915, "FAIL")])
def test_the_tolerance_is_the_stated_one(cosine: float, verdict: str) -> None:
    found = verdicts(measured(cosine, inits=1))
    assert found["cosine of STE to CDG, binary activations, layer 1"] == verdict


def test_what_was_not_measured_is_not_run() -> None:
    found = verdicts(measured(0.9, activation="ternary"))
    assert found["cosine of STE to CDG, binary activations, layer 1"] == "NOT RUN"
    assert found["cosine of STE to CDG, ternary activations, layer 1"] != "NOT RUN"


def test_every_gain_is_compared_by_itself() -> None:
    rows = pd.concat([measured(0.8934, gain=1.0), measured(0.5, gain=1.7320508)])
    found = verdicts(rows)
    assert found["cosine of STE to CDG, binary activations, layer 1 (gain 1)"] == "PASS"
    assert found["cosine of STE to CDG, binary activations, layer 1 (gain 1.73)"] == "FAIL"


@pytest.mark.parametrize("columns", [{"num_dim": 8}, {"reference": "smoothed"}])
def test_another_network_or_reference_is_not_compared(columns: dict[str, object]) -> None:
    assert published.compare(measured(0.9).assign(**columns)).empty


def test_targets_are_lower_bounds() -> None:
    rows = synthetic.gradient_quality([synthetic.MATCHED], noise=0.0, reference="smoothed")
    rows["cosine"] = 0.99
    found = published.compare(rows)
    reached = found[found["what"].str.contains("matched")]
    assert reached["verdict"].tolist() == ["PASS", "PASS"]
    rows["cosine"] = 0.97
    found = published.compare(rows)
    assert (found.loc[found["what"].str.contains("matched"), "verdict"] == "FAIL").all()


def test_a_target_is_judged_by_its_own_variant_alone() -> None:
    plain = {"estimator": "nes_local", "passes": 2, "sigma": 0.1}
    methods = [
        {**plain, "label": "local NES (2 passes)", "baseline": "noise_free", "quality": 1.0},
        {**plain, "label": "local NES (2 passes) + matched STE", "baseline": "mean_field",
         "quality": 1.0},
    ]  # fmt: skip
    rows = synthetic.gradient_quality(methods, noise=0.0, reference="smoothed_gradient")
    worse = rows["label"] == "local NES (2 passes)"
    table = published.compare(rows.assign(cosine=worse.map({True: 0.7, False: 1.0})))
    first = table[table["what"].str.endswith("local NES, 2 noisy passes, layer 1")]
    assert first["ours"].tolist() == pytest.approx([0.7])
    assert first["verdict"].tolist() == ["FAIL"]
