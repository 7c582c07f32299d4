"""Which frames make which snippet, and that one pass gives the clips of the clip-by-clip loop."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tadpipe.errors import ConfigError
from tadpipe.timeline import interpolate_frame_time
from tadpipe.video.packets import VideoProbe
from tadpipe.video.reader import frames_at, open_frames, probe
from tadpipe.video.snippets import (
    SnippetPlan,
    frame_times,
    iter_clips,
    resized_frames,
    resized_snippets,
    window_frames,
    window_snippets,
)
from tests.corpus import make_video, uneven_times

REAL = Path(__file__).parents[4] / "shared" / "data" / "videos"

plans = st.builds(
    SnippetPlan,
    anchor=st.sampled_from(["start", "centre", "cell"]),
    clip_len=st.integers(1, 20),
    frame_interval=st.integers(1, 5),
    stride=st.integers(1, 40),
)


def probe_of(times_sec: list[float], fps: Fraction | None) -> VideoProbe:
    return VideoProbe(len(times_sec), tuple(times_sec), fps, 96, 64, 0, 0.0, True, False)


@pytest.mark.parametrize(
    ("n_frames", "rows"), [(0, 0), (15, 0), (16, 1), (19, 1), (20, 2), (726, 178), (1800, 447)]
)
def test_start_grid_drops_the_tail(n_frames: int, rows: int) -> None:
    plan = SnippetPlan("start", clip_len=16, stride=4)
    assert plan.rows(n_frames) == rows
    indices = plan.frame_indices(n_frames)
    assert indices.shape == (rows, 16)
    for i, clip in enumerate(indices):
        assert clip.tolist() == list(range(4 * i, 4 * i + 16))


def test_start_grid_with_an_interval_needs_the_whole_reach() -> None:
    plan = SnippetPlan("start", clip_len=4, frame_interval=3, stride=5)
    assert (plan.rows(9), plan.rows(10), plan.rows(15)) == (0, 1, 2)
    assert plan.frame_indices(15).tolist() == [[0, 3, 6, 9], [5, 8, 11, 14]]


def test_centre_grid_repeats_the_edges() -> None:
    plan = SnippetPlan("centre", clip_len=4, frame_interval=2, stride=3)
    assert plan.frame_indices(8).tolist() == [[0, 0, 0, 2], [0, 1, 3, 5], [2, 4, 6, 7]]


def test_cell_grid_is_centred_on_the_stride_cell() -> None:
    plan = SnippetPlan("cell", clip_len=4, stride=4)
    assert plan.frame_indices(8).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert plan.frame_indices(9)[2].tolist() == [8, 8, 8, 8]


@pytest.mark.parametrize(
    ("plan", "offset", "span"),
    [
        (SnippetPlan("start", 16, 1, 4), 8.0, 16),
        (SnippetPlan("start", 16, 4, 8), 32.0, 64),
        (SnippetPlan("centre", 16, 1, 4), 0.0, 16),
        (SnippetPlan("cell", 16, 1, 8), 4.0, 16),
    ],
)
def test_offset_and_span_are_the_published_ones(
    plan: SnippetPlan, offset: float, span: int
) -> None:
    assert (plan.offset_frames, plan.span_frames) == (offset, span)


@settings(max_examples=200, deadline=None)
@given(plan=plans, n_frames=st.integers(0, 120))
def test_one_pass_gives_the_indices_of_the_plan(plan: SnippetPlan, n_frames: int) -> None:
    clips = list(iter_clips(range(n_frames), plan))
    assert [row for row, _ in clips] == list(range(plan.rows(n_frames)))
    expected = plan.frame_indices(n_frames)
    assert [clip for _, clip in clips] == expected.tolist()
    if expected.size:
        assert expected.min() >= 0
        assert expected.max() < n_frames


@given(plans, st.integers(1, 200))
def test_frames_that_a_plan_does_not_use_are_in_no_clip(plan: SnippetPlan, n_frames: int) -> None:
    held = set(plan.frame_indices(n_frames).flatten().tolist())
    assert all(plan.uses(frame) for frame in held)


def test_frames_between_clips_are_not_used() -> None:
    plan = SnippetPlan("start", clip_len=3, frame_interval=2, stride=8)
    assert [frame for frame in range(16) if plan.uses(frame)] == [0, 2, 4, 8, 10, 12]


@settings(max_examples=60, deadline=None)
@given(plan=plans, n_frames=st.integers(1, 120))
def test_clip_comes_with_its_last_frame_and_the_ring_stays_bounded(
    plan: SnippetPlan, n_frames: int
) -> None:
    alive = [0]

    class Frame:
        """An item that counts how many of its kind are held."""

        def __init__(self, index: int) -> None:
            self.index = index
            alive[0] += 1

        def __del__(self) -> None:
            alive[0] -= 1

    given_out = [0]

    def frames():  # type: ignore[no-untyped-def]
        for index in range(n_frames):
            given_out[0] = index + 1
            yield Frame(index)

    last_frames = plan.frame_indices(n_frames).max(axis=1, initial=0)
    clips = iter_clips(frames(), plan)
    for row, clip in clips:
        # The clip itself holds frames of the ring only; one more may be on its way in.
        assert alive[0] <= plan.reach_frames + 1
        reaches_past_end = plan.first_frame + row * plan.stride + plan.reach_frames > n_frames
        assert given_out[0] == (n_frames if reaches_past_end else last_frames[row] + 1)
        del clip


def test_clips_of_a_video_equal_those_of_the_clip_loop(tmp_path: Path) -> None:
    path = make_video(tmp_path / "video.mp4", frames=50, gop=40)
    for anchor in ("start", "centre", "cell"):
        plan = SnippetPlan(anchor, clip_len=8, frame_interval=2, stride=6)  # type: ignore[arg-type]
        clips = list(iter_clips(open_frames(path), plan))
        indices = plan.frame_indices(probe(path).frames)
        assert len(clips) == len(indices)
        for (_, clip), wanted in zip(clips, indices, strict=True):
            np.testing.assert_array_equal(np.stack(clip), frames_at(path, wanted))


@pytest.mark.skipif(not REAL.is_dir(), reason="no shared videos here")
@pytest.mark.parametrize("name", ["highjump.mp4", "mma_test.avi"])
def test_real_clips_equal_those_of_random_access(name: str) -> None:
    plan = SnippetPlan("centre")
    indices = plan.frame_indices(probe(REAL / name).frames)
    for row, clip in iter_clips(open_frames(REAL / name), plan):
        if row in (0, 1, 20, len(indices) - 1):
            np.testing.assert_array_equal(np.stack(clip), frames_at(REAL / name, indices[row]))


def test_row_times_are_the_official_formula_at_constant_rate() -> None:
    times = [i / 30 for i in range(60)]
    plan = SnippetPlan("start", clip_len=16, stride=4)
    information = probe_of(times, Fraction(30))
    official = (np.arange(12) * 4 + 8) / 30
    np.testing.assert_allclose(plan.row_times(information), official, atol=1e-12)
    grid = plan.grid(information)
    assert not grid.is_variable_rate
    assert grid.rows == 12
    np.testing.assert_allclose([grid.to_sec(i) for i in range(12)], official, atol=1e-12)


def test_row_times_follow_the_stamps_at_variable_rate() -> None:
    times = [float(time) for time in uneven_times(40)]
    plan = SnippetPlan("start", clip_len=7, stride=4)  # a fractional centre: 3.5
    information = probe_of(times, None)
    grid = plan.grid(information)
    assert grid.is_variable_rate
    for row, time_sec in enumerate(plan.row_times(information)):
        assert time_sec == pytest.approx((times[4 * row + 3] + times[4 * row + 4]) / 2)
        assert grid.to_sec(row) == time_sec


def test_frame_times_continue_past_both_ends() -> None:
    information = probe_of([1.0, 2.0, 4.0], None)
    positions = [-0.5, 0.0, 1.5, 2.0, 2.5]
    expected = [interpolate_frame_time(information.times_sec, p) for p in positions]
    np.testing.assert_allclose(frame_times(information, np.array(positions)), expected)
    assert expected == [0.5, 1.0, 3.0, 4.0, 5.0]


@pytest.mark.parametrize("fps", [None, Fraction(25)])
def test_grid_of_one_frame_and_of_no_rows(fps: Fraction | None) -> None:
    one = probe_of([0.5], fps)
    assert SnippetPlan("centre").grid(one).to_sec(0) == 0.5
    empty = SnippetPlan("start").grid(one)
    assert empty.rows == 0
    assert empty.dt_sec > 0


@pytest.mark.parametrize("field", ["clip_len", "frame_interval", "stride"])
def test_plan_refuses_zero(field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        SnippetPlan(**{field: 0})  # type: ignore[arg-type]


def test_plan_refuses_an_unknown_anchor() -> None:
    with pytest.raises(ConfigError, match="anchor"):
        SnippetPlan(anchor="end")  # type: ignore[arg-type]


def test_resized_grids_round_half_to_even() -> None:
    indices, mask = resized_frames(6, 3, 1)  # centres 0.5, 2.5, 4.5
    assert indices.tolist() == [0, 2, 4]
    assert mask.all()
    clips, _ = resized_snippets(6, 3, clip_len=2)  # offsets are added before rounding
    assert clips.tolist() == [[0, 0], [2, 2], [4, 4]]


def test_window_repeats_its_last_frame_and_masks_the_rest() -> None:
    indices, mask = window_frames(10, 1, 3, stride=2, window_grid=4, scale=2)
    assert indices.tolist() == [2, 3, 4, 5, 6, 7, 7, 7]
    assert mask.tolist() == [True, True, True, False]
    clips, mask = window_snippets(10, 3, 4, stride=2, window_grid=3, clip_len=2)
    assert clips.tolist() == [[5, 6], [7, 8], [7, 8]]
    assert mask.tolist() == [True, True, False]


def test_window_errors_say_what_is_wrong() -> None:
    with pytest.raises(ConfigError, match="multiple"):
        window_frames(10, 0, 1, stride=3, window_grid=4, scale=2)
    with pytest.raises(ConfigError, match="behind the end"):
        window_snippets(10, 8, 9, stride=2, window_grid=3, clip_len=2)
