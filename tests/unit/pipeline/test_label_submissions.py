"""Submission files of the challenges: exactly the layout that each of them states."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tadpipe.cli.main import run
from tadpipe.epic_csv import EpicRow
from tadpipe.errors import AnnotationError, ConfigError
from tadpipe.evaluation.epic import load_submission, score_epic
from tadpipe.pipeline.labels import export_labels

Rows = list[tuple[float, float, str, float]]


def detections(path: Path, videos: dict[str, Rows]) -> Path:
    results = {
        name: [{"segment": [a, b], "label": label, "score": score} for a, b, label, score in rows]
        for name, rows in videos.items()
    }
    path.write_text(json.dumps({"results": results}))
    return path


@pytest.fixture
def found(tmp_path: Path) -> Path:
    rows: Rows = [(0.5, 1.0, "run", 0.25), (2.0, 4.5, "long_jump", 0.75), (5.0, 6.0, "run", 0.5)]
    return detections(tmp_path / "found.json", {"clip 1": rows, "empty": []})


def exported(source: Path, target: str, **options: Any) -> Any:
    out = source.with_name(f"{target}.json")
    export_labels(source, out, target, **options)
    return json.loads(out.read_text())


def check_rows(rows: Any, keys: set[str]) -> None:
    """A list of rows with exactly these keys; finite scores and ends in order."""
    assert isinstance(rows, list)
    for row in rows:
        assert set(row) == keys
        assert type(row["score"]) is float
        assert math.isfinite(row["score"])
        start, end = row["segment"]
        assert (type(start), type(end)) == (float, float)
        assert 0 <= start < end


def test_activitynet_submission_has_its_three_keys_and_rows(found: Path) -> None:
    document = exported(found, "activitynet")
    assert set(document) == {"version", "results", "external_data"}
    assert document["version"] == "VERSION 1.3"
    assert set(document["external_data"]) == {"used", "details"}
    assert list(document["results"]) == ["clip 1", "empty"]
    for rows in document["results"].values():
        check_rows(rows, {"label", "score", "segment"})


def test_ego4d_submission_has_two_lists_of_one_layout_best_first(found: Path) -> None:
    document = exported(found, "ego4d")
    assert set(document) == {"version", "challenge", "detect_results", "retrieve_results"}
    assert (document["version"], document["challenge"]) == ("1.0", "ego4d_moment_queries")
    for key in ("detect_results", "retrieve_results"):
        assert list(document[key]) == ["clip 1", "empty"]  # a clip that is left out is an error
        for rows in document[key].values():
            check_rows(rows, {"label", "score", "segment"})
        assert [row["score"] for row in document[key]["clip 1"]] == [0.75, 0.5, 0.25]


@pytest.mark.parametrize("target", ["activitynet", "ego4d", "epic"])
def test_annotations_are_no_submission(target: str, tmp_path: Path) -> None:
    entry = {"segment": [0, 1], "label": "id_001"}
    database = {"a": {"subset": "test", "annotations": [entry]}}
    (tmp_path / "x.json").write_text(json.dumps({"database": database}))
    options: dict[str, Any] = {}
    if target == "epic":
        options = {"nouns": tmp_path / "x.json", "supervision": (1, 3, 3)}
    with pytest.raises(AnnotationError, match="made of detections"):
        exported(tmp_path / "x.json", target, **options)


VERBS: Rows = [(1.0, 3.0, "id_007", 0.9), (10.0, 12.0, "id_096", 0.4)]
NOUNS: Rows = [(1.0, 3.2, "id_299", 0.4), (10.5, 12.0, "id_003", 0.9), (30.0, 31.0, "id_001", 1.0)]


@pytest.fixture
def verbs(tmp_path: Path) -> Path:
    return detections(tmp_path / "verbs.json", {"P01_11": VERBS, "P02_01": []})


@pytest.fixture
def nouns(tmp_path: Path) -> Path:
    return detections(tmp_path / "nouns.json", {"P01_11": NOUNS, "P02_01": []})


def test_epic_submission_has_the_challenge_s_keys_and_rows(verbs: Path, nouns: Path) -> None:
    document = exported(verbs, "epic", nouns=nouns, supervision=(1, 3, 4))
    results = document.pop("results")
    head = {"version": "0.2", "challenge": "action_detection"}
    assert document == {**head, "sls_pt": 1, "sls_tl": 3, "sls_td": 4}
    assert list(results) == ["P01_11", "P02_01"]
    for rows in results.values():
        check_rows(rows, {"verb", "noun", "action", "score", "segment"})
        for row in rows:
            assert row["verb"] in range(97)
            assert row["noun"] in range(300)
            assert row["action"] == f"{row['verb']},{row['noun']}"


def test_epic_action_has_the_means_of_the_ends_and_the_root_of_the_scores(
    verbs: Path, nouns: Path
) -> None:
    exported(verbs, "epic", nouns=nouns, supervision=(0, 0, 0))
    first, second = load_submission(verbs.with_name("epic.json"))
    assert first[:5] == ("P01_11", 1.0, pytest.approx(3.1), 7, 299)
    assert second[:5] == ("P01_11", 10.25, 12.0, 96, 3)
    assert (first.score, second.score) == (pytest.approx(0.6), pytest.approx(0.6))


def test_perfect_verbs_and_nouns_make_a_perfect_submission(verbs: Path, nouns: Path) -> None:
    exported(verbs, "epic", nouns=nouns, supervision=(0, 0, 0))
    truth = [EpicRow("P01_11", 1.0, 3.1, 7, 299), EpicRow("P01_11", 10.25, 12.0, 96, 3)]
    scores = score_epic(truth, load_submission(verbs.with_name("epic.json")))
    assert [score.average_map for score in scores.values()] == pytest.approx([1.0, 1.0, 1.0])


def test_labels_that_are_no_class_numbers_are_named(found: Path, nouns: Path) -> None:
    with pytest.raises(AnnotationError, match=r"clip 1.*'run' is no class number 0\.\.96"):
        exported(found, "epic", nouns=nouns, supervision=(0, 0, 0))


def test_epic_needs_nouns_and_supervision(verbs: Path, nouns: Path) -> None:
    with pytest.raises(ConfigError, match="--nouns"):
        exported(verbs, "epic")
    with pytest.raises(ConfigError, match=r"0\.\.5"):
        exported(verbs, "epic", nouns=nouns, supervision=(0, 6, 0))


def test_other_targets_take_no_nouns(found: Path, nouns: Path) -> None:
    with pytest.raises(ConfigError, match="Leave --nouns"):
        exported(found, "ego4d", nouns=nouns)


def test_command_writes_an_epic_submission(
    verbs: Path, nouns: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = verbs.with_name("submission.json")
    command = ["annotations", "export", str(verbs), "--to", "epic", "--out", str(out)]
    assert run([*command, "--nouns", str(nouns), "--supervision", "1,3"]) == 2
    assert run([*command, "--nouns", str(nouns), "--supervision", "1,3,3"]) == 0
    assert len(load_submission(out)) == 2
    assert "three numbers" in capfd.readouterr().err
