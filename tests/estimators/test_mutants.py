"""The battery finds what it is there to find: estimators broken on purpose do not pass it."""

from __future__ import annotations

import pytest

from tests.estimators.mutants import MUTANTS, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_the_check_fails_with_the_mistake_and_passes_without(mutant: Mutant) -> None:
    with pytest.MonkeyPatch.context() as patch:
        mutant.run(patch)
    with pytest.MonkeyPatch.context() as patch:
        mutant.breaks(patch)
        with pytest.raises(AssertionError):
            mutant.run(patch)
