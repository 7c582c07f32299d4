"""What every label format is read into and written from: labelled times of videos, in seconds.

Formats that count frames need the videos, or a frame rate, to become seconds; `VideoTimes` is
where they ask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple, Self

from tadpipe.annotations import load_annotations, load_detections
from tadpipe.errors import ConfigError
from tadpipe.json_text import read_json
from tadpipe.pipeline.video_files import SUFFIXES, find_videos
from tadpipe.video.packets import VideoProbe
from tadpipe.video.process import DecodeProcess


class Entry(NamedTuple):
    """A segment with its label; detections have a score."""

    start_sec: float
    end_sec: float
    label: str
    score: float | None = None


@dataclass
class LabelledVideos:
    """Entries by video, in the order of the files, and what else a format says of a video."""

    entries: dict[str, list[Entry]] = field(default_factory=dict)
    subsets: dict[str, str] = field(default_factory=dict)
    durations_sec: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, entry: Entry) -> None:
        self.entries.setdefault(name, []).append(entry)

    @property
    def count(self) -> int:
        return sum(map(len, self.entries.values()))


class VideoTimes:
    """Seconds of frame numbers: by the files' own time stamps, else by one stated rate.

    A context manager, which ends the process that reads the files.

    Args:
        sources: video files and folders; each is read once, when it is asked for.
        fps: of videos without a file.
    """

    def __init__(self, sources: Sequence[Path] = (), fps: float | None = None) -> None:
        self._files = {file.name: file.path for file in find_videos(sources)} if sources else {}
        self._fps = fps
        self._probes: dict[str, VideoProbe] = {}
        self._process = DecodeProcess()  # starts with the first video

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._process.close()

    def probe(self, name: str) -> VideoProbe | None:
        """What a video's file holds; None without a file.

        Raises:
            VideoError: the file cannot be read.
        """
        if name in self._files and name not in self._probes:
            self._probes[name] = self._process.probe(self._files[name])
        return self._probes.get(name)

    def frame_sec(self, name: str, frame: float, place: str) -> float:
        """Time at which frame `frame` (from 0) begins; the frame count is the video's end.

        Args:
            place: of the label, for the message.
        Raises:
            ConfigError: neither the video nor a rate is known.
        """
        probe = self.probe(name)
        if probe is not None and 0 <= frame < probe.frames:
            return probe.times_sec[int(frame)]
        if probe is not None:
            return probe.duration_sec + (frame - probe.frames) * (
                probe.duration_sec / max(probe.frames, 1)
            )
        if self._fps is None:
            raise ConfigError(
                "These labels count frames, and the frame rate is not known.",
                f"{place}: video {name!r}, frame {frame:g}",
                "Give --videos FOLDER with the files, or --fps.",
            )
        return frame / self._fps


def video_name(path: str) -> str:
    """The video that a path or address of a label file means: its file name without suffix."""
    last = PurePosixPath(PureWindowsPath(path.split("?")[0]).as_posix()).name
    suffix = PurePosixPath(last).suffix
    return last[: -len(suffix)] if suffix.lower() in SUFFIXES else last


def read_ours(path: Path) -> LabelledVideos:
    """Our own annotations or detections, ActivityNet-style.

    Raises:
        AnnotationError: the file has defects.
    """
    labelled = LabelledVideos()
    document = read_json(path)
    if isinstance(document, Mapping) and "results" in document:
        for name, rows in load_detections(path).items():
            labelled.entries[name] = [Entry(*row) for row in rows]
        return labelled
    for name, video in load_annotations(path).videos.items():
        labelled.entries[name] = [Entry(*action) for action in video.actions]
        labelled.subsets[name] = video.subset
        if video.duration_sec is not None:
            labelled.durations_sec[name] = video.duration_sec
    return labelled
