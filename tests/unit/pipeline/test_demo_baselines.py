"""The baselines that the demo compares with."""

from __future__ import annotations

import pytest

from tadpipe.annotations import Action, Annotations, Video
from tadpipe.pipeline.demo_baselines import chance_detections, trivial_detections
from tadpipe.pipeline.evaluate import evaluate

TRAINING = {
    "a": Video("a", "training", 40.0, 15.0, (Action(2, 6, "long"), Action(9, 10, "short"))),
    "b": Video("b", "training", 40.0, 15.0, (Action(5, 9, "long"), Action(20, 24, "long"))),
}
LENGTHS_SEC = {"x": 30.0, "y": 0.5}


def test_trivial_detections_slide_the_training_lengths_over_each_video() -> None:
    found = trivial_detections(TRAINING, LENGTHS_SEC, seed=0)
    assert list(found) == ["x", "y"]
    longs = sorted(row.start_sec for row in found["x"] if row.label == "long")
    assert longs[::3] == [2.0 * i for i in range(14)]  # three equal quantiles, half a length on
    assert {row.end_sec - row.start_sec for row in found["x"] if row.label == "long"} == {4.0}
    assert all(0 <= r.start_sec < r.end_sec <= LENGTHS_SEC[v] for v in found for r in found[v])


def test_trivial_scores_follow_what_is_common_in_training() -> None:
    rows = trivial_detections(TRAINING, LENGTHS_SEC, seed=0)["x"]
    assert [row.score for row in rows] == sorted((row.score for row in rows), reverse=True)
    assert rows[0].label == "long"
    assert rows[-1].label == "short"


def test_trivial_detector_is_as_good_as_luck_allows() -> None:
    truth = Annotations(
        {"t": Video("t", "test", 8.0, 15.0, (Action(2.0, 6.0, "long"),))}, ("long", "short")
    )
    found = trivial_detections(TRAINING, {"t": 8.0}, seed=0)
    assert 0 < evaluate(found, annotations=truth, subset="test").average_map <= 1


@pytest.mark.parametrize("function", [trivial_detections, chance_detections])
def test_seed_decides_everything(function: type) -> None:
    first, again = (function(TRAINING, LENGTHS_SEC, seed=1) for _ in range(2))
    assert first == again
    assert first != function(TRAINING, LENGTHS_SEC, seed=2)


def test_chance_detections_lie_in_the_video_and_use_all_labels() -> None:
    found = chance_detections(TRAINING, LENGTHS_SEC, seed=0)
    for name, rows in found.items():
        assert {row.label for row in rows} == {"long", "short"}
        assert all(0 <= row.start_sec < row.end_sec <= LENGTHS_SEC[name] for row in rows)
