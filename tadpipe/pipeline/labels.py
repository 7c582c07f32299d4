"""Labels of other programs into our annotations, and annotations or detections into theirs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tadpipe.annotations import Action, Annotations, Video
from tadpipe.config import write_atomically
from tadpipe.datasets.annotation_files import annotation_text
from tadpipe.errors import AnnotationError, ConfigError, Defect, VideoError
from tadpipe.json_text import read_json
from tadpipe.pipeline.label_cvat import read_cvat, write_cvat
from tadpipe.pipeline.label_elan import read_elan, write_elan
from tadpipe.pipeline.label_entries import LabelledVideos, VideoTimes, read_ours
from tadpipe.pipeline.label_json import (
    read_fiftyone,
    read_label_studio,
    read_via,
    write_fiftyone,
    write_label_studio,
    write_via,
)
from tadpipe.pipeline.label_submissions import EpicSubmission, write_activitynet, write_ego4d
from tadpipe.pipeline.label_text import read_csv, read_subtitles, write_csv, write_subtitles

Reader = Callable[[Path, VideoTimes], LabelledVideos]
Writer = Callable[[Path, LabelledVideos, VideoTimes], None]

READERS: Mapping[str, Reader] = {
    "csv": read_csv,
    "elan": read_elan,
    "via": read_via,
    "cvat": read_cvat,
    "label-studio": read_label_studio,
    "fiftyone": read_fiftyone,
    "subtitles": read_subtitles,
}
BY_SUFFIX = {".csv": "csv", ".tsv": "csv", ".eaf": "elan", ".xml": "cvat"} | dict.fromkeys(
    (".srt", ".vtt"), "subtitles"
)
ONE_VIDEO = {
    "cvat": ".xml",
    "elan": ".eaf",
    "srt": ".srt",
    "vtt": ".vtt",
}  # format -> suffix, a file per video
TRAINING = "training"
EPIC = "epic"  # the target that needs two sources


@dataclass(frozen=True)
class LabelReport:
    """What was read and written."""

    files: tuple[str, ...]  # written; none with a dry run
    videos: int
    entries: int
    labels: tuple[str, ...]
    without_duration: tuple[str, ...] = ()

    def to_mapping(self) -> dict[str, Any]:
        return {
            "files": list(self.files),
            "videos": self.videos,
            "segments": self.entries,
            "labels": list(self.labels),
            "without_duration": list(self.without_duration),
        }

    def text(self) -> str:
        lines = [
            f"{self.videos} videos, {self.entries} segments, {len(self.labels)} labels: "
            f"{', '.join(self.labels)}"
        ]
        if self.without_duration:
            lines.append(
                f"{len(self.without_duration)} videos without a duration; --videos FOLDER adds it."
            )
        lines += [f"wrote {file}" for file in self.files]
        return "\n".join(lines)


def import_labels(
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    source_format: str | None = None,
    videos: Sequence[str | Path] = (),
    fps: float | None = None,
    subset: str = TRAINING,
    tier: str | None = None,
    dry_run: bool = False,
) -> LabelReport:
    """Write ActivityNet-style annotations of other programs' label files.

    Args:
        source_format: a key of `READERS`; None = by suffix and content.
        videos: files and folders that give durations and the times of frames.
        fps: where labels count frames and the video is not at hand.
        subset: of videos whose file names none.
        tier: of ELAN files; None = all.
    Raises:
        AnnotationError: a file cannot be read as its format.
        ConfigError: unknown format, or frames without a rate.
    """
    merged = LabelledVideos()
    with VideoTimes([Path(video) for video in videos], fps) as times:
        for source in map(Path, sources):
            labelled = _read(source, source_format or _guess(source), tier, times)
            for video, rows in labelled.entries.items():
                merged.entries.setdefault(video, []).extend(rows)
            merged.subsets |= labelled.subsets
            merged.durations_sec |= labelled.durations_sec
        found = _annotations(merged, times, subset)
    if not dry_run:
        write_atomically(Path(out), annotation_text(found))
    return LabelReport(
        () if dry_run else (str(out),),
        len(found.videos),
        merged.count,
        found.labels,
        tuple(name for name, video in found.videos.items() if video.duration_sec is None),
    )


def _read(path: Path, name: str, tier: str | None, times: VideoTimes) -> LabelledVideos:
    read = READERS[name] if name != "elan" else partial(read_elan, tier=tier)
    if tier is not None and name != "elan":
        raise ConfigError("Only ELAN's files have tiers.", f"{path}: {name}")
    try:
        return read(path, times)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        if isinstance(error, (AnnotationError, ConfigError, VideoError)):
            raise
        raise AnnotationError(
            f"The file does not hold labels as {name} has them.",
            [Defect(str(path), "", f"{type(error).__name__}: {error}")],
            "Export it again, or name its format with --from.",
        ) from None


def export_labels(
    source: str | Path,
    out: str | Path,
    target: str,
    *,
    videos: Sequence[str | Path] = (),
    nouns: str | Path | None = None,
    supervision: tuple[int, int, int] | None = None,
    dry_run: bool = False,
) -> LabelReport:
    """Write annotations or detections as another program reads them.

    Args:
        source: ActivityNet-style annotations or detections.
        out: a file; a folder for formats with a file per video.
        target: a name of `TARGETS`, or "epic".
        videos: files and folders, for formats that count frames (CVAT).
        nouns: of "epic": detections of nouns; the source are those of verbs.
        supervision: of "epic": levels of pre-training, training labels and training data, 0..5.
    Raises:
        AnnotationError: the source has defects, or lacks the scores that the format wants.
        ConfigError: "epic" without nouns or supervision, or these without "epic".
    """
    write = _writer(target, nouns, supervision)
    labelled = read_ours(Path(source))
    parts = {Path(out): labelled}
    suffix = ONE_VIDEO.get(target)
    if suffix is not None and Path(out).suffix.lower() != suffix:
        parts = {
            _inside(Path(out), name + suffix): LabelledVideos({name: rows})
            for name, rows in labelled.entries.items()
        }
    with VideoTimes([Path(video) for video in videos]) as times:
        for path, part in parts.items() if not dry_run else ():
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path, part, times)
    labels = {entry.label for rows in labelled.entries.values() for entry in rows}
    files = () if dry_run else tuple(map(str, parts))
    return LabelReport(files, len(labelled.entries), labelled.count, tuple(sorted(labels)))


TARGETS: Mapping[str, Writer] = {
    "csv": write_csv,
    "cvat": write_cvat,
    "elan": write_elan,
    "via": write_via,
    "label-studio": write_label_studio,
    "fiftyone": write_fiftyone,
    "srt": write_subtitles,
    "vtt": write_subtitles,
    "activitynet": write_activitynet,
    "ego4d": write_ego4d,
}


def _writer(
    target: str, nouns: str | Path | None, supervision: tuple[int, int, int] | None
) -> Writer:
    if target != EPIC:
        if nouns is not None or supervision is not None:
            raise ConfigError(
                "Only EPIC's submission joins verbs and nouns.",
                f"--to {target}",
                "Leave --nouns and --supervision out.",
            )
        return TARGETS[target]
    if nouns is None or supervision is None:
        raise ConfigError(
            "EPIC's submission states verb and noun of every action, and the supervision used.",
            f"--nouns {nouns}, --supervision {supervision}",
            "Give detections of nouns with --nouns, and three levels such as --supervision 1,3,3.",
        )
    return EpicSubmission(read_ours(Path(nouns)), supervision).write


def _guess(path: Path) -> str:
    """The format of a file, by its suffix, of JSON by its keys.

    Raises:
        ConfigError: it is none that is known.
    """
    suffix = path.suffix.lower()
    if suffix in BY_SUFFIX:
        return BY_SUFFIX[suffix]
    if suffix == ".json":
        document = read_json(path)
        if isinstance(document, list):
            return "label-studio"
        if isinstance(document, dict) and "metadata" in document and "attribute" in document:
            return "via"
        if isinstance(document, dict) and "labels" in document:
            return "fiftyone"
    raise ConfigError(
        "The kind of label file is not clear.",
        str(path),
        f"Name it with --from: {', '.join(READERS)}.",
    )


def _annotations(labelled: LabelledVideos, times: VideoTimes, subset: str) -> Annotations:
    videos = {}
    for name, rows in labelled.entries.items():
        probe = times.probe(name)
        duration_sec = labelled.durations_sec.get(name)
        videos[name] = Video(
            name,
            labelled.subsets.get(name, subset),
            duration_sec if probe is None else probe.duration_sec,
            None if probe is None or probe.fps is None else float(probe.fps),
            tuple(Action(row.start_sec, row.end_sec, row.label) for row in rows),
        )
    labels = {action.label for video in videos.values() for action in video.actions}
    return Annotations(videos, tuple(sorted(labels)))


def _inside(folder: Path, name: str) -> Path:
    """A file in a folder for a video of any name, which is never used as a path."""
    return folder / name.replace("/", "_").replace("\\", "_").lstrip(".")
