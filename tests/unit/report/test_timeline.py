"""The terminal timeline and the picture of ground truth against detections."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib.image
import pytest

from tadpipe.annotations import Action, Detection
from tadpipe.report.timeline import (
    COLOURS,
    VideoTimeline,
    label_colours,
    label_letters,
    shown_detections,
    terminal_timeline,
    timeline_png,
)

TRUTH = [Action(1.0, 3.0, "circle"), Action(5.0, 8.0, "sweep")]
FOUND = [
    Detection(5.5, 8.0, "sweep", 0.9),
    Detection(1.0, 2.5, "circle", 0.8),
    Detection(1.2, 2.6, "sweep", 0.7),
    Detection(9.0, 9.5, "circle", 0.1),
]
ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


def test_cells_follow_the_segments() -> None:
    text = terminal_timeline(TRUTH, FOUND, 10.0, width=37)  # 3 columns per second
    assert text.splitlines() == [
        "truth  ...cccccc......sssssssss......",
        "found  ...ccccc........ssssssss......",
        "       |0 s           |5",
        "       c circle   s sweep",
    ]


def test_unknown_truth_has_no_row() -> None:
    both = terminal_timeline(TRUTH, FOUND, 10.0, width=37).splitlines()
    assert terminal_timeline(None, FOUND, 10.0, width=37).splitlines() == both[1:]


def test_short_segment_still_has_a_cell() -> None:
    text = terminal_timeline([Action(5.0, 5.001, "zip")], [], 100.0, width=27)
    assert text.splitlines()[0] == "truth  .z.................."


@pytest.mark.parametrize("width", [20, 40, 80, 120])
def test_no_line_is_wider_than_asked(width: int) -> None:
    text = terminal_timeline(TRUTH, FOUND, 37.3, width=width, colour=True)
    assert max(len(line) for line in ESCAPE.sub("", text).splitlines()) <= width


def test_colour_changes_nothing_but_the_colour() -> None:
    plain = terminal_timeline(TRUTH, FOUND, 10.0, width=60)
    coloured = terminal_timeline(TRUTH, FOUND, 10.0, width=60, colour=True)
    assert "\x1b" not in plain
    assert coloured != plain
    assert ESCAPE.sub("", coloured) == plain


def test_weak_and_overlapping_detections_are_left_out() -> None:
    assert shown_detections(FOUND) == [FOUND[1], FOUND[0]]
    assert shown_detections(FOUND, min_score=0.05) == [FOUND[1], FOUND[0], FOUND[3]]


def test_video_without_anything_has_empty_lanes() -> None:
    truth, found, *_ = terminal_timeline([], [], 10.0, width=17).splitlines()
    assert truth == "truth  .........."
    assert found == "found  .........."


def test_labels_with_the_same_initial_get_different_letters() -> None:
    letters = label_letters(["spin", "sweep", "s", "ss"])
    assert len(set(letters.values())) == 4
    assert letters["spin"] == "s"
    assert letters["sweep"] == "w"


def test_first_eight_labels_have_different_colours() -> None:
    colours = label_colours([f"class {i}" for i in range(len(COLOURS))])
    assert len(set(colours.values())) == len(COLOURS)


def test_picture_shows_the_colours_of_its_labels(tmp_path: Path) -> None:
    path = tmp_path / "timeline.png"
    videos = [VideoTimeline("one", 10.0, TRUTH, FOUND), VideoTimeline("$two^$", 7.0, [], [])]
    timeline_png(path, videos, labels=["circle", "sweep"], title="no $formula_{$")
    pixels = (matplotlib.image.imread(path)[:, :, :3] * 255).round().astype(int)
    seen = {tuple(pixel) for pixel in pixels.reshape(-1, 3).tolist()}
    for colour in COLOURS[:2]:
        assert tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5)) in seen
    assert list(tmp_path.iterdir()) == [path]
