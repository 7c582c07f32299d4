"""Which actions are found and which are missed, by what they are like.

DETAD's sensitivity and false-negative analyses. T thresholds, K classes, G ground-truth actions,
b occupied bins of a characteristic.
Source: DETAD (Alwassel et al., ECCV 2018, Sec. 5 and 6).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tadpipe.evaluation.characteristics import Characteristic, occupied
from tadpipe.evaluation.normalised_precision import (
    Hits,
    Ranking,
    average_precision_n,
    confident_hits,
)
from tadpipe.evaluation.tables import Floats, Integers, Problem


class Sensitivity(NamedTuple):
    """Average mAP_N on the actions of one bin at a time."""

    characteristic: str
    bins: tuple[str, ...]  # b
    num_truth: Integers  # [b]
    average_map_n: Floats  # [b]


class Missed(NamedTuple):
    """Share of the actions of a bin that no detection matches, mean over the thresholds."""

    characteristics: tuple[str, ...]  # one, or a pair
    bins: tuple[tuple[str, ...], ...]  # b, one name per characteristic
    num_truth: Integers  # [b]
    unmatched_rate: Floats  # [b]
    share: Floats  # [b], of all actions


class FalseNegatives(NamedTuple):
    """Actions without a match, where matches of low normalised precision do not count."""

    unmatched: NDArray[np.bool_]  # [T, G]
    ap: Floats  # [T, K], of normalised precision
    by_bin: tuple[Missed, ...]


def find_false_negatives(
    ranking: Ranking,
    characteristics: Sequence[Characteristic],
    *,
    pairs: Sequence[tuple[str, str]],
    min_precision: float,
) -> FalseNegatives:
    """The actions that stay unmatched, by characteristic and by pair of characteristics.

    Args:
        ranking: all detections.
        pairs: names of characteristics; a pair with an unknown one is left out.
        min_precision: a match at this normalised precision or less finds nothing.
    """
    hits = confident_hits(ranking, min_precision)
    unmatched = np.ones((ranking.tious, int(ranking.num_truth.sum())), dtype=bool)
    unmatched[hits.tiou, hits.truth] = False
    by_name = {item.name: item for item in characteristics}
    groups = [(item,) for item in characteristics] + [
        (by_name[a], by_name[b]) for a, b in pairs if a in by_name and b in by_name
    ]
    return FalseNegatives(
        unmatched,
        average_precision_n(ranking, hits),
        tuple(_missed(unmatched, group) for group in groups),
    )


def _missed(unmatched: NDArray[np.bool_], group: Sequence[Characteristic]) -> Missed:
    shape = tuple(len(item.bins.names) for item in group)
    inside = np.all([item.bin_of >= 0 for item in group], axis=0)
    columns = tuple(np.where(inside, item.bin_of, 0) for item in group)
    cell = np.where(inside, np.ravel_multi_index(columns, shape), -1)
    cells = np.unique(cell[inside])
    size = int(np.prod(shape))
    num_truth = np.bincount(cell[inside], minlength=size)[cells]
    open_rows = [np.bincount(cell[inside & row], minlength=size)[cells] for row in unmatched]
    rate = np.stack(open_rows) / num_truth
    where = zip(*(column.tolist() for column in np.unravel_index(cells, shape)), strict=True)
    return Missed(
        tuple(item.name for item in group),
        tuple(
            tuple(item.bins.names[i] for item, i in zip(group, place, strict=True))
            for place in where
        ),
        num_truth,
        rate.mean(axis=0),
        num_truth / unmatched.shape[1],
    )


def measure_sensitivity(
    problem: Problem, ranking: Ranking, characteristic: Characteristic
) -> Sensitivity:
    """Average mAP_N as if only the actions of one bin were asked for, bin by bin.

    A detection that at any threshold matches an action outside the bin is taken out; the mean is
    over the classes that have an action in the bin.
    """
    bins = occupied(characteristic.bin_of, characteristic.bins)
    classes = ranking.num_truth.size
    values, sizes = [], []
    for number in bins.tolist():
        inside = characteristic.bin_of == number
        num_truth = np.bincount(problem.truth.label[inside], minlength=classes)
        ap = _inside_only(ranking, inside, num_truth)
        values.append(float(ap[:, num_truth > 0].mean()))
        sizes.append(int(num_truth.sum()))
    return Sensitivity(
        characteristic.name,
        tuple(characteristic.bins.names[i] for i in bins.tolist()),
        np.array(sizes, dtype=np.int64),
        np.array(values),
    )


def _inside_only(ranking: Ranking, inside: NDArray[np.bool_], num_truth: Integers) -> Floats:
    gone = np.zeros(ranking.rows.size, dtype=bool)
    gone[ranking.hits.position[~inside[ranking.hits.truth]]] = True
    hits: Hits = ranking.hits.take(~gone[ranking.hits.position])
    rank = ranking.rank_without(gone)[hits.position]
    return average_precision_n(ranking, hits, rank, num_truth)
