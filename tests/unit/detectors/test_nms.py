"""NMS against loops written from the definition, in float64 and candidate by candidate."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from tadpipe.detectors.parts.nms import NmsConfig, batched_nms, hard_nms, soft_nms, vote
from tadpipe.detectors.protocol import GridDetections
from tadpipe.errors import ConfigError


def candidates(count: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    starts, lengths = rng.uniform(0, 60, count), rng.uniform(1, 20, count)
    segments = np.stack([starts, starts + lengths], axis=1).astype(np.float32)
    return segments, rng.uniform(0, 1, count).astype(np.float32), rng.integers(0, classes, count)


def detections(count: int, classes: int = 1, seed: int = 0) -> GridDetections:
    return GridDetections(*(torch.from_numpy(x) for x in candidates(count, classes, seed)))


def tiou(a: np.ndarray, b: np.ndarray) -> float:
    shared = max(0.0, min(float(a[1]), float(b[1])) - max(float(a[0]), float(b[0])))
    return shared / (float(a[1]) - float(a[0]) + float(b[1]) - float(b[0]) + 2e-6 - shared)


def loop(segments, scores, *, decay, sigma, threshold, min_score):
    """Soft-NMS of one group, as the paper prints it; distinct scores."""
    rest = {row: float(score) for row, score in enumerate(scores)}
    kept = []
    while rest:
        best = max(rest, key=rest.__getitem__)
        kept.append((best, rest.pop(best)))
        for row in list(rest):
            overlap = tiou(segments[best], segments[row])
            if decay == "gaussian":
                rest[row] *= math.exp(-(overlap**2) / sigma)
            elif overlap >= threshold:
                rest[row] *= 1 - overlap if decay == "linear" else 0
            if rest[row] < min_score:
                del rest[row]
    return kept


@pytest.mark.parametrize("decay", ["gaussian", "linear", "step"])
def test_soft_nms_equals_the_plain_loop(decay: str) -> None:
    segments, scores, _ = candidates(120, 1, seed=1)
    kept = soft_nms(segments, scores, decay=decay, sigma=0.4, iou_threshold=0.3, min_score=0.05)
    plain = loop(segments, scores, decay=decay, sigma=0.4, threshold=0.3, min_score=0.05)
    assert kept.rows.tolist() == [row for row, _ in plain]
    np.testing.assert_allclose(kept.scores, [score for _, score in plain], rtol=1e-4)


def test_interleaved_classes_equal_each_class_alone_joined_and_cut() -> None:
    segments, scores, labels = candidates(300, 6, seed=2)
    kept = soft_nms(segments, scores, labels, max_kept=40)
    joined = []
    for label in range(6):
        rows = np.flatnonzero(labels == label)
        alone = soft_nms(segments[rows], scores[rows])
        joined += zip(alone.scores.tolist(), rows[alone.rows].tolist(), strict=True)
    best = sorted(joined, reverse=True)[:40]
    assert list(zip(kept.scores.tolist(), kept.rows.tolist(), strict=True)) == best


def test_equal_scores_follow_the_array_that_is_changed_in_place() -> None:
    # Far apart, so nothing decays. Picking row 2 moves row 0 into its slot: 1, 0, 3 remain.
    segments = np.array([[0, 1], [10, 11], [20, 21], [30, 31]], np.float32)
    kept = soft_nms(segments, np.array([0.5, 0.5, 0.9, 0.5], np.float32))
    assert kept.rows.tolist() == [2, 1, 0, 3]


def test_a_dropped_slot_is_refilled_from_the_end() -> None:
    # Row 1 equals the pick and falls below the limit; the last one takes its slot before row 2.
    segments = np.array([[0, 4], [0, 4], [10, 11], [20, 21]], np.float32)
    scores = np.array([0.9, 0.5, 0.5, 0.5], np.float32)
    assert soft_nms(segments, scores, sigma=0.1, min_score=0.01).rows.tolist() == [0, 3, 2]


def test_the_first_pick_is_not_held_against_the_lowest_score() -> None:
    segments = np.array([[0, 1], [5, 6]], np.float32)
    kept = soft_nms(segments, np.array([0.01, 0.005], np.float32), min_score=0.5)
    assert kept.rows.tolist() == [0]


@pytest.mark.parametrize(("count", "kept"), [(1, 1), (2, 1), (5, 4)])
def test_drop_last_leaves_out_the_last_of_several(count: int, kept: int) -> None:
    segments = np.array([[10 * i, 10 * i + 1] for i in range(count)], np.float32)
    scores = np.linspace(1, 0.5, count, dtype=np.float32)
    assert len(soft_nms(segments, scores, drop_last=True).rows) == kept


def test_hard_nms_equals_the_plain_loop_per_class() -> None:
    segments, scores, labels = candidates(200, 3, seed=3)
    kept = hard_nms(segments, scores, labels, iou_threshold=0.4, min_score=0.1)
    plain: list[int] = []
    for row in np.argsort(-scores, kind="stable"):
        rivals = [k for k in plain if labels[k] == labels[row]]
        if scores[row] > 0.1 and all(tiou(segments[k], segments[row]) < 0.4 for k in rivals):
            plain.append(int(row))
    assert kept.rows.tolist() == plain


@pytest.mark.parametrize("weight", ["score*tiou", "score"])
def test_votes_are_the_weighted_mean_of_overlapping_candidates(weight: str) -> None:
    segments, scores, _ = candidates(80, 1, seed=4)
    voted = vote(segments[:5], segments, scores, threshold=0.5, weight=weight)
    for row in range(5):
        total, mean = 0.0, np.zeros(2)
        for other, score in zip(segments, scores, strict=True):
            overlap = tiou(segments[row], other)
            if overlap >= 0.5:
                share = float(score) * (overlap if weight == "score*tiou" else 1.0)
                total, mean = total + share, mean + share * other.astype(np.float64)
        np.testing.assert_allclose(voted[row], mean / total, rtol=1e-5)


def test_a_segment_without_length_survives_the_vote_as_it_is() -> None:
    segments = np.array([[3, 3], [0, 5]], np.float32)
    scores = np.array([0.9, 0.5], np.float32)
    voted = vote(segments[:1], segments, scores, threshold=0.7, weight="score*tiou")
    assert voted.tolist() == [[3.0, 3.0]]


def test_votes_do_not_depend_on_the_block_they_are_counted_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    segments, scores, _ = candidates(50, 1, seed=5)
    whole = vote(segments[:9], segments, scores, threshold=0.3, weight="score")
    monkeypatch.setattr("tadpipe.detectors.parts.nms.VOTE_BLOCK", 100)
    blocks = vote(segments[:9], segments, scores, threshold=0.3, weight="score")
    np.testing.assert_allclose(blocks, whole, rtol=1e-6)


def test_no_candidates_give_an_empty_result() -> None:
    assert len(batched_nms(detections(0), NmsConfig()).scores) == 0


def test_method_none_passes_everything_in_its_order() -> None:
    dets = detections(30)
    found = batched_nms(dets, NmsConfig(method="none", max_segments=3))
    assert torch.equal(found.scores, dets.scores)


@pytest.mark.parametrize("method", ["soft", "hard"])
def test_the_cap_counts_over_all_classes_and_scores_fall(method: str) -> None:
    found = batched_nms(detections(300, classes=7), NmsConfig(method=method, max_segments=17))
    assert len(found.scores) == 17
    assert (found.scores.diff() <= 0).all()


BASE = NmsConfig(multiclass=False, min_score=0.05, max_segments=60, vote_threshold=0.5)
CHANGES = {
    "method": ("none", BASE),
    "sigma": (0.2, BASE),
    "iou_threshold": (0.6, dataclasses.replace(BASE, method="hard")),
    "min_score": (0.4, BASE),
    "max_segments": (5, BASE),
    "multiclass": (True, BASE),
    "vote_threshold": (0.0, BASE),
    "vote_weight": ("score", BASE),
    "drop_last": (True, dataclasses.replace(BASE, min_score=0.0, max_segments=1000)),
}


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(NmsConfig)])
def test_every_field_changes_what_is_kept(field: str) -> None:
    value, base = CHANGES[field]
    dets = detections(60, classes=3, seed=6)
    before = batched_nms(dets, base)
    after = batched_nms(dets, dataclasses.replace(base, **{field: value}))
    assert not all(
        a.shape == b.shape and torch.equal(a, b) for a, b in zip(before, after, strict=True)
    )


@pytest.mark.parametrize(
    "wrong", [{"sigma": 0.0}, {"max_segments": 0}, {"iou_threshold": 1.5}, {"vote_threshold": -1}]
)
def test_impossible_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        NmsConfig(**wrong)
