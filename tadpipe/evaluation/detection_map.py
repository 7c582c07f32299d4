"""mAP@tIoU: mean average precision of detections, as every paper of the field reports it.

T thresholds, K classes. The matching is greedy by falling score, the precision is interpolated at
all points (VOC 2011), and equal scores are ordered by a stable rule: the later row comes first.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tadpipe.errors import ConfigError
from tadpipe.evaluation.matching import (
    Matches,
    by_falling_score,
    is_tied,
    match_greedily,
    rank_in_group,
)
from tadpipe.evaluation.protocols import OPENTAD, Protocol
from tadpipe.evaluation.recall import recall_at_kx
from tadpipe.evaluation.tables import DetectionTable, Floats, Integers, Problem, TruthTable, prepare


@dataclass(frozen=True)
class DetectionScore:
    """Average precision and recall, with everything that was or was not counted."""

    protocol: Protocol
    tious: tuple[float, ...]  # T
    labels: tuple[str, ...]  # K, in the protocol's order
    ap: Floats  # [T, K]
    top_k: tuple[int, ...]
    recall: Floats  # [T, len(top_k), K]
    num_truth: Integers  # [K], ground truths after cleaning
    num_detections: Integers  # [K]
    videos: int  # of the subset, without the blocked ones
    missing: tuple[str, ...]  # videos with actions but without any detection
    blocked: tuple[str, ...]  # videos left out on both sides
    foreign: tuple[str, ...]  # videos with detections that are not in the subset
    unknown_labels: Mapping[str, int]  # predicted label that is no class -> its detections
    tied_scores: int  # detections whose score another one of their class has

    @property
    def map_at(self) -> Floats:
        """mAP of each threshold: [T]."""
        return self.ap.mean(axis=1)

    @property
    def average_map(self) -> float:
        """Mean of mAP over the thresholds."""
        return float(self.map_at.mean())

    @property
    def recall_at(self) -> Floats:
        """Recall@kx, mean over the classes: [T, len(top_k)]."""
        return self.recall.mean(axis=2)

    def to_mapping(self) -> dict[str, Any]:
        """JSON-ready; fractions, not percent."""
        classes = {
            label: {
                "ap": self.ap[:, k].tolist(),
                "average_ap": float(self.ap[:, k].mean()),
                "recall": self.recall[:, :, k].tolist(),
                "num_truth": int(self.num_truth[k]),
                "num_detections": int(self.num_detections[k]),
            }
            for k, label in enumerate(self.labels)
        }
        return {
            "protocol": self.protocol.name,
            "tious": list(self.tious),
            "map": self.map_at.tolist(),
            "average_map": self.average_map,
            "top_k": list(self.top_k),
            "recall_at_kx": self.recall_at.tolist(),
            "classes": classes,
            "num_truth": int(self.num_truth.sum()),
            "num_detections": int(self.num_detections.sum()),
            "videos": self.videos,
            "missing": list(self.missing),
            "blocked": list(self.blocked),
            "foreign": list(self.foreign),
            "unknown_labels": dict(self.unknown_labels),
            "tied_scores": self.tied_scores,
        }


def score_detections(
    truth: TruthTable,
    found: DetectionTable,
    tious: Sequence[float],
    *,
    protocol: Protocol = OPENTAD,
    blocked: Collection[str] = (),
    top_k: Sequence[int] = (1, 5),
) -> DetectionScore:
    """Score detections against the ground truth of one subset.

    Args:
        tious: thresholds in (0, 1], used to the last bit; tIoU >= threshold matches.
        blocked: videos to leave out on both sides.
        top_k: the k of Recall@kx; () skips it.
    Raises:
        ConfigError: a threshold or k out of range.
        AnnotationError: no ground truth, or a label that the protocol forbids.
    """
    thresholds = np.asarray(tious, dtype=np.float64)
    if not thresholds.size or not ((thresholds > 0) & (thresholds <= 1)).all():
        raise ConfigError("tIoU thresholds lie in (0, 1].", f"tious = {list(tious)}")
    if any(k < 1 for k in top_k):
        raise ConfigError("Recall@kx needs k >= 1.", f"top_k = {list(top_k)}")
    problem = prepare(truth, found, protocol, blocked)
    matches = match_greedily(problem, thresholds, protocol.nan_tiou)
    classes = len(problem.truth.labels)
    recall = np.zeros((thresholds.size, 0, classes))
    if top_k:
        recall = recall_at_kx(problem, thresholds.tolist(), top_k, protocol.nan_tiou)
    return DetectionScore(
        protocol=protocol,
        tious=tuple(thresholds.tolist()),
        labels=problem.truth.labels,
        ap=average_precision(problem, matches, thresholds.size),
        top_k=tuple(top_k),
        recall=recall,
        num_truth=np.bincount(problem.truth.label, minlength=classes),
        num_detections=np.bincount(problem.found.label, minlength=classes),
        videos=len(problem.truth.videos),
        missing=problem.missing,
        blocked=problem.blocked,
        foreign=problem.foreign,
        unknown_labels=problem.unknown_labels,
        tied_scores=int(is_tied(problem).sum()),
    )


def average_precision(problem: Problem, matches: Matches, num_tious: int) -> Floats:
    """AP table [T, K]; a class without a true positive has 0."""
    label = problem.found.label
    order = by_falling_score(problem.found.score)
    position = np.empty(label.size, dtype=np.int64)  # 1-based place among the class's detections
    position[order] = rank_in_group(label[order]) + 1
    classes = len(problem.truth.labels)
    num_truth = np.bincount(problem.truth.label, minlength=classes)
    cell = matches.tiou * classes + label[matches.found]
    place = position[matches.found]
    by_cell = np.lexsort((place, cell))
    cells, starts = np.unique(cell[by_cell], return_index=True)
    ap = np.zeros(num_tious * classes)
    for number, places in zip(cells, np.split(place[by_cell], starts[1:]), strict=False):
        ap[number] = interpolated_precision(places, int(num_truth[number % classes]))
    return ap.reshape(num_tious, classes)


def interpolated_precision(places: Integers, num_truth: int) -> float:
    """All-point interpolated AP from the places of the true positives in the ranked list.

    Recall only rises at true positives and precision only falls between them, so the maximum of
    the precision from each point on is attained at a true positive.

    Args:
        places: 1-based, rising, int64 [number of true positives].
        num_truth: number of ground truths.
    """
    hits = np.arange(1, places.size + 1, dtype=np.float64)
    precision = np.maximum.accumulate((hits / places)[::-1])[::-1]
    terms = np.diff(hits / num_truth, prepend=0.0) * precision
    if places.size < num_truth:
        terms = np.append(terms, 0.0)  # the point at recall 1: adds nothing, keeps the sum's order
    return float(terms.sum())
