"""How whole videos are fitted to a window, and which of them are trained on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from tadpipe.annotations import Action, Video
from tadpipe.datasets.sources import FeatureSource
from tadpipe.datasets.windows import (
    TrainingWindows,
    WindowConfig,
    fitted_features,
    fitted_grid,
)
from tadpipe.errors import ConfigError
from tadpipe.resample import resize_by_roi_align
from tadpipe.timeline import SnippetGrid
from tests.unit.datasets.in_memory import MemoryTable, ramp

WINDOW = 20


def windows_of(
    rows: int,
    config: WindowConfig,
    actions: Sequence[Action] = (Action(1.0, 2.0, "a"),),
    duration_sec: float | None = None,
) -> TrainingWindows:
    table = MemoryTable({"v": ramp(rows)})
    video = Video("v", "training", duration_sec, actions=tuple(actions))
    return TrainingWindows(FeatureSource([table]), {"v": video}, {"a": 0}, config, WINDOW)


def low(lowest: int, _: int) -> int:
    return lowest


@pytest.mark.parametrize(("rows", "factor"), [(20, 1), (21, 2), (39, 2), (40, 3), (100, 6)])
def test_thinning_keeps_every_nth_row_so_that_a_video_fits(rows: int, factor: int) -> None:
    config = WindowConfig(fit="thin", crop_ratio=())
    item = windows_of(rows, config).item(0, low)
    kept = list(range(0, rows, factor))
    assert item.feats[0].tolist() == kept
    assert len(kept) <= WINDOW
    # Row i still describes the snippet around frame i * factor * stride + half a clip.
    assert item.segments.numpy() == pytest.approx(np.array([[(30 - 8), (60 - 8)]]) / (4 * factor))


def test_roi_align_resizes_as_etad_does() -> None:
    noise = np.random.default_rng(0).normal(size=(80, 2)).astype(np.float32)
    sequence = FeatureSource([MemoryTable({"v": noise})]).open("v")
    feats = fitted_features(sequence, WindowConfig(fit="roi-align"), WINDOW)
    assert torch.equal(feats, resize_by_roi_align(sequence.read(0, 80), WINDOW))
    assert not torch.allclose(feats, fitted_features(sequence, WindowConfig(fit="resize"), WINDOW))


def test_resized_rows_divide_the_video_where_the_recipe_says_so() -> None:
    grid = SnippetGrid.from_convention(37, fps=30, stride_frames=4, span_frames=16)
    config = WindowConfig(fit="resize", resized_span="video")
    whole = fitted_grid(grid, config, WINDOW, duration_sec=10.0)
    assert whole.rows == WINDOW
    # A share p of the video lies p * rows cells from its start, and row 0 is half a cell in.
    assert [whole.to_sec(p * WINDOW - 0.5) for p in (0.0, 0.3, 1.0)] == pytest.approx([0, 3, 10])
    assert fitted_grid(grid, config, WINDOW) == grid.resized(WINDOW)


def test_the_annotated_duration_is_what_training_divides() -> None:
    config = WindowConfig(fit="resize", resized_span="video", crop_ratio=())
    item = windows_of(80, config, duration_sec=10.0).item(0, low)
    assert item.segments.numpy() == pytest.approx(np.array([[1.5, 3.5]]))


SLIDING = WindowConfig(placement="sliding", crop_ratio=(), keep_ratio=0.9, margin="none")


def test_sliding_windows_are_those_that_hold_an_action() -> None:
    # On the grid the actions span 5.5 .. 13 and 43 .. 46.75; windows start at 0, 10, ... 40.
    actions = [Action(1.0, 2.0, "a"), Action(6.0, 6.5, "a")]
    windows = windows_of(60, SLIDING, actions)
    items = [windows.item(i, low) for i in range(len(windows))]
    assert [item.feats[0, 0].item() for item in items] == [0, 30, 40]
    assert [item.segments.tolist() for item in items] == [[[5.5, 13]], [[13, 16.75]], [[3, 6.75]]]
    assert windows.names == ["v"]


def test_a_short_video_is_one_sliding_window() -> None:
    windows = windows_of(15, SLIDING)
    assert len(windows) == 1
    assert windows.item(0, low).feats.shape == (2, 15)


def test_sliding_windows_overlap_as_asked() -> None:
    long = [Action(0.5, 25.0, "a")]
    counts = []
    for overlap in (0.5, 0.0):
        config = WindowConfig(
            placement="sliding", crop_ratio=(), keep_ratio=0.01, margin="none", overlap=overlap
        )
        counts.append(len(windows_of(200, config, long)))
    assert counts == [19, 10]


def test_sliding_windows_are_not_cropped() -> None:
    with pytest.raises(ConfigError, match="not cropped"):
        WindowConfig(placement="sliding")


@pytest.mark.parametrize(
    ("actions", "duration_sec", "trained_on"),
    [
        ([Action(1.0, 2.0, "a")], 99.0, True),
        ([Action(1.0, 2.0, "a")], 100.0, False),
        ([Action(1.0, 1.1, "a"), Action(3.0, 5.0, "a")], 100.0, True),
        ([], 100.0, False),
        ([Action(1.0, 2.0, "a")], None, True),  # 40 rows last 5.7 s
    ],
)
def test_videos_with_short_actions_only_are_left_out(
    actions: list[Action], duration_sec: float | None, trained_on: bool
) -> None:
    windows = windows_of(40, WindowConfig(min_action_share=0.01), actions, duration_sec)
    assert len(windows) == int(trained_on)
    assert len(windows_of(40, WindowConfig(), actions, duration_sec)) == 1


def test_short_actions_beside_long_ones_are_kept_or_dropped() -> None:
    actions = [Action(1.0, 1.01, "a"), Action(2.0, 4.0, "a")]
    kept = []
    for keep in (True, False):
        config = WindowConfig(
            fit="resize", crop_ratio=(), min_action_share=0.01, keep_short_actions=keep
        )
        kept.append(len(windows_of(40, config, actions).item(0, low).labels))
    assert kept == [2, 1]


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_impossible_shares_are_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="min_action_share"):
        WindowConfig(min_action_share=share)
