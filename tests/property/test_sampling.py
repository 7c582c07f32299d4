"""Invariants of sampling for any sizes: valid, distinct, as many as asked, repeatable."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tadpipe.errors import ConfigError
from tadpipe.sampling import (
    PROPOSAL_STRATEGIES,
    SNIPPET_STRATEGIES,
    KDpp,
    balanced_shares,
    cell_rows,
    farthest_points,
    proposal_cells,
    select_proposals,
    select_snippets,
    snippet_count,
)

RATIOS = st.floats(0.01, 1.0)
SEEDS = st.integers(0, 2**31)


def random_features(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 60), RATIOS, st.sampled_from(SNIPPET_STRATEGIES), SEEDS)
def test_snippets_are_a_sorted_choice(count: int, ratio: float, strategy: str, seed: int) -> None:
    features = random_features(count, seed)
    chosen = [
        select_snippets(
            count,
            ratio,
            strategy,
            features=features,
            generator=torch.Generator().manual_seed(seed),
        ).tolist()
        for _ in range(2)
    ]
    assert chosen[0] == chosen[1]
    assert chosen[0] == sorted(set(chosen[0]))
    assert len(chosen[0]) == snippet_count(count, ratio)
    assert set(chosen[0]) <= set(range(count))


@settings(deadline=None, max_examples=60)
@given(st.data(), st.integers(2, 20), RATIOS, st.sampled_from(PROPOSAL_STRATEGIES), SEEDS)
def test_proposals_are_distinct_cells_or_the_block_is_refused(
    data: st.DataObject, length: int, ratio: float, strategy: str, seed: int
) -> None:
    durations = data.draw(st.integers(1, length))
    count = len(proposal_cells(length, durations))
    try:
        rows = select_proposals(
            length,
            durations,
            ratio,
            strategy,
            features=random_features(count, seed),
            truths=torch.rand(2, 2) * length,
            generator=torch.Generator().manual_seed(seed),
        )
    except ConfigError:
        assert strategy == "block"
        return
    assert len(set(rows.tolist())) == len(rows)
    assert set(rows.tolist()) <= set(range(count))
    if strategy not in ("grid", "block"):
        assert len(rows) == max(1, int(count * ratio))


@given(st.integers(1, 30), st.data())
def test_rows_of_cells_invert_the_list(length: int, data: st.DataObject) -> None:
    cells = proposal_cells(length, data.draw(st.integers(1, length)))
    assert torch.equal(cell_rows(cells, length), torch.arange(len(cells)))


@given(st.lists(st.integers(0, 50), min_size=1, max_size=5), st.integers(0, 200))
def test_shares_fill_up_and_never_exceed_a_bin(capacity: list[int], k: int) -> None:
    take = balanced_shares(capacity, k)
    assert sum(take) == min(k, sum(capacity))
    assert all(0 <= t <= c for t, c in zip(take, capacity, strict=True))
    open_bins = [t for t, c in zip(take, capacity, strict=True) if t < c]
    if open_bins:  # bins with room left got as much as any other, but for a remainder per round
        assert max(take) <= min(open_bins) + len(capacity)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 25), st.integers(1, 6), st.data(), SEEDS)
def test_k_dpp_and_farthest_points_choose_distinct_rows(
    count: int, channels: int, data: st.DataObject, seed: int
) -> None:
    k = data.draw(st.integers(1, count))
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, channels, generator=generator)
    assert len(set(KDpp(features, k).sample(generator)[0].tolist())) == k
    assert len(set(farthest_points(features, k, seed % count).tolist())) == k
