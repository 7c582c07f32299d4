"""Precision against recall, mAP against tIoU, and whether a score means a probability.

T thresholds, K classes, N detections.
Source of the calibration error: Guo et al., ICML 2017, Sec. 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tadpipe.evaluation.detection_map import average_precision
from tadpipe.evaluation.matching import Matches, match_greedily
from tadpipe.evaluation.normalised_precision import Ranking, highest_from_here, nth_of_cell
from tadpipe.evaluation.tables import Floats, Integers, Problem

RECALL_POINTS = np.linspace(0.0, 1.0, 101)
CURVE_TIOUS = tuple(round(0.05 * i, 2) for i in range(1, 20))
SCORE_BINS = 10


def precision_at_recall(ranking: Ranking) -> Floats:
    """Interpolated precision at RECALL_POINTS: [T, K, 101]; 0 where recall is not reached."""
    hits, classes = ranking.hits, ranking.num_truth.size
    label = ranking.label[hits.position]
    cell = hits.tiou * classes + label
    number = nth_of_cell(cell)
    best = highest_from_here(number / (ranking.rank()[hits.position] + 1), cell)
    cells = ranking.tious * classes
    counts = np.bincount(cell, minlength=cells)  # true positives of each cell
    start = np.cumsum(counts) - counts
    # The first true positive at which recall reaches the point.
    needed = np.ceil(np.tile(ranking.num_truth, ranking.tious)[:, None] * RECALL_POINTS - 1e-9)
    nth = np.maximum(needed.astype(np.int64), 1)  # [T * K, 101], 1-based
    reached = nth <= counts[:, None]
    place = np.where(reached, start[:, None] + nth - 1, 0)
    curve = np.where(reached, np.r_[best, 0.0][place], 0.0)
    return curve.reshape(ranking.tious, classes, RECALL_POINTS.size)


def tiou_curve(problem: Problem, nan_tiou: str) -> Floats:
    """mAP at each of CURVE_TIOUS: [19]."""
    matches = match_greedily(problem, np.array(CURVE_TIOUS), nan_tiou)
    table = average_precision(problem, matches, len(CURVE_TIOUS))
    curve: Floats = table.mean(axis=1)
    return curve


@dataclass(frozen=True)
class Calibration:
    """How often detections of a score are right, in ten equal bins of the score from 0 to 1."""

    count: Integers  # [10]
    score: Floats  # [10], mean; NaN in an empty bin
    precision: Floats  # [T, 10], share of true positives; NaN in an empty bin

    @property
    def error(self) -> Floats:
        """Expected calibration error of each threshold: [T]."""
        filled = self.count > 0
        gap = np.abs(self.precision[:, filled] - self.score[filled])
        error: Floats = (gap * self.count[filled]).sum(axis=1) / max(self.count.sum(), 1)
        return error


def calibrate(problem: Problem, matches: Matches, num_tious: int) -> Calibration | None:
    """Compare scores with the share of true positives.

    Returns:
        None when a score lies outside 0..1 and so is no probability.
    """
    score = problem.found.score
    if score.size and not ((score >= 0) & (score <= 1)).all():
        return None
    index = np.minimum((score * SCORE_BINS).astype(np.int64), SCORE_BINS - 1)
    count = np.bincount(index, minlength=SCORE_BINS)
    size = np.where(count > 0, count, np.nan)
    right = np.bincount(
        matches.tiou * SCORE_BINS + index[matches.found], minlength=num_tious * SCORE_BINS
    ).reshape(num_tious, SCORE_BINS)
    mean = np.bincount(index, weights=score, minlength=SCORE_BINS) / size
    return Calibration(count, mean, right / size)
