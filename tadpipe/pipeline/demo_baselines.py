"""What a detector must beat: detections made without looking at the test videos.

Both baselines know the training annotations and the length of each test video, nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tadpipe.annotations import Detection, Detections, Video

QUANTILES = (0.2, 0.5, 0.8)  # of a class's durations, the lengths that slide
HIT_TIOU = 0.5
STEP_SHARE = 0.5  # of its length that a sliding segment moves on
CHANCE_PER_VIDEO = 200  # as many as the detectors may give


def trivial_detections(
    training: Mapping[str, Video], durations_sec: Mapping[str, float], *, seed: int
) -> Detections:
    """Segments of typical length slid over each video, scored by what is common in training.

    A segment's score is the class's share of the training actions times the share of segments of
    this length and class that hit one (tIoU >= HIT_TIOU) when slid over the training videos. It is
    the same everywhere, so equal scores stand in random order.

    Args:
        durations_sec: test video -> its length.
    """
    lengths = _lengths_by_label(training)
    actions = sum(len(known) for known in lengths.values())
    rng = np.random.default_rng(seed)
    kinds = []  # (label, length, score)
    for label, known in lengths.items():
        for length in np.quantile(known, QUANTILES).tolist():
            score = len(known) / actions * _hit_share(training, label, length)
            kinds.append((label, length, score))
    detections: Detections = {}
    for name, duration_sec in durations_sec.items():
        rows = []
        for label, length, score in kinds:
            for start in _slide(duration_sec, length):
                jitter = 1e-6 * float(rng.random())  # the random order
                end = min(start + length, duration_sec)
                rows.append(Detection(start, end, label, score + jitter))
        detections[name] = sorted(rows, key=lambda row: -row.score)
    return detections


def _slide(duration_sec: float, length_sec: float) -> list[float]:
    """Starts of segments that cover a video, overlapping by half."""
    last = max(duration_sec - length_sec, 0.0)
    return np.arange(0.0, last + 1e-9, STEP_SHARE * length_sec).tolist()


def _hit_share(training: Mapping[str, Video], label: str, length_sec: float) -> float:
    """Share of the segments slid over the training videos that overlap an action well enough."""
    hits = total = 0
    for video in training.values():
        known = [(a.start_sec, a.end_sec) for a in video.actions if a.label == label]
        for start in _slide(video.duration_sec or 0.0, length_sec):
            total += 1
            hits += any(_tiou(start, start + length_sec, *action) >= HIT_TIOU for action in known)
    return hits / max(total, 1)


def _tiou(start: float, end: float, other_start: float, other_end: float) -> float:
    overlap = max(min(end, other_end) - max(start, other_start), 0.0)
    return overlap / (end - start + other_end - other_start - overlap)


def chance_detections(
    training: Mapping[str, Video], durations_sec: Mapping[str, float], *, seed: int
) -> Detections:
    """Random places, lengths drawn from the training actions, random classes, random scores."""
    lengths = _lengths_by_label(training)
    labels = list(lengths)
    drawn_from = [length for known in lengths.values() for length in known]
    rng = np.random.default_rng(seed)
    detections: Detections = {}
    for name, duration_sec in durations_sec.items():
        rows = []
        for _ in range(CHANCE_PER_VIDEO):
            length = min(float(rng.choice(drawn_from)), duration_sec)
            start = float(rng.uniform(0.0, duration_sec - length))
            label = labels[int(rng.integers(len(labels)))]
            rows.append(Detection(start, start + length, label, float(rng.random())))
        detections[name] = sorted(rows, key=lambda row: -row.score)
    return detections


def _lengths_by_label(training: Mapping[str, Video]) -> dict[str, list[float]]:
    lengths: dict[str, list[float]] = {}
    for video in training.values():
        for start_sec, end_sec, label in video.actions:
            lengths.setdefault(label, []).append(end_sec - start_sec)
    return dict(sorted(lengths.items()))
