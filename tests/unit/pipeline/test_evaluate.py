"""What `evaluate` reads, what it falls back to and what it says was scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tadpipe.annotations import Action, Annotations, Detection, Video, save_detections
from tadpipe.errors import AnnotationError, ConfigError
from tadpipe.pipeline.evaluate import evaluate, load_video_list

FOUND = {"v": [Detection(0.0, 4.0, "a", 0.9)], "w": [Detection(0.0, 4.0, "a", 0.8)]}


def entry(subset: str, *segments: list[float], label: str = "a") -> dict[str, Any]:
    actions = [{"segment": segment, "label": label} for segment in segments]
    return {"subset": subset, "duration": 50.0, "annotations": actions}


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Annotations of one subset, and detections that find half of them."""
    database = {"v": entry("Test", [0, 4]), "w": entry("Test", [10, 14])}
    annotations = tmp_path / "annotations.json"
    annotations.write_text(json.dumps({"database": database}), encoding="utf-8")
    save_detections(tmp_path / "detections.json", FOUND)
    return annotations, tmp_path / "detections.json"


def several_subsets(folder: Path) -> Path:
    path = folder / "several.json"
    database = {"v": entry("Validation", [0, 4]), "w": entry("Test", [0, 4])}
    path.write_text(json.dumps({"database": database}), encoding="utf-8")
    return path


def test_the_only_subset_is_scored(files: tuple[Path, Path]) -> None:
    result = evaluate(files[1], annotations=files[0])
    assert (result.subset, result.average_map) == ("Test", 0.5)
    assert result.score.tious == (0.3, 0.4, 0.5, 0.6, 0.7)
    assert result.score.protocol.name == "opentad"


def test_several_subsets_are_asked_about(files: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match="Validation, Test"):
        evaluate(files[1], annotations=several_subsets(tmp_path))


def test_a_named_subset_is_found_without_case(files: tuple[Path, Path], tmp_path: Path) -> None:
    result = evaluate(files[1], annotations=several_subsets(tmp_path), subset="test")
    assert (result.subset, result.score.videos) == ("Test", 1)


def test_a_data_set_gives_subset_thresholds_dropped_labels_and_block_list(tmp_path: Path) -> None:
    database = {
        "video_test_0000004": entry("Test", [0, 4]),
        "video_test_0000270": entry("Test", [0, 4]),
        "video_validation_0000051": entry("Validation", [0, 4]),
        "video_test_0000006": entry("Test", [0, 4], label="Ambiguous"),
    }
    path = tmp_path / "thumos14.json"
    path.write_text(json.dumps({"database": database}), encoding="utf-8")
    result = evaluate({}, annotations=path, dataset="thumos14")
    assert result.subset == "Test"
    assert result.score.labels == ("a",)
    assert result.score.blocked == ("video_test_0000270",)
    assert "video_test_0000270 (its annotations are wrong)" in result.text()


def test_a_block_list_replaces_that_of_the_data_set(tmp_path: Path) -> None:
    videos = {
        name: Video(name, subset, actions=(Action(0.0, 4.0, "a"),))
        for name, subset in (("video_test_0000270", "Test"), ("x", "Test"), ("y", "Validation"))
    }
    annotations = Annotations(videos, ("a",))
    result = evaluate({}, annotations=annotations, dataset="thumos14", blocked=["x"])
    assert result.score.blocked == ("x",)


@pytest.mark.parametrize(("name", "text"), [("b.json", '["v", "w"]'), ("b.txt", "v\n\n  w \nv\n")])
def test_block_lists_are_json_or_text(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert load_video_list(tmp_path / name) == ("v", "w")


def test_a_block_list_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text('{"v": 1}', encoding="utf-8")
    with pytest.raises(AnnotationError, match="not a list of videos"):
        load_video_list(tmp_path / "b.json")
    with pytest.raises(AnnotationError, match="cannot be read"):
        load_video_list(tmp_path / "missing.txt")


def test_a_run_folder_brings_detections_and_settings(files: tuple[Path, Path]) -> None:
    annotations, detections = files
    several = several_subsets(annotations.parent)
    config = {"annotations": str(several), "dataset": None, "subsets": {"test": "Validation"}}
    (detections.parent / "config.json").write_text(json.dumps(config), encoding="utf-8")
    result = evaluate(detections.parent)
    assert (result.subset, result.annotations) == ("Validation", str(several))


def test_a_damaged_run_configuration_is_an_error(files: tuple[Path, Path]) -> None:
    (files[1].parent / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot be read"):
        evaluate(files[1].parent)


def test_a_folder_without_detections_is_an_error(files: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no detections"):
        evaluate(tmp_path / "..", annotations=files[0])


def test_missing_annotations_are_asked_for(files: tuple[Path, Path]) -> None:
    with pytest.raises(ConfigError, match="--annotations"):
        evaluate(files[1])


def test_defects_stop_unless_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    database = {"v": entry("Test", [0, 4]), "w": {"annotations": []}}
    path.write_text(json.dumps({"database": database}), encoding="utf-8")
    with pytest.raises(AnnotationError, match="no subset"):
        evaluate(FOUND, annotations=path)
    result = evaluate(FOUND, annotations=path, skip_defects=True)
    assert result.score.videos == 1
    assert "1 annotation entry with errors left out" in result.text()


def test_empty_ground_truths_count_under_activitynet_and_not_under_opentad(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"database": {"v": entry("Test", [0, 4], [5, 5])}}))
    found = {"v": FOUND["v"]}
    assert evaluate(found, annotations=path, protocol="activitynet").average_map == 0.5
    assert evaluate(found, annotations=path, protocol="opentad").average_map == 1.0


def test_videos_without_detections_and_of_other_subsets_are_named(
    files: tuple[Path, Path],
) -> None:
    found = {"v": FOUND["v"], "stranger": FOUND["v"]}
    text = evaluate(found, annotations=files[0]).text()
    assert "2 videos scored with 2 actions of 1 class; 2 detections" in text
    assert "1 video without any detection: w" in text
    assert "0 videos blocked" in text
    assert "1 video not in the subset, their detections count as false positives: stranger" in text


def test_the_table_shows_every_threshold_and_on_request_every_class(
    files: tuple[Path, Path],
) -> None:
    result = evaluate(files[1], annotations=files[0], tious=[0.5, 0.75])
    assert "tIoU        0.50   0.75  average\nmAP        50.00  50.00    50.00\n" in result.text()
    assert "class" not in result.text().splitlines()[4]
    assert "a      50.00  50.00    50.00        2           2" in result.text(per_class=True)


def test_proposals_are_scored_on_request(files: tuple[Path, Path]) -> None:
    result = evaluate(files[1], annotations=files[0], max_an=10)
    assert result.to_mapping()["proposals"]["proposals_per_video"][-1] == 10.0
    assert "AR@1 50.00" in result.text()


def test_the_result_is_written_as_json(files: tuple[Path, Path], tmp_path: Path) -> None:
    result = evaluate(files[1], annotations=files[0], out=tmp_path / "eval.json")
    written = json.loads((tmp_path / "eval.json").read_text(encoding="utf-8"))
    assert written == result.to_mapping()
    assert (written["average_map"], written["subset"]) == (0.5, "Test")


def test_epic_files_are_scored_in_three_tasks(tmp_path: Path) -> None:
    head = "video_id,start_timestamp,stop_timestamp,verb_class,noun_class\n"
    (tmp_path / "a.csv").write_text(head + "P01_01,00:00:01.0,00:00:02.0,3,2\n", encoding="utf-8")
    row = {"verb": 3, "noun": 2, "action": "3,2", "score": 0.5, "segment": [1.0, 2.0]}
    document = {"version": "0.2", "challenge": "action_detection", "results": {"P01_01": [row]}}
    (tmp_path / "s.json").write_text(
        json.dumps({**document, "sls_pt": 0, "sls_tl": 0, "sls_td": 0}), encoding="utf-8"
    )
    result = evaluate(tmp_path / "s.json", annotations=tmp_path / "a.csv")
    assert list(result.scores) == ["verb", "noun", "action"]
    assert result.to_mapping()["action"]["classes"]["902"]["num_truth"] == 1
    assert result.score.protocol.name == "epic"
    with pytest.raises(ConfigError, match="submission file"):
        evaluate({}, annotations=tmp_path / "a.csv")
