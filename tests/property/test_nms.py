"""What holds for NMS whatever the candidates are."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tadpipe.detectors.parts.nms import hard_nms, pairwise_tiou, soft_nms

SEGMENT = st.tuples(st.integers(0, 200), st.integers(1, 80)).map(lambda x: (x[0], x[0] + x[1]))
CANDIDATES = st.lists(st.tuples(SEGMENT, st.integers(1, 50)), min_size=1, max_size=25)


def arrays(candidates: list[tuple[tuple[int, int], int]]) -> tuple[np.ndarray, np.ndarray]:
    segments = np.array([segment for segment, _ in candidates], np.float32)
    return segments, np.array([score / 50 for _, score in candidates], np.float32)


@given(CANDIDATES, st.floats(0.05, 0.95))
@settings(max_examples=60, deadline=None)
def test_hard_nms_is_idempotent(candidates, threshold) -> None:
    segments, scores = arrays(candidates)
    kept = hard_nms(segments, scores, iou_threshold=threshold)
    again = hard_nms(segments[kept.rows], kept.scores, iou_threshold=threshold)
    assert again.rows.tolist() == list(range(len(kept.rows)))


@given(CANDIDATES, CANDIDATES)
@settings(max_examples=60, deadline=None)
def test_tiou_is_symmetric_and_a_share(first, second) -> None:
    a, b = arrays(first)[0], arrays(second)[0]
    overlaps = pairwise_tiou(a, b)
    np.testing.assert_array_equal(overlaps, pairwise_tiou(b, a).T)
    assert (overlaps >= 0).all()
    assert (overlaps <= 1).all()
    np.testing.assert_array_equal(np.diag(pairwise_tiou(a, a)), 1)


@given(CANDIDATES, st.integers(1, 10))
@settings(max_examples=60, deadline=None)
def test_soft_nms_only_lowers_scores_and_a_cap_cuts_the_end(candidates, cap) -> None:
    segments, scores = arrays(candidates)
    kept = soft_nms(segments, scores, min_score=0.01)
    assert (kept.scores <= scores[kept.rows]).all()
    assert (np.diff(kept.scores) <= 0).all()
    assert len(set(kept.rows.tolist())) == len(kept.rows)
    capped = soft_nms(segments, scores, min_score=0.01, max_kept=cap)
    assert capped.rows.tolist() == kept.rows[:cap].tolist()
