"""Snippet and proposal sampling: counts, patterns, the k-DPP's law, guided strategies, refusals."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Generator, Tensor

from tadpipe.errors import ConfigError
from tadpipe.sampling import (
    DIAGONAL,
    PROPOSAL_STRATEGIES,
    SNIPPET_STRATEGIES,
    KDpp,
    balanced_shares,
    best_tiou,
    cell_segments,
    farthest_points,
    grid_cells,
    proposal_cells,
    scale_bins,
    select_proposals,
    select_snippets,
    tiou_bins,
)


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def features(count: int, channels: int = 6) -> Tensor:
    return torch.randn(count, channels, generator=seeded(7))


@pytest.mark.parametrize("strategy", SNIPPET_STRATEGIES)
def test_snippets_are_sorted_distinct_and_as_many_as_the_ratio_says(strategy: str) -> None:
    chosen = select_snippets(20, 0.3, strategy, features=features(20), generator=seeded())
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert len(chosen) == 6
    again = select_snippets(20, 0.3, strategy, features=features(20), generator=seeded())
    assert torch.equal(chosen, again)


@pytest.mark.parametrize("strategy", SNIPPET_STRATEGIES)
def test_ratio_one_keeps_every_snippet(strategy: str) -> None:
    chosen = select_snippets(9, 1.0, strategy, features=features(9), generator=seeded())
    assert chosen.tolist() == list(range(9))


def test_at_least_one_snippet_is_kept() -> None:
    assert len(select_snippets(7, 0.01, "random", generator=seeded())) == 1


@pytest.mark.parametrize("strategy", ["random", "grid", "block"])
def test_every_snippet_is_visited_in_time(strategy: str) -> None:
    generator, seen = seeded(), set()
    for _ in range(200):
        seen |= set(select_snippets(12, 0.25, strategy, generator=generator).tolist())
    assert seen == set(range(12))


def test_a_block_of_snippets_is_consecutive_and_a_grid_is_even() -> None:
    block = select_snippets(30, 0.3, "block", generator=seeded(3))
    assert block.diff().tolist() == [1] * 8
    grid = select_snippets(30, 0.3, "grid", generator=seeded(3))
    assert set(grid.diff().tolist()) <= {3, 4}


def test_farthest_points_take_the_corners_first_and_ties_by_index() -> None:
    points = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1], [0.5, 0.5]])
    assert farthest_points(points, 4, 0).tolist() == [0, 3, 1, 2]
    assert sorted(farthest_points(torch.zeros(4, 2), 4, 2).tolist()) == [0, 1, 2, 3]


def enumerated(x: Tensor, k: int) -> dict[tuple[int, ...], float]:
    """The law of the k-DPP, subset by subset."""
    x = torch.nn.functional.normalize(x.double(), dim=1)
    kernel = x @ x.T + DIAGONAL * torch.eye(len(x), dtype=torch.float64)
    subsets = list(itertools.combinations(range(len(x)), k))
    weights = [float(torch.linalg.det(kernel[list(s)][:, list(s)])) for s in subsets]
    return {s: w / sum(weights) for s, w in zip(subsets, weights, strict=True)}


@pytest.mark.parametrize(("channels", "k"), [(2, 4), (3, 2), (6, 3), (9, 3)])
def test_k_dpp_follows_its_law_also_beyond_the_rank(channels: int, k: int) -> None:
    x = features(6, channels)
    law, draws = enumerated(x, k), 8000
    samples = KDpp(x, k).sample(seeded(1), draws).sort(1).values.tolist()
    counts = dict.fromkeys(law, 0)
    for sample in samples:
        counts[tuple(sample)] += 1
    for subset, p in law.items():
        error = (p * (1 - p) / draws) ** 0.5
        assert abs(counts[subset] / draws - p) <= 4.5 * error + 1e-4, subset


def test_k_dpp_of_many_candidates_needs_no_square_matrix() -> None:
    dpp = KDpp(features(1500, 8), 60)
    assert dpp.vectors.shape == (1500, 8)
    assert torch.isfinite(dpp.log_esp[1500]).all()
    assert len(set(dpp.sample(seeded())[0].tolist())) == 60


def test_k_dpp_takes_zero_vectors_and_all_candidates() -> None:
    assert sorted(KDpp(torch.zeros(5, 3), 5).sample(seeded())[0].tolist()) == [0, 1, 2, 3, 4]


def test_shares_are_equal_and_small_bins_pass_theirs_on() -> None:
    assert balanced_shares([10, 10, 10], 8) == [3, 3, 2]
    assert balanced_shares([10, 1, 10], 9) == [4, 1, 4]
    assert balanced_shares([0, 2, 50], 10) == [0, 2, 8]
    assert balanced_shares([1, 1, 1], 10) == [1, 1, 1]


@pytest.mark.parametrize("strategy", PROPOSAL_STRATEGIES)
@pytest.mark.parametrize(("length", "durations"), [(16, 16), (20, 12)])
def test_proposals_are_distinct_valid_and_equally_many(
    strategy: str, length: int, durations: int
) -> None:
    cells = proposal_cells(length, durations)
    truths = torch.tensor([[3.2, 9.9]])
    sizes = set()
    for seed in range(4):
        rows = select_proposals(
            length,
            durations,
            0.1,
            strategy,
            features=features(len(cells)),
            truths=truths,
            generator=seeded(seed),
        )
        assert len(rows.unique()) == len(rows)
        assert int(rows.min()) >= 0
        assert int(rows.max()) < len(cells)
        sizes.add(len(rows))
    assert len(sizes) == 1
    if strategy not in ("grid", "block"):
        assert sizes == {int(len(cells) * 0.1)}


@pytest.mark.parametrize("strategy", PROPOSAL_STRATEGIES)
def test_ratio_one_keeps_every_proposal(strategy: str) -> None:
    rows = select_proposals(
        6, 5, 1.0, strategy, features=features(20), truths=torch.ones(0, 2), generator=seeded()
    )
    assert sorted(rows.tolist()) == list(range(20))


def test_map_lists_durations_first_and_leaves_out_what_passes_the_end() -> None:
    segments = cell_segments(proposal_cells(4, 3)).tolist()
    assert segments[:5] == [[0, 1], [1, 2], [2, 3], [3, 4], [0, 2]]
    assert len(segments) == 4 + 3 + 2
    assert len(proposal_cells(128, 128)) == 8256


def test_grid_leaves_out_the_first_row_and_column() -> None:
    cells = grid_cells(32, 32, 0.15)
    assert int(cells.min()) == 1
    assert bool((cells.sum(1) < 32).all())


def test_block_is_a_square_of_neighbours() -> None:
    rows = select_proposals(32, 32, 0.1, "block", generator=seeded(2))
    cells = proposal_cells(32, 32)[rows]
    width = int(cells[:, 0].max() - cells[:, 0].min() + 1)
    assert width**2 == len(rows)
    assert int(cells[:, 1].max() - cells[:, 1].min() + 1) == width


def test_balanced_strategies_fill_every_bin() -> None:
    segments = cell_segments(proposal_cells(32, 32))
    truths = torch.tensor([[4.0, 20.0]])
    rows = select_proposals(32, 32, 0.1, "iou-balanced", truths=truths, generator=seeded())
    bins = torch.bincount(tiou_bins(best_tiou(segments, truths.double())[rows]), minlength=3)
    assert max(bins) - min(bins) <= 1
    rows = select_proposals(32, 32, 0.1, "scale-balanced", generator=seeded())
    lengths = (segments[:, 1] - segments[:, 0])[rows] / 32
    bins = torch.bincount(scale_bins(lengths), minlength=3)
    assert max(bins) - min(bins) <= 1


def test_bins_meet_their_edges_as_stated() -> None:
    edges = torch.tensor([0.0, 0.3, 0.30000001, 0.7, 0.70000001, 1.0], dtype=torch.float64)
    assert tiou_bins(edges).tolist() == [0, 0, 1, 1, 2, 2]
    assert scale_bins(torch.tensor([0.29, 0.1 + 0.2, 0.3 - 1e-12, 0.7])).tolist() == [0, 1, 1, 1]


def test_proposals_balanced_by_tiou_without_actions_are_all_in_one_bin() -> None:
    rows = select_proposals(
        12, 12, 0.1, "iou-balanced", truths=torch.zeros(0, 2), generator=seeded()
    )
    assert len(rows) == 7


def test_what_cannot_be_sampled_is_refused() -> None:
    with pytest.raises(ConfigError, match="ratio"):
        select_snippets(5, 0.0, "random", generator=seeded())
    with pytest.raises(ConfigError, match="random"):
        select_snippets(5, 0.5, "randm", generator=seeded())
    with pytest.raises(ConfigError, match="feature per candidate"):
        select_snippets(5, 0.5, "dpp", generator=seeded())
    with pytest.raises(ConfigError, match="scale-balanced"):
        select_snippets(5, 0.5, "scale-balanced", generator=seeded())
    with pytest.raises(ConfigError, match="ground truth"):
        select_proposals(8, 8, 0.5, "iou-balanced", generator=seeded())
    with pytest.raises(ConfigError, match="does not fit"):
        select_proposals(8, 4, 0.9, "block", generator=seeded())
