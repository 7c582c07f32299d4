"""Training windows: cleaning, truncation, resizing to the window, padding."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tadpipe.annotations import Action, Video
from tadpipe.datasets.sources import FeatureSource
from tadpipe.datasets.windows import (
    MAX_TRIALS,
    TrainingWindows,
    WindowConfig,
    choose_window,
    clean_actions,
    on_grid,
    stack_padded,
)
from tadpipe.errors import ConfigError
from tadpipe.timeline import SnippetGrid
from tests.unit.datasets.in_memory import MemoryTable, ramp

SHARED = Path(__file__).parents[4] / "shared" / "parity"
CASES = sorted(SHARED.glob("*/truncate_*"))
GRID = SnippetGrid.from_convention(40, fps=30, stride_frames=4, span_frames=16)


def middle(low: int, high: int) -> int:
    return (low + high) // 2


@pytest.mark.skipif(not CASES, reason="the shared parity cases are not beside this checkout")
@pytest.mark.parametrize("case", CASES, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_truncation_makes_the_official_draws_and_windows(case: Path) -> None:
    params = json.loads((case / "case.json").read_text())["params"]
    with np.load(case / "io.npz") as stored:
        arrays = {name: torch.from_numpy(stored[name]) for name in stored.files}
    draws = iter(arrays["draws"].tolist())

    def draw(low: int, high: int) -> int:
        expected_low, expected_high, value = next(draws)
        assert (low, high) == (expected_low, expected_high)
        return int(value)

    start, length, segments, labels = choose_window(
        arrays["feats"].shape[-1],
        arrays["segments"],
        arrays["labels"],
        max_len=params["max_seq_len"],
        keep_ratio=params["trunc_thresh"],
        crop_ratio=params["crop_ratio"],
        offset_grid=params.get("offset", 0.0),
        draw=draw,
    )
    assert next(draws, None) is None
    assert torch.equal(arrays["feats"][:, start : start + length], arrays["out_feats"])
    assert torch.allclose(segments, arrays["out_segments"], atol=1e-5)
    assert torch.equal(labels, arrays["out_labels"])


@settings(deadline=None, max_examples=60)
@given(
    total=st.integers(1, 60),
    max_len=st.integers(1, 40),
    keep_ratio=st.floats(0.1, 1.0),
    offset_grid=st.floats(0, 4),
    crop=st.none() | st.tuples(st.floats(0.1, 1.0), st.floats(0.1, 1.0)),
    ends=st.lists(st.tuples(st.floats(-2, 60), st.floats(0.1, 30)), max_size=6),
    seed=st.integers(0, 2**16),
)
def test_a_chosen_window_lies_in_the_video_with_shifted_actions_inside(
    total: int,
    max_len: int,
    keep_ratio: float,
    offset_grid: float,
    crop: tuple[float, float] | None,
    ends: list[tuple[float, float]],
    seed: int,
) -> None:
    segments = torch.tensor([[s, s + d] for s, d in ends], dtype=torch.float32).reshape(-1, 2)
    labels = torch.arange(len(ends))
    generator = torch.Generator().manual_seed(seed)
    start, length, kept, kept_labels = choose_window(
        total,
        segments,
        labels,
        max_len=max_len,
        keep_ratio=keep_ratio,
        crop_ratio=None if crop is None else (min(crop), max(crop)),
        offset_grid=offset_grid,
        draw=lambda low, high: int(torch.randint(low, high + 1, (), generator=generator)),
    )
    assert 1 <= length <= min(total, max_len)
    assert 0 <= start <= total - length
    if length == total:
        return
    assert (kept[:, 0] >= -offset_grid - 1e-4).all()
    assert (kept[:, 1] <= length + offset_grid + 1e-4).all()
    original = segments[kept_labels]
    share = (kept[:, 1] - kept[:, 0]) / (original[:, 1] - original[:, 0])
    assert (share >= keep_ratio - 1e-3).all()
    assert (kept + start >= original[:, :1] - 1e-3).all()
    assert (kept + start <= original[:, 1:] + 1e-3).all()


def test_a_window_without_any_action_is_taken_after_the_last_trial() -> None:
    draws = []

    def first(low: int, high: int) -> int:
        draws.append((low, high))
        return low

    window = choose_window(
        100,
        torch.tensor([[90.0, 99.0]]),
        torch.tensor([0]),
        max_len=10,
        keep_ratio=0.5,
        crop_ratio=None,
        offset_grid=0.0,
        draw=first,
    )
    assert len(draws) == MAX_TRIALS
    assert window.length == 10
    assert window.segments.shape == (0, 2)


def test_repeated_and_short_actions_are_dropped() -> None:
    actions = [
        Action(1.0, 2.0, "a"),
        Action(1.0005, 2.0005, "a"),
        Action(1.0, 2.0, "b"),
        Action(3.0, 3.0005, "a"),
    ]
    assert clean_actions(actions, duplicate_sec=1e-3, min_action_sec=1e-3) == [
        actions[0],
        actions[2],
    ]
    assert clean_actions(actions, duplicate_sec=0, min_action_sec=0) == actions


def test_actions_land_on_the_grid_by_the_published_formula() -> None:
    segments, labels = on_grid([Action(2.0, 4.0, "b")], {"a": 0, "b": 1}, GRID, WindowConfig())
    assert segments.tolist() == [[2 * 30 / 4 - 2, 4 * 30 / 4 - 2]]
    assert labels.tolist() == [1]


def test_labels_outside_the_list_are_left_out() -> None:
    segments, labels = on_grid([Action(2.0, 4.0, "Ambiguous")], {"a": 0}, GRID, WindowConfig())
    assert segments.shape == (0, 2)
    assert labels.shape == (0,)


@pytest.mark.parametrize(
    ("outside", "expected"),
    [
        ("keep", [[5.0, 10.0], [35.0, 50.0], [41.0, 80.0], [43.0, 60.0]]),
        ("clip", [[5.0, 10.0], [35.0, 42.0], [41.0, 42.0]]),
        ("clip-and-test", [[5.0, 10.0]]),
    ],
)
def test_actions_past_the_features(outside: str, expected: list[list[float]]) -> None:
    # 40 rows and half a clip of 2 steps: the features end at 42.
    actions = [
        Action(GRID.to_sec(start), GRID.to_sec(end), "a")
        for start, end in ((5, 10), (35, 50), (41, 80), (43, 60))
    ]
    config = WindowConfig(outside=outside, keep_ratio=0.5)  # type: ignore[arg-type]
    segments, _ = on_grid(actions, {"a": 0}, GRID, config)
    assert segments.numpy() == pytest.approx(np.array(expected), abs=1e-4)


def windows_of(rows: int, config: WindowConfig, window_len: int) -> TrainingWindows:
    table = MemoryTable({"v": ramp(rows)})
    video = Video("v", "training", actions=(Action(1.0, 2.0, "a"),))
    return TrainingWindows(FeatureSource([table]), {"v": video}, {"a": 0}, config, window_len)


def test_a_long_video_is_cut_without_reading_the_rest() -> None:
    windows = windows_of(1000, WindowConfig(), 50)
    item = windows.item(0, lambda low, high: low)
    assert item.feats[0].tolist() == list(range(50))
    assert item.segments.tolist() == [[1 * 30 / 4 - 2, 2 * 30 / 4 - 2]]
    table = windows.source._tables[0]
    assert table.open("v").read == [slice(0, 50)]  # type: ignore[attr-defined]


def test_a_margin_of_none_clips_actions_at_the_window() -> None:
    start = 10  # the action spans 5.5 .. 13 on the grid
    draws = {"half-clip": [[8 - 10.0, 3.0]], "none": [[0.0, 3.0]]}
    for margin, expected in draws.items():
        config = WindowConfig(margin=margin, keep_ratio=0.3)  # type: ignore[arg-type]
        item = windows_of(100, config, 50).item(0, lambda low, high: start)
        assert item.segments.tolist() == expected


def test_resizing_gives_every_video_the_window_length() -> None:
    windows = windows_of(80, WindowConfig(fit="resize", crop_ratio=()), 20)
    item = windows.item(0, middle)
    assert item.feats.shape == (2, 20)
    stride = (79 * 4 + 16) / 20  # frames per resized row, ActivityNet's rule
    expected = [[1 * 30 / stride - 0.5, 2 * 30 / stride - 0.5]]
    assert item.segments.numpy() == pytest.approx(np.array(expected), abs=1e-4)


def test_no_crop_ratio_means_no_crop() -> None:
    item = windows_of(30, WindowConfig(crop_ratio=()), 50).item(0, lambda low, high: low)
    assert item.feats.shape == (2, 30)
    item = windows_of(30, WindowConfig(crop_ratio=(0.5, 1.0)), 50).item(0, lambda low, high: low)
    assert item.feats.shape == (2, 15)


@pytest.mark.parametrize("crop", [(0.9,), (0.0, 1.0), (1.0, 0.5), (0.5, 1.5)])
def test_wrong_crop_ratios_are_refused(crop: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="crop_ratio"):
        WindowConfig(crop_ratio=crop)


def test_padding_is_zero_and_outside_the_mask() -> None:
    feats, mask = stack_padded([torch.ones(2, 3), torch.ones(2, 5)], 8)
    assert feats.shape == (2, 2, 8)
    assert mask.sum(1).tolist() == [3, 5]
    assert (feats[0, :, 3:] == 0).all()
    assert (feats[1, :, :5] == 1).all()


def test_a_sequence_longer_than_the_padding_is_an_error() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        stack_padded([torch.ones(2, 9)], 8)
