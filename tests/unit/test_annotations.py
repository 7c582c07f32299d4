"""Reading annotations and detections: what sound files become."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tadpipe.annotations import (
    Action,
    Detection,
    load_annotations,
    load_detections,
    save_detections,
)
from tadpipe.errors import AnnotationError

THUMOS14 = Path(__file__).parents[3] / "shared" / "data" / "annotations" / "thumos14.json"
needs_thumos14 = pytest.mark.skipif(not THUMOS14.exists(), reason="../shared is not here")


def annotation(start: float, end: float, label: str, **more: Any) -> dict[str, Any]:
    return {"segment": [start, end], "label": label, **more}


def write(folder: Path, database: dict[str, Any], **more: Any) -> Path:
    path = folder / "annotations.json"
    path.write_text(json.dumps({"database": database, **more}), encoding="utf-8")
    return path


def test_a_file_without_version_and_taxonomy_is_read(tmp_path: Path) -> None:
    entry = {"subset": "training", "duration": 20.5, "annotations": [annotation(1, 2.5, "jump")]}
    read = load_annotations(write(tmp_path, {"v 1": entry}))
    assert read.videos["v 1"].actions == (Action(1.0, 2.5, "jump"),)
    assert read.videos["v 1"].duration_sec == 20.5
    assert read.labels == ("jump",)
    assert read.defects == ()


@pytest.mark.parametrize(
    ("keys", "fps"),
    [
        ({"fps": 25}, 25.0),
        ({"frame": 300, "duration": 10}, 30.0),
        ({"frame": 300}, None),
        ({}, None),
    ],
)
def test_fps_is_given_or_frames_over_duration(
    tmp_path: Path, keys: dict[str, Any], fps: float | None
) -> None:
    read = load_annotations(write(tmp_path, {"v": {"subset": "test", **keys}}))
    assert read.videos["v"].fps == fps


@pytest.mark.parametrize("more", [{}, {"annotations": []}])
def test_a_video_may_have_no_annotations(tmp_path: Path, more: dict[str, Any]) -> None:
    read = load_annotations(write(tmp_path, {"v": {"subset": "test", **more}}))
    assert read.videos["v"].actions == ()


def test_labels_are_ordered_by_label_id(tmp_path: Path) -> None:
    actions = [annotation(0, 1, "a", label_id=7), annotation(0, 1, "b", label_id=2)]
    read = load_annotations(write(tmp_path, {"v": {"subset": "x", "annotations": actions}}))
    assert read.labels == ("b", "a")
    assert read.label_ids == {"a": 7, "b": 2}


def test_labels_without_ids_are_sorted_by_name(tmp_path: Path) -> None:
    actions = [annotation(0, 1, "b"), annotation(0, 1, "a")]
    read = load_annotations(write(tmp_path, {"v": {"subset": "x", "annotations": actions}}))
    assert read.labels == ("a", "b")


def test_a_given_class_list_keeps_its_order_and_its_unused_classes(tmp_path: Path) -> None:
    entry = {"subset": "x", "annotations": [annotation(0, 1, "b")]}
    read = load_annotations(write(tmp_path, {"v": entry}), labels=["c", "b", "a"])
    assert read.labels == ("c", "b", "a")


def test_dropped_labels_leave_no_trace(tmp_path: Path) -> None:
    actions = [annotation(0, 1, "a"), annotation(5, 2, "Ambiguous")]
    read = load_annotations(
        write(tmp_path, {"v": {"subset": "x", "annotations": actions}}), drop_labels=["Ambiguous"]
    )
    assert read.labels == ("a",)
    assert [action.label for action in read.videos["v"].actions] == ["a"]


def test_subsets_are_found_without_case(tmp_path: Path) -> None:
    read = load_annotations(write(tmp_path, {"v": {"subset": "Test"}, "w": {"subset": "train"}}))
    assert list(read.subset("test")) == ["v"]


def test_an_unknown_subset_is_answered_with_the_names_that_exist(tmp_path: Path) -> None:
    read = load_annotations(write(tmp_path, {"v": {"subset": "Test"}, "w": {"subset": "train"}}))
    with pytest.raises(AnnotationError, match="Test, train"):
        read.subset("validation")


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    path = write(tmp_path, {"v": {"subset": "x"}})
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert list(load_annotations(path).videos) == ["v"]


@needs_thumos14
def test_the_real_thumos14_file_loads_strictly() -> None:
    read = load_annotations(THUMOS14)
    assert Counter(video.subset for video in read.videos.values()) == {
        "Test": 212,
        "Validation": 200,
    }
    actions = Counter(v.subset for v in read.videos.values() for _ in v.actions)
    assert actions == {"Test": 3358, "Validation": 3007}
    assert all(video.fps and video.duration_sec for video in read.videos.values())


@needs_thumos14
def test_thumos14_has_twenty_labels_in_the_order_of_label_id() -> None:
    read = load_annotations(THUMOS14)
    assert len(read.labels) == 20
    assert [read.label_ids[label] for label in read.labels] == list(range(20))
    assert (read.labels[0], read.labels[4], read.labels[7]) == (
        "BaseballPitch",
        "CliffDiving",
        "Diving",
    )


@needs_thumos14
def test_thumos14_has_thirty_segments_beyond_the_duration_and_no_other_oddity() -> None:
    read = load_annotations(THUMOS14)
    assert len(read.defects) == 30
    assert all(d.is_warning and "beyond the duration" in d.message for d in read.defects)
    of_270 = [d for d in read.defects if "video_test_0000270" in d.place]
    assert len(of_270) == 22


def test_detections_survive_a_round_trip_bit_for_bit(tmp_path: Path) -> None:
    detections = {
        "é/../x": [Detection(0.1 + 0.2, 1 / 3, "a b", 2 / 3), Detection(-1.0, 5e-324, "ü", 0.0)],
        "none": [],
    }
    save_detections(tmp_path / "d.json", detections)
    assert load_detections(tmp_path / "d.json") == detections


def test_saved_detections_have_the_three_keys_of_the_activitynet_toolkit(tmp_path: Path) -> None:
    save_detections(tmp_path / "d.json", {})
    document = json.loads((tmp_path / "d.json").read_text(encoding="utf-8"))
    assert set(document) == {"version", "results", "external_data"}


def test_detections_with_results_only_are_read_in_the_order_of_the_file(tmp_path: Path) -> None:
    rows = [
        {"segment": [1, 2], "label": "a", "score": 0},
        {"segment": [9.5, 3.25], "label": "b", "score": 1, "extra": None},
    ]
    path = tmp_path / "d.json"
    path.write_text(json.dumps({"results": {"z": rows, "a": []}}), encoding="utf-8")
    read = load_detections(path)
    assert list(read) == ["z", "a"]
    assert read["z"] == [Detection(1.0, 2.0, "a", 0.0), Detection(9.5, 3.25, "b", 1.0)]


def test_a_detection_that_is_not_finite_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    save_detections(path, {"old": []})
    with pytest.raises(AnnotationError, match=r'results\["v"\]: 1 rows'):
        save_detections(path, {"v": [Detection(0.0, float("nan"), "a", 0.5)]})
    assert load_detections(path) == {"old": []}
