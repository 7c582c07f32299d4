"""What is wrong with the detections that match nothing, and what each kind of error costs.

DETAD's false-positive analysis. T thresholds, K classes, n detections: of each class the
m * G best, G being its number of ground truths and m the largest multiple, 10.
Source: DETAD (Alwassel et al., ECCV 2018, Sec. 4).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tadpipe.evaluation.matching import Segments, overlapping_pairs
from tadpipe.evaluation.normalised_precision import Ranking, average_precision_n
from tadpipe.evaluation.tables import Floats, Integers, Problem

KINDS = (
    "true positive",
    "double detection",
    "wrong label",
    "localisation",
    "confusion",
    "background",
)
TRUE_POSITIVE, DOUBLE, WRONG_LABEL, LOCALISATION, CONFUSION, BACKGROUND = range(len(KINDS))
ERRORS = KINDS[1:]


@dataclass(frozen=True)
class FalsePositives:
    """Every counted detection has one kind per threshold; KINDS names the numbers."""

    ranking: Ranking  # n detections
    kinds: NDArray[np.int8]  # [T, n]
    nearest: Integers  # [n] label of the action overlapped most, -1 for background
    profile_counts: Integers  # [m, T, 6], i-th: detections ranked i*G .. (i+1)*G - 1 in their class
    ap: Floats  # [T, K], of normalised precision
    ap_without: Floats  # [5, T, K], after all errors of a kind are taken out

    @property
    def counts(self) -> Integers:
        """Detections of each kind: [T, 6]."""
        counts: Integers = self.profile_counts.sum(axis=0)
        return counts

    @property
    def profile(self) -> Floats:
        """Shares of the kinds at each multiple of G, mean over the thresholds: [m, 6].

        NaN where no class has so many detections.
        """
        sizes = self.profile_counts[:, 0].sum(axis=1).astype(np.float64)
        sizes[sizes == 0] = np.nan
        shares: Floats = (self.profile_counts / sizes[:, None, None]).mean(axis=1)
        return shares

    @property
    def average_map_n(self) -> float:
        """Mean over classes and thresholds of AP with normalised precision."""
        return float(self.ap.mean())

    @property
    def gain(self) -> Floats:
        """What average mAP_N rises by without each kind of error: [5]."""
        gain: Floats = self.ap_without.mean(axis=(1, 2)) - self.ap.mean()
        return gain

    def class_counts(self) -> Integers:
        """Kinds among the G best detections of each class: [T, K, 6]."""
        best = self.ranking.rank() < self.ranking.num_truth[self.ranking.label]
        classes = self.ranking.num_truth.size
        cell = self.ranking.label[best] * len(KINDS) + self.kinds[:, best]
        return np.stack(
            [np.bincount(row, minlength=classes * len(KINDS)).reshape(classes, -1) for row in cell]
        )


def find_false_positives(
    problem: Problem,
    ranking: Ranking,
    tious: Floats,
    nan_tiou: str,
    *,
    lowest_tiou: float,
    multiples: int,
) -> FalsePositives:
    """Sort the multiples * G best detections of each class into KINDS.

    Args:
        ranking: all detections, matched at `tious`.
        lowest_tiou: less overlap than this is none, the detection is background.
        nan_tiou: "match" counts the tIoU 0/0 as full overlap, "zero" as none.
    """
    top = ranking.top(multiples * ranking.num_truth)
    nearest, tiou = _nearest_action(problem, top.rows, nan_tiou, lowest_tiou)
    is_hit = np.zeros((top.tious, top.rows.size), dtype=bool)
    is_hit[top.hits.tiou, top.hits.position] = True
    near = nearest >= 0
    label = np.where(near, problem.truth.label[nearest], -1)
    same = label == top.label
    kinds = np.where(
        tiou >= tious[:, None],
        np.where(same, DOUBLE, WRONG_LABEL),
        np.where(near, np.where(same, LOCALISATION, CONFUSION), BACKGROUND),
    ).astype(np.int8)
    kinds[is_hit] = TRUE_POSITIVE
    return FalsePositives(
        top,
        kinds,
        label,
        _profile_counts(top, kinds, multiples),
        average_precision_n(top),
        np.stack([_without(top, kinds == kind) for kind in range(1, len(KINDS))]),
    )


def _nearest_action(
    problem: Problem, rows: Integers, nan_tiou: str, lowest_tiou: float
) -> tuple[Integers, Floats]:
    """The action of any class that each detection overlaps most (first on ties), and the tIoU.

    -1 and 0 where no action reaches `lowest_tiou`.
    """
    truth, found = problem.truth, problem.found
    pairs = overlapping_pairs(
        Segments(truth.video, truth.start_sec, truth.end_sec),
        Segments(found.video[rows], found.start_sec[rows], found.end_sec[rows]),
        lowest_tiou,
        "clipped" if nan_tiou == "zero" else "sum",
    )
    tiou = np.where(np.isnan(pairs.tiou), np.inf, pairs.tiou)
    best = np.zeros(rows.size)
    np.maximum.at(best, pairs.found, tiou)
    is_best = tiou == best[pairs.found]
    nearest = np.full(rows.size, truth.video.size, dtype=np.int64)
    np.minimum.at(nearest, pairs.found[is_best], pairs.truth[is_best])
    return np.where(nearest == truth.video.size, -1, nearest), best


def _profile_counts(top: Ranking, kinds: NDArray[np.int8], multiples: int) -> Integers:
    multiple = top.rank() // np.maximum(top.num_truth[top.label], 1)
    cell = multiple * len(KINDS) + kinds  # [T, n]
    counts = [np.bincount(row, minlength=multiples * len(KINDS)) for row in cell]
    return np.stack(counts).reshape(top.tious, multiples, len(KINDS)).swapaxes(0, 1)


def _without(top: Ranking, gone: NDArray[np.bool_]) -> Floats:
    """AP table [T, K] after taking out `gone` [T, n], which holds no true positive."""
    rank = np.stack([top.rank_without(row) for row in gone])
    # One list per threshold: lay them behind one another.
    return average_precision_n(top, top.hits, rank[top.hits.tiou, top.hits.position])
