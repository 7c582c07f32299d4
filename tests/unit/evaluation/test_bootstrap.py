"""Paired bootstrap: weights of videos equal copies of them; draws are seeded and paired."""

from __future__ import annotations

import numpy as np
import pytest

from tadpipe.errors import ConfigError
from tadpipe.evaluation.bootstrap import (
    RankedMatches,
    draw_videos,
    paired_interval,
    rank_matches,
    resampled_map,
)
from tadpipe.evaluation.detection_map import score_detections
from tests.unit.evaluation.naive import Found, Truth, tables

TIOUS = (0.3, 0.5, 0.7)
VIDEOS = ("a", "b", "c", "d")


def made_up(seed: int) -> tuple[list[Truth], list[Found]]:
    """Actions of two classes in four videos, and detections near some of them, scores distinct."""
    draw = np.random.default_rng(seed)
    truth: list[Truth] = []
    found: list[Found] = []
    for video in VIDEOS:
        for _ in range(4):
            start = float(draw.uniform(0, 80))
            truth.append((video, start, start + 6, str(draw.choice(["run", "sit"]))))
            shift = float(draw.normal(0, 2))
            label = truth[-1][3] if draw.random() < 0.8 else "run"
            found.append((video, start + shift, start + shift + 6, label, float(draw.random())))
        found.append((video, 90.0, 95.0, "sit", float(draw.random())))
    return truth, found


def ranked(truth: list[Truth], found: list[Found]) -> RankedMatches:
    return rank_matches(*tables(truth, found), TIOUS)


def copied(rows: list[Truth] | list[Found], counts: dict[str, int]) -> list[tuple[object, ...]]:
    """`counts[v]` copies of every video, each under a name of its own."""
    return [
        (f"{row[0]} {copy}", *row[1:]) for row in rows for copy in range(counts.get(str(row[0]), 1))
    ]


@pytest.mark.parametrize("seed", range(5))
def test_the_videos_themselves_have_the_map_of_the_evaluator(seed: int) -> None:
    truth, found = made_up(seed)
    score = score_detections(*tables(truth, found), TIOUS)
    once = np.ones((1, len(VIDEOS)), dtype=np.int64)
    np.testing.assert_allclose(resampled_map(ranked(truth, found), once)[0], score.map_at)


@pytest.mark.parametrize("seed", range(5))
def test_a_weight_counts_like_that_many_copies(seed: int) -> None:
    truth, found = made_up(seed)
    matches = ranked(truth, found)
    drawn = draw_videos(matches, 20, seed)
    maps = resampled_map(matches, drawn)
    for weights, expected in zip(drawn, maps, strict=True):
        counts = dict(zip(matches.videos, weights.tolist(), strict=True))
        pair = tables(copied(truth, counts), copied(found, counts))  # type: ignore[arg-type]  # rows
        np.testing.assert_allclose(score_detections(*pair, TIOUS).map_at, expected)


def test_detections_outside_the_videos_lower_every_resample() -> None:
    truth, found = made_up(0)
    foreign: Found = ("elsewhere", 0.0, 5.0, "run", 2.0)
    drawn = draw_videos(ranked(truth, found), 50, 0)
    with_it = resampled_map(ranked(truth, [*found, foreign]), drawn)
    assert (with_it <= resampled_map(ranked(truth, found), drawn)).all()
    pair = tables(truth, [*found, foreign])
    once = np.ones((1, len(VIDEOS)), dtype=np.int64)
    expected = score_detections(*pair, TIOUS).map_at
    np.testing.assert_allclose(resampled_map(rank_matches(*pair, TIOUS), once)[0], expected)


def test_in_parts_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, found = made_up(1)
    matches = ranked(truth, found)
    drawn = draw_videos(matches, 30, 1)
    whole = resampled_map(matches, drawn)
    monkeypatch.setattr("tadpipe.evaluation.bootstrap.CELLS_AT_ONCE", 7)
    np.testing.assert_array_equal(resampled_map(matches, drawn), whole)


def test_draws_are_seeded_and_of_all_videos() -> None:
    matches = ranked(*made_up(2))
    drawn = draw_videos(matches, 200, 7)
    np.testing.assert_array_equal(drawn, draw_videos(matches, 200, 7))
    assert (drawn != draw_videos(matches, 200, 8)).any()
    assert (drawn.sum(axis=1) == len(VIDEOS)).all()
    assert (drawn > 0).any(axis=0).all()


def test_a_draw_without_ground_truth_is_drawn_again() -> None:
    matches = RankedMatches(
        ("empty", "full"), np.array([[0, 1]]), (np.array([1]),), ((np.array([0]),),)
    )
    drawn = draw_videos(matches, 100, 0)
    assert (drawn[:, 1] > 0).all()
    np.testing.assert_array_equal(resampled_map(matches, drawn), np.ones((100, 1)))


def test_no_resample_is_an_error() -> None:
    with pytest.raises(ConfigError, match="At least one resample"):
        draw_videos(ranked(*made_up(0)), 0, 0)


def test_the_interval_holds_its_share_and_counts_flips() -> None:
    first = np.arange(100) / 100  # differences 0.00 to 0.99, minus 0.1
    interval = paired_interval(first, np.full(100, 0.1), 0.4, level=0.8)
    assert interval.difference == 0.4
    assert (interval.low, interval.high) == pytest.approx((-0.001, 0.791))
    assert interval.flipped == pytest.approx(0.11)  # ten below zero, one at zero


def test_equal_detectors_have_no_sign_to_keep() -> None:
    same = np.linspace(0, 1, 10)
    assert paired_interval(same, same, 0.0) == (0.0, 0.0, 0.0, 1.0)
