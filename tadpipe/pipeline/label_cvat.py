"""Labels in CVAT's XML ("CVAT for video 1.1"), frames counted from 0.

A track is a segment, from its first frame to the last one that is not outside; written tracks are
boxes of the whole picture.
"""

from __future__ import annotations

import xml.etree.ElementTree as xml
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path

from tadpipe.config import write_atomically
from tadpipe.errors import AnnotationError, ConfigError, Defect
from tadpipe.pipeline.label_entries import Entry, LabelledVideos, VideoTimes, video_name
from tadpipe.video.packets import VideoProbe


def read_cvat(path: Path, times: VideoTimes) -> LabelledVideos:
    """The tracks of a task's export.

    Raises:
        AnnotationError: no such XML.
        ConfigError: neither the video nor a rate is known.
    """
    try:
        root = xml.parse(path).getroot()
    except (OSError, xml.ParseError) as error:
        raise AnnotationError("The file is no XML.", [Defect(str(path), "", str(error))]) from None
    if root.tag != "annotations":
        text = f"<{root.tag}>, not <annotations>"
        raise AnnotationError("The file is not CVAT's.", [Defect(str(path), "", text)])
    source = root.findtext(".//meta//source") or ""
    name = video_name(source) if source else path.stem
    if root.find("image") is not None and root.find("track") is None:
        text = "<image> elements and no <track>: labels of single pictures"
        raise AnnotationError(
            "The file holds no segments.",
            [Defect(str(path), "", text)],
            'Export the task as "CVAT for video 1.1".',
        )
    labelled = LabelledVideos({name: []})
    for track in root.iter("track"):
        seen = [int(shape.get("frame", "0")) for shape in track if shape.get("outside", "0") != "1"]
        gone = [int(shape.get("frame", "0")) for shape in track if shape.get("outside") == "1"]
        if seen and track.get("label"):
            place = f"{path}: track {track.get('id')}"
            # A box holds until a later one is outside.
            end = min((frame for frame in gone if frame > max(seen)), default=max(seen) + 1)
            labelled.add(
                name,
                Entry(
                    times.frame_sec(name, min(seen), place),
                    times.frame_sec(name, end, place),
                    track.get("label", ""),
                ),
            )
    return labelled


def write_cvat(path: Path, labelled: LabelledVideos, times: VideoTimes) -> None:
    """One video's segments as tracks, for upload to a task of that video.

    Raises:
        ConfigError: several videos, or the video's file is not among `times`.
    """
    if len(labelled.entries) != 1:
        raise ConfigError(
            "CVAT's XML belongs to one video.",
            f"{path}: {len(labelled.entries)} videos",
            "Name a folder with --out: one file per video.",
        )
    ((name, rows),) = labelled.entries.items()
    probe = times.probe(name)
    if probe is None:
        raise ConfigError(
            "CVAT counts frames, and the video is not known.",
            f"{path}: video {name!r}",
            "Give --videos FOLDER with the files.",
        )
    root = xml.Element("annotations")
    xml.SubElement(root, "version").text = "1.1"
    root.append(_meta(name, sorted({row.label for row in rows}), probe))
    size = {"xtl": "0", "ytl": "0", "xbr": str(probe.width), "ybr": str(probe.height)}
    half_sec = probe.duration_sec / max(probe.frames, 1) / 2
    for number, row in enumerate(rows):
        track = xml.SubElement(root, "track", id=str(number), label=row.label)
        first = bisect_left(probe.times_sec, row.start_sec - half_sec)  # the nearest frame
        first = min(first, probe.frames - 1)
        end = max(bisect_left(probe.times_sec, row.end_sec - half_sec), first + 1)
        outside = {first: "0", end - 1: "0", end: "1"}
        for frame in (frame for frame in outside if frame < probe.frames):
            keys = {"frame": str(frame), "outside": outside[frame], "occluded": "0"}
            xml.SubElement(track, "box", {**keys, "keyframe": "1", **size})
    xml.indent(root)
    write_atomically(path, xml.tostring(root, encoding="unicode") + "\n")


def _meta(name: str, labels: Sequence[str], probe: VideoProbe) -> xml.Element:
    """The task that the tracks belong to, with its labels; readers want it."""
    meta = xml.Element("meta")
    task = xml.SubElement(meta, "task")
    facts = {
        "name": name,
        "size": probe.frames,
        "mode": "interpolation",
        "start_frame": 0,
        "stop_frame": probe.frames - 1,
    }
    for key, value in facts.items():
        xml.SubElement(task, key).text = str(value)
    listed = xml.SubElement(task, "labels")
    for label in labels:
        entry = xml.SubElement(listed, "label")
        xml.SubElement(entry, "name").text = label
        xml.SubElement(entry, "attributes")
    size = xml.SubElement(task, "original_size")
    xml.SubElement(size, "width").text = str(probe.width)
    xml.SubElement(size, "height").text = str(probe.height)
    xml.SubElement(meta, "source").text = f"{name}.mp4"
    return meta
