"""Cleaning of ground truth, and the columns that evaluation works on."""

from __future__ import annotations

import numpy as np
import pytest

from tadpipe.annotations import Action, Detection, Video
from tadpipe.errors import ConfigError
from tadpipe.evaluation.protocols import (
    ACTIONFORMER,
    ACTIVITYNET,
    OPENTAD,
    Protocol,
    protocol_named,
)
from tadpipe.evaluation.tables import DetectionTable, TruthTable, clean
from tests.unit.evaluation import naive


def kept(rows: list[tuple[float, float]], protocol: Protocol) -> list[tuple[float, float]]:
    truth, _ = naive.tables([("v", *row, "a") for row in rows], [])
    left = clean(truth, protocol)
    return list(zip(left.start_sec.tolist(), left.end_sec.tolist(), strict=True))


def test_short_ground_truths_are_dropped_as_each_protocol_says() -> None:
    rows = [(1.0, 1.0), (2.0, 2.0005), (3.0, 3.0 + 2**-9), (9.0, 8.0)]
    assert kept(rows, ACTIVITYNET) == rows
    assert kept(rows, OPENTAD) == rows[1:3]
    assert kept(rows, ACTIONFORMER) == rows[2:3]


def test_the_first_of_near_duplicates_is_kept() -> None:
    rows = [(5.0, 6.0), (1.0, 2.0), (1.0005, 2.0005), (1.0, 2.5), (5.0, 6.0)]
    assert kept(rows, ACTIVITYNET) == rows
    assert kept(rows, OPENTAD) == [(5.0, 6.0), (1.0, 2.0), (1.0, 2.5)]


def test_a_chain_of_duplicates_is_compared_with_kept_ones_only() -> None:
    step = 0.0009  # the third is near the second, which was dropped, not near the first
    rows = [(1.0, 2.0), (1.0 + step, 2.0), (1.0 + 2 * step, 2.0)]
    assert kept(rows, OPENTAD) == [rows[0], rows[2]]


def test_duplicates_of_another_label_or_video_are_kept() -> None:
    rows = [("v", 1.0, 2.0, "a"), ("v", 1.0, 2.0, "b"), ("w", 1.0, 2.0, "a")]
    truth, _ = naive.tables(rows, [])
    assert clean(truth, OPENTAD).video.size == 3


def test_tables_hold_videos_and_detections_in_their_order() -> None:
    videos = {
        "v": Video("v", "test", actions=(Action(0.0, 1.0, "b"), Action(2.0, 3.0, "a"))),
        "none": Video("none", "test"),
        "w": Video("w", "test", actions=(Action(4.0, 5.0, "b"),)),
    }
    truth = TruthTable.from_videos(videos)
    assert truth.videos == ("v", "none", "w")
    assert truth.video.tolist() == [0, 0, 2]
    assert [truth.labels[i] for i in truth.label] == ["b", "a", "b"]
    found = DetectionTable.from_detections(
        {"x": [], "v": [Detection(1.0, 2.0, "a", 0.5), Detection(0.0, 3.0, "b", 0.25)]}
    )
    assert found.video.tolist() == [1, 1]
    assert found.score.tolist() == [0.5, 0.25]
    assert found.end_sec.tolist() == [2.0, 3.0]


def test_columns_of_different_length_are_refused() -> None:
    integers = np.zeros(2, dtype=np.int64)
    with pytest.raises(ConfigError, match="equally long"):
        TruthTable(("v",), ("a",), integers, integers, np.zeros(2), np.zeros(3))


def test_a_score_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ConfigError, match="finite"):
        naive.tables([], [("v", 0.0, 1.0, "a", float("nan"))])


def test_an_unknown_protocol_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="activitynet"):
        protocol_named("activity-net")
