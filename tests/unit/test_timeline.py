"""Time: grid positions to seconds and back, constant rates told from variable ones."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from tadpipe.errors import ConfigError
from tadpipe.timeline import SnippetGrid, constant_rate, interpolate_frame_time

NTSC = Fraction(30000, 1001)


def stamped(fps: Fraction, frames: int, tick: Fraction, first: int = 0) -> list[int]:
    """Time stamps of a constant rate, rounded to a time base as containers do."""
    return [first + round(Fraction(i) / fps / tick) for i in range(frames)]


def test_constant_rate_grid_is_the_official_formula() -> None:
    grid = SnippetGrid.from_convention(100, fps=29.97, stride_frames=4, span_frames=16)
    for position in (0, 7.25, 99, 140):
        assert grid.to_sec(position) == pytest.approx((position * 4 + 8) / 29.97, rel=1e-12)
    assert grid.offset_grid == 2.0


def test_offset_may_be_stated() -> None:
    grid = SnippetGrid.from_convention(10, fps=30, stride_frames=8, span_frames=16, offset_frames=4)
    assert grid.t0_sec == pytest.approx(4 / 30)
    assert grid.offset_grid == 1.0


def test_variable_rate_follows_the_rows() -> None:
    grid = SnippetGrid(3, 4, 16, 8, 1.0, 1.5, (1.0, 2.0, 4.0))
    assert [grid.to_sec(p) for p in (0, 0.5, 1, 1.5, 2)] == [1.0, 1.5, 2.0, 3.0, 4.0]
    assert (grid.to_sec(-1), grid.to_sec(3)) == (-0.5, 5.5)  # the mean step beyond both ends
    assert [grid.to_grid(t) for t in (-0.5, 1.0, 1.5, 3.0, 4.0, 5.5)] == [-1, 0, 0.5, 1.5, 2, 3]


def test_thinned_grid_keeps_the_times_of_its_rows() -> None:
    for times in (None, (0.0, 1.0, 3.0, 4.0, 8.0)):
        grid = SnippetGrid(5, 4, 16, 8, 0.0, 2.0, times)
        thin = grid.subsampled(2)
        assert thin.rows == 3
        assert thin.stride_frames == 8
        assert [thin.to_sec(i) for i in range(3)] == [grid.to_sec(2 * i) for i in range(3)]


def test_resized_grid_spans_the_same_time() -> None:
    grid = SnippetGrid.from_convention(160, fps=25, stride_frames=16, span_frames=16)
    small = grid.resized(100)
    # 160 snippets of 16 frames cover 2560 frames: 100 cells of 25.6 frames.
    assert small.stride_frames == pytest.approx(25.6)
    assert small.to_sec(0) == pytest.approx(12.8 / 25)
    assert small.to_sec(99) == pytest.approx((99 * 25.6 + 12.8) / 25)


def test_resized_variable_grid_reads_its_times_from_the_old_one() -> None:
    grid = SnippetGrid(4, 8, 8, 4, 0.0, 1.0, (0.0, 1.0, 2.0, 5.0))
    assert grid.resized(4).row_times_sec == pytest.approx(grid.row_times_sec)
    assert grid.resized(2).row_times_sec == pytest.approx((0.5, 3.5))


@pytest.mark.parametrize(
    "wrong", [{"rows": -1}, {"stride_frames": 0}, {"dt_sec": 0}, {"row_times_sec": (1.0,)}]
)
def test_impossible_grid_is_refused(wrong: dict) -> None:
    fields = {"rows": 3, "stride_frames": 4, "span_frames": 16, "offset_frames": 8}
    with pytest.raises(ConfigError):
        SnippetGrid(**{**fields, "t0_sec": 0.0, "dt_sec": 1.0, **wrong})


def test_grid_is_thinned_by_a_whole_factor_only() -> None:
    with pytest.raises(ConfigError, match="factor"):
        SnippetGrid.from_convention(9, fps=30, stride_frames=4, span_frames=16).subsampled(0)


@pytest.mark.parametrize("fps", [Fraction(30), NTSC, Fraction(24000, 1001), Fraction(25, 2)])
@pytest.mark.parametrize("tick", [Fraction(1, 1000), Fraction(1, 90000), Fraction(1, 15360)])
@pytest.mark.parametrize("guess", [False, True])
def test_constant_rate_is_found_through_rounding(
    fps: Fraction, tick: Fraction, guess: bool
) -> None:
    ticks = stamped(fps, 20_000, tick, first=1500)
    assert constant_rate(ticks, tick, fps if guess else None) == fps


def test_a_wrong_guess_does_not_win() -> None:
    ticks = stamped(Fraction(30), 726, Fraction(1, 1_000_000))
    assert constant_rate(ticks, Fraction(1, 1_000_000), Fraction(3635, 121)) == 30


def test_a_missing_frame_makes_the_rate_variable() -> None:
    for tick in (Fraction(1, 1000), Fraction(1, 30)):  # avi: one tick is one frame
        ticks = stamped(Fraction(30), 100, tick)
        del ticks[40]
        assert constant_rate(ticks, tick, Fraction(30)) is None


def test_a_rate_that_is_no_simple_fraction_is_still_found() -> None:
    period = Fraction(1_234_567, 1000)  # ticks
    ticks = [round(i * period) for i in range(5000)]
    rate = constant_rate(ticks, Fraction(1, 1_000_000))
    assert rate is not None
    assert float(rate) == pytest.approx(1e9 / 1_234_567, rel=1e-7)


def test_one_frame_takes_the_guess() -> None:
    assert constant_rate([7], Fraction(1, 1000), Fraction(25)) == 25
    assert constant_rate([7], Fraction(1, 1000)) is None
    assert constant_rate([7, 7], Fraction(1, 1000)) is None


def test_frame_times_between_and_beyond_stamps() -> None:
    times = (0.0, 1.0, 3.0)
    assert [interpolate_frame_time(times, p) for p in (0, 0.5, 1.5, 2, 3)] == [0, 0.5, 2, 3, 5]
    assert interpolate_frame_time((2.0,), 5) == 2.0
    assert np.isclose(interpolate_frame_time(times, -1), -1.0)
