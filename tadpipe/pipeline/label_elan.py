"""Labels in ELAN's .eaf files (Max Planck Institute for Psycholinguistics), by pympi-ling.

An .eaf belongs to the video it links to, else to the one of its own name; every annotation of
every tier, or of one, is a segment, and its value the label. Times are whole milliseconds.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import ModuleType

from tadpipe.config import write_atomically
from tadpipe.errors import AnnotationError, ConfigError, Defect
from tadpipe.pipeline.label_entries import Entry, LabelledVideos, VideoTimes, video_name

TIER = "actions"


def read_elan(path: Path, _times: VideoTimes, *, tier: str | None = None) -> LabelledVideos:
    """The annotations of an .eaf file; empty ones are left out.

    Args:
        tier: its name; None = all tiers that have times of their own.
    Raises:
        AnnotationError: no .eaf file, or no such tier.
        ConfigError: pympi-ling is not installed.
    """
    elan = _elan()
    try:
        file = elan.Eaf(str(path), suppress_version_warning=True)
    except Exception as error:  # pympi lets through whatever the XML causes
        text = f"{type(error).__name__}: {error}"
        raise AnnotationError("The file is no .eaf.", [Defect(str(path), "", text)]) from None
    names = list(file.get_tier_names())
    if tier is not None and tier not in names:
        raise AnnotationError(
            f"No tier '{tier}'.",
            [Defect(str(path), "TIER", f"tiers: {', '.join(names) or 'none'}")],
            "Name one of these with --tier, or leave it out.",
        )
    linked = [media.get("MEDIA_URL") or "" for media in file.get_linked_files()]
    name = next((video_name(url) for url in linked if url), path.stem)
    labelled = LabelledVideos({name: []})
    for each in names if tier is None else [tier]:
        rows = file.get_annotation_data_for_tier(each)
        for start_ms, end_ms, value, *of in rows:
            if value and value.strip() and (tier is not None or not of):
                labelled.add(name, Entry(start_ms / 1000, end_ms / 1000, value.strip()))
    labelled.entries[name].sort()
    return labelled


def write_elan(path: Path, labelled: LabelledVideos, _times: VideoTimes) -> None:
    """One video's segments in a tier `actions`; ELAN's tiers hold no overlaps: more tiers then.

    Raises:
        ConfigError: several videos, or pympi-ling is not installed.
    """
    elan = _elan()
    if len(labelled.entries) != 1:
        raise ConfigError(
            "An .eaf file belongs to one video.",
            f"{path}: {len(labelled.entries)} videos",
            "Name a folder with --out: one file per video.",
        )
    ((name, rows),) = labelled.entries.items()
    file = elan.Eaf(author="tadpipe")
    file.remove_tier("default")
    file.add_linked_file(f"{name}.mp4", relpath=f"./{name}.mp4", mimetype="video/mp4")
    free_from_ms: list[int] = []  # per tier
    for row in sorted(rows):
        start_ms = max(round(row.start_sec * 1000), 0)
        end_ms = max(round(row.end_sec * 1000), start_ms + 1)
        number = next((i for i, free in enumerate(free_from_ms) if free <= start_ms), None)
        if number is None:
            number = len(free_from_ms)
            free_from_ms.append(0)
            file.add_tier(_tier(number))
        free_from_ms[number] = end_ms
        file.add_annotation(_tier(number), start_ms, end_ms, row.label)
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder, "whole.eaf")
        file.to_file(str(whole))
        write_atomically(path, whole.read_text(encoding="utf-8"))


def _tier(number: int) -> str:
    return TIER if number == 0 else f"{TIER} {number + 1}"


def _elan() -> ModuleType:
    try:
        from pympi import Elan
    except ImportError:
        raise ConfigError(
            "ELAN's files are read and written with pympi-ling.",
            todo='Install it: pip install "tadpipe[formats]".',
        ) from None
    module: ModuleType = Elan
    return module
