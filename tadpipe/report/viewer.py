"""What the viewer of the page shows: every video with its actions and the best detections.

Columns of whole numbers, so that a page of some 130,000 detections stays small: hundredths of a
second, thousandths of the score, hundredths of tIoU. V videos, G actions, N detections.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tadpipe.evaluation.detection_map import average_precision
from tadpipe.evaluation.diagnosis import Diagnosis
from tadpipe.evaluation.false_positives import KINDS, TRUE_POSITIVE, find_false_positives
from tadpipe.evaluation.matching import (
    Matches,
    Segments,
    by_falling_score,
    match_greedily,
    overlapping_pairs,
    rank_in_group,
)
from tadpipe.evaluation.normalised_precision import rank_detections
from tadpipe.evaluation.tables import Floats, Integers, Problem
from tadpipe.report.systems import System

MOST_DETECTIONS = 130_000  # on one page; more videos or runs show fewer of each video
LOWEST_TIOU = 0.01  # of the overlap that colours a detection


class Film(NamedTuple):
    """Where a video can be played from, and how it looks."""

    source: str | None = None  # URL, relative to the page
    strip: str | None = None  # pictures side by side, a data URL
    pictures: int = 0
    reason: str = ""  # why there is no strip


class Judged(NamedTuple):
    """Each detection of a problem at one threshold."""

    kind: Integers  # [N], numbers of KINDS
    tiou: Floats  # [N], with the action of its label that it overlaps most
    is_missed: NDArray[np.bool_]  # [G]
    video_ap: Floats  # [V], NaN without actions


def shown_per_video(systems: int, videos: int, wanted: int) -> int:
    """How many detections of a run and video the page holds."""
    return max(min(wanted, MOST_DETECTIONS // max(systems * videos, 1)), 1)


def viewer_mapping(
    systems: Sequence[System],
    *,
    durations: Mapping[str, float],
    films: Mapping[str, Film],
    top_k: int,
) -> dict[str, Any]:
    """JSON-ready: labels, videos, their actions, and the best detections of every system.

    Args:
        durations: seconds; a video without one ends with its last segment.
        top_k: detections of each run and video, at most.
    """
    first = systems[0].diagnosis
    truth = first.problem.truth
    shown = shown_per_video(len(systems), len(truth.videos), top_k)
    judged = [judge(system.diagnosis, system.scores[0].protocol.nan_tiou) for system in systems]
    columns = [
        _best_of_videos(system.diagnosis.problem, result, shown)
        for system, result in zip(systems, judged, strict=True)
    ]
    rows_of = _rows_by_video(truth.video, len(truth.videos))
    videos = []
    for v, name in enumerate(truth.videos):
        actions = rows_of[v][np.argsort(truth.start_sec[rows_of[v]], kind="stable")]
        runs = [
            {**part[v], "m": result.is_missed[actions].astype(int).tolist(),
             "ap": None if np.isnan(result.video_ap[v]) else round(float(result.video_ap[v]), 4)}
            for part, result in zip(columns, judged, strict=True)
        ]  # fmt: skip
        film = films.get(name, Film())
        videos.append(
            {
                "name": name,
                "duration": durations.get(name) or _last_end(first.problem, actions, runs),
                "actions": {
                    "s": _hundredths(truth.start_sec[actions]),
                    "e": _hundredths(truth.end_sec[actions]),
                    "l": truth.label[actions].tolist(),
                },
                "runs": runs,
                "film": film._asdict(),
            }
        )
    return {
        "labels": list(truth.labels),
        "kinds": list(KINDS),
        "tiou": first.tious[first.reference],
        "shown": shown,
        "videos": videos,
    }


def judge(diagnosis: Diagnosis, nan_tiou: str) -> Judged:
    """Tell the kind of every detection at the threshold nearest to 0.5, and score the videos."""
    problem = diagnosis.problem
    threshold = np.array([diagnosis.tious[diagnosis.reference]])
    matches = match_greedily(problem, threshold, nan_tiou)
    ranking = rank_detections(problem, matches, 1)
    most = int(np.max(ranking.sizes // np.maximum(ranking.num_truth, 1), initial=0)) + 1
    errors = find_false_positives(
        problem,
        ranking,
        threshold,
        nan_tiou,
        lowest_tiou=diagnosis.rules.lowest_tiou,
        multiples=most,
    )
    kind = np.zeros(problem.found.score.size, dtype=np.int64)
    kind[errors.ranking.rows] = errors.kinds[0]
    is_missed = np.ones(problem.truth.video.size, dtype=bool)
    is_missed[matches.truth] = False
    return Judged(kind, _best_tiou(problem), is_missed, _video_ap(problem, matches))


def _best_tiou(problem: Problem) -> Floats:
    """Overlap of each detection with the action of its label that it overlaps most: [N]."""
    truth, found = problem.truth, problem.found
    classes = len(truth.labels)
    pairs = overlapping_pairs(
        Segments(truth.video * classes + truth.label, truth.start_sec, truth.end_sec),
        Segments(
            np.where(found.video < 0, -1, found.video * classes + found.label),
            found.start_sec,
            found.end_sec,
        ),
        LOWEST_TIOU,
    )
    best = np.zeros(found.score.size)
    np.maximum.at(best, pairs.found, np.nan_to_num(pairs.tiou, nan=1.0))
    return best


def _video_ap(problem: Problem, matches: Matches) -> Floats:
    """AP of each video, mean over the classes that occur in it: [V].

    Each pair of video and class is scored as a class of its own.
    """
    truth, found = problem.truth, problem.found
    classes = len(truth.labels)
    pairs, label = np.unique(truth.video * classes + truth.label, return_inverse=True)
    own = found.video * classes + found.label
    place = np.minimum(np.searchsorted(pairs, own), max(pairs.size - 1, 0))
    scored = (found.video >= 0) & (pairs[place] == own)
    names = tuple(map(str, range(pairs.size)))
    number = np.cumsum(scored) - 1
    by_pair = replace(
        problem,
        truth=replace(truth, labels=names, label=label),
        found=replace(found.take(scored), labels=names, label=place[scored]),
    )
    ap = average_precision(by_pair, replace(matches, found=number[matches.found]), 1)[0]
    counts = np.bincount(pairs // classes, minlength=len(truth.videos)).astype(np.float64)
    total = np.bincount(pairs // classes, weights=ap, minlength=len(truth.videos))
    counts[counts == 0] = np.nan
    mean: Floats = total / counts
    return mean


def _best_of_videos(problem: Problem, judged: Judged, shown: int) -> list[dict[str, Any]]:
    """The `shown` best detections of each video, best first, as columns."""
    found = problem.found
    order = by_falling_score(found.score)
    order = order[found.video[order] >= 0]
    rank = rank_in_group(found.video[order])
    counts = np.bincount(found.video[order], minlength=len(found.videos))
    worst = np.zeros(len(found.videos))  # score of the most confident error
    wrong = order[judged.kind[order] != TRUE_POSITIVE]
    np.maximum.at(worst, found.video[wrong], found.score[wrong])
    kept = order[rank < shown]
    rows_of = _rows_by_video(found.video[kept], len(found.videos))
    columns = []
    for v, places in enumerate(rows_of):
        rows = kept[places]
        columns.append(
            {
                "n": int(counts[v]),
                "w": round(float(worst[v]), 4),
                "s": _hundredths(found.start_sec[rows]),
                "e": _hundredths(found.end_sec[rows]),
                "l": found.label[rows].tolist(),
                "p": np.round(1000 * found.score[rows]).astype(int).tolist(),
                "o": np.floor(100 * judged.tiou[rows] + 1e-9).astype(int).tolist(),
                "k": "".join(map(str, judged.kind[rows].tolist())),
            }
        )
    return columns


def _rows_by_video(video: Integers, count: int) -> list[Integers]:
    """Row numbers of each video, in their order."""
    order = np.argsort(video, kind="stable")
    edges = np.searchsorted(video[order], np.arange(count + 1))
    return [order[a:b] for a, b in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)]


def _hundredths(seconds: Floats) -> list[int]:
    values: list[int] = np.round(100 * seconds).astype(np.int64).tolist()
    return values


def _last_end(problem: Problem, actions: Integers, runs: Sequence[Mapping[str, Any]]) -> float:
    ends = [*problem.truth.end_sec[actions].tolist(), *(e / 100 for run in runs for e in run["e"])]
    return max(ends, default=1.0)
