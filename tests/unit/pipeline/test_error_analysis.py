"""`evaluate(..., errors=True)`: what the diagnosis reads, which bins it takes, what is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tadpipe.annotations import Detection, save_detections
from tadpipe.errors import AnnotationError, ConfigError
from tadpipe.evaluation.characteristics import BIN_SETS
from tadpipe.pipeline.evaluate import evaluate
from tadpipe.pipeline.evaluation_result import Evaluation

FOUND = {
    "v": [Detection(0.0, 4.0, "a", 0.9), Detection(30.0, 34.0, "a", 0.8)],
    "w": [Detection(10.0, 14.0, "a", 0.7)],
}


def annotation_file(folder: Path, **extra: Any) -> Path:
    def video(*segments: list[float]) -> dict[str, Any]:
        actions = [{"segment": segment, "label": "a", **extra} for segment in segments]
        return {"subset": "Test", "duration": 50.0, "annotations": actions}

    path = folder / "annotations.json"
    database = {"v": video([0, 4], [20, 30]), "w": video([10, 14])}
    path.write_text(json.dumps({"database": database}), encoding="utf-8")
    return path


def diagnosed(folder: Path, **options: Any) -> Evaluation:
    return evaluate(FOUND, annotations=annotation_file(folder), errors=True, **options)


def characteristics(result: Evaluation) -> dict[str, Any]:
    document: dict[str, Any] = result.to_mapping()["errors"]["characteristics"]
    return document


def test_without_being_asked_for_there_is_no_diagnosis(tmp_path: Path) -> None:
    result = evaluate(FOUND, annotations=annotation_file(tmp_path))
    assert result.errors is None
    assert "errors" not in result.to_mapping()


def test_durations_of_the_annotations_give_coverage(tmp_path: Path) -> None:
    errors = diagnosed(tmp_path).errors
    assert errors is not None
    coverage = next(c for c in errors["detection"].characteristics if c.name == "coverage")
    assert coverage.values.tolist() == pytest.approx([0.08, 0.2, 0.08])


def test_the_published_bins_of_the_data_set_are_taken(tmp_path: Path) -> None:
    found = characteristics(diagnosed(tmp_path, dataset="activitynet", subset="Test"))
    assert found["length"]["edges"][:-1] == list(BIN_SETS["activitynet"]["length"].edges)[:-1]
    assert found["length"]["edges"][-1] == "inf"


def test_bins_asked_for_come_before_those_of_the_data_set(tmp_path: Path) -> None:
    result = diagnosed(tmp_path, dataset="activitynet", subset="Test", bins="quantiles")
    assert characteristics(result)["length"]["edges"] == [4.0, 4.0, 10.0]


def test_bins_are_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "bins.json"
    path.write_text('{"length": {"edges": [0, 5, "inf"], "names": ["short", "long"]}}')
    found = diagnosed(tmp_path, bins=path).to_mapping()["errors"]["sensitivity"]["length"]
    assert (found["bins"], found["num_truth"]) == (["short", "long"], [2, 1])


def test_bins_without_errors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--errors"):
        evaluate(FOUND, annotations=annotation_file(tmp_path), bins="thumos14")


def test_characteristics_of_the_annotation_file_are_used(tmp_path: Path) -> None:
    path = annotation_file(tmp_path, **{"context-size": 3, "num-instances": 7})
    found = characteristics(evaluate(FOUND, annotations=path, errors=True))
    assert found["context-size"]["from_file"]
    assert found["num-instances"]["edges"] == [7.0, 7.0]
    assert not found["length"]["from_file"]


def test_a_file_for_the_result_holds_the_errors(tmp_path: Path) -> None:
    diagnosed(tmp_path, out=tmp_path / "all.json")
    document = json.loads((tmp_path / "all.json").read_text(encoding="utf-8"))
    assert document["errors"]["false_positives"]["num_detections"] == 3


def test_a_folder_for_the_result_gets_scores_and_errors_apart(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    diagnosed(tmp_path, out=folder)
    scores = json.loads((folder / "eval.json").read_text(encoding="utf-8"))
    errors = json.loads((folder / "errors.json").read_text(encoding="utf-8"))
    assert "errors" not in scores
    assert scores["average_map"] == pytest.approx(errors["average_map"])


def test_an_empty_subset_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "empty.json"
    database = {"v": {"subset": "Test", "duration": 50.0, "annotations": []}}
    path.write_text(json.dumps({"database": database}), encoding="utf-8")
    with pytest.raises(AnnotationError, match="no ground truth"):
        evaluate(FOUND, annotations=path, errors=True)


def test_class_agnostic_detections_keep_the_characteristics_of_the_file(tmp_path: Path) -> None:
    path = annotation_file(tmp_path, **{"context-size": 3})
    found = {v: [d._replace(label="action") for d in rows] for v, rows in FOUND.items()}
    result = evaluate(found, annotations=path, errors=True)
    assert result.has_one_label
    assert characteristics(result)["context-size"]["without_bin"] == 0


def epic_files(folder: Path) -> tuple[Path, Path]:
    truth = folder / "EPIC_100_validation.csv"
    truth.write_text(
        "video_id,start_timestamp,stop_timestamp,verb_class,noun_class\n"
        "P01_11,00:00:01.000,00:00:03.000,1,2\nP01_11,00:00:05.000,00:00:09.000,3,2\n"
    )
    (folder / "EPIC_100_video_info.csv").write_text("video_id,duration,fps\nP01_11,20,50\n")
    row = {"verb": 1, "noun": 2, "action": "1,2", "score": 0.5, "segment": [1.0, 3.0]}
    submission = {"version": "0.2", "challenge": "action_detection",
                  "sls_pt": 0, "sls_tl": 0, "sls_td": 0, "results": {"P01_11": [row]}}  # fmt: skip
    found = folder / "submission.json"
    found.write_text(json.dumps(submission), encoding="utf-8")
    return truth, found


def test_the_three_tasks_of_epic_have_a_diagnosis_each(tmp_path: Path) -> None:
    truth, found = epic_files(tmp_path)
    result = evaluate(found, annotations=truth, errors=True)
    document = result.to_mapping()["errors"]
    assert list(document) == ["verb", "noun", "action"]
    assert "coverage" in document["verb"]["characteristics"]
    assert result.text().count("ERRORS (DETAD)") == 3


def test_save_writes_no_value_that_json_does_not_know(tmp_path: Path) -> None:
    path = tmp_path / "all.json"
    evaluate({}, annotations=annotation_file(tmp_path), errors=True, out=path)
    text = path.read_text(encoding="utf-8")
    assert "NaN" not in text
    assert "Infinity" not in text


def test_save_leaves_scores_alone_when_there_are_no_errors(tmp_path: Path) -> None:
    save_detections(tmp_path / "detections.json", FOUND)
    evaluate(tmp_path, annotations=annotation_file(tmp_path), out=tmp_path)
    assert (tmp_path / "eval.json").is_file()
    assert not (tmp_path / "errors.json").exists()
