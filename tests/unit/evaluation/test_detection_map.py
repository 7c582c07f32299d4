"""mAP: the rules one by one, and equality with plain loops on awkward random problems."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tadpipe.annotations import Action, Detection, Video
from tadpipe.errors import AnnotationError, ConfigError
from tadpipe.evaluation.detection_map import DetectionScore, score_detections
from tadpipe.evaluation.protocols import ACTIVITYNET, EPIC, OPENTAD, Protocol
from tadpipe.evaluation.tables import DetectionTable, TruthTable
from tests.unit.evaluation import naive

TIOUS = (0.1, 1 / 3, 0.5, 0.75, 1.0)


def score(
    truth: list[naive.Truth],
    found: list[naive.Found],
    tious: tuple[float, ...] = (0.5,),
    protocol: Protocol = OPENTAD,
    blocked: tuple[str, ...] = (),
) -> DetectionScore:
    return score_detections(*naive.tables(truth, found), tious, protocol=protocol, blocked=blocked)


@pytest.mark.parametrize("nan_tiou", ["match", "zero"])
def test_scores_equal_those_of_plain_loops(nan_tiou: str) -> None:
    protocol = replace(ACTIVITYNET, nan_tiou=nan_tiou, unknown_label="ignore")  # type: ignore[arg-type]
    clipped = nan_tiou == "zero"
    for seed in range(20):
        truth, found = naive.random_rows(seed)
        ours = score(truth, found, TIOUS, protocol)
        for k, label in enumerate(ours.labels):
            for i, tiou in enumerate(TIOUS):
                ap = naive.average_precision(truth, found, label, tiou, clipped)
                assert ours.ap[i, k] == pytest.approx(ap, abs=1e-14), (seed, label, tiou)
                for j, times in enumerate(ours.top_k):
                    recall = naive.recall_at_kx(truth, found, label, tiou, times, clipped)
                    assert ours.recall[i, j, k] == recall, (seed, label, tiou, times)


def test_perfect_detections_score_one() -> None:
    truth = [("v", 0.0, 1.0, "a"), ("v", 2.0, 4.0, "b"), ("w", 0.5, 1.0, "a")]
    found = [(*row, 0.5 + i / 10) for i, row in enumerate(truth)]
    assert score(truth, found, TIOUS).average_map == 1.0


def test_a_threshold_that_is_met_exactly_matches() -> None:
    found = [("v", 0.0, 1.0, "a", 0.9)]
    assert score([("v", 0.0, 2.0, "a")], found, (0.5, 0.5000001)).ap.tolist() == [[1.0], [0.0]]


def test_a_detection_falls_through_to_its_second_best_ground_truth() -> None:
    truth = [("v", 0.0, 10.0, "a"), ("v", 1.0, 10.0, "a")]
    found = [("v", 0.0, 10.0, "a", 0.9), ("v", 0.0, 9.9, "a", 0.8)]
    assert score(truth, found).ap[0, 0] == 1.0


def test_a_second_detection_of_one_action_is_a_false_positive() -> None:
    truth = [("v", 0.0, 1.0, "a"), ("w", 0.0, 1.0, "a")]
    found = [("v", 0.0, 1.0, "a", 0.9), ("v", 0.0, 1.0, "a", 0.8), ("w", 0.0, 1.0, "a", 0.7)]
    assert score(truth, found).ap[0, 0] == pytest.approx(0.5 + 0.5 * 2 / 3)


def test_the_later_of_equal_scores_comes_first() -> None:
    truth = [("v", 0.0, 1.0, "a")]
    right, wrong = ("v", 0.0, 1.0, "a", 0.5), ("v", 5.0, 6.0, "a", 0.5)
    assert score(truth, [wrong, right]).ap[0, 0] == 1.0
    assert score(truth, [right, wrong]).ap[0, 0] == 0.5


def test_tied_scores_are_counted_inside_a_class_only() -> None:
    truth = [("v", 0.0, 1.0, "a"), ("v", 0.0, 1.0, "b")]
    rows = [("a", 0.5), ("a", 0.5), ("b", 0.5), ("a", 0.4), ("b", 0.3)]
    found = [("v", 0.0, 1.0, label, value) for label, value in rows]
    assert score(truth, found).tied_scores == 2


def test_a_detection_in_a_video_without_the_class_is_a_false_positive() -> None:
    truth = [("v", 0.0, 1.0, "a"), ("w", 0.0, 1.0, "b")]
    found = [
        ("elsewhere", 0.0, 1.0, "a", 0.9),
        ("w", 0.0, 1.0, "a", 0.8),
        ("v", 0.0, 1.0, "a", 0.1),
    ]
    result = score(truth, found)
    assert result.ap[0].tolist() == [pytest.approx(1 / 3), 0.0]
    assert result.foreign == ("elsewhere",)


def test_a_class_without_detections_counts_in_the_mean() -> None:
    truth = [("v", 0.0, 1.0, "a"), ("v", 0.0, 1.0, "b")]
    assert score(truth, [("v", 0.0, 1.0, "a", 0.9)]).map_at.tolist() == [0.5]


def test_no_detection_at_all_scores_zero() -> None:
    result = score([("v", 0.0, 1.0, "a")], [], TIOUS)
    assert result.average_map == 0.0
    assert result.recall.shape == (5, 2, 1)
    assert result.missing == ("v",)


def test_no_ground_truth_is_an_error() -> None:
    with pytest.raises(AnnotationError, match="no ground truth"):
        score([("v", 1.0, 1.0, "a")], [("v", 0.0, 1.0, "a", 0.9)])


def test_blocked_videos_leave_both_sides() -> None:
    truth = [("v", 0.0, 1.0, "a"), ("bad", 0.0, 1.0, "a"), ("bad", 0.0, 1.0, "b")]
    found = [("bad", 5.0, 6.0, "a", 0.9), ("v", 0.0, 1.0, "a", 0.1)]
    result = score(truth, found, blocked=("bad", "unheard of"))
    assert result.average_map == 1.0
    assert (result.videos, result.blocked, result.labels) == (1, ("bad",), ("a",))


def test_videos_without_actions_are_scored_but_not_missing() -> None:
    videos = {
        "v": Video("v", "test", actions=(Action(0.0, 1.0, "a"),)),
        "empty": Video("empty", "test"),
    }
    found = {"empty": [Detection(0.0, 1.0, "a", 0.9)], "v": [Detection(0.0, 1.0, "a", 0.8)]}
    result = score_detections(
        TruthTable.from_videos(videos), DetectionTable.from_detections(found), (0.5,)
    )
    assert (result.videos, result.missing, result.foreign) == (2, (), ())
    assert result.ap[0, 0] == 0.5


def test_zero_length_on_zero_length_matches_only_where_0_over_0_does() -> None:
    truth = [("v", 3.0, 3.0, "a"), ("v", 5.0, 6.0, "a")]
    found = [("v", 3.0, 3.0, "a", 0.9)]
    assert score(truth, found, protocol=ACTIVITYNET).ap[0, 0] == 0.5
    assert score(truth, found, protocol=OPENTAD).ap[0, 0] == 0.0


def test_unknown_labels_are_left_out_and_counted() -> None:
    truth = [("v", 0.0, 1.0, "b")]
    found = [("v", 0.0, 1.0, "a", 0.9), ("v", 0.0, 1.0, "b", 0.5)]
    result = score(truth, found)
    assert result.unknown_labels == {"a": 1}
    assert result.average_map == 1.0


def test_unknown_labels_are_an_error_under_activitynet() -> None:
    with pytest.raises(AnnotationError, match="a: 1 detections"):
        score([("v", 0.0, 1.0, "b")], [("v", 0.0, 1.0, "a", 0.9)], protocol=ACTIVITYNET)


def test_unknown_labels_collide_with_the_class_of_their_number() -> None:
    protocol = replace(OPENTAD, unknown_label="collide", class_order="id")
    truth = [("v", 0.0, 1.0, "b")]  # id 1, the only class, renumbered to 0; "a" has id 0
    found = [("v", 5.0, 6.0, "a", 0.9), ("v", 0.0, 1.0, "b", 0.5)]
    assert score(truth, found, protocol=protocol).ap[0, 0] == 0.5


def test_classes_come_by_first_appearance_or_by_id() -> None:
    truth = [("v", 0.0, 1.0, "b"), ("v", 0.0, 1.0, "a")]
    assert score(truth, []).labels == ("b", "a")
    assert score(truth, [], protocol=EPIC).labels == ("a", "b")


def test_result_is_ready_for_json() -> None:
    truth = [("v", 0.0, 1.0, "a")]
    mapping = score(truth, [("v", 0.0, 1.0, "a", 0.9)], (0.3, 0.5)).to_mapping()
    assert mapping["map"] == [1.0, 1.0]
    assert mapping["classes"]["a"]["num_detections"] == 1
    assert type(mapping["tied_scores"]) is int


@pytest.mark.parametrize("tious", [(), (0.0,), (1.2,), (0.5, -0.1)])
def test_thresholds_out_of_range_are_refused(tious: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="thresholds"):
        score([("v", 0.0, 1.0, "a")], [], tious)


def test_recall_without_k_is_skipped_and_k_zero_refused() -> None:
    columns = naive.tables([("v", 0.0, 1.0, "a")], [])
    assert score_detections(*columns, (0.5,), top_k=()).recall.shape == (1, 0, 1)
    with pytest.raises(ConfigError, match="k >= 1"):
        score_detections(*columns, (0.5,), top_k=(0,))


def test_order_of_videos_does_not_change_the_score_without_ties() -> None:
    truth, found = naive.random_rows(3)
    rng = np.random.default_rng(0)
    unique = [(*row[:4], float(rng.random())) for row in found]
    shuffled = [unique[i] for i in rng.permutation(len(unique))]
    assert np.array_equal(score(truth, unique, TIOUS).ap, score(truth, shuffled, TIOUS).ap)
