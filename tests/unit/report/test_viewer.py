"""What the viewer tells about detections and videos."""

from __future__ import annotations

import numpy as np
import pytest

from tadpipe.annotations import Action, Detection, Detections, Video
from tadpipe.evaluation.detection_map import score_detections
from tadpipe.evaluation.diagnosis import diagnose
from tadpipe.evaluation.false_positives import KINDS
from tadpipe.evaluation.tables import DetectionTable, TruthTable
from tadpipe.report.systems import System
from tadpipe.report.viewer import Film, judge, shown_per_video, viewer_mapping

TRUTH = {
    "one": Video("one", "test", 20.0, None, (Action(0, 4, "run"), Action(10, 14, "jump"))),
    "two": Video("two", "test", 10.0, None, (Action(2, 6, "run"),)),
    "empty": Video("empty", "test", 5.0),
}
FOUND: Detections = {
    "one": [
        Detection(0, 4, "run", 0.9),  # right
        Detection(0.5, 4, "run", 0.8),  # double
        Detection(10, 14, "run", 0.7),  # wrong label
        Detection(10, 11, "jump", 0.6),  # badly placed
        Detection(16, 18, "run", 0.5),  # background
    ],
    "two": [Detection(2, 6, "run", 0.4)],
}


def make_system(found: Detections = FOUND) -> System:
    tables = (TruthTable.from_videos(TRUTH), DetectionTable.from_detections(found))
    durations = {name: video.duration_sec or 0.0 for name, video in TRUTH.items()}
    return System(
        name="made up",
        detector="",
        backbone="",
        seeds=(None,),
        folders=("here",),
        scores=(score_detections(*tables, (0.5,)),),
        diagnosis=diagnose(*tables, (0.5,), durations=durations),
    )


def test_every_detection_has_the_kind_of_its_error() -> None:
    system = make_system()
    kinds = judge(system.diagnosis, "zero").kind
    expected = ["true positive", "double detection", "wrong label", "localisation", "background",
                "true positive"]  # fmt: skip
    assert [KINDS[kind] for kind in kinds] == expected


def test_tiou_is_that_with_an_action_of_the_same_label() -> None:
    system = make_system()
    tiou = judge(system.diagnosis, "zero").tiou
    np.testing.assert_allclose(tiou, [1.0, 3.5 / 4, 0.0, 0.25, 0.0, 1.0])


@pytest.mark.parametrize("name", ["one", "two"])
def test_ap_of_a_video_is_what_scoring_it_alone_gives(name: str) -> None:
    system = make_system()
    alone = score_detections(
        TruthTable.from_videos({name: TRUTH[name]}),
        DetectionTable.from_detections({name: FOUND[name]}),
        (0.5,),
    )
    ap = judge(system.diagnosis, "zero").video_ap
    assert ap[list(TRUTH).index(name)] == pytest.approx(alone.average_map)


def test_video_without_actions_has_no_ap() -> None:
    videos = mapping()["videos"]
    assert videos[2]["runs"][0]["ap"] is None


def test_most_confident_error_is_that_of_the_video() -> None:
    videos = mapping()["videos"]
    assert [video["runs"][0]["w"] for video in videos] == [0.8, 0.0, 0.0]


def test_only_the_best_detections_are_kept_and_all_are_counted() -> None:
    run = mapping(top_k=2)["videos"][0]["runs"][0]
    assert (run["n"], run["p"], run["s"], run["e"]) == (5, [900, 800], [0, 50], [400, 400])


def test_missed_actions_are_marked() -> None:
    run = mapping()["videos"][0]["runs"][0]
    assert run["m"] == [0, 1]


def test_video_of_unknown_length_ends_with_its_last_segment() -> None:
    videos = viewer_mapping([make_system()], durations={}, films={}, top_k=9)["videos"]
    assert videos[0]["duration"] == 18.0


def test_page_holds_fewer_detections_of_each_of_many_videos() -> None:
    assert shown_per_video(3, 200, 200) == 200
    assert shown_per_video(1, 13_000, 200) == 10


def mapping(top_k: int = 9) -> dict:  # type: ignore[type-arg]  # JSON
    durations = {name: video.duration_sec or 0.0 for name, video in TRUTH.items()}
    films = {"one": Film("./one.mp4")}
    return viewer_mapping([make_system()], durations=durations, films=films, top_k=top_k)
