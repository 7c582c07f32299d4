"""Recall@kx: which ground truths the best detections of a video reach, k for each of them.

`recall_at_kx` is ActionFormer's and OpenTAD's (per class, by score), `ego4d_retrieval_recall` that
of the Ego4D Moment Queries challenge (per instance, in file order, hull overlap).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tadpipe.evaluation.matching import (
    Segments,
    Union,
    by_falling_score,
    overlapping_pairs,
    rank_in_group,
)
from tadpipe.evaluation.tables import Floats, Integers, Problem

EGO4D_TIOUS = (0.3, 0.5, 0.7)
EGO4D_TOP_K = (1, 2, 3, 4, 5)


def recall_at_kx(
    problem: Problem, tious: Sequence[float], top_k: Sequence[int], nan_tiou: str
) -> Floats:
    """Recall of the k*n best detections per video and class, n being its ground truths there.

    One detection may reach several ground truths.

    Returns:
        float64 [T, len(top_k), K].
    """
    union: Union = "clipped" if nan_tiou == "zero" else "sum"
    best = _best_tiou(problem, by_falling_score(problem.found.score), top_k, min(tious), union)
    classes = len(problem.truth.labels)
    num_truth = np.bincount(problem.truth.label, minlength=classes)  # [K], never 0
    recall = np.empty((len(tious), len(top_k), classes))
    for i, tiou in enumerate(tious):
        for j in range(len(top_k)):
            covered = problem.truth.label[best[j] >= tiou]
            recall[i, j] = np.bincount(covered, minlength=classes) / num_truth
    return recall


def ego4d_retrieval_recall(
    problem: Problem,
    tious: Sequence[float] = EGO4D_TIOUS,
    top_k: Sequence[int] = EGO4D_TOP_K,
) -> Floats:
    """The retrieval recall of Ego4D Moment Queries: mean over instances, overlap > tIoU.

    Returns:
        float64 [len(tious), len(top_k)].
    """
    in_file_order = np.arange(problem.found.score.size)
    best = _best_tiou(problem, in_file_order, top_k, min(tious), "hull")
    return np.array([[float((row > tiou).mean()) for row in best] for tiou in tious])


def _best_tiou(
    problem: Problem, order: Integers, top_k: Sequence[int], min_tiou: float, union: Union
) -> Floats:
    """Best tIoU of each ground truth with the k*n first detections: [len(top_k), G], -1 if none."""
    truth, found = problem.truth, problem.found
    classes = len(truth.labels)
    truth_group = truth.video * classes + truth.label
    group = np.where(found.video < 0, -1, found.video * classes + found.label)[order]
    size = np.bincount(truth_group, minlength=len(truth.videos) * classes)  # n per group
    pairs = overlapping_pairs(
        Segments(truth_group, truth.start_sec, truth.end_sec),
        Segments(group, found.start_sec[order], found.end_sec[order]),
        min_tiou,
        union,
    )
    rank = rank_in_group(group)[pairs.found]
    best = np.full((len(top_k), truth.video.size), -1.0)
    for j, k in enumerate(top_k):
        near = (rank < k * size[truth_group[pairs.truth]]) & ~np.isnan(pairs.tiou)
        np.maximum.at(best[j], pairs.truth[near], pairs.tiou[near])
    return best
