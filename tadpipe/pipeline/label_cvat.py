"""Labels in CVAT's XML ("CVAT for video 1.1"): a track is a segment, from its first frame to the
last one that is not outside. Frames count from 0."""

from __future__ import annotations

import xml.etree.ElementTree as xml
from pathlib import Path

from tadpipe.errors import AnnotationError, Defect
from tadpipe.pipeline.label_entries import Entry, LabelledVideos, VideoTimes, video_name


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
