from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from gradlab.search import SNES, XNES
from gradlab.search.mixing import mix
from gradlab.search.natural import NaturalSearch
from gradlab.search.state import SearchState
from tests.search.problems import ellipsoid, seeded, started

SIZE = 20_000
# of a standard normal: once in 16,000 for each of the fixed samples below
LIMIT = 4.0


def mixed_normals(mean: float, sigma: float, refresh: float) -> tuple[Tensor, float]:
    """Draws of N(0, 1) turned into draws of N(mean, sigma²), and the share that stayed."""
    generator = seeded(5)

    def normals(_: int) -> Tensor:
        return torch.randn(SIZE, 1, dtype=torch.float64, generator=generator)

    def log_new(x: Tensor) -> Tensor:
        return -0.5 * ((x[:, 0] - mean) / sigma) ** 2 - math.log(sigma)

    samples = normals(0)
    mixed = mix(
        samples,
        lambda x: -0.5 * x[:, 0] ** 2,
        log_new,
        lambda start: mean + sigma * normals(start),
        lambda *_: torch.rand(SIZE, dtype=torch.float64, generator=generator).log(),
        refresh,
    )
    assert len(mixed.kept) + len(mixed.fresh) == SIZE
    assert mixed.drawn % SIZE == 0
    return torch.cat((samples[mixed.kept], mixed.fresh))[:, 0], len(mixed.kept) / SIZE


@pytest.mark.parametrize(
    ("mean", "sigma", "refresh"),
    [(0.0, 1.0, 0.1), (0.5, 1.0, 0.1), (0.5, 0.7, 0.01), (-0.3, 1.5, 0.3), (2.0, 0.5, 0.5)],
)
def test_a_mixed_population_is_a_sample_of_the_new_distribution(
    mean: float, sigma: float, refresh: float
) -> None:
    sample, kept = mixed_normals(mean, sigma, refresh)
    z = (sample - mean) / sigma
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        score = float((z**power).mean() - moment) / math.sqrt(variance / SIZE)
        assert abs(score) < LIMIT
    assert stats.kstest(z.numpy(), "norm").pvalue > 1e-4
    # the share that is kept: the integral of min(p, (1 - refresh) q)
    x = np.linspace(-12, 12, 100_001)
    overlap = np.minimum(stats.norm.pdf(x), (1 - refresh) * stats.norm.pdf(x, mean, sigma))
    expected = float(np.trapezoid(overlap, x))
    assert abs(kept - expected) < LIMIT * math.sqrt(expected * (1 - expected) / SIZE)


@pytest.mark.parametrize(
    "method",
    [SNES(population=4000, importance_mixing=0.1), XNES(population=4000, importance_mixing=0.1)],
    ids=["snes", "xnes"],
)
def test_a_search_that_mixes_draws_from_its_own_distribution(method: NaturalSearch) -> None:
    state = started(method, [0.0, 0.0])
    state = method.tell(state, torch.arange(4000.0))
    # a distribution that was chosen without looking at the members
    root = torch.tensor([[0.14, 0.0], [0.06, 0.12]], dtype=torch.float64)
    if isinstance(method, SNES):
        root = torch.diag(torch.diag(root))
    spread = torch.diag(root) if isinstance(method, SNES) else root.flatten()
    state = replace(state, mean=torch.tensor([0.04, -0.02], dtype=torch.float64), spread=spread)
    fresh = method.ask(state)["x"]
    assert 400 < len(fresh) < 2500
    after = method.tell(state, torch.arange(float(len(fresh))))
    members = after.extra["samples"]
    assert len(members) == 4000
    assert torch.equal(members[-len(fresh) :], fresh)
    z = torch.linalg.solve(root, (members - state.mean).mT).mT
    assert z.mean(0).abs().max() < LIMIT / math.sqrt(4000)
    second = z.mT @ z / 4000 - torch.eye(2)
    assert torch.diag(second).abs().max() < LIMIT * math.sqrt(2 / 4000)
    assert second[0, 1].abs() < LIMIT / math.sqrt(4000)


def test_reused_members_keep_their_losses_and_cost_nothing() -> None:
    method, objective = SNES(population=30, importance_mixing=0.1), ellipsoid(3, 5, rotated=False)
    state = started(method, [1.0, 1.0, 1.0])
    for generation in range(15):
        fresh = method.ask(state)["x"]
        assert method.size(state) == len(fresh)
        after = method.tell(state, objective.losses({"x": fresh}))
        assert after.evaluations - state.evaluations == len(fresh)
        held: SearchState = after
        exact = objective.losses({"x": held.extra["samples"]})
        torch.testing.assert_close(held.extra["losses"], exact, rtol=1e-12, atol=0)
        assert (len(fresh) == 30) == (generation == 0)
        state = after
    assert state.evaluations < 0.7 * 15 * 30


def test_a_generation_may_need_no_loss_at_all() -> None:
    method = SNES(population=2, importance_mixing=0.01, learning_rate_sigma=1e-9,
                  learning_rate=1e-9)  # fmt: skip
    state = method.tell(started(method, [0.0]), torch.tensor([1.0, 2.0]))
    counts, draws = [], []
    for _ in range(20):
        fresh = method.ask(state)["x"]
        counts.append(len(fresh))
        state = method.tell(state, torch.full((len(fresh),), 3.0))
        draws.append(state.drawn)
    assert 0 in counts
    # no uniform number serves twice
    assert len(set(draws)) == 20


@pytest.mark.parametrize("option", [{"importance_mixing": 0.1}, {"adaptation_sampling": True}])
def test_options_that_compare_generations_refuse_turns(option: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r'layer_wise updates.*use update = "joint"'):
        SNES(update="layer_wise", **option)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [0, 1, -0.5, "a"])
def test_a_refresh_rate_out_of_range_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"importance_mixing is .*between 0 and 1"):
        SNES(importance_mixing=value)
