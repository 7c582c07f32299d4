"""The diagnosis as text: what it says, and that it fits the terminal."""

from __future__ import annotations

import pytest

from tadpipe.evaluation.diagnosis import Diagnosis, diagnose
from tadpipe.pipeline.error_table import errors_text
from tests.unit.evaluation import naive

LONG = "a label that is much longer than the width of a narrow terminal is"


def diagnosis(found_rows: int = 40, *, score: float = 0.5) -> Diagnosis:
    truth = [("v", 20.0 * i, 20.0 * i + 4 + i, "jump" if i % 3 else LONG) for i in range(9)]
    found = [
        ("v", row[1] + i % 5, row[2] + i % 7, row[3], score - i / 1000)
        for i in range(found_rows)
        for row in [truth[i % 9]]
    ]
    return diagnose(*naive.tables(truth, found), (0.3, 0.5), durations={"v": 400.0})


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    lines = errors_text(diagnosis(), width=width).splitlines()
    assert max(map(len, lines)) <= width


def test_every_analysis_has_its_table() -> None:
    text = errors_text(diagnosis(), width=100)
    for title in ("Kinds of detections", "Sensitivity", "Missed actions by coverage and length",
                  "Classes by AP", "Classes taken for another", "Calibration", "Recall@kx",
                  "Retrieval recall", "AR@1 ", "mAP at every tIoU"):  # fmt: skip
        assert title in text


def test_no_detection_is_said_in_one_line() -> None:
    text = errors_text(diagnosis(0), width=100)
    assert "no detections: missed 9 actions, all there are" in text
    assert "Kinds of detections" not in text


def test_scores_that_are_no_probabilities_are_said_to_be_so() -> None:
    assert "no probabilities" in errors_text(diagnosis(score=7.0), width=100)


def test_per_class_lists_more_than_the_worst_classes() -> None:
    truth = [("v", 20.0 * i, 20.0 * i + 9, f"class {i:02}") for i in range(15)]
    result = diagnose(*naive.tables(truth, [(*truth[3], 0.9)]), (0.5,))
    short = errors_text(result, width=100)
    assert ("class 14" in short, "the 10 worst" in short) == (False, True)
    assert "class 14" in errors_text(result, width=100, per_class=True)


def test_control_characters_of_a_label_do_not_reach_the_terminal() -> None:
    truth = [("v", 0.0, 9.0, "red\x1b[31m")]
    assert "\x1b" not in errors_text(diagnose(*naive.tables(truth, []), (0.5,)), width=100)
