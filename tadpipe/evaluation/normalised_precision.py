"""Ranked detections and normalised precision, which compares classes of unequal size.

T thresholds, K classes, n detections of the list, M of them matched. With N the mean number of
ground truths per class and R the recall so far, P_N = R*N / (R*N + false positives so far).
Source: DETAD (Alwassel et al., ECCV 2018, Sec. 3), after Hoiem et al., ECCV 2012.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tadpipe.evaluation.matching import Matches, by_falling_score
from tadpipe.evaluation.tables import Floats, Integers, Problem


class Hits(NamedTuple):
    """True positives, by threshold, then by position in the ranking."""

    tiou: Integers  # [M] index into the thresholds
    position: Integers  # [M] of the detection in the ranking
    truth: Integers  # [M] row of the problem's ground truths

    def take(self, chosen: NDArray[Any]) -> Hits:
        """Some of them, in their order."""
        return Hits(self.tiou[chosen], self.position[chosen], self.truth[chosen])


@dataclass(frozen=True)
class Ranking:
    """The detections of every class by falling score, and what they match."""

    tious: int  # T
    num_truth: Integers  # [K]
    rows: Integers  # [n] rows of the problem's detections, class by class
    label: Integers  # [n], rising
    hits: Hits

    @property
    def mean_truth(self) -> float:
        """N, ground truths per class."""
        return float(self.num_truth.sum()) / self.num_truth.size

    @property
    def sizes(self) -> Integers:
        """Detections per class: [K]."""
        return np.bincount(self.label, minlength=self.num_truth.size)

    def rank(self) -> Integers:
        """0-based place of each detection in its class: [n]."""
        sizes = self.sizes
        return np.arange(self.label.size) - np.repeat(np.cumsum(sizes) - sizes, sizes)

    def rank_without(self, gone: NDArray[np.bool_]) -> Integers:
        """The same after some are taken out; theirs is that of the next one left: [n]."""
        before: Integers = np.cumsum(gone) - gone  # of those before, in all classes
        sizes = self.sizes
        start = np.cumsum(sizes) - sizes
        at_start = np.r_[before, 0][start]
        return self.rank() - before + np.repeat(at_start, sizes)

    def top(self, limit: Integers) -> Ranking:
        """The first `limit[k]` detections of each class k."""
        kept = self.rank() < limit[self.label]
        position = np.cumsum(kept) - 1
        hits = self.hits.take(kept[self.hits.position])
        return replace(
            self,
            rows=self.rows[kept],
            label=self.label[kept],
            hits=hits._replace(position=position[hits.position]),
        )


def rank_detections(problem: Problem, matches: Matches, num_tious: int) -> Ranking:
    """Sort the detections of a problem and its true positives by class and falling score."""
    found = problem.found
    order = by_falling_score(found.score)
    order = order[np.argsort(found.label[order], kind="stable")]
    position = np.empty(order.size, dtype=np.int64)
    position[order] = np.arange(order.size)
    place = position[matches.found]
    by_place = np.argsort(matches.tiou * max(order.size, 1) + place, kind="stable")
    return Ranking(
        num_tious,
        np.bincount(problem.truth.label, minlength=len(problem.truth.labels)),
        order,
        found.label[order],
        Hits(matches.tiou[by_place], place[by_place], matches.truth[by_place]),
    )


class ClassEnds(NamedTuple):
    """Recall and normalised precision after the last detection of each class."""

    recall: Floats  # [T, K]
    precision: Floats  # [T, K]


def class_ends(ranking: Ranking) -> ClassEnds:
    """The end points of the curves; 0 for a class without detections or ground truths."""
    classes = ranking.num_truth.size
    cell = ranking.hits.tiou * classes + ranking.label[ranking.hits.position]
    hits = np.bincount(cell, minlength=ranking.tious * classes).reshape(ranking.tious, classes)
    recall = hits / np.maximum(ranking.num_truth, 1)
    weight = recall * ranking.mean_truth
    total = weight + (ranking.sizes - hits)
    return ClassEnds(recall, np.where(total > 0, weight / np.where(total > 0, total, 1.0), 0.0))


def confident_hits(ranking: Ranking, min_precision: float) -> Hits:
    """The true positives at whose place the normalised precision exceeds `min_precision`."""
    hits = ranking.hits
    precision, _ = _normalised(ranking, hits, ranking.rank()[hits.position], ranking.num_truth)
    return hits.take(precision > min_precision)


def average_precision_n(
    ranking: Ranking,
    hits: Hits | None = None,
    rank: Integers | None = None,
    num_truth: Integers | None = None,
) -> Floats:
    """All-point interpolated AP of the normalised precision: [T, K].

    Args:
        hits: the true positives that count; default all.
        rank: [M] 0-based places of those in their classes; default those in the whole list.
        num_truth: [K], what recall is a share of; N stays that of the ranking.
    """
    hits = ranking.hits if hits is None else hits
    rank = ranking.rank()[hits.position] if rank is None else rank
    num_truth = ranking.num_truth if num_truth is None else num_truth
    precision, cell = _normalised(ranking, hits, rank, num_truth)
    cells = ranking.tious * num_truth.size
    best = highest_from_here(precision, cell)
    area = np.bincount(cell, weights=best, minlength=cells).reshape(ranking.tious, -1)
    table: Floats = area / np.maximum(num_truth, 1)
    return table


def _normalised(
    ranking: Ranking, hits: Hits, rank: Integers, num_truth: Integers
) -> tuple[Floats, Integers]:
    """Normalised precision at each true positive, and its cell threshold * K + class: [M]."""
    label = ranking.label[hits.position]
    cell = hits.tiou * num_truth.size + label
    number = nth_of_cell(cell)
    weight = number / num_truth[label] * ranking.mean_truth  # R * N
    return weight / (weight + (rank + 1 - number)), cell


def nth_of_cell(cell: Integers) -> Integers:
    """1-based number of each element inside its cell; cells are rising: [M]."""
    starts = np.flatnonzero(np.r_[True, cell[1:] != cell[:-1]]) if cell.size else cell
    lengths = np.diff(np.r_[starts, cell.size])
    return np.arange(1, cell.size + 1) - np.repeat(starts, lengths)


def highest_from_here(values: Floats, cell: Integers) -> Floats:
    """The largest value from each element to the end of its cell; cells are rising: [M].

    It runs on the ranks of the values, so that one accumulation serves all cells exactly.
    """
    if not values.size:
        return values
    order = np.argsort(values, kind="stable")
    rank = np.empty(values.size, dtype=np.int64)
    rank[order] = np.arange(values.size)
    key = (cell[-1] - cell) * values.size + rank  # a later cell never exceeds an earlier one
    highest = np.maximum.accumulate(key[::-1])[::-1] % values.size
    return values[order[highest]]
