"""Ego4D Moment Queries from the official files: clips, primary labels, both conversions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tadpipe.datasets.annotation_files import annotation_copy, read_annotations
from tadpipe.datasets.ego4d_mq import EGO4D_MQ, EGO4D_MQ_OPENTAD
from tadpipe.errors import AnnotationError


def label(start: float, end: float, name: str = "use phone", *, primary: bool = True) -> Any:
    return {"label": name, "primary": primary, "video_start_time": start, "video_end_time": end}


def clip(name: str, *annotators: list[Any], start_frame: int = 3010, fps: float = 30) -> Any:
    """A clip of ten seconds."""
    return {
        "clip_uid": name,
        "video_start_sec": start_frame / fps,
        "video_end_sec": start_frame / fps + 10,
        "video_start_frame": start_frame,
        "video_end_frame": start_frame + 10 * fps,
        "annotations": [
            {"annotator_uid": f"p{i}", "labels": ls} for i, ls in enumerate(annotators)
        ],
    }


def write(
    folder: Path, *clips: Any, split: str = "train", name: str = "moments_train.json"
) -> Path:
    videos = [{"video_uid": "v", "split": split, "clips": list(clips)}]
    path = folder / name
    path.write_text(json.dumps({"version": "1", "videos": videos}), encoding="utf-8")
    return path


START = 3010 / 30


def test_a_clip_is_an_item_with_times_from_its_start(tmp_path: Path) -> None:
    path = write(tmp_path, clip("c", [label(START + 2, START + 5)]))
    read = read_annotations(path, EGO4D_MQ_OPENTAD)
    video = read.videos["c"]
    assert (video.subset, video.fps) == ("train", pytest.approx(30))
    assert video.duration_sec == pytest.approx(10)
    (action,) = video.actions
    assert action[:2] == pytest.approx((2, 5))
    assert action.label == "use_phone"


def test_a_clip_begins_with_a_feature_where_the_recipes_say_so(tmp_path: Path) -> None:
    path = write(tmp_path, clip("c", [label(START + 2, START + 5)]))
    video = read_annotations(path, EGO4D_MQ).videos["c"]
    ahead_sec = (3010 % 16) / 30
    assert video.duration_sec == pytest.approx(10 + ahead_sec)
    assert video.actions[0].start_sec == pytest.approx(2 + ahead_sec)


def test_short_actions_are_left_out_where_the_recipes_say_so(tmp_path: Path) -> None:
    labels = [label(START + 2, START + 2.2), label(START + 3, START + 3.3)]
    path = write(tmp_path, clip("c", labels))
    assert len(read_annotations(path, EGO4D_MQ).videos["c"].actions) == 1
    assert len(read_annotations(path, EGO4D_MQ_OPENTAD).videos["c"].actions) == 2


def test_primary_labels_of_all_annotators_count(tmp_path: Path) -> None:
    first = [label(START + 1, START + 2, "a"), label(START + 1, START + 2, "b", primary=False)]
    path = write(tmp_path, clip("c", first, [label(START + 4, START + 6, "d")]))
    read = read_annotations(path, EGO4D_MQ)
    assert [action.label for action in read.videos["c"].actions] == ["a", "d"]
    assert read.labels == ("a", "d")


def test_clips_without_labels_or_with_an_impossible_rate_are_dropped(tmp_path: Path) -> None:
    good = [label(START + 1, START + 2)]
    path = write(tmp_path, clip("a", good), clip("b", []), clip("c", good, fps=5))
    read = read_annotations(path, EGO4D_MQ)
    assert list(read.videos) == ["a"]
    assert [(d.place, d.is_warning) for d in read.defects] == [("$.videos[0].clips[2]", True)]


def test_the_unannotated_clips_are_kept(tmp_path: Path) -> None:
    unannotated = clip("t")
    del unannotated["annotations"]
    path = write(tmp_path, unannotated, split="test")
    assert read_annotations(path, EGO4D_MQ).videos["t"].actions == ()


def test_a_folder_is_read_whole(tmp_path: Path) -> None:
    write(tmp_path, clip("a", [label(START + 1, START + 2)]))
    second = clip("b", [label(START + 1, START + 2)])
    write(tmp_path, second, split="val", name="moments_val.json")
    read = read_annotations(tmp_path, EGO4D_MQ)
    assert EGO4D_MQ.split(read.subset_names()) == ("train", "val")


def test_every_defect_is_named_by_its_place(tmp_path: Path) -> None:
    wrong = clip("a", [label(START + 3, START + 2), {"primary": True}, 7])
    twice, nameless, timeless = clip("a", []), clip("", []), clip("d", [])
    twice["clip_uid"] = "a"
    timeless["video_end_sec"] = None
    good = label(START + 1, START + 2)
    wrong["annotations"].append({"labels": [good]})
    path = write(tmp_path, wrong, twice, nameless, timeless)
    with pytest.raises(AnnotationError) as caught:
        read_annotations(path, EGO4D_MQ, strict=True)
    labels = "$.videos[0].clips[0].annotations[0].labels"
    assert [defect.place for defect in caught.value.defects] == [
        f"{labels}[0]",
        f"{labels}[1]",
        f"{labels}[1].video_start_time",
        f"{labels}[1].video_end_time",
        f"{labels}[2]",
        "$.videos[0].clips[1].clip_uid",
        "$.videos[0].clips[2].clip_uid",
        "$.videos[0].clips[3].video_end_sec",
    ]


def test_converted_json_is_read_as_it_is(tmp_path: Path) -> None:
    write(tmp_path, clip("c", [label(START + 2, START + 5)]))
    copy = tmp_path / "copy.json"
    copy.write_bytes(annotation_copy(tmp_path, EGO4D_MQ))
    original, read = read_annotations(tmp_path, EGO4D_MQ), read_annotations(copy, EGO4D_MQ)
    assert (read.videos, read.labels) == (original.videos, original.labels)
