"""Non-maximum suppression, its soft form, and segment voting, on the feature grid.

Shapes: N candidates, M kept, R remaining. Everything is float32 on the CPU in numpy: thresholds
meet overlaps that are exactly equal to them, so the precision is part of the definition.
Sources: Soft-NMS (Bodla et al., ICCV 2017); voting as in ActionFormer (Zhang et al., ECCV 2022).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from tadpipe.detectors.protocol import GridDetections
from tadpipe.errors import ConfigError

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]
Columns = tuple[NDArray[Any], ...]

LENGTH_EPS = np.float32(1e-6)  # added to every length before an overlap is taken
VOTE_BLOCK = 1 << 20  # overlaps held at once while voting


@dataclass(frozen=True)
class NmsConfig:
    """Which of several overlapping detections are kept."""

    method: Literal["soft", "hard", "none"] = "soft"  # "none" passes all through, in their order
    sigma: float = 0.5  # soft: scores fall by exp(-tiou^2 / sigma)
    iou_threshold: float = 0.1  # hard: tIoU from which a lower score is suppressed
    min_score: float = 0.001  # detections that score lower are dropped
    max_segments: int = 200  # most detections kept of one video
    multiclass: bool = True  # classes compete only within themselves; else all together, with votes
    vote_threshold: float = 0.75  # tIoU from which a candidate votes on a kept segment; 0 = no vote
    vote_weight: Literal["score*tiou", "score"] = "score*tiou"  # what a vote counts
    drop_last: bool = False  # soft: the last remaining candidate of a group is dropped, as in BMN

    def __post_init__(self) -> None:
        if self.sigma <= 0:
            raise ConfigError("sigma must be positive.", f"sigma = {self.sigma}")
        if self.max_segments < 1:
            raise ConfigError(
                "At least one segment must be kept.", f"max_segments = {self.max_segments}"
            )
        for name in ("iou_threshold", "vote_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError("A tIoU lies in [0, 1].", f"{name} = {getattr(self, name)}")


class Kept(NamedTuple):
    """What one run of NMS kept, best first."""

    rows: Indices  # [M] rows of the candidates
    scores: Floats  # [M] scores after decay


def batched_nms(dets: GridDetections, config: NmsConfig) -> GridDetections:
    """Suppress the candidates of one sequence, best kept first.

    Args:
        dets: N candidates in any order, on any device.
    Returns:
        At most `max_segments` detections on the CPU by falling score; with method "none" the
        candidates as they came.
    """
    if config.method == "none" or len(dets.scores) == 0:
        return GridDetections(*(value.detach().cpu() for value in dets))
    segments = dets.segments.detach().cpu().numpy().astype(np.float32)
    scores = dets.scores.detach().cpu().numpy().astype(np.float32)
    labels = dets.labels.detach().cpu().numpy()
    groups = labels if config.multiclass else np.zeros_like(labels)
    if config.method == "soft":
        kept = soft_nms(
            segments,
            scores,
            groups,
            sigma=config.sigma,
            min_score=config.min_score,
            max_kept=config.max_segments,
            drop_last=config.drop_last,
        )
    else:
        kept = hard_nms(
            segments,
            scores,
            groups,
            iou_threshold=config.iou_threshold,
            min_score=config.min_score,
            max_kept=config.max_segments,
        )
    chosen = segments[kept.rows]
    if not config.multiclass and config.vote_threshold > 0:
        chosen = vote(
            chosen,
            segments,
            scores,
            threshold=config.vote_threshold,
            weight=config.vote_weight,
        )
    return GridDetections(
        torch.from_numpy(chosen),
        torch.from_numpy(kept.scores),
        torch.from_numpy(labels[kept.rows]),
    )


def soft_nms(
    segments: Floats,
    scores: Floats,
    groups: Indices | None = None,
    *,
    decay: Literal["gaussian", "linear", "step"] = "gaussian",
    sigma: float = 0.5,
    iou_threshold: float = 0.0,
    min_score: float = 0.001,
    max_kept: int | None = None,
    drop_last: bool = False,
) -> Kept:
    """Pick the best candidate again and again, lowering the scores of those it overlaps.

    Each group runs by itself. Picks of a group never rise in score, so the groups are interleaved
    by their best remaining score and the run stops after `max_kept` picks in all: the same as
    running each group to its end, joining, sorting and cutting.

    Args:
        segments: [N, 2]; scores: [N]; groups: [N] class of each candidate, None = one group.
        decay: factor on an overlapping score: "gaussian" exp(-tiou^2 / sigma); from
            `iou_threshold` on, "linear" 1 - tiou, "step" 0.
        min_score: scores that fall below are dropped; a group's first pick is not tested.
        drop_last: the last remaining candidate of each group is not picked.
    """
    pools = _pools(segments, scores, groups, drop_last)
    most = len(scores) if max_kept is None else max_kept
    best = np.array([pool.best() for pool in pools], np.float32)
    index: list[int] = []
    picked: list[np.float32] = []
    while len(index) < most and len(pools):
        which = int(best.argmax())
        if best[which] == -np.inf:
            break
        pool = pools[which]
        row, score, overlaps = pool.pick()
        index.append(row)
        picked.append(score)
        if decay == "gaussian":
            factors = np.exp(-(overlaps * overlaps) / np.float32(sigma))
        else:
            factors = np.ones_like(overlaps)
            hit = overlaps >= np.float32(iou_threshold)
            factors[hit] = 1 - overlaps[hit] if decay == "linear" else 0
        pool.decay(factors, np.float32(min_score))
        best[which] = pool.best()
    return Kept(np.array(index, np.int64), np.array(picked, np.float32))


class _Pool:
    """The remaining candidates of one group, in the order that decides exact ties.

    The order is that of an array changed in place: a pick swaps with the front, and a dropped slot
    is refilled from the end.
    """

    def __init__(self, rows: Indices, segments: Floats, scores: Floats, drop_last: bool) -> None:
        self.rows = rows  # [R] rows of the candidates, here and below
        self.starts = segments[:, 0].copy()
        self.ends = segments[:, 1].copy()
        self.lengths = self.ends - self.starts + LENGTH_EPS
        self.scores = scores.copy()
        self.columns: Columns = (self.rows, self.starts, self.ends, self.lengths, self.scores)
        self.least = 1 if drop_last and len(rows) > 1 else 0
        self.top = 0

    def best(self) -> np.float32:
        """The highest remaining score, -inf when nothing may be picked any more."""
        if len(self.scores) <= self.least:
            return np.float32(-np.inf)
        self.top = int(self.scores.argmax())
        return np.float32(self.scores[self.top])

    def pick(self) -> tuple[int, np.float32, Floats]:
        """Take out the best one: its row, its score, and the tIoU [R] of the rest with it."""
        top = self.top
        row, start, end, length, score = (column[top] for column in self.columns)
        for column in self.columns:
            column[top] = column[0]
        self._set(tuple(column[1:] for column in self.columns))
        shared = np.minimum(self.ends, end)
        shared -= np.maximum(self.starts, start)
        np.maximum(shared, 0, out=shared)
        shared /= (length + self.lengths) - shared
        return int(row), score, shared

    def decay(self, factors: Floats, min_score: np.float32) -> None:
        """Multiply the scores and drop those that fall below `min_score`."""
        np.multiply(self.scores, factors, out=self.scores)
        alive = self.scores >= min_score
        count = int(np.count_nonzero(alive))
        if count == len(alive):
            return
        # Dropped slots among the first `count`, left to right, receive the survivors behind them,
        # from the right end leftwards.
        holes = np.flatnonzero(~alive[:count])
        movers = count + np.flatnonzero(alive[count:])[::-1]
        for column in self.columns:
            column[holes] = column[movers]
        self._set(tuple(column[:count] for column in self.columns))

    def _set(self, columns: Columns) -> None:
        self.columns = columns
        self.rows, self.starts, self.ends, self.lengths, self.scores = columns


def hard_nms(
    segments: Floats,
    scores: Floats,
    groups: Indices | None = None,
    *,
    iou_threshold: float,
    min_score: float | None = None,
    max_kept: int | None = None,
) -> Kept:
    """Keep the best candidate and drop those of its group that overlap it, again and again.

    Args:
        segments: [N, 2]; scores: [N]; groups: [N] class of each candidate, None = one group.
        iou_threshold: tIoU from which a candidate is suppressed, inclusive.
        min_score: scores up to this are dropped first.
    """
    groups = np.zeros(len(scores), np.int64) if groups is None else groups
    order = np.lexsort((groups, -scores))
    if min_score is not None:
        order = order[scores[order] > np.float32(min_score)]
    most = len(scores) if max_kept is None else max_kept
    lengths = segments[:, 1] - segments[:, 0] + LENGTH_EPS
    index: list[int] = []
    while len(order) and len(index) < most:
        row, order = order[0], order[1:]
        index.append(int(row))
        shared = np.minimum(segments[order, 1], segments[row, 1]) - np.maximum(
            segments[order, 0], segments[row, 0]
        )
        np.maximum(shared, 0, out=shared)
        overlaps = shared / (lengths[row] + lengths[order] - shared)
        same = groups[order] == groups[row]
        order = order[~(same & (overlaps >= np.float32(iou_threshold)))]
    kept = np.array(index, np.int64)
    return Kept(kept, scores[kept].astype(np.float32))


def vote(
    kept: Floats,
    segments: Floats,
    scores: Floats,
    *,
    threshold: float,
    weight: Literal["score*tiou", "score"],
) -> Floats:
    """Replace each kept segment by the weighted mean of the candidates that overlap it.

    Args:
        kept: [M, 2]; segments: [N, 2] all candidates; scores: [N] before any decay.
        threshold: tIoU from which a candidate counts.
        weight: "score*tiou" in ActionFormer, "score" in TriDet and its descendants.
    Returns:
        [M, 2]; a segment no candidate overlaps (one without length) stays as it is.
    """
    voted = kept.copy()
    rows = max(1, VOTE_BLOCK // max(len(segments), 1))
    for first in range(0, len(kept), rows):
        block = slice(first, first + rows)
        overlaps = pairwise_tiou(kept[block], segments)  # [m, N]
        weights = (overlaps >= np.float32(threshold)) * scores
        if weight == "score*tiou":
            weights = weights * overlaps
        total = weights.sum(axis=1, keepdims=True)  # [m, 1]
        some = total[:, 0] > 0
        voted[block][some] = (weights[some] / total[some]) @ segments
    return voted


def pairwise_tiou(first: Floats, second: Floats) -> Floats:
    """Temporal intersection over union of all pairs, [M, 2] and [N, 2] -> [M, N], 0 for 0 / 0."""
    shared = np.minimum(first[:, None, 1], second[None, :, 1]) - np.maximum(
        first[:, None, 0], second[None, :, 0]
    )
    np.maximum(shared, 0, out=shared)
    lengths = (first[:, 1] - first[:, 0])[:, None] + (second[:, 1] - second[:, 0])[None]
    united = lengths - shared
    return np.divide(shared, united, out=np.zeros_like(shared), where=united > 0)


def _pools(
    segments: Floats, scores: Floats, groups: Indices | None, drop_last: bool
) -> list[_Pool]:
    """One pool per group, by rising group number; candidates keep their order."""
    if groups is None:
        return [_Pool(np.arange(len(scores)), segments, scores, drop_last)]
    order = np.argsort(groups, kind="stable")
    cuts = np.flatnonzero(np.diff(groups[order])) + 1
    return [
        _Pool(rows.copy(), segments[rows], scores[rows], drop_last)
        for rows in np.split(order, cuts)
    ]
