"""Why a detector scores what it scores: errors by kind and cost, sensitivity, misses, curves.

DETAD's three analyses, each with its own rules, and what people plot beside them. T thresholds,
K classes, G ground-truth actions. The thresholds are those of the evaluation.
Source: DETAD (Alwassel et al., ECCV 2018).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np

from tadpipe.errors import AnnotationError, Defect
from tadpipe.evaluation.characteristics import (
    COVERAGE,
    LENGTH,
    QUANTILES,
    Bins,
    Characteristic,
    Given,
    in_bins,
    measure,
)
from tadpipe.evaluation.curves import (
    CURVE_TIOUS,
    RECALL_POINTS,
    Calibration,
    calibrate,
    precision_at_recall,
    tiou_curve,
)
from tadpipe.evaluation.detection_map import average_precision
from tadpipe.evaluation.false_positives import (
    ERRORS,
    KINDS,
    TRUE_POSITIVE,
    FalsePositives,
    find_false_positives,
)
from tadpipe.evaluation.matching import match_greedily
from tadpipe.evaluation.normalised_precision import average_precision_n, rank_detections
from tadpipe.evaluation.proposals import ProposalRecall, average_recall
from tadpipe.evaluation.protocols import EPIC, OPENTAD, Protocol
from tadpipe.evaluation.recall import (
    EGO4D_TIOUS,
    EGO4D_TOP_K,
    ego4d_retrieval_recall,
    recall_at_kx,
)
from tadpipe.evaluation.sensitivity import (
    FalseNegatives,
    Sensitivity,
    find_false_negatives,
    measure_sensitivity,
)
from tadpipe.evaluation.tables import DetectionTable, Floats, Problem, TruthTable, prepare

MAX_AN = 100
NO_GIVEN: Given = {}


@dataclass(frozen=True)
class DetadRules:
    """DETAD's own constants."""

    lowest_tiou: float = 0.1  # less overlap with any action is none
    multiples: int = 10  # false positives: the best multiples * G detections of each class
    min_precision: float = 0.05  # false negatives: a match at this P_N or less finds nothing
    pairs: tuple[tuple[str, str], ...] = ((COVERAGE, LENGTH),)  # false negatives by two


DETAD = DetadRules()


class Recalls(NamedTuple):
    """Recall by its different definitions."""

    at_kx: Floats  # [T, 5, K], k = 1..5: per class and by score (ActionFormer, OpenTAD)
    ego4d: Floats  # [3, 5]: retrieval recall of Ego4D Moment Queries, over instances
    proposals: ProposalRecall  # AR@AN, labels ignored


@dataclass(frozen=True)
class Diagnosis:
    """Everything `diagnose` found; the ground truths and detections are those of `problem`."""

    problem: Problem  # after the protocol's rules and DETAD's
    rules: DetadRules
    dropped: int  # ground truths that DETAD leaves out: no length, or coverage > 1
    tious: tuple[float, ...]  # T
    ap: Floats  # [T, K], ordinary AP on the ground truths kept
    ap_n: Floats  # [T, K], of normalised precision, all detections
    false_positives: FalsePositives
    false_negatives: FalseNegatives
    characteristics: tuple[Characteristic, ...]
    sensitivity: tuple[Sensitivity, ...]
    precision: Floats  # [T, K, 101] at RECALL_POINTS
    tiou_map: Floats  # [19] at CURVE_TIOUS
    calibration: Calibration | None  # None: scores outside 0..1
    recalls: Recalls

    @property
    def labels(self) -> tuple[str, ...]:
        """The K classes."""
        return self.problem.truth.labels

    @property
    def mean_truth(self) -> float:
        """N, ground truths per class."""
        return self.false_positives.ranking.mean_truth

    @property
    def average_map_n(self) -> float:
        """Mean over classes and thresholds of AP with normalised precision."""
        return float(self.ap_n.mean())

    @property
    def reference(self) -> int:
        """Index of the threshold nearest to 0.5, where one threshold has to stand for all."""
        return int(np.abs(np.array(self.tious) - 0.5).argmin())

    def confusion(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Which action the G best detections of each class lie on: [K + 1, K].

        Rows are true classes, the last row is background (no action reaches the lowest tIoU);
        columns are predicted classes. A true positive at the reference threshold counts for its
        own class, any other detection for the action it overlaps most. Columns sum to the number
        of detections counted.
        """
        errors, classes = self.false_positives, len(self.labels)
        top = errors.ranking
        counted = top.rank() < top.num_truth[top.label]
        right = errors.kinds[self.reference] == TRUE_POSITIVE
        true = np.where(right, top.label, np.where(errors.nearest < 0, classes, errors.nearest))
        cell = true[counted] * classes + top.label[counted]
        return np.bincount(cell, minlength=(classes + 1) * classes).reshape(classes + 1, classes)

    def to_mapping(self) -> dict[str, Any]:
        """JSON-ready; fractions, not percent; null where there is nothing to measure."""
        return {
            "tious": list(self.tious),
            "lowest_tiou": self.rules.lowest_tiou,
            "labels": list(self.labels),
            "num_truth": int(self.problem.truth.video.size),
            "dropped_truth": self.dropped,
            "num_detections": int(self.problem.found.score.size),
            "mean_truth_per_class": self.mean_truth,
            "average_map": float(self.ap.mean()),
            "average_map_n": self.average_map_n,
            "false_positives": self._false_positives(),
            "false_negatives": [
                {
                    "characteristics": list(group.characteristics),
                    "bins": [list(names) for names in group.bins],
                    "num_truth": group.num_truth.tolist(),
                    "unmatched_rate": group.unmatched_rate.tolist(),
                    "share": group.share.tolist(),
                }
                for group in self.false_negatives.by_bin
            ],
            "unmatched_rate": float(self.false_negatives.unmatched.mean()),
            "characteristics": {
                item.name: {
                    "bins": list(item.bins.names),
                    "edges": [_number(edge) for edge in item.bins.edges],
                    "from_file": item.from_file,
                    "without_bin": int((item.bin_of < 0).sum()),
                }
                for item in self.characteristics
            },
            "sensitivity": {
                item.characteristic: {
                    "bins": list(item.bins),
                    "num_truth": item.num_truth.tolist(),
                    "average_map_n": item.average_map_n.tolist(),
                    "relative_change": [
                        _number(value / self.average_map_n if self.average_map_n else np.nan)
                        for value in item.average_map_n.tolist()
                    ],
                }
                for item in self.sensitivity
            },
            **self._curves(),
            "confusion": self._confusion(),
        }

    def _false_positives(self) -> dict[str, Any]:
        errors, by_class = self.false_positives, self.false_positives.class_counts()
        return {
            "kinds": list(KINDS),
            "num_detections": int(errors.ranking.rows.size),
            "counts": errors.counts.tolist(),
            "profile": [[_number(share) for share in row] for row in errors.profile.tolist()],
            "profile_counts": errors.profile_counts.tolist(),
            "average_map_n": errors.average_map_n,
            "gain": dict(zip(ERRORS, errors.gain.tolist(), strict=True)),
            "class_counts": dict(
                zip(self.labels, by_class.mean(axis=0).tolist(), strict=True)
            ),  # of the G best, mean over the thresholds
        }

    def _confusion(self) -> dict[str, Any]:
        """The matrix without its zeros: most frequent first."""
        matrix = self.confusion()
        names = [*self.labels, None]
        true, found = np.nonzero(matrix)
        order = np.argsort(-matrix[true, found], kind="stable")
        return {
            "tiou": self.tious[self.reference],
            "pairs": [
                {"truth": names[i], "detected": names[j], "count": int(matrix[i, j])}
                for i, j in zip(true[order].tolist(), found[order].tolist(), strict=True)
            ],  # truth null is background
        }

    def _curves(self) -> dict[str, Any]:
        scores, curve = self.calibration, self.recalls.proposals
        return {
            "precision_recall": {
                "recall": RECALL_POINTS.tolist(),
                "mean_precision": _rounded(self.precision.mean(axis=1)),
                "tiou": self.tious[self.reference],
                "class_precision": dict(
                    zip(self.labels, _rounded(self.precision[self.reference]), strict=True)
                ),
            },
            "tiou_map": {"tious": list(CURVE_TIOUS), "map": self.tiou_map.tolist()},
            "calibration": None
            if scores is None
            else {
                "count": scores.count.tolist(),
                "score": [_number(value) for value in scores.score.tolist()],
                "precision": [[_number(v) for v in row] for row in scores.precision.tolist()],
                "expected_calibration_error": scores.error.tolist(),
            },
            "recall_at_kx": {
                "definition": "ActionFormer, OpenTAD: per class, the k*n best by score of a video,"
                " tIoU >= threshold, mean over classes",
                "tious": list(self.tious),
                "k": list(EGO4D_TOP_K),
                "recall": self.recalls.at_kx.mean(axis=2).tolist(),
            },
            "ego4d_retrieval_recall": {
                "definition": "Ego4D Moment Queries challenge: the first k*n rows of the file,"
                " hull overlap > threshold, mean over instances",
                "tious": list(EGO4D_TIOUS),
                "k": list(EGO4D_TOP_K),
                "recall": self.recalls.ego4d.tolist(),
            },
            "proposals": {
                "definition": "AR@AN of ActivityNet: labels ignored",
                "auc": curve.auc,
                "average_recall": curve.average_recall.tolist(),
                "proposals_per_video": curve.proposals_per_video.tolist(),
            },
        }


def diagnose(
    truth: TruthTable,
    found: DetectionTable,
    tious: Sequence[float],
    *,
    protocol: Protocol = OPENTAD,
    blocked: Collection[str] = (),
    durations: Mapping[str, float] | None = None,
    given: Given = NO_GIVEN,
    bins: str | Mapping[str, Bins] = QUANTILES,
    rules: DetadRules = DETAD,
) -> Diagnosis:
    """Analyse the errors of detections; tables and rules as in `score_detections`.

    Args:
        durations: seconds of each video, as far as known; without them no coverage.
        given: characteristics that the annotation file states (`load_given`).
        bins: of the characteristics: a name of BIN_SETS, "quantiles", or own bins.
    Raises:
        AnnotationError: no ground truth is left.
        ConfigError: no bins of that name.
    """
    thresholds = np.asarray(tious, dtype=np.float64)
    whole = prepare(truth, found, protocol, blocked)
    problem, characteristics = _kept(whole, durations or {}, given, bins)
    matches = match_greedily(problem, thresholds, protocol.nan_tiou)
    ranking = rank_detections(problem, matches, thresholds.size)
    all_matches = matches
    if problem is not whole:  # curves and recall follow the protocol alone, as mAP does
        all_matches = match_greedily(whole, thresholds, protocol.nan_tiou)
    variant: Literal["activitynet", "opentad"] = (
        "opentad" if protocol.name == "opentad" else "activitynet"
    )
    return Diagnosis(
        problem=problem,
        rules=rules,
        dropped=int(whole.truth.video.size - problem.truth.video.size),
        tious=tuple(thresholds.tolist()),
        ap=average_precision(problem, matches, thresholds.size),
        ap_n=average_precision_n(ranking),
        false_positives=find_false_positives(
            problem,
            ranking,
            thresholds,
            protocol.nan_tiou,
            lowest_tiou=rules.lowest_tiou,
            multiples=rules.multiples,
        ),
        false_negatives=find_false_negatives(
            ranking, characteristics, pairs=rules.pairs, min_precision=rules.min_precision
        ),
        characteristics=characteristics,
        sensitivity=tuple(measure_sensitivity(problem, ranking, item) for item in characteristics),
        precision=precision_at_recall(rank_detections(whole, all_matches, thresholds.size)),
        tiou_map=tiou_curve(whole, protocol.nan_tiou),
        calibration=calibrate(whole, all_matches, thresholds.size),
        recalls=Recalls(
            recall_at_kx(whole, thresholds.tolist(), EGO4D_TOP_K, protocol.nan_tiou),
            # Ego4D's own rules: the ground truth as it is, labels without any left out.
            ego4d_retrieval_recall(prepare(truth, found, EPIC, blocked)),
            average_recall(
                truth, found, thresholds.tolist(), max_an=MAX_AN, variant=variant, blocked=blocked
            ),
        ),
    )


def _kept(
    whole: Problem, durations: Mapping[str, float], given: Given, bins: str | Mapping[str, Bins]
) -> tuple[Problem, tuple[Characteristic, ...]]:
    """The problem without the ground truths that DETAD leaves out; a class may lose all."""
    measured = measure(whole.truth, durations, given)
    keep = whole.truth.end_sec > whole.truth.start_sec
    if COVERAGE in measured:
        keep &= ~(measured[COVERAGE].values > 1)
    if keep.all():
        return whole, in_bins(measured, bins)
    if not keep.any():
        raise AnnotationError(
            "There is no ground truth to analyse.",
            [Defect("", "", f"{keep.size} actions, all of no length or longer than their video")],
            "Check the segments and the durations of the annotations.",
        )
    measured = {
        name: item._replace(values=item.values[keep])
        for name, item in measured.items()
        if not np.isnan(item.values[keep]).all()
    }
    return replace(whole, truth=whole.truth.take(keep)), in_bins(measured, bins)


def _number(value: float) -> float | str | None:
    """A JSON value: null for NaN, "inf" for infinity."""
    if np.isnan(value):
        return None
    return "inf" if np.isinf(value) else float(value)


def _rounded(table: Floats) -> list[Any]:
    """Curves with five digits: they are drawn, not computed with."""
    rows: list[Any] = np.round(table, 5).tolist()
    return rows
