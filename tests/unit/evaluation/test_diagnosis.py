"""The diagnosis: each kind of error by hand, what each analysis counts, and odd inputs."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from tadpipe.errors import AnnotationError, ConfigError
from tadpipe.evaluation.characteristics import Bins
from tadpipe.evaluation.diagnosis import DetadRules, Diagnosis, diagnose
from tadpipe.evaluation.false_positives import ERRORS, KINDS
from tadpipe.evaluation.protocols import ACTIVITYNET
from tests.parity.detad_loops import Loops, random_problem
from tests.unit.evaluation import naive

TRUTH = [("v", 0.0, 10.0, "a"), ("v", 50.0, 60.0, "b")]
HIT = ("v", 0.0, 10.0, "a", 0.9)


def diagnosed(
    truth: list[naive.Truth],
    found: list[naive.Found],
    tious: tuple[float, ...] = (0.5,),
    **options: object,
) -> Diagnosis:
    return diagnose(*naive.tables(truth, found), tious, **options)  # type: ignore[arg-type]


def kinds_of(result: Diagnosis) -> list[str]:
    return [KINDS[kind] for kind in result.false_positives.kinds[0]]


@pytest.mark.parametrize(
    ("extra", "kind"),
    [
        (("v", 0.5, 10.0, "a", 0.5), "double detection"),
        (("v", 49.0, 60.0, "a", 0.5), "wrong label"),
        (("v", 5.0, 20.0, "a", 0.5), "localisation"),
        (("v", 55.0, 70.0, "a", 0.5), "confusion"),
        (("v", 9.5, 30.0, "a", 0.5), "background"),
        (("v", 30.0, 40.0, "a", 0.5), "background"),
        (("elsewhere", 0.0, 10.0, "a", 0.5), "background"),
    ],
)
def test_a_false_positive_is_of_the_kind_of_the_action_it_overlaps_most(
    extra: naive.Found, kind: str
) -> None:
    assert kinds_of(diagnosed(TRUTH, [HIT, extra])) == ["true positive", kind]


def test_only_the_action_overlapped_most_decides_even_if_another_has_the_right_label() -> None:
    truth = [("v", 0.0, 10.0, "a"), ("v", 0.0, 9.0, "b")]
    found = [HIT, ("v", 0.0, 9.0, "a", 0.5)]
    assert kinds_of(diagnosed(truth, found)) == ["true positive", "wrong label"]


def test_the_first_of_actions_overlapped_equally_decides() -> None:
    found = [HIT, ("v", 0.0, 10.0, "a", 0.5)]
    a_first = [("v", 0.0, 10.0, "a"), ("v", 0.0, 10.0, "b")]
    assert kinds_of(diagnosed(a_first, found))[1] == "double detection"
    assert kinds_of(diagnosed(a_first[::-1], found))[1] == "wrong label"


def test_overlap_at_a_limit_counts_as_reached() -> None:
    truth = [("v", 0.0, 10.0, "a")]
    found = [HIT, ("v", 0.0, 5.0, "a", 0.5), ("v", 0.0, 1.0, "a", 0.4)]
    assert kinds_of(diagnosed(truth, found))[1:] == ["double detection", "localisation"]


@pytest.mark.parametrize("seed", range(8))
def test_kinds_add_up_to_all_counted_detections(seed: int) -> None:
    truth, found = naive.random_rows(seed)
    result = diagnosed(truth, found, (0.1, 0.5, 0.75))
    errors = result.false_positives
    counted = sum(
        min(sum(row[3] == label for row in found), 10 * int(errors.ranking.num_truth[k]))
        for k, label in enumerate(result.labels)
    )
    assert errors.counts.sum(axis=1).tolist() == [counted] * 3
    assert errors.profile_counts.sum(axis=(0, 2)).tolist() == [counted] * 3
    sums = errors.profile.sum(axis=1)
    assert sums[~np.isnan(sums)] == pytest.approx(1.0)
    assert result.confusion().sum() == errors.class_counts()[0].sum()


@pytest.mark.parametrize("seed", [11, 12])
def test_figures_equal_those_of_plain_loops(seed: int) -> None:
    truth, found, durations = random_problem(seed)
    bins = {"length": {"edges": [0, 20, 60, "inf"], "names": ["S", "M", "L"]}}
    tious = [0.4, 0.6]
    result = diagnose(
        *naive.tables(
            [(r["video"], r["start"], r["end"], r["label"]) for r in truth],
            [(r["video"], r["start"], r["end"], r["label"], r["score"]) for r in found],
        ),
        tious,
        protocol=replace(ACTIVITYNET, unknown_label="ignore"),
        durations=durations,
        bins={"length": Bins(("S", "M", "L"), (0.0, 20.0, 60.0, math.inf))},
    )
    stored = Loops(truth, found, tious, bins)
    expected = stored.false_positives(stored.table) | stored.sensitivity(stored.table)[0]
    errors = result.false_positives
    assert errors.profile_counts.tolist() == expected["fp_profile_counts"].tolist()
    assert errors.ap_without == pytest.approx(expected["fp_ap_gain_ap"], abs=1e-12)
    assert result.ap_n == pytest.approx(expected["sens_ap_n"], abs=1e-12)
    by_name = {item.characteristic: item.average_map_n for item in result.sensitivity}
    assert by_name["length"] == pytest.approx(expected["sens_length"], abs=1e-12)


def test_taking_out_an_error_gains_what_it_cost() -> None:
    truth = [("v", 0.0, 10.0, "a")]
    found = [("v", 30.0, 40.0, "a", 0.95), HIT]
    errors = diagnosed(truth, found).false_positives
    assert errors.average_map_n == pytest.approx(0.5)
    gain = dict(zip(ERRORS, errors.gain, strict=True))
    assert gain["background"] == pytest.approx(0.5)
    assert sum(gain.values()) == pytest.approx(0.5)


def test_only_ten_detections_per_action_are_looked_at_for_false_positives() -> None:
    found = [("v", 30.0, 40.0, "a", 1 - i / 100) for i in range(25)]
    errors = diagnosed([("v", 0.0, 10.0, "a")], found).false_positives
    assert errors.counts.tolist() == [[0, 0, 0, 0, 0, 10]]
    assert errors.profile_counts.sum(axis=(1, 2)).tolist() == [1] * 10


def test_a_multiple_without_detections_has_no_shares() -> None:
    profile = diagnosed(TRUTH, [HIT]).false_positives.profile
    assert profile[0].tolist() == [1, 0, 0, 0, 0, 0]
    assert np.isnan(profile[1:]).all()


def test_normalised_precision_does_not_favour_frequent_classes() -> None:
    frequent = [("v", 20.0 * i, 20.0 * i + 10, "a") for i in range(9)]
    truth = [*frequent, ("w", 0.0, 10.0, "b")]
    found = [(*row, 0.9) for row in truth]
    found += [(row[0], 1000.0, 1010.0, row[3], 0.95) for row in (frequent[0], truth[-1])]
    result = diagnosed(truth, found)
    assert result.ap_n[0, 0] < result.ap[0, 0]
    assert result.ap_n[0, 1] > result.ap[0, 1]
    # One false positive before everything: N / (N + 1) at full recall in both classes.
    assert result.ap_n[0].tolist() == pytest.approx([5 / 6, 5 / 6])


def test_a_match_of_low_precision_finds_nothing() -> None:
    truth = [("v", 0.0, 10.0, "a")]
    found = [("v", 30.0, 40.0, "a", 1 - i / 100) for i in range(19)]
    late = ("v", 0.0, 10.0, "a", 0.1)
    assert diagnosed(truth, [*found, late]).false_negatives.unmatched.tolist() == [[True]]
    assert diagnosed(truth, [*found[1:], late]).false_negatives.unmatched.tolist() == [[False]]


def test_misses_are_counted_by_the_bin_of_the_action() -> None:
    truth = [("v", 0.0, 2.0, "a"), ("v", 10.0, 12.0, "a"), ("v", 20.0, 60.0, "a")]
    bins = {"length": Bins(("short", "long"), (0.0, 10.0, 100.0))}
    result = diagnosed(truth, [("v", 20.0, 60.0, "a", 0.9), ("v", 0.0, 2.0, "a", 0.8)], bins=bins)
    missed = next(g for g in result.false_negatives.by_bin if g.characteristics == ("length",))
    assert missed.bins == (("short",), ("long",))
    assert missed.unmatched_rate.tolist() == [0.5, 0.0]
    assert missed.share.tolist() == pytest.approx([2 / 3, 1 / 3])


def test_sensitivity_asks_for_the_actions_of_one_bin_only() -> None:
    truth = [("v", 0.0, 2.0, "a"), ("v", 20.0, 60.0, "a")]
    bins = {"length": Bins(("short", "long"), (0.0, 10.0, 100.0))}
    found = [("v", 20.0, 60.0, "a", 0.9), ("v", 100.0, 110.0, "a", 0.8), ("v", 0.0, 2.0, "a", 0.7)]
    result = diagnosed(truth, found, bins=bins)
    item = next(s for s in result.sensitivity if s.characteristic == "length")
    # N = 2: after one false positive the short action has 2 / (2 + 1).
    assert item.average_map_n.tolist() == pytest.approx([2 / 3, 1.0])


def test_actions_without_length_or_longer_than_their_video_are_left_out_and_counted() -> None:
    truth = [("v", 0.0, 10.0, "a"), ("v", 0.0, 90.0, "a")]
    result = diagnosed(truth, [HIT], durations={"v": 50.0})
    assert result.dropped == 1
    assert result.ap.tolist() == [[1.0]]


def test_nothing_left_to_analyse_is_an_error() -> None:
    with pytest.raises(AnnotationError, match="no ground truth to analyse"):
        diagnosed([("v", 0.0, 90.0, "a")], [HIT], durations={"v": 50.0})


def test_unknown_bins_are_an_error_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="thumos14"):
        diagnosed(TRUTH, [HIT], bins="thumos")


def test_confusion_says_which_class_was_taken_for_which() -> None:
    truth = [("v", 0.0, 10.0, "a"), ("v", 50.0, 60.0, "b"), ("v", 80.0, 90.0, "b")]
    found = [HIT, ("v", 50.0, 60.0, "b", 0.9), ("v", 0.0, 9.0, "b", 0.8)]
    assert diagnosed(truth, found).confusion().tolist() == [[1, 1], [0, 1], [0, 0]]


def test_background_is_the_last_row_of_the_confusion() -> None:
    assert diagnosed(TRUTH, [("v", 30.0, 40.0, "b", 0.9)]).confusion().tolist() == [
        [0, 0],
        [0, 0],
        [0, 1],
    ]


def test_precision_at_recall_is_interpolated_and_ends_where_recall_does() -> None:
    truth = [("v", 0.0, 10.0, "a"), ("v", 20.0, 30.0, "a")]
    found = [("v", 40.0, 50.0, "a", 0.95), HIT]
    curve = diagnosed(truth, found).precision[0, 0]
    assert curve[:51].tolist() == [0.5] * 51
    assert curve[51:].tolist() == [0.0] * 50


def test_area_under_the_curve_is_the_average_precision() -> None:
    truth, found = naive.random_rows(3)
    result = diagnosed(truth, found)
    assert result.precision.mean(axis=2) == pytest.approx(result.ap, abs=0.03)


def test_tiou_curve_falls_with_the_threshold() -> None:
    truth = [("v", 0.0, 10.0, "a")]
    curve = diagnosed(truth, [("v", 0.0, 6.0, "a", 0.9)]).tiou_map
    assert curve.tolist() == [1.0] * 12 + [0.0] * 7


def test_calibration_compares_scores_with_the_share_that_is_right() -> None:
    found = [("v", 0.0, 10.0, "a", 0.85), ("v", 50.0, 60.0, "b", 0.85), ("v", 90.0, 95.0, "b", 0.2)]
    scores = diagnosed(TRUTH, found).calibration
    assert scores is not None
    assert scores.count.tolist() == [0, 0, 1, 0, 0, 0, 0, 0, 2, 0]
    assert scores.precision[0, [2, 8]].tolist() == [0.0, 1.0]
    assert scores.error[0] == pytest.approx((0.2 + 2 * 0.15) / 3)


def test_scores_that_are_no_probabilities_have_no_calibration() -> None:
    assert diagnosed(TRUTH, [("v", 0.0, 10.0, "a", 3.5)]).calibration is None


def test_both_definitions_of_recall_for_ego4d_are_named_and_differ() -> None:
    truth = [("v", 0.0, 10.0, "a")]
    in_file_order = [("v", 30.0, 40.0, "a", 0.1), HIT]
    document = diagnosed(truth, in_file_order).to_mapping()
    assert document["recall_at_kx"]["recall"][0][0] == 1.0
    assert document["ego4d_retrieval_recall"]["recall"][1][0] == 0.0


@pytest.mark.parametrize("tious", [(0.5,), (0.1, 0.9)])
def test_no_detection_gives_a_whole_document_of_zeros(tious: tuple[float, ...]) -> None:
    result = diagnosed(TRUTH, [], tious, durations={"v": 100.0})
    document = json.loads(json.dumps(result.to_mapping(), allow_nan=False))
    assert document["average_map_n"] == 0.0
    assert document["unmatched_rate"] == 1.0
    assert document["false_positives"]["gain"] == dict.fromkeys(ERRORS, 0.0)
    assert document["sensitivity"]["length"]["relative_change"] == [None]


def test_one_class_has_no_label_errors() -> None:
    found = [HIT, ("v", 1.0, 9.0, "a", 0.5), ("v", 70.0, 80.0, "a", 0.4)]
    counts = diagnosed([("v", 0.0, 10.0, "a")], found).false_positives.counts[0]
    assert counts.tolist() == [1, 1, 0, 0, 0, 1]


def test_detad_constants_can_be_changed() -> None:
    found = [HIT, ("v", 5.0, 20.0, "a", 0.5), ("v", 6.0, 20.0, "a", 0.4)]
    rules = DetadRules(lowest_tiou=0.4, multiples=2)
    assert kinds_of(diagnosed(TRUTH, found, rules=rules)) == ["true positive", "background"]
