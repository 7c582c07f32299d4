"""EPIC-Kitchens-100 from the challenge's CSV files: the actions of one task, or of both to keep.

A folder gives the subsets it has files of, and the lengths of the videos where it has
EPIC_100_video_info.csv; of a single file the lengths are looked for beside it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tadpipe.annotations import Action, Annotations, Video, segment_faults
from tadpipe.datasets.spec import DatasetSpec
from tadpipe.epic_csv import (
    SUBSETS,
    VIDEO_INFO,
    EpicRow,
    VideoInfo,
    read_epic_csv,
    read_video_info,
)
from tadpipe.errors import AnnotationError, ConfigError, Defect


def is_epic(path: Path) -> bool:
    """Whether these are the challenge's files: a CSV, or a folder with one of them."""
    if path.is_dir():
        return any((path / name).is_file() for name in SUBSETS)
    return path.suffix.lower() == ".csv"


def load_epic(path: Path, spec: DatasetSpec, *, for_evaluation: bool) -> Annotations:
    """The actions of the spec's task, labelled id_000, id_001, ... by class number.

    Classes without any action keep their number. Defects are handed over, not raised.

    Raises:
        ConfigError: the spec does not say which task.
        AnnotationError: a file cannot be read.
    """
    if spec.task is None:
        raise ConfigError(
            "An action of EPIC-Kitchens-100 has a verb and a noun.",
            f"{path}: --dataset {spec.name}",
            "Use --dataset epic_kitchens_verb or epic_kitchens_noun.",
        )
    reader = _EpicReader(for_evaluation)
    rows = reader.read(path)
    labels = spec.class_ids
    videos = {
        name: Video(
            name,
            reader.subset_of[name],
            *_length(reader.lengths.get(name)),
            actions=tuple(
                Action(row.start_sec, row.end_sec, labels[getattr(row, spec.task)])
                for row in actions
            ),
        )
        for name, actions in rows.items()
    }
    ids = {label: number for number, label in enumerate(labels)}
    return Annotations(videos, labels, str(path), tuple(reader.defects), ids)


def epic_document(path: Path, spec: DatasetSpec) -> dict[str, Any]:
    """The files as one ActivityNet-style document.

    Its entries have `verb` and `noun`, and as `label` the one of the spec's task.
    """
    reader = _EpicReader(for_evaluation=True)
    rows = reader.read(path)
    database = {}
    for name, actions in rows.items():
        duration_sec, fps = _length(reader.lengths.get(name))
        entry: dict[str, Any] = {"subset": reader.subset_of[name]}
        if duration_sec is not None:
            entry |= {"duration": duration_sec, "fps": fps}
        entry["annotations"] = [
            {
                "segment": [row.start_sec, row.end_sec],
                "label": f"id_{row.noun if spec.task == 'noun' else row.verb:03d}",
                "verb": f"id_{row.verb:03d}",
                "noun": f"id_{row.noun:03d}",
            }
            for row in actions
        ]
        database[name] = entry
    return {"database": database}


def epic_truth_file(path: Path) -> Path:
    """The CSV that the challenge's scores are computed from.

    Raises:
        AnnotationError: a folder without the validation file.
    """
    if not path.is_dir():
        return path
    for name, subset in SUBSETS.items():
        if subset == "validation" and (path / name).is_file():
            return path / name
    raise AnnotationError(
        "The folder has no validation file.",
        [Defect(str(path), "", "no EPIC_100_validation.csv")],
        "Name the CSV to score against.",
    )


class _EpicReader:
    """Reads the files of a folder, or one of them, and collects what is wrong."""

    def __init__(self, for_evaluation: bool) -> None:
        self.for_evaluation = for_evaluation
        self.defects: list[Defect] = []
        self.lengths: dict[str, VideoInfo] = {}
        self.subset_of: dict[str, str] = {}

    def read(self, path: Path) -> dict[str, list[EpicRow]]:
        """Sound actions by video, in the order of the files."""
        folder = path if path.is_dir() else path.parent
        if (folder / VIDEO_INFO).is_file():
            self.lengths, defects = read_video_info(folder / VIDEO_INFO)
            self.defects += defects
        videos: dict[str, list[EpicRow]] = {}
        files = [path / name for name in SUBSETS] if path.is_dir() else [path]
        for file in files:
            if not path.is_dir() or file.is_file():
                self.read_file(file, SUBSETS.get(file.name, file.stem), videos)
        return videos

    def read_file(self, file: Path, subset: str, videos: dict[str, list[EpicRow]]) -> None:
        rows, defects = read_epic_csv(file)
        self.defects += defects
        for line, row in rows:
            other = self.subset_of.setdefault(row.video, subset)
            duration_sec, _ = _length(self.lengths.get(row.video))
            faults = list(
                segment_faults(
                    row.start_sec, row.end_sec, duration_sec, for_evaluation=self.for_evaluation
                )
            )
            if other != subset:
                faults.append((f"{row.video} has actions in the {other} file, too", False))
            self.defects += [
                Defect(str(file), f"line {line}", message, is_warning)
                for message, is_warning in faults
            ]
            actions = videos.setdefault(row.video, [])
            if all(is_warning for _, is_warning in faults):
                actions.append(row)


def _length(video: VideoInfo | None) -> tuple[float | None, float | None]:
    """Duration and frame rate, None where they are not stated."""
    return (None, None) if video is None else (video.duration_sec, video.fps)
