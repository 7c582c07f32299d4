"""Ego4D Moment Queries from the official moments_*.json: clips as items, times from their start.

Only labels marked `primary` count, those of all annotators together. Clips that are left without
a label are dropped unless their split is the unannotated one, and so are clips whose frame rate
cannot be right.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tadpipe.annotations import (
    BEYOND_DURATION_SEC,
    Action,
    Annotations,
    Video,
    segment_faults,
)
from tadpipe.datasets.spec import ClipRules
from tadpipe.json_text import JsonReader, finite, kind, read_json, shown

FILES = ("moments_train.json", "moments_val.json", "moments_test_unannotated.json")
PLAUSIBLE_FPS = (10.0, 100.0)


def is_ego4d(path: Path) -> bool:
    """Whether these are the official files: a folder with one of them, or JSON laid out so."""
    if path.is_dir():
        return any((path / name).is_file() for name in FILES)
    document = read_json(path)
    return isinstance(document, dict) and "videos" in document and "database" not in document


def load_ego4d(path: Path, rules: ClipRules, *, for_evaluation: bool) -> Annotations:
    """The clips of a folder or a file; labels sorted by name, blanks as underscores.

    Defects are handed over, not raised.

    Raises:
        AnnotationError: a file cannot be read.
    """
    files = [path]
    if path.is_dir():
        files = [path / name for name in FILES if (path / name).is_file()]
    clips: dict[str, Video] = {}
    defects = []
    for file in files:
        reader = _MomentsReader(str(file), rules, for_evaluation, clips)
        reader.read(read_json(file))
        defects += reader.json.defects
    labels = sorted({action.label for clip in clips.values() for action in clip.actions})
    return Annotations(clips, tuple(labels), str(path), tuple(defects))


class _MomentsReader:
    """Takes one moments file apart."""

    def __init__(
        self, source: str, rules: ClipRules, for_evaluation: bool, clips: dict[str, Video]
    ) -> None:
        self.json = JsonReader(source)
        self.rules = rules
        self.for_evaluation = for_evaluation
        self.clips = clips  # of all files

    def read(self, document: Any) -> None:
        for place, video in self.objects(document, "videos", "$"):
            split = video.get("split")
            if not isinstance(split, str) or not split.strip():
                self.json.error(f"{place}.split", f"{shown(split)} is not a name such as train")
                continue
            for spot, clip in self.objects(video, "clips", place):
                self.clip(clip, spot, split)

    def clip(self, node: dict[str, Any], place: str, split: str) -> None:
        name = node.get("clip_uid")
        if not isinstance(name, str) or not name.strip():
            self.json.error(f"{place}.clip_uid", f"{shown(name)} is not a name")
            return
        if name in self.clips:
            self.json.error(f"{place}.clip_uid", f"{shown(name)} occurs twice; remove one")
            return
        keys = ("video_start_sec", "video_end_sec", "video_start_frame", "video_end_frame")
        ends = [self.number(node, key, place) for key in keys]
        if None in ends:
            return
        start_sec, end_sec, start_frame, end_frame = (value or 0.0 for value in ends)
        fps = (end_frame - start_frame) / (end_sec - start_sec) if end_sec > start_sec else 0.0
        if not PLAUSIBLE_FPS[0] <= fps <= PLAUSIBLE_FPS[1]:
            self.json.warn(place, f"clip {shown(name)} left out: {fps:g} frames per second")
            return
        start_sec -= start_frame % self.rules.start_multiple_frames / fps
        actions = tuple(self.actions(node, place, start_sec, end_sec))
        if actions or "annotations" not in node:
            self.clips[name] = Video(name, split, end_sec - start_sec, fps, actions)

    def actions(
        self, node: dict[str, Any], place: str, start_sec: float, end_sec: float
    ) -> Iterator[Action]:
        """The primary labels of all annotators, in seconds of the clip."""
        if "annotations" not in node:
            return
        for spot, annotator in self.objects(node, "annotations", place):
            for where, entry in self.objects(annotator, "labels", spot):
                if entry.get("primary") is not True:
                    continue
                label = self.json.label(entry, where)
                first = self.number(entry, "video_start_time", where)
                last = self.number(entry, "video_end_time", where)
                if label is None or first is None or last is None:
                    continue
                if last - first < self.rules.min_action_sec and last > first:
                    continue
                begin_sec, finish_sec = first - start_sec, last - start_sec
                if -BEYOND_DURATION_SEC < begin_sec < 0:
                    begin_sec = 0.0
                faults = segment_faults(
                    begin_sec,
                    finish_sec,
                    end_sec - start_sec,
                    for_evaluation=self.for_evaluation,
                )
                if self.json.report(where, faults):
                    yield Action(begin_sec, finish_sec, label.strip().replace(" ", "_"))

    def number(self, node: dict[str, Any], key: str, place: str) -> float | None:
        """A finite number; None after an error."""
        value = finite(node.get(key))
        if value is None:
            self.json.error(f"{place}.{key}", f"{shown(node.get(key))} is not a number")
        return value

    def objects(self, node: Any, key: str, place: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """The objects of the list under `key`, with their places."""
        entries = node.get(key) if isinstance(node, dict) else None
        if not isinstance(entries, list):
            self.json.error(f"{place}.{key}", f"{kind(entries)}, not a list of objects")
            return
        for i, entry in enumerate(entries):
            if isinstance(entry, dict):
                yield f"{place}.{key}[{i}]", entry
            else:
                self.json.error(f"{place}.{key}[{i}]", f"{kind(entry)}, not an object")
