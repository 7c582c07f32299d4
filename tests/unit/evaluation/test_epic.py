"""EPIC-Kitchens-100: its submission file, its three scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tadpipe.epic_csv import EpicRow, load_epic_csv
from tadpipe.errors import AnnotationError
from tadpipe.evaluation.epic import load_submission, score_epic

VALIDATION = Path(__file__).parents[4] / "shared/data/annotations/EPIC_100_validation.csv"


def submission(*entries: Any, **changes: Any) -> dict[str, Any]:
    head = {"version": "0.2", "challenge": "action_detection", "sls_pt": 2, "sls_tl": 3}
    return {**head, "sls_td": 0, "results": {"P01_01": list(entries)}, **changes}


def entry(verb: Any = 1, noun: Any = 2, **changes: Any) -> dict[str, Any]:
    row = {"verb": verb, "noun": noun, "action": f"{verb},{noun}", "score": 0.5}
    return {**row, "segment": [1.0, 2.0], **changes}


def write(folder: Path, document: Any) -> Path:
    path = folder / "submission.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


@pytest.mark.skipif(not VALIDATION.exists(), reason="../shared is not here")
def test_the_real_annotations_as_detections_score_one() -> None:
    rows = load_epic_csv(VALIDATION)[:500]
    scores = score_epic(rows, rows)
    assert [score.average_map for score in scores.values()] == [1.0, 1.0, 1.0]


def test_a_submission_is_read_in_its_order(tmp_path: Path) -> None:
    document = submission(entry(5, 6), entry(1, 2, score=1))
    assert load_submission(write(tmp_path, document)) == [
        EpicRow("P01_01", 1.0, 2.0, 5, 6, 0.5),
        EpicRow("P01_01", 1.0, 2.0, 1, 2, 1.0),
    ]


@pytest.mark.parametrize(
    ("document", "place"),
    [
        (submission(version="0.1"), "$.version"),
        (submission(challenge="x"), "$.challenge"),
        (submission(sls_td=6), "$.sls_td"),
        (submission(results=[]), "$.results"),
        (submission(results={"v": 3}), '$.results["v"]'),
        (submission(3), '$.results["P01_01"][0]'),
        (submission(entry(97)), '$.results["P01_01"][0].verb'),
        (submission(entry(1, 300)), '$.results["P01_01"][0].noun'),
        (submission(entry(score=float("nan"))), '$.results["P01_01"][0].score'),
        (submission(entry(segment=[0, float("inf")])), '$.results["P01_01"][0].segment'),
        (submission(entry(action="2,1")), '$.results["P01_01"][0].action'),
    ],
)
def test_a_wrong_submission_is_refused_with_the_place(
    tmp_path: Path, document: Any, place: str
) -> None:
    with pytest.raises(AnnotationError) as caught:
        load_submission(write(tmp_path, document))
    assert [defect.place for defect in caught.value.defects] == [place]


def test_actions_are_pairs_and_absent_classes_are_left_out() -> None:
    truth = [EpicRow("v", 0.0, 1.0, 1, 2), EpicRow("v", 2.0, 3.0, 1, 3)]
    found = [EpicRow("v", 0.0, 1.0, 1, 3, 0.9), EpicRow("v", 2.0, 3.0, 4, 3, 0.8)]
    scores = score_epic(truth, found, (0.5,))
    assert scores["verb"].ap.tolist() == [[0.5]]
    assert scores["verb"].unknown_labels == {"4": 1}
    assert scores["noun"].labels == ("2", "3")
    assert scores["noun"].ap.tolist() == [[0.0, 0.5]]
    assert scores["action"].labels == ("302", "303")
    assert scores["action"].ap.tolist() == [[0.0, 0.0]]
