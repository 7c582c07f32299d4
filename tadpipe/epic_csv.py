"""The CSV files of EPIC-Kitchens-100: actions with verb and noun, and how long the videos are.

Read for the challenge's three scores as well as for training; every defect is named by its line.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tadpipe.errors import AnnotationError, Defect

NUM_VERBS = 97
NUM_NOUNS = 300
SUBSETS = {"EPIC_100_train.csv": "training", "EPIC_100_validation.csv": "validation"}
VIDEO_INFO = "EPIC_100_video_info.csv"

_TIMESTAMP = re.compile(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)")
_COLUMNS = ("video_id", "start_timestamp", "stop_timestamp", "verb_class", "noun_class")
_INFO_COLUMNS = ("video_id", "duration", "fps")

NumberedRow = tuple[int, dict[str, str]]  # line of the file, and its fields by column


class EpicRow(NamedTuple):
    """A segment with its verb and noun; the score is 1 in the ground truth."""

    video: str
    start_sec: float
    end_sec: float
    verb: int
    noun: int
    score: float = 1.0


class VideoInfo(NamedTuple):
    """Length and frame rate of a video."""

    duration_sec: float
    fps: float


def load_epic_csv(path: str | Path) -> list[EpicRow]:
    """The actions of an EPIC-Kitchens-100 annotation file, in its order.

    Raises:
        AnnotationError: unreadable, columns missing, or rows with defects (all are listed).
    """
    actions, defects = read_epic_csv(Path(path))
    if defects:
        raise AnnotationError(f"{len(defects)} rows cannot be read.", defects, "Mend the file.")
    return [action for _, action in actions]


def read_epic_csv(path: Path) -> tuple[list[tuple[int, EpicRow]], list[Defect]]:
    """The actions with their lines, and the rows that are none.

    Raises:
        AnnotationError: unreadable, or columns missing.
    """
    actions: list[tuple[int, EpicRow]] = []
    defects: list[Defect] = []
    for line, row in _table(path, _COLUMNS, "EPIC_100_validation.csv"):
        try:
            actions.append((line, _action(row)))
        except ValueError as error:
            defects.append(Defect(str(path), f"line {line}", str(error)))
    return actions, defects


def read_video_info(path: Path) -> tuple[dict[str, VideoInfo], list[Defect]]:
    """Length and frame rate by video, and the rows that state none.

    Raises:
        AnnotationError: unreadable, or columns missing.
    """
    videos: dict[str, VideoInfo] = {}
    defects: list[Defect] = []
    for line, row in _table(path, _INFO_COLUMNS, VIDEO_INFO):
        try:
            videos[row["video_id"]] = VideoInfo(_positive(row, "duration"), _positive(row, "fps"))
        except ValueError as error:
            defects.append(Defect(str(path), f"line {line}", str(error)))
    return videos, defects


def seconds_of(timestamp: str) -> float:
    """Seconds of HH:MM:SS.sss.

    Raises:
        ValueError: not of that form.
    """
    parts = _TIMESTAMP.fullmatch(timestamp.strip())
    if parts is None:
        raise ValueError(f"'{timestamp}' is no time HH:MM:SS.sss")
    hours, minutes, seconds = parts.groups()
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def _action(row: dict[str, str]) -> EpicRow:
    if not row["video_id"].strip():
        raise ValueError("no video_id")
    return EpicRow(
        row["video_id"],
        seconds_of(row["start_timestamp"]),
        seconds_of(row["stop_timestamp"]),
        _class_number(row, "verb_class", NUM_VERBS),
        _class_number(row, "noun_class", NUM_NOUNS),
    )


def _class_number(row: dict[str, str], column: str, count: int) -> int:
    text = row[column].strip()
    if not (text.isascii() and text.isdecimal()) or int(text) >= count:
        raise ValueError(f"{column} '{text}' is not a number 0..{count - 1}")
    return int(text)


def _positive(row: dict[str, str], column: str) -> float:
    try:
        value = float(row[column])
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{column} '{row[column]}' is not a positive number")
    return value


def _table(path: Path, columns: Sequence[str], example: str) -> list[NumberedRow]:
    """The rows of a CSV with these columns; a field that is not there is empty."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file)
            missing = [column for column in columns if column not in (table.fieldnames or ())]
            rows = [] if missing else [(table.line_num, row) for row in table]
    except OSError as error:
        raise AnnotationError(
            "The file cannot be read.", [Defect(str(path), "", error.strerror or "")]
        ) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise AnnotationError("The file is no CSV.", [Defect(str(path), "", str(error))]) from None
    if missing:
        raise AnnotationError(
            "The annotations lack columns.",
            [Defect(str(path), "line 1", f"missing: {', '.join(missing)}")],
            f"Give the file of the challenge, such as {example}.",
        )
    return [(line, {column: row[column] or "" for column in columns}) for line, row in rows]
