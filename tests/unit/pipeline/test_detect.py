"""From features to seconds: whole videos, sliding windows, clipping, time."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tadpipe.annotations import Detection
from tadpipe.datasets.sources import FeatureSequence, FeatureSource
from tadpipe.datasets.windows import WindowConfig, covering_windows
from tadpipe.detectors.parts.decode import DecodeConfig
from tadpipe.detectors.parts.nms import NmsConfig
from tadpipe.detectors.protocol import GridDetections
from tadpipe.errors import StoreError
from tadpipe.pipeline.detect import candidates, detect_on_features, detect_on_source
from tadpipe.pipeline.detect_videos import DRAWN_VIDEOS, DetectReport
from tadpipe.pipeline.recipe import Recipe
from tests.unit.datasets.in_memory import MemoryTable


@dataclass(frozen=True)
class Config:
    window_len: int = 16


class Seen(NamedTuple):
    feats: Tensor
    mask: Tensor


class Oracle(nn.Module):
    """Finds every run of ones in channel 0 exactly; remembers what it was given."""

    def __init__(self, config: Config | None = None) -> None:
        super().__init__()
        self.config = config or Config()
        self.anchor = nn.Parameter(torch.zeros(1))
        self.lengths: list[int] = []

    def padded_len(self, length_grid: int) -> int:
        return max(self.config.window_len, -(-length_grid // 8) * 8)

    def max_len(self) -> int:
        return 2 * self.config.window_len

    def forward(self, feats: Tensor, mask: Tensor) -> Seen:
        self.lengths.append(int(mask.sum()))
        assert feats.shape[2] == self.padded_len(int(mask.sum()))
        return Seen(feats, mask)

    def decode(self, outputs: Seen) -> list[GridDetections]:
        ones = (outputs.feats[0, 0] == 1).numpy()
        edges = np.flatnonzero(np.diff(np.r_[False, ones, False]))
        runs = edges.reshape(-1, 2) - np.array([0, 1])
        segments = torch.tensor(runs, dtype=torch.float32).reshape(-1, 2)
        scores = 0.5 + 0.01 * (segments[:, 1] - segments[:, 0])
        return [GridDetections(segments, scores, torch.zeros(len(runs), dtype=torch.int64))]


def recipe(**windows: object) -> Recipe:
    return Recipe(
        detector="none",
        preset="none",
        dataset=None,
        features=(),
        labels=("a",),
        model={"window_len": 16},
        decode=DecodeConfig(),
        nms=NmsConfig(method="hard", iou_threshold=0.5),
        windows=WindowConfig(**windows),  # type: ignore[arg-type]
    )


def video(rows: int, *runs: tuple[int, int]) -> FeatureSequence:
    """Ones in the runs, first and last row included."""
    values = np.zeros((rows, 1), np.float32)
    for first, last in runs:
        values[first : last + 1] = 1
    return FeatureSource([MemoryTable({"v": values}, stride=4, span=16, fps=30)]).open("v")


def sec(row: float) -> float:
    return (row * 4 + 8) / 30


@pytest.mark.parametrize("rows", [1, 7, 16, 31, 32, 33, 40, 97, 161])
def test_an_action_in_the_last_rows_is_found_whatever_the_length(rows: int) -> None:
    first = max(rows - 3, 0)
    found, *_pieces = detect_on_features(Oracle(), video(rows, (first, rows - 1)), recipe())
    assert (found.start_sec, found.end_sec) == pytest.approx((sec(first), sec(rows - 1)), abs=1e-5)


@pytest.mark.parametrize("rows", [33, 50, 64, 97, 200])
def test_windows_find_what_the_whole_video_holds(rows: int) -> None:
    runs = [(i, i + 6) for i in range(1, rows - 7, 11)]
    windowed = detect_on_features(Oracle(), video(rows, *runs), recipe())
    whole = detect_on_features(Oracle(Config(1024)), video(rows, *runs), recipe())
    # Pieces cut by a window's edge may stay beside an action, never in place of it.
    assert {d[:2] for d in whole} <= {d[:2] for d in windowed}
    assert len(whole) == len(runs)


def test_a_video_within_reach_goes_through_whole() -> None:
    model = Oracle()
    detect_on_features(model, video(32, (3, 5)), recipe())
    assert model.lengths == [32]


@pytest.mark.parametrize(
    ("overlap", "starts"), [(0.0, [0, 32, 64, 68]), (0.5, [0, 16, 32, 48, 64, 68])]
)
def test_windows_cover_the_video_with_the_overlap_asked_for(
    overlap: float, starts: list[int]
) -> None:
    assert covering_windows(100, 32, overlap) == starts
    assert covering_windows(32, 32, overlap) == [0]


def test_candidates_of_windows_count_from_the_start_of_the_video() -> None:
    feats = video(50, (45, 48)).read(0, 50)
    found = candidates(Oracle(), feats, 0.5)
    assert {tuple(row) for row in found.segments.tolist()} >= {(45.0, 48.0)}


def test_segments_are_clipped_to_the_video() -> None:
    (found,) = detect_on_features(Oracle(), video(20, (2, 19)), recipe(), duration_sec=1.0)
    assert (found.start_sec, found.end_sec) == pytest.approx((sec(2), 1.0))


def test_without_a_duration_the_last_snippet_ends_the_video() -> None:
    class Wide(Oracle):
        def decode(self, outputs: Seen) -> list[GridDetections]:
            return [
                GridDetections(
                    torch.tensor([[-50.0, 500.0]]), torch.ones(1), torch.zeros(1, dtype=torch.int64)
                )
            ]

    (found,) = detect_on_features(Wide(), video(20), recipe())
    assert (found.start_sec, found.end_sec) == pytest.approx((0.0, (19 * 4 + 16) / 30))


def test_resized_features_come_back_on_their_own_time_axis() -> None:
    (found,) = detect_on_features(Oracle(), video(32, (8, 23)), recipe(fit="resize"))
    # 32 rows become 16 cells over the whole span of 140 frames.
    cell = ((31 * 4 + 16) / 16) / 30
    assert found.start_sec == pytest.approx(4.5 * cell, abs=1e-4)
    assert found.end_sec == pytest.approx(11.5 * cell, abs=1e-4)


def test_resized_rows_that_divide_the_video_come_back_by_its_duration() -> None:
    rules = recipe(fit="resize", resized_span="video")
    (found,) = detect_on_features(Oracle(), video(32, (8, 23)), rules, duration_sec=8.0)
    # 16 cells of half a second, the middle of the first one at a quarter.
    assert (found.start_sec, found.end_sec) == pytest.approx((5 * 0.5 - 0.25, 11 * 0.5 + 0.25))


def test_thinned_features_come_back_on_the_videos_time_axis() -> None:
    (found,) = detect_on_features(Oracle(), video(40, (9, 30)), recipe(fit="thin"))
    # Every third row is seen: 9, 12, ... 30.
    assert (found.start_sec, found.end_sec) == pytest.approx((sec(9), sec(30)))


def test_a_silent_video_has_no_detections() -> None:
    assert detect_on_features(Oracle(), video(40), recipe()) == []


def test_training_mode_comes_back_and_detection_runs_in_eval_mode() -> None:
    table = MemoryTable({"v": np.ones((9, 1), np.float32)})
    model = Oracle().train()
    found = detect_on_source(
        model, FeatureSource([table]), {"name": "v"}, recipe(), durations_sec={"name": None}
    )
    assert list(found) == ["name"]
    assert model.training


def test_a_video_without_features_is_named() -> None:
    source = FeatureSource([MemoryTable({"v": np.ones((9, 1), np.float32)})])
    with pytest.raises(StoreError, match="gone"):
        detect_on_source(Oracle(), source, {"x": "gone"}, recipe(), durations_sec={})


def report_of(videos: int) -> DetectReport:
    """The same two detections, one of them weak, in videos of 10 s."""
    found = [Detection(2.0, 4.0, "wave", 0.9), Detection(6.0, 9.0, "jump", 0.1)]
    names = [f"video {i}" for i in range(videos)]
    return DetectReport(
        [], detections=dict.fromkeys(names, found), durations_sec=dict.fromkeys(names, 10.0)
    )


def test_the_report_draws_what_was_found_on_a_time_axis() -> None:
    lines = report_of(1).text(width=27).splitlines()
    assert lines[lines.index("video 0, 10.0 s") :][:4] == [
        "video 0, 10.0 s",
        "found  ....wwww............",
        "       |0 s      |5",
        "       w wave",
    ]


def test_the_report_draws_the_first_videos_only() -> None:
    text = report_of(DRAWN_VIDEOS + 2).text()
    assert text.count("found  ") == DRAWN_VIDEOS
    assert "... and 2 more" in text
    assert "and" not in report_of(DRAWN_VIDEOS).text()


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_reports_timelines_take_the_width_asked_for(width: int) -> None:
    plain, coloured = (report_of(2).text(width=width, colour=colour) for colour in (False, True))
    assert max(map(len, plain.splitlines())) == width
    assert "\x1b" not in plain
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == plain != coloured


def test_a_report_without_detections_draws_nothing() -> None:
    assert DetectReport([]).text() == ""
