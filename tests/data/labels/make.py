"""Label files made by the programs' own libraries, which are too heavy for the test extra.

Run each part in an environment of its own, which has the library and no tadpipe:
python make.py fiftyone   (fiftyone 1.22.1; its exporters need no database)
python make.py label-studio   (label-studio-sdk 2.1.2)
python make.py cvat   (datumaro 1.13.12; pictures only: just CVAT's own server writes tracks)
With a folder of what `tadpipe annotations export` wrote of a film of 100 frames at 10 fps, a/a.mp4,
as a/a.xml, a/a.fiftyone.json and a/a.label-studio.json, the libraries read that instead:
python make.py fiftyone a
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
TIMELINE = """<View><Video name="video" value="$video"/><TimelineLabels name="label" toName="video">
<Label value="run"/><Label value="long jump"/></TimelineLabels></View>"""
AUDIO = """<View><Labels name="label" toName="audio"><Label value="run"/><Label value="long jump"/>
</Labels><Video name="video" value="$video" sync="v"/><Audio name="audio" value="$video" sync="v"/>
</View>"""


def fiftyone() -> None:
    import fiftyone as fo
    from fiftyone.utils.data import FiftyOneTemporalDetectionDatasetExporter as Exporter

    about = fo.VideoMetadata(total_frame_count=100, frame_rate=10.0, duration=10.0)
    rows = [("run", [11, 20], None), ("long jump", [21, 60], 0.75)]
    found = fo.TemporalDetections(
        detections=[
            fo.TemporalDetection(label=label, support=support, confidence=score)
            for label, support, score in rows
        ]
    )
    for name, in_seconds in (("frames", False), ("seconds", True)):
        folder = HERE / "made"
        exporter = Exporter(
            export_dir=str(folder),
            export_media=False,
            use_timestamps=in_seconds,
            classes=["long jump", "run"],
        )
        with exporter:
            exporter.log_collection(None)
            exporter.export_sample("/films/film_1.mp4", found, None, metadata=about)
            exporter.export_sample("/films/empty.mp4", None, None, metadata=about)
        (folder / "labels.json").rename(HERE / f"fiftyone_{name}.json")
        shutil.rmtree(folder)


def read_by_fiftyone(folder: Path) -> None:
    import fiftyone as fo
    from fiftyone.utils.data import FiftyOneTemporalDetectionDatasetImporter as Importer

    about = fo.VideoMetadata(total_frame_count=100, frame_rate=10.0, duration=10.0)
    fo.VideoMetadata.build_for = classmethod(lambda *_args, **_options: about)  # without ffprobe
    (folder / "fiftyone" / "data").mkdir(parents=True)
    shutil.copy(folder / "a.mp4", folder / "fiftyone" / "data")
    shutil.copy(folder / "a.fiftyone.json", folder / "fiftyone" / "labels.json")
    importer = Importer(dataset_dir=str(folder / "fiftyone"), compute_metadata=True)
    with importer:
        for path, _, found, *_ in importer:
            print(path, [(each.label, each.support, each.confidence) for each in found.detections])


def label_studio() -> None:
    from label_studio_sdk.label_interface import LabelInterface

    seconds = [(1.0, 2.0, "run"), (2.0, 6.0, "long jump")]
    timeline = LabelInterface(TIMELINE).get_control("label")
    spans = [
        timeline.label(timelinelabels=[label], ranges=[{"start": a * 10 + 1, "end": b * 10}])
        for a, b, label in seconds
    ]
    audio = LabelInterface(AUDIO).get_control("label")
    labels = [audio.label(labels=[label], start=a, end=b) for a, b, label in seconds]
    for name, regions in (("timeline", spans), ("audio", labels)):
        result = [region._dict() for region in regions]
        task = {"id": 1, "data": {"video": "/data/upload/1/9af20c1e-film_1.mp4"}}
        tasks = [{**task, "annotations": [{"id": 1, "result": result}], "predictions": []}]
        path = HERE / f"label_studio_{name}.json"
        path.write_text(json.dumps(tasks, indent=1, default=str) + "\n", encoding="utf-8")


def read_by_label_studio(folder: Path) -> None:
    from label_studio_sdk.label_interface import LabelInterface

    interface = LabelInterface(AUDIO)
    for task in json.loads((folder / "a.label-studio.json").read_text()):
        for each in task.get("annotations", []):
            print("annotation is valid:", interface.validate_annotation(each))
        for each in task.get("predictions", []):
            print("errors of prediction:", interface.validate_prediction(each, return_errors=True))


def cvat() -> None:
    import datumaro
    import numpy as np

    items = [
        datumaro.DatasetItem(
            id=f"frame_{frame:06d}",
            media=datumaro.Image.from_numpy(data=np.zeros((64, 96, 3), np.uint8)),
            attributes={"frame": frame},
            annotations=[datumaro.Bbox(0, 0, 96, 64, label=0)],
        )
        for frame in (3, 4)
    ]
    data = datumaro.Dataset.from_iterable(items, categories=["run"])
    data.export(str(HERE / "made"), "cvat", save_media=False)
    (HERE / "made" / "default.xml").rename(HERE / "cvat_images.xml")
    shutil.rmtree(HERE / "made")


def read_by_datumaro(folder: Path) -> None:
    import datumaro

    (folder / "cvat").mkdir()
    shutil.copy(folder / "a.xml", folder / "cvat" / "annotations.xml")
    data = datumaro.Dataset.import_from(str(folder / "cvat"), "cvat")
    names = [each.name for each in data.categories()[datumaro.AnnotationType.label]]
    for item in data:
        boxes = [(names[box.label], box.attributes["outside"]) for box in item.annotations]
        print("frame", item.attributes["frame"], boxes)


if __name__ == "__main__":
    makers = {"fiftyone": fiftyone, "label-studio": label_studio, "cvat": cvat}
    readers = {
        "fiftyone": read_by_fiftyone,
        "label-studio": read_by_label_studio,
        "cvat": read_by_datumaro,
    }
    if len(sys.argv) == 2:
        makers[sys.argv[1]]()
    else:
        readers[sys.argv[1]](Path(sys.argv[2]))
