"""Annotations and detections: what happens when in which video, in seconds.

Reads and writes the ActivityNet-style JSON that every data set of the field is distributed in.
A file with defects is never half read: all defects are collected with their JSON path and raised
together (`strict`), or reported beside what is sound. Oddities that published files are known for
(segments outside the video, exact duplicates) are warnings: reported, and the segment is kept.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tadpipe.config import write_atomically
from tadpipe.errors import AnnotationError, Defect
from tadpipe.json_text import (
    JsonReader,
    child,
    collector_paused,
    finite,
    kind,
    read_json,
    repeated_keys,
    shown,
)

logger = logging.getLogger(__name__)

# A segment may end this much behind the stated duration: times are published with one decimal and
# durations differ by a frame or two between containers.
BEYOND_DURATION_SEC = 0.1


class Action(NamedTuple):
    """A ground-truth segment with its label."""

    start_sec: float
    end_sec: float
    label: str


class Detection(NamedTuple):
    """A found segment with label and score."""

    start_sec: float
    end_sec: float
    label: str
    score: float


@dataclass(frozen=True)
class Video:
    """One annotated video; `name` has no file suffix and is never used as a path."""

    name: str
    subset: str
    duration_sec: float | None = None
    fps: float | None = None
    actions: tuple[Action, ...] = ()


@dataclass(frozen=True)
class Annotations:
    """The videos of one annotation file and its labels in training order."""

    videos: Mapping[str, Video]
    labels: tuple[str, ...]
    source: str = ""
    defects: tuple[Defect, ...] = field(default=())  # warnings; with strict=False errors too
    label_ids: Mapping[str, int] = field(default_factory=dict)  # the file's label_id, if any

    def subset_names(self) -> list[str]:
        """The names that occur, in order of first appearance."""
        return list(dict.fromkeys(video.subset for video in self.videos.values()))

    def subset(self, name: str) -> dict[str, Video]:
        """The videos of one subset; names are compared without case.

        Raises:
            AnnotationError: no video has that subset; the message lists those that exist.
        """
        chosen = {n: v for n, v in self.videos.items() if v.subset.lower() == name.lower()}
        if not chosen:
            raise AnnotationError(
                f"No video is in subset '{name}'.",
                [Defect(self.source, "$.database", f"subsets: {', '.join(self.subset_names())}")],
                "Name one of these subsets.",
            )
        return chosen


# Video name -> detections, best first as we write them. The order of videos and rows decides
# between equal scores, so a file is read in its own order.
Detections = dict[str, list[Detection]]


def load_annotations(
    path: str | Path,
    *,
    strict: bool = True,
    labels: Sequence[str] | None = None,
    drop_labels: Collection[str] = (),
    label_key: str = "label",
    for_evaluation: bool = False,
) -> Annotations:
    """Read an ActivityNet-style annotation file.

    Args:
        strict: raise when there is any error; otherwise leave out what is wrong, keep the sound
            rest and hand the defects over in `Annotations.defects`.
        labels: the class list to train with, in its order; another label in the file is an error.
            Without it the order is that of `label_id`, else sorted by name.
        drop_labels: labels to leave out, such as "Ambiguous" of THUMOS14.
        label_key: where an entry has several labels, such as verb and noun; else "label".
        for_evaluation: keep segments that are empty, inverted or start before 0, as warnings:
            each evaluation protocol has its own rule for them.
    Raises:
        AnnotationError: the file cannot be read, or it has errors and `strict` is set. It lists
            every error and every warning.
    """
    path = Path(path)
    document = read_json(path)
    reader = _AnnotationReader(str(path), labels, frozenset(drop_labels), label_key, for_evaluation)
    videos = reader.read(document)
    names, ids = reader.label_order()
    return settle(Annotations(videos, names, str(path), tuple(reader.json.defects), ids), strict)


def settle(found: Annotations, strict: bool) -> Annotations:
    """What was read, once its defects are told.

    Raises:
        AnnotationError: there are errors and `strict` is set; lists errors and warnings.
    """
    errors = sum(not defect.is_warning for defect in found.defects)
    if errors and strict:
        raise AnnotationError(
            f"The annotations have {errors} error{'s'[: errors != 1]}.",
            found.defects,
            "Mend the file; evaluate --skip-defects (strict=False) leaves these entries out.",
        )
    if found.defects:
        logger.log(
            logging.WARNING if errors else logging.INFO,
            "%s: %d errors left out, %d oddities kept; first: %s",
            found.source,
            errors,
            len(found.defects) - errors,
            found.defects[0],
        )
    return found


def segment_faults(
    start_sec: float, end_sec: float, duration_sec: float | None, *, for_evaluation: bool
) -> Iterator[tuple[str, bool]]:
    """What is wrong with a segment, and whether it is kept all the same."""
    if start_sec >= end_sec:
        message = f"start {start_sec:g} is not before end {end_sec:g}; swap or remove them"
        yield message, for_evaluation
    if start_sec < 0:
        yield f"start {start_sec:g} lies before the video; times count from 0", for_evaluation
    if duration_sec is not None and max(start_sec, end_sec) > duration_sec + BEYOND_DURATION_SEC:
        yield (
            f"[{start_sec:g}, {end_sec:g}] reaches beyond the duration of {duration_sec:g} s by "
            f"more than {BEYOND_DURATION_SEC:g} s; correct the segment or the duration",
            True,
        )


class _AnnotationReader:
    """Takes an annotation document apart."""

    def __init__(
        self,
        source: str,
        labels: Sequence[str] | None,
        dropped: frozenset[str],
        label_key: str,
        for_evaluation: bool,
    ) -> None:
        self.json = JsonReader(source)
        self.labels = None if labels is None else tuple(dict.fromkeys(labels))
        self.known = frozenset(labels or ())
        self.dropped = dropped
        self.label_key = label_key
        self.for_evaluation = for_evaluation
        self.found_labels: dict[str, None] = {}
        self.ids: dict[str, int] = {}  # label -> the first label_id it came with
        self.owners: dict[int, str] = {}  # label_id -> the first label it came with

    def read(self, document: Any) -> dict[str, Video]:
        database = self.json.table(document, "database", '{"database": {"video": {...}}}')
        videos = {}
        for name, node in database.items():
            video = self.video(name, node)
            if video is not None:
                videos[name] = video
        return videos

    def video(self, name: str, node: Any) -> Video | None:
        place = child("$.database", name)
        if not isinstance(node, dict):
            self.json.error(
                place, f"{kind(node)}, not an object; write subset, duration, annotations"
            )
            return None
        for key in repeated_keys(node):
            self.json.error(place, f"the key {shown(key)} occurs twice; the last one counts")
        subset = node.get("subset")
        if not isinstance(subset, str) or not subset.strip():
            was = "no subset" if "subset" not in node else f"subset {shown(subset)} is not a name"
            self.json.error(place, f'{was}; write "subset": "training" or the like')
        duration_sec = self.json.number(node, "duration", place)
        fps = self.json.number(node, "fps", place)
        frames = self.json.number(node, "frame", place)
        if fps is None and frames is not None and duration_sec is not None:
            fps = frames / duration_sec
        actions = self.actions(node, place, duration_sec)
        if not isinstance(subset, str) or not subset.strip():
            return None
        return Video(name, subset, duration_sec, fps, actions)

    def actions(
        self, node: Mapping[str, Any], place: str, duration_sec: float | None
    ) -> tuple[Action, ...]:
        entries = node.get("annotations", [])
        if not isinstance(entries, list):
            self.json.error(
                f"{place}.annotations", f"{kind(entries)}, not a list; write [] for none"
            )
            return ()
        kept: dict[Action, int] = {}
        actions = []
        for i, entry in enumerate(entries):
            spot = f"{place}.annotations[{i}]"
            action = self.action(entry, spot, duration_sec)
            if action is None:
                continue
            if action in kept:
                self.json.warn(
                    spot, f"the same segment and label as annotations[{kept[action]}]; remove one"
                )
            kept.setdefault(action, i)
            actions.append(action)
        return tuple(actions)

    def action(self, entry: Any, place: str, duration_sec: float | None) -> Action | None:
        if not isinstance(entry, dict):
            self.json.error(place, f'{kind(entry)}, not an object; write {{"segment", "label"}}')
            return None
        for key in repeated_keys(entry):
            self.json.error(place, f"the key {shown(key)} occurs twice; the last one counts")
        key = self.label_key if self.label_key in entry else "label"
        label = self.json.label(entry, place, key)
        if label in self.dropped:
            return None
        sound = label is not None and self.check_label(label, entry, place)
        segment = self.json.segment(entry, place)
        if segment is None or not self.check_segment(segment, f"{place}.segment", duration_sec):
            return None
        return Action(*segment, label) if sound and label is not None else None

    def check_label(self, label: str, entry: Mapping[str, Any], place: str) -> bool:
        if self.labels is not None and label not in self.known:
            self.json.error(
                f"{place}.label", f"{shown(label)} is not in the class list; add or rename it"
            )
            return False
        self.found_labels.setdefault(label)
        number = entry.get("label_id")
        if number is None:
            return True
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            self.json.error(f"{place}.label_id", f"{shown(number)} is not a whole number from 0")
        elif self.ids.setdefault(label, number) != number:
            self.json.error(
                f"{place}.label_id",
                f"{number} for {shown(label)}, which had {self.ids[label]} before; use one id",
            )
        elif self.owners.setdefault(number, label) != label:
            self.json.error(
                f"{place}.label_id",
                f"{number} for {shown(label)}, but it is the id of "
                f"{shown(self.owners[number])}; use one id per label",
            )
        return True

    def check_segment(
        self, segment: tuple[float, float], place: str, duration_sec: float | None
    ) -> bool:
        faults = segment_faults(*segment, duration_sec, for_evaluation=self.for_evaluation)
        return self.json.report(place, faults)

    def label_order(self) -> tuple[tuple[str, ...], dict[str, int]]:
        """Labels in training order and their ids; a label without id comes last, by name."""
        if self.labels is not None:
            return self.labels, self.ids
        missing = [label for label in self.found_labels if label not in self.ids]
        if missing and self.ids:
            some = ", ".join(sorted(missing)[:5])
            self.json.error(
                "$.database", f"no label_id for {some}, but for others; give all or none"
            )
        last = len(self.owners) and max(self.owners) + 1
        order = sorted(self.found_labels, key=lambda label: (self.ids.get(label, last), label))
        return tuple(order), self.ids


def load_detections(path: str | Path) -> Detections:
    """Read detections in the results JSON of ActivityNet; the key `results` is enough.

    Segments may be inverted or lie outside the video: the protocols score them as they are.

    Raises:
        AnnotationError: not such a file; lists every defect.
    """
    path = Path(path)
    reader = JsonReader(str(path))
    results = reader.table(read_json(path), "results", '{"results": {"video": [...]}}')
    detections: Detections = {}
    with collector_paused():
        for name, entries in results.items():
            place = child("$.results", name)
            if not isinstance(entries, list):
                reader.error(place, f"{kind(entries)}, not a list; write [] for none")
                continue
            rows = [_detection(reader, entry, place, i) for i, entry in enumerate(entries)]
            detections[name] = [row for row in rows if row is not None]
    if reader.defects:
        count = len(reader.defects)
        raise AnnotationError(
            f"The detections have {count} error{'s'[: count != 1]}.",
            reader.defects,
            "Mend the file or write it again.",
        )
    return detections


def _detection(reader: JsonReader, entry: Any, place: str, index: int) -> Detection | None:
    if type(entry) is dict:  # the usual case first and fast: a file may hold a million entries
        segment, label, score = entry.get("segment"), entry.get("label"), entry.get("score")
        if type(segment) is list and len(segment) == 2 and type(score) is float:
            start, end = segment
            floats = type(start) is float and type(end) is float
            named = type(label) is str and label.strip()
            if floats and named and math.isfinite(start + end + score):
                return Detection(start, end, str(label), score)
    spot = f"{place}[{index}]"
    if not isinstance(entry, dict):
        reader.error(spot, f'{kind(entry)}, not an object; write {{"segment", "label", "score"}}')
        return None
    ends, name = reader.segment(entry, spot), reader.label(entry, spot)
    value = finite(entry.get("score"))
    if value is None:
        was = shown(entry["score"]) if "score" in entry else "no score"
        reader.error(spot, f"{was}; every detection needs a score, a finite number")
    if ends is None or name is None or value is None:
        return None
    return Detection(*ends, name, value)


def save_detections(path: str | Path, detections: Detections) -> None:
    """Write detections as ActivityNet results JSON: all of it or nothing, in full precision.

    Raises:
        AnnotationError: a time or score is not finite.
    """
    bad = Counter(
        name
        for name, rows in detections.items()
        for row in rows
        if not math.isfinite(row.start_sec + row.end_sec + row.score)
    )
    if bad:
        raise AnnotationError(
            "Detections with times or scores that are not finite cannot be written.",
            [Defect(str(path), child("$.results", name), f"{n} rows") for name, n in bad.items()],
            "The model has diverged or its input is damaged.",
        )
    results = {
        name: [
            {
                "segment": [float(row.start_sec), float(row.end_sec)],
                "label": row.label,
                "score": float(row.score),
            }
            for row in rows
        ]
        for name, rows in detections.items()
    }
    document = {
        "version": "VERSION 1.3",
        "results": results,
        "external_data": {"used": False, "details": ""},
    }
    write_atomically(Path(path), json.dumps(document, allow_nan=False))
