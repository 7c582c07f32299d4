"""Which detection takes which ground truth, for all classes and thresholds at once.

G ground truths, N detections, T thresholds, P pairs of the two in the same video and class.
A public evaluator walks through the detections by falling score; each takes its best free ground
truth. This is the one stable assignment when every ground truth prefers the better score, so it is
found by rounds of proposals (Gale and Shapley, 1962) over whole arrays, with equal outcome.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tadpipe.evaluation.tables import Floats, Integers, Problem

PAIRS_AT_ONCE = 2_000_000  # bounds the memory of a step at some 100 MB
Union = Literal["sum", "clipped", "hull"]


class Segments(NamedTuple):
    """Segments in groups; only those of the same group (video, or video and class) meet."""

    group: Integers  # [n], -1 meets nothing
    start_sec: Floats
    end_sec: Floats


class Pairs(NamedTuple):
    """Overlapping pairs, by detection in the order given, then by falling tIoU."""

    found: Integers  # [P] row of the detections
    truth: Integers  # [P] row of the ground truths
    tiou: Floats  # [P], NaN first


def tiou_of(
    start_a: Floats, end_a: Floats, start_b: Floats, end_b: Floats, union: Union = "sum"
) -> Floats:
    """Temporal intersection over union of segments, element by element.

    Args:
        union: "sum" is length + length - intersection, 0/0 gives NaN; "clipped" the same but 1e-8
            at least (OpenTAD); "hull" from the first start to the last end (Ego4D).
    """
    both = np.maximum(np.minimum(end_a, end_b) - np.maximum(start_a, start_b), 0.0)
    if union == "hull":
        whole = np.maximum(end_a, end_b) - np.minimum(start_a, start_b)
    else:
        whole = (end_b - start_b) + (end_a - start_a) - both
    if union == "clipped":
        whole = np.maximum(whole, 1e-8)
    with np.errstate(divide="ignore", invalid="ignore"):
        return both / whole


def overlapping_pairs(
    truth: Segments, found: Segments, min_tiou: float, union: Union = "sum"
) -> Pairs:
    """All pairs of a group with tIoU >= `min_tiou`, and those with NaN.

    Equal tIoU of one detection: the later ground truth comes first.
    """
    parts = list(_pairs_in_parts(truth, found, min_tiou, union))
    if not parts:
        none = np.zeros(0, dtype=np.int64)
        return Pairs(none, none, np.zeros(0))
    row, match, tiou = (np.concatenate(column) for column in zip(*parts, strict=True))
    # Rows come in order, each with its ground truths from the last to the first; what is left to
    # sort by tIoU are the rows with several.
    several = np.flatnonzero(np.bincount(row, minlength=found.group.size)[row] > 1)
    falling = np.where(np.isnan(tiou[several]), -np.inf, -tiou[several])
    ordered = several[np.lexsort((falling, row[several]))]
    match[several], tiou[several] = match[ordered], tiou[ordered]
    return Pairs(row, match, tiou)


def _pairs_in_parts(
    truth: Segments, found: Segments, min_tiou: float, union: Union
) -> Iterator[tuple[Integers, Integers, Floats]]:
    by_group = np.argsort(truth.group, kind="stable")
    groups = truth.group[by_group]
    first = np.searchsorted(groups, found.group, side="left")
    end = np.searchsorted(groups, found.group, side="right")
    count = np.where(found.group < 0, 0, end - first)
    rows = np.flatnonzero(count)
    total = np.cumsum(count[rows])
    cut = 0
    while cut < rows.size:
        done = total[cut - 1] if cut else 0
        stop = max(cut + 1, int(np.searchsorted(total, done + PAIRS_AT_ONCE, side="right")))
        part = rows[cut:stop]
        cut = stop
        row = np.repeat(part, count[part])  # [p]
        within = np.arange(row.size) - np.repeat(np.cumsum(count[part]) - count[part], count[part])
        match = by_group[end[row] - 1 - within]  # the last ground truth of the group first
        tiou = tiou_of(
            found.start_sec[row],
            found.end_sec[row],
            truth.start_sec[match],
            truth.end_sec[match],
            union,
        )
        kept = ~(tiou < min_tiou)  # NaN is never less
        yield row[kept], match[kept], tiou[kept]


def by_falling_score(score: Floats) -> Integers:
    """Rows by falling score; among equal scores the later row comes first."""
    return np.argsort(score, kind="stable")[::-1]


def rank_in_group(group: Integers) -> Integers:
    """How many earlier rows have the same group: int64 [n]."""
    order = np.argsort(group, kind="stable")
    ordered = group[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if group.size else group
    lengths = np.diff(np.r_[starts, group.size])
    rank = np.empty(group.size, dtype=np.int64)
    rank[order] = np.arange(group.size) - np.repeat(starts, lengths)
    return rank


@dataclass(frozen=True)
class Matches:
    """True positives: `found[i]` takes `truth[i]` at threshold number `tiou[i]`."""

    tiou: Integers  # [M] index into the thresholds
    found: Integers  # [M] row of the problem's detections
    truth: Integers  # [M] row of the problem's ground truths


def match_greedily(problem: Problem, tious: Floats, nan_tiou: str) -> Matches:
    """The true positives of every threshold; all other detections are false positives.

    Args:
        tious: [T]; tIoU >= threshold matches.
        nan_tiou: "match" counts 0/0 as a match, "zero" as no overlap.
    """
    truth, found = problem.truth, problem.found
    order = by_falling_score(found.score)
    classes = len(truth.labels)
    group = np.where(found.video < 0, -1, found.video * classes + found.label)
    pairs = overlapping_pairs(
        Segments(truth.video * classes + truth.label, truth.start_sec, truth.end_sec),
        Segments(group[order], found.start_sec[order], found.end_sec[order]),
        float(tious.min()),
        "clipped" if nan_tiou == "zero" else "sum",
    )
    level, rank, row = _assign(pairs, tious, truth.video.size)
    return Matches(level, order[rank], row)


def _assign(pairs: Pairs, tious: Floats, num_truths: int) -> tuple[Integers, Integers, Integers]:
    """Threshold, detection and ground truth of every match, by threshold, then by detection."""
    rank, first, counts = np.unique(pairs.found, return_index=True, return_counts=True)
    candidates, levels = rank.size, len(tious)
    reach = np.empty((levels, candidates), dtype=np.int64)  # choices with tIoU >= threshold
    for i, tiou in enumerate(tious):
        good = np.r_[0, np.cumsum(~(pairs.tiou < tiou))]
        reach[i] = good[first + counts] - good[first]
    # One suitor per (threshold, detection): its next choice, and the end of its list.
    choice = np.tile(first, levels)  # [T * candidates]
    end = (first + reach).ravel()
    offset = np.repeat(np.arange(levels) * num_truths, candidates)
    nobody = levels * candidates
    holder = np.full(levels * num_truths, nobody, dtype=np.int64)
    active = np.flatnonzero(choice < end)
    while active.size:
        wish = offset[active] + pairs.truth[choice[active]]
        before = holder[wish]
        np.minimum.at(holder, wish, active)  # the smaller number has the better score
        now = holder[wish]
        ousted = np.unique(before[(before != now) & (before != nobody)])
        losers = np.concatenate([active[now != active], ousted])
        choice[losers] += 1
        active = losers[choice[losers] < end[losers]]
    taken = np.flatnonzero(holder != nobody)
    suitor = holder[taken]
    by_suitor = np.argsort(suitor, kind="stable")
    suitor, taken = suitor[by_suitor], taken[by_suitor]
    return suitor // max(candidates, 1), rank[suitor % max(candidates, 1)], taken % num_truths


def is_tied(problem: Problem) -> NDArray[np.bool_]:
    """Detections that share their score with another one of their class: bool [N]."""
    found = problem.found
    order = np.lexsort((found.score, found.label))
    label, score = found.label[order], found.score[order]
    same = (label[1:] == label[:-1]) & (score[1:] == score[:-1])
    tied = np.zeros(found.score.size, dtype=bool)
    tied[order[1:][same]] = True
    tied[order[:-1][same]] = True
    return tied
