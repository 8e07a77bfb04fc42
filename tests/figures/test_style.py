from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from figures import _style
from gradlab.estimators.about import ABOUT
from gradlab.reporting import columns
from tests.reporting import synthetic

# Machado, Oliveira & Fernandes 2009, severity 1, on linear RGB
SIMULATED = {
    "normal": np.eye(3),
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def lab(colour: str, matrix: object) -> np.ndarray:
    """CIE L*a*b* (D65) of a colour as somebody with this vision sees it."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.asarray(matrix) @ linear, 0, 1)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = np.array(to_xyz) @ seen / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def shipped() -> dict[str, _style.Style]:
    frame = columns.annotate(synthetic.loss_decrease(synthetic.METHODS, [2], 1, 1, [0.1]))
    return _style.styles(frame)


@pytest.mark.parametrize("vision", SIMULATED)
def test_colours_stay_apart_for_every_kind_of_vision(vision: str) -> None:
    seen = {name: lab(look.colour, SIMULATED[vision]) for name, look in shipped().items()}
    for one, other in itertools.combinations(seen, 2):
        # 2.3 is just noticeable; lines of different hue are told apart safely from about 15
        assert np.linalg.norm(seen[one] - seen[other]) > 15, (one, other)


def test_every_estimator_has_its_own_marker() -> None:
    markers = [look.marker for look in shipped().values()]
    assert len(set(markers)) == len(markers)


def of_kinds() -> dict[str, dict[str, _style.Style]]:
    """Every estimator of gradlab, and the surrogates that have a colour, by kind."""
    rows = [{"estimator": name, "label": name} for name in ABOUT if name != "ste"]
    rows += [{"estimator": name, "label": name} for name in columns.FAMILIES["search"]]
    rows += [{"estimator": "ste", "label": s, "surrogate": s} for s in [*_style.STE, "matched"]]
    frame = columns.annotate(pd.DataFrame(rows))
    looks, known = _style.styles(frame), columns.methods(frame)["family"]
    return {
        kind: {name: look for name, look in looks.items() if known[name] in families}
        for kind, families in _style.KINDS.items()
    }


def test_every_estimator_has_a_family_and_every_family_a_kind() -> None:
    kinds = of_kinds()
    assert kinds.pop("Others") == {}
    searches = columns.FAMILIES["search"]
    assert sum(map(len, kinds.values())) == len(ABOUT) + len(_style.STE) + len(searches)
    assert sorted(f for families in _style.KINDS.values() for f in families) == sorted(
        columns.FAMILIES
    )
    looks = [(look.colour, look.marker) for kind in kinds.values() for look in kind.values()]
    assert len(set(looks)) == len(looks)


@pytest.mark.parametrize("vision", SIMULATED)
def test_those_of_a_kind_stay_apart_for_every_kind_of_vision(vision: str) -> None:
    for kind in of_kinds().values():
        seen = {name: lab(look.colour, SIMULATED[vision]) for name, look in kind.items()}
        for one, other in itertools.combinations(seen, 2):
            apart = np.linalg.norm(seen[one] - seen[other])
            # nearer ones need markers of their own
            assert apart > 14 or (apart > 8 and kind[one].marker != kind[other].marker), (
                one, other, apart,
            )  # fmt: skip


def test_an_estimator_looks_the_same_in_every_table() -> None:
    everything = shipped()
    for method in synthetic.METHODS:
        alone = columns.annotate(synthetic.loss_decrease([method], [2], 1, 1, [0.1]))
        assert _style.styles(alone)[method["label"]] == everything[method["label"]]


def test_more_samples_are_darker() -> None:
    sizes = [_style.style("nes", population=p).colour for p in (50, 500, 5_000, 50_000)]
    lightness = [lab(colour, np.eye(3))[0] for colour in sizes]
    assert lightness == sorted(lightness, reverse=True)


def test_estimators_of_one_style_are_faded_apart() -> None:
    methods = [dict(synthetic.CDG, epsilon=e) for e in (0.01, 0.1, 1.0)]
    frame = columns.annotate(synthetic.loss_decrease(methods, [2], 1, 1, [0.1]))
    assert len({look.colour for look in _style.styles(frame).values()}) == 3


def test_somebody_elses_estimator_has_a_stable_style() -> None:
    one = _style.style("wobble", label="wobble 3")
    assert one == _style.style("wobble", label="wobble 3")
    assert one.colour in _style.SPARE_COLOURS


def test_options_of_a_surrogate_keep_its_colour() -> None:
    assert _style.style("ste", "hardtanh(threshold=0.5)") == _style.STE["hardtanh"]


def test_the_three_comparisons_are_those_of_the_study() -> None:
    frame = columns.annotate(synthetic.loss_decrease(synthetic.METHODS, [2], 1, 1, [0.1]))
    groups = dict(_style.groupings(frame))
    assert groups["NES against CDG"] == ["CDG", "NES 500", "NES 5,000", "NES 50,000"]
    assert groups["Straight-through against CDG"] == ["CDG", *[s["label"] for s in synthetic.STES]]
    assert groups["Contenders"] == [
        "CDG", "STE hardtanh", "STE swish_sign", "matched STE", "local NES (2 passes)",
        "local NES (8 passes)", "NES 50,000",
    ]  # fmt: skip


def test_nothing_is_dropped_from_the_comparisons() -> None:
    other = {"estimator": "wobble", "label": "wobble", "quality": 0.5}
    rounding = {"estimator": "sr_ste", "label": "sr-STE (10 samples)", "quality": 0.5}
    methods = [*synthetic.METHODS, other, rounding]
    frame = columns.annotate(synthetic.loss_decrease(methods, [2], 1, 1, [0.1]))
    drawn = {method for _, members in _style.groupings(frame) for method in members}
    assert drawn == {method["label"] for method in methods}


def test_relatives_have_comparisons_of_their_own() -> None:
    names = {"disarm": "DisARM 500", "guided": "guided ES 500", "spsa": "SPSA 500"}
    relatives = [{"estimator": e, "label": label, "quality": 0.5} for e, label in names.items()]
    methods = [synthetic.CDG, *relatives]
    frame = columns.annotate(synthetic.loss_decrease(methods, [2], 1, 1, [0.1]))
    assert dict(_style.groupings(frame)) == {
        "Other differences against CDG": ["CDG", "SPSA 500"],
        "NES along directions against CDG": ["CDG", "guided ES 500"],
        "Sampled binary weights against CDG": ["CDG", "DisARM 500"],
    }


def test_one_estimator_is_one_group() -> None:
    frame = columns.annotate(synthetic.loss_decrease([synthetic.CDG], [2], 1, 1, [0.1]))
    assert _style.groupings(frame) == [("Estimators", ["CDG"])]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.01, "0.01"), (500, "500"), (2_000, "2k"), (1e-5, "$10^{-5}$"),
     (2e7, r"$2\cdot 10^{7}$"), (-0.1, "-0.1")],
)  # fmt: skip
def test_tick_labels_are_plain_where_they_can_be(value: float, text: str) -> None:
    assert _style.plain(value) == text


def test_a_missing_table_or_column_is_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"no rows in the table 'a'\.$"):
        _style.table({}, "a", [])
    with pytest.raises(ValueError, match=r"no column 'lr'\.$"):
        _style.table({"a": pd.DataFrame({"x": [1]})}, "a", ["lr"])
