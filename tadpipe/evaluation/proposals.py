"""AR@AN: average recall against the average number of proposals per video, labels ignored.

The ActivityNet proposal metric and OpenTAD's variant of it. V videos with ground truth, T
thresholds, J operating points.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tadpipe.errors import AnnotationError, ConfigError
from tadpipe.evaluation.matching import (
    Segments,
    by_falling_score,
    overlapping_pairs,
    rank_in_group,
)
from tadpipe.evaluation.protocols import OPENTAD
from tadpipe.evaluation.tables import DetectionTable, Floats, Integers, TruthTable, clean


@dataclass(frozen=True)
class ProposalRecall:
    """The curve of average recall over the average number of proposals."""

    recall: Floats  # [T, J]
    average_recall: Floats  # [J], mean over the thresholds
    proposals_per_video: Floats  # [J], the AN axis
    auc: float  # area under the curve, a fraction
    videos: int  # V

    def at(self, proposals: float) -> float:
        """AR at the operating point nearest to this number of proposals per video."""
        nearest = int(np.abs(self.proposals_per_video - proposals).argmin())
        return float(self.average_recall[nearest])


def average_recall(
    truth: TruthTable,
    found: DetectionTable,
    tious: Sequence[float],
    *,
    max_an: int | None = 100,
    variant: Literal["activitynet", "opentad"] = "activitynet",
    blocked: Collection[str] = (),
) -> ProposalRecall:
    """AR@AN of all detections of a file, whatever their labels.

    Args:
        max_an: largest average number of proposals per video; None takes all there are.
        variant: "opentad" cleans the ground truth, clips the union and has `max_an` operating
            points instead of 100.
        blocked: videos to leave out on both sides.
    Raises:
        ConfigError: `max_an` not positive, or missing with the variant "opentad".
        AnnotationError: no ground truth.
    """
    if (max_an is None and variant == "opentad") or (max_an is not None and max_an < 1):
        raise ConfigError("AR@AN needs a positive number of proposals.", f"max_an = {max_an}")
    left_out = frozenset(blocked)
    truth = truth.take(~np.isin(truth.video, _rows_named(truth.videos, left_out)))
    found = found.take(~np.isin(found.video, _rows_named(found.videos, left_out)))
    if variant == "opentad":
        truth = clean(truth, OPENTAD)
    if not truth.video.size:
        raise AnnotationError("There is no ground truth to score against.")
    points = 100 if variant == "activitynet" or max_an is None else max_an
    return _curve(truth, found, np.asarray(tious, dtype=np.float64), max_an, points, variant)


def _curve(
    truth: TruthTable,
    found: DetectionTable,
    tious: Floats,
    max_an: int | None,
    points: int,
    variant: str,
) -> ProposalRecall:
    with_truth = np.unique(truth.video)
    videos, proposals = with_truth.size, found.score.size
    if not proposals:
        zeros = np.zeros(points)
        return ProposalRecall(np.zeros((tious.size, points)), zeros, zeros, 0.0, videos)
    # The expressions keep the official order: int(n * ratio) depends on the last bit.
    limit = float(proposals) / videos if max_an is None else max_an
    ratio = limit * float(videos) / proposals
    order, video, kept = _kept_proposals(truth, found, with_truth, ratio)
    total = int(kept.sum())
    if not total:
        zeros = np.zeros(points)
        return ProposalRecall(np.zeros((tious.size, points)), zeros, zeros, 0.0, videos)
    share = np.arange(1, points + 1) / float(points) * (limit * float(videos) / total)
    used = np.minimum((kept[:, None] * share).astype(np.int64), kept[:, None])  # [videos, J]
    pairs = overlapping_pairs(
        Segments(truth.video, truth.start_sec, truth.end_sec),
        Segments(video, found.start_sec[order], found.end_sec[order]),
        float(tious.min()),
        "clipped" if variant == "opentad" else "sum",
    )
    rank = rank_in_group(video)[pairs.found]
    recall = np.empty((tious.size, points))
    for i, tiou in enumerate(tious):
        reached = pairs.tiou >= tiou
        first = np.full(truth.video.size, proposals, dtype=np.int64)  # best rank that reaches it
        np.minimum.at(first, pairs.truth[reached], rank[reached])
        recall[i] = (first[:, None] < used[truth.video]).sum(axis=0) / truth.video.size
    mean = recall.mean(axis=0)
    axis = share * (float(total) / videos)
    auc = float(np.trapezoid(mean, axis) / axis[-1])
    return ProposalRecall(recall, mean, axis, auc, videos)


def _kept_proposals(
    truth: TruthTable, found: DetectionTable, with_truth: Integers, ratio: float
) -> tuple[Integers, Integers, Integers]:
    """Rows by falling score, their videos in the truth's numbers (-1 others), kept per video."""
    position = {name: i for i, name in enumerate(truth.videos)}
    code = np.array([position.get(name, -1) for name in found.videos], dtype=np.int64)
    order = by_falling_score(found.score)
    video = code[found.video[order]]
    counts = np.bincount(video[video >= 0], minlength=len(truth.videos))
    kept = np.minimum((counts * ratio).astype(np.int64), counts)
    scored = np.zeros(len(truth.videos), dtype=bool)
    scored[with_truth] = True
    return order, video, np.where(scored, kept, 0)


def _rows_named(videos: tuple[str, ...], chosen: frozenset[str]) -> Integers:
    return np.array([i for i, name in enumerate(videos) if name in chosen], dtype=np.int64)
