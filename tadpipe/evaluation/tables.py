"""Ground truth and detections as columns, and the problem that a protocol makes of them.

G ground-truth actions, N detections, V videos, K classes. Rows keep the order of their file, which
decides between equal scores and equal tIoU.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tadpipe.annotations import Detections, Video
from tadpipe.errors import AnnotationError, ConfigError, Defect
from tadpipe.evaluation.protocols import Protocol

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class TruthTable:
    """Ground-truth actions; `video` and `label` index `videos` and `labels`."""

    videos: tuple[str, ...]  # every video of the subset, also those without actions
    labels: tuple[str, ...]
    video: Integers  # [G]
    label: Integers  # [G]
    start_sec: Floats  # [G]
    end_sec: Floats  # [G]
    label_ids: Mapping[str, int] = field(default_factory=dict)  # also of labels not in `labels`

    def __post_init__(self) -> None:
        _check_columns(self, self.start_sec, self.end_sec)

    @classmethod
    def from_videos(
        cls, videos: Mapping[str, Video], label_ids: Mapping[str, int] | None = None
    ) -> TruthTable:
        """The actions of these videos, in their order."""
        counts = [len(video.actions) for video in videos.values()]
        rows = list(chain.from_iterable(video.actions for video in videos.values()))
        labels, label = coded([row.label for row in rows])
        return cls(
            tuple(videos),
            labels,
            np.repeat(np.arange(len(videos)), counts),
            label,
            np.array([row.start_sec for row in rows], dtype=np.float64),
            np.array([row.end_sec for row in rows], dtype=np.float64),
            dict(label_ids or {}),
        )

    def take(self, rows: NDArray[Any]) -> TruthTable:
        """Some of the rows."""
        return replace(
            self,
            video=self.video[rows],
            label=self.label[rows],
            start_sec=self.start_sec[rows],
            end_sec=self.end_sec[rows],
        )


@dataclass(frozen=True)
class DetectionTable:
    """Detections; `video` and `label` index `videos` and `labels`."""

    videos: tuple[str, ...]
    labels: tuple[str, ...]
    video: Integers  # [N]
    label: Integers  # [N]
    start_sec: Floats  # [N]
    end_sec: Floats  # [N]
    score: Floats  # [N]

    def __post_init__(self) -> None:
        _check_columns(self, self.start_sec, self.end_sec, self.score)

    @classmethod
    def from_detections(cls, detections: Detections) -> DetectionTable:
        """All detections, in their order."""
        counts = [len(found) for found in detections.values()]
        rows = list(chain.from_iterable(detections.values()))
        labels, label = coded([row.label for row in rows])
        return cls(
            tuple(detections),
            labels,
            np.repeat(np.arange(len(detections)), counts),
            label,
            np.array([row.start_sec for row in rows], dtype=np.float64),
            np.array([row.end_sec for row in rows], dtype=np.float64),
            np.array([row.score for row in rows], dtype=np.float64),
        )

    def take(self, rows: NDArray[Any]) -> DetectionTable:
        """Some of the rows."""
        return replace(
            self,
            video=self.video[rows],
            label=self.label[rows],
            start_sec=self.start_sec[rows],
            end_sec=self.end_sec[rows],
            score=self.score[rows],
        )


@dataclass(frozen=True)
class Problem:
    """What is scored: cleaned ground truth and the detections of its classes.

    Both tables index the same videos and classes; a detection's video is -1 when it is not one of
    them, which makes the detection a false positive.
    """

    truth: TruthTable  # labels are the K classes, in the protocol's order
    found: DetectionTable
    missing: tuple[str, ...]  # videos with actions but without any detection
    blocked: tuple[str, ...]  # videos left out on both sides
    foreign: tuple[str, ...]  # videos with detections that are not in the subset
    unknown_labels: Mapping[str, int]  # predicted label that is no class -> its detections


def prepare(
    truth: TruthTable,
    found: DetectionTable,
    protocol: Protocol,
    blocked: Collection[str] = (),
) -> Problem:
    """Apply a protocol's cleaning and label rules.

    Args:
        blocked: videos to leave out on both sides.
    Raises:
        AnnotationError: no ground truth is left, or a label is unknown and the protocol forbids it.
    """
    kept, left_out = _without(truth, frozenset(blocked))
    found = found.take(~np.isin(found.video, _codes(found.videos, blocked)))
    missing = _missing(kept, found)
    kept = clean(kept, protocol)
    if not kept.video.size:
        raise AnnotationError(
            "There is no ground truth to score against.",
            [Defect("", "", f"{len(kept.videos)} videos, {len(left_out)} blocked, 0 actions")],
            "Check the subset, the block list and the dropped labels.",
        )
    kept, classes = _class_order(kept, protocol)
    label = _class_of_label(found.labels, kept, protocol)  # [labels of the file] -> class or -1
    counts = np.bincount(found.label, minlength=len(found.labels))
    known = set(classes)
    unknown = {
        name: int(counts[i])
        for i, name in enumerate(found.labels)
        if name not in known and counts[i]
    }
    if unknown and protocol.unknown_label == "error":
        listed = [Defect("", "", f"{name}: {count} detections") for name, count in unknown.items()]
        raise AnnotationError(
            f"Detections have labels that the ground truth does not have ({protocol.name}).",
            listed,
            "Use the protocol opentad, which leaves such detections out and counts them.",
        )
    found = found.take(label[found.label] >= 0) if found.labels else found
    position = {name: i for i, name in enumerate(kept.videos)}
    video = np.array([position.get(name, -1) for name in found.videos], dtype=np.int64)
    with_rows = set(np.unique(found.video).tolist())
    return Problem(
        truth=kept,
        found=replace(
            found,
            videos=kept.videos,
            labels=kept.labels,
            video=video[found.video] if found.videos else found.video,
            label=label[found.label] if found.labels else found.label,
        ),
        missing=missing,
        blocked=left_out,
        foreign=tuple(
            name for i, name in enumerate(found.videos) if name not in position and i in with_rows
        ),
        unknown_labels=unknown,
    )


def clean(truth: TruthTable, protocol: Protocol) -> TruthTable:
    """Drop the ground truths that the protocol does not count."""
    if protocol.min_gt_length is not None:
        length = truth.end_sec - truth.start_sec
        truth = truth.take((length > 0) & (length >= protocol.min_gt_length))
    if protocol.dedup_gt is not None:
        truth = truth.take(_first_of_duplicates(truth, protocol.dedup_gt))
    return truth


def _first_of_duplicates(truth: TruthTable, tolerance_sec: float) -> NDArray[np.bool_]:
    """Mask [G] of the rows that no earlier kept row of the same video and label equals."""
    keep = np.ones(truth.video.size, dtype=bool)
    key = truth.video * (len(truth.labels) + 1) + truth.label
    order = np.lexsort((truth.start_sec, key))
    near = (np.diff(key[order]) == 0) & (np.diff(truth.start_sec[order]) <= tolerance_sec)
    # Two rows within the tolerance have neighbours in start order that are, too.
    for suspect in np.unique(key[order][1:][near]):
        rows = np.flatnonzero(key == suspect)
        for n, row in enumerate(rows):
            before = rows[:n][keep[rows[:n]]]
            same = (np.abs(truth.start_sec[before] - truth.start_sec[row]) <= tolerance_sec) & (
                np.abs(truth.end_sec[before] - truth.end_sec[row]) <= tolerance_sec
            )
            keep[row] = not same.any()
    return keep


def _without(truth: TruthTable, blocked: frozenset[str]) -> tuple[TruthTable, tuple[str, ...]]:
    """The table without these videos, and which of them it had."""
    left_out = tuple(name for name in truth.videos if name in blocked)
    if not left_out:
        return truth, ()
    names = [name for name in truth.videos if name not in blocked]
    position = {name: i for i, name in enumerate(names)}
    code = np.array([position.get(name, -1) for name in truth.videos], dtype=np.int64)
    kept = truth.take(code[truth.video] >= 0)
    return replace(kept, videos=tuple(names), video=code[kept.video]), left_out


def _missing(truth: TruthTable, found: DetectionTable) -> tuple[str, ...]:
    present = {found.videos[i] for i in np.unique(found.video).tolist()}
    return tuple(
        truth.videos[i] for i in np.unique(truth.video).tolist() if truth.videos[i] not in present
    )


def _class_order(truth: TruthTable, protocol: Protocol) -> tuple[TruthTable, tuple[str, ...]]:
    """Renumber the labels so that they are the classes 0..K-1 in the protocol's order."""
    codes, first = np.unique(truth.label, return_index=True)
    order = codes[np.argsort(first, kind="stable")].tolist()
    if protocol.class_order == "id":
        ids = truth.label_ids
        last = max(ids.values(), default=0) + 1
        order.sort(key=lambda code: (ids.get(truth.labels[code], last), truth.labels[code]))
    classes = tuple(truth.labels[code] for code in order)
    number = np.zeros(max(len(truth.labels), 1), dtype=np.int64)
    number[order] = np.arange(len(order))
    return replace(truth, labels=classes, label=number[truth.label]), classes


def _class_of_label(names: tuple[str, ...], truth: TruthTable, protocol: Protocol) -> Integers:
    """Class of each predicted label, -1 for none: int64 [labels]."""
    number = {name: i for i, name in enumerate(truth.labels)}
    classes = [number.get(name, -1) for name in names]
    if protocol.unknown_label == "collide":
        # ActionFormer's release renumbers the ids that are present; an absent id keeps its number
        # and is counted for the class that has this number now.
        for i, name in enumerate(names):
            old = truth.label_ids.get(name, -1)
            if classes[i] < 0 and old < len(truth.labels):
                classes[i] = old
    return np.array(classes, dtype=np.int64)


def _codes(names: tuple[str, ...], chosen: Collection[str]) -> Integers:
    chosen = frozenset(chosen)
    return np.array([i for i, name in enumerate(names) if name in chosen], dtype=np.int64)


def coded(names: Sequence[str]) -> tuple[tuple[str, ...], Integers]:
    """Distinct names in order of appearance, and which of them each row has."""
    position = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return tuple(position), np.array(list(map(position.__getitem__, names)), dtype=np.int64)


def _check_columns(table: TruthTable | DetectionTable, *columns: Floats) -> None:
    sizes = {column.shape for column in (table.video, table.label, *columns)}
    if len(sizes) != 1:
        raise ConfigError("The columns of a table must be equally long.", f"shapes {sizes}")
    if not all(np.isfinite(column).all() for column in columns):
        raise ConfigError("Times and scores must be finite numbers.", type(table).__name__)
