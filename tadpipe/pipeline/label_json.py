"""Labels in the JSON of annotation programs: VIA 3, Label Studio, FiftyOne.

Order: VIA (VGG Image Annotator, video project) -> Label Studio (task export) -> FiftyOne
(FiftyOneTemporalDetectionDataset).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tadpipe.config import write_atomically
from tadpipe.errors import AnnotationError, Defect
from tadpipe.json_text import child, finite, read_json, shown
from tadpipe.pipeline.label_entries import Entry, LabelledVideos, VideoTimes, video_name

Node = Mapping[str, Any]
UPLOADED = re.compile(r"^[0-9a-f]{8}-(?=.)")  # what Label Studio sets before a file's name


def read_via(path: Path, _times: VideoTimes) -> LabelledVideos:
    """Temporal segments of a VIA 3 project; the label is the first attribute that has a value.

    Raises:
        AnnotationError: not such a project, or a segment without times or label.
    """
    document = _object(path, "file", "metadata", "attribute")
    views = document.get("view") or {}
    names = {fid: video_name(str(file["fname"])) for fid, file in document["file"].items()}
    labelled, defects = LabelledVideos({name: [] for name in names.values()}), []
    for key, item in document["metadata"].items():
        if len(item.get("z") or ()) != 2 or item.get("xy"):
            continue  # a region of one frame, or of a still picture
        place = child("$.metadata", key)
        files = views.get(str(item.get("vid")), {}).get("fid_list") or [item.get("vid")]
        label = _via_label(item.get("av") or {}, document["attribute"])
        start, end = map(finite, item["z"])
        if start is None or end is None or label is None or str(files[0]) not in names:
            defects.append(Defect(str(path), place, f"{shown(item)}: no times, label or video"))
        else:
            labelled.add(names[str(files[0])], Entry(start, end, label))
    _raise(defects)
    return labelled


def _via_label(values: Node, attributes: Node) -> str | None:
    for key, value in values.items():
        options = (attributes.get(key) or {}).get("options") or {}
        text = str(options.get(str(value), value)).strip()
        if text:
            return text
    return None


def write_via(path: Path, labelled: LabelledVideos, _times: VideoTimes) -> None:
    """A project that VIA 3 opens; videos are looked for beside it as NAME.mp4."""
    labels = sorted({entry.label for rows in labelled.entries.values() for entry in rows})
    numbers = {label: str(i) for i, label in enumerate(labels)}
    files, views, metadata = {}, {}, {}
    for i, (name, rows) in enumerate(labelled.entries.items(), start=1):
        film = f"{name}.mp4"
        files[str(i)] = {"fid": str(i), "fname": film, "type": 4, "loc": 3, "src": film}
        views[str(i)] = {"fid_list": [str(i)]}
        for j, row in enumerate(rows):
            metadata[f"{i}_{j}"] = {
                "vid": str(i),
                "flg": 0,
                "z": [row.start_sec, row.end_sec],
                "xy": [],
                "av": {"1": numbers[row.label]},
            }
    attribute = {
        "aname": "label",
        "anchor_id": "FILE1_Z2_XY0",
        "type": 4,
        "desc": "",
        "options": {number: label for label, number in numbers.items()},
        "default_option_id": "",
    }
    project = {
        "pid": "__VIA_PROJECT_ID__",
        "rev": "__VIA_PROJECT_REV_ID__",
        "pname": path.stem,
        "creator": "tadpipe",
        "data_format_version": "3.1.1",
        "vid_list": list(views),
    }
    document = {
        "project": project,
        "config": {"file": {"loc_prefix": {"1": "", "2": "", "3": "", "4": ""}}},
        "attribute": {"1": attribute},
        "file": files,
        "metadata": metadata,
        "view": views,
    }
    _write(path, document)


def read_label_studio(path: Path, times: VideoTimes) -> LabelledVideos:
    """Tasks with timeline labels (frames, from 1) or labels of a time axis (seconds).

    Raises:
        AnnotationError: no list of tasks.
        ConfigError: frames, and neither video nor rate is known.
    """
    document = read_json(path)
    if not isinstance(document, list) or not all(isinstance(task, dict) for task in document):
        raise _not("Label Studio's tasks (JSON)", path)
    labelled = LabelledVideos()
    for i, task in enumerate(document):
        where = f"{path}: $[{i}]"
        content = task.get("data") or {}
        address = content.get("video") or next((v for v in content.values() if v), "")
        name = UPLOADED.sub("", video_name(str(address)))
        labelled.entries.setdefault(name, [])
        for job in [*(task.get("annotations") or []), *(task.get("predictions") or [])][:1]:
            for item in job.get("result") or []:
                for entry in _label_studio_entries(item, name, times, where):
                    labelled.add(name, entry)
    return labelled


def _label_studio_entries(item: Node, name: str, times: VideoTimes, place: str) -> Iterator[Entry]:
    value, score = item.get("value") or {}, finite(item.get("score"))
    for label in value.get("timelinelabels") or []:
        for span in value.get("ranges") or []:
            start = times.frame_sec(name, span["start"] - 1, place)
            yield Entry(start, times.frame_sec(name, span["end"], place), label, score)
    if "start" in value and "end" in value:
        for label in value.get("labels") or []:
            yield Entry(float(value["start"]), float(value["end"]), label, score)


def write_label_studio(path: Path, labelled: LabelledVideos, _times: VideoTimes) -> None:
    """Tasks with labels of a time axis in seconds, as predictions where they have scores."""
    tasks = []
    for name, rows in labelled.entries.items():
        results = [
            {
                "from_name": "label",
                "to_name": "audio",
                "type": "labels",
                "value": {"start": row.start_sec, "end": row.end_sec, "labels": [row.label]},
                **({} if row.score is None else {"score": row.score}),
            }
            for row in rows
        ]
        key = "predictions" if any(row.score is not None for row in rows) else "annotations"
        tasks.append({"data": {"video": f"{name}.mp4"}, key: [{"result": results}]})
    _write(path, tasks)


def read_fiftyone(path: Path, times: VideoTimes) -> LabelledVideos:
    """labels.json of a FiftyOneTemporalDetectionDataset: timestamps, or frame support from 1.

    Raises:
        AnnotationError: not such a file.
        ConfigError: frames, and neither video nor rate is known.
    """
    document = _object(path, "labels")
    classes = document.get("classes") or []
    labelled = LabelledVideos()
    for key, items in document["labels"].items():
        name, place = video_name(key), child("$.labels", key)
        labelled.entries.setdefault(name, [])
        for item in items or []:
            label = classes[item["label"]] if isinstance(item["label"], int) else item["label"]
            if "timestamps" in item:
                start, end = item["timestamps"]
            else:
                first, last = item["support"]
                where = f"{path}: {place}"
                start = times.frame_sec(name, first - 1, where)
                end = times.frame_sec(name, last, where)
            labelled.add(name, Entry(float(start), float(end), label, item.get("confidence")))
    return labelled


def write_fiftyone(path: Path, labelled: LabelledVideos, _times: VideoTimes) -> None:
    """labels.json with timestamps in seconds; the videos belong into `data/` beside it."""
    labels = sorted({entry.label for rows in labelled.entries.values() for entry in rows})
    numbers = {label: i for i, label in enumerate(labels)}
    found = {
        name: [
            {
                "label": numbers[row.label],
                "timestamps": [row.start_sec, row.end_sec],
                **({} if row.score is None else {"confidence": row.score}),
            }
            for row in rows
        ]
        for name, rows in labelled.entries.items()
    }
    _write(path, {"classes": labels, "labels": found})


def _object(path: Path, *keys: str) -> Node:
    document = read_json(path)
    if not isinstance(document, dict) or not all(
        isinstance(document.get(key), dict) for key in keys
    ):
        raise _not(f"an object with {', '.join(keys)}", path)
    return document


def _not(what: str, path: Path) -> AnnotationError:
    return AnnotationError(
        f"The file is not {what}.", [Defect(str(path), "$", "other keys")], "Check --from."
    )


def _raise(defects: list[Defect]) -> None:
    if defects:
        raise AnnotationError(
            f"{len(defects)} labels cannot be read.", defects, "Mend them, or remove them."
        )


def _write(path: Path, document: Any) -> None:
    text = json.dumps(document, ensure_ascii=False, indent=1, allow_nan=False)
    write_atomically(path, text + "\n")
