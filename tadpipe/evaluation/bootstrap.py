"""How much a difference between two detectors owes to the videos it was measured on.

Paired bootstrap: whole videos are drawn with replacement, the same draw for every detector, and
mAP is computed again on each draw. Matching never crosses videos, so it is done once; a draw only
weights videos, and w copies of one in the ranked lists equal one that counts w times.
Shapes: R resamples, V videos, K classes, T thresholds, N detections of a class, M of them matched.
Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, the percentile interval.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tadpipe.errors import ConfigError
from tadpipe.evaluation.matching import by_falling_score, match_greedily
from tadpipe.evaluation.protocols import OPENTAD, Protocol
from tadpipe.evaluation.tables import DetectionTable, Floats, Integers, TruthTable, prepare

CELLS_AT_ONCE = 4_000_000  # of [resamples, detections]; bounds the memory of a step at some 100 MB


@dataclass(frozen=True)
class RankedMatches:
    """One detector's detections, ranked, with what they match: all that resampling needs."""

    videos: tuple[str, ...]  # V, those that are drawn from
    num_truth: Integers  # [K, V]
    video: tuple[Integers, ...]  # K x [N], by falling score; -1 = not among the videos
    hits: tuple[tuple[Integers, ...], ...]  # K x T x [M], rising places of the true positives


def rank_matches(
    truth: TruthTable,
    found: DetectionTable,
    tious: Sequence[float],
    *,
    protocol: Protocol = OPENTAD,
    blocked: Collection[str] = (),
) -> RankedMatches:
    """Match detections once; arguments as in `score_detections`."""
    problem = prepare(truth, found, protocol, blocked)
    matches = match_greedily(problem, np.asarray(tious, dtype=np.float64), protocol.nan_tiou)
    classes, videos = len(problem.truth.labels), len(problem.truth.videos)
    cell = problem.truth.label * videos + problem.truth.video
    num_truth = np.bincount(cell, minlength=classes * videos).reshape(classes, videos)
    order = by_falling_score(problem.found.score)
    label = problem.found.label[order]
    place = np.empty(order.size, dtype=np.int64)  # of each detection in the list of its class
    ranked = []
    for k in range(classes):
        rows = order[label == k]
        place[rows] = np.arange(rows.size)
        ranked.append(problem.found.video[rows])
    hit_class = problem.found.label[matches.found]
    hits = tuple(
        tuple(
            np.sort(place[matches.found[(hit_class == k) & (matches.tiou == t)]])
            for t in range(len(tious))
        )
        for k in range(classes)
    )
    return RankedMatches(problem.truth.videos, num_truth, tuple(ranked), hits)


def draw_videos(matches: RankedMatches, resamples: int, seed: int) -> Integers:
    """How often each video is in each resample: int64 [R, V], every row sums to V.

    A draw without a single ground truth has no mAP and is drawn again.

    Raises:
        ConfigError: fewer than one resample.
    """
    if resamples < 1:
        raise ConfigError("At least one resample is needed.", f"resamples = {resamples}")
    generator = np.random.default_rng(seed)
    count = len(matches.videos)
    chances = np.full(count, 1 / count)
    with_truth = matches.num_truth.sum(axis=0) > 0  # [V], true somewhere: `prepare` saw to it
    drawn = generator.multinomial(count, chances, size=resamples)
    while (empty := ~drawn[:, with_truth].any(axis=1)).any():
        drawn[empty] = generator.multinomial(count, chances, size=int(empty.sum()))
    return drawn


def resampled_map(matches: RankedMatches, drawn: Integers) -> Floats:
    """mAP of each resample: [R, T]; its mean is over the classes that the resample has.

    Args:
        drawn: [R, V] from `draw_videos`; all ones give the mAP of the videos themselves.
    """
    classes, tious = len(matches.hits), len(matches.hits[0])
    # Detections outside the videos are false positives of every resample: column -1 is one.
    weight = np.pad(drawn.astype(np.float64), ((0, 0), (0, 1)), constant_values=1.0)
    truths = drawn @ matches.num_truth.T  # [R, K]
    total = np.zeros((len(drawn), tious))
    for k in range(classes):
        present = np.flatnonzero(truths[:, k])
        at_once = max(CELLS_AT_ONCE // max(matches.video[k].size, 1), 1)
        for start in range(0, present.size, at_once):
            rows = present[start : start + at_once]
            own = weight[rows][:, matches.video[k]]  # [r, N]
            seen = np.cumsum(own, axis=1)
            for t, places in enumerate(matches.hits[k]):
                total[rows, t] += _average_precision(
                    own[:, places], seen[:, places], truths[rows, k]
                )
    return total / (truths > 0).sum(axis=1)[:, None]


def _average_precision(own: Floats, seen: Floats, truths: Integers) -> Floats:
    """All-point interpolated AP of each row: [r].

    The copies of a true positive stand together, and precision rises from one to the next; the
    best precision from each of them on is therefore that at the last copy or later.

    Args:
        own: [r, M], copies of each true positive; seen: [r, M], detections up to its last copy.
        truths: [r], ground truths with their copies.
    """
    precision = np.cumsum(own, axis=1) / np.maximum(seen, 1.0)
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    area: Floats = (own * best).sum(axis=1) / truths
    return area


class Interval(NamedTuple):
    """What the resamples say of an observed difference."""

    difference: float  # observed, first - second
    low: float
    high: float
    flipped: float  # share of resamples in which the difference does not have the observed sign


def paired_interval(
    first: Floats, second: Floats, observed: float, *, level: float = 0.95
) -> Interval:
    """The percentile interval of a difference.

    Args:
        first, second: [R], a figure of two detectors on the same resamples.
        observed: the difference of the figures on the videos themselves.
        level: share of the resamples inside the interval.
    """
    differences = first - second
    tail = (1 - level) / 2
    low, high = np.quantile(differences, [tail, 1 - tail])
    return Interval(
        observed, float(low), float(high), float(np.mean(differences * observed <= 0.0))
    )
