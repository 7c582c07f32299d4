"""`tadpipe validate` as a user runs it: sound projects, public files, and what it suggests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tadpipe
from tadpipe.errors import ConfigError
from tadpipe.pipeline.demo_videos import DemoVideoSettings, annotation_document, plan_videos
from tests.end_to_end.project import command, make_project
from tests.unit.pipeline.tiny_store import SMALL, make_store

SHARED = Path(__file__).parents[3] / "shared" / "data" / "annotations"
needs_thumos = pytest.mark.skipif(not (SHARED / "thumos14.json").is_file(), reason="no shared data")


def write(path: Path, **videos: Any) -> Path:
    path.write_text(json.dumps({"database": videos}), encoding="utf-8")
    return path


def video(*actions: tuple[float, float, str], subset: str = "training", **more: Any) -> Any:
    entries = [{"segment": [start, end], "label": label} for start, end, label in actions]
    return {"subset": subset, "duration": 30.0, "fps": 30, "annotations": entries, **more}


def kinds(report: tadpipe.pipeline.validate_report.ValidationReport) -> list[str]:
    return [finding.kind for finding in report.findings]


def test_sound_project_has_no_findings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(make_project(tmp_path / "project"))
    code, report, _ = command(capfd, "validate")
    assert (code, report["findings"]) == (0, [])
    assert list(report["checked"]) == ["annotations labels.json", "videos my videos"]


def test_annotations_of_the_demo_have_no_findings(tmp_path: Path) -> None:
    settings = DemoVideoSettings(seed=0)
    document = annotation_document(settings, plan_videos(settings))
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(document))
    assert tadpipe.validate(annotations=path).findings == ()


@needs_thumos
def test_thumos14_has_its_known_peculiarities_only() -> None:
    report = tadpipe.validate(annotations=SHARED / "thumos14.json", dataset="thumos14")
    counts = {kind: kinds(report).count(kind) for kind in kinds(report)}
    assert counts == {"segment-beyond-duration": 30, "several-labels": 2, "blocked-video": 1}
    assert report.exit_code == 0


@needs_thumos
def test_epic_kitchens_lacks_the_training_file_only() -> None:
    report = tadpipe.validate(annotations=SHARED, dataset="epic_kitchens_verb")
    assert kinds(report) == ["empty-split"]
    assert report.measured == "validation"


def test_suggested_settings_leave_no_action_without_window_and_level(tmp_path: Path) -> None:
    actions = [(start, start + length, "run") for start in (1, 12) for length in (0.5, 3, 9)]
    path = write(tmp_path / "labels.json", a=video(*actions))
    narrow = ["model.window_len=288", "model.regression_ranges=[[0,4],[4,8],[8,16]]"]
    narrow += ["model.branch_layers=2"]
    before = tadpipe.validate(annotations=path, stride=1, sets=narrow)
    assert "no-level" in kinds(before)
    assert before.suggestion is not None
    assert before.suggestion["is_needed"]
    sets = [f"{key}={value}" for key, value in before.suggestion["set"].items()]
    after = tadpipe.validate(annotations=path, stride=1, sets=sets)
    assert kinds(after) == ["no-test-subset"]


def test_longer_actions_suggest_a_larger_stride(tmp_path: Path) -> None:
    strides = []
    for length in (0.3, 1.2, 8.0):
        path = write(tmp_path / "labels.json", a=video((1, 1 + length, "run")))
        suggestion = tadpipe.validate(annotations=path).suggestion
        assert suggestion is not None
        strides.append(suggestion["stride"])
    assert strides == [2, 8, 16]


def test_store_is_checked_with_the_annotations_it_keeps(tmp_path: Path) -> None:
    store = make_store(tmp_path / "x.zarr")
    assert tadpipe.validate(features=[store], sets=SMALL).findings == ()


def test_other_annotations_than_the_store_keeps_are_a_warning(tmp_path: Path) -> None:
    store = make_store(tmp_path / "x.zarr")
    document = tadpipe.FeatureStore.open(store).annotations()
    assert document is not None
    path = tmp_path / "labels.json"
    path.write_bytes(document + b"\n")
    report = tadpipe.validate(annotations=path, features=[store], sets=SMALL)
    assert kinds(report) == ["other-annotations"]


def test_warnings_alone_end_in_exit_code_0(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "labels.json", a=video((1, 2, "run")))
    code, report, _ = command(capfd, "validate", "--annotations", str(path))
    assert code == 0
    assert (report["ok"], report["warnings"]) == (True, 1)


@pytest.mark.parametrize(
    ("ids", "kind"), [((0, 0), "label-id"), ((0, None), "label-id"), ((0, -1), "malformed-entry")]
)
def test_label_ids_that_do_not_number_the_labels_are_found(
    tmp_path: Path, ids: tuple[int, int | None], kind: str
) -> None:
    entry = video((1, 2, "run"), (3, 4, "jump"))
    for action, number in zip(entry["annotations"], ids, strict=True):
        action.update({} if number is None else {"label_id": number})
    path = write(tmp_path / "labels.json", a=entry, b=video((5, 6, "run"), subset="test"))
    assert kind in kinds(tadpipe.validate(annotations=path))


def test_label_without_a_line_in_the_class_map_is_found_beside_label_ids(tmp_path: Path) -> None:
    entry = video((1, 2, "run"))
    entry["annotations"][0]["label_id"] = 0
    path = write(tmp_path / "labels.json", a=entry)
    (tmp_path / "category_idx.txt").write_text("jump\n")
    found = kinds(tadpipe.validate(annotations=path))
    assert found == ["label-not-in-class-map", "no-test-subset"]


def test_class_map_that_names_a_class_twice_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "labels.json", a=video((1, 2, "run")))
    (tmp_path / "category_idx.txt").write_text("run\nrun\n")
    report = tadpipe.validate(annotations=path)
    assert kinds(report) == ["class-map", "no-test-subset"]
    assert report.exit_code == 2


def test_unknown_preset_and_data_set_do_not_end_the_checks(tmp_path: Path) -> None:
    path = write(tmp_path / "labels.json", a=video((2, 1, "run")))
    report = tadpipe.validate(annotations=path, dataset="tumos", preset="actionformer/nothing")
    assert {"dataset", "preset", "empty-segment"} <= set(kinds(report))


def test_file_that_is_no_json_is_one_finding_beside_those_of_the_videos(tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    path.write_text("{")
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_bytes(b"nothing")
    report = tadpipe.validate(annotations=path, videos=[tmp_path / "videos"])
    assert kinds(report) == ["unreadable-annotations", "unreadable-video"]


def test_nothing_named_is_an_error_that_says_what_to_name() -> None:
    with pytest.raises(ConfigError, match="Give --annotations, --videos or --features"):
        tadpipe.validate()


def test_text_prints_as_many_places_as_asked_for(tmp_path: Path) -> None:
    bad = [(2.0 + i, 1.0 + i, "run") for i in range(5)]
    report = tadpipe.validate(annotations=write(tmp_path / "labels.json", a=video(*bad)))
    assert report.text(100, limit=2).count("is not before end") == 2
    assert "and 3 more" in report.text(100, limit=2)
    assert report.text(100, limit=0).count("is not before end") == 5


def test_histogram_fits_the_width(tmp_path: Path) -> None:
    actions = [(1.0, 1.5, "run"), *((i, i + 1.2, "run") for i in range(9)), (0, 20, "run")]
    report = tadpipe.validate(annotations=write(tmp_path / "labels.json", a=video(*actions)))
    lines = [line for line in report.text(60).splitlines() if "#" in line]
    assert len(lines) == 3
    assert max(map(len, lines)) <= 60
