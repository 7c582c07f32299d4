"""Labels as tables and subtitles: CSV, SubRip (SRT), WebVTT.

Subtitles are read and written with webvtt-py. A subtitle file belongs to the video of its name,
a cue is a segment and its text the label; scores of detections stand behind it in brackets.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tadpipe.config import write_atomically
from tadpipe.errors import AnnotationError, ConfigError, Defect
from tadpipe.pipeline.label_entries import Entry, LabelledVideos, VideoTimes, video_name

COLUMNS: Mapping[str, tuple[str, ...]] = {
    "video": ("video", "video_id", "video_name", "filename", "file", "clip"),
    "start": ("start_sec", "start", "start_time", "t_start", "t-start", "begin", "onset"),
    "end": ("end_sec", "end", "end_time", "t_end", "t-end", "stop", "offset"),
    "label": ("label", "class", "category", "action", "activity", "behavior"),
    "score": ("score", "confidence"),
    "subset": ("subset", "split"),
    "duration": ("duration", "duration_sec"),
}
NEEDED = ("start", "end", "label")
SCORE = re.compile(r"(.+) \(([01]\.\d+)\)")
CLOCK = re.compile(r"(?:(\d+):)?(\d{1,2}):(\d{1,2}(?:[.,]\d+)?)")


def read_csv(path: Path, _times: VideoTimes) -> LabelledVideos:
    """A table with a heading; columns by their usual names, in any order.

    Times are seconds or [HH:]MM:SS. Without a column for the video it is that of the file's name.

    Raises:
        AnnotationError: no such columns, or rows that cannot be read (all are listed).
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise AnnotationError("The file is no CSV.", [Defect(str(path), "", str(error))]) from None
    first = text.split("\n", 1)[0]
    separator = max(",;\t", key=first.count)
    table = csv.DictReader(io.StringIO(text), delimiter=separator)
    columns = _columns(path, table.fieldnames or ())
    labelled, defects = LabelledVideos(), []
    for row in table:
        field = {key: (row[column] or "").strip() for key, column in columns.items()}
        name = video_name(field["video"]) if field.get("video") else path.stem
        try:
            if not field["label"]:
                raise ValueError("no label")
            entry = Entry(
                seconds(field["start"]),
                seconds(field["end"]),
                field["label"],
                float(field["score"]) if field.get("score") else None,
            )
            if field.get("duration"):
                labelled.durations_sec[name] = seconds(field["duration"])
        except ValueError as error:
            defects.append(Defect(str(path), f"line {table.line_num}", str(error)))
            continue
        if field.get("subset"):
            labelled.subsets[name] = field["subset"]
        labelled.add(name, entry)
    if defects:
        raise AnnotationError(f"{len(defects)} rows cannot be read.", defects, "Mend the file.")
    return labelled


def seconds(text: str) -> float:
    """Seconds of a number, or of [HH:]MM:SS.

    Raises:
        ValueError: neither.
    """
    clock = CLOCK.fullmatch(text)
    if clock is None:
        try:
            return float(text.replace(",", "."))
        except ValueError:
            raise ValueError(f"'{text}' is no time in seconds or HH:MM:SS") from None
    hours, minutes, rest = clock.groups()
    return int(hours or 0) * 3600 + int(minutes) * 60 + float(rest.replace(",", "."))


def write_csv(path: Path, labelled: LabelledVideos, _times: VideoTimes) -> None:
    """One row per segment; columns for what is known."""
    scored = any(entry.score is not None for rows in labelled.entries.values() for entry in rows)
    more = [("score", scored), ("subset", labelled.subsets), ("duration", labelled.durations_sec)]
    heading = ["video", "start_sec", "end_sec", "label", *(key for key, known in more if known)]
    text = io.StringIO()
    table = csv.DictWriter(text, heading, lineterminator="\n", extrasaction="ignore")
    table.writeheader()
    for name, rows in labelled.entries.items():
        for row in rows:
            table.writerow(
                {
                    "video": name,
                    **row._asdict(),
                    "subset": labelled.subsets.get(name),
                    "duration": labelled.durations_sec.get(name),
                }
            )
    write_atomically(path, text.getvalue())


def read_subtitles(path: Path, _times: VideoTimes) -> LabelledVideos:
    """Cues of an .srt or .vtt file.

    Raises:
        AnnotationError: not such a file.
        ConfigError: webvtt-py is not installed.
    """
    webvtt = _webvtt()
    try:
        read = webvtt.from_srt if path.suffix.lower() == ".srt" else webvtt.read
        captions = list(read(str(path)))
    except (OSError, UnicodeDecodeError, webvtt.errors.MalformedFileError) as error:
        raise AnnotationError(
            "The subtitles cannot be read.", [Defect(str(path), "", str(error))]
        ) from None
    cues = sum("-->" in line for line in path.read_text("utf-8-sig").splitlines())
    if len(captions) < cues:  # webvtt-py passes over what it cannot read
        text = f"{cues} lines with times, {len(captions)} cues"
        raise AnnotationError(
            "Some cues cannot be read.",
            [Defect(str(path), "", text)],
            "Times are HH:MM:SS,mmm --> HH:MM:SS,mmm, with text below.",
        )
    labelled = LabelledVideos({path.stem: []})
    for caption in captions:
        text = " ".join(caption.text.split())
        scored = SCORE.fullmatch(text)
        label, score = (scored[1], float(scored[2])) if scored else (text, None)
        if label:
            start, end = seconds(caption.start), seconds(caption.end)
            labelled.add(path.stem, Entry(start, end, label, score))
    return labelled


def write_subtitles(path: Path, labelled: LabelledVideos, _times: VideoTimes) -> None:
    """The cues of one video, by start; the suffix decides the format.

    Raises:
        ConfigError: several videos, or webvtt-py is not installed.
    """
    webvtt = _webvtt()
    if len(labelled.entries) != 1:
        raise ConfigError(
            "A subtitle file belongs to one video.",
            f"{path}: {len(labelled.entries)} videos",
            "Name a folder with --out: one file per video.",
        )
    captions = []
    for row in sorted(next(iter(labelled.entries.values()))):
        score = "" if row.score is None else f" ({row.score:.2f})"
        text = " ".join(row.label.split()) + score
        captions.append(webvtt.Caption(_clock(row.start_sec), _clock(row.end_sec), text))
    kind = path.suffix.lower().removeprefix(".")
    text_of = io.StringIO()
    webvtt.WebVTT(captions=captions).write(text_of, format=kind)
    write_atomically(path, text_of.getvalue())


def _clock(time_sec: float) -> str:
    minutes, ms = divmod(max(round(time_sec * 1000), 0), 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{ms // 1000:02}.{ms % 1000:03}"


def _columns(path: Path, heading: Sequence[str]) -> dict[str, str]:
    """Key of `COLUMNS` -> the file's column."""
    known = {name.strip().lower(): name for name in heading}
    found = {
        key: known[alias]
        for key, names in COLUMNS.items()
        for alias in names[::-1]
        if alias in known
    }
    missing = [key for key in NEEDED if key not in found]
    if missing:
        text = f"columns {', '.join(heading) or 'none'}; none for {', '.join(missing)}"
        raise AnnotationError(
            "The table lacks columns.",
            [Defect(str(path), "line 1", text)],
            "Write a heading: video,start_sec,end_sec,label.",
        )
    return found


def _webvtt() -> Any:
    """The module."""
    try:
        import webvtt
    except ImportError:
        raise ConfigError(
            "Subtitles are read and written with webvtt-py.",
            todo='Install it: pip install "tadpipe[formats]".',
        ) from None
    return webvtt
