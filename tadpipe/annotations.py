"""Annotations and detections: what happens when in which video, in seconds.

Reads and writes the ActivityNet-style JSON that every data set of the field is distributed in.
A file with defects is never half read: all defects are collected with their JSON path and raised
together (`strict`), or reported beside what is sound.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from tadpipe.errors import AnnotationError, Defect


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
    defects: tuple[Defect, ...] = field(default=())

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


Detections = dict[str, list[Detection]]  # video name -> detections, best first
