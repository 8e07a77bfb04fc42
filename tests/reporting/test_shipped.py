from __future__ import annotations

from pathlib import Path

import pytest

from gradlab import _shipped


def test_figures_are_found_in_a_checkout() -> None:
    assert (_shipped.folder("figures") / "best_loss_decrease.py").is_file()


def test_a_wheel_carries_its_own_and_they_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "gradlab"
    (package / "_shipped_files" / "figures").mkdir(parents=True)
    (tmp_path / "figures").mkdir()
    monkeypatch.setattr(_shipped, "__file__", str(package / "_shipped.py"))
    assert _shipped.folder("figures") == package / "_shipped_files" / "figures"


def test_a_broken_installation_and_an_unknown_kind_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_shipped, "__file__", str(tmp_path / "gradlab" / "_shipped.py"))
    with pytest.raises(FileNotFoundError, match="install gradlab again"):
        _shipped.folder("figures")
    with pytest.raises(ValueError, match="choose one of sweeps, figures"):
        _shipped.folder("models")
