from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from gradlab.search import SNES, XNES
from gradlab.search.adaptation import adapted, advantage, log_weights
from gradlab.search.natural import NaturalSearch
from tests.search.problems import ellipsoid, started

LOSSES = st.lists(st.integers(0, 6), min_size=2, max_size=12)


@given(LOSSES, st.data())
def test_whole_weights_are_repetitions(values: list[int], data: st.DataObject) -> None:
    counts = data.draw(st.lists(st.integers(0, 3), min_size=len(values), max_size=len(values)))
    if not sum(counts):
        return
    losses = torch.tensor(values, dtype=torch.float64)
    weights = torch.tensor(counts, dtype=torch.float64)
    repeated = losses.repeat_interleave(weights.long())
    # scipy's U counts the pairs in which the first sample is larger: here, has the higher loss
    points = stats.mannwhitneyu(losses.numpy(), repeated.numpy()).statistic
    size, total = len(losses), len(repeated)
    deviation = math.sqrt(size * total * (size + total + 1) / 12)
    expected = stats.norm.cdf((points - size * total / 2) / deviation)
    assert advantage(losses, weights) == pytest.approx(expected, rel=1e-12)


def test_weights_are_the_ratio_of_two_densities() -> None:
    noise = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for ratio in (torch.tensor([0.5, 1.0, 2.0]).double(), torch.tensor([1.3]).double()):
        wide = torch.distributions.Normal(0.0, ratio.expand(3))
        plain = torch.distributions.Normal(torch.zeros(3).double(), torch.ones(3).double())
        expected = (wide.log_prob(noise) - plain.log_prob(noise)).sum(1)
        torch.testing.assert_close(log_weights(noise, ratio), expected)


def test_the_rate_grows_by_a_tenth_or_falls_back_by_a_tenth_of_the_way() -> None:
    losses = torch.arange(6.0)
    better, worse = torch.tensor([3.0, 1, 1, 1, 0, 0]), torch.tensor([0, 0, 1, 1, 1, 3.0])
    assert adapted(0.5, 0.2, losses, better, 4) == pytest.approx(0.55)
    assert adapted(0.95, 0.2, losses, better, 4) == 1
    assert adapted(0.5, 0.2, losses, worse, 4) == pytest.approx(0.47)
    # no difference is no reason to slow down
    assert adapted(0.5, 0.2, losses, torch.ones(6), 4) == pytest.approx(0.55)
    for useless in (torch.zeros(6), torch.full((6,), math.inf)):
        assert adapted(0.5, 0.2, losses, useless, 4) == pytest.approx(0.47)


@pytest.mark.parametrize("method", [SNES(adaptation_sampling=True, learning_rate_sigma=0.1),
                                    XNES(adaptation_sampling=True, learning_rate_sigma=0.1)],
                         ids=["snes", "xnes"])  # fmt: skip
def test_the_second_step_weighs_its_members_by_the_wider_width(
    method: NaturalSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = ellipsoid(3, 4, rotated=False)
    zero = started(method, [1.0, 2.0, 3.0])
    one = method.tell(zero, objective.losses(method.ask(zero)))
    # by hand: the width that a rate of .15 instead of .1 would have brought, over the one it has
    fast = type(method)(learning_rate_sigma=0.15, adaptation_sampling=True)
    if isinstance(method, XNES):
        fast = XNES(learning_rate_sigma=0.15, learning_rate_shape=method._default_rate(3))
        slow = XNES(learning_rate_sigma=0.1, learning_rate_shape=method._default_rate(3))
        one_slow = slow.tell(zero, objective.losses(slow.ask(zero)))
        assert torch.equal(one_slow.spread, one.spread)
    wider = fast.tell(zero, objective.losses(fast.ask(zero))).spread
    assert float(one.extra["rate"]) == 0.1

    def log_density(spread: Tensor) -> Tensor:
        covariance = torch.diag(spread**2)
        if isinstance(method, XNES):
            covariance = method.covariance(spread)
        x = method.ask(one)["x"]
        return torch.distributions.MultivariateNormal(one.mean, covariance).log_prob(x)

    seen: list[Tensor] = []

    def spy(rate: float, initial: float, losses: Tensor, weights: Tensor, size: int) -> float:
        assert (rate, initial, size) == (0.1, 0.1, 3)
        seen.append(weights)
        return 0.7

    monkeypatch.setattr("gradlab.search.adaptation.adapted", spy)
    two = method.tell(one, objective.losses(method.ask(one)))
    assert float(two.extra["rate"]) == 0.7
    weights = (log_density(wider) - log_density(one.spread)).exp()
    torch.testing.assert_close(seen[0], weights, rtol=1e-9, atol=0)
    assert weights.max() / weights.min() > 1.01


def test_the_rate_grows_where_the_width_is_far_too_small() -> None:
    objective = ellipsoid(5, 1, rotated=False)
    method = SNES(sigma=1e-4, population=30, adaptation_sampling=True, learning_rate_sigma=0.1)
    state = started(method, [10.0] * 5)
    for _ in range(40):
        state = method.tell(state, objective.losses(method.ask(state)))
    plain = SNES(sigma=1e-4, population=30, learning_rate_sigma=0.1)
    other = started(plain, [10.0] * 5)
    for _ in range(40):
        other = plain.tell(other, objective.losses(plain.ask(other)))
    assert float(state.extra["rate"]) > 0.2
    assert method.sigma_of(state) > 2 * plain.sigma_of(other)
