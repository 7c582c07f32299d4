"""Detections as files for other programs: JSON, a CSV table, SRT and WebVTT subtitles.

Times of JSON and CSV have full precision; subtitles have milliseconds and are sorted by start.
A subtitle file belongs to one video.
"""

from __future__ import annotations

import csv
import html
import io
import math
from collections.abc import Callable
from pathlib import Path

from tadpipe.annotations import Detection, Detections, save_detections
from tadpipe.config import write_atomically
from tadpipe.errors import ConfigError

CSV_COLUMNS = ("video", "start_sec", "end_sec", "label", "score")


def write_detections(path: str | Path, detections: Detections) -> None:
    """Write detections in the format that the file's suffix names.

    Raises:
        ConfigError: unknown suffix, or a subtitle file for several videos.
        AnnotationError: a time or score is not finite (JSON).
    """
    check_suffix(path, len(detections))
    path = Path(path)
    if path.suffix.lower() == ".json":
        save_detections(path, detections)
    else:
        write_atomically(path, _TEXT_FORMATS[path.suffix.lower()](detections))


def check_suffix(path: str | Path, videos: int) -> None:
    """Refuse a file that `write_detections` could not write, before the work is done.

    Raises:
        ConfigError: unknown suffix, or a subtitle file for several videos.
    """
    suffix = Path(path).suffix.lower()
    if suffix != ".json" and suffix not in _TEXT_FORMATS:
        known = ", ".join((".json", *_TEXT_FORMATS))
        raise ConfigError(
            "Unknown kind of detection file.", str(path), f"Name a file that ends in {known}."
        )
    if suffix in (".srt", ".vtt") and videos > 1:
        raise ConfigError(
            "A subtitle file belongs to one video.",
            f"{path}: {videos} videos",
            "Write .json or .csv, or run once per video.",
        )


def csv_text(detections: Detections) -> str:
    """One row per detection, in the order given; the first line names the columns."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(CSV_COLUMNS)
    for name, rows in detections.items():
        for row in rows:
            table.writerow(
                (name, float(row.start_sec), float(row.end_sec), row.label, float(row.score))
            )
    return text.getvalue()


def srt_text(detections: Detections) -> str:
    """SubRip: numbered cues, comma before the milliseconds."""
    cues = []
    for number, (start_ms, end_ms, row) in enumerate(_cues(detections), start=1):
        span = f"{_clock(start_ms, ',')} --> {_clock(end_ms, ',')}"
        cues.append(f"{number}\n{span}\n{_one_line(row.label)} ({row.score:.2f})\n")
    return "\n".join(cues)


def vtt_text(detections: Detections) -> str:
    """WebVTT: a header line, full stop before the milliseconds, markup signs escaped."""
    cues = ["WEBVTT\n"]
    for start_ms, end_ms, row in _cues(detections):
        span = f"{_clock(start_ms, '.')} --> {_clock(end_ms, '.')}"
        label = html.escape(_one_line(row.label), quote=False)
        cues.append(f"{span}\n{label} ({row.score:.2f})\n")
    return "\n".join(cues)


_TEXT_FORMATS: dict[str, Callable[[Detections], str]] = {
    ".csv": csv_text,
    ".srt": srt_text,
    ".vtt": vtt_text,
}


def _cues(detections: Detections) -> list[tuple[int, int, Detection]]:
    """(start, end) in whole milliseconds, by start; every cue lasts a millisecond at least."""
    cues = []
    for rows in detections.values():
        for row in rows:
            start_ms = max(0, math.floor(row.start_sec * 1000 + 0.5))
            end_ms = max(start_ms + 1, math.floor(row.end_sec * 1000 + 0.5))
            cues.append((start_ms, end_ms, row))
    return sorted(cues, key=lambda cue: (cue[0], cue[1]))


def _clock(time_ms: int, mark: str) -> str:
    """HH:MM:SS,mmm; more digits for the hours of a very long video."""
    seconds, ms = divmod(time_ms, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}{mark}{ms:03}"


def _one_line(label: str) -> str:
    """A label as subtitle text: a blank line would end the cue."""
    return " ".join(label.split())
