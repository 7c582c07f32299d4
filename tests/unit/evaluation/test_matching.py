"""Pairs and places: what the scores are built from."""

from __future__ import annotations

import numpy as np
import pytest

from tadpipe.evaluation import matching
from tadpipe.evaluation.detection_map import score_detections
from tadpipe.evaluation.matching import Segments, overlapping_pairs, rank_in_group, tiou_of
from tests.unit.evaluation import naive


def segments(*rows: tuple[int, float, float]) -> Segments:
    group, start, end = zip(*rows, strict=True)
    return Segments(np.array(group), np.array(start, dtype=float), np.array(end, dtype=float))


def test_tiou_is_symmetric() -> None:
    rng = np.random.default_rng(0)
    a, b = np.sort(rng.random((2, 100, 2)), axis=2)
    forth = tiou_of(a[:, 0], a[:, 1], b[:, 0], b[:, 1])
    assert np.allclose(forth, tiou_of(b[:, 0], b[:, 1], a[:, 0], a[:, 1]), rtol=1e-15, atol=0)


@pytest.mark.parametrize(("union", "expected"), [("sum", 1 / 3), ("hull", 1 / 3)])
def test_unions_agree_where_segments_overlap(union: str, expected: float) -> None:
    one = [np.array([value]) for value in (0.0, 2.0, 1.0, 3.0)]
    assert tiou_of(*one, union)[0] == pytest.approx(expected)  # type: ignore[arg-type]


def test_empty_on_empty_is_nan_or_zero() -> None:
    point = np.array([3.0])
    assert np.isnan(tiou_of(point, point, point, point)[0])
    assert tiou_of(point, point, point, point, "clipped")[0] == 0.0


def test_pairs_come_by_falling_tiou_and_the_later_of_equals_first() -> None:
    truth = segments((0, 0, 4), (0, 0, 8), (0, 0, 8), (1, 0, 8))
    pairs = overlapping_pairs(truth, segments((0, 0, 8), (-1, 0, 8), (2, 0, 8)), 0.1)
    assert pairs.found.tolist() == [0, 0, 0]
    assert pairs.truth.tolist() == [2, 1, 0]


def test_places_count_inside_a_group() -> None:
    assert rank_in_group(np.array([7, 3, 7, 7, 3])).tolist() == [0, 0, 1, 2, 1]
    assert rank_in_group(np.zeros(0, dtype=np.int64)).size == 0


def test_pairs_made_in_small_parts_give_the_same_score(monkeypatch: pytest.MonkeyPatch) -> None:
    truth, found = naive.random_rows(5)
    columns = naive.tables(truth, found)
    whole = score_detections(*columns, (0.1, 0.5))
    monkeypatch.setattr(matching, "PAIRS_AT_ONCE", 3)
    parts = score_detections(*columns, (0.1, 0.5))
    assert np.array_equal(whole.ap, parts.ap)
    assert np.array_equal(whole.recall, parts.recall)
