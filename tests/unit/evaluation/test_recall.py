"""The retrieval recall of Ego4D Moment Queries."""

from __future__ import annotations

from tadpipe.evaluation.protocols import EPIC
from tadpipe.evaluation.recall import ego4d_retrieval_recall
from tadpipe.evaluation.tables import prepare
from tests.unit.evaluation import naive


def recall(truth: list[naive.Truth], found: list[naive.Found], tiou: float, k: int) -> float:
    problem = prepare(*naive.tables(truth, found), EPIC)
    return float(ego4d_retrieval_recall(problem, (tiou,), (k,))[0, 0])


def test_rows_count_in_file_order_not_by_score() -> None:
    truth = [("v", 0.0, 1.0, "a")]
    found = [("v", 5.0, 6.0, "a", 0.1), ("v", 0.0, 1.0, "a", 0.9)]
    assert recall(truth, found, 0.5, 1) == 0.0
    assert recall(truth, found, 0.5, 2) == 1.0


def test_overlap_must_exceed_the_threshold() -> None:
    truth, found = [("v", 0.0, 2.0, "a")], [("v", 0.0, 1.0, "a", 0.9)]
    assert recall(truth, found, 0.5, 1) == 0.0
    assert recall(truth, found, 0.49, 1) == 1.0


def test_the_mean_is_over_instances_and_one_row_may_cover_several() -> None:
    truth = [("v", 0.0, 1.0, "a"), ("v", 0.0, 1.1, "a"), ("w", 0.0, 1.0, "b")]
    assert recall(truth, [("v", 0.0, 1.0, "a", 0.9)], 0.5, 1) == 2 / 3


def test_a_clip_without_predictions_is_missed() -> None:
    assert recall([("v", 0.0, 1.0, "a")], [], 0.3, 5) == 0.0
