"""Every mistake in a spec is one sentence that names the file, the key, the mistake and the fix."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradlab import sweep
from gradlab.sweep import spec as specs
from gradlab.sweep.spec import SpecError

BAD_LINES = {
    # what is wrong: (text of the tiny spec, what stands there instead, words of the complaint)
    "not TOML": ("inits = 2", "inits 2", "is not TOML: .*line 4"),
    "unknown key": ("inits = 2", "initz = 2", "unknown key 'initz': did you mean 'inits'"),
    "missing key": ('study = "fake"', "", "the key 'study' is missing: .*study = "),
    "text for a number": ("inits = 2", 'inits = "2"', "inits should be .*integer, not '2'"),
    "a fraction of inits": ("inits = 2", "inits = 2.5", "inits should be .*integer, not 2.5"),
    "true for a number": ("inits = 2", "inits = true", "inits should be .*integer, not True"),
    "no inits": ("inits = 2", "inits = 0", "inits should be greater than or equal to 1, not 0"),
    "negative seed": ("inits = 2", "seed = -1", "seed should be greater than or equal to 0"),
    "too many cells": ("inits = 2", "inits = 10000000", "120,000,000 cells.*shorten an axis"),
    "a name that is a path": ('name = "tiny"', 'name = "../tiny"', "name should be letters"),
    "unknown study": ('"fake"', '"fak"', "unknown study 'fak': did you mean 'fake'"),
    "unknown figure": ("inits = 2", 'figures = ["none"]', "unknown figure 'none'"),
    "no estimators": ("[[estimators]]\n", "[[estimator]]\n", "unknown key 'estimator': did you"),
    "objective without name": ('name = "teacher_student"\n', "", "objective has no name"),
    "unknown objective": ("teacher_student", "teacher", "did you mean 'teacher_student'"),
    "unknown option of objective": ("batch_size", "batchsize", "did you mean 'batch_size'"),
    "missing option": ("batch_size = 64", "", "objective needs 'batch_size'"),
    "empty axis": ("[2, 4]", "[]", "objective.num_dim is an empty list"),
    "repeated value": ("[2, 4]", "[2, 4, 2]", "objective.num_dim lists 2 twice"),
    "repeated value, other type": ("[2, 4]", "[2, 4, 4.0]", "objective.num_dim lists 4.0 twice"),
    "repeated lr": ("[0.1, 1]", "[0.1, 0.1]", "settings.lr lists 0.1 twice"),
    "NaN lr": ("[0.1, 1]", "[0.1, nan]", "settings.lr is nan: give a finite number"),
    "infinite lr": ("[0.1, 1]", "[inf]", "settings.lr is inf: give a finite number"),
    "zero lr": ("[0.1, 1]", "[0]", "settings.lr should be greater than 0, not 0"),
    "negative lr": ("[0.1, 1]", "[-0.1]", "settings.lr should be greater than 0, not -0.1"),
    "lr as text": ("[0.1, 1]", '["a"]', "settings.lr should be .*number, not 'a'"),
    "lr that is one number": ("[0.1, 1]", "-0.1", "settings.lr should be greater than 0"),
    "num_dim of zero": ("[2, 4]", "0", "objective: num_dim is 0"),
    "misspelt activation": (
        "[2, 4]", '2\nactivation = "binry"', "unknown activation 'binry': did you mean 'binary'"),
    "empty lr": ("[0.1, 1]", "[]", "settings.lr is an empty list"),
    "unknown setting": ("lr =", "lrs =", r"unknown key in \[settings\] 'lrs': did you mean 'lr'"),
    "wrong choice": ("lr = [0.1, 1]", 'normalize = "row"', "settings.normalize should be 'tensor'"),
    "range without num": ("[0.1, 1]", "{start = 0.1, stop = 1}", "settings.lr needs 'num'"),
    "range with a typo": (
        "[0.1, 1]", "{start = 0.1, stop = 1, nun = 2}", "unknown key in settings.lr 'nun': did"),
    "range from zero": (
        "[0.1, 1]", "{start = 0, stop = 1, num = 2}", "settings.lr.start should be a positive"),
    "range of one": (
        "[0.1, 1]", "{start = 0.1, stop = 1, num = 1}", "settings.lr.num should be .* not 1"),
    "range of nothing": (
        "[0.1, 1]", "{start = 1, stop = 1.0, num = 3}", r"write settings.lr = \[1\]"),
    "misspelt estimator": ('"nes"', '"ness"', "unknown estimator 'ness': did you mean 'nes'"),
    "misspelt surrogate": ('"steep"', '"step"', "unknown surrogate 'step': did you mean 'steep'"),
    "misspelt option": ("surrogate =", "surogate =", "did you mean 'surrogate'"),
    "name is a list": ('name = "nes"', 'name = ["nes"]', "name should be one word in quotes"),
    "zero sigma": ("population = [20, 40]", "sigma = 0", "estimators.nes: sigma"),
    "negative sigma": ("population = [20, 40]", "sigma = -0.1", "estimators.nes: sigma"),
    "NaN sigma": ("population = [20, 40]", "sigma = nan", "estimators.nes.sigma is nan"),
    "sigma as text": ("population = [20, 40]", 'sigma = "a"', "estimators.nes: .*sigma.* 'a'"),
    "population of zero": ("[20, 40]", "[0, 40]", "estimators.nes: population"),
    "an estimator twice": (
        'name = "nes"\npopulation = [20, 40]', 'name = "ste"',
        r"two \[\[estimators\]\] entries make the same cell .*remove one"),
    "unknown student": (
        "[settings]", '[student]\nstate = "trained"\n[settings]', "unknown state 'trained'"),
    "impossible combination": (
        "num_dim = [2, 4]\nbatch_size = 64\n",
        'num_dim = 64\nbatch_size = 64\n[student]\nstate = "converged"\n',
        "a converged student needs num_dim of at most 32"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", BAD_LINES)
def test_a_mistake_is_one_sentence(write_spec: Callable[..., Path], mistake: str) -> None:
    old, new, words = BAD_LINES[mistake]
    path = write_spec((old, new))
    with pytest.raises(SpecError, match=words) as caught:
        sweep.read_spec(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert message.endswith(".")
    assert "pydantic" not in message
    assert "validation error" not in message


BAD_OVERRIDES = {
    "seed": "'seed' is no override: write key=value",
    "=3": "is no override",
    "objectiv.num_dim=3": "unknown key 'objectiv': did you mean 'objective'",
    "objective.num_dim=[2": r"\[2 is no value",
    "inits=": "nothing is no value",
    "estimators.cdg.epsilon=0.1": "unknown estimator of this spec 'cdg'",
    "estimators.nes=3": "write estimators.NAME.OPTION=value",
    "study.name=fake": "'study' holds no keys of its own",
    "inits=0": "with inits=0: inits should be greater than or equal to 1, not 0",
    "estimators.nes.sigma=word": "number, not 'word'|sigma",
}


@pytest.mark.parametrize("text", BAD_OVERRIDES)
def test_a_wrong_override_is_one_sentence(write_spec: Callable[..., Path], text: str) -> None:
    with pytest.raises(SpecError, match=BAD_OVERRIDES[text]) as caught:
        sweep.read_spec(write_spec(), [text])
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_specs_are_named(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b'title = "\xff"')
    with pytest.raises(SpecError, match=r"latin.toml is not TOML: save it as UTF-8"):
        sweep.read_spec(tmp_path / "latin.toml")
    with pytest.raises(SpecError, match=r"there is no file .*missing.toml: give the path"):
        sweep.read_spec(tmp_path / "missing.toml")
    with pytest.raises(SpecError, match="is a folder: give the TOML file"):
        sweep.read_spec(tmp_path)
    with pytest.raises(SpecError, match="unknown sweep 'quikstart'"):
        sweep.read_spec("quikstart")


def test_a_bare_name_finds_a_shipped_sweep(
    write_spec: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_spec()
    monkeypatch.setattr("gradlab._shipped.folder", lambda kind: path.parent)
    assert sweep.read_spec("tiny").name == "tiny"
    with pytest.raises(SpecError, match="unknown sweep 'tinny': did you mean 'tiny'"):
        sweep.read_spec("tinny")


def test_overrides_reach_every_part(write_spec: Callable[..., Path]) -> None:
    spec = sweep.read_spec(
        write_spec(),
        ["seed=7", "objective.num_dim=8", "settings.normalize=global", "settings.lr=[0.5]",
         "estimators.nes.population=[100]", "estimators.ste.surrogate=hardtanh",
         "student.state=converged"],
    )  # fmt: skip
    assert spec.seed == 7
    assert spec.objective["num_dim"] == 8
    assert spec.settings == {"lr": [0.5], "normalize": "global"}
    assert spec.student == {"state": "converged"}
    assert spec.estimators == [{"name": "ste", "surrogate": "hardtanh"},
                               {"name": "nes", "population": [100]}]  # fmt: skip


def test_an_override_reaches_every_estimator_of_that_name(write_spec: Callable[..., Path]) -> None:
    path = write_spec(('"ste"\nsurrogate = ["hardtanh", "steep"]', '"nes"\nsigma = 0.2'))
    spec = sweep.read_spec(path, ["estimators.nes.antithetic=false"])
    assert [entry["antithetic"] for entry in spec.estimators] == [False, False]


@given(
    start=st.floats(1e-8, 1e3), ratio=st.floats(1.01, 1e6), num=st.integers(2, 60),
    down=st.booleans(),
)  # fmt: skip
def test_a_range_is_log_spaced_with_both_ends(
    start: float, ratio: float, num: int, down: bool
) -> None:
    first, last = (start * ratio, start) if down else (start, start * ratio)
    spec = specs.from_dict(
        {"name": "a", "study": "b", "objective": {}, "estimators": [{}]}, source="here"
    )
    values = specs.points(spec, "lr", {"start": first, "stop": last, "num": num})
    assert (values[0], values[-1], len(values)) == (first, last, num)
    step = (last / first) ** (1 / (num - 1))
    for left, right in itertools.pairwise(values):
        assert right / left == pytest.approx(step, rel=1e-9)
